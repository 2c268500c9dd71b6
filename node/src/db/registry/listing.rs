//! What there is to say of all databases, open or not.

use super::super::closed::Closed;
use super::super::database::{Database, DatabaseStatus, Verification};
use super::{Moving, Open, Registry};
use crate::command::DbId;
use crate::core::head::Fate;
use quire_raft::LogPosition;
use quire_vfs::format::PageSize;
use quire_vfs::format::transaction::TxnId;
use std::sync::Arc;

/// What the manifest says of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: DbId,
    /// Its page size.
    pub page_size: PageSize,
    /// Its name.
    pub name: String,
    /// The entry up to which it has all in its file, if that isn't all that was handed to it.
    pub lacks_after: Option<LogPosition>,
}

impl Registry {
    /// What `/status` says of each, by id.
    pub fn statuses(&self) -> Vec<DatabaseStatus> {
        let slots = self.slots();
        let mut all: Vec<_> = slots.closed.values().map(Closed::status).collect();
        let moving = |Moving { closed, waiting, .. }: &Moving| DatabaseStatus {
            queued: waiting.len(),
            ..closed.status()
        };
        all.extend(slots.moving.values().map(moving));
        let open: Vec<_> = slots.open.values().map(|open| open.database.clone()).collect();
        drop(slots);
        all.extend(open.iter().map(|database| database.status()));
        all.sort_by_key(|status| status.id);
        all
    }

    /// The ids of those that are open, or about to be.
    pub fn in_use(&self) -> Vec<DbId> {
        let slots = self.slots();
        slots.open.keys().chain(slots.moving.keys()).copied().collect()
    }

    /// Those that are not served, and why.
    pub fn faults(&self) -> Vec<(String, String)> {
        let (open, mut all) = self.both(|closed| Some((closed.name.clone(), closed.trouble.clone()?)));
        all.extend(open.iter().filter_map(|database| Some((database.name.clone(), database.fenced()?))));
        all
    }

    /// What the manifest is to say of each, by id.
    pub fn known(&self) -> Vec<Known> {
        let slots = self.slots();
        let lacks_after = |id, (durable, is_dirty): (LogPosition, bool)| {
            // What came before this life of the node was all in its file as of the manifest.
            let handed = slots.handed.get(&id).filter(|handed| is_dirty && handed.last > durable.index)?;
            Some(handed.complete.filter(|at| at.index > durable.index).unwrap_or(durable))
        };
        let closed = |closed: &Closed, is_dirty| Known {
            id: closed.id,
            page_size: closed.page_size,
            name: closed.name.clone(),
            lacks_after: lacks_after(closed.id, (closed.durable.position, is_dirty)),
        };
        let mut all: Vec<_> = slots.closed.values().map(|it| closed(it, false)).collect();
        // The files of those that are yet to come can't be named. Nor need they: their creation is read again, since those
        // whose place they take are.
        let there = slots.moving.values().filter(|it| it.creation.is_none());
        all.extend(there.map(|it| closed(&it.closed, !it.is_durable())));
        for leaving in slots.leaving.values() {
            // The older one of two of a name: the other one has no files yet.
            if !all.iter().any(|known| known.name == leaving.name) {
                // The entry that drops it is to be read again.
                let lacks_after = Some(leaving.durable.position);
                all.push(Known { lacks_after, ..closed(leaving, true) });
            }
        }
        all.extend(slots.open.values().map(|Open { database, .. }| Known {
            id: database.id,
            page_size: database.page_size,
            name: database.name.clone(),
            lacks_after: lacks_after(database.id, database.durable()),
        }));
        all.sort_by_key(|known| known.id);
        all
    }

    /// Of each database that has come into being by the entry `index`: name, id, and what the verification at that entry
    /// found.
    pub fn verifications(&self, index: u64) -> Vec<(String, DbId, Option<Verification>)> {
        let (open, mut all) = self.both(|closed| {
            let found = closed.verifications.iter().find(|found| found.index == index);
            Some((closed.name.clone(), closed.id, found.cloned()))
        });
        all.extend(open.iter().map(|db| (db.name.clone(), db.id, db.verification(index))));
        all.retain(|(_, id, _)| id.0 <= index);
        all.sort_by_key(|(_, id, _)| *id);
        all
    }

    /// What became of a transaction, as far as this node's log tells, by database or in `one`: its name, the fate
    /// (`None` if it can't be told), and whether all that was written on the entry `base` is remembered.
    pub fn fates(
        &self,
        id: TxnId,
        base: Option<u64>,
        one: Option<DbId>,
    ) -> Vec<(String, Option<Fate>, Option<bool>)> {
        let wanted = |id: &DbId| one.is_none_or(|one| one == *id);
        let slots = self.slots();
        let of =
            |closed: &Closed, fate| (closed.name.clone(), fate, base.map(|base| closed.head.reaches(base)));
        let closed = slots.closed.values().filter(|closed| wanted(&closed.id));
        let mut all: Vec<_> = closed.map(|closed| of(closed, closed.head.fate(id))).collect();
        let moving = slots.moving.values().filter(|moving| wanted(&moving.closed.id));
        // What waits has not been judged.
        all.extend(moving.map(|Moving { closed, waiting, .. }| {
            of(closed, if waiting.is_empty() { closed.head.fate(id) } else { None })
        }));
        let open: Vec<_> = slots.open.values().map(|open| open.database.clone()).collect();
        drop(slots);
        all.extend(
            open.iter()
                .filter(|db| wanted(&db.id))
                .map(|db| (db.name.clone(), db.fate(id), base.map(|base| db.reaches(base)))),
        );
        all
    }

    /// Those that are open, and what is told of each that isn't.
    fn both<T>(&self, tell: impl Fn(&Closed) -> Option<T>) -> (Vec<Arc<Database>>, Vec<T>) {
        let slots = self.slots();
        let closed = slots.closed.values().chain(slots.moving.values().map(|moving| &moving.closed));
        let told = closed.filter_map(tell).collect();
        (slots.open.values().map(|open| open.database.clone()).collect(), told)
    }
}
