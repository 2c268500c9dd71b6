//! One segment: its header, and the scan that decides what in it is live. Pure functions over bytes.
//!
//! A segment is a preallocated file `NNNNNNNNNNNNNNNN.seg` (its sequence in decimal). Records start at
//! [`DATA_START`], one after the other; the rest of the file is zeros or leftovers of a former life.
//!
//! # Header (first 128 bytes; the block up to 4096 is zero otherwise, so that no record shares a sector with it)
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `QUIRELOG` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | crc32 of bytes 0..12 and 16..128 |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | node id |
//! | 40 | 8 | sequence, from 1 |
//! | 48 | 8 | life seed: random, low half not 0 |
//! | 56 | 8 | index that the next appended entry has |
//! | 64 | 8 | end of the previous segment's records, 0 for the first segment |
//! | 72 | 8 | life seed of the previous segment, 0 for the first |
//! | 80 | 8 | file size |
//! | 88 | 40 | zero |
//!
//! # Which bytes are live
//! A segment is sealed by the header of its successor, which is written (and synced) only after every record of it
//! was synced. So a sealed segment must read cleanly up to the recorded end; anything else is damage.
//!
//! In the last segment, reading stops at the first bad record. The writer does one write, then one sync, and only
//! then the next write; every record carries how far the segment was synced when it was written. So if any valid
//! record of the same life lies beyond the bad one and says `synced > bad offset`, the bad record had been durable:
//! damage, refused. Otherwise the bad record and all that follows belong to one unacknowledged write: a torn tail,
//! cut and zeroed. When the log goes idle, is closed, or was opened after a crash, a mark record is written, which
//! protects the last records in the same way; only a flipped bit within the very last write before a crash can't be
//! told from a torn write. A mark itself says nothing that would be missed.
//!
//! Neither covered by a checksum nor of any effect: bytes 128 to 4096, the padding of records, and what lies behind
//! the end of the records. What isn't found out is that the last segment's *file* is missing.

use std::path::PathBuf;

use super::record::{self, ALIGN, Bad, Header};
use crate::LogError;

/// Where records start.
pub(crate) const DATA_START: u64 = 4096;
pub(crate) const MAGIC: [u8; 8] = *b"QUIRELOG";
pub(crate) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;

/// Who a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: [u8; 16],
    pub(crate) node: u64,
}

/// A segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) owner: Owner,
    pub(crate) sequence: u64,
    pub(crate) seed: u64,
    pub(crate) next_index: u64,
    pub(crate) prev_end: u64,
    pub(crate) prev_seed: u64,
    pub(crate) file_bytes: u64,
}

/// What is wrong with a file, and where. `foreign` means it is sound but not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) offset: u64,
    pub(crate) reason: String,
    pub(crate) foreign: bool,
}

impl Fault {
    pub(crate) fn damaged(offset: u64, reason: impl Into<String>) -> Self {
        Fault { offset, reason: reason.into(), foreign: false }
    }

    /// Another version of a file; its number stands at offset 8.
    pub(crate) fn version(what: &str, found: u32, reads: u32) -> Self {
        let way_out = if found > reads {
            "a newer Quire wrote it; run that version or a later one"
        } else {
            "an older Quire wrote it; run that version, or remove this node from the cluster and let the machine join \
             again under a new id"
        };
        let reason =
            format!("the {what} has version {found}, this build of Quire reads version {reads}: {way_out}");
        Fault::foreign(8, reason)
    }

    pub(crate) fn foreign(offset: u64, reason: impl Into<String>) -> Self {
        Fault { offset, reason: reason.into(), foreign: true }
    }

    /// The error of the file at this path.
    pub(crate) fn at(self, path: PathBuf) -> LogError {
        let Fault { offset, reason, foreign } = self;
        if foreign {
            LogError::Foreign { path, offset, reason }
        } else {
            LogError::Damaged { path, offset, reason }
        }
    }
}

/// The file name of a segment.
pub(crate) fn file_name(sequence: u64) -> String {
    format!("{sequence:016}.seg")
}

/// The sequence in a segment's file name.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() != 16 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut n = [0; 8];
    n.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(n)
}

impl SegmentHeader {
    /// The whole first block of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; DATA_START as usize];
        b[0..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[16..32].copy_from_slice(&self.owner.cluster);
        let fields = [
            self.owner.node,
            self.sequence,
            self.seed,
            self.next_index,
            self.prev_end,
            self.prev_seed,
            self.file_bytes,
        ];
        for (i, f) in fields.iter().enumerate() {
            b[32 + i * 8..40 + i * 8].copy_from_slice(&f.to_le_bytes());
        }
        let crc = header_crc(&b);
        b[12..16].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads the header and checks that it is this owner's.
    pub(crate) fn decode(b: &[u8], owner: Option<&Owner>) -> Result<Self, Fault> {
        if b.len() < HEADER_BYTES {
            return Err(Fault::damaged(0, format!("{} bytes are too short for a segment header", b.len())));
        }
        if b[0..8] != MAGIC {
            return Err(Fault::damaged(0, "no segment magic"));
        }
        let version = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
        if version != VERSION {
            return Err(Fault::version("segment", version, VERSION));
        }
        if u32::from_le_bytes([b[12], b[13], b[14], b[15]]) != header_crc(b) {
            return Err(Fault::damaged(12, "segment header checksum mismatch"));
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&b[16..32]);
        let header = SegmentHeader {
            owner: Owner { cluster, node: u64_at(b, 32) },
            sequence: u64_at(b, 40),
            seed: u64_at(b, 48),
            next_index: u64_at(b, 56),
            prev_end: u64_at(b, 64),
            prev_seed: u64_at(b, 72),
            file_bytes: u64_at(b, 80),
        };
        if let Some(owner) = owner {
            if header.owner.cluster != owner.cluster {
                return Err(Fault::foreign(16, "segment of another cluster (another cluster key)"));
            }
            if header.owner.node != owner.node {
                let (found, want) = (header.owner.node, owner.node);
                return Err(Fault::foreign(32, format!("segment of node {found}, but this is node {want}")));
            }
        }
        Ok(header)
    }
}

fn header_crc(b: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&b[0..12]);
    h.update(&b[16..HEADER_BYTES]);
    h.finalize()
}

/// Where the live records of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScanEnd {
    /// Offset after the last live record.
    pub(crate) end: u64,
    /// Something of a torn write lies beyond `end` and must be zeroed.
    pub(crate) torn: bool,
}

/// Walks the records of a segment, handing each to `visit` with its offset. `sealed_at` is the end recorded by the
/// successor's header, `None` for the last segment. `visit` may object to a record that is sound in itself.
pub(crate) fn scan(
    bytes: &[u8],
    seed: u64,
    sealed_at: Option<u64>,
    mut visit: impl FnMut(u64, &Header, &[u8]) -> Result<(), String>,
) -> Result<ScanEnd, Fault> {
    let mut at = DATA_START as usize;
    loop {
        if let Some(end) = sealed_at {
            if at as u64 == end {
                return Ok(ScanEnd { end, torn: false });
            }
            if at as u64 > end {
                return Err(Fault::damaged(at as u64, format!("records run past the segment's end {end}")));
            }
        }
        let rest = bytes.get(at..).unwrap_or_default();
        match record::read(rest, seed) {
            Ok((h, payload)) => {
                visit(at as u64, &h, payload).map_err(|reason| Fault::damaged(at as u64, reason))?;
                at += record::size(payload.len());
            }
            Err(bad) if sealed_at.is_some() => return Err(Fault::damaged(at as u64, bad.to_string())),
            Err(bad) => {
                let torn = tail(rest, at as u64, seed, bad)?;
                return Ok(ScanEnd { end: at as u64, torn });
            }
        }
    }
}

/// Judges what lies at and after the first bad record: whether there is anything to zero, or damage.
fn tail(rest: &[u8], bad_at: u64, seed: u64, bad: Bad) -> Result<bool, Fault> {
    let marker = (seed as u32).to_le_bytes();
    let mut torn = bad != Bad::NoRecord;
    let mut at = ALIGN;
    while let Some(candidate) = rest.get(at..) {
        if candidate.len() < record::HEADER_BYTES {
            break;
        }
        if candidate[0..4] == marker {
            torn = true;
            if let Ok((h, _)) = record::header(candidate, seed)
                && h.synced > bad_at
            {
                let later = bad_at + at as u64;
                return Err(Fault::damaged(
                    bad_at,
                    format!("{bad}, though it was durable when the record at offset {later} was written"),
                ));
            }
        }
        at += ALIGN;
    }
    // What is left of a torn write without any marker can never read as a record of this life.
    Ok(torn)
}
