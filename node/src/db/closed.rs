//! A database that is closed on this node: nobody here uses it, all that was committed stands in its file, and no file
//! handle, lock or thread belongs to it. What is left in memory says what it is, and what became of its last
//! transactions.
//!
//! While it is closed nothing keeps a process without the quire VFS from writing it. What that comes to is found when
//! it is opened again, before anything else is done with it, and undone:
//!
//! - a changed file no longer bears the stamp of its durable slot, and all of it is read (`super::open`);
//! - changes that are in a WAL only, nobody being attached, go with that WAL, since a closed database has none;
//! - changes in a WAL that its writer still has open fence the database: the repair overwrites them.

use super::DbError;
use super::applier::wal_path;
use super::creation::empty;
use super::database::{Database, DatabaseStatus, VERIFICATIONS, Verification, Work};
use super::incoming::incoming_path;
use super::lag::behind_path;
use super::side_file::{Durable, ScrubMark, SideFile};
use crate::command::{DbId, PartHead, TransactionHead};
use crate::core::head::Head;
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::format::PageSize;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::wal_index::{self, WalIndex};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tracing::{debug, warn};

/// Transactions that a closed database remembers.
const REMEMBERED: usize = 64;

/// What is known of a closed database.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    pub id: DbId,
    pub name: String,
    pub page_size: PageSize,
    pub durable: Durable,
    /// How far the background scrub has come.
    pub scrub: ScrubMark,
    pub head: Head,
    pub verifications: VecDeque<Verification>,
    /// Why it could not be opened when that was last tried.
    pub trouble: Option<String>,
}

/// An entry of the log that is one database's.
#[derive(Debug)]
pub enum Entry {
    /// A transaction.
    Transaction {
        /// Its position.
        position: LogPosition,
        /// Its fixed part.
        head: TransactionHead,
        /// Its pages.
        body: Bytes,
    },
    /// A part of a large transaction.
    Part {
        /// Its position.
        position: LogPosition,
        /// Its fixed part.
        head: PartHead,
        /// Its pages.
        body: Bytes,
    },
    /// No more parts of this transaction will come.
    Void {
        /// The entry.
        index: u64,
        /// The transaction.
        id: TxnId,
    },
    /// The first of a term.
    Term(u64),
    /// A verification.
    Verify {
        /// The entry.
        index: u64,
        /// Also hash the file.
        files: bool,
        /// Also read all pages.
        scrub: bool,
    },
}

impl Entry {
    /// Its index, if the database may be another one after it.
    pub(super) fn changes_at(&self) -> Option<u64> {
        match self {
            Entry::Transaction { position, .. } | Entry::Part { position, .. } => Some(position.index),
            Entry::Void { index, .. } => Some(*index),
            Entry::Term(_) | Entry::Verify { .. } => None,
        }
    }

    /// Bytes that it takes in memory, apart from itself.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Entry::Transaction { body, .. } | Entry::Part { body, .. } => body.len(),
            _ => 0,
        }
    }

    /// Hands it to its database.
    pub(super) fn give(self, database: &Arc<Database>) {
        match self {
            Entry::Transaction { position, head, body } => database.take(position, head, body),
            Entry::Part { position, head, body } => database.take_part(position, &head, body),
            Entry::Void { index, id } => database.take_void(index, id),
            Entry::Term(term) => database.take_term(term),
            Entry::Verify { index, files, scrub } => {
                database.enqueue(Work::Verify { index, files, scrub });
            }
        }
    }
}

impl Closed {
    /// A database whose file holds all that is durable, and nothing else.
    pub(super) fn new(
        id: DbId,
        name: &str,
        page_size: PageSize,
        durable: Durable,
        scrub: ScrubMark,
    ) -> Closed {
        let head = Head::new(durable.position.index);
        let (name, verifications) = (name.to_owned(), VecDeque::new());
        Closed { id, name, page_size, durable, scrub, head, verifications, trouble: None }
    }

    /// A database whose files the entry at `position` creates, before they are there.
    pub(super) fn to_come(position: LogPosition, name: &str, page_size: PageSize) -> Closed {
        let (.., durable) = empty(position, page_size);
        Closed::new(DbId(position.index), name, page_size, durable, ScrubMark::default())
    }

    /// Looks at the files of a database that nobody in this process has open. `None` where they are not those of one
    /// that was closed properly and left alone: then it is to be opened, which finds out more.
    pub(super) fn find(
        path: &Path,
        id: DbId,
        name: &str,
        page_size: PageSize,
    ) -> Result<Option<Closed>, DbError> {
        let (durable, published, scrub) = SideFile::glance(path, id, page_size)?;
        let index = durable.position.index;
        let has_wal = match std::fs::metadata(wal_path(path)) {
            Ok(metadata) => metadata.len() > 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(DbError::io(path, "looking at its WAL")(error)),
        };
        let is_whole = durable.target == index && published <= index;
        if !is_whole
            || has_wal
            || incoming_path(path).exists()
            || behind_path(path).exists()
            || !durable.stamp.is_of(path)
        {
            return Ok(None);
        }
        Ok(Some(Closed::new(id, name, page_size, durable, scrub)))
    }

    /// Deals with an entry that says nothing new. False: the database is to be opened for it.
    pub(super) fn knows(&mut self, entry: &Entry) -> bool {
        let durable = self.durable.position.index;
        match entry {
            Entry::Transaction { position, head, body } if position.index <= durable => {
                let _ = super::lessor::judge(&mut self.head, *position, head, body);
                true
            }
            Entry::Part { position, .. } => position.index <= durable,
            // What it would end is open in no closed database.
            Entry::Void { .. } | Entry::Term(_) => true,
            Entry::Verify { index, files: false, scrub: false } => {
                if self.verifications.len() == VERIFICATIONS {
                    self.verifications.pop_front();
                }
                let Durable { position, checksum, pages, .. } = self.durable;
                self.verifications.push_back(Verification::new(*index, position.index, checksum, pages));
                true
            }
            _ => false,
        }
    }

    /// What `/status` says of it.
    pub(super) fn status(&self) -> DatabaseStatus {
        let index = self.durable.position.index;
        DatabaseStatus {
            id: self.id.0,
            name: self.name.clone(),
            page_size: self.page_size.get(),
            open: false,
            pages: self.durable.pages,
            index,
            durable_index: index,
            checksum: self.durable.checksum.to_string(),
            wal_frames: 0,
            wal_backfilled: 0,
            wal_bytes: 0,
            wal_kept_by_reader: false,
            unfinished_parts: 0,
            queued: 0,
            lagging: None,
            waiting: 0,
            fenced: self.trouble.clone(),
            transfer: None,
            scrub_page: self.scrub.next.map_or(0, |page| page.0),
            scrubbed_at: self.scrub.ended,
        }
    }
}

impl Database {
    /// Whether all that was committed is in the file, and nothing is under way. Only the caller may have a reference.
    pub(super) fn is_at_rest(&self) -> bool {
        let Ok(_no_transfer) = self.transfers.try_lock() else { return false };
        let state = self.state();
        let at = state.position.index;
        let is_quiet = state.queue.is_empty()
            && !state.running
            && state.pending.is_none()
            && state.publishing.is_none()
            && state.grants.is_empty()
            && state.arrived.is_none()
            && state.held.is_none()
            && state.asked.is_empty()
            && state.air.is_none()
            && state.lease.holder().is_none()
            && state.lease.waiting() == 0;
        let is_whole = state.durable.position == state.position
            && state.durable.target == at
            && state.rule.last() == at
            && state.head.last() == Some(at)
            && state.published == at
            && state.consistent_from <= at
            && state.dirty.is_empty()
            && state.behind.is_none()
            && state.large.parts() == 0
            && !state.large.is_sending()
            && state.installed.is_none();
        is_quiet && is_whole && state.fenced.is_none() && state.hold.is_none() && state.transfer.is_none()
    }

    /// What remains of it when it is closed.
    pub(super) fn summary(&self) -> Closed {
        let state = self.state();
        let mut head = state.head.clone();
        head.shrink(REMEMBERED);
        Closed {
            id: self.id,
            name: self.name.clone(),
            page_size: self.page_size,
            durable: state.durable,
            scrub: state.scrub,
            head,
            verifications: state.verifications.clone(),
            trouble: None,
        }
    }

    /// It was closed, and is open again.
    pub(super) fn resume(&self, closed: Closed) {
        let mut state = self.state();
        if state.head.last() == closed.head.last() {
            state.head = closed.head;
        }
        state.verifications = closed.verifications;
    }

    /// Closes a database that is at rest. It is given back if somebody else has it open: a stock reader, or an app that
    /// has lost its connection to the node.
    pub(super) fn close(mut self) -> Result<(), Box<Database>> {
        // As SQLite does when the last connection closes: nobody else is attached, and can't be before this is over.
        match self.holder.exclude_readers() {
            Ok(true) => {}
            Ok(false) => return Err(Box::new(self)),
            Err(error) => {
                warn!(database = self.name, "not closed: {error}");
                return Err(Box::new(self));
            }
        }
        if !self.has_empty_wal() {
            self.holder.admit_readers();
            return Err(Box::new(self));
        }
        let wal = wal_path(self.path());
        // One that stays is emptied when the database is opened.
        if let Err(error) = std::fs::remove_file(&wal)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("{}: {error}", wal.display());
        }
        self.holder.remove_index();
        debug!(database = self.name, "closed");
        Ok(())
    }

    /// Whether all frames of the WAL are in the file.
    fn has_empty_wal(&self) -> bool {
        let Ok(region0) = self.holder.region(0) else { return false };
        wal_index::read_header(region0)
            .is_some_and(|header| wal_index::backfilled(region0) >= header.max_frame)
    }
}
