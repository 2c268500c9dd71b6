//! The gate's protocol, version 2: messages between an app's VFS and its node over a unix stream socket.
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
//! node → app
//!   1 Welcome  u8 kind, 0, u16 version, u32 page size, u64 node id, u32 commit deadline in ms, u64 max
//!              transaction in bytes, u64 WAL limit in bytes, u32 bytes of pages in one message
//!   2 Refused  u8 kind, u8 code, string message
//!   3 Granted  u8 kind, 3 × 0, u32 pages, u64 token, u64 base
//!   4 Outcome  u8 kind, u8 (0 committed, 1 refused, 2 unknown), 6 × 0, u64 index, string message
//!   5 Taken    u8 kind, 3 × 0, u32 sequence
//! ```
//!
//! Hello comes first and is answered by Welcome or Refused. Acquire is answered by Granted or Refused;
//! Commit and Resolve by Outcome; Part by Taken, or by a refusing Outcome; Release by nothing.
//!
//! A transaction with more pages than one message may have is sent as Parts, each of which is in the log
//! before it is answered, and a Commit with the last part. Without that Commit nothing of it ever takes
//! effect, so whatever goes wrong with a Part is a definite refusal.
//!
//! An app whose connection broke while it waited for an
//! Outcome connects again, says Hello and then Resolve. The node closes a connection that sends anything
//! else. The fixed part of Commit and Part is as long as a log entry's, so that the node can make the one
//! into the other where it stands.

use crate::format::transaction::{LAST_HEADER_SIZE, Transaction, TxnId};
use crate::format::wal::Salts;
use crate::format::{FormatError, FrameNo, PageSize, le32};

/// The version that this build speaks.
pub const VERSION: u16 = 2;
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
}

struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        let taken = self.bytes.get(self.at..self.at.saturating_add(n));
        let taken = taken.ok_or_else(|| self.err(format!("{} bytes, too short", self.bytes.len())))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String, FormatError> {
        let len = self.u16()?;
        let bytes = self.take(usize::from(len))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.err("a string is not UTF-8".into()))
    }

    fn zeros(&mut self, n: usize) -> Result<(), FormatError> {
        if self.take(n)?.iter().any(|&b| b != 0) {
            return Err(self.err("reserved bytes are not zero".into()));
        }
        Ok(())
    }

    fn target(&mut self) -> Result<WalTarget, FormatError> {
        Ok(WalTarget { salts: Salts(self.array()?), frame: FrameNo(self.u32()?) })
    }

    fn end(&self) -> Result<(), FormatError> {
        if self.at != self.bytes.len() {
            return Err(self.err(format!("{} bytes too many", self.bytes.len() - self.at)));
        }
        Ok(())
    }

    fn err(&self, reason: String) -> FormatError {
        FormatError::new(self.what, self.at as u64, reason)
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(2000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

fn put_target(out: &mut Vec<u8>, target: &WalTarget) {
    out.extend_from_slice(&target.salts.0);
    out.extend_from_slice(&target.frame.0.to_le_bytes());
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

impl Request {
    /// The message with its length, ready to send. A Commit is made by [`finish_commit`], a Part by
    /// [`finish_part`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        match self {
            Request::Hello(hello) => {
                let flags = u8::from(hello.create) | u8::from(hello.read_only) << 1;
                out.extend_from_slice(&[1, flags]);
                out.extend_from_slice(&VERSION.to_le_bytes());
                out.extend_from_slice(&hello.pid.to_le_bytes());
                out.extend_from_slice(&hello.page_size.map_or(0, PageSize::get).to_le_bytes());
                out.extend_from_slice(&hello.directory.0.to_le_bytes());
                out.extend_from_slice(&hello.directory.1.to_le_bytes());
                put_string(&mut out, &hello.name);
            }
            Request::Acquire { wait_ms } => {
                out.extend_from_slice(&[2, 0, 0, 0]);
                out.extend_from_slice(&wait_ms.to_le_bytes());
            }
            Request::Commit { token, target } => {
                return finish_commit(commit_buffer(0), *token, target);
            }
            Request::Part { token } => return finish_part(commit_buffer(0), *token),
            Request::Release { token, linger } => {
                out.extend_from_slice(&[4, u8::from(*linger), 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&token.to_le_bytes());
            }
            Request::Resolve { base, target, id } => {
                out.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&base.to_le_bytes());
                put_target(&mut out, target);
                out.extend_from_slice(&id.0);
            }
        }
        frame(out)
    }

    /// Reads a message without its length. The transaction of a Commit or Part is checked by
    /// [`Transaction::decode`] on the bytes from [`COMMIT_PREFIX`] on.
    pub fn decode(bytes: &[u8]) -> Result<Request, FormatError> {
        let mut r = Reader { what: "gate request", bytes, at: 0 };
        let request = match r.u8()? {
            1 => {
                let flags = r.u8()?;
                let version = r.u16()?;
                if version != VERSION {
                    return Err(r.err(format!(
                        "the app speaks gate protocol {version}, this node {VERSION}: use the libquire_vfs \
                         that came with the node"
                    )));
                }
                let pid = r.u32()?;
                let page_size = match r.u32()? {
                    0 => None,
                    n => Some(PageSize::new(n).ok_or_else(|| r.err(format!("{n} is no page size")))?),
                };
                let directory = (r.u64()?, r.u64()?);
                let name = r.string()?;
                let (create, read_only) = (flags & 1 != 0, flags & 2 != 0);
                Request::Hello(Hello { create, read_only, pid, page_size, directory, name })
            }
            2 => {
                r.zeros(3)?;
                Request::Acquire { wait_ms: r.u32()? }
            }
            3 => {
                r.zeros(7)?;
                let (token, target) = (r.u64()?, r.target()?);
                r.zeros(COMMIT_PREFIX - 28)?;
                return Ok(Request::Commit { token, target });
            }
            4 => {
                let linger = r.u8()? & 1 != 0;
                r.zeros(6)?;
                Request::Release { token: r.u64()?, linger }
            }
            5 => {
                r.zeros(7)?;
                let (base, target) = (r.u64()?, r.target()?);
                Request::Resolve { base, target, id: TxnId(r.array()?) }
            }
            6 => {
                r.zeros(7)?;
                let token = r.u64()?;
                r.zeros(COMMIT_PREFIX - 16)?;
                return Ok(Request::Part { token });
            }
            kind => return Err(r.err(format!("unknown kind {kind}"))),
        };
        r.end()?;
        Ok(request)
    }
}

impl Response {
    /// The message with its length, ready to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        match self {
            Response::Welcome {
                page_size,
                node_id,
                commit_deadline_ms,
                max_transaction,
                wal_limit,
                part_bytes,
            } => {
                out.extend_from_slice(&[1, 0]);
                out.extend_from_slice(&VERSION.to_le_bytes());
                out.extend_from_slice(&page_size.get().to_le_bytes());
                out.extend_from_slice(&node_id.to_le_bytes());
                out.extend_from_slice(&commit_deadline_ms.to_le_bytes());
                out.extend_from_slice(&max_transaction.to_le_bytes());
                out.extend_from_slice(&wal_limit.to_le_bytes());
                out.extend_from_slice(&part_bytes.to_le_bytes());
            }
            Response::Refused(refusal) => {
                out.extend_from_slice(&[2, refusal.code as u8]);
                put_string(&mut out, &refusal.message);
            }
            Response::Granted { token, base, pages } => {
                out.extend_from_slice(&[3, 0, 0, 0]);
                out.extend_from_slice(&pages.to_le_bytes());
                out.extend_from_slice(&token.to_le_bytes());
                out.extend_from_slice(&base.to_le_bytes());
            }
            Response::Outcome(outcome) => {
                let (tag, index, message) = match outcome {
                    Outcome::Committed(index) => (0, *index, ""),
                    Outcome::Refused(why) => (1, 0, why.as_str()),
                    Outcome::Unknown(why) => (2, 0, why.as_str()),
                };
                out.extend_from_slice(&[4, tag, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&index.to_le_bytes());
                put_string(&mut out, message);
            }
            Response::Taken { sequence } => {
                out.extend_from_slice(&[5, 0, 0, 0]);
                out.extend_from_slice(&sequence.to_le_bytes());
            }
        }
        frame(out)
    }

    /// Reads a message without its length.
    pub fn decode(bytes: &[u8]) -> Result<Response, FormatError> {
        let mut r = Reader { what: "gate response", bytes, at: 0 };
        let response = match r.u8()? {
            1 => {
                r.zeros(1)?;
                let version = r.u16()?;
                if version != VERSION {
                    return Err(r.err(format!(
                        "the node speaks gate protocol {version}, this VFS {VERSION}: use the libquire_vfs that \
                         came with the node"
                    )));
                }
                let size = r.u32()?;
                let page_size =
                    PageSize::new(size).ok_or_else(|| r.err(format!("{size} is no page size")))?;
                let (node_id, commit_deadline_ms) = (r.u64()?, r.u32()?);
                let (max_transaction, wal_limit, part_bytes) = (r.u64()?, r.u64()?, r.u32()?);
                Response::Welcome {
                    page_size,
                    node_id,
                    commit_deadline_ms,
                    max_transaction,
                    wal_limit,
                    part_bytes,
                }
            }
            2 => {
                let code = r.u8()?;
                let code = RefusalCode::from_byte(code);
                let code = code.ok_or_else(|| r.err("unknown refusal".into()))?;
                Response::Refused(Refusal { code, message: r.string()? })
            }
            3 => {
                r.zeros(3)?;
                let pages = r.u32()?;
                Response::Granted { pages, token: r.u64()?, base: r.u64()? }
            }
            4 => {
                let tag = r.u8()?;
                r.zeros(6)?;
                let index = r.u64()?;
                let message = r.string()?;
                Response::Outcome(match tag {
                    0 => Outcome::Committed(index),
                    1 => Outcome::Refused(message),
                    2 => Outcome::Unknown(message),
                    n => return Err(r.err(format!("unknown outcome {n}"))),
                })
            }
            5 => {
                r.zeros(3)?;
                Response::Taken { sequence: r.u32()? }
            }
            kind => return Err(r.err(format!("unknown kind {kind}"))),
        };
        r.end()?;
        Ok(response)
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target() -> impl Strategy<Value = WalTarget> {
        (any::<[u8; 8]>(), any::<u32>()).prop_map(|(s, f)| WalTarget { salts: Salts(s), frame: FrameNo(f) })
    }

    fn request() -> impl Strategy<Value = Request> {
        let size = prop_oneof![Just(None), (9u32..=16).prop_map(|s| PageSize::new(1 << s))];
        prop_oneof![
            (any::<bool>(), any::<bool>(), any::<u32>(), size, any::<(u64, u64)>(), ".{0,80}").prop_map(
                |(create, read_only, pid, page_size, directory, name)| {
                    Request::Hello(Hello { create, read_only, pid, page_size, directory, name })
                }
            ),
            any::<u32>().prop_map(|wait_ms| Request::Acquire { wait_ms }),
            (any::<u64>(), target()).prop_map(|(token, target)| Request::Commit { token, target }),
            any::<u64>().prop_map(|token| Request::Part { token }),
            (any::<u64>(), any::<bool>()).prop_map(|(token, linger)| Request::Release { token, linger }),
            (any::<u64>(), target(), any::<[u8; 16]>()).prop_map(|(base, target, id)| Request::Resolve {
                base,
                target,
                id: TxnId(id)
            }),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            (any::<(u64, u32, u64, u64, u32)>()).prop_map(
                |(node_id, commit_deadline_ms, max_transaction, wal_limit, part_bytes)| {
                    let page_size = PageSize::DEFAULT;
                    Response::Welcome {
                        page_size,
                        node_id,
                        commit_deadline_ms,
                        max_transaction,
                        wal_limit,
                        part_bytes,
                    }
                }
            ),
            any::<u32>().prop_map(|sequence| Response::Taken { sequence }),
            (0usize..7, ".{0,80}").prop_map(|(c, m)| Response::Refused(Refusal::new(RefusalCode::ALL[c], m))),
            (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(token, base, pages)| Response::Granted {
                token,
                base,
                pages
            }),
            any::<u64>().prop_map(|i| Response::Outcome(Outcome::Committed(i))),
            ".{0,80}".prop_map(|m| Response::Outcome(Outcome::Refused(m))),
            ".{0,80}".prop_map(|m| Response::Outcome(Outcome::Unknown(m))),
        ]
    }

    fn body(message: &[u8]) -> &[u8] {
        let len = message_length(message[..4].try_into().unwrap(), usize::MAX).unwrap();
        assert_eq!(len, message.len() - 4);
        &message[4..]
    }

    proptest! {
        #[test]
        fn messages_round_trip(request in request(), response in response()) {
            prop_assert_eq!(Request::decode(body(&request.encode())).unwrap(), request);
            prop_assert_eq!(Response::decode(body(&response.encode())).unwrap(), response);
        }

        #[test]
        fn cut_messages_are_refused(request in request(), cut in any::<proptest::sample::Index>()) {
            let message = request.encode();
            let body = body(&message);
            prop_assert!(Request::decode(&body[..cut.index(body.len())]).is_err());
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = Response::decode(&bytes);
        }
    }

    /// The greeting is where versions meet: neither side may take the other's for something else.
    #[test]
    fn another_version_is_refused_by_both_sides_and_says_what_to_do() {
        let hello = Hello {
            create: true,
            read_only: false,
            pid: 1,
            page_size: None,
            directory: (1, 2),
            name: "app".into(),
        };
        let welcome = Response::Welcome {
            page_size: PageSize::DEFAULT,
            node_id: 1,
            commit_deadline_ms: 1,
            max_transaction: 1,
            wal_limit: 1,
            part_bytes: 1,
        };
        let (mut hello, mut welcome) = (Request::Hello(hello).encode(), welcome.encode());
        for message in [&mut hello, &mut welcome] {
            message[6..8].copy_from_slice(&1u16.to_le_bytes());
        }
        let why = Request::decode(body(&hello)).unwrap_err().to_string();
        assert!(why.contains("gate protocol 1, this node 2: use the libquire_vfs"), "{why}");
        // A node of version 1 says less in its Welcome.
        let why = Response::decode(&body(&welcome)[..36]).unwrap_err().to_string();
        assert!(why.contains("gate protocol 1, this VFS 2: use the libquire_vfs"), "{why}");
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(message_length(0u32.to_le_bytes(), 10).is_err());
        assert!(message_length(11u32.to_le_bytes(), 10).is_err());
        assert_eq!(message_length(10u32.to_le_bytes(), 10), Ok(10));
    }
}
