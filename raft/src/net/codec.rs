//! Frames on the wire. Pure functions over bytes; little-endian; field encodings as in `encode.rs`.
//!
//! # Streams
//! Every stream is bidirectional and starts with a hello: u8 stream kind, u64 node id of the opener (which must be
//! the one in its certificate).
//!
//! | kind | connection | opener sends | answer |
//! |---|---|---|---|
//! | 1 call | control | one frame: u8 call, body; then ends | one frame; then ends |
//! | 2 append | data | frames: append | one frame per append, in order: append result |
//! | 3 request | data | one frame: opaque; then ends | one frame: opaque; then ends |
//! | 4 bulk | bulk | frames: opaque | frames: opaque |
//! | 5 snapshot | bulk | one frame: snapshot offer | frames: snapshot answer; then ends |
//!
//! A frame is a u32 length and that many bytes.
//!
//! | body | fields |
//! |---|---|
//! | call 1, append (heartbeat) | as append |
//! | call 2, vote · call 3, pre-vote | vote, optional last position, u8 leadership transfer |
//! | call 4, leader transfer | vote of the leader, u64 target node, optional last position |
//! | append | vote, optional previous position, optional commit position, u32 n, n × entry |
//! | entry | position, u8 kind (1 blank, 2 command, 3 membership), u32 length, payload |
//! | append result | u8: 0 and optional position (matching) · 1 and position (conflict) · 2 and vote (higher) · 3 (stopped) |
//! | vote answer | vote, u8 granted, optional last position |
//! | transfer answer | u8: 0 · 1, vote expected, vote actual · 2, optional position expected, actual |
//! | snapshot offer | vote, optional last position, u32 length, membership, the rest: what the state machine says of it |
//! | snapshot answer | u8: 0 (at work) · 1 and vote (installed) · 2 and UTF-8 text (why not) |
//! | call answer | u8 0 and the answer's body, or u8 1 (stopped) |

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::encode::{self, Malformed, Reader, put_opt_position, put_position, put_vote};
use crate::types::{C, Command, Entry, LogId, Snapshot, SnapshotMeta, Vote, log_id, position};
use crate::{LogPosition, NodeId};

/// Bytes of a hello.
pub(crate) const HELLO_BYTES: usize = 9;
/// Longest frame on a call stream, and longest answer to an append.
pub(crate) const CALL_BYTES: usize = 64 << 10;
/// Entries in one append, at most.
const MAX_ENTRIES: u32 = 4096;
/// Bytes of an append or an entry beside payloads, with room to spare.
const APPEND_OVERHEAD: usize = 128;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Call = 1,
    Append = 2,
    Request = 3,
    Bulk = 4,
    Snapshot = 5,
}

/// Longest append frame. One entry above the usual frame limit goes alone.
pub(crate) fn max_append_frame(command_bytes: usize, frame_bytes: usize) -> usize {
    command_bytes.max(frame_bytes) + frame_bytes + CALL_BYTES
}

pub(crate) fn hello(kind: StreamKind, from: NodeId) -> [u8; HELLO_BYTES] {
    let mut b = [0; HELLO_BYTES];
    b[0] = kind as u8;
    b[1..].copy_from_slice(&from.to_le_bytes());
    b
}

pub(crate) fn read_hello(b: [u8; HELLO_BYTES]) -> Result<(StreamKind, NodeId), Malformed> {
    let [kind, from @ ..] = b;
    let kind = match kind {
        1 => StreamKind::Call,
        2 => StreamKind::Append,
        3 => StreamKind::Request,
        4 => StreamKind::Bulk,
        5 => StreamKind::Snapshot,
        _ => return Err(Malformed("stream kind")),
    };
    Ok((kind, NodeId::from_le_bytes(from)))
}

/// A call on a control stream.
#[derive(Debug)]
pub(crate) enum Call {
    Append(AppendEntriesRequest<C>),
    Vote(VoteRequest<C>),
    PreVote(VoteRequest<C>),
    Transfer(TransferLeaderRequest<C>),
}

fn opt(id: &Option<LogId>) -> Option<LogPosition> {
    id.as_ref().map(position)
}

fn put_opt(out: &mut impl BufMut, id: &Option<LogId>) {
    put_opt_position(out, opt(id).as_ref());
}

fn get_opt(r: &mut Reader) -> Result<Option<LogId>, Malformed> {
    Ok(r.opt_position()?.map(log_id))
}

/// The chunks of an append's body. Command payloads are handles to the log's own memory, not copies.
pub(crate) fn append(req: &AppendEntriesRequest<C>) -> Vec<Bytes> {
    let mut chunks = Vec::with_capacity(1 + 2 * req.entries.len());
    let mut head = BytesMut::with_capacity(APPEND_OVERHEAD * (1 + req.entries.len().min(256)));
    put_vote(&mut head, &req.vote);
    put_opt(&mut head, &req.prev_log_id);
    put_opt(&mut head, &req.leader_commit);
    head.put_u32_le(req.entries.len() as u32);
    for e in &req.entries {
        put_position(&mut head, &position(&e.log_id));
        match &e.payload {
            EntryPayload::Blank => {
                head.put_u8(1);
                head.put_u32_le(0);
            }
            EntryPayload::Normal(c) => {
                head.put_u8(2);
                head.put_u32_le(c.0.len() as u32);
                chunks.push(head.split().freeze());
                chunks.push(c.0.clone());
            }
            EntryPayload::Membership(m) => {
                let m = encode::membership(Some(position(&e.log_id)), m);
                head.put_u8(3);
                head.put_u32_le(m.len() as u32);
                head.put_slice(&m);
            }
        }
    }
    if !head.is_empty() {
        chunks.push(head.freeze());
    }
    chunks
}

/// Decodes an append's body; payloads are slices of it.
pub(crate) fn read_append(body: Bytes) -> Result<AppendEntriesRequest<C>, Malformed> {
    let mut r = Reader::new(body, "append");
    let vote = r.vote()?;
    let prev_log_id = get_opt(&mut r)?;
    let leader_commit = get_opt(&mut r)?;
    let n = r.count(MAX_ENTRIES)?;
    let mut entries = Vec::with_capacity(n.min(256) as usize);
    let nothing_follows = Malformed("append: nothing can follow the previous entry");
    let follows = |p: &LogId| p.index().checked_add(1).ok_or(nothing_follows);
    let mut expect = prev_log_id.as_ref().map(follows).transpose()?;
    for _ in 0..n {
        let at = r.position()?;
        if expect.is_some_and(|i| i != at.index) || at.index == u64::MAX {
            return Err(Malformed("append: entries don't follow each other"));
        }
        expect = Some(at.index + 1);
        let kind = r.u8()?;
        let len = r.u32()? as usize;
        let payload = r.bytes(len)?;
        let payload = match kind {
            1 if len == 0 => EntryPayload::Blank,
            2 => EntryPayload::Normal(Command(payload)),
            3 => EntryPayload::Membership(encode::read_membership(payload)?.membership().clone()),
            _ => return Err(Malformed("entry kind")),
        };
        entries.push(Entry { log_id: log_id(at), payload });
    }
    r.end()?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// The body of a call.
pub(crate) fn call(call: &Call) -> Vec<Bytes> {
    let mut b = BytesMut::with_capacity(128);
    match call {
        Call::Append(a) => {
            let mut chunks = vec![Bytes::from_static(&[1])];
            chunks.extend(append(a));
            return chunks;
        }
        Call::Vote(v) | Call::PreVote(v) => {
            b.put_u8(if matches!(call, Call::Vote(_)) { 2 } else { 3 });
            put_vote(&mut b, &v.vote);
            put_opt(&mut b, &v.last_log_id);
            b.put_u8(u8::from(v.leadership_transfer));
        }
        Call::Transfer(t) => {
            b.put_u8(4);
            put_vote(&mut b, t.from_leader());
            b.put_u64_le(*t.to_node_id());
            put_opt(&mut b, &t.last_log_id().copied());
        }
    }
    vec![b.freeze()]
}

pub(crate) fn read_call(body: Bytes) -> Result<Call, Malformed> {
    let mut r = Reader::new(body, "call");
    let kind = r.u8()?;
    let call = match kind {
        1 => {
            let rest = r.rest();
            return Ok(Call::Append(read_append(rest)?));
        }
        2 | 3 => {
            let mut v = VoteRequest::new(r.vote()?, get_opt(&mut r)?);
            v.leadership_transfer = r.flag()?;
            if kind == 2 { Call::Vote(v) } else { Call::PreVote(v) }
        }
        4 => Call::Transfer(TransferLeaderRequest::new(r.vote()?, r.u64()?, get_opt(&mut r)?)),
        _ => return Err(Malformed("call kind")),
    };
    r.end()?;
    Ok(call)
}

/// The answer to an append; `None` if the core has stopped.
pub(crate) fn append_result(result: Option<&StreamAppendResult<C>>) -> Bytes {
    let mut b = BytesMut::with_capacity(32);
    match result {
        Some(Ok(matching)) => {
            b.put_u8(0);
            put_opt(&mut b, matching);
        }
        Some(Err(StreamAppendError::Conflict(at))) => {
            b.put_u8(1);
            put_position(&mut b, &position(at));
        }
        Some(Err(StreamAppendError::HigherVote(v))) => {
            b.put_u8(2);
            put_vote(&mut b, v);
        }
        None => b.put_u8(3),
    }
    b.freeze()
}

pub(crate) fn read_append_result(body: Bytes) -> Result<Option<StreamAppendResult<C>>, Malformed> {
    let mut r = Reader::new(body, "append result");
    let result = match r.u8()? {
        0 => Some(Ok(get_opt(&mut r)?)),
        1 => Some(Err(StreamAppendError::Conflict(log_id(r.position()?)))),
        2 => Some(Err(StreamAppendError::HigherVote(r.vote()?))),
        3 => None,
        _ => return Err(Malformed("append result")),
    };
    r.end()?;
    Ok(result)
}

pub(crate) fn vote_answer(v: &VoteResponse<C>) -> Bytes {
    let mut b = BytesMut::with_capacity(48);
    b.put_u8(0);
    put_vote(&mut b, &v.vote);
    b.put_u8(u8::from(v.vote_granted));
    put_opt(&mut b, &v.last_log_id);
    b.freeze()
}

/// The answer of a node whose core has stopped.
pub(crate) fn stopped_answer() -> Bytes {
    Bytes::from_static(&[1])
}

pub(crate) fn read_vote_answer(body: Bytes) -> Result<Option<VoteResponse<C>>, Malformed> {
    let mut r = Reader::new(body, "vote answer");
    if r.flag()? {
        return r.end().map(|()| None);
    }
    let vote = r.vote()?;
    let granted = r.flag()?;
    let last = get_opt(&mut r)?;
    r.end()?;
    Ok(Some(VoteResponse::new(vote, last, granted)))
}

pub(crate) fn transfer_answer(t: &TransferLeaderResponse<C>) -> Bytes {
    let mut b = BytesMut::with_capacity(64);
    b.put_u8(0);
    match t {
        Ok(()) => b.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            b.put_u8(1);
            put_vote(&mut b, expected);
            put_vote(&mut b, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            b.put_u8(2);
            put_opt(&mut b, expected);
            put_opt(&mut b, actual);
        }
    }
    b.freeze()
}

pub(crate) fn read_transfer_answer(body: Bytes) -> Result<Option<TransferLeaderResponse<C>>, Malformed> {
    let mut r = Reader::new(body, "transfer answer");
    if r.flag()? {
        return r.end().map(|()| None);
    }
    let answer = match r.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: r.vote()?, actual: r.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed { expected: get_opt(&mut r)?, actual: get_opt(&mut r)? }),
        _ => return Err(Malformed("transfer answer")),
    };
    r.end()?;
    Ok(Some(answer))
}

/// The chunks of a snapshot offer.
pub(crate) fn offer(vote: &Vote, snapshot: &Snapshot) -> Vec<Bytes> {
    let mut b = BytesMut::with_capacity(512);
    let last = snapshot.meta.last_log_id.as_ref().map(position);
    let stored = &snapshot.meta.last_membership;
    let membership = encode::membership(stored.log_id().as_ref().map(position), stored.membership());
    put_vote(&mut b, vote);
    put_opt_position(&mut b, last.as_ref());
    b.put_u32_le(membership.len() as u32);
    b.put_slice(&membership);
    vec![b.freeze(), snapshot.snapshot.clone()]
}

pub(crate) fn read_offer(body: Bytes) -> Result<(Vote, Snapshot), Malformed> {
    let mut r = Reader::new(body, "snapshot offer");
    let vote = r.vote()?;
    let last_log_id = r.opt_position()?.map(log_id);
    let len = r.u32()? as usize;
    let last_membership = encode::read_membership(r.bytes(len)?)?;
    Ok((vote, Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: r.rest() }))
}

/// What a member says of a snapshot that it was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotAnswer {
    /// It is at it.
    AtWork,
    Installed(Vote),
    /// Why not.
    Failed(String),
}

pub(crate) fn snapshot_answer(answer: &SnapshotAnswer) -> Bytes {
    let mut b = BytesMut::new();
    match answer {
        SnapshotAnswer::AtWork => b.put_u8(0),
        SnapshotAnswer::Installed(vote) => {
            b.put_u8(1);
            put_vote(&mut b, vote);
        }
        SnapshotAnswer::Failed(why) => {
            b.put_u8(2);
            b.put_slice(why.as_bytes());
        }
    }
    b.freeze()
}

pub(crate) fn read_snapshot_answer(body: Bytes) -> Result<SnapshotAnswer, Malformed> {
    let mut r = Reader::new(body, "snapshot answer");
    let answer = match r.u8()? {
        0 => SnapshotAnswer::AtWork,
        1 => SnapshotAnswer::Installed(r.vote()?),
        2 => return Ok(SnapshotAnswer::Failed(String::from_utf8_lossy(&r.rest()).into_owned())),
        _ => return Err(Malformed("snapshot answer")),
    };
    r.end()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: the index after the previous entry's overflowed.
    #[test]
    fn an_append_after_the_last_index_there_is_is_malformed() {
        let append = |index| {
            let prev_log_id = Some(log_id(LogPosition { term: 1, leader: 2, index }));
            let vote = Vote::new_committed(1, 2);
            let request =
                AppendEntriesRequest { vote, prev_log_id, leader_commit: None, entries: Vec::new() };
            read_append(super::append(&request).concat().into())
        };
        assert!(append(u64::MAX).is_err());
        assert!(append(u64::MAX - 1).is_ok());
    }
}
