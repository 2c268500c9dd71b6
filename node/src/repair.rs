//! Repair: a database that was fenced on this node gets its state from another one. And scrubbing, which finds
//! damage in pages that nobody reads.
//!
//! A repair reads the whole database as it is here, asks the leader (or else any other member) for the pages that
//! differ, and installs them as one transaction. Entries that come meanwhile wait, up to a bound, so that it ends.

use crate::command::DbId;
use crate::db::database::{Database, Scrubbed};
use crate::db::install::InstallError;
use crate::db::registry::Scrubbable;
use crate::db::side_file::ScrubMark;
use crate::node::Node;
use crate::transfer::{self, TransferError};
use quire_vfs::format::PageNo;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// Pauses between attempts at a repair.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes read at once by a scrub.
const PIECE: u64 = 1 << 20;
/// How often it is looked which databases are to be scrubbed, at least.
const SCRUB_LOOK: Duration = Duration::from_secs(30);
/// Pieces after which it is put on record how far a scrub has come.
const RECORD_EVERY: u32 = 4;

/// An attempt at a repair failed.
#[derive(Debug, thiserror::Error)]
enum RepairError {
    #[error("there is no other member to get it from")]
    Alone,
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// Repairs databases as they are fenced, until the node stops.
pub async fn repair(node: Arc<Node>, mut fenced: mpsc::UnboundedReceiver<DbId>) {
    let under_repair: Arc<Mutex<BTreeSet<DbId>>> = Arc::default();
    let lock = |set: &Arc<Mutex<BTreeSet<DbId>>>, id, begin: bool| {
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        if begin { set.insert(id) } else { set.remove(&id) }
    };
    while let Some(id) = fenced.recv().await {
        // What is fenced is open.
        let Some(database) = node.registry().get(id) else { continue };
        if !lock(&under_repair, id, true) {
            continue;
        }
        let (node, under_repair) = (node.clone(), under_repair.clone());
        tokio::spawn(async move {
            let mut pause = PAUSE_MIN;
            let mut said = String::new();
            while database.fenced().is_some() && !database.is_dropped() {
                // Nothing can be installed while an app stands still in there.
                while database.is_stuck() && !database.is_dropped() {
                    sleep(PAUSE_MIN).await;
                }
                match attempt(&node, &database).await {
                    Ok(peer) => info!(database = database.name, peer, "repaired"),
                    Err(error) => {
                        let why = error.to_string();
                        if said != why {
                            warn!(database = database.name, "not repaired yet: {why}");
                            said = why;
                        }
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
            lock(&under_repair, id, false);
            // Fenced again in just this moment: the message about that came too early.
            if database.fenced().is_some() && !database.is_dropped() {
                database.ask_repair();
            }
        });
    }
}

/// One attempt, at every other member in turn. Returns from whom the state came.
async fn attempt(node: &Arc<Node>, database: &Arc<Database>) -> Result<u64, RepairError> {
    let status = node.raft_status();
    let mut peers: Vec<u64> = status.peers.keys().copied().filter(|id| *id != node.id()).collect();
    peers.sort_by_key(|id| Some(*id) != status.leader);
    let mut result = Err(RepairError::Alone);
    for peer in peers {
        result = async {
            let received = transfer::receive(node, database, peer, node.taken()).await?;
            database.install_incoming(&received).await?;
            Ok(peer)
        }
        .await;
        match &result {
            Ok(_) => return result,
            Err(error) => debug!(database = database.name, peer, "repair: {error}"),
        }
    }
    result
}

/// Reads all databases, piece by piece, at the configured rate, again and again. One that is closed is opened only when it is
/// time for it, and then for the scrub alone: those that are in use keep their places.
pub async fn scrub(node: Arc<Node>) {
    let rate = node.config().scrub_bytes_per_second;
    if rate == 0 {
        return;
    }
    let pace = Duration::from_secs_f64(PIECE as f64 / rate as f64);
    let pause = node.config().scrub_pause;
    // Those that something is in the way of, until they are tried again.
    let mut later: BTreeMap<DbId, Instant> = BTreeMap::new();
    loop {
        later.retain(|_, until| *until > Instant::now());
        let mut all = node.registry().scrubbable();
        let closed = all.iter().filter(|it| it.is_closed).count();
        all.retain(|it| !later.contains_key(&it.id));
        for Scrubbable { id, is_closed, .. } in due(all, now(), pause) {
            if is_closed {
                sleep(between(pause, closed)).await;
            }
            let database = match node.registry().open_aside(id).await {
                Ok(Some(database)) => database,
                Ok(None) => continue,
                Err(why) => {
                    warn!(%id, "scrub: {why}");
                    later.insert(id, Instant::now() + SCRUB_LOOK);
                    continue;
                }
            };
            match scrub_one(&database, pace, pause).await {
                Ok(true) => {}
                Ok(false) => _ = later.insert(id, Instant::now() + SCRUB_LOOK),
                Err(why) => {
                    warn!(database = database.name, "scrub: {why}; it goes on there later");
                    later.insert(id, Instant::now() + SCRUB_LOOK);
                }
            }
            let registry = node.registry().clone();
            if let Err(error) = spawn_blocking(move || registry.put_back(database)).await {
                warn!(%id, "scrub: {error}");
            }
        }
        sleep(pause.clamp(Duration::from_secs(1), SCRUB_LOOK)).await;
    }
}

/// The time, in seconds since 1970.
fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// Those for which it is time, in order: what was cut short, then what was last read longest ago.
fn due(mut all: Vec<Scrubbable>, now: u64, pause: Duration) -> Vec<Scrubbable> {
    all.retain(|it| begins(it.mark, now, pause).is_some());
    all.sort_by_key(|it| (it.mark.next.is_none(), it.mark.ended, it.id));
    all
}

/// How long to wait before one that is closed is opened: so that all of them take half of the time between two scrubs, or
/// a second each.
fn between(pause: Duration, closed: usize) -> Duration {
    const MOST: Duration = Duration::from_secs(1);
    (pause / 2 / u32::try_from(closed.max(1)).unwrap_or(u32::MAX)).min(MOST)
}

/// Reads a database to its end, from where the scrub was, if it is time for that; across restarts of the node. False: it
/// goes on later, after a repair.
async fn scrub_one(database: &Arc<Database>, pace: Duration, pause: Duration) -> Result<bool, String> {
    let mark = database.scrub_mark();
    let Some(mut from) = begins(mark, now(), pause) else { return Ok(true) };
    let record = async |mark| {
        let ours = database.clone();
        let recorded = spawn_blocking(move || ours.set_scrub_mark(mark)).await;
        recorded.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    };
    debug!(database = database.name, from = from.0, "scrub");
    let mut pieces = 0;
    loop {
        sleep(pace).await;
        // Where damage was found, it goes on after the repair.
        let next = piece(database, from).await?.filter(|_| database.fenced().is_none());
        let Some(next) = next else {
            let is_read = database.fenced().is_none() && !database.is_dropped();
            if is_read {
                record(ScrubMark { next: None, ended: now() }).await?;
            }
            return Ok(is_read);
        };
        from = next;
        pieces += 1;
        if pieces % RECORD_EVERY == 0 {
            record(ScrubMark { next: Some(from), ..mark }).await?;
        }
    }
}

/// Where a scrub begins now, if it is time for one.
fn begins(mark: ScrubMark, now: u64, pause: Duration) -> Option<PageNo> {
    // A clock that was put back is no reason to wait.
    let is_due = mark.ended > now || now - mark.ended >= pause.as_secs();
    mark.next.or(is_due.then_some(PageNo(1)))
}

/// Scrubs a piece, and returns where to go on.
async fn piece(database: &Arc<Database>, from: PageNo) -> Result<Option<PageNo>, String> {
    let count = (PIECE / u64::from(database.page_size.get())).max(1) as u32;
    let ours = database.clone();
    let scrubbed = spawn_blocking(move || ours.scrub(from, count)).await;
    scrubbed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Scrubs a database without a pause.
async fn all(database: &Arc<Database>) -> Result<(), String> {
    let mut next = Some(PageNo(1));
    while let Some(from) = next {
        next = piece(database, from).await?;
    }
    Ok(())
}

/// Scrubs a database whose file somebody has touched. If nothing is wrong with it, that is the file to go by.
pub async fn scrub_touched(database: Arc<Database>) {
    let sound = all(&database).await;
    let ours = database.clone();
    let settled = tokio::task::spawn_blocking(move || ours.touched(sound.is_ok())).await;
    if let Err(why) =
        settled.map_err(|error| error.to_string()).and_then(|result| result.map_err(|e| e.to_string()))
    {
        warn!(database = database.name, "{why}");
    }
}

/// Scrubs a database without a pause, for the verification at `index`.
pub async fn scrub_now(database: Arc<Database>, index: u64) {
    let next = all(&database).await;
    let found = match (database.fenced(), next) {
        (Some(why), _) => Scrubbed::Damaged(why),
        (None, Err(why)) => Scrubbed::Damaged(format!("not read: {why}")),
        (None, Ok(())) => Scrubbed::Sound,
    };
    database.scrubbed(index, found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_goes_on_where_it_was_and_begins_when_it_is_time() {
        let pause = 3600;
        let at = |next, ended, now| begins(ScrubMark { next, ended }, now, Duration::from_secs(pause));
        assert_eq!(at(None, 0, 1 << 40), Some(PageNo(1)), "never before");
        assert_eq!(at(Some(PageNo(77)), 1000, 1001), Some(PageNo(77)), "cut short");
        assert_eq!(at(None, 1000, 1000 + pause - 1), None, "just now");
        assert_eq!(at(None, 1000, 1000 + pause), Some(PageNo(1)), "long ago");
        assert_eq!(at(None, 1000, 999), Some(PageNo(1)), "by another clock");
    }

    #[test]
    fn a_scrub_begins_with_what_was_cut_short_or_is_oldest() {
        let of = |id, next: u32, ended| Scrubbable {
            id: DbId(id),
            is_closed: true,
            mark: ScrubMark { next: (next > 0).then_some(PageNo(next)), ended },
        };
        let all = vec![of(1, 0, 9000), of(2, 0, 3000), of(3, 0, 0), of(4, 8, 5000), of(5, 0, 2000)];
        let order: Vec<_> = due(all, 10_000, Duration::from_secs(3600)).iter().map(|it| it.id.0).collect();
        assert_eq!(order, [4, 3, 5, 2]);
    }

    #[test]
    fn closed_databases_are_not_opened_all_at_once() {
        let hour = Duration::from_secs(3600);
        assert_eq!(between(hour, 3), Duration::from_secs(1));
        assert_eq!(between(hour, 18_000), Duration::from_millis(100));
        assert_eq!(between(Duration::ZERO, 0), Duration::ZERO);
    }
}
