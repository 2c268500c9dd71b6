//! One database on this node: who may write it, what is in flight, and what has been applied.
//!
//! ```text
//! app ──acquire──► lease, grant ──► app writes its WAL ──commit──► pending ──propose──► Raft
//!                                                                          │
//! Raft ──entries, in order──► queue ──► worker: judge, check ──┬─ pending: tell the app; it publishes
//!                                                              └─ else: the applier publishes
//! ```
//!
//! Everything here happens under one short lock; the worker ([`super::worker`]) does file work outside it.
//! At most one app is let in, there is at most one *pending* transaction (proposed, outcome unknown) and at most one
//! *publishing* one (committed; the app is writing its commit frame). While any of them, or an entry in the
//! queue, is there, no app is let in. What apps ask of it stands in [`super::gate`], what the leader does for the
//! writers of all nodes in [`super::lessor`], how a committed transaction becomes visible in [`super::publish`].

use super::DbError;
use super::applier::Wal;
use super::context::Context;
use super::gate::{Arrived, Held, Waiting};
use super::incoming::Incoming;
use super::install::InstallError;
use super::lag::Behind;
use super::lessor::Air;
use super::parts::{Large, PartWork, Stager};
use super::publish::Unpublished;
use super::side_file::{Durable, Record, ScrubMark, SideFile};
use crate::clock;
use crate::command::{DbId, TransactionHead};
use crate::core::head::Head;
use crate::core::lease::{Lease, LeaseTable, SessionId, Who};
use crate::core::rule::CommitRule;
use crate::node::Node;
use crate::transfer::Received;
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, HashDelta, PageHashes};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::wal::frame_offset;
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::lock::GateLock;
use quire_vfs::gate::proto::{Outcome, Refusal, WalTarget};
use quire_vfs::holder::{Holder, IndexLock};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

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
    /// Entries up to this one that were not kept (`super::lag`).
    Skipped(u64),
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
        /// Also read all pages.
        scrub: bool,
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
    /// The database was dropped: who waits for it is told.
    Drop,
    /// Install a state of another node.
    Install {
        /// The state.
        incoming: Incoming,
        /// It was told apart from what really stands in the files, not from what the hashes say.
        read: bool,
        /// Told what became of it.
        done: oneshot::Sender<Result<(), InstallError>>,
    },
}

impl Work {
    /// The entry that it is.
    pub(super) fn entry(&self) -> Option<u64> {
        match self {
            Work::Entry { position, .. } => Some(position.index),
            Work::Part(part) => Some(part.index()),
            Work::Void { index, .. } | Work::Skipped(index) => Some(*index),
            _ => None,
        }
    }

    /// Bytes that it keeps in memory while it waits, if it is an entry.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Work::Entry { body, .. } => size_of::<Work>() + body.len(),
            Work::Part(part) => size_of::<Work>() + part.held_bytes(),
            Work::Void { .. } => size_of::<Work>(),
            _ => 0,
        }
    }
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
    /// When the app was told.
    pub since: Instant,
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
    /// What reading all pages came to.
    pub scrubbed: Scrubbed,
}

impl Verification {
    /// One of the checksum alone.
    pub(super) fn new(index: u64, last_index: u64, checksum: DbChecksum, pages: u32) -> Verification {
        Verification { index, last_index, checksum, pages, file: None, scrubbed: Scrubbed::No }
    }
}

/// What a scrub for a verification came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// None was asked for.
    No,
    /// It goes on.
    Underway,
    /// All pages are what they should be.
    Sound,
    /// Why the database is fenced.
    Damaged(String),
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
    /// Bytes of the entries in it.
    pub queued_bytes: usize,
    /// It is among the long ones (`super::backlog`).
    pub is_long: bool,
    /// Since when the worker waits for an app to let go of the gate lock.
    pub stuck: Option<Instant>,
    /// Entries were not kept, and the database has to get its state from another node.
    pub(super) behind: Option<Behind>,
    pub running: bool,
    /// What the log that was handed over says, ahead of all above.
    pub head: Head,
    /// The leader's: who may write, on which node ever.
    pub lease: LeaseTable,
    /// The leader's: sessions of other nodes that wait for the lease.
    pub asked: HashMap<Who, oneshot::Sender<Result<Lease, Refusal>>>,
    /// The leader's: until when a timer waits for a writer that lingers.
    pub linger_timer: Option<Instant>,
    /// The leader's: what it has let through to Raft.
    pub air: Option<Air>,
    pub next_ticket: u64,
    /// Sessions of this node that wait to be let in.
    pub grants: BTreeMap<SessionId, Waiting>,
    pub arrived: Option<Arrived>,
    /// Who was let in.
    pub held: Option<Held>,
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
    /// Bytes of WAL when it was last said that a reader keeps it.
    pub long_wal: u64,
    /// While a fenced database gets its state from another node: entries after this one wait for it.
    pub hold: Option<u64>,
    /// Bytes of the entries that wait for that.
    pub held_bytes: usize,
    /// A state of another node that the database file doesn't have yet.
    pub installed: Option<Incoming>,
    /// What is being received of one.
    pub transfer: Option<Progress>,
    /// How far the background scrub has come.
    pub scrub: ScrubMark,
}

impl State {
    /// The next piece of work that may be done.
    pub(super) fn take_work(&mut self) -> Option<Work> {
        if self.is_held() {
            return None;
        }
        let work = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(work.held_bytes());
        Some(work)
    }

    /// The database's last entry is another one: what the log says of it follows from there.
    pub(super) fn judge_again(&mut self) {
        let State { head, rule, large, queue, .. } = self;
        head.moved_to(rule.last(), large.runs(), |head| {
            for work in queue.iter() {
                match work {
                    Work::Entry { position, head: entry, body } => {
                        let _ = super::lessor::judge(head, *position, entry, body);
                    }
                    Work::Part(part) => head.part(&part.candidate(), part.part()),
                    Work::Void { id, .. } => head.void(*id),
                    Work::NewTerm(term) => head.new_term(*term),
                    _ => {}
                }
            }
        });
    }

    fn is_durable(&self) -> bool {
        let is_idle = self.queue.is_empty() && !self.running && self.publishing.is_none();
        // What a fenced database skips, it must find in the log again; and so the parts of a run that is open.
        let is_current = self.rule.last() == self.durable.position.index
            && self.fenced.is_none()
            && self.installed.is_none()
            && self.large.parts() == 0;
        is_idle && is_current
    }

    fn is_held(&self) -> bool {
        let hold = self.hold.filter(|_| self.fenced.is_some());
        let next = self.queue.front().and_then(Work::entry);
        hold.zip(next).is_some_and(|(hold, next)| next > hold)
    }
}

/// How far a transfer has come, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// Received.
    pub received: u64,
    /// To be received.
    pub total: u64,
}

/// How many recent transactions are remembered.
const RECENT: usize = super::side_file::RING_LEN as usize;
/// A WAL of so many times the size at which it should start anew is kept from that by somebody.
const LONG_WAL: u64 = 2;
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
    pub(super) dropped: AtomicBool,
    /// Its file was touched by somebody, and is being read.
    pub(super) is_touched: AtomicBool,
    /// One checkpoint at a time.
    pub(super) checkpointing: Mutex<()>,
    /// Places for requests to the leader that wait for the lease there.
    pub(crate) asking: tokio::sync::Semaphore,
    /// One transfer at a time of a state to this node.
    pub transfers: Arc<tokio::sync::Mutex<()>>,
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
    /// Whether this node has it open; one that nobody uses is closed.
    pub open: bool,
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
    /// Bytes of the WAL that are in use.
    pub wal_bytes: u64,
    /// The WAL is long, and a reader on this node keeps it from starting anew.
    pub wal_kept_by_reader: bool,
    /// Parts of an unfinished large transaction.
    pub unfinished_parts: u32,
    /// Entries that wait to be applied here.
    pub queued: usize,
    /// What keeps this node from applying them, if it is an app that stands still.
    pub lagging: Option<String>,
    /// Writers that wait: on the leader those of all nodes, else those of this node.
    pub waiting: usize,
    /// Why the database is not served, if it isn't.
    pub fenced: Option<String>,
    /// What is being received from another node.
    pub transfer: Option<Progress>,
    /// The page at which the background scrub is; 0 between two scrubs.
    pub scrub_page: u32,
    /// When a background scrub last ended, in seconds since 1970; 0: never.
    pub scrubbed_at: u64,
}

impl Database {
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

    /// Hands work to the worker that a fenced database does at once: it publishes nothing, but entries may wait in
    /// its queue for what this work is part of.
    pub(super) fn enqueue_before_held(self: &Arc<Self>, work: Work) {
        let mut state = self.state();
        if state.fenced.is_some() {
            state.queue.push_front(work);
        } else {
            state.queue.push_back(work);
        }
        self.wake(&mut state);
    }

    /// The node, while it runs.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.context.node()
    }

    /// The next entry is the first of a term.
    pub fn take_term(self: &Arc<Self>, term: u64) {
        let mut state = self.state();
        self.judge_term(&mut state, term);
        state.queue.push_back(Work::NewTerm(term));
        self.wake(&mut state);
    }

    /// The next entry says that no more parts of a transaction will come.
    pub fn take_void(self: &Arc<Self>, index: u64, id: TxnId) {
        let mut state = self.state();
        state.head.void(id);
        self.keep(&mut state, Work::Void { index, id });
        self.wake(&mut state);
    }

    /// Everything that could contain this transaction has been handed over.
    pub fn has_concluded(self: &Arc<Self>, id: TxnId) {
        self.has_come_down(&mut self.state(), id);
    }

    /// Starts the worker if there is something for it to do and it isn't at work.
    pub(super) fn wake(self: &Arc<Self>, state: &mut State) {
        let is_work = match &state.publishing {
            Some(publishing) => publishing.ended,
            None => !state.queue.is_empty() && !state.is_held(),
        };
        if !state.running && is_work {
            state.running = true;
            let database = self.clone();
            self.context.run_blocking(move || database.drain());
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

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.state().hashes.len()
    }

    /// Asks for repair, once more.
    pub fn ask_repair(&self) {
        let _ = self.context.repairs.send(self.id);
    }

    /// A scrub for the verification at `index` has ended.
    pub fn scrubbed(&self, index: u64, found: Scrubbed) {
        if let Some(verification) = self.state().verifications.iter_mut().find(|v| v.index == index) {
            verification.scrubbed = found;
        }
    }

    /// Shows how far a transfer has come.
    pub fn set_transfer(&self, progress: Option<Progress>) {
        self.state().transfer = progress;
    }

    /// Waits until everything that is in the queue now has been done.
    pub async fn settled(self: &Arc<Self>) {
        let (done, settled) = oneshot::channel();
        self.enqueue(Work::Signal(done));
        let _ = settled.await;
    }

    /// Whether nothing waits to be applied, nor is being published.
    pub fn is_idle(&self) -> bool {
        let state = self.state();
        state.queue.is_empty() && !state.running && state.publishing.is_none()
    }

    /// Waits until a reader finds everything that has been handed to this database.
    pub async fn caught_up(self: &Arc<Self>) {
        if !self.is_idle() {
            self.settled().await;
        }
    }

    /// The last entry that was dealt with.
    pub fn dealt_with(&self) -> u64 {
        *self.progress.borrow()
    }

    /// A fenced database is about to be repaired: the entries from now on wait for it. Returns the last one before.
    pub fn hold(&self) -> u64 {
        let mut state = self.state();
        let dealt_with = *self.progress.borrow();
        if state.fenced.is_some() {
            state.hold = Some(dealt_with);
            state.held_bytes = state.queue.iter().map(Work::held_bytes).sum();
        }
        dealt_with
    }

    /// Installs a state that came from another node.
    pub async fn install_incoming(self: &Arc<Self>, received: &Received) -> Result<(), InstallError> {
        let (done, installed) = oneshot::channel();
        let (incoming, read) = (received.incoming.clone(), received.read);
        self.enqueue_before_held(Work::Install { incoming, read, done });
        installed.await.unwrap_or_else(|_| {
            Err(DbError::io(self.path(), "installing a state")(io::ErrorKind::Other.into()).into())
        })
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
        let wal_bytes = header.map_or(0, |header| self.wal_bytes(header.max_frame));
        let state = self.state();
        DatabaseStatus {
            id: self.id.0,
            name: self.name.clone(),
            page_size: self.page_size.get(),
            open: true,
            pages: state.hashes.len(),
            index: state.rule.last(),
            durable_index: state.durable.position.index,
            checksum: state.hashes.checksum().to_string(),
            wal_frames: header.map_or(0, |header| header.max_frame.0),
            wal_backfilled: backfilled,
            wal_bytes,
            wal_kept_by_reader: wal_bytes >= LONG_WAL * self.wal_limit() && self.is_read(),
            unfinished_parts: state.large.parts(),
            queued: state.queue.len() + usize::from(state.running),
            lagging: state.lagging(),
            waiting: state.lease.waiting().max(state.grants.len()),
            fenced: state.fenced.clone(),
            transfer: state.transfer,
            scrub_page: state.scrub.next.map_or(0, |page| page.0),
            scrubbed_at: state.scrub.ended,
        }
    }

    /// Position of the last entry that is in the database file, and whether anything came after it. The parts of
    /// an unfinished large transaction count: they are nowhere but in the log.
    pub fn durable(&self) -> (LogPosition, bool) {
        let state = self.state();
        if state.fenced.is_some() && state.behind.is_some_and(|behind| behind.is_recorded) {
            // What it lacks is not to come from the log.
            return (state.durable.position, false);
        }
        (state.durable.position, !state.is_durable())
    }

    /// Whether its file has the effects of all entries that were handed to it.
    pub(super) fn is_durable(&self) -> bool {
        self.state().is_durable()
    }

    /// What the verification at an entry found, if it was made.
    pub fn verification(&self, index: u64) -> Option<Verification> {
        self.state().verifications.iter().find(|v| v.index == index).cloned()
    }

    /// Fences the database on this node: it is no longer what the log says.
    pub(super) fn fence(&self, state: &mut State, why: &DbError) {
        self.fence_for(state, why.to_string());
    }

    /// Fences the database for a reason, and asks for repair.
    pub(super) fn fence_for(&self, state: &mut State, why: String) {
        error!(database = self.name, "fenced: {why}");
        state.fenced = Some(why);
        self.ask_repair();
    }

    /// Fences the database for a reason that was found outside it.
    pub(super) fn fence_now(&self, why: &str) {
        self.fence_for(&mut self.state(), why.to_owned());
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
            && state.closed_at.is_none_or(|at| clock::since(at) >= CLOSE_EVERY)
        {
            state.closed_at = Some(clock::now());
            state.queue.push_back(Work::Checkpoint);
            self.wake(state);
        }
    }
}

impl Database {
    fn wal_bytes(&self, frames: FrameNo) -> u64 {
        if frames.0 == 0 { 0 } else { frame_offset(FrameNo(frames.0 + 1), self.page_size) }
    }

    /// Whether somebody reads at this moment: an app, a stock reader, a backup.
    fn is_read(&self) -> bool {
        match self.holder.try_lock(IndexLock::AllReaders) {
            Ok(true) => {
                self.holder.unlock(IndexLock::AllReaders);
                false
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }

    /// Says so when a reader makes the WAL grow, and again each time that it has doubled. To be called now and then.
    pub fn watch_readers(&self) {
        let header = self.holder.region(0).ok().and_then(wal_index::read_header);
        let bytes = header.map_or(0, |header| self.wal_bytes(header.max_frame));
        if bytes < LONG_WAL * self.wal_limit() {
            self.state().long_wal = 0;
        } else if bytes >= 2 * self.state().long_wal && self.is_read() {
            warn!(
                database = self.name,
                wal_mib = bytes >> 20,
                "its WAL grows: a reader of an old state on this node keeps it from starting anew"
            );
            self.state().long_wal = bytes;
        }
    }
}

/// The path of a database in a directory.
pub fn database_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.{}", quire_vfs::shim::vfs::EXTENSION))
}

#[cfg(test)]
impl Database {
    /// All pages as a reader finds them, and the checksum that they should have.
    pub(crate) fn contents(&self) -> (Vec<Vec<u8>>, DbChecksum) {
        use std::os::unix::fs::FileExt;
        let header = wal_index::read_header(self.holder.region(0).unwrap()).unwrap();
        let wal = std::fs::File::open(super::applier::wal_path(self.path())).unwrap();
        let state = self.state();
        let page = |number| {
            let mut out = vec![0; self.page_size.bytes()];
            match wal_index::find(&self.holder, PageNo(number), header.max_frame).unwrap() {
                Some(frame) => {
                    let at = frame_offset(frame, self.page_size)
                        + quire_vfs::format::wal::FRAME_HEADER_SIZE as u64;
                    wal.read_exact_at(&mut out, at).unwrap();
                }
                None => self.holder.read_page(PageNo(number), self.page_size, &mut out).unwrap(),
            }
            out
        };
        ((1..=state.hashes.len()).map(page).collect(), state.hashes.checksum())
    }

    /// Whether a page is what its hash says.
    pub(crate) fn is_sound(&self, page: u32, found: &[Vec<u8>]) -> bool {
        let hash = quire_vfs::format::checksum::page_hash(PageNo(page), &found[page as usize - 1]);
        self.state().hashes.get(PageNo(page)) == Some(hash)
    }

    /// How it stands, for a person.
    pub(crate) fn debug(&self) -> String {
        let state = self.state();
        let State { held, pending, publishing, air, arrived, grants, queue, running, .. } = &*state;
        let pending = pending.as_ref().map(|p| p.id);
        let publishing = publishing.as_ref().map(|p| (p.session, p.ended));
        format!(
            "last {}, head {:?}, lease {:?}, waiting {}, held {held:?}, pending {pending:?}, publishing {publishing:?}, \
             air {air:?}, arrived {arrived:?}, grants {grants:?}, {} queued, running {running}",
            state.rule.last(),
            state.head.last(),
            state.lease.holder(),
            state.lease.waiting(),
            queue.len()
        )
    }
}
