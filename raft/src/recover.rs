//! Recovery of a cluster whose quorum is gone for good: an offline operation on one survivor's log.
//!
//! It appends one entry, a membership with the survivor as the only voter, in a term above all that this node has
//! seen. Nothing that is in the log is touched. At its next start the node elects itself, and so commits all of its
//! log, also entries at its end that it never knew to be committed.
//!
//! What it does is made durable in this order, and a crash in between leaves the node as it was:
//! 1. `DIR/recovered` (`recovered.rs`): the ids of the members that are given up, valid only if the log has the entry of step 3;
//! 2. the vote, for this node in the new term: it has led it, so nobody else can;
//! 3. the entry.
//!
//! # Members that come back
//! A majority of the *old* members would elect a leader among themselves, to whom this node still is a member: that
//! leader would send it entries, under a higher term sooner or later, and Raft has a node follow whoever leads in a
//! higher term, whether it knows the sender or not. No choice of terms prevents that. Therefore a recovered node takes
//! no Raft message from the ids that were given up (`net/server.rs`): no append, no vote, no pre-vote. They are never
//! used again, as no node id ever is, so that holds for good. Nodes that join later are unknown to the old ones.
//! Their other requests are answered: an old member that asks is told that it is no member any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};

use crate::log::{self, LogOptions, LogStore, segment, vote};
use crate::raft::check_applied;
use crate::recovered::{self, Line};
use crate::types::{Entry, Membership, StoredMembership, Vote, log_id, position};
use crate::{AppliedState, LogError, LogPosition, NodeId, Peer, StartError, encode, inspect};

const FILE_NAME: &str = "recovered";
const MAX_FILE: u64 = 1 << 20;
const CLOSE: Duration = Duration::from_secs(60);
/// Bytes of entries read at once.
const READ: usize = 4 << 20;

/// A node can't be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is nothing to recover, or not on this node.
    #[error("{0}")]
    Refused(String),
    /// The log, or what is known to be applied of it, can't be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The disk failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<LogError> for RecoverError {
    fn from(e: LogError) -> Self {
        RecoverError::Start(e.into())
    }
}

/// What a recovery starts from, and what it comes to.
#[derive(Clone, Debug)]
pub struct RecoveryPlan {
    /// The node that becomes the only voter.
    pub node_id: NodeId,
    /// The last entry that it has.
    pub last: LogPosition,
    /// The highest index that it knows to be committed; entries after it may or may not be.
    pub committed: Option<u64>,
    /// The term of the new membership.
    pub term: u64,
    /// Voters before.
    pub voters: BTreeSet<NodeId>,
    /// Members before, this node included.
    pub members: BTreeMap<NodeId, Peer>,
}

impl RecoveryPlan {
    /// The members that are given up.
    pub fn given_up(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.members.iter().filter(|(id, _)| **id != self.node_id).map(|(id, peer)| (*id, peer))
    }
}

/// A recovery that can be made. The log is locked for as long as this lives.
pub struct Recovery {
    log: LogStore,
    dir: PathBuf,
    plan: RecoveryPlan,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Recovery {
    /// Opens the log of a stopped node as a start does (a torn tail is cut), and looks at what could be recovered.
    /// `dir` is the Raft directory, `applied` what is durable in the state machine.
    pub async fn open(
        dir: &Path,
        cluster_id: [u8; 16],
        node_id: NodeId,
        applied: &AppliedState,
    ) -> Result<Recovery, RecoverError> {
        let io_at = |path: PathBuf| move |source| RecoverError::Io { path, source };
        // Opening makes what is missing; a directory without a vote was no node's.
        if !dir.join("log").join(vote::FILE_NAME).exists() {
            return Err(RecoverError::Refused(format!(
                "there is no Raft log in {}; nothing to recover",
                dir.display()
            )));
        }
        // As the segments that are there, so that spares fit.
        let segments = inspect::segments(dir).map_err(io_at(dir.to_owned()))?;
        let segment_bytes = segments.iter().map(|s| s.bytes).min().unwrap_or(16 << 20);
        let options = LogOptions {
            owner: segment::Owner { cluster: cluster_id, node: node_id },
            segment_bytes: segment_bytes.clamp(64 << 10, 1 << 30),
            cache_bytes: READ,
            read_bytes: READ,
            wait_for_room: false,
        };
        let path = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || log::open(&path, options)).await;
        let log = opened.map_err(|e| StartError::Raft(e.to_string()))??;
        match plan(log.clone(), node_id, applied).await {
            Ok(plan) => Ok(Recovery { log, dir: dir.to_owned(), plan }),
            Err(e) => {
                log.close(CLOSE).await;
                Err(e)
            }
        }
    }

    /// What it will do.
    pub fn plan(&self) -> &RecoveryPlan {
        &self.plan
    }

    /// Leaves everything as it is.
    pub async fn cancel(self) {
        self.log.close(CLOSE).await;
    }

    /// Makes the node the only voter of its cluster. Returns the position of the entry that says so.
    pub async fn run(self) -> Result<LogPosition, RecoverError> {
        let log = self.log.clone();
        let done = self.write().await;
        if !log.close(CLOSE).await && done.is_ok() {
            return Err(StartError::Raft("the log writer didn't end in time".into()).into());
        }
        done
    }

    async fn write(self) -> Result<LogPosition, RecoverError> {
        let Recovery { mut log, dir, plan } = self;
        let me = plan.node_id;
        let at = LogPosition { term: plan.term, leader: me, index: plan.last.index + 1 };
        let failed = |e: &dyn std::fmt::Display| StartError::Raft(e.to_string());

        let mut lines = load(&dir)?;
        lines.retain(|line| line.holds(&log));
        lines.push(Line { at, without: plan.given_up().map(|(id, _)| id).collect() });
        store(&dir, &lines)?;

        log.save_vote(&Vote::new_committed(at.term, me)).await.map_err(|e| failed(&e))?;
        let peer = plan.members.get(&me).cloned().unwrap_or_default();
        let membership = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, peer)]));
        let membership = membership.map_err(|e| failed(&e))?;
        let entry = Entry { log_id: log_id(at), payload: EntryPayload::Membership(membership) };
        log.blocking_append([entry]).await.map_err(|e| failed(&e))?;
        Ok(at)
    }
}

async fn plan(mut log: LogStore, me: NodeId, applied: &AppliedState) -> Result<RecoveryPlan, RecoverError> {
    check_applied(applied, &log)?;
    let disk = |e: io::Error| StartError::Raft(e.to_string());
    let vote = log.read_vote().await.map_err(disk)?;
    let Some(last) = log.last() else {
        return Err(RecoverError::Refused(format!(
            "node {me} was never part of a cluster: its log is empty; nothing to recover"
        )));
    };
    let membership = match last_membership(&log, last.index).await.map_err(disk)? {
        Some(found) => found,
        None => match &applied.membership {
            Some(bytes) => encode::read_membership(bytes.clone()).map_err(|e| disk(e.into()))?,
            None => StoredMembership::default(),
        },
    };
    let membership = membership.membership();
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let members: BTreeMap<NodeId, Peer> = membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
    if !members.contains_key(&me) {
        return Err(RecoverError::Refused(format!(
            "node {me} is no member of its cluster, whose voters are {voters:?}: it was removed, or it never had \
             all of the log; recover one of the members"
        )));
    }
    if voters == BTreeSet::from([me]) {
        return Err(RecoverError::Refused(format!(
            "node {me} is the only voter already; there is nothing to recover: start it"
        )));
    }
    let committed = log.read_committed().await.map_err(disk)?.map(|id| id.index());
    let voted = vote.map_or(0, |v| v.leader_id().term);
    Ok(RecoveryPlan {
        node_id: me,
        last,
        committed: committed.max(applied.position.map(|p| p.index)),
        term: voted.max(last.term) + 1,
        voters,
        members,
    })
}

/// The last membership in the log.
async fn last_membership(log: &LogStore, last: u64) -> io::Result<Option<StoredMembership>> {
    let mut reader = log.clone().get_log_reader().await;
    let mut at = log.purged().map_or(0, |p| p.index + 1);
    let mut found = None;
    while at <= last {
        let entries = reader.limited_get_log_entries(at, last + 1).await?;
        let Some(end) = entries.last().map(|e| position(&e.log_id).index) else { break };
        for entry in entries {
            if let EntryPayload::Membership(m) = entry.payload {
                found = Some(StoredMembership::new(Some(entry.log_id), m));
            }
        }
        at = end + 1;
    }
    Ok(found)
}

impl Line {
    /// Whether the recovery was completed: its entry is in the log (or was purged from it).
    fn holds(&self, log: &LogStore) -> bool {
        log.purged().is_some_and(|p| p.index >= self.at.index)
            || log.position_at(self.at.index) == Some(self.at)
    }
}

/// The ids that must not be listened to, as of the log. What a recovery that never was completed left is dropped.
pub(crate) fn given_up(dir: &Path, log: &LogStore) -> Result<BTreeSet<NodeId>, StartError> {
    let mut lines = load(dir)?;
    let before = lines.len();
    lines.retain(|line| line.holds(log));
    if lines.len() < before {
        tracing::warn!("a recovery was begun, but not completed; this node is as it was before");
        store(dir, &lines)?;
    }
    Ok(lines.into_iter().flat_map(|line| line.without).collect())
}

fn load(dir: &Path) -> Result<Vec<Line>, LogError> {
    let path = dir.join(FILE_NAME);
    let bytes = match std::fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LogError::Io { path, source }),
        Ok(m) if m.len() > MAX_FILE => {
            let reason = format!("{} bytes are too many", m.len());
            return Err(LogError::Damaged { path, offset: MAX_FILE, reason });
        }
        Ok(_) => std::fs::read(&path),
    };
    let bytes = bytes.map_err(|source| LogError::Io { path: path.clone(), source })?;
    recovered::decode(&bytes).map_err(|fault| fault.at(path))
}

fn store(dir: &Path, lines: &[Line]) -> Result<(), LogError> {
    let path = dir.join(FILE_NAME);
    let new = dir.join("recovered.new");
    let write = || {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(recovered::encode(lines).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| LogError::Io { path: path.clone(), source })
}
