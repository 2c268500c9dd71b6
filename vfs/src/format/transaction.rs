//! The byte layout of a transaction: the pages of one commit, as they go from the app to its node, into
//! the Raft log, and to the other nodes. Little-endian.
//!
//! ```text
//!   0  u8      version, 1
//!   1  u8      flags, 0
//!   2  u16     0
//!   4  u32     page size in bytes
//!   8  u32     database size in pages after the commit
//!  12  u32     number of pages, n
//!  16  u32     number of fills among them
//!  20  u32     0
//!  24  [u8;16] transaction id, random
//!  40  u32 × n page numbers, strictly ascending, each ≤ the database size
//!      page × n page images, in the same order
//! ```
//!
//! A *fill* is a page by which the database grew and which SQLite did not write: it is sent as zeros, so
//! that no node keeps what stood there before. Where SQLite itself wrote the WAL, the fills are what the
//! applier must add to it.
//!
//! Integrity in transit and on disk is the carrier's business (TLS, record checksums); the meaning is
//! proven by the database checksum that the entry names.

use super::{FormatError, PageNo, PageSize, le32};

const VERSION: u8 = 1;
/// Size of the fixed part, in bytes.
pub const HEADER_SIZE: usize = 40;

/// A transaction's identity: random, made by the originating app's VFS.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(pub [u8; 16]);

impl std::fmt::Display for TxnId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for TxnId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxnId({self})")
    }
}

/// A checked view of a transaction's bytes.
#[derive(Clone, Copy)]
pub struct Transaction<'a> {
    id: TxnId,
    page_size: PageSize,
    db_size: u32,
    fills: u32,
    numbers: &'a [u8],
    images: &'a [u8],
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transaction({}, {} pages, size {})", self.id, self.page_count(), self.db_size)
    }
}

/// Size in bytes of a transaction of `pages` pages.
pub fn encoded_size(pages: usize, page_size: PageSize) -> usize {
    HEADER_SIZE + pages * (4 + page_size.bytes())
}

/// Writes the fixed part and the page numbers; the images must follow in the same order.
pub fn encode_head(
    out: &mut Vec<u8>,
    id: TxnId,
    page_size: PageSize,
    db_size: u32,
    numbers: &[PageNo],
    fills: u32,
) {
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    for word in [page_size.get(), db_size, numbers.len() as u32, fills, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&id.0);
    for page in numbers {
        out.extend_from_slice(&page.0.to_le_bytes());
    }
}

impl<'a> Transaction<'a> {
    /// Checks every length and the order of the pages; `bytes` must be exactly one transaction.
    pub fn decode(bytes: &'a [u8]) -> Result<Transaction<'a>, FormatError> {
        let err = |at: usize, reason: String| FormatError::new("transaction", at as u64, reason);
        if bytes.len() < HEADER_SIZE {
            return Err(err(0, format!("{} bytes, expected at least {HEADER_SIZE}", bytes.len())));
        }
        if bytes[0] != VERSION {
            return Err(err(0, format!("version {}, this build reads {VERSION}", bytes[0])));
        }
        if bytes[1..4] != [0; 3] || le32(bytes, 20) != 0 {
            return Err(err(1, "reserved bytes are not zero".into()));
        }
        let page_size = PageSize::new(le32(bytes, 4))
            .ok_or_else(|| err(4, format!("{} is no page size", le32(bytes, 4))))?;
        let (db_size, count, fills) = (le32(bytes, 8), le32(bytes, 12), le32(bytes, 16));
        if db_size == 0 {
            return Err(err(8, "a database has at least one page".into()));
        }
        if count == 0 || count > db_size || fills > count {
            return Err(err(12, format!("{count} pages, {fills} fills, database of {db_size}")));
        }
        let expected = encoded_size(count as usize, page_size);
        if bytes.len() != expected {
            return Err(err(12, format!("{} bytes for {count} pages, expected {expected}", bytes.len())));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[24..40]);
        let (numbers, images) = bytes[HEADER_SIZE..].split_at(4 * count as usize);
        let mut last = 0;
        for (i, chunk) in numbers.chunks_exact(4).enumerate() {
            let page = le32(chunk, 0);
            if page <= last || page > db_size {
                return Err(err(
                    HEADER_SIZE + 4 * i,
                    format!("page {page} after page {last}, database of {db_size}"),
                ));
            }
            last = page;
        }
        Ok(Transaction { id: TxnId(id), page_size, db_size, fills, numbers, images })
    }

    /// The transaction's id.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// The database's page size.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size of the database in pages after the commit.
    pub fn db_size(&self) -> u32 {
        self.db_size
    }

    /// Number of pages, fills included.
    pub fn page_count(&self) -> usize {
        self.numbers.len() / 4
    }

    /// How many of the pages are fills.
    pub fn fill_count(&self) -> u32 {
        self.fills
    }

    /// The pages in ascending order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = (PageNo, &'a [u8])> + Clone + use<'a> {
        let numbers = self.numbers.chunks_exact(4).map(|chunk| PageNo(le32(chunk, 0)));
        numbers.zip(self.images.chunks_exact(self.page_size.bytes()))
    }

    /// The pages by which the database grew beyond `old_size` and which are all zeros: a superset of the
    /// fills, equal in effect.
    pub fn fills(&self, old_size: u32) -> impl Iterator<Item = (PageNo, &'a [u8])> + use<'a> {
        let wanted = self.fills > 0;
        self.pages().filter(move |(no, data)| wanted && no.0 > old_size && data.iter().all(|&b| b == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(id: TxnId, size: PageSize, db_size: u32, pages: &[(u32, u8)]) -> Vec<u8> {
        let numbers: Vec<_> = pages.iter().map(|&(no, _)| PageNo(no)).collect();
        let mut out = vec![];
        encode_head(&mut out, id, size, db_size, &numbers, 0);
        pages.iter().for_each(|&(_, fill)| out.extend(std::iter::repeat_n(fill, size.bytes())));
        out
    }

    proptest! {
        #[test]
        fn round_trip(
            id in any::<[u8; 16]>(),
            pages in proptest::collection::btree_map(1u32..100, any::<u8>(), 1..10),
            spare in 0u32..5,
        ) {
            let size = PageSize::new(512).unwrap();
            let pages: Vec<_> = pages.into_iter().collect();
            let db_size = pages.last().unwrap().0 + spare;
            let bytes = encode(TxnId(id), size, db_size, &pages);
            prop_assert_eq!(bytes.len(), encoded_size(pages.len(), size));
            let txn = Transaction::decode(&bytes).unwrap();
            prop_assert_eq!((txn.id(), txn.db_size(), txn.page_size()), (TxnId(id), db_size, size));
            let found: Vec<_> = txn.pages().map(|(no, data)| (no.0, data[0])).collect();
            prop_assert_eq!(found, pages);
            for cut in [0, 1, HEADER_SIZE - 1, HEADER_SIZE, bytes.len() - 1] {
                prop_assert!(Transaction::decode(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn decode_takes_any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..1200), v in 0u8..3) {
            if let Some(first) = bytes.first_mut() { *first = v; }
            let _ = Transaction::decode(&bytes);
        }
    }

    #[test]
    fn pages_out_of_order_or_outside_are_refused() {
        let size = PageSize::new(512).unwrap();
        for pages in [&[(2, 0), (1, 0)][..], &[(1, 0), (1, 0)], &[(0, 0)], &[(6, 0)], &[]] {
            assert!(Transaction::decode(&encode(TxnId::default(), size, 5, pages)).is_err(), "{pages:?}");
        }
    }
}
