//! The WAL scan over bytes that nobody vouches for. The first byte chooses: even, the rest is taken as a
//! WAL file; odd, it describes a valid WAL and one thing that happens to it, so that the scan's end is known.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use quire_vfs::format::wal::{
    ByteOrder, Checksum, FRAME_HEADER_SIZE, FrameHeader, HEADER_SIZE, Salts, Scan, WalHeader, frame_offset,
};
use quire_vfs::format::{FrameNo, PageNo, PageSize};

#[derive(Debug, Arbitrary)]
struct Log {
    big_endian: bool,
    /// 512 shifted left by this, modulo 3: larger pages only cost time.
    shift: u8,
    checkpoint_seq: u32,
    salts: [u8; 8],
    frames: Vec<Frame>,
    harm: Harm,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    page: u32,
    commit_size: u32,
    fill: u8,
}

#[derive(Debug, Arbitrary)]
enum Harm {
    None,
    Flip { at: usize, mask: u8 },
    Cut { at: usize },
    Append(Vec<u8>),
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        check(rest);
    } else if let Ok(log) = Log::arbitrary(&mut Unstructured::new(rest)) {
        structured(log);
    }
});

/// What holds of any bytes: what the scan yields is what stands there, frame after frame, and encoding it
/// again makes the same bytes. Returns the number of frames, or `None` if the header is refused.
fn check(bytes: &[u8]) -> Option<usize> {
    let scan = Scan::new(bytes).ok()?;
    let header = scan.header();
    let (head, mut sum) = header.encode();
    assert_eq!(head[..], bytes[..HEADER_SIZE], "header");
    let size = FRAME_HEADER_SIZE + header.page_size.bytes();
    let mut count = 0;
    for found in scan {
        let at = HEADER_SIZE + count * size;
        count += 1;
        assert_eq!(found.frame, FrameNo(count as u32), "frames are contiguous");
        assert_eq!(frame_offset(found.frame, header.page_size), at as u64);
        assert_ne!(found.header.page, PageNo(0));
        assert_eq!(found.data, &bytes[at + FRAME_HEADER_SIZE..at + size]);
        let (again, next) = found.header.encode(found.data, header.salts, sum, header.order);
        assert_eq!(again[..], bytes[at..at + FRAME_HEADER_SIZE], "frame {count}");
        assert_eq!(found.checksum, next);
        sum = next;
    }
    Some(count)
}

/// Builds a valid WAL, harms it in one place, and demands that the scan ends exactly there.
fn structured(log: Log) {
    let Some(page_size) = PageSize::new(512 << (log.shift % 3)) else { return };
    let order = if log.big_endian { ByteOrder::Big } else { ByteOrder::Little };
    let header = WalHeader { order, page_size, checkpoint_seq: log.checkpoint_seq, salts: Salts(log.salts) };
    let (head, mut sum): (_, Checksum) = header.encode();
    let mut bytes = head.to_vec();
    let frames = log.frames.len().min(40);
    for frame in &log.frames[..frames] {
        let data = vec![frame.fill; page_size.bytes()];
        let fields = FrameHeader { page: PageNo(frame.page.max(1)), commit_size: frame.commit_size };
        let (head, next) = fields.encode(&data, header.salts, sum, order);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&data);
        sum = next;
    }
    let size = FRAME_HEADER_SIZE + page_size.bytes();
    let frame_of = |at: usize| at.checked_sub(HEADER_SIZE).map(|at| at / size);
    // SQLite's checksum is linear, so one changed byte never goes unnoticed; in the byte order bit of the
    // magic it changes the sum's own rules, which is no longer one byte.
    let expected = match log.harm {
        Harm::None => Some(frames),
        Harm::Flip { at, mask } => {
            let at = at % bytes.len();
            if mask == 0 || (at == 3 && mask == 1) {
                return;
            }
            bytes[at] ^= mask;
            frame_of(at)
        }
        Harm::Cut { at } => {
            let at = at % (bytes.len() + 1);
            bytes.truncate(at);
            frame_of(at)
        }
        Harm::Append(tail) if tail.len() < FRAME_HEADER_SIZE => {
            bytes.extend_from_slice(&tail);
            Some(frames)
        }
        Harm::Append(tail) => {
            bytes.extend_from_slice(&tail);
            assert!(check(&bytes).is_some_and(|found| found >= frames));
            return;
        }
    };
    assert_eq!(check(&bytes), expected);
}
