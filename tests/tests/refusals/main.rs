//! What Quire refuses, how it says so, and that nobody else is harmed: hosts without a node that answers,
//! apps that break the gate's protocol, pragmas that would end replication, directories that belong to
//! somebody else, damaged files, a full disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod directories;
mod disk;
mod impostor;
mod socket;
mod strangers;

use nix::sys::signal::Signal;
use quire_node::cli::local::LocalCluster;
use quire_tests::TestCluster;
use quire_tests::hosts::{Host, Load, PATIENCE, Program, stock, uri};
use quire_tests::programs;
use quire_tests::replicas::{another_key, assert_identical, database, steady};
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Statements after each of which a host must have been told no.
fn assert_locked(host: &mut Host, sql: &str) {
    let refused = host.sql(sql).unwrap_err();
    assert!(refused.contains("database is locked"), "{sql}: {refused}\n{}", host.log());
}

/// The open fails cleanly, and the log line names what was looked for.
fn assert_no_open(path: &Path, named: &str) {
    let mut host = Host::start(Program::Cli, Load::Vfs);
    let refused = host.connect(&uri(path)).unwrap_err();
    assert!(refused.contains("unable to open database"), "{refused}");
    assert!(host.log().contains(named), "{named:?} is not in: {}", host.log());
    host.close();
}

/// Writes once it is possible again.
fn write_again(host: &mut Host, sql: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = host.sql(sql) {
        assert!(Instant::now() < deadline, "{sql}: {why}\n{}", host.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_node_that_is_dead_or_stopped_hangs_nobody() {
    if !Program::Cli.is_here() {
        return;
    }
    let mut test = steady(1, &["--commit-timeout-ms", "3000"]);
    let path = database(&test, 1, "app");
    let socket = path.with_file_name("quire.sock");
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    host.sql("PRAGMA busy_timeout = 0").unwrap();

    // Stopped: it takes connections and answers nothing.
    test.cluster.node(1).unwrap().signal(Signal::SIGSTOP).unwrap();
    assert_locked(&mut host, "INSERT INTO t VALUES (2)");
    assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), ["1"], "reads go on");
    assert_locked(&mut host, "BEGIN IMMEDIATE");
    assert!(host.log().contains(socket.to_str().unwrap()), "{}", host.log());
    assert_no_open(&path, socket.to_str().unwrap());
    // Reads that would have to ask end, too.
    host.sql("PRAGMA quire_reads = linearizable").unwrap();
    let unanswered = host.sql("SELECT count(*) FROM t").unwrap_err();
    assert!(unanswered.contains("disk I/O error"), "{unanswered}");
    assert!(host.log().contains("no read of app with reads=linearizable"), "{}", host.log());
    host.sql("PRAGMA quire_reads = local").unwrap();
    for pragma in ["quire_status", "quire_barrier"] {
        let unanswered = host.sql(&format!("PRAGMA {pragma}")).unwrap_err();
        assert!(unanswered.contains("did not answer: deadline passed"), "{pragma}: {unanswered}");
    }
    test.cluster.node(1).unwrap().signal(Signal::SIGCONT).unwrap();
    write_again(&mut host, "INSERT INTO t VALUES (2)");

    // In the middle of a transaction: the outcome can't be known, but the wait ends.
    host.sql("BEGIN; INSERT INTO t VALUES (3)").unwrap();
    test.cluster.node(1).unwrap().signal(Signal::SIGSTOP).unwrap();
    let unknown = host.sql("COMMIT").unwrap_err();
    assert!(unknown.contains("disk I/O error"), "{unknown}");
    assert!(host.log().contains("unknown"), "{}", host.log());
    let _ = host.sql("ROLLBACK");
    assert_eq!(host.sql("SELECT count(*) FROM t WHERE a < 3").unwrap(), ["2"], "reads go on");
    test.cluster.node(1).unwrap().signal(Signal::SIGCONT).unwrap();
    write_again(&mut host, "INSERT INTO t VALUES (4)");

    // Dead: its socket is still there.
    test.cluster.kill(1).unwrap();
    assert!(socket.exists());
    assert_no_open(&path, socket.to_str().unwrap());
    assert_eq!(host.sql("SELECT count(*) FROM t WHERE a <> 3").unwrap(), ["3"], "reads go on");
    assert_locked(&mut host, "INSERT INTO t VALUES (5)");
    // With the node dead, too, stock SQLite must not write while apps have the database open; nor does it
    // by itself: it would have to recover what it finds.
    test.cluster.start_node(1).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    write_again(&mut host, "INSERT INTO t VALUES (5)");
    drop(Host::open(Program::Cli, &path));

    // Ended in order: no socket.
    host.close();
    assert!(test.cluster.stop(1).unwrap().success());
    assert!(!socket.exists());
    assert_no_open(&path, socket.to_str().unwrap());
    assert_no_open(Path::new("/nonexistent/directory/app.db"), "/nonexistent/directory");
}

#[test]
fn what_would_end_replication_is_refused() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(1, &[]);
    let path = database(&test, 1, "app");
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    for mode in ["DELETE", "truncate", "MEMORY", "off", "persist"] {
        let refused = host.sql(&format!("PRAGMA journal_mode = {mode}")).unwrap_err();
        assert!(refused.contains("a replicated database stays in WAL mode"), "{refused}");
    }
    for pragma in ["locking_mode = EXCLUSIVE", "main.locking_mode = exclusive"] {
        let refused = host.sql(&format!("PRAGMA {pragma}")).unwrap_err();
        assert!(refused.contains("shared with its node"), "{refused}");
    }
    for (pragma, answer) in
        [("journal_mode = WAL", "wal"), ("journal_mode", "wal"), ("locking_mode", "normal")]
    {
        assert_eq!(host.sql(&format!("PRAGMA {pragma}")).unwrap(), [answer]);
    }
    // An app's checkpoint finds the checkpointer busy, and goes on.
    host.sql("PRAGMA busy_timeout = 0").unwrap();
    for mode in ["", "(PASSIVE)", "(FULL)", "(RESTART)", "(TRUNCATE)"] {
        let rows = host.sql(&format!("PRAGMA wal_checkpoint{mode}")).unwrap();
        assert!(rows.len() == 1 && rows[0].starts_with("1|"), "wal_checkpoint{mode}: {rows:?}");
        host.sql("INSERT INTO t VALUES (2)").unwrap();
    }
    host.sql("PRAGMA wal_autocheckpoint = 1; INSERT INTO t VALUES (3); INSERT INTO t VALUES (4)").unwrap();
    // As in plain SQLite with a file that is in WAL mode: it has a page already, which says how it is to be vacuumed.
    let steps = [
        "PRAGMA auto_vacuum = FULL; CREATE TABLE early(a)",
        "PRAGMA auto_vacuum",
        "PRAGMA auto_vacuum = FULL; VACUUM",
        "PRAGMA auto_vacuum",
    ];
    let plain =
        stock(&test.dir.path().join("plain.db"), &format!("PRAGMA journal_mode = WAL; {}", steps.join("; ")));
    assert_eq!(plain.as_deref(), Ok("wal\n0\n1"));
    let mut vacuumed = Host::open(Program::Cli, &database(&test, 1, "vacuumed"));
    let answers: Vec<_> = steps.iter().flat_map(|step| vacuumed.sql(step).unwrap()).collect();
    assert_eq!(answers, ["0", "1"]);
    vacuumed.close();
    // No page size but the database's own.
    host.sql("PRAGMA page_size = 8192; VACUUM").unwrap();
    assert_eq!(host.sql("PRAGMA page_size").unwrap(), ["4096"]);

    for (parameter, why) in [
        ("immutable=1", "immutable"),
        ("nolock=1", "nolock"),
        ("page_size=1000", "page_size=1000"),
        ("page_size=512", "pages of 4096 bytes"),
    ] {
        let mut other = Host::start(Program::Cli, Load::Vfs);
        let refused = other.connect(&format!("{}&{parameter}", uri(&path))).unwrap_err();
        assert!(refused.contains("unable to open"), "{parameter}: {refused}");
        assert!(other.log().contains(why), "{parameter}: {}", other.log());
    }
    if Program::Apsw.is_here() {
        let mut deleter = Host::open(Program::Apsw, &path);
        for file in ["app.db-wal", "app.db-shm"] {
            let file = path.with_file_name(file);
            let refused = deleter.request(json!({ "delete": file })).unwrap_err();
            assert!(refused.contains("IOError"), "{refused}");
            assert!(deleter.log().contains("refused to delete"), "{}", deleter.log());
            assert!(file.exists());
        }
    }
    assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), ["8"]);
    host.close();
    assert_identical(&test, "app", &["SELECT count(*) FROM t"]);
}

/// A node process that is no part of a [`quire_tests::TestCluster`].
struct Stray(Child);

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An id that a member has: the newcomer ends, and says whose it is. The same member that comes twice is welcome.
#[test]
fn an_id_that_is_taken_is_refused() {
    let mut test = steady(2, &["--log-segment-mib", "1"]);
    let key = test.dir.path().join("cluster.key");
    let taken = test.cluster.node(2).unwrap().raft.clone();
    let stray = test.dir.path().join("stray");
    let run = |dir: &Path| {
        let mut command = Command::new(&programs().quire);
        command.args(["node", "--node-id", "2", "--join", &test.cluster.nodes[0].raft]).arg("--data-dir");
        command.arg(dir).args([
            "--http-addr",
            "127.0.0.1:0",
            "--raft-addr",
            "127.0.0.1:0",
            "--log-segment-mib",
            "1",
        ]);
        command.arg("--cluster-key").arg(&key).env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&stray);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!output.status.success(), "{said}");
    let expected = format!("node id 2 belongs to the member at {taken}; give the new node an id of its own");
    assert!(said.contains(&expected), "{said}");
    let members = |test: &TestCluster| test.cluster.node(1).unwrap().voters();
    assert_eq!(members(&test), Some(vec![1, 2]));

    // Its own directory, --join included, once more: nothing to be done.
    test.cluster.kill(2).unwrap();
    test.cluster.start_node(2).unwrap();
    let back = |cluster: &LocalCluster| cluster.node(2).unwrap().voters() == Some(vec![1, 2]);
    test.cluster.wait("the member to be back", PATIENCE, back).unwrap();
    assert_eq!(members(&test), Some(vec![1, 2]));
}

#[test]
fn a_node_with_another_key_never_joins() {
    if !Program::Cli.is_here() {
        return;
    }
    let mut test = steady(1, &[]);
    let key = test.dir.path().join("other.key");
    another_key(&key);
    let id = test.cluster.add().unwrap();
    let log = test.dir.path().join("stray.log");
    let node = test.cluster.node(id).unwrap();
    let mut command = Command::new(&programs().quire);
    command
        .arg("node")
        .args(["--node-id", "2", "--join", &test.cluster.nodes[0].raft])
        .arg("--data-dir")
        .arg(&node.dir);
    command.args(["--http-addr", &node.http, "--raft-addr", &node.raft]).arg("--cluster-key").arg(&key);
    let out = File::create(&log).unwrap();
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let mut stray = Stray(command.spawn().unwrap());
    let said = || std::fs::read_to_string(&log).unwrap();
    test.cluster.wait("the stray node to complain", PATIENCE, |_| said().contains("can't join yet")).unwrap();
    let line = said().lines().find(|line| line.contains("can't join yet")).unwrap().to_owned();
    println!("{line}");
    let address = &test.cluster.nodes[0].raft;
    assert!(line.contains(address.as_str()) && line.contains("key"), "names the peer and the reason: {line}");
    assert!(stray.0.try_wait().unwrap().is_none(), "it goes on trying");

    // The cluster is as it was, and its databases are not to be had there.
    let path = database(&test, 1, "app");
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    let status = test.cluster.node(1).unwrap().status().unwrap();
    assert_eq!(status["store"]["nodes"].as_array().unwrap().len(), 1, "{status:#}");
    assert!(!database(&test, id, "app").exists());
    assert_eq!(stock(&path, "SELECT a FROM t").unwrap(), "1");
}
