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
//!  48  the transaction (its own layout)           1  u8      version, 1
//!                                                 2  u8      flags: 1 = files, 2 = scrub (verification only)
//!                                                 3  5 × 0
//!                                                 8  u64     nonce
//! ```
//!
//! A database's id is the index of the entry that created it. A transaction's 48 bytes stand where the
//! gate's Commit message has its own 48, so that no page is copied between socket and log.

use bytes::{Bytes, BytesMut};
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::transaction::Transaction;
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

/// A command, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A transaction; `body` is one that [`Transaction::decode`] accepts.
    Transaction {
        /// The fixed part.
        head: TransactionHead,
        /// The pages.
        body: Bytes,
    },
    /// Create a database, unless there is one of that name.
    CreateDatabase {
        /// Its name, valid by [`crate::name`].
        name: String,
        /// Its page size.
        page_size: PageSize,
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

impl TransactionHead {
    /// Makes a gate's Commit message into an entry, in place.
    pub fn write_over(&self, message: &mut BytesMut) {
        let mut head = [0; TRANSACTION_PREFIX];
        head[0] = 1;
        head[1] = VERSION;
        let words = [self.database.0, self.base, self.lease_term, self.checksum.0, self.origin];
        for (chunk, word) in head[8..].chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        message[..TRANSACTION_PREFIX].copy_from_slice(&head);
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
            Command::CreateDatabase { name, page_size } => {
                out.extend_from_slice(&[2, VERSION]);
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(&page_size.get().to_le_bytes());
                out.extend_from_slice(name.as_bytes());
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
            1 => {
                if bytes.len() < TRANSACTION_PREFIX {
                    return Err(short(TRANSACTION_PREFIX));
                }
                let body = bytes.slice(TRANSACTION_PREFIX..);
                Transaction::decode(&body)?;
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
            _ => Err(err(0, format!("unknown kind {kind}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quire_vfs::format::PageNo;
    use quire_vfs::format::transaction::{TxnId, encode_head};

    fn body() -> Bytes {
        let size = PageSize::new(512).unwrap();
        let mut out = vec![];
        encode_head(&mut out, TxnId([7; 16]), size, 2, &[PageNo(1), PageNo(2)], 0);
        out.extend_from_slice(&[9; 1024]);
        out.into()
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            any::<(u64, u64, u64, u64, u64)>().prop_map(|(db, base, lease_term, sum, origin)| {
                let checksum = DbChecksum(sum);
                let head = TransactionHead { database: DbId(db), base, lease_term, checksum, origin };
                Command::Transaction { head, body: body() }
            }),
            "[a-z][a-z0-9_]{0,20}"
                .prop_map(|name| Command::CreateDatabase { name, page_size: PageSize::DEFAULT }),
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
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..6) {
            let mut bytes = bytes;
            bytes.splice(0..0, [kind, 1]);
            let _ = Command::decode(&Bytes::from(bytes));
        }
    }
}
