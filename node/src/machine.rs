//! The state machine: takes committed entries from Raft and hands each to its database's own queue, so that
//! no database waits for another. Keeps the manifest.
//!
//! `apply` only queues. What is *durable* is another matter: the manifest names a position up to which all
//! databases have everything in their files; after a restart, entries from there on come again, and each
//! database leaves out what it has.
//!
//! A Raft snapshot is the manifest. A member that needs one gets each database's state from the leader
//! ([`crate::transfer`]), as it is by then: at the manifest's position or after it. The entries in between, which come
//! again, are left out as after a restart.
//!
//! Each state is installed as it comes, as a repair does it; the snapshot is once all are there, and what is installed
//! then is the manifest. So a node that gets thousands of databases has no more of them open than any other. Should the
//! snapshot not be installed after all, some are ahead of this node's log: what they have was committed, and it stands in a
//! synced file until it is in the database's own ([`crate::db::install`]).

use crate::command::{Command, DbId};
use crate::db::DbError;
use crate::db::closed::Entry;
use crate::db::context::Context;
use crate::db::database::{Database, Progress};
use crate::db::install::InstallError;
use crate::db::registry::Registry;
use crate::manifest::{Dropped, Manifest, ManifestError};
use crate::node::Node;
use crate::transfer;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::{AppliedState, Committed, LogPosition, NodeId, Payload, StateMachine, members_of};
use quire_vfs::fault;
use quire_vfs::format::{FormatError, PageSize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info};

/// How long the log may take to have on disk what the manifest is to name.
const FLUSH: Duration = Duration::from_secs(10);

/// The state machine can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The manifest can't be used.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ManifestError,
    },
    /// A database can't be opened.
    #[error(transparent)]
    Database(#[from] DbError),
}

#[derive(Debug, Default)]
struct State {
    manifest: Manifest,
    /// The last entry taken.
    taken: Option<LogPosition>,
    /// Memberships since the manifest's position, each with its index.
    memberships: Vec<(u64, Vec<u8>)>,
    /// Ids of members that were removed.
    removed: BTreeSet<NodeId>,
    /// Databases that are gone, for as long as entries from before that may come again.
    dropped: Vec<Dropped>,
}

/// The node's state machine.
#[derive(Debug)]
pub struct Machine {
    manifest_path: PathBuf,
    registry: Arc<Registry>,
    context: Arc<Context>,
    state: Mutex<State>,
    /// One writer of the manifest at a time; entries are taken meanwhile.
    storing: Mutex<()>,
    taken: watch::Sender<Option<u64>>,
    /// The node, for transfers.
    node: OnceLock<Weak<Node>>,
    /// New databases that a snapshot contains, until their state has come.
    prepared: Mutex<Prepared>,
    /// One is no longer being opened.
    opened: Condvar,
    /// Databases whose state came for a snapshot that is not installed yet, and the entry up to which they have all.
    fetched: Mutex<BTreeMap<DbId, u64>>,
}

#[derive(Debug, Default)]
struct Prepared {
    databases: BTreeMap<DbId, Arc<Database>>,
    /// A thread is at the files of this one.
    opening: Option<DbId>,
}

impl Machine {
    /// Opens all databases of the manifest.
    pub fn open(
        directory: &Path,
        registry: Arc<Registry>,
        context: Arc<Context>,
    ) -> Result<Machine, MachineError> {
        let manifest_path = directory.join("manifest");
        let manifest = Manifest::load(&manifest_path)
            .map_err(|error| MachineError::Manifest { path: manifest_path.clone(), error })?;
        registry.sweep(&manifest.ids())?;
        let mut dropped = manifest.dropped.clone();
        for (id, page_size, name) in &manifest.databases {
            if registry.was_dropped(*id, name)? {
                dropped.push(Dropped { id: *id, by: None, name: name.clone() });
            } else {
                registry.start(*id, name, *page_size)?;
            }
        }
        let (taken, removed) = (manifest.position, manifest.removed.clone());
        let state = State { taken, manifest, memberships: Vec::new(), removed, dropped };
        let taken = watch::Sender::new(state.taken.map(|p| p.index));
        Ok(Machine {
            manifest_path,
            registry,
            context,
            state: Mutex::new(state),
            storing: Mutex::default(),
            taken,
            node: OnceLock::new(),
            prepared: Mutex::default(),
            opened: Condvar::new(),
            fetched: Mutex::default(),
        })
    }

    /// The node has started.
    pub fn attach(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    fn node(&self) -> io::Result<Arc<Node>> {
        let node = self.node.get().and_then(Weak::upgrade);
        node.ok_or_else(|| io::Error::other("the node is starting or stopping"))
    }

    /// The durable position.
    pub fn durable(&self) -> Option<LogPosition> {
        self.state().manifest.position
    }

    /// Whether a member of this id was removed.
    pub fn was_removed(&self, id: NodeId) -> bool {
        self.state().removed.contains(&id)
    }

    /// A database that a snapshot contains: the one that is there, or the files of a new one.
    fn prepare(&self, id: DbId, name: &str, page_size: PageSize) -> io::Result<Arc<Database>> {
        let known = self.context.runtime.block_on(self.registry.open(id)).map_err(io::Error::other)?;
        if let Some(database) = known {
            return Ok(database);
        }
        {
            let mut prepared = self.prepared();
            // A fetch that was given up may still be at it.
            while prepared.opening.is_some() {
                prepared = self.opened.wait(prepared).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(database) = prepared.databases.get(&id).cloned() {
                return Ok(database);
            }
            if self.registry.id_of(name).is_some() {
                return Err(io::Error::other(format!("there is another database {name} here")));
            }
            prepared.opening = Some(id);
        }
        // It may take its time: entries are taken meanwhile, and `/status` answers.
        let position = LogPosition { index: id.0, ..LogPosition::default() };
        let database = self.registry.prepare(position, name, page_size).map_err(io::Error::other);
        let mut prepared = self.prepared();
        prepared.opening = None;
        if let Ok(database) = &database {
            prepared.databases.insert(id, database.clone());
        }
        drop(prepared);
        self.opened.notify_all();
        database
    }

    /// A database that was prepared, if it was, is one of this node's from now on. At no time is it neither: whoever looked
    /// then would open its files a second time.
    fn make_known(&self, id: DbId) {
        let mut prepared = self.prepared();
        while prepared.opening == Some(id) {
            prepared = self.opened.wait(prepared).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(database) = prepared.databases.remove(&id) {
            self.registry.insert(database);
        }
    }

    /// Gets a database's state for a snapshot of `position`, and installs it.
    async fn fetch_one(
        self: &Arc<Self>,
        node: &Arc<Node>,
        from: NodeId,
        position: LogPosition,
        (id, page_size, name): (DbId, PageSize, String),
    ) -> io::Result<()> {
        // A database has since then what came for it, and no less.
        if self.registry.contains(id) && self.fetched().get(&id).is_some_and(|at| *at >= position.index) {
            return Ok(());
        }
        let (machine, this) = (self.clone(), name.clone());
        let prepare = move || machine.prepare(id, &this, page_size);
        let database = tokio::task::spawn_blocking(prepare).await.map_err(io::Error::other)??;
        let failed = |why: String| io::Error::other(format!("{name}: {why}"));
        let received = transfer::receive(node, &database, from, position.index).await;
        let received = received.map_err(|error| failed(error.to_string()))?;
        let as_of = install(node, &database, from, position.index, received).await.map_err(failed)?;
        // So that it can be closed, and none of it has to be installed again.
        let settled = tokio::task::spawn_blocking(move || database.checkpoint()).await;
        if !matches!(settled, Ok(Ok(true))) {
            let _ = self.context.checkpoints.send(id);
        }
        // Only now is it one that may be opened by others.
        self.make_known(id);
        self.fetched().insert(id, as_of);
        Ok(())
    }

    /// Drops a database of which a snapshot says that it is gone. Should the snapshot not be installed after all, the
    /// entry that drops it is yet to come.
    fn drop_early(&self, id: DbId) -> Result<(), DbError> {
        let mut state = self.state();
        if let Some(name) = self.registry.drop_database(id)? {
            state.dropped.push(Dropped { id, by: None, name });
        }
        Ok(())
    }

    /// Removes what was prepared for a snapshot that came to nothing, and is not in the one that came after it.
    fn discard_prepared(&self, named: &BTreeSet<DbId>) -> Result<(), DbError> {
        let databases = &mut self.prepared().databases;
        let stale: Vec<_> = databases.keys().filter(|id| !named.contains(id)).copied().collect();
        for database in stale.iter().filter_map(|id| databases.remove(id)) {
            self.registry.discard(&database)?;
        }
        Ok(())
    }

    fn prepared(&self) -> MutexGuard<'_, Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetched(&self) -> MutexGuard<'_, BTreeMap<DbId, u64>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New databases that are on their way to this node, and how far their state has come.
    pub fn arriving(&self) -> Vec<(String, Progress)> {
        let prepared = self.prepared();
        prepared.databases.values().filter_map(|db| Some((db.name.clone(), db.status().transfer?))).collect()
    }

    /// The index of the last entry that was taken, as it moves.
    pub fn taken(&self) -> watch::Receiver<Option<u64>> {
        self.taken.subscribe()
    }

    fn take(&self, state: &mut State, entry: Committed) -> Result<(), DbError> {
        let Committed { position, payload } = entry;
        if self.context.leadership.saw_term(position.term) {
            self.registry.take_term(position.term);
        }
        match payload {
            Payload::Blank => {}
            Payload::Membership(bytes) => {
                let before = state.memberships.last().map_or(&state.manifest.membership, |(_, bytes)| bytes);
                let malformed = |error: io::Error| {
                    let what = "membership";
                    let error = FormatError { what, offset: 0, reason: error.to_string() };
                    DbError::Format { path: PathBuf::from(format!("log entry {position}")), error }
                };
                if !before.is_empty() {
                    let before = members_of(&before.clone().into()).map_err(malformed)?;
                    let now = members_of(&bytes).map_err(malformed)?;
                    state.removed.extend(before.difference(&now));
                }
                state.memberships.push((position.index, bytes.to_vec()));
            }
            Payload::Command(bytes) => match Command::decode(&bytes) {
                Ok(Command::Transaction { head, body }) => {
                    self.registry.hand(
                        head.database,
                        state.taken,
                        Entry::Transaction { position, head, body },
                    );
                }
                Ok(Command::Part { head, body }) => {
                    self.registry.hand(head.database, state.taken, Entry::Part { position, head, body });
                }
                Ok(Command::Void { database, transaction: id }) => {
                    self.registry.hand(database, state.taken, Entry::Void { index: position.index, id });
                }
                Ok(Command::CreateDatabase { name, page_size }) => {
                    // A snapshot that was not installed after all may have brought its files.
                    self.make_known(DbId(position.index));
                    let is_taken = state.dropped.iter().any(|gone| gone.has_name(&name, position.index));
                    if is_taken || !self.registry.create(position, &name, page_size)? {
                        info!(database = name, "exists already");
                    }
                }
                Ok(Command::DropDatabase { database }) => {
                    if let Some(gone) = state.dropped.iter_mut().find(|gone| gone.id == database) {
                        gone.by = gone.by.or(Some(position.index));
                    }
                    if let Some(name) = self.registry.drop_database(database)? {
                        state.dropped.push(Dropped { id: database, by: Some(position.index), name });
                    }
                    // For a manifest without it.
                    let _ = self.context.checkpoints.send(database);
                }
                Ok(Command::Barrier { .. }) => {}
                Ok(Command::Verify { files, scrub, .. }) => {
                    self.registry.verify(position.index, files, scrub);
                }
                Err(error) => {
                    let path = PathBuf::from(format!("log entry {position}"));
                    return Err(DbError::Format { path, error });
                }
            },
        }
        state.taken = Some(position);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the manifest forward to what all databases have in their files.
    pub fn store_manifest(&self) -> io::Result<()> {
        let _one = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = {
            let state = self.state();
            match self.next_manifest(&state) {
                Some(manifest) if manifest != state.manifest => manifest,
                _ => return Ok(()),
            }
        };
        // What this log can still lose must not be named.
        let index = manifest.position.map_or(0, |position| position.index);
        if !self.context.wait_flushed(index, FLUSH) {
            return Ok(());
        }
        manifest.store(&self.manifest_path)?;
        self.registry.manifest_names(&manifest.ids());
        let mut state = self.state();
        // The newest membership at or below the position is in the manifest now; older ones are of no use.
        let index = manifest.position.map_or(0, |position| position.index);
        state.memberships.retain(|(at, _)| *at > index);
        state.dropped.retain(|gone| gone.by.is_none_or(|by| by > index));
        state.manifest = manifest;
        Ok(())
    }

    /// All databases have at least the state of a snapshot: so has the manifest.
    fn adopt(&self, applied: AppliedState, of: Manifest) -> io::Result<()> {
        // It names none that is gone.
        self.registry.wait_left();
        let _one = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let databases = self.registry.known();
        let removed = of.removed.union(&self.state().removed).copied().collect();
        let manifest = Manifest {
            position: applied.position,
            membership: applied.membership.map(|bytes| bytes.to_vec()).unwrap_or_default(),
            databases: databases.into_iter().map(|db| (db.id, db.page_size, db.name)).collect(),
            dropped: of.dropped,
            removed,
            ahead: true,
        };
        manifest.store(&self.manifest_path)?;
        self.registry.manifest_names(&manifest.ids());
        fault::point("install.stored");
        let mut state = self.state();
        self.prepared().databases.clear();
        state.taken = manifest.position;
        state.memberships.clear();
        state.dropped.clone_from(&manifest.dropped);
        state.removed.clone_from(&manifest.removed);
        state.manifest = manifest;
        self.taken.send_replace(state.taken.map(|p| p.index));
        if let Some(LogPosition { term, .. }) = state.taken
            && self.context.leadership.saw_term(term)
        {
            self.registry.take_term(term);
        }
        Ok(())
    }

    /// What the manifest may say now; `None` if it has nothing new to say.
    fn next_manifest(&self, state: &State) -> Option<Manifest> {
        let mut position = state.taken?;
        let databases = self.registry.known();
        for complete in databases.iter().filter_map(|database| database.lacks_after) {
            if complete.index < position.index {
                position = complete;
            }
        }
        // What the manifest says already stays true, though a database may not know it of itself after a restart.
        if let Some(stored) = state.manifest.position.filter(|stored| stored.index > position.index) {
            position = stored;
        }
        let membership = state.memberships.iter().rev().find(|(at, _)| *at <= position.index);
        let membership = membership.map_or(&state.manifest.membership, |(_, bytes)| bytes);
        // One whose files are still being used is named, and not gone yet: the entry that drops it comes after this.
        let is_gone = |gone: &&Dropped| databases.iter().all(|db| db.id != gone.id);
        let dropped = state.dropped.iter().filter(|gone| gone.by.is_none_or(|by| by > position.index));
        let dropped = dropped.filter(is_gone).cloned().collect();
        Some(Manifest {
            position: Some(position),
            membership: membership.clone(),
            databases: databases.into_iter().map(|db| (db.id, db.page_size, db.name)).collect(),
            dropped,
            removed: state.removed.clone(),
            ahead: false,
        })
    }
}

/// Installs a state; where entries came between, gets the rest of a newer one first. Returns the entry up to which the
/// database has all then.
async fn install(
    node: &Arc<Node>,
    database: &Arc<Database>,
    from: NodeId,
    at_least: u64,
    mut received: transfer::Received,
) -> Result<u64, String> {
    const ATTEMPTS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(500);
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match database.install_incoming(&received).await {
            Ok(()) => return Ok(received.incoming.target.as_of),
            Err(InstallError::Db(error)) => return Err(error.to_string()),
            Err(error) => info!(database = database.name, "not installed: {error}"),
        }
        drop(received);
        received = loop {
            match transfer::receive(node, database, from, at_least.max(database.dealt_with())).await {
                Ok(again) => break again,
                Err(error) if why == error.to_string() => return Err(why),
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(PAUSE).await;
        };
    }
    Err(format!("{} moved on each time before a snapshot was installed", database.name))
}

impl StateMachine for Machine {
    fn applied(&self) -> io::Result<AppliedState> {
        Ok(self.state().manifest.applied())
    }

    fn snapshot(&self) -> io::Result<(AppliedState, Bytes)> {
        let state = self.state();
        Ok((state.manifest.applied(), state.manifest.encode().into()))
    }

    fn room(&self) -> BoxFuture<'static, ()> {
        let context = self.context.clone();
        Box::pin(async move { context.room().await })
    }

    fn fetch(&self, from: NodeId, snapshot: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let node = self.node();
        Box::pin(async move {
            let node = node?;
            let manifest = Manifest::decode(&snapshot).map_err(io::Error::other)?;
            let position = manifest.position.ok_or_else(|| io::Error::other("the snapshot is of nothing"))?;
            // Those that it doesn't name were dropped, by an entry that will not come any more.
            let named = manifest.ids();
            let dropped = node.registry().ids();
            for id in dropped.into_iter().filter(|id| id.0 <= position.index && !named.contains(id)) {
                node.machine().drop_early(id).map_err(io::Error::other)?;
            }
            // Another one may have their names.
            let registry = node.registry().clone();
            let left = tokio::task::spawn_blocking(move || registry.wait_left());
            left.await.map_err(io::Error::other)?;
            node.machine().discard_prepared(&named).map_err(io::Error::other)?;
            for described in manifest.databases {
                node.machine().fetch_one(&node, from, position, described).await?;
            }
            Ok(())
        })
    }

    fn install(&self, state: AppliedState, snapshot: Bytes) -> BoxFuture<'static, io::Result<()>> {
        let at = state.position.map_or(0, |position| position.index);
        let fetched: BTreeSet<_> =
            self.fetched().iter().filter(|(_, as_of)| **as_of >= at).map(|(id, _)| *id).collect();
        let node = self.node();
        Box::pin(async move {
            let node = node?;
            let manifest = Manifest::decode(&snapshot).map_err(io::Error::other)?;
            let lacks = |id: &&DbId| !fetched.contains(id) || !node.registry().contains(**id);
            if let Some(id) = manifest.ids().iter().find(lacks) {
                let why = format!("the snapshot's databases were not all received: {id} was not");
                return Err(io::Error::other(why));
            }
            let installing = node.clone();
            let described = Manifest { databases: Vec::new(), ..manifest };
            let adopt = move || installing.machine().adopt(state, described);
            let stored = tokio::task::spawn_blocking(adopt).await;
            stored.map_err(io::Error::other)?
        })
    }

    fn abandon(&self) {
        self.fetched().clear();
    }

    fn apply(&self, batch: Vec<Committed>) -> io::Result<()> {
        let mut state = self.state();
        for entry in batch {
            let position = entry.position;
            self.take(&mut state, entry).map_err(|why| {
                error!(%position, "can't apply: {why}");
                io::Error::other(why.to_string())
            })?;
        }
        self.taken.send_replace(state.taken.map(|p| p.index));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::TransactionHead;
    use crate::db::registry::Keep;
    use quire_vfs::format::checksum::PageHashes;
    use quire_vfs::format::transaction::{TxnId, encode_head};
    use quire_vfs::format::{PageNo, database};
    use std::time::Duration;

    fn machine(dir: &Path) -> Machine {
        crate::db::sql::register().unwrap();
        let context = Arc::new(Context::alone());
        let keep = Keep { most: 16, idle: Duration::from_secs(60) };
        let registry = Arc::new(Registry::new(&dir.join("db"), context.clone(), keep).unwrap());
        Machine::open(dir, registry, context).unwrap()
    }

    /// Hands over entries, and says which database has the name in the end.
    fn apply(machine: &Machine, entries: &[(u64, Command)]) -> Option<u64> {
        let committed = |(index, command): &(u64, Command)| Committed {
            position: LogPosition { term: 1, leader: 1, index: *index },
            payload: Payload::Command(command.encode()),
        };
        machine.apply(entries.iter().map(committed).collect()).unwrap();
        machine.registry.id_of("x").map(|id| id.0)
    }

    fn create() -> Command {
        Command::CreateDatabase { name: "x".into(), page_size: PageSize::DEFAULT }
    }

    fn drop_of(id: u64) -> Command {
        Command::DropDatabase { database: DbId(id) }
    }

    /// Two apps create a database at the same time; the second entry does nothing. Read again after the database was
    /// dropped, it must do nothing still: otherwise this node has another database of that name than all others.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_create_that_did_nothing_does_nothing_when_it_is_read_again() {
        let rest = [(2, create()), (3, drop_of(1)), (4, create())];
        for (case, restart_after) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
            let dir = tempfile::tempdir().unwrap();
            let first = machine(dir.path());
            assert_eq!(apply(&first, &[(1, create())]), Some(1));
            // Something else keeps the manifest's position at 1. It is stored before or after the drop.
            let stored = |machine: &Machine| {
                let position = Some(LogPosition { term: 1, leader: 1, index: 1 });
                let manifest = machine.next_manifest(&machine.state()).unwrap();
                let dropped = machine.state().dropped.clone();
                Manifest { position, dropped, ..manifest }.store(&machine.manifest_path).unwrap();
            };
            stored(&first);
            apply(&first, &rest[..restart_after]);
            if case != 2 {
                stored(&first);
            }
            drop(first);
            let second = machine(dir.path());
            assert_ne!(apply(&second, &rest[..1]), Some(2), "case {case}: the name was taken");
            assert_eq!(apply(&second, &rest[1..]), Some(4), "case {case}");
        }
    }

    /// Opening one that a snapshot brings takes as long as a stock writer likes. Whoever takes the log's entries waited for
    /// that, whatever they were of, and so did `/status`.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn entries_do_not_wait_for_another_database_to_be_opened_for_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Arc::new(machine(dir.path()));
        machine.prepared().opening = Some(DbId(2));
        assert_eq!(apply(&machine, &[(1, create())]), Some(1));
        assert!(machine.arriving().is_empty());
        // That very one is waited for: two threads would be at its files.
        let ours = machine.clone();
        let other = Command::CreateDatabase { name: "y".into(), page_size: PageSize::DEFAULT };
        let created = tokio::task::spawn_blocking(move || apply(&ours, &[(2, other)]));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!created.is_finished());
        machine.prepared().opening = None;
        machine.opened.notify_all();
        created.await.unwrap();
        assert_eq!(machine.registry.id_of("y"), Some(DbId(2)));
    }

    /// A transaction of one page on a database that has one, on top of `base`.
    fn write(id: u64, base: u64, version: u8) -> Command {
        let size = PageSize::DEFAULT;
        let mut page = database::empty_database(size);
        page[63] = version;
        let mut hashes = PageHashes::new(size);
        hashes.apply(&PageHashes::delta(1, [(PageNo(1), page.as_slice())]));
        let checksum = hashes.checksum();
        let mut body = Vec::new();
        encode_head(&mut body, TxnId([version; 16]), size, 1, &[PageNo(1)], 0);
        body.extend_from_slice(&page);
        let head = TransactionHead { database: DbId(id), base, lease_term: 1, checksum, origin: 1 };
        Command::Transaction { head, body: body.into() }
    }

    /// A database that was not written for long is, from when it is, until it is checkpointed. With many of them there
    /// was always one, and each kept the log back to the entry that wrote it last: it grew for as long as that went on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_database_that_was_idle_for_long_keeps_no_more_log_than_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        crate::db::sql::register().unwrap();
        let context = Context { flushed: OnceLock::from(watch::channel(1000).1), ..Context::alone() };
        let context = Arc::new(context);
        let keep = Keep { most: 16, idle: Duration::from_secs(60) };
        let open = || {
            let registry = Arc::new(Registry::new(&dir.path().join("db"), context.clone(), keep).unwrap());
            Machine::open(dir.path(), registry, context.clone()).unwrap()
        };
        let machine = open();
        let create = |name: &str| Command::CreateDatabase { name: name.into(), page_size: PageSize::DEFAULT };
        apply(&machine, &[(1, create("busy")), (2, create("a")), (3, create("b"))]);
        let checkpoint = async |machine: &Machine, id: u64| {
            let database = machine.registry.open(DbId(id)).await.unwrap().unwrap();
            database.settled().await;
            assert_eq!(database.fenced(), None);
            tokio::task::spawn_blocking(move || while !database.checkpoint().unwrap() {}).await.unwrap();
        };
        let stored = |machine: &Machine| {
            machine.store_manifest().unwrap();
            machine.durable().unwrap().index
        };
        // Just handed over, opened, and published: at no time is more kept than from there on.
        let mut base = 1;
        let mut busy = async |machine: &Machine, index: u64| {
            apply(machine, &[(index, write(1, std::mem::replace(&mut base, index), index as u8))]);
            checkpoint(machine, 1).await;
        };
        busy(&machine, 4).await;
        assert_eq!(stored(&machine), 4);
        apply(&machine, &[(5, write(2, 2, 5))]);
        assert_eq!(stored(&machine), 4);
        busy(&machine, 6).await;
        assert_eq!(stored(&machine), 4, "one that lacks an entry of the file needs it from the log");
        apply(&machine, &[(7, write(3, 3, 7))]);
        checkpoint(&machine, 2).await;
        busy(&machine, 8).await;
        assert_eq!(stored(&machine), 6);
        apply(&machine, &[(9, write(2, 5, 9))]);
        let b = machine.registry.open(DbId(3)).await.unwrap().unwrap();
        b.settled().await;
        drop(b);
        assert_eq!(stored(&machine), 6);
        checkpoint(&machine, 3).await;
        busy(&machine, 10).await;
        assert_eq!(stored(&machine), 8);

        // The log has all that is missing then.
        drop(machine);
        let machine = open();
        assert_eq!(machine.durable().unwrap().index, 8);
        apply(&machine, &[(9, write(2, 5, 9)), (10, write(1, 8, 10))]);
        for id in 1..=3 {
            checkpoint(&machine, id).await;
        }
        assert_eq!(stored(&machine), 10);

        // One that is fenced, perhaps for ever, needs what comes for it from then on.
        let b = machine.registry.open(DbId(3)).await.unwrap().unwrap();
        let ours = b.clone();
        tokio::task::spawn_blocking(move || ours.damaged(PageNo(1), 7)).await.unwrap();
        assert!(b.fenced().is_some());
        busy(&machine, 11).await;
        assert_eq!(stored(&machine), 11);
        apply(&machine, &[(12, write(3, 7, 12))]);
        b.settled().await;
        busy(&machine, 13).await;
        assert_eq!(stored(&machine), 11);
    }

    /// A membership in Raft's encoding (docs/formats/raft.md): these nodes, and all of them vote.
    fn membership(ids: &[u64]) -> Bytes {
        let mut out = vec![1, 0, 1, 0, 0, 0];
        out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        for id in ids {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(b"\x03\0h:1\x03\0h:2");
        }
        out.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_was_removed_is_remembered_over_restarts_and_in_snapshots() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |index| LogPosition { term: 1, leader: 1, index };
        let change = |machine: &Machine, index, ids: &[u64]| {
            machine
                .apply(vec![Committed { position: at(index), payload: Payload::Membership(membership(ids)) }])
                .unwrap();
        };
        let removed = |machine: &Machine| (1..=5).filter(|id| machine.was_removed(*id)).collect::<Vec<_>>();
        let flushed = |machine: &Machine| {
            let _ = machine.context.flushed.set(watch::channel(1000).1);
        };
        let first = machine(dir.path());
        flushed(&first);
        change(&first, 0, &[1, 2, 3]);
        change(&first, 1, &[1, 2, 3, 4]);
        assert!(removed(&first).is_empty());
        change(&first, 2, &[1, 3, 4]);
        assert_eq!(removed(&first), [2]);
        first.store_manifest().unwrap();
        change(&first, 3, &[1, 3]);
        assert_eq!(removed(&first), [2, 4]);
        drop(first);
        // What the manifest doesn't say comes again with the log.
        let again = machine(dir.path());
        flushed(&again);
        assert_eq!(removed(&again), [2]);
        change(&again, 3, &[1, 3]);
        assert_eq!(removed(&again), [2, 4]);
        again.store_manifest().unwrap();

        let (applied, snapshot) = again.snapshot().unwrap();
        let member = machine(other.path());
        member.adopt(applied, Manifest::decode(&snapshot).unwrap()).unwrap();
        assert_eq!(removed(&member), [2, 4]);
        change(&member, 4, &[3]);
        drop(member);
        assert_eq!(removed(&machine(other.path())), [2, 4]);
    }
}
