//! Transactions larger than one message: they are as whole as small ones, whoever dies halfway, and nobody takes
//! memory for all of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::crash::{App, DATABASE, PATIENCE, Scene, have_app, was_killed};
use quire_tests::hosts::{Host, Program};
use quire_tests::programs;
use quire_tests::replicas::{assert_identical, database, steady};
use quire_tests::step;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Nobody may grow by more than this, in KiB, whatever is written: less than one of the transactions below. It is
/// the same for larger ones (`LARGE_MB=1000`): Raft's cache of 64 MiB, its windows, and what the allocator keeps.
const GROWTH: u64 = 200 << 10;

const TABLE: &str = "CREATE TABLE big(batch INTEGER, n INTEGER, body BLOB)";

/// A transaction of `rows` rows with `bytes` bytes each.
fn insert(batch: u64, rows: u64, bytes: u64) -> String {
    format!(
        "INSERT INTO big WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows}) \
         SELECT {batch}, i, randomblob({bytes}) FROM c"
    )
}

fn count(app: &mut App, batch: u64) -> u64 {
    app.number(&format!("SELECT count(*) FROM big WHERE batch = {batch}"))
}

/// A value of `/proc/PID/status`, in KiB.
fn memory(pid: i32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}\n{status}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The memory of a process, and from here on its peak.
fn begin_memory(pid: i32) -> (i32, u64) {
    // "5" resets the peak (proc_pid_clear_refs(5)).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    (pid, memory(pid, "VmRSS"))
}

/// What a node says of the parts of an unfinished transaction; `None` if it doesn't answer.
fn unfinished(scene: &Scene, node: u64) -> Option<u64> {
    let status = scene.test.cluster.node(node).unwrap().status()?;
    let databases = status["store"]["databases"].as_array()?.clone();
    databases.into_iter().find(|db| db["name"] == DATABASE)?["unfinished_parts"].as_u64()
}

/// Files of staged parts, on all nodes.
fn staged(scene: &Scene) -> Vec<String> {
    let mut found = Vec::new();
    for node in &scene.test.cluster.nodes {
        for entry in std::fs::read_dir(node.dir.join("db")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.contains(".db-parts-") {
                found.push(format!("node {}: {name}", node.id));
            }
        }
    }
    found
}

/// Waits until no running node has anything of an unfinished transaction.
fn nothing_remains(scene: &Scene) {
    let running: Vec<_> = scene.test.cluster.nodes.iter().filter(|n| n.is_running()).map(|n| n.id).collect();
    let done =
        |_: &_| running.iter().all(|&node| unfinished(scene, node) == Some(0)) && staged(scene).is_empty();
    let waited = scene.test.cluster.wait("unfinished transactions to be gone", PATIENCE, done);
    waited.unwrap_or_else(|why| panic!("{:?}: {why:#}", staged(scene)));
}

/// Begins a large transaction, and waits until a node has some parts of it.
fn halfway(scene: &Scene, app: &mut App, batch: u64, on: u64) {
    app.tell(&format!("sql {}", insert(batch, 300, 40_000)));
    let has_some = |_: &_| unfinished(scene, on).is_some_and(|parts| parts >= 3);
    scene.test.cluster.wait("some parts", PATIENCE, has_some).unwrap();
}

/// How a statement ended.
fn verdict(app: &mut App) -> Result<(), String> {
    match app.until(&["done", "failed"], PATIENCE) {
        line if line == "done" => Ok(()),
        line => Err(line),
    }
}

/// Writes, reads and other databases go on beside a large transaction, and nobody holds it in memory.
#[test]
fn a_large_transaction_is_one_for_everybody() {
    if !have_app() {
        return;
    }
    // The log is kept, to be looked at in the end.
    let steady = ["--heartbeat-ms", "200", "--election-timeout-ms", "3000", "--log-retain-mib", "4096"];
    let scene = Scene::start(&steady);
    let leader = scene.leader();
    let mut app = scene.app(leader);
    app.rows(TABLE).unwrap();
    app.rows(&insert(0, 2, 1000)).unwrap();
    let mut reader = scene.app(scene.followers()[0]);
    let other = scene.test.cluster.node(leader).unwrap().database("other");
    let mut neighbour = scene.idle_app();
    scene.open_file(&mut neighbour, &other, 15);
    neighbour.rows("CREATE TABLE t(a)").unwrap();
    scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();

    // Twice: a node that still publishes the one takes the parts of the other.
    let usual = if quire_tests::is_long("QUIRE_LARGE") { 1024 } else { 120 };
    let rows_each = std::env::var("LARGE_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(usual);
    let mut peaks: Vec<_> =
        scene.test.cluster.nodes.iter().map(|node| begin_memory(node.pid().unwrap().as_raw())).collect();
    peaks.push(begin_memory(app.pid().as_raw()));
    let ended = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut commits = 0;
            while !ended.load(Ordering::Relaxed) {
                neighbour.rows("INSERT INTO t VALUES (1)").unwrap();
                commits += 1;
            }
            commits
        });
        let reader = scope.spawn(|| {
            let mut seen = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let rows = reader.number("SELECT count(*) FROM big WHERE batch > 0");
                if seen.last() != Some(&rows) {
                    seen.push(rows);
                }
            }
            seen
        });
        for batch in [1, 2] {
            app.tell(&format!("sql {}", insert(batch, rows_each, 1_000_000)));
            verdict(&mut app).unwrap();
            println!("committed after {:.1} s", began.elapsed().as_secs_f64());
        }
        scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
        ended.store(true, Ordering::Relaxed);
        let commits = neighbour.join().unwrap();
        println!("{commits} commits of another database meanwhile");
        assert!(commits > 20, "{commits}");
        let seen = reader.join().unwrap();
        let whole = seen.is_sorted() && seen.iter().all(|rows| rows % rows_each == 0);
        assert!(whole && seen.first() == Some(&0), "a part of it was visible: {seen:?}");
    });
    for (n, (pid, before)) in peaks.into_iter().enumerate() {
        let who = if n < 3 { format!("node {}", n + 1) } else { "app".into() };
        let growth = memory(pid, "VmHWM").saturating_sub(before);
        println!("{who}{}: {} MiB more", if n as u64 + 1 == leader { ", leader" } else { "" }, growth >> 10);
        assert!(growth < GROWTH, "{who} grew by {growth} KiB");
    }
    nothing_remains(&scene);
    assert_identical(
        &scene.test,
        DATABASE,
        &["SELECT batch, count(*), sum(length(body)) FROM big GROUP BY batch"],
    );
    assert_identical(&scene.test, "other", &["SELECT count(*) FROM t"]);

    let log = scene.test.cluster.node(leader).unwrap().dir.join("raft");
    let output = Command::new(&programs().quire).args(["inspect", "log"]).arg(log).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for said in ["part 0 of transaction", "part 12 of transaction", "last part of transaction"] {
        assert!(text.contains(said), "{said}: not in\n{}", &text[text.len().saturating_sub(3000)..]);
    }
}

/// With tiny parts almost everything is a large transaction: growing with pages that SQLite doesn't write,
/// shrinking, page sizes.
#[test]
fn all_that_sqlite_does_to_pages_may_come_in_parts() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(3, &["--part-kib", "8", "--checkpoint-mib", "1", "--log-segment-mib", "4"]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    for page_size in [512, 4096, 65536] {
        let name = format!("pages-{page_size}");
        let path = database(&test, leader, &name);
        let mut host = Host::start(Program::Cli, quire_tests::hosts::Load::Vfs);
        host.connect(&format!("file:{}?vfs=quire&page_size={page_size}", path.display())).unwrap();
        host.sql("PRAGMA busy_timeout = 20000").unwrap();
        for sql in [
            TABLE,
            &insert(1, 100, 3000),
            // Pages that are freed before they were ever written, so that the file grows by zeros.
            "BEGIN; INSERT INTO big SELECT 2, n, randomblob(4000) FROM big; DELETE FROM big WHERE batch = 2; COMMIT",
            "PRAGMA cache_size = 5",
            "UPDATE big SET body = randomblob(2500)",
            "DELETE FROM big WHERE n % 3",
            "VACUUM",
            "BEGIN; UPDATE big SET body = randomblob(2000); SAVEPOINT s; DELETE FROM big; ROLLBACK TO s; COMMIT",
        ] {
            host.sql(sql).unwrap_or_else(|why| panic!("{page_size}: {sql}: {why}\n{}", host.log()));
        }
        host.close();
        assert_identical(&test, &name, &[".dump"]);
    }
}

#[test]
fn a_limit_is_kept_and_named() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(1, &["--part-kib", "64", "--max-transaction-mib", "1"]);
    let mut host = Host::open(Program::Cli, &database(&test, 1, "app"));
    host.sql(TABLE).unwrap();
    let why = host.sql(&insert(1, 20, 100_000)).unwrap_err();
    assert!(why.contains("full"), "{why}");
    assert!(
        host.log().contains("split the transaction, or raise the nodes' --max-transaction-mib"),
        "{}",
        host.log()
    );
    host.sql(&insert(1, 8, 100_000)).unwrap();
    assert_eq!(host.sql("SELECT count(*) FROM big").unwrap(), ["8"]);
    host.close();
}

#[test]
fn whoever_dies_halfway_leaves_nothing() {
    if !have_app() {
        return;
    }
    let flags = ["--part-kib", "64", "--checkpoint-mib", "4", "--commit-timeout-ms", "5000"];
    let mut scene = Scene::start(&flags);
    let mut app = scene.app(scene.leader());
    app.rows(TABLE).unwrap();
    app.quit();
    let mut batch = 0;
    step("fault points of the app", || app_points(&scene, &mut batch));
    step("the app is killed halfway", || app_killed(&scene, &mut batch));
    step("the leader is killed halfway", || leader_killed(&mut scene, &mut batch));
    step("a follower is killed halfway", || follower_killed(&mut scene, &mut batch));
    step("fault points of a follower", || follower_points(&mut scene, &mut batch));
    step("fault points of a leader", || leader_points(&mut scene, &mut batch));
    scene.check();
}

/// A large transaction that must succeed, from an app of its own, and is on all nodes as a whole.
fn next_works(scene: &Scene, batch: &mut u64) {
    *batch += 1;
    let mut app = scene.app(scene.leader());
    app.rows(&insert(*batch, 30, 40_000))
        .unwrap_or_else(|why| panic!("{why}\n{}", scene.test.cluster.logs(15)));
    scene.must_write(&mut app);
    app.quit();
    nothing_remains(scene);
    scene.check();
    for node in 1..=3 {
        assert_eq!(on_node(scene, node, *batch), 30, "node {node}");
    }
}

/// Rows of a batch in a node's files.
fn on_node(scene: &Scene, node: u64, batch: u64) -> u64 {
    let file = scene.test.cluster.node(node).unwrap().database(DATABASE);
    let rows = quire_tests::crash::stock(&file, &format!("SELECT count(*) FROM big WHERE batch = {batch}"));
    rows[0].parse().unwrap()
}

/// The app's fault points, and whether the transaction has committed by then.
fn app_points(scene: &Scene, batch: &mut u64) {
    let mut watcher = scene.app(scene.leader());
    for (point, committed) in [
        ("part.sent:1", Some(false)),
        ("part.taken:1", Some(false)),
        ("part.sent:9", Some(false)),
        ("part.taken:9", Some(false)),
        ("commit.sent", None),
        ("commit.decided", Some(true)),
        ("commit.framed", Some(true)),
        ("release.published", Some(true)),
    ] {
        *batch += 1;
        let mut app = scene.app_with(scene.leader(), &[("QUIRE_FAULT", point)], 15);
        app.tell(&format!("sql {}", insert(*batch, 30, 40_000)));
        assert!(was_killed(app.wait_exit(PATIENCE)), "{point}");
        // In one statement: the node may complete what the dead app has left at any moment.
        let rows = count(&mut watcher, *batch);
        assert!(rows == 0 || rows == 30, "{point}: {rows} rows are visible");
        scene.must_write(&mut watcher);
        let rows = count(&mut watcher, *batch);
        match committed {
            Some(committed) => assert_eq!(rows, if committed { 30 } else { 0 }, "{point}"),
            None => assert!(rows == 0 || rows == 30, "{point}: {rows}"),
        }
        nothing_remains(scene);
        scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
        for node in 1..=3 {
            assert_eq!(on_node(scene, node, *batch), rows, "{point}: node {node}");
        }
    }
    watcher.quit();
    next_works(scene, batch);
}

fn app_killed(scene: &Scene, batch: &mut u64) {
    *batch += 1;
    let leader = scene.leader();
    let mut app = scene.app(leader);
    halfway(scene, &mut app, *batch, leader);
    app.kill();
    // By itself, without a writer after it.
    nothing_remains(scene);
    assert_eq!(on_node(scene, leader, *batch), 0);
    next_works(scene, batch);
}

fn leader_killed(scene: &mut Scene, batch: &mut u64) {
    for attached in [true, false] {
        *batch += 1;
        let leader = scene.leader();
        let mut app = scene.app(leader);
        halfway(scene, &mut app, *batch, leader);
        scene.test.cluster.kill(leader).unwrap();
        let why = verdict(&mut app).unwrap_err();
        assert!(why.contains("refused at part"), "{why}");
        // On the app's side nothing is left of it either.
        assert_eq!(count(&mut app, *batch), 0);
        if !attached {
            app.kill();
            scene.leader();
            next_works_without(scene, leader, batch);
            scene.restart(leader);
        } else {
            scene.restart(leader);
            assert_eq!(count(&mut app, *batch), 0);
            app.quit();
        }
        next_works(scene, batch);
    }
}

/// The next transaction works while a node is away.
fn next_works_without(scene: &Scene, away: u64, batch: &mut u64) {
    *batch += 1;
    let leader = scene.leader();
    assert_ne!(leader, away);
    let mut app = scene.app(leader);
    app.rows(&insert(*batch, 30, 40_000)).unwrap();
    assert_eq!(count(&mut app, *batch), 30);
    app.quit();
}

fn follower_killed(scene: &mut Scene, batch: &mut u64) {
    *batch += 1;
    let (leader, follower) = (scene.leader(), scene.followers()[0]);
    let mut app = scene.app(leader);
    halfway(scene, &mut app, *batch, follower);
    scene.test.cluster.kill(follower).unwrap();
    // The others are a majority.
    verdict(&mut app).unwrap();
    assert_eq!(count(&mut app, *batch), 300);
    scene.restart(follower);
    scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
    assert_eq!(on_node(scene, follower, *batch), 300);
    app.quit();
    next_works(scene, batch);
}

fn follower_points(scene: &mut Scene, batch: &mut u64) {
    let points = [
        "part.staged:1",
        "part.judged:5",
        "run.admitted",
        "apply.framed",
        "apply.indexed",
        "apply.published",
    ];
    for (n, fault) in points.into_iter().enumerate() {
        let node = scene.followers()[0];
        scene.restart_with(node, fault);
        // Sometimes nobody is attached to the node that dies, sometimes a reader is.
        let mut reader = (n % 2 == 1).then(|| scene.app(node));
        if let Some(reader) = &mut reader {
            reader.rows("BEGIN").unwrap();
            assert_eq!(count(reader, *batch + 1), 0);
        }
        *batch += 1;
        let mut app = scene.app(scene.leader());
        app.rows(&insert(*batch, 30, 40_000)).unwrap();
        scene.dies(node, fault);
        scene.must_write(&mut app);
        app.quit();
        scene.restart(node);
        if let Some(reader) = &mut reader {
            assert_eq!(count(reader, *batch), 0, "{fault}: its snapshot");
            reader.rows("COMMIT").unwrap();
        }
        scene.check();
        assert_eq!(on_node(scene, node, *batch), 30, "{fault}");
        nothing_remains(scene);
    }
}

fn leader_points(scene: &mut Scene, batch: &mut u64) {
    // Whether the transaction has committed when the leader dies, and whether its app dies, too, so that the
    // leader itself has to publish it.
    for (fault, committed, app_fault) in [
        ("part.staged:5", false, None),
        ("part.judged:5", false, None),
        ("run.admitted", true, None),
        ("gate.decided", true, None),
        ("apply.framed", true, Some("commit.decided")),
        ("apply.published", true, Some("commit.decided")),
    ] {
        let node = scene.followers()[0];
        scene.restart_with(node, fault);
        scene.make_leader(node);
        *batch += 1;
        let env: Vec<_> = app_fault.map(|fault| ("QUIRE_FAULT", fault)).into_iter().collect();
        let mut app = scene.app_with(node, &env, 15);
        app.tell(&format!("sql {}", insert(*batch, 30, 40_000)));
        scene.dies(node, fault);
        scene.test.cluster.start_node(node).unwrap();
        if app_fault.is_some() {
            assert!(was_killed(app.wait_exit(PATIENCE)), "{fault}");
        } else {
            let said = verdict(&mut app);
            println!("{fault}: {said:?}");
            match said {
                Ok(()) => assert!(committed, "{fault}"),
                Err(why) => assert_eq!(why.contains("unknown"), committed, "{fault}: {why}"),
            }
            app.quit();
        }
        scene.wait_ready(node);
        nothing_remains(scene);
        scene.check();
        for node in 1..=3 {
            assert_eq!(on_node(scene, node, *batch), if committed { 30 } else { 0 }, "{fault}: node {node}");
        }
    }
    next_works(scene, batch);
}
