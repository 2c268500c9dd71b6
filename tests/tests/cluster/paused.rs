//! An app that stands still in a transaction on one node while others write more than that node keeps for it: its memory
//! and its log stay bounded, its other databases go on, it says what is wrong, and gets the state when the app goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_tests::crash::{App, DATABASE, PATIENCE, Scene, have_app};
use quire_tests::http::get;
use serde_json::Value;

/// What `/status` says of the database on a node.
fn status(scene: &Scene, node: u64) -> Value {
    let status = scene.test.cluster.node(node).unwrap().status().unwrap_or_default();
    let databases = status["store"]["databases"].as_array().cloned().unwrap_or_default();
    databases.into_iter().find(|db| db["name"] == DATABASE).unwrap_or_default()
}

fn says(value: &Value, what: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(what))
}

fn write_mib(app: &mut App, mib: usize) {
    for _ in 0..4 * mib {
        app.rows("INSERT INTO big VALUES (randomblob(262144))").unwrap();
        app.rows("DELETE FROM big WHERE rowid % 8 <> 0").unwrap();
    }
}

#[test]
fn an_app_that_stands_still_costs_its_node_a_bounded_lag() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&[
        "--queue-mib",
        "1",
        "--lease-timeout-ms",
        "1000",
        "--checkpoint-mib",
        "1",
        "--log-retain-mib",
        "0",
        "--heartbeat-ms",
        "150",
        "--election-timeout-ms",
        "3000",
    ]);
    let leader = scene.leader();
    let node = scene.followers()[0];
    let mut writer = scene.app(leader);
    writer.rows("CREATE TABLE big(body BLOB)").unwrap();
    let mut asleep = scene.app(node);
    let held = scene.number();
    asleep.ask(&format!("hold {held}"), &["held"]);
    asleep.signal(Signal::SIGSTOP);

    // Its copy lags, and says why; what is written is kept for it.
    scene.must_write(&mut writer);
    let lags = |_: &_| says(&status(&scene, node)["lagging"], "has stood still");
    scene.test.cluster.wait("the node to say that it lags", PATIENCE, lags).unwrap();
    assert_eq!(status(&scene, node)["fenced"], Value::Null);

    // More than it keeps.
    write_mib(&mut writer, 3);
    let fenced = |_: &_| says(&status(&scene, node)["fenced"], "stands still");
    scene.test.cluster.wait("the node to give up", PATIENCE, fenced).unwrap();
    let log_bytes = || {
        let answer = get(&scene.test.cluster.node(node).unwrap().http, "/status?key=store.log_bytes");
        answer.json().as_u64().unwrap()
    };
    // Neither its other databases nor its log wait for the app.
    let other = scene.test.cluster.node(node).unwrap().database("other");
    let mut beside = scene.idle_app();
    scene.open_file(&mut beside, &other, 15);
    beside.rows("CREATE TABLE t(a)").unwrap();
    write_mib(&mut writer, 24);
    beside.rows("INSERT INTO t VALUES (1)").unwrap();
    let purged = |_: &_| log_bytes() < 16 << 20;
    let waited = scene.test.cluster.wait("the log to be purged", PATIENCE * 2, purged);
    waited.unwrap_or_else(|error| panic!("{error:#}: {} bytes", log_bytes()));
    assert!(status(&scene, node)["queued"].as_u64().unwrap() < 100, "{}", status(&scene, node));
    beside.quit();

    // A node that is started again knows what it lacks.
    scene.test.cluster.kill(node).unwrap();
    scene.restart(node);
    let fenced = |_: &_| says(&status(&scene, node)["fenced"], "stood still");
    scene.test.cluster.wait("the restarted node to know", PATIENCE, fenced).unwrap();

    asleep.signal(Signal::SIGCONT);
    // Its connection is gone, and with it the lease. That may show only when it has sent the transaction: then the node,
    // which lacks the state, can't say what came of it.
    let verdict = asleep.ask("commit", &["ack", "refused", "unknown"]);
    let is_none = ["refused", "unknown"].iter().any(|what| verdict.starts_with(&format!("{what} {held} ")));
    assert!(is_none, "{verdict}");
    let healed = |_: &_| {
        let status = status(&scene, node);
        status["name"] == DATABASE && status["fenced"].is_null() && status["lagging"].is_null()
    };
    scene.test.cluster.wait("the state from another node", PATIENCE, healed).unwrap();
    scene.must_write(&mut asleep);
    scene.must_write(&mut writer);
    scene.check();
    let gone = |_: &_| !scene.test.cluster.node(node).unwrap().dir.join("db/main.db-behind").exists();
    scene.test.cluster.wait("nothing to be missing any more", PATIENCE, gone).unwrap();
    [asleep, writer].into_iter().for_each(App::quit);
}
