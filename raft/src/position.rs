//! What nodes and entries are called, here and in the caller's own files.

use bytes::Bytes;

/// Identifies a node for as long as the cluster lives. An id is never given to another machine or reused after its
/// disk was wiped.
pub type NodeId = u64;

/// The position of an entry: its index, and the leader (term, node) that created it. Two entries with the same
/// position are the same entry. The derived order (term, leader, index) is Raft's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct LogPosition {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Node id of the leader that created the entry.
    pub leader: NodeId,
    /// Index of the entry; the first entry of a cluster has index 0.
    pub index: u64,
}

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.term, self.leader, self.index)
    }
}

/// The advertised addresses of a member, `host:port` each. Host names are resolved at each connection attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where the member's Raft (QUIC, UDP) endpoint is reached.
    pub raft_addr: String,
    /// Where the member's HTTP API is reached; only carried, never used here.
    pub http_addr: String,
}

/// What is *durable* in the state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// Position of the last entry whose effects survive a crash; `None` when nothing was ever applied.
    pub position: Option<LogPosition>,
    /// The last membership at or below `position`, as it came in [`crate::Payload::Membership`].
    pub membership: Option<Bytes>,
    /// `position` comes from a snapshot that was installed, and the log may not know of it yet: the node may have ended
    /// in between.
    pub ahead: bool,
}
