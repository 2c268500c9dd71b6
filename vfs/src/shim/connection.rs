//! What the shim decides for one open database: the locks that go to the gate, the transaction that is
//! captured, the moment of the commit. Safe code; the trampolines in [`super::file`] only translate.

use super::ffi::*;
use super::host::HostFile;
use super::pages::{Failure, Pages};
use super::reads::{ReadLevel, Reads};
use super::writers::Writing;
use crate::capture::{Action, Capture, Commit};
use crate::fault;
use crate::format::transaction::TxnId;
use crate::format::wal_index::{self, Region};
use crate::gate::proto::{NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, WalTarget};
use crate::gate::{Gate, Grant};
use std::ffi::{CString, c_int};
use std::time::{Duration, Instant};

/// A WAL of so many times its limit is long.
const LONG_WAL: u64 = 4;

/// What to do with a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it to the host's file.
    Forward,
    /// Answer it with this result code.
    Answer(c_int),
}

/// One open database file: the state that its main file and its WAL share.
pub struct Connection {
    api: Api,
    gate: Box<dyn Gate>,
    /// The first region of the wal-index, once SQLite has mapped it.
    region0: Option<&'static Region>,
    /// Reader slots of which this connection holds the lock.
    read_locks: u8,
    /// The wal-index header when the read lock was taken: the snapshot that SQLite reads.
    snapshot: [u32; 12],
    /// How new reads have to be.
    reads: Reads,
    /// The node has confirmed it for the read transaction that SQLite is about to begin.
    may_read: bool,
    writer: Option<Writer>,
    /// When a transaction last waited for a checkpoint.
    awaited: Option<Instant>,
    /// Frames in the WAL that the last transaction began with, if it came to write, until it has ended.
    wrote_after: Option<u64>,
    /// When waiting for room in the WAL was last of no use.
    waited_in_vain: Option<Instant>,
    /// The last refusal, so that a busy handler's retries don't fill the log.
    refused: String,
}

/// Between grant and release.
struct Writer {
    grant: Grant,
    /// Nothing else that is replicated is written by this handle meanwhile.
    _writing: Option<Writing>,
    capture: Capture,
    /// The snapshot was old when the grant came; SQLite will say BUSY_SNAPSHOT and may try again.
    stale: bool,
}

impl Connection {
    /// A connection with its gate.
    pub fn new(api: Api, gate: Box<dyn Gate>, reads: Reads) -> Connection {
        Connection {
            api,
            gate,
            region0: None,
            read_locks: 0,
            snapshot: [0; 12],
            reads,
            may_read: false,
            writer: None,
            awaited: None,
            wrote_after: None,
            waited_in_vain: None,
            refused: String::new(),
        }
    }

    /// A line in the host's error log (`sqlite3_log`).
    pub fn log(&self, code: c_int, message: &str) {
        log(&self.api, code, message);
    }

    /// Whether another database has taken the place of the one that was opened.
    pub fn is_replaced(&self) -> bool {
        self.gate.is_replaced()
    }

    /// SQLite mapped the first region of the wal-index.
    pub fn mapped(&mut self, region0: &'static Region) {
        self.region0 = Some(region0);
    }

    /// SQLite gave its mapping back; nothing of it may be read any more.
    pub fn unmapped(&mut self) {
        self.abandon();
        self.region0 = None;
    }

    /// Whether this is the node's own checkpointer, which may write the database file.
    pub fn is_checkpointer(&self) -> bool {
        self.gate.is_checkpointer()
    }

    /// `xShmLock`. WRITE is the gate's business; CKPT and RECOVER are the node's alone; what remains are
    /// the readers' slots, which are real locks. `handle` is the address of the `sqlite3` that asks, or 0.
    pub fn shm_lock(&mut self, offset: c_int, n: c_int, flags: c_int, handle: usize) -> Verdict {
        if flags & SQLITE_SHM_EXCLUSIVE == 0 {
            let locking = flags & SQLITE_SHM_LOCK != 0;
            if locking && offset > WAL_READ_LOCK0 && self.await_checkpoint() {
                return Verdict::Answer(SQLITE_BUSY);
            }
            if locking && offset >= WAL_READ_LOCK0 && self.read_locks == 0 {
                return self.begin_read();
            }
            return Verdict::Forward;
        }
        let locking = flags & SQLITE_SHM_LOCK != 0;
        let covers = |lock: c_int| offset <= lock && lock < offset + n;
        if covers(WAL_WRITE_LOCK) {
            if !locking {
                self.release();
                return Verdict::Answer(SQLITE_OK);
            }
            return Verdict::Answer(self.acquire(handle));
        }
        if covers(WAL_CKPT_LOCK) || covers(WAL_RECOVER_LOCK) {
            // The node's holder has the real lock, for all of this node.
            let granted = !locking || self.gate.is_checkpointer();
            return Verdict::Answer(if granted { SQLITE_OK } else { SQLITE_BUSY });
        }
        Verdict::Forward
    }

    /// The host's answer to a lock call that was forwarded.
    pub fn shm_locked(&mut self, offset: c_int, flags: c_int, code: c_int) {
        if flags & SQLITE_SHM_SHARED == 0 || offset < WAL_READ_LOCK0 {
            return;
        }
        if code != SQLITE_OK {
            self.may_read &= code == SQLITE_BUSY;
            return;
        }
        let bit = 1u8 << (offset - WAL_READ_LOCK0);
        if flags & SQLITE_SHM_LOCK != 0 {
            self.read_locks |= bit;
            // SQLite compares its copy of the header with the index once more after taking the lock
            // (walTryBeginRead), so this is the header that it goes on with.
            if let Some(region0) = self.region0 {
                self.snapshot = wal_index::raw_header(region0);
            }
        } else {
            self.read_locks &= !bit;
            if self.read_locks == 0
                && let Some(before) = self.wrote_after.take()
            {
                self.make_room(before);
            }
        }
    }

    /// A read transaction is about to begin: sees to it that this node has what the read is to find.
    ///
    /// SQLite has looked at the header before this and looks again after it has the lock (`walTryBeginRead`);
    /// if it is another by then, it lets go and begins anew. That is the same beginning, for which nothing is
    /// asked twice: while others write, each question takes longer than until the next commit, and SQLite gives
    /// up after 100 attempts. So where the header has changed meanwhile, it is let through when it returns.
    fn begin_read(&mut self) -> Verdict {
        if self.reads.level() == ReadLevel::Local || std::mem::take(&mut self.may_read) {
            return Verdict::Forward;
        }
        let header = |region0: Option<&Region>| region0.map(wal_index::raw_header);
        let before = header(self.region0);
        let deadline = Instant::now() + self.gate.info().commit_deadline;
        for goal in self.reads.goals(Instant::now()) {
            if let Err(refusal) = self.reach(goal, deadline) {
                let (name, level) = (&self.gate.info().name, self.reads.level());
                let text = format!("no read of {name} with reads={level}: {refusal}");
                self.log(SQLITE_IOERR_SHMLOCK, &text);
                return Verdict::Answer(SQLITE_IOERR_SHMLOCK);
            }
        }
        self.may_read = header(self.region0) != before;
        Verdict::Forward
    }

    /// Has the node reach a goal.
    fn reach(&mut self, goal: ReadGoal, deadline: Instant) -> Result<u64, Refusal> {
        let asked = Instant::now();
        let (index, age) = self.gate.read(goal, deadline.saturating_duration_since(asked))?;
        self.reads.reached(goal, asked, index, age);
        Ok(index)
    }

    /// How new reads have to be.
    pub fn reads(&mut self) -> &mut Reads {
        self.may_read = false;
        &mut self.reads
    }

    /// What the node says of itself and this database.
    pub fn status(&mut self) -> Result<NodeStatus, String> {
        self.gate.status().map_err(|refusal| refusal.message)
    }

    /// Waits until this node has everything that was committed before the call; returns the position.
    pub fn barrier(&mut self) -> Result<u64, String> {
        if self.writer.is_some() {
            return Err("quire_barrier inside a write transaction: end the transaction first".into());
        }
        let deadline = Instant::now() + self.gate.info().commit_deadline;
        self.reach(ReadGoal::Newest, deadline).map_err(|refusal| refusal.message)
    }

    /// A transaction is about to begin at a frame of the WAL. SQLite starts the WAL anew only for a writer
    /// that began when all of it was in the database file, so that writers in unbroken sequence would let it
    /// grow forever. If it is too long and the node's checkpoint is about to have all of it, waits for that.
    /// True if it has: SQLite, told BUSY for its reader slot, looks again (`walTryBeginRead`) and begins at the
    /// database file.
    fn await_checkpoint(&mut self) -> bool {
        const PATIENCE: Duration = Duration::from_millis(50);
        const EVERY: Duration = Duration::from_millis(500);
        let info = self.gate.info();
        let size = u64::from(info.page_size.get());
        let Some(region0) = self.region0 else { return false };
        // Frames in the WAL, and how many of them are yet to be copied.
        let frames = || {
            let last = wal_index::read_header(region0)?.max_frame.0;
            Some((u64::from(last), u64::from(last.saturating_sub(wal_index::backfilled(region0).0))))
        };
        let is_due =
            |(all, left): (u64, u64)| all * size >= info.wal_limit && left * size <= info.wal_limit / 4;
        if self.awaited.is_some_and(|at| at.elapsed() < EVERY) || !frames().is_some_and(is_due) {
            return false;
        }
        let began = *self.awaited.insert(Instant::now());
        while began.elapsed() < PATIENCE {
            if frames().is_some_and(|(_, left)| left == 0) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// A transaction that came to write when the WAL had `before` frames has ended, and holds no lock any more. If each
    /// one is larger than what a checkpoint may have left to copy for a moment's wait, the next writer, who may begin at
    /// once, never finds all of the WAL in the database file. Where that has let the WAL grow far beyond its limit, this
    /// one waits until the node has copied it: as SQLite's own writer would, who copies it himself in his COMMIT.
    fn make_room(&mut self, before: u64) {
        /// The node sets about it once the transaction is published, and is done with a checkpoint that is under way.
        const BEGINS: Duration = Duration::from_secs(2);
        const ENDS: Duration = Duration::from_secs(10);
        /// A reader of an old state may be in the way, and stay there.
        const IN_VAIN: Duration = Duration::from_secs(30);
        let info = self.gate.info();
        let (size, limit) = (u64::from(info.page_size.get()), info.wal_limit);
        let Some(region0) = self.region0 else { return };
        let last = || wal_index::read_header(region0).map_or(0, |header| u64::from(header.max_frame.0));
        let is_long = || {
            let (last, copied) = (last(), u64::from(wal_index::backfilled(region0).0));
            last.saturating_mul(size) >= limit.saturating_mul(LONG_WAL)
                && last.saturating_sub(copied).saturating_mul(size) > limit / 4
        };
        // A single large one is no reason: the next one finds it copied, or waits then.
        if before.saturating_mul(size) < limit
            || !is_long()
            || self.waited_in_vain.is_some_and(|at| at.elapsed() < IN_VAIN)
        {
            return;
        }
        let (began, ours) = (Instant::now(), last());
        while is_long() {
            let is_at_it = u64::from(wal_index::attempted(region0).0) >= ours;
            if began.elapsed() >= if is_at_it { ENDS } else { BEGINS } {
                self.waited_in_vain = Some(Instant::now());
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn acquire(&mut self, handle: usize) -> c_int {
        // Without a read lock it isn't a writer: a reader found the header torn and wants to look at it
        // under the lock, or to recover the WAL (walIndexReadHdr). BUSY makes it read again.
        if self.read_locks == 0 || self.is_checkpointer() || self.writer.is_some() {
            self.may_read = false;
            return SQLITE_BUSY;
        }
        let name = &self.gate.info().name;
        let writing = match Writing::begin(handle, name) {
            Ok(writing) => writing,
            Err(other) => {
                let text = format!(
                    "no write to {name}: this transaction writes to {other}, and can't write to two replicated \
                     databases; with several attached, begin it with BEGIN, not BEGIN IMMEDIATE"
                );
                self.log(SQLITE_READONLY, &text);
                return SQLITE_READONLY;
            }
        };
        let grant = match self.gate.acquire() {
            Ok(grant) => {
                self.refused.clear();
                grant
            }
            Err(refusal) => {
                let code = match refusal.code {
                    RefusalCode::Busy => return SQLITE_BUSY,
                    RefusalCode::Full => SQLITE_FULL,
                    RefusalCode::NotLeader | RefusalCode::Unavailable | RefusalCode::Fenced => SQLITE_BUSY,
                    RefusalCode::Invalid | RefusalCode::NotFound => SQLITE_IOERR_WRITE,
                };
                if self.refused != refusal.message {
                    self.log(code, &format!("no write to {}: {refusal}", self.gate.info().name));
                    self.refused = refusal.message;
                }
                return code;
            }
        };
        let Some((region0, header)) = self.region0.and_then(|r| Some((r, wal_index::read_header(r)?))) else {
            self.gate.release(grant, false);
            return SQLITE_BUSY;
        };
        // The node does this when a writer dies, but a node that was down then knows of no writer.
        let header = wal_index::finish_restart(region0, header);
        let page_size = self.gate.info().page_size;
        let capture = Capture::new(page_size, header.max_frame, header.salts);
        let stale = wal_index::raw_header(region0) != self.snapshot;
        self.wrote_after = Some(u64::from(wal_index::raw_max_frame(&self.snapshot).0));
        self.writer = Some(Writer { grant, _writing: writing, capture, stale });
        SQLITE_OK
    }

    fn release(&mut self) {
        fault::point("release.published");
        if let Some(writer) = self.writer.take() {
            let linger = writer.stale && writer.capture.is_empty();
            self.gate.release(writer.grant, linger);
        }
    }

    /// The file is closed or unmapped in the middle of a transaction: give the lock back.
    pub fn abandon(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.gate.release(writer.grant, false);
        }
    }

    /// `xWrite` on the WAL. The page of a commit frame blocks until the outcome is known.
    pub fn wal_write(&mut self, wal: HostFile, data: &[u8], offset: u64) -> c_int {
        let Some(writer) = &mut self.writer else {
            self.log(SQLITE_IOERR_WRITE, "refused a write to the WAL without the node's grant");
            return SQLITE_IOERR_WRITE;
        };
        match writer.capture.write(offset, data) {
            Ok(Action::Forward) => wal.write(data, offset),
            Ok(Action::Hold) => SQLITE_OK,
            Ok(Action::Commit(commit)) => {
                // The page takes its place first, so that a full disk shows before anything is proposed.
                match wal.write(data, offset) {
                    SQLITE_OK => self.commit(wal, &commit),
                    code => code,
                }
            }
            Err(error) => {
                self.log(SQLITE_IOERR_WRITE, &format!("refused a write to the WAL: {error}"));
                SQLITE_IOERR_WRITE
            }
        }
    }

    /// `xTruncate` on the WAL: SQLite cuts it to `journal_size_limit` after a commit that started it anew.
    pub fn wal_truncate(&self) -> Verdict {
        if self.writer.is_some() || self.is_checkpointer() {
            return Verdict::Forward;
        }
        self.log(SQLITE_IOERR_TRUNCATE, "refused to truncate the WAL without the node's grant");
        Verdict::Answer(SQLITE_IOERR_TRUNCATE)
    }

    /// `xWrite` or `xTruncate` on the main file: only the node's checkpointer writes there.
    pub fn main_write(&self) -> Verdict {
        if self.is_checkpointer() {
            return Verdict::Forward;
        }
        self.log(SQLITE_IOERR_WRITE, "refused a write to the database file: only its node writes it");
        Verdict::Answer(SQLITE_IOERR_WRITE)
    }

    fn not_proposed(&self, name: &str, (code, why): &Failure) -> c_int {
        self.log(*code, &format!("commit to {name} not proposed: {why}"));
        *code
    }

    fn commit(&mut self, wal: HostFile, commit: &Commit) -> c_int {
        let Some(writer) = &mut self.writer else { return SQLITE_IOERR_WRITE };
        fault::point("commit.begin");
        let info = self.gate.info();
        let name = info.name.clone();
        let mut id = TxnId::default();
        let pages = getrandom::fill(&mut id.0)
            .map_err(|error| (SQLITE_IOERR, format!("no random bytes: {error}")))
            .and_then(|()| Pages::gather(id, info, writer.grant.pages, commit));
        let pages = match pages {
            Ok(pages) => pages,
            Err(failure) => return self.not_proposed(&name, &failure),
        };
        // What doesn't fit into one message goes before the commit, part by part.
        let parts = pages.parts();
        for n in 0..parts {
            let message = match pages.encode(n, |out, offset| wal.read(out, offset)) {
                Ok(message) => message,
                Err(failure) => return self.not_proposed(&name, &failure),
            };
            if let Err(why) = self.gate.part(&writer.grant, message) {
                self.log(
                    SQLITE_IOERR_WRITE,
                    &format!("transaction {id} on {name} refused at part {n} of {parts}: {why}"),
                );
                return SQLITE_IOERR_WRITE;
            }
            fault::point("part.taken");
        }
        let message = match pages.encode(parts, |out, offset| wal.read(out, offset)) {
            Ok(message) => message,
            Err(failure) => return self.not_proposed(&name, &failure),
        };
        let target = WalTarget { salts: commit.salts, frame: commit.frame };
        match self.gate.commit(&writer.grant, id, target, message) {
            Outcome::Committed(index) => {
                fault::point("commit.decided");
                self.reads.committed(index);
                let code = match writer.capture.take_held() {
                    Some((offset, header)) => wal.write(&header, offset),
                    None => SQLITE_IOERR_WRITE,
                };
                fault::point("commit.framed");
                code
            }
            Outcome::Refused(why) => {
                self.log(SQLITE_IOERR_WRITE, &format!("transaction {id} on {name} refused: {why}"));
                SQLITE_IOERR_WRITE
            }
            Outcome::Unknown(why) => {
                let base = writer.grant.base;
                let text = format!(
                    "outcome of transaction {id} on {name} unknown: {why}; `quire tx {id} --db {name} --base {base}` \
                     tells"
                );
                self.log(SQLITE_IOERR_WRITE, &text);
                SQLITE_IOERR_WRITE
            }
        }
    }
}

/// A line in the host's error log, or more than one: `sqlite3_log` cuts what is longer than some 200 bytes.
pub fn log(api: &Api, code: c_int, message: &str) {
    for line in lines(message) {
        if let Ok(text) = CString::new(line.replace('\0', " ")) {
            // SAFETY: `sqlite3_log` takes a format and its arguments; "%s" with one C string is complete.
            unsafe { (api.log)(code, c"%s".as_ptr(), text.as_ptr()) };
        }
    }
}

/// Splits a message between words, so that each line survives SQLite's buffer (`renderLogMsg`).
fn lines(message: &str) -> Vec<String> {
    const ROOM: usize = 190;
    let (mut lines, mut rest, mut lead) = (Vec::new(), message, "quire: ");
    while rest.len() > ROOM {
        let mut end = ROOM;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let end = rest[..end].rfind(' ').filter(|at| *at > 0).unwrap_or(end);
        let (line, more) = rest.split_at(end);
        lines.push(format!("{lead}{line}"));
        (rest, lead) = (more.strip_prefix(' ').unwrap_or(more), "quire: ... ");
    }
    lines.push(format!("{lead}{rest}"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_split_between_words() {
        assert_eq!(lines("short"), ["quire: short"]);
        let long = "word ".repeat(100);
        let split = lines(long.trim_end());
        assert!(split.len() == 3 && split.iter().all(|line| line.len() <= 201), "{split:?}");
        let whole: Vec<_> =
            split.iter().map(|line| line.trim_start_matches("quire: ").trim_start_matches("... ")).collect();
        assert_eq!(whole.join(" "), long.trim_end());
        // Without a place to split at, and through letters of several bytes.
        let split = lines(&"ä".repeat(300));
        assert_eq!(split.iter().map(|line| line.matches('ä').count()).sum::<usize>(), 300);
    }
}
