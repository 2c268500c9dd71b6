//! Repair: a database that was fenced on this node gets its state from another one. And scrubbing, which finds
//! damage in pages that nobody reads.
//!
//! A repair reads the whole database as it is here, asks the leader (or else any other member) for the pages that
//! differ, and installs them as one transaction. Entries that come meanwhile wait, up to a bound, so that it ends.

use crate::command::DbId;
use crate::db::database::{Database, Scrubbed};
use crate::db::install::InstallError;
use crate::node::Node;
use crate::transfer::{self, TransferError};
use quire_vfs::format::PageNo;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// Pauses between attempts at a repair.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes read at once by a scrub.
const PIECE: u64 = 1 << 20;
/// Pause between two scrubs of everything.
const SCRUB_PAUSE: Duration = Duration::from_secs(3600);

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
            let received = transfer::receive(node, database, peer, 0).await?;
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

/// Reads all databases, piece by piece, at the configured rate, again and again.
pub async fn scrub(node: Arc<Node>) {
    let rate = node.config().scrub_bytes_per_second;
    if rate == 0 {
        return;
    }
    let pause = Duration::from_secs_f64(PIECE as f64 / rate as f64);
    loop {
        let began = Instant::now();
        for id in node.registry().ids() {
            let database = match node.registry().open(id).await {
                Ok(Some(database)) => database,
                Ok(None) => continue,
                Err(why) => {
                    warn!(%id, "scrub: {why}");
                    continue;
                }
            };
            let mut next = Some(PageNo(1));
            while let Some(from) = next {
                sleep(pause).await;
                next = piece(&database, from).await.unwrap_or_else(|why| {
                    warn!(database = database.name, "scrub: {why}");
                    None
                });
            }
        }
        debug!(took = ?began.elapsed(), "scrubbed");
        sleep(SCRUB_PAUSE).await;
    }
}

/// Scrubs a piece, and returns where to go on.
async fn piece(database: &Arc<Database>, from: PageNo) -> Result<Option<PageNo>, String> {
    let count = (PIECE / u64::from(database.page_size.get())).max(1) as u32;
    let ours = database.clone();
    let scrubbed = tokio::task::spawn_blocking(move || ours.scrub(from, count)).await;
    scrubbed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Scrubs a database without a pause, for the verification at `index`.
pub async fn scrub_now(database: Arc<Database>, index: u64) {
    let mut next = Ok(Some(PageNo(1)));
    while let Ok(Some(from)) = next {
        next = piece(&database, from).await;
    }
    let found = match (database.fenced(), next) {
        (Some(why), _) => Scrubbed::Damaged(why),
        (None, Err(why)) => Scrubbed::Damaged(format!("not read: {why}")),
        (None, Ok(_)) => Scrubbed::Sound,
    };
    database.scrubbed(index, found);
}
