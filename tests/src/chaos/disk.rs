//! Faults of a node's disk and clock, by a library that is preloaded into the node alone (`shim.c`, built here
//! with `gcc`) and obeys a control file, which it maps:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | nanoseconds by which the wall clock is ahead, signed |
//! | 8 | 4 | microseconds that each sync takes longer |
//! | 12 | 4 | microseconds that each write takes longer |
//! | 16 | 4 | errno of what fails, or 0 |
//! | 20 | 4 | how many operations more fail; -1: all |
//! | 24 | 8 | how many have failed; the library counts |
//!
//! The product is never run so: what it does when a disk fails it must do by itself.

use crate::programs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = include_str!("shim.c");
const LEN: u64 = 32;

/// Builds the library; the error says why it can't be had.
pub fn build(dir: &Path) -> io::Result<PathBuf> {
    let (source, library) = (dir.join("shim.c"), dir.join("libshim.so"));
    std::fs::write(&source, SOURCE)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let output = gcc.output()?;
    if output.status.success() {
        return Ok(library);
    }
    Err(io::Error::other(format!("{gcc:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The control of one node's disk and clock.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
}

impl Disk {
    /// A perfect disk.
    pub fn create(path: PathBuf) -> io::Result<Disk> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.set_len(LEN)?;
        Ok(Disk { file, path })
    }

    /// What the node's environment must be to obey.
    pub fn environment(&self, library: &Path, data_dir: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".into(), text(library)),
            ("QUIRE_CHAOS_CONTROL".into(), text(&self.path)),
            ("QUIRE_CHAOS_DIR".into(), text(data_dir)),
        ]
    }

    /// Steps the wall clock to be ahead by so many seconds.
    pub fn clock(&self, seconds: i64) -> io::Result<()> {
        self.file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0)
    }

    /// Makes each sync and each write slower.
    pub fn slow(&self, sync: Duration, write: Duration) -> io::Result<()> {
        let us = [sync, write].map(|time| (time.as_micros() as u32).to_ne_bytes());
        self.file.write_all_at(&us.concat(), 8)
    }

    /// Has the next `count` operations fail, or all.
    pub fn fail(&self, errno: i32, count: Option<i32>) -> io::Result<()> {
        self.file.write_all_at(&count.unwrap_or(-1).to_ne_bytes(), 20)?;
        self.file.write_all_at(&errno.to_ne_bytes(), 16)
    }

    /// A perfect disk again; the clock stays as it is.
    pub fn heal(&self) -> io::Result<()> {
        self.file.write_all_at(&[0; 16], 8)
    }

    /// How many operations have failed.
    pub fn injected(&self) -> u64 {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, 24).map_or(0, |()| u64::from_ne_bytes(count))
    }
}

/// Makes sure that the programs exist before a network namespace cuts cargo off from its registry.
pub fn prepare(dir: &Path) -> io::Result<PathBuf> {
    programs();
    build(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python under the library: writes that fail, and the year.
    #[test]
    fn the_library_obeys() {
        let dir = tempfile::tempdir().unwrap();
        let library = build(dir.path()).unwrap();
        let (inside, outside) = (dir.path().join("data"), dir.path().join("other"));
        std::fs::create_dir(&inside).unwrap();
        let disk = Disk::create(dir.path().join("control")).unwrap();
        let run = || {
            let script = "import os, sys, time\n\
                for path in sys.argv[1:]:\n\
                \tfd = os.open(path, os.O_RDWR | os.O_CREAT)\n\
                \tfor call in [lambda: os.pwrite(fd, b'x', 0), lambda: os.fdatasync(fd)]:\n\
                \t\ttry: call(); print('ok')\n\
                \t\texcept OSError as error: print(error.errno)\n\
                print(int(time.time()))";
            let mut python = Command::new("/usr/bin/python3");
            python.args(["-c", script]).arg(inside.join("file")).arg(&outside);
            python.envs(disk.environment(&library, &inside));
            let output = python.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(run()[..4], ["ok", "ok", "ok", "ok"]);
        disk.fail(nix::libc::EIO, Some(2)).unwrap();
        assert_eq!(run()[..4], ["5", "5", "ok", "ok"], "only under the directory");
        assert_eq!(run()[..4], ["ok", "ok", "ok", "ok"], "and only so often");
        disk.fail(nix::libc::ENOSPC, None).unwrap();
        assert_eq!(run()[..4], ["28", "ok", "ok", "ok"], "a sync needs no room");
        assert_eq!(disk.injected(), 3);
        disk.heal().unwrap();
        let before: i64 = run()[4].parse().unwrap();
        disk.clock(-1_000_000).unwrap();
        let after: i64 = run()[4].parse().unwrap();
        assert!((after - before + 1_000_000).abs() < 1000, "{before} {after}");
    }
}
