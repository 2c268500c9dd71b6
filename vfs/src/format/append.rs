//! How a transaction is added to a WAL that others read at the same time.
//!
//! An [`Appender`] starts from the published wal-index header and turns pages into frames, one by one; it
//! says what to write where and never writes. The caller's order is the invariant:
//!
//! 1. frames (and, at frame 1, the WAL header) into the WAL file, beyond `mxFrame`, where no reader looks;
//! 2. [`wal_index::sweep`], then [`wal_index::append`] for each frame;
//! 3. [`wal_index::publish`] of the header that [`Appender::finish`] returns.
//!
//! A caller that may come after a writer's death brings the index to order first: [`wal_index::recover_header`], and
//! [`wal_index::finish_restart`], for the count of backfilled frames is beyond `mxFrame` where a restart of the log was
//! cut short. The index alone tells, so this is done every time.
//!
//! Dying anywhere before 3 leaves the published state as it was.
//!
//! [`wal_index::recover_header`]: super::wal_index::recover_header
//! [`wal_index::finish_restart`]: super::wal_index::finish_restart
//! [`wal_index::sweep`]: super::wal_index::sweep
//! [`wal_index::append`]: super::wal_index::append
//! [`wal_index::publish`]: super::wal_index::publish

use super::wal::{self, ByteOrder, Checksum, FrameHeader, Salts, WalHeader};
use super::wal_index::IndexHeader;
use super::{FrameNo, PageNo, PageSize};

/// Turns a transaction's pages into frames.
#[derive(Debug)]
pub struct Appender {
    base: IndexHeader,
    page_size: PageSize,
    order: ByteOrder,
    salts: Salts,
    sum: Checksum,
    last: FrameNo,
}

/// The bytes of one frame without its page, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The frame's number.
    pub frame: FrameNo,
    /// Offset of the frame header in the file; the page follows it.
    pub offset: u64,
    /// The frame header.
    pub header: [u8; wal::FRAME_HEADER_SIZE],
}

impl Appender {
    /// Goes on from `base`. At the start of a log the second value is the WAL header, to be written at
    /// offset 0; `fresh_salts` and `checkpoint_seq`, which counts the log's beginnings, are used then only.
    pub fn new(
        base: IndexHeader,
        page_size: PageSize,
        fresh_salts: Salts,
        checkpoint_seq: u32,
    ) -> (Appender, Option<[u8; wal::HEADER_SIZE]>) {
        if base.max_frame.0 > 0 {
            let appender = Appender {
                base,
                page_size,
                order: base.order,
                salts: base.salts,
                sum: base.frame_checksum,
                last: base.max_frame,
            };
            return (appender, None);
        }
        let header = WalHeader { order: ByteOrder::NATIVE, page_size, checkpoint_seq, salts: fresh_salts };
        let (bytes, sum) = header.encode();
        let (order, salts) = (header.order, header.salts);
        (Appender { base, page_size, order, salts, sum, last: FrameNo(0) }, Some(bytes))
    }

    /// The next frame. `commit_size` is the database's size in pages on the transaction's last frame and
    /// 0 on all others.
    pub fn frame(&mut self, page: PageNo, data: &[u8], commit_size: u32) -> Frame {
        debug_assert_eq!(data.len(), self.page_size.bytes());
        let (header, sum) = FrameHeader { page, commit_size }.encode(data, self.salts, self.sum, self.order);
        self.sum = sum;
        self.last = FrameNo(self.last.0 + 1);
        Frame { frame: self.last, offset: wal::frame_offset(self.last, self.page_size), header }
    }

    /// The header to publish once all frames are in place.
    pub fn finish(self, db_size: u32) -> IndexHeader {
        IndexHeader {
            change: self.base.change.wrapping_add(1),
            order: self.order,
            page_size: Some(self.page_size),
            max_frame: self.last,
            pages: db_size,
            frame_checksum: self.sum,
            salts: self.salts,
        }
    }
}
