//! Named points at which a process can be made to kill itself, for crash tests. Without the feature
//! `fault-points` they compile to nothing.
//!
//! `QUIRE_FAULT=name` kills at the first pass, `QUIRE_FAULT=name:n` at the n-th; the process dies by
//! SIGKILL, so that nothing of it is cleaned up. In the life of a commit the points of an app are, in order:
//! `commit.begin` `part.sent` `part.taken` (both once for each part of a large transaction) `commit.sent`
//! `commit.decided` `commit.framed` `release.published` `release.unlocked`; those of a node `part.staged`
//! `part.judged` `run.admitted` (a large transaction has committed, and nothing is in the WAL yet)
//! `apply.framed` `apply.indexed` `apply.published` `gate.decided`; where it gets a
//! state from another one, `transfer.staged` (each frame of pages) `install.prepared` `install.published`
//! `install.stored`; and where it comes into a cluster `admission.stored`.
//!
//! With the same feature, `QUIRE_AS_EARLIER=1` makes a node answer others as one of an earlier version does: the requests that
//! came later make no sense to it.

/// Dies here if the environment says so.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let spec = std::env::var("QUIRE_FAULT").ok()?;
        let (name, pass) = match spec.split_once(':') {
            Some((name, pass)) => (name.to_owned(), pass.parse().ok()?),
            None => (spec, 1),
        };
        Some((name, AtomicU64::new(pass)))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Does nothing: the feature `fault-points` is off.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Whether this process plays one of an earlier version.
#[cfg(feature = "fault-points")]
pub fn is_earlier() -> bool {
    use std::sync::OnceLock;

    static EARLIER: OnceLock<bool> = OnceLock::new();
    *EARLIER.get_or_init(|| std::env::var_os("QUIRE_AS_EARLIER").is_some())
}

/// It doesn't: the feature `fault-points` is off.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn is_earlier() -> bool {
    false
}
