//! Quire's Raft: a segmented log, a mutually authenticated QUIC network, and openraft behind one narrow interface.
//!
//! This crate knows Raft and no SQLite. A command is opaque bytes; what it means is the caller's affair. openraft
//! is used only inside and does not appear in any public signature.
//!
//! # The life of a commit, by file name
//! `propose.rs` takes a proposal (bounded in bytes) → `log/store.rs` makes it readable and queues it →
//! `log/writer.rs` writes and syncs it, while `net/client.rs` sends it to the followers, whose `net/server.rs`
//! hands it to their own log store → a majority has it on disk → `machine.rs` hands it to the caller's
//! [`StateMachine`], in log order, and the proposal resolves.
//!
//! # Invariants
//! - Nothing is acknowledged, to a client or to a leader, before the local `fdatasync` that covers it has returned.
//! - A failed write or sync is final: the store fails, the node stops ([`Raft::stopped`]), nothing is retried.
//! - Damage that can be told from a torn tail is a refusal to start that names file and offset.
//! - A peer that doesn't hold the cluster key gets no byte of Raft; every length from the wire is bounded before
//!   memory is taken for it.
//! - Every wait has a deadline.
//!
//! # Threads
//! [`Raft::start`] spawns on the current tokio runtime. Each node has two more threads: the log writer (the only
//! one that writes to the log) and the segment preparer (zero-fills spare segments ahead of need).

mod admission;
mod config;
mod encode;
mod error;
#[cfg(test)]
mod golden;
pub mod inspect;
mod key;
mod log;
mod machine;
mod members;
mod net;
mod position;
mod propose;
mod raft;
pub mod recover;
mod recovered;
mod status;
mod types;

/// The log store over a disk in memory, for simulations of whole nodes.
#[cfg(feature = "simulation")]
pub mod simulation {
    pub use crate::log::simulated::{Disk, Draw, Log, membership};
}

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use crate::config::{Limits, RaftConfig};
pub use crate::error::{KeyError, LogError, ProposeError, RaftError, RequestError, StartError};
pub use crate::key::ClusterKey;
pub use crate::net::bulk::{BULK_FRAME_BYTES, Bulk};
pub use crate::position::{AppliedState, LogPosition, NodeId, Peer};
pub use crate::raft::Raft;
pub use crate::status::{RaftStatus, ServerState};

/// One committed entry, as a [`StateMachine`] gets it.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The entry's position in the log.
    pub position: LogPosition,
    /// What the entry carries.
    pub payload: Payload,
}

/// What a committed entry carries.
#[derive(Clone)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A membership, in this crate's own encoding (which includes its log position). The state machine keeps the
    /// last one durably and gives it back as [`AppliedState::membership`].
    Membership(Bytes),
    /// A command, exactly as it was proposed.
    Command(Bytes),
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Payload::Blank => write!(f, "Blank"),
            Payload::Membership(b) => write!(f, "Membership({} B)", b.len()),
            Payload::Command(b) => write!(f, "Command({} B)", b.len()),
        }
    }
}

/// The ids of all nodes in a membership ([`Payload::Membership`]), with a vote or without.
///
/// # Errors
/// Bytes that are none.
pub fn members_of(membership: &Bytes) -> std::io::Result<std::collections::BTreeSet<NodeId>> {
    let membership = encode::read_membership(membership.clone())?;
    Ok(membership.membership().nodes().map(|(id, _)| *id).collect())
}

/// The consumer of the log.
pub trait StateMachine: Send + Sync + 'static {
    /// What is durable. Called once, at start, on a blocking thread. Entries after it are handed over again.
    fn applied(&self) -> std::io::Result<AppliedState>;

    /// Takes a batch of committed entries, in log order, each exactly once per process life. It is called on a
    /// runtime thread and must be quick (queue the work). An error is fatal for the node.
    fn apply(&self, batch: Vec<Committed>) -> std::io::Result<()>;

    /// Resolves when the state machine has room for more entries, which wait in the log meanwhile. It must come
    /// to that without further entries.
    fn room(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    /// What is durable now, as [`StateMachine::applied`] says it, and a description of that state for a member that
    /// needs entries which were purged. Called on a runtime thread; nothing is to be copied.
    fn snapshot(&self) -> std::io::Result<(AppliedState, Bytes)>;

    /// Gets from node `from` whatever this node lacks of a state that it described, and keeps it, durably, for
    /// [`StateMachine::install`]; or uses it already, as all of it is committed. It may take long, be dropped at any
    /// time, and be called again: what was there already should not be sent twice. Entries are still handed over
    /// meanwhile.
    fn fetch(&self, from: NodeId, snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>>;

    /// Makes what was fetched the state, durably; `state` is then what [`StateMachine::applied`] says. A crash at any
    /// point leaves either the old state or the new one. An error is fatal for the node.
    fn install(&self, state: AppliedState, snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>>;

    /// What was fetched will not be installed, or has been.
    fn abandon(&self);
}

/// Serves requests that other nodes forward to this one.
pub trait RequestHandler: Send + Sync + 'static {
    /// Answers one request. `from` is the id in the sender's certificate; the sender holds the cluster key, but need
    /// not be a member yet. The future is dropped after two minutes; a caller that gave up earlier doesn't end it, but where
    /// [`RequestHandler::ends_with_caller`] says so.
    fn handle(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// Whether a request is given up, and its future dropped, as soon as nobody waits for the answer any more: the caller has
    /// given it up, or is gone.
    fn ends_with_caller(&self, request: &[u8]) -> bool {
        let _ = request;
        false
    }

    /// Serves a bulk stream that another node opened ([`Raft::open_bulk`]). Dropping it ends it.
    fn bulk(&self, from: NodeId, stream: Bulk) -> BoxFuture<'static, ()>;
}
