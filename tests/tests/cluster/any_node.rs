//! Apps write on whichever node they are: fairly, over leader changes, and with outcomes that are true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_tests::admin::{quire_fails, quire_json};
use quire_tests::crash::{App, DATABASE, PATIENCE, Scene, have_app, stock};
use quire_tests::step;
use serde_json::Value;
use std::collections::BTreeMap;

#[test]
fn apps_write_on_any_node() {
    if !have_app() {
        return;
    }
    // A leader that stays on a busy machine, but not for long when it is killed.
    let steady = ["--heartbeat-ms", "150", "--election-timeout-ms", "1500"];
    let mut scene =
        Scene::start(&[&steady[..], &["--lease-timeout-ms", "2000", "--part-kib", "256"]].concat());
    step("each node", || each_node(&scene));
    step("twelve writers", || twelve_writers(&scene));
    step("a large transaction", || large(&scene));
    step("stopped in a transaction", || stopped(&scene));
    step("killed leaders", || killed_leaders(&mut scene));
    scene.check();
}

/// Each node's apps see what the others wrote, and write on it.
fn each_node(scene: &Scene) {
    let mut apps: Vec<App> = (1..=3).map(|node| scene.app(node)).collect();
    for round in 0..4 {
        for app in &mut apps {
            scene.must_write(app);
            assert!(app.number("SELECT n FROM total") > round, "an app reads its own write");
        }
    }
    assert_eq!(scene.check(), 12);
    apps.into_iter().for_each(App::quit);
}

/// All progress, and none much less than the others.
fn twelve_writers(scene: &Scene) {
    let mut apps: Vec<App> = (0..12).map(|n| scene.app(1 + n % 3)).collect();
    apps.iter_mut().for_each(|app| scene.load(app));
    scene.wait_acks(240);
    let counts: Vec<usize> = apps.iter().map(|app| app.verdicts("ack")).collect();
    println!("commits of each writer: {counts:?}");
    let all: usize = counts.iter().sum();
    assert!(counts.iter().all(|&count| count * 12 * 4 >= all), "somebody starves: {counts:?}");
    for app in &mut apps {
        app.ask("sql SELECT 1", &["loaded"]);
        app.until(&["done"], PATIENCE);
        // None has to be, but on a busy machine leaders may change, and that is no matter of fairness.
        let refused = |line: &&String| line.starts_with("refused ") || line.starts_with("busy ");
        app.lines().iter().filter(refused).for_each(|line| println!("{line}"));
    }
    apps.into_iter().for_each(App::quit);
}

/// Several parts, from an app of a follower; and one that is given up.
fn large(scene: &Scene) {
    let follower = scene.followers()[0];
    let mut app = scene.app(follower);
    app.rows("CREATE TABLE big(body BLOB)").unwrap();
    app.rows("INSERT INTO big VALUES (randomblob(2000000))").unwrap();
    app.rows("BEGIN IMMEDIATE").unwrap();
    app.rows("INSERT INTO big VALUES (randomblob(2000000))").unwrap();
    app.rows("ROLLBACK").unwrap();
    scene.must_write(&mut app);
    app.quit();
    scene.check();
    for node in &scene.test.cluster.nodes {
        let found = stock(&node.database(DATABASE), "SELECT count(*), sum(length(body)) FROM big");
        assert_eq!(found, ["1|2000000"], "node {}", node.id);
    }
}

/// An app that is stopped in a transaction gives way, wherever it is; its COMMIT then fails, definitely.
fn stopped(scene: &Scene) {
    let leader = scene.leader();
    for node in [scene.followers()[0], leader] {
        let elsewhere = (1..=3).find(|&other| other != node && other != leader).unwrap();
        let mut asleep = scene.app(node);
        let mut beside = scene.app_with(node, &[], 0);
        let mut other = scene.app(elsewhere);
        let n = scene.number();
        asleep.ask(&format!("hold {n}"), &["held"]);
        asleep.signal(Signal::SIGSTOP);
        scene.must_write(&mut other);
        scene.must_write(&mut other);
        // Its neighbour on the same node has to wait for the WAL, and keeps nobody else from writing.
        let verdict = scene.write(&mut beside);
        assert!(verdict.starts_with("busy "), "{verdict}");
        scene.must_write(&mut other);
        asleep.signal(Signal::SIGCONT);
        let verdict = asleep.ask("commit", &["ack", "refused", "unknown"]);
        assert!(verdict.starts_with(&format!("refused {n} ")), "{verdict}");
        assert!(verdict.contains("lease"), "it says why: {verdict}");
        scene.must_write(&mut asleep);
        scene.must_write(&mut beside);
        [asleep, beside, other].into_iter().for_each(App::quit);
    }
    scene.check();
}

/// Nodes are killed and paused while apps on all nodes commit: every outcome is what the log says, and an id that an
/// app was left with can be looked up.
fn killed_leaders(scene: &mut Scene) {
    let before = scene.said().acked.len();
    let mut apps: Vec<(u64, App)> = (1..=3).map(|node| (node, scene.app(node))).collect();
    for (_, app) in &mut apps {
        scene.load(app);
    }
    let mut told = BTreeMap::new();
    for round in 0..4 {
        scene.wait_acks(20);
        let leader = scene.leader();
        if round == 1 {
            // To the others as good as cut off; when it goes on, it doesn't know that it was deposed.
            scene.test.cluster.node(leader).unwrap().signal(Signal::SIGSTOP).unwrap();
            scene.wait_acks(10);
            scene.test.cluster.node(leader).unwrap().signal(Signal::SIGCONT).unwrap();
        } else {
            // Also one that doesn't lead: its apps reconnect, and ask.
            let node = if round == 3 { scene.followers()[0] } else { leader };
            scene.test.cluster.kill(node).unwrap();
            scene.wait_acks(10);
            scene.restart(node);
        }
        look_up(scene, &apps, &mut told);
    }
    scene.wait_acks(20);
    for (_, app) in &mut apps {
        app.ask("sql SELECT 1", &["loaded"]);
        app.until(&["done"], PATIENCE);
        println!("slowest verdict: {:.1} s", app.slowest());
    }
    look_up(scene, &apps, &mut told);
    scene.check();
    let found = scene.check_file(&scene.test.cluster.node(1).unwrap().database(DATABASE));
    for (n, outcome) in &told {
        assert_eq!(outcome["outcome"] == "committed", found.contains(n), "{n}: {outcome}");
    }
    let (acked, refused, unknown) = {
        let said = scene.said();
        (said.acked.len() - before, said.refused.len(), said.unknown.len())
    };
    println!("{acked} acknowledged, {refused} refused, {unknown} unknown, {} looked up", told.len());

    let http = scene.test.cluster.node(1).unwrap().http.clone();
    let never = "00000000000000000000000000000007";
    let outcome = quire_json(&["tx", never, "--db", DATABASE, "--http-addr", &http]);
    assert_eq!(outcome["outcome"], "not in the log", "{outcome}");
    // Certain if the node remembers everything after the transaction's base.
    let since = outcome["databases"][0]["since"].as_u64().unwrap();
    let base = (since - 1).to_string();
    let outcome = quire_json(&["tx", never, "--db", DATABASE, "--base", &base, "--http-addr", &http]);
    assert_eq!(outcome["outcome"], "not in the log", "{outcome}");
    let why = quire_fails(&["tx", "xyz", "--http-addr", &http]);
    assert!(why.contains("32 hexadecimal digits"), "{why}");
    apps.into_iter().for_each(|(_, app)| app.quit());
}

/// Looks up the transactions whose ids the apps were told of since the last time.
fn look_up(scene: &Scene, apps: &[(u64, App)], told: &mut BTreeMap<u64, Value>) {
    let http = scene.test.cluster.node(scene.leader()).unwrap().http.clone();
    for line in apps.iter().flat_map(|(_, app)| app.lines()) {
        let id = line.split("transaction ").nth(1).and_then(|rest| rest.split(' ').next());
        let n = line.split(' ').nth(1).and_then(|n| n.parse().ok());
        if let (Some(id), Some(n)) = (id, n) {
            told.entry(n).or_insert_with(|| quire_json(&["tx", id, "--db", DATABASE, "--http-addr", &http]));
        }
    }
}
