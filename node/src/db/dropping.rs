//! Dropping a database: it is forgotten at once, and its files go as soon as no restart needs to know of them.
//!
//! The entry that drops a database is applied where the state machine takes it, before anything that comes later: the
//! next entry may create one of the same name, at the same path. So
//!
//! 1. the database is marked as dropped: its writers are refused, and whatever opens its files by name looks at that
//!    mark after it has opened them;
//! 2. its side file is renamed to `NAME.db-dropped-ID`, durably: the *tombstone*. Without it, a manifest that still
//!    names the database would make the next start look for files that are gone;
//! 3. its other files are removed. Where a thread is just opening or closing them, this and the step before are its to
//!    do, when it is done ([`super::registry`]): `apply` doesn't wait for it. Who has them open, an app or a backup, reads on in what is nobody else's any more.
//! 4. Once a manifest is stored that does not name the database, the tombstone is removed.
//!
//! Entries that are read again after a restart and name a database that is gone have no effect; one that creates it
//! again is followed by the one that drops it.

use super::DbError;
use super::database::{Database, State, Work};
use super::incoming::incoming_path;
use super::lag::behind_path;
use super::side_file::{SideFile, side_path};
use super::worker::refuse;
use crate::command::DbId;
use crate::manifest::sync_dir;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::{debug, info, warn};

/// What comes between a database's path and its id in the name of a tombstone.
const INFIX: &str = "-dropped-";

/// What is left of a dropped database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The database.
    pub id: DbId,
    path: PathBuf,
}

impl Database {
    /// Whether it was dropped.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    /// An error if it was dropped. To be asked after a file was opened by its name, which may be another database's
    /// by now.
    pub(super) fn still_there(&self) -> Result<(), DbError> {
        if self.is_dropped() {
            let gone = io::Error::new(io::ErrorKind::NotFound, "the database was dropped");
            return Err(DbError::io(self.path(), "using it")(gone));
        }
        Ok(())
    }

    /// Its writers are told, once everything before has been done.
    pub fn mark_dropped(self: &Arc<Self>) {
        self.dropped.store(true, Ordering::SeqCst);
        let mut state = self.state();
        // Nothing waits for a repair any more.
        state.hold = None;
        state.queue.push_back(Work::Drop);
        self.wake(&mut state);
    }

    /// Everything before has been done.
    pub(super) fn end(self: &Arc<Self>, state: &mut State) {
        refuse(state, &format!("{} was dropped", self.name));
        state.fenced = None;
        self.advance(state);
    }
}

/// Removes a database's files, but for the tombstone.
pub(super) fn bury(database: &Path, id: DbId) -> Result<Tombstone, DbError> {
    let tombstone = Tombstone { id, path: tombstone_path(database, id) };
    let side = side_path(database);
    std::fs::rename(&side, &tombstone.path).map_err(DbError::io(&side, "renaming it"))?;
    sync_dir(&side).map_err(DbError::io(&side, "syncing its directory"))?;
    remove_files(database);
    info!(database = %database.display(), %id, "dropped");
    Ok(tombstone)
}

/// The tombstone of a database that was dropped, if there is one: what a crash may have left of its files is removed.
pub(super) fn find(database: &Path, id: DbId) -> Result<Option<Tombstone>, DbError> {
    let path = tombstone_path(database, id);
    if !path.exists() {
        return Ok(None);
    }
    // Those of another one of that name have a side file.
    if SideFile::identify(database)?.is_none() {
        remove_files(database);
    }
    Ok(Some(Tombstone { id, path }))
}

/// Removes the tombstones of databases that no manifest names.
pub(super) fn sweep(directory: &Path, named: &BTreeSet<DbId>) -> Result<(), DbError> {
    for entry in std::fs::read_dir(directory).map_err(DbError::io(directory, "reading it"))? {
        let path = entry.map_err(DbError::io(directory, "reading it"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = name.rsplit_once(INFIX).filter(|(before, _)| before.ends_with(".db"));
        let id = id.and_then(|(_, id)| id.parse().ok()).map(DbId);
        if let Some(id) = id.filter(|id| !named.contains(id)) {
            Tombstone { id, path }.remove();
        }
    }
    Ok(())
}

impl Tombstone {
    /// No restart needs it any more.
    pub(super) fn remove(&self) {
        debug!(path = %self.path.display(), "no manifest names it any more");
        // One that stays does no harm, and the next start tries again.
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!("{}: {error}", self.path.display());
        }
    }
}

fn tombstone_path(database: &Path, id: DbId) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(format!("{INFIX}{id}"));
    path.into()
}

/// Removes what there is. What can't be removed is put aside when another database takes the name.
fn remove_files(database: &Path) {
    let with = |suffix: &str| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    let files = [
        database.to_owned(),
        with("-wal"),
        with("-wal-old"),
        with("-shm"),
        with("-gate"),
        incoming_path(database),
        behind_path(database),
    ];
    for file in files {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => warn!("{}: {error}", file.display()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_stay_while_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a-dropped-1.db");
        for suffix in ["", "-wal", "-wal-old", "-shm", "-quire", "-gate"] {
            std::fs::write(format!("{}{suffix}", database.display()), b"x").unwrap();
        }
        std::fs::write(dir.path().join("other.db-quire"), b"x").unwrap();
        let tombstone = bury(&database, DbId(7)).unwrap();
        let names = || {
            let names =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let left = ["a-dropped-1.db-dropped-7", "other.db-quire"].map(String::from);
        assert_eq!(names(), left.clone().into());
        // As a crash in between would leave it.
        std::fs::write(&database, b"x").unwrap();
        assert_eq!(find(&database, DbId(7)).unwrap(), Some(tombstone));
        assert_eq!(find(&database, DbId(8)).unwrap(), None);
        sweep(dir.path(), &[DbId(7)].into()).unwrap();
        assert_eq!(names(), left.clone().into());
        sweep(dir.path(), &BTreeSet::new()).unwrap();
        assert_eq!(names(), [left[1].clone()].into());
    }
}
