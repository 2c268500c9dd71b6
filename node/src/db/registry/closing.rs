//! Closing what nobody uses.

use super::{Moving, Open, Registry, Slots};
use crate::clock;
use crate::command::DbId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;

impl Registry {
    /// Closes what nobody has used for a while. Blocks.
    pub fn close_idle(self: &Arc<Self>) {
        self.make_room();
        let now = clock::now();
        let mut open: Vec<_> = {
            let slots = self.slots();
            let of = |open: &Open| (open.used, open.database.id, Arc::strong_count(&open.database) == 1);
            slots.open.values().map(of).collect()
        };
        open.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let idle = open
            .into_iter()
            .skip(self.keep.always())
            .filter(|(used, _, is_free)| *is_free && now.duration_since(*used) >= self.keep.idle);
        for (_, id, _) in idle {
            self.close(id, Some(now));
        }
    }

    /// Closes those that were not used for longest, until there is room for another one, or all others are in use.
    pub(super) fn make_room(self: &Arc<Self>) {
        let mut tried = BTreeSet::new();
        loop {
            let id = {
                let slots = self.slots();
                if slots.places() < self.keep.most {
                    return;
                }
                let free = slots
                    .open
                    .iter()
                    .filter(|(id, open)| Arc::strong_count(&open.database) == 1 && !tried.contains(*id));
                free.min_by_key(|(_, open)| open.used).map(|(id, _)| *id)
            };
            let Some(id) = id else { return };
            tried.insert(id);
            self.close(id, None);
        }
    }

    /// Closes a database if nobody uses it, nor has since `unused`. Blocks.
    pub(super) fn close(self: &Arc<Self>, id: DbId, unused: Option<Instant>) {
        let Some(database) = self.get(id) else { return };
        // What is in the way now may not be the next time.
        match database.checkpoint() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return warn!(database = database.name, "checkpoint: {error}"),
        }
        let database = {
            let mut slots = self.slots();
            let Some(open) = slots.open.get(&id) else { return };
            // One reference is the registry's, one is this one.
            let is_used = Arc::strong_count(&database) > 2 || unused.is_some_and(|at| open.used > at);
            if is_used || !Arc::ptr_eq(&open.database, &database) || !database.is_at_rest() {
                return;
            }
            drop(database);
            let Some(Open { database, used }) = slots.open.remove(&id) else { return };
            match Arc::try_unwrap(database) {
                Ok(database) => {
                    slots.moving.insert(id, Moving::new(database.summary(), true));
                    database
                }
                Err(database) => {
                    slots.open.insert(id, Open { database, used });
                    return;
                }
            }
        };
        match database.close() {
            Ok(()) => self.is_closed(id),
            Err(database) => self.is_open(id, Arc::from(database), false),
        }
    }

    /// A thread has closed a database.
    pub(super) fn is_closed(self: &Arc<Self>, id: DbId) {
        let mut slots = self.slots();
        let Some(moving) = slots.moving.get_mut(&id) else {
            drop(slots);
            return self.leave(id);
        };
        moving.is_busy = false;
        self.is_idle(&mut slots, id);
    }

    /// No thread is at a database's files, and they are as they should be. It is opened if somebody came meanwhile.
    pub(super) fn is_idle(self: &Arc<Self>, slots: &mut Slots, id: DbId) {
        if slots.moving.get(&id).is_some_and(Moving::is_wanted) {
            self.want(slots, id);
        } else if let Some(moving) = slots.end_of(id) {
            slots.closed.insert(id, moving.closed);
        }
    }
}
