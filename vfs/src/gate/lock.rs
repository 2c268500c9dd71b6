//! The gate lock: an OFD lock on the file `NAME.db-gate` beside a database. Whoever may touch the WAL on
//! this machine holds it: an app from its grant to its release, else the node's applier.
//!
//! The kernel drops it when its holder is gone (`fcntl(2)`, "Open file description locks"), and not before:
//! a paused app is never overtaken, and a dead one never waited for. Unlike POSIX locks it belongs to the
//! open file, so that two connections of one process exclude each other. A forked child has no part in it
//! ([`super::fork`]).

use super::fork::Private;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// An open gate file, locked or not.
#[derive(Debug)]
pub struct GateLock {
    file: Private,
}

/// The gate file of a database file.
pub fn gate_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-gate");
    path.into()
}

impl GateLock {
    /// Opens the gate file of a database, creating it if `create`.
    pub fn open(database: &Path, create: bool) -> io::Result<GateLock> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).custom_flags(libc::O_CLOEXEC);
        let file = Private::new(|| Ok(options.open(gate_path(database))?.into()))?;
        Ok(GateLock { file })
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> io::Result<bool> {
        match self.set(libc::F_WRLCK) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the lock back.
    pub fn unlock(&self) -> io::Result<()> {
        Ok(self.set(libc::F_UNLCK)?)
    }

    fn set(&self, kind: i32) -> nix::Result<()> {
        let region = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&region)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_openings_exclude_each_other_and_closing_frees() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        assert!(GateLock::open(&db, false).is_err());
        let one = GateLock::open(&db, true).unwrap();
        let two = GateLock::open(&db, false).unwrap();
        assert!(one.try_lock().unwrap());
        assert!(one.try_lock().unwrap(), "its holder may ask again");
        assert!(!two.try_lock().unwrap());
        one.unlock().unwrap();
        assert!(two.try_lock().unwrap());
        drop(two);
        // A child that another test has just forked may have it for a moment.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !one.try_lock().unwrap() {
            assert!(std::time::Instant::now() < until, "it is still locked");
            std::thread::yield_now();
        }
    }
}
