//! The worker of one database: takes entries from its queue, in log order, and makes each visible on this
//! node, once, by whoever is to do it.
//!
//! The life of a committed transaction here: judge it by the commit rule; check that it makes the checksum
//! that the log names; then either tell the app that waits for it, which writes its own commit frame and
//! publishes, or take the gate lock and let the applier do it. An app that dies between being told and
//! publishing leaves the gate lock to the kernel, and the applier completes its work.
//!
//! The worker blocks, on the gate lock most of all, so it runs on the runtime's blocking threads, one for
//! each database that has something to do.

use super::DbError;
use super::database::{Database, Publishing, State, VERIFICATIONS, Verification, Work};
use super::side_file::Record;
use crate::command::TransactionHead;
use crate::core::recovery::Publication;
use crate::core::rule::{Candidate, Verdict};
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::fault;
use quire_vfs::format::checksum::{HashDelta, PageHashes};
use quire_vfs::format::transaction::Transaction;
use quire_vfs::format::{FormatError, PageNo};
use quire_vfs::gate::proto::{Outcome, WalTarget};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How often a worker that waits for the gate lock looks again.
const LOCK_POLL: Duration = Duration::from_millis(2);
/// After how long it says that it waits.
const LOCK_COMPLAINT: Duration = Duration::from_secs(5);

impl Database {
    /// Works until the queue is empty.
    pub(super) fn drain(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            let Some(work) = state.queue.pop_front() else {
                state.running = false;
                self.changed.notify_all();
                self.watch_wal(&mut state);
                self.advance(&mut state);
                return;
            };
            state = self.work(state, work);
        }
    }

    fn work<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, work: Work) -> MutexGuard<'a, State> {
        match work {
            Work::Entry { position, head, body } => {
                let index = position.index;
                let (mut state, result) = self.entry(state, position, head, body);
                if let Err(error) = result {
                    self.fence(&mut state, &error);
                }
                self.progress.send_replace(index);
                if index == state.consistent_from {
                    self.holder.admit_readers();
                }
                return state;
            }
            Work::NewTerm(term) => {
                if state.pending.as_ref().is_some_and(|p| p.term.is_some_and(|t| t < term)) {
                    refuse(&mut state, "the leader changed before it committed");
                }
            }
            Work::Conclude(id) => {
                if state.pending.as_ref().is_some_and(|p| p.id == id) {
                    refuse(&mut state, "it is not in the log");
                }
            }
            Work::Verify { index, files } => {
                let mut found = Verification {
                    index,
                    last_index: state.rule.last(),
                    checksum: state.hashes.checksum(),
                    pages: state.hashes.len(),
                    file: None,
                };
                if files {
                    drop(state);
                    found.file = Some(self.hash_file(index).map_err(|error| error.to_string()));
                    state = self.state();
                }
                if let Some(why) = &state.fenced {
                    found.file = Some(Err(format!("fenced: {why}")));
                }
                if state.verifications.len() == VERIFICATIONS {
                    state.verifications.pop_front();
                }
                state.verifications.push_back(found);
                self.progress.send_if_modified(|at| std::mem::replace(at, index.max(*at)) < index);
            }
            Work::Signal(done) => {
                let _ = done.send(());
            }
            Work::Pause { paused, resume } => {
                drop(state);
                if paused.send(()).is_ok() {
                    // No time-out: going on while the snapshot is taken would make it wrong. The other end is
                    // dropped in any case.
                    let _ = resume.recv();
                }
                state = self.state();
            }
            Work::Checkpoint => {
                drop(state);
                match self.checkpoint_all() {
                    Ok(_) => {}
                    Err(error) => warn!(database = self.name, "checkpoint: {error}"),
                }
                state = self.state();
            }
            Work::Tidy => {
                let (locked, _) = self.lock_gate(state, None);
                state = locked;
                let result = self.files().wal.tidy(&self.holder).map(drop);
                self.unlock_gate();
                if let Err(error) = result {
                    self.fence(&mut state, &error);
                }
            }
        }
        state
    }

    /// Deals with one committed transaction.
    fn entry<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        position: LogPosition,
        head: TransactionHead,
        body: Bytes,
    ) -> (MutexGuard<'a, State>, Result<(), DbError>) {
        if state.fenced.is_some() {
            return (state, Ok(()));
        }
        let path = self.path();
        let damaged = |error: FormatError| DbError::Format { path: path.to_owned(), error };
        let txn = match Transaction::decode(&body).map_err(damaged) {
            Ok(txn) if txn.page_size() == self.page_size => txn,
            Ok(_) => {
                let reason = format!("its pages are not of {} bytes", self.page_size);
                return (state, Err(damaged(FormatError { what: "transaction", offset: 4, reason })));
            }
            Err(error) => return (state, Err(error)),
        };
        let index = position.index;
        let candidate =
            Candidate { index, term: position.term, base: head.base, lease_term: head.lease_term };
        let is_pending = state.pending.as_ref().is_some_and(|p| p.id == txn.id());
        match state.rule.judge(&candidate) {
            Verdict::Apply => {}
            Verdict::Known => return (state, Ok(())),
            verdict @ (Verdict::Conflict { .. } | Verdict::LateTerm) => {
                debug!(database = self.name, index, ?verdict, "skipped");
                if is_pending {
                    refuse(&mut state, "another transaction came first");
                }
                return (state, Ok(()));
            }
        }
        if !is_pending && state.pending.as_ref().is_some_and(|p| p.base == head.base) {
            refuse(&mut state, "another transaction came first");
        }

        let known = state.pending.as_mut().filter(|_| is_pending).and_then(|p| p.delta.take());
        let delta = known.unwrap_or_else(|| PageHashes::delta(txn.db_size(), txn.pages()));
        let found = state.hashes.checksum_after(&delta);
        if found != head.checksum && index >= state.consistent_from {
            let expected = head.checksum;
            return (state, Err(DbError::Diverged { path: path.to_owned(), index, found, expected }));
        }
        let old_size = state.hashes.len();
        self.advance_to(&mut state, position, &delta);

        if index <= state.published {
            return (state, Ok(())); // Already in the files; only the hashes had to follow.
        }
        let (mut state, result) = self.publish(state, index, head.base, &txn, old_size);
        if result.is_ok() {
            state.published = index;
            state.publishing = None;
        }
        (state, result)
    }

    /// The database's state is now that after the entry; making it visible comes next.
    fn advance_to(&self, state: &mut State, position: LogPosition, delta: &HashDelta) {
        let old_size = state.hashes.len();
        state.rule.applied(position.index);
        state.position = position;
        state.hashes.apply(delta);
        state.dirty.extend(delta.pages());
        state.dirty.extend((old_size + 1..=delta.new_len()).map(PageNo));
        let beyond = PageNo(delta.new_len() + 1);
        state.dirty.split_off(&beyond);
    }

    /// Makes a transaction visible: by its app if that waits for it, else by the applier.
    fn publish<'a>(
        self: &'a Arc<Self>,
        state: MutexGuard<'a, State>,
        index: u64,
        base: u64,
        txn: &Transaction<'_>,
        old_size: u32,
    ) -> (MutexGuard<'a, State>, Result<(), DbError>) {
        let record = |target: WalTarget| Record {
            publication: Publication { index, salts: target.salts, frame: target.frame, seen: false },
            base,
            txn: txn.id(),
        };
        let (mut state, mut told) = self.tell(state, index, txn, &record);
        if told.is_none() {
            let (locked, waiting) = self.lock_gate(state, Some(txn));
            state = locked;
            if waiting {
                // The app came back while the worker waited for the lock that the app itself holds.
                let (again, target) = self.tell(state, index, txn, &record);
                (state, told) = (again, target);
                if told.is_none() {
                    (state, _) = self.lock_gate(state, None);
                }
            }
        }
        if told.is_some() {
            (state, _) = self.wait_published(state);
        }
        drop(state);
        let result = self.complete(told, txn, old_size, &record);
        self.unlock_gate();
        (self.state(), result)
    }

    /// Tells the app that waits for this transaction that it is committed. Returns where the app will have
    /// written it, or `None` if nobody waits.
    fn tell<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        index: u64,
        txn: &Transaction<'_>,
        record: &dyn Fn(WalTarget) -> Record,
    ) -> (MutexGuard<'a, State>, Option<WalTarget>) {
        if state.pending.as_ref().is_none_or(|p| p.id != txn.id()) {
            return (state, None);
        }
        let Some(pending) = state.pending.take() else { return (state, None) };
        let Some(waiter) = pending.waiter else { return (state, None) };
        let record = record(pending.target);
        // On record before the app can publish: a restarted node must know what it finds.
        if let Err(error) = self.files().side.record(&record) {
            warn!(database = self.name, "{error}");
            let _ = waiter.send(Outcome::Unknown(format!("committed at index {index}, but {error}")));
            return (state, None);
        }
        fault::point("gate.decided");
        if waiter.send(Outcome::Committed(index)).is_err() {
            return (state, None); // The app is gone, or gave up, before it was told.
        }
        self.remember(&mut state, record);
        state.publishing = Some(Publishing { session: pending.session, ended: false });
        (state, Some(pending.target))
    }

    /// Waits until the app that was told has let go of the gate lock, and takes it.
    fn wait_published<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        while state.publishing.as_ref().is_some_and(|p| !p.ended) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.lock_gate(state, None)
    }

    /// Takes the gate lock. With `unless`, returns early (and without the lock) if an app comes that waits
    /// for that transaction.
    fn lock_gate<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        unless: Option<&Transaction<'_>>,
    ) -> (MutexGuard<'a, State>, bool) {
        let began = Instant::now();
        let mut complained = false;
        loop {
            match self.gate_lock.try_lock() {
                Ok(true) => return (state, false),
                Ok(false) => {}
                Err(error) => warn!(database = self.name, "gate lock: {error}"),
            }
            let waits = |state: &State, txn: &Transaction<'_>| {
                state.pending.as_ref().is_some_and(|p| p.id == txn.id() && p.waiter.is_some())
            };
            if unless.is_some_and(|txn| waits(&state, txn)) {
                return (state, true);
            }
            if !complained && began.elapsed() > LOCK_COMPLAINT {
                complained = true;
                warn!(database = self.name, "this node's copy lags: a paused app holds the gate lock");
            }
            let waited = self.changed.wait_timeout(state, LOCK_POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn unlock_gate(&self) {
        if let Err(error) = self.gate_lock.unlock() {
            warn!(database = self.name, "gate lock: {error}");
        }
    }

    /// With the gate lock: sees whether the app has published, and does what is left to do.
    fn complete(
        &self,
        told: Option<WalTarget>,
        txn: &Transaction<'_>,
        old_size: u32,
        record: &dyn Fn(WalTarget) -> Record,
    ) -> Result<(), DbError> {
        let mut files = self.files();
        if let Some(target) = told {
            let header = files.wal.tidy(&self.holder)?;
            if header.salts == target.salts && header.max_frame == target.frame {
                let fills: Vec<_> = txn.fills(old_size).collect();
                if !fills.is_empty() {
                    let prepared = files.wal.prepare(&self.holder, fills.into_iter(), txn.db_size())?;
                    files.wal.publish(&self.holder, prepared)?;
                }
                return files.side.mark_seen(&record(target));
            }
            info!(database = self.name, transaction = %txn.id(), "its app did not publish; the applier does");
        }
        let prepared = files.wal.prepare(&self.holder, txn.pages(), txn.db_size())?;
        let target = WalTarget { salts: prepared.header.salts, frame: prepared.header.max_frame };
        let record = record(target);
        files.side.record(&record)?;
        files.wal.publish(&self.holder, prepared)?;
        files.side.mark_seen(&record)?;
        drop(files);
        if told.is_none() {
            self.remember(&mut self.state(), record);
        }
        Ok(())
    }
}

/// The pending transaction will never commit.
fn refuse(state: &mut State, why: &str) {
    if let Some(waiter) = state.pending.take().and_then(|p| p.waiter) {
        let _ = waiter.send(Outcome::Refused(why.to_owned()));
    }
}
