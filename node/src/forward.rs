//! What a node asks of the leader for its writers: leases, proposals, and what became of them; over Raft's request
//! streams. The leader's answers are those of the database's lessor ([`crate::db::lessor`]). The bytes: `message.rs`.
//!
//! - **Acquire** is answered when the lease is had, or the wait is over. It is asked again, over elections, for as long
//!   as the session waits. A lease that comes too late goes back.
//! - **Propose** is sent once, to the node that granted the lease, and never again: the lease ends with its term. An
//!   error from before it was sent, or a refusal, is definite. Where its fate stays unknown, **Settle** has the
//!   leader let nothing more of it through, nor anything under that lease, and then append a barrier: what isn't in the log before
//!   that never will be.
//! - **Release** may be lost: the lease then ends with the session's next attempt, or by time. After a commit
//!   there is none, as the lessor sees that for itself.
//!
//! The outcome itself doesn't come by an answer: this node learns it from its own log. The leader therefore tells
//! members that ask for something of commits at once (`Raft::hurry`).

pub(crate) mod message;

use crate::clock;
use crate::command::{Command, DbId};
use crate::core::lease::{SessionId, Who};
use crate::db::database::{Database, Work};
use crate::db::gate::{Asked, Route};
use crate::db::lessor::Bid;
use crate::node::Node;
use crate::peers::nonce;
use bytes::Bytes;
pub(crate) use message::is_one;
use message::{Answer, Request};
use quire_raft::{NodeId, ProposeError, RequestError};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::proto::{Refusal, RefusalCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Requests for a lease that a node has on their way; more wait here. Fewer than a connection has streams, so that
/// they can't keep out the proposals that they wait for.
pub const MAX_ASKING: usize = 160;
/// Of these, for one database: a busy one doesn't keep others out.
pub const MAX_ASKING_FOR_ONE: usize = 24;
/// No lease is waited for longer in one request.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How much longer than the wait the answer may take; a lease that comes then goes back.
const SLACK: Duration = Duration::from_secs(2);
/// For a proposal's fate: longer than Raft takes to give one up.
const PROPOSE: Duration = Duration::from_secs(40);
/// For the leader to open a database's files.
const OPEN: Duration = Duration::from_secs(5);
/// For a request that is answered at once.
const PROMPT: Duration = Duration::from_secs(5);
/// For a barrier, and what has to be with Raft before it.
const SETTLE: Duration = Duration::from_secs(10);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(25);
const SETTLE_PAUSE: Duration = Duration::from_millis(250);
/// No lease has it.
const NO_TOKEN: u64 = 0;

/// The answer of a node that isn't there yet.
pub fn starting() -> Bytes {
    Answer::refused("the node is starting").encode()
}

/// Serves a request of another node.
pub async fn serve(node: &Arc<Node>, from: NodeId, bytes: &Bytes) -> Bytes {
    let answer = match Request::decode(bytes) {
        Some(request) => answer(node, from, request).await,
        None => Answer::refused(message::why_not(bytes)),
    };
    answer.encode()
}

async fn answer(node: &Arc<Node>, from: NodeId, request: Request) -> Answer {
    let status = node.raft_status();
    if status.leader != Some(node.id()) {
        return Answer::NotLeader;
    }
    if !status.peers.contains_key(&from) {
        return Answer::refused(format!("node {from} is not a member of this cluster"));
    }
    let database = match timeout(OPEN, node.registry().open(request.database())).await {
        Ok(Ok(Some(database))) => database,
        Ok(Ok(None)) => return Answer::refused("the leader does not know the database yet"),
        Ok(Err(why)) => return Answer::refused(format!("on the leader, {why}")),
        Err(_) => return Answer::refused("the leader has not opened the database in time"),
    };
    match request {
        Request::Acquire { session, ticket, life, wait_ms, attempts, .. } => {
            if let Some(why) = node.disk_full() {
                // It hands over, if anybody can lead; who waits for that a moment finds another leader.
                let why = format!("the disk of the leader, node {}, is full: {why}", node.id());
                return Answer::Refused(Refusal::new(RefusalCode::Unavailable, why));
            }
            node.consensus().hurry(from);
            let deadline = clock::now() + Duration::from_millis(wait_ms.into()).min(MAX_WAIT);
            let mut lease = database.lease(Who { node: from, session }, (ticket, attempts), life, deadline);
            let answer = loop {
                match tokio::time::timeout_at(deadline.into(), &mut lease).await {
                    Ok(Ok(Ok(lease))) => break Answer::Leased(lease),
                    Ok(Ok(Err(refusal))) => break refusal_of(refusal),
                    Ok(Err(_)) => break Answer::refused("the session has asked anew"),
                    Err(_) => database.expire(),
                }
            };
            node.consensus().hurry(from);
            answer
        }
        Request::Propose { token, command, .. } => {
            node.consensus().hurry(from);
            let bid = Bid::of(&command).and_then(|bid| {
                let is_it = bid.database == database.id;
                if is_it { Ok(bid) } else { Err("it is of another database".into()) }
            });
            match bid.and_then(|bid| database.let_through(from, token, &bid).map(|()| bid.id)) {
                Err(why) => Answer::refused(why),
                Ok(id) => {
                    // Not to be cut off halfway.
                    let (node, command) = (node.clone(), command);
                    let proposing =
                        node.clone().spawn(async move { propose_here(&node, &database, id, command).await });
                    match proposing.await {
                        Ok(Fate::Decided) => Answer::Done(0),
                        Ok(Fate::NotProposed(why)) => Answer::refused(why),
                        Ok(Fate::Unknown(why)) => Answer::Unknown(why),
                        Err(error) => Answer::Unknown(error.to_string()),
                    }
                }
            }
        }
        Request::Release { token, linger, .. } => {
            database.take_back(from, token, linger);
            Answer::Done(0)
        }
        Request::Settle { token, life, id, .. } => {
            settle_here(node, &database, (from, life, token), id).await
        }
    }
}

/// A refusal for another node's session: who leads is that node's own business.
fn refusal_of(refusal: Refusal) -> Answer {
    if refusal.code == RefusalCode::NotLeader { Answer::NotLeader } else { Answer::Refused(refusal) }
}

/// What became of a proposal, as far as it is known at once.
#[derive(Debug)]
pub enum Fate {
    /// It is in the log; what it came to is seen there.
    Decided,
    /// It is not in the log and never will be.
    NotProposed(String),
    /// It may be or come to be in the log.
    Unknown(String),
}

/// Proposes an entry that the lessor, this node, has let through.
async fn propose_here(node: &Arc<Node>, database: &Arc<Database>, id: TxnId, command: Bytes) -> Fate {
    let flight = database.flight(id);
    match node.consensus().propose(command).await {
        Ok(_) => Fate::Decided,
        Err(ProposeError::Unknown { reason, .. }) => {
            if let Some(flight) = flight {
                database.is_sent(flight);
                // Until it is certain, no lease is granted.
                node.spawn(land(node.clone(), database.clone(), flight));
            }
            Fate::Unknown(reason)
        }
        Err(error) => {
            flight.into_iter().for_each(|flight| database.has_landed(flight));
            Fate::NotProposed(error.to_string())
        }
    }
}

/// Ends the lessor's wait for a proposal that Raft has, once it is in the log or never will be. What it came to, and
/// what becomes of the lease, is its writer's business: a later part of the transaction may be on its way by then.
async fn land(node: Arc<Node>, database: Arc<Database>, flight: u64) {
    // A later term ends it as well.
    while database.is_in_the_air(flight) {
        match barrier(&node).await {
            Answer::Done(index) => {
                node.wait_taken(index).await;
                return database.has_landed(flight);
            }
            answer => debug!(database = database.name, "a proposal's fate is still open: {answer:?}"),
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Appends an entry behind everything that Raft has.
async fn barrier(node: &Node) -> Answer {
    match timeout(SETTLE, node.consensus().propose(Command::Barrier { nonce: nonce() }.encode())).await {
        Ok(Ok(position)) => Answer::Done(position.index),
        Ok(Err(ProposeError::NotLeader { .. })) => Answer::NotLeader,
        Ok(Err(error)) => Answer::refused(error.to_string()),
        Err(_) => Answer::refused("no quorum answered in time"),
    }
}

/// Proposes an entry of an app of this node, by its lessor.
pub async fn propose(
    node: &Arc<Node>,
    database: &Arc<Database>,
    route: Route,
    id: TxnId,
    command: Bytes,
) -> Fate {
    if route.lessor == node.id() {
        return propose_here(node, database, id, command).await;
    }
    let request = Request::Propose { database: database.id, token: route.token, command: Bytes::new() };
    let parts = vec![request.encode(), command];
    match node.consensus().request(route.lessor, parts, PROPOSE).await {
        Ok(bytes) => match Answer::decode(&bytes) {
            Some(Answer::Done(_)) => Fate::Decided,
            Some(Answer::Refused(refusal)) => Fate::NotProposed(refusal.message),
            Some(Answer::NotLeader) => Fate::NotProposed("the leader has changed since it began".into()),
            Some(Answer::Unknown(why)) => Fate::Unknown(why),
            answer => Fate::Unknown(format!("the leader's answer makes no sense: {answer:?}")),
        },
        Err(error @ (RequestError::TooLarge { .. } | RequestError::Unreachable(_))) => {
            Fate::NotProposed(format!("the leader (node {}): {error}", route.lessor))
        }
        Err(error) => Fate::Unknown(format!("the leader (node {}): {error}", route.lessor)),
    }
}

/// Gets the lease for a session that waits, from the leader, whoever that is and comes to be.
pub async fn acquire(
    database: Arc<Database>,
    session: SessionId,
    (ticket, attempts): (u64, u32),
    deadline: Instant,
) {
    let Some(node) = database.node() else { return };
    let places = async {
        let one = database.asking.acquire().await.ok()?;
        Some((one, node.asking().acquire().await.ok()?))
    };
    // In vain: then its time is over, and it is told so.
    let Ok(Some(_places)) = tokio::time::timeout_at(deadline.into(), places).await else { return };
    let mut status = node.consensus().watch();
    let life = node.life();
    while clock::now() < deadline {
        status.mark_unchanged();
        let refusal = match database.ask_here(session, ticket) {
            Asked::Over => return,
            Asked::Elsewhere(refusal) => refusal,
        };
        let now = node.raft_status();
        let removed = node.leadership().removed();
        let Some(leader) = now.leader.filter(|&leader| leader != node.id() && removed.is_none()) else {
            let why = match (removed, refusal.code) {
                (Some(why), _) => no_leader(&why),
                (None, RefusalCode::NotLeader) => no_leader("there is no leader at present; try again"),
                (None, _) => refusal,
            };
            database.has_not(session, ticket, why);
            // Whatever changes next may be what is waited for.
            let _ = timeout(PAUSE, status.changed()).await;
            continue;
        };
        let wait = deadline.saturating_duration_since(clock::now());
        let (database_id, wait_ms) = (database.id, wait.as_millis().min(u32::MAX.into()) as u32);
        let request = Request::Acquire { database: database_id, session, ticket, life, wait_ms, attempts };
        database.is_asking(session, ticket);
        let asked = node.consensus().request(leader, vec![request.encode()], wait + SLACK);
        let deposed = async { status.wait_for(|status| status.term > now.term).await.map(drop) };
        let why = tokio::select! {
            biased;
            answered = asked => match answered.map(|bytes| Answer::decode(&bytes)) {
                Ok(Some(Answer::Leased(lease))) => return database.arrived(session, ticket, lease, leader),
                Ok(Some(Answer::Refused(refusal))) => refusal,
                Ok(Some(Answer::NotLeader)) => no_leader("the leader is changing; try again"),
                Ok(answer) => no_leader(&format!("the leader's answer makes no sense: {answer:?}")),
                Err(error) => no_leader(&format!("leader (node {leader}): {error}")),
            },
            // What it would still say is void.
            _ = deposed => no_leader("the leader is changing; try again"),
        };
        debug!(database = database.name, session, leader, "no lease yet: {why}");
        database.has_not(session, ticket, why);
        tokio::time::sleep(PAUSE.min(deadline.saturating_duration_since(clock::now()))).await;
    }
    database.expire();
}

fn no_leader(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Unavailable, why)
}

/// Gives a lease back to the node that granted it.
pub async fn release(node: Arc<Node>, lessor: NodeId, database: DbId, token: u64, linger: bool) {
    const ATTEMPTS: u32 = 3;
    let request = Request::Release { database, token, linger }.encode();
    for _ in 0..ATTEMPTS {
        match node.consensus().request(lessor, vec![request.clone()], PROMPT).await {
            Ok(_) => return,
            Err(error) => debug!(%database, lessor, "a lease was not given back: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn settle_here(
    node: &Arc<Node>,
    database: &Arc<Database>,
    (from, life, token): (NodeId, u64, u64),
    id: TxnId,
) -> Answer {
    if let Some(sent) = database.close_off(from, life, token, id)
        && timeout(SETTLE, sent).await.is_err()
    {
        return Answer::refused("the proposal is not with Raft yet");
    }
    barrier(node).await
}

/// Has the leader settle a transaction, in one attempt; returns the entry after which it is certain.
async fn settle(node: &Arc<Node>, database: &Arc<Database>, token: u64, id: TxnId) -> Result<u64, String> {
    let life = node.life();
    let answer = match node.raft_status().leader {
        None => return Err("there is no leader".into()),
        Some(leader) if leader == node.id() => settle_here(node, database, (leader, life, token), id).await,
        Some(leader) => {
            let request = Request::Settle { database: database.id, token, life, id }.encode();
            let answered = node.consensus().request(leader, vec![request], 2 * SETTLE + SLACK).await;
            let bytes = answered.map_err(|error| format!("leader (node {leader}): {error}"))?;
            Answer::decode(&bytes).ok_or("the leader's answer makes no sense")?
        }
    };
    match answer {
        Answer::Done(index) => Ok(index),
        Answer::Refused(refusal) => Err(refusal.message),
        Answer::NotLeader => Err("the leader is changing".into()),
        other => Err(format!("the leader's answer makes no sense: {other:?}")),
    }
}

/// Makes sure that a database's worker has seen everything in which a transaction of an app here could be, and ends
/// its wait if it wasn't there. Its lease, if that is known, ends with that.
pub async fn conclude(node: &Arc<Node>, database: &Arc<Database>, id: TxnId, token: Option<u64>) {
    let token = token.unwrap_or(NO_TOKEN);
    let mut complained = None::<Instant>;
    // Else the log has told meanwhile.
    while database.is_open(id) {
        match settle(node, database, token, id).await {
            Ok(index) => {
                node.wait_taken(index).await;
                database.has_concluded(id);
                return database.enqueue(Work::Conclude(id));
            }
            // Not given up when the app is: while it is pending, the database grants no lease.
            Err(why) if complained.is_none_or(|at| clock::since(at) > Duration::from_secs(5)) => {
                complained = Some(clock::now());
                warn!(database = database.name, transaction = %id, "can't be resolved yet: {why}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// An entry after which it is certain what became of a transaction: it is in the log by then, or never will be.
pub async fn certainty(node: &Arc<Node>, database: &Arc<Database>, id: TxnId) -> Result<u64, String> {
    settle(node, database, NO_TOKEN, id).await
}
