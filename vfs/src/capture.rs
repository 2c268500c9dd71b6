//! Recognises a transaction in what SQLite writes to the WAL. Sans-io: writes go in, what to do with them
//! comes out.
//!
//! SQLite's `sqlite3WalFrames` writes each frame as a 24-byte header and then its page. Beyond the plain
//! sequence it may
//! - write frames before the commit (cache spill), none of which ends a transaction;
//! - overwrite the page of a frame that this transaction wrote before (a page spilled twice);
//! - go back to a lower frame after `ROLLBACK TO` and write on from there;
//! - start the log anew (header at offset 0) before its first frame;
//! - rewrite frame headers of this transaction after its commit frame, to mend the checksums of pages that
//!   it overwrote (`walRewriteChecksums`).
//!
//! So a frame's place decides, and the last write to it. Which pages a transaction has is known when its
//! *commit frame* comes: the frame whose header carries a database size. That header is held back until the
//! transaction's outcome is known; no reader or recovery can take the transaction for committed without it.
//! Only page numbers are remembered here; the images stand in the WAL file.

use crate::format::wal::{self, FRAME_HEADER_SIZE, FrameHeader, HEADER_SIZE, Salts};
use crate::format::{FrameNo, PageNo, PageSize};
use std::collections::BTreeMap;

/// What the shim must do with a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it to the file.
    Forward,
    /// Keep it from the file: it is the commit frame's header.
    Hold,
    /// Pass it to the file; the transaction is complete, and its outcome must be had before
    /// [`Capture::take_held`] may be written.
    Commit(Commit),
}

/// A complete transaction, as it stands in the WAL file.
#[derive(Debug, PartialEq, Eq)]
pub struct Commit {
    /// The last frame of each page, ascending by page; pages beyond the database's new end left out.
    pub pages: Vec<(PageNo, FrameNo)>,
    /// Size of the database in pages after the commit.
    pub db_size: u32,
    /// The commit frame.
    pub frame: FrameNo,
    /// The salts of the generation that it stands in.
    pub salts: Salts,
}

/// A write that SQLite would not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// A write with no meaning in a WAL.
    #[error("a write of {len} bytes at offset {offset} is no part of a WAL with pages of {page_size} bytes")]
    Shape {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// The database's page size.
        page_size: PageSize,
    },
    /// The transaction ends with frames that it did not write.
    #[error("the transaction ends at frame {last}, but frame {missing} was not written under this lock")]
    Gap {
        /// The commit frame.
        last: FrameNo,
        /// The first that is missing.
        missing: FrameNo,
    },
    /// A WAL header for another page size.
    #[error("WAL header is damaged or has another page size than {0}")]
    Header(PageSize),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Writing,
    Held { frame: FrameNo, header: [u8; FRAME_HEADER_SIZE] },
    Complete,
}

/// Follows the writes to the WAL from one grant of the write lock to its release.
#[derive(Debug)]
pub struct Capture {
    page_size: PageSize,
    salts: Salts,
    /// The first frame that this transaction may write.
    first: FrameNo,
    frames: BTreeMap<FrameNo, PageNo>,
    state: State,
}

impl Capture {
    /// A transaction that begins after frame `max_frame` of the generation `salts`.
    pub fn new(page_size: PageSize, max_frame: FrameNo, salts: Salts) -> Capture {
        let first = FrameNo(max_frame.0 + 1);
        Capture { page_size, salts, first, frames: BTreeMap::new(), state: State::Writing }
    }

    /// Whether anything was written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.state == State::Writing
    }

    /// Takes note of a write and says what to do with it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Action, CaptureError> {
        let shape = CaptureError::Shape { offset, len: data.len(), page_size: self.page_size };
        if self.state == State::Complete {
            return Ok(Action::Forward); // Checksum rewrites and padding; the outcome is known.
        }
        if offset == 0 && data.len() == HEADER_SIZE {
            return self.wal_header(data);
        }
        let frame_size = (FRAME_HEADER_SIZE + self.page_size.bytes()) as u64;
        let Some(from_first) = offset.checked_sub(HEADER_SIZE as u64) else { return Err(shape) };
        let frame = u32::try_from(from_first / frame_size).ok().and_then(|n| n.checked_add(1)).map(FrameNo);
        let Some(frame) = frame.filter(|frame| *frame >= self.first) else { return Err(shape) };
        match (from_first % frame_size, data.len()) {
            (0, FRAME_HEADER_SIZE) => {
                let mut header = [0; FRAME_HEADER_SIZE];
                header.copy_from_slice(data);
                let fields = FrameHeader::decode_unchecked(&header);
                if fields.page.0 == 0 {
                    return Err(shape);
                }
                self.frames.insert(frame, fields.page);
                if fields.commit_size == 0 {
                    self.state = State::Writing;
                    return Ok(Action::Forward);
                }
                self.state = State::Held { frame, header };
                Ok(Action::Hold)
            }
            (at, len) if at == FRAME_HEADER_SIZE as u64 && len == self.page_size.bytes() => match &self.state
            {
                State::Held { frame: held, header } if *held == frame => {
                    let db_size = FrameHeader::decode_unchecked(header).commit_size;
                    self.complete(frame, db_size).map(Action::Commit)
                }
                _ if self.frames.contains_key(&frame) => Ok(Action::Forward),
                _ => Err(shape),
            },
            _ => Err(shape),
        }
    }

    fn wal_header(&mut self, data: &[u8]) -> Result<Action, CaptureError> {
        match wal::WalHeader::decode(data) {
            Ok((header, _)) if header.page_size == self.page_size => {
                self.salts = header.salts;
                self.first = FrameNo(1);
                self.frames.clear();
                self.state = State::Writing;
                Ok(Action::Forward)
            }
            _ => Err(CaptureError::Header(self.page_size)),
        }
    }

    fn complete(&self, last: FrameNo, db_size: u32) -> Result<Commit, CaptureError> {
        let mut expected = self.first;
        let mut pages = BTreeMap::new();
        for (&frame, &page) in self.frames.range(..=last) {
            if frame != expected {
                return Err(CaptureError::Gap { last, missing: expected });
            }
            expected = FrameNo(frame.0 + 1);
            if page.0 <= db_size {
                pages.insert(page, frame);
            }
        }
        Ok(Commit { pages: pages.into_iter().collect(), db_size, frame: last, salts: self.salts })
    }

    /// The transaction has committed: the held header, and its offset in the file. From here on every
    /// write passes.
    pub fn take_held(&mut self) -> Option<(u64, [u8; FRAME_HEADER_SIZE])> {
        match std::mem::replace(&mut self.state, State::Complete) {
            State::Held { frame, header } => Some((wal::frame_offset(frame, self.page_size), header)),
            State::Writing | State::Complete => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 512;

    fn capture(max_frame: u32) -> Capture {
        Capture::new(PageSize::new(SIZE as u32).unwrap(), FrameNo(max_frame), Salts([1; 8]))
    }

    fn header(page: u32, commit: u32) -> [u8; FRAME_HEADER_SIZE] {
        let mut out = [0; FRAME_HEADER_SIZE];
        out[..4].copy_from_slice(&page.to_be_bytes());
        out[4..8].copy_from_slice(&commit.to_be_bytes());
        out
    }

    fn offset(frame: u32) -> u64 {
        wal::frame_offset(FrameNo(frame), PageSize::new(SIZE as u32).unwrap())
    }

    fn frame(capture: &mut Capture, frame: u32, page: u32, commit: u32) -> Action {
        let expected = if commit == 0 { Action::Forward } else { Action::Hold };
        assert_eq!(capture.write(offset(frame), &header(page, commit)).unwrap(), expected);
        capture.write(offset(frame) + FRAME_HEADER_SIZE as u64, &[0; SIZE]).unwrap()
    }

    fn pages(action: Action) -> Vec<(u32, u32)> {
        let Action::Commit(commit) = action else { panic!("{action:?}") };
        commit.pages.iter().map(|(page, frame)| (page.0, frame.0)).collect()
    }

    #[test]
    fn plain_commit_holds_only_the_last_header() {
        let mut c = capture(7);
        assert!(c.is_empty());
        assert_eq!(frame(&mut c, 8, 3, 0), Action::Forward);
        assert_eq!(pages(frame(&mut c, 9, 1, 3)), [(1, 9), (3, 8)]);
        let (at, held) = c.take_held().unwrap();
        assert_eq!((at, held), (offset(9), header(1, 3)));
        // Checksum rewrites pass afterwards, the commit frame's too.
        assert_eq!(c.write(offset(9), &header(1, 3)).unwrap(), Action::Forward);
        assert_eq!(c.take_held(), None);
    }

    #[test]
    fn a_spilled_page_is_overwritten_in_place_or_again_later() {
        let mut c = capture(0);
        frame(&mut c, 1, 5, 0);
        frame(&mut c, 2, 6, 0);
        assert_eq!(c.write(offset(1) + 24, &[7; SIZE]).unwrap(), Action::Forward);
        assert_eq!(pages(frame(&mut c, 3, 5, 6)), [(5, 3), (6, 2)]);
    }

    #[test]
    fn rollback_to_a_savepoint_goes_back_in_the_file() {
        let mut c = capture(0);
        for n in 1..=5 {
            frame(&mut c, n, 10 + n, 0);
        }
        frame(&mut c, 2, 30, 0);
        assert_eq!(pages(frame(&mut c, 3, 31, 40)), [(11, 1), (30, 2), (31, 3)]);
    }

    #[test]
    fn a_restarted_log_begins_at_frame_one() {
        let mut c = capture(100);
        let wal = wal::WalHeader {
            order: wal::ByteOrder::NATIVE,
            page_size: PageSize::new(SIZE as u32).unwrap(),
            checkpoint_seq: 1,
            salts: Salts([4; 8]),
        };
        assert_eq!(c.write(0, &wal.encode().0).unwrap(), Action::Forward);
        let Action::Commit(commit) = frame(&mut c, 1, 1, 1) else { panic!() };
        assert_eq!((commit.salts, commit.frame), (Salts([4; 8]), FrameNo(1)));
    }

    #[test]
    fn pages_beyond_the_new_end_are_left_out() {
        let mut c = capture(0);
        frame(&mut c, 1, 9, 0);
        assert_eq!(pages(frame(&mut c, 2, 1, 4)), [(1, 2)]);
    }

    #[test]
    fn writes_that_sqlite_does_not_make_are_refused() {
        let mut c = capture(2);
        for (at, len) in
            [(1, 32), (0, 24), (offset(2), 24), (offset(3) + 1, 24), (offset(3), 25), (offset(3) + 24, SIZE)]
        {
            assert!(matches!(c.write(at, &vec![1; len]), Err(CaptureError::Shape { .. })), "{at} {len}");
        }
        assert!(matches!(c.write(0, &[0; 32]), Err(CaptureError::Header(_))));
        assert_eq!(c.write(offset(4), &header(1, 0)).unwrap(), Action::Forward);
        assert_eq!(c.write(offset(5), &header(1, 1)).unwrap(), Action::Hold);
        assert_eq!(
            c.write(offset(5) + 24, &[0; SIZE]),
            Err(CaptureError::Gap { last: FrameNo(5), missing: FrameNo(3) })
        );
    }
}
