//! The byte encodings shared by disk and wire. All integers are little-endian.
//!
//! | item | bytes |
//! |---|---|
//! | position | term u64, leader u64, index u64 (24) |
//! | optional position | u8 0, or u8 1 and a position |
//! | vote | term u64, node u64, u8 committed (17) |
//! | membership | u8 version 1, optional position, u32 configs, each u32 n and n × u64 voter; u32 nodes, each u64 id, u16 + raft address, u16 + http address |
//!
//! A reader checks every length against what is there and against the limits below before it allocates.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};

use crate::types::{Membership, StoredMembership, Vote, log_id};
use crate::{LogPosition, Peer};

const MEMBERSHIP_VERSION: u8 = 1;
const MAX_CONFIGS: u32 = 8;
const MAX_NODES: u32 = 1024;

/// Bytes that don't follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<Malformed> for std::io::Error {
    fn from(m: Malformed) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, m)
    }
}

/// Reads fields off the front of a buffer; payloads are slices of it, not copies.
pub(crate) struct Reader {
    buf: Bytes,
    what: &'static str,
}

impl Reader {
    pub(crate) fn new(buf: Bytes, what: &'static str) -> Self {
        Reader { buf, what }
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Result<Bytes, Malformed> {
        if self.buf.len() < n {
            return Err(Malformed(self.what));
        }
        Ok(self.buf.split_to(n))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let head = self.buf.first_chunk::<N>().copied().ok_or(Malformed(self.what))?;
        bytes::Buf::advance(&mut self.buf, N);
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed(self.what)),
        }
    }

    /// A count that must not exceed `max`.
    pub(crate) fn count(&mut self, max: u32) -> Result<u32, Malformed> {
        let n = self.u32()?;
        if n > max { Err(Malformed(self.what)) } else { Ok(n) }
    }

    pub(crate) fn position(&mut self) -> Result<LogPosition, Malformed> {
        Ok(LogPosition { term: self.u64()?, leader: self.u64()?, index: self.u64()? })
    }

    pub(crate) fn opt_position(&mut self) -> Result<Option<LogPosition>, Malformed> {
        if self.flag()? { self.position().map(Some) } else { Ok(None) }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, Malformed> {
        let (term, node) = (self.u64()?, self.u64()?);
        Ok(if self.flag()? { Vote::new_committed(term, node) } else { Vote::new(term, node) })
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let n = self.u16()? as usize;
        let raw = self.bytes(n)?;
        std::str::from_utf8(&raw).map(str::to_owned).map_err(|_| Malformed(self.what))
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.buf
    }

    /// Nothing may be left over.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.buf.is_empty() { Ok(()) } else { Err(Malformed(self.what)) }
    }
}

pub(crate) fn put_position(out: &mut impl BufMut, p: &LogPosition) {
    out.put_u64_le(p.term);
    out.put_u64_le(p.leader);
    out.put_u64_le(p.index);
}

pub(crate) fn put_opt_position(out: &mut impl BufMut, p: Option<&LogPosition>) {
    out.put_u8(u8::from(p.is_some()));
    if let Some(p) = p {
        put_position(out, p);
    }
}

pub(crate) fn put_vote(out: &mut impl BufMut, v: &Vote) {
    out.put_u64_le(v.leader_id().term);
    out.put_u64_le(v.leader_id().node_id);
    out.put_u8(u8::from(v.is_committed()));
}

/// Addresses and member counts are limited where members are added, so that this can't be cut short.
fn put_string(out: &mut Vec<u8>, s: &str) {
    let s = &s.as_bytes()[..s.len().min(u16::MAX as usize)];
    out.put_u16_le(s.len() as u16);
    out.put_slice(s);
}

pub(crate) fn membership(at: Option<LogPosition>, m: &Membership) -> Bytes {
    let mut out = Vec::with_capacity(128);
    out.put_u8(MEMBERSHIP_VERSION);
    put_opt_position(&mut out, at.as_ref());
    let configs = m.get_joint_config();
    out.put_u32_le(configs.len() as u32);
    for config in configs {
        out.put_u32_le(config.len() as u32);
        config.iter().for_each(|id| out.put_u64_le(*id));
    }
    let nodes: Vec<_> = m.nodes().collect();
    out.put_u32_le(nodes.len() as u32);
    for (id, peer) in nodes {
        out.put_u64_le(*id);
        put_string(&mut out, &peer.raft_addr);
        put_string(&mut out, &peer.http_addr);
    }
    out.into()
}

pub(crate) fn read_membership(buf: Bytes) -> Result<StoredMembership, Malformed> {
    let mut r = Reader::new(buf, "membership");
    if r.u8()? != MEMBERSHIP_VERSION {
        return Err(Malformed("membership version"));
    }
    let at = r.opt_position()?;
    let mut configs = Vec::new();
    for _ in 0..r.count(MAX_CONFIGS)? {
        let mut config = BTreeSet::new();
        for _ in 0..r.count(MAX_NODES)? {
            config.insert(r.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..r.count(MAX_NODES)? {
        let id = r.u64()?;
        nodes.insert(id, Peer { raft_addr: r.string()?, http_addr: r.string()? });
    }
    r.end()?;
    let membership = if configs.is_empty() {
        Membership::default()
    } else {
        Membership::new(configs, nodes).map_err(|_| Malformed("membership"))?
    };
    Ok(StoredMembership::new(at.map(log_id), membership))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u64) -> Peer {
        Peer { raft_addr: format!("node{n}.example:4002"), http_addr: format!("10.0.0.{n}:4001") }
    }

    #[test]
    fn membership_round_trip() {
        let nodes: BTreeMap<_, _> = (1..=4).map(|n| (n, peer(n))).collect();
        let m = Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])], nodes).unwrap();
        let at = LogPosition { term: 3, leader: 2, index: 77 };
        let stored = StoredMembership::new(Some(log_id(at)), m);
        let bytes = membership(Some(at), stored.membership());
        assert_eq!(read_membership(bytes.clone()).unwrap(), stored);
        for cut in 0..bytes.len() {
            assert!(read_membership(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
        let none = StoredMembership::default();
        assert_eq!(read_membership(membership(None, none.membership())).unwrap(), none);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_membership(bytes.into());
        }
    }
}
