//! What can go wrong with a database's files.

use quire_vfs::format::wal_index::IndexError;
use quire_vfs::format::{FormatError, VersionError};
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
    /// Another version of Quire wrote it.
    #[error("{}: {error}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What was found, and the way out.
        error: VersionError,
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

    /// A file of another version.
    pub(super) fn version(path: &std::path::Path) -> impl FnOnce(VersionError) -> DbError {
        let path = path.to_owned();
        move |error| DbError::Version { path, error }
    }

    pub(super) fn index(path: &std::path::Path) -> impl Fn(IndexError<HoldError>) -> DbError {
        let path = path.to_owned();
        move |error| DbError::Index { path: path.clone(), reason: error.to_string() }
    }
}
