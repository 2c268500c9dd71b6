//! How much log there is, and what a purge would free: what compaction by bytes is decided on.
//!
//! Bytes are counted along the *record stream*: the records of all segments that are held, one after the other,
//! headers of segments and what is unused at their ends left out. Each segment knows where in the stream it starts
//! ([`Segment::start`]), so that every answer is exact to the record and costs at most two binary searches in memory.
//! Records that carry no entry (truncations, purge and other marks) and entries that were truncated count, as they
//! take space; entries that aren't on disk yet don't.
//!
//! Disk is given back in whole segments, and only from the front. So a purge is worth its while only where it moves
//! the first live entry to another segment, and the best place within reach is the last entry before a segment's
//! first: the entries after it lie in a segment that stays anyway, and a follower may still want them.

use super::record::ALIGN;
use super::segment::DATA_START;
use super::state::State;

/// First index of `from..to` for which `holds` is false, which must be so from there on; `to` if none.
fn partition(mut from: u64, mut to: u64, holds: impl Fn(u64) -> bool) -> u64 {
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle) { from = middle + 1 } else { to = middle }
    }
    from
}

impl State {
    /// Where the durable log ends in the record stream.
    fn stream_end(&self) -> u64 {
        self.segments.back().map_or(0, |s| s.stream_end())
    }

    /// Where in the record stream the entry at `index` starts; `None` if it isn't on disk.
    fn stream_offset(&self, index: u64) -> Option<u64> {
        let place = self.places.get(index)?;
        let offset = u64::from(place.offset) * ALIGN as u64;
        Some(self.segment(place.segment)?.start + (offset - DATA_START))
    }

    /// The entries that are on disk and not purged, as `first..next`. A purge counts from when it was asked for.
    fn on_disk(&self) -> Option<(u64, u64)> {
        let first = self.places.first()?.max(self.first());
        let next = self.places.next();
        (first < next).then_some((first, next))
    }

    /// Bytes of records in all segments that are held.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.stream_end() - self.segments.front().map_or(0, |s| s.start)
    }

    /// Bytes of records from the entry after `index` (or the first live one) to the end.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        let Some((first, _)) = self.on_disk() else { return 0 };
        let from = index.checked_add(1).and_then(|next| self.stream_offset(next.max(first)));
        from.map_or(0, |from| self.stream_end() - from)
    }

    /// See [`crate::Raft::purge_point`].
    pub(crate) fn purge_point(&self, durable: u64, retain_bytes: u64) -> Option<u64> {
        let (first, next) = self.on_disk()?;
        let limit = next.min(durable.saturating_add(1));
        // One above the highest index that may go.
        let free = partition(first, limit, |index| self.bytes_after(index) >= retain_bytes);
        let held = self.segments.front()?.sequence as u32;
        let nth = |segment: u32| segment.wrapping_sub(held);
        // The segment that the first live entry would then be in, and the first entry there.
        let stays = match self.places.get(free) {
            Some(place) => nth(place.segment),
            None => nth(self.segments.back()?.sequence as u32),
        };
        let start = partition(first, free, |i| self.places.get(i).is_some_and(|p| nth(p.segment) < stays));
        (start > first).then(|| start - 1)
    }
}
