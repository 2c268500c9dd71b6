//! Nodes that are killed, paused or cut off from a quorum, with apps attached that write all the while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_tests::crash::{App, DATABASE, PATIENCE, Rng, Scene, have_app, was_killed};
use quire_tests::{is_long, step};
use std::thread::sleep;
use std::time::{Duration, Instant};

const VERDICTS: [&str; 4] = ["ack", "busy", "refused", "unknown"];

#[test]
fn nodes_that_die_or_pause() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&["--commit-timeout-ms", "3000"]);
    step("the leader is killed under load", || leader_killed(&mut scene));
    step("a follower is killed under load", || follower_killed(&mut scene));
    step("fault points of a follower", || follower_points(&mut scene));
    step("fault points of a leader", || leader_points(&mut scene));
    step("restarted while an app commits", || restarted_in_commit(&mut scene));
    step("a paused leader", || leader_paused(&mut scene));
    step("no quorum", || no_quorum(&mut scene));
    step("no quorum, and the leader restarts", || leader_restarts_without_quorum(&mut scene));
    println!("{} transactions", scene.check());
}

#[test]
fn random_nodes_are_killed_under_load() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&["--commit-timeout-ms", "3000"]);
    let mut rng = Rng::from_env();
    let mut apps: Vec<App> = (1..=3).map(|id| scene.app_with(id, &[], 1)).collect();
    for app in &mut apps {
        scene.load(app);
    }
    let rounds = if is_long("QUIRE_STORAGE") { 200 } else { 30 };
    for round in 0..rounds {
        let id = rng.below(3) + 1;
        scene.test.cluster.kill(id).unwrap();
        // What happens meanwhile is left to chance; nothing is waited for.
        sleep(Duration::from_millis(rng.below(400)));
        let replaced = rng.below(3) == 0;
        if replaced {
            // Nobody is attached when the node comes back: it rebuilds instead of going on.
            std::mem::replace(&mut apps[id as usize - 1], scene.idle_app()).kill();
        }
        scene.test.cluster.start_node(id).unwrap();
        if replaced {
            let app = &mut apps[id as usize - 1];
            scene.open(app, id, 1);
            scene.load(app);
        }
        if round % 3 == 2 {
            scene.wait_acks(5);
        }
    }
    for app in &mut apps {
        app.ask("stop", &["loaded"]);
    }
    println!("{} transactions", scene.check());
    let said = scene.said();
    println!("acked {}, refused {}, unknown {}", said.acked.len(), said.refused.len(), said.unknown.len());
}

/// The first of several apps that is told of its commit, and when.
fn first_ack(scene: &Scene, apps: &[u64]) -> u64 {
    let mut found = 0;
    let acked = |_: &_| {
        found = apps.iter().copied().find(|n| scene.said().acked.contains(n)).unwrap_or(0);
        found != 0
    };
    scene.test.cluster.wait("a commit on another node", PATIENCE, acked).unwrap();
    found
}

/// One app on each follower, in the middle of `BEGIN IMMEDIATE` until its node leads.
fn stand_by(scene: &Scene) -> Vec<(u64, App)> {
    scene.followers().into_iter().map(|id| (id, scene.app_with(id, &[], 60))).collect()
}

fn leader_killed(scene: &mut Scene) {
    let mut times = Vec::new();
    let mut slowest: f64 = 0.0;
    for _ in 0..5 {
        let leader = scene.leader();
        let mut app = scene.app_with(leader, &[], 2);
        scene.load(&mut app);
        scene.wait_acks(20);
        let mut others = stand_by(scene);
        let began = Instant::now();
        scene.test.cluster.kill(leader).unwrap();
        let mut numbers = Vec::new();
        for (_, other) in &mut others {
            numbers.push(scene.number());
            other.tell(&format!("write {}", numbers[numbers.len() - 1]));
        }
        let first = first_ack(scene, &numbers);
        let at = numbers.iter().position(|&n| n == first).unwrap();
        let (time, _) = others[at].1.hear(&["ack"], PATIENCE).unwrap();
        times.push(time.duration_since(began).as_secs_f64());
        // The app of the dead node was never stuck: its COMMIT has come back by now or will, and its reads
        // go on. It moves to the new leader.
        let line = app.ask("stop", &["loaded"]);
        slowest = slowest.max(app.slowest());
        assert!(app.number("SELECT count(*) FROM log") > 0, "{line}");
        let new = others[at].0;
        scene.open(&mut app, new, 15);
        scene.must_write(&mut app);
        drop(others);
        scene.restart(leader);
    }
    times.sort_by(f64::total_cmp);
    println!("failover: median {:.2} s, max {:.2} s of {times:.2?}", times[2], times[4]);
    println!("slowest verdict of an app whose node was killed: {slowest:.2} s");
    scene.check();
}

fn follower_killed(scene: &mut Scene) {
    let mut app = scene.app(scene.leader());
    scene.load(&mut app);
    let follower = scene.followers()[0];
    scene.test.cluster.kill(follower).unwrap();
    scene.wait_acks(30);
    scene.restart(follower);
    scene.wait_acks(10);
    app.ask("stop", &["loaded"]);
    scene.check();
}

fn follower_points(scene: &mut Scene) {
    for (point, pass) in
        [("apply.framed", 1), ("apply.indexed", 3), ("apply.published", 1), ("apply.framed", 3)]
    {
        let fault = format!("{point}:{pass}");
        let node = scene.followers()[0];
        scene.restart_with(node, &fault);
        // Sometimes nobody is attached to the node that dies, sometimes a reader is.
        let mut reader = (pass == 3).then(|| scene.app(node));
        let before = reader.as_mut().map(|reader| {
            reader.rows("BEGIN").unwrap();
            reader.number("SELECT count(*) FROM log")
        });
        let mut app = scene.app(scene.leader());
        for _ in 0..pass {
            scene.must_write(&mut app);
        }
        scene.dies(node, &fault);
        scene.must_write(&mut app);
        app.quit();
        scene.restart(node);
        if let (Some(reader), Some(before)) = (&mut reader, before) {
            assert_eq!(reader.number("SELECT count(*) FROM log"), before, "{fault}: its snapshot");
            reader.rows("COMMIT").unwrap();
        }
        scene.check();
    }
}

fn leader_points(scene: &mut Scene) {
    for point in ["gate.decided", "apply.indexed", "apply.published"] {
        let node = scene.followers()[0];
        scene.restart_with(node, point);
        scene.make_leader(node);
        let mut reader = scene.app(node);
        reader.number("SELECT count(*) FROM log");
        let n = scene.number();
        if point == "gate.decided" {
            // The node dies before it tells the app, and is back while the app waits.
            let mut app = scene.app(node);
            app.tell(&format!("write {n}"));
            scene.dies(node, point);
            reader.number("SELECT count(*) FROM log");
            scene.test.cluster.start_node(node).unwrap();
            let verdict = app.until(&VERDICTS, PATIENCE);
            println!("{point}: {verdict}");
            scene.wait_ready(node);
            assert!(!verdict.starts_with("refused "), "{verdict}");
            app.quit();
        } else {
            // The app dies, so that the leader has to apply by itself.
            let mut app = scene.app_with(node, &[("QUIRE_FAULT", "commit.decided")], 15);
            app.tell(&format!("write {n}"));
            assert!(was_killed(app.wait_exit(PATIENCE)));
            scene.dies(node, point);
            reader.number("SELECT count(*) FROM log");
            scene.restart(node);
        }
        scene.said().acked.insert(n);
        scene.check();
        assert!(reader.number("SELECT count(*) FROM log") > 0);
    }
}

fn restarted_in_commit(scene: &mut Scene) {
    for round in 0..3 {
        let leader = scene.leader();
        let mut reader = scene.app(leader);
        let mut app = scene.app_with(leader, &[], 2);
        scene.load(&mut app);
        scene.wait_acks(10 + round);
        scene.test.cluster.kill(leader).unwrap();
        let before = reader.number("SELECT count(*) FROM log");
        scene.test.cluster.start_node(leader).unwrap();
        app.ask("stop", &["loaded"]);
        println!("slowest verdict: {:.2} s", app.slowest());
        scene.wait_ready(leader);
        assert!(reader.number("SELECT count(*) FROM log") >= before);
        // On the same connections, once the node leads again.
        scene.make_leader(leader);
        scene.must_write(&mut app);
        scene.must_write(&mut reader);
    }
    scene.check();
}

fn leader_paused(scene: &mut Scene) {
    let leader = scene.leader();
    let mut app = scene.app_with(leader, &[], 2);
    let mut reader = scene.app(leader);
    scene.load(&mut app);
    scene.wait_acks(10);
    let mut others = stand_by(scene);
    let paused = Instant::now();
    scene.test.cluster.node(leader).unwrap().signal(Signal::SIGSTOP).unwrap();
    let mut numbers = Vec::new();
    for (_, other) in &mut others {
        numbers.push(scene.number());
        other.tell(&format!("write {}", numbers[numbers.len() - 1]));
    }
    let first = first_ack(scene, &numbers);
    let at = numbers.iter().position(|&n| n == first).unwrap();
    others[at].1.until(&["ack"], PATIENCE);
    for _ in 0..5 {
        scene.must_write(&mut others[at].1);
    }
    assert!(reader.number("SELECT count(*) FROM log") > 0);
    // The pause is the scenario.
    sleep(Duration::from_secs(5).saturating_sub(paused.elapsed()));
    scene.test.cluster.node(leader).unwrap().signal(Signal::SIGCONT).unwrap();
    scene.must_write(&mut others[at].1);
    app.ask("stop", &["loaded"]);
    println!("slowest verdict: {:.2} s", app.slowest());
    drop(others);
    scene.check();
    // Whether it leads again or not.
    scene.must_write(&mut app);
}

fn no_quorum(scene: &mut Scene) {
    let leader = scene.leader();
    let mut app = scene.app_with(leader, &[], 4);
    scene.must_write(&mut app);
    let followers = scene.followers();
    for &id in &followers {
        scene.test.cluster.kill(id).unwrap();
    }
    for _ in 0..2 {
        let verdict = scene.write(&mut app);
        assert!(!verdict.starts_with("ack "), "{verdict}");
        println!("without a quorum: {verdict}");
        assert!(app.number("SELECT count(*) FROM log") > 0);
    }
    for &id in &followers {
        scene.test.cluster.start_node(id).unwrap();
    }
    scene.check();
    scene.make_leader(leader);
    scene.must_write(&mut app);
    app.quit();
}

/// The app's question for its transaction can't be answered for want of a quorum. That must not leave the
/// node with a transaction that nobody ever hears of, and that keeps writers out for ever.
fn leader_restarts_without_quorum(scene: &mut Scene) {
    let leader = scene.leader();
    let mut app = scene.app(leader);
    let n = scene.number();
    app.ask(&format!("hold {n}"), &["held"]);
    let followers = scene.followers();
    for &id in &followers {
        scene.test.cluster.kill(id).unwrap();
    }
    app.tell("commit");
    let index = |scene: &Scene| {
        let status = scene.test.cluster.node(leader).unwrap().status().unwrap_or_default();
        let raft = &status["store"]["raft"];
        raft["last_log_index"].as_u64() > raft["commit_index"].as_u64()
    };
    let proposed = |_: &_| index(scene);
    scene.test.cluster.wait("the transaction to be proposed", PATIENCE, proposed).unwrap();
    scene.test.cluster.kill(leader).unwrap();
    scene.test.cluster.start_node(leader).unwrap();
    let verdict = app.until(&VERDICTS, PATIENCE);
    println!("the leader restarted without a quorum: {verdict}");
    assert!(!verdict.starts_with("ack "), "{verdict}");
    assert!(app.number("SELECT count(*) FROM log") > 0);
    for &id in &followers {
        scene.test.cluster.start_node(id).unwrap();
    }
    scene.leader();
    scene.test.cluster.wait_applied(DATABASE, PATIENCE).unwrap();
    scene.make_leader(leader);
    scene.must_write(&mut app);
    app.quit();
    scene.check();
}
