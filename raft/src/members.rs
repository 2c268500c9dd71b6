//! Who leads and who belongs: handing the lead over, members that moved, and what a node that hears from no leader
//! asks. Changes of the membership itself are in `raft.rs`.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;

use crate::raft::{PING, stopped, timed};
use crate::{LogPosition, NodeId, Raft, RaftError, ServerState};

impl Raft {
    /// The voter that could best take the lead over: one that answers, with the longest log; on the leader.
    pub fn successor(&self) -> Option<NodeId> {
        let now = self.status();
        let others = now.replication.iter().filter(|(id, _)| now.voters.contains(id) && self.answers(**id));
        others.max_by_key(|(_, matched)| **matched).map(|(id, _)| *id)
    }

    /// Whether a member has answered a heartbeat lately; on the leader.
    pub fn answers(&self, id: NodeId) -> bool {
        let metrics = self.inner.core.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).cloned().flatten());
        last.is_some_and(|at| at.elapsed() <= self.inner.config.election_max)
    }

    /// Hands the lead to a voter, or to the one that can best take it; on the leader. Returns who was asked, once
    /// this node has seen another leader.
    ///
    /// A leader that has begun to hand over can't take that back: it accepts no more proposals. So the voter must
    /// answer when it begins, and if it fails in that moment another one is asked, until somebody leads.
    pub async fn hand_over(&self, to: Option<NodeId>) -> Result<NodeId, RaftError> {
        let now = self.status();
        if now.state != ServerState::Leader {
            return Err(self.not_leader());
        }
        let refused = |why: String| Err(RaftError::Refused(why));
        let to = match to {
            Some(to) if to == now.node_id => return Ok(to),
            Some(to) if !now.peers.contains_key(&to) => return refused(format!("node {to} is not a member")),
            Some(to) if !now.voters.contains(&to) => {
                return refused(format!("node {to} does not vote, so it can't lead"));
            }
            Some(to) if !self.answers(to) => {
                return refused(format!("node {to} does not answer, so it can't lead now"));
            }
            Some(to) => to,
            None => match self.successor() {
                Some(to) => to,
                None => return refused("no other voter answers, so nobody could take the lead over".into()),
            },
        };
        let done = self.transfer_leader(to).await;
        if matches!(done, Err(RaftError::TimedOut(_))) {
            tokio::spawn(insist(self.clone(), now.term));
        }
        done.map(|()| to)
    }

    /// A member says that it is reached at another address than the membership has. From now on it is tried there,
    /// too; who answers must prove to be that member. The membership is changed by [`Raft::add_learner`].
    pub fn peer_moved(&self, id: NodeId, raft_addr: &str) {
        if self.status().peers.contains_key(&id) {
            self.inner.links.moved(id, raft_addr);
        }
    }

    /// Whether a node is a member, confirmed by a quorum; on the leader. Of two memberships while they change,
    /// either counts: the change may yet be undone.
    pub async fn confirm_member(&self, id: NodeId) -> Result<bool, RaftError> {
        self.wait_leading().await?;
        let look = self.inner.core.with_raft_state(move |state| {
            let memberships = [state.membership_state.effective(), state.membership_state.committed()];
            memberships.iter().any(|m| m.membership().get_node(&id).is_some())
        });
        timed(PING, "membership", look).await?.map_err(stopped)
    }

    /// How long ago the leader that this node knows of last gave a sign of life; `None` if it knows of none.
    pub async fn leader_heard(&self) -> Option<Duration> {
        let look = self.inner.core.with_raft_state(|state| {
            let vote = state.vote_ref();
            vote.is_committed().then(|| state.vote_last_modified().map(|at| at.elapsed())).flatten()
        });
        timed(PING, "state", look).await.ok()?.ok()?
    }

    /// The last entry that this node knows to be committed.
    pub fn committed_position(&self) -> Option<LogPosition> {
        self.inner.log.position_at(self.status().committed_index?)
    }

    /// Whether an entry is in this node's log, as far as can be told (what was purged counts as having been).
    pub fn has_entry(&self, at: LogPosition) -> bool {
        self.inner.log.purged().is_some_and(|p| p.index > at.index)
            || self.inner.log.position_at(at.index) == Some(at)
    }

    /// Whether this node stands for election when it hears from no leader. True at start.
    pub fn stand_for_election(&self, stand: bool) {
        self.inner.core.runtime_config().elect(stand);
    }

    /// Whether the cluster was recovered without this node id ([`crate::recover`]); it must never be used again.
    pub fn is_given_up(&self, id: NodeId) -> bool {
        self.inner.given_up.contains(&id)
    }
}

/// Goes on asking voters to take over, for as long as this node leads in that term.
async fn insist(raft: Raft, term: u64) {
    let pause = raft.inner.config.election_max;
    loop {
        tokio::time::sleep(pause).await;
        let now = raft.status();
        if now.state != ServerState::Leader || now.term != term || now.running.is_err() {
            return;
        }
        if let Some(to) = raft.successor() {
            tracing::warn!(to, "nobody has taken the lead over yet; asking again");
            if raft.inner.core.trigger().transfer_leader(to).await.is_err() {
                return;
            }
        }
    }
}
