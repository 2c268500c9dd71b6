//! The vote file: two slots, each in a block of its own.
//!
//! | offset in slot | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `QUIREVOT` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | crc32 of bytes 0..12 and 16..96 |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | node id |
//! | 40 | 8 | sequence: one more at each save |
//! | 48 | 1 | 1 if there is a vote, 0 for none yet |
//! | 49 | 1 | 1 if the vote is committed (its node leads) |
//! | 50 | 6 | zero |
//! | 56 | 8 | term |
//! | 64 | 8 | node voted for |
//! | 72 | 24 | zero |
//!
//! Slot 0 is at offset 0, slot 1 at 4096; the file is 8192 bytes.
//!
//! # Invariant
//! A vote is acknowledged only when *both* slots hold it, each written and synced after the other. So one bad slot
//! never loses an acknowledged vote: if the newer slot is torn, its vote was never acknowledged; if either rots, the
//! other has it. Both bad is a refusal. Opening the file writes both again, the one that isn't relied on first, so
//! that a vote which was found counts as acknowledged, too (see `open.rs`).

use std::sync::Arc;

use super::disk::DiskFile;
use super::segment::{Fault, Owner};
use crate::types::Vote;

pub(crate) const FILE_NAME: &str = "vote";
pub(crate) const FILE_BYTES: u64 = 2 * SLOT_STRIDE;
const SLOT_STRIDE: u64 = 4096;
const SLOT_BYTES: usize = 96;
const MAGIC: [u8; 8] = *b"QUIREVOT";
const VERSION: u32 = 1;

/// One slot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) sequence: u64,
    pub(crate) vote: Option<Vote>,
}

fn slot_crc(b: &[u8; SLOT_BYTES]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&b[0..12]);
    h.update(&b[16..]);
    h.finalize()
}

pub(crate) fn encode(owner: &Owner, slot: &Slot) -> [u8; SLOT_BYTES] {
    let mut b = [0; SLOT_BYTES];
    b[0..8].copy_from_slice(&MAGIC);
    b[8..12].copy_from_slice(&VERSION.to_le_bytes());
    b[16..32].copy_from_slice(&owner.cluster);
    b[32..40].copy_from_slice(&owner.node.to_le_bytes());
    b[40..48].copy_from_slice(&slot.sequence.to_le_bytes());
    if let Some(v) = &slot.vote {
        b[48] = 1;
        b[49] = u8::from(v.is_committed());
        b[56..64].copy_from_slice(&v.leader_id().term.to_le_bytes());
        b[64..72].copy_from_slice(&v.leader_id().node_id.to_le_bytes());
    }
    let crc = slot_crc(&b);
    b[12..16].copy_from_slice(&crc.to_le_bytes());
    b
}

/// Decodes one slot; offsets in the fault are relative to the slot.
pub(crate) fn decode(bytes: &[u8], owner: Option<&Owner>) -> Result<Slot, Fault> {
    let Some(b) = bytes.first_chunk::<SLOT_BYTES>() else {
        return Err(Fault::damaged(0, "vote slot too short"));
    };
    let u64_at = |at: usize| {
        let mut n = [0; 8];
        n.copy_from_slice(&b[at..at + 8]);
        u64::from_le_bytes(n)
    };
    if b[0..8] != MAGIC {
        return Err(Fault::damaged(0, "no vote magic"));
    }
    let version = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
    if u32::from_le_bytes([b[12], b[13], b[14], b[15]]) != slot_crc(b) {
        return Err(Fault::damaged(12, "vote slot checksum mismatch"));
    }
    if version != VERSION {
        return Err(Fault::version("vote file", version, VERSION));
    }
    if let Some(owner) = owner {
        if b[16..32] != owner.cluster {
            return Err(Fault::foreign(16, "vote file of another cluster (another cluster key)"));
        }
        if u64_at(32) != owner.node {
            let (found, want) = (u64_at(32), owner.node);
            return Err(Fault::foreign(32, format!("vote file of node {found}, but this is node {want}")));
        }
    }
    let vote = (b[48] == 1).then(|| {
        let (term, node) = (u64_at(56), u64_at(64));
        if b[49] == 1 { Vote::new_committed(term, node) } else { Vote::new(term, node) }
    });
    Ok(Slot { sequence: u64_at(40), vote })
}

/// The open vote file.
pub(crate) struct VoteFile {
    file: Arc<dyn DiskFile>,
    owner: Owner,
    slot: Slot,
}

/// Why a vote file can't be used.
#[derive(Debug)]
pub(crate) enum VoteError {
    Fault(Fault),
    Io(std::io::Error),
}

impl From<std::io::Error> for VoteError {
    fn from(e: std::io::Error) -> Self {
        VoteError::Io(e)
    }
}

impl VoteFile {
    /// Fills a new file (of [`FILE_BYTES`] zeros) with "no vote yet".
    pub(crate) fn init(file: Arc<dyn DiskFile>, owner: Owner) -> std::io::Result<Self> {
        let mut f = VoteFile { file, owner, slot: Slot { sequence: 0, vote: None } };
        f.save(None)?;
        Ok(f)
    }

    /// Opens an existing file, restores a bad slot from the good one and makes what was found durable.
    pub(crate) fn open(file: Arc<dyn DiskFile>, owner: Owner) -> Result<Self, VoteError> {
        let len = file.len()?;
        if len != FILE_BYTES {
            return Err(VoteError::Fault(Fault::damaged(
                len,
                format!("vote file is {len} bytes, not {FILE_BYTES}"),
            )));
        }
        let mut slots = [None, None];
        let mut faults = Vec::new();
        let mut versions = [None; 2];
        for (i, slot) in slots.iter_mut().enumerate() {
            let at = i as u64 * SLOT_STRIDE;
            let mut buf = [0; SLOT_BYTES];
            file.read_at(&mut buf, at)?;
            versions[i] =
                (buf[0..8] == MAGIC).then(|| u32::from_le_bytes([buf[8], buf[9], buf[10], buf[11]]));
            match decode(&buf, Some(&owner)) {
                Ok(s) => *slot = Some(s),
                Err(mut f) => {
                    f.offset += at;
                    if f.foreign {
                        return Err(VoteError::Fault(f));
                    }
                    faults.push(f);
                }
            }
        }
        let Some(slot) = slots.iter().flatten().max_by_key(|s| s.sequence).copied() else {
            // A newer version may have its checksum elsewhere: it is one if both slots say so.
            if let [Some(a), Some(b)] = versions
                && a == b
                && a != VERSION
            {
                return Err(VoteError::Fault(Fault::version("vote file", a, VERSION)));
            }
            let fault = faults.into_iter().next();
            let fault = fault.unwrap_or_else(|| Fault::damaged(0, "no vote slot"));
            return Err(VoteError::Fault(Fault {
                reason: format!("both vote slots are bad: {}", fault.reason),
                ..fault
            }));
        };
        let mut this = VoteFile { file, owner, slot };
        if let Some(f) = faults.first() {
            tracing::warn!(offset = f.offset, reason = %f.reason, "vote slot restored from the other one");
        }
        let order = if slots[0] == Some(slot) { [SLOT_STRIDE, 0] } else { [0, SLOT_STRIDE] };
        this.write(slot.vote, order)?;
        Ok(this)
    }

    /// The vote last saved.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.slot.vote
    }

    /// Makes a vote durable in both slots.
    pub(crate) fn save(&mut self, vote: Option<Vote>) -> std::io::Result<()> {
        self.write(vote, [0, SLOT_STRIDE])
    }

    fn write(&mut self, vote: Option<Vote>, order: [u64; 2]) -> std::io::Result<()> {
        let slot = Slot { sequence: self.slot.sequence + 1, vote };
        let bytes = encode(&self.owner, &slot);
        for at in order {
            self.file.write_at(&bytes, at)?;
            self.file.sync()?;
        }
        self.slot = slot;
        Ok(())
    }
}
