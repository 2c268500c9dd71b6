//! Nodes that come back: with nobody attached they rebuild WAL and wal-index from the log, with an app
//! attached they go on where they were. What an app has read once, it reads again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::crash::{App, DATABASE, PATIENCE, Rng, Scene, have_app};
use quire_tests::step;
use serde_json::Value;
use std::thread::sleep;
use std::time::Duration;

#[test]
fn nodes_that_come_back() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&["--commit-timeout-ms", "3000", "--checkpoint-mib", "1"]);
    step("nobody attached, no checkpoint", || nobody_attached(&mut scene, &[false, true]));
    step("an app attached", || app_attached(&mut scene));
    step("never older than before", || never_older(&mut scene));
    step("checkpoints", || checkpoints(&scene));
    step("nobody attached, after checkpoints", || nobody_attached(&mut scene, &[false]));
    step("WAL and shm gone", || files_gone(&mut scene));
    step("all at once", || all_at_once(&mut scene));
    step("never older than before, after checkpoints", || never_older(&mut scene));
    step("killed in checkpoints", || killed_in_checkpoints(&mut scene));
    println!("{} transactions", scene.check());
}

/// What `/status` of a node says of the database.
fn database(scene: &Scene, node: u64) -> Value {
    let status = scene.test.cluster.node(node).unwrap().status().unwrap_or_default();
    let databases = status["store"]["databases"].as_array().cloned().unwrap_or_default();
    databases.into_iter().find(|db| db["name"] == DATABASE).unwrap_or_default()
}

fn durable(scene: &Scene, node: u64) -> u64 {
    database(scene, node)["durable_index"].as_u64().unwrap_or_default()
}

/// The last line of a node's log about opening the database.
fn opening(scene: &Scene, node: u64) -> String {
    let log = scene.test.cluster.node(node).unwrap().log();
    let ours = format!("database=\"{DATABASE}\"");
    let line = log.lines().rfind(|line| line.contains(&ours) && line.contains("plan="));
    line.unwrap_or_else(|| panic!("node {node} never opened {DATABASE}\n{log}")).to_owned()
}

/// Writes some transactions on the leader, with nobody attached anywhere afterwards.
fn write_some(scene: &Scene, count: usize) {
    let mut app = scene.app(scene.leader());
    for _ in 0..count {
        scene.must_write(&mut app);
    }
    app.quit();
}

fn nobody_attached(scene: &mut Scene, roles: &[bool]) {
    for &leads in roles {
        for gently in [false, true] {
            write_some(scene, 10);
            let node = if leads { scene.leader() } else { scene.followers()[0] };
            scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
            let before = durable(scene, node);
            if gently {
                let status = scene.test.cluster.stop(node).unwrap();
                assert!(status.success(), "{status}");
            } else {
                scene.test.cluster.kill(node).unwrap();
            }
            scene.leader();
            write_some(scene, 5);
            scene.restart(node);
            assert!(opening(scene, node).contains("plan=Rebuild"), "{}", opening(scene, node));
            let after = durable(scene, node);
            assert!(after >= before, "durable index {before} before, {after} after");
            scene.check();
        }
    }
}

fn app_attached(scene: &mut Scene) {
    for leads in [false, true] {
        write_some(scene, 3);
        let node = if leads { scene.leader() } else { scene.followers()[0] };
        scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
        let mut reader = scene.app(node);
        reader.rows("BEGIN").unwrap();
        let before = reader.number("SELECT count(*) FROM log");
        scene.test.cluster.kill(node).unwrap();
        assert_eq!(reader.number("SELECT count(*) FROM log"), before);
        scene.leader();
        write_some(scene, 3);
        scene.restart(node);
        assert!(opening(scene, node).contains("plan=Resume"), "{}", opening(scene, node));
        scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
        assert_eq!(reader.number("SELECT count(*) FROM log"), before, "its snapshot");
        reader.rows("COMMIT").unwrap();
        assert_eq!(reader.number("SELECT count(*) FROM log"), before + 12, "what came since");
        // On the same connection, as soon as its node leads.
        scene.make_leader(node);
        scene.must_write(&mut reader);
        reader.quit();
        scene.check();
    }
}

/// A restarted node serves no state that is older than what it has served before.
fn never_older(scene: &mut Scene) {
    for round in 0..6 {
        let mut app = scene.app(scene.leader());
        scene.load(&mut app);
        let node = if round % 3 == 2 { scene.leader() } else { scene.followers()[0] };
        let mut reader = scene.app(node);
        scene.wait_acks(5);
        let mut seen = 0;
        for _ in 0..10 {
            seen = reader.number("SELECT n FROM total");
        }
        reader.kill();
        if round % 2 == 1 {
            app.ask("stop", &["loaded"]);
            let mut reader = scene.app(node);
            scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
            seen = reader.number("SELECT n FROM total");
            reader.kill();
        }
        if round % 3 == 2 {
            // Not attached to the node that is to be restarted.
            app.kill();
        }
        scene.test.cluster.kill(node).unwrap();
        scene.test.cluster.start_node(node).unwrap();
        let mut reader = scene.idle_app();
        scene.open(&mut reader, node, 15);
        let now = reader.number("SELECT n FROM total");
        assert!(now >= seen, "{seen} transactions before, {now} after\n{}", scene.test.cluster.logs(20));
        scene.wait_ready(node);
    }
    scene.check();
}

/// Writes until every node has checkpointed.
fn checkpoints(scene: &Scene) {
    let before: Vec<u64> = (1..=3).map(|id| durable(scene, id)).collect();
    let mut app = scene.app(scene.leader());
    scene.load(&mut app);
    let moved = |_: &_| (1..=3).zip(&before).all(|(id, before)| durable(scene, id) > *before);
    scene.test.cluster.wait("checkpoints on all nodes", PATIENCE, moved).unwrap();
    app.ask("stop", &["loaded"]);
    app.quit();
    scene.check();
}

fn files_gone(scene: &mut Scene) {
    for id in 1..=3 {
        write_some(scene, 3);
        scene.test.cluster.kill(id).unwrap();
        let file = scene.test.cluster.node(id).unwrap().database(DATABASE);
        for suffix in ["-wal", "-shm"] {
            std::fs::remove_file(format!("{}{suffix}", file.display())).unwrap();
        }
        scene.leader();
        scene.restart(id);
        scene.check();
    }
}

fn all_at_once(scene: &mut Scene) {
    for attached in [false, true] {
        let mut apps: Vec<App> = (1..=3).map(|id| scene.app_with(id, &[], 2)).collect();
        for app in &mut apps {
            scene.load(app);
        }
        scene.wait_acks(20);
        for id in 1..=3 {
            scene.test.cluster.kill(id).unwrap();
        }
        if !attached {
            apps.clear();
        }
        for id in 1..=3 {
            scene.test.cluster.start_node(id).unwrap();
        }
        if attached {
            scene.wait_acks(5);
        }
        for app in &mut apps {
            app.ask("stop", &["loaded"]);
        }
        scene.check();
    }
}

fn killed_in_checkpoints(scene: &mut Scene) {
    let mut rng = Rng::from_env();
    let mut app = scene.app_with(scene.leader(), &[], 2);
    scene.load(&mut app);
    for round in 0..10 {
        let leader = scene.leader();
        // At 1 MiB of pages, a checkpoint comes every few dozen of these transactions.
        scene.wait_acks(10);
        sleep(Duration::from_millis(rng.below(300)));
        let leads = round % 4 == 3;
        let node = if leads { leader } else { scene.followers()[rng.below(2) as usize] };
        scene.test.cluster.kill(node).unwrap();
        if leads {
            let detached = rng.below(2) == 0;
            if detached {
                app.kill();
                app = scene.idle_app();
            } else {
                app.ask("stop", &["loaded"]);
            }
            let new = scene.leader();
            scene.open(&mut app, new, 2);
            scene.load(&mut app);
        }
        scene.restart(node);
    }
    app.ask("stop", &["loaded"]);
    scene.check();
}
