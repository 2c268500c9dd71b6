//! Which database handle (`sqlite3*`) is writing which replicated database, in this process.
//!
//! A transaction over several files in WAL mode is not atomic: SQLite commits one after the other (`vdbeCommit`),
//! and says nothing if a crash comes in between. Here the second may be refused after the first is on all nodes. So a
//! handle may write to one replicated database at a time; the second is read-only to it until the transaction ends.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

static WRITING: Mutex<BTreeMap<usize, String>> = Mutex::new(BTreeMap::new());

fn writing() -> MutexGuard<'static, BTreeMap<usize, String>> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle's right to write, as long as it lives.
#[derive(Debug)]
pub(super) struct Writing(usize);

impl Writing {
    /// A handle, by its address, is about to write. The error is the database that it writes already. `None` where
    /// the host doesn't tell the handle.
    pub(super) fn begin(handle: usize, database: &str) -> Result<Option<Writing>, String> {
        if handle == 0 {
            return Ok(None);
        }
        match writing().entry(handle) {
            Entry::Occupied(other) => Err(other.get().clone()),
            Entry::Vacant(place) => {
                place.insert(database.to_owned());
                Ok(Some(Writing(handle)))
            }
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        writing().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_writes_to_one_database_at_a_time() {
        let first = Writing::begin(0x1000, "a").unwrap();
        assert_eq!(Writing::begin(0x1000, "b").unwrap_err(), "a");
        let other = Writing::begin(0x2000, "b").unwrap();
        assert!(first.is_some() && other.is_some());
        drop(first);
        assert!(Writing::begin(0x1000, "b").unwrap().is_some());
        assert!(Writing::begin(0, "a").unwrap().is_none() && Writing::begin(0, "b").unwrap().is_none());
    }
}
