//! What nodes say of themselves and of each other when some stand still, or are cut off: nobody is ready without a quorum,
//! and nobody is called reachable who doesn't answer.

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use quire_node::cli::local::LocalCluster;
use quire_tests::crash::{PATIENCE, Scene, have_app};
use quire_tests::http::{Answer, get};
use quire_tests::{TestCluster, step};
use serde_json::{Value, json};

/// One request to a node.
fn ask(cluster: &LocalCluster, node: u64, path: &str) -> Answer {
    get(&cluster.node(node).unwrap().http, path)
}

/// The members that a node reaches; all others have an error.
fn reached(cluster: &LocalCluster, node: u64) -> Vec<u64> {
    let nodes = ask(cluster, node, "/nodes?ver=2&timeout=1s").json();
    let is_reached = |node: &Value| {
        assert_eq!(node["reachable"] == false, node["error"].is_string(), "{nodes}");
        node["reachable"] == true
    };
    let nodes = nodes["nodes"].as_array().unwrap().iter();
    nodes.filter(|node| is_reached(node)).map(|node| node["id"].as_str().unwrap().parse().unwrap()).collect()
}

/// Waits until a node says that it is ready, or not.
fn wait(cluster: &LocalCluster, node: u64, path: &str, is: impl Fn(&Answer) -> bool) {
    let mut last = None;
    let waited = cluster.wait(path, PATIENCE, |cluster| {
        let answer = ask(cluster, node, path);
        let done = is(&answer);
        last = Some(answer);
        done
    });
    waited.unwrap_or_else(|why| panic!("{why:#}: {last:?}"));
}

fn is_ready(answer: &Answer) -> bool {
    let is_ready = answer.status == 200;
    assert!(!is_ready || answer.body.contains("[+]leader ok\n"), "{answer:?}");
    is_ready
}

/// It has no leader, and nothing else is wrong with it.
fn lacks_leader(answer: &Answer) -> bool {
    let faults: Vec<_> = answer.body.lines().filter(|line| line.starts_with("[-]")).collect();
    answer.status == 503 && faults.len() == 1 && faults[0].starts_with("[-]leader ")
}

#[test]
fn paused_nodes() {
    let mut test = TestCluster::start(3);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let others: Vec<u64> = test.cluster.nodes.iter().map(|node| node.id).filter(|id| *id != leader).collect();
    let signal = |cluster: &LocalCluster, ids: &[u64], signal| {
        ids.iter().for_each(|id| cluster.node(*id).unwrap().signal(signal).unwrap());
    };
    let cluster = &mut test.cluster;
    for id in 1..=3 {
        wait(cluster, id, "/readyz", is_ready);
        assert_eq!(reached(cluster, id), [1, 2, 3]);
    }
    step("the leader stands alone", || {
        signal(cluster, &others, SIGSTOP);
        wait(cluster, leader, "/readyz", lacks_leader);
        // Raft has it lead nevertheless; after a while the reason is known without asking anybody.
        let why = "[-]leader the leader does not hear from a quorum\n";
        wait(cluster, leader, "/readyz", |answer| lacks_leader(answer) && answer.body.contains(why));
        assert_eq!(ask(cluster, leader, "/status?key=store.raft.state").json(), json!("Leader"));
        let without = ask(cluster, leader, "/readyz?noleader");
        assert_eq!((without.status, &*without.body), (200, "[+]node ok\n[+]member ok\n[+]store ok\n"));
        for query in ["sync&timeout=300ms", "sync&noleader&timeout=300ms"] {
            let answer = ask(cluster, leader, &format!("/readyz?{query}"));
            assert!(
                answer.status == 503 && answer.body.contains("[-]sync no leader has confirmed"),
                "{answer:?}"
            );
        }
        let answer = ask(cluster, leader, "/leader");
        assert_eq!((answer.status, answer.json()), (503, json!({ "error": "leader not found" })));
        assert_eq!(reached(cluster, leader), [leader]);
    });
    step("all are there again", || {
        signal(cluster, &others, SIGCONT);
        for id in 1..=3 {
            wait(cluster, id, "/readyz", is_ready);
            wait(cluster, id, "/readyz?sync", is_ready);
            cluster.wait("all to answer", PATIENCE, |cluster| reached(cluster, id) == [1, 2, 3]).unwrap();
        }
    });
    let leader = cluster.wait_leader(PATIENCE).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    step("a follower stands alone", || {
        signal(cluster, &[leader, others[0]], SIGSTOP);
        wait(cluster, others[1], "/readyz?timeout=300ms", lacks_leader);
        wait(cluster, others[1], "/readyz", lacks_leader);
        assert_eq!(reached(cluster, others[1]), [others[1]]);
    });
    step("the leader stands still", || {
        signal(cluster, &[others[0]], SIGCONT);
        for id in &others {
            wait(cluster, *id, "/readyz", is_ready);
        }
        cluster.wait("two to answer", PATIENCE, |cluster| reached(cluster, others[1]) == others).unwrap();
        signal(cluster, &[leader], SIGCONT);
        wait(cluster, leader, "/readyz?sync", is_ready);
    });
}

#[test]
fn nodes_that_are_cut_off() {
    if !have_app() {
        return;
    }
    let scene = Scene::start_apart(&[]);
    if !scene.can_cut() {
        return;
    }
    let cluster = &scene.test.cluster;
    let leader = scene.leader();
    let others = scene.followers();
    step("the leader is cut off", || {
        scene.cut(leader);
        wait(cluster, leader, "/readyz", lacks_leader);
        for id in &others {
            wait(cluster, *id, "/readyz", is_ready);
            assert_eq!(reached(cluster, *id), others);
        }
        assert_eq!(reached(cluster, leader), [leader]);
    });
    step("it comes back", || {
        scene.heal();
        wait(cluster, leader, "/readyz?sync", is_ready);
    });
    step("a follower is cut off", || {
        let follower = scene.followers()[0];
        scene.cut(follower);
        wait(cluster, follower, "/readyz", lacks_leader);
        scene.heal();
        wait(cluster, follower, "/readyz?sync", is_ready);
    });
}
