//! The record: the unit of the log file. Pure functions over bytes.
//!
//! # Layout (little-endian, records start at multiples of 8)
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | marker: low half of the segment's life seed (never 0) |
//! | 4 | 4 | crc32 of bytes 8..64, started from the life seed's high half |
//! | 8 | 4 | payload length in bytes |
//! | 12 | 4 | crc32 of the payload, started from the life seed's high half |
//! | 16 | 1 | kind, see [`Kind`] |
//! | 17 | 7 | zero |
//! | 24 | 8 | term |
//! | 32 | 8 | leader |
//! | 40 | 8 | index |
//! | 48 | 8 | synced: bytes of this segment known durable when the record was written |
//! | 56 | 8 | committed: 1 + the committed index known then, 0 for none |
//! | 64 | … | payload, zero-padded to a multiple of 8 |
//!
//! # Invariants
//! - Both checksums depend on the *life seed*, a random number in the segment's header that changes whenever a file
//!   is recycled. So a record of a file's former life never reads as live, and no payload can pose as a record.
//! - A log is append-only within a life. Truncation and purge are records too ([`Kind::Base`], [`Kind::Purge`]):
//!   no durable byte is ever overwritten, so a crash at any point leaves a prefix of what was appended.
//! - `synced` tells a torn tail from damage: see `segment.rs`.

use crate::LogPosition;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 64;
/// Records start at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A blank entry.
    Blank = 1,
    /// An entry with a command.
    Command = 2,
    /// An entry with a membership.
    Membership = 3,
    /// Truncation: entries at `index` and above are void, the next entry has index `index`.
    Base = 4,
    /// The purge mark: everything up to the record's position, inclusive, is gone.
    Purge = 5,
    /// Nothing but a carrier of `synced` and `committed`.
    Mark = 6,
}

impl Kind {
    fn from_u8(k: u8) -> Option<Kind> {
        Some(match k {
            1 => Kind::Blank,
            2 => Kind::Command,
            3 => Kind::Membership,
            4 => Kind::Base,
            5 => Kind::Purge,
            6 => Kind::Mark,
            _ => return None,
        })
    }

    /// Whether the record is an entry of the Raft log.
    pub(crate) fn is_entry(self) -> bool {
        matches!(self, Kind::Blank | Kind::Command | Kind::Membership)
    }
}

/// The fields of a record's header that its user sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) len: u32,
    pub(crate) position: LogPosition,
    pub(crate) synced: u64,
    /// 1 + the committed index, 0 for none.
    pub(crate) committed: u64,
}

/// Why bytes are not a record of this life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// No marker of this life: free space, or a torn header.
    NoRecord,
    /// A marker, but a wrong header checksum or impossible field.
    Header,
    /// The header is right, but the payload isn't (or doesn't fit).
    Payload,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bad::NoRecord => "no record where one must be",
            Bad::Header => "record header checksum mismatch",
            Bad::Payload => "record payload checksum mismatch",
        })
    }
}

/// Bytes a record with a payload of `len` takes in the file.
pub(crate) const fn size(len: usize) -> usize {
    (HEADER_BYTES + len).next_multiple_of(ALIGN)
}

fn marker(seed: u64) -> [u8; 4] {
    (seed as u32).to_le_bytes()
}

fn crc(seed: u64, bytes: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new_with_initial((seed >> 32) as u32);
    h.update(bytes);
    h.finalize()
}

/// Appends a record to `out`, whose length must be a multiple of [`ALIGN`].
pub(crate) fn put(out: &mut Vec<u8>, seed: u64, h: &Header, payload: &[u8]) {
    debug_assert_eq!(h.len as usize, payload.len());
    debug_assert_eq!(out.len() % ALIGN, 0);
    let mut b = [0; HEADER_BYTES];
    b[0..4].copy_from_slice(&marker(seed));
    b[8..12].copy_from_slice(&h.len.to_le_bytes());
    b[12..16].copy_from_slice(&crc(seed, payload).to_le_bytes());
    b[16] = h.kind as u8;
    b[24..32].copy_from_slice(&h.position.term.to_le_bytes());
    b[32..40].copy_from_slice(&h.position.leader.to_le_bytes());
    b[40..48].copy_from_slice(&h.position.index.to_le_bytes());
    b[48..56].copy_from_slice(&h.synced.to_le_bytes());
    b[56..64].copy_from_slice(&h.committed.to_le_bytes());
    let check = crc(seed, &b[8..]);
    b[4..8].copy_from_slice(&check.to_le_bytes());
    let start = out.len();
    out.extend_from_slice(&b);
    out.extend_from_slice(payload);
    out.resize(start + size(payload.len()), 0);
}

fn u64_at(b: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut n = [0; 8];
    n.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(n)
}

fn u32_at(b: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut n = [0; 4];
    n.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(n)
}

/// Reads the header at the start of `bytes`, checking it but not the payload. Also returns the payload's checksum.
pub(crate) fn header(bytes: &[u8], seed: u64) -> Result<(Header, u32), Bad> {
    let Some(b) = bytes.first_chunk::<HEADER_BYTES>() else { return Err(Bad::NoRecord) };
    if b[0..4] != marker(seed) {
        return Err(Bad::NoRecord);
    }
    if u32_at(b, 4) != crc(seed, &b[8..]) {
        return Err(Bad::Header);
    }
    let kind = Kind::from_u8(b[16]).ok_or(Bad::Header)?;
    let header = Header {
        kind,
        len: u32_at(b, 8),
        position: LogPosition { term: u64_at(b, 24), leader: u64_at(b, 32), index: u64_at(b, 40) },
        synced: u64_at(b, 48),
        committed: u64_at(b, 56),
    };
    Ok((header, u32_at(b, 12)))
}

/// Reads the record at the start of `bytes`, fully checked.
pub(crate) fn read(bytes: &[u8], seed: u64) -> Result<(Header, &[u8]), Bad> {
    let (h, check) = header(bytes, seed)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + h.len as usize).ok_or(Bad::Payload)?;
    if crc(seed, payload) != check {
        return Err(Bad::Payload);
    }
    Ok((h, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(len: usize) -> Header {
        let position = LogPosition { term: 3, leader: 2, index: 9 };
        Header { kind: Kind::Command, len: len as u32, position, synced: 4096, committed: 5 }
    }

    #[test]
    fn header_layout_is_stable() {
        let mut out = Vec::new();
        put(&mut out, 0x1111_2222_3333_4444, &head(3), b"abc");
        assert_eq!(out.len(), 72);
        assert_eq!(&out[0..4], &0x3333_4444u32.to_le_bytes());
        assert_eq!(&out[8..12], &3u32.to_le_bytes());
        assert_eq!(out[16], 2);
        assert_eq!(out[24], 3);
        assert_eq!(out[32], 2);
        assert_eq!(out[40], 9);
        assert_eq!(&out[48..50], &[0, 16]);
        assert_eq!(out[56], 5);
        assert_eq!(&out[64..72], b"abc\0\0\0\0\0");
    }

    proptest! {
        #[test]
        fn round_trip_and_any_flipped_bit_shows(
            payload in proptest::collection::vec(any::<u8>(), 0..300), seed in 1u64.., bit in any::<proptest::sample::Index>(),
        ) {
            let seed = seed | 1;
            let mut out = Vec::new();
            put(&mut out, seed, &head(payload.len()), &payload);
            prop_assert_eq!(out.len(), size(payload.len()));
            let (h, p) = read(&out, seed).unwrap();
            prop_assert_eq!(h, head(payload.len()));
            prop_assert_eq!(p, &payload[..]);
            prop_assert!(read(&out, seed ^ (1 << 40)).is_err(), "another life");
            prop_assert!(read(&out, seed ^ 2).is_err(), "another life");
            let bit = bit.index((HEADER_BYTES + payload.len()) * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read(&out, seed).is_err());
        }
    }
}
