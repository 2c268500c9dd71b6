//! The wal-index, which every process that has a database open may write. Any bytes: the readers end, and what they
//! find stands there. And a sequence of frames that are entered, looked up and swept, against a plain list.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use quire_vfs::format::wal_index::{
    HeapIndex, WalIndex, append, backfilled, find, read_header, recover_header, sweep,
};
use quire_vfs::format::{FrameNo, PageNo};
use std::sync::atomic::Ordering;

/// So many frames need a second region.
const BIG: usize = 4062;

#[derive(Debug, Arbitrary)]
enum Step {
    /// So many frames, of pages that follow one another.
    Append { page: u16, count: u16 },
    /// What is beyond this part of all is taken back.
    Rollback { to: u16 },
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        any_bytes(rest);
    } else if let Ok(steps) = Vec::<Step>::arbitrary(&mut Unstructured::new(rest)) {
        model(&steps);
    }
});

fn any_bytes(data: &[u8]) {
    let index = HeapIndex::new(2);
    let words = data.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    // From both ends, so that short inputs reach headers and hash slots.
    for (n, word) in words.enumerate().take(8192) {
        let region = index.region((n % 2) as u32).expect("there are two");
        let at = if n / 2 % 2 == 0 { n / 4 } else { region.len() - 1 - n / 4 };
        region[at % region.len()].store(word, Ordering::Relaxed);
    }
    let region0 = index.region(0).expect("there are two");
    let header = read_header(region0);
    assert!(header.is_none() || recover_header(region0) == header);
    let _ = backfilled(region0);
    let max = header.map_or(u32::MAX, |header| header.max_frame.0);
    for max in [max, 1, BIG as u32, BIG as u32 + 1, 2 * BIG as u32] {
        for page in [1, 2, max, u32::MAX] {
            if let Ok(Some(frame)) = find(&index, PageNo(page), FrameNo(max)) {
                assert!(frame.0 >= 1 && frame.0 <= max, "frame {frame:?} of {max}");
            }
        }
    }
}

fn model(steps: &[Step]) {
    let index = HeapIndex::new(3);
    let mut pages: Vec<u32> = Vec::new();
    for step in steps.iter().take(24) {
        match *step {
            Step::Append { page, count } => {
                // As every writer does before it enters frames.
                sweep(&index, FrameNo(pages.len() as u32)).expect("it is in range");
                for n in 0..count % 2048 {
                    if pages.len() >= 2 * BIG {
                        break;
                    }
                    let page = 1 + u32::from(page) + u32::from(n) % 700;
                    pages.push(page);
                    append(&index, FrameNo(pages.len() as u32), PageNo(page)).expect("there is room");
                }
            }
            Step::Rollback { to } => pages.truncate(usize::from(to) % (pages.len() + 1)),
        }
        let max = pages.len();
        for probe in [1, max / 2, max] {
            let Some(&page) = probe.checked_sub(1).and_then(|at| pages.get(at)) else { continue };
            for limit in [probe, max] {
                let expected =
                    pages[..limit].iter().rposition(|&p| p == page).map(|at| FrameNo(at as u32 + 1));
                let found = find(&index, PageNo(page), FrameNo(limit as u32));
                assert_eq!(found.expect("it is in range"), expected, "page {page}");
            }
        }
    }
}
