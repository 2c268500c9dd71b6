//! What Quire puts into the Raft log: the byte layout of a command. Little-endian.
//!
//! ```text
//! transaction                                   create database
//!   0  u8   kind, 1                               0  u8      kind, 2
//!   1  u8   version, 1                            1  u8      version, 1
//!   2  6 × 0                                      2  u16     length of the name
//!   8  u64  database id                           4  u32     page size
//!  16  u64  base                                  8  name, UTF-8
//!  24  u64  term of the lease
//!  32  u64  database checksum after it          barrier, 3, and verification, 4
//!  40  u64  id of the originating node            0  u8      kind
//!  48  the transaction, or the last part         1  u8      version, 1
//!      of one (its own layout)                    2  u8      flags: 1 = files, 2 = scrub (verification only)
//!                                                 3  5 × 0
//!                                                 8  u64     nonce
//! part of a large transaction                   void a large transaction
//!   0  u8   kind, 5                               0  u8      kind, 6
//!   …  as a transaction; 0 for the checksum       1  u8      version, 1
//!  48  a part                                     2  6 × 0
//!                                                 8  u64     database id
//!                                                16  [u8;16] transaction id
//! ```
//!
//! A database's id is the index of the entry that created it. The 48 bytes of a transaction or part stand where
//! the gate's message has its own 48, so that no page is copied between socket and log. What parts come to is
//! decided by `core::run`.

use bytes::{Bytes, BytesMut};
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::format::{FormatError, PageSize};
use quire_vfs::gate::proto::COMMIT_PREFIX;

const VERSION: u8 = 1;
/// Bytes before the transaction.
pub const TRANSACTION_PREFIX: usize = COMMIT_PREFIX;
const _: () = assert!(TRANSACTION_PREFIX == 48);

/// Identifies a database for as long as the cluster lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbId(pub u64);

impl std::fmt::Display for DbId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The fixed part of a transaction's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionHead {
    /// The database.
    pub database: DbId,
    /// The entry on which the transaction was written.
    pub base: u64,
    /// The term of its lease.
    pub lease_term: u64,
    /// The database's checksum after it.
    pub checksum: DbChecksum,
    /// The node whose app wrote it.
    pub origin: u64,
}

/// The fixed part of the entry of a large transaction's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHead {
    /// The database.
    pub database: DbId,
    /// The entry on which the transaction was written.
    pub base: u64,
    /// The term of its lease.
    pub lease_term: u64,
    /// The node whose app wrote it.
    pub origin: u64,
}

/// A command, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A transaction, or the last part of a large one; `body` is one that [`Transaction::decode`] accepts.
    Transaction {
        /// The fixed part.
        head: TransactionHead,
        /// The pages.
        body: Bytes,
    },
    /// A part of a large transaction; `body` likewise.
    Part {
        /// The fixed part.
        head: PartHead,
        /// The pages.
        body: Bytes,
    },
    /// No more parts of a large transaction will come: its app is gone, or gave up.
    Void {
        /// The database.
        database: DbId,
        /// The transaction.
        transaction: TxnId,
    },
    /// Create a database, unless there is one of that name.
    CreateDatabase {
        /// Its name, valid by [`crate::name`].
        name: String,
        /// Its page size.
        page_size: PageSize,
    },
    /// Drop a database, if it is there.
    DropDatabase {
        /// The database.
        database: DbId,
    },
    /// Nothing; to know that everything before it has been applied.
    Barrier {
        /// Tells barriers apart.
        nonce: u64,
    },
    /// Every node records each database's checksum as it is at this entry.
    Verify {
        /// Also checkpoint, and hash the files.
        files: bool,
        /// Also read all pages, and compare them with their hashes.
        scrub: bool,
        /// Tells verifications apart.
        nonce: u64,
    },
}

fn write_over(message: &mut BytesMut, kind: u8, words: [u64; 5]) {
    let mut head = [0; TRANSACTION_PREFIX];
    head[0] = kind;
    head[1] = VERSION;
    for (chunk, word) in head[8..].chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    message[..TRANSACTION_PREFIX].copy_from_slice(&head);
}

impl TransactionHead {
    /// Makes a gate's Commit message into an entry, in place.
    pub fn write_over(&self, message: &mut BytesMut) {
        let words = [self.database.0, self.base, self.lease_term, self.checksum.0, self.origin];
        write_over(message, 1, words);
    }
}

impl PartHead {
    /// Makes a gate's Part message into an entry, in place.
    pub fn write_over(&self, message: &mut BytesMut) {
        write_over(message, 5, [self.database.0, self.base, self.lease_term, 0, self.origin]);
    }
}

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Command::Transaction { head, body } => {
                out.resize(TRANSACTION_PREFIX, 0);
                head.write_over(&mut out);
                out.extend_from_slice(body);
            }
            Command::Part { head, body } => {
                out.resize(TRANSACTION_PREFIX, 0);
                head.write_over(&mut out);
                out.extend_from_slice(body);
            }
            Command::Void { database, transaction } => {
                out.extend_from_slice(&[6, VERSION, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&database.0.to_le_bytes());
                out.extend_from_slice(&transaction.0);
            }
            Command::CreateDatabase { name, page_size } => {
                out.extend_from_slice(&[2, VERSION]);
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(&page_size.get().to_le_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Command::DropDatabase { database } => {
                out.extend_from_slice(&[7, VERSION, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&database.0.to_le_bytes());
            }
            Command::Barrier { nonce } => {
                out.extend_from_slice(&[3, VERSION, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&nonce.to_le_bytes());
            }
            Command::Verify { files, scrub, nonce } => {
                let flags = u8::from(*files) | u8::from(*scrub) << 1;
                out.extend_from_slice(&[4, VERSION, flags, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&nonce.to_le_bytes());
            }
        }
        out.freeze()
    }

    /// Reads a command. The pages stay where they are.
    pub fn decode(bytes: &Bytes) -> Result<Command, FormatError> {
        let err =
            |offset: usize, reason: String| FormatError { what: "command", offset: offset as u64, reason };
        let short = |expected: usize| err(bytes.len(), format!("{} bytes, expected {expected}", bytes.len()));
        let [kind, version, ..] = bytes[..] else { return Err(short(2)) };
        if version != VERSION {
            return Err(err(1, format!("version {version}, this build reads {VERSION}")));
        }
        let word = |at: usize| -> Result<u64, FormatError> {
            let chunk = bytes.get(at..at + 8).and_then(|b| b.first_chunk::<8>());
            chunk.map(|b| u64::from_le_bytes(*b)).ok_or_else(|| short(at + 8))
        };
        match kind {
            1 | 5 => {
                if bytes.len() < TRANSACTION_PREFIX {
                    return Err(short(TRANSACTION_PREFIX));
                }
                let body = bytes.slice(TRANSACTION_PREFIX..);
                let piece = Transaction::decode(&body)?.piece();
                if matches!(piece, Piece::Part { .. }) != (kind == 5) {
                    return Err(err(TRANSACTION_PREFIX + 1, format!("kind {kind} can't carry {piece:?}")));
                }
                if kind == 5 {
                    let (database, base, lease_term) = (DbId(word(8)?), word(16)?, word(24)?);
                    if word(32)? != 0 {
                        return Err(err(32, "reserved bytes are not zero".into()));
                    }
                    let head = PartHead { database, base, lease_term, origin: word(40)? };
                    return Ok(Command::Part { head, body });
                }
                let head = TransactionHead {
                    database: DbId(word(8)?),
                    base: word(16)?,
                    lease_term: word(24)?,
                    checksum: DbChecksum(word(32)?),
                    origin: word(40)?,
                };
                Ok(Command::Transaction { head, body })
            }
            2 => {
                let head = word(0)?.to_le_bytes();
                let name_len = usize::from(u16::from_le_bytes([head[2], head[3]]));
                let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
                let page_size =
                    PageSize::new(size).ok_or_else(|| err(4, format!("{size} is no page size")))?;
                if bytes.len() != 8 + name_len {
                    return Err(short(8 + name_len));
                }
                let name =
                    std::str::from_utf8(&bytes[8..]).map_err(|_| err(8, "name is not UTF-8".into()))?;
                crate::name::check(name).map_err(|why| err(8, why.to_string()))?;
                Ok(Command::CreateDatabase { name: name.to_owned(), page_size })
            }
            3 | 4 => {
                let nonce = word(8)?;
                if bytes.len() != 16 {
                    return Err(short(16));
                }
                let (files, scrub) = (bytes[2] & 1 != 0, bytes[2] & 2 != 0);
                Ok(if kind == 3 {
                    Command::Barrier { nonce }
                } else {
                    Command::Verify { files, scrub, nonce }
                })
            }
            6 => {
                let (database, low, high) = (DbId(word(8)?), word(16)?, word(24)?);
                if bytes.len() != 32 {
                    return Err(short(32));
                }
                let mut transaction = TxnId::default();
                transaction.0[..8].copy_from_slice(&low.to_le_bytes());
                transaction.0[8..].copy_from_slice(&high.to_le_bytes());
                Ok(Command::Void { database, transaction })
            }
            7 => {
                let database = DbId(word(8)?);
                if bytes.len() != 16 {
                    return Err(short(16));
                }
                Ok(Command::DropDatabase { database })
            }
            _ => Err(err(0, format!("unknown kind {kind}"))),
        }
    }
}

/// A command in words, from its first bytes; for people who look into a log.
pub fn describe(head: &[u8]) -> Option<String> {
    let word = |at: usize| head.get(at..).and_then(|b| b.first_chunk::<8>()).map(|b| u64::from_le_bytes(*b));
    let half = |at: usize| head.get(at..).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
    let id = |at: usize| {
        head.get(at..).and_then(|b| b.first_chunk::<16>()).map(|b| TxnId(*b)).map(|id| id.to_string())
    };
    // The transaction's own layout begins behind the fixed part.
    const AT: usize = TRANSACTION_PREFIX;
    match *head.first()? {
        kind @ (1 | 5) => {
            let (database, base, pages) = (word(8)?, word(16)?, half(AT + 12)?);
            let (flag, count, id) = (*head.get(AT + 1)?, half(AT + 20)?, id(AT + 24)?);
            let what = match (kind, flag) {
                (5, _) => format!("part {count} of transaction {id}"),
                (_, 2) => {
                    format!("last part of transaction {id}, after {count} parts of {} pages", half(AT + 40)?)
                }
                _ => format!("transaction {id}"),
            };
            Some(format!("{what}: {pages} pages, database {database} on {base}"))
        }
        2 => Some("create database".into()),
        3 => Some("barrier".into()),
        4 => Some("verify".into()),
        7 => Some(format!("drop database {}", word(8)?)),
        6 => Some(format!("void transaction {}, database {}", id(16)?, word(8)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quire_vfs::format::PageNo;
    use quire_vfs::format::transaction::{Before, encode_piece};

    fn body(piece: Piece) -> Bytes {
        let size = PageSize::new(512).unwrap();
        let mut out = vec![];
        encode_piece(&mut out, piece, TxnId([7; 16]), size, 5, &[PageNo(1), PageNo(2)], 0);
        out.extend_from_slice(&[9; 1024]);
        out.into()
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            any::<(u64, u64, u64, u64, u64, bool)>().prop_map(|(db, base, lease_term, sum, origin, last)| {
                let checksum = DbChecksum(sum);
                let head = TransactionHead { database: DbId(db), base, lease_term, checksum, origin };
                let before = Before { parts: 1, pages: 3, fills: 2 };
                let body = body(if last { Piece::Last(before) } else { Piece::Whole });
                Command::Transaction { head, body }
            }),
            any::<(u64, u64, u64, u64, u32)>().prop_map(|(db, base, lease_term, origin, sequence)| {
                let head = PartHead { database: DbId(db), base, lease_term, origin };
                Command::Part { head, body: body(Piece::Part { sequence }) }
            }),
            any::<(u64, [u8; 16])>()
                .prop_map(|(db, id)| Command::Void { database: DbId(db), transaction: TxnId(id) }),
            "[a-z][a-z0-9_]{0,20}"
                .prop_map(|name| Command::CreateDatabase { name, page_size: PageSize::DEFAULT }),
            any::<u64>().prop_map(|id| Command::DropDatabase { database: DbId(id) }),
            any::<u64>().prop_map(|nonce| Command::Barrier { nonce }),
            any::<(bool, bool, u64)>().prop_map(|(files, scrub, nonce)| Command::Verify {
                files,
                scrub,
                nonce
            }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip_and_cuts(command in command(), cut in any::<proptest::sample::Index>()) {
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(&bytes).unwrap(), command);
            prop_assert!(Command::decode(&bytes.slice(..cut.index(bytes.len()))).is_err());
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..8) {
            let mut bytes = bytes;
            bytes.splice(0..0, [kind, 1]);
            let _ = Command::decode(&Bytes::from(bytes));
        }
    }

    #[test]
    fn commands_are_described_from_their_first_bytes() {
        let head = PartHead { database: DbId(4), base: 9, lease_term: 1, origin: 1 };
        let part = Command::Part { head, body: body(Piece::Part { sequence: 3 }) }.encode();
        let id = TxnId([7; 16]);
        let said = describe(&part[..128]).unwrap();
        assert_eq!(said, format!("part 3 of transaction {id}: 2 pages, database 4 on 9"));
        let void = Command::Void { database: DbId(4), transaction: id }.encode();
        assert_eq!(describe(&void).unwrap(), format!("void transaction {id}, database 4"));
        assert_eq!(describe(&part[..60]), None);
    }

    #[test]
    fn a_part_is_no_transaction_and_a_transaction_no_part() {
        for (piece, wrong) in [(Piece::Whole, 5), (Piece::Part { sequence: 0 }, 1)] {
            let mut bytes = BytesMut::zeroed(TRANSACTION_PREFIX);
            write_over(&mut bytes, wrong, [1, 2, 3, 0, 5]);
            bytes.extend_from_slice(&body(piece));
            assert!(Command::decode(&bytes.freeze()).is_err(), "{piece:?} as kind {wrong}");
        }
    }
}
