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
//! A program may close descriptors that it didn't open, as daemons do at their start, and then open its own under the
//! same numbers. So the table has each open file's identity as well, and a number that has come to mean another file is
//! left alone, by the handler and by [`Private`]'s end.
//!
//! No descriptor is made or closed while another thread forks. Programs that call `clone(2)` past the C library
//! are not seen; those that call `execve(2)` need nothing of this, as all of these are closed then.

use nix::libc;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

/// Of a place that nobody has.
const FREE: i32 = -1;
/// Of a place whose owner is still there, but whose number was taken from it.
const LOST: i32 = -2;

/// Device and inode. Sockets have them too.
type Identity = (u64, u64);

/// What is open under a number. Async-signal-safe.
fn identity(fd: i32) -> Option<Identity> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for what it writes, and any number may be asked for.
    let done = unsafe { libc::fstat(fd, stat.as_mut_ptr()) } == 0;
    // SAFETY: it succeeded, so it has filled it in.
    done.then(|| unsafe { stat.assume_init() }).map(|stat| (stat.st_dev, stat.st_ino))
}

/// A descriptor's number and what was opened under it. Written and read by who has the [`Turn`].
struct Known {
    fd: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

impl Known {
    const fn new() -> Known {
        Known { fd: AtomicI32::new(FREE), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    fn set(&self, fd: i32, (device, inode): Identity) {
        self.device.store(device, Ordering::Relaxed);
        self.inode.store(inode, Ordering::Relaxed);
        self.fd.store(fd, Ordering::Release);
    }

    fn identity(&self) -> Identity {
        (self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed))
    }

    /// The number, if what was opened under it still is.
    fn ours(&self) -> Option<i32> {
        let fd = self.fd.load(Ordering::Relaxed);
        (fd >= 0 && identity(fd) == Some(self.identity())).then_some(fd)
    }
}

/// Room for one descriptor. Never freed: a handler may be looking at it.
struct Place {
    known: Known,
    next: *const Place,
}

static PLACES: AtomicPtr<Place> = AtomicPtr::new(std::ptr::null_mut());
/// Held while a descriptor is made or closed, and while a process forks.
static TURN: AtomicBool = AtomicBool::new(false);
/// What takes the place of descriptors in a child.
static NULL: Known = Known::new();

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

/// The kernel has just given this number away: whoever was put down with it lost it before.
fn given(fd: i32) {
    for place in places() {
        let _ = place.known.fd.compare_exchange(fd, LOST, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn put(fd: i32, identity: Identity) -> &'static Place {
    given(fd);
    let free = places().find(|place| place.known.fd.load(Ordering::Relaxed) == FREE);
    let place = free.unwrap_or_else(|| {
        let next = PLACES.load(Ordering::Relaxed).cast_const();
        let place = Box::leak(Box::new(Place { known: Known::new(), next }));
        PLACES.store(place, Ordering::Release);
        place
    });
    place.known.set(fd, identity);
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
        watch(); // First: a child of a fork that isn't watched would find the turn taken for ever.
        let _turn = Turn::take();
        keep_null()?;
        let fd = make()?;
        let identity = identity(fd.as_raw_fd()).ok_or_else(io::Error::last_os_error)?;
        let place = put(fd.as_raw_fd(), identity);
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
        let ours = self.place.known.ours().is_some();
        self.place.known.fd.store(FREE, Ordering::Release);
        match self.fd.take() {
            Some(fd) if !ours => drop(fd.into_raw_fd()), // Another's by now, or closed.
            fd => drop(fd),
        }
    }
}

/// Registers what `fork` calls, once.
fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // SAFETY: the functions take nothing and unwind nowhere; glibc forgets them when this library is unloaded. It
        // can fail for want of memory only; then children keep copies.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
}

/// Opens `/dev/null`, for the first time or because its number was taken from it.
fn keep_null() -> io::Result<()> {
    if NULL.ours().is_none() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let identity = identity(null.as_raw_fd()).ok_or_else(io::Error::last_os_error)?;
        given(null.as_raw_fd());
        NULL.set(null.into_raw_fd(), identity);
    }
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
    let null = NULL.ours();
    for Place { known, .. } in places() {
        if known.fd.load(Ordering::Relaxed) == FREE {
            continue;
        }
        match (known.ours(), null) {
            // An ancestor's handler was here.
            (Some(_), Some(_)) if known.identity() == NULL.identity() => {}
            (Some(fd), Some(null)) => {
                // SAFETY: both are open descriptors of ours, so that nobody else is robbed of the second.
                if unsafe { libc::dup3(null, fd, libc::O_CLOEXEC) } == fd {
                    known.set(fd, NULL.identity());
                }
            }
            (Some(fd), None) => {
                // SAFETY: it is an open descriptor of ours, and its owner, who learns of it here, won't close it again.
                unsafe { libc::close(fd) };
                known.fd.store(LOST, Ordering::Relaxed);
            }
            (None, _) => known.fd.store(LOST, Ordering::Relaxed),
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
        let is_put = |fd: &i32| places().any(|place| place.known.fd.load(Ordering::Relaxed) == *fd);
        assert!(numbers(&three).iter().all(is_put));
        let places = three.each_ref().map(|it| std::ptr::from_ref(it.place));
        drop(three);
        let again = open().unwrap();
        assert!(places.contains(&std::ptr::from_ref(again.place)));
    }

    /// Forks, and says whether all that the child looks at is so. Children have no other threads.
    #[track_caller]
    fn in_child(look: impl FnOnce() -> bool) -> bool {
        // SAFETY: glibc's allocator may be used in the child, which ends without unwinding or running the tests' end.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 => {
                let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).unwrap_or(false);
                // SAFETY: as above.
                unsafe { libc::_exit(if good { 7 } else { 8 }) }
            }
            child => {
                let mut status = 0;
                // SAFETY: it is this process's child, and there is room for its status.
                let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
                waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7
            }
        }
    }

    fn open(path: &str) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn socket() -> Private {
        Private::new(|| Ok(std::os::unix::net::UnixDatagram::unbound()?.into())).unwrap()
    }

    /// What a program does that closes all it has and opens a file of its own.
    fn take_over(fd: i32, file: &File) {
        // SAFETY: the number is open, and `Private` and the handler are to get along with this.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
    }

    fn is(fd: i32, file: &File) -> bool {
        identity(fd).is_some() && identity(fd) == identity(file.as_raw_fd())
    }

    #[test]
    fn children_get_nothing_but_dev_null() {
        assert!(in_child(|| {
            let private = socket();
            let fd = private.as_fd().as_raw_fd();
            let null = open("/dev/null");
            let in_children = in_child(|| is(fd, &null) && in_child(|| is(fd, &null)));
            let closed = in_child(|| {
                drop(private);
                identity(fd).is_none()
            });
            in_children && closed
        }));
    }

    #[test]
    fn a_number_that_a_program_took_over_is_left_alone() {
        let zero = open("/dev/zero");
        // By the process itself, and by its child, where it was /dev/null.
        for by_child in [false, true] {
            assert!(in_child(|| {
                let private = socket();
                let fd = private.as_fd().as_raw_fd();
                let taken = || {
                    take_over(fd, &zero);
                    let kept = in_child(|| is(fd, &zero) && in_child(|| is(fd, &zero)));
                    drop(private);
                    kept && is(fd, &zero)
                };
                if by_child { in_child(taken) } else { taken() }
            }));
        }
    }

    #[test]
    fn nothing_but_dev_null_takes_a_place() {
        let zero = open("/dev/zero");
        assert!(in_child(|| {
            let private = socket();
            let fd = private.as_fd().as_raw_fd();
            let null = NULL.ours().unwrap();
            take_over(null, &zero);
            let closed = in_child(|| identity(fd).is_none() && is(null, &zero));
            let another = socket();
            let replaced =
                in_child(|| is(another.as_fd().as_raw_fd(), &open("/dev/null")) && is(null, &zero));
            // A child's own copy of what it closed isn't taken for the new one under the same number.
            let kept = in_child(|| {
                take_over(NULL.ours().unwrap(), &zero);
                let fd = another.as_fd().as_raw_fd();
                // SAFETY: as in `take_over`.
                unsafe { libc::close(fd) };
                let _next = socket();
                assert_eq!(NULL.ours(), Some(fd), "the lowest number that is free");
                drop(another);
                NULL.ours().is_some()
            });
            closed && replaced && kept
        }));
    }

    #[test]
    fn the_end_of_one_that_lost_its_number_leaves_the_next_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        File::create(&path).unwrap();
        assert!(in_child(|| {
            let gate = || Private::new(|| Ok(File::open(&path)?.into())).unwrap();
            let old = gate();
            let fd = old.as_fd().as_raw_fd();
            // SAFETY: as in `take_over`.
            unsafe { libc::close(fd) };
            let new = gate();
            assert_eq!(new.as_fd().as_raw_fd(), fd, "the lowest number that is free");
            drop(old);
            identity(fd).is_some() && in_child(|| is(fd, &open("/dev/null")))
        }));
    }
}
