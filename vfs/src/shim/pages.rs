//! The pages of a complete transaction, laid out for the node in as many pieces as it takes, and read back
//! from the WAL piece by piece: memory is taken for one of them at a time. What is kept of the whole is 12
//! bytes for each page.

use super::ffi::{SQLITE_FULL, SQLITE_OK};
use crate::capture::Commit;
use crate::format::transaction::{self, Before, LAST_HEADER_SIZE, Piece, TxnId};
use crate::format::wal::{self, FRAME_HEADER_SIZE};
use crate::format::{FrameNo, PageNo, PageSize};
use crate::gate::DatabaseInfo;
use crate::gate::proto::{commit_buffer, part_pages};
use std::ffi::c_int;

/// What can go wrong: SQLite's result code, and the reason.
pub(super) type Failure = (c_int, String);

/// Where each page of a transaction stands.
#[derive(Debug)]
pub(super) struct Pages {
    id: TxnId,
    page_size: PageSize,
    db_size: u32,
    /// Ascending by page. `None` is a fill: a page by which the database grew and that SQLite did not write.
    sources: Vec<(PageNo, Option<FrameNo>)>,
    /// Pages in each piece but the last.
    per_piece: usize,
}

impl Pages {
    /// Collects the pages, fills included. A transaction that is too large for the node is refused before
    /// anything of it is sent.
    pub(super) fn gather(
        id: TxnId,
        info: &DatabaseInfo,
        old_size: u32,
        commit: &Commit,
    ) -> Result<Pages, Failure> {
        let page_size = info.page_size;
        let grown = commit.db_size.saturating_sub(old_size) as usize;
        let size = commit.pages.len().max(grown) as u64 * u64::from(page_size.get());
        if size > info.max_transaction {
            let why = format!(
                "its pages take {size} bytes, the node takes at most {}; split the transaction, or raise the \
                 nodes' --max-transaction-mib",
                info.max_transaction
            );
            return Err((SQLITE_FULL, why));
        }
        let mut sources: Vec<_> = commit.pages.iter().map(|&(page, frame)| (page, Some(frame))).collect();
        let written = sources.len();
        for page in (old_size + 1..=commit.db_size).map(PageNo) {
            let is_written = commit.pages.binary_search_by_key(&page, |&(page, _)| page).is_ok();
            if !is_written && page != page_size.lock_page() {
                sources.push((page, None));
            }
        }
        if sources.len() > written {
            sources.sort_unstable_by_key(|&(page, _)| page);
        }
        let per_piece = part_pages(info.part_bytes, page_size);
        Ok(Pages { id, page_size, db_size: commit.db_size, sources, per_piece })
    }

    /// How many parts come before the last piece: none, for all but large transactions.
    pub(super) fn parts(&self) -> usize {
        self.sources.len().saturating_sub(1) / self.per_piece
    }

    /// Encodes a piece behind the room for a message's head. `read` fills a page from an offset of the WAL.
    pub(super) fn encode(
        &self,
        piece: usize,
        mut read: impl FnMut(&mut [u8], u64) -> c_int,
    ) -> Result<Vec<u8>, Failure> {
        let start = piece * self.per_piece;
        let end = self.sources.len().min(start + self.per_piece);
        let sources = self.sources.get(start..end).unwrap_or_default();
        let fills = |sources: &[(PageNo, Option<FrameNo>)]| {
            sources.iter().filter(|(_, source)| source.is_none()).count() as u32
        };
        let parts = self.parts();
        let kind = if piece < parts {
            Piece::Part { sequence: piece as u32 }
        } else if parts == 0 {
            Piece::Whole
        } else {
            let before = self.sources.get(..start).unwrap_or_default();
            Piece::Last(Before { parts: parts as u32, pages: start as u32, fills: fills(before) })
        };
        let numbers: Vec<_> = sources.iter().map(|&(page, _)| page).collect();
        let size = self.page_size.bytes();
        let mut message = commit_buffer(LAST_HEADER_SIZE + numbers.len() * (4 + size));
        let (id, page_size) = (self.id, self.page_size);
        transaction::encode_piece(&mut message, kind, id, page_size, self.db_size, &numbers, fills(sources));
        for &(page, source) in sources {
            let start = message.len();
            message.resize(start + size, 0);
            let Some(frame) = source else { continue };
            let offset = wal::frame_offset(frame, page_size) + FRAME_HEADER_SIZE as u64;
            match read(&mut message[start..], offset) {
                SQLITE_OK => {}
                code => return Err((code, format!("can't read page {page} back from the WAL"))),
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ffi::SQLITE_IOERR;
    use super::*;
    use crate::format::transaction::Transaction;
    use crate::format::wal::Salts;
    use crate::gate::proto::COMMIT_PREFIX;
    use proptest::prelude::*;
    use std::time::Duration;

    const SIZE: usize = 512;

    fn info(part_pages: u32, max_transaction: u64) -> DatabaseInfo {
        DatabaseInfo {
            name: "app".into(),
            node_id: 1,
            page_size: PageSize::new(SIZE as u32).unwrap(),
            commit_deadline: Duration::ZERO,
            max_transaction,
            part_bytes: part_pages * SIZE as u32,
            wal_limit: 0,
        }
    }

    fn commit(pages: &[u32], db_size: u32) -> Commit {
        let pages = pages.iter().zip(1..).map(|(&page, frame)| (PageNo(page), FrameNo(frame))).collect();
        Commit { pages, db_size, frame: FrameNo(1), salts: Salts([0; 8]) }
    }

    /// A WAL each page of which is filled with the last byte of its frame's number.
    fn wal(out: &mut [u8], offset: u64) -> c_int {
        let page_size = PageSize::new(SIZE as u32).unwrap();
        let at = |frame| wal::frame_offset(FrameNo(frame), page_size) + FRAME_HEADER_SIZE as u64;
        out.fill((1..).find(|&frame| at(frame) == offset).unwrap() as u8);
        SQLITE_OK
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(
            pages in proptest::collection::btree_set(1u32..60, 1..40),
            spare in 0u32..4,
            old_size in 1u32..60,
            per_piece in 1u32..12,
        ) {
            let written: Vec<_> = pages.into_iter().collect();
            let db_size = written.last().unwrap() + spare;
            let commit = commit(&written, db_size);
            let pages = Pages::gather(TxnId([1; 16]), &info(per_piece, u64::MAX), old_size, &commit).unwrap();
            let (mut found, mut before) = (vec![], Before::default());
            for n in 0..=pages.parts() {
                let message = pages.encode(n, wal).unwrap();
                prop_assert!(message.capacity() >= message.len());
                let txn = Transaction::decode(&message[4 + COMMIT_PREFIX..]).unwrap();
                prop_assert_eq!((txn.id(), txn.db_size()), (TxnId([1; 16]), db_size));
                prop_assert!(txn.page_count() <= per_piece as usize);
                let expected = match n {
                    _ if n < pages.parts() => Piece::Part { sequence: n as u32 },
                    0 => Piece::Whole,
                    _ => Piece::Last(before),
                };
                prop_assert_eq!(txn.piece(), expected);
                before.parts += 1;
                before.pages += txn.page_count() as u32;
                before.fills += txn.fill_count();
                found.extend(txn.pages().map(|(no, data)| (no.0, data[0])));
            }
            let mut expected: Vec<_> = written.iter().zip(1u8..).map(|(&no, frame)| (no, frame)).collect();
            expected.extend((old_size + 1..=db_size).filter(|no| !written.contains(no)).map(|no| (no, 0)));
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_limit_counts_what_is_sent_and_a_wal_that_cannot_be_read_is_named() {
        let id = TxnId::default();
        assert!(Pages::gather(id, &info(2, 3 * SIZE as u64), 4, &commit(&[1, 2, 3], 4)).is_ok());
        let (code, why) =
            Pages::gather(id, &info(2, 3 * SIZE as u64), 4, &commit(&[1, 2, 3, 4], 4)).unwrap_err();
        assert_eq!(code, SQLITE_FULL);
        assert!(why.contains("2048 bytes, the node takes at most 1536"), "{why}");
        // Growing by fills alone is as large.
        assert!(Pages::gather(id, &info(2, 3 * SIZE as u64), 4, &commit(&[1], 9)).is_err());
        let pages = Pages::gather(id, &info(2, u64::MAX), 4, &commit(&[1, 2, 3], 4)).unwrap();
        assert_eq!(pages.encode(1, |_, _| SQLITE_IOERR).unwrap_err().0, SQLITE_IOERR);
    }
}
