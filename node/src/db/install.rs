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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{DbId, TransactionHead};
    use crate::db::context::Context;
    use crate::db::database::Work;
    use crate::db::incoming::{Staging, incoming_path};
    use crate::db::registry::{Keep, Registry};
    use quire_raft::LogPosition;
    use quire_vfs::format::PageSize;
    use quire_vfs::format::checksum::PageHashes;
    use quire_vfs::format::transaction::encode_head;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::time::Duration;
    use tokio::sync::{oneshot, watch};

    const SIZE: PageSize = PageSize::DEFAULT;

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, leader: 1, index }
    }

    fn context() -> Arc<Context> {
        crate::db::sql::register().unwrap();
        Arc::new(Context { flushed: OnceLock::from(watch::channel(1000).1), ..Context::alone() })
    }

    /// Two pages: a database header with this user version, and anything.
    fn pages(path: &Path, version: u8) -> [(PageNo, Vec<u8>); 2] {
        let mut head = std::fs::read(path).unwrap()[..SIZE.bytes()].to_vec();
        head[63] = version;
        [(PageNo(1), head), (PageNo(2), vec![version; SIZE.bytes()])]
    }

    fn hashes(pages: &[(PageNo, Vec<u8>)]) -> PageHashes {
        let mut hashes = PageHashes::new(SIZE);
        hashes.apply(&PageHashes::delta(2, pages.iter().map(|(page, image)| (*page, image.as_slice()))));
        hashes
    }

    /// Hands over the transaction at entry 20, on top of what was installed at 10.
    fn take(database: &Arc<Database>, pages: &[(PageNo, Vec<u8>)]) {
        let numbers: Vec<_> = pages.iter().map(|(page, _)| *page).collect();
        let mut body = vec![];
        encode_head(&mut body, TxnId([20; 16]), SIZE, 2, &numbers, 0);
        pages.iter().for_each(|(_, image)| body.extend_from_slice(image));
        let checksum = hashes(pages).checksum();
        let head = TransactionHead { database: DbId(1), base: 10, lease_term: 1, checksum, origin: 1 };
        database.take(at(20), head, body.into());
    }

    /// The sealed state of another node is still needed, as the file doesn't have it, when publishing the next entry
    /// fails: no checkpoint of what the hashes say could ever end, and no repair begin.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_publication_leaves_no_installed_state_behind() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep { most: 16, idle: Duration::from_secs(60) };
        let first = Arc::new(Registry::new(dir.path(), context(), keep).unwrap());
        assert!(first.create(at(1), "x", SIZE).unwrap());
        let database = first.open(DbId(1)).await.unwrap().unwrap();
        let path = database.path().to_owned();
        let (old, new) = (pages(&path, 10), pages(&path, 20));

        let mut staging = Staging::open(&path, DbId(1), SIZE).unwrap();
        old.iter().for_each(|(page, image)| staging.stage(*page, image).unwrap());
        let checksum = hashes(&old).checksum();
        let target = Target { position: at(10), as_of: 10, base: 1, checksum };
        let incoming = staging.seal(target, 2, Vec::new()).unwrap();
        let (done, installed) = oneshot::channel();
        database.enqueue(Work::Install { incoming, read: false, done });
        installed.await.unwrap().unwrap();

        database.files().wal.fail();
        take(&database, &new);
        database.settled().await;
        assert!(database.fenced().is_some());
        database.files().wal = Wal::open(&path, SIZE).unwrap();
        let ours = database.clone();
        tokio::task::spawn_blocking(move || ours.settle_installed()).await.unwrap().unwrap();
        assert!(!incoming_path(&path).exists());
        assert!(database.fenced().is_some(), "that is for the repair to end");
        let durable = database.state().durable;
        assert_eq!((durable.position, durable.target), (at(10), 20));

        // And should the node be started again before the repair has ended, its log has what is missing.
        drop((database, first));
        let database = Arc::new(Database::open(context(), &path, DbId(1), "x", SIZE, false).unwrap());
        assert_eq!(database.fenced(), None);
        assert_eq!((database.dealt_with(), database.consistent_from()), (10, 20));
        take(&database, &new);
        database.settled().await;
        assert_eq!(database.fenced(), None);
        let view = tokio::task::spawn_blocking(move || database.wait_view()).await.unwrap().unwrap();
        assert_eq!(view.hashes, hashes(&new).as_slice());
        let mut image = vec![0; SIZE.bytes()];
        for (page, expected) in &new {
            assert!(view.is_sound(*page, &mut image).unwrap() && image == *expected);
        }
    }
}
