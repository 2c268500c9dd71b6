//! Opening a database for the scrub, which is no use of it: it takes nobody's place, and one that was closed is closed
//! again at once. One at a time.

use super::{Registry, Slots};
use crate::command::DbId;
use crate::db::database::Database;
use crate::db::side_file::ScrubMark;
use std::sync::Arc;

/// What the scrub needs to know of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbable {
    /// The database.
    pub id: DbId,
    /// None of its files is open.
    pub is_closed: bool,
    /// How far it has come.
    pub mark: ScrubMark,
}

impl Registry {
    /// All databases that can be scrubbed now. Opens none.
    pub fn scrubbable(&self) -> Vec<Scrubbable> {
        let slots = self.slots();
        let closed = slots.closed.values();
        let mut all: Vec<_> =
            closed.map(|it| Scrubbable { id: it.id, is_closed: true, mark: it.scrub }).collect();
        let open: Vec<_> = slots.open.values().map(|open| open.database.clone()).collect();
        drop(slots);
        all.extend(open.iter().map(|it| Scrubbable { id: it.id, is_closed: false, mark: it.scrub_mark() }));
        all
    }

    /// As [`Registry::open`], but for the scrub. To be given back by [`Registry::put_back`]. `None` also where somebody is
    /// opening or closing it just now.
    pub async fn open_aside(self: &Arc<Self>, id: DbId) -> Result<Option<Arc<Database>>, String> {
        let mut news = {
            let mut slots = self.slots();
            if let Some(open) = slots.open.get(&id) {
                return Ok(Some(open.database.clone()));
            }
            if !slots.closed.contains_key(&id) {
                return Ok(None);
            }
            slots.aside = Some(id);
            self.want(&mut slots, id);
            let Some(moving) = slots.moving.get(&id) else { return Ok(None) };
            moving.news.subscribe()
        };
        let told = news.changed().await;
        let mut slots = self.slots();
        if let Some(open) = slots.open.get(&id) {
            return Ok(Some(open.database.clone()));
        }
        slots.is_used(id);
        match told {
            Ok(()) => Err(news.borrow().clone().unwrap_or_default()),
            Err(_) => Ok(None),
        }
    }

    /// The scrub is done with a database: it is closed again, unless somebody has used it meanwhile. Blocks.
    pub fn put_back(self: &Arc<Self>, database: Arc<Database>) {
        let id = database.id;
        drop(database);
        if self.slots().aside == Some(id) {
            self.close(id, Some(self.began));
            self.slots().is_used(id);
        }
    }
}

impl Slots {
    /// How many are open, but for the one that is so for the scrub alone.
    pub(super) fn places(&self) -> usize {
        self.open.len() - usize::from(self.aside.is_some_and(|id| self.open.contains_key(&id)))
    }

    /// Somebody has a use for a database, or the scrub has none any more.
    pub(super) fn is_used(&mut self, id: DbId) {
        self.aside = self.aside.filter(|aside| *aside != id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Keep;
    use super::*;
    use crate::db::context::Context;
    use quire_raft::LogPosition;
    use quire_vfs::format::{PageNo, PageSize};
    use std::path::Path;
    use std::time::Duration;

    fn registry(dir: &Path, databases: u64) -> Arc<Registry> {
        crate::db::sql::register().unwrap();
        let keep = Keep { most: 2, idle: Duration::from_secs(60) };
        let registry = Arc::new(Registry::new(&dir.join("db"), Arc::new(Context::alone()), keep).unwrap());
        for index in 1..=databases {
            let position = LogPosition { term: 1, leader: 1, index };
            assert!(registry.create(position, &format!("db{index}"), PageSize::DEFAULT).unwrap());
        }
        registry
    }

    async fn put_back(registry: &Arc<Registry>, database: Arc<Database>) {
        let registry = registry.clone();
        tokio::task::spawn_blocking(move || registry.put_back(database)).await.unwrap();
    }

    fn open_ones(registry: &Registry) -> Vec<u64> {
        registry.open_ones().iter().map(|database| database.id.0).collect()
    }

    fn mark(registry: &Registry, id: u64) -> Scrubbable {
        registry.scrubbable().into_iter().find(|it| it.id == DbId(id)).unwrap()
    }

    /// A scrub of all databases, as after a start: those that were used last stay open, and no more are open at any time than
    /// one besides them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_scrub_takes_nobodys_place() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(dir.path(), 6);
        for id in [2, 5] {
            registry.open(DbId(id)).await.unwrap().unwrap();
        }
        for id in 1..=6 {
            let database = registry.open_aside(DbId(id)).await.unwrap().unwrap();
            database.set_scrub_mark(ScrubMark { next: Some(PageNo(7)), ended: id }).unwrap();
            assert!(open_ones(&registry).len() <= 3, "{:?}", open_ones(&registry));
            put_back(&registry, database).await;
            assert_eq!(open_ones(&registry), [2, 5], "after {id}");
            // How far it has come is known without opening it again.
            let is_closed = ![2, 5].contains(&id);
            let mark_now = ScrubMark { next: Some(PageNo(7)), ended: id };
            assert_eq!(mark(&registry, id), Scrubbable { id: DbId(id), is_closed, mark: mark_now });
        }
    }

    /// Somebody uses the database while it is scrubbed: from then on it is open like any other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_database_that_is_used_while_it_is_scrubbed_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(dir.path(), 3);
        registry.open(DbId(1)).await.unwrap().unwrap();
        let database = registry.open_aside(DbId(2)).await.unwrap().unwrap();
        drop(registry.open(DbId(2)).await.unwrap().unwrap());
        put_back(&registry, database).await;
        assert_eq!(open_ones(&registry), [1, 2]);
        // It has a place: the one that was not used for longest makes room.
        drop(registry.open(DbId(3)).await.unwrap().unwrap());
        assert_eq!(open_ones(&registry), [2, 3]);
    }
}
