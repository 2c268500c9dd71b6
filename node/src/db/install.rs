//! Installing a state that came from another node ([`super::incoming`]).
//!
//! On a running database the worker writes the pages that differ as one WAL transaction, so that readers see one
//! clean switch. That transaction is not durable; the sealed incoming file is, and stays until a checkpoint has the
//! state in the database file. A node that is started before that finds it again: with nobody attached, the pages go
//! straight into the file; else the WAL has the state already, and only the hashes have to follow.

use super::DbError;
use super::applier::Wal;
use super::checkpoint::stamp;
use super::database::{Database, Files, State};
use super::incoming::{Incoming, Target};
use super::lag;
use super::publish::mark;
use super::side_file::{Durable, Record, SideFile};
use super::view::patiently;
use crate::core::recovery::Publication;
use crate::core::rule::CommitRule;
use quire_vfs::fault;
use quire_vfs::format::PageNo;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::proto::Outcome;
use quire_vfs::holder::Holder;
use std::io;
use std::sync::{Arc, MutexGuard};
use tracing::{info, warn};

/// Why a state was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Entries were applied since the state was asked for; ask again.
    #[error("the database has moved on to entry {0} meanwhile")]
    Moved(u64),
    /// It doesn't contain everything that was already left to it.
    #[error("it ends before entry {0}")]
    Behind(u64),
    /// It was chosen by page hashes that can't be believed any more.
    #[error("the database was fenced meanwhile")]
    Fenced,
    /// The files refuse.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Database {
    /// Installs a state, on the worker.
    pub(super) fn install<'a>(
        self: &'a Arc<Self>,
        state: MutexGuard<'a, State>,
        incoming: &Incoming,
        read: bool,
    ) -> (MutexGuard<'a, State>, Result<(), InstallError>) {
        let mut state = state;
        let Target { position, as_of, base, .. } = incoming.target;
        let index = position.index;
        if state.position == position && state.fenced.is_none() {
            // The same entry, so the same state; but it may be in the WAL only.
            if state.durable.position == position && state.installed.is_none() {
                let result = incoming.remove().map_err(InstallError::from);
                return (state, result);
            }
            state.installed = Some(incoming.clone());
            let _ = self.context.checkpoints.send(self.id);
            return (state, Ok(()));
        }
        if state.fenced.is_none() && state.position.index != base {
            let at = state.position.index;
            return (state, Err(InstallError::Moved(at)));
        }
        let dealt_with = *self.progress.borrow();
        if as_of < dealt_with {
            return (state, Err(InstallError::Behind(dealt_with)));
        }
        (state, _) = self.lock_gate(state, None);
        if state.fenced.is_some() && !read {
            self.unlock_gate();
            return (state, Err(InstallError::Fenced));
        }
        // While an app kept the lock, entries may have been given up that come after what is to be installed.
        if let Some(last) = state.behind.map(|behind| behind.last).filter(|last| as_of < *last) {
            self.unlock_gate();
            return (state, Err(InstallError::Behind(last)));
        }
        drop(state);
        let result = self.write_incoming(incoming);
        self.unlock_gate();
        let mut state = self.state();
        if let Err(error) = result {
            return (state, Err(error.into()));
        }
        let pages = (incoming.pages().len(), incoming.hashes.len());
        info!(database = self.name, index, pages = pages.0, of = pages.1, "state of another node installed");
        self.adopt(&mut state, incoming);
        (state, Ok(()))
    }

    /// With the gate lock: writes the pages as one transaction and publishes it.
    fn write_incoming(&self, incoming: &Incoming) -> Result<(), DbError> {
        incoming.check()?;
        let pages = incoming.pages();
        if pages.len() == 0 {
            return Ok(());
        }
        let mut files = self.files();
        let Files { wal, side } = &mut *files;
        let prepared = wal.prepare(&self.holder, pages, incoming.hashes.len())?;
        let Target { position, base, .. } = incoming.target;
        let (salts, frame) = (prepared.header.salts, prepared.header.max_frame);
        let publication = Publication { index: position.index, salts, frame, seen: false };
        let record = Record { publication, base, txn: TxnId::default() };
        side.record(&record)?;
        fault::point("install.prepared");
        wal.publish(&self.holder, prepared)?;
        fault::point("install.published");
        side.mark_seen(&record)
    }

    /// The database now is what was installed.
    fn adopt(&self, state: &mut State, incoming: &Incoming) {
        let position = incoming.target.position;
        if let Some(waiter) = state.pending.take().and_then(|p| p.waiter) {
            let why =
                "this node got the database's state from another one, without this transaction's outcome";
            let _ = waiter.send(Outcome::Unknown(why.into()));
        }
        state.large.lose_sight();
        take_over(state, incoming);
        state.published = position.index;
        state.fenced = None;
        state.hold = None;
        state.behind = None;
        self.progress.send_replace(incoming.target.as_of.max(position.index));
        let _ = self.context.checkpoints.send(self.id);
        if position.index >= state.consistent_from {
            self.holder.admit_readers();
        }
    }

    /// Has the last installed state copied into the database file, so that its own file is free for the next one.
    pub(crate) fn settle_installed(self: &Arc<Self>) -> Result<(), DbError> {
        let pending = || self.state().installed.is_some();
        let done = patiently(|| {
            if pending() && !self.checkpoint_installed()? {
                self.checkpoint()?;
            }
            Ok((!pending()).then_some(()))
        })?;
        let why =
            "the state that was installed last is not in the file yet; does a reader hold an old snapshot?";
        done.ok_or_else(|| DbError::io(self.path(), "checkpointing it")(io::Error::other(why)))
    }

    /// A checkpoint has everything up to `index` in the file: an installed state before it needs its file no more.
    pub(super) fn installed_is_durable(&self, index: u64) -> Result<(), DbError> {
        let installed = {
            let mut state = self.state();
            state.installed.take_if(|incoming| incoming.target.position.index <= index)
        };
        let Some(incoming) = installed else { return Ok(()) };
        {
            let state = self.state();
            if state.behind.is_none() {
                lag::forget(self.path());
            }
        }
        incoming.remove()
    }
}

/// The state in memory follows an installed state.
pub(super) fn take_over(state: &mut State, incoming: &Incoming) {
    state.rule = CommitRule::new(incoming.target.position.index);
    state.position = incoming.target.position;
    let old = std::mem::replace(&mut state.hashes, incoming.hashes.clone());
    state.large.moved_to(incoming.target.position.index);
    state.judge_again();
    mark(&mut state.dirty, incoming.pages().map(|(page, _)| page));
    // Pages may have changed that did not have to come: what a fenced database skipped can be in its WAL.
    let changed = changed_hashes(&old, &incoming.hashes);
    mark(&mut state.dirty, changed.into_iter());
    state.dirty.split_off(&PageNo(state.hashes.len() + 1));
    state.installed = Some(incoming.clone());
}

/// The pages of `new` whose hashes `old` doesn't have.
fn changed_hashes(old: &PageHashes, new: &PageHashes) -> Vec<PageNo> {
    (1..=new.len()).map(PageNo).filter(|&page| old.get(page) != new.get(page)).collect()
}

/// Writes an incoming state into the database file of a node that is starting, with nobody attached. Returns what is
/// durable then.
pub(super) fn install_into_file(
    holder: &Holder,
    side: &mut SideFile,
    wal: &mut Wal,
    before: &Durable,
    incoming: &Incoming,
) -> Result<Durable, DbError> {
    let position = incoming.target.position;
    warn!(database = %holder.path().display(), index = position.index, "completing a state of another node");
    incoming.check()?;
    let (hashes, size) = (&incoming.hashes, incoming.hashes.page_size());
    // From now on the file may hold pages of either state.
    let target = before.target.max(position.index);
    side.set_durable(&Durable { target, ..*before })?;
    for (page, image) in incoming.pages() {
        holder.write_page(page, size, image)?;
    }
    holder.cut_and_sync(hashes.len(), size)?;
    wal.reset(holder, hashes.len())?;
    let all: Vec<_> = (1u32..).zip(hashes.as_slice()).map(|(page, hash)| (PageNo(page), *hash)).collect();
    side.write_hashes(&all)?;
    let (checksum, pages, stamp) = (hashes.checksum(), hashes.len(), stamp(holder, size)?);
    let durable = Durable { position, target, checksum, pages, stamp };
    side.set_durable(&durable)?;
    incoming.remove()?;
    Ok(durable)
}
