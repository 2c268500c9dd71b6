//! Clusters that change while apps write: nodes join and are removed, leaders step down and are stopped, addresses
//! change. What was written before and after is on all nodes that remain.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_node::cli::local::{LocalCluster, LocalNode};
use quire_tests::TestCluster;
use quire_tests::admin::{http, quire, quire_fails, quire_json};
use quire_tests::crash::{PATIENCE, Scene, have_app, was_killed};
use quire_tests::step;
use serde_json::Value;
use std::time::{Duration, Instant};

fn node(scene: &Scene, id: u64) -> &LocalNode {
    scene.test.cluster.node(id).unwrap()
}

fn raft(scene: &Scene, id: u64) -> Value {
    node(scene, id).status().unwrap_or_default()["store"]["raft"].clone()
}

/// Waits until all running nodes see exactly these voters.
fn wait_voters(cluster: &LocalCluster, voters: &[u64]) {
    let seen = |cluster: &LocalCluster| {
        let mut running = cluster.nodes.iter().filter(|node| node.is_running());
        running.all(|node| node.voters().is_some_and(|seen| seen == voters))
    };
    cluster.wait(&format!("{voters:?} to vote"), PATIENCE, seen).unwrap();
}

/// Writes some transactions on the leader.
fn write_some(scene: &Scene) {
    let mut app = scene.app(scene.leader());
    for _ in 0..5 {
        scene.must_write(&mut app);
    }
    app.quit();
}

/// Adds a node and starts it.
fn add(scene: &mut Scene, flags: &[&str]) -> u64 {
    let cluster = &mut scene.test.cluster;
    let id = cluster.add().unwrap();
    let flags = ["--log-segment-mib", "4", "--catch-up-ms", "1"].iter().chain(flags);
    cluster.node_mut(id).unwrap().flags = flags.map(|&flag| flag.to_owned()).collect();
    cluster.start_node(id).unwrap();
    id
}

#[test]
fn members_come_move_and_go() {
    if !have_app() {
        return;
    }
    // Nobody has caught up when an attempt to join gives up waiting for it.
    let mut scene = Scene::start(&["--commit-timeout-ms", "3000", "--catch-up-ms", "1"]);
    step("requests that make no sense", || bad_requests(&scene));
    step("a follower is removed", || follower_removed(&mut scene));
    step("a node joins", || joined(&mut scene));
    step("a read replica", || read_replica(&mut scene));
    step("a read replica is removed", || replica_removed(&mut scene));
    step("the lead is handed over", || handed_over(&scene));
    step("the leader is removed", || leader_removed(&mut scene));
    println!("{} transactions", scene.check());
}

#[test]
fn addresses_change() {
    if !have_app() {
        return;
    }
    let mut test = TestCluster::prepare(1);
    test.cluster.nodes[0].flags = vec!["--log-segment-mib".into(), "4".into()];
    test.cluster.start().unwrap();
    let mut scene = Scene::on(test);
    step("of a cluster of one", || moves(&mut scene, &[1]));
    // The only one that could commit the change doesn't know where the other is.
    add(&mut scene, &[]);
    wait_voters(&scene.test.cluster, &[1, 2]);
    step("of one of two", || moves(&mut scene, &[2]));
    step("of the other one", || moves(&mut scene, &[1]));
    step("of both", || moves(&mut scene, &[1, 2]));
    add(&mut scene, &[]);
    wait_voters(&scene.test.cluster, &[1, 2, 3]);
    let follower = scene.followers()[0];
    step("of a follower", || moves(&mut scene, &[follower]));
    let leader = scene.leader();
    step("of the leader", || moves(&mut scene, &[leader]));
    let followers = scene.followers();
    step("of two followers", || moves(&mut scene, &followers));
    step("of nobody", || unchanged(&mut scene));
    println!("{} transactions", scene.check());
}

fn bad_requests(scene: &Scene) {
    let address = &node(scene, scene.followers()[0]).http;
    let before = raft(scene, scene.leader());
    for (method, path, body, reason) in [
        ("DELETE", "/remove", "", "must name a node"),
        ("DELETE", "/remove", "{}", "must name a node"),
        ("DELETE", "/remove", "{\"id\":", "no JSON"),
        ("DELETE", "/remove", "[\"2\"]", "must name a node"),
        ("DELETE", "/remove", "{\"id\":\"two\"}", "no node id"),
        ("DELETE", "/remove", "{\"id\":\"0\"}", "no node id"),
        ("DELETE", "/remove", "{\"id\":\"2\",\"force\":true}", "unknown key"),
        ("DELETE", "/remove", "{\"id\":\"99\"}", "node 99 is not a member"),
        ("DELETE", "/remove?timeout=soon", "{\"id\":\"2\"}", "give a duration"),
        ("POST", "/leader", "{\"id\":\"x\"}", "no node id"),
        ("POST", "/leader", "{\"id\":\"99\"}", "node 99 is not a member"),
        ("GET", "/leader?timeout=soon", "", "give a duration"),
    ] {
        let (code, answer) = http(address, method, path, body);
        assert!(code == 400 && answer.contains(reason), "{method} {path} {body}: {code} {answer}");
    }
    assert_eq!(http(address, "POST", "/remove", "{\"id\":\"2\"}").0, 405);
    assert!(quire_fails(&["remove", "0", "--http-addr", address]).contains("0"));
    assert!(quire_fails(&["remove", "99", "--http-addr", address]).contains("node 99 is not a member"));
    assert!(
        quire_fails(&["leader", "--to", "99", "--http-addr", address]).contains("node 99 is not a member")
    );
    assert!(quire_fails(&["leader", "--to", "1", "--step-down"]).contains("cannot be used"));
    for command in ["remove", "leader", "recover"] {
        let help = quire(&[command, "--help"]);
        assert!(help.status.success() && help.stdout.len() > 200);
    }
    let leader: Value = serde_json::from_str(&http(address, "GET", "/leader?pretty", "").1).unwrap();
    assert_eq!(leader["id"], scene.leader().to_string());
    assert_eq!(
        (&leader["leader"], &leader["reachable"], &leader["voter"]),
        (&true.into(), &true.into(), &true.into())
    );
    let after = raft(scene, scene.leader());
    assert_eq!((&after["term"], &after["state"]), (&before["term"], &before["state"]), "nothing came of it");
}

/// A removed node says so, and what an app gets that writes on it says so as well.
fn assert_removed(scene: &Scene, id: u64) {
    let notices = |_: &_| node(scene, id).status().is_some_and(|s| s["store"]["removed"].is_string());
    scene.test.cluster.wait("the node to notice that it was removed", PATIENCE, notices).unwrap();
    let status = node(scene, id).status().unwrap();
    let said = status["store"]["removed"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("node {id} was removed")), "{said}");
    assert!(node(scene, id).log().contains(&said), "in its log as well");
    let (code, text) = http(&node(scene, id).http, "GET", "/readyz", "");
    assert!(code == 503 && text.contains("[-]member"), "{code} {text}");
    let (code, text) = http(&node(scene, id).http, "DELETE", "/remove", "{\"id\":\"3\"}");
    assert!(code == 400 && text.contains("was removed"), "{code} {text}");
    assert_eq!(http(&node(scene, id).http, "GET", "/leader", "").0, 503);
    let mut app = scene.app_with(id, &[], 1);
    assert!(app.number("SELECT count(*) FROM log") > 0, "what it has can be read");
    let began = Instant::now();
    let verdict = scene.write(&mut app);
    assert!(verdict.starts_with("busy ") && verdict.contains("was removed"), "{verdict}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    app.quit();
}

fn follower_removed(scene: &mut Scene) {
    let (leader, followers) = (scene.leader(), scene.followers());
    let (gone, other) = (followers[0], followers[1]);
    let mut app = scene.app(leader);
    scene.load(&mut app);
    scene.wait_acks(5);
    // Asked of a node that doesn't lead.
    let said = quire_json(&["remove", &gone.to_string(), "--http-addr", &node(scene, other).http]);
    assert_eq!(said["removed"], gone.to_string());
    let mut left = vec![leader, other];
    left.sort();
    let voters = |_: &_| [leader, other].iter().all(|&id| node(scene, id).voters().as_ref() == Some(&left));
    scene.test.cluster.wait("two voters", PATIENCE, voters).unwrap();
    scene.wait_acks(5);
    assert_removed(scene, gone);
    let (term, noticed) = (raft(scene, leader)["term"].clone(), raft(scene, gone)["term"].clone());
    scene.wait_acks(5);
    app.ask("stop", &["loaded"]);
    app.quit();
    assert_eq!(raft(scene, gone)["term"], noticed, "it doesn't stand for election");
    assert_eq!(raft(scene, leader)["term"], term, "and disturbs nobody");
    // Again, when it is started again.
    scene.test.cluster.kill(gone).unwrap();
    scene.test.cluster.start_node(gone).unwrap();
    scene.wait_ready(gone);
    assert_removed(scene, gone);
    come_back_empty(scene, gone);
    scene.test.cluster.forget(gone).unwrap();
    write_some(scene);
    scene.check();
}

/// A removed member that comes back with an empty directory is refused by any leader, whenever it was started.
fn come_back_empty(scene: &mut Scene, gone: u64) {
    scene.test.cluster.kill(gone).unwrap();
    let dir = node(scene, gone).dir.clone();
    if gone == 1 {
        let join = ["--join".to_owned(), node(scene, scene.leader()).raft.clone()];
        scene.test.cluster.node_mut(gone).unwrap().flags.extend(join);
    }
    for round in 0..2 {
        if round == 1 {
            let leader = scene.leader();
            scene.test.cluster.stop(leader).unwrap();
            scene.restart(leader);
        }
        std::fs::remove_dir_all(&dir).unwrap();
        let said =
            |log: &str| log.matches("was removed from this cluster, and ids are not used again").count();
        let before = said(&node(scene, gone).log());
        scene.test.cluster.start_node(gone).unwrap();
        let status = scene.test.cluster.wait_exit(gone, PATIENCE).unwrap();
        assert!(!status.success() && !was_killed(status), "{round}: {status}");
        let log = node(scene, gone).log();
        assert!(said(&log) > before, "{round}\n{log}");
    }
}

fn joined(scene: &mut Scene) {
    let id = add(scene, &[]);
    let mut voters: Vec<u64> = scene.test.cluster.nodes.iter().map(|node| node.id).collect();
    voters.sort();
    assert_eq!(voters.last(), Some(&id));
    wait_voters(&scene.test.cluster, &voters);
    let log = node(scene, id).log();
    assert!(log.contains("not joined yet: node"), "it took longer than one attempt waits\n{log}");
    write_some(scene);
    scene.check();
}

fn read_replica(scene: &mut Scene) {
    let before = node(scene, scene.leader()).voters().unwrap();
    let id = add(scene, &["--non-voter"]);
    let member = |_: &_| {
        let nodes = node(scene, id).status().unwrap_or_default()["store"]["nodes"].clone();
        nodes.as_array().is_some_and(|all| all.iter().any(|n| n["id"] == id.to_string().as_str()))
    };
    scene.test.cluster.wait("the replica to be a member", PATIENCE, member).unwrap();
    for round in 0..2 {
        write_some(scene);
        scene.check();
        let mut reader = scene.app(id);
        assert!(reader.number("SELECT count(*) FROM log") > 0);
        reader.quit();
        assert_eq!(node(scene, id).voters().unwrap(), before, "round {round}");
        let address = node(scene, id).http.clone();
        let why = quire_fails(&["leader", "--to", &id.to_string(), "--http-addr", &address]);
        assert!(why.contains("does not vote"), "{why}");
        if round == 0 {
            scene.test.cluster.kill(id).unwrap();
            scene.restart(id);
        }
    }
    // It may be given a vote, by being started without the flag.
    scene.test.cluster.stop(id).unwrap();
    scene.test.cluster.node_mut(id).unwrap().flags.retain(|flag| flag != "--non-voter");
    scene.restart(id);
    wait_voters(&scene.test.cluster, &[before, vec![id]].concat());
    // A leader that has a majority without it removes one that is down.
    scene.test.cluster.kill(id).unwrap();
    scene.leader();
    let leader = scene.leader();
    quire_json(&["remove", &id.to_string(), "--http-addr", &node(scene, leader).http]);
    scene.test.cluster.forget(id).unwrap();
    write_some(scene);
    scene.check();
}

fn replica_removed(scene: &mut Scene) {
    let voters = node(scene, scene.leader()).voters().unwrap();
    let id = add(scene, &["--non-voter"]);
    let nodes = |node: &LocalNode| node.status().unwrap_or_default()["store"]["nodes"].clone();
    let is_member = |node: &LocalNode| {
        nodes(node).as_array().is_some_and(|all| all.iter().any(|n| n["id"] == id.to_string().as_str()))
    };
    let member = |cluster: &LocalCluster| cluster.nodes.iter().all(is_member);
    scene.test.cluster.wait("the replica to be a member", PATIENCE, member).unwrap();
    scene.wait_ready(id);
    scene.test.cluster.wait_applied("main", PATIENCE).unwrap();
    quire_json(&["remove", &id.to_string(), "--http-addr", &node(scene, id).http]);
    assert_removed(scene, id);
    scene.test.cluster.forget(id).unwrap();
    assert!(!is_member(node(scene, scene.leader())));
    assert_eq!(node(scene, scene.leader()).voters().unwrap(), voters);
    write_some(scene);
    scene.check();
}

fn handed_over(scene: &Scene) {
    for round in 0..3 {
        let leader = scene.leader();
        let term = raft(scene, leader)["term"].as_u64().unwrap();
        let (to, asked) = (scene.followers()[0], scene.followers()[1]);
        let asked = node(scene, if round == 0 { leader } else { asked }).http.clone();
        let mut app = scene.app_with(leader, &[], 1);
        scene.load(&mut app);
        scene.wait_acks(3);
        let new = match round {
            0 => quire_json(&["leader", "--to", &to.to_string(), "--http-addr", &asked])["id"].clone(),
            1 => {
                let (code, body) = http(&asked, "POST", "/leader?wait", &format!("{{\"id\":\"{to}\"}}"));
                assert_eq!(code, 200, "{body}");
                to.to_string().into()
            }
            _ => quire_json(&["leader", "--step-down", "--http-addr", &asked])["id"].clone(),
        };
        if round < 2 {
            assert_eq!(new, to.to_string());
        }
        assert_ne!(new, leader.to_string());
        assert_eq!(scene.leader().to_string(), new.as_str().unwrap());
        let now = raft(scene, scene.leader())["term"].as_u64().unwrap();
        assert!(now > term, "{term} {now}");
        app.ask("stop", &["loaded"]);
        app.quit();
        write_some(scene);
    }
    scene.check();
}

fn leader_removed(scene: &mut Scene) {
    let leader = scene.leader();
    let mut left = node(scene, leader).voters().unwrap();
    left.retain(|id| *id != leader);
    // Asked of itself: it goes on to have the request served when it leads no more.
    quire_json(&["remove", &leader.to_string(), "--http-addr", &node(scene, leader).http]);
    let seen = |_: &_| left.iter().all(|&id| node(scene, id).voters().as_ref() == Some(&left));
    scene.test.cluster.wait("the others to vote alone", PATIENCE, seen).unwrap();
    assert_removed(scene, leader);
    scene.test.cluster.forget(leader).unwrap();
    write_some(scene);
    scene.check();
    // Down to two, and to one, which can't be removed.
    while left.len() > 1 {
        let leader = scene.leader();
        let gone = *left.iter().find(|id| **id != leader).unwrap();
        quire_json(&["remove", &gone.to_string(), "--http-addr", &node(scene, leader).http]);
        scene.test.cluster.forget(gone).unwrap();
        left.retain(|id| *id != gone);
        write_some(scene);
    }
    let last = left[0].to_string();
    let why = quire_fails(&["remove", &last, "--http-addr", &node(scene, left[0]).http]);
    assert!(why.contains("only voter"), "{why}");
    let why = quire_fails(&["leader", "--step-down", "--http-addr", &node(scene, left[0]).http]);
    assert!(why.contains("no other voter"), "{why}");
    write_some(scene);
    scene.check();
}

/// Waits until the membership has the addresses that a node listens on, as all running nodes see it.
fn wait_addresses(scene: &Scene, id: u64) {
    let (http, raft) = (node(scene, id).http.clone(), node(scene, id).raft.clone());
    let right = |cluster: &LocalCluster| {
        cluster.nodes.iter().filter(|node| node.is_running()).all(|node| {
            let nodes = node.client().get("/nodes?nonvoters&ver=2").unwrap_or_default();
            nodes["nodes"].as_array().is_some_and(|all| {
                all.iter().any(|n| {
                    n["id"] == id.to_string().as_str()
                        && n["addr"] == raft.as_str()
                        && n["api_addr"] == format!("http://{http}")
                })
            })
        })
    };
    scene.test.cluster.wait(&format!("node {id} to be known at {raft}, {http}"), PATIENCE, right).unwrap();
}

/// Moves nodes and checks that the cluster follows.
fn moves(scene: &mut Scene, ids: &[u64]) {
    let voters = node(scene, scene.leader()).voters().unwrap();
    for &id in ids {
        scene.test.cluster.stop(id).unwrap();
    }
    for &id in ids {
        scene.test.cluster.readdress(id).unwrap();
        scene.test.cluster.start_node(id).unwrap();
    }
    for &id in ids {
        scene.wait_ready(id);
        wait_addresses(scene, id);
    }
    assert_eq!(node(scene, scene.leader()).voters().unwrap(), voters, "nobody lost its vote");
    write_some(scene);
    scene.check();
}

/// Who is where he was says nothing.
fn unchanged(scene: &mut Scene) {
    let before = raft(scene, scene.leader());
    let same = scene.followers()[0];
    scene.test.cluster.kill(same).unwrap();
    scene.restart(same);
    let after = raft(scene, scene.leader());
    // A machine that is so busy that the leader changed proves nothing here.
    if before["term"] == after["term"] {
        assert_eq!(before["last_log_index"], after["last_log_index"], "nothing changed, nothing said");
    }
}

/// With election timeouts that no test waits for, a new leader can only come from the old one's handing over.
#[test]
fn a_leader_that_is_stopped_hands_over() {
    if !have_app() {
        return;
    }
    const TIMEOUT: Duration = Duration::from_secs(60);
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        let ms = TIMEOUT.as_millis().to_string();
        let flags = ["--heartbeat-ms", "200", "--election-timeout-ms", &ms, "--log-segment-mib", "4"];
        node.flags = flags.map(String::from).to_vec();
    }
    test.cluster.start().unwrap();
    let mut scene = Scene::on(test);
    for _ in 0..2 {
        let leader = scene.leader();
        let term = raft(&scene, leader)["term"].as_u64().unwrap();
        write_some(&scene);
        let began = Instant::now();
        assert!(scene.test.cluster.stop(leader).unwrap().success());
        let new = scene.leader();
        assert_ne!(new, leader);
        assert_eq!(raft(&scene, new)["term"], term + 1, "one transfer");
        write_some(&scene);
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
        println!("stopped, and written elsewhere after {:.2} s", began.elapsed().as_secs_f64());
        scene.restart(leader);
        scene.check();
    }
}

/// Three nodes that are started at once form one cluster, also if one of them dies meanwhile.
#[test]
fn three_nodes_start_a_cluster_together() {
    if !have_app() {
        return;
    }
    for (round, order) in [[1, 2, 3], [3, 2, 1], [2, 3, 1]].into_iter().enumerate() {
        let mut test = TestCluster::prepare(3);
        let all: Vec<_> = test.cluster.nodes.iter().map(|node| node.raft.clone()).collect();
        let flags = ["--bootstrap-expect", "3", "--join", &all.join(","), "--log-segment-mib", "1"];
        for node in &mut test.cluster.nodes {
            node.flags = flags.map(String::from).to_vec();
        }
        for id in order {
            test.cluster.start_node(id).unwrap();
        }
        // The one that starts the cluster, at different moments of that; and one of the others.
        let victim = [1, 1, 3][round];
        let moment = |cluster: &LocalCluster| match round {
            0 => cluster.node(1).unwrap().log().contains("raft started"),
            _ => cluster.node(1).unwrap().log().contains("starting a cluster"),
        };
        test.cluster.wait("the moment to kill", PATIENCE, moment).unwrap();
        test.cluster.kill(victim).unwrap();
        test.cluster.start_node(victim).unwrap();
        wait_voters(&test.cluster, &[1, 2, 3]);
        let scene = Scene::on(test);
        let ids: Vec<_> =
            (1..=3).map(|id| node(&scene, id).status().unwrap()["store"]["cluster_id"].clone()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
        write_some(&scene);
        scene.check();
    }
}
