//! Apps that die, pause, fork or leave in the middle of a transaction. The node completes what the cluster
//! has committed, undoes nothing that it hasn't, and lets the next writer in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quire_tests::crash::{App, PATIENCE, Rng, Scene, have_app, was_killed};
use quire_tests::step;
use std::time::Duration;

/// The app's fault points in the order of a commit, and whether the transaction has committed by then; an
/// app that is killed right after sending it can't know.
const POINTS: [(&str, Option<bool>); 6] = [
    ("commit.begin", Some(false)),
    ("commit.sent", None),
    ("commit.decided", Some(true)),
    ("commit.framed", Some(true)),
    ("release.published", Some(true)),
    ("release.unlocked", Some(true)),
];

#[test]
fn apps_that_die_or_pause() {
    if !have_app() {
        return;
    }
    let scene = Scene::start(&[]);
    let mut watcher = scene.app(scene.leader());
    step("each fault point", || fault_points(&scene, &mut watcher));
    step("random kills", || random_kills(&scene, &mut watcher));
    step("paused in a transaction", || paused(&scene, &mut watcher));
    step("paused, then killed", || paused_then_killed(&scene, &mut watcher));
    step("forks", || forks(&scene, &mut watcher));
    step("a child outlives it", || outlived(&scene, &mut watcher));
    step("closes in a transaction", || closes(&scene, &mut watcher));
    watcher.quit();
}

/// Another app that was there all along sees a consistent state, and writes on at once.
fn goes_on(scene: &Scene, other: &mut App) {
    // In one statement: the node may complete what the dead app has left at any moment.
    let whole = other.number("SELECT (SELECT count(*) FROM log) = 4 * n FROM total");
    assert_eq!(whole, 1, "a transaction that isn't whole is visible");
    scene.must_write(other);
}

fn fault_points(scene: &Scene, watcher: &mut App) {
    for (point, committed) in POINTS {
        for pass in [1, 3] {
            let fault = format!("{point}:{pass}");
            let mut app = scene.app_with(scene.leader(), &[("QUIRE_FAULT", &fault)], 15);
            for _ in 1..pass {
                scene.must_write(&mut app);
            }
            let n = scene.number();
            app.tell(&format!("write {n}"));
            assert!(was_killed(app.wait_exit(PATIENCE)), "{fault}");
            {
                let mut said = scene.said();
                assert!(!said.acked.contains(&n), "{fault}: said so after its death");
                match committed {
                    Some(true) => said.acked.insert(n),
                    Some(false) => said.refused.insert(n),
                    None => false,
                };
            }
            goes_on(scene, watcher);
            let mut next = scene.app(scene.leader());
            goes_on(scene, &mut next);
            next.quit();
        }
        scene.check();
    }
}

fn random_kills(scene: &Scene, watcher: &mut App) {
    let mut rng = Rng::from_env();
    for round in 0..30 {
        let mut app = scene.app(scene.leader());
        scene.load(&mut app);
        // The time of the kill is what is random here; it waits for nothing.
        std::thread::sleep(Duration::from_millis(rng.below(120)));
        app.kill();
        if round % 5 == 0 {
            goes_on(scene, watcher);
        }
    }
    goes_on(scene, watcher);
    scene.check();
}

fn paused(scene: &Scene, watcher: &mut App) {
    let mut app = scene.app(scene.leader());
    let held = scene.number();
    app.ask(&format!("hold {held}"), &["held"]);
    app.signal(Signal::SIGSTOP);
    // Others wait in vain for this database, and for this one only.
    let mut hasty = scene.app_with(scene.leader(), &[], 1);
    let verdict = scene.write(&mut hasty);
    assert!(verdict.starts_with("busy "), "{verdict}");
    watcher.number("SELECT count(*) FROM log");
    let other = scene.test.cluster.node(scene.leader()).unwrap().database("other");
    scene.open_file(&mut hasty, &other, 15);
    for statement in
        ["CREATE TABLE IF NOT EXISTS t(a)", "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"]
    {
        hasty.rows(statement).unwrap();
    }
    hasty.quit();
    app.signal(Signal::SIGCONT);
    let verdict = app.ask("commit", &["ack", "busy", "refused", "unknown"]);
    assert!(verdict.starts_with("ack "), "{verdict}");
    goes_on(scene, watcher);
    app.quit();
}

fn paused_then_killed(scene: &Scene, watcher: &mut App) {
    let mut app = scene.app(scene.leader());
    let held = scene.number();
    app.ask(&format!("hold {held}"), &["held"]);
    app.signal(Signal::SIGSTOP);
    app.kill();
    scene.said().refused.insert(held);
    goes_on(scene, watcher);
    scene.check();
}

fn forks(scene: &Scene, watcher: &mut App) {
    let mut app = scene.app(scene.leader());
    scene.must_write(&mut app);
    app.ask("fork", &["childdone"]);
    scene.must_write(&mut app);
    // The child closes a connection in the middle of a transaction that is the parent's.
    let held = scene.number();
    app.ask(&format!("hold {held}"), &["held"]);
    app.ask("fork", &["childdone"]);
    let verdict = app.ask("commit", &["ack", "busy", "refused", "unknown"]);
    assert!(verdict.starts_with("ack "), "{verdict}");
    scene.must_write(&mut app);
    goes_on(scene, watcher);
    app.quit();
    scene.check();
}

/// A child that was forked in the middle of a transaction keeps nothing of it, whether its parent commits or dies.
fn outlived(scene: &Scene, watcher: &mut App) {
    for commits in [true, false] {
        let mut app = scene.app(scene.leader());
        scene.must_write(&mut app);
        let held = scene.number();
        app.ask(&format!("hold {held}"), &["held"]);
        let child = app.ask("beget", &["child"]);
        let child = Pid::from_raw(child.split(' ').nth(1).unwrap().parse().unwrap());
        if commits {
            let verdict = app.ask("commit", &["ack", "busy", "refused", "unknown"]);
            assert!(verdict.starts_with("ack "), "{verdict}");
            app.ask(&format!("hold {}", scene.number()), &["held"]);
        } else {
            scene.said().refused.insert(held);
        }
        app.kill();
        kill(child, None).expect("the child is alive");
        goes_on(scene, watcher);
        goes_on(scene, watcher);
        kill(child, Signal::SIGKILL).unwrap();
    }
    scene.check();
}

fn closes(scene: &Scene, watcher: &mut App) {
    let mut app = scene.app(scene.leader());
    let held = scene.number();
    app.ask(&format!("hold {held}"), &["held"]);
    app.quit();
    scene.said().refused.insert(held);
    goes_on(scene, watcher);
    let transactions = scene.check();
    println!("{transactions} transactions");
}
