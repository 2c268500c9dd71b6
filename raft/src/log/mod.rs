//! The log on disk: segments of records, a vote file, a lock.
//!
//! ```text
//! DIR/raft/lock                          held exclusively by the process that has the log open
//! DIR/raft/log/vote                      two vote slots                          (vote.rs)
//! DIR/raft/log/0000000000000007.seg      segments: contiguous sequences          (segment.rs, record.rs)
//! DIR/raft/log/0000000000000002.free     preallocated spares, content irrelevant (pool.rs)
//! DIR/raft/log/*.tmp                     spares in the making, removed at start
//! ```
//! `store.rs` is openraft's view, `state.rs` what is in memory, `retention.rs` how much of it there is, `writer.rs` the
//! thread that writes, `open.rs` the way back from disk, `disk.rs` the only way to the disk.

pub(crate) mod disk;
pub(crate) mod open;
mod pool;
pub(crate) mod record;
mod retention;
pub(crate) mod segment;
#[cfg(any(test, fuzzing, feature = "simulation"))]
pub(crate) mod simdisk;
#[cfg(feature = "simulation")]
pub(crate) mod simulated;
mod state;
mod store;
#[cfg(test)]
mod tests;
pub(crate) mod vote;
mod writer;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

pub(crate) use open::{LogOptions, open};
pub(crate) use store::LogStore;

use disk::Disk;
use pool::Pool;
use state::State;

/// Kept free in the last segment of a full disk for what isn't a proposal: blanks, memberships, purge marks.
const RESERVE_DIVISOR: u64 = 8;

/// What the store's handles and its threads have in common.
pub(crate) struct Shared {
    disk: Arc<dyn Disk>,
    pool: Arc<Pool>,
    state: Mutex<State>,
    /// Highest durable index.
    flushed: watch::Sender<u64>,
    cache_bytes: usize,
    segment_bytes: u64,
    /// Bytes free in the active segment, as of the last batch.
    tail: AtomicU64,
    /// True once the writer thread has ended and released its files.
    closed: watch::Sender<bool>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a bug, but one that leaves readers no worse off than the panic itself.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set_tail(&self, bytes: u64) {
        self.tail.store(bytes, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        match self.failed() {
            Some(why) => Err(io::Error::other(format!("the log failed earlier: {why}"))),
            None => Ok(()),
        }
    }

    /// Why the log failed, if it has.
    fn failed(&self) -> Option<String> {
        let failed = self.state().failed.clone();
        failed.or_else(|| self.pool.failed())
    }

    /// Whether `bytes` of proposals (those in flight included) fit a log that may be unable to grow.
    pub(crate) fn room_for(&self, bytes: u64) -> Result<(), String> {
        let Some(why) = self.pool.full() else { return Ok(()) };
        if self.pool.is_waiting() {
            return Err(why);
        }
        let room = self.tail.load(Ordering::Relaxed).saturating_sub(self.segment_bytes / RESERVE_DIVISOR);
        if bytes <= room { Ok(()) } else { Err(why) }
    }
}
