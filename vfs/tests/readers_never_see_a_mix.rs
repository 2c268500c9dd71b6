//! Stock readers in other processes never see a part of a transaction, whatever Quire does to the WAL.
//!
//! All rows of a table, over many pages, carry one generation number, which each transaction raises. Readers
//! of several SQLite versions read the table over and over while transactions are appended, the WAL is
//! checkpointed and started anew; others hold a snapshot open across all of that. Every read transaction
//! must find one generation in all rows, none older than the read before it, and the last one at the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Replica, WalTail, cli, new_database, python, stock};
use quire_vfs::format::{FrameNo, PageSize};
use rusqlite::Connection;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ROWS: i64 = 200;
/// How many there are to be, if the machine manages.
const GENERATIONS: u32 = 300;
/// Restarts of the WAL that must have happened under the readers' eyes.
const RESTARTS: u32 = 6;
const DEADLINE: Duration = Duration::from_secs(15);
/// On a busy machine, fewer generations will do.
const ENOUGH: Duration = Duration::from_secs(8);

/// What a read transaction finds: lowest and highest generation and number of rows; by the table in one
/// statement, by an index in another.
const READ: &str = "SELECT min(gen) || ' ' || max(gen) || ' ' || count(*) FROM t NOT INDEXED;";
const READ_INDEX: &str = "SELECT min(gen) || ' ' || max(gen) || ' ' || count(gen) FROM t INDEXED BY t_gen;";

/// Reads until the file `argv[2]` exists, then once more; prints what each transaction found.
const PYTHON_READER: &str = "
import os, sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
while True:
    last = os.path.exists(sys.argv[2])
    conn.execute('BEGIN')
    a = conn.execute(sys.argv[3]).fetchone()[0]
    b = conn.execute(sys.argv[4]).fetchone()[0]
    conn.execute('COMMIT')
    print(a, b, flush=True)
    if last:
        print(conn.execute('PRAGMA integrity_check').fetchone()[0], flush=True)
        break
";

/// The generation that a line of a reader proves, if it is of one.
fn generation(line: &str) -> u32 {
    let words: Vec<&str> = line.split(' ').collect();
    let rows = ROWS.to_string();
    match words[..] {
        [a, b, n, c, d, m] if a == b && a == c && a == d && n == rows && m == rows => a.parse().unwrap(),
        _ => panic!("a read transaction saw a mix: {line}"),
    }
}

/// The origin, whose transactions Quire appends to a replica.
struct Setup {
    dir: tempfile::TempDir,
    origin: Connection,
    tail: WalTail,
    replica: Replica,
    generation: u32,
}

impl Setup {
    fn new() -> Setup {
        let page_size = PageSize::new(1024).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let origin = new_database(dir.path(), "origin", page_size);
        let replica = new_database(dir.path(), "replica", page_size);
        let tail = WalTail::at_end(&origin, 1);
        let mut setup = Setup {
            origin: stock(&origin),
            tail,
            replica: Replica::open(&replica, page_size),
            dir,
            generation: 0,
        };
        setup.sql(&format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, gen INTEGER, pad BLOB);
             CREATE INDEX t_gen ON t(gen);
             INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS})
             SELECT i, 0, randomblob(300) FROM c;"
        ));
        setup
    }

    fn sql(&mut self, sql: &str) {
        self.origin.execute_batch(sql).unwrap();
        for txn in self.tail.take() {
            self.replica.append(&txn);
        }
    }

    fn next_generation(&mut self) {
        self.generation += 1;
        self.sql("UPDATE t SET gen = gen + 1, pad = randomblob(abs(random()) % 500)");
        // Keeps the origin's WAL short.
        if self.generation.is_multiple_of(20) {
            self.origin.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
    }

    fn path(&self) -> PathBuf {
        self.replica.path.clone()
    }
}

/// A reader process whose lines arrive over a channel.
struct Reader {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    seen: u32,
    reads: u32,
}

impl Reader {
    fn start(name: &'static str, command: &mut Command) -> Reader {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || pump_lines(stdout, &send));
        Reader { name, child, lines, seen: 0, reads: 0 }
    }

    fn note(&mut self, line: &str) {
        let found = generation(line);
        assert!(found >= self.seen, "{} went back from {} to {found}", self.name, self.seen);
        self.seen = found;
        self.reads += 1;
    }

    /// Takes what has come, and waits until there is something of at least that generation.
    fn catch_up(&mut self, generation: u32, deadline: Instant) {
        while let Ok(line) = self.lines.try_recv() {
            self.note(&line);
        }
        while self.seen < generation {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.note(&line),
                Err(RecvTimeoutError::Timeout) => panic!("{} is stuck at {}", self.name, self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("{} ended: {:?}", self.name, self.child.wait()),
            }
        }
    }

    /// The rest of its output, which ends with the last generation and a sound database.
    fn finish(mut self, generation: u32) {
        let status = self.child.wait().unwrap();
        let mut lines = vec![];
        while let Ok(line) = self.lines.recv() {
            lines.push(line);
        }
        let (last, lines) = lines.split_last().unwrap();
        lines.iter().for_each(|line| self.note(line));
        assert!(status.success(), "{}: {status}", self.name);
        assert_eq!(last, "ok", "{}", self.name);
        assert_eq!(self.seen, generation, "{}", self.name);
        println!("{}: {} reads", self.name, self.reads);
    }
}

/// Passes on the lines that readers print; libtest, in [`bundled_reader`], prints others.
fn pump_lines(stdout: ChildStdout, send: &Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let line = line.unwrap();
        if (line == "ok" || line.starts_with(|c: char| c.is_ascii_digit())) && send.send(line).is_err() {
            return;
        }
    }
}

/// A `sqlite3` that is fed statement by statement, and answers each with a line.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn start(cli: &Path, db: &Path) -> Shell {
        let mut child = Command::new(cli)
            .args(["-batch", "-bail"])
            .arg(db)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Shell { child, stdin, stdout }
    }

    fn ask(&mut self, sql: &str) -> String {
        self.stdin.write_all(sql.as_bytes()).unwrap();
        self.stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// One line for all that a snapshot holds.
    fn content(&mut self) -> String {
        self.ask(
            "SELECT group_concat(id || ':' || gen || ':' || hex(pad)) FROM (SELECT * FROM t ORDER BY id);",
        )
    }

    fn finish(self) {
        let Shell { mut child, stdin, stdout } = self;
        drop((stdin, stdout));
        assert!(child.wait().unwrap().success());
    }
}

/// The reader of the bundled SQLite, run by the tests below in a process of its own.
#[test]
#[ignore = "a part of the other tests"]
fn bundled_reader() {
    let Some(path) = std::env::var_os("READER_DATABASE") else { return };
    let stop = PathBuf::from(std::env::var_os("READER_STOP").unwrap());
    let conn = Connection::open(path).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out).unwrap();
    loop {
        let last = stop.exists();
        let read = |sql| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        writeln!(out, "{} {}", read(READ), read(READ_INDEX)).unwrap();
        conn.execute_batch("COMMIT").unwrap();
        out.flush().unwrap();
        if last {
            writeln!(out, "{}", read("PRAGMA integrity_check")).unwrap();
            return;
        }
    }
}

fn bundled(db: &Path, stop: &Path) -> Reader {
    Reader::start(
        "the bundled SQLite",
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bundled_reader", "--ignored", "--nocapture"])
            .env("READER_DATABASE", db)
            .env("READER_STOP", stop),
    )
}

/// A `sqlite3` process that reads in a loop, driven by a thread that passes its lines on.
fn looping_shell(cli: &Path, db: &Path, stop: &Path) -> JoinHandle<Vec<String>> {
    let (mut shell, stop) = (Shell::start(cli, db), stop.to_owned());
    std::thread::spawn(move || {
        let mut lines = vec![];
        loop {
            let last = stop.exists();
            let first = shell.ask(&format!("BEGIN; {READ}"));
            let second = shell.ask(READ_INDEX);
            assert_eq!(shell.ask("COMMIT; SELECT 'done';"), "done");
            lines.push(format!("{first} {second}"));
            if last {
                shell.finish();
                return lines;
            }
        }
    })
}

#[test]
fn looping_readers() {
    let start = Instant::now();
    let deadline = start + DEADLINE;
    let mut setup = Setup::new();
    let (db, stop) = (setup.path(), setup.dir.path().join("stop"));
    let mut readers = vec![bundled(&db, &stop)];
    if let Some(python) = python() {
        for name in ["Python's sqlite3", "Python's other sqlite3"] {
            let mut command = Command::new(python);
            command.args(["-c", PYTHON_READER]).args([&db, &stop]).args([READ, READ_INDEX]);
            readers.push(Reader::start(name, &mut command));
        }
    }
    let shell = cli().map(|cli| looping_shell(cli, &db, &stop));

    while setup.replica.restarts < RESTARTS || (setup.generation < GENERATIONS && start.elapsed() < ENOUGH) {
        assert!(Instant::now() < deadline, "{} restarts in time", setup.replica.restarts);
        setup.next_generation();
        // Readers that stand in the way leave soon; new ones need the WAL no more once all is copied.
        if setup.generation.is_multiple_of(10) {
            for _ in 0..50 {
                setup.replica.checkpoint();
                if setup.replica.is_backfilled() && setup.replica.try_restart() {
                    break;
                }
                std::thread::yield_now();
            }
        }
        if setup.generation.is_multiple_of(30) {
            readers.iter_mut().for_each(|reader| reader.catch_up(setup.generation, deadline));
        }
    }
    std::fs::write(&stop, "").unwrap();
    for reader in readers {
        reader.finish(setup.generation);
    }
    if let Some(shell) = shell {
        let seen: Vec<u32> = shell.join().unwrap().iter().map(|line| generation(line)).collect();
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&setup.generation));
        println!("the machine's sqlite3: {} reads", seen.len());
    }
    println!("{} generations, {} restarts", setup.generation, setup.replica.restarts);
}

#[test]
fn long_readers() {
    let Some(cli) = cli() else { return };
    let mut setup = Setup::new();
    let path = setup.path();

    // Each snapshot lies elsewhere in the WAL. There are four reader slots beyond that of the file, and the
    // fifth and later readers share one.
    let mut readers = vec![];
    for _ in 0..7 {
        setup.next_generation();
        let mut shell = Shell::start(cli, &path);
        let line = shell.ask(&format!("BEGIN; {READ}"));
        let found = generation(&format!("{line} {line}"));
        assert!(found <= setup.generation);
        let content = shell.content();
        readers.push((shell, found, content));
    }
    assert_eq!(readers[0].1, 1);
    // A checkpoint copies what they allow; the WAL can't start anew while they read it.
    for _ in 0..40 {
        setup.next_generation();
        setup.replica.checkpoint();
        assert!(!setup.replica.is_backfilled() && !setup.replica.try_restart());
    }
    for (mut shell, found, content) in readers {
        let line = shell.ask(READ_INDEX);
        assert_eq!(generation(&format!("{line} {line}")), found);
        assert!(shell.content() == content, "the snapshot of generation {found} changed");
        assert_eq!(shell.ask("PRAGMA integrity_check;"), "ok");
        // The same connection, in its next transaction, sees the newest.
        let line = shell.ask(&format!("COMMIT; {READ}"));
        assert_eq!(generation(&format!("{line} {line}")), setup.generation);
        shell.finish();
    }

    // A snapshot of the newest frame lets all be copied, but not the WAL start anew: it still reads there.
    setup.next_generation();
    let mut shell = Shell::start(cli, &path);
    let line = shell.ask(&format!("BEGIN; {READ}"));
    let found = generation(&format!("{line} {line}"));
    assert_eq!(found, setup.generation);
    let content = shell.content();
    setup.replica.checkpoint();
    assert!(setup.replica.is_backfilled() && !setup.replica.try_restart());
    for _ in 0..10 {
        setup.next_generation();
        setup.replica.checkpoint();
        assert!(!setup.replica.is_backfilled());
    }
    assert!(shell.content() == content, "the snapshot of generation {found} changed");
    let line = shell.ask(&format!("COMMIT; {READ}"));
    assert_eq!(generation(&format!("{line} {line}")), setup.generation);
    shell.finish();
    assert_eq!(setup.replica.restarts, 0);

    // A snapshot of the database file alone lets the WAL start anew under it, but nothing be copied.
    setup.replica.checkpoint();
    assert!(setup.replica.is_backfilled());
    let mut shell = Shell::start(cli, &path);
    let line = shell.ask(&format!("BEGIN; {READ}"));
    let found = generation(&format!("{line} {line}"));
    assert_eq!(found, setup.generation);
    let content = shell.content();
    for _ in 0..30 {
        setup.next_generation();
        setup.replica.checkpoint();
        assert!(!setup.replica.is_backfilled());
    }
    assert_eq!(setup.replica.restarts, 1);
    assert!(setup.replica.header().max_frame > FrameNo(0));
    assert!(shell.content() == content, "the snapshot of the file changed");
    let line = shell.ask(&format!("COMMIT; {READ_INDEX}"));
    assert_eq!(generation(&format!("{line} {line}")), setup.generation);
    shell.finish();

    // Nobody reads: all is copied, and the WAL starts anew.
    setup.replica.checkpoint();
    assert!(setup.replica.is_backfilled() && setup.replica.try_restart());
    setup.next_generation();
    let mut shell = Shell::start(cli, &path);
    let line = shell.ask(READ);
    assert_eq!(generation(&format!("{line} {line}")), setup.generation);
    shell.finish();
}
