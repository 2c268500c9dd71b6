//! The receiving side: connections, streams, frames, and who may send what.
//!
//! - A connection exists only after mutual TLS; the peer's id is in its certificate.
//! - Each stream names its opener again, and each vote, heartbeat and append the node that it speaks for: all must
//!   be the certificate's.
//! - From a member that the cluster was recovered without only requests are taken, nothing of Raft.
//! - The same from everybody while this node is not admitted (`admission.rs`), and while it votes alone: then it is the
//!   only one who can lead, and what others say is another cluster's, of which a node with this id lost its disk.
//! - A malformed frame closes its connection, with one log line; other connections don't notice.
//! - Memory is bounded: connections, streams per connection (`endpoint.rs`), bytes of appends being handled per
//!   stream, bytes of request bodies altogether.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::raft::StreamAppendError;
use quinn::{Connection, Endpoint, Incoming, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::codec::{self, CALL_BYTES, Call, StreamKind};
use super::frame::{self, FrameError, FrameReader};
use super::link::Links;
use super::tls;
use super::{bulk::Bulk, snapshot};
use crate::admission::Admission;
use crate::types::{Core, Vote};
use crate::{NodeId, RaftStatus, RequestHandler, StateMachine};

const MAX_CONNECTIONS: usize = 512;
/// Bulk streams served at a time; more wait for their turn.
pub(crate) const MAX_BULK: usize = 8;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For a peer to send the rest of what it began, and to take an answer.
const TRANSFER: Duration = Duration::from_secs(30);
/// For a request to be handled.
const HANDLE: Duration = Duration::from_secs(120);
/// Close code for a peer that doesn't follow the protocol.
const PROTOCOL: u32 = 1;

/// The server of one node.
pub(crate) struct Server {
    pub(crate) core: Core,
    pub(crate) handler: Arc<dyn RequestHandler>,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) links: Arc<Links>,
    /// One snapshot at a time is received.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    /// Bulk streams served at a time.
    pub(crate) bulk: Semaphore,
    pub(crate) append_frame: usize,
    pub(crate) append_window: usize,
    pub(crate) request_bytes: usize,
    /// Members that the cluster was recovered without (`recover.rs`).
    pub(crate) given_up: BTreeSet<NodeId>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) node_id: NodeId,
    pub(crate) status: watch::Receiver<RaftStatus>,
    pub(crate) bodies: Arc<Semaphore>,
}

pub(crate) fn gone(e: impl std::fmt::Display) -> FrameError {
    FrameError::Gone(e.to_string())
}

fn malformed(e: impl std::fmt::Display) -> FrameError {
    FrameError::Malformed(e.to_string())
}

pub(crate) async fn within<T>(
    limit: Duration,
    f: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, FrameError> {
    tokio::time::timeout(limit, f).await.unwrap_or_else(|_| Err(gone("the peer was too slow")))
}

impl Server {
    /// Accepts connections until the endpoint is closed.
    pub(crate) async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            if endpoint.open_connections() > MAX_CONNECTIONS {
                incoming.refuse();
                continue;
            }
            tokio::spawn(self.clone().connection(incoming));
        }
    }

    async fn connection(self: Arc<Self>, incoming: Incoming) {
        let addr = incoming.remote_address();
        let connection = match tokio::time::timeout(HANDSHAKE, incoming).await {
            Ok(Ok(c)) => c,
            Ok(Err(e)) => return tracing::warn!(%addr, error = tls::why(&e), "connection refused"),
            Err(_) => return tracing::warn!(%addr, "connection refused: no handshake in time"),
        };
        let Some(peer) = peer_id(&connection) else {
            tracing::warn!(%addr, "connection refused: the certificate names no node");
            return connection.close(PROTOCOL.into(), b"certificate names no node");
        };
        tracing::info!(peer, %addr, "peer connected");
        if self.given_up.contains(&peer) {
            tracing::warn!(
                peer, %addr,
                "this cluster was recovered without that node; its Raft messages are refused: stop it, remove its \
                 directory, and let the machine join under a new node id"
            );
        }
        let reason = loop {
            match connection.accept_bi().await {
                Ok((send, recv)) => {
                    let (server, connection) = (self.clone(), connection.clone());
                    tokio::spawn(async move {
                        match server.stream(peer, send, FrameReader::new(recv)).await {
                            Ok(()) => {}
                            Err(FrameError::Gone(e)) => tracing::debug!(peer, error = %e, "stream ended"),
                            Err(FrameError::Malformed(e)) => {
                                tracing::warn!(peer, error = %e, "malformed frame; connection closed");
                                connection.close(PROTOCOL.into(), b"malformed frame");
                            }
                        }
                    });
                }
                Err(e) => break e,
            }
        };
        tracing::info!(peer, %addr, %reason, "peer disconnected");
    }

    async fn stream(
        self: &Arc<Self>,
        peer: NodeId,
        send: SendStream,
        mut recv: FrameReader,
    ) -> Result<(), FrameError> {
        let (kind, from) = codec::read_hello(within(TRANSFER, recv.take()).await?)?;
        if from != peer {
            return Err(malformed(format!("the stream says it is from node {from}")));
        }
        if self.given_up.contains(&peer) && !matches!(kind, StreamKind::Request) {
            return Err(gone("the cluster was recovered without this peer"));
        }
        // No answer at all, as if this node were down: nothing that counts as a vote or as having an entry.
        if !self.admission.is_admitted() && !matches!(kind, StreamKind::Request) {
            return Err(gone("this node is not admitted yet"));
        }
        match kind {
            StreamKind::Call => self.call(peer, send, recv).await,
            StreamKind::Append => self.appends(peer, send, recv).await,
            StreamKind::Request => self.request(peer, send, recv).await,
            StreamKind::Bulk => {
                let _place = self.bulk.acquire().await.map_err(gone)?;
                self.handler.bulk(peer, Bulk::new(send, recv)).await;
                Ok(())
            }
            StreamKind::Snapshot => snapshot::receive(self, peer, send, recv).await,
        }
    }

    /// Checks that the sender of a message of Raft's speaks for itself, and that it may have something to say here.
    pub(crate) fn hears(&self, vote: &Vote, peer: NodeId) -> Result<(), FrameError> {
        let claimed = vote.leader_id().node_id;
        if claimed != peer {
            return Err(malformed(format!("a message that speaks for node {claimed}")));
        }
        let voters = &self.status.borrow().voters;
        if voters.len() == 1 && voters.contains(&self.node_id) {
            return Err(gone("this node votes alone"));
        }
        Ok(())
    }

    async fn call(
        &self,
        peer: NodeId,
        mut send: SendStream,
        mut recv: FrameReader,
    ) -> Result<(), FrameError> {
        let call = codec::read_call(within(TRANSFER, recv.one(CALL_BYTES)).await?)?;
        let answer = match call {
            Call::Append(req) => {
                self.hears(&req.vote, peer)?;
                let prev = req.prev_log_id;
                let last = req.entries.last().map(|e| e.log_id).or(prev);
                match self.core.append_entries(req).await {
                    Ok(r) => codec::append_result(Some(&r.into_stream_result(prev, last))),
                    Err(_) => codec::append_result(None),
                }
            }
            Call::Vote(req) => {
                self.hears(&req.vote, peer)?;
                self.core.vote(req).await.map_or_else(|_| codec::stopped_answer(), |r| codec::vote_answer(&r))
            }
            Call::PreVote(req) => {
                self.hears(&req.vote, peer)?;
                self.core
                    .pre_vote(req)
                    .await
                    .map_or_else(|_| codec::stopped_answer(), |r| codec::vote_answer(&r))
            }
            Call::Transfer(req) => {
                self.hears(req.from_leader(), peer)?;
                let answer = self.core.handle_transfer_leader(req).await;
                answer.map_or_else(|_| codec::stopped_answer(), |r| codec::transfer_answer(&r))
            }
        };
        answer_with(&mut send, answer).await
    }

    async fn appends(
        self: &Arc<Self>,
        peer: NodeId,
        mut send: SendStream,
        recv: FrameReader,
    ) -> Result<(), FrameError> {
        let max = self.append_frame;
        // Appends handed to the core and not answered yet, in bytes: a peer that ignores its own window waits.
        let window = Arc::new(Semaphore::new(self.append_window * 2));
        let limit = self.append_window as u32;
        let held: Arc<Mutex<VecDeque<OwnedSemaphorePermit>>> = Arc::default();
        let broken: Arc<Mutex<Option<FrameError>>> = Arc::default();
        let input = {
            let (server, held, broken) = (self.clone(), held.clone(), broken.clone());
            stream::unfold((recv, window.clone()), move |(mut recv, window)| {
                let (server, held, broken) = (server.clone(), held.clone(), broken.clone());
                async move {
                    let next = async {
                        let Some(len) = recv.length(max).await? else { return Ok(None) };
                        let permit =
                            window.clone().acquire_many_owned((len as u32).min(limit)).await.map_err(gone)?;
                        let body = within(TRANSFER, recv.one(max)).await?;
                        let req = codec::read_append(body)?;
                        server.hears(&req.vote, peer)?;
                        held.lock().unwrap_or_else(|e| e.into_inner()).push_back(permit);
                        Ok(Some(req))
                    };
                    match next.await {
                        Ok(Some(req)) => Some((req, (recv, window))),
                        Ok(None) => None,
                        Err(e) => {
                            *broken.lock().unwrap_or_else(|e| e.into_inner()) = Some(e);
                            None
                        }
                    }
                }
            })
        };
        let mut answers = std::pin::pin!(self.core.stream_append(input));
        // Whatever ends this stream ends the reader too, be it waiting for the window.
        let _close = CloseOnDrop(window);
        while let Some(result) = answers.next().await {
            held.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
            if let Ok(Err(StreamAppendError::Conflict(at))) = &result {
                tracing::debug!(peer, at = at.index(), "append conflicts with the log here");
            }
            let body = codec::append_result(result.as_ref().ok());
            within(TRANSFER, frame::write(&mut send, vec![body])).await?;
        }
        let _ = send.finish();
        match broken.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    async fn request(
        &self,
        peer: NodeId,
        mut send: SendStream,
        mut recv: FrameReader,
    ) -> Result<(), FrameError> {
        let read = async {
            let len = recv.length(self.request_bytes).await?.ok_or_else(|| gone("no request"))?;
            let room = self.bodies.clone().acquire_many_owned(len as u32).await.map_err(gone)?;
            Ok((room, recv.one(self.request_bytes).await?))
        };
        let (_room, body) = within(TRANSFER, read).await?;
        let ends = self.handler.ends_with_caller(&body);
        let handled = tokio::select! {
            biased;
            handled = tokio::time::timeout(HANDLE, self.handler.handle(peer, body)) => handled,
            _ = send.stopped(), if ends => return Ok(()),
        };
        let answer = handled.map_err(|_| gone("the request took too long"))?;
        if answer.len() > self.request_bytes {
            return Err(gone(format!("an answer of {} bytes exceeds the limit", answer.len())));
        }
        answer_with(&mut send, answer).await
    }
}

async fn answer_with(send: &mut SendStream, answer: Bytes) -> Result<(), FrameError> {
    within(TRANSFER, frame::write(send, vec![answer])).await?;
    // Fails only if the peer is gone.
    let _ = send.finish();
    Ok(())
}

struct CloseOnDrop(Arc<Semaphore>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn peer_id(connection: &Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::node_id_of(identity.first()?)
}
