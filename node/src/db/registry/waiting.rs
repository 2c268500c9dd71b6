//! Entries that wait for a database that is being opened, or that could not be opened. They take memory, of which each
//! database may have some, and all together some more. A database for which more came than that loses all that
//! waits: once it is open it is fenced, and gets its state from another node. Where all together have too much, that is
//! the one with the most: the many that need little, and are soon open, go on.

use super::super::closed::Entry;
use super::{Moving, Slots};
use crate::command::DbId;
use std::collections::VecDeque;
use std::mem::size_of;

/// Bytes of entries that may wait for one database.
const MAX_OF_ONE: usize = 64 << 20;
/// Bytes of entries that may wait for all databases.
const MAX_OF_ALL: usize = 256 << 20;

/// What waits for a database, in order.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// More came than could wait.
    has_lost: bool,
}

impl Waiting {
    /// Nothing does, nor did.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.has_lost
    }

    /// How many do.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries, and whether there were more.
    pub(super) fn end(self) -> (VecDeque<Entry>, bool) {
        (self.entries, self.has_lost)
    }

    /// Adds one; says by how many bytes there are more.
    fn push(&mut self, entry: Entry) -> usize {
        if self.has_lost {
            return 0;
        }
        let bytes = entry.bytes() + size_of::<Entry>();
        self.bytes += bytes;
        self.entries.push_back(entry);
        bytes
    }

    /// Lets go of all; says how many bytes that were.
    fn lose(&mut self) -> usize {
        self.has_lost = true;
        self.entries = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }
}

impl Slots {
    /// Keeps an entry for a database until it is open.
    pub(super) fn keep(&mut self, id: DbId, entry: Entry) {
        let Some(moving) = self.moving.get_mut(&id) else { return };
        self.waiting += moving.waiting.push(entry);
        if moving.waiting.bytes > MAX_OF_ONE {
            self.waiting -= moving.waiting.lose();
        }
        while self.waiting > MAX_OF_ALL {
            let most = self.moving.values_mut().max_by_key(|moving| moving.waiting.bytes);
            let Some(moving) = most else { return };
            self.waiting -= moving.waiting.lose();
        }
    }

    /// A database is not moving any more.
    pub(super) fn end_of(&mut self, id: DbId) -> Option<Moving> {
        let moving = self.moving.remove(&id)?;
        self.waiting -= moving.waiting.bytes;
        Some(moving)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::closed::Closed;
    use super::*;
    use crate::command::PartHead;
    use bytes::Bytes;
    use quire_raft::LogPosition;
    use quire_vfs::format::PageSize;

    fn part(body: &Bytes) -> Entry {
        let head = PartHead { database: DbId(1), base: 0, lease_term: 1, origin: 1 };
        Entry::Part { position: LogPosition::default(), head, body: body.clone() }
    }

    fn moving(databases: u64) -> Slots {
        let mut slots = Slots::default();
        for index in 1..=databases {
            let position = LogPosition { index, ..LogPosition::default() };
            let closed = Closed::to_come(position, &format!("db{index}"), PageSize::DEFAULT);
            slots.moving.insert(DbId(index), Moving::new(closed, true));
        }
        slots
    }

    fn lost(slots: &Slots) -> Vec<u64> {
        let lost = slots.moving.iter().filter(|(_, moving)| moving.waiting.has_lost);
        lost.map(|(id, _)| id.0).collect()
    }

    #[test]
    fn what_waits_for_a_database_is_bounded() {
        let mut slots = moving(2);
        let body = Bytes::from(vec![0; 16 << 20]);
        for _ in 0..3 {
            slots.keep(DbId(1), part(&body));
        }
        assert_eq!((lost(&slots), slots.moving[&DbId(1)].waiting.len()), (vec![], 3));
        for _ in 0..3 {
            slots.keep(DbId(1), part(&body));
        }
        slots.keep(DbId(2), part(&body));
        assert_eq!((lost(&slots), slots.moving[&DbId(1)].waiting.len()), (vec![1], 0));
        assert_eq!(slots.waiting, slots.moving[&DbId(2)].waiting.bytes);
        assert!(slots.end_of(DbId(1)).unwrap().waiting.end().1, "it knows that it lacks something");
        let (entries, has_lost) = slots.end_of(DbId(2)).unwrap().waiting.end();
        assert_eq!((entries.len(), has_lost, slots.waiting), (1, false, 0));
    }

    /// Many databases, none of which has too much: those with the most lose it, those with little keep it.
    #[test]
    fn what_waits_for_all_databases_is_bounded() {
        const ALL: u64 = 100;
        let mut slots = moving(ALL);
        // Clones share their bytes: only what they count for is large.
        let (large, small) = (Bytes::from(vec![0; 8 << 20]), Bytes::from(vec![0; 4096]));
        for round in 0..7 {
            for id in 1..=ALL {
                slots.keep(DbId(id), part(if id <= 10 { &large } else { &small }));
                let bytes: usize = slots.moving.values().map(|moving| moving.waiting.bytes).sum();
                assert_eq!(slots.waiting, bytes, "round {round}");
                assert!(bytes <= MAX_OF_ALL, "round {round}: {bytes}");
            }
        }
        assert!(!lost(&slots).is_empty() && lost(&slots).iter().all(|id| *id <= 10), "{:?}", lost(&slots));
        assert_eq!(slots.moving[&DbId(ALL)].waiting.len(), 7);
    }
}
