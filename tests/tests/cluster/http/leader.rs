//! A leader that ends with requests in flight: what a living node says of each is true, and none is left open.

use quire_node::cli::local::LocalCluster;
use quire_tests::TestCluster;
use quire_tests::crash::{PATIENCE, Scene, have_app, was_killed};
use quire_tests::http::{Answer, ok, post, request};
use quire_tests::step;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

const WRITERS: u64 = 16;
/// Requests of each writer after the leader's end.
const AFTER: u32 = 20;

#[test]
fn leaders_end_with_requests_in_flight() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::on(TestCluster::start(3));
    step("it is killed", || {
        let leader = scene.leader();
        write_through(&mut scene, "killed", |cluster| cluster.kill(leader).unwrap());
        scene.restart(leader);
    });
    // Before the question is put; before the proposal, consent given; when it is committed and nobody knows it.
    for (table, fault) in
        [("began", "commit.begin:40"), ("sent", "commit.sent:40"), ("decided", "commit.decided:40")]
    {
        step(&format!("it dies at {fault}"), || {
            let leader = scene.leader();
            scene.restart_with(leader, fault);
            scene.make_leader(leader);
            write_through(&mut scene, table, |cluster| {
                assert!(was_killed(cluster.wait_exit(leader, PATIENCE).unwrap()));
            });
            scene.restart(leader);
        });
    }
    step("it stands still, and comes back", || {
        let leader = scene.leader();
        write_through(&mut scene, "stopped", |cluster| {
            cluster.node(leader).unwrap().signal(SIGSTOP).unwrap();
            cluster.wait("another leader", PATIENCE, |cluster| leads_another(cluster, leader)).unwrap();
            cluster.node(leader).unwrap().signal(SIGCONT).unwrap();
        });
        scene.wait_ready(leader);
    });
    step("it hands over", || {
        let address = scene.test.cluster.node(scene.leader()).unwrap().http.clone();
        write_through(&mut scene, "handed", |_| drop(ok(&address, "/leader?wait", "")));
    });
}

fn leads_another(cluster: &LocalCluster, old: u64) -> bool {
    let others = cluster.nodes.iter().filter(|node| node.id != old);
    others.filter_map(|node| node.status()).any(|status| status["store"]["raft"]["state"] == "Leader")
}

/// Writers at the nodes that don't lead, while the leader ends.
fn write_through(scene: &mut Scene, table: &str, end: impl FnOnce(&mut LocalCluster)) {
    let leader = scene.leader();
    let cluster = &mut scene.test.cluster;
    let others = cluster.nodes.iter().filter(|node| node.id != leader);
    let addresses: Vec<_> = others.map(|node| node.http.clone()).collect();
    let create = format!("CREATE TABLE {table}(n INTEGER PRIMARY KEY, id INTEGER)");
    ok(&addresses[0], "/db/execute", &json!([create]).to_string());
    let stop = AtomicBool::new(false);
    let mut yes: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut perhaps, mut no) = (Vec::new(), BTreeSet::new());
    thread::scope(|scope| {
        let (stop, addresses) = (&stop, &addresses);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(&addresses[writer as usize % 2], table, writer, stop)))
            .collect();
        let written = || {
            let body = json!([format!("SELECT count(*) FROM {table}")]).to_string();
            let value = post(&addresses[0], "/db/query?level=none", &body).json();
            value["results"][0]["values"][0][0].as_u64().unwrap_or(0)
        };
        while written() < 100 {}
        end(cluster);
        stop.store(true, SeqCst);
        for (id, fate) in writers.into_iter().flat_map(|writer| writer.join().unwrap()) {
            match fate {
                Fate::Done(n) => assert_eq!(yes.insert(id, n), None),
                Fate::NotDone => drop(no.insert(id)),
                Fate::Perhaps(why) => perhaps.push((id, why)),
            }
        }
    });
    let query = json!([format!("SELECT id, n FROM {table}")]).to_string();
    let value = post(&addresses[0], "/db/query?level=strong", &query).json();
    let rows = value["results"][0]["values"].as_array().unwrap();
    let mut found: BTreeMap<u64, u64> = BTreeMap::new();
    for row in rows {
        let (id, n) = (row[0].as_u64().unwrap(), row[1].as_u64().unwrap());
        assert_eq!(found.insert(id, n), None, "{id} is there twice");
    }
    println!("{} done, {} perhaps, {} not done", yes.len(), perhaps.len(), no.len());
    for (id, n) in &yes {
        assert_eq!(found.get(id), Some(n), "what was said of {id}, and what is there");
    }
    let denied: Vec<_> = no.iter().filter(|id| found.contains_key(id)).collect();
    assert!(denied.is_empty(), "denied, but there: {denied:?}");
    assert!(perhaps.is_empty(), "left open: {perhaps:?}");
    assert!(
        yes.len() as u64 >= WRITERS * u64::from(AFTER) / 2,
        "most go on with the new leader: {}",
        yes.len()
    );
}

fn write(address: &str, table: &str, writer: u64, stop: &AtomicBool) -> Vec<(u64, Fate)> {
    let mut fates = Vec::new();
    let mut left = AFTER;
    while left > 0 {
        left -= u32::from(stop.load(SeqCst));
        let id = writer * 1_000_000 + fates.len() as u64;
        let body = json!([[format!("INSERT INTO {table}(id) VALUES(?)"), id]]).to_string();
        let answer = request(address, "POST", "/db/execute?raft_index", &[], body.as_bytes()).unwrap();
        fates.push((id, fate(&answer)));
    }
    fates
}

/// What is said of a write.
enum Fate {
    /// It is done, and has this row id.
    Done(u64),
    NotDone,
    Perhaps(String),
}

fn fate(answer: &Answer) -> Fate {
    if answer.status != 200 {
        assert!(matches!(answer.status, 408 | 503), "{answer:?}");
        return Fate::NotDone;
    }
    let value: Value = answer.json();
    if let Some(error) = value["error"].as_str() {
        return Fate::Perhaps(error.to_owned());
    }
    assert_eq!(value["results"][0]["rows_affected"], 1, "{answer:?}");
    assert!(value["raft_index"].as_u64().is_some_and(|index| index > 0), "{answer:?}");
    Fate::Done(value["results"][0]["last_insert_id"].as_u64().unwrap())
}
