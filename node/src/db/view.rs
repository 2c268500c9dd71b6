//! A view: the whole database as it is at one entry, page by page, while writers, readers and checkpoints go on.
//!
//! Underneath is an ordinary read transaction of the node's SQLite. Its reader slot keeps the frames and the pages
//! that belong to its snapshot from being overwritten; the pages themselves are read here, past SQLite, from the
//! WAL and the file.

use super::DbError;
use super::applier::wal_path;
use super::database::{Database, Work};
use super::sql;
use crate::blocking;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, page_hash};
use quire_vfs::format::wal::{FRAME_HEADER_SIZE, frame_offset};
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use rusqlite::Connection;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// How long to wait for the worker to come to rest.
const PATIENCE: Duration = Duration::from_secs(10);
/// Makes SQLite take a snapshot, and read nothing but the database header: a damaged schema must be no hindrance.
const READ: &str = "PRAGMA user_version";

/// A read transaction that has just taken its snapshot, and with it what must not move before the caller has taken
/// down what belongs to it: the worker rests, and nobody checkpoints.
pub(super) struct Rest<'a> {
    pub reader: Connection,
    pub checkpointing: MutexGuard<'a, ()>,
    /// Dropped to let the worker go on.
    pub go_on: SyncSender<()>,
}

/// A database at one entry.
pub struct View {
    // Dropped before the database, without which it would be the last one to close the file.
    _reader: Connection,
    database: Arc<Database>,
    /// The last entry in it.
    pub position: LogPosition,
    /// Its checksum, as this node's state has it.
    pub checksum: DbChecksum,
    /// Whether files and hashes are of the same entry: not so while the log is read again after a start.
    pub consistent: bool,
    /// Number of pages.
    pub pages: u32,
    /// The first page whose hash is in `hashes`.
    pub first: PageNo,
    /// The hash that each page should have, of those that were asked for.
    pub hashes: Vec<u64>,
    /// The pages that the file may not have as the view has them.
    pub dirty: Vec<PageNo>,
    wal: File,
    /// The last frame of the snapshot; 0 if all of it is in the file.
    max_frame: FrameNo,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("database", &self.database.name)
            .field("position", &self.position)
            .finish()
    }
}

impl Database {
    /// Brings the database to rest for a moment, and if `wait` says so waits for a checkpoint to end before. `None`:
    /// something is in the way; try again later.
    pub(super) fn rest(self: &Arc<Self>, wait: bool) -> Result<Option<Rest<'_>>, DbError> {
        match self.checkpointing.try_lock() {
            Err(TryLockError::WouldBlock) if wait => {
                drop(self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner));
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Ok(_) | Err(TryLockError::Poisoned(_)) => {}
        }
        let sql_error = sql::error(self.path(), "taking a snapshot");
        let reader = sql::checkpointer(self.path())?;
        self.still_there()?;
        // On the worker's own turn, as under load it is never idle.
        let (paused, at_rest) = sync_channel(1);
        let (go_on, resume) = sync_channel::<()>(1);
        self.enqueue_before_held(Work::Pause { paused, resume });
        if blocking::receive(&at_rest, PATIENCE).is_err() {
            return Ok(None);
        }
        // Only now: a worker that is at something else may itself need it.
        let checkpointing = match self.checkpointing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        reader.execute_batch("BEGIN").map_err(&sql_error)?;
        reader.query_row(READ, [], |_| Ok(())).map_err(&sql_error)?;
        Ok(Some(Rest { reader, checkpointing, go_on }))
    }

    /// A view of the database as it is now, with the hashes of `count` pages from `first` on. Blocks; `None`:
    /// something is in the way; try again later.
    fn view(self: &Arc<Self>, first: PageNo, count: u32) -> Result<Option<View>, DbError> {
        let Some(rest) = self.rest(true)? else { return Ok(None) };
        let region0 = self.holder.region(0)?;
        // Before the header: a writer may start the WAL anew between the two.
        let backfilled = wal_index::backfilled(region0);
        let header = wal_index::read_header(region0).ok_or_else(|| DbError::Index {
            path: self.path().to_owned(),
            reason: "the wal-index has no valid header".into(),
        })?;
        // SQLite reads the file alone, under the reader slot that says so, where all frames are in it (walTryBeginRead).
        let filled = backfilled >= header.max_frame;
        let path = wal_path(self.path());
        let wal = File::open(&path).map_err(DbError::io(&path, "opening it"))?;
        self.still_there()?;
        let state = self.state();
        Ok(Some(View {
            database: self.clone(),
            position: state.position,
            checksum: state.hashes.checksum(),
            consistent: state.position.index >= state.consistent_from
                && state.published <= state.position.index,
            pages: state.hashes.len(),
            first,
            hashes: state
                .hashes
                .as_slice()
                .iter()
                .skip(first.0 as usize - 1)
                .take(count as usize)
                .copied()
                .collect(),
            dirty: state.dirty.iter().copied().collect(),
            wal,
            max_frame: if filled { FrameNo(0) } else { header.max_frame },
            _reader: rest.reader,
        }))
    }
}

impl View {
    /// Size of a page.
    pub fn page_size(&self) -> PageSize {
        self.database.page_size
    }

    /// Reads a page as it really is on this node.
    pub fn read(&self, page: PageNo, out: &mut [u8]) -> Result<(), DbError> {
        let db = &self.database;
        match wal_index::find(&db.holder, page, self.max_frame).map_err(DbError::index(db.path()))? {
            None => Ok(db.holder.read_page(page, db.page_size, out)?),
            Some(frame) => {
                let at = frame_offset(frame, db.page_size) + FRAME_HEADER_SIZE as u64;
                let read = self.wal.read_exact_at(out, at);
                read.map_err(DbError::io(&wal_path(db.path()), "reading a frame"))
            }
        }
    }

    /// Reads a page, and finds out whether it is what it should be.
    pub fn is_sound(&self, page: PageNo, out: &mut [u8]) -> Result<bool, DbError> {
        self.read(page, out)?;
        let at = page.0.checked_sub(self.first.0);
        Ok(at.and_then(|at| self.hashes.get(at as usize)) == Some(&page_hash(page, out)))
    }
}

/// Tries again while something is in the way.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<Option<T>, DbError>) -> Result<Option<T>, DbError> {
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt()? {
            return Ok(Some(done));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

impl Database {
    /// A view of everything, with some patience.
    pub fn wait_view(self: &Arc<Self>) -> Result<View, DbError> {
        self.wait_view_of(PageNo(1), u32::MAX)
    }

    /// A view with the hashes of some pages, with some patience.
    pub fn wait_view_of(self: &Arc<Self>, first: PageNo, count: u32) -> Result<View, DbError> {
        let view = patiently(|| self.view(first, count))?;
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        view.ok_or_else(|| DbError::io(self.path(), "taking a view of it")(busy()))
    }
}
