//! Who writes past the gate: a process that changes WAL, wal-index or file without the VFS, and without SQLite's locks,
//! which would keep it out.
//!
//! What the index shows is compared with what was last published, before anything is added to it or copied out of it, and
//! every two seconds. If it is something else it gets its header back (`Wal::tidy`). A file that was touched though nobody checkpointed is read, all of it. Pages
//! that are changed in place, in the WAL, show in the scrub, or are overwritten. Whatever is found fences the database,
//! and the repair overwrites it.

use super::DbError;
use super::database::Database;
use super::side_file::{Durable, Stamp};
use quire_vfs::format::wal_index::{self, WalIndex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::warn;

impl Database {
    /// Puts the index right after a writer that died, with the gate lock. An error if that isn't all that is wrong.
    pub(super) fn tidy(&self) -> Result<(), DbError> {
        self.files().wal.tidy(&self.holder, None).map(drop)
    }

    /// Looks whether somebody has changed the index or the file past the gate. To be called now and then.
    pub fn watch_strangers(self: &Arc<Self>) {
        let mut state = self.state();
        let is_quiet = state.queue.is_empty() && !state.running && state.publishing.is_none();
        if !is_quiet || state.fenced.is_some() || self.is_dropped() {
            return;
        }
        // Whoever has them is about to change what is looked at here.
        let Ok(files) = self.files.try_lock() else { return };
        let header = self.holder.region(0).ok().and_then(wal_index::read_header);
        if !header.is_some_and(|header| files.wal.is_ours(&header)) {
            // A writer that is in there, or the kernel says is, may be about to publish, or to leave it torn.
            if !matches!(self.gate_lock.try_lock(), Ok(true)) {
                return;
            }
            let tidied = files.wal.tidy(&self.holder, None);
            self.unlock_gate();
            if let Err(error) = tidied {
                return self.fence(&mut state, &error);
            }
        }
        drop(files);
        let Durable { position, target, stamp, .. } = state.durable;
        let is_settled = target == position.index && stamp != Stamp::default();
        let Ok(_no_checkpoint) = self.checkpointing.try_lock() else { return };
        if is_settled && !stamp.is_of(self.path()) && !self.is_touched.swap(true, Ordering::SeqCst) {
            warn!(database = self.name, "its file was touched by another process; reading all of it");
            self.context.spawn(crate::repair::scrub_touched(self.clone()));
        }
    }

    /// A file that was touched has been read: it goes on from what it looks like, if it is `sound`. Blocks.
    pub(crate) fn touched(&self, sound: bool) -> Result<(), DbError> {
        let checkpointing = self.checkpointing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let durable = self.state().durable;
        let result = if sound && self.fenced().is_none() && durable.target == durable.position.index {
            self.stamp().and_then(|stamp| self.record(Durable { stamp, ..durable }))
        } else {
            Ok(())
        };
        drop(checkpointing);
        self.is_touched.store(false, Ordering::SeqCst);
        result
    }
}
