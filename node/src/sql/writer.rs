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
//! - A request for which nobody waits any more is interrupted in the same way, and not run again.
//! - What can't run in a transaction, or would be felt on the connection afterwards, has the connection to itself, and
//!   the connection is given up after it.
//! - Nobody is answered before the outcome is known. Refused: nothing happened, the batch is run again, or each of it
//!   alone if the transaction is what can't be. Unknown: everybody in the batch is told so, and looks in the log.
//! - Before it is proposed, those who wait for its requests are asked ([`super::consent`]).

use super::batch::Session;
use super::consent::{Origin, Sent};
use super::guard::Gone;
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
/// The shortest and the longest time to wait for the next one of those who were answered.
const MIN_GAP: Duration = Duration::from_micros(100);
const MAX_GAP: Duration = Duration::from_millis(2);
/// The longest time to wait for all of them.
const MAX_WAIT: Duration = Duration::from_millis(10);
/// After so many times in vain, nobody is waited for in all but one of `2.pow(MAX_VAIN)` batches.
const MAX_VAIN: u32 = 6;
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
    /// Whether anybody waits.
    pub gone: Gone,
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
    /// The thread waits for this many requests.
    wanted: Option<usize>,
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

/// A batch that was answered.
#[derive(Debug, Default)]
struct Batch {
    requests: usize,
    took: Duration,
}

/// Whether those who were answered are waited for.
#[derive(Debug, Default)]
struct Patience {
    /// How often in a row it was in vain, up to [`MAX_VAIN`].
    vain: u32,
    /// Batches for which nobody is waited for.
    rest: u32,
}

impl Patience {
    fn is_left(&mut self) -> bool {
        let is_left = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        is_left
    }

    /// So many came of those who had been answered. If they were few, it is tried again later, and later each time.
    fn learn(&mut self, came: usize, answered: usize) {
        self.vain = if 2 * came >= answered { 0 } else { MAX_VAIN.min(self.vain + 1) };
        self.rest = (1 << self.vain) - 1;
    }
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
        let is_idle = queue.jobs.is_empty() && (queue.wanted.is_some() || !queue.is_running);
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
        if queue.wanted.is_some_and(|wanted| queue.jobs.len() >= wanted) {
            queue.wanted = None;
            drop(queue);
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// The thread.
    fn work(self: Arc<Self>) {
        let mut session = Session::new(&self);
        let (mut last, mut patience) = (Batch::default(), Patience::default());
        while let Some(batch) = self.next_batch(&last, &mut patience) {
            last.requests = batch.len();
            let began = Instant::now();
            // A bug fails the requests that it was met with, not the node.
            let run = std::panic::AssertUnwindSafe(|| session.run(batch));
            if std::panic::catch_unwind(run).is_err() {
                error!(database = self.database.name, "a batch of requests failed by a bug");
                session.close();
            }
            last.took = began.elapsed();
        }
    }

    /// Clients that write in unbroken sequence come back when they have been answered. Those who just were are waited
    /// for while they come, which makes one batch of all: otherwise two halves take turns, at the price of twice as many
    /// entries. A batch without its company costs about as much as one of all, so what the last one took is not too
    /// long to wait for the next who comes.
    fn gather(&self, last: &Batch, patience: &mut Patience) {
        if !patience.is_left() {
            return;
        }
        let gap = last.took.clamp(MIN_GAP, MAX_GAP);
        let limit = Instant::now() + (2 * last.took).min(MAX_WAIT);
        let mut queue = self.queue();
        let there = queue.jobs.len();
        let expected = (there + last.requests).min(MAX_BATCH);
        while queue.jobs.len() < expected && queue.bytes < MAX_BATCH_BYTES {
            if queue.is_over || Instant::now() >= limit {
                break;
            }
            let before = queue.jobs.len();
            queue.wanted = Some(expected);
            queue = self.arrived.wait_timeout(queue, gap).unwrap_or_else(PoisonError::into_inner).0;
            queue.wanted = None;
            if queue.jobs.len() == before {
                break;
            }
        }
        patience.learn(queue.jobs.len() - there, last.requests);
    }

    /// The next requests that share a transaction, after one of so many. `None` when there has been nothing to do
    /// for a while.
    fn next_batch(&self, last: &Batch, patience: &mut Patience) -> Option<Vec<Job>> {
        self.gather(last, patience);
        let mut queue = self.queue();
        while queue.jobs.is_empty() {
            if queue.is_over {
                queue.is_running = false;
                return None;
            }
            queue.wanted = Some(1);
            let (guard, waited) =
                self.arrived.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.wanted = None;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often of so many batches somebody is waited for, if so many of 10 come back.
    fn waits(patience: &mut Patience, batches: usize, came: usize) -> usize {
        let mut waits = 0;
        for _ in 0..batches {
            if patience.is_left() {
                waits += 1;
                patience.learn(came, 10);
            }
        }
        waits
    }

    #[test]
    fn clients_that_do_not_come_back_are_seldom_waited_for() {
        let mut patience = Patience::default();
        assert_eq!(waits(&mut patience, 100, 10), 100);
        assert_eq!(waits(&mut patience, 100, 5), 100);
        assert!(waits(&mut patience, 1000, 4) <= 6 + 1000 / 64);
        // Once they do, they are again, after a while.
        assert!(waits(&mut patience, 1000, 10) >= 1000 - 64);
    }
}
