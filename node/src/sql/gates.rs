//! The gates of the API's own connections: a writer's is an app's like any other, over the node's socket, and
//! remembers what the node said, which SQLite's result codes can't; a reader's lets nobody write.

use crate::db::database::Database;
use crate::db::{DbError, sql};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::client::{ClientError, SocketGate};
use quire_vfs::gate::proto::{Hello, Outcome, Refusal, RefusalCode, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What the node last said to a writer.
#[derive(Debug, Default)]
pub struct Said {
    /// Why there is no lease.
    pub refusal: Option<Refusal>,
    /// What became of the transaction; of the last, if there were several.
    pub outcome: Option<Outcome>,
    /// The last index at which one of them was committed.
    pub committed: Option<u64>,
}

/// The place where a writer finds what the node said.
#[derive(Clone, Debug, Default)]
pub struct Ear(Arc<Mutex<Said>>);

impl Ear {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, outcome: &Outcome) {
        let mut said = self.said();
        if let Outcome::Committed(index) = outcome {
            said.committed = Some(*index);
        }
        said.outcome = Some(outcome.clone());
    }

    /// What the node said since the last time.
    pub fn take(&self) -> Said {
        std::mem::take(&mut *self.said())
    }
}

/// A writer's gate.
struct WriterGate {
    inner: SocketGate,
    ear: Ear,
}

impl Gate for WriterGate {
    fn info(&self) -> &DatabaseInfo {
        self.inner.info()
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        let answer = self.inner.acquire();
        self.ear.said().refusal = answer.as_ref().err().cloned();
        answer
    }

    fn part(&mut self, grant: &Grant, message: Vec<u8>) -> Result<(), String> {
        let answer = self.inner.part(grant, message);
        if let Err(why) = &answer {
            self.ear.hear(&Outcome::Refused(why.clone()));
        }
        answer
    }

    fn commit(&mut self, grant: &Grant, id: TxnId, target: WalTarget, message: Vec<u8>) -> Outcome {
        let outcome = self.inner.commit(grant, id, target, message);
        self.ear.hear(&outcome);
        outcome
    }

    fn release(&mut self, grant: Grant, linger: bool) {
        self.inner.release(grant, linger);
    }

    fn is_replaced(&self) -> bool {
        self.inner.is_replaced()
    }
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
    let ear = Ear::default();
    let gate = Box::new(WriterGate { inner, ear: ear.clone() });
    Ok((sql::open(database.path(), OpenFlags::SQLITE_OPEN_READ_WRITE, gate)?, ear))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_remembered_whatever_comes_after_it() {
        let ear = Ear::default();
        ear.hear(&Outcome::Committed(7));
        ear.hear(&Outcome::Refused("the leader has changed".into()));
        let said = ear.take();
        assert_eq!(said.committed, Some(7));
        assert!(matches!(said.outcome, Some(Outcome::Refused(_))));
        assert_eq!(ear.take().committed, None);
    }
}
