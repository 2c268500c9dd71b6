//! Threads that block, and how they wait. Work on files blocks, and a worker may wait for another process, so neither
//! is done on the runtime's own threads. Every place where such a thread waits for something else than the disk is one
//! of these, so that a simulation can let time go by meanwhile.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Runs what may block.
pub(crate) fn run(runtime: &Handle, work: impl FnOnce() + Send + 'static) {
    runtime.spawn_blocking(work);
}

/// Lets go of a lock until `changed` says so, or for some time.
pub(crate) fn pause<'a, T>(
    _lock: &'a Mutex<T>,
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    #[cfg(test)]
    if crate::sim::threads::is_simulated() {
        drop(guard);
        crate::sim::threads::sleep(time);
        return _lock.lock().unwrap_or_else(PoisonError::into_inner);
    }
    changed.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Waits for a message.
pub(crate) fn receive<T>(from: &Receiver<T>, patience: Duration) -> Result<T, RecvTimeoutError> {
    #[cfg(test)]
    if crate::sim::threads::is_simulated() {
        return crate::sim::threads::receive(from, patience);
    }
    from.recv_timeout(patience)
}

/// Waits for the other end to be dropped, however long that takes.
pub(crate) fn await_end(of: &Receiver<()>) {
    #[cfg(test)]
    if crate::sim::threads::is_simulated() {
        let _ = crate::sim::threads::receive(of, Duration::MAX);
        return;
    }
    let _ = of.recv();
}
