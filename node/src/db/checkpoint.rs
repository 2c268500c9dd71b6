//! Checkpoints: SQLite copies the WAL into the database file, and the durable index moves forward.
//!
//! A checkpoint may copy only what this node's log has on disk: a committed entry can still be unsynced
//! here, and a file that is ahead of the log could not be rebuilt from it. So:
//!
//! 1. with the worker paused for a moment, so that nobody publishes, a reader takes a snapshot at entry `I`: its read mark keeps
//!    SQLite from copying anything newer;
//! 2. wait until the log is on disk up to `I`; put the *target* `I` on record, synced;
//! 3. `PRAGMA wal_checkpoint(PASSIVE)`, beside readers and writers;
//! 4. if everything up to `I` was copied: write the hashes of the pages that changed, sync, and put `I` on
//!    record as durable, synced.
//!
//! Under steady load such a checkpoint never catches up with the WAL's end, and only then can the WAL start
//! anew. A WAL that grew far beyond the limit is therefore closed by a second, short checkpoint on the
//! worker, where nobody publishes (`checkpoint_all`). A writer that begins one transaction right after the
//! other would still keep the WAL from starting anew, as its read mark is there before that checkpoint ends: the
//! VFS lets it wait a moment for it (`Connection::await_checkpoint`).

use super::DbError;
use super::database::{Database, State};
use super::side_file::{Durable, Stamp};
use super::sql;
use super::view::Rest;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::wal::Salts;
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::holder::Holder;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long a checkpoint waits for the log, for rest, or for readers.
const PATIENCE: Duration = Duration::from_secs(10);
/// A WAL of so many times what is checkpointed at once is closed on the worker.
const CLOSE_FACTOR: u64 = 4;

/// The state that a checkpoint is to make durable.
struct Snapshot {
    position: LogPosition,
    checksum: DbChecksum,
    pages: u32,
    consistent_from: u64,
    /// Pages that changed since the last checkpoint, and their hashes.
    hashes: Vec<(PageNo, u64)>,
    dirty: BTreeSet<PageNo>,
    salts: Salts,
    frame: FrameNo,
    filled: bool,
}

impl Database {
    /// A checkpoint off the commit path. `Ok(false)`: something is in the way; try again later.
    pub fn checkpoint(self: &Arc<Self>) -> Result<bool, DbError> {
        self.state().checkpoint_asked = false;
        if !self.durable().1 {
            return Ok(true);
        }
        let Some(Rest { reader, checkpointing, go_on }) = self.rest(false)? else { return Ok(false) };
        let Some(snapshot) = self.snapshot(&mut self.state())? else { return Ok(false) };
        drop(go_on);
        let position = snapshot.position.index;
        let done = self.make_durable(snapshot);
        drop((reader, checkpointing));
        let done = done?;
        debug!(database = self.name, index = position, done, "checkpoint");
        Ok(done)
    }

    /// Waits until no checkpoint is under way, but not beyond the deadline. Blocks.
    pub fn await_checkpoint(&self, deadline: Instant) {
        while matches!(self.checkpointing.try_lock(), Err(TryLockError::WouldBlock))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes of pages in the WAL from which on it is closed on the worker.
    pub fn wal_limit(&self) -> u64 {
        CLOSE_FACTOR * self.context.checkpoint_bytes
    }

    /// A checkpoint of everything, on the worker, so that nobody publishes meanwhile. `Ok(false)`: readers or
    /// another checkpoint held it up.
    pub(super) fn checkpoint_all(&self) -> Result<bool, DbError> {
        // The worker waits for no other checkpoint.
        let _guard = match self.checkpointing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let Some(snapshot) = self.snapshot(&mut self.state())? else { return Ok(false) };
        self.make_durable(snapshot)
    }

    /// A checkpoint for an installed state whose file is to be free for the next one, where publishing an entry after it
    /// failed: what is in the WAL is copied, though that isn't what the hashes say; the installed state becomes durable,
    /// with the failed entry as the target up to which the log is to be read again. `Ok(false)`: nothing of that kind,
    /// or something is in the way.
    pub(super) fn checkpoint_installed(self: &Arc<Self>) -> Result<bool, DbError> {
        let failed = |state: &State| state.published < state.position.index;
        if !failed(&self.state()) {
            return Ok(false);
        }
        let Some(Rest { reader, checkpointing, go_on }) = self.rest(false)? else { return Ok(false) };
        let (installed, index) = {
            let state = self.state();
            let Some(installed) = state.installed.clone().filter(|_| failed(&state)) else {
                return Ok(false);
            };
            (installed, state.position.index)
        };
        let header = wal_index::read_header(self.holder.region(0)?);
        let Some((salts, frame)) = header.map(|header| (header.salts, header.max_frame)) else {
            return Ok(false);
        };
        drop(go_on);
        let hashes = &installed.hashes;
        let snapshot = Snapshot {
            position: installed.target.position,
            checksum: hashes.checksum(),
            pages: hashes.len(),
            consistent_from: index,
            hashes: (1u32..).zip(hashes.as_slice()).map(|(page, hash)| (PageNo(page), *hash)).collect(),
            dirty: BTreeSet::new(),
            salts,
            frame,
            filled: false,
        };
        // What is dirty stays so: the side file has those hashes as of the installed state.
        let done = self.context.wait_flushed(index, PATIENCE) && self.copy_and_record(&snapshot)?;
        drop((reader, checkpointing));
        warn!(
            database = self.name,
            index, done, "publishing failed; the state installed before is made durable"
        );
        Ok(done)
    }

    /// SHA-256 of the database file with everything up to `index` in it. On the worker.
    pub(super) fn hash_file(&self, index: u64) -> Result<String, DbError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.checkpoint_all()? {
            if Instant::now() >= deadline {
                return Err(self.io(
                    "checkpointing it for a verification",
                    "a reader of an old snapshot or another checkpoint is in the way",
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pages = self.state().hashes.len();
        let size = self.holder.file_size()?;
        let expected = u64::from(pages) * u64::from(self.page_size.get());
        if size != expected {
            let why = format!("the file has {size} bytes, at entry {index} it should have {expected}");
            return Err(self.io("hashing it", &why));
        }
        let mut page = vec![0; self.page_size.bytes()];
        let mut hash = Sha256::new();
        for number in 1..=pages {
            self.holder.read_page(PageNo(number), self.page_size, &mut page)?;
            hash.update(&page);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn io(&self, what: &'static str, why: &str) -> DbError {
        DbError::Io { path: self.path().to_owned(), what, error: io::Error::other(why.to_owned()) }
    }

    /// Takes down the state as it is; the caller sees to it that nobody publishes. `None` where the files don't have
    /// that state, because publishing its last entry failed.
    fn snapshot(&self, state: &mut State) -> Result<Option<Snapshot>, DbError> {
        if state.published < state.position.index {
            return Ok(None);
        }
        let region0 = self.holder.region(0)?;
        let header = wal_index::read_header(region0).ok_or_else(|| DbError::Index {
            path: self.path().to_owned(),
            reason: "the wal-index has no valid header".into(),
        })?;
        // What somebody else has written must not get into the file.
        if self.files.try_lock().is_ok_and(|files| !files.wal.is_ours(&header)) {
            return Ok(None);
        }
        let dirty = std::mem::take(&mut state.dirty);
        let hashes = dirty.iter().filter_map(|&page| Some((page, state.hashes.get(page)?))).collect();
        Ok(Some(Snapshot {
            position: state.position,
            checksum: state.hashes.checksum(),
            pages: state.hashes.len(),
            consistent_from: state.consistent_from,
            hashes,
            dirty,
            salts: header.salts,
            frame: header.max_frame,
            filled: wal_index::backfilled(region0) >= header.max_frame,
        }))
    }

    /// Copies the snapshot's frames and puts its entry on record as durable.
    fn make_durable(&self, snapshot: Snapshot) -> Result<bool, DbError> {
        let result = self.copy_and_record(&snapshot);
        if !matches!(result, Ok(true)) {
            self.state().dirty.extend(snapshot.dirty);
        }
        result
    }

    fn copy_and_record(&self, snapshot: &Snapshot) -> Result<bool, DbError> {
        let index = snapshot.position.index;
        let before = self.state().durable;
        if before.position == snapshot.position && snapshot.filled {
            self.installed_is_durable(index)?;
            return Ok(true);
        }
        // A state that was installed stands in a file of its own, and may be ahead of the log.
        let installed =
            self.state().installed.as_ref().is_some_and(|i| i.target.position == snapshot.position);
        if !installed && !self.context.wait_flushed(index, PATIENCE) {
            warn!(database = self.name, index, "checkpoint: the log is not on disk yet");
            return Ok(false);
        }
        // From now on file and hashes may be ahead of the durable entry.
        let target = before.target.max(snapshot.consistent_from).max(index);
        if target != before.target {
            self.record(Durable { target, ..before })?;
        }
        if !snapshot.filled {
            let writer = sql::checkpointer(self.path())?;
            self.still_there()?;
            writer
                .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
                .map_err(sql::error(self.path(), "checkpointing it"))?;
            let region0 = self.holder.region(0)?;
            let header = wal_index::read_header(region0);
            let same = header.is_some_and(|header| header.salts == snapshot.salts);
            // Another generation can only have begun once all of this one was copied.
            if same && wal_index::backfilled(region0) < snapshot.frame {
                return Ok(false);
            }
        }
        self.files().side.write_hashes(&snapshot.hashes)?;
        self.record(Durable {
            position: snapshot.position,
            target: snapshot.consistent_from.max(index),
            checksum: snapshot.checksum,
            pages: snapshot.pages,
            stamp: self.stamp()?,
        })?;
        self.installed_is_durable(index)?;
        Ok(true)
    }

    /// How the database file looks now.
    pub(super) fn stamp(&self) -> Result<Stamp, DbError> {
        stamp(&self.holder, self.page_size)
    }

    /// At the next start, all of the file is to be read: a damaged page was found.
    pub(super) fn distrust_file(&self) -> Result<(), DbError> {
        let durable = self.state().durable;
        self.record(Durable { stamp: Stamp::default(), ..durable })
    }

    pub(super) fn record(&self, durable: Durable) -> Result<(), DbError> {
        self.files().side.set_durable(&durable)?;
        self.state().durable = durable;
        Ok(())
    }
}

/// How a database file looks now.
pub(super) fn stamp(holder: &Holder, page_size: PageSize) -> Result<Stamp, DbError> {
    let mut page = vec![0; page_size.bytes()];
    holder.read_page(PageNo(1), page_size, &mut page)?;
    Stamp::of(holder.path(), &page)
}
