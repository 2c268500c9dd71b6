//! Nodes that come with an empty directory: a voter whose disk was lost is not let in again under its id, and neither
//! votes nor takes entries meanwhile; new ones are let in, also if they are killed on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_node::cli::local::{LocalCluster, LocalNode};
use quire_tests::TestCluster;
use quire_tests::crash::{PATIENCE, Scene, have_app, was_killed};
use quire_tests::step;
use serde_json::Value;
use std::time::{Duration, Instant};

const FAULT: &str = "admission.stored";

fn node(scene: &Scene, id: u64) -> &LocalNode {
    scene.test.cluster.node(id).unwrap()
}

fn raft(scene: &Scene, id: u64) -> Value {
    node(scene, id).status().unwrap_or_default()["store"]["raft"].clone()
}

fn set_flags(scene: &mut Scene, id: u64, flags: &[&str]) {
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    scene.test.cluster.node_mut(id).unwrap().flags = flags;
}

fn lose_disk(scene: &mut Scene, id: u64) {
    if node(scene, id).is_running() {
        scene.test.cluster.kill(id).unwrap();
    }
    std::fs::remove_dir_all(&node(scene, id).dir).unwrap();
}

fn write_some(scene: &Scene) {
    let mut app = scene.app(scene.leader());
    for _ in 0..3 {
        scene.must_write(&mut app);
    }
    app.quit();
}

/// A node that has been started ends by itself, with the reason and the way out.
fn assert_refused(scene: &mut Scene, id: u64, before: usize, what: &str) {
    let status = scene.test.cluster.wait_exit(id, PATIENCE).unwrap();
    let log = node(scene, id).log();
    assert!(!status.success() && !was_killed(status), "{status}\n{log}");
    let said = log.get(before..).unwrap();
    for part in [what, "comes with an empty data directory", &format!("quire remove {id}"), "never used"] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(!node(scene, id).dir.join("raft/log/admitted").exists());
}

/// Starts a node whose disk was lost. Twice: had it taken a vote or an entry, it would know itself for a member.
fn is_refused(scene: &mut Scene, id: u64, what: &str) {
    for _ in 0..2 {
        let before = node(scene, id).log().len();
        scene.test.cluster.start_node(id).unwrap();
        assert_refused(scene, id, before, what);
    }
}

#[test]
fn a_voter_that_lost_its_disk_does_not_come_back() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&["--commit-timeout-ms", "5000"]);
    step("a read replica that lost its disk", || lost_replica(&mut scene));
    step("a follower with --join", || lost_follower(&mut scene));
    step("a quorum only with it", || no_quorum(&mut scene));
}

fn lost_replica(scene: &mut Scene) {
    let id = scene.test.cluster.add().unwrap();
    set_flags(scene, id, &["--log-segment-mib", "4", "--non-voter"]);
    scene.test.cluster.start_node(id).unwrap();
    scene.wait_ready(id);
    write_some(scene);
    scene.check();
    lose_disk(scene, id);
    is_refused(scene, id, "belongs to a member that has entries of the log");
    write_some(scene);
    scene.test.cluster.forget(id).unwrap();
}

fn lost_follower(scene: &mut Scene) {
    scene.make_leader(1);
    lose_disk(scene, 3);
    is_refused(scene, 3, "node id 3 is a voter");
    // Also where only one is left that could say so.
    scene.test.cluster.kill(2).unwrap();
    is_refused(scene, 3, "node id 3 is a voter");
    scene.restart(2);
    write_some(scene);
}

/// Node 3's disk is lost, node 2 is down, and nobody who could say no is where node 3 asks.
fn no_quorum(scene: &mut Scene) {
    scene.make_leader(2);
    let asks = node(scene, 3).raft.clone();
    scene.test.cluster.kill(1).unwrap();
    set_flags(scene, 3, &["--log-segment-mib", "4", "--join", &asks]);
    scene.test.cluster.start_node(3).unwrap();
    scene.wait_ready(3);
    let mut app = scene.app_with(2, &[], 1);
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        let verdict = scene.write(&mut app);
        assert!(!verdict.starts_with("ack "), "{verdict}\n{}", scene.test.cluster.logs(20));
        let lost = raft(scene, 3);
        assert!(lost["term"] == 0 && lost["last_log_index"].is_null(), "{lost}");
        assert_eq!(lost["voter"], false, "{lost}");
    }
    app.quit();
    let before = node(scene, 3).log().len();
    scene.restart(1);
    assert_refused(scene, 3, before, "node id 3 is a voter");
    write_some(scene);
}

/// It was started without --join, so it asks nobody, and begins a cluster of its own. The old one has nothing to do with it.
#[test]
fn a_first_node_that_lost_its_disk_stays_by_itself() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&[]);
    scene.make_leader(2);
    write_some(&scene);
    let join = node(&scene, 2).raft.clone();
    lose_disk(&mut scene, 1);
    scene.test.cluster.start_node(1).unwrap();
    let leads = |cluster: &LocalCluster| {
        let node = cluster.node(1).unwrap();
        node.status().is_some_and(|status| status["store"]["raft"]["state"] == "Leader")
    };
    scene.test.cluster.wait("node 1 to lead its own cluster", PATIENCE, leads).unwrap();
    let own = raft(&scene, 1);
    // Node 2 sends to it all the time, and so does who stands for election.
    let mut app = scene.app(2);
    (0..20).for_each(|_| scene.must_write(&mut app));
    app.quit();
    scene.test.cluster.kill(2).unwrap();
    scene.restart(2);
    let mut app = scene.app(2);
    scene.must_write(&mut app);
    app.quit();
    let now = raft(&scene, 1);
    for what in ["state", "term", "leader", "voters"] {
        assert_eq!(now[what], own[what], "{what}: {now}");
    }
    assert_eq!(node(&scene, 1).voters(), Some(vec![1]));
    // With --join it asks.
    lose_disk(&mut scene, 1);
    set_flags(&mut scene, 1, &["--log-segment-mib", "4", "--join", &join]);
    is_refused(&mut scene, 1, "node id 1 is a voter");
}

/// Three nodes with the same flags.
fn together() -> TestCluster {
    let mut test = TestCluster::prepare(3);
    let all: Vec<_> = test.cluster.nodes.iter().map(|node| node.raft.clone()).collect();
    let flags = ["--bootstrap-expect", "3", "--join", &all.join(","), "--log-segment-mib", "1"];
    for node in &mut test.cluster.nodes {
        node.flags = flags.map(String::from).to_vec();
    }
    test
}

fn all_vote(cluster: &LocalCluster, count: u64) {
    let voters: Vec<u64> = (1..=count).collect();
    let seen = |cluster: &LocalCluster| {
        cluster.nodes.iter().all(|node| node.voters().is_some_and(|seen| seen == voters))
    };
    cluster.wait(&format!("{voters:?} to vote"), PATIENCE, seen).unwrap();
}

#[test]
fn a_disk_lost_among_nodes_that_started_together() {
    if !have_app() {
        return;
    }
    let mut test = together();
    for id in 1..=3 {
        test.cluster.start_node(id).unwrap();
    }
    all_vote(&test.cluster, 3);
    let mut scene = Scene::on(test);
    write_some(&scene);
    for id in [1, 3] {
        lose_disk(&mut scene, id);
        // All others are down: nobody says that there is a cluster, or that there is none.
        let others: Vec<u64> = (1..=3).filter(|other| *other != id).collect();
        let before = node(&scene, id).log().len();
        for &other in &others {
            if node(&scene, other).is_running() {
                scene.test.cluster.kill(other).unwrap();
            }
        }
        scene.test.cluster.start_node(id).unwrap();
        let waits = |cluster: &LocalCluster| {
            cluster.node(id).unwrap().log()[before..].contains("waiting for the nodes that are to start")
        };
        scene.test.cluster.wait("the node to wait", PATIENCE, waits).unwrap();
        let back: Vec<u64> = others.into_iter().filter(|other| !(id == 3 && *other == 1)).collect();
        for &other in &back {
            scene.test.cluster.start_node(other).unwrap();
        }
        assert_refused(&mut scene, id, before, &format!("node id {id} is a voter"));
        is_refused(&mut scene, id, &format!("node id {id} is a voter"));
        if back.len() == 2 {
            back.iter().for_each(|&other| scene.wait_ready(other));
            write_some(&scene);
        }
    }
}

#[test]
fn new_nodes_are_killed_once_they_are_admitted() {
    if !have_app() {
        return;
    }
    for victim in [1, 3] {
        let mut test = together();
        test.cluster.node_mut(victim).unwrap().env = vec![("QUIRE_FAULT".into(), FAULT.into())];
        for id in 1..=3 {
            test.cluster.start_node(id).unwrap();
        }
        let status = test.cluster.wait_exit(victim, PATIENCE).unwrap();
        assert!(was_killed(status), "{status}");
        assert!(test.cluster.node(victim).unwrap().dir.join("raft/log/admitted").exists());
        test.cluster.node_mut(victim).unwrap().env.clear();
        test.cluster.start_node(victim).unwrap();
        all_vote(&test.cluster, 3);
        let mut scene = Scene::on(test);
        write_some(&scene);
        scene.check();
        // The same for one that joins.
        let id = scene.test.cluster.add().unwrap();
        set_flags(&mut scene, id, &["--log-segment-mib", "1"]);
        scene.test.cluster.node_mut(id).unwrap().env = vec![("QUIRE_FAULT".into(), FAULT.into())];
        scene.test.cluster.start_node(id).unwrap();
        scene.dies(id, FAULT);
        scene.test.cluster.node_mut(id).unwrap().env.clear();
        scene.test.cluster.start_node(id).unwrap();
        all_vote(&scene.test.cluster, id);
        write_some(&scene);
        scene.check();
    }
}
