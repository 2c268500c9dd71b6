//! Spare segments: the preparer thread zero-fills one ahead of need and recycles purged ones.
//!
//! A spare is a file `NNNNNNNNNNNNNNNN.free` of segment size. Its content doesn't matter: what a segment's records
//! are is decided by the life seed in its header, which is drawn anew at each use.
//!
//! # Invariants
//! - Segments are retired oldest first, one after the other, each name change durable before the next: after a crash
//!   the remaining sequences are contiguous.
//! - A file is reused only after its `.free` name is durable, and only if nobody reads it; otherwise it is removed
//!   (whoever has it open reads on).
//! - [`Pool::full`] is set from the first failure to prepare a spare until the next success. The log writer waits
//!   for a segment while the disk is full, until there is room or the log is closed; for any other reason it fails
//!   when it needs a segment while there is none and no purged one is on its way.
//! - A writer that waits is given the turn when something is to be purged ([`Pool::nudge`]), as that may be what makes
//!   room. Where it waits for a file of another size than a spare's, spares are removed for it, and none is made.
//!
//! # Failures
//! A spare that can't be made (its sync included) is thrown away, as nothing depends on it, and another one is tried
//! after a pause. A segment that can't be renamed or removed stays first in the queue and is tried again: were it
//! passed over, the sequences would have a gap. A failed sync of names is final, as a failed sync is everywhere:
//! which names are on disk is then unknown ([`Pool::failed`]).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::disk::{Disk, DiskFile};
use super::segment;
use super::state::Segment;

/// Spares kept at most; further retired segments are removed.
const KEEP: usize = 4;
/// Pause between attempts to prepare a spare on a full disk, or to give up a segment.
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
    /// A retired segment is being recycled.
    recycling: bool,
    /// The first retired segment could be neither renamed nor removed.
    stuck: bool,
    full: Option<(io::ErrorKind, String)>,
    /// Why the writer waits for room, while it does.
    waiting: Option<String>,
    /// It waits for a file that is larger than a spare.
    oversized: bool,
    /// It is to look for what may be purged before it goes on waiting.
    nudged: bool,
    /// The log is being closed: nobody waits for room any more.
    impatient: bool,
    /// Attempts to prepare a spare that failed, ever.
    failures: u64,
    /// A sync of names failed; final.
    failed: Option<String>,
    next_name: u64,
    closing: bool,
    /// There is no preparer thread.
    #[cfg(feature = "simulation")]
    alone: bool,
}

/// How the preparer goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Again,
    /// When it is woken.
    Wake,
    /// Then, or after a pause.
    Retry,
    End,
}

/// Why the preparer didn't get something done.
enum Trouble {
    /// No name was changed; it may be tried again.
    Unchanged(io::Error),
    /// Names were changed, but not durably.
    Final(io::Error),
}

/// The pool of spare segments.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    state: Mutex<State>,
    wake: Condvar,
}

impl Pool {
    /// A pool that starts with the given spare files (those of another size are removed). Where `wait_for_room` isn't
    /// set, a full disk fails the writer at once.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        found: Vec<String>,
        wait_for_room: bool,
    ) -> io::Result<Self> {
        let mut state = State { impatient: !wait_for_room, ..State::default() };
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
        let full = s.full.as_ref().filter(|_| s.spares.is_empty()).map(|(_, why)| why.clone());
        s.waiting.clone().or(full)
    }

    /// Whether the writer waits for room: nothing that is queued gets to the disk.
    pub(crate) fn is_waiting(&self) -> bool {
        self.lock().waiting.is_some()
    }

    /// From now on nobody waits for room.
    pub(crate) fn hurry(&self) {
        self.lock().impatient = true;
        self.wake.notify_all();
    }

    /// Why the log can't go on, if names could not be made durable.
    pub(crate) fn failed(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    /// Whether a spare is at hand. Stays true until the caller takes it, if only one takes spares.
    pub(crate) fn ready(&self) -> bool {
        !self.lock().spares.is_empty()
    }

    /// Whether nothing is left to do for the preparer that it could do now.
    #[cfg(test)]
    pub(crate) fn quiet(&self) -> bool {
        let s = self.lock();
        let retiring = s.recycling || !(s.retired.is_empty() || s.stuck);
        s.failed.is_some() || !retiring && (s.full.is_some() || s.oversized || !s.spares.is_empty())
    }

    /// Takes a spare of at least `bytes`. One that exceeds the usual size is made on the spot. Waits for the preparer
    /// if need be, and for room on a full disk; fails at once when the preparer has failed for another reason. `None`:
    /// there is no room yet, and something may have been asked to be purged; to be called again after that.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Option<Spare>> {
        let taken = if bytes > self.segment_bytes { self.make(bytes) } else { self.take_prepared() };
        if matches!(taken, Ok(None)) {
            return taken;
        }
        let mut s = self.lock();
        (s.oversized, s.nudged) = (false, false);
        if s.waiting.take().is_some() {
            tracing::info!(ok = taken.is_ok(), "the log waits for room no longer");
        }
        self.wake.notify_all();
        taken
    }

    /// A purge is in the writer's queue.
    pub(crate) fn nudge(&self) {
        let mut s = self.lock();
        if s.waiting.is_some() {
            s.nudged = true;
            self.wake.notify_all();
        }
    }

    /// Takes note that the writer waits for room, if it may wait: false if it may not.
    fn may_wait(s: &mut State, kind: io::ErrorKind, why: &str) -> bool {
        if kind != io::ErrorKind::StorageFull || s.impatient {
            return false;
        }
        if s.waiting.is_none() {
            tracing::error!("the disk is full ({why}): the log waits for room, and takes nothing until then");
            s.waiting = Some(why.to_owned());
            // What is in the queue already was no reason to nudge.
            s.nudged = true;
        }
        true
    }

    fn make(&self, bytes: u64) -> io::Result<Option<Spare>> {
        let bytes = bytes.next_multiple_of(segment::DATA_START);
        loop {
            let mut s = self.lock();
            s.next_name += 1;
            let name = format!("{:016}.free", s.next_name);
            drop(s);
            let error = match self.disk.create(&name, bytes) {
                Ok(file) => return Ok(Some(Spare { name, file, bytes })),
                Err(error) => error,
            };
            let mut s = self.lock();
            if !Self::may_wait(&mut s, error.kind(), &error.to_string()) {
                return Err(error);
            }
            s.oversized = true;
            if let Some(spare) = s.spares.pop() {
                drop(s);
                // One that stays is found at the next start.
                let _ = self.disk.remove(&spare.name);
                continue;
            }
            if std::mem::take(&mut s.nudged) {
                return Ok(None);
            }
            // Woken early by a retired segment or by close.
            drop(self.wake.wait_timeout(s, RETRY).unwrap_or_else(|e| e.into_inner()));
        }
    }

    fn take_prepared(&self) -> io::Result<Option<Spare>> {
        let mut s = self.lock();
        let mut failures = s.failures;
        let mut deadline = std::time::Instant::now() + TAKE_TIMEOUT;
        loop {
            if let Some(spare) = s.spares.pop() {
                self.wake.notify_all();
                return Ok(Some(spare));
            }
            if let Some(why) = &s.failed {
                return Err(io::Error::other(why.clone()));
            }
            #[cfg(feature = "simulation")]
            if s.alone {
                s = self.turn(s).0;
                continue;
            }
            let coming = s.recycling || !(s.retired.is_empty() || s.stuck);
            if !coming && let Some((kind, why)) = s.full.clone() {
                if !Self::may_wait(&mut s, kind, &why) {
                    return Err(io::Error::new(kind, why));
                }
                failures = s.failures;
                deadline = std::time::Instant::now() + TAKE_TIMEOUT;
            }
            if !coming && s.failures > failures {
                return Err(io::Error::other("a log segment could not be prepared"));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if s.waiting.is_some() && std::mem::take(&mut s.nudged) {
                return Ok(None);
            }
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
            let next;
            (s, next) = self.turn(s);
            s = match next {
                Next::Again => continue,
                Next::End => return,
                Next::Wake => self.wake.wait(s).unwrap_or_else(|e| e.into_inner()),
                // Woken early by a retired segment or by close.
                Next::Retry => self.wake.wait_timeout(s, RETRY).unwrap_or_else(|e| e.into_inner()).0,
            };
            s.stuck = false;
        }
    }

    /// Does what is to be done next, if anything is.
    fn turn<'a>(&'a self, mut s: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, Next) {
        if !s.stuck
            && let Some(mut segment) = s.retired.pop_front()
        {
            s.recycling = true;
            let keep = s.spares.len() < KEEP && !s.oversized;
            drop(s);
            let result = self.recycle(&mut segment, keep);
            s = self.lock();
            s.recycling = false;
            match result {
                Ok(Some(spare)) => {
                    s.full = None;
                    s.spares.push(spare);
                }
                Ok(None) => {}
                Err(Trouble::Unchanged(e)) => {
                    tracing::error!(error = %e, "can't give up a log segment; will try again");
                    s.retired.push_front(segment);
                    s.stuck = true;
                }
                Err(Trouble::Final(e)) => s.failed = Some(e.to_string()),
            }
            self.wake.notify_all();
            return (s, Next::Again);
        }
        if s.closing || s.failed.is_some() {
            return (s, Next::End);
        }
        if !s.spares.is_empty() || s.oversized {
            let next = if s.stuck { Next::Retry } else { Next::Wake };
            return (s, next);
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
                (s, Next::Again)
            }
            Err(Trouble::Final(e)) => {
                s.failed = Some(e.to_string());
                self.wake.notify_all();
                (s, Next::Again)
            }
            Err(Trouble::Unchanged(e)) => {
                if s.full.is_none() {
                    tracing::error!(error = %e, "can't prepare a log segment; writes will be refused");
                }
                s.full = Some((e.kind(), e.to_string()));
                s.failures += 1;
                self.wake.notify_all();
                (s, Next::Retry)
            }
        }
    }

    /// Has whoever takes a spare do what the preparer thread would; where there is none.
    #[cfg(feature = "simulation")]
    pub(crate) fn alone(&self) {
        self.lock().alone = true;
    }

    /// What the preparer thread would do by now.
    #[cfg(feature = "simulation")]
    pub(crate) fn catch_up(&self) {
        let mut s = self.lock();
        loop {
            let next;
            (s, next) = self.turn(s);
            if next != Next::Again {
                s.stuck = false;
                return;
            }
        }
    }

    fn prepare(&self, number: u64) -> Result<Spare, Trouble> {
        let tmp = format!("{number:016}.tmp");
        let name = format!("{number:016}.free");
        let file = self.disk.create(&tmp, self.segment_bytes).map_err(Trouble::Unchanged)?;
        if let Err(e) = self.disk.rename(&tmp, &name) {
            // Each attempt makes a file of its own; if this fails too, the next start removes them.
            let _ = self.disk.remove(&tmp);
            return Err(Trouble::Unchanged(e));
        }
        self.disk.sync_names().map_err(Trouble::Final)?;
        Ok(Spare { name, file, bytes: self.segment_bytes })
    }

    fn recycle(&self, segment: &mut Arc<Segment>, keep: bool) -> Result<Option<Spare>, Trouble> {
        let old = segment::file_name(segment.sequence);
        // Nobody reads the file any more.
        let unused = Arc::get_mut(segment).is_some();
        if !(keep && unused && segment.bytes == self.segment_bytes) {
            self.disk.remove(&old).map_err(Trouble::Unchanged)?;
            self.disk.sync_names().map_err(Trouble::Final)?;
            return Ok(None);
        }
        let number = {
            let mut s = self.lock();
            s.next_name += 1;
            s.next_name
        };
        let name = format!("{number:016}.free");
        self.disk.rename(&old, &name).map_err(Trouble::Unchanged)?;
        self.disk.sync_names().map_err(Trouble::Final)?;
        Ok(Some(Spare { name, file: segment.file.clone(), bytes: segment.bytes }))
    }
}
