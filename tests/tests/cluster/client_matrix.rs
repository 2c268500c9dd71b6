//! Every client of `tests/clients` at the same time, as it comes from its registry: what it can do, each with tables of
//! its own; then all write, and the leader, which each was given first, is killed. What each has written it reads, and
//! so does stock SQLite on every node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_tests::TestCluster;
use quire_tests::hosts::{PATIENCE, stock};
use quire_tests::matrix::{CLIENT_NAMES, CLIENTS, MatrixHost, all_said, build_clients, until};
use quire_tests::replicas::{assert_identical, database};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Instant;

/// Numbers that are written before the leader dies, and in all.
const FIRST: u64 = 8;
const LAST: u64 = 40;
/// What each client shows that it can do.
const CHECKS: [&str; 6] = ["connect", "ddl", "parameters", "types", "transactions", "errors"];

/// The table with a client's numbers.
fn table(client: &str) -> &'static str {
    match client {
        "pyrqlite" => "pyrqlite_t",
        "sqlalchemy-rqlite" => "sqlalchemy_t",
        "rqdb" => "rqdb_t",
        "rqlite-js" => "js_t",
        "gorqlite" => "go_t",
        _ => "rs_t",
    }
}

#[test]
fn every_client_works_and_goes_on_when_the_leader_dies() {
    let began = Instant::now();
    let built = build_clients();
    println!("{} clients built in {:.0?}", built.len(), began.elapsed());
    if built.is_empty() {
        return;
    }
    let mut test = TestCluster::start(3);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let mut hosts: Vec<_> = test.cluster.nodes.iter().map(|node| (node.id != leader, &node.http)).collect();
    hosts.sort();
    let (tx, lines) = channel();
    let mut clients: Vec<_> = built
        .into_iter()
        .map(|(name, mut command)| {
            command.args(hosts.iter().map(|(_, address)| address));
            MatrixHost::start(name, command, &test.dir.path().join(format!("{name}.errors")), tx.clone())
        })
        .collect();
    clients.iter_mut().for_each(|client| client.tell("check"));
    let checked = until(&clients, &lines, "check", all_said("checked errors".into()));
    for (name, lines) in &checked {
        assert_eq!(lines[..], CHECKS.map(|check| format!("checked {check}")), "{name}");
    }
    println!("checked after {:.0?}", began.elapsed());

    clients.iter_mut().for_each(|client| client.tell(&format!("write 1 {FIRST}")));
    until(&clients, &lines, "write", all_said(format!("wrote {FIRST}")));
    clients.iter_mut().for_each(|client| client.tell(&format!("write {} {LAST}", FIRST + 1)));
    let before = until(&clients, &lines, "write", |found| found.values().any(|lines| lines.len() >= 5));
    test.cluster.kill(leader).unwrap();
    let left: usize = before.values().map(|lines| (LAST - FIRST) as usize - lines.len()).sum();
    until(&clients, &lines, "write after the leader's death", |found| {
        found.values().map(Vec::len).sum::<usize>() == left
    });
    clients.iter_mut().for_each(|client| client.tell("read"));
    let sum = LAST * (LAST + 1) / 2;
    until(&clients, &lines, "read", all_said(format!("read {LAST} {sum}")));

    test.cluster.start_node(leader).unwrap();
    test.cluster.wait_applied("main", PATIENCE).unwrap();
    let names: Vec<_> = clients.iter().map(|client| client.name).collect();
    drop(clients);
    for node in 1..=3 {
        for name in &names {
            let query = format!("SELECT count(*), sum(n) FROM {}", table(name));
            assert_eq!(stock(&database(&test, node, "main"), &query).unwrap(), format!("{LAST}|{sum}"));
        }
    }
    assert_identical(&test, "main", &["SELECT * FROM sqlite_schema ORDER BY name"]);
    println!("all of it in {:.0?}", began.elapsed());
}

/// What `docs/clients.md` shows is what is tested.
#[test]
fn snippets_are_those_of_the_programs() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for name in CLIENT_NAMES {
        let (_, section) = docs.split_once(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("no {name}"));
        let snippet = section.split("```").nth(1).unwrap().split_once('\n').unwrap().1;
        let file = match name {
            "rqlite-js" => "main.js",
            "gorqlite" => "main.go",
            "rqlite-rs" => "src/main.rs",
            _ => "main.py",
        };
        let program = std::fs::read_to_string(CLIENTS.source(name).join(file)).unwrap();
        assert!(program.contains(snippet), "{name}: {file} does not contain the snippet of docs/clients.md");
        assert!(snippet.contains("example(") || name == "sqlalchemy-rqlite", "{name}: {snippet}");
    }
}
