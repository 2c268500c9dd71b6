//! Whether this node may hand out leases: what Raft says of it, and what the state machine has seen.

use crate::clock;
use quire_raft::{RaftStatus, ServerState};
use quire_vfs::gate::proto::{Refusal, RefusalCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is wrong with a leader whose followers don't answer.
pub const NO_QUORUM: &str = "the leader does not hear from a quorum";

/// This node's view of the leader.
#[derive(Debug)]
pub struct Leadership {
    status: OnceLock<watch::Receiver<RaftStatus>>,
    /// The highest term of an entry that was handed to the state machine.
    applied_term: AtomicU64,
    /// How long after a quorum's last sign of life a leader still counts as one.
    freshness: Duration,
    /// Why this node takes no part any more, if its cluster has removed it.
    removed: Mutex<Option<String>>,
}

impl Leadership {
    /// Nothing is known yet.
    pub fn new(freshness: Duration) -> Leadership {
        Leadership {
            status: OnceLock::new(),
            applied_term: AtomicU64::new(0),
            freshness,
            removed: Mutex::default(),
        }
    }

    /// Raft has started.
    pub fn attach(&self, status: watch::Receiver<RaftStatus>) {
        let _ = self.status.set(status);
    }

    /// This node was removed from its cluster, or, after all, was not.
    pub fn set_removed(&self, why: Option<String>) {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why this node takes no part any more, if its cluster has removed it.
    pub fn removed(&self) -> Option<String> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An entry of this term was handed over. True if it is the first of its term.
    pub fn saw_term(&self, term: u64) -> bool {
        self.applied_term.fetch_max(term, Ordering::SeqCst) < term
    }

    /// The highest term of an entry that was handed over.
    pub fn applied_term(&self) -> u64 {
        self.applied_term.load(Ordering::SeqCst)
    }

    /// Leader only: whether a member that last did something at this time is up, as far as its answers to heartbeats
    /// tell. One that isn't a member isn't.
    pub fn hears(&self, node: u64, since: Instant) -> bool {
        let Some(status) = self.status.get() else { return false };
        let status = status.borrow();
        let last = status.heard.get(&node).map_or(since, |&heard| heard.max(since));
        status.peers.contains_key(&node) && clock::since(last) <= self.freshness
    }

    /// Raft's status, once it has started.
    pub fn status(&self) -> Option<RaftStatus> {
        self.status.get().map(|status| status.borrow().clone())
    }

    /// Whether a quorum has given a sign of life lately, to a leader that needs others for one.
    fn has_quorum(&self, status: &RaftStatus) -> bool {
        status.voters.len() < 2 || status.quorum_acked.is_none_or(|at| clock::since(at) <= self.freshness)
    }

    /// Whether this node has the lead, but no quorum that it could do anything with.
    pub fn leads_alone(&self) -> bool {
        let Some(status) = self.status.get() else { return false };
        let status = status.borrow();
        status.state == ServerState::Leader && !self.has_quorum(&status)
    }

    /// The term in which this node leads, has a quorum, and has seen all entries of earlier terms.
    pub fn leading(&self) -> Result<u64, Refusal> {
        let unavailable = |why: &str| Refusal::new(RefusalCode::Unavailable, why);
        let Some(status) = self.status.get() else { return Err(unavailable("the node is starting")) };
        let status = status.borrow();
        if let Err(why) = &status.running {
            return Err(unavailable(&format!("the node's Raft has stopped: {why}")));
        }
        if let Some(why) = self.removed() {
            return Err(unavailable(&why));
        }
        if status.state != ServerState::Leader {
            let leader = status.leader.filter(|&id| id != status.node_id);
            return Err(match leader.and_then(|id| Some((id, status.peers.get(&id)?))) {
                Some((id, peer)) => Refusal::new(
                    RefusalCode::NotLeader,
                    format!(
                        "node {} does not lead; the leader is node {id} at {}",
                        status.node_id, peer.http_addr
                    ),
                ),
                None => unavailable("there is no leader at present; try again"),
            });
        }
        if !self.has_quorum(&status) {
            return Err(unavailable(&format!("{NO_QUORUM}; try again")));
        }
        if self.applied_term.load(Ordering::SeqCst) != status.term {
            return Err(unavailable("the new leader is still applying entries; try again"));
        }
        Ok(status.term)
    }
}
