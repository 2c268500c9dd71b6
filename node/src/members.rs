//! The membership of a running cluster: nodes join and are removed, the lead is handed over; and every node keeps
//! what the membership says of itself right.
//!
//! A node *announces* itself to the leader for as long as the membership has other addresses for it than its
//! configuration, or has it without the vote that it wants. It may know no leader, and none may know where it is: so
//! it asks everybody that it knows of, and everybody who hears it can reach it from then on.
//!
//! It also announces itself when it has heard from no leader for a while, which is how it learns that it was removed:
//! Raft sends nothing to a node that isn't a member any more, not even that.

use crate::node::Node;
use crate::peers::{self, ATTEMPT, LeaderError, PeerRequest, PeerResponse, RETRY_PAUSE};
use quire_raft::{LogPosition, NodeId, Peer, RaftError, RaftStatus, ServerState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// Silence of so many election timeouts makes a node ask whether it still is a member.
const SILENCE: u32 = 4;
/// Between announcements, at most.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between log lines about the same thing.
const COMPLAIN: Duration = Duration::from_secs(30);

/// Takes a node in, for the leader: without a vote at first, with one when it has the log. An error leaves it as
/// far as it came; the node asks again.
pub(crate) async fn join(node: &Arc<Node>, id: NodeId, peer: Peer, voter: bool) -> Result<(), RaftError> {
    let raft = node.raft();
    check_newcomer(node, id, &peer).await?;
    raft.add_learner(id, peer.clone(), node.config().catch_up).await?;
    if voter && !raft.status().voters.contains(&id) {
        raft.promote(id).await?;
    }
    info!(node = id, raft_addr = peer.raft_addr, voter, "joined");
    Ok(())
}

/// Whether a node with an empty directory may come in under this id. Not as one that has had entries, or a vote: its
/// disk was lost, and with it what it promised.
pub(crate) async fn may_join(node: &Arc<Node>, id: NodeId, peer: Peer) -> Result<(), RaftError> {
    let raft = node.raft();
    // Whoever knows of a vote may say no, also without a leader: the id has it still, or was removed since.
    check_lost(&raft.status(), id, &peer)?;
    raft.confirm_member(id).await?;
    check_lost(&raft.status(), id, &peer)?;
    check_newcomer(node, id, &peer).await
}

/// Whoever is elsewhere has taken another member's id, it seems: nothing is to be removed for him.
fn check_place(status: &RaftStatus, id: NodeId, peer: &Peer) -> Result<(), RaftError> {
    match status.peers.get(&id) {
        Some(known) if known != peer => Err(RaftError::Refused(format!(
            "node id {id} belongs to the member at {}; give the new node an id of its own",
            known.raft_addr
        ))),
        _ => Ok(()),
    }
}

fn check_lost(status: &RaftStatus, id: NodeId, peer: &Peer) -> Result<(), RaftError> {
    check_place(status, id, peer)?;
    let what = if status.voters.contains(&id) {
        "is a voter of this cluster"
    } else if status.replication.get(&id).is_some_and(|&has| has > 0) {
        "belongs to a member that has entries of the log"
    } else {
        return Ok(());
    };
    Err(RaftError::Refused(format!(
        "node id {id} {what}, but comes with an empty data directory: what it promised under that id is lost with its \
         disk, and a node without the log must not vote. If the directory still exists, start the node with that one. \
         Else remove the old node (`quire remove {id}`), and start the new one with a --node-id that was never used, \
         and an empty data directory"
    )))
}

async fn check_newcomer(node: &Arc<Node>, id: NodeId, peer: &Peer) -> Result<(), RaftError> {
    let raft = node.raft();
    let status = raft.status();
    if raft.is_given_up(id) {
        return Err(RaftError::Refused(format!(
            "node id {id} belonged to a member that this cluster was recovered without; use an id that was never used"
        )));
    }
    // What the leader knows to be committed may tell who was removed.
    node.wait_taken(status.committed_index.unwrap_or_default()).await;
    if !status.peers.contains_key(&id) && node.machine().was_removed(id) {
        return Err(RaftError::Refused(format!(
            "node id {id} was removed from this cluster, and ids are not used again: start the new node with a \
             --node-id that was never used, and an empty data directory"
        )));
    }
    check_place(&status, id, peer)
}

/// A member says where it is, and whether it wants to vote.
pub(crate) async fn announced(
    node: &Arc<Node>,
    id: NodeId,
    peer: Peer,
    voter: bool,
    committed: Option<LogPosition>,
) -> PeerResponse {
    let raft = node.raft();
    raft.peer_moved(id, &peer.raft_addr);
    let member = match raft.confirm_member(id).await {
        Ok(member) => member,
        Err(error) => return Err(error).into(),
    };
    if !member {
        // That somebody is no member only counts where he was one: another cluster may use the same key.
        return if raft.is_given_up(id) || committed.is_some_and(|at| raft.has_entry(at)) {
            PeerResponse::NotMember
        } else {
            PeerResponse::Unavailable("not a member here, and with another history".into())
        };
    }
    let status = raft.status();
    if status.peers.get(&id) != Some(&peer) {
        info!(node = id, raft_addr = peer.raft_addr, http_addr = peer.http_addr, "a member has moved");
        match raft.add_learner(id, peer, Duration::ZERO).await {
            Ok(()) | Err(RaftError::NotCaughtUp { .. }) => {}
            Err(error) => return Err(error).into(),
        }
    }
    if voter && !status.voters.contains(&id) {
        if let Err(error) = raft.promote(id).await {
            return Err(error).into();
        }
        info!(node = id, "has caught up and votes now");
    }
    PeerResponse::Index(0)
}

/// Removes a member, for the leader. A leader that is to go hands over first; its successor does it.
pub(crate) async fn serve_remove(node: &Arc<Node>, id: NodeId) -> PeerResponse {
    let raft = node.raft();
    match raft.confirm_member(id).await {
        Ok(true) => {}
        Ok(false) => return PeerResponse::NotMember,
        Err(error) => return Err(error).into(),
    }
    if raft.status().voters == BTreeSet::from([id]) {
        return PeerResponse::Refused(format!(
            "node {id} is the only voter, and a cluster needs one: let another node join first"
        ));
    }
    if id == node.id() {
        return match raft.hand_over(None).await {
            Ok(to) => {
                info!(to, "has handed over, in order to be removed");
                PeerResponse::NotLeader(None)
            }
            Err(RaftError::Refused(why)) => PeerResponse::Refused(format!("node {id} leads, and {why}")),
            Err(error) => Err(error).into(),
        };
    }
    let removed = raft.remove(id).await;
    if removed.is_ok() {
        info!(node = id, "removed from the cluster");
    }
    removed.into()
}

/// Removes a member of the cluster, whichever node leads.
pub async fn remove(node: &Arc<Node>, id: NodeId, deadline: Duration) -> Result<(), LeaderError> {
    let deadline = Instant::now() + deadline;
    let mut why = "there is no leader".to_owned();
    let mut tried = false;
    while Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        match peers::attempt(node, &PeerRequest::Remove { node_id: id }, left, left).await {
            PeerResponse::Index(_) => return Ok(()),
            // An attempt whose answer was lost may have done it.
            PeerResponse::NotMember if tried => return Ok(()),
            PeerResponse::NotMember => {
                return Err(LeaderError::Refused(format!(
                    "node {id} is not a member; /nodes?nonvoters lists them"
                )));
            }
            PeerResponse::Refused(_) if tried && id == node.id() && node.leadership().removed().is_some() => {
                return Ok(());
            }
            PeerResponse::Refused(why) => return Err(LeaderError::Refused(why)),
            PeerResponse::Unavailable(reason) => (tried, why) = (true, reason),
            PeerResponse::NotLeader(_) => tried |= id == node.id(),
            PeerResponse::Hello { .. } => why = "the leader's answer makes no sense".into(),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(LeaderError::Unavailable(why))
}

/// Has the leader hand over, to `to` or to whoever can best take the lead. With `wait`, returns when this node
/// knows of the new leader, else when the old one does.
pub async fn step_down(
    node: &Arc<Node>,
    to: Option<NodeId>,
    wait: bool,
    deadline: Duration,
) -> Result<(), LeaderError> {
    let deadline = Instant::now() + deadline;
    let mut why = "there is no leader".to_owned();
    let mut from = None;
    let mut done = false;
    while Instant::now() < deadline {
        let leader = node.raft_status().leader;
        if done && (!wait || if to.is_some() { leader == to } else { leader.is_some() && leader != from }) {
            return Ok(());
        }
        if !done && to.is_none() && from.is_some() && leader.is_some() && leader != from {
            // An attempt whose answer was lost has done it.
            return Ok(());
        }
        if !done && leader.is_some() {
            from = from.or(leader);
            let left = deadline.saturating_duration_since(Instant::now());
            match peers::attempt(node, &PeerRequest::StepDown { to }, left, left).await {
                PeerResponse::Index(_) => {
                    done = true;
                    continue;
                }
                PeerResponse::Refused(why) => return Err(LeaderError::Refused(why)),
                PeerResponse::Unavailable(reason) => why = reason,
                PeerResponse::NotLeader(_) => why = "there is no leader".into(),
                PeerResponse::Hello { .. } | PeerResponse::NotMember => {
                    why = "the leader's answer makes no sense".into();
                }
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(LeaderError::Unavailable(why))
}

/// What isn't as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concern {
    /// The membership has this node at other addresses.
    Address,
    /// It has this node without the vote that it wants.
    Vote,
    /// No leader has been heard from for a while.
    Silence,
}

/// `known` is where the membership has this node, if it does, and `votes` whether with a vote.
fn concern(known: Option<&Peer>, votes: bool, me: &Peer, wants_vote: bool, silent: bool) -> Option<Concern> {
    match known {
        Some(known) if known != me => Some(Concern::Address),
        Some(_) if wants_vote && !votes => Some(Concern::Vote),
        // A node that isn't a member yet as of its own log is one that is catching up, or it is silent as well.
        _ => silent.then_some(Concern::Silence),
    }
}

/// What an announcement came to.
enum Answer {
    Heard,
    NotMember(String),
    Not(String),
}

/// Keeps what the membership says of this node right, for as long as the node runs.
pub(crate) async fn keep(node: Arc<Node>) {
    let config = node.config();
    let wants_vote = !config.non_voter && !config.join.is_empty();
    let patience = config.election_timeout * SILENCE;
    let tick = config.election_timeout.min(Duration::from_secs(1));
    let mut heard = Instant::now();
    let mut next = Instant::now();
    let mut pause = tick;
    let mut complaint = None::<Instant>;
    let mut seen = (0, None);
    loop {
        let status = node.raft_status();
        if status.running.is_err() {
            return;
        }
        if status.state == ServerState::Leader {
            heard = Instant::now();
        } else if let Some(at) =
            node.raft().leader_heard().await.and_then(|ago| Instant::now().checked_sub(ago))
        {
            heard = heard.max(at);
        }
        let silent = heard.elapsed() >= patience;
        if !silent && node.leadership().removed().is_some() {
            info!("a leader sends to this node again: it is a member after all");
            node.leadership().set_removed(None);
            node.raft().stand_for_election(true);
        }
        if seen != (status.term, status.leader) {
            // Whoever leads now may do what nobody could do before.
            seen = (status.term, status.leader);
            (next, pause) = (Instant::now(), tick);
        }
        let (known, votes) = (status.peers.get(&status.node_id), status.voters.contains(&status.node_id));
        match concern(known, votes, node.peer(), wants_vote, silent) {
            None => {
                (next, pause) = (Instant::now(), tick);
                if complaint.take().is_some() {
                    info!("the membership is right about this node again");
                }
            }
            Some(_) if Instant::now() < next => {}
            Some(concern) => {
                match announce(&node, &status, wants_vote).await {
                    Answer::Heard => debug!(?concern, "announced"),
                    Answer::NotMember(by) => removed(&node, &by),
                    Answer::Not(why) if concern == Concern::Silence => debug!("nobody knows a leader: {why}"),
                    Answer::Not(why) => {
                        if complaint.is_none_or(|at| at.elapsed() >= COMPLAIN) {
                            complaint = Some(Instant::now());
                            warn!(?concern, "the membership can't be put right yet; trying on: {why}");
                        }
                    }
                }
                next = Instant::now() + pause;
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
        tokio::time::sleep(tick).await;
    }
}

/// Announces this node to the leader, and on the way to everybody who may be it.
async fn announce(node: &Arc<Node>, status: &RaftStatus, voter: bool) -> Answer {
    let me = node.peer();
    let committed = node.raft().committed_position().map(|p| (p.term, p.leader, p.index));
    let request = PeerRequest::Announce {
        node_id: node.id(),
        raft_addr: me.raft_addr.clone(),
        http_addr: me.http_addr.clone(),
        voter,
        committed,
    };
    if status.state == ServerState::Leader {
        return match peers::serve(node, request).await {
            PeerResponse::Index(_) => Answer::Heard,
            other => Answer::Not(format!("{other:?}")),
        };
    }
    // Last in, first out: the leader, as far as it is known, comes first, then the other members.
    let mut targets: Vec<String> = node.config().join.clone();
    targets.extend(status.peers.values().map(|peer| peer.raft_addr.clone()));
    targets.extend(status.leader.and_then(|id| status.peers.get(&id)).map(|peer| peer.raft_addr.clone()));
    let mut asked = BTreeSet::from([me.raft_addr.clone()]);
    let mut why = "no other member is known".to_owned();
    while let Some(address) = targets.pop() {
        if !asked.insert(address.clone()) {
            continue;
        }
        if !status.peers.values().any(|peer| peer.raft_addr == address) {
            // Somebody who has moved as well, perhaps: then he is to be reached there, whoever leads.
            let hello = peers::ask_address(node, &address, &PeerRequest::Hello, ATTEMPT).await;
            if let Ok(PeerResponse::Hello { node_id, raft_addr, .. }) = hello {
                node.raft().peer_moved(node_id, &raft_addr);
            }
        }
        match peers::ask_address(node, &address, &request, ATTEMPT).await {
            Ok(PeerResponse::Index(_)) => return Answer::Heard,
            Ok(PeerResponse::NotMember) => return Answer::NotMember(address),
            Ok(PeerResponse::NotLeader(leader)) => {
                why = format!("{address} does not lead");
                targets.extend(leader);
            }
            Ok(PeerResponse::Refused(reason) | PeerResponse::Unavailable(reason)) => {
                why = format!("{address}: {reason}");
            }
            Ok(PeerResponse::Hello { .. }) => why = format!("{address}: the answer makes no sense"),
            Err(reason) => why = reason,
        }
    }
    Answer::Not(why)
}

fn removed(node: &Arc<Node>, by: &str) {
    if node.leadership().removed().is_some() {
        return;
    }
    let why = format!(
        "node {} was removed from its cluster; stop it. It can't come back under this id: let the machine join \
         under a new one, with an empty data directory",
        node.id()
    );
    error!(leader = by, "{why}");
    node.raft().stand_for_election(false);
    node.leadership().set_removed(Some(why));
    node.registry().open_ones().iter().for_each(|database| database.expire());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_concerned_about() {
        let peer = |n: u64| Peer { raft_addr: format!("h:{n}"), http_addr: format!("h:1{n}") };
        let known = peer(2);
        let of = |votes, me: u64, wants, silent| concern(Some(&known), votes, &peer(me), wants, silent);
        assert_eq!(of(true, 2, true, false), None);
        assert_eq!(of(true, 2, true, true), Some(Concern::Silence));
        assert_eq!(of(true, 3, true, false), Some(Concern::Address));
        assert_eq!(of(false, 2, true, false), Some(Concern::Vote));
        assert_eq!(of(false, 2, false, false), None);
        assert_eq!(concern(None, false, &peer(2), true, false), None, "it catches up");
        assert_eq!(concern(None, false, &peer(2), true, true), Some(Concern::Silence));
    }
}
