//! An app that stands still in a transaction on this node, stopped or swapped out, keeps the worker from publishing what
//! other nodes write: it has the gate lock, or is to publish its own transaction first. They, and this node's other
//! databases, go on. Entries wait in the queue, but not without a bound: beyond it none of this database is kept any
//! more, and the database is *behind*. It is fenced until the app goes on or dies; then its state comes from another
//! node.
//!
//! That it is behind is put on disk, in the empty file `NAME.db-behind`. From then on the database doesn't keep the log
//! from being purged, as it needs nothing of it. A node that is started and finds the file fences the database. It goes
//! when the state that was installed is in the database file.

use super::database::{Database, State, Work};
use crate::clock;
use crate::manifest::sync_dir;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// Who keeps the worker from publishing for longer stands still.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a database that is behind lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    /// The last entry that was given up, as far as this life of the node knows.
    pub(super) last: u64,
    /// It is on disk that it is behind.
    pub(super) is_recorded: bool,
}

/// The file that says that a database is behind.
pub(super) fn behind_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-behind");
    path.into()
}

/// Nothing is missing any more.
pub(super) fn forget(database: &Path) {
    let path = behind_path(database);
    match std::fs::remove_file(&path) {
        // One that stays has the next start get the state once more.
        Err(error) if error.kind() != io::ErrorKind::NotFound => warn!("{}: {error}", path.display()),
        _ => {}
    }
}

impl State {
    /// What keeps this node from applying what waits, if it is an app that stands still.
    pub(super) fn lagging(&self) -> Option<String> {
        let since = self.standstill()?.as_secs();
        Some(format!("an app on this node has stood still in a transaction for {since} s"))
    }

    /// Since when an app keeps the worker from publishing: by the gate lock, or because it was told to publish its own
    /// transaction first.
    fn stuck_since(&self) -> Option<Instant> {
        let publishing = self.publishing.as_ref().filter(|publishing| !publishing.ended);
        self.stuck.or(publishing.map(|publishing| publishing.since))
    }

    /// For how long an app has stood still, if one does.
    fn standstill(&self) -> Option<Duration> {
        self.stuck_since().map(clock::since).filter(|since| *since > PATIENCE)
    }

    /// Whether an app stands still.
    pub(super) fn stands_still(&self) -> bool {
        self.standstill().is_some()
    }

    fn skip(&mut self, index: Option<u64>) {
        if let (Some(behind), Some(index)) = (&mut self.behind, index) {
            behind.last = behind.last.max(index);
        }
        match (self.queue.back_mut(), index) {
            (Some(Work::Skipped(last)), Some(index)) => *last = index.max(*last),
            (_, Some(index)) => self.queue.push_back(Work::Skipped(index)),
            (_, None) => {}
        }
    }
}

impl Database {
    /// Puts an entry in the queue, if there is room for it.
    pub(super) fn keep(self: &Arc<Self>, state: &mut State, work: Work) {
        let bytes = work.held_bytes();
        let is_full = state.queued_bytes + bytes > self.context.queue_bytes;
        // Without an app that stands still, the worker makes room, and that is waited for (`super::backlog`).
        if state.stands_still() && (is_full || state.behind.is_some()) {
            if state.behind.is_none() {
                self.fall_behind(state);
            }
            return state.skip(work.entry());
        }
        state.queued_bytes += bytes;
        state.queue.push_back(work);
        self.queue_changed(state);
    }

    /// Gives up what waits.
    fn fall_behind(self: &Arc<Self>, state: &mut State) {
        let last = state.queue.iter().filter_map(Work::entry).max();
        state.queue.retain(|work| work.entry().is_none());
        state.queued_bytes = 0;
        self.queue_changed(state);
        state.behind = Some(Behind { last: 0, is_recorded: false });
        state.skip(last);
        self.fence_for(
            state,
            "an app on this node stands still in a transaction, and what others write meanwhile is no longer kept; its \
             state comes from another node when the app goes on, or is ended"
                .into(),
        );
        let database = self.clone();
        self.context.run_blocking(move || {
            let path = behind_path(database.path());
            let written = File::create(&path).and_then(|file| file.sync_all()).and_then(|()| sync_dir(&path));
            let mut state = database.state();
            match written {
                Ok(()) => match &mut state.behind {
                    Some(behind) => {
                        behind.is_recorded = true;
                        // For a manifest that doesn't wait for it.
                        let _ = database.context.checkpoints.send(database.id);
                    }
                    // Its state came meanwhile.
                    None => forget(database.path()),
                },
                // Then the log is kept for it.
                Err(error) => warn!("{}: {error}", path.display()),
            }
        });
    }

    /// Whether an app keeps the worker from publishing, be it only for a moment.
    pub fn is_stuck(&self) -> bool {
        self.state().stuck_since().is_some()
    }
}
