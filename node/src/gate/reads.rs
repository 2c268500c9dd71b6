//! Reads that are to find more than what happens to be here, and what the node says of itself to an app.
//!
//! Everything rests on *confirmed positions*: at some instant a quorum confirmed that its leader leads (Raft's
//! ReadIndex), and up to where it had committed by then. A copy that has everything up to there has everything
//! that was committed before that instant. No clock but this node's own monotonic one is asked.
//!
//! Confirming costs a round of the leader's to a quorum, on a follower also one to the leader. Rounds go one at
//! a time, and one serves all who had asked when it began: with many readers there are never more than two of
//! their waits in a row. A read that is content with an older state takes the last round, if that is young
//! enough.

use super::session::{MAX_WAIT, Session, SessionError};
use crate::db::database::Database;
use crate::node::Node;
use crate::peers::{self, PeerRequest, PeerResponse, RETRY_PAUSE};
use quire_vfs::gate::proto::{NodeStatus, ReadGoal, Refusal, RefusalCode, Response};
use serde_json::json;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// One attempt at the leader: it may be dead, and a new one be elected meanwhile.
const ATTEMPT: Duration = Duration::from_secs(1);
/// No longer reason why a database is fenced is told, in characters.
const MAX_REASON: usize = 300;

/// A confirmed position.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    /// Everything that was committed before is at or below the index.
    at: Instant,
    index: u64,
}

/// The last confirmed position, and whoever is about to get a newer one.
#[derive(Debug, Default)]
pub struct Confirmations {
    last: Mutex<Option<Confirmed>>,
    /// Why there is none newer: of the last round, if that came to nothing.
    failed: Mutex<Option<String>>,
    round: tokio::sync::Mutex<()>,
}

impl Confirmations {
    fn since(&self, since: Instant) -> Option<Confirmed> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|confirmed| confirmed.at >= since)
    }

    /// Up to where a copy must go to have everything that is committed now; or why no leader has confirmed that in time.
    pub(crate) async fn newest(&self, node: &Arc<Node>, deadline: Instant) -> Result<u64, String> {
        match timeout_at(deadline, self.get(node, Instant::now())).await {
            Ok(confirmed) => confirmed.map(|confirmed| confirmed.index).map_err(|refusal| refusal.message),
            Err(_) => Err(format!("{} in time", self.late())),
        }
    }

    /// What to say when nothing was confirmed in time.
    fn late(&self) -> String {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let why = failed.as_deref().unwrap_or("it has not answered so far");
        format!("no leader has confirmed what is committed ({why})")
    }

    fn came_to(&self, failed: Option<String>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    /// A position that was confirmed at `since` or later. The caller sees to a deadline.
    async fn get(&self, node: &Arc<Node>, since: Instant) -> Result<Confirmed, Refusal> {
        if let Some(confirmed) = self.since(since) {
            return Ok(confirmed);
        }
        let _one = self.round.lock().await;
        loop {
            if let Some(confirmed) = self.since(since) {
                return Ok(confirmed);
            }
            let at = Instant::now();
            let request = PeerRequest::ReadIndex { confirm: true };
            let reason = match Box::pin(peers::attempt(node, &request, ATTEMPT, ATTEMPT)).await {
                PeerResponse::Index(index) => {
                    let confirmed = Confirmed { at, index };
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(confirmed);
                    self.came_to(None);
                    return Ok(confirmed);
                }
                PeerResponse::Refused(why) => return Err(Refusal::new(RefusalCode::Unavailable, why)),
                PeerResponse::Unavailable(why) => why,
                PeerResponse::NotLeader(_) => "there is no leader at present".into(),
                other => format!("the leader's answer makes no sense: {other:?}"),
            };
            self.came_to(Some(reason));
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

impl Session {
    /// Waits until a reader finds what it wants.
    pub(super) async fn read(
        &mut self,
        database: &Arc<Database>,
        goal: ReadGoal,
        wait: Duration,
    ) -> Result<Response, SessionError> {
        let reached = reach(self.node.clone(), database.clone(), goal, wait.min(MAX_WAIT));
        tokio::select! {
            biased;
            response = reached => Ok(response.unwrap_or_else(Response::Refused)),
            // The app may only wait now.
            message = self.inbox.next() => Err(match message? {
                None => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                Some(_) => SessionError::Order("a message while waiting for a read"),
            }),
        }
    }
}

async fn reach(
    node: Arc<Node>,
    database: Arc<Database>,
    goal: ReadGoal,
    wait: Duration,
) -> Result<Response, Refusal> {
    let asked = Instant::now();
    let deadline = asked + wait;
    let late = |what: String| {
        Refusal::new(RefusalCode::Unavailable, format!("{what} within {} ms", wait.as_millis()))
    };
    let since = match goal {
        ReadGoal::Index(_) => None,
        ReadGoal::Newest => Some(asked),
        // A node that has not run for so long has no confirmation of that age.
        ReadGoal::Age(ms) => Some(asked.checked_sub(Duration::from_millis(ms.into())).unwrap_or(asked)),
    };
    let confirmed = match (goal, since) {
        (ReadGoal::Index(index), _) => Confirmed { at: asked, index },
        (_, since) => {
            // On the heap: what it takes to ask the leader is not to be a part of every session.
            let got = Box::pin(node.confirmations().get(&node, since.unwrap_or(asked)));
            match timeout_at(deadline, got).await {
                Ok(confirmed) => confirmed?,
                Err(_) => return Err(late(node.confirmations().late())),
            }
        }
    };
    let index = confirmed.index;
    let has_all = timeout_at(deadline, async {
        node.wait_taken(index).await;
        database.caught_up().await;
    });
    let is_late = has_all.await.is_err();
    if database.is_dropped() {
        let text = format!("{} was dropped; close it", database.name);
        return Err(Refusal::new(RefusalCode::NotFound, text));
    }
    if let Some(why) = database.fenced() {
        let text = format!("{} is fenced on this node: {why}", database.name);
        return Err(Refusal::new(RefusalCode::Fenced, text));
    }
    if is_late {
        let (name, taken) = (&database.name, node.taken());
        return Err(late(if taken < index {
            format!("the log has not come here up to entry {index}, only up to {taken},")
        } else {
            format!("{name} has not been brought up to entry {index} on this node")
        }));
    }
    let age_ms = u32::try_from(confirmed.at.elapsed().as_millis() + 1).unwrap_or(u32::MAX);
    Ok(Response::Reached { index, age_ms })
}

/// What the node says of itself and a database, to an app.
pub(super) fn status(node: &Node, database: &Database) -> NodeStatus {
    let (raft, found) = (node.raft_status(), database.status());
    let leader = raft.leader.and_then(|id| Some((id, raft.peers.get(&id)?.http_addr.clone())));
    let fenced = found.fenced.map(|why| why.chars().take(MAX_REASON).collect::<String>());
    let json = json!({
        "node_id": raft.node_id,
        "state": raft.state.as_str(),
        "term": raft.term,
        "leader": leader.as_ref().map(|(id, http_addr)| json!({ "node_id": id, "http_addr": http_addr })),
        "voters": raft.voters.len(),
        "commit_index": raft.committed_index,
        "applied_index": node.taken(),
        "database": found.name,
        "page_size": found.page_size,
        "pages": found.pages,
        "index": found.index,
        "durable_index": found.durable_index,
        "checksum": found.checksum,
        "queued": found.queued,
        "fenced": fenced,
    });
    NodeStatus { index: found.index, leader, checksum: found.checksum, json: json.to_string() }
}
