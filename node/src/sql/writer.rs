//! Group commit: one thread for each database that is being written over HTTP.
//!
//! ```text
//! requests ──► queue ──► BEGIN IMMEDIATE · request · request · … · COMMIT ──► one entry ──► answers
//!                ▲                                            │
//!                └── what arrives while the entry is in flight ◄
//! ```
//!
//! Each request has the results that it would have alone:
//!
//! - A statement that fails is undone by SQLite's own statement journal; a request with `transaction` has a savepoint.
//! - Some failures end the whole transaction: an interrupt at `db_timeout`, a full disk, `ON CONFLICT ROLLBACK`. Nothing
//!   has been answered by then. So the batch begins again, and the statement that did it is not run again: its error is
//!   known.
//! - What can't run in a transaction, or would be felt on the connection afterwards, has the connection to itself, and
//!   the connection is given up after it.
//! - Nobody is answered before the outcome is known. Refused: nothing happened, the batch is run again, or each of it
//!   alone if the transaction is what can't be. Unknown: everybody in the batch is told so, and looks in the log.
//! - Before it is proposed, those who wait for its requests are asked ([`super::consent`]).

use super::batch::Session;
use super::consent::{Origin, Sent};
use super::request::Request;
use crate::db::database::Database;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::error;

/// Requests that may wait for one database.
const MAX_QUEUE: usize = 8192;
/// Bytes of requests that may wait for one database.
const MAX_QUEUE_BYTES: usize = 128 << 20;
/// Requests in one transaction.
const MAX_BATCH: usize = 512;
/// Bytes of requests in one transaction.
const MAX_BATCH_BYTES: usize = 2 << 20;
/// A thread without work keeps its connection for so long.
const IDLE: Duration = Duration::from_secs(30);

/// A request on its way.
#[derive(Debug)]
pub struct Job {
    /// What to run.
    pub request: Arc<Request>,
    /// It has a connection to itself.
    pub alone: bool,
    /// When nobody waits any more.
    pub deadline: Instant,
    /// Who is asked before it is committed.
    pub origin: Option<Origin>,
    /// Who waits.
    pub reply: oneshot::Sender<Result<Vec<u8>, WriteError>>,
}

/// Why a request has no results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nothing was done: this node doesn't lead.
    #[error("{0}")]
    NotLeader(String),
    /// Nothing was done: too much waits already.
    #[error("too many requests wait for this database")]
    Overloaded,
    /// Nothing was done before the deadline.
    #[error("timeout: {0}; nothing was changed")]
    TimedOut(String),
    /// Nothing was changed, nor will be if it is tried again.
    #[error("{0}")]
    Refused(String),
    /// It may have been done.
    #[error("outcome unknown: {0}; look before you try again")]
    Unknown(String),
}

impl WriteError {
    /// How the message of [`WriteError::Unknown`] begins.
    pub(super) const UNKNOWN: &str = "outcome unknown";
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(Job, usize)>,
    bytes: usize,
    is_running: bool,
    /// The thread waits for a request.
    is_waiting: bool,
    /// No more requests will come.
    is_over: bool,
}

/// What a writer needs to know of its node.
#[derive(Clone, Debug)]
pub struct Place {
    /// The gate's socket.
    pub socket: PathBuf,
    /// Device and inode of the database directory.
    pub directory: (u64, u64),
    /// Whether foreign keys are enforced.
    pub foreign_keys: bool,
    /// Told of each commit.
    pub stats: Arc<super::stats::Stats>,
    /// What this node waits for.
    pub sent: Arc<Sent>,
    /// Where nodes are asked.
    pub runtime: Handle,
}

/// The writer of one database.
#[derive(Debug)]
pub struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) place: Place,
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Writer {
    /// A writer; its thread starts with the first request.
    pub fn new(database: Arc<Database>, place: Place) -> Arc<Writer> {
        Arc::new(Writer { database, place, queue: Mutex::default(), arrived: Condvar::new() })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody but the caller and its idle thread has a reference to it.
    pub fn is_unused(self: &Arc<Self>) -> bool {
        let queue = self.queue();
        let is_idle = queue.jobs.is_empty() && (queue.is_waiting || !queue.is_running);
        is_idle && Arc::strong_count(self) == 1 + usize::from(queue.is_running)
    }

    /// Nobody will submit anything any more: its thread, if there is one, closes its connection and ends.
    pub fn end(&self) {
        self.queue().is_over = true;
        self.arrived.notify_one();
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue().jobs.len()
    }

    /// Queues a request.
    pub fn submit(self: &Arc<Self>, job: Job) -> Result<(), WriteError> {
        let size = job.request.size();
        let mut queue = self.queue();
        let is_full = queue.jobs.len() >= MAX_QUEUE || queue.bytes + size > MAX_QUEUE_BYTES;
        if is_full && !queue.jobs.is_empty() {
            return Err(WriteError::Overloaded);
        }
        queue.bytes += size;
        queue.jobs.push_back((job, size));
        if !queue.is_running {
            let writer = self.clone();
            let name = super::THREAD.to_owned();
            let spawned = std::thread::Builder::new().name(name).spawn(move || writer.work());
            if let Err(why) = spawned {
                queue.jobs.clear();
                queue.bytes = 0;
                return Err(WriteError::TimedOut(format!("no thread: {why}")));
            }
            queue.is_running = true;
        }
        // Waking is a system call; while the thread is at work, it will look by itself.
        if std::mem::take(&mut queue.is_waiting) {
            drop(queue);
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// The thread.
    fn work(self: Arc<Self>) {
        let mut session = Session::new(&self);
        let mut answered = 0;
        while let Some(batch) = self.next_batch(answered) {
            answered = batch.len();
            // A bug fails the requests that it was met with, not the node.
            let run = std::panic::AssertUnwindSafe(|| session.run(batch));
            if std::panic::catch_unwind(run).is_err() {
                error!(database = self.database.name, "a batch of requests failed by a bug");
                session.close();
            }
        }
    }

    /// Clients that write in unbroken sequence come back when they have been answered. A moment for those who just
    /// were makes one batch of all, where otherwise two halves would take turns; it ends when nobody comes.
    fn gather(&self, answered: usize) {
        const STEP: Duration = Duration::from_micros(50);
        const STEPS: usize = 10;
        if answered < 4 {
            return;
        }
        let mut waiting = self.waiting();
        let expected = waiting + answered;
        for _ in 0..STEPS {
            std::thread::sleep(STEP);
            let now = self.waiting();
            if now >= expected || now == waiting {
                return;
            }
            waiting = now;
        }
    }

    /// The next requests that share a transaction, after one of so many. `None` when there has been nothing to do
    /// for a while.
    fn next_batch(&self, answered: usize) -> Option<Vec<Job>> {
        self.gather(answered);
        let mut queue = self.queue();
        while queue.jobs.is_empty() {
            if queue.is_over {
                queue.is_running = false;
                return None;
            }
            queue.is_waiting = true;
            let (guard, waited) =
                self.arrived.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.is_waiting = false;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.is_running = false;
                return None;
            }
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((job, size)) = queue.jobs.front() {
            let fits = batch.len() < MAX_BATCH && bytes + size <= MAX_BATCH_BYTES;
            if !batch.is_empty() && (!fits || job.alone) {
                break;
            }
            let is_last = job.alone;
            bytes += size;
            if let Some((job, size)) = queue.jobs.pop_front() {
                queue.bytes -= size;
                batch.push(job);
            }
            if is_last {
                break;
            }
        }
        Some(batch)
    }
}
