//! The gate's protocol, version 3: messages between an app's VFS and its node over a unix stream socket.
//! Little-endian. Each message is a `u32` length and that many bytes, the first of which is its kind.
//! A string is a `u16` length and UTF-8.
//!
//! ```text
//! app → node
//!   1 Hello    u8 kind, u8 flags (1 create, 2 read-only), u16 version, u32 pid, u32 page size or 0,
//!              u64 device and u64 inode of the database's directory, string name
//!   2 Acquire  u8 kind, 3 × 0, u32 wait in ms
//!   3 Commit   u8 kind, 7 × 0, u64 token, [u8;8] salts, u32 frame, 20 × 0, transaction
//!   4 Release  u8 kind, u8 flags (1 linger), 6 × 0, u64 token
//!   5 Resolve  u8 kind, 7 × 0, u64 base, [u8;8] salts, u32 frame, [u8;16] transaction id
//!   6 Part     u8 kind, 7 × 0, u64 token, 32 × 0, a part of a transaction
//!   7 Read     u8 kind, u8 goal (0 index, 1 newest, 2 age), 2 × 0, u32 wait in ms, u64 index, 0 or age in ms
//!   8 Status   u8 kind
//! node → app
//!   1 Welcome  u8 kind, 0, u16 version, u32 page size, u64 node id, u32 commit deadline in ms, u64 max
//!              transaction in bytes, u64 WAL limit in bytes, u32 bytes of pages in one message
//!   2 Refused  u8 kind, u8 code, string message
//!   3 Granted  u8 kind, 3 × 0, u32 pages, u64 token, u64 base
//!   4 Outcome  u8 kind, u8 (0 committed, 1 refused, 2 unknown), 6 × 0, u64 index, string message
//!   5 Taken    u8 kind, 3 × 0, u32 sequence
//!   6 Reached  u8 kind, 3 × 0, u32 age in ms, u64 index
//!   7 Status   u8 kind, 7 × 0, u64 index, u64 leader or 0, string its address, string checksum, string JSON
//! ```
//!
//! Hello comes first and is answered by Welcome or Refused. Acquire is answered by Granted or Refused;
//! Commit and Resolve by Outcome; Part by Taken, or by a refusing Outcome; Release by nothing; Read by
//! Reached or Refused; Status by Status.
//!
//! A transaction with more pages than one message may have is sent as Parts, each of which is in the log
//! before it is answered, and a Commit with the last part. Without that Commit nothing of it ever takes
//! effect, so whatever goes wrong with a Part is a definite refusal.
//!
//! An app whose connection broke while it waited for an
//! Outcome connects again, says Hello and then Resolve. The node closes a connection that sends anything
//! else. The fixed part of Commit and Part is as long as a log entry's, so that the node can make the one
//! into the other where it stands.

mod codec;

use crate::format::transaction::{LAST_HEADER_SIZE, Transaction, TxnId};
use crate::format::wal::Salts;
use crate::format::{FormatError, FrameNo, PageSize, le32};

/// The version that this build speaks.
pub const VERSION: u16 = 3;
/// Bytes before the transaction in a Commit or Part message.
pub const COMMIT_PREFIX: usize = 48;
/// Bytes of pages in one message, unless a node is told otherwise.
pub const PART_BYTES: u32 = 4 << 20;
/// The longest message that is neither a Commit nor a Part, in bytes.
pub const MAX_SMALL: usize = 4096;
/// The longest message that a node sends.
pub const MAX_RESPONSE: usize = MAX_SMALL;

/// Where in the originating node's WAL a transaction ends: generation and commit frame. Tells, after a
/// crash, whether it was published there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalTarget {
    /// The WAL generation.
    pub salts: Salts,
    /// The commit frame.
    pub frame: FrameNo,
}

/// Why a node won't do what it was asked, before anything was proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind of reason.
    pub code: RefusalCode,
    /// What is wrong and what to do, for a log line.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCode {
    /// Another writer has the database; try again.
    Busy,
    /// This node does not lead. Only between nodes: apps write on any.
    NotLeader,
    /// There is no leader or no quorum now; try again.
    Unavailable,
    /// The node or its disk is full.
    Full,
    /// The request makes no sense to this node: a bad name, another directory, another version.
    Invalid,
    /// There is no such database, and it was not to be created.
    NotFound,
    /// The database is fenced on this node.
    Fenced,
}

impl RefusalCode {
    const ALL: [RefusalCode; 7] = [
        RefusalCode::Busy,
        RefusalCode::NotLeader,
        RefusalCode::Unavailable,
        RefusalCode::Full,
        RefusalCode::Invalid,
        RefusalCode::NotFound,
        RefusalCode::Fenced,
    ];

    /// The code with this number.
    pub fn from_byte(code: u8) -> Option<RefusalCode> {
        RefusalCode::ALL.into_iter().find(|c| *c as u8 == code)
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed, at this Raft index.
    Committed(u64),
    /// It is not and never will be.
    Refused(String),
    /// The deadline passed before the outcome was definite.
    Unknown(String),
}

/// The opening message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Create the database if it isn't known.
    pub create: bool,
    /// The connection will only read.
    pub read_only: bool,
    /// The app's process id, for log lines.
    pub pid: u32,
    /// Page size for a database that has to be created.
    pub page_size: Option<PageSize>,
    /// Device and inode of the directory that the app sees the file in.
    pub directory: (u64, u64),
    /// The database's name.
    pub name: String,
}

/// How much of what was committed a reader wants this node's copy of the database to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadGoal {
    /// Everything up to this entry of the log, whichever database it is of.
    Index(u64),
    /// Everything that was committed before it was asked.
    Newest,
    /// Everything that was committed longer ago than this many milliseconds.
    Age(u32),
}

/// A message from an app, as the node reads it. A Commit's transaction stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// See the module's head.
    Hello(Hello),
    /// See the module's head.
    Acquire {
        /// How long the app is willing to queue.
        wait_ms: u32,
    },
    /// See the module's head; the transaction begins at [`COMMIT_PREFIX`].
    Commit {
        /// The grant under which it was written.
        token: u64,
        /// Where the app's SQLite has written it.
        target: WalTarget,
    },
    /// See the module's head; the part begins at [`COMMIT_PREFIX`].
    Part {
        /// The grant under which it was written.
        token: u64,
    },
    /// See the module's head.
    Release {
        /// The grant that ends.
        token: u64,
        /// The writer is about to ask again.
        linger: bool,
    },
    /// See the module's head.
    Resolve {
        /// The base that the transaction was written on.
        base: u64,
        /// Where the app's SQLite has written it.
        target: WalTarget,
        /// Which transaction.
        id: TxnId,
    },
    /// Wait until a reader finds what it wants.
    Read {
        /// What that is.
        goal: ReadGoal,
        /// How long the app is willing to wait.
        wait_ms: u32,
    },
    /// What does the node say of itself and the database?
    Status,
}

/// A message from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// See the module's head.
    Welcome {
        /// Page size of the database.
        page_size: PageSize,
        /// The node's id.
        node_id: u64,
        /// How long a commit may wait.
        commit_deadline_ms: u32,
        /// Bytes of the largest transaction.
        max_transaction: u64,
        /// Bytes of pages from which on the WAL should start anew.
        wal_limit: u64,
        /// Bytes of pages that one message may have; see [`part_pages`].
        part_bytes: u32,
    },
    /// See the module's head.
    Refused(Refusal),
    /// See the module's head.
    Granted {
        /// The lease's fence.
        token: u64,
        /// Index of the last entry applied.
        base: u64,
        /// Pages in the database.
        pages: u32,
    },
    /// See the module's head.
    Outcome(Outcome),
    /// See the module's head.
    Taken {
        /// Of the part that is in the log.
        sequence: u32,
    },
    /// Whoever begins to read now finds what was wanted.
    Reached {
        /// Everything up to this entry of the log is there.
        index: u64,
        /// For [`ReadGoal::Age`]: everything that was committed this long before the answer is there.
        age_ms: u32,
    },
    /// See the module's head.
    Status(NodeStatus),
}

/// What a node says of itself and of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The database's last entry.
    pub index: u64,
    /// The leader and the address of its HTTP API.
    pub leader: Option<(u64, String)>,
    /// The database's checksum at that entry.
    pub checksum: String,
    /// All there is to say, as JSON.
    pub json: String,
}

/// Writes the `u32` length before a message that was built behind 4 bytes of room.
fn frame(mut out: Vec<u8>) -> Vec<u8> {
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
    out
}

/// Room at the head of the buffer of a Commit or Part: length and fixed part, filled in by [`finish_commit`]
/// or [`finish_part`].
pub fn commit_buffer(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + COMMIT_PREFIX + capacity);
    out.resize(4 + COMMIT_PREFIX, 0);
    out
}

/// Completes a buffer from [`commit_buffer`] behind which a transaction was encoded.
pub fn finish_commit(mut buffer: Vec<u8>, token: u64, target: &WalTarget) -> Vec<u8> {
    buffer[4] = 3;
    buffer[12..20].copy_from_slice(&token.to_le_bytes());
    buffer[20..28].copy_from_slice(&target.salts.0);
    buffer[28..32].copy_from_slice(&target.frame.0.to_le_bytes());
    frame(buffer)
}

/// Completes a buffer from [`commit_buffer`] behind which a part of a transaction was encoded.
pub fn finish_part(mut buffer: Vec<u8>, token: u64) -> Vec<u8> {
    buffer[4] = 6;
    buffer[12..20].copy_from_slice(&token.to_le_bytes());
    frame(buffer)
}

/// How many pages one message may have: at least one.
pub fn part_pages(part_bytes: u32, page_size: PageSize) -> usize {
    (part_bytes as usize / page_size.bytes()).max(1)
}

/// Length of the longest Commit or Part.
pub fn max_message(part_bytes: u32, page_size: PageSize) -> usize {
    COMMIT_PREFIX + LAST_HEADER_SIZE + part_pages(part_bytes, page_size) * (4 + page_size.bytes())
}

/// The transaction, or the piece of one, inside a Commit or Part message that [`Request::decode`] accepted.
pub fn commit_transaction(message: &[u8]) -> Result<Transaction<'_>, FormatError> {
    Transaction::decode(message.get(COMMIT_PREFIX..).unwrap_or_default())
}

/// The length that stands before a message, if it is no more than `max`.
pub fn message_length(prefix: [u8; 4], max: usize) -> Result<usize, FormatError> {
    let len = le32(&prefix, 0) as usize;
    if len == 0 || len > max {
        return Err(FormatError::new("gate message", 0, format!("length {len}, allowed are 1 to {max}")));
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
