//! How each message is laid out in bytes; the tables stand in the head of [`super`].

use super::{
    COMMIT_PREFIX, Hello, NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, Request, Response, VERSION,
    WalTarget, commit_buffer, finish_commit, finish_part, frame,
};
use crate::format::transaction::TxnId;
use crate::format::wal::Salts;
use crate::format::{FormatError, FrameNo, PageSize};

/// Takes a message apart, from its beginning to its end.
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
            Request::Read { goal, wait_ms } => {
                let (tag, argument) = match goal {
                    ReadGoal::Index(index) => (0, *index),
                    ReadGoal::Newest => (1, 0),
                    ReadGoal::Age(ms) => (2, u64::from(*ms)),
                };
                out.extend_from_slice(&[7, tag, 0, 0]);
                out.extend_from_slice(&wait_ms.to_le_bytes());
                out.extend_from_slice(&argument.to_le_bytes());
            }
            Request::Status => out.push(8),
        }
        frame(out)
    }

    /// Reads a message without its length. The transaction of a Commit or Part is checked by
    /// [`super::commit_transaction`].
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
            7 => {
                let tag = r.u8()?;
                r.zeros(2)?;
                let (wait_ms, argument) = (r.u32()?, r.u64()?);
                let goal = match (tag, u32::try_from(argument)) {
                    (0, _) => ReadGoal::Index(argument),
                    (1, Ok(0)) => ReadGoal::Newest,
                    (2, Ok(ms)) => ReadGoal::Age(ms),
                    _ => return Err(r.err(format!("no goal of a reader: {tag}, {argument}"))),
                };
                Request::Read { goal, wait_ms }
            }
            8 => Request::Status,
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
            Response::Reached { index, age_ms } => {
                out.extend_from_slice(&[6, 0, 0, 0]);
                out.extend_from_slice(&age_ms.to_le_bytes());
                out.extend_from_slice(&index.to_le_bytes());
            }
            Response::Status(NodeStatus { index, leader, checksum, json }) => {
                let (id, address) = leader.as_ref().map_or((0, ""), |(id, address)| (*id, address.as_str()));
                out.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&id.to_le_bytes());
                put_string(&mut out, address);
                put_string(&mut out, checksum);
                put_string(&mut out, json);
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
                let code = RefusalCode::ALL.into_iter().find(|c| *c as u8 == code);
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
            6 => {
                r.zeros(3)?;
                let age_ms = r.u32()?;
                Response::Reached { index: r.u64()?, age_ms }
            }
            7 => {
                r.zeros(7)?;
                let (index, id) = (r.u64()?, r.u64()?);
                let (address, checksum, json) = (r.string()?, r.string()?, r.string()?);
                let leader = (id != 0).then_some((id, address));
                Response::Status(NodeStatus { index, leader, checksum, json })
            }
            kind => return Err(r.err(format!("unknown kind {kind}"))),
        };
        r.end()?;
        Ok(response)
    }
}
