//! One app connection: a strict dialogue of one message at a time, as [`quire_vfs::gate::proto`] describes
//! it. Whatever breaks the protocol ends the connection and harms nobody else.

use super::reads;
use crate::command::TRANSACTION_PREFIX;
use crate::core::lease::SessionId;
use crate::db::database::Database;
use crate::db::gate::{Resolution, Route};
use crate::forward::{self, Fate};
use crate::node::{Node, OpenError};
use bytes::{Bytes, BytesMut};
use quire_vfs::format::FormatError;
use quire_vfs::format::transaction::{HEADER_SIZE, Piece, TxnId};
use quire_vfs::gate::proto::{
    self, COMMIT_PREFIX, Hello, MAX_SMALL, Outcome, Refusal, RefusalCode, Request, Response, WalTarget,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

/// The first message must come within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A message that has begun must be complete within this time.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(30);
/// Who asks for the lease again within this time does so for the same transaction.
const RETRY: Duration = Duration::from_secs(1);
/// How often a session whose time is over looks whether the leader has answered in vain.
const ANSWER_POLL: Duration = Duration::from_millis(100);
/// Room for what comes next, in bytes: for most transactions.
const ROOM: usize = 9 << 10;
/// No queueing longer than this, whatever is asked.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The app broke the protocol.
    #[error("protocol: {0}")]
    Format(#[from] FormatError),
    /// It sent something at the wrong time.
    #[error("protocol: {0}")]
    Order(&'static str),
    /// It was too slow.
    #[error("the app did not complete its message in time")]
    Slow,
}

/// Reads messages; buffered, so that waiting for one can be interrupted.
pub(super) struct Inbox {
    stream: Box<dyn AsyncRead + Send + Sync + Unpin>,
    buffer: BytesMut,
    max: usize,
}

impl Inbox {
    /// The next message without its length; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, SessionError> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<4>() {
                let len = proto::message_length(*prefix, self.max)?;
                if self.buffer.len() >= 4 + len {
                    let _ = self.buffer.split_to(4);
                    return Ok(Some(self.buffer.split_to(len)));
                }
                self.buffer.reserve(4 + len - self.buffer.len());
            }
            let is_idle = self.buffer.is_empty();
            if is_idle {
                self.buffer.reserve(ROOM);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            let n = if is_idle {
                read.await?
            } else {
                timeout(MESSAGE_DEADLINE, read).await.map_err(|_| SessionError::Slow)??
            };
            if n == 0 {
                return Ok(None);
            }
        }
    }
}

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) node: Arc<Node>,
    pub(super) inbox: Inbox,
    out: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Attempts to get the lease since it last committed, and when the last one ended.
    attempts: (u32, Instant),
    /// A large transaction of which parts were sent, and no Commit succeeded.
    pub(super) unfinished: Option<TxnId>,
}

/// Serves a connection, of which these are the two directions, to its end.
pub async fn run(
    (stream, out): (
        impl AsyncRead + Send + Sync + Unpin + 'static,
        impl AsyncWrite + Send + Sync + Unpin + 'static,
    ),
    id: SessionId,
    node: Arc<Node>,
) -> Result<(), SessionError> {
    let (stream, out) = (Box::new(stream), Box::new(out));
    let inbox = Inbox { stream, buffer: BytesMut::new(), max: MAX_SMALL };
    let attempts = (0, Instant::now());
    let mut session = Session { id, node, inbox, out, attempts, unfinished: None };
    let first = timeout(HELLO_DEADLINE, session.inbox.next()).await.map_err(|_| SessionError::Slow)?;
    let hello = match first {
        Ok(None) => return Ok(()),
        Ok(Some(bytes)) => Request::decode(&bytes),
        Err(error) => return Err(error),
    };
    let hello = match hello {
        Ok(Request::Hello(hello)) => hello,
        Ok(_) => return Err(SessionError::Order("the first message was not Hello")),
        Err(error) => {
            let refusal = Refusal::new(RefusalCode::Invalid, error.to_string());
            session.send(&Response::Refused(refusal)).await?;
            return Err(error.into());
        }
    };
    let database = match session.open(&hello).await {
        Ok(database) => database,
        Err(refusal) => {
            debug!(session = id, name = hello.name, pid = hello.pid, "open refused: {refusal}");
            return session.send(&Response::Refused(refusal)).await;
        }
    };
    debug!(session = id, database = database.name, pid = hello.pid, "opened");
    let result = session.serve(&database).await;
    database.gone(id);
    session.forget_unfinished(&database);
    result
}

impl Session {
    async fn send(&mut self, response: &Response) -> Result<(), SessionError> {
        let bytes = response.encode();
        timeout(MESSAGE_DEADLINE, self.out.write_all(&bytes)).await.map_err(|_| SessionError::Slow)??;
        Ok(())
    }

    async fn open(&mut self, hello: &Hello) -> Result<Arc<Database>, Refusal> {
        let invalid = |why: String| Refusal::new(RefusalCode::Invalid, why);
        let ours = self.node.registry().directory_identity();
        if ours.is_ok_and(|ours| ours != hello.directory) {
            let directory = self.node.registry().directory().display().to_string();
            return Err(invalid(format!("this node's databases are in {directory}; open the file there")));
        }
        crate::name::check(&hello.name).map_err(|why| invalid(why.to_string()))?;
        self.node.open_database(&hello.name, hello.create, hello.page_size).await.map_err(|error| match error
        {
            OpenError::NotFound(_) => Refusal::new(RefusalCode::NotFound, error.to_string()),
            OpenError::Invalid(_) => invalid(error.to_string()),
            OpenError::Unavailable(_) => Refusal::new(RefusalCode::Unavailable, error.to_string()),
        })
    }

    async fn serve(&mut self, database: &Arc<Database>) -> Result<(), SessionError> {
        let limits = self.node.limits();
        let welcome = Response::Welcome {
            page_size: database.page_size,
            node_id: self.node.id(),
            commit_deadline_ms: limits.commit_deadline.as_millis() as u32,
            max_transaction: limits.max_transaction,
            wal_limit: database.wal_limit(),
            part_bytes: limits.part_bytes,
        };
        self.send(&welcome).await?;
        while let Some(message) = self.inbox.next().await? {
            match Request::decode(&message)? {
                Request::Hello(_) => return Err(SessionError::Order("a second Hello")),
                Request::Acquire { wait_ms } => {
                    let wait = Duration::from_millis(wait_ms.into()).min(MAX_WAIT);
                    let response = self.acquire(database, wait).await?;
                    // Only the holder of a lease, of whom each database has one, may send much.
                    if matches!(response, Response::Granted { .. }) {
                        self.inbox.max = proto::max_message(limits.part_bytes, database.page_size);
                    }
                    self.send(&response).await?;
                }
                Request::Commit { token, target } => {
                    let outcome = self.commit(database, token, target, message).await?;
                    self.send(&Response::Outcome(outcome)).await?;
                }
                Request::Part { token } => {
                    let response = self.part(database, token, message).await?;
                    self.send(&response).await?;
                }
                Request::Release { token, linger } => {
                    self.inbox.max = MAX_SMALL;
                    database.release(self.id, token, linger);
                    self.forget_unfinished(database);
                }
                Request::Resolve { base, target, id } => {
                    let outcome = self.resolve(database, base, target, id).await?;
                    self.send(&Response::Outcome(outcome)).await?;
                }
                Request::Read { goal, wait_ms } => {
                    let response = self.read(database, goal, Duration::from_millis(wait_ms.into())).await?;
                    self.send(&response).await?;
                }
                Request::Status => {
                    let status = reads::status(&self.node, database);
                    self.send(&Response::Status(status)).await?;
                }
            }
        }
        Ok(())
    }

    async fn acquire(&mut self, database: &Arc<Database>, wait: Duration) -> Result<Response, SessionError> {
        if let Some(why) = self.node.disk_full() {
            return Ok(Response::Refused(Refusal::new(RefusalCode::Full, why)));
        }
        // A writer that is told BUSY, or finds its snapshot old, pauses and comes again; who stays away has given up.
        let before = if self.attempts.1.elapsed() < RETRY { self.attempts.0 } else { 0 };
        let mut answer = database.acquire(self.id, wait, before);
        let mut deadline = Instant::now() + wait;
        let granted = loop {
            tokio::select! {
                biased;
                granted = &mut answer => break granted,
                () = tokio::time::sleep_until(deadline) => {
                    database.expire();
                    // Not over yet only if the leader's answer is on its way.
                    deadline = Instant::now() + ANSWER_POLL;
                }
                message = self.inbox.next() => {
                    // The app may only wait now; the end of the connection frees its place at once.
                    return match message? {
                        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                        Some(_) => Err(SessionError::Order("a message while waiting for the lease")),
                    };
                }
            }
        };
        self.attempts = (before.saturating_add(1), Instant::now());
        Ok(match granted {
            Ok(Ok(grant)) => Response::Granted { token: grant.token, base: grant.base, pages: grant.pages },
            Ok(Err(refusal)) => Response::Refused(refusal),
            Err(_) => Response::Refused(Refusal::new(RefusalCode::Busy, "the lease is not to be had")),
        })
    }

    async fn commit(
        &mut self,
        database: &Arc<Database>,
        token: u64,
        target: WalTarget,
        mut message: BytesMut,
    ) -> Result<Outcome, SessionError> {
        if message.len() < COMMIT_PREFIX + HEADER_SIZE {
            return Err(SessionError::Order("a Commit without a transaction"));
        }
        let begun = {
            let txn = proto::commit_transaction(&message)?;
            if matches!(txn.piece(), Piece::Part { .. }) {
                return Err(SessionError::Order("a Commit with a part that isn't the last"));
            }
            database
                .begin_commit(self.id, token, target, &txn)
                .map(|(head, route, outcome)| (txn.id(), head, route, outcome))
        };
        let (id, head, route, outcome) = match begun {
            Ok(begun) => begun,
            Err(why) => return Ok(Outcome::Refused(why)),
        };
        const { assert!(COMMIT_PREFIX == TRANSACTION_PREFIX) };
        head.write_over(&mut message);
        let proposal = self.propose(database, route, id, message.freeze());
        let deadline = self.node.limits().commit_deadline;
        let outcome = self.outcome(database, id, outcome, deadline, proposal).await;
        if matches!(outcome, Outcome::Committed(_)) {
            self.attempts.0 = 0;
            self.unfinished = None;
        }
        Ok(outcome)
    }

    /// Proposes; the outcome comes through the database, except where the entry certainly wasn't appended.
    fn propose(
        &self,
        database: &Arc<Database>,
        route: Route,
        id: TxnId,
        command: Bytes,
    ) -> impl Future<Output = ()> + use<> {
        let (database, node) = (database.clone(), self.node.clone());
        async move {
            match forward::propose(&node, &database, route, id, command).await {
                Fate::Decided => {}
                Fate::Unknown(reason) => {
                    warn!(database = database.name, transaction = %id, "fate of a proposal unknown: {reason}");
                    forward::conclude(&node, &database, id, Some(route.token)).await;
                }
                Fate::NotProposed(why) => {
                    debug!(database = database.name, transaction = %id, "not proposed: {why}");
                    database.abort_commit(id, &why);
                }
            }
        }
    }

    /// Waits for the outcome while `work` goes on.
    async fn outcome(
        &self,
        database: &Arc<Database>,
        id: TxnId,
        mut outcome: oneshot::Receiver<Outcome>,
        deadline: Duration,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Outcome {
        let mut work = Box::pin(work);
        let deadline = Instant::now() + deadline;
        let mut working = true;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut outcome => break result.ok(),
                () = &mut work, if working => working = false,
                () = tokio::time::sleep_until(deadline) => {
                    database.give_up(id);
                    // It may have been decided in this very moment.
                    break match outcome.try_recv() {
                        Ok(result) => Some(result),
                        Err(_) => Some(Outcome::Unknown("the commit deadline passed".into())),
                    };
                }
            }
        };
        if working {
            // The proposal goes on whatever becomes of the app.
            self.node.spawn(work);
        }
        result.unwrap_or_else(|| Outcome::Refused("it was not proposed: the leader is changing".into()))
    }

    async fn resolve(
        &mut self,
        database: &Arc<Database>,
        base: u64,
        target: WalTarget,
        id: TxnId,
    ) -> Result<Outcome, SessionError> {
        let deadline = self.node.limits().commit_deadline;
        Ok(match database.resolve(self.id, base, target, id) {
            Resolution::Known(outcome) => outcome,
            Resolution::Pending(outcome) => {
                self.outcome(database, id, outcome, deadline, std::future::pending()).await
            }
            Resolution::Unproven(outcome) => {
                let (node, database_too) = (self.node.clone(), database.clone());
                let conclude = async move { forward::conclude(&node, &database_too, id, None).await };
                self.outcome(database, id, outcome, deadline, conclude).await
            }
        })
    }
}
