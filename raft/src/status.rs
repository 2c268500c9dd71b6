//! What the node says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::types::{C, Core};
use crate::{NodeId, Peer};

/// The role of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// Receives the log, has no vote. Also the state of a node that isn't a member yet.
    #[default]
    Learner,
    /// A voter that follows a leader or waits for one.
    Follower,
    /// A voter that stands for election.
    Candidate,
    /// Leads. It may have lost its quorum meanwhile: see [`RaftStatus::quorum_acked`].
    Leader,
    /// Is stopping or has stopped.
    Shutdown,
}

impl ServerState {
    /// Lower-case English name.
    pub fn as_str(self) -> &'static str {
        match self {
            ServerState::Learner => "learner",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Leader => "leader",
            ServerState::Shutdown => "shutdown",
        }
    }
}

/// A snapshot of a node's Raft state. Indexes are `None` while there is no such entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node.
    pub node_id: NodeId,
    /// Its current term.
    pub term: u64,
    /// Its role.
    pub state: ServerState,
    /// The leader of this term, where known.
    pub leader: Option<NodeId>,
    /// Last index in the log (possibly not durable yet).
    pub last_log_index: Option<u64>,
    /// Last index known to be committed and present here.
    pub committed_index: Option<u64>,
    /// Last index handed to the state machine.
    pub applied_index: Option<u64>,
    /// Last index covered by the snapshot (the state machine's durable state as last reported).
    pub snapshot_index: Option<u64>,
    /// Last index purged from the log.
    pub purged_index: Option<u64>,
    /// Voters, of both configurations while the membership changes.
    pub voters: BTreeSet<NodeId>,
    /// All members, learners included.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Leader only: highest index known to be durable on each other member (0 until known).
    pub replication: BTreeMap<NodeId, u64>,
    /// Leader only: when each other member that answered its heartbeats was last sent one that it answered.
    pub heard: BTreeMap<NodeId, Instant>,
    /// Leader only: when a quorum last acknowledged it.
    pub quorum_acked: Option<Instant>,
    /// Whether the core runs, or why it stopped.
    pub running: Result<(), String>,
}

impl RaftStatus {
    pub(crate) fn of(core: &Core) -> Self {
        let rx = core.metrics();
        let m = rx.borrow_watched();
        let membership = m.membership_config.membership();
        let replication = m.replication.iter().flatten();
        RaftStatus {
            node_id: m.id,
            term: m.current_term,
            state: match m.state {
                openraft::ServerState::Learner => ServerState::Learner,
                openraft::ServerState::Follower => ServerState::Follower,
                openraft::ServerState::Candidate => ServerState::Candidate,
                openraft::ServerState::Leader => ServerState::Leader,
                openraft::ServerState::Shutdown => ServerState::Shutdown,
            },
            leader: m.current_leader,
            last_log_index: m.last_log_index,
            committed_index: m.local_committed.as_ref().map(|l| l.index()),
            applied_index: m.last_applied.as_ref().map(|l| l.index()),
            snapshot_index: m.snapshot.as_ref().map(|l| l.index()),
            purged_index: m.purged.as_ref().map(|l| l.index()),
            voters: membership.voter_ids().collect(),
            peers: membership.nodes().map(|(id, p)| (*id, p.clone())).collect(),
            replication: replication
                .filter(|(id, _)| **id != m.id)
                .map(|(id, at)| (*id, at.as_ref().map_or(0, |l| l.index())))
                .collect(),
            heard: m
                .heartbeat
                .iter()
                .flatten()
                .filter_map(|(id, at)| Some((*id, Instant::now().checked_sub(at.as_ref()?.elapsed())?)))
                .collect(),
            quorum_acked: m.last_quorum_acked.as_ref().and_then(|t| Instant::now().checked_sub(t.elapsed())),
            running: m.running_state.as_ref().map(|_| ()).map_err(|e| e.to_string()),
        }
    }
}

/// Pause between two reports. The core's metrics change several times with each commit; waking all who watch each
/// time cost more than the commit.
const PACE: Duration = Duration::from_millis(10);

/// Keeps `tx` up to date until the core ends, and logs what is worth a line.
pub(crate) async fn follow(core: Core, tx: Arc<watch::Sender<RaftStatus>>) {
    let mut metrics = core.metrics();
    loop {
        let status = RaftStatus::of(&core);
        let before = tx.send_replace(status.clone());
        if (before.leader, before.term, before.state) != (status.leader, status.term, status.state) {
            tracing::info!(
                node = status.node_id,
                term = status.term,
                leader = status.leader,
                state = status.state.as_str(),
                "raft state changed"
            );
        }
        if before.voters != status.voters || before.peers.len() != status.peers.len() {
            tracing::info!(node = status.node_id, voters = ?status.voters, members = status.peers.len(), "membership changed");
        }
        if changed(&mut metrics).await.is_err() {
            break;
        }
        tokio::time::sleep(PACE).await;
    }
    // The core is gone; its last metrics may still claim otherwise.
    tx.send_modify(|s| {
        s.state = ServerState::Shutdown;
        if s.running.is_ok() {
            s.running = Err("raft stopped".into());
        }
    });
}

async fn changed(
    rx: &mut openraft::type_config::alias::WatchReceiverOf<C, openraft::RaftMetrics<C>>,
) -> Result<(), ()> {
    rx.changed().await.map_err(|_| ())
}
