//! What nodes ask of each other apart from Raft itself: requests that only the leader can serve, forwarded
//! to it, and the first acquaintance of nodes that start or join a cluster. JSON, over Raft's mutually
//! authenticated connections. What concerns writers, and so must be quick, stands in [`crate::forward`].

use crate::command::{Command, DbId};
use crate::full_disk;
use crate::members;
use crate::node::Node;
use crate::sql::forward::{self as statements, Answer, Forward};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::{Bulk, LogPosition, NodeId, Peer, ProposeError, RaftError, RequestHandler};
use quire_vfs::fault;
use quire_vfs::format::PageSize;
use quire_vfs::format::transaction::TxnId;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Between attempts.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// One attempt at one peer.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(5);

/// How the answer begins to a request that a node doesn't know, in all versions.
const NO_SENSE: &str = "the request makes no sense";
/// Between log lines about the same thing.
const COMPLAIN: Duration = Duration::from_secs(5);

/// A request from one node to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum PeerRequest {
    /// Who are you? Answered by [`PeerResponse::Hello`].
    Hello,
    /// Take me in. For the leader.
    Join {
        /// The new node.
        node_id: NodeId,
        /// Where it is reached by Raft.
        raft_addr: String,
        /// Where its HTTP is.
        http_addr: String,
        /// Whether it shall vote.
        voter: bool,
    },
    /// My directory is empty: may I come in under this id? For the leader, but any node may say no. Asked before
    /// [`PeerRequest::Join`], and before the sender takes anything of Raft's.
    MayJoin {
        /// The new node.
        node_id: NodeId,
        /// Where it is reached by Raft.
        raft_addr: String,
        /// Where its HTTP is.
        http_addr: String,
    },
    /// Create a database unless it exists. For the leader; answered by the index to wait for.
    CreateDatabase {
        /// Its name.
        name: String,
        /// Its page size.
        page_size: u32,
    },
    /// Drop a database. For the leader; answered by the index to wait for.
    DropDatabase {
        /// Its id.
        id: u64,
    },
    /// Append an entry that does nothing. For the leader; answered by its index.
    Barrier,
    /// Up to where must a node have applied to read what the leader would? For the leader; answered by that index.
    ReadIndex {
        /// Have a quorum confirm that it leads.
        confirm: bool,
    },
    /// Append that no more parts of a large transaction will come. For the leader; answered by its index.
    Void {
        /// The database.
        database: u64,
        /// The transaction.
        transaction: [u8; 16],
    },
    /// Append a verification. For the leader; answered by its index.
    Verify {
        /// Hash the files, too.
        files: bool,
        /// Read all pages, too.
        scrub: bool,
    },
    /// I am a member: let the membership say where I am now, and give me a vote if I want one and have the log.
    /// For the leader, but who else hears it knows now where to reach the sender.
    Announce {
        /// The sender.
        node_id: NodeId,
        /// Where it is reached by Raft.
        raft_addr: String,
        /// Where its HTTP is.
        http_addr: String,
        /// Whether it wants to vote.
        voter: bool,
        /// Term, leader and index of the last entry that it knows to be committed: shows whose history it shares.
        committed: Option<(u64, NodeId, u64)>,
    },
    /// Remove a member. For the leader.
    Remove {
        /// Which.
        node_id: NodeId,
    },
    /// Hand the lead over. For the leader.
    StepDown {
        /// To this voter, or to the one that can best take it.
        to: Option<NodeId>,
    },
    /// Has the log room to grow? For any node; answered by an index that says nothing.
    HasRoom,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum PeerResponse {
    /// To [`PeerRequest::Hello`].
    Hello {
        /// The node that answers.
        node_id: NodeId,
        /// It is, or was, part of a cluster.
        initialized: bool,
        /// Where it is reached by Raft.
        raft_addr: String,
        /// Where its HTTP is.
        http_addr: String,
        /// It takes part in Raft: others may count on it when they start a cluster. Earlier versions, which always do,
        /// don't say so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admitted: Option<bool>,
    },
    /// Done; wait until this entry has been applied.
    Index(u64),
    /// The request is for the leader, which is at this Raft address, as far as is known.
    NotLeader(Option<String>),
    /// Not now.
    Unavailable(String),
    /// No, and why.
    Refused(String),
    /// The node that it is about is not a member.
    NotMember,
}

/// Why the leader did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// No leader could be reached in time.
    #[error("{0}")]
    Unavailable(String),
    /// The leader refused.
    #[error("{0}")]
    Refused(String),
}

impl PeerRequest {
    /// The node that a request speaks for, if it does; it must be the sender.
    fn speaks_for(&self) -> Option<NodeId> {
        match self {
            PeerRequest::Join { node_id, .. }
            | PeerRequest::MayJoin { node_id, .. }
            | PeerRequest::Announce { node_id, .. } => Some(*node_id),
            _ => None,
        }
    }

    /// Whether only members may ask for it.
    fn is_for_members(&self) -> bool {
        !matches!(
            self,
            PeerRequest::Hello
                | PeerRequest::Join { .. }
                | PeerRequest::MayJoin { .. }
                | PeerRequest::Announce { .. }
        )
    }

    fn encode(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

fn decode_response(bytes: &[u8]) -> PeerResponse {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| PeerResponse::Refused(format!("the peer's answer makes no sense: {error}")))
}

/// Serves requests of peers, once the node is there.
#[derive(Debug, Default)]
pub struct PeerHandler {
    node: OnceLock<Weak<Node>>,
}

impl PeerHandler {
    /// The node has started.
    pub fn attach(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }
}

impl RequestHandler for PeerHandler {
    fn handle(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let node = self.node.get().and_then(Weak::upgrade);
        Box::pin(async move {
            if fault::is_earlier() && is_later(&request) {
                let response =
                    PeerResponse::Refused(format!("{NO_SENSE}: expected value at line 1 column 1"));
                return serde_json::to_vec(&response).unwrap_or_default().into();
            }
            if statements::is_request(&request) {
                return answer_sql(node, from, &request).await.encode();
            }
            if statements::is_question(&request) {
                // A node that is starting waits for nothing that it sent before.
                let service = node.as_ref().and_then(|node| node.sql());
                return service.map_or_else(Bytes::new, |service| service.consent(from, &request));
            }
            if crate::forward::is_one(&request) {
                return match node {
                    Some(node) => crate::forward::serve(&node, from, &request).await,
                    None => crate::forward::starting(),
                };
            }
            let response = match (node, serde_json::from_slice(&request)) {
                (None, _) => PeerResponse::Unavailable("the node is starting".into()),
                (Some(_), Err(error)) => PeerResponse::Refused(format!("{NO_SENSE}: {error}")),
                (Some(node), Ok(request)) => answer(&node, from, request).await,
            };
            serde_json::to_vec(&response).unwrap_or_default().into()
        })
    }

    /// What a client of another node waited for.
    fn ends_with_caller(&self, request: &[u8]) -> bool {
        statements::is_request(request)
    }

    fn bulk(&self, from: NodeId, stream: Bulk) -> BoxFuture<'static, ()> {
        let node = self.node.get().and_then(Weak::upgrade);
        Box::pin(async move {
            if let Some(node) = node {
                crate::transfer::serve(&node, from, stream).await;
            }
        })
    }
}

/// Whether a request is of a kind that not all versions have known.
fn is_later(request: &[u8]) -> bool {
    statements::is_numbered(request)
        || matches!(serde_json::from_slice(request), Ok(PeerRequest::MayJoin { .. }))
}

/// Runs SQL that a member was asked to run, where nothing of Raft's runs.
async fn answer_sql(node: Option<Arc<Node>>, from: NodeId, request: &Bytes) -> Answer {
    let not_leader = |why: &str| Answer::NotLeader(why.to_owned());
    let Some(node) = node else { return not_leader("the node is starting") };
    let Some(service) = node.sql().cloned() else { return not_leader("the node is starting") };
    if !node.raft_status().peers.contains_key(&from) {
        return not_leader(&format!("node {from} is not a member of this cluster"));
    }
    let Some(request) = Forward::decode(request) else {
        let body =
            Bytes::from_static(b"the forwarded request makes no sense; do all nodes run the same version?");
        return Answer::Response { status: 500, retry: false, body };
    };
    let work = service.runtime().clone().spawn(async move { service.serve_node(&node, from, request).await });
    // It ends with this future.
    let _end = EndWithMe(work.abort_handle());
    work.await.unwrap_or_else(|error| {
        let body = format!("outcome unknown: the request failed by a bug: {error}").into();
        Answer::Response { status: 500, retry: false, body }
    })
}

struct EndWithMe(tokio::task::AbortHandle);

impl Drop for EndWithMe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers a request of a peer, if it may ask for that.
async fn answer(node: &Arc<Node>, from: NodeId, request: PeerRequest) -> PeerResponse {
    if let Some(other) = request.speaks_for().filter(|&id| id != from) {
        return PeerResponse::Refused(format!("node {from} can't speak for node {other}"));
    }
    // A node that was removed may not know it yet; who doesn't lead may not know the newest member yet.
    let status = node.raft_status();
    let leads = status.leader == Some(node.id());
    if leads && request.is_for_members() && from != node.id() && !status.peers.contains_key(&from) {
        return PeerResponse::Refused(format!("node {from} is not a member of this cluster"));
    }
    serve(node, request).await
}

/// Serves a request on this node.
pub(crate) async fn serve(node: &Arc<Node>, request: PeerRequest) -> PeerResponse {
    let raft = node.raft();
    let command = match request {
        PeerRequest::Hello => {
            let me = node.peer();
            return PeerResponse::Hello {
                node_id: node.id(),
                initialized: raft.is_initialized(),
                raft_addr: me.raft_addr.clone(),
                http_addr: me.http_addr.clone(),
                admitted: Some(raft.is_admitted()),
            };
        }
        PeerRequest::Join { node_id, raft_addr, http_addr, voter } => {
            let peer = Peer { raft_addr, http_addr };
            return members::join(node, node_id, peer, voter).await.into();
        }
        PeerRequest::MayJoin { node_id, raft_addr, http_addr } => {
            let peer = Peer { raft_addr, http_addr };
            return members::may_join(node, node_id, peer).await.into();
        }
        PeerRequest::Announce { node_id, raft_addr, http_addr, voter, committed } => {
            let peer = Peer { raft_addr, http_addr };
            let committed = committed.map(|(term, leader, index)| LogPosition { term, leader, index });
            return members::announced(node, node_id, peer, voter, committed).await;
        }
        PeerRequest::Remove { node_id } => return members::serve_remove(node, node_id).await,
        PeerRequest::StepDown { to } => return raft.hand_over(to).await.map(drop).into(),
        PeerRequest::HasRoom => {
            return full_disk::stuck(node).map_or(PeerResponse::Index(0), PeerResponse::Unavailable);
        }
        PeerRequest::CreateDatabase { name, page_size } => {
            let Some(page_size) = PageSize::new(page_size) else {
                return PeerResponse::Refused(format!("{page_size} is no page size"));
            };
            if let Err(why) = crate::name::check(&name) {
                return PeerResponse::Refused(why.to_string());
            }
            Command::CreateDatabase { name, page_size }
        }
        PeerRequest::DropDatabase { id } => Command::DropDatabase { database: DbId(id) },
        PeerRequest::Barrier => Command::Barrier { nonce: nonce() },
        PeerRequest::ReadIndex { confirm: false } => {
            return match node.leadership().leading() {
                // Not what this node has taken: an app on another node may have been told of more.
                Ok(_) => match raft.committed().await {
                    Ok(index) => PeerResponse::Index(index),
                    Err(error) => Err::<(), _>(error).into(),
                },
                Err(refusal) => PeerResponse::Unavailable(refusal.message),
            };
        }
        PeerRequest::ReadIndex { confirm: true } => {
            return match raft.read_barrier(ATTEMPT).await {
                Ok(index) => PeerResponse::Index(index),
                Err(error) => Err::<(), _>(error).into(),
            };
        }
        PeerRequest::Void { database, transaction } => {
            Command::Void { database: DbId(database), transaction: TxnId(transaction) }
        }
        PeerRequest::Verify { files, scrub } => Command::Verify { files, scrub, nonce: nonce() },
    };
    match raft.propose(command.encode()).await {
        Ok(position) => PeerResponse::Index(position.index),
        Err(ProposeError::NotLeader { leader }) => PeerResponse::NotLeader(leader.map(|(_, p)| p.raft_addr)),
        Err(ProposeError::TooLarge { size, limit }) => {
            PeerResponse::Refused(format!("{size} bytes are more than {limit}"))
        }
        // Appending one of these twice does no harm, so an unknown fate is a reason to try again.
        Err(error) => PeerResponse::Unavailable(error.to_string()),
    }
}

impl From<Result<(), RaftError>> for PeerResponse {
    fn from(result: Result<(), RaftError>) -> PeerResponse {
        match result {
            Ok(()) => PeerResponse::Index(0),
            Err(RaftError::NotLeader { leader }) => {
                PeerResponse::NotLeader(leader.map(|(_, peer)| peer.raft_addr))
            }
            Err(RaftError::Refused(why)) => PeerResponse::Refused(why),
            Err(error) => PeerResponse::Unavailable(error.to_string()),
        }
    }
}

pub(crate) fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Has the leader serve a request, whichever node that is, and returns the index to wait for.
pub async fn ask_leader(
    node: &Arc<Node>,
    request: PeerRequest,
    deadline: Duration,
) -> Result<u64, LeaderError> {
    let deadline = Instant::now() + deadline;
    let mut why = "there is no leader".to_string();
    while Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        // Boxed: several KiB, which every request that might come here would carry along, and copy, at each step.
        match Box::pin(attempt(node, &request, left, ATTEMPT)).await {
            PeerResponse::Index(index) => return Ok(index),
            PeerResponse::Refused(why) => return Err(LeaderError::Refused(why)),
            PeerResponse::Unavailable(reason) => why = reason,
            PeerResponse::NotLeader(_) => why = "there is no leader".into(),
            PeerResponse::Hello { .. } | PeerResponse::NotMember => {
                why = "the peer's answer makes no sense".into()
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(LeaderError::Unavailable(why))
}

/// One attempt at having the leader serve a request: within `here` if this node leads, else within `there`.
pub(crate) async fn attempt(
    node: &Arc<Node>,
    request: &PeerRequest,
    here: Duration,
    there: Duration,
) -> PeerResponse {
    if let Some(why) = node.leadership().removed() {
        return PeerResponse::Refused(why);
    }
    match node.raft_status().leader {
        Some(leader) if leader == node.id() => {
            let served = tokio::time::timeout(here, serve(node, request.clone())).await;
            served.unwrap_or_else(|_| PeerResponse::Unavailable("no quorum answered in time".into()))
        }
        Some(leader) => match ask(node, leader, request, there.min(here)).await {
            PeerResponse::Unavailable(why) => {
                PeerResponse::Unavailable(format!("leader (node {leader}): {why}"))
            }
            response => response,
        },
        None => PeerResponse::NotLeader(None),
    }
}

/// Asks another member, in one attempt.
pub(crate) async fn ask(
    node: &Arc<Node>,
    id: NodeId,
    request: &PeerRequest,
    deadline: Duration,
) -> PeerResponse {
    match node.raft().request(id, request.encode(), deadline).await {
        Ok(bytes) => decode_response(&bytes),
        Err(error) => PeerResponse::Unavailable(error.to_string()),
    }
}

/// Asks the node at an address, in one attempt.
pub async fn ask_address(
    node: &Arc<Node>,
    address: &str,
    request: &PeerRequest,
    deadline: Duration,
) -> Result<PeerResponse, String> {
    let bytes = node.raft().request_addr(address, request.encode(), deadline).await;
    bytes.map(|bytes| decode_response(&bytes)).map_err(|error| error.to_string())
}

/// Joins the cluster of any of `addresses`; tries until it is taken in or refused.
///
/// It is taken in as soon as a leader sends it anything. From then on it must not ask to join: it may have been
/// removed meanwhile, and would come back by itself. What is left to do, `members::keep` does.
///
/// A leader sends to it only after it has been admitted. It asks for that first: its id may be that of a voter, whose
/// disk was lost.
pub async fn join_cluster(node: &Arc<Node>, addresses: &[String], voter: bool) -> Result<(), String> {
    let me = node.peer().clone();
    if !node.raft().is_admitted() {
        let (raft_addr, http_addr) = (me.raft_addr.clone(), me.http_addr.clone());
        let request = PeerRequest::MayJoin { node_id: node.id(), raft_addr, http_addr };
        ask_to_join(node, addresses, &request, ATTEMPT).await?;
        admit(node).await?;
    }
    let request =
        PeerRequest::Join { node_id: node.id(), raft_addr: me.raft_addr, http_addr: me.http_addr, voter };
    ask_to_join(node, addresses, &request, node.config().catch_up + ATTEMPT).await
}

/// Lets the node take part in Raft.
pub(crate) async fn admit(node: &Arc<Node>) -> Result<(), String> {
    node.raft().admit().await.map_err(|error| error.to_string())?;
    fault::point("admission.stored");
    Ok(())
}

/// Asks the leader for one of the two steps of joining, until it has an answer that settles it.
async fn ask_to_join(
    node: &Arc<Node>,
    addresses: &[String],
    request: &PeerRequest,
    patience: Duration,
) -> Result<(), String> {
    let mut complaint = Instant::now();
    while !node.raft().is_initialized() {
        let mut targets: Vec<String> = addresses.to_vec();
        let mut redirected = false;
        while let Some(address) = targets.pop() {
            match ask_address(node, &address, request, patience).await {
                Ok(PeerResponse::Index(_)) => return Ok(()),
                // A cluster of an earlier version takes nodes in without that question.
                Ok(PeerResponse::Refused(why))
                    if matches!(request, PeerRequest::MayJoin { .. }) && why.starts_with(NO_SENSE) =>
                {
                    warn!(address, "runs a version of Quire that doesn't check who joins");
                    return Ok(());
                }
                Ok(PeerResponse::Refused(why)) => return Err(format!("{address} refused: {why}")),
                Ok(PeerResponse::NotLeader(Some(leader))) if !redirected => {
                    redirected = true;
                    targets.push(leader);
                }
                // Not now: added, perhaps, but not caught up yet, or without a quorum. It is asked again.
                Ok(PeerResponse::Unavailable(why)) => info!(address, "not joined yet: {why}"),
                Ok(_) => {}
                Err(why) => {
                    if complaint.elapsed() > COMPLAIN {
                        let hint =
                            if why.contains("certificate") { "; is its cluster key another?" } else { "" };
                        warn!(address, "can't join yet: {why}{hint}");
                        complaint = Instant::now();
                    }
                }
            }
        }
        tokio::time::sleep(2 * RETRY_PAUSE).await;
    }
    info!("taken in by the cluster");
    Ok(())
}

/// Starts a cluster together with the nodes at `addresses`, once `expect` of them (this one included) have
/// met and none belongs to a cluster; the one with the lowest id does it. If one does belong to a cluster,
/// this node joins that.
///
/// Voters of a first membership have votes and empty logs. So each is admitted before there is one, and only when none
/// of the others has a cluster: a node whose disk was lost finds one that has, and is on its way to join then. And who
/// starts the cluster waits until all are admitted, as it names nobody whose directory could still be a lost disk's.
pub async fn bootstrap(
    node: &Arc<Node>,
    addresses: &[String],
    expect: usize,
    voter: bool,
) -> Result<(), String> {
    let mut complaint = Instant::now();
    loop {
        let mut met = std::collections::BTreeMap::from([(node.id(), node.peer().clone())]);
        let (mut exists, mut all_admitted) = (false, node.raft().is_admitted());
        for address in addresses {
            match ask_address(node, address, &PeerRequest::Hello, ATTEMPT).await {
                Ok(PeerResponse::Hello { node_id, initialized, raft_addr, http_addr, admitted }) => {
                    if node_id == node.id() && raft_addr != node.peer().raft_addr {
                        return Err(format!("another node, at {raft_addr}, has the node id {node_id}, too"));
                    }
                    exists |= initialized && node_id != node.id();
                    all_admitted &= admitted.unwrap_or(true);
                    met.insert(node_id, Peer { raft_addr, http_addr });
                }
                // A node that is just starting says so; it will be met in a moment.
                Ok(PeerResponse::Unavailable(why)) => tracing::debug!(address, "not met yet: {why}"),
                Ok(other) => return Err(format!("{address} answered {other:?}")),
                Err(why) => tracing::debug!(address, "not met yet: {why}"),
            }
        }
        if node.raft().is_initialized() {
            return Ok(());
        }
        if exists {
            if !node.raft().is_admitted() {
                return join_cluster(node, addresses, voter).await;
            }
            // Either the lowest has just started the cluster with us in it, or there was one before.
            let mut status = node.raft().watch();
            let met = tokio::time::timeout(ATTEMPT, status.wait_for(|s| !s.voters.is_empty())).await;
            return if matches!(met, Ok(Ok(_))) {
                Ok(())
            } else {
                join_cluster(node, addresses, voter).await
            };
        }
        if met.len() >= expect && !node.raft().is_admitted() {
            admit(node).await?;
            continue;
        }
        if met.len() >= expect && all_admitted && met.keys().next() == Some(&node.id()) {
            info!(nodes = ?met.keys().collect::<Vec<_>>(), "starting a cluster");
            return node.raft().initialize(met).await.map_err(|error| error.to_string());
        }
        if complaint.elapsed() > COMPLAIN {
            let met: Vec<_> = met.keys().collect();
            info!(?met, expect, "waiting for the nodes that are to start the cluster");
            complaint = Instant::now();
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
