//! The gates of the API's own connections: a writer's is an app's like any other, over the node's socket, and
//! remembers what the node said, which SQLite's result codes can't; a reader's lets nobody write.

use crate::db::database::Database;
use crate::db::ear::Listening;
pub use crate::db::ear::{Ear, Said};
use crate::db::{DbError, sql};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::client::{ClientError, SocketGate};
use quire_vfs::gate::proto::{Hello, Outcome, Refusal, RefusalCode, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// A connection can't be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The node's gate says no.
    #[error(transparent)]
    Gate(#[from] ClientError),
    /// SQLite says no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The directory can't be looked at.
    #[error("the database directory: {0}")]
    Directory(std::io::Error),
    /// SQLite doesn't take a setting.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// A reader's gate.
struct ReaderGate(DatabaseInfo);

impl Gate for ReaderGate {
    fn info(&self) -> &DatabaseInfo {
        &self.0
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        Err(Refusal::new(RefusalCode::Invalid, "this connection only reads"))
    }

    fn part(&mut self, _: &Grant, _: Vec<u8>) -> Result<(), String> {
        Err("this connection only reads".into())
    }

    fn commit(&mut self, _: &Grant, _: TxnId, _: WalTarget, _: Vec<u8>) -> Outcome {
        Outcome::Refused("this connection only reads".into())
    }

    fn release(&mut self, _: Grant, _: bool) {}
}

/// Opens a connection that writes through the node's gate at `socket`.
pub fn open_writer(
    database: &Database,
    socket: &Path,
    directory: (u64, u64),
) -> Result<(Connection, Ear), OpenError> {
    let hello = Hello {
        create: false,
        read_only: false,
        pid: std::process::id(),
        page_size: None,
        directory,
        name: database.name.clone(),
    };
    let inner = SocketGate::open(socket.to_owned(), database.path().to_owned(), hello)?;
    let (gate, ear) = Listening::to(Box::new(inner));
    Ok((sql::open(database.path(), OpenFlags::SQLITE_OPEN_READ_WRITE, Box::new(gate))?, ear))
}

/// Opens a connection that only reads.
pub fn open_reader(database: &Database) -> Result<Connection, OpenError> {
    let info = DatabaseInfo {
        name: database.name.clone(),
        node_id: 0,
        page_size: database.page_size,
        commit_deadline: Duration::ZERO,
        max_transaction: 0,
        part_bytes: 0,
        // A reader never waits for a checkpoint.
        wal_limit: u64::MAX,
    };
    let connection =
        sql::open(database.path(), OpenFlags::SQLITE_OPEN_READ_ONLY, Box::new(ReaderGate(info)))?;
    Ok(connection)
}
