//! The errors this crate returns: one enum per question a caller asks.

use std::path::PathBuf;

use crate::{LogPosition, NodeId, Peer};

/// The cluster key file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cluster key {path}: {reason}; {way_out}", path = path.display())]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it.
    pub way_out: String,
}

/// The log on disk can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has the directory open.
    #[error("{path}: another process has this Raft log open", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file is not what it must be: another format, version, cluster or node.
    #[error("{path} at offset {offset}: {reason}", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What differs.
        reason: String,
    },
    /// Bytes that were durable are damaged or missing. This node must not start on them: restore the disk, or remove
    /// the member from the cluster and let the machine join again under a new id.
    #[error("{path} at offset {offset}: damaged: {reason}; this node must not start on it: restore the file, or remove the member and join again under a new node id", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
}

/// The node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
    /// The log can't be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The network endpoint can't be set up.
    #[error("network: {0}")]
    Network(String),
    /// The state machine failed, or what it holds contradicts the log.
    #[error("state machine: {0}")]
    StateMachine(String),
    /// The Raft core refused to start.
    #[error("raft: {0}")]
    Raft(String),
}

/// An administrative call or a read barrier failed.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// This node doesn't lead (any more), or leads without a fresh quorum (then `leader` is `None`).
    #[error("not the leader{}", known_leader(leader))]
    NotLeader {
        /// The leader, where known and another node.
        leader: Option<(NodeId, Peer)>,
    },
    /// A quorum didn't answer.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// The request makes no sense in the present state.
    #[error("refused: {0}")]
    Refused(String),
    /// The member is too far behind.
    #[error("node {node} has {matched:?} of {last} entries")]
    NotCaughtUp {
        /// The member.
        node: NodeId,
        /// Highest index known to be on it.
        matched: Option<u64>,
        /// Highest index of the leader.
        last: u64,
    },
    /// The deadline passed; the request may still take effect.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// The node has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// A proposal failed, or its fate is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Not appended: this node doesn't lead, or leads without a fresh quorum (then `leader` is `None`).
    #[error("not the leader{}", known_leader(leader))]
    NotLeader {
        /// The leader, where known and another node.
        leader: Option<(NodeId, Peer)>,
    },
    /// Not appended: the command is longer than the limit.
    #[error("command of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Not appended: too many bytes are in flight and no room came up in time.
    #[error("too many bytes of proposals in flight")]
    Overloaded,
    /// Not appended: the log can't grow. Recovers by itself once there is room on the disk.
    #[error("disk full: {0}")]
    DiskFull(String),
    /// Not appended: the node has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
    /// The command may or may not commit, now or later.
    #[error("outcome unknown: {reason}")]
    Unknown {
        /// Why.
        reason: String,
        /// Where the entry was placed in the log, where known.
        position: Option<LogPosition>,
    },
}

/// A forwarded request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not sent: the body is longer than the limit.
    #[error("request of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Not sent: there is no such member, or no connection to it.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Sent, at least in part, and the connection was lost: it may or may not have been handled.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The deadline passed: it may or may not have been handled.
    #[error("timed out after {0:?}")]
    TimedOut(std::time::Duration),
}

fn known_leader(leader: &Option<(NodeId, Peer)>) -> String {
    match leader {
        Some((id, peer)) => format!("; the leader is node {id} at {}", peer.raft_addr),
        None => "; no leader is known".to_string(),
    }
}
