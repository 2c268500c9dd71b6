//! Whether this node takes part in Raft yet.
//!
//! A voter whose disk was lost must not vote or take entries under its old id again: what it promised is gone, and with
//! an empty log it would make up majorities that have none of the entries that it once had. It can't know by itself that
//! there was a promise. So a node with an empty log takes nothing of Raft's from peers, only requests, until its caller
//! has found out that its id is new, and says so ([`crate::Raft::admit`]). That is remembered beside the log, in
//! `DIR/raft/log/admitted`, and is lost with it. A node with a vote, an entry or applied state needs no such file.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::log::LogStore;
use crate::{AppliedState, LogError, RaftConfig};

/// Nobody parses it; that it exists says all.
const TEXT: &[u8] = b"this node may take part in Raft, though its log may still be empty\n";

#[derive(Debug)]
pub(crate) struct Admission {
    path: PathBuf,
    admitted: AtomicBool,
}

impl Admission {
    /// As the directory has it.
    pub(crate) fn new(config: &RaftConfig, log: &LogStore, applied: &AppliedState) -> Result<Self, LogError> {
        let path = config.dir.join("log").join("admitted");
        let has_past =
            log.term() > 0 || log.last().is_some() || log.purged().is_some() || applied.position.is_some();
        let known = !config.await_admission || has_past;
        let stored = path.try_exists().map_err(|source| LogError::Io { path: path.clone(), source })?;
        Ok(Admission { path, admitted: AtomicBool::new(known || stored) })
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// On disk first. Blocks.
    pub(crate) fn admit(&self) -> Result<(), LogError> {
        let write = || {
            let mut file = std::fs::File::create(&self.path)?;
            file.write_all(TEXT)?;
            file.sync_all()?;
            self.path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
        };
        write().map_err(|source| LogError::Io { path: self.path.clone(), source })?;
        self.admitted.store(true, Ordering::Release);
        Ok(())
    }
}
