//! What the log store knows in memory: the tail as entries, and where on disk each entry is.
//!
//! Two views meet here. The *logical* log (`purged`, `last`, `terms`, `cache`) changes the moment openraft calls the
//! store: an appended entry is readable at once. The *physical* one (`places`, `segments`) is moved by the log
//! writer, after its sync. Readers are clipped to the logical log; an entry that the cache no longer has was written
//! before it was evicted, so it has a place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::EntryPayload;

use super::disk::DiskFile;
use super::segment::{DATA_START, SegmentHeader};
use crate::types::{Entry, Vote, position};
use crate::{LogPosition, NodeId};

/// Memory that an entry takes beyond its payload, roughly.
const ENTRY_OVERHEAD: usize = 160;

/// A segment file in use.
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    pub(crate) seed: u64,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where its records start in the record stream, see `retention.rs`.
    pub(crate) start: u64,
    /// Offset in the file after the last durable record.
    end: AtomicU64,
}

impl Segment {
    /// A segment without records, the `start` of the record stream being behind it.
    pub(crate) fn new(header: &SegmentHeader, file: Arc<dyn DiskFile>, start: u64) -> Self {
        Segment {
            sequence: header.sequence,
            seed: header.seed,
            bytes: header.file_bytes,
            file,
            start,
            end: DATA_START.into(),
        }
    }

    /// The records up to this offset are durable.
    pub(crate) fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Offset after the last durable record.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Where the records of the segment after this one start in the record stream.
    pub(crate) fn stream_end(&self) -> u64 {
        self.start + (self.end() - DATA_START)
    }

    /// Bytes of the file. Read and not mapped: what a lagging member or a restart goes through once must not stay
    /// in this process's memory.
    pub(crate) fn read(&self, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let mut buf = vec![0; len];
        self.file.read_at(&mut buf, offset)?;
        Ok(buf.into())
    }
}

/// Where an entry is. Offsets are in units of 8 bytes, so that a place takes 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Sequence of the segment (its low half; the log never holds 2^32 segments at once).
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// The places of a contiguous run of entries.
#[derive(Default, Debug)]
pub(crate) struct Places {
    first: u64,
    list: VecDeque<Place>,
}

impl Places {
    pub(crate) fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }

    pub(crate) fn first(&self) -> Option<u64> {
        (!self.list.is_empty()).then_some(self.first)
    }

    /// Segment (low half) of the first entry.
    pub(crate) fn first_segment(&self) -> Option<u32> {
        self.list.front().map(|p| p.segment)
    }

    pub(crate) fn get(&self, index: u64) -> Option<Place> {
        self.list.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// False if `index` doesn't follow.
    #[must_use]
    pub(crate) fn push(&mut self, index: u64, place: Place) -> bool {
        if index != self.next() {
            return false;
        }
        self.list.push_back(place);
        true
    }

    /// Voids entries at `next` and above; the next entry has that index.
    pub(crate) fn rebase(&mut self, next: u64) {
        if next >= self.first && next <= self.next() {
            self.list.truncate((next - self.first) as usize);
        } else {
            self.list.clear();
            self.first = next;
        }
    }

    /// Forgets entries up to `upto`, inclusive.
    pub(crate) fn purge(&mut self, upto: u64) {
        if upto >= self.next() {
            self.list.clear();
            self.first = upto + 1;
        } else if upto >= self.first {
            self.list.drain(..(upto + 1 - self.first) as usize);
            self.first = upto + 1;
        }
    }
}

/// Which leader created which entries: one run per leader.
#[derive(Default, Debug)]
pub(crate) struct Terms {
    /// (first index, term, leader), ascending.
    runs: VecDeque<(u64, u64, NodeId)>,
}

impl Terms {
    pub(crate) fn push(&mut self, p: &LogPosition) {
        if self.runs.back().is_none_or(|r| (r.1, r.2) != (p.term, p.leader)) {
            self.runs.push_back((p.index, p.term, p.leader));
        }
    }

    pub(crate) fn truncate(&mut self, next: u64) {
        while self.runs.back().is_some_and(|r| r.0 >= next) {
            self.runs.pop_back();
        }
    }

    pub(crate) fn purge(&mut self, upto: u64) {
        while self.runs.get(1).is_some_and(|r| r.0 <= upto + 1) {
            self.runs.pop_front();
        }
    }

    /// The position at `index`, which must be in the log.
    pub(crate) fn at(&self, index: u64) -> Option<LogPosition> {
        let i = self.runs.partition_point(|r| r.0 <= index).checked_sub(1)?;
        let r = self.runs.get(i)?;
        Some(LogPosition { term: r.1, leader: r.2, index })
    }
}

/// The last entries, bounded by bytes except for what isn't on disk yet.
#[derive(Default)]
pub(crate) struct Cache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// Memory that an entry takes.
pub(crate) fn entry_bytes(e: &Entry) -> usize {
    ENTRY_OVERHEAD
        + match &e.payload {
            EntryPayload::Normal(c) => c.0.len(),
            _ => 0,
        }
}

impl Cache {
    pub(crate) fn get(&self, index: u64) -> Option<&Entry> {
        let first = self.entries.front()?.log_id.index();
        self.entries.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn first(&self) -> Option<u64> {
        Some(self.entries.front()?.log_id.index())
    }

    fn push(&mut self, e: Entry) {
        self.bytes += entry_bytes(&e);
        self.entries.push_back(e);
    }

    fn truncate(&mut self, next: u64) {
        while self.entries.back().is_some_and(|e| e.log_id.index() >= next) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, entry_bytes);
        }
    }

    fn drop_front(&mut self) {
        self.bytes -= self.entries.pop_front().as_ref().map_or(0, entry_bytes);
    }

    fn purge(&mut self, upto: u64) {
        while self.entries.front().is_some_and(|e| e.log_id.index() <= upto) {
            self.drop_front();
        }
    }

    /// Evicts the oldest entries above the limit, but only below `written`.
    fn shrink(&mut self, limit: usize, written: u64) {
        while self.bytes > limit && self.entries.front().is_some_and(|e| e.log_id.index() < written) {
            self.drop_front();
        }
    }
}

/// Everything behind the store's lock.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogPosition>,
    pub(crate) purged: Option<LogPosition>,
    pub(crate) last: Option<LogPosition>,
    pub(crate) terms: Terms,
    pub(crate) cache: Cache,
    pub(crate) places: Places,
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// Why the store failed; final.
    pub(crate) failed: Option<String>,
}

impl State {
    /// First index that may be in the log.
    pub(crate) fn first(&self) -> u64 {
        self.purged.map_or(0, |p| p.index + 1)
    }

    /// The first index at or after `from` of which there can be an entry: a log need not begin at [`State::first`] if it
    /// was not purged, though none that Raft has written does otherwise.
    pub(crate) fn begins(&self, from: u64) -> u64 {
        let first = [self.places.first(), self.cache.first()].into_iter().flatten().min();
        from.max(self.first()).max(first.unwrap_or_else(|| self.next()))
    }

    /// One above the last index.
    pub(crate) fn next(&self) -> u64 {
        self.last.map_or(0, |p| p.index + 1)
    }

    pub(crate) fn append(&mut self, e: &Entry) {
        let p = position(&e.log_id);
        self.last = Some(p);
        self.terms.push(&p);
        self.cache.push(e.clone());
    }

    pub(crate) fn truncate(&mut self, next: u64) {
        self.terms.truncate(next);
        self.cache.truncate(next);
        self.last = match next.checked_sub(1) {
            Some(i) if self.purged.is_none_or(|p| p.index < i) => self.terms.at(i),
            _ => self.purged,
        };
    }

    pub(crate) fn purge(&mut self, upto: LogPosition) {
        if self.purged.is_some_and(|p| p.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        if self.last.is_none_or(|l| l.index <= upto.index) {
            self.last = Some(upto);
            self.terms = Terms::default();
        }
        self.terms.purge(upto.index);
        self.cache.purge(upto.index);
    }

    /// The writer has put entries below `next` on disk.
    pub(crate) fn written(&mut self, next: u64, cache_limit: usize) {
        self.cache.shrink(cache_limit, next);
    }

    pub(crate) fn segment(&self, low: u32) -> Option<Arc<Segment>> {
        let first = self.segments.front()?.sequence as u32;
        self.segments.get(low.wrapping_sub(first) as usize).cloned()
    }
}
