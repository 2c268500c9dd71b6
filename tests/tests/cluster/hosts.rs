//! Stock hosts write through the VFS on the leader; stock SQLite without it reads the followers' files while
//! they are appended to, and writes nowhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_tests::hosts::{Host, Load, PATIENCE, Program, stock, uri};
use quire_tests::replicas::{assert_identical, database, steady};
use serde_json::json;
use std::path::Path;

/// Every transaction inserts three rows of one number.
const SCHEMA: &str = "CREATE TABLE t(n INTEGER, part TEXT); CREATE INDEX t_n ON t(n);";

fn three_rows(n: u32) -> String {
    format!(
        "BEGIN IMMEDIATE; INSERT INTO t VALUES ({n}, 'a'), ({n}, 'b'); \
         INSERT INTO t SELECT {n}, 'c'; COMMIT;"
    )
}

/// The programs of this machine.
fn programs() -> Vec<Program> {
    Program::ALL.into_iter().filter(|program| program.is_here()).collect()
}

#[test]
fn what_hosts_write_on_the_leader_every_follower_shows() {
    let programs = programs();
    let Some(&reader) = programs.iter().find(|program| **program != Program::Cli) else { return };
    if !programs.contains(&Program::Cli) {
        return;
    }
    let test = steady(3, &[]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let path = database(&test, leader, "app");
    let mut first = Host::open(programs[0], &path);
    first.sql(SCHEMA).unwrap();
    test.cluster.wait_applied("app", PATIENCE).unwrap();

    // Readers with different versions of SQLite, if there are, watch all nodes while hosts write.
    let newer = programs.iter().copied().rfind(|program| *program != Program::Cli).unwrap();
    let mut watchers = Vec::new();
    for (node, program) in [(1, reader), (2, reader), (2, newer), (3, newer), (3, reader)] {
        let mut watcher = Host::start(program, Load::Nothing);
        watcher.request(json!({ "watch": database(&test, node, "app") })).unwrap();
        watchers.push((node, program, watcher));
    }
    let mut number = 0;
    for &program in &programs {
        let mut host = Host::open(program, &path);
        for _ in 0..40 {
            number += 1;
            host.sql(&three_rows(number)).unwrap_or_else(|why| panic!("{program:?}: {why}\n{}", host.log()));
        }
        let count = host.sql("SELECT count(*), max(n) FROM t").unwrap();
        assert_eq!(count, [format!("{}|{number}", 3 * number)], "{program:?}");
        host.close();

        // The same host, which can't or won't name a VFS.
        let mut host = Host::start(program, Load::Default);
        host.connect(path.to_str().unwrap()).unwrap();
        host.sql("PRAGMA busy_timeout = 20000").unwrap();
        for _ in 0..10 {
            number += 1;
            host.sql(&three_rows(number)).unwrap_or_else(|why| panic!("{program:?}: {why}\n{}", host.log()));
        }
        host.close();
    }
    contend(&mut number, &path, &programs);
    test.cluster.wait_applied("app", PATIENCE).unwrap();
    let expected = (3 * number).to_string();
    for node in 1..=3 {
        let found = stock(&database(&test, node, "app"), "SELECT count(*) FROM t").unwrap();
        assert_eq!(found, expected, "node {node}");
    }
    for (node, program, mut watcher) in watchers {
        // What the files show now, a reader that has been there all the time sees too, at its next look.
        let found = watcher.request(json!({ "watched": true }));
        let found = found.unwrap_or_else(|why| panic!("{program:?} on node {node}: {why}"));
        println!("{program:?} on node {node}: reads and rows {found:?}");
    }
    assert_identical(&test, "app", &["SELECT n, count(*), group_concat(part) FROM t GROUP BY n"]);
}

/// Writers in several processes, and two in one process, all get their turn.
fn contend(number: &mut u32, path: &Path, programs: &[Program]) {
    const EACH: u32 = 15;
    let mut writers: Vec<_> = programs.iter().map(|&program| Host::open(program, path)).collect();
    let mut pairs = Vec::new();
    for &program in programs.iter().filter(|program| **program != Program::Cli) {
        let mut pair = Host::start(program, Load::Vfs);
        for name in ["a", "b"] {
            pair.request(json!({ "open": uri(path), "as": name })).unwrap();
            pair.request(json!({ "on": name, "sql": "PRAGMA busy_timeout = 20000" })).unwrap();
        }
        pairs.push(pair);
    }
    for pair in &mut pairs {
        pair.post(json!({ "contend": [["a", "b"], *number + 1, EACH] }));
        *number += 2 * EACH;
    }
    for _ in 0..EACH {
        for writer in &mut writers {
            *number += 1;
            writer.send(&three_rows(*number));
        }
        for writer in &mut writers {
            let program = writer.program();
            writer.receive().unwrap_or_else(|why| panic!("{program:?}: {why}\n{}", writer.log()));
        }
    }
    for pair in &mut pairs {
        let program = pair.program();
        pair.receive().unwrap_or_else(|why| panic!("two in {program:?}: {why}\n{}", pair.log()));
    }
}

#[test]
fn interactive_transactions_and_writers_that_are_refused() {
    let programs = programs();
    if !programs.contains(&Program::Cli) {
        return;
    }
    let test = steady(3, &[]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let path = database(&test, leader, "app");
    let mut host = Host::open(programs[0], &path);
    host.sql("CREATE TABLE log(id INTEGER PRIMARY KEY, who TEXT, what TEXT)").unwrap();
    let followers: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    test.cluster.wait_applied("app", PATIENCE).unwrap();
    for &program in &programs {
        interactive(&mut Host::open(program, &path), program);
    }

    // Stock SQLite writes on no node.
    test.cluster.wait_applied("app", PATIENCE).unwrap();
    for node in 1..=3 {
        let file = database(&test, node, "app");
        for sql in
            ["INSERT INTO log(who) VALUES ('stock')", "BEGIN IMMEDIATE", "VACUUM", "PRAGMA user_version = 7"]
        {
            let refused = stock(&file, sql).unwrap_err();
            assert!(refused.contains("database is locked"), "node {node}: {sql}: {refused}");
        }
        // It checkpoints nothing either, and does no harm by trying.
        assert!(stock(&file, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap().starts_with("1|"), "node {node}");
        assert!(stock(&file, "PRAGMA journal_mode = DELETE").is_err(), "node {node}");
    }

    // Through the VFS, every host writes on every node.
    for &node in &followers {
        let file = database(&test, node, "app");
        for &program in &programs {
            let mut host = Host::open(program, &file);
            let rows = host.sql("SELECT count(*) FROM log WHERE what = 'kept'").unwrap();
            assert_eq!(rows, [programs.len().to_string()], "{program:?} on node {node}");
            host.sql(&format!("INSERT INTO log(who, what) VALUES ('{program:?}', 'on node {node}')"))
                .unwrap();
            let rows = host.sql(&format!("SELECT who FROM log WHERE what = 'on node {node}'")).unwrap();
            assert_eq!(rows.last(), Some(&format!("{program:?}")), "it reads its own write on node {node}");
        }
    }
    assert_identical(&test, "app", &["SELECT * FROM log ORDER BY id"]);
}

/// Statement by statement, as a user at a prompt: rolled back, kept in part, and given up in the middle.
fn interactive(host: &mut Host, program: Program) {
    let mut run = |sql: &str| host.sql(sql).unwrap_or_else(|why| panic!("{program:?}: {sql}: {why}"));
    let count = "SELECT count(*) FROM log";
    let before = run(count);
    run("BEGIN");
    run(&format!("INSERT INTO log(who, what) VALUES ('{program:?}', 'rolled back')"));
    assert_ne!(run(count), before);
    run("UPDATE log SET what = 'overwritten'");
    run("ROLLBACK");
    assert_eq!(run(count), before);

    run("BEGIN");
    run(&format!("INSERT INTO log(who, what) VALUES ('{program:?}', 'kept')"));
    run("SAVEPOINT inner");
    run("DELETE FROM log");
    assert_eq!(run(count), ["0"]);
    run("ROLLBACK TO inner");
    run(&format!("UPDATE log SET what = what || '!' WHERE who = '{program:?}'"));
    run("ROLLBACK TO inner");
    run("RELEASE inner");
    run("COMMIT");
    let kept = format!("SELECT count(*) FROM log WHERE who = '{program:?}' AND what = 'kept'");
    assert_eq!(run(&kept), ["1"]);

    // A savepoint alone is a transaction.
    run("SAVEPOINT outer");
    run("INSERT INTO log(who, what) VALUES ('nobody', 'undone')");
    run("ROLLBACK TO outer");
    run("RELEASE outer");
    assert_eq!(run("SELECT count(*) FROM log WHERE who = 'nobody'"), ["0"]);
    // An error inside a transaction leaves it open.
    run("BEGIN");
    run(&format!("INSERT INTO log(id, who) VALUES (1000, '{program:?}')"));
    let twice = host.sql(&format!("INSERT INTO log(id, who) VALUES (1000, '{program:?}')")).unwrap_err();
    assert!(twice.contains("UNIQUE"), "{twice}");
    host.sql("DELETE FROM log WHERE id = 1000").unwrap();
    host.sql("COMMIT").unwrap();
}
