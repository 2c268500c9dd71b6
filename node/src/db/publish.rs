//! How a committed transaction becomes visible on this node, once, by whoever is to do it.
//!
//! Judge it by the commit rule; check that it makes the checksum that the log names; then either tell the app
//! that waits for it, which writes its own commit frame and publishes, or take the gate lock and let the
//! applier do it. An app that dies between being told and publishing leaves the gate lock to the kernel, and
//! the applier completes its work.
//!
//! The common case, one app that waits for its own transaction, needs no thread but the caller's:
//! [`Database::take`] tells the app, and `Database::see_published`, when the app has let go of the gate
//! lock, sees that it was published. Neither waits for anything. Where something is in the way (entries that
//! came before, the gate lock, the files in use by a checkpoint), the worker does the same work and waits.

use super::DbError;
use super::database::{Database, Files, Publishing, State, Work};
use super::parts::{self, Staged};
use super::side_file::Record;
use super::worker::refuse;
use crate::command::TransactionHead;
use crate::core::recovery::Publication;
use crate::core::rule::{Candidate, Verdict};
use crate::{blocking, clock};
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::fault;
use quire_vfs::format::checksum::HashDelta;
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::format::{FormatError, PageNo};
use quire_vfs::gate::proto::{Outcome, WalTarget};
use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction that the database's state contains, but not yet its files.
#[derive(Clone, Debug)]
pub struct Unpublished {
    /// Its entry.
    pub(super) index: u64,
    /// The entry that it was written on.
    pub(super) base: u64,
    /// Size of the database before it, in pages.
    pub(super) old_size: u32,
    /// The transaction, or its last part.
    pub(super) body: Bytes,
    /// The parts before the last one.
    pub(super) before: Vec<Arc<Staged>>,
}

/// How often a worker that waits for the gate lock looks again.
const LOCK_POLL: Duration = Duration::from_millis(2);
/// Bytes of entries that wait for a fenced database's repair, at most.
const MAX_HELD: usize = 64 << 20;
/// After how long it says that it waits.
const LOCK_COMPLAINT: Duration = Duration::from_secs(5);

impl Database {
    /// Takes the next committed transaction, in log order. To be called on a runtime thread: it never waits.
    pub fn take(self: &Arc<Self>, position: LogPosition, head: TransactionHead, body: Bytes) {
        let mut state = self.state();
        self.judge(&mut state, position, &head, &body);
        let idle = !state.running && state.queue.is_empty() && state.publishing.is_none();
        // A fenced database's entries may have to wait for its repair.
        let idle = idle && state.fenced.is_none();
        // A large transaction takes time for each of its pages: not on this thread.
        let awaited = |state: &State| {
            let Ok(txn) = Transaction::decode(&body) else { return false };
            let is_whole = txn.piece() == Piece::Whole;
            is_whole && state.pending.as_ref().is_some_and(|p| p.waiter.is_some() && p.id == txn.id())
        };
        if idle
            && awaited(&state)
            && let Ok(mut files) = self.files.try_lock()
        {
            match self.admit(&mut state, position, &head, body) {
                Ok(Some(entry)) => {
                    if !self.tell(&mut state, &mut files, &entry) {
                        state.queue.push_back(Work::Publish(entry));
                    }
                }
                Ok(None) => self.has_dealt_with(&state, position.index),
                Err(error) => self.fail(&mut state, position.index, &error),
            }
        } else {
            if state.hold.is_some_and(|hold| position.index > hold) {
                state.held_bytes += body.len();
                if state.held_bytes > MAX_HELD {
                    // They are skipped instead; the next attempt at a repair asks for a newer state.
                    state.hold = None;
                }
            }
            self.keep(&mut state, Work::Entry { position, head, body });
        }
        // It may have been what others waited for, here or elsewhere.
        self.advance(&mut state);
        self.wake(&mut state);
    }

    /// Deals with one committed transaction, on the worker.
    pub(super) fn entry<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        position: LogPosition,
        head: TransactionHead,
        body: Bytes,
    ) -> MutexGuard<'a, State> {
        match self.admit(&mut state, position, &head, body) {
            Ok(Some(entry)) => return self.publish(state, entry),
            Ok(None) => self.has_dealt_with(&state, position.index),
            Err(error) => self.fail(&mut state, position.index, &error),
        }
        state
    }

    /// Makes a transaction visible, on the worker: by its app if that waits for it, else by the applier.
    pub(super) fn publish<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        entry: Unpublished,
    ) -> MutexGuard<'a, State> {
        let id = entry.transaction(self).map(|txn| txn.id());
        let told;
        (state, told) = self.tell_if_awaited(state, &entry);
        if told {
            return state;
        }
        let waiting;
        (state, waiting) = self.lock_gate(state, id.as_ref().ok());
        if waiting {
            // The app came back while the worker waited for the lock that the app itself holds.
            let told;
            (state, told) = self.tell_if_awaited(state, &entry);
            if told {
                return state;
            }
            (state, _) = self.lock_gate(state, None);
        }
        drop(state);
        let result = self.apply(&entry);
        self.unlock_gate();
        let mut state = self.state();
        let result = result.map(|record| self.remember(&mut state, record));
        self.settle(&mut state, entry.index, result);
        state
    }

    /// Sees to it that a transaction whose app has ended is published, on the worker.
    pub(super) fn finish<'a>(self: &'a Arc<Self>, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (state, _) = self.lock_gate(state, None);
        let Some(publishing) = &state.publishing else { return state };
        let (record, entry) = (publishing.record, publishing.entry.clone());
        drop(state);
        let result = self.complete(record, &entry);
        self.unlock_gate();
        let mut state = self.state();
        state.publishing = None;
        self.settle(&mut state, entry.index, result);
        state
    }

    /// The app that was told has ended: if all is as it should be, takes that down without waiting for
    /// anything. False: the worker must see to it.
    pub(super) fn see_published(self: &Arc<Self>, state: &mut State) -> bool {
        let Some(publishing) = &state.publishing else { return false };
        let Ok(mut files) = self.files.try_lock() else { return false };
        if state.running || !matches!(self.gate_lock.try_lock(), Ok(true)) {
            return false;
        }
        let (record, entry) = (publishing.record, &publishing.entry);
        let is_simple =
            entry.before.is_empty() && entry.transaction(self).is_ok_and(|txn| txn.fill_count() == 0);
        let seen = is_simple
            && self.is_published(&mut files, &record).unwrap_or(false)
            && files.side.mark_seen(&record).is_ok();
        self.unlock_gate();
        drop(files);
        if seen {
            let index = entry.index;
            state.publishing = None;
            self.settle(state, index, Ok(()));
            self.watch_wal(state);
            self.wake(state);
        }
        seen
    }

    /// Judges a transaction and makes it part of the database's state. Returns what is to be published.
    fn admit(
        &self,
        state: &mut State,
        position: LogPosition,
        head: &TransactionHead,
        body: Bytes,
    ) -> Result<Option<Unpublished>, DbError> {
        if state.fenced.is_some() {
            if let Ok(txn) = self.decode(&body) {
                state.large.void(txn.id());
            }
            return Ok(None);
        }
        let txn = self.decode(&body)?;
        let index = position.index;
        let candidate =
            Candidate { index, term: position.term, base: head.base, lease_term: head.lease_term };
        let is_pending = state.pending.as_ref().is_some_and(|p| p.id == txn.id());
        match state.rule.judge(&candidate) {
            Verdict::Apply => {}
            Verdict::Known => return Ok(None),
            Verdict::Missing { last } => {
                return Err(DbError::Missing { path: self.path().to_owned(), index, base: head.base, last });
            }
            verdict @ (Verdict::Conflict { .. } | Verdict::LateTerm) => {
                debug!(database = self.name, index, ?verdict, "skipped");
                if is_pending {
                    refuse(state, "another transaction came first");
                }
                return Ok(None);
            }
        }
        if !is_pending && state.pending.as_ref().is_some_and(|p| p.base == head.base) {
            refuse(state, "another transaction came first");
        }

        let before = match state.large.before(&candidate, &txn) {
            Ok(before) => before,
            Err(why) => {
                debug!(database = self.name, index, transaction = %txn.id(), why, "skipped");
                if is_pending {
                    refuse(state, why);
                }
                return Ok(None);
            }
        };
        let known = state.pending.as_mut().filter(|_| is_pending).and_then(|p| p.delta.take());
        let delta = known.unwrap_or_else(|| parts::delta(&before, &txn));
        let found = state.hashes.checksum_after(&delta);
        if found != head.checksum && index >= state.consistent_from {
            let expected = head.checksum;
            return Err(DbError::Diverged { path: self.path().to_owned(), index, found, expected });
        }
        let old_size = state.hashes.len();
        advance_to(state, position, &delta);
        if !before.is_empty() {
            fault::point("run.admitted");
        }
        if index <= state.published {
            return Ok(None); // Already in the files; only the hashes had to follow.
        }
        Ok(Some(Unpublished { index, base: head.base, old_size, body, before }))
    }

    fn decode<'a>(&self, body: &'a Bytes) -> Result<Transaction<'a>, DbError> {
        let damaged = |error: FormatError| DbError::Format { path: self.path().to_owned(), error };
        let txn = Transaction::decode(body).map_err(damaged)?;
        if txn.page_size() != self.page_size {
            let reason = format!("its pages are not of {} bytes", self.page_size);
            return Err(damaged(FormatError { what: "transaction", offset: 4, reason }));
        }
        Ok(txn)
    }

    /// Tells the app, on the worker. Whoever syncs the files must not keep those waiting who need the state: the files
    /// come first, and only where somebody waits.
    fn tell_if_awaited<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        entry: &Unpublished,
    ) -> (MutexGuard<'a, State>, bool) {
        let id = entry.transaction(self).map(|txn| txn.id());
        if !id.is_ok_and(|id| state.pending.as_ref().is_some_and(|p| p.id == id)) {
            return (state, false);
        }
        drop(state);
        let mut files = self.files();
        let mut state = self.state();
        let told = self.tell(&mut state, &mut files, entry);
        drop(files);
        (state, told)
    }

    /// Tells the app that waits for this transaction that it is committed. False if nobody waits.
    fn tell(&self, state: &mut State, files: &mut Files, entry: &Unpublished) -> bool {
        let Ok(id) = entry.transaction(self).map(|txn| txn.id()) else { return false };
        if state.pending.as_ref().is_none_or(|p| p.id != id) {
            return false;
        }
        let Some(pending) = state.pending.take() else { return false };
        let Some(waiter) = pending.waiter else { return false };
        let record = entry.record(id, pending.target);
        // On record before the app can publish: a restarted node must know what it finds.
        if let Err(error) = files.side.record(&record) {
            warn!(database = self.name, "{error}");
            let _ = waiter.send(Outcome::Unknown(format!("committed at index {}, but {error}", entry.index)));
            return false;
        }
        fault::point("gate.decided");
        if waiter.send(Outcome::Committed(entry.index)).is_err() {
            return false; // The app is gone, or gave up, before it was told.
        }
        self.remember(state, record);
        self.told(state, pending.session);
        let (entry, since) = (entry.clone(), clock::now());
        state.publishing = Some(Publishing { session: pending.session, since, ended: false, record, entry });
        true
    }

    /// Takes the gate lock. With `unless`, returns early (and without the lock) if an app comes that waits
    /// for that transaction.
    pub(super) fn lock_gate<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        unless: Option<&TxnId>,
    ) -> (MutexGuard<'a, State>, bool) {
        let began = clock::now();
        let mut complained = false;
        loop {
            #[cfg(test)]
            if crate::sim::is_broken(crate::sim::Rule::GateLock) {
                return (state, false);
            }
            match self.gate_lock.try_lock() {
                Ok(true) => {
                    state.stuck = None;
                    return (state, false);
                }
                Ok(false) => {}
                Err(error) => warn!(database = self.name, "gate lock: {error}"),
            }
            let waits = |state: &State, id: &TxnId| {
                state.pending.as_ref().is_some_and(|p| p.id == *id && p.waiter.is_some())
            };
            if unless.is_some_and(|id| waits(&state, id)) {
                state.stuck = None;
                return (state, true);
            }
            state.stuck = state.stuck.or(Some(began));
            if !complained && clock::since(began) > LOCK_COMPLAINT {
                complained = true;
                warn!(database = self.name, "this node's copy lags: a paused app holds the gate lock");
            }
            state = blocking::pause(&self.state, &self.changed, state, LOCK_POLL);
        }
    }

    pub(super) fn unlock_gate(&self) {
        if let Err(error) = self.gate_lock.unlock() {
            warn!(database = self.name, "gate lock: {error}");
        }
    }

    /// With the gate lock: whether the wal-index shows a publication.
    fn is_published(&self, files: &mut Files, record: &Record) -> Result<bool, DbError> {
        let Publication { salts, frame, .. } = record.publication;
        let header = files.wal.tidy(&self.holder, Some((salts, frame)))?;
        let is_published = files.wal.ends_with(&header, (salts, frame));
        if is_published {
            files.wal.saw(header);
        }
        Ok(is_published)
    }

    /// With the gate lock: sees whether the app has published, and does what is left to do.
    fn complete(&self, record: Record, entry: &Unpublished) -> Result<(), DbError> {
        let txn = entry.transaction(self)?;
        {
            let mut files = self.files();
            if self.is_published(&mut files, &record)? {
                let mut fills = self.fills_before(entry)?;
                fills.extend(txn.fills(entry.old_size).map(|(page, _)| page));
                if !fills.is_empty() {
                    let zeros = vec![0; self.page_size.bytes()];
                    let pages = fills.into_iter().map(|page| (page, zeros.as_slice()));
                    let prepared = files.wal.prepare(&self.holder, pages, txn.db_size())?;
                    files.wal.publish(&self.holder, prepared)?;
                }
                return files.side.mark_seen(&record);
            }
        }
        info!(database = self.name, transaction = %txn.id(), "its app did not publish; the applier does");
        self.apply(entry).map(drop)
    }

    /// With the gate lock: writes the transaction into the WAL and publishes it.
    fn apply(&self, entry: &Unpublished) -> Result<Record, DbError> {
        let txn = entry.transaction(self)?;
        let mut files = self.files();
        let prepared = match entry.before.is_empty() {
            true => files.wal.prepare(&self.holder, txn.pages(), txn.db_size())?,
            false => self.prepare_large(&mut files.wal, entry, &txn)?,
        };
        let target = WalTarget { salts: prepared.header.salts, frame: prepared.header.max_frame };
        let record = entry.record(txn.id(), target);
        files.side.record(&record)?;
        files.wal.publish(&self.holder, prepared)?;
        files.side.mark_seen(&record)?;
        Ok(record)
    }

    /// An entry has been published, or could not be.
    fn settle(&self, state: &mut State, index: u64, result: Result<(), DbError>) {
        match result {
            Ok(()) => {
                state.published = index;
                self.has_dealt_with(state, index);
            }
            Err(error) => self.fail(state, index, &error),
        }
    }

    fn fail(&self, state: &mut State, index: u64, error: &DbError) {
        self.fence(state, error);
        self.has_dealt_with(state, index);
    }

    /// All that is to be done about an entry has been done.
    pub(super) fn has_dealt_with(&self, state: &State, index: u64) {
        self.progress.send_replace(index);
        if index == state.consistent_from {
            self.holder.admit_readers();
        }
    }
}

impl Unpublished {
    fn transaction(&self, database: &Database) -> Result<Transaction<'_>, DbError> {
        database.decode(&self.body)
    }

    fn record(&self, txn: TxnId, target: WalTarget) -> Record {
        let publication =
            Publication { index: self.index, salts: target.salts, frame: target.frame, seen: false };
        Record { publication, base: self.base, txn }
    }
}

/// The database's state is now that after the entry; making it visible comes next.
fn advance_to(state: &mut State, position: LogPosition, delta: &HashDelta) {
    let old_size = state.hashes.len();
    state.rule.applied(position.index);
    state.large.moved_to(position.index);
    state.position = position;
    state.hashes.apply(delta);
    mark(&mut state.dirty, delta.pages());
    mark(&mut state.dirty, (old_size.min(delta.new_len())..delta.new_len()).map(|n| PageNo(n + 1)));
    let beyond = PageNo(delta.new_len() + 1);
    state.dirty.split_off(&beyond);
}

/// Adds pages in ascending order: many at once cost far less than one by one.
pub(super) fn mark(dirty: &mut BTreeSet<PageNo>, pages: impl ExactSizeIterator<Item = PageNo>) {
    if pages.len() > 1024.max(dirty.len() / 8) {
        dirty.append(&mut pages.collect());
    } else {
        dirty.extend(pages);
    }
}
