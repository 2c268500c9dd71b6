//! A leader whose disk is full hands the lead over to a voter whose disk isn't: writes go on there. This node stays a
//! member that lags, and catches up once it has room ([`quire_raft::Raft::log_stuck`]).
//!
//! The log and the databases may be on different disks, and the log may have room of its own on a disk that has none: in
//! segments that were purged. So both are looked at, and a full one of either is what this node refuses to write for
//! ([`Node::disk_full`]). The log tells by itself; the databases' disk is asked every second.

use crate::node::Node;
use crate::peers::{self, PeerRequest, PeerResponse};
use quire_raft::{NodeId, ServerState};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

/// How often a node looks at its disk.
const LOOK: Duration = Duration::from_secs(1);
/// How long a voter may take to say whether it has room.
const PATIENCE: Duration = Duration::from_secs(2);
/// With less than this left on their disk, the databases have no room.
const ROOM: u64 = 1 << 20;

/// Why this node is not the one to lead, if its disk is full.
pub fn stuck(node: &Node) -> Option<String> {
    node.raft().log_stuck().or_else(|| node.no_room())
}

/// Why the databases in a directory have no room.
fn no_room(databases: &Path) -> Option<String> {
    let left = crate::load::free(databases).ok()?;
    (left < ROOM).then(|| format!("{left} bytes are left for the databases in {}", databases.display()))
}

/// Looks at the databases' disk, and hands the lead over whenever this node leads and its disk is full.
pub async fn watch(node: Arc<Node>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = false;
    loop {
        look.tick().await;
        let databases = node.registry().directory().to_owned();
        // A disk that doesn't answer is none that is full.
        let why = spawn_blocking(move || no_room(&databases)).await.ok().flatten();
        node.set_no_room(why);
        let leads = node.raft_status().state == ServerState::Leader;
        // Small transactions may still fit in, when larger ones are refused.
        let Some(why) = stuck(&node).filter(|_| leads) else {
            said = false;
            continue;
        };
        match with_room(&node).await {
            Some(to) => {
                warn!(to, "handing the lead over: this node's disk is full: {why}");
                if let Err(error) = node.raft().hand_over(Some(to)).await {
                    warn!(to, "not handed over: {error}");
                }
            }
            None if !said => {
                said = true;
                warn!("this node's disk is full ({why}), and no other voter can lead: writes are refused");
            }
            None => {}
        }
    }
}

/// The voter with the longest log of those that answer and have room.
async fn with_room(node: &Arc<Node>) -> Option<NodeId> {
    let status = node.raft_status();
    let mut voters: Vec<_> = status.voters.iter().filter(|id| **id != node.id()).copied().collect();
    voters.retain(|id| node.raft().answers(*id));
    voters.sort_by_key(|id| std::cmp::Reverse(status.replication.get(id).copied()));
    for id in voters {
        match peers::ask(node, id, &PeerRequest::HasRoom, PATIENCE).await {
            PeerResponse::Index(_) => return Some(id),
            other => debug!(peer = id, ?other, "can't lead"),
        }
    }
    None
}
