//! Nodes in one process, over real QUIC and a real disk.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::*;

pub const KEY: [u8; 32] = [42; 32];
pub const LONG: Duration = Duration::from_secs(30);

/// Remembers what it was handed; optionally claims a part of it durable.
#[derive(Default)]
pub struct Machine {
    pub log: Mutex<Vec<(LogPosition, Option<Bytes>)>>,
    pub durable: Mutex<AppliedState>,
    last_membership: Mutex<Option<Bytes>>,
}

impl StateMachine for Machine {
    fn applied(&self) -> std::io::Result<AppliedState> {
        Ok(self.durable.lock().unwrap().clone())
    }

    fn apply(&self, batch: Vec<Committed>) -> std::io::Result<()> {
        for c in batch {
            let command = match c.payload {
                Payload::Command(b) => Some(b),
                Payload::Blank => None,
                Payload::Membership(m) => {
                    *self.last_membership.lock().unwrap() = Some(m);
                    None
                }
            };
            self.log.lock().unwrap().push((c.position, command));
        }
        Ok(())
    }
}

impl Machine {
    pub fn commands(&self) -> Vec<Bytes> {
        self.log.lock().unwrap().iter().filter_map(|(_, c)| c.clone()).collect()
    }

    /// Everything handed over so far counts as durable.
    pub fn checkpoint(&self) -> LogPosition {
        let position = self.log.lock().unwrap().last().unwrap().0;
        let membership = self.last_membership.lock().unwrap().clone();
        *self.durable.lock().unwrap() = AppliedState { position: Some(position), membership };
        position
    }
}

/// Answers with the sender's id and the reversed body.
pub struct Echo;

impl RequestHandler for Echo {
    fn handle(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move {
            let mut answer = from.to_le_bytes().to_vec();
            answer.extend(request.iter().rev());
            answer.into()
        })
    }
}

pub struct Node {
    pub id: NodeId,
    pub dir: PathBuf,
    pub addr: SocketAddr,
    pub raft: Raft,
    pub machine: Arc<Machine>,
}

pub fn config(id: NodeId, dir: &Path, addr: SocketAddr) -> RaftConfig {
    let mut c = RaftConfig::new(id, dir, addr, Peer::default(), ClusterKey::from_bytes(KEY));
    c.heartbeat = Duration::from_millis(100);
    c.election_min = Duration::from_millis(500);
    c.election_max = Duration::from_millis(1000);
    c.segment_bytes = 1 << 20;
    c
}

pub fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub async fn start_with(config: RaftConfig, machine: Arc<Machine>) -> Result<Node, StartError> {
    let (id, dir) = (config.node_id, config.dir.clone());
    let raft = Raft::start(config, machine.clone(), Arc::new(Echo)).await?;
    let addr = raft.local_addr();
    Ok(Node { id, dir, addr, raft, machine })
}

impl Node {
    pub async fn start(id: NodeId, root: &Path) -> Node {
        start_with(config(id, &root.join(id.to_string()), free()), Arc::default()).await.unwrap()
    }

    /// Starts again on the same address and directory, with a machine that kept only what was durable.
    pub async fn restart(&self) -> Node {
        let durable = self.machine.durable.lock().unwrap().clone();
        let machine = Machine {
            last_membership: Mutex::new(durable.membership.clone()),
            durable: Mutex::new(durable),
            ..Machine::default()
        };
        start_with(config(self.id, &self.dir, self.addr), Arc::new(machine)).await.unwrap()
    }

    pub fn peer(&self) -> Peer {
        Peer { raft_addr: self.addr.to_string(), http_addr: format!("http-{}", self.id) }
    }
}

/// Three nodes that have elected a leader.
pub async fn cluster(root: &Path) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(id, root).await);
    }
    let members: BTreeMap<_, _> = nodes.iter().map(|n| (n.id, n.peer())).collect();
    assert!(!nodes[0].raft.is_initialized());
    nodes[0].raft.initialize(members).await.unwrap();
    leader(&nodes).await;
    nodes
}

/// The index in `nodes` of a leader that all of them follow.
pub async fn leader(nodes: &[Node]) -> usize {
    let deadline = Instant::now() + LONG;
    loop {
        let leader = nodes[0].raft.status().leader;
        if let Some(l) = leader
            && nodes.iter().all(|n| n.raft.status().leader == leader)
            && let Some(at) = nodes.iter().position(|n| n.id == l)
            && nodes[at].raft.status().state == ServerState::Leader
        {
            return at;
        }
        assert!(
            Instant::now() < deadline,
            "no leader: {:#?}",
            nodes.iter().map(|n| n.raft.status()).collect::<Vec<_>>()
        );
        let mut watch = nodes[0].raft.watch();
        let _ = tokio::time::timeout(Duration::from_millis(20), watch.changed()).await;
    }
}

/// Waits until `met`, polling.
pub async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !met() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until all nodes were handed everything up to `index`, and checks that they saw the same.
pub async fn converge(nodes: &[Node], index: u64) {
    for n in nodes {
        let mut watch = n.raft.watch();
        let applied = watch.wait_for(|s| s.applied_index >= Some(index));
        let applied = tokio::time::timeout(LONG, applied).await;
        assert!(applied.is_ok(), "node {} is stuck: {:#?}", n.id, n.raft.status());
        let log = n.machine.log.lock().unwrap();
        assert!(
            log.windows(2).all(|w| w[0].0.index + 1 == w[1].0.index),
            "gap or repetition on node {}",
            n.id
        );
    }
    let view = |n: &Node| -> BTreeMap<u64, (LogPosition, Option<Bytes>)> {
        let log = n.machine.log.lock().unwrap();
        log.iter().filter(|e| e.0.index <= index).map(|e| (e.0.index, e.clone())).collect()
    };
    let first = view(&nodes[0]);
    for n in &nodes[1..] {
        for (index, entry) in view(n) {
            if let Some(other) = first.get(&index) {
                assert_eq!(*other, entry, "node {} differs at {index}", n.id);
            }
        }
    }
}

/// Proposes wherever the leader is: `NotLeader` means "not appended", so trying again can't duplicate anything.
pub async fn propose(rafts: &[Raft], command: Bytes) -> LogPosition {
    let deadline = Instant::now() + LONG;
    loop {
        for raft in rafts {
            match raft.propose(command.clone()).await {
                Ok(position) => return position,
                Err(ProposeError::NotLeader { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn rafts(nodes: &[Node]) -> Vec<Raft> {
    nodes.iter().map(|n| n.raft.clone()).collect()
}
