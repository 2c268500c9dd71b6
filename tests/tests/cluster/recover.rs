//! A cluster whose majority is gone for good goes on from one survivor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::admin::{quire, quire_fails};
use quire_tests::crash::{PATIENCE, Scene, have_app};
use serde_json::Value;

const YES: &str = "--yes-i-know-what-may-be-lost";

fn write_some(scene: &Scene, count: usize) {
    let mut app = scene.app(scene.leader());
    for _ in 0..count {
        scene.must_write(&mut app);
    }
    app.quit();
}

#[test]
fn one_of_three_is_left() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&["--commit-timeout-ms", "2000"]);
    write_some(&scene, 10);
    scene.check();
    let survivor = 3;
    let dir = scene.test.cluster.node(survivor).unwrap().dir.display().to_string();

    let why = quire_fails(&["recover", "--data-dir", &dir, YES]);
    assert!(why.contains("a node is running"), "{why}");
    for id in [1, 2] {
        scene.test.cluster.kill(id).unwrap();
    }
    scene.test.cluster.kill(survivor).unwrap();

    // What can't be.
    let empty = scene.test.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let why = quire_fails(&["recover", "--data-dir", &empty.display().to_string(), YES]);
    assert!(why.contains("nothing to recover"), "{why}");
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0, "looking makes nothing");
    let why = quire_fails(&["recover", "--data-dir", &dir, "--node-id", "1", YES]);
    assert!(why.contains("belongs to node 3, not to node 1"), "{why}");

    // What would be.
    let dry = quire(&["recover", "--data-dir", &dir, "--node-id", "3"]);
    let text = String::from_utf8(dry.stdout).unwrap();
    assert!(!dry.status.success());
    for part in [
        "Node 3 will be the only voter",
        "node 1 at ",
        "node 2 at ",
        "may be lost",
        "Nothing was changed",
        YES,
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let plan = quire(&["recover", "--data-dir", &dir, "--json"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!((&plan["done"], plan["given_up"].as_array().unwrap().len()), (&false.into(), 2));

    // The others: one directory is lost; the other one is only away.
    let lost = scene.test.cluster.node(1).unwrap().dir.clone();
    std::fs::remove_dir_all(lost).unwrap();
    let done = quire(&["recover", "--data-dir", &dir, YES]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && text.contains("Done, as entry"), "{text}");
    let why = quire_fails(&["recover", "--data-dir", &dir, YES]);
    assert!(why.contains("only voter already"), "{why}");
    scene.test.cluster.start_node(survivor).unwrap();
    scene.wait_ready(survivor);
    let alone = |cluster: &quire_node::cli::local::LocalCluster| {
        let node = cluster.node(survivor).unwrap();
        node.voters() == Some(vec![survivor])
            && node.status().is_some_and(|s| s["store"]["raft"]["state"] == "Leader")
    };
    scene.test.cluster.wait("the survivor to lead alone", PATIENCE, alone).unwrap();
    scene.test.cluster.forget(1).unwrap();
    write_some(&scene, 5);
    let before = scene.test.cluster.node(survivor).unwrap().status().unwrap();

    // The one that was away comes back. It can't be elected, and asks whether it still is a member.
    scene.test.cluster.start_node(2).unwrap();
    let told = |cluster: &quire_node::cli::local::LocalCluster| {
        cluster.node(2).unwrap().status().is_some_and(|s| s["store"]["removed"].is_string())
    };
    scene.test.cluster.wait("the old member to learn that it is none", PATIENCE, told).unwrap();
    let log = scene.test.cluster.node(survivor).unwrap().log();
    assert!(log.contains("recovered without that node"), "{log}");
    let after = scene.test.cluster.node(survivor).unwrap().status().unwrap();
    assert_eq!(after["store"]["raft"]["term"], before["store"]["raft"]["term"], "undisturbed");
    scene.test.cluster.forget(2).unwrap();

    // Others join, under new ids.
    for _ in 0..2 {
        let id = scene.test.cluster.add().unwrap();
        scene.test.cluster.start_node(id).unwrap();
    }
    let three = |cluster: &quire_node::cli::local::LocalCluster| {
        cluster.nodes.iter().all(|node| node.voters() == Some(vec![3, 4, 5]))
    };
    scene.test.cluster.wait("three voters", PATIENCE, three).unwrap();
    write_some(&scene, 5);
    scene.check();
    // And any of the three may fail again.
    scene.test.cluster.kill(survivor).unwrap();
    write_some(&scene, 5);
    scene.restart(survivor);
    println!("{} transactions", scene.check());
}
