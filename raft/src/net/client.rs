//! openraft's network: calls on the control connection, pipelined appends on the data connection.
//!
//! An append stream is driven by the task that polls it, without hand-offs to other tasks: one future writes
//! requests as they come, bounded by bytes in flight, while answers are read in order. An answer that doesn't come
//! within the stall limit, with no byte accepted meanwhile, ends the stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkV2};
use tokio::sync::Semaphore;

use super::codec::{self, CALL_BYTES, Call, StreamKind};
use super::frame::{self, FrameReader};
use super::link::{Lane, Link, Links};
use crate::encode::Malformed;
use crate::types::{C, Snapshot, Vote};
use crate::{NodeId, Peer, RequestError};

type Error = RPCError<C>;

/// Makes clients for openraft.
pub(crate) struct Factory {
    pub(crate) links: Arc<Links>,
    pub(crate) window: usize,
    pub(crate) stall: Duration,
}

/// openraft's network to one peer, for one purpose.
pub(crate) struct Client {
    node: NodeId,
    target: NodeId,
    control: Arc<Link>,
    /// `None` for a client that only sends heartbeats.
    data: Option<Arc<Link>>,
    window: usize,
    stall: Duration,
}

impl Factory {
    fn client(&self, target: NodeId, peer: &Peer, data: bool) -> Client {
        let link = |lane| self.links.to(Some(target), &peer.raft_addr, lane);
        Client {
            node: self.links.node,
            target,
            control: link(Lane::Control),
            data: data.then(|| link(Lane::Data)),
            window: self.window,
            stall: self.stall,
        }
    }
}

impl RaftNetworkFactory<C> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Client {
        self.client(target, node, true)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Peer) -> Client {
        self.client(target, node, false)
    }
}

fn unreachable(e: impl ToString) -> Error {
    RPCError::Unreachable(Unreachable::from_string(e))
}

fn network(e: impl ToString) -> Error {
    RPCError::Network(NetworkError::from_string(e))
}

fn stopped() -> Error {
    unreachable("the peer's raft has stopped")
}

impl Client {
    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Error {
        RPCError::Timeout(Timeout { action, id: self.node, target: self.target, timeout })
    }

    async fn call<T>(
        &self,
        call: Call,
        action: RPCTypes,
        limit: Duration,
        decode: fn(bytes::Bytes) -> Result<Option<T>, Malformed>,
    ) -> Result<T, Error> {
        let exchange = self.control.exchange(StreamKind::Call, codec::call(&call), CALL_BYTES);
        let answer = match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(RequestError::Unreachable(e))) => return Err(unreachable(e)),
            Ok(Err(e)) => return Err(network(e)),
            Err(_) => {
                self.control.unanswered();
                return Err(self.timeout(action, limit));
            }
        };
        decode(answer).map_err(network)?.ok_or_else(stopped)
    }

    async fn append(
        &self,
        req: AppendEntriesRequest<C>,
        limit: Duration,
    ) -> Result<StreamAppendResult<C>, Error> {
        self.call(Call::Append(req), RPCTypes::AppendEntries, limit, codec::read_append_result).await
    }
}

impl RaftNetworkV2<C> for Client {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, Error> {
        Ok(match self.append(rpc, option.hard_ttl()).await? {
            Ok(matching) => AppendEntriesResponse::PartialSuccess(matching),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(v)) => AppendEntriesResponse::HigherVote(v),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<C>, Error>>, Error>>
    where
        S: Stream<Item = AppendEntriesRequest<C>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let Some(data) = self.data.clone() else {
                let this: &Self = self;
                let limit = option.hard_ttl();
                let answers = input.then(move |req| this.append(req, limit));
                return Ok(Box::pin(answers) as BoxStream<'s, _>);
            };
            let opened = tokio::time::timeout(self.stall, data.open(StreamKind::Append)).await;
            let opened = opened.map_err(|_| self.timeout(RPCTypes::AppendEntries, self.stall))?;
            let (send, answers) = opened.map_err(unreachable)?;
            // Before forwarded requests that share the connection.
            let _ = send.set_priority(1);
            let flight = Arc::new(Flight::new(self.window));
            let requests = Box::pin(write_requests(input, send, flight.clone()));
            let pipe = Pipe { answers, flight, requests: Some(requests), stall: self.stall, ended: false };
            let stalled = self.timeout(RPCTypes::AppendEntries, self.stall);
            let out = stream::unfold((pipe, stalled), |(mut pipe, stalled)| async move {
                let item = pipe.next(&stalled).await?;
                Some((item, (pipe, stalled)))
            });
            Ok(Box::pin(out) as BoxStream<'s, _>)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, Error> {
        self.call(Call::Vote(rpc), RPCTypes::Vote, option.hard_ttl(), codec::read_vote_answer).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, Error> {
        self.call(Call::PreVote(rpc), RPCTypes::Vote, option.hard_ttl(), codec::read_vote_answer).await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<C>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, Error> {
        let limit = option.hard_ttl();
        self.call(Call::Transfer(req), RPCTypes::TransferLeader, limit, codec::read_transfer_answer).await
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let upto = snapshot.meta.last_log_id.map(|l| l.index());
        tracing::warn!(
            peer = self.target,
            ?upto,
            "member needs purged entries; sending a snapshot isn't possible yet"
        );
        Err(StreamingError::Unreachable(Unreachable::from_string("snapshots can't be sent by this version")))
    }
}

/// What is on its way to the follower.
struct Flight {
    window: Semaphore,
    max: usize,
    state: Mutex<InFlight>,
}

struct InFlight {
    /// Window taken by each unanswered request, oldest first.
    sizes: VecDeque<u32>,
    /// When something last moved.
    progress: Instant,
}

impl Flight {
    fn new(window: usize) -> Self {
        let state = Mutex::new(InFlight { sizes: VecDeque::new(), progress: Instant::now() });
        Flight { window: Semaphore::new(window), max: window, state }
    }

    fn state(&self) -> MutexGuard<'_, InFlight> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn answered(&self) -> bool {
        let mut s = self.state();
        s.progress = Instant::now();
        let Some(size) = s.sizes.pop_front() else { return false };
        self.window.add_permits(size as usize);
        true
    }
}

/// Writes requests until there are no more.
async fn write_requests<S>(
    mut input: S,
    mut send: quinn::SendStream,
    flight: Arc<Flight>,
) -> Result<(), Error>
where
    S: Stream<Item = AppendEntriesRequest<C>> + OptionalSend + Unpin + 'static,
{
    while let Some(req) = input.next().await {
        let mut chunks = frame::framed(codec::append(&req));
        let size = chunks.iter().map(|c| c.len()).sum::<usize>().min(flight.max) as u32;
        flight.window.acquire_many(size).await.map_err(network)?.forget();
        {
            let mut s = flight.state();
            s.sizes.push_back(size);
            s.progress = Instant::now();
        }
        let mut rest = &mut chunks[..];
        while !rest.is_empty() {
            let written = send.write_chunks(rest).await.map_err(network)?;
            flight.state().progress = Instant::now();
            rest = &mut rest[written.chunks..];
        }
    }
    send.finish().map_err(network)
}

/// One append stream.
struct Pipe {
    answers: FrameReader,
    flight: Arc<Flight>,
    /// `None` once all requests are written.
    requests: Option<BoxFuture<'static, Result<(), Error>>>,
    stall: Duration,
    ended: bool,
}

impl Pipe {
    async fn next(&mut self, stalled: &Error) -> Option<Result<StreamAppendResult<C>, Error>> {
        if self.ended {
            return None;
        }
        let item = self.step(stalled).await;
        self.ended = !matches!(item, Some(Ok(Ok(_))));
        item
    }

    async fn step(&mut self, stalled: &Error) -> Option<Result<StreamAppendResult<C>, Error>> {
        loop {
            let deadline = {
                let s = self.flight.state();
                if s.sizes.is_empty() {
                    // All written and all answered.
                    self.requests.as_ref()?;
                    None
                } else {
                    Some(s.progress + self.stall)
                }
            };
            // With nothing in flight there is nothing to time; what then changes is seen after the next event.
            let wake = deadline.unwrap_or_else(|| Instant::now() + self.stall);
            tokio::select! {
                biased;
                answer = self.answers.next(CALL_BYTES) => return Some(self.answer(answer)),
                written = async { match &mut self.requests { Some(r) => r.await, None => std::future::pending().await } } => {
                    self.requests = None;
                    if let Err(e) = written {
                        return Some(Err(e));
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    let s = self.flight.state();
                    if !s.sizes.is_empty() && s.progress.elapsed() >= self.stall {
                        return Some(Err(stalled.clone()));
                    }
                }
            }
        }
    }

    fn answer(
        &self,
        answer: Result<Option<bytes::Bytes>, frame::FrameError>,
    ) -> Result<StreamAppendResult<C>, Error> {
        let body = answer.map_err(network)?.ok_or_else(|| network("the peer ended the append stream"))?;
        let result = codec::read_append_result(body).map_err(network)?.ok_or_else(stopped)?;
        if self.flight.answered() { Ok(result) } else { Err(network("an answer without a request")) }
    }
}
