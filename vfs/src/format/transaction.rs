//! The byte layout of a transaction: the pages of one commit, as they go from the app to its node, into
//! the Raft log, and to the other nodes. Little-endian.
//!
//! ```text
//!   0  u8      version, 1
//!   1  u8      piece: 0 the whole transaction, 1 a part, 2 the last part
//!   2  u16     0
//!   4  u32     page size in bytes
//!   8  u32     database size in pages after the commit
//!  12  u32     number of pages, n
//!  16  u32     number of fills among them
//!  20  u32     whole: 0; part: its sequence, from 0; last part: number of parts before it
//!  24  [u8;16] transaction id, random
//!  40  u32, u32  last part only: pages in the parts before it, and fills among those
//!      u32 × n page numbers, strictly ascending, each ≤ the database size
//!      page × n page images, in the same order
//! ```
//!
//! A *large* transaction travels in pieces, all with the same id and database size: parts with the sequences
//! 0, 1, 2 …, closed by the last part, which says what must have come before it. The pages ascend across the
//! pieces, too, so that each occurs once. A transaction that fits into one piece is never cut.
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
/// Size of the fixed part of a last part.
pub const LAST_HEADER_SIZE: usize = HEADER_SIZE + 8;

/// What of a transaction the bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    #[default]
    Whole,
    /// A part, with at least one piece after it.
    Part {
        /// Number of parts before it.
        sequence: u32,
    },
    /// The last part, which closes the transaction.
    Last(Before),
}

/// What comes before the last part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Number of parts, at least 1.
    pub parts: u32,
    /// Pages in them, fills included.
    pub pages: u32,
    /// How many of those are fills.
    pub fills: u32,
}

impl Piece {
    fn header_size(self) -> usize {
        match self {
            Piece::Whole | Piece::Part { .. } => HEADER_SIZE,
            Piece::Last(_) => LAST_HEADER_SIZE,
        }
    }
}

/// A transaction's identity: random, made by the originating app's VFS.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(pub [u8; 16]);

impl TxnId {
    /// Reads 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<TxnId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(TxnId(number.to_be_bytes()))
    }
}

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
    piece: Piece,
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

/// Size in bytes of a whole transaction of `pages` pages, or of such a part.
pub fn encoded_size(pages: usize, page_size: PageSize) -> usize {
    Piece::Whole.header_size() + pages * (4 + page_size.bytes())
}

/// Writes the fixed part and the page numbers of a whole transaction; the images must follow in the same
/// order.
pub fn encode_head(
    out: &mut Vec<u8>,
    id: TxnId,
    page_size: PageSize,
    db_size: u32,
    numbers: &[PageNo],
    fills: u32,
) {
    encode_piece(out, Piece::Whole, id, page_size, db_size, numbers, fills);
}

/// As [`encode_head`], for any piece of a transaction.
pub fn encode_piece(
    out: &mut Vec<u8>,
    piece: Piece,
    id: TxnId,
    page_size: PageSize,
    db_size: u32,
    numbers: &[PageNo],
    fills: u32,
) {
    let (flag, word) = match piece {
        Piece::Whole => (0, 0),
        Piece::Part { sequence } => (1, sequence),
        Piece::Last(before) => (2, before.parts),
    };
    out.extend_from_slice(&[VERSION, flag, 0, 0]);
    for word in [page_size.get(), db_size, numbers.len() as u32, fills, word] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&id.0);
    if let Piece::Last(before) = piece {
        out.extend_from_slice(&before.pages.to_le_bytes());
        out.extend_from_slice(&before.fills.to_le_bytes());
    }
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
        let word = le32(bytes, 20);
        let piece = match bytes[1] {
            0 if word == 0 => Piece::Whole,
            1 => Piece::Part { sequence: word },
            2 if bytes.len() >= LAST_HEADER_SIZE => {
                Piece::Last(Before { parts: word, pages: le32(bytes, 40), fills: le32(bytes, 44) })
            }
            0 | 2 => return Err(err(20, "the fixed part is too short, or not zero where it must be".into())),
            kind => return Err(err(1, format!("unknown piece {kind}"))),
        };
        if bytes[2..4] != [0; 2] {
            return Err(err(2, "reserved bytes are not zero".into()));
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
        if let Piece::Last(before) = piece {
            let fits = u64::from(before.pages) + u64::from(count) <= u64::from(db_size);
            let is_sound = before.parts > 0 && before.pages >= before.parts && before.fills <= before.pages;
            if !fits || !is_sound {
                return Err(err(40, format!("{before:?}, then {count} pages, database of {db_size}")));
            }
        }
        let header = piece.header_size();
        let expected = u64::from(count) * (4 + u64::from(page_size.get())) + header as u64;
        if bytes.len() as u64 != expected {
            return Err(err(12, format!("{} bytes for {count} pages, expected {expected}", bytes.len())));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[24..40]);
        let (numbers, images) = bytes[header..].split_at(4 * count as usize);
        let mut last = 0;
        for (i, chunk) in numbers.chunks_exact(4).enumerate() {
            let page = le32(chunk, 0);
            if page <= last || page > db_size {
                return Err(err(
                    header + 4 * i,
                    format!("page {page} after page {last}, database of {db_size}"),
                ));
            }
            last = page;
        }
        Ok(Transaction { id: TxnId(id), piece, page_size, db_size, fills, numbers, images })
    }

    /// The transaction's id.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// What of the transaction this is.
    pub fn piece(&self) -> Piece {
        self.piece
    }

    /// What comes before this; nothing, if it is a whole transaction.
    pub fn before(&self) -> Before {
        match self.piece {
            Piece::Last(before) => before,
            Piece::Whole | Piece::Part { .. } => Before::default(),
        }
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

    /// The first and the last page.
    pub fn bounds(&self) -> (PageNo, PageNo) {
        let end = self.numbers.len();
        (PageNo(le32(self.numbers, 0)), PageNo(le32(self.numbers, end - 4)))
    }

    /// All page images, one after the other.
    pub fn images(&self) -> &'a [u8] {
        self.images
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

    fn encode_as(piece: Piece, db_size: u32, numbers: &[u32]) -> Vec<u8> {
        let size = PageSize::new(512).unwrap();
        let numbers: Vec<_> = numbers.iter().map(|&no| PageNo(no)).collect();
        let mut out = vec![];
        encode_piece(&mut out, piece, TxnId([3; 16]), size, db_size, &numbers, 1);
        out.resize(out.len() + numbers.len() * size.bytes(), 5);
        out
    }

    #[test]
    fn pieces_round_trip_and_what_cannot_be_is_refused() {
        let before = Before { parts: 2, pages: 3, fills: 1 };
        for piece in
            [Piece::Whole, Piece::Part { sequence: 0 }, Piece::Part { sequence: 9 }, Piece::Last(before)]
        {
            let bytes = encode_as(piece, 9, &[4, 7]);
            let txn = Transaction::decode(&bytes).unwrap();
            assert_eq!((txn.piece(), txn.fill_count(), txn.page_count()), (piece, 1, 2));
            assert_eq!(txn.bounds(), (PageNo(4), PageNo(7)));
            assert_eq!(txn.images(), [5; 1024]);
            assert_eq!(
                txn.pages().map(|(no, data)| (no.0, data.len())).collect::<Vec<_>>(),
                [(4, 512), (7, 512)]
            );
            for cut in 0..bytes.len() {
                assert!(Transaction::decode(&bytes[..cut]).is_err(), "{piece:?} cut at {cut}");
            }
        }
        for wrong in [
            Before { parts: 0, ..before },
            Before { parts: 4, ..before },
            Before { fills: 4, ..before },
            Before { pages: 8, ..before },
            Before { pages: u32::MAX, ..before },
        ] {
            assert!(Transaction::decode(&encode_as(Piece::Last(wrong), 9, &[4, 7])).is_err(), "{wrong:?}");
        }
        let mut unknown = encode_as(Piece::Whole, 9, &[4]);
        unknown[1] = 3;
        assert!(Transaction::decode(&unknown).is_err());
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
