//! The parts of large transactions on this node, between their entries and the last part's.
//!
//! ```text
//! log ──part──► waiting ──► stager: hashes and images ──► file `NAME.db-parts-ID`
//!      └──────► queue ────► worker: judge (core::run) ──► open run ──last part──► publish: frames from the file
//! ```
//!
//! A part's pages are in memory only until they are staged, which waits for nothing but the disk: neither for the
//! worker, who may stand still for seconds, nor for the gate lock. What stays in memory is 16 bytes per page. The
//! file is not synced: the log is what is durable, and after a restart the log gives the parts again. It is removed
//! when nothing needs it any more, and all that are left at a start are.
//!
//! The node whose app writes stages as well: if the app dies between the commit and its publication, the applier
//! needs the pages. A file that can't be written matters only then, so that is when it is reported.

use super::DbError;
use super::applier::{Prepared, TakePage, Wal};
use super::database::{Database, State, Work};
use super::gate::Route;
use super::publish::Unpublished;
use crate::command::PartHead;
use crate::core::lease::SessionId;
use crate::core::rule::{Candidate, Verdict};
use crate::core::run::{Last, Part, Runs, Taken};
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::fault;
use quire_vfs::format::checksum::{HashDelta, PageHashes, page_hash};
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::format::{PageNo, PageSize};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

/// Bytes of staged pages that are read at once.
const READ_BYTES: usize = 1 << 20;

/// A file of staged page images, one after the other. Removed with its last user.
#[derive(Debug)]
struct StageFile {
    path: PathBuf,
    file: Option<File>,
    runtime: tokio::runtime::Handle,
}

impl Drop for StageFile {
    fn drop(&mut self) {
        // Giving back the blocks of a large file takes its time, and locks may be held here.
        let (path, file) = (std::mem::take(&mut self.path), self.file.take());
        self.runtime.spawn_blocking(move || {
            let _ = std::fs::remove_file(path);
            drop(file);
        });
    }
}

/// A part whose pages are in a file.
#[derive(Debug)]
pub(super) struct Staged {
    /// Ascending, with the hash of each page.
    pages: Vec<(PageNo, u64)>,
    fills: u32,
    /// The file, and where in it the first image stands.
    place: Result<(Arc<StageFile>, u64), StageError>,
}

/// Why a part could not be staged. To be told again for as long as it is needed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: staging a large transaction's pages: {why}", path.display())]
struct StageError {
    path: PathBuf,
    why: String,
}

impl StageError {
    fn new(path: &Path) -> impl Fn(io::Error) -> StageError {
        move |error| StageError { path: path.to_owned(), why: error.to_string() }
    }
}

impl Staged {
    /// Reads the pages back, some at a time, and checks them against their hashes.
    fn each(&self, page_size: PageSize, take: &mut TakePage<'_>) -> Result<(), DbError> {
        let (staged, start) = match &self.place {
            Ok(place) => place,
            Err(failure) => {
                let error = io::Error::other(failure.why.clone());
                return Err(DbError::io(&failure.path, "staging a large transaction's pages")(error));
            }
        };
        let Some(file) = &staged.file else { return Ok(()) };
        let size = page_size.bytes();
        let mut buffer = vec![0; (READ_BYTES / size).clamp(1, self.pages.len().max(1)) * size];
        let mut at = *start;
        for chunk in self.pages.chunks(buffer.len() / size) {
            let bytes = &mut buffer[..chunk.len() * size];
            file.read_exact_at(bytes, at).map_err(DbError::io(&staged.path, "reading staged pages"))?;
            at += bytes.len() as u64;
            for (&(page, hash), data) in chunk.iter().zip(bytes.chunks_exact(size)) {
                if page_hash(page, data) != hash {
                    let why = format!(
                        "page {page} is not what was written; restart the node: it reads the log again"
                    );
                    return Err(DbError::io(&staged.path, "reading staged pages")(io::Error::other(why)));
                }
                take(page, data)?;
            }
        }
        Ok(())
    }
}

/// Where the worker finds a part once it is staged.
pub(super) type Slot = Arc<OnceLock<Arc<Staged>>>;

/// Parts that are yet to be staged, and the files that they go to.
#[derive(Debug)]
pub(super) struct Stager {
    database: PathBuf,
    runtime: tokio::runtime::Handle,
    waiting: Mutex<VecDeque<(Slot, Bytes)>>,
    /// Their bytes, of all databases.
    unstaged: watch::Sender<usize>,
    /// Held by whoever stages: the file of each transaction, and how far it is written.
    files: Mutex<HashMap<TxnId, (Weak<StageFile>, u64)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes between a database's path and the transaction's id in the name of a file.
const INFIX: &str = "-parts-";

/// At the start: removes what an earlier life of the node has left.
pub(super) fn sweep(directory: &Path) -> Result<(), DbError> {
    for entry in std::fs::read_dir(directory).map_err(DbError::io(directory, "reading it"))? {
        let path = entry.map_err(DbError::io(directory, "reading it"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = name.rsplit_once(INFIX).filter(|(before, _)| before.ends_with(".db")).map(|(_, id)| id);
        if id.is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            std::fs::remove_file(&path).map_err(DbError::io(&path, "removing it"))?;
        }
    }
    Ok(())
}

/// The name of a transaction's file begins with this, then comes its id.
fn prefix(database: &Path) -> std::ffi::OsString {
    let mut name = database.as_os_str().to_owned();
    name.push(INFIX);
    name
}

impl Stager {
    /// A stager that has nothing to do.
    pub(super) fn new(
        database: &Path,
        runtime: tokio::runtime::Handle,
        unstaged: watch::Sender<usize>,
    ) -> Stager {
        Stager {
            database: database.to_owned(),
            runtime,
            waiting: Mutex::default(),
            unstaged,
            files: Mutex::default(),
        }
    }

    /// Takes a part; it is staged on a blocking thread.
    fn push(self: &Arc<Self>, body: Bytes) -> Slot {
        let slot = Slot::default();
        let mut waiting = lock(&self.waiting);
        // Whoever is at it goes on until nothing waits.
        if waiting.is_empty() {
            let stager = self.clone();
            self.runtime.spawn_blocking(move || stager.stage());
        }
        self.unstaged.send_modify(|bytes| *bytes += body.len());
        waiting.push_back((slot.clone(), body));
        slot
    }

    /// Stages all that waits.
    fn stage(&self) {
        let mut files = lock(&self.files);
        loop {
            // Not in one expression with the loop: the lock on the queue must not be held while writing.
            let next = lock(&self.waiting).pop_front();
            let Some((slot, body)) = next else { return };
            let _ = slot.set(Arc::new(self.write(&mut files, &body)));
            self.unstaged.send_modify(|bytes| *bytes -= body.len());
            fault::point("part.staged");
        }
    }

    /// A part that was pushed, staged here and now if nobody has.
    fn get(&self, slot: &Slot) -> Option<Arc<Staged>> {
        if slot.get().is_none() {
            // Either it waits still, or whoever has taken it holds the lock that this waits for.
            self.stage();
        }
        slot.get().cloned()
    }

    fn write(&self, files: &mut HashMap<TxnId, (Weak<StageFile>, u64)>, body: &Bytes) -> Staged {
        let (mut pages, mut fills) = (Vec::new(), 0);
        let place = Transaction::decode(body)
            .map_err(|error| StageError { path: self.database.clone(), why: error.to_string() })
            .and_then(|txn| {
                pages = txn.pages().map(|(page, data)| (page, page_hash(page, data))).collect();
                fills = txn.fill_count();
                let (staged, at) = self.file(files, txn.id())?;
                if let Some(file) = &staged.file {
                    file.write_all_at(txn.images(), at).map_err(StageError::new(&staged.path))?;
                }
                if let Some((_, end)) = files.get_mut(&txn.id()) {
                    *end = at + txn.images().len() as u64;
                }
                Ok((staged, at))
            });
        if let Err(error) = &place {
            warn!("{error}");
        }
        Staged { pages, fills, place }
    }

    /// The file of a transaction, and its end.
    fn file(
        &self,
        files: &mut HashMap<TxnId, (Weak<StageFile>, u64)>,
        id: TxnId,
    ) -> Result<(Arc<StageFile>, u64), StageError> {
        if let Some((file, end)) = files.get(&id)
            && let Some(file) = file.upgrade()
        {
            return Ok((file, *end));
        }
        files.retain(|_, (file, _)| file.strong_count() > 0);
        let mut path = prefix(&self.database);
        path.push(id.to_string());
        let path = PathBuf::from(path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(StageError::new(&path))?;
        let staged = Arc::new(StageFile { path, file: Some(file), runtime: self.runtime.clone() });
        files.insert(id, (Arc::downgrade(&staged), 0));
        Ok((staged, 0))
    }
}

/// Tells that a part is in the log and counts, or why not.
pub type PartAnswer = oneshot::Receiver<Result<(), String>>;

/// A part that an app of this node waits for.
#[derive(Debug)]
pub(super) struct Sending {
    id: TxnId,
    sequence: u32,
    term: u64,
    session: SessionId,
    /// `None` once the app gave up, or is gone.
    waiter: Option<oneshot::Sender<Result<(), String>>>,
}

/// Large transactions of one database, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Large {
    runs: Runs,
    /// The parts of the open run.
    staged: Vec<Arc<Staged>>,
    sending: Option<Sending>,
}

impl Large {
    /// The runs, as far as they have been judged.
    pub(super) fn runs(&self) -> Runs {
        self.runs
    }

    /// Number of parts in the open run.
    pub(super) fn parts(&self) -> u32 {
        self.runs.open().map_or(0, |run| run.before.parts)
    }

    /// Whether a part is on its way through Raft.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether a part of this transaction is on its way through Raft.
    pub(super) fn is_sending_of(&self, id: TxnId) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.id == id)
    }

    /// Everything that could contain the part that is on its way has been dealt with.
    pub(super) fn conclude(&mut self, id: TxnId) {
        if self.is_sending_of(id) {
            self.answer(Err("it is not in the log".into()));
        }
    }

    /// What becomes of the part that is on its way won't be seen here. Its transaction can't succeed any more.
    pub(super) fn lose_sight(&mut self) {
        self.answer(Err("this node got the database's state from another one meanwhile".into()));
    }

    /// An entry of a new term has committed.
    pub(super) fn new_term(&mut self, term: u64) {
        self.runs.new_term(term);
        self.settle();
        if self.sending.as_ref().is_some_and(|sending| sending.term < term) {
            self.answer(Err("the leader changed before it committed".into()));
        }
    }

    /// The database's last entry is this one now.
    pub(super) fn moved_to(&mut self, last: u64) {
        self.runs.moved_to(last);
        self.settle();
    }

    /// No more of this transaction will come.
    pub(super) fn void(&mut self, id: TxnId) {
        self.runs.void(id);
        self.settle();
    }

    /// The connection of an app is gone.
    pub(super) fn gone(&mut self, session: SessionId) {
        if let Some(sending) = self.sending.as_mut().filter(|sending| sending.session == session) {
            sending.waiter = None;
        }
    }

    /// The parts before a transaction's last one: none, if it comes as a whole. An error if they aren't all
    /// there. The commit rule has let it through.
    pub(super) fn before(
        &self,
        entry: &Candidate,
        txn: &Transaction<'_>,
    ) -> Result<Vec<Arc<Staged>>, &'static str> {
        let Piece::Last(before) = txn.piece() else { return Ok(Vec::new()) };
        let last = Last { id: txn.id(), before, db_size: txn.db_size(), first: txn.bounds().0 };
        if self.runs.is_complete(entry, &last) {
            return Ok(self.staged.clone());
        }
        Err("the parts before its last one are void")
    }

    fn settle(&mut self) {
        if self.runs.open().is_none() {
            self.staged.clear();
        }
    }

    fn answer(&mut self, result: Result<(), String>) {
        if let Some(waiter) = self.sending.take().and_then(|sending| sending.waiter) {
            let _ = waiter.send(result);
        }
    }
}

/// What a transaction changes, its parts included.
pub(super) fn delta(before: &[Arc<Staged>], txn: &Transaction<'_>) -> HashDelta {
    if before.is_empty() {
        return PageHashes::delta(txn.db_size(), txn.pages());
    }
    let mut pages: Vec<_> = before.iter().flat_map(|part| part.pages.iter().copied()).collect();
    pages.extend(txn.pages().map(|(page, data)| (page, page_hash(page, data))));
    HashDelta::from_hashes(txn.db_size(), pages)
}

/// A part on its way to the worker.
#[derive(Debug)]
pub struct PartWork {
    index: u64,
    term: u64,
    part: Part,
    slot: Slot,
}

impl PartWork {
    /// Its entry.
    pub(super) fn index(&self) -> u64 {
        self.index
    }

    /// Bytes that it keeps in memory once it is staged.
    pub(super) fn held_bytes(&self) -> usize {
        self.part.pages as usize * size_of::<(PageNo, u64)>()
    }

    /// What the rule asks of it.
    pub(super) fn candidate(&self) -> Candidate {
        let PartWork { index, term, part: Part { base, lease_term, .. }, .. } = *self;
        Candidate { index, term, base, lease_term }
    }

    /// The part.
    pub(super) fn part(&self) -> &Part {
        &self.part
    }
}

impl Database {
    /// Takes the next committed part, in log order. To be called on a runtime thread: it never waits.
    pub fn take_part(self: &Arc<Self>, position: LogPosition, head: &PartHead, body: Bytes) {
        let txn = match Transaction::decode(&body) {
            Ok(txn) if txn.page_size() == self.page_size => txn,
            // Skipped by every node alike; without it, its run is void.
            _ => return warn!(database = self.name, %position, "a part that isn't one of this database"),
        };
        let Piece::Part { sequence } = txn.piece() else { return };
        let (first, last) = txn.bounds();
        let part = Part {
            id: txn.id(),
            sequence,
            base: head.base,
            lease_term: head.lease_term,
            db_size: txn.db_size(),
            pages: txn.page_count() as u32,
            fills: txn.fill_count(),
            first,
            last,
        };
        let slot = self.stager.push(body);
        let work = PartWork { index: position.index, term: position.term, part, slot };
        let mut state = self.state();
        self.judge_part(&mut state, &work.candidate(), &part);
        self.keep(&mut state, Work::Part(work));
        self.advance(&mut state);
        self.wake(&mut state);
    }

    /// Deals with one committed part, on the worker.
    pub(super) fn part<'a>(
        self: &'a Arc<Self>,
        state: MutexGuard<'a, State>,
        work: &PartWork,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let staged = self.stager.get(&work.slot);
        let mut state = self.state();
        let PartWork { index, term, part, .. } = work;
        let candidate = work.candidate();
        // A fenced database doesn't know what its last entry should be. The run is followed nevertheless: it counts
        // if the database is that of the run's base when the last part comes.
        let verdict = match state.rule.judge(&candidate) {
            _ if state.fenced.is_some() && part.lease_term == *term => Verdict::Apply,
            verdict => verdict,
        };
        let large = &mut state.large;
        let taken = large.runs.part(verdict, part);
        if taken == Taken::Begun {
            large.staged.clear();
        }
        if !matches!(taken, Taken::Skipped(_)) {
            large.staged.extend(staged);
        }
        large.settle();
        if let Taken::Skipped(why) = taken {
            debug!(database = self.name, index, transaction = %part.id, sequence = part.sequence, why, "part skipped");
        }
        fault::point("part.judged");
        let is_awaited = |sending: &Sending| sending.id == part.id && sending.sequence == part.sequence;
        if state.large.sending.as_ref().is_some_and(is_awaited) {
            let fenced =
                state.fenced.as_ref().map(|why| format!("{} is fenced on this node: {why}", self.name));
            state.large.answer(match (taken, fenced) {
                (Taken::Skipped(why), _) => Err(why.to_owned()),
                (_, Some(why)) => Err(why),
                (Taken::Begun | Taken::Continued, None) => Ok(()),
            });
        }
        self.has_dealt_with(&state, *index);
        state
    }

    /// No more parts of a transaction will come, says the log.
    pub(super) fn void(&self, state: &mut State, index: u64, id: TxnId) {
        state.large.void(id);
        self.has_dealt_with(state, index);
    }

    /// Takes a part for proposal. The receiver learns that it is in the log and counts, or why not.
    pub fn begin_part(
        &self,
        session: SessionId,
        token: u64,
        txn: &Transaction<'_>,
        max_bytes: u64,
    ) -> Result<(PartHead, Route, PartAnswer), String> {
        let Piece::Part { sequence } = txn.piece() else {
            return Err("it is no part of a transaction".into());
        };
        let mut state = self.state();
        let (lease, route) = self.may_send(&mut state, session, token, txn)?;
        let (base, term) = (lease.head, lease.term);
        let before = match state.large.runs.open() {
            _ if sequence == 0 => 0,
            Some(run) if run.id == txn.id() && run.before.parts == sequence => run.before.pages,
            _ => return Err("the parts before it are void: the leader has changed".into()),
        };
        let bytes = (u64::from(before) + txn.page_count() as u64) * u64::from(self.page_size.get());
        if bytes > max_bytes {
            return Err(format!("its pages take more than {max_bytes} bytes"));
        }
        self.begin(&mut state, lease, route, txn.id())?;
        let head = PartHead { database: self.id, base, lease_term: term, origin: self.context.node_id };
        let (tx, rx) = oneshot::channel();
        state.large.sending = Some(Sending { id: txn.id(), sequence, term, session, waiter: Some(tx) });
        Ok((head, route, rx))
    }

    /// The part that is on its way was definitely not proposed.
    pub fn abort_part(self: &Arc<Self>, id: TxnId, why: &str) {
        let mut state = self.state();
        if state.large.sending.as_ref().is_some_and(|sending| sending.id == id) {
            state.large.answer(Err(why.to_owned()));
        }
        self.advance(&mut state);
    }

    /// With the gate lock: writes a large transaction into the WAL, unpublished.
    pub(super) fn prepare_large(
        &self,
        wal: &mut Wal,
        entry: &Unpublished,
        txn: &Transaction<'_>,
    ) -> Result<Prepared, DbError> {
        let mut numbers: Vec<_> =
            entry.before.iter().flat_map(|part| part.pages.iter().map(|&(page, _)| page)).collect();
        numbers.extend(txn.pages().map(|(page, _)| page));
        wal.prepare_from(&self.holder, numbers.into_iter(), txn.db_size(), |frame| {
            entry.before.iter().try_for_each(|part| part.each(self.page_size, frame))?;
            txn.pages().try_for_each(|(page, data)| frame(page, data))
        })
    }

    /// The numbers of the pages in a large transaction's parts that may be fills: those beyond the database's
    /// old size that are all zeros.
    pub(super) fn fills_before(&self, entry: &Unpublished) -> Result<Vec<PageNo>, DbError> {
        let mut fills = Vec::new();
        for part in entry.before.iter().filter(|part| part.fills > 0) {
            part.each(self.page_size, &mut |page, data| {
                if page.0 > entry.old_size && data.iter().all(|&byte| byte == 0) {
                    fills.push(page);
                }
                Ok(())
            })?;
        }
        Ok(fills)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_vfs::format::transaction::encode_piece;

    fn part(id: u8, sequence: u32, numbers: &[u32]) -> Bytes {
        let page_size = PageSize::new(512).unwrap();
        let pages: Vec<_> = numbers.iter().map(|&page| PageNo(page)).collect();
        let mut out = vec![];
        encode_piece(&mut out, Piece::Part { sequence }, TxnId([id; 16]), page_size, 99, &pages, 0);
        numbers.iter().for_each(|&page| out.extend([page as u8 ^ id; 512]));
        out.into()
    }

    fn read(staged: &Staged) -> Result<Vec<(u32, u8)>, DbError> {
        let mut found = vec![];
        staged.each(PageSize::new(512).unwrap(), &mut |page, data| {
            found.push((page.0, data[0]));
            Ok(())
        })?;
        Ok(found)
    }

    fn files(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.contains("-parts-")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_part_that_is_lost_sight_of_is_refused_and_keeps_nobody_out() {
        let (tx, mut rx) = oneshot::channel();
        let sending = Sending { id: TxnId([1; 16]), sequence: 3, term: 2, session: 9, waiter: Some(tx) };
        let mut large = Large { sending: Some(sending), ..Large::default() };
        large.moved_to(40);
        assert!(large.is_sending(), "another entry says nothing of it");
        large.lose_sight();
        assert!(!large.is_sending());
        assert!(rx.try_recv().unwrap().unwrap_err().contains("from another one"));
        large.lose_sight();
    }

    #[test]
    fn parts_are_staged_by_transaction_and_go_with_their_last_user() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let id = |n: u8| TxnId([n; 16]).to_string();
        // What is left from before goes, what only looks like it stays.
        let kept = format!("a.db-parts-{}.db", id(1));
        for name in [&format!("a.db-parts-{}", id(1)), &kept, &format!("b.db-parts-{}", id(1))] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        sweep(dir.path()).unwrap();
        assert_eq!(files(dir.path()), [kept]);
        let stager = Arc::new(Stager::new(&db, runtime.handle().clone(), watch::Sender::default()));

        let slots: Vec<_> = [part(1, 0, &[1, 2]), part(2, 0, &[5]), part(1, 1, &[7, 9])]
            .into_iter()
            .map(|body| stager.push(body))
            .collect();
        let staged: Vec<_> = slots.iter().map(|slot| stager.get(slot).unwrap()).collect();
        assert_eq!(read(&staged[0]).unwrap(), [(1, 0), (2, 3)]);
        assert_eq!(read(&staged[1]).unwrap(), [(5, 7)]);
        assert_eq!(read(&staged[2]).unwrap(), [(7, 6), (9, 8)]);
        assert_eq!(files(dir.path()).len(), 3);

        // What stands in the file is not believed without its hash.
        let path = dir.path().join(format!("a.db-parts-{}", id(1)));
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 2 * 512).unwrap();
        assert!(read(&staged[0]).is_ok());
        let why = read(&staged[2]).unwrap_err().to_string();
        assert!(why.contains("page 7 is not what was written"), "{why}");
        file.set_len(700).unwrap();
        assert!(read(&staged[0]).is_err());

        drop((staged, slots));
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while files(dir.path()).len() > 1 {
            assert!(std::time::Instant::now() < patience, "{:?}", files(dir.path()));
            std::thread::yield_now();
        }
        // A file that can't be made is reported when it is needed.
        std::fs::create_dir(dir.path().join(format!("a.db-parts-{}", id(3)))).unwrap();
        let staged = stager.get(&stager.push(part(3, 0, &[1]))).unwrap();
        assert!(read(&staged).unwrap_err().to_string().contains("staging a large transaction's pages"));
    }
}
