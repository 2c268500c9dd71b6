//! Three nodes in one process: election, proposals, failover, catching up, membership, requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use quire_raft::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn propose_fail_over_and_catch_up() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(tmp.path()).await;
    leader(&nodes).await;

    let mut tasks = Vec::new();
    for client in 0..16u32 {
        let rafts = rafts(&nodes);
        tasks.push(tokio::spawn(async move {
            let mut last = 0;
            for i in 0..20u32 {
                let size = if i % 10 == 0 { 300_000 } else { 100 };
                let mut command = vec![client as u8; size];
                command[..4].copy_from_slice(&i.to_le_bytes());
                last = propose(&rafts, command.into()).await.index;
            }
            last
        }));
    }
    let mut last = 0;
    for t in tasks {
        last = last.max(t.await.unwrap());
    }
    converge(&nodes, last).await;
    assert_eq!(nodes[0].machine.commands().len(), 320);

    let l = leader(&nodes).await;
    // A follower says where to go, and hasn't appended anything.
    let f = (l + 1) % 3;
    match nodes[f].raft.propose(Bytes::from_static(b"x")).await {
        Err(ProposeError::NotLeader { leader: Some((id, peer)) }) => {
            assert_eq!(id, nodes[l].id);
            assert_eq!(peer, nodes[l].peer());
        }
        other => panic!("{other:?}"),
    }
    let read = nodes[l].raft.read_barrier(LONG).await.unwrap();
    assert!(read >= last);
    assert!(matches!(nodes[f].raft.read_barrier(LONG).await, Err(RaftError::NotLeader { leader: Some(_) })));
    nodes[l].raft.ping().await.unwrap();

    // The leader goes; the others go on.
    let gone = nodes.remove(l);
    let t = Instant::now();
    gone.raft.shutdown().await;
    assert!(!gone.raft.stopped().await.is_empty());
    assert!(matches!(
        gone.raft.propose(Bytes::new()).await,
        Err(ProposeError::Stopped(_) | ProposeError::Unknown { .. })
    ));
    until("a new leader", || nodes.iter().any(|n| n.raft.status().state == ServerState::Leader)).await;
    leader(&nodes).await;
    println!("failover after {:?}", t.elapsed());
    let mut last = 0;
    for i in 0..50u32 {
        last = propose(&rafts(&nodes), i.to_le_bytes().to_vec().into()).await.index;
    }

    // The old one comes back and catches up.
    let back = gone.restart().await;
    assert!(back.raft.is_initialized());
    nodes.push(back);
    converge(&nodes, last).await;
    assert_eq!(nodes[2].machine.commands().len(), 370);
    for n in nodes {
        n.raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grow_transfer_shrink() {
    let tmp = tempfile::tempdir().unwrap();
    let one = Node::start(1, tmp.path()).await;
    one.raft.initialize(BTreeMap::from([(1, one.peer())])).await.unwrap();
    for i in 0..10u8 {
        let deadline = Instant::now() + LONG;
        while let Err(e) = one.raft.propose(vec![i].into()).await {
            assert!(matches!(e, ProposeError::NotLeader { .. }) && Instant::now() < deadline, "{e}");
            tokio::task::yield_now().await;
        }
    }
    let mut nodes = vec![one];
    for id in 2..=3 {
        let n = Node::start(id, tmp.path()).await;
        // As a joining node does: it knows an address only.
        let answer =
            n.raft.request_addr(&nodes[0].addr.to_string(), Bytes::from_static(b"join"), LONG).await.unwrap();
        assert_eq!(&answer[8..], b"nioj");
        assert_eq!(answer[..8], id.to_le_bytes());
        nodes[0].raft.add_learner(id, n.peer(), LONG).await.unwrap();
        nodes[0].raft.promote(id).await.unwrap();
        nodes.push(n);
    }
    let status = nodes[0].raft.status();
    assert_eq!(status.voters.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(status.peers.len(), 3);
    assert!(status.quorum_acked.is_some());
    assert!(matches!(nodes[0].raft.promote(9).await, Err(RaftError::Refused(_))));
    assert!(matches!(nodes[0].raft.request(9, Bytes::new(), LONG).await, Err(RequestError::Unreachable(_))));

    let answer = nodes[0].raft.request(3, Bytes::from_static(b"abc"), LONG).await.unwrap();
    assert_eq!(&answer[8..], b"cba");
    let big = Bytes::from(vec![5; 9 << 20]);
    assert_eq!(nodes[0].raft.request(3, big.clone(), LONG).await.unwrap().len(), big.len() + 8);

    nodes[0].raft.transfer_leader(2).await.unwrap();
    until("node 2 leads", || nodes[1].raft.status().state == ServerState::Leader).await;
    nodes[1].raft.remove(1).await.unwrap();
    let last = nodes[1].raft.propose(Bytes::from_static(b"two are left")).await.unwrap();
    assert_eq!(nodes[1].raft.status().voters.iter().copied().collect::<Vec<_>>(), [2, 3]);
    converge(&nodes[1..], last.index).await;
    for n in nodes {
        n.raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purge_survives_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(tmp.path()).await;
    let mut last = 0;
    for i in 0..60u8 {
        last = propose(&rafts(&nodes), vec![i; 100_000].into()).await.index;
    }
    converge(&nodes, last).await;
    for n in &nodes {
        assert!(matches!(n.raft.purge(last + 1000).await, Err(RaftError::Refused(_))));
        assert_eq!(n.machine.checkpoint().index, last);
        n.raft.purge(last - 5).await.unwrap();
        until("purged", || n.raft.status().purged_index == Some(last - 5)).await;
        let log = n.dir.join("log");
        // A file may go while they are looked at.
        let segments = || quire_raft::inspect::segments(log.parent().unwrap());
        until("segments freed", || segments().is_ok_and(|found| found.len() <= 2)).await;
    }
    for n in &mut nodes {
        n.raft.shutdown().await;
        *n = n.restart().await;
        assert_eq!(n.raft.status().purged_index, Some(last - 5));
    }
    let last = propose(&rafts(&nodes), Bytes::from_static(b"after")).await.index;
    converge(&nodes, last).await;
    for n in &nodes {
        assert_eq!(n.machine.commands(), [Bytes::from_static(b"after")]);
        n.raft.shutdown().await;
    }
    // A state machine that lost what was purged is refused.
    let lost = start_with(config(nodes[0].id, &nodes[0].dir, free()), Default::default()).await;
    assert!(matches!(lost.err(), Some(StartError::StateMachine(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_locks_and_lonely_leaders() {
    let tmp = tempfile::tempdir().unwrap();
    let nodes = cluster(tmp.path()).await;
    let l = leader(&nodes).await;

    let again = start_with(config(nodes[l].id, &nodes[l].dir, free()), Default::default()).await;
    assert!(matches!(again.err(), Some(StartError::Log(LogError::Locked { .. }))));
    let too_large = nodes[l].raft.propose(Bytes::from(vec![0; (64 << 20) + 1])).await;
    assert!(matches!(too_large, Err(ProposeError::TooLarge { .. })));

    // A member's log isn't another member's.
    let (a, b) = ((l + 1) % 3, (l + 2) % 3);
    for n in [a, b] {
        nodes[n].raft.shutdown().await;
    }
    let foreign = start_with(config(77, &nodes[a].dir, free()), Default::default()).await.err().unwrap();
    assert!(matches!(&foreign, StartError::Log(LogError::Foreign { offset: 32, .. })), "{foreign}");
    let mut other = config(nodes[a].id, &nodes[a].dir, free());
    other.key = ClusterKey::from_bytes([1; 32]);
    let foreign = start_with(other, Default::default()).await.err().unwrap();
    assert!(matches!(&foreign, StartError::Log(LogError::Foreign { offset: 16, .. })), "{foreign}");

    // Without a quorum nothing is confirmed.
    let read = nodes[l].raft.read_barrier(Duration::from_secs(2)).await;
    assert!(
        matches!(read, Err(RaftError::TimedOut(_) | RaftError::NoQuorum(_) | RaftError::NotLeader { .. })),
        "{read:?}"
    );
    nodes[l].raft.shutdown().await;
}

/// One 20 MiB command: larger than a segment, than a frame, than the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumbo_commands() {
    let tmp = tempfile::tempdir().unwrap();
    let nodes = cluster(tmp.path()).await;
    let l = leader(&nodes).await;
    let big = Bytes::from((0..20 << 20).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>());
    let term = nodes[l].raft.status().term;
    for _ in 0..2 {
        nodes[l].raft.propose(big.clone()).await.unwrap();
    }
    let last = nodes[l].raft.propose(Bytes::from_static(b"small")).await.unwrap();
    converge(&nodes, last.index).await;
    assert_eq!(nodes[l].raft.status().term, term, "large entries must not cost the lead");
    let f = &nodes[(l + 1) % 3];
    f.raft.shutdown().await;
    let f = f.restart().await;
    let mut watch = f.raft.watch();
    tokio::time::timeout(LONG, watch.wait_for(|s| s.applied_index >= Some(last.index)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(f.machine.commands()[1], big);
    for n in nodes.iter().chain([&f]) {
        n.raft.shutdown().await;
    }
}

/// What a member lacks was purged: it gets a snapshot, at the second attempt, and goes on from there. So does a new
/// member, and both come back after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_need_purged_entries_get_a_snapshot() {
    let tmp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(tmp.path()).await;
    let l = leader(&nodes).await;
    let lagging = nodes.remove((l + 1) % 3);
    lagging.raft.shutdown().await;
    let mut last = 0;
    for i in 0..100u32 {
        last = propose(&rafts(&nodes), i.to_le_bytes().to_vec().into()).await.index;
    }
    converge(&nodes, last).await;
    for n in &nodes {
        let durable = n.machine.checkpoint();
        n.raft.purge(durable.index).await.unwrap();
    }
    for n in &nodes {
        until("the purge", || n.raft.status().purged_index >= Some(last)).await;
    }
    let after = propose(&rafts(&nodes), Bytes::from_static(b"after")).await.index;

    let back = lagging.restart().await;
    *back.machine.fail_fetches.lock().unwrap() = 1;
    let new = Node::start(4, tmp.path()).await;
    nodes.push(back);
    let l = leader(&nodes).await;
    nodes[l].raft.add_learner(4, new.peer(), LONG).await.unwrap();
    nodes.push(new);
    converge(&nodes, after).await;
    for n in &nodes {
        assert_eq!(n.machine.commands().len(), 101, "node {}", n.id);
    }
    let l = leader(&nodes).await;
    nodes[l].raft.promote(4).await.unwrap();
    for n in &mut nodes[2..] {
        n.raft.shutdown().await;
        *n = n.restart().await;
    }
    let last = propose(&rafts(&nodes), Bytes::from_static(b"last")).await.index;
    converge(&nodes, last).await;
    for n in nodes {
        n.raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_streams_go_both_ways() {
    let tmp = tempfile::tempdir().unwrap();
    let nodes = cluster(tmp.path()).await;
    let mut stream = nodes[0].raft.open_bulk(2).await.unwrap();
    for size in [0, 1, 70_000, BULK_FRAME_BYTES - 8] {
        stream
            .send(vec![Bytes::from(vec![7; size / 2]), Bytes::from(vec![7; size - size / 2])])
            .await
            .unwrap();
        let echo = stream.recv().await.unwrap().unwrap();
        assert_eq!((&echo[..8], echo.len()), (&1u64.to_le_bytes()[..], size + 8));
    }
    let too_large = stream.send(vec![Bytes::from(vec![0; BULK_FRAME_BYTES + 1])]).await;
    assert!(matches!(too_large, Err(RequestError::TooLarge { .. })));
    stream.finish();
    assert!(stream.recv().await.unwrap().is_none());
    assert!(matches!(nodes[0].raft.open_bulk(9).await, Err(RequestError::Unreachable(_))));
    for n in nodes {
        n.raft.shutdown().await;
    }
}
