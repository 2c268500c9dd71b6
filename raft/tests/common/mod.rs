//! Nodes in one process, over real QUIC and a real disk.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::*;

pub const KEY: [u8; 32] = [42; 32];
pub const LONG: Duration = Duration::from_secs(30);

type Log = Vec<(LogPosition, Option<Bytes>)>;

/// Remembers what it was handed; optionally claims a part of it durable. A snapshot of it carries all that it
/// remembers up to there.
#[derive(Default)]
pub struct Machine {
    pub log: Mutex<Log>,
    pub durable: Mutex<AppliedState>,
    /// How often fetching fails before it works.
    pub fail_fetches: Mutex<usize>,
    last_membership: Mutex<Option<Bytes>>,
}

fn encode_log(log: &[(LogPosition, Option<Bytes>)]) -> Bytes {
    let mut out = Vec::new();
    for (p, c) in log {
        [p.term, p.leader, p.index].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend((c.as_ref().map_or(u32::MAX, |c| c.len() as u32)).to_le_bytes());
        out.extend(c.iter().flat_map(|c| c.iter()));
    }
    out.into()
}

fn decode_log(mut b: Bytes) -> Log {
    let mut log = Vec::new();
    while !b.is_empty() {
        let head = b.split_to(28);
        let n = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let position = LogPosition { term: n(0), leader: n(8), index: n(16) };
        let len = u32::from_le_bytes(head[24..28].try_into().unwrap());
        log.push((position, (len != u32::MAX).then(|| b.split_to(len as usize))));
    }
    log
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

    fn snapshot(&self) -> std::io::Result<(AppliedState, Bytes)> {
        let state = self.durable.lock().unwrap().clone();
        let log = self.log.lock().unwrap();
        let upto = log.iter().take_while(|(p, _)| Some(*p) <= state.position).count();
        Ok((state, encode_log(&log[..upto])))
    }

    fn fetch(&self, _from: NodeId, _snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>> {
        let mut left = self.fail_fetches.lock().unwrap();
        let fails = *left > 0;
        *left -= usize::from(fails);
        Box::pin(async move { if fails { Err(std::io::Error::other("told to fail")) } else { Ok(()) } })
    }

    fn install(&self, state: AppliedState, snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>> {
        *self.log.lock().unwrap() = decode_log(snapshot);
        *self.durable.lock().unwrap() = state;
        Box::pin(async { Ok(()) })
    }

    fn abandon(&self) {}
}

impl Machine {
    pub fn commands(&self) -> Vec<Bytes> {
        self.log.lock().unwrap().iter().filter_map(|(_, c)| c.clone()).collect()
    }

    /// Everything handed over so far counts as durable.
    pub fn checkpoint(&self) -> LogPosition {
        let position = self.log.lock().unwrap().last().unwrap().0;
        let membership = self.last_membership.lock().unwrap().clone();
        *self.durable.lock().unwrap() = AppliedState { position: Some(position), membership, ahead: false };
        position
    }
}

/// Answers with the sender's id and the reversed body.
pub struct Echo;

/// Requests that came as far as a handler.
pub static HANDLED: AtomicU64 = AtomicU64::new(0);

impl RequestHandler for Echo {
    fn handle(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let mut answer = from.to_le_bytes().to_vec();
            answer.extend(request.iter().rev());
            answer.into()
        })
    }

    fn bulk(&self, from: NodeId, mut stream: Bulk) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Ok(Some(frame)) = stream.recv().await {
                let id = Bytes::copy_from_slice(&from.to_le_bytes());
                if stream.send(vec![id, frame]).await.is_err() {
                    return;
                }
            }
            stream.finish();
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
