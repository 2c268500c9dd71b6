//! When databases are checkpointed: when they ask for it, for their WAL is long, or something of theirs must be on disk
//! before the manifest can move; now and then all that changed; and all at once when a restart would have to read much
//! of the log. After each round the manifest is stored, and the log is purged as far as that allows.
//!
//! A checkpoint that did not come about is tried again after a pause. One that failed is not tried before that, however
//! often somebody asks: nothing becomes better on a full disk.

use crate::command::DbId;
use crate::db::DbError;
use crate::db::database::Database;
use crate::node::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, warn};

/// Databases that changed are checkpointed this often even if their WAL is short.
const ALL_INTERVAL: Duration = Duration::from_secs(60);
/// How often the log, and who keeps databases from being checkpointed, is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// When a restart would have to read more log than this, in bytes, all that changed is checkpointed at once.
const MAX_REPLAY: u64 = 256 << 20;
/// The pause after a checkpoint that something was in the way of: a reader, another checkpoint.
const HELD_UP: Duration = Duration::from_secs(1);
/// The pause after a checkpoint that failed: a full disk is not emptied in a second.
const FAILED: Duration = Duration::from_secs(10);

/// Checkpoints a database if it needs it. False if something was in the way.
fn try_checkpoint(database: &Arc<Database>) -> Result<bool, DbError> {
    database.checkpoint().inspect_err(|error| warn!(database = database.name, "checkpoint: {error}"))
}

/// Checkpoints a database if it needs it. False if that did not come about.
pub(crate) fn checkpoint(database: &Arc<Database>) -> bool {
    try_checkpoint(database).unwrap_or(false)
}

/// Who is to be checkpointed.
#[derive(Debug)]
struct Due {
    asked: mpsc::UnboundedReceiver<DbId>,
    /// Those whose last checkpoint did not come about.
    again: BTreeMap<DbId, Pause>,
}

/// How a checkpoint that did not come about is tried again.
#[derive(Debug)]
struct Pause {
    until: Instant,
    /// Even if somebody asks for it.
    at_any_rate: bool,
}

impl Due {
    /// Waits for databases that are due. `None` when nobody is left to ask. Can be dropped at any time.
    async fn next(&mut self) -> Option<BTreeSet<DbId>> {
        let mut ids = Vec::new();
        loop {
            let first = self.again.values().map(|pause| pause.until).min();
            let pause = async {
                match first {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = self.asked.recv_many(&mut ids, usize::MAX) => if count == 0 {
                    return None;
                },
                () = pause => {}
            }
            let rests = |id: &DbId| self.again.get(id).is_some_and(|pause| pause.at_any_rate);
            let mut due: BTreeSet<_> = ids.drain(..).filter(|id| !rests(id)).collect();
            let now = Instant::now();
            due.extend(self.again.iter().filter(|(_, pause)| pause.until <= now).map(|(id, _)| *id));
            self.again.retain(|id, _| !due.contains(id));
            if !due.is_empty() {
                return Some(due);
            }
        }
    }

    /// A checkpoint was tried.
    fn tried(&mut self, id: DbId, result: &Result<bool, DbError>) {
        let (pause, at_any_rate) = match result {
            Ok(true) => {
                self.again.remove(&id);
                return;
            }
            Ok(false) => (HELD_UP, false),
            Err(_) => (FAILED, true),
        };
        self.again.insert(id, Pause { until: Instant::now() + pause, at_any_rate });
    }
}

/// Checkpoints databases for as long as the node runs.
pub(crate) async fn run(node: Arc<Node>, asked: mpsc::UnboundedReceiver<DbId>) {
    let mut due = Due { asked, again: BTreeMap::new() };
    let mut all = tokio::time::interval(ALL_INTERVAL);
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        let databases = tokio::select! {
            ids = due.next() => match ids {
                // One that is gone: the manifest is to be stored without it.
                Some(ids) => ids.into_iter().filter_map(|id| node.registry().get(id)).collect(),
                None => return,
            },
            _ = all.tick() => node.registry().open_ones(),
            _ = look.tick() => {
                for database in node.registry().open_ones() {
                    database.watch_readers();
                    database.watch_strangers();
                }
                if node.bytes_to_replay() <= MAX_REPLAY {
                    continue;
                }
                node.registry().open_ones()
            }
        };
        let ours = node.clone();
        let work = tokio::task::spawn_blocking(move || {
            let tried: Vec<_> =
                databases.iter().map(|database| (database.id, try_checkpoint(database))).collect();
            ours.store_manifest();
            tried
        });
        match work.await {
            Ok(tried) => tried.iter().for_each(|(id, result)| due.tried(*id, result)),
            Err(error) => error!("the checkpointer failed: {error}"),
        }
        node.purge_log().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<bool, DbError> {
        let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(DbError::Io { path: "app.db".into(), what: "writing it", error })
    }

    /// How often a database is tried within 100 s, if each try ends like this.
    async fn tries(
        due: &mut Due,
        ask: Option<&mpsc::UnboundedSender<DbId>>,
        result: &Result<bool, DbError>,
    ) -> usize {
        let mut tries = 0;
        for _ in 0..100 {
            // As many as there are who ask: its worker, an installed state, what leaves.
            ask.iter().for_each(|ask| (0..3).for_each(|_| ask.send(DbId(7)).unwrap()));
            let second = Instant::now() + Duration::from_secs(1);
            while let Ok(ids) = tokio::time::timeout_at(second, due.next()).await {
                assert_eq!(ids, Some(BTreeSet::from([DbId(7)])));
                tries += 1;
                due.tried(DbId(7), result);
            }
        }
        tries
    }

    /// Each try that failed had asked for one more, whoever had asked for it: on a full disk there were ever more, until
    /// they took a whole core.
    #[tokio::test(start_paused = true)]
    async fn a_checkpoint_that_fails_is_tried_once_per_pause() {
        let (ask, asked) = mpsc::unbounded_channel();
        let mut due = Due { asked, again: BTreeMap::new() };
        let on_a_full_disk = tries(&mut due, Some(&ask), &failed()).await;
        assert!((9..=11).contains(&on_a_full_disk), "{on_a_full_disk}");
        // With a reader in the way, whoever asks is heard, and it is tried again without that.
        let held_up = tries(&mut due, Some(&ask), &Ok(false)).await;
        assert!((90..=201).contains(&held_up), "{held_up}");
        let held_up = tries(&mut due, None, &Ok(false)).await;
        assert!((99..=101).contains(&held_up), "{held_up}");
        // One that comes about is over, and nothing is tried that nobody asks for.
        assert!(tries(&mut due, None, &Ok(true)).await <= 1);
        assert_eq!(tries(&mut due, Some(&ask), &Ok(true)).await, 100);
        drop(ask);
        assert_eq!(due.next().await, None);
    }
}
