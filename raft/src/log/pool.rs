//! Spare segments: the preparer thread zero-fills one ahead of need and recycles purged ones.
//!
//! A spare is a file `NNNNNNNNNNNNNNNN.free` of segment size. Its content doesn't matter: what a segment's records
//! are is decided by the life seed in its header, which is drawn anew at each use.
//!
//! # Invariants
//! - Segments are retired oldest first, one after the other, each name change durable before the next: after a crash
//!   the remaining sequences are contiguous.
//! - A file is reused only after its `.free` name is durable, and only if no map of it is alive; otherwise it is
//!   removed (the map stays valid).
//! - [`Pool::full`] is set from the first failure to prepare a spare until the next success. The log writer fails
//!   only when it needs a segment while there is none.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::disk::{Disk, DiskFile};
use super::segment;
use super::state::Segment;

/// Spares kept at most; further retired segments are removed.
const KEEP: usize = 4;
/// Pause between attempts to prepare a spare on a full disk.
const RETRY: Duration = Duration::from_secs(1);
/// How long the writer waits for a spare that is being prepared.
const TAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// A preallocated file, not in use.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) bytes: u64,
}

#[derive(Default)]
struct State {
    spares: Vec<Spare>,
    retired: VecDeque<Arc<Segment>>,
    full: Option<String>,
    /// Attempts to prepare a spare that failed, ever.
    failures: u64,
    next_name: u64,
    closing: bool,
}

/// The pool of spare segments.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    state: Mutex<State>,
    wake: Condvar,
}

impl Pool {
    /// A pool that starts with the given spare files (those of another size are removed).
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_bytes: u64, found: Vec<String>) -> io::Result<Self> {
        let mut state = State::default();
        for name in found {
            let number = name.strip_suffix(".free").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            state.next_name = state.next_name.max(number + 1);
            let file = disk.open(&name)?;
            if file.len()? == segment_bytes && state.spares.len() < KEEP {
                state.spares.push(Spare { name, file, bytes: segment_bytes });
            } else {
                disk.remove(&name)?;
            }
        }
        Ok(Pool { disk, segment_bytes, state: Mutex::new(state), wake: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Why no spare can be prepared, while that is so.
    pub(crate) fn full(&self) -> Option<String> {
        let s = self.lock();
        if s.spares.is_empty() { s.full.clone() } else { None }
    }

    /// Takes a spare of at least `bytes`. One that exceeds the usual size is made on the spot. Waits for the preparer
    /// if need be; fails at once when that has failed.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Spare> {
        let mut s = self.lock();
        if bytes > self.segment_bytes {
            s.next_name += 1;
            let name = format!("{:016}.free", s.next_name);
            drop(s);
            let bytes = bytes.next_multiple_of(segment::DATA_START);
            let file = self.disk.create(&name, bytes)?;
            return Ok(Spare { name, file, bytes });
        }
        let failures = s.failures;
        let deadline = std::time::Instant::now() + TAKE_TIMEOUT;
        loop {
            if let Some(spare) = s.spares.pop() {
                self.wake.notify_all();
                return Ok(spare);
            }
            if s.failures > failures || (s.full.is_some() && s.failures > 0) {
                let why = s.full.clone().unwrap_or_default();
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if s.closing || left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no spare log segment was ready in time",
                ));
            }
            s = self.wake.wait_timeout(s, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Hands over a segment that holds nothing live any more. Must be called oldest first.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        self.lock().retired.push_back(segment);
        self.wake.notify_all();
    }

    /// Ends the preparer thread.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// The preparer thread.
    pub(crate) fn run(&self) {
        let mut s = self.lock();
        loop {
            if let Some(segment) = s.retired.pop_front() {
                let keep = s.spares.len() < KEEP;
                drop(s);
                let spare = self.recycle(segment, keep);
                s = self.lock();
                match spare {
                    Ok(Some(spare)) => {
                        s.full = None;
                        s.spares.push(spare);
                    }
                    Ok(None) => {}
                    Err(e) => {
                        tracing::error!(error = %e, "can't retire a log segment; it stays until the next start")
                    }
                }
                self.wake.notify_all();
                continue;
            }
            if s.closing {
                return;
            }
            if !s.spares.is_empty() {
                s = self.wake.wait(s).unwrap_or_else(|e| e.into_inner());
                continue;
            }
            s.next_name += 1;
            let number = s.next_name;
            drop(s);
            let made = self.prepare(number);
            s = self.lock();
            match made {
                Ok(spare) => {
                    if s.full.take().is_some() {
                        tracing::info!("the log can grow again");
                    }
                    s.spares.push(spare);
                    self.wake.notify_all();
                }
                Err(e) => {
                    if s.full.is_none() {
                        tracing::error!(error = %e, "can't prepare a log segment; writes will be refused");
                    }
                    s.full = Some(e.to_string());
                    s.failures += 1;
                    self.wake.notify_all();
                    // Woken early by a retired segment or by close.
                    s = self.wake.wait_timeout(s, RETRY).unwrap_or_else(|e| e.into_inner()).0;
                }
            }
        }
    }

    fn prepare(&self, number: u64) -> io::Result<Spare> {
        let tmp = format!("{number:016}.tmp");
        let name = format!("{number:016}.free");
        let file = self.disk.create(&tmp, self.segment_bytes)?;
        self.disk.rename(&tmp, &name)?;
        self.disk.sync_names()?;
        Ok(Spare { name, file, bytes: self.segment_bytes })
    }

    fn recycle(&self, mut segment: Arc<Segment>, keep: bool) -> io::Result<Option<Spare>> {
        let old = segment::file_name(segment.sequence);
        // Unique, and no map of it referred to: nobody can read the file any more.
        let unused = Arc::get_mut(&mut segment).is_some_and(|s| s.unmap());
        if !(keep && unused && segment.bytes == self.segment_bytes) {
            self.disk.remove(&old)?;
            self.disk.sync_names()?;
            return Ok(None);
        }
        let number = {
            let mut s = self.lock();
            s.next_name += 1;
            s.next_name
        };
        let name = format!("{number:016}.free");
        self.disk.rename(&old, &name)?;
        self.disk.sync_names()?;
        Ok(Some(Spare { name, file: segment.file.clone(), bytes: segment.bytes }))
    }
}
