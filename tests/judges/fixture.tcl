# testfixture fixture.tcl FILE: runs one of SQLite's files of tests. names.c tells which database a name stands for.

# Locks stand where they always do: a node takes them, too. tester.tcl would move them to the 64th KiB.
proc sqlite3_test_control_pending_byte {args} { return $::sqlite_pending_byte }

# A link's content is copied, not the link: what a test copies is a file of its own.
rename file fixture_file
proc file {subcommand args} {
  if {$subcommand eq "copy" && [llength $args] <= 3} {
    lassign [lrange $args end-1 end] from to
    if {[fixture_file exists $from] && [fixture_file type $from] eq "link"} {
      if {![catch {fixture_file type $to} type] && $type eq "link"} { fixture_file delete $to }
      set in [open $from rb]
      set out [open $to wb]
      fcopy $in $out
      close $in
      close $out
      return
    }
  }
  # crashsql asks for the name of the file whose sync is to crash, as the VFS will see it.
  if {$subcommand eq "nativename" && [info exists ::env(QUIRE_FIXTURE_DB)]} {
    set path [lindex $args 0]
    if {[regexp {^(.*)(-wal|-journal)$} $path all database suffix] || [regexp {^(.*\.db)()$} $path all database suffix]} {
      if {[catch {fixture_file type $database}]} {
        exec ln -s $::env(QUIRE_FIXTURE_DB)/f[pid]-c[incr ::fixture_count].db $database
      }
      if {[fixture_file type $database] eq "link"} { return [fixture_file readlink $database]$suffix }
    }
  }
  uplevel 1 [list fixture_file $subcommand {*}$args]
}

# A VFS that a test puts above Quire's has shared memory of its own, unless it is told not to; a node knows only its own.
if {[info exists env(QUIRE_FIXTURE_DB)]} {
  rename testvfs fixture_testvfs
  proc testvfs {name args} { uplevel 1 [list fixture_testvfs $name -fullshm 1 {*}$args] }
}

set argv0 [lindex $argv 0]
set argv [lrange $argv 1 end]
source $argv0
