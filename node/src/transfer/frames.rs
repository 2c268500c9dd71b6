//! Frames of a transfer, on a bulk stream between nodes. Little-endian.
//!
//! ```text
//! receiver → source
//!   ask      0  u8 1, u8 version 1, u16 0, u32 number of hashes
//!            8  u64 database id, u64 entry that the state must contain at least
//!   hashes   u64 each, in page order, in as many frames as it takes; 0: the page is not there
//! source → receiver
//!   state    0  u8 2, 3 × 0, u32 page size
//!            8  u64 term, u64 leader, u64 index, u64 as-of, u64 checksum, u32 pages, u32 pages that differ
//!   pages    0  u8 3, 3 × 0, u32 n
//!            8  u32 × n page numbers, n images
//!   done     u8 4
//!   refused  u8 5, UTF-8 text
//! ```

use crate::command::DbId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quire_raft::LogPosition;
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::{PageNo, PageSize};

const VERSION: u8 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) hashes: u32,
    pub(crate) database: DbId,
    pub(crate) at_least: u64,
}

impl Ask {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(24);
        out.put_slice(&[1, VERSION, 0, 0]);
        out.put_u32_le(self.hashes);
        out.put_u64_le(self.database.0);
        out.put_u64_le(self.at_least);
        out.freeze()
    }

    pub(crate) fn decode(mut frame: Bytes) -> Result<Ask, String> {
        if frame.len() != 24 || frame[0] != 1 {
            return Err("the request makes no sense".into());
        }
        if frame[1] != VERSION {
            return Err(format!("transfers of version {} are not spoken here, but {VERSION}", frame[1]));
        }
        frame.advance(4);
        Ok(Ask {
            hashes: frame.get_u32_le(),
            database: DbId(frame.get_u64_le()),
            at_least: frame.get_u64_le(),
        })
    }
}

/// What the source is about to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) page_size: u32,
    pub(crate) position: LogPosition,
    pub(crate) as_of: u64,
    pub(crate) checksum: DbChecksum,
    pub(crate) pages: u32,
    pub(crate) differing: u32,
}

impl Offer {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(56);
        out.put_slice(&[2, 0, 0, 0]);
        out.put_u32_le(self.page_size);
        let p = self.position;
        [p.term, p.leader, p.index, self.as_of, self.checksum.0]
            .iter()
            .for_each(|word| out.put_u64_le(*word));
        out.put_u32_le(self.pages);
        out.put_u32_le(self.differing);
        out.freeze()
    }

    pub(crate) fn decode(mut frame: Bytes) -> Option<Offer> {
        if frame.len() != 56 || frame[0] != 2 {
            return None;
        }
        frame.advance(4);
        let page_size = frame.get_u32_le();
        let position =
            LogPosition { term: frame.get_u64_le(), leader: frame.get_u64_le(), index: frame.get_u64_le() };
        let (as_of, checksum) = (frame.get_u64_le(), DbChecksum(frame.get_u64_le()));
        let (pages, differing) = (frame.get_u32_le(), frame.get_u32_le());
        (differing <= pages).then_some(Offer { page_size, position, as_of, checksum, pages, differing })
    }
}

impl Offer {
    /// Whether what is to come makes the state of what a receiver has hashes of: pages beyond those must all come.
    pub(crate) fn fits(&self, hashes: usize) -> bool {
        u64::from(self.pages) <= hashes as u64 + u64::from(self.differing)
    }
}

/// What ends a state.
pub(crate) const DONE: &[u8] = &[4];

/// A frame of hashes.
pub(crate) fn encode_hashes(hashes: &[u64]) -> Bytes {
    hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect::<BytesMut>().freeze()
}

/// Why the state doesn't come.
pub(crate) fn encode_refusal(why: &str) -> Bytes {
    [&[5], why.as_bytes()].concat().into()
}

/// A frame of these pages, whose images are to follow in it.
pub(crate) fn pages_frame(pages: &[PageNo], size: PageSize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + pages.len() * (4 + size.bytes()));
    frame.put_slice(&[3, 0, 0, 0]);
    frame.put_u32_le(pages.len() as u32);
    pages.iter().for_each(|page| frame.put_u32_le(page.0));
    frame
}

/// The pages of a frame, of a state of so many pages.
pub(crate) fn decode_pages(
    frame: &Bytes,
    size: PageSize,
    pages: u32,
) -> Option<impl Iterator<Item = (PageNo, &[u8])>> {
    let word = |at: usize| frame.get(at..at + 4)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
    let n = word(4)? as usize;
    if frame.len() as u64 != 8 + n as u64 * (4 + u64::from(size.get())) {
        return None;
    }
    let (numbers, images) = frame[8..].split_at(4 * n);
    let numbers = numbers.chunks_exact(4).map(|b| PageNo(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    if !numbers.clone().all(|page| (1..=pages).contains(&page.0)) {
        return None;
    }
    Some(numbers.zip(images.chunks_exact(size.bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip(words in any::<(u32, u64, u64, u64, u64, u64)>(), pages in any::<u32>(), part in 0u32..100) {
            let ask = Ask { hashes: words.0, database: DbId(words.1), at_least: words.2 };
            prop_assert_eq!(Ask::decode(ask.encode()).unwrap(), ask);
            let position = LogPosition { term: words.1, leader: words.2, index: words.3 };
            let differing = pages / 100 * part;
            let offer = Offer { page_size: words.0, position, as_of: words.5, checksum: DbChecksum(words.4), pages, differing };
            prop_assert_eq!(Offer::decode(offer.encode()).unwrap(), offer);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let bytes = Bytes::from(bytes);
            let _ = Ask::decode(bytes.clone());
            let _ = Offer::decode(bytes.clone());
            let size = PageSize::new(512).unwrap();
            prop_assert!(decode_pages(&bytes, size, u32::MAX).is_none_or(|pages| pages.count() <= 3));
        }
    }

    /// Memory is taken by the number of pages, and by the highest number of one: no source may make them up.
    #[test]
    fn pages_that_are_not_of_the_state_are_refused() {
        let size = PageSize::new(512).unwrap();
        let frame = |page: u32| {
            let mut frame = vec![3, 0, 0, 0, 1, 0, 0, 0];
            frame.extend(page.to_le_bytes());
            frame.resize(12 + 512, 7);
            Bytes::from(frame)
        };
        for (page, fine) in [(0, false), (1, true), (9, true), (10, false), (u32::MAX, false)] {
            assert_eq!(decode_pages(&frame(page), size, 9).is_some(), fine, "page {page} of 9");
        }
        let offer = |pages, differing| Offer {
            page_size: 512,
            position: LogPosition::default(),
            as_of: 0,
            checksum: DbChecksum(0),
            pages,
            differing,
        };
        assert!(offer(9, 0).fits(9) && offer(9, 4).fits(5) && offer(3, 0).fits(9) && offer(9, 9).fits(0));
        assert!(!offer(9, 3).fits(5) && !offer(u32::MAX, 9).fits(9));
    }
}
