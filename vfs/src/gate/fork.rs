//! Descriptors that a forked child must not keep.
//!
//! A connection to the node and a gate lock stand for their process: the node and the kernel take them for gone when
//! the last copy of the descriptor is closed. A child that `fork(2)` makes has copies. If it outlived a parent that was
//! killed in the middle of a transaction, the parent would seem to be in there still, and nobody could write.
//!
//! So each such descriptor is put down in a table, and in a child, before `fork` returns there, `/dev/null` takes its
//! place under the same number. What the child has of the parent's objects then closes nothing that is another's, and
//! makes itself connections of its own at the next need (`SocketGate::wire`). The parent's are untouched by that.
//!
//! No descriptor is made or closed while another thread forks. Programs that call `clone(2)` past the C library
//! are not seen; those that call `execve(2)` need nothing of this, as all of these are closed then.

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};

const FREE: i32 = -1;

/// One descriptor, or room for one. Never freed: a handler may be looking at it.
struct Place {
    fd: AtomicI32,
    next: *const Place,
}

static PLACES: AtomicPtr<Place> = AtomicPtr::new(std::ptr::null_mut());
/// Held while a descriptor is made or closed, and while a process forks.
static TURN: AtomicBool = AtomicBool::new(false);
/// What takes the place of descriptors in a child.
static NULL: OnceLock<File> = OnceLock::new();

struct Turn;

impl Turn {
    fn take() -> Turn {
        while TURN.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.store(false, Ordering::Release);
    }
}

fn places() -> impl Iterator<Item = &'static Place> {
    let mut next = PLACES.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: places are leaked boxes, linked before they were published and not changed since.
        let place = unsafe { next.as_ref() }?;
        next = place.next;
        Some(place)
    })
}

fn put(fd: i32) -> &'static Place {
    let free = places().find(|place| place.fd.load(Ordering::Relaxed) == FREE);
    let place = free.unwrap_or_else(|| {
        let next = PLACES.load(Ordering::Relaxed).cast_const();
        let place = Box::leak(Box::new(Place { fd: AtomicI32::new(FREE), next }));
        PLACES.store(place, Ordering::Release);
        place
    });
    place.fd.store(fd, Ordering::Release);
    place
}

/// A descriptor of which a forked child gets no copy.
pub struct Private {
    fd: Option<OwnedFd>,
    place: &'static Place,
}

// SAFETY: what is behind `place` is a leaked allocation of atomics and a pointer that never changes.
unsafe impl Send for Private {}
// SAFETY: as above.
unsafe impl Sync for Private {}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Private").field(&self.fd).finish()
    }
}

impl Private {
    /// Makes one.
    pub fn new(make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Private> {
        watch()?;
        let _turn = Turn::take();
        let fd = make()?;
        let place = put(fd.as_raw_fd());
        Ok(Private { fd: Some(fd), place })
    }
}

impl AsFd for Private {
    #[allow(clippy::expect_used, reason = "taken by `drop` alone")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is open").as_fd()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _turn = Turn::take();
        self.place.fd.store(FREE, Ordering::Release);
        drop(self.fd.take());
    }
}

/// Registers what `fork` calls, once.
fn watch() -> io::Result<()> {
    static WATCH: Once = Once::new();
    if NULL.get().is_none() {
        let _ = NULL.set(File::options().read(true).write(true).open("/dev/null")?);
    }
    WATCH.call_once(|| {
        // SAFETY: the functions take nothing and unwind nowhere; glibc forgets them when this library is unloaded. It
        // can fail for want of memory only; then children keep copies.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
    Ok(())
}

extern "C" fn before() {
    std::mem::forget(Turn::take());
}

extern "C" fn after_in_parent() {
    drop(Turn);
}

/// Calls nothing that isn't async-signal-safe: other threads of the parent may have held any lock.
extern "C" fn after_in_child() {
    if let Some(null) = NULL.get() {
        for place in places() {
            let fd = place.fd.load(Ordering::Relaxed);
            if fd != FREE {
                // SAFETY: both are open descriptors; the second is one of ours, so that nobody else is robbed of it.
                unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) };
            }
        }
    }
    drop(Turn);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let open = || Private::new(|| Ok(File::open("/dev/null")?.into()));
        let numbers = |all: &[Private]| all.iter().map(|it| it.as_fd().as_raw_fd()).collect::<Vec<_>>();
        let three = [open().unwrap(), open().unwrap(), open().unwrap()];
        let is_put = |fd: &i32| places().any(|place| place.fd.load(Ordering::Relaxed) == *fd);
        assert!(numbers(&three).iter().all(is_put));
        let places = three.each_ref().map(|it| std::ptr::from_ref(it.place));
        drop(three);
        let again = open().unwrap();
        assert!(places.contains(&std::ptr::from_ref(again.place)));
    }
}
