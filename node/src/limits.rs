//! What the operating system lets the process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More open files than this are of no use.
const WANTED: u64 = 65_536;
/// Where the limit can't be had.
const UNKNOWN: u64 = 1024;

/// Raises the soft limit on open files as far as it goes, and returns it.
pub fn open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return UNKNOWN };
    let raised = hard.min(WANTED).max(soft);
    if setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() { raised } else { soft }
}
