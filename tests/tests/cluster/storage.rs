//! Members that lack purged entries, files that were damaged or changed behind a node's back, nodes that die while
//! they get a state from another one: in the end all hold the same, and nobody had to be there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_node::cli::{host, verify::verify};
use quire_tests::crash::was_killed;
use quire_tests::hosts::{PATIENCE, uri};
use quire_tests::replicas::{assert_identical, database, steady};
use quire_tests::{TestCluster, programs};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// So that a few MiB make the log go.
const SMALL: &[&str] = &["--log-segment-mib", "1", "--log-retain-mib", "0", "--checkpoint-mib", "1"];
const NAME: &str = "store";
const QUERIES: &[&str] = &["SELECT count(*), sum(id), sum(length(b)) FROM t", "SELECT n FROM total"];

fn open(test: &TestCluster, node: u64) -> Connection {
    let connection = host::open(Some(&programs().extension), &uri(&database(test, node, NAME))).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection
}

fn create(writer: &Connection) {
    let script =
        "CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB); CREATE TABLE total(n); INSERT INTO total VALUES (0);
         CREATE TRIGGER counted AFTER INSERT ON t BEGIN UPDATE total SET n = n + 1; END;";
    writer.execute_batch(script).unwrap();
}

/// Writes rows of about 1 KiB, in transactions of a hundred.
fn fill(writer: &Connection, hundreds: usize) {
    for _ in 0..hundreds {
        let rows =
            "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)
             SELECT randomblob(900 + i) FROM c";
        writer.execute(rows, []).unwrap();
    }
}

fn raft(test: &TestCluster, node: u64, key: &str) -> u64 {
    let status = test.cluster.node(node).unwrap().status().unwrap_or_default();
    status["store"]["raft"][key].as_u64().unwrap_or_default()
}

fn database_status(test: &TestCluster, node: u64) -> Value {
    let status = test.cluster.node(node).unwrap().status().unwrap_or_default();
    let databases = status["store"]["databases"].as_array().cloned().unwrap_or_default();
    databases.into_iter().find(|db| db["name"] == NAME).unwrap_or_default()
}

fn followers(test: &TestCluster) -> (u64, Vec<u64>) {
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    (leader, (1..=test.cluster.nodes.len() as u64).filter(|id| *id != leader).collect())
}

fn log(test: &TestCluster, node: u64) -> String {
    test.cluster.node(node).unwrap().log()
}

/// Writes, with a node down, until the others have purged what it lacks.
fn outrun(test: &TestCluster, writer: &Connection, last: u64) {
    fill(writer, 30);
    // As long as the leader takes the connection for alive, it keeps what it is about to send.
    test.cluster
        .wait("the log to be purged", PATIENCE, |cluster| {
            let running = cluster.nodes.iter().filter(|node| node.is_running());
            running.map(|node| raft(test, node.id, "purged_index")).all(|purged| purged > last)
        })
        .unwrap();
}

/// Reads with stock SQLite, again and again: what a trigger counted must be what is there.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Reader {
    fn start(path: &Path) -> Reader {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, path) = (stop.clone(), path.to_owned());
        let thread = thread::spawn(move || {
            let mut reads = 0;
            while !told.load(Ordering::Relaxed) {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
                // A file that is being made anew, or is being completed, may refuse.
                let Ok(connection) = Connection::open_with_flags(&path, flags) else { continue };
                let sql = "SELECT (SELECT n FROM total), (SELECT count(*) FROM t)";
                let row =
                    connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
                match row {
                    Ok((counted, there)) => assert_eq!(counted, there, "a mix of two states"),
                    Err(rusqlite::Error::SqliteFailure(error, _))
                        if error.code == rusqlite::ErrorCode::DatabaseBusy => {}
                    Err(error) => panic!("{error}"),
                }
                reads += 1;
            }
            reads
        });
        Reader { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.join().unwrap() > 0);
    }
}

#[test]
fn what_was_purged_comes_as_a_snapshot() {
    // A dead member's connections end after four times the shortest election timeout; much here waits for that.
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        node.flags = ["--heartbeat-ms", "200", "--election-timeout-ms", "2500"].map(String::from).to_vec();
        node.flags.extend(SMALL.iter().map(|flag| (*flag).to_owned()));
    }
    test.cluster.start().unwrap();
    let (leader, others) = followers(&test);
    let writer = open(&test, leader);
    create(&writer);
    fill(&writer, 10);
    test.cluster.wait_applied(NAME, PATIENCE).unwrap();

    let began = std::time::Instant::now();
    let step = |what: &str| println!("{:.1} s: {what}", began.elapsed().as_secs_f64());
    // A member that was away, and dies at each step of getting what it missed.
    let away = others[0];
    let last = raft(&test, away, "last_log_index");
    test.cluster.kill(away).unwrap();
    outrun(&test, &writer, last);
    step("purged what it lacks");
    writer.execute("DELETE FROM t WHERE id % 5 = 0", []).unwrap();
    writer.execute("UPDATE total SET n = (SELECT count(*) FROM t)", []).unwrap();
    for fault in ["transfer.staged:2", "install.prepared", "install.published", "install.stored"] {
        test.cluster.node_mut(away).unwrap().env = vec![("QUIRE_FAULT".into(), fault.into())];
        test.cluster.start_node(away).unwrap();
        let status = test.cluster.wait_exit(away, PATIENCE).unwrap();
        assert!(was_killed(status), "{fault}: {status}\n{}", test.cluster.logs(20));
        step(fault);
        fill(&writer, 2);
    }
    test.cluster.node_mut(away).unwrap().env.clear();
    let starts = log(&test, away).matches(" started node=").count();
    test.cluster.start_node(away).unwrap();
    // Not before: a stock reader that is alone with the files folds the WAL into the database.
    let ready = |_: &_| log(&test, away).matches(" started node=").count() > starts;
    test.cluster.wait("the node to be up", PATIENCE, ready).unwrap();
    let reader = Reader::start(&database(&test, away, NAME));
    fill(&writer, 3);
    assert_identical(&test, NAME, QUERIES);
    reader.end();
    let said = log(&test, away);
    assert!(said.contains("resumed=") && said.contains("completing a state of another node"), "{said}");

    step("identical");
    // A new member, which never saw those entries.
    let new = test.cluster.add().unwrap();
    test.cluster.node_mut(new).unwrap().flags = test.cluster.node(away).unwrap().flags.clone();
    test.cluster.start_node(new).unwrap();
    fill(&writer, 3);
    test.cluster
        .wait("the new node to have it", PATIENCE, |_| {
            database_status(&test, new)["index"].as_u64() > Some(0)
        })
        .unwrap();
    assert_identical(&test, NAME, QUERIES);

    step("a new member");
    // It gets a state again, and dies long after that, with an app attached whose old snapshot keeps the state from
    // the database file: so many transactions have come since that the record of the state is gone.
    let app = open(&test, new);
    app.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let last = raft(&test, new, "last_log_index");
    test.cluster.kill(new).unwrap();
    outrun(&test, &writer, last);
    let installed = |test: &TestCluster| log(test, new).matches("state of another node installed").count();
    let before = installed(&test);
    test.cluster.start_node(new).unwrap();
    for _ in 0..40 {
        writer.execute("INSERT INTO t(b) VALUES (randomblob(10))", []).unwrap();
    }
    test.cluster.wait_applied(NAME, PATIENCE).unwrap();
    assert!(installed(&test) > before, "{}", log(&test, new));
    for _ in 0..40 {
        writer.execute("INSERT INTO t(b) VALUES (randomblob(10))", []).unwrap();
    }
    test.cluster.wait_applied(NAME, PATIENCE).unwrap();
    test.cluster.kill(new).unwrap();
    test.cluster.start_node(new).unwrap();
    test.cluster.wait_applied(NAME, PATIENCE).unwrap();
    assert!(!log(&test, new).contains("fenced:"), "{}", log(&test, new));
    app.execute_batch("COMMIT").unwrap();
    drop(app);
    assert_identical(&test, NAME, QUERIES);

    step("it resumed what it had");
    // And all of it survives that all restart.
    drop(writer);
    for node in 1..=4 {
        test.cluster.kill(node).unwrap();
    }
    for node in 1..=4 {
        test.cluster.start_node(node).unwrap();
    }
    let (leader, _) = followers(&test);
    let writer = open(&test, leader);
    fill(&writer, 1);
    assert_identical(&test, NAME, QUERIES);
}

fn damage(path: &Path, page: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0xa5; 64], (page - 1) * 4096 + 40).unwrap();
}

/// As a disk damages it: the file's time stays what it was, by which a running node finds out what others change.
fn rot(path: &Path, page: u64) {
    let before = path.metadata().unwrap().modified().unwrap();
    damage(path, page);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before).unwrap();
}

fn wait_repaired(test: &TestCluster, node: u64, repairs: usize) {
    let repaired = |_: &_| {
        log(test, node).matches("repaired database=").count() >= repairs
            && database_status(test, node)["fenced"].is_null()
    };
    test.cluster.wait("the repair", PATIENCE, repaired).unwrap();
}

#[test]
fn damaged_pages_are_found_and_fetched() {
    let mut test = steady(3, SMALL);
    let (leader, others) = followers(&test);
    let writer = open(&test, leader);
    create(&writer);
    fill(&writer, 10);
    assert_identical(&test, NAME, QUERIES);
    let sound = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
    assert!(sound.identical, "{sound:#?}");

    // Behind the backs of running nodes: a page of rows, one of an index's root, the header, on the leader too.
    let mut repairs = [0; 4];
    for (node, page) in [(others[0], 50), (others[1], 1), (leader, 77), (others[0], 2)] {
        rot(&database(&test, node, NAME), page);
        let report = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
        assert!(!report.identical, "page {page} of node {node}");
        assert!(
            report.faults.iter().any(|f| f.contains(&format!("node {node}: page {page} "))),
            "{report:#?}"
        );
        repairs[node as usize - 1] += 1;
        wait_repaired(&test, node, repairs[node as usize - 1]);
        fill(&writer, 1);
        assert_identical(&test, NAME, QUERIES);
        let sound = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
        assert!(sound.identical, "{sound:#?}");
    }

    // A repair at the entry that the file already had: nothing is written after it, and the node is killed.
    rot(&database(&test, others[1], NAME), 33);
    assert!(!verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap().identical);
    repairs[others[1] as usize - 1] += 1;
    wait_repaired(&test, others[1], repairs[others[1] as usize - 1]);
    test.cluster.kill(others[1]).unwrap();
    test.cluster.start_node(others[1]).unwrap();
    let up = |_: &_| database_status(&test, others[1])["queued"] == 0;
    test.cluster.wait("the node to be up", PATIENCE, up).unwrap();
    let sound = verify(&test.cluster.nodes[0].http, true, true, PATIENCE).unwrap();
    assert!(sound.identical, "{sound:#?}\n{}", test.cluster.logs(20));

    // While a node is down: flipped bytes, and an honest change by stock SQLite.
    for change in [true, false] {
        let node = others[0];
        let status = test.cluster.stop(node).unwrap();
        assert!(status.success());
        let path = database(&test, node, NAME);
        if change {
            damage(&path, 60);
        } else {
            let stock = Connection::open(&path).unwrap();
            stock.execute("UPDATE total SET n = n + 1", []).unwrap();
            stock.close().unwrap();
        }
        fill(&writer, 1);
        test.cluster.start_node(node).unwrap();
        repairs[node as usize - 1] += 1;
        wait_repaired(&test, node, repairs[node as usize - 1]);
        assert!(log(&test, node).contains("its file was changed while the node was down"));
        assert_identical(&test, NAME, QUERIES);
    }

    // The same with an app attached. Transactions that the fenced database skips are in its WAL, so that their pages
    // don't come from another node; the next start must find their hashes nevertheless.
    let node = others[0];
    let app = open(&test, node);
    app.query_row("SELECT n FROM total", [], |_| Ok(())).unwrap();
    for _ in 0..3 {
        writer.execute("INSERT INTO t(b) VALUES (randomblob(10))", []).unwrap();
    }
    test.cluster.wait_applied(NAME, PATIENCE).unwrap();
    test.cluster.kill(node).unwrap();
    damage(&database(&test, node, NAME), 60);
    test.cluster.start_node(node).unwrap();
    wait_repaired(&test, node, repairs[node as usize - 1] + 1);
    assert_identical(&test, NAME, QUERIES);
    test.cluster.kill(node).unwrap();
    test.cluster.start_node(node).unwrap();
    drop(app);
    assert_identical(&test, NAME, QUERIES);
}

/// A repair ends although others go on writing, and what they wrote meanwhile is not lost.
#[test]
fn repair_under_load() {
    let test = steady(3, SMALL);
    let (leader, others) = followers(&test);
    let writer = open(&test, leader);
    create(&writer);
    fill(&writer, 30);
    assert_identical(&test, NAME, QUERIES);
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let load = thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            writer.execute("INSERT INTO t(b) VALUES (randomblob(500))", []).unwrap();
        }
    });
    damage(&database(&test, others[0], NAME), 90);
    let report = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
    assert!(!report.identical, "{report:#?}");
    wait_repaired(&test, others[0], 1);
    let repaired = raft(&test, leader, "last_log_index");
    let more = |_: &_| raft(&test, leader, "last_log_index") > repaired + 20;
    test.cluster.wait("some more transactions", PATIENCE, more).unwrap();
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert_identical(&test, NAME, QUERIES);
}

/// Each of these transactions is larger than what a checkpoint may have left to copy while a writer waits for it, and
/// the next one begins at once: the WAL of their node grew for as long as that went on.
#[test]
fn large_transactions_in_unbroken_sequence_do_not_make_the_wal_grow() {
    const TXNS: usize = 30;
    // With --checkpoint-mib 1 a WAL is long from 16 MiB on; and some transactions of 3 MB were on their way.
    const BOUND: u64 = 40 << 20;
    let test = steady(1, SMALL);
    create(&open(&test, 1));
    let mut wal = database(&test, 1, NAME).into_os_string();
    wal.push("-wal");
    let write = |writer: &Connection| {
        writer.execute("INSERT INTO t(b) VALUES (randomblob(3000000))", []).unwrap();
        std::fs::metadata(&wal).unwrap().len()
    };
    let one = open(&test, 1);
    let longest = (0..TXNS).map(|_| write(&one)).max().unwrap();
    println!("one app: {} MiB", longest >> 20);
    assert!(longest <= BOUND, "one app: {} MiB of WAL", longest >> 20);

    let longest = (0..TXNS).map(|_| write(&open(&test, 1))).max().unwrap();
    println!("one app after the other: {} MiB", longest >> 20);
    assert!(longest <= BOUND, "one app after the other: {} MiB of WAL", longest >> 20);

    let apps: Vec<_> = (0..3).map(|_| open(&test, 1)).collect();
    let longest = thread::scope(|scope| {
        let writers =
            apps.into_iter().map(|app| scope.spawn(move || (0..TXNS / 3).map(|_| write(&app)).max()));
        let writers: Vec<_> = writers.collect();
        writers.into_iter().filter_map(|writer| writer.join().unwrap()).max().unwrap()
    });
    println!("three apps: {} MiB", longest >> 20);
    assert!(longest <= BOUND, "three apps: {} MiB of WAL", longest >> 20);

    // A reader of an old state keeps the WAL, and costs the writer some seconds at most.
    let reader = open(&test, 1);
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let began = std::time::Instant::now();
    let longest = (0..TXNS).map(|_| write(&one)).max().unwrap();
    println!("with a reader: {} MiB, {:.1} s", longest >> 20, began.elapsed().as_secs_f64());
    assert!(longest > BOUND);
    reader.execute_batch("COMMIT").unwrap();
}
