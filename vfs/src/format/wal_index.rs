//! The wal-index: shared memory that tells readers which frames of the WAL are valid and where the newest
//! image of each page is (SQLite's `walformat.html` §2, and the head of `wal.c`). Native byte order.
//!
//! ```text
//! region 0 (32 KiB)                              region n > 0 (32 KiB)
//!     0  header, copy 1 (48 bytes)                   0  u32 × 4096 page numbers
//!    48  header, copy 2                          16384  u16 × 8192 hash slots
//!    96  checkpoint info (40 bytes)
//!   136  u32 × 4062 page numbers of frames 1…
//! 16384  u16 × 8192 hash slots
//!
//! header (u32 words)                             checkpoint info (u32 words)
//!  0  version 3007000                             0  nBackfill: frames already in the database
//!  1  unused                                      1  aReadMark[5]: what each reader slot may read up to
//!  2  iChange, counts transactions                6  lock bytes (8, never read or written)
//!  3  u8 isInit, u8 bigEndCksum, u16 page size    8  nBackfillAttempted
//!  4  mxFrame, the last valid frame               9  unused
//!  5  nPage, database size in pages
//!  6  checksum of the last frame (2)
//!  8  salts (2), as in the file
//! 10  checksum of words 0 to 9 (2)
//! ```
//!
//! A writer fills in page numbers and hash slots first; they lie beyond `mxFrame`, so no reader looks at
//! them. It then publishes: header copy 2, barrier, copy 1. A reader takes copy 1, barrier, copy 2 and
//! tries again unless both are equal and sealed by their checksum.
//!
//! A hash slot holds a frame's number within its region, 0 if free; the slot is found by
//! `page × 383 mod 8192` and linear probing. Several frames of one page each have a slot; the reader wants
//! the highest not beyond its `mxFrame`. Slots beyond `mxFrame` are remains of a transaction that did not
//! finish and must be swept before the next append ([`sweep`]).
//!
//! All words are read and written through atomics, since other processes look at the same memory.

use super::wal::{ByteOrder, Checksum, Salts};
use super::{FrameNo, PageNo, PageSize};
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Size of one region, in bytes. SQLite asks for the index in these units.
pub const REGION_SIZE: usize = 32 * 1024;
/// One region as its 32-bit words.
pub type Region = [AtomicU32; REGION_SIZE / 4];

const VERSION: u32 = 3_007_000;
const HEADER_WORDS: usize = 12;
const BACKFILL: usize = 24;
const READ_MARKS: usize = 25;
const BACKFILL_ATTEMPTED: usize = 32;
const FIRST_PAGE_WORD: usize = 34;
/// Number of reader slots.
pub const READ_MARK_COUNT: usize = 5;
/// A reader slot that is not in use.
pub const READ_MARK_UNUSED: u32 = 0xffff_ffff;

const PAGES_PER_REGION: u32 = 4096;
const PAGES_IN_FIRST: u32 = PAGES_PER_REGION - FIRST_PAGE_WORD as u32;
const SLOTS: u32 = 8192;
const SLOT_WORDS: usize = PAGES_PER_REGION as usize;

// The layout that every SQLite since 3.7.0 maps.
const _: () = {
    assert!(size_of::<Region>() == REGION_SIZE);
    assert!(FIRST_PAGE_WORD * 4 == 48 * 2 + 40);
    assert!(PAGES_IN_FIRST == 4062);
    assert!(SLOT_WORDS * 4 + SLOTS as usize * 2 == REGION_SIZE);
    assert!(READ_MARKS + READ_MARK_COUNT + 2 == BACKFILL_ATTEMPTED);
};

/// A wal-index, region by region. Getting a region extends the index if need be.
pub trait WalIndex {
    /// What getting a region can fail with.
    type Error;

    /// Region `n`, counted from 0.
    fn region(&self, n: u32) -> Result<&Region, Self::Error>;
}

/// A wal-index header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// Counts transactions; wraps.
    pub change: u32,
    /// Byte order of the WAL's checksums.
    pub order: ByteOrder,
    /// The WAL's page size. `None` while nothing was written yet.
    pub page_size: Option<PageSize>,
    /// The last valid frame; 0 if the whole database is in its file.
    pub max_frame: FrameNo,
    /// Size of the database in pages.
    pub pages: u32,
    /// Checksum of frame `max_frame`, with which the next frame's begins.
    pub frame_checksum: Checksum,
    /// The WAL's salts.
    pub salts: Salts,
}

impl IndexHeader {
    /// The header of an index over an empty WAL: what SQLite's recovery makes of one.
    pub fn empty() -> IndexHeader {
        IndexHeader {
            change: 0,
            order: ByteOrder::NATIVE,
            page_size: None,
            max_frame: FrameNo(0),
            pages: 0,
            frame_checksum: Checksum::default(),
            salts: Salts::default(),
        }
    }

    fn to_words(self) -> [u32; HEADER_WORDS] {
        let mut words = [0; HEADER_WORDS];
        words[0] = VERSION;
        words[2] = self.change;
        let size = self.page_size.map_or(0, PageSize::to_u16).to_ne_bytes();
        let big = u8::from(self.order == ByteOrder::Big);
        words[3] = u32::from_ne_bytes([1, big, size[0], size[1]]);
        words[4] = self.max_frame.0;
        words[5] = self.pages;
        words[6] = self.frame_checksum.0;
        words[7] = self.frame_checksum.1;
        let [a, b, c, d, e, f, g, h] = self.salts.0;
        words[8] = u32::from_ne_bytes([a, b, c, d]);
        words[9] = u32::from_ne_bytes([e, f, g, h]);
        let sum = seal(&words);
        words[10] = sum.0;
        words[11] = sum.1;
        words
    }

    fn from_words(words: &[u32; HEADER_WORDS]) -> Option<IndexHeader> {
        let [is_init, big, s0, s1] = words[3].to_ne_bytes();
        if is_init == 0 || seal(words) != Checksum(words[10], words[11]) || words[0] != VERSION {
            return None;
        }
        let mut salts = [0; 8];
        salts[..4].copy_from_slice(&words[8].to_ne_bytes());
        salts[4..].copy_from_slice(&words[9].to_ne_bytes());
        Some(IndexHeader {
            change: words[2],
            order: if big != 0 { ByteOrder::Big } else { ByteOrder::Little },
            page_size: PageSize::from_u16(u16::from_ne_bytes([s0, s1])),
            max_frame: FrameNo(words[4]),
            pages: words[5],
            frame_checksum: Checksum(words[6], words[7]),
            salts: Salts(salts),
        })
    }
}

/// The header's own checksum: always over native words.
fn seal(words: &[u32; HEADER_WORDS]) -> Checksum {
    let mut bytes = [0; 40];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Checksum::default().over(&bytes, ByteOrder::NATIVE)
}

fn load_copy(region0: &Region, copy: usize) -> [u32; HEADER_WORDS] {
    let mut words = [0; HEADER_WORDS];
    for (word, cell) in words.iter_mut().zip(&region0[copy * HEADER_WORDS..]) {
        *word = cell.load(Ordering::Relaxed);
    }
    words
}

fn store_copy(region0: &Region, copy: usize, words: &[u32; HEADER_WORDS]) {
    for (word, cell) in words.iter().zip(&region0[copy * HEADER_WORDS..]) {
        cell.store(*word, Ordering::Relaxed);
    }
}

/// The words of header copy 1, whatever they are: to tell whether the index moved.
pub fn raw_header(region0: &Region) -> [u32; 12] {
    load_copy(region0, 0)
}

/// The last frame, as raw words of a header have it.
pub fn raw_max_frame(raw: &[u32; 12]) -> FrameNo {
    FrameNo(raw[4])
}

/// What a reader sees: the header if both copies agree and are sealed.
pub fn read_header(region0: &Region) -> Option<IndexHeader> {
    let first = load_copy(region0, 0);
    fence(Ordering::SeqCst);
    let second = load_copy(region0, 1);
    if first == second { IndexHeader::from_words(&first) } else { None }
}

/// What the next writer must go on from, given that no other writer is at work. If a writer died while it
/// published, copy 2 alone may be new: everything that it speaks for was written before it, so it counts,
/// and copy 1 is brought up to it. A torn copy 2 means that nothing was published.
pub fn recover_header(region0: &Region) -> Option<IndexHeader> {
    if let Some(header) = read_header(region0) {
        return Some(header);
    }
    let header = IndexHeader::from_words(&load_copy(region0, 1))
        .or_else(|| IndexHeader::from_words(&load_copy(region0, 0)))?;
    publish(region0, &header);
    Some(header)
}

/// Publishes `header`: copy 2, barrier, copy 1 (SQLite's `walIndexWriteHdr`).
pub fn publish(region0: &Region, header: &IndexHeader) {
    let words = header.to_words();
    fence(Ordering::SeqCst);
    store_copy(region0, 1, &words);
    fence(Ordering::SeqCst);
    store_copy(region0, 0, &words);
    fence(Ordering::SeqCst);
}

/// Frames that a checkpoint has already copied into the database file.
pub fn backfilled(region0: &Region) -> FrameNo {
    FrameNo(region0[BACKFILL].load(Ordering::Acquire))
}

/// Frames that the checkpoint which is under way is to have copied when it ends, or those of the last one.
pub fn attempted(region0: &Region) -> FrameNo {
    FrameNo(region0[BACKFILL_ATTEMPTED].load(Ordering::Acquire))
}

/// Ends what a writer's death cut short: a restart of the log, whose header was published while the count of
/// backfilled frames still speaks of the log before. SQLite would take the new frames up to that count to be in the
/// file. Returns the published header, which is `header` unless the count had to be cleared.
///
/// Then the header gets another change counter: SQLite keeps the count from the moment when a transaction begins, so one that
/// began before this must not go on to write. It finds its snapshot stale (`SQLITE_BUSY_SNAPSHOT`).
///
/// The caller alone may write, and has appended nothing yet; `header` is the published one.
pub fn finish_restart(region0: &Region, header: IndexHeader) -> IndexHeader {
    if backfilled(region0) <= header.max_frame {
        return header;
    }
    // The count first: whoever sees the new header must not see the old count.
    region0[BACKFILL].store(0, Ordering::Release);
    let header = IndexHeader { change: header.change.wrapping_add(1), ..header };
    publish(region0, &header);
    header
}

/// Sets the checkpoint info as SQLite does for a fresh or restarted log: nothing backfilled, slot 0 for
/// readers of the file alone, slot 1 at `max_frame`, the others unused.
///
/// The caller holds the locks of slots 1 to 4 exclusively, or is alone.
pub fn reset_checkpoint_info(region0: &Region, max_frame: FrameNo) {
    region0[BACKFILL].store(0, Ordering::Release);
    region0[BACKFILL_ATTEMPTED].store(0, Ordering::Relaxed);
    region0[READ_MARKS].store(0, Ordering::Relaxed);
    region0[READ_MARKS + 1].store(max_frame.0, Ordering::Relaxed);
    for mark in &region0[READ_MARKS + 2..READ_MARKS + READ_MARK_COUNT] {
        mark.store(READ_MARK_UNUSED, Ordering::Relaxed);
    }
}

/// The region that lists a frame, and the frame's place in it, counted from 0.
fn place(frame: FrameNo) -> (u32, u32) {
    match frame.0.checked_sub(PAGES_IN_FIRST + 1) {
        None => (0, frame.0 - 1),
        Some(beyond) => (1 + beyond / PAGES_PER_REGION, beyond % PAGES_PER_REGION),
    }
}

fn page_word(region: u32, place: u32) -> usize {
    place as usize + if region == 0 { FIRST_PAGE_WORD } else { 0 }
}

fn pages_in(region: u32) -> u32 {
    if region == 0 { PAGES_IN_FIRST } else { PAGES_PER_REGION }
}

fn hash(page: PageNo) -> u32 {
    page.0.wrapping_mul(383) & (SLOTS - 1)
}

/// A `u16` hash slot lies in one half of a word; the other half is kept. Only the one writer stores here.
fn slot(region: &Region, n: u32) -> (&AtomicU32, u32) {
    let half = if cfg!(target_endian = "big") { 1 - (n & 1) } else { n & 1 };
    (&region[SLOT_WORDS + (n / 2) as usize], half * 16)
}

fn load_slot(region: &Region, n: u32) -> u32 {
    let (word, shift) = slot(region, n);
    (word.load(Ordering::Acquire) >> shift) & 0xffff
}

fn store_slot(region: &Region, n: u32, value: u32) {
    let (word, shift) = slot(region, n);
    let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
    word.store(others | (value << shift), Ordering::Release);
}

/// Why the index can't be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum IndexError<E> {
    /// The region could not be had.
    #[error("can't map the wal-index: {0}")]
    Region(E),
    /// A hash table has no free slot although it must: the index was overwritten by something else.
    #[error("the wal-index is damaged: hash table of region {0} has no free slot")]
    Full(u32),
}

/// Clears what an unfinished transaction left beyond `max_frame`, so that probing ends where it should
/// (SQLite's `walCleanupHash`).
pub fn sweep<I: WalIndex>(index: &I, max_frame: FrameNo) -> Result<(), IndexError<I::Error>> {
    if max_frame.0 == 0 {
        return Ok(()); // The first append clears its region.
    }
    let (n, last) = place(max_frame);
    let region = index.region(n).map_err(IndexError::Region)?;
    let next = last + 1;
    if next >= pages_in(n) || region[page_word(n, next)].load(Ordering::Relaxed) == 0 {
        return Ok(()); // As SQLite: pages are entered in order, so the next place tells.
    }
    for slot in 0..SLOTS {
        if load_slot(region, slot) > next {
            store_slot(region, slot, 0);
        }
    }
    for place in next..pages_in(n) {
        region[page_word(n, place)].store(0, Ordering::Relaxed);
    }
    Ok(())
}

/// Enters one frame (SQLite's `walIndexAppend`). Frames are entered in order, after a [`sweep`].
pub fn append<I: WalIndex>(index: &I, frame: FrameNo, page: PageNo) -> Result<(), IndexError<I::Error>> {
    let (n, place) = place(frame);
    let region = index.region(n).map_err(IndexError::Region)?;
    if place == 0 {
        // The first frame of a region clears it: what stands there is of an earlier generation.
        for word in &region[page_word(n, 0)..] {
            word.store(0, Ordering::Relaxed);
        }
    }
    let mut key = hash(page);
    let mut probes = 0;
    while load_slot(region, key) != 0 {
        key = (key + 1) & (SLOTS - 1);
        probes += 1;
        if probes >= SLOTS {
            return Err(IndexError::Full(n));
        }
    }
    region[page_word(n, place)].store(page.0, Ordering::Relaxed);
    store_slot(region, key, place + 1);
    Ok(())
}

/// The newest frame of `page` that is not beyond `max_frame` (SQLite's `sqlite3WalFindFrame`).
pub fn find<I: WalIndex>(
    index: &I,
    page: PageNo,
    max_frame: FrameNo,
) -> Result<Option<FrameNo>, IndexError<I::Error>> {
    if max_frame.0 == 0 {
        return Ok(None);
    }
    let (last_region, last_place) = place(max_frame);
    for n in (0..=last_region).rev() {
        let region = index.region(n).map_err(IndexError::Region)?;
        let limit = if n == last_region { last_place + 1 } else { pages_in(n) };
        let base = if n == 0 { 0 } else { PAGES_IN_FIRST + (n - 1) * PAGES_PER_REGION };
        let mut key = hash(page);
        let mut found = None;
        for _ in 0..=SLOTS {
            let entry = load_slot(region, key);
            if entry == 0 {
                break;
            }
            if entry <= limit && region[page_word(n, entry - 1)].load(Ordering::Relaxed) == page.0 {
                found = found.max(Some(FrameNo(base + entry)));
            }
            key = (key + 1) & (SLOTS - 1);
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// A wal-index in this process's own memory, for tests and tools.
#[derive(Debug, Default)]
pub struct HeapIndex {
    regions: std::cell::OnceCell<Box<[Region]>>,
}

impl HeapIndex {
    /// Room for `regions` regions, all zeros.
    pub fn new(regions: u32) -> HeapIndex {
        let cells = (0..regions).map(|_| std::array::from_fn(|_| AtomicU32::new(0))).collect();
        let index = HeapIndex::default();
        let _ = index.regions.set(cells);
        index
    }
}

impl WalIndex for HeapIndex {
    type Error = &'static str;

    fn region(&self, n: u32) -> Result<&Region, &'static str> {
        self.regions.get().and_then(|r| r.get(n as usize)).ok_or("no such region")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn header_round_trip_and_half_published() {
        let index = HeapIndex::new(1);
        let region = index.region(0).unwrap();
        assert_eq!(read_header(region), None, "zeros are no header");
        assert_eq!(recover_header(region), None);
        let old = IndexHeader { change: 7, page_size: PageSize::new(65536), ..IndexHeader::empty() };
        publish(region, &old);
        assert_eq!(read_header(region), Some(old));
        let new =
            IndexHeader { change: 8, max_frame: FrameNo(5), salts: Salts([1, 2, 3, 4, 5, 6, 7, 8]), ..old };

        // Died between the copies: copy 2 speaks.
        store_copy(region, 1, &new.to_words());
        assert_eq!(read_header(region), None);
        assert_eq!(recover_header(region), Some(new));
        assert_eq!(read_header(region), Some(new));

        // Died inside copy 2: copy 1 speaks.
        publish(region, &old);
        let mut torn = new.to_words();
        torn[11] ^= 1;
        store_copy(region, 1, &torn);
        assert_eq!(recover_header(region), Some(old));
        assert_eq!(read_header(region), Some(old));
    }

    #[test]
    fn places_are_sqlites() {
        assert_eq!(place(FrameNo(1)), (0, 0));
        assert_eq!(place(FrameNo(4062)), (0, 4061));
        assert_eq!(place(FrameNo(4063)), (1, 0));
        assert_eq!(place(FrameNo(4062 + 4096)), (1, 4095));
        assert_eq!(place(FrameNo(4063 + 4096)), (2, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn find_agrees_with_a_map(
            seed_frames in 0u32..9000,
            rounds in proptest::collection::vec((1u32..300, any::<bool>()), 1..8),
            page_range in 1u32..5000,
        ) {
            let index = HeapIndex::new(5);
            let mut newest = BTreeMap::new();
            let mut max = 0;
            let mut at = 0u32;
            let mut next_page = || { at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); 1 + (at >> 8) % page_range };
            for _ in 0..seed_frames {
                max += 1;
                let page = next_page();
                append(&index, FrameNo(max), PageNo(page)).unwrap();
                newest.insert(page, max);
            }
            for (frames, finished) in rounds {
                sweep(&index, FrameNo(max)).unwrap();
                let mut tentative = newest.clone();
                for frame in max + 1..=max + frames {
                    let page = next_page();
                    append(&index, FrameNo(frame), PageNo(page)).unwrap();
                    tentative.insert(page, frame);
                }
                if finished {
                    newest = tentative;
                    max += frames;
                }
                for page in 1..=page_range.min(400) {
                    let found = find(&index, PageNo(page), FrameNo(max)).unwrap().map(|f| f.0);
                    prop_assert_eq!(found, newest.get(&page).copied());
                }
            }
        }
    }
}
