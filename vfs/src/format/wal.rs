//! The write-ahead log file (SQLite file format §4, and the head of SQLite's `wal.c`).
//!
//! ```text
//! WAL header, 32 bytes, big-endian            frame header, 24 bytes, big-endian
//!  0  magic 0x377f0682 | 1 if big-endian sums   0  page number
//!  4  format version 3007000                    4  database size in pages after the commit, 0 if none
//!  8  page size                                 8  salts, as in the WAL header
//! 12  checkpoint sequence                      16  checksum over this header's first 8 bytes and the
//! 16  salt 1, salt 2                               page, continuing the frame before (or the header)
//! 24  checksum over the first 24 bytes         24  the page
//! ```
//!
//! A frame belongs to the log only if its salts are the header's and its checksum continues the chain; a
//! transaction only if it is closed by a commit frame. The checksum is computed over 32-bit words in the
//! byte order that the magic names, and stored big-endian.

use super::{FormatError, FrameNo, PageNo, PageSize, be32};

/// Size of the header at the start of a WAL file, in bytes.
pub const HEADER_SIZE: usize = 32;
/// Size of the header before each page, in bytes.
pub const FRAME_HEADER_SIZE: usize = 24;
/// The only WAL version there has been.
pub const VERSION: u32 = 3_007_000;
const MAGIC: u32 = 0x377f_0682;

/// Byte order in which checksummed words are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Words are little-endian.
    Little,
    /// Words are big-endian.
    Big,
}

impl ByteOrder {
    /// What SQLite writes on this machine.
    pub const NATIVE: ByteOrder =
        if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };
}

/// The two random numbers that tie frames to their header, as they stand in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Salts(pub [u8; 8]);

impl Salts {
    /// The salts of the next generation: the first counts up, the second is `random`. As SQLite's
    /// `walRestartHdr`.
    pub fn next(self, random: u32) -> Salts {
        let first = be32(&self.0, 0).wrapping_add(1);
        let mut salts = [0; 8];
        salts[..4].copy_from_slice(&first.to_be_bytes());
        salts[4..].copy_from_slice(&random.to_ne_bytes());
        Salts(salts)
    }
}

/// The running checksum: two 32-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(pub u32, pub u32);

impl Checksum {
    /// Continues the checksum over `bytes`, whose length must be a multiple of 8 (SQLite's
    /// `walChecksumBytes`).
    #[must_use]
    pub fn over(self, bytes: &[u8], order: ByteOrder) -> Checksum {
        debug_assert_eq!(bytes.len() % 8, 0);
        let Checksum(mut s0, mut s1) = self;
        let (pairs, _) = bytes.as_chunks::<8>();
        for pair in pairs {
            let low = [pair[0], pair[1], pair[2], pair[3]];
            let high = [pair[4], pair[5], pair[6], pair[7]];
            let (a, b) = match order {
                ByteOrder::Little => (u32::from_le_bytes(low), u32::from_le_bytes(high)),
                ByteOrder::Big => (u32::from_be_bytes(low), u32::from_be_bytes(high)),
            };
            s0 = s0.wrapping_add(a).wrapping_add(s1);
            s1 = s1.wrapping_add(b).wrapping_add(s0);
        }
        Checksum(s0, s1)
    }

    fn read(bytes: &[u8], at: usize) -> Checksum {
        Checksum(be32(bytes, at), be32(bytes, at + 4))
    }

    fn write(self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.0.to_be_bytes());
        out[4..8].copy_from_slice(&self.1.to_be_bytes());
    }
}

/// The header of a WAL file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Byte order of all checksums in the file.
    pub order: ByteOrder,
    /// Size of every page in the file.
    pub page_size: PageSize,
    /// Counts restarts of the log.
    pub checkpoint_seq: u32,
    /// This generation's salts.
    pub salts: Salts,
}

impl WalHeader {
    /// The header's bytes and the checksum with which the first frame's begins.
    pub fn encode(&self) -> ([u8; HEADER_SIZE], Checksum) {
        let mut out = [0; HEADER_SIZE];
        let magic = MAGIC | u32::from(self.order == ByteOrder::Big);
        out[0..4].copy_from_slice(&magic.to_be_bytes());
        out[4..8].copy_from_slice(&VERSION.to_be_bytes());
        out[8..12].copy_from_slice(&self.page_size.get().to_be_bytes());
        out[12..16].copy_from_slice(&self.checkpoint_seq.to_be_bytes());
        out[16..24].copy_from_slice(&self.salts.0);
        let sum = Checksum::default().over(&out[..24], self.order);
        sum.write(&mut out[24..]);
        (out, sum)
    }

    /// Reads and checks a header.
    pub fn decode(bytes: &[u8]) -> Result<(WalHeader, Checksum), FormatError> {
        let err = |at, reason: String| FormatError::new("WAL header", at, reason);
        if bytes.len() < HEADER_SIZE {
            return Err(err(0, format!("{} bytes, expected {HEADER_SIZE}", bytes.len())));
        }
        let magic = be32(bytes, 0);
        if magic & !1 != MAGIC {
            return Err(err(0, format!("magic {magic:#010x}, expected {MAGIC:#010x}")));
        }
        let order = if magic & 1 == 1 { ByteOrder::Big } else { ByteOrder::Little };
        if be32(bytes, 4) != VERSION {
            return Err(err(4, format!("version {}, expected {VERSION}", be32(bytes, 4))));
        }
        let page_size = PageSize::new(be32(bytes, 8))
            .ok_or_else(|| err(8, format!("{} is no page size", be32(bytes, 8))))?;
        let sum = Checksum::default().over(&bytes[..24], order);
        if sum != Checksum::read(bytes, 24) {
            return Err(err(24, "checksum does not match".into()));
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        let header = WalHeader { order, page_size, checkpoint_seq: be32(bytes, 12), salts: Salts(salts) };
        Ok((header, sum))
    }
}

/// The fields of a frame header that a writer chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that the frame holds.
    pub page: PageNo,
    /// Size of the database in pages if this frame ends a transaction, else 0.
    pub commit_size: u32,
}

impl FrameHeader {
    /// The header's bytes for `data`, and the checksum with which the next frame's begins.
    pub fn encode(
        &self,
        data: &[u8],
        salts: Salts,
        sum: Checksum,
        order: ByteOrder,
    ) -> ([u8; FRAME_HEADER_SIZE], Checksum) {
        let mut out = [0; FRAME_HEADER_SIZE];
        out[0..4].copy_from_slice(&self.page.0.to_be_bytes());
        out[4..8].copy_from_slice(&self.commit_size.to_be_bytes());
        out[8..16].copy_from_slice(&salts.0);
        let sum = sum.over(&out[..8], order).over(data, order);
        sum.write(&mut out[16..]);
        (out, sum)
    }

    /// Reads page number and commit size, and checks neither salts nor checksum: SQLite writes frames
    /// whose checksums it fills in later (`walRewriteChecksums`).
    pub fn decode_unchecked(bytes: &[u8; FRAME_HEADER_SIZE]) -> FrameHeader {
        FrameHeader { page: PageNo(be32(bytes, 0)), commit_size: be32(bytes, 4) }
    }
}

/// Byte offset of a frame's header in a WAL file; frames count from 1.
pub fn frame_offset(frame: FrameNo, page_size: PageSize) -> u64 {
    let size = (FRAME_HEADER_SIZE + page_size.bytes()) as u64;
    HEADER_SIZE as u64 + u64::from(frame.0.saturating_sub(1)) * size
}

/// One valid frame, as [`Scan`] yields it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedFrame<'a> {
    /// Its number.
    pub frame: FrameNo,
    /// Page number and commit size.
    pub header: FrameHeader,
    /// The page image.
    pub data: &'a [u8],
    /// The checksum after it.
    pub checksum: Checksum,
}

/// Walks the valid frames of a WAL file's bytes in order, and ends where salts, checksum or length
/// break off: where SQLite's recovery ends too.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    header: WalHeader,
    sum: Checksum,
    next: u32,
}

impl<'a> Scan<'a> {
    /// Starts at the header; an invalid header is an error.
    pub fn new(bytes: &'a [u8]) -> Result<Scan<'a>, FormatError> {
        let (header, sum) = WalHeader::decode(bytes)?;
        Ok(Scan { bytes, header, sum, next: 1 })
    }

    /// The file's header.
    pub fn header(&self) -> WalHeader {
        self.header
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = ScannedFrame<'a>;

    fn next(&mut self) -> Option<ScannedFrame<'a>> {
        let page_size = self.header.page_size;
        let at = usize::try_from(frame_offset(FrameNo(self.next), page_size)).ok()?;
        let frame = self.bytes.get(at..at.checked_add(FRAME_HEADER_SIZE + page_size.bytes())?)?;
        let (head, data) = frame.split_first_chunk::<FRAME_HEADER_SIZE>()?;
        let header = FrameHeader::decode_unchecked(head);
        if header.page.0 == 0 || head[8..16] != self.header.salts.0 {
            return None;
        }
        let sum = self.sum.over(&head[..8], self.header.order).over(data, self.header.order);
        if sum != Checksum::read(head, 16) {
            return None;
        }
        let number = FrameNo(self.next);
        self.sum = sum;
        self.next = self.next.checked_add(1)?;
        Some(ScannedFrame { frame: number, header, data, checksum: sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(order: ByteOrder, pages: &[(u32, u32, u8)]) -> Vec<u8> {
        let page_size = PageSize::new(512).unwrap();
        let header = WalHeader { order, page_size, checkpoint_seq: 3, salts: Salts([9; 8]) };
        let (bytes, mut sum) = header.encode();
        let mut out = bytes.to_vec();
        for &(page, commit_size, fill) in pages {
            let data = [fill; 512];
            let frame = FrameHeader { page: PageNo(page), commit_size };
            let (head, next) = frame.encode(&data, header.salts, sum, order);
            sum = next;
            out.extend_from_slice(&head);
            out.extend_from_slice(&data);
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_scanned(
            big in any::<bool>(),
            pages in proptest::collection::vec((1u32..50, 0u32..50, any::<u8>()), 0..20),
        ) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let bytes = log(order, &pages);
            let found: Vec<_> = Scan::new(&bytes).unwrap()
                .map(|f| (f.header.page.0, f.header.commit_size, f.data[0])).collect();
            prop_assert_eq!(found, pages);
        }

        #[test]
        fn a_flipped_bit_ends_the_scan_at_its_frame(
            pages in proptest::collection::vec((1u32..50, 0u32..50, any::<u8>()), 1..8),
            bit in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = log(ByteOrder::Little, &pages);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            match Scan::new(&bytes) {
                Err(_) => prop_assert!(bit / 8 < HEADER_SIZE),
                Ok(scan) => {
                    // A flip in the checksum order bit of the magic can't pass: the sum covers it.
                    prop_assert!(bit / 8 >= HEADER_SIZE);
                    prop_assert_eq!(scan.count(), (bit / 8 - HEADER_SIZE) / 536);
                }
            }
        }

        #[test]
        fn scan_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(scan) = Scan::new(&bytes) {
                prop_assert!(scan.count() < 100);
            }
        }
    }
}
