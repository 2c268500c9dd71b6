//! Reads: a few connections for each database, on threads that nothing of Raft's runs on. Results go to the client
//! while they are read, through a short queue, so that their size is nobody's problem; a client that doesn't take
//! them keeps its connection no longer than its deadline.

use super::gates::{OpenError, open_reader};
use super::guard::{Guard, Mode};
use super::json::Json;
use super::request::Request;
use super::run::{self, Runner, Sink};
use crate::db::database::Database;
use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::limits::Limit;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

/// Connections of one database that read at the same time.
const READERS: usize = 16;
/// Requests that may wait for one of them.
const MAX_WAITING: usize = 4096;
/// A connection that isn't used is closed after so long.
const IDLE: Duration = Duration::from_secs(30);
/// Results go out in pieces of about this size.
const CHUNK: usize = 64 << 10;
/// Pieces under way.
const CHUNKS: usize = 4;

/// Why a read has no results at all.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Too many wait.
    #[error("too many requests wait for this database")]
    Overloaded,
    /// No connection became free.
    #[error("timeout: all connections of this database are busy")]
    TimedOut,
    /// None can be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A statement would write; for [`super::request::Kind::Request`] alone.
    #[error("a statement writes")]
    Writes,
    /// A bug.
    #[error("the request failed by a bug: {0}")]
    Bug(String),
}

/// A connection that is ready.
struct Ready {
    connection: Connection,
    guard: Guard,
    used: Instant,
}

/// The readers of one database.
pub struct Readers {
    database: Arc<Database>,
    foreign_keys: bool,
    places: Arc<Semaphore>,
    waiting: Semaphore,
    idle: Mutex<Vec<Ready>>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("database", &self.database.name).finish_non_exhaustive()
    }
}

/// What a read gives: pieces of the document, in order. Dropping it ends the read.
#[derive(Debug)]
pub struct Reading {
    chunks: mpsc::Receiver<Bytes>,
    _cancel: Cancel,
}

impl Reading {
    /// The next piece.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.chunks.recv().await
    }
}

/// A read, as the client and the thread that runs it see it.
#[derive(Debug, Default)]
struct Course {
    /// The client is gone.
    is_over: bool,
    /// Stops what runs.
    stop: Option<Arc<AtomicBool>>,
}

type Shared = Arc<Mutex<Course>>;

fn course(shared: &Shared) -> std::sync::MutexGuard<'_, Course> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the client's leaving sets `stop`. False if it is gone already: then nothing must run.
fn begin(shared: &Shared, stop: &Arc<AtomicBool>) -> bool {
    let mut course = course(shared);
    stop.store(false, Relaxed);
    course.stop = Some(stop.clone());
    !course.is_over
}

/// Ends what runs, or would run, when it is dropped.
#[derive(Debug)]
struct Cancel(Shared);

impl Drop for Cancel {
    fn drop(&mut self) {
        let mut course = course(&self.0);
        course.is_over = true;
        if let Some(stop) = &course.stop {
            stop.store(true, Relaxed);
        }
    }
}

/// Sends pieces to the client.
struct Stream {
    chunks: mpsc::Sender<Bytes>,
    runtime: Handle,
    deadline: Instant,
}

impl Stream {
    fn send(&self, json: &mut Json) -> Result<(), String> {
        let chunk = Bytes::from(std::mem::take(&mut json.out));
        let sending = tokio::time::timeout_at(self.deadline.into(), self.chunks.send(chunk));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the client is gone".into()),
            Err(_) => Err("query timeout".into()),
        }
    }
}

impl Sink for Stream {
    fn row(&mut self, json: &mut Json) -> Result<(), String> {
        if json.out.len() >= CHUNK { self.send(json) } else { Ok(()) }
    }
}

impl Readers {
    /// Readers; nothing is opened yet.
    pub fn new(database: Arc<Database>, foreign_keys: bool) -> Arc<Readers> {
        Arc::new(Readers {
            database,
            foreign_keys,
            places: Arc::new(Semaphore::new(READERS)),
            waiting: Semaphore::new(MAX_WAITING),
            idle: Mutex::default(),
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Ready>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes connections that have not been used for a while.
    pub fn tidy(&self) {
        let old: Vec<_> = self.idle().extract_if(.., |ready| ready.used.elapsed() > IDLE).collect();
        drop(old);
    }

    fn connection(&self) -> Result<Ready, OpenError> {
        if let Some(ready) = self.idle().pop() {
            return Ok(ready);
        }
        let mut connection = open_reader(&self.database)?;
        let guard = Guard::install(&mut connection, self.foreign_keys)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        Ok(Ready { connection, guard, used: Instant::now() })
    }

    /// Runs a request that only reads, until `deadline`.
    pub async fn read(
        self: &Arc<Self>,
        request: Arc<Request>,
        deadline: Instant,
    ) -> Result<Reading, ReadError> {
        let _turn = self.waiting.try_acquire().map_err(|_| ReadError::Overloaded)?;
        let place = tokio::time::timeout_at(deadline.into(), self.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| ReadError::TimedOut)?.map_err(|_| ReadError::TimedOut)?;
        let (chunks, received) = mpsc::channel(CHUNKS);
        let (readers, runtime) = (self.clone(), Handle::current());
        let shared = Shared::default();
        let cancel = Cancel(shared.clone());
        let (begun, begins) = tokio::sync::oneshot::channel();
        let stream = Stream { chunks, runtime, deadline };
        let work = tokio::task::spawn_blocking(move || {
            // It may have waited for this thread for a while.
            if course(&shared).is_over {
                return;
            }
            let ready = match readers.connection() {
                Ok(ready) => ready,
                Err(error) => {
                    let _ = begun.send(Err(error.into()));
                    return;
                }
            };
            if begin(&shared, ready.guard.cancelled()) {
                if request.kind == super::request::Kind::Request && writes(&ready, &request) {
                    let _ = begun.send(Err(ReadError::Writes));
                } else if begun.send(Ok(())).is_ok() {
                    serve(&ready, &request, stream);
                }
            }
            course(&shared).stop = None;
            if ready.connection.is_autocommit() {
                readers.idle().push(Ready { used: Instant::now(), ..ready });
            }
            drop(place);
        });
        match begins.await {
            Ok(begun) => begun.map(|()| Reading { chunks: received, _cancel: cancel }),
            Err(_) => {
                Err(ReadError::Bug(work.await.err().map_or_else(String::new, |error| error.to_string())))
            }
        }
    }
}

/// Whether a statement of a request writes, or can't be understood without one that does.
fn writes(ready: &Ready, request: &Request) -> bool {
    ready.guard.enter(Mode::Shared, None);
    let writes = request.statements.iter().any(|s| match ready.connection.prepare_cached(&s.sql) {
        Ok(statement) => !statement.readonly(),
        Err(rusqlite::Error::Empty) => false,
        Err(_) => true,
    });
    ready.guard.leave();
    writes
}

/// Runs the statements and sends the results.
fn serve(ready: &Ready, request: &Request, mut stream: Stream) {
    let began = Instant::now();
    let limit = request.db_timeout.map_or(stream.deadline, |timeout| stream.deadline.min(began + timeout));
    let output = request.output;
    let runner = Runner { connection: &ready.connection, guard: &ready.guard, kind: request.kind, output };
    let mut json = run::begin(&output);
    let mut error = None;
    ready.guard.leave();
    if request.transaction
        && let Err(why) = ready.connection.execute_batch("BEGIN")
    {
        error = Some(why.to_string());
    }
    if error.is_none() {
        for statement in &request.statements {
            ready.guard.enter(Mode::Shared, Some(limit));
            let ran = runner.statement(statement, &mut json, &mut stream);
            ready.guard.leave();
            if (ran.is_err() && request.transaction) || stream.chunks.is_closed() {
                break;
            }
        }
    }
    if request.transaction {
        ready.guard.cancelled().store(false, Relaxed);
        let _ = ready.connection.execute_batch("ROLLBACK");
    }
    run::end(&mut json, &output, error.as_deref(), began, None);
    let _ = stream.send(&mut json);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_leaves_before_its_read_begins_ends_it() {
        let (shared, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        drop(Cancel(shared.clone()));
        assert!(!begin(&shared, &stop));
    }

    #[test]
    fn a_client_that_leaves_stops_its_read_and_no_other() {
        // The connection's flag may still be set by the client before.
        let (shared, stop) = (Shared::default(), Arc::new(AtomicBool::new(true)));
        let cancel = Cancel(shared.clone());
        assert!(begin(&shared, &stop) && !stop.load(Relaxed));
        drop(cancel);
        assert!(stop.load(Relaxed));
        let (shared, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        let cancel = Cancel(shared.clone());
        assert!(begin(&shared, &stop));
        course(&shared).stop = None;
        drop(cancel);
        assert!(!stop.load(Relaxed), "the connection is another's by now");
    }
}
