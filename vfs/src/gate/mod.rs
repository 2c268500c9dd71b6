//! The gate: what serialises the writers of a database, seen from the app.
//!
//! | module | what it is |
//! |---|---|
//! | [`proto`] | the messages between app and node, byte by byte |
//! | [`client`] | the blocking client over the node's unix socket |
//! | [`fork`] | descriptors of which a forked child gets no copy |
//! | [`lock`] | the kernel lock that says who may touch the WAL on this machine |

pub mod client;
pub mod fork;
pub mod lock;
pub mod proto;

use crate::format::PageSize;
use crate::format::transaction::TxnId;
use proto::{NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, WalTarget};
use std::time::Duration;

/// What the node says of a database when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// Name, without directory and `.db`.
    pub name: String,
    /// The node that answered.
    pub node_id: u64,
    /// Page size of the database.
    pub page_size: PageSize,
    /// How long a commit may wait for its outcome.
    pub commit_deadline: Duration,
    /// The largest transaction that the node takes, in bytes of pages.
    pub max_transaction: u64,
    /// Bytes of pages that one message may have.
    pub part_bytes: u32,
    /// Bytes of pages in the WAL from which on it should start anew.
    pub wal_limit: u64,
}

/// The right to write one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Fences the lease: a number that is never granted twice by a node.
    pub token: u64,
    /// Raft index of the last entry applied to the database.
    pub base: u64,
    /// Size of the database in pages.
    pub pages: u32,
}

/// One connection's access to the gate of its database.
pub trait Gate: Send {
    /// What the node said at the open.
    fn info(&self) -> &DatabaseInfo;

    /// Asks for the right to write, and waits a short while for it.
    fn acquire(&mut self) -> Result<Grant, Refusal>;

    /// Sends a part of a large transaction, encoded behind [`proto::COMMIT_PREFIX`] bytes of room, and waits
    /// until it is in the log. An error is a definite refusal of the whole transaction.
    fn part(&mut self, grant: &Grant, message: Vec<u8>) -> Result<(), String>;

    /// Proposes a transaction, or the last part of one, encoded behind [`proto::COMMIT_PREFIX`] bytes of room, and waits for its
    /// outcome.
    fn commit(&mut self, grant: &Grant, id: TxnId, target: WalTarget, message: Vec<u8>) -> Outcome;

    /// Gives the right back. With `linger` the writer wants to try again at once.
    fn release(&mut self, grant: Grant, linger: bool);

    /// Whether another database has taken the place of the one that was opened.
    fn is_replaced(&self) -> bool {
        false
    }

    /// Waits until this node's copy has what a reader wants; see [`proto::Response::Reached`] for the answer.
    fn read(&mut self, _goal: ReadGoal, _wait: Duration) -> Result<(u64, Duration), Refusal> {
        Err(Refusal::new(RefusalCode::Invalid, "this connection reads what is there"))
    }

    /// What the node says of itself and the database.
    fn status(&mut self) -> Result<NodeStatus, Refusal> {
        Err(Refusal::new(RefusalCode::Invalid, "this connection has no node to ask"))
    }

    /// Whether this connection is the node's own checkpointer.
    fn is_checkpointer(&self) -> bool {
        false
    }
}
