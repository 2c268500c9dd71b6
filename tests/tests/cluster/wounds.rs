//! Many databases of which one is wounded, several nodes that are wounded at once, pages that rot, a node that was away
//! for long: only what is wounded stands still, only what differs is sent, and nobody had to be there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_node::cli::{host, verify::verify};
use quire_tests::crash::was_killed;
use quire_tests::hosts::{PATIENCE, uri};
use quire_tests::replicas::{assert_identical, database};
use quire_tests::{TestCluster, admin::http, is_long, programs, step};
use rusqlite::Connection;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const FLAGS: [&str; 14] = [
    // A dead member's connections end after four times the shortest election timeout.
    "--heartbeat-ms",
    "200",
    "--election-timeout-ms",
    "2500",
    // So that a few MiB make the log go.
    "--log-segment-mib",
    "1",
    "--log-retain-mib",
    "0",
    "--checkpoint-mib",
    "1",
    "--scrub-rate-mib",
    "4",
    "--scrub-pause-s",
    "1",
];
const QUERIES: &[&str] = &["SELECT count(*), sum(id), sum(length(b)) FROM t"];

#[test]
fn only_what_is_wounded_stands_still() {
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        node.flags = FLAGS.map(String::from).to_vec();
    }
    test.cluster.start().unwrap();
    step("one of many databases", || one_of_many(&test));
    step("several nodes", || several_nodes(&test));
    step("a scrub goes on after a restart", || scrub_goes_on(&mut test));
    step("a node that was away, and its source dies", || away(&mut test));
}

fn open(test: &TestCluster, node: u64, name: &str) -> Connection {
    let connection = host::open(Some(&programs().extension), &uri(&database(test, node, name))).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection
}

/// Opens a new database on the leader, with some rows of about 1 KiB.
fn create(test: &TestCluster, name: &str, rows: u32) -> Connection {
    let connection = open(test, test.cluster.wait_leader(PATIENCE).unwrap(), name);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)").unwrap();
    fill(&connection, rows, 900);
    connection
}

fn fill(connection: &Connection, rows: u32, bytes: u32) {
    let sql = "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?1)
               SELECT randomblob(?2) FROM c";
    connection.execute(sql, [rows, bytes]).unwrap();
}

fn others(test: &TestCluster) -> (u64, [u64; 2]) {
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    (leader, [others[0], others[1]])
}

fn log(test: &TestCluster, node: u64) -> String {
    test.cluster.node(node).unwrap().log()
}

fn status(test: &TestCluster, node: u64, name: &str) -> Value {
    let status = test.cluster.node(node).unwrap().status().unwrap_or_default();
    let databases = status["store"]["databases"].as_array().cloned().unwrap_or_default();
    databases.into_iter().find(|db| db["name"] == name).unwrap_or_default()
}

/// Changes some bytes of a page as a disk that rots does: nothing but the page tells.
fn wound(path: &Path, page: u64) {
    let file = File::options().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[0xa5; 64], (page - 1) * 4096 + 40).unwrap();
    file.set_modified(before).unwrap();
}

/// The lines of a node's log about a database that contain this.
fn lines(test: &TestCluster, node: u64, name: &str, text: &str) -> Vec<String> {
    let named = format!("database=\"{name}\"");
    let all = log(test, node);
    all.lines().filter(|line| line.contains(text) && line.contains(&named)).map(str::to_owned).collect()
}

/// Pages that were sent to a node, and how many of earlier attempts it had: of each transfer of a database.
fn transfers(test: &TestCluster, node: u64, name: &str) -> Vec<(u64, u64)> {
    let value = |line: &str, key: &str| {
        let (_, rest) = line.split_once(&format!(" {key}=")).unwrap();
        rest.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let begun =
        lines(test, node, name, "receiving state").into_iter().filter(|line| line.contains(" pages="));
    begun.map(|line| (value(&line, "pages"), value(&line, "resumed"))).collect()
}

fn wait_repaired(test: &TestCluster, node: u64, name: &str) {
    let healed = |_: &_| {
        !lines(test, node, name, " repaired ").is_empty() && status(test, node, name)["fenced"].is_null()
    };
    test.cluster.wait(&format!("the repair of {name} on node {node}"), PATIENCE, healed).unwrap();
}

/// One page of one database is wounded on one node: the others go on committing there and everywhere.
fn one_of_many(test: &TestCluster) {
    let count = if is_long("QUIRE_STORAGE") { 100 } else { 12 };
    let (_, [node, _]) = others(test);
    let wounded = create(test, "wounded", 1000);
    drop(wounded);
    let others: Vec<_> = (1..count).map(|n| create(test, &format!("sound-{n}"), 3)).collect();
    assert_identical(test, "wounded", QUERIES);
    let pages = status(test, node, "wounded")["pages"].as_u64().unwrap();
    assert!(pages > 200, "{pages}");

    let (ended, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (told, counter) = (&ended, &rounds);
        let writer = scope.spawn(move || {
            while !told.load(Ordering::Relaxed) {
                for connection in &others {
                    connection.execute("INSERT INTO t(b) VALUES (randomblob(100))", []).unwrap();
                }
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let more = |what: &str| {
            let goal = rounds.load(Ordering::Relaxed) + 2;
            let gone_on = |_: &_| rounds.load(Ordering::Relaxed) >= goal || writer.is_finished();
            test.cluster.wait(what, PATIENCE, gone_on).unwrap();
            assert!(!writer.is_finished(), "a commit failed");
        };
        more("commits before");
        wound(&database(test, node, "wounded"), 150);
        // The background scrub may be faster.
        let report = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
        println!("identical: {}", report.identical);
        wait_repaired(test, node, "wounded");
        more("commits after");
        ended.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    let logs: Vec<_> = (1..=3).map(|id| log(test, id)).collect();
    let all = logs.iter().flat_map(|log| log.lines());
    let fenced: Vec<_> = all.filter(|line| line.contains(" fenced: ")).collect();
    assert!(
        !fenced.is_empty() && fenced.iter().all(|line| line.contains("database=\"wounded\"")),
        "{fenced:#?}"
    );
    assert_eq!(lines(test, node, "wounded", " fenced: page 150 ").len(), fenced.len(), "{fenced:#?}");
    let sent: u64 = transfers(test, node, "wounded").iter().map(|(pages, _)| pages).sum();
    println!("{} bytes of {} were sent", sent * 4096, pages * 4096);
    assert!((1..=8).contains(&sent), "{sent} pages were sent for one that differs");
    for n in 1..count {
        assert_identical_quickly(test, &format!("sound-{n}"));
    }
    assert_identical(test, "wounded", QUERIES);
}

/// The same index and the same checksum everywhere; the files of all are compared by the caller.
fn assert_identical_quickly(test: &TestCluster, name: &str) {
    test.cluster.wait_applied(name, PATIENCE).unwrap();
    let all: Vec<_> = (1..=3).map(|node| status(test, node, name)["checksum"].clone()).collect();
    assert!(all[0].is_string() && all.iter().all(|checksum| *checksum == all[0]), "{name}: {all:?}");
}

/// Different pages and databases on two nodes: of some each has what the other lacks, of one only the leader has all.
fn several_nodes(test: &TestCluster) {
    let (leader, [one, other]) = others(test);
    for name in ["left", "right", "both"] {
        drop(create(test, name, 200));
        assert_identical(test, name, QUERIES);
    }
    let wounds = [(one, "left", 20), (other, "right", 30), (one, "both", 10), (other, "both", 25)];
    for (node, name, page) in wounds {
        wound(&database(test, node, name), page);
    }
    let _ = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
    for (node, name, _) in wounds {
        wait_repaired(test, node, name);
    }
    for name in ["left", "right", "both"] {
        fill(&open(test, leader, name), 10, 900);
        assert_identical(test, name, QUERIES);
    }
    let sound = verify(&test.cluster.nodes[0].http, true, true, PATIENCE).unwrap();
    assert!(sound.identical, "{sound:#?}");
}

/// A node that dies in the middle of a scrub doesn't begin anew, and finds what has rotted by itself.
fn scrub_goes_on(test: &mut TestCluster) {
    let (_, [node, _]) = others(test);
    let cold = create(test, "cold", 1);
    for _ in 0..12 {
        fill(&cold, 10, 100_000);
    }
    drop(cold);
    assert_identical(test, "cold", QUERIES);
    let pages = status(test, node, "cold")["pages"].as_u64().unwrap();
    let mut found = Value::Null;
    let is_at_it = |_: &_| {
        found = status(test, node, "cold");
        found["scrub_page"].as_u64() > Some(1)
    };
    test.cluster.wait("the middle of a scrub", PATIENCE, is_at_it).unwrap();
    // Of that same moment: a scrub that ended a moment later counts as one that went on.
    let ended = found["scrubbed_at"].as_u64();
    test.cluster.kill(node).unwrap();
    test.cluster.start_node(node).unwrap();
    let there = |_: &_| {
        found = status(test, node, "cold");
        found["index"].as_u64() > Some(0)
    };
    test.cluster.wait("the node to be back", PATIENCE, there).unwrap();
    let goes_on = found["scrub_page"].as_u64() > Some(1) || found["scrubbed_at"].as_u64() > ended;
    assert!(goes_on, "{found}");
    wound(&database(test, node, "cold"), pages - 1);
    wait_repaired(test, node, "cold");
    assert_eq!(lines(test, node, "cold", &format!(" fenced: page {} ", pages - 1)).len(), 1);
    assert_identical(test, "cold", QUERIES);
}

/// A node that missed more transactions than the log keeps gets what differs, though its source dies halfway.
fn away(test: &mut TestCluster) {
    let transactions = if is_long("QUIRE_STORAGE") { 100_000 } else { 1500 };
    let has_lead = |test: &TestCluster| test.cluster.wait_leader(PATIENCE).unwrap() == 1;
    // Of about 80.
    let messages = 35;
    assert!(test.cluster.stop(1).unwrap().success());
    test.cluster.node_mut(1).unwrap().env = vec![("QUIRE_FAULT".into(), format!("transfer.sent:{messages}"))];
    test.cluster.start_node(1).unwrap();
    while !has_lead(test) {
        let leader = test.cluster.wait_leader(PATIENCE).unwrap();
        http(&test.cluster.node(leader).unwrap().http, "POST", "/leader?wait", r#"{"id":"1"}"#);
    }
    let away = 3;
    let writer = create(test, "history", 20);
    for _ in 0..4 {
        fill(&writer, 10_000, 900);
    }
    assert_identical(test, "history", QUERIES);
    let last = test.cluster.node(away).unwrap().status().unwrap()["store"]["raft"]["last_log_index"].clone();
    assert!(test.cluster.stop(away).unwrap().success());
    let mut update = writer.prepare("UPDATE t SET b = randomblob(900) WHERE id = ?").unwrap();
    for n in 0..transactions {
        update.execute([1 + n % 20]).unwrap();
    }
    drop(update);
    // Half of it, so that there is much to send, and much that isn't.
    writer.execute("UPDATE t SET b = randomblob(900) WHERE id < 20000", []).unwrap();
    let purged = |cluster: &quire_node::cli::local::LocalCluster| {
        let raft = |id| cluster.node(id).unwrap().status().map(|status| status["store"]["raft"].clone());
        [1, 2].iter().all(|id| raft(*id).is_some_and(|raft| raft["purged_index"].as_u64() > last.as_u64()))
    };
    test.cluster.wait("the log to be purged", PATIENCE, purged).unwrap();
    drop(writer);
    assert!(has_lead(test), "the leader changed\n{}", test.cluster.logs(20));
    test.cluster.start_node(away).unwrap();
    let status = test.cluster.wait_exit(1, PATIENCE).unwrap();
    assert!(was_killed(status), "{status}");
    // It comes from the other one, which leads now.
    let arrived = |_: &_| !lines(test, away, "history", "state of another node installed").is_empty();
    test.cluster.wait("the state from the other node", PATIENCE, arrived).unwrap();
    test.cluster.node_mut(1).unwrap().env.clear();
    test.cluster.start_node(1).unwrap();
    let new = open(test, test.cluster.wait_leader(PATIENCE).unwrap(), "history");
    new.execute("UPDATE t SET b = randomblob(900) WHERE id = 1", []).unwrap();
    assert_identical(test, "history", QUERIES);
    let found = transfers(test, away, "history");
    println!("pages to be sent, and there from before: {found:?}");
    let pages = new.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0)).unwrap();
    let pages = u64::from(pages);
    let last = found.last().unwrap();
    assert!(last.0 + last.1 < pages * 3 / 4, "{last:?} of {pages} pages, of which half differ");
}
