//! What SQLite writes to the WAL from one grant of the write lock to its release, by the rules of `sqlite3WalFrames`: frames
//! before the commit (spills), pages of its own frames written again in place, `ROLLBACK TO` a lower frame, a log that starts
//! anew, checksums mended after the commit. Capture's answers are carried out on a model of the file.
//!
//! At the commit frame, the pages that Capture names are the last image of each page in the file. Until its header is let through,
//! no reader of the file can find a commit; afterwards, once SQLite has mended the checksums, the file is a sound log with
//! that commit as its last. Of writes that SQLite would not make, none passes that changes a published frame.

use arbitrary::{Arbitrary, Unstructured};
use quire_vfs::capture::{Action, Capture};
use quire_vfs::format::wal::{
    ByteOrder, Checksum, FRAME_HEADER_SIZE, FrameHeader, HEADER_SIZE, Salts, Scan, WalHeader, frame_offset,
};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use std::collections::BTreeMap;

const SIZE: usize = 512;

#[derive(Debug, Arbitrary)]
enum Step {
    /// A frame that no commit follows yet.
    Spill { page: u8, fill: u8 },
    /// The page of one of its frames again.
    Again { frame: u8, fill: u8 },
    /// Back to a frame after those that were there when the savepoint began.
    RollBackTo { frame: u8 },
    /// The log anew; SQLite does so only before its first frame.
    Restart,
    /// The last frame.
    Commit { page: u8, fill: u8, size: u8 },
    /// Anything.
    Odd { offset: u16, len: u8 },
}

#[derive(Debug, Arbitrary)]
struct Run {
    /// Frames that are published already.
    published: u8,
    steps: Vec<Step>,
    refused: bool,
}

/// The file, as what was let through makes it.
struct File {
    bytes: Vec<u8>,
    salts: Salts,
    /// Checksum after each frame, from that of the header on.
    sums: Vec<Checksum>,
}

impl File {
    fn new(salts: Salts) -> File {
        let page_size = PageSize::new(SIZE as u32).expect("it is one");
        let header = WalHeader { order: ByteOrder::NATIVE, page_size, checkpoint_seq: 0, salts };
        let (bytes, sum) = header.encode();
        File { bytes: bytes.to_vec(), salts, sums: vec![sum] }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let (at, end) = (at as usize, at as usize + data.len());
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at..end].copy_from_slice(data);
    }

    /// The header of frame `frame`, and the checksum after it.
    fn header(&self, frame: u32, page: u32, commit: u32, data: &[u8]) -> ([u8; FRAME_HEADER_SIZE], Checksum) {
        let fields = FrameHeader { page: PageNo(page), commit_size: commit };
        fields.encode(data, self.salts, self.sums[frame as usize - 1], ByteOrder::NATIVE)
    }

    /// The last commit that recovery finds.
    fn last_commit(&self) -> u32 {
        let Ok(scan) = Scan::new(&self.bytes) else { return 0 };
        scan.filter(|frame| frame.header.commit_size > 0).last().map_or(0, |frame| frame.frame.0)
    }

    fn page(&self, frame: u32) -> &[u8] {
        let at = offset(frame) as usize + FRAME_HEADER_SIZE;
        &self.bytes[at..at + SIZE]
    }
}

fn offset(frame: u32) -> u64 {
    frame_offset(FrameNo(frame), PageSize::new(SIZE as u32).expect("it is one"))
}

/// One run.
pub fn run(data: &[u8]) {
    if let Ok(run) = Run::arbitrary(&mut Unstructured::new(data)) {
        follow(&run);
    }
}

fn follow(run: &Run) {
    let mut file = File::new(Salts([1; 8]));
    let published = u32::from(run.published % 8);
    for frame in 1..=published {
        let data = [frame as u8; SIZE];
        let (header, sum) = file.header(frame, frame, u32::from(frame == published) * 8, &data);
        file.write(offset(frame), &header);
        file.write(offset(frame) + FRAME_HEADER_SIZE as u64, &data);
        file.sums.push(sum);
    }
    let mut capture =
        Capture::new(PageSize::new(SIZE as u32).expect("it is one"), FrameNo(published), file.salts);
    // What SQLite believes to have written: page and image of each frame after `base`.
    let (mut base, mut frames) = (published, Vec::<(u32, [u8; SIZE])>::new());
    for step in run.steps.iter().take(48) {
        match *step {
            Step::Spill { page, fill } => {
                let page = u32::from(page % 24) + 1;
                assert!(write_frame(&mut capture, &mut file, base, &mut frames, (page, fill), 0).is_none());
            }
            Step::Again { frame, fill } => {
                if let Some(n) = usize::from(frame).checked_rem(frames.len()) {
                    let at = offset(base + n as u32 + 1) + FRAME_HEADER_SIZE as u64;
                    let data = [fill; SIZE];
                    assert_eq!(capture.write(at, &data), Ok(Action::Forward));
                    file.write(at, &data);
                    frames[n].1 = data;
                }
            }
            Step::RollBackTo { frame } => {
                let to = usize::from(frame) % (frames.len() + 1);
                frames.truncate(to);
                file.sums.truncate((base as usize) + to + 1);
            }
            Step::Restart => {
                if frames.is_empty() {
                    let salts = Salts([file.salts.0[0].wrapping_add(1); 8]);
                    let fresh = File::new(salts);
                    assert_eq!(capture.write(0, &fresh.bytes), Ok(Action::Forward));
                    file.write(0, &fresh.bytes);
                    (file.salts, file.sums, base) = (salts, fresh.sums, 0);
                }
            }
            Step::Commit { page, fill, size } => {
                let (page, size) = (u32::from(page % 24) + 1, u32::from(size % 32) + 1);
                let before = file.last_commit();
                let commit = write_frame(&mut capture, &mut file, base, &mut frames, (page, fill), size);
                let commit = commit.expect("it is the commit frame");
                assert_eq!(file.last_commit(), before, "nobody finds it before it is let through");
                let last = base + frames.len() as u32;
                let mut expected = BTreeMap::new();
                for (n, (page, image)) in frames.iter().enumerate().filter(|(_, frame)| frame.0 <= size) {
                    let frame = base + n as u32 + 1;
                    assert_eq!(file.page(frame), image, "the file has what SQLite wrote");
                    expected.insert(PageNo(*page), FrameNo(frame));
                }
                assert_eq!(commit.pages, expected.into_iter().collect::<Vec<_>>());
                assert_eq!((commit.db_size, commit.frame, commit.salts), (size, FrameNo(last), file.salts));
                if run.refused {
                    return; // SQLite rolls back; the next writer begins after what is published.
                }
                publish(&mut capture, &mut file, base, &frames, size);
                assert_eq!(file.last_commit(), last, "now everybody finds it");
                return;
            }
            Step::Odd { offset, len } => {
                let at = u64::from(offset);
                let data = vec![0xa5; usize::from(len)];
                let protected = HEADER_SIZE as u64..self::offset(base + 1);
                if capture.write(at, &data).is_ok() {
                    assert!(!protected.contains(&at) && at > 0, "a published frame is overwritten");
                }
                // SQLite's own writes don't go on from there.
                return;
            }
        }
    }
}

/// Writes one frame as SQLite does: its header, and then its page.
fn write_frame(
    capture: &mut Capture,
    file: &mut File,
    base: u32,
    frames: &mut Vec<(u32, [u8; SIZE])>,
    (page, fill): (u32, u8),
    commit: u32,
) -> Option<quire_vfs::capture::Commit> {
    let frame = base + frames.len() as u32 + 1;
    let data = [fill; SIZE];
    let (header, sum) = file.header(frame, page, commit, &data);
    frames.push((page, data));
    file.sums.push(sum);
    match capture.write(offset(frame), &header).expect("SQLite writes so") {
        Action::Forward => {
            assert_eq!(commit, 0);
            file.write(offset(frame), &header);
        }
        Action::Hold => assert!(commit > 0),
        action => panic!("{action:?} for a header"),
    }
    let action = capture.write(offset(frame) + FRAME_HEADER_SIZE as u64, &data).expect("SQLite writes so");
    file.write(offset(frame) + FRAME_HEADER_SIZE as u64, &data);
    match action {
        Action::Forward => None,
        Action::Commit(commit) => Some(commit),
        Action::Hold => panic!("a page is held"),
    }
}

/// Lets the commit through, and mends checksums as `walRewriteChecksums` does.
fn publish(capture: &mut Capture, file: &mut File, base: u32, frames: &[(u32, [u8; SIZE])], size: u32) {
    let (at, header) = capture.take_held().expect("it was held");
    assert_eq!(at, offset(base + frames.len() as u32));
    file.write(at, &header);
    file.sums.truncate(base as usize + 1);
    for (n, (page, image)) in frames.iter().enumerate() {
        let frame = base + n as u32 + 1;
        let commit = if n + 1 == frames.len() { size } else { 0 };
        let (header, sum) = file.header(frame, *page, commit, image);
        assert_eq!(capture.write(offset(frame), &header), Ok(Action::Forward), "all passes now");
        file.write(offset(frame), &header);
        file.sums.push(sum);
    }
    assert_eq!(capture.take_held(), None);
}
