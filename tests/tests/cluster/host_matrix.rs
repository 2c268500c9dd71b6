//! Every host of `tests/hosts` at the same time, each with a database of its own, which it writes on all three nodes in
//! turn; their leader is killed meanwhile. What each has written it then reads on every node, and so does stock SQLite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_tests::hosts::{PATIENCE, stock};
use quire_tests::matrix::{MatrixHost, all_said, build_hosts, until};
use quire_tests::replicas::{assert_identical, database};
use quire_tests::{TestCluster, programs};
use std::sync::mpsc::channel;
use std::time::Instant;

/// Numbers that are written before the leader dies, and in all.
const FIRST: u64 = 8;
const LAST: u64 = 40;

#[test]
fn every_host_writes_and_reads_on_every_node_while_a_leader_dies() {
    let began = Instant::now();
    let built = build_hosts();
    println!("{} hosts built in {:.0?}", built.len(), began.elapsed());
    if built.is_empty() {
        return;
    }
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        // A commit that is under way when its node dies is unknown only after this time.
        node.flags = ["--commit-timeout-ms", "4000"].map(String::from).to_vec();
    }
    test.cluster.start().unwrap();
    let (tx, lines) = channel();
    let mut hosts: Vec<_> = built
        .into_iter()
        .map(|(name, mut command)| {
            command.arg(&programs().extension).args((1..=3).map(|node| database(&test, node, name)));
            command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS").env_remove("QUIRE_FAULT");
            let errors = test.dir.path().join(format!("{name}.errors"));
            MatrixHost::start(name, command, &errors, tx.clone())
        })
        .collect();

    hosts.iter_mut().for_each(|host| host.tell(&format!("write 1 {FIRST}")));
    until(&hosts, &lines, "write", all_said(format!("wrote {FIRST}")));
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    hosts.iter_mut().for_each(|host| host.tell(&format!("write {} {LAST}", FIRST + 1)));
    let before = until(&hosts, &lines, "write", |found| found.values().any(|lines| lines.len() >= 5));
    test.cluster.kill(leader).unwrap();
    let left: usize = before.values().map(|lines| (LAST - FIRST) as usize - lines.len()).sum();
    until(&hosts, &lines, "write after the leader's death", |found| {
        found.values().map(Vec::len).sum::<usize>() == left
    });

    test.cluster.start_node(leader).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    test.cluster
        .wait("all nodes to be ready", PATIENCE, |cluster| {
            cluster
                .nodes
                .iter()
                .all(|node| node.status().is_some_and(|status| status["store"]["ready"] == true))
        })
        .unwrap();
    hosts.iter_mut().for_each(|host| host.tell("read"));
    let read = until(&hosts, &lines, "read", all_said("done".into()));
    let sum = LAST * (LAST + 1) / 2;
    let expected: Vec<_> = (0..3).map(|node| format!("node {node} {LAST} {sum}")).collect();
    for (name, lines) in &read {
        assert_eq!(lines[..lines.len() - 1], expected, "{name}");
    }
    let names: Vec<_> = hosts.iter().map(|host| host.name).collect();
    drop(hosts);
    for &name in &names {
        test.cluster.wait_applied(name, PATIENCE).unwrap();
        for node in 1..=3 {
            let query = "SELECT count(*), sum(n), min(who), max(who) FROM t";
            let found = stock(&database(&test, node, name), query).unwrap();
            assert_eq!(found, format!("{LAST}|{sum}|{name}|{name}"), "node {node}");
        }
    }
    assert_identical(&test, names[0], &["SELECT * FROM t ORDER BY n"]);
    println!("all of it in {:.0?}", began.elapsed());
}
