//! Dropping a database. Nobody who applies the log waits for a thread that is at a database's files: where one is, it is
//! that thread which removes them, when it is done. Until then the database is *leaving*: it has no name any more, nor
//! is it found by its id.
//!
//! A database that is created under its name meanwhile is known at once, but its files, which would be at the same path,
//! come after the old ones have gone. Whoever opens it waits for that.
//!
//! While one is leaving, the manifest goes on naming it, and stays where it was opened or closed: a restart finds its
//! files as they are, and reads the entries again that drop it and create the next one.

use super::super::closed::Closed;
use super::super::creation::create_files;
use super::super::database::database_path;
use super::super::dropping;
use super::{Moving, Open, RETRY, Registry, Slots};
use crate::command::DbId;
use crate::db::DbError;
use quire_raft::LogPosition;
use quire_vfs::format::PageSize;
use std::sync::{Arc, PoisonError};
use tracing::warn;

impl Registry {
    /// Drops a database, if it is there, and returns its name. Its files are gone when this returns, or as soon as the
    /// thread that is at them is done.
    pub fn drop_database(self: &Arc<Self>, id: DbId) -> Result<Option<String>, DbError> {
        let mut slots = self.slots();
        let mut has_files = true;
        let name = if let Some(Open { database, .. }) = slots.open.remove(&id) {
            database.mark_dropped();
            database.name.clone()
        } else if let Some(moving) = slots.end_of(id) {
            let name = moving.closed.name.clone();
            has_files = moving.creation.is_none() && !moving.is_busy;
            if moving.is_busy {
                slots.leaving.insert(id, moving.closed);
            }
            name
        } else if let Some(closed) = slots.closed.remove(&id) {
            closed.name
        } else {
            return Ok(None);
        };
        slots.names.remove(&name);
        slots.handed.remove(&id);
        drop(slots);
        if has_files {
            self.tombstones().push(dropping::bury(&database_path(&self.directory, &name), id)?);
        }
        Ok(Some(name))
    }

    /// A thread is done with the files of a database that was dropped meanwhile. Blocks.
    pub(super) fn leave(self: &Arc<Self>, id: DbId) {
        let Some(name) = self.slots().leaving.get(&id).map(|closed| closed.name.clone()) else { return };
        let next = match self.replace(id, &name) {
            Ok(next) => next,
            Err(error) => {
                warn!(database = name, "dropped, but its files are still there: {error}");
                let registry = self.clone();
                self.context.spawn(async move {
                    tokio::time::sleep(RETRY).await;
                    let context = registry.context.clone();
                    context.run_blocking(move || registry.leave(id));
                });
                return;
            }
        };
        // For a manifest without it.
        let _ = self.context.checkpoints.send(id);
        if let Some(next) = next {
            self.leave(next);
        }
    }

    /// Removes the files of a database that leaves, and creates those of the next one of its name; returns that if it is
    /// dropped, too, by then.
    fn replace(self: &Arc<Self>, id: DbId, name: &str) -> Result<Option<DbId>, DbError> {
        let path = database_path(&self.directory, name);
        let tombstone = match dropping::find(&path, id)? {
            Some(tombstone) => tombstone,
            None => dropping::bury(&path, id)?,
        };
        {
            let mut tombstones = self.tombstones();
            tombstones.retain(|tombstone| tombstone.id != id);
            tombstones.push(tombstone);
        }
        let Some((next, position, page_size)) = self.next_of(id, name) else { return Ok(None) };
        let created = create_files(&path, position, page_size);
        let mut slots = self.slots();
        let Some(moving) = slots.moving.get_mut(&next) else {
            if let Err(error) = created {
                // There is nothing of it to be removed.
                slots.leaving.remove(&next);
                return Err(error);
            }
            slots.leaving.remove(&id);
            self.moved.notify_all();
            return Ok(Some(next));
        };
        moving.is_busy = false;
        let durable = created.inspect_err(|error| {
            moving.closed.trouble = Some(format!("it can't be created: {error}"));
        })?;
        (moving.creation, moving.closed.trouble) = (None, None);
        moving.closed.durable = durable;
        self.is_idle(&mut slots, next);
        slots.leaving.remove(&id);
        self.moved.notify_all();
        Ok(None)
    }

    /// The database whose files are to be created in the place of those of one that leaves. If there is none, that
    /// has left.
    fn next_of(&self, id: DbId, name: &str) -> Option<(DbId, LogPosition, PageSize)> {
        let mut slots = self.slots();
        let next = slots.moving.iter_mut().find(|(_, moving)| moving.closed.name == name);
        let found = next.and_then(|(next, moving)| {
            let position = moving.creation?;
            moving.is_busy = true;
            Some((*next, position, moving.closed.page_size))
        });
        if found.is_none() {
            slots.leaving.remove(&id);
            self.moved.notify_all();
        }
        found
    }

    /// Makes a database known whose files come when those of one of its name have gone. False: there is no such one.
    pub(super) fn create_later(&self, position: LogPosition, name: &str, page_size: PageSize) -> bool {
        let mut slots = self.slots();
        if !slots.is_leaving(name) {
            return false;
        }
        let id = DbId(position.index);
        let mut moving = Moving::new(Closed::to_come(position, name, page_size), false);
        moving.creation = Some(position);
        slots.moving.insert(id, moving);
        slots.names.insert(name.to_owned(), id);
        true
    }

    /// Waits until the files of all that were dropped have gone. Blocks.
    pub fn wait_left(&self) {
        let mut slots = self.slots();
        while !slots.leaving.is_empty() {
            slots = self.moved.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Slots {
    /// Whether the files of a dropped database of this name are still there.
    pub(super) fn is_leaving(&self, name: &str) -> bool {
        self.leaving.values().any(|closed| closed.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::side_file::SideFile;
    use super::super::Keep;
    use super::*;
    use crate::command::Command;
    use crate::db::context::Context;
    use crate::machine::Machine;
    use quire_raft::{Committed, Payload, StateMachine};
    use std::path::Path;
    use std::time::Duration;
    use tokio::time::timeout;

    fn registry(dir: &Path) -> Arc<Registry> {
        crate::db::sql::register().unwrap();
        let keep = Keep { most: 16, idle: Duration::from_secs(60) };
        Arc::new(Registry::new(&dir.join("db"), Arc::new(Context::alone()), keep).unwrap())
    }

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, leader: 1, index }
    }

    /// As if a thread were at the files of a closed database.
    fn is_being_opened(registry: &Registry, id: u64) {
        let mut slots = registry.slots();
        let closed = slots.closed.remove(&DbId(id)).unwrap();
        slots.moving.insert(DbId(id), Moving::new(closed, true));
    }

    fn creates(registry: &Registry, id: u64, page_size: PageSize) {
        assert!(registry.create(at(id), "x", page_size).unwrap());
    }

    fn identity(registry: &Registry) -> Option<u64> {
        let path = database_path(&registry.directory, "x");
        SideFile::identify(&path).unwrap().map(|(id, _)| id.0)
    }

    /// What the manifest may name, and whether something keeps it back.
    fn named(registry: &Registry) -> Vec<(u64, bool)> {
        registry.known().iter().map(|known| (known.id.0, known.lacks_after.is_some())).collect()
    }

    /// Somebody is opening a database, which may take as long as a stock writer likes. Whoever drops it, and creates one of
    /// its name, doesn't wait: he applies the log, for all databases.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_drop_does_not_wait_for_an_open() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(dir.path());
        let other = PageSize::new(1024).unwrap();
        creates(&registry, 1, PageSize::DEFAULT);
        is_being_opened(&registry, 1);
        let ours = registry.clone();
        let dropped = tokio::task::spawn_blocking(move || ours.drop_database(DbId(1)).unwrap());
        let dropped = timeout(Duration::from_secs(5), dropped).await.expect("it doesn't wait").unwrap();
        assert_eq!(dropped.as_deref(), Some("x"));
        assert_eq!((registry.id_of("x"), registry.contains(DbId(1))), (None, false));
        creates(&registry, 5, other);
        assert_eq!(registry.id_of("x"), Some(DbId(5)));
        let opening = tokio::spawn({
            let registry = registry.clone();
            async move { registry.open(DbId(5)).await }
        });
        // The files are still the old one's, and so the manifest names that, and goes no further.
        assert_eq!((identity(&registry), named(&registry)), (Some(1), vec![(1, true)]));
        // The thread is done.
        let ours = registry.clone();
        tokio::task::spawn_blocking(move || ours.is_closed(DbId(1))).await.unwrap();
        let opened = timeout(Duration::from_secs(60), opening).await.unwrap().unwrap().unwrap().unwrap();
        assert_eq!((opened.id, opened.page_size), (DbId(5), other));
        assert_eq!(identity(&registry), Some(5));
        registry.wait_left();
        assert_eq!(named(&registry).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
        assert_eq!(registry.tombstones().iter().map(|it| it.id).collect::<Vec<_>>(), [DbId(1)]);
    }

    /// The next ones of the name are dropped, too, before the first one's files have gone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_of_many_of_a_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(dir.path());
        creates(&registry, 1, PageSize::DEFAULT);
        is_being_opened(&registry, 1);
        for id in [1, 3, 5] {
            registry.drop_database(DbId(id)).unwrap().unwrap();
            creates(&registry, id + 2, PageSize::DEFAULT);
        }
        assert_eq!(named(&registry), [(1, true)]);
        let ours = registry.clone();
        tokio::task::spawn_blocking(move || ours.is_closed(DbId(1))).await.unwrap();
        registry.wait_left();
        assert_eq!((identity(&registry), named(&registry)), (Some(7), vec![(7, false)]));
        // Dropped like any other.
        registry.drop_database(DbId(7)).unwrap().unwrap();
        assert_eq!((identity(&registry), named(&registry)), (None, vec![]));
    }

    /// The node is killed before the thread is done: the log says the same again, and the outcome is the same.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restart_finishes_a_drop() {
        let dir = tempfile::tempdir().unwrap();
        let before = registry(dir.path());
        let machine = Machine::open(dir.path(), before.clone(), before.context.clone()).unwrap();
        let apply = |machine: &Machine, entries: &[(u64, Command)]| {
            let committed = |(index, command): &(u64, Command)| Committed {
                position: at(*index),
                payload: Payload::Command(command.encode()),
            };
            machine.apply(entries.iter().map(committed).collect()).unwrap();
        };
        let create = || Command::CreateDatabase { name: "x".into(), page_size: PageSize::DEFAULT };
        let log = [(1, create()), (2, Command::DropDatabase { database: DbId(1) }), (3, create())];
        apply(&machine, &log[..1]);
        is_being_opened(&before, 1);
        apply(&machine, &log[1..]);
        before.context.flushed.set(tokio::sync::watch::Sender::new(3).subscribe()).unwrap();
        let stored = tokio::task::spawn_blocking(move || {
            machine.store_manifest().unwrap();
            machine.durable()
        });
        assert_eq!(stored.await.unwrap(), Some(at(1)));
        drop(before);
        let after = registry(dir.path());
        let machine = Machine::open(dir.path(), after.clone(), after.context.clone()).unwrap();
        assert_eq!(after.id_of("x"), Some(DbId(1)));
        apply(&machine, &log[1..]);
        assert_eq!((after.id_of("x"), identity(&after)), (Some(DbId(3)), Some(3)));
    }
}
