//! openraft's type configuration. Nothing here is visible outside the crate.

use std::fmt;

use bytes::Bytes;
use openraft::type_config::alias;

use crate::machine::Machine;
use crate::{LogPosition, NodeId, Peer};

/// A proposed command. openraft formats entries in its debug output, hence sizes only.
#[derive(Clone)]
pub(crate) struct Command(pub(crate) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} B)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answer to a proposal: that it was handed over. Its position comes beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandedOver;

impl fmt::Display for HandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("handed over")
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (http {})", self.raft_addr, self.http_addr)
    }
}

openraft::declare_raft_types!(
    pub(crate) C:
        D = Command,
        R = HandedOver,
        NodeId = NodeId,
        Node = Peer,
);

pub(crate) type LogId = alias::LogIdOf<C>;
pub(crate) type Vote = alias::VoteOf<C>;
pub(crate) type Entry = alias::EntryOf<C>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<C>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<C>;
/// A snapshot carries what the state machine says of its state: see `machine.rs`.
pub(crate) type Snapshot = alias::SnapshotOf<C, Bytes>;
pub(crate) type Membership = openraft::Membership<NodeId, Peer>;
pub(crate) type Core = openraft::Raft<C, Machine>;

/// openraft's log id of a position.
pub(crate) fn log_id(p: LogPosition) -> LogId {
    use openraft::vote::RaftLeaderId;
    LogId::new(openraft::impls::leader_id_adv::LeaderId::new(p.term, p.leader).to_committed(), p.index)
}

/// The position of an openraft log id.
pub(crate) fn position(id: &LogId) -> LogPosition {
    let leader = id.committed_leader_id();
    LogPosition { term: leader.term, leader: leader.node_id, index: id.index() }
}
