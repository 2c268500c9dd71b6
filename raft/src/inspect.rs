//! Looking into a Raft directory without opening it for writing: what `quire inspect log` prints.
//!
//! Works beside a running node (it then sees a moving tail), and on a directory that refuses to open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::log::record::{self, Bad, Kind};
use crate::log::segment::{self, SegmentHeader};
use crate::log::vote;
use crate::{LogPosition, NodeId};

/// A segment file.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Sequence in its name.
    pub sequence: u64,
    /// What its header says, or what is wrong with it.
    pub header: Result<SegmentHead, String>,
}

/// A segment's header.
#[derive(Clone, Debug)]
pub struct SegmentHead {
    /// Cluster that the file belongs to.
    pub cluster_id: [u8; 16],
    /// Node that it belongs to.
    pub node_id: NodeId,
    /// Index of the next entry when the segment was started.
    pub next_index: u64,
    /// Where the records of the previous segment end; 0 for the first.
    pub previous_end: u64,
    seed: u64,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A blank entry.
    Blank,
    /// An entry with a command.
    Command,
    /// An entry with a membership.
    Membership,
    /// Truncation: the next entry has the record's index.
    Base,
    /// The purge mark.
    Purge,
    /// Carries `synced` and `committed` only.
    Mark,
    /// Not a valid record.
    Invalid,
}

/// Bytes of a command that are shown.
pub const HEAD_BYTES: usize = 128;

/// One record.
#[derive(Clone, Debug)]
pub struct RecordInfo {
    /// Offset in the file.
    pub offset: u64,
    /// What it is.
    pub kind: RecordKind,
    /// Its position.
    pub position: LogPosition,
    /// Length of its payload.
    pub payload_bytes: u32,
    /// The first bytes of a command, at most [`HEAD_BYTES`].
    pub payload_head: Vec<u8>,
    /// How far the segment was durable when it was written.
    pub synced: u64,
    /// Committed index known then.
    pub committed: Option<u64>,
    /// Why it is not valid; then it is the last one that can be read.
    pub fault: Option<String>,
}

/// The segments of a Raft directory (`DIR/raft`), in order.
pub fn segments(dir: impl AsRef<Path>) -> io::Result<Vec<SegmentInfo>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.as_ref().join("log"))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(sequence) = name.to_str().and_then(segment::parse_file_name) else { continue };
        let file = File::open(entry.path())?;
        let bytes = file.metadata()?.len();
        let mut head = vec![0; bytes.min(segment::DATA_START) as usize];
        file.read_exact_at(&mut head, 0)?;
        let header =
            SegmentHeader::decode(&head, None).map_err(|f| format!("at offset {}: {}", f.offset, f.reason));
        let header = header.map(|h| SegmentHead {
            cluster_id: h.owner.cluster,
            node_id: h.owner.node,
            next_index: h.next_index,
            previous_end: h.prev_end,
            seed: h.seed,
        });
        found.push(SegmentInfo { path: entry.path(), bytes, sequence, header });
    }
    found.sort_by_key(|s| s.sequence);
    Ok(found)
}

impl SegmentInfo {
    /// The segment's records. Ends before free space; a damaged record is the last item, with its fault.
    pub fn records(&self) -> io::Result<Records> {
        let seed = self.header.as_ref().map(|h| h.seed);
        let seed = seed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.clone()))?;
        Ok(Records { file: File::open(&self.path)?, bytes: self.bytes, seed, at: segment::DATA_START })
    }
}

/// Iterates over a segment's records; one record is in memory at a time.
#[derive(Debug)]
pub struct Records {
    file: File,
    bytes: u64,
    seed: u64,
    at: u64,
}

impl Records {
    fn read(&mut self, offset: u64) -> io::Result<Option<RecordInfo>> {
        let mut head = vec![0; record::HEADER_BYTES.min((self.bytes - offset) as usize)];
        self.file.read_exact_at(&mut head, offset)?;
        let fault = |kind, bad: Bad| RecordInfo {
            offset,
            kind,
            position: LogPosition::default(),
            payload_bytes: 0,
            payload_head: Vec::new(),
            synced: 0,
            committed: None,
            fault: Some(bad.to_string()),
        };
        let (h, _) = match record::header(&head, self.seed) {
            Ok(h) => h,
            Err(Bad::NoRecord) => return Ok(None),
            Err(bad) => return Ok(Some(fault(RecordKind::Invalid, bad))),
        };
        let kind = match h.kind {
            Kind::Blank => RecordKind::Blank,
            Kind::Command => RecordKind::Command,
            Kind::Membership => RecordKind::Membership,
            Kind::Base => RecordKind::Base,
            Kind::Purge => RecordKind::Purge,
            Kind::Mark => RecordKind::Mark,
        };
        let size = record::size(h.len as usize);
        let mut info = fault(kind, Bad::Payload);
        (info.position, info.payload_bytes, info.synced) = (h.position, h.len, h.synced);
        info.committed = h.committed.checked_sub(1);
        if size as u64 <= self.bytes - offset {
            let mut whole = vec![0; size];
            self.file.read_exact_at(&mut whole, offset)?;
            info.fault = record::read(&whole, self.seed).err().map(|bad| bad.to_string());
            if h.kind == Kind::Command {
                let end = (record::HEADER_BYTES + h.len as usize).min(record::HEADER_BYTES + HEAD_BYTES);
                info.payload_head = whole.get(record::HEADER_BYTES..end).unwrap_or_default().to_vec();
            }
        }
        self.at = offset + size as u64;
        Ok(Some(info))
    }
}

impl Iterator for Records {
    type Item = io::Result<RecordInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes {
            return None;
        }
        let item = self.read(self.at).transpose();
        if !matches!(&item, Some(Ok(r)) if r.fault.is_none()) {
            self.at = self.bytes;
        }
        item
    }
}

/// One slot of the vote file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteSlot {
    /// One more at each save.
    pub sequence: u64,
    /// Term and node voted for, and whether that node is known to lead; `None` before the first vote.
    pub vote: Option<(u64, NodeId, bool)>,
}

/// Both slots of the vote file of a Raft directory; the error says what is wrong with a slot.
pub fn votes(dir: impl AsRef<Path>) -> io::Result<[Result<VoteSlot, String>; 2]> {
    let bytes = std::fs::read(dir.as_ref().join("log").join(vote::FILE_NAME))?;
    let slot = |at: u64| {
        let bytes = bytes.get(at as usize..).unwrap_or_default();
        let slot =
            vote::decode(bytes, None).map_err(|f| format!("at offset {}: {}", at + f.offset, f.reason))?;
        let vote = slot.vote.map(|v| (v.leader_id().term, v.leader_id().node_id, v.is_committed()));
        Ok(VoteSlot { sequence: slot.sequence, vote })
    };
    Ok([slot(0), slot(vote::FILE_BYTES / 2)])
}
