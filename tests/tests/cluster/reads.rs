//! Reads as new as an app asks for, on every node, also on one that lags, was deposed, or has no quorum; and
//! what an app can ask by pragma.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nix::sys::signal::Signal;
use quire_node::cli::local::{LocalCluster, LocalNode};
use quire_tests::TestCluster;
use quire_tests::hosts::{Host, Load, PATIENCE, Program, uri};
use quire_tests::replicas::{assert_identical, database};
use quire_vfs::gate::lock::GateLock;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const NEWEST: &str = "SELECT max(n) FROM t";

/// A host that reads at a level.
fn reader(program: Program, database: &Path, parameters: &str) -> Host {
    let mut host = Host::start(program, Load::Vfs);
    host.connect(&format!("{}{parameters}", uri(database))).unwrap();
    host
}

/// Writes a number through whichever node leads, and returns a host there.
fn write(test: &TestCluster, n: u32) -> Host {
    write_without(test, n, 0)
}

/// As [`write`], while one node is stopped: it would be asked in vain.
fn write_without(test: &TestCluster, n: u32, stopped: u64) -> Host {
    let deadline = Instant::now() + PATIENCE;
    let mut leader = 0;
    loop {
        let named = |node: &LocalNode| {
            node.status()?["store"]["leader"]["node_id"].as_str()?.parse().ok().filter(|id| *id != stopped)
        };
        let leads = |cluster: &LocalCluster| {
            let found = cluster.nodes.iter().filter(|node| node.id != stopped).find_map(named);
            leader = found.unwrap_or_default();
            leader != 0
        };
        test.cluster.wait("a leader", PATIENCE, leads).unwrap();
        let mut host = Host::start(Program::Cli, Load::Vfs);
        let written = host.connect(&uri(&database(test, leader, "app"))).and_then(|()| {
            host.sql("PRAGMA busy_timeout = 2000")?;
            host.sql("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY)")?;
            host.sql(&format!("INSERT OR IGNORE INTO t VALUES ({n})"))
        });
        match written {
            Ok(_) => return host,
            Err(why) => assert!(Instant::now() < deadline, "{why}\n{}", host.log()),
        }
    }
}

fn one(host: &mut Host, sql: &str) -> String {
    let rows = host.sql(sql).unwrap_or_else(|why| panic!("{sql}: {why}\n{}", host.log()));
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.into_iter().next().unwrap()
}

/// The statement fails, and the log tells why.
fn fails(host: &mut Host, sql: &str, why: &str) {
    let error = host.sql(sql).unwrap_err();
    assert!(error.contains("disk I/O error"), "{sql}: {error}");
    assert!(host.log().contains(why), "{why:?} is not in: {}", host.log());
}

#[test]
fn reads_are_as_new_as_they_are_asked_to_be() {
    if !Program::Cli.is_here() || !Program::Python.is_here() {
        return;
    }
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        node.flags = ["--commit-timeout-ms", "2000"].map(String::from).to_vec();
    }
    test.cluster.start().unwrap();
    let mut writer = write(&test, 1);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let here = database(&test, follower, "app");
    test.cluster.wait_applied("app", PATIENCE).unwrap();

    // On every node, at once, whoever wrote last.
    let mut everywhere: Vec<_> = (1..=3)
        .map(|node| reader(Program::Python, &database(&test, node, "app"), "&reads=linearizable"))
        .collect();
    let mut session = reader(Program::Cli, &here, "");
    for n in 2..20 {
        if writer.sql(&format!("INSERT INTO t VALUES ({n})")).is_err() {
            writer = write(&test, n);
        }
        for host in &mut everywhere {
            assert_eq!(one(host, NEWEST), n.to_string());
        }
        let token = one(&mut writer, "PRAGMA quire_index");
        session.sql(&format!("PRAGMA quire_session = {token}")).unwrap();
        assert_eq!(one(&mut session, NEWEST), n.to_string());
    }
    pragmas(&test, &mut everywhere);
    lagging(&test, &here, &mut writer);
    deposed(&test);
    without_quorum(&test);
    drop(everywhere);
    assert_identical(&test, "app", &["SELECT * FROM t"]);
}

/// A node's copy that is behind: somebody holds its gate lock, as a paused app would.
fn lagging(test: &TestCluster, here: &Path, writer: &mut Host) {
    let mut local = reader(Program::Cli, here, "");
    let mut linearizable = reader(Program::Cli, here, "&reads=linearizable");
    let mut bounded = reader(Program::Cli, here, "&reads=bounded:100s");
    assert_eq!(one(&mut bounded, NEWEST), "19");
    let lock = GateLock::open(here, false).unwrap();
    assert!(lock.try_lock().unwrap());
    drop(write(test, 20));
    let token = one(writer, "PRAGMA quire_index");
    let mut session = reader(Program::Cli, here, "");
    session.sql(&format!("PRAGMA quire_session = {token}")).unwrap();
    for host in [&mut local, &mut bounded] {
        assert_eq!(one(host, NEWEST), "19", "nothing newer is here, and nothing newer was asked for");
    }
    bounded.sql("PRAGMA quire_reads = 'bounded:1ms'").unwrap();
    for host in [&mut bounded, &mut session] {
        host.send(NEWEST);
    }
    fails(&mut linearizable, NEWEST, "app has not been brought up to entry");
    for host in [&mut bounded, &mut session] {
        let why = host.receive().unwrap_err();
        assert!(why.contains("disk I/O error"), "{why}");
    }
    // The wait ends as soon as the copy has it.
    for host in [&mut linearizable, &mut session, &mut bounded] {
        host.send(NEWEST);
    }
    std::thread::sleep(Duration::from_millis(200));
    lock.unlock().unwrap();
    for host in [&mut linearizable, &mut session, &mut bounded] {
        assert_eq!(host.receive().unwrap(), ["20"], "{}", host.log());
    }
    // A transaction that has begun asks nothing more.
    linearizable.sql("BEGIN").unwrap();
    assert_eq!(one(&mut linearizable, NEWEST), "20");
    drop(write(test, 21));
    assert_eq!(one(&mut linearizable, NEWEST), "20");
    linearizable.sql("COMMIT").unwrap();
    assert_eq!(one(&mut linearizable, NEWEST), "21");
    session.sql("PRAGMA quire_session = 99999999").unwrap();
    fails(&mut session, NEWEST, "the log has not come here up to entry 99999999");
    for (parameter, why) in [
        ("reads=strong", "\"strong\" is no read level: there are local, session, linearizable"),
        ("session=abc", "\"abc\" is no token"),
    ] {
        let mut host = Host::start(Program::Cli, Load::Vfs);
        assert!(host.connect(&format!("{}&{parameter}", uri(here))).unwrap_err().contains("unable to open"));
        assert!(host.log().contains(why), "{}", host.log());
    }
}

/// A leader that was asleep while another was elected does not know it yet, and shows nothing old for new.
fn deposed(test: &TestCluster) {
    let old = test.cluster.wait_leader(PATIENCE).unwrap();
    let mut linearizable = reader(Program::Cli, &database(test, old, "app"), "&reads=linearizable");
    assert_eq!(one(&mut linearizable, NEWEST), "21");
    test.cluster.node(old).unwrap().signal(Signal::SIGSTOP).unwrap();
    drop(write_without(test, 22, old));
    linearizable.send(NEWEST);
    test.cluster.node(old).unwrap().signal(Signal::SIGCONT).unwrap();
    assert_eq!(linearizable.receive().unwrap(), ["22"], "{}", linearizable.log());
}

/// Without a quorum nobody can say what is newest; what is here can be read.
fn without_quorum(test: &TestCluster) {
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let path = database(test, leader, "app");
    let mut host = reader(Program::Cli, &path, "&reads=linearizable");
    let mut python = reader(Program::Python, &path, "&reads=bounded:1ms");
    assert_eq!(one(&mut host, NEWEST), "22");
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    for &id in &others {
        test.cluster.node(id).unwrap().signal(Signal::SIGSTOP).unwrap();
    }
    python.send(NEWEST);
    fails(&mut host, NEWEST, "no leader has confirmed what is committed");
    assert!(host.log().contains("no read of app with reads=linearizable"), "{}", host.log());
    assert!(python.receive().unwrap_err().contains("disk I/O error"));
    let barrier = host.sql("PRAGMA quire_barrier").unwrap_err();
    assert!(barrier.contains("no leader has confirmed"), "{barrier}");
    host.sql("PRAGMA quire_reads = local").unwrap();
    assert_eq!(one(&mut host, NEWEST), "22");
    for &id in &others {
        test.cluster.node(id).unwrap().signal(Signal::SIGCONT).unwrap();
    }
    drop(write(test, 23));
    host.sql("PRAGMA quire_reads = linearizable").unwrap();
    assert_eq!(one(&mut host, NEWEST), "23");
}

fn pragmas(test: &TestCluster, hosts: &mut [Host]) {
    let index: u64 = one(&mut hosts[0], "PRAGMA quire_barrier").parse().unwrap();
    let mut found = Vec::new();
    for (host, id) in hosts.iter_mut().zip(1..) {
        let reached: u64 = one(host, "PRAGMA quire_barrier").parse().unwrap();
        assert!(reached >= index);
        let status: Value = serde_json::from_str(&one(host, "PRAGMA quire_status")).unwrap();
        assert_eq!(status["node_id"], id, "{status:#}");
        assert_eq!((&status["database"], &status["fenced"]), (&"app".into(), &Value::Null), "{status:#}");
        assert_eq!(status["checksum"], one(host, "PRAGMA quire_checksum"));
        let position = one(host, "PRAGMA quire_index");
        assert_eq!(status["index"], position.parse::<u64>().unwrap());
        found.push((one(host, "PRAGMA quire_leader"), position, status["checksum"].clone()));
        let said = host.sql("PRAGMA quire_positon").unwrap_err();
        assert!(said.contains("quire_positon is no pragma of Quire's; there are quire_status"), "{said}");
    }
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let expected = format!("{leader} {}", test.cluster.node(leader).unwrap().http);
    for here in &found {
        assert_eq!(here.0, expected);
        assert_eq!((&here.1, &here.2), (&found[0].1, &found[0].2), "one state has one checksum");
    }
    // Hosts keep statements; each run is answered anew.
    let before = one(&mut hosts[0], "PRAGMA quire_index");
    drop(write(test, 0));
    one(&mut hosts[0], "PRAGMA quire_barrier");
    assert_ne!(one(&mut hosts[0], "PRAGMA quire_index"), before);
}
