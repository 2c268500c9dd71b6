//! Members that move, a lead that is handed over, and the recovery of a cluster without a quorum.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use quire_raft::recover::{RecoverError, Recovery};
use quire_raft::*;

/// Stops a node and starts it on another port.
async fn move_away(node: &Node) -> Node {
    node.raft.shutdown().await;
    let moved = start_with(config(node.id, &node.dir, free()), Arc::default()).await.unwrap();
    assert_ne!(moved.addr, node.addr);
    moved
}

/// openraft keeps its streams to a member whose address changes. They have to reach it all the same, and it has to
/// stay a voter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_moved_is_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(tmp.path()).await;
    propose(&rafts(&nodes), Bytes::from_static(b"before")).await;
    let l = leader(&nodes).await;
    let f = (l + 1) % 3;
    for _ in 0..2 {
        nodes[f] = move_away(&nodes[f]).await;
        nodes[l].raft.add_learner(nodes[f].id, nodes[f].peer(), LONG).await.unwrap();
        let now = nodes[l].raft.status();
        assert_eq!(now.peers[&nodes[f].id], nodes[f].peer());
        assert_eq!(now.voters.len(), 3, "still a voter: {now:?}");
        let last = propose(&rafts(&nodes), Bytes::from_static(b"after")).await.index;
        converge(&nodes, last).await;
        assert_eq!(leader(&nodes).await, l, "nobody else had to lead for it");
    }
    for n in nodes {
        n.raft.shutdown().await;
    }
}

/// With two voters nothing can be committed, not even the new address, before the leader reaches the one that moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quorum_depends_on_a_voter_that_moved() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for id in 1..=2 {
        nodes.push(Node::start(id, tmp.path()).await);
    }
    nodes[0].raft.initialize(nodes.iter().map(|n| (n.id, n.peer())).collect()).await.unwrap();
    let l = leader(&nodes).await;
    let f = 1 - l;
    // So that it can't be elected itself, which would do as well.
    nodes[f].raft.shutdown().await;
    let moved = start_with(config(nodes[f].id, &nodes[f].dir, free()), Arc::default()).await.unwrap();
    moved.raft.stand_for_election(false);
    nodes[f] = moved;
    let (id, peer) = (nodes[f].id, nodes[f].peer());
    nodes[l].raft.peer_moved(id, &peer.raft_addr);
    // As the member does that moved: again, for as long as there is no quorum. (That the membership can't be changed
    // in a leader's first moments is no refusal either.)
    let deadline = std::time::Instant::now() + LONG;
    while let Err(e) = nodes[l].raft.add_learner(id, peer.clone(), LONG).await {
        assert!(matches!(e, RaftError::NoQuorum(_) | RaftError::TimedOut(_)), "{e}");
        assert!(std::time::Instant::now() < deadline, "{e}");
    }
    let last = propose(&rafts(&nodes), Bytes::from_static(b"after")).await.index;
    converge(&nodes, last).await;
    assert_eq!(nodes[f].raft.status().peers[&id], peer);
    assert_eq!(nodes[l].raft.status().voters.len(), 2);
    for n in nodes {
        n.raft.shutdown().await;
    }
}

/// A leader that has begun to hand over accepts no proposals, ever: it must not begin with a voter that is gone,
/// and must not be stuck when one goes in that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handing_over_to_nobody() {
    let tmp = tempfile::tempdir().unwrap();
    let nodes = cluster(tmp.path()).await;
    let l = leader(&nodes).await;
    let (gone, other) = ((l + 1) % 3, (l + 2) % 3);
    assert!(matches!(nodes[l].raft.hand_over(Some(9)).await, Err(RaftError::Refused(_))));
    assert!(matches!(nodes[gone].raft.hand_over(None).await, Err(RaftError::NotLeader { .. })));
    until("both answer", || [gone, other].iter().all(|&n| nodes[l].raft.answers(nodes[n].id))).await;

    // It answered a moment ago, so this begins, and fails. (Rarely it is seen in time, or takes over first.)
    let (_, handed) =
        tokio::join!(nodes[gone].raft.shutdown(), nodes[l].raft.hand_over(Some(nodes[gone].id)));
    println!("{handed:?}");
    let (l, other) = match handed {
        Err(RaftError::Refused(_)) => (other, l),
        _ => (l, other),
    };
    until("one of the two leads", || {
        nodes[other].raft.status().state == ServerState::Leader
            && nodes[l].raft.status().state == ServerState::Follower
            && nodes[l].raft.status().leader == Some(nodes[other].id)
    })
    .await;
    let two = [nodes[l].raft.clone(), nodes[other].raft.clone()];
    propose(&two, Bytes::from_static(b"goes on")).await;

    // Once it is known not to answer, nothing begins.
    until("it is missed", || !nodes[other].raft.answers(nodes[gone].id)).await;
    let refused = || async { nodes[other].raft.hand_over(Some(nodes[gone].id)).await };
    let term = nodes[other].raft.status().term;
    assert!(matches!(refused().await, Err(RaftError::Refused(_))));
    propose(&two, Bytes::from_static(b"still leads")).await;
    assert_eq!(nodes[other].raft.status().term, term);
    until("the other one answers", || nodes[other].raft.successor() == Some(nodes[l].id)).await;
    assert_eq!(nodes[other].raft.hand_over(None).await.unwrap(), nodes[l].id);
    propose(&two, Bytes::from_static(b"and on")).await;
    for n in [l, other] {
        nodes[n].raft.shutdown().await;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

async fn open(node: NodeId, dir: &Path) -> Result<Recovery, RecoverError> {
    let cluster = ClusterKey::from_bytes(KEY).cluster_id();
    Recovery::open(dir, cluster, node, &AppliedState::default()).await
}

fn refused(result: Result<Recovery, RecoverError>) -> String {
    match result {
        Err(RecoverError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_recovered_from_one_survivor() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(tmp.path()).await;
    let mut last = 0;
    for i in 0..20u8 {
        last = propose(&rafts(&nodes), vec![i; 1000].into()).await.index;
    }
    converge(&nodes, last).await;
    let running = open(1, &nodes[0].dir).await;
    assert!(
        matches!(running, Err(RecoverError::Start(StartError::Log(LogError::Locked { .. })))),
        "{running:?}"
    );
    for n in &nodes {
        n.raft.shutdown().await;
    }
    let nothing = tmp.path().join("nothing");
    refused(open(1, &nothing).await);
    assert!(!nothing.exists(), "looking makes nothing");
    assert!(matches!(open(2, &nodes[0].dir).await, Err(RecoverError::Start(_))), "another node's log");

    let recovery = open(1, &nodes[0].dir).await.unwrap();
    let plan = recovery.plan().clone();
    assert_eq!(plan.given_up().map(|(id, _)| id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(plan.voters.len(), 3);
    assert!(
        plan.last.index >= last && plan.committed >= Some(last) && plan.term > plan.last.term,
        "{plan:?}"
    );
    recovery.cancel().await;
    let before = tmp.path().join("before");
    copy(&nodes[0].dir, &before);
    let at = open(1, &nodes[0].dir).await.unwrap().run().await.unwrap();
    assert_eq!(at, LogPosition { term: plan.term, leader: 1, index: plan.last.index + 1 });
    let why = refused(open(1, &nodes[0].dir).await);
    assert!(why.contains("only voter"), "{why}");

    // It leads by itself, with all that it had.
    let one = nodes[0].restart().await;
    until("it leads", || one.raft.status().state == ServerState::Leader).await;
    assert_eq!(one.raft.status().voters.iter().copied().collect::<Vec<_>>(), [1]);
    propose(std::slice::from_ref(&one.raft), Bytes::from_static(b"alone")).await;
    assert_eq!(one.machine.commands().len(), 21);
    assert!(one.raft.is_given_up(2) && one.raft.is_given_up(3) && !one.raft.is_given_up(1));

    // The others were not gone. They have a majority of the old cluster, to which this node belongs; their leader
    // reaches it, in ever higher terms.
    let term = one.raft.status().term;
    for _ in 0..3 {
        nodes[1] = nodes[1].restart().await;
        nodes[2] = nodes[2].restart().await;
        leader(&nodes[1..]).await;
        propose(&rafts(&nodes[1..]), Bytes::from_static(b"elsewhere")).await;
        for n in &nodes[1..] {
            n.raft.shutdown().await;
        }
    }
    nodes[1] = nodes[1].restart().await;
    nodes[2] = nodes[2].restart().await;
    let l = 1 + leader(&nodes[1..]).await;
    let theirs = nodes[l].raft.status().term;
    assert!(theirs > term, "{theirs} is above {term}");
    // A whole exchange with it has been tried when the old leader has an answer to a request that it sent after.
    for _ in 0..20 {
        propose(&rafts(&nodes[1..]), Bytes::from_static(b"elsewhere")).await;
        nodes[l].raft.request(1, Bytes::from_static(b"x"), LONG).await.unwrap();
    }
    let now = one.raft.status();
    assert_eq!((now.term, now.state), (term, ServerState::Leader), "undisturbed");
    propose(std::slice::from_ref(&one.raft), Bytes::from_static(b"alone")).await;
    assert_eq!(one.machine.commands().len(), 22);

    // Others join under new ids.
    let mut new = vec![one];
    for id in [4, 5] {
        let n = Node::start(id, tmp.path()).await;
        new[0].raft.add_learner(id, n.peer(), LONG).await.unwrap();
        new[0].raft.promote(id).await.unwrap();
        new.push(n);
    }
    let last = propose(&rafts(&new), Bytes::from_static(b"three again")).await.index;
    converge(&new, last).await;
    new[0].raft.shutdown().await;
    new[0] = new[0].restart().await;
    assert!(new[0].raft.is_given_up(2), "for good");
    leader(&new).await;
    for n in nodes[1..].iter().chain(&new) {
        n.raft.shutdown().await;
    }

    // A crash after the file was written and before the entry was: as if nothing had been done.
    std::fs::copy(nodes[0].dir.join("recovered"), before.join("recovered")).unwrap();
    let as_before = start_with(config(1, &before, free()), Arc::default()).await.unwrap();
    assert!(!as_before.raft.is_given_up(2));
    assert_eq!(as_before.raft.status().voters.len(), 3);
    let heard = as_before.raft.leader_heard().await;
    assert!(heard.is_none_or(|d| d < Duration::from_secs(60)), "{heard:?}");
    as_before.raft.shutdown().await;
}
