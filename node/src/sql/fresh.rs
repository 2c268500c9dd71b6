//! Before a read: the database, and whether what this node has of it is fresh enough.

use super::options::{Level, Options};
use super::service::{ELECTION, Reply};
use crate::db::database::Database;
use crate::node::{Node, OpenError};
use crate::peers::{self, PeerRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The database of a request, ready to use. `main` is there for everybody.
pub(super) async fn open(node: &Arc<Node>, name: &str, deadline: Instant) -> Result<Arc<Database>, Reply> {
    let opening = node.open_database(name, name == "main", None);
    match tokio::time::timeout_at(deadline.into(), opening).await {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(OpenError::NotFound(_))) => {
            let message = format!("there is no database {name}; create it with POST /db/create?db={name}");
            Err(Reply::Failed { status: 404, message, retry: false })
        }
        Ok(Err(error @ OpenError::Invalid(_))) => Err(Reply::bad(error.to_string())),
        Ok(Err(error)) => Err(Reply::unavailable(error.to_string())),
        Err(_) => Err(Reply::unavailable(format!("{name} can't be opened in time"))),
    }
}

/// Waits until this node may answer a read at its level.
pub(super) async fn fresh(
    node: &Arc<Node>,
    database: &Arc<Database>,
    options: &Options,
    deadline: Instant,
) -> Result<(), Reply> {
    let level = match options.level {
        Level::Auto if node.raft_status().voters.contains(&node.id()) => Level::Weak,
        Level::Auto => Level::None,
        level => level,
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if matches!(level, Level::None | Level::Auto) {
        return fresh_enough(node, database, options).await;
    }
    if options.redirect {
        let status = node.raft_status();
        let leader = status.leader.filter(|&id| id != node.id()).and_then(|id| status.peers.get(&id));
        if let Some(peer) = leader {
            return Err(Reply::Redirect(peer.http_addr.clone()));
        }
    }
    let index = match level {
        Level::Strong => ask(node, PeerRequest::Barrier, left).await,
        Level::Linearizable => {
            // Those who ask at the same time, apps among them, share a round to the quorum.
            let until = Instant::now() + left.min(options.linearizable_timeout);
            node.confirmations().newest(node, until.into()).await
        }
        // Also where this node leads: what an app has committed on another may still wait to be applied here.
        _ => ask(node, PeerRequest::ReadIndex { confirm: false }, left.min(ELECTION)).await,
    };
    let index = index.map_err(|why| match node.raft_status().leader {
        None => Reply::unavailable(format!("leader not found: {why}")),
        Some(_) => Reply::unavailable(why),
    })?;
    let applied = async {
        node.wait_taken(index).await;
        database.caught_up().await;
    };
    let is_late = tokio::time::timeout_at(deadline.into(), applied).await.is_err();
    if let Some(why) = database.fenced() {
        return Err(Reply::unavailable(format!("{} is fenced on this node: {why}", database.name)));
    }
    if is_late {
        return Err(Reply::unavailable(format!("this node has not applied entry {index} in time")));
    }
    Ok(())
}

async fn ask(node: &Arc<Node>, request: PeerRequest, limit: Duration) -> Result<u64, String> {
    peers::ask_leader(node, request, limit).await.map_err(|error| error.to_string())
}

/// Whether this node has heard of the leader lately enough for a read at level none.
async fn fresh_enough(node: &Arc<Node>, database: &Database, options: &Options) -> Result<(), Reply> {
    let Some(freshness) = options.freshness.filter(|freshness| !freshness.is_zero()) else { return Ok(()) };
    let stale = Err(Reply::in_band(options, "stale read"));
    if node.leadership().leading().is_ok() {
        return Ok(());
    }
    if node.raft().leader_contact().await.is_none_or(|since| since > freshness) {
        return stale;
    }
    let is_behind = || node.raft_status().committed_index.is_some_and(|committed| node.taken() < committed);
    if options.freshness_strict && (is_behind() || !database.is_idle()) {
        return stale;
    }
    Ok(())
}
