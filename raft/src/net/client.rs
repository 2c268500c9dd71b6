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
use super::haste::Hurry;
use super::link::{Lane, Link, Links};
use super::snapshot;
use crate::encode::Malformed;
use crate::types::{C, LogId, Snapshot, Vote};
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
    bulk: Arc<Link>,
    /// `None` for a client that only sends heartbeats.
    data: Option<Arc<Link>>,
    hurry: Arc<Hurry>,
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
            bulk: link(Lane::Bulk),
            data: data.then(|| link(Lane::Data)),
            hurry: self.links.haste.of(target),
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
    type SnapshotData = bytes::Bytes;

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
            let (send, answers) = match opened {
                Ok(stream) => stream,
                Err(e) => {
                    // The core tries again at once.
                    tokio::time::sleep(RETRY_PAUSE).await;
                    return Err(unreachable(e));
                }
            };
            // Before forwarded requests that share the connection.
            let _ = send.set_priority(1);
            let flight = Arc::new(Flight::new(self.window));
            let requests = Box::pin(write_requests(input, send, flight.clone(), self.hurry.clone()));
            let stall = self.stall;
            let pipe = Pipe { answers, flight, requests: Some(requests), stall, next: None, ended: false };
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
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        snapshot::send(&self.bulk, (self.node, self.target), vote, snapshot, cancel).await
    }
}

/// What is on its way to the follower.
struct Flight {
    window: Semaphore,
    max: usize,
    state: Mutex<InFlight>,
}

struct InFlight {
    /// Unanswered requests, oldest first.
    requests: VecDeque<Unanswered>,
    /// When something last moved.
    progress: Instant,
}

/// A request on its way.
struct Unanswered {
    /// Its part of the window, in bytes.
    size: u32,
    /// News of a commit that travels with this request instead of a request of its own: the log id that an answer
    /// to that would confirm.
    news: Option<Option<LogId>>,
}

impl Flight {
    fn new(window: usize) -> Self {
        let state = Mutex::new(InFlight { requests: VecDeque::new(), progress: Instant::now() });
        Flight { window: Semaphore::new(window), max: window, state }
    }

    fn state(&self) -> MutexGuard<'_, InFlight> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes the oldest request off; `None` if there is none.
    fn answered(&self) -> Option<Unanswered> {
        let mut s = self.state();
        s.progress = Instant::now();
        let request = s.requests.pop_front()?;
        self.window.add_permits(request.size as usize);
        Some(request)
    }
}

/// Pause after a stream that could not be opened.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long news of a commit alone waits for an append to travel with.
const COMMIT_NEWS: Duration = Duration::from_millis(1);

/// Writes requests until there are no more.
async fn write_requests<S>(
    input: S,
    mut send: quinn::SendStream,
    flight: Arc<Flight>,
    hurry: Arc<Hurry>,
) -> Result<(), Error>
where
    S: Stream<Item = AppendEntriesRequest<C>> + OptionalSend + Unpin + 'static,
{
    let mut input = input.fuse();
    while let Some(req) = input.next().await {
        // After each commit the core tells the followers so. In a steady stream that would double the packets; the
        // next append says it as well, unless somebody waits for it there.
        let mut news = None;
        let mut req = req;
        if req.entries.is_empty()
            && let Some(Some(next)) = hurry.unless(tokio::time::timeout(COMMIT_NEWS, input.next())).await
        {
            debug_assert!(next.leader_commit >= req.leader_commit);
            news = Some(std::mem::replace(&mut req, next).prev_log_id);
        }
        let mut chunks = frame::framed(codec::append(&req));
        let size = chunks.iter().map(|c| c.len()).sum::<usize>().min(flight.max) as u32;
        flight.window.acquire_many(size).await.map_err(network)?.forget();
        {
            let mut s = flight.state();
            s.requests.push_back(Unanswered { size, news });
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
    /// An answer that follows the one that was just given.
    next: Option<StreamAppendResult<C>>,
    ended: bool,
}

impl Pipe {
    async fn next(&mut self, stalled: &Error) -> Option<Result<StreamAppendResult<C>, Error>> {
        if self.ended {
            return None;
        }
        let item = match self.next.take() {
            Some(answer) => Some(Ok(answer)),
            None => self.step(stalled).await,
        };
        self.ended = !matches!(item, Some(Ok(Ok(_))));
        item
    }

    async fn step(&mut self, stalled: &Error) -> Option<Result<StreamAppendResult<C>, Error>> {
        loop {
            let deadline = {
                let s = self.flight.state();
                if s.requests.is_empty() {
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
                    if !s.requests.is_empty() && s.progress.elapsed() >= self.stall {
                        return Some(Err(stalled.clone()));
                    }
                }
            }
        }
    }

    fn answer(
        &mut self,
        answer: Result<Option<bytes::Bytes>, frame::FrameError>,
    ) -> Result<StreamAppendResult<C>, Error> {
        let body = answer.map_err(network)?.ok_or_else(|| network("the peer ended the append stream"))?;
        let result = codec::read_append_result(body).map_err(network)?.ok_or_else(stopped)?;
        let request = self.flight.answered().ok_or_else(|| network("an answer without a request"))?;
        match (request.news, &result) {
            // What the later request confirms, the earlier one would have confirmed.
            (Some(confirmed), Ok(_)) => {
                self.next = Some(result);
                Ok(Ok(confirmed))
            }
            _ => Ok(result),
        }
    }
}
