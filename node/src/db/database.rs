//! One database on this node: who may write it, what is in flight, and what has been applied.
//!
//! ```text
//! app ──acquire──► lease queue ──grant──► app writes its WAL ──commit──► pending ──propose──► Raft
//!                                                                          │
//! Raft ──entries, in order──► queue ──► worker: judge, check ──┬─ pending: tell the app; it publishes
//!                                                              └─ else: the applier publishes
//! ```
//!
//! Everything here happens under one short lock; the worker ([`super::worker`]) does file work outside it.
//! There is at most one lease, at most one *pending* transaction (proposed, outcome unknown) and at most one
//! *publishing* one (committed; the app is writing its commit frame). While any of them, or an entry in the
//! queue, is there, no lease is granted. What apps ask of it stands in [`super::gate`], how a committed
//! transaction becomes visible in [`super::publish`].

use super::DbError;
use super::applier::Wal;
use super::parts::{Large, PartWork, Stager};
use super::publish::Unpublished;
use super::side_file::{Contents, Durable, Record, SideFile};
use crate::command::{DbId, TransactionHead};
use crate::core::lease::{LeaseQueue, SessionId};
use crate::core::recovery::{self, Plan};
use crate::core::rule::CommitRule;
use crate::leadership::Leadership;
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, HashDelta, PageHashes};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::format::{PageNo, PageSize};
use quire_vfs::gate::Grant;
use quire_vfs::gate::lock::GateLock;
use quire_vfs::gate::proto::{Outcome, Refusal, WalTarget};
use quire_vfs::holder::{Holder, IndexLock};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// What all databases of a node share.
#[derive(Debug)]
pub struct Context {
    /// This node's id.
    pub node_id: u64,
    /// Whether it leads.
    pub leadership: Leadership,
    /// Where workers run.
    pub runtime: tokio::runtime::Handle,
    /// Databases whose WAL has grown long.
    pub checkpoints: mpsc::UnboundedSender<DbId>,
    /// Bytes of pages after which a WAL counts as long.
    pub checkpoint_bytes: u64,
    /// How far the log is on this node's disk, once Raft has started.
    pub flushed: OnceLock<watch::Receiver<u64>>,
}

impl Context {
    /// Asks for a checkpoint of a database again, after a pause: something was in its way.
    pub fn ask_again(&self, id: DbId) {
        const PAUSE: Duration = Duration::from_secs(1);
        let checkpoints = self.checkpoints.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let _ = checkpoints.send(id);
        });
    }

    /// Waits until the log is on disk up to `index`. To be called on a blocking thread.
    pub fn wait_flushed(&self, index: u64, patience: Duration) -> bool {
        let Some(mut flushed) = self.flushed.get().cloned() else { return false };
        if *flushed.borrow() >= index {
            return true;
        }
        self.runtime.block_on(async move {
            let waited = tokio::time::timeout(patience, flushed.wait_for(|&at| at >= index)).await;
            matches!(waited, Ok(Ok(_)))
        })
    }
}

/// What a worker is to do.
#[derive(Debug)]
pub enum Work {
    /// A committed transaction.
    Entry {
        /// Its position.
        position: LogPosition,
        /// Its fixed part.
        head: TransactionHead,
        /// Its pages.
        body: Bytes,
    },
    /// A committed part of a large transaction.
    Part(PartWork),
    /// No more parts of this transaction will come, says the entry `index`.
    Void {
        /// The entry.
        index: u64,
        /// The transaction.
        id: TxnId,
    },
    /// A committed transaction that was judged, and that no app publishes.
    Publish(Unpublished),
    /// An entry of a new term has committed: older proposals without one have failed.
    NewTerm(u64),
    /// Everything that could contain this transaction has been applied.
    Conclude(TxnId),
    /// Record the checksum at this entry.
    Verify {
        /// The entry.
        index: u64,
        /// Also checkpoint, and hash the file.
        files: bool,
    },
    /// A writer is gone: put the wal-index right if it left it half-written.
    Tidy,
    /// Tell when everything before has been done.
    Signal(oneshot::Sender<()>),
    /// Say that nobody is publishing, and wait until the other end is dropped.
    Pause {
        /// Told when it has come to this.
        paused: std::sync::mpsc::SyncSender<()>,
        /// Dropped to go on.
        resume: std::sync::mpsc::Receiver<()>,
    },
    /// Copy all of the WAL into the database file while nobody publishes.
    Checkpoint,
}

/// A proposed transaction whose outcome is unknown.
#[derive(Debug)]
pub(super) struct Pending {
    pub id: TxnId,
    /// The term it was proposed in; unknown if it was proposed before this node was restarted.
    pub term: Option<u64>,
    pub base: u64,
    pub target: WalTarget,
    pub session: SessionId,
    /// The app's connection; `None` once it gave up.
    pub waiter: Option<oneshot::Sender<Outcome>>,
    /// Computed when it was proposed.
    pub delta: Option<HashDelta>,
}

/// A committed transaction that its app is about to publish. The queue stands still meanwhile.
#[derive(Debug)]
pub(super) struct Publishing {
    pub session: SessionId,
    /// The app said that it is done, or is gone.
    pub ended: bool,
    /// What the app was told.
    pub record: Record,
    pub entry: Unpublished,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The entry at which it was made.
    pub index: u64,
    /// The last entry of this database then.
    pub last_index: u64,
    /// Checksum.
    pub checksum: DbChecksum,
    /// Size in pages.
    pub pages: u32,
    /// SHA-256 of the database file after a full checkpoint, or why there is none.
    pub file: Option<Result<String, String>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub rule: CommitRule,
    /// Position of the last entry that changed the database.
    pub position: LogPosition,
    pub hashes: PageHashes,
    /// Pages whose hashes the side file doesn't have yet.
    pub dirty: BTreeSet<PageNo>,
    /// The last entry that is in the WAL or the file.
    pub published: u64,
    /// The file may hold pages of entries up to here; not to be read before they have been applied.
    pub consistent_from: u64,
    pub queue: VecDeque<Work>,
    pub running: bool,
    pub lease: LeaseQueue,
    pub grants: HashMap<SessionId, oneshot::Sender<Result<Grant, Refusal>>>,
    pub pending: Option<Pending>,
    pub publishing: Option<Publishing>,
    /// Large transactions that are on their way.
    pub large: Large,
    /// The last transactions, newest last.
    pub recent: VecDeque<Record>,
    pub durable: Durable,
    pub fenced: Option<String>,
    pub verifications: VecDeque<Verification>,
    pub checkpoint_asked: bool,
    /// When the worker last closed the WAL.
    pub closed_at: Option<Instant>,
}

/// How many recent transactions are remembered.
const RECENT: usize = super::side_file::RING_LEN as usize;
/// How many verifications are remembered.
pub(super) const VERIFICATIONS: usize = 16;

/// The files that only the worker and the checkpointer write.
#[derive(Debug)]
pub(super) struct Files {
    pub wal: Wal,
    pub side: SideFile,
}

/// A replicated database.
#[derive(Debug)]
pub struct Database {
    /// Its id.
    pub id: DbId,
    /// Its name.
    pub name: String,
    /// Its page size.
    pub page_size: PageSize,
    pub(super) context: Arc<Context>,
    pub(super) holder: Holder,
    pub(super) gate_lock: GateLock,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) files: Mutex<Files>,
    pub(super) stager: Arc<Stager>,
    /// The last entry that was dealt with, for those who wait for it.
    pub(super) progress: watch::Sender<u64>,
    /// One checkpoint at a time.
    pub(super) checkpointing: Mutex<()>,
}

/// What `/status` says of a database.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DatabaseStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Page size in bytes.
    pub page_size: u32,
    /// Size in pages.
    pub pages: u32,
    /// Last entry applied.
    pub index: u64,
    /// Last entry in the database file.
    pub durable_index: u64,
    /// Checksum at `index`.
    pub checksum: String,
    /// Frames in the WAL.
    pub wal_frames: u32,
    /// Frames that are in the database file too.
    pub wal_backfilled: u32,
    /// Parts of an unfinished large transaction.
    pub unfinished_parts: u32,
    /// Entries that wait to be applied here.
    pub queued: usize,
    /// Writers that wait.
    pub waiting: usize,
    /// Why the database is not served, if it isn't.
    pub fenced: Option<String>,
}

impl Database {
    /// Opens a database whose files exist: holds it, and makes of its WAL what [`recovery`] says.
    pub fn open(
        context: Arc<Context>,
        path: &Path,
        id: DbId,
        name: &str,
        page_size: PageSize,
    ) -> Result<Database, DbError> {
        let gate_lock = GateLock::open(path, true).map_err(DbError::io(path, "opening the gate file"))?;
        // SAFETY: the functions are those of the SQLite that is linked into this program.
        let holder = unsafe { Holder::open(&super::sql::api(), path)? };
        hold(&holder)?;
        let (side, contents) = SideFile::open(path, id, page_size)?;
        let Contents { durable, records, hashes } = contents;
        let attached = holder.others_attached()?;
        let header = wal_index::recover_header(holder.region(0)?);
        let publications: Vec<_> = records.iter().map(|r| r.publication).collect();
        let plan = recovery::plan(attached, header.as_ref(), durable.position.index, &publications);
        let wal = Wal::open(path, page_size)?;
        let stager = Arc::new(Stager::new(path, context.runtime.clone())?);
        let published = match plan {
            Plan::Rebuild => {
                // A checkpoint was cut short: the file may hold pages of entries that are yet to come again, so
                // that even a stock reader must wait for them.
                if durable.target > durable.position.index && !holder.exclude_readers()? {
                    warn!(database = name, "a stock reader is there while the database is rebuilt");
                }
                holder.lock(IndexLock::Recover)?;
                wal.reset(&holder, durable.pages)?;
                holder.unlock(IndexLock::Recover);
                durable.position.index
            }
            Plan::Resume { published } => published,
        };
        info!(
            database = name,
            durable = durable.position.index,
            target = durable.target,
            published,
            ?plan,
            "opened"
        );
        // What is on record is committed, and may have been read: nothing older is served. (Where the WAL
        // stays, an app that has yet to publish the newest record is asking for it, so none waits for it.)
        let newest = publications.last().map_or(0, |p| p.index);
        let served = if plan == Plan::Rebuild { newest } else { published };
        let recent = match plan {
            Plan::Rebuild => VecDeque::new(),
            Plan::Resume { published } => {
                records.into_iter().filter(|r| r.publication.index <= published).collect()
            }
        };
        let state = State {
            rule: CommitRule::new(durable.position.index),
            position: durable.position,
            hashes,
            dirty: BTreeSet::new(),
            published,
            consistent_from: served.max(durable.target).max(published),
            queue: VecDeque::new(),
            running: false,
            lease: LeaseQueue::new(first_token()),
            grants: HashMap::new(),
            pending: None,
            publishing: None,
            large: Large::default(),
            recent,
            durable,
            fenced: None,
            verifications: VecDeque::new(),
            checkpoint_asked: false,
            closed_at: None,
        };
        Ok(Database {
            id,
            name: name.to_owned(),
            page_size,
            context,
            holder,
            gate_lock,
            state: Mutex::new(state),
            changed: Condvar::new(),
            files: Mutex::new(Files { wal, side }),
            stager,
            progress: watch::Sender::new(durable.position.index),
            checkpointing: Mutex::new(()),
        })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        self.holder.path()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands work to the worker, in log order.
    pub fn enqueue(self: &Arc<Self>, work: Work) {
        let mut state = self.state();
        state.queue.push_back(work);
        self.wake(&mut state);
    }

    /// Starts the worker if there is something for it to do and it isn't at work.
    pub(super) fn wake(self: &Arc<Self>, state: &mut State) {
        let is_work = match &state.publishing {
            Some(publishing) => publishing.ended,
            None => !state.queue.is_empty(),
        };
        if !state.running && is_work {
            state.running = true;
            let database = self.clone();
            self.context.runtime.spawn_blocking(move || database.drain());
        }
    }

    /// Tells when the entry `index` and all before it have been dealt with.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// What must have been applied before the database's files make sense to a reader.
    pub fn consistent_from(&self) -> u64 {
        self.state().consistent_from
    }

    /// Why the database is not served, if it isn't.
    pub fn fenced(&self) -> Option<String> {
        self.state().fenced.clone()
    }

    /// What `/status` says of it.
    pub fn status(&self) -> DatabaseStatus {
        let region0 = self.holder.region(0).ok();
        let header = region0.and_then(wal_index::read_header);
        let backfilled = region0.map_or(0, |region| wal_index::backfilled(region).0);
        let state = self.state();
        DatabaseStatus {
            id: self.id.0,
            name: self.name.clone(),
            page_size: self.page_size.get(),
            pages: state.hashes.len(),
            index: state.rule.last(),
            durable_index: state.durable.position.index,
            checksum: state.hashes.checksum().to_string(),
            wal_frames: header.map_or(0, |header| header.max_frame.0),
            wal_backfilled: backfilled,
            unfinished_parts: state.large.parts(),
            queued: state.queue.len() + usize::from(state.running),
            waiting: state.lease.waiting(),
            fenced: state.fenced.clone(),
        }
    }

    /// Position of the last entry that is in the database file, and whether anything came after it. The parts of
    /// an unfinished large transaction count: they are nowhere but in the log.
    pub fn durable(&self) -> (LogPosition, bool) {
        let state = self.state();
        let is_idle = state.queue.is_empty() && !state.running && state.publishing.is_none();
        let is_open = state.large.parts() > 0;
        (state.durable.position, state.rule.last() > state.durable.position.index || is_open || !is_idle)
    }

    /// What the verification at an entry found, if it was made.
    pub fn verification(&self, index: u64) -> Option<Verification> {
        self.state().verifications.iter().find(|v| v.index == index).cloned()
    }

    /// Fences the database on this node: it is no longer what the log says.
    pub(super) fn fence(&self, state: &mut State, why: &DbError) {
        error!(database = self.name, "fenced: {why}");
        state.fenced = Some(why.to_string());
    }

    pub(super) fn remember(&self, state: &mut State, record: Record) {
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(record);
    }

    /// Sees to a WAL that has grown long: asks for a checkpoint of what the database file lacks; and if the
    /// WAL as a whole is too long and the file lacks little, has the worker copy that while nobody publishes,
    /// so that the next writer can start the WAL anew.
    pub(super) fn watch_wal(self: &Arc<Self>, state: &mut State) {
        const CLOSE_EVERY: Duration = Duration::from_millis(500);
        let Ok(region0) = self.holder.region(0) else { return };
        let Some(header) = wal_index::read_header(region0) else { return };
        let lacking = header.max_frame.0.saturating_sub(wal_index::backfilled(region0).0);
        let bytes = |frames: u32| u64::from(frames) * u64::from(self.page_size.get());
        if bytes(lacking) >= self.context.checkpoint_bytes {
            if !state.checkpoint_asked {
                state.checkpoint_asked = self.context.checkpoints.send(self.id).is_ok();
            }
        } else if lacking > 0
            && bytes(header.max_frame.0) >= self.wal_limit()
            && state.closed_at.is_none_or(|at| at.elapsed() >= CLOSE_EVERY)
        {
            state.closed_at = Some(Instant::now());
            state.queue.push_back(Work::Checkpoint);
            self.wake(state);
        }
    }
}

/// Takes the locks that nobody else may have. A stock writer may be in the middle of a transaction that it
/// began before the node came up; it gets some time to end it.
fn hold(holder: &Holder) -> Result<(), DbError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    for lock in [IndexLock::Write, IndexLock::Checkpoint] {
        while !holder.try_lock(lock)? {
            if Instant::now() >= deadline {
                holder.lock(lock)?;
                break;
            }
            warn!(database = %holder.path().display(), ?lock, "another process holds a lock of the node's");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Tokens of different lives of a node don't meet.
fn first_token() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// The path of a database in a directory.
pub fn database_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.{}", quire_vfs::shim::vfs::EXTENSION))
}
