//! A full disk under the leader, which then isn't the leader any more, under a follower, and under a node that gets a
//! state: writes are refused clearly there and go on elsewhere, reads go on; with room again, all is as before.

use crate::PATIENCE;
use quire_node::cli::local::LocalCluster;
use quire_tests::TestCluster;
use quire_tests::admin::http;
use quire_tests::hosts::{Host, Program, skip, stock};
use quire_tests::replicas::{assert_identical, database, steady_prepared};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, mib: u32) -> Result<Small, String> {
        std::fs::create_dir_all(path).unwrap();
        mount(path, &format!("mode=0755,size={mib}m"))?;
        Ok(Small(path.to_owned()))
    }

    fn grow(&self, mib: u32) {
        mount(&self.0, &format!("remount,size={mib}m")).unwrap();
    }
}

fn mount(path: &Path, options: &str) -> Result<(), String> {
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_moves_the_lead_and_serves_reads() {
    if !Program::Cli.is_here() {
        return;
    }
    let mut test: TestCluster = steady_prepared(3, &["--log-segment-mib", "1", "--checkpoint-mib", "1"]);
    // Only root may mount; whoever runs this as somebody else learns nothing from it.
    let is_root = nix::unistd::geteuid().is_root();
    let dir = test.cluster.node(1).unwrap().dir.clone();
    let small = match Small::mount(&dir, 24) {
        Ok(small) => small,
        Err(why) if is_root => return skip(&format!("can't mount a small tmpfs: {why}")),
        Err(why) => return eprintln!("skipped: only root may mount a small tmpfs: {why}"),
    };
    test.cluster.start().unwrap();
    assert_eq!(test.cluster.wait_leader(PATIENCE).unwrap(), 1);

    let path = database(&test, 1, "app");
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, b)").unwrap();
    host.sql("PRAGMA busy_timeout = 500").unwrap();
    let mut reader = Host::open(Program::Cli, &path);
    // The database grows, so that neither a checkpoint nor a purge of the log makes room for long.
    let write = |host: &mut Host, n: u32| {
        host.sql(&format!("INSERT OR REPLACE INTO t VALUES ({n}, randomblob(60000))")).map(drop)
    };
    let mut acknowledged = 0;
    let refused = loop {
        match write(&mut host, acknowledged + 1) {
            Ok(()) => acknowledged += 1,
            Err(why) => break why,
        }
        assert!(acknowledged < 2000, "the disk never fills");
    };
    println!("after {acknowledged} commits: {refused}\n{}", host.log());
    // The first to find out may stand in its COMMIT already, which SQLite can only call an I/O error.
    let clear = ["database is locked", "database or disk is full"].iter().any(|text| refused.contains(text));
    let explained = refused.contains("disk I/O error") && host.log().contains("quire: ");
    assert!(clear || explained, "{refused}\n{}", host.log());
    assert!(acknowledged > 50, "{acknowledged}");

    // Another node leads, and is written on; this one says why it takes nothing.
    let moved = |cluster: &LocalCluster| {
        let status = cluster.node(2).unwrap().status().unwrap_or_default();
        ["2", "3"].iter().any(|id| status["store"]["leader"]["node_id"] == *id)
    };
    test.cluster.wait("another node to lead", PATIENCE, moved).unwrap();
    let said = |cluster: &LocalCluster| cluster.node(1).unwrap().log().contains("handing the lead over");
    test.cluster.wait("the leader to say why", PATIENCE, said).unwrap();
    let mut elsewhere = Host::open(Program::Cli, &database(&test, 2, "app"));
    elsewhere.sql("PRAGMA busy_timeout = 20000").unwrap();
    for n in 1..=40 {
        let sql = format!("INSERT INTO t VALUES ({}, randomblob(60000))", 10_000 + n);
        crate::write_again(&mut elsewhere, &sql);
    }
    let is_full = |cluster: &LocalCluster| {
        let (code, lines) = http(&cluster.node(1).unwrap().http, "GET", "/readyz", "");
        code == 503 && lines.contains("[-]disk ")
    };
    test.cluster.wait("the node to say that its disk is full", PATIENCE, is_full).unwrap();
    let why = host.sql("INSERT INTO t VALUES (20000, 1)").unwrap_err();
    assert!(why.contains("full"), "{why}\n{}", host.log());

    // Reads go on, of what was acknowledged; the node lives.
    let rows = format!("SELECT count(*), sum(length(b)) FROM t WHERE id <= {acknowledged}");
    let expected = format!("{acknowledged}|{}", acknowledged * 60000);
    assert_eq!(reader.sql(&rows).unwrap(), [expected.as_str()]);
    for node in 1..=3 {
        assert!(test.cluster.node(node).unwrap().status().is_some(), "node {node}");
    }
    for node in 2..=3 {
        assert_eq!(stock(&database(&test, node, "app"), &rows).unwrap(), expected, "node {node}");
        let whole = stock(&database(&test, node, "app"), "PRAGMA integrity_check");
        assert_eq!(whole.unwrap(), "ok", "node {node}");
    }
    drop(elsewhere);

    small.grow(200);
    test.cluster
        .wait("the node to find room again", PATIENCE, |cluster| {
            cluster.node(1).unwrap().status().is_some_and(|s| s["store"]["disk_full"].is_null())
        })
        .unwrap();
    host.sql("PRAGMA busy_timeout = 20000").unwrap();
    crate::write_again(&mut host, "INSERT INTO t VALUES (100000, 'again')");
    drop((host, reader));
    assert_identical(&test, "app", &["SELECT id, hex(b) FROM t"]);
}

/// The databases are on a disk of their own, and only that is full.
#[test]
fn a_full_disk_of_the_databases_alone_is_told() {
    if !Program::Cli.is_here() {
        return;
    }
    let mut test: TestCluster = steady_prepared(1, &[]);
    let db = test.cluster.node(1).unwrap().dir.join("db");
    let _small = match Small::mount(&db, 16) {
        Ok(small) => small,
        Err(why) if nix::unistd::geteuid().is_root() => return skip(&format!("can't mount a tmpfs: {why}")),
        Err(why) => return eprintln!("skipped: only root may mount a small tmpfs: {why}"),
    };
    test.cluster.start().unwrap();
    let mut host = Host::open(Program::Cli, &database(&test, 1, "app"));
    host.sql("CREATE TABLE t(a)").unwrap();
    host.sql("INSERT INTO t VALUES (1)").unwrap();
    // Of the last MiB, half stays: what is small enough could still be written.
    let left = nix::sys::statvfs::statvfs(&db).unwrap();
    let left = left.blocks_available() * left.fragment_size();
    let ballast = db.join("ballast");
    std::fs::write(&ballast, vec![1; left as usize - (512 << 10)]).unwrap();
    let metrics = |cluster: &LocalCluster| http(&cluster.node(1).unwrap().http, "GET", "/metrics", "").1;
    let is_full = |cluster: &LocalCluster| {
        let node = cluster.node(1).unwrap();
        let (code, lines) = http(&node.http, "GET", "/readyz", "");
        let status = node.status().unwrap_or_default();
        let why = status["store"]["disk_full"].as_str().unwrap_or_default();
        code == 503
            && lines.contains("[-]disk ")
            && why.contains("left for the databases in")
            && metrics(cluster).contains("\nquire_disk_full 1\n")
    };
    test.cluster.wait("the node to say that its disk is full", PATIENCE, is_full).unwrap();
    let why = host.sql("INSERT INTO t VALUES (2)").unwrap_err();
    assert!(
        why.contains("full") && host.log().contains("left for the databases in"),
        "{why}\n{}",
        host.log()
    );
    assert_eq!(host.sql("SELECT a FROM t").unwrap(), ["1"]);
    std::fs::remove_file(&ballast).unwrap();
    let has_room = |cluster: &LocalCluster| {
        let status = cluster.node(1).unwrap().status().unwrap_or_default();
        status["store"]["disk_full"].is_null() && metrics(cluster).contains("\nquire_disk_full 0\n")
    };
    test.cluster.wait("the node to find room again", PATIENCE, has_room).unwrap();
    host.sql("INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(host.sql("SELECT a FROM t").unwrap(), ["1", "3"]);
}

/// What was received on a disk that is too small is kept; the rest comes once there is room, and meanwhile the source
/// goes on committing.
#[test]
fn a_transfer_waits_for_room() {
    if !Program::Cli.is_here() {
        return;
    }
    let flags =
        ["--log-segment-mib", "1", "--log-retain-mib", "0", "--checkpoint-mib", "1", "--part-kib", "256"];
    let mut test = steady_prepared(1, &flags);
    test.cluster.start().unwrap();
    let mut host = Host::open(Program::Cli, &database(&test, 1, "app"));
    host.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, b)").unwrap();
    for n in 1..=30 {
        host.sql(&format!("INSERT INTO t VALUES ({n}, randomblob(1000000))")).unwrap();
    }
    let purged = |cluster: &LocalCluster| {
        let raft = cluster.node(1).unwrap().status().unwrap_or_default()["store"]["raft"].clone();
        raft["purged_index"].as_u64() > Some(10)
    };
    test.cluster.wait("the log to be purged", PATIENCE, purged).unwrap();

    let id = test.cluster.add().unwrap();
    let node = test.cluster.node_mut(id).unwrap();
    node.flags = test_flags(&flags);
    let small = match Small::mount(&node.dir, 20) {
        Ok(small) => small,
        Err(why) if nix::unistd::geteuid().is_root() => return skip(&format!("can't mount a tmpfs: {why}")),
        Err(why) => return eprintln!("skipped: only root may mount a small tmpfs: {why}"),
    };
    test.cluster.start_node(id).unwrap();
    let mut progress = false;
    let stuck = |cluster: &LocalCluster| {
        let node = cluster.node(id).unwrap();
        let status = node.status().unwrap_or_default();
        let arriving = status["store"]["arriving"].as_array().cloned().unwrap_or_default();
        progress |=
            arriving.iter().any(|db| db["name"] == "app" && db["transfer"]["total"].as_u64() > Some(1000));
        node.log()
            .lines()
            .any(|line| line.contains("snapshot not received") && line.contains("No space left"))
    };
    test.cluster.wait("the disk to be full", PATIENCE, stuck).unwrap();
    let log = || test.cluster.node(id).unwrap().log();
    for n in 31..=35 {
        host.sql(&format!("INSERT INTO t VALUES ({n}, randomblob(1000))")).unwrap();
    }
    assert!(progress, "it was not seen in the status");
    small.grow(200);
    test.cluster.wait_applied("app", PATIENCE).unwrap_or_else(|why| panic!("{why:#}"));
    let resumed = log().lines().any(|line| line.contains("resumed=") && !line.contains("resumed=0"));
    assert!(resumed, "{}", log());
    drop(host);
    assert_identical(&test, "app", &["SELECT id, hex(b) FROM t"]);
}

/// The flags of a further node, which only reads.
fn test_flags(flags: &[&str]) -> Vec<String> {
    ["--non-voter"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect()
}
