//! More databases than a node keeps open: what that costs stays bounded, nothing is lost by closing and opening, and
//! what a stranger does to a closed one is found and undone.
//!
//! The short form has 200 databases and 20 of them open, the long one (`QUIRE_MANY=long`, `QUIRE_LONG=1`) 5,000 and 256.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_node::cli::local::LocalCluster;
use quire_node::cli::verify::verify;
use quire_tests::hosts::{Host, Load, PATIENCE, Program, stock};
use quire_tests::http::{get, ok, post};
use quire_tests::replicas::{database, steady};
use quire_tests::{TestCluster, is_long, step};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Descriptors of an open database, with connections of the HTTP API to it, at most.
const EACH: usize = 24;
/// Threads that create or write.
const CLIENTS: usize = 8;

struct Size {
    databases: usize,
    most: usize,
}

/// What a node takes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    descriptors: usize,
    maps: usize,
    threads: usize,
    resident_kib: usize,
}

fn cost(test: &TestCluster, node: u64) -> Cost {
    let pid = test.cluster.node(node).unwrap().pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Cost {
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        maps: std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count(),
        threads: number("Threads:"),
        resident_kib: number("VmRSS:"),
    }
}

fn address(test: &TestCluster, node: u64) -> String {
    test.cluster.node(node).unwrap().http.clone()
}

/// The databases that a node has open.
fn open_ones(test: &TestCluster, node: u64) -> Vec<String> {
    let status = get(&address(test, node), "/status?key=store.databases").json();
    let open = status.as_array().unwrap().iter().filter(|db| db["open"] == true);
    open.map(|db| db["name"].as_str().unwrap().to_owned()).collect()
}

fn name(n: usize) -> String {
    format!("db{n}")
}

/// Does something for each number, some at a time.
fn in_parallel(numbers: usize, each: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let each = &each;
            scope.spawn(move || (client..numbers).step_by(CLIENTS).for_each(each));
        }
    });
}

#[test]
fn more_databases_than_are_kept_open() {
    if !Program::Cli.is_here() {
        return;
    }
    let size = match is_long("QUIRE_MANY") {
        true => Size { databases: 5000, most: 256 },
        false => Size { databases: 200, most: 20 },
    };
    let most = size.most.to_string();
    let flags = ["--max-open-databases", &most, "--idle-timeout-ms", "1000", "--http-threads", "2"];
    let mut test = steady(3, &flags);
    let before: Vec<_> = (1..=3).map(|node| cost(&test, node)).collect();
    step("create", || {
        in_parallel(size.databases, |n| {
            ok(&address(&test, 1 + n as u64 % 3), &format!("/db/create?db={}", name(n)), "");
        });
    });
    report(&test, "created", &before, &size);
    for round in 0..2 {
        step("write", || {
            in_parallel(size.databases, |n| write(&test, 1 + (n + round) as u64 % 3, n, round));
        });
        report(&test, "written", &before, &size);
    }
    step("idle", || {
        for node in 1..=3 {
            let all_but_the_last = || open_ones(&test, node).len() <= size.most.div_ceil(4);
            test.cluster.wait("idle databases to be closed", PATIENCE, |_| all_but_the_last()).unwrap();
        }
    });
    report(&test, "idle", &before, &size);
    step("apps", || apps(&test, &size));
    step("verify", || {
        let patience = PATIENCE * if is_long("QUIRE_MANY") { 10 } else { 1 };
        let found = verify(&address(&test, 1), true, false, patience).unwrap();
        assert!(found.identical, "{:?}\n{}", found.faults, test.cluster.logs(20));
        assert!(found.databases.len() >= size.databases, "{}", found.databases.len());
    });
    report(&test, "verified", &before, &size);
    step("killed and started again", || {
        let leader = test.cluster.wait_leader(PATIENCE).unwrap();
        let node = (1..=3).find(|node| *node != leader).unwrap();
        test.cluster.kill(node).unwrap();
        test.cluster.start_node(node).unwrap();
        let ready = |node: &quire_node::cli::local::LocalNode| {
            node.status().is_some_and(|status| status["store"]["ready"] == true)
        };
        test.cluster
            .wait("the node to be ready", PATIENCE, |cluster| ready(cluster.node(node).unwrap()))
            .unwrap();
        let bounded = || open_ones(&test, node).len() <= size.most;
        test.cluster.wait("no more to be open than should be", PATIENCE, |_| bounded()).unwrap();
    });
    step("drop", || dropped(&test, &size));
    step("strangers", || strangers(&test));
    report(&test, "end", &before, &size);
}

/// A new member gets the state of databases of which it may not have all open at the same time.
#[test]
fn a_member_with_few_descriptors_joins_many_databases() {
    const DESCRIPTORS: usize = 300;
    let databases = if is_long("QUIRE_MANY") { 2000 } else { 200 };
    let keep = ["--max-open-databases", "8", "--idle-timeout-ms", "1000", "--http-threads", "2"];
    let purge = ["--log-segment-mib", "1", "--log-retain-mib", "0", "--checkpoint-mib", "1"];
    let mut test = steady(1, &[&keep[..], &purge[..]].concat());
    step("create", || {
        in_parallel(databases, |n| {
            ok(&address(&test, 1), &format!("/db/create?db={}", name(n)), "");
        });
        in_parallel(databases, |n| write(&test, 1, n, 0));
    });
    // Has that database checkpointed, and the manifest stored.
    let answer =
        ok(&address(&test, 1), "/db/execute?db=db0", r#"["INSERT INTO t VALUES (randomblob(3000000))"]"#);
    assert!(!answer.contains("error"), "{answer}");
    // What is gone from the log comes as a snapshot: all that was created.
    let purged = |cluster: &LocalCluster| {
        let raft = cluster.node(1).unwrap().status().unwrap_or_default()["store"]["raft"].clone();
        raft["purged_index"].as_u64() > Some(databases as u64)
    };
    test.cluster.wait("the log to be purged", PATIENCE, purged).unwrap();

    let id = test.cluster.add().unwrap();
    test.cluster.node_mut(id).unwrap().flags = test.cluster.node(1).unwrap().flags.clone();
    let patience = PATIENCE * if is_long("QUIRE_MANY") { 10 } else { 2 };
    let mut most = 0;
    // Killed when it has some of them, it goes on.
    for (what, least) in [("some", databases / 4), ("all", databases)] {
        test.cluster.start_node(id).unwrap();
        let pid = test.cluster.node(id).unwrap().pid().unwrap();
        let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
        let limited = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
        assert!(limited.unwrap().success());
        step(what, || {
            let known = |cluster: &LocalCluster| {
                most = most.max(cost(&test, id).descriptors);
                let status = cluster.node(id).unwrap().status().unwrap_or_default();
                status["store"]["databases"].as_array().is_some_and(|all| all.len() >= least)
            };
            test.cluster.wait(&format!("{what} databases to come"), patience, known).unwrap();
        });
        if least < databases {
            test.cluster.kill(id).unwrap();
        }
    }
    println!("{most} descriptors at most");
    let found = verify(&address(&test, 1), true, false, patience).unwrap();
    assert!(found.identical, "{:?}\n{}", found.faults, test.cluster.logs(20));
    assert!(found.databases.len() >= databases, "{}", found.databases.len());
    let log = test.cluster.node(id).unwrap().log();
    assert!(log.contains("receiving a snapshot") && !log.contains("Too many open files"), "{log}");
    // And it is a member like any other.
    write(&test, id, databases / 2, 1);
}

/// One more row for a database; its table is created in the first round.
fn write(test: &TestCluster, node: u64, n: usize, round: usize) {
    let sql = match round {
        0 => format!(r#"["CREATE TABLE t(a)", "INSERT INTO t VALUES ({n})"]"#),
        _ => format!(r#"["INSERT INTO t VALUES ({n})"]"#),
    };
    let path = format!("/db/execute?db={}&timeout=60s", name(n));
    let answer = ok(&address(test, node), &path, &sql);
    assert!(!answer.contains("error"), "{n}: {answer}");
}

/// Prints what the nodes take, and sees to it that it isn't too much.
fn report(test: &TestCluster, what: &str, before: &[Cost], size: &Size) {
    for node in 1..=3 {
        let (now, before) = (cost(test, node), before[node as usize - 1]);
        println!("{what}, node {node}: {now:?}, {} open", open_ones(test, node).len());
        // Some more are open while those that they take the place of are in use.
        let open = size.most + 2 * CLIENTS;
        let bound = before.descriptors + EACH * open;
        assert!(now.descriptors <= bound, "{what}, node {node}: {now:?}, before {before:?}");
        let bound = before.maps + EACH * open;
        assert!(now.maps <= bound, "{what}, node {node}: {now:?}, before {before:?}");
        // The pools' threads, and one for each database that is written over HTTP.
        assert!(now.threads <= 128 + open, "{what}, node {node}: {now:?}, before {before:?}");
        let bound = before.resident_kib + 128 * 1024 + 16 * size.databases + 256 * open;
        assert!(now.resident_kib <= bound, "{what}, node {node}: {now:?}, before {before:?}");
    }
}

/// Apps open databases that are closed, on any node, read what is there, and write.
fn apps(test: &TestCluster, size: &Size) {
    for node in 1..=3 {
        let open = open_ones(test, node);
        let closed = (0..size.databases).map(name).filter(|name| !open.contains(name));
        for name in closed.step_by(size.databases / 5) {
            let mut host = Host::open(Program::Cli, &database(test, node, &name));
            let rows: usize = host.sql("SELECT count(*) FROM t").unwrap()[0].parse().unwrap();
            host.sql("INSERT INTO t VALUES (-1)").unwrap();
            assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), [(rows + 1).to_string()]);
            assert!(open_ones(test, node).contains(&name), "it is in use");
            host.close();
        }
    }
}

/// One that is closed is dropped, and another one takes its name.
fn dropped(test: &TestCluster, size: &Size) {
    let name = name(size.databases / 2);
    let leader = address(test, test.cluster.wait_leader(PATIENCE).unwrap());
    ok(&leader, &format!("/db/drop?db={name}"), "");
    ok(&leader, &format!("/db/create?db={name}"), "");
    let answer = ok(&leader, &format!("/db/execute?db={name}"), r#"["CREATE TABLE other(b)"]"#);
    assert!(!answer.contains("error"), "{answer}");
}

/// Waits until a node has closed a database.
fn wait_closed(test: &TestCluster, node: u64, name: &str) {
    let others = (1000..).map(|n| format!("other{n}"));
    let deadline = Instant::now() + PATIENCE;
    // Those that were used last stay open: others have to be used.
    for other in others {
        if !open_ones(test, node).contains(&name.to_owned()) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} stays open\n{}", test.cluster.logs(20));
        // 503: it was late, and may be there by now.
        let created = post(&address(test, node), &format!("/db/create?db={other}"), "");
        assert!([200, 503].contains(&created.status), "{created:?}");
        if created.status == 503 {
            continue;
        }
        ok(&address(test, node), &format!("/db/query?db={other}&level=none"), r#"["SELECT 1"]"#);
        sleep(Duration::from_millis(50));
    }
}

/// Stock SQLite writes a database that a node has closed: into the file, or into a WAL that it still has open. Whoever
/// opens it through the node sees the cluster's state.
fn strangers(test: &TestCluster) {
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let node = if leader == 1 { 2 } else { 1 };
    for (n, stays) in [(1, false), (2, true)] {
        let (name, path) = (name(n), database(test, node, &name(n)));
        wait_closed(test, node, &name);
        let truth = stock(&path, "SELECT * FROM t").unwrap();
        let mut stranger = Host::start(Program::Cli, Load::Nothing);
        stranger.connect(path.to_str().unwrap()).unwrap();
        stranger.sql("PRAGMA wal_autocheckpoint = 0").unwrap();
        stranger.sql("INSERT INTO t VALUES ('forged'), ('forged')").unwrap();
        if !stays {
            stranger.close();
            assert!(stock(&path, "SELECT * FROM t").unwrap().contains("forged"));
            heals(test, node, &name, &path, &truth);
        } else {
            heals(test, node, &name, &path, &truth);
            // Its own view is healed, too; and from now on it is kept out.
            let refused = stranger.sql("INSERT INTO t VALUES ('forged')").unwrap_err();
            assert!(refused.contains("database is locked"), "{refused}");
            assert_eq!(stranger.sql("SELECT * FROM t").unwrap().join("\n"), truth);
            stranger.close();
        }
    }
}

/// The next use finds out, and gets the pages from another node.
fn heals(test: &TestCluster, node: u64, name: &str, path: &Path, truth: &str) {
    let address = address(test, node);
    let read = || {
        let answer = post(&address, &format!("/db/query?db={name}&level=none"), r#"["SELECT a FROM t"]"#);
        (answer.status == 200).then(|| answer.json())
    };
    let is_true = |found: &Value| {
        let rows = found["results"][0]["values"].as_array().unwrap();
        !rows.iter().any(|row| row[0] == "forged")
    };
    let mut last = None;
    test.cluster
        .wait("the database to be repaired", PATIENCE, |_| {
            last = read();
            // Refused, or right: never wrong.
            assert!(last.as_ref().is_none_or(is_true), "{last:?}");
            last.is_some()
        })
        .unwrap();
    assert_eq!(stock(path, "SELECT * FROM t").unwrap(), truth);
    assert!(test.cluster.node(node).unwrap().log().contains("state of another node installed"));
}
