//! A database on this node: its files, and the one worker that changes them.
//!
//! | module | what it is |
//! |---|---|
//! | [`registry`] | all databases of the node, by id and by name; which of them are open |
//! | `creation` | the files of a new one |
//! | [`closed`] | what is left of one that nobody uses |
//! | [`context`] | what they share |
//! | [`database`] | one database: its state, and its queue of entries |
//! | `open` | makes one of what a crash may have left |
//! | [`gate`] | which app here may write it, and what becomes of a transaction |
//! | [`lessor`] | on the leader: whose turn it is, on all nodes |
//! | [`publish`] | judges an entry and makes it visible, by its app or by the applier |
//! | `parts` | the parts of large transactions, staged in files |
//! | [`worker`] | drains the queue |
//! | [`applier`] | writes a transaction into the WAL beside its readers |
//! | [`side_file`] | `NAME.db-quire`: durable index, page hashes, publications |
//! | [`checkpoint`] | moves the durable index forward |
//! | [`view`] | the whole database at one entry, page by page |
//! | [`dropping`] | what becomes of a database that is dropped |
//! | [`export`] | a view as an ordinary SQLite file |
//! | [`scrub`] | reads pages and compares them with their hashes |
//! | `lag` | what is kept of entries while an app stands still |
//! | `strangers` | who writes past the gate |
//! | [`incoming`] | `NAME.db-incoming`: a state on its way from another node |
//! | [`install`] | makes an incoming state this node's own |
//! | [`sql`] | the daemon's own connections, through the quire VFS |
//! | [`ear`] | what the node says to one that writes |

pub mod applier;
pub mod checkpoint;
pub mod closed;
pub mod context;
mod creation;
pub mod database;
pub mod dropping;
pub mod ear;
pub mod export;
pub mod gate;
pub mod incoming;
pub mod install;
mod lag;
pub mod lessor;
mod open;
pub mod parts;
pub mod publish;
pub mod registry;
pub mod scrub;
pub mod side_file;
pub mod sql;
mod strangers;
pub mod view;
pub mod worker;

use quire_vfs::format::FormatError;
use quire_vfs::format::wal_index::IndexError;
use quire_vfs::holder::HoldError;
use std::io;
use std::path::PathBuf;

/// What can go wrong with a database's files.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The operating system refused.
    #[error("{}: {what}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file of ours does not have the form it should have.
    #[error("{}: {error}; restore the file, or remove this node and join it anew", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and what.
        error: FormatError,
    },
    /// The node can't hold the database.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The wal-index can't be used.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The database file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// SQLite refused.
    #[error("{}: {what}: {error}", path.display())]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// What SQLite said.
        error: rusqlite::Error,
    },
    /// Entries never came here.
    #[error("{}: entry {index} stands on entry {base}, but the last one here is {last}: some are missing", path.display())]
    Missing {
        /// The database file.
        path: PathBuf,
        /// The entry.
        index: u64,
        /// What it stands on.
        base: u64,
        /// The last one here.
        last: u64,
    },
    /// The replica is not what the log says.
    #[error("{}: after entry {index} the checksum is {found}, the log says {expected}", path.display())]
    Diverged {
        /// The database file.
        path: PathBuf,
        /// The entry.
        index: u64,
        /// This node's checksum.
        found: quire_vfs::format::checksum::DbChecksum,
        /// The log's.
        expected: quire_vfs::format::checksum::DbChecksum,
    },
}

impl DbError {
    /// An I/O error with its file and what was attempted.
    pub fn io(path: &std::path::Path, what: &'static str) -> impl FnOnce(io::Error) -> DbError {
        let path = path.to_owned();
        move |error| DbError::Io { path, what, error }
    }

    fn index(path: &std::path::Path) -> impl Fn(IndexError<HoldError>) -> DbError {
        let path = path.to_owned();
        move |error| DbError::Index { path: path.clone(), reason: error.to_string() }
    }
}
