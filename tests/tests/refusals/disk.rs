//! A full disk under the leader: writes are refused clearly, reads go on, the other nodes are whole; with
//! room again, writes go on.

use crate::PATIENCE;
use quire_tests::TestCluster;
use quire_tests::hosts::{Host, Program, skip, stock};
use quire_tests::replicas::{assert_identical, database, steady_prepared};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, mib: u32) -> Result<Small, String> {
        std::fs::create_dir_all(path).unwrap();
        mount(path, &format!("size={mib}m"))?;
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
fn a_full_disk_refuses_writes_and_serves_reads() {
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
    let explained = refused.contains("disk I/O error") && host.log().contains("refused: disk full");
    assert!(clear || explained, "{refused}\n{}", host.log());
    assert!(acknowledged > 50, "{acknowledged}");
    let mut again = 0;
    for attempt in 1..=5 {
        // Room that a purge of the log makes is soon used up.
        let n = acknowledged + attempt;
        if let Err(why) = write(&mut host, n) {
            // Where the log of SQLite is the first to find no room, the error itself says so.
            let is_clear = why.contains("disk is full") || host.log().contains("quire: ");
            assert!(is_clear, "{why}\n{}", host.log());
            again += 1;
        }
    }
    assert!(again > 0, "the disk is not full for long");

    // Reads go on, of the same data everywhere; the node lives.
    let rows = format!("SELECT count(*), sum(length(b)) FROM t WHERE id <= {acknowledged}");
    let expected = format!("{acknowledged}|{}", acknowledged * 60000);
    assert_eq!(reader.sql(&rows).unwrap(), [expected.as_str()]);
    test.cluster.wait_applied("app", PATIENCE).unwrap();
    for node in 1..=3 {
        assert!(test.cluster.node(node).unwrap().status().is_some(), "node {node}");
        assert_eq!(stock(&database(&test, node, "app"), &rows).unwrap(), expected, "node {node}");
        assert_eq!(
            stock(&database(&test, node, "app"), "PRAGMA integrity_check").unwrap(),
            "ok",
            "node {node}"
        );
    }

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
