//! The databases of this node, by id and by name, and the directory that they live in.
//!
//! A database is in one of three states, and everything that is said of it goes by its id, whatever its state:
//!
//! ```text
//!        somebody asks, or an entry comes that it needs its files for
//! closed ──────────────────────► moving ──────────────────────► open
//!    ▲                             │  ▲                           │
//!    └──── nobody came meanwhile ──┘  └── nobody has used it ─────┘
//! ```
//!
//! *Open*: its files are, with all locks. *Closed* ([`super::closed`]): none is. *Moving*: a thread is at its files, or
//! the last attempt to open it failed and is made again. Entries that come meanwhile wait, in order, and so do those
//! who asked. Only whoever moves a database touches its files: the locks of a file that is opened would go with a
//! descriptor of it that is closed.
//!
//! A database is closed when nobody but the registry has a reference to it, all that was committed is in its file,
//! and it has not been used for a while, or more are open than should be. Those that are in use stay open, and so do some
//! that were used last, however long ago that was: with few databases, none is ever closed.
//!
//! One that is dropped while a thread is at its files is *leaving* until that is done (`registry/leaving.rs`).

mod aside;
mod closing;
mod leaving;
mod listing;
mod waiting;

pub use aside::Scrubbable;
pub use listing::Known;

use super::DbError;
use super::closed::{Closed, Entry};
use super::context::Context;
use super::creation::{create_files, has_files};
use super::database::{Database, database_path};
use super::dropping::{self, Tombstone};
use super::parts;
use super::side_file::ScrubMark;
use crate::clock;
use crate::command::DbId;
use crate::manifest::sync_dir;
use quire_raft::LogPosition;
use quire_vfs::format::PageSize;
use quire_vfs::shim::vfs::MARKER;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};
use waiting::Waiting;

/// Threads that open databases.
const OPENERS: usize = 4;
/// How long until a database that could not be opened is tried again, if entries wait for it.
const RETRY: Duration = Duration::from_secs(1);

/// How many databases are open, and for how long after their last use.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// So many, not counting those that are in use.
    pub most: usize,
    /// For so long; a quarter of the most, those that were used last, for ever.
    pub idle: Duration,
}

impl Keep {
    /// No more than may be where the process may have so many descriptors: a quarter of them is for these databases.
    pub fn within(self, descriptors: u64) -> Keep {
        const EACH: u64 = 6;
        let most = usize::try_from(descriptors / 4 / EACH).unwrap_or(usize::MAX);
        Keep { most: self.most.min(most).max(1), ..self }
    }

    /// So many are not closed for being idle.
    fn always(&self) -> usize {
        self.most.div_ceil(4)
    }
}

/// A database that is open.
#[derive(Debug)]
struct Open {
    database: Arc<Database>,
    used: Instant,
}

/// A database that is being opened or closed.
#[derive(Debug)]
struct Moving {
    closed: Closed,
    /// A thread is at its files.
    is_busy: bool,
    /// It is among those that are to be opened.
    is_queued: bool,
    waiting: Waiting,
    /// The last attempt failed, and a timer will have the next one made.
    is_resting: bool,
    /// The entry that creates it, if its files are yet to come: those of a dropped one of its name are still there.
    creation: Option<LogPosition>,
    /// Dropped when this is over; why an attempt failed.
    news: watch::Sender<Option<String>>,
}

impl Moving {
    fn new(closed: Closed, is_busy: bool) -> Moving {
        let (waiting, news) = (Waiting::default(), watch::Sender::default());
        Moving { closed, is_busy, is_queued: false, waiting, is_resting: false, creation: None, news }
    }

    /// It was closed, with everything in its file, and nothing has come since.
    fn is_durable(&self) -> bool {
        self.waiting.is_empty()
    }

    fn is_wanted(&self) -> bool {
        !self.waiting.is_empty() || self.news.receiver_count() > 0
    }
}

/// What was handed to a database, for what it needs of the log: one that was not written for long needs it from the first
/// entry on that its file lacks, not from its last one.
#[derive(Clone, Copy, Debug)]
struct Handed {
    /// All entries up to here are in its file, by what was so when one last came to a database that had all before it.
    complete: Option<LogPosition>,
    /// The last entry that may change it.
    last: u64,
}

#[derive(Debug, Default)]
struct Slots {
    open: BTreeMap<DbId, Open>,
    closed: BTreeMap<DbId, Closed>,
    moving: BTreeMap<DbId, Moving>,
    /// Dropped, but a thread is still at their files.
    leaving: BTreeMap<DbId, Closed>,
    /// What was handed to each in this life of the node.
    handed: BTreeMap<DbId, Handed>,
    names: BTreeMap<String, DbId>,
    /// The one that is opened, or open, for the scrub alone.
    aside: Option<DbId>,
    /// Bytes of all that waits for those that are moving.
    waiting: usize,
    /// To be opened, in order.
    queue: VecDeque<DbId>,
    openers: usize,
}

impl Slots {
    fn has(&self, id: DbId) -> bool {
        self.open.contains_key(&id) || self.closed.contains_key(&id) || self.moving.contains_key(&id)
    }

    /// Whether a database has all entries that were handed to it in its file.
    fn is_durable(&self, id: DbId) -> bool {
        if let Some(open) = self.open.get(&id) {
            return open.database.is_durable();
        }
        self.moving.get(&id).is_none_or(Moving::is_durable)
    }

    /// An open database, which is used by that.
    fn take(&mut self, id: DbId) -> Option<Arc<Database>> {
        let open = self.open.get_mut(&id)?;
        open.used = clock::now();
        Some(open.database.clone())
    }
}

/// All databases of the node.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    context: Arc<Context>,
    keep: Keep,
    /// Before anything was used.
    began: Instant,
    slots: Mutex<Slots>,
    /// The files of a dropped database have gone.
    moved: Condvar,
    /// What is left of dropped databases that the stored manifest may name.
    tombstones: Mutex<Vec<Tombstone>>,
}

impl Registry {
    /// An empty registry over `DIR/db`, which is created and marked.
    pub fn new(directory: &Path, context: Arc<Context>, keep: Keep) -> Result<Registry, DbError> {
        std::fs::create_dir_all(directory).map_err(DbError::io(directory, "creating it"))?;
        let marker = directory.join(MARKER);
        let text =
            "The databases in this directory belong to a Quire node. Open them through the quire VFS.\n";
        if !marker.exists() {
            std::fs::write(&marker, text).map_err(DbError::io(&marker, "writing it"))?;
            sync_dir(&marker).map_err(DbError::io(&marker, "syncing its directory"))?;
        }
        parts::sweep(directory)?;
        let (directory, slots) = (directory.to_owned(), Mutex::default());
        let (moved, tombstones) = (Condvar::new(), Mutex::default());
        let began = clock::now();
        Ok(Registry { directory, context, keep, began, slots, moved, tombstones })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Device and inode of the directory: how an app shows that it sees the same files.
    pub fn directory_identity(&self) -> std::io::Result<(u64, u64)> {
        std::fs::metadata(&self.directory).map(|m| (m.dev(), m.ino()))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a database of this id.
    pub fn contains(&self, id: DbId) -> bool {
        self.slots().has(id)
    }

    /// The id of a database.
    pub fn id_of(&self, name: &str) -> Option<DbId> {
        self.slots().names.get(name).copied()
    }

    /// A database that is open.
    pub fn get(&self, id: DbId) -> Option<Arc<Database>> {
        self.slots().open.get(&id).map(|open| open.database.clone())
    }

    /// All that are open, by id.
    pub fn open_ones(&self) -> Vec<Arc<Database>> {
        self.slots().open.values().map(|open| open.database.clone()).collect()
    }

    /// The name of a database.
    pub fn name_of(&self, id: DbId) -> Option<String> {
        let slots = self.slots();
        let closed = slots.closed.get(&id).or_else(|| Some(&slots.moving.get(&id)?.closed));
        closed.map(|it| it.name.clone()).or_else(|| Some(slots.open.get(&id)?.database.name.clone()))
    }

    /// The size of a database's pages.
    pub fn page_size_of(&self, id: DbId) -> Option<PageSize> {
        let slots = self.slots();
        let closed = slots.closed.get(&id).or_else(|| Some(&slots.moving.get(&id)?.closed));
        closed.map(|it| it.page_size).or_else(|| Some(slots.open.get(&id)?.database.page_size))
    }

    /// The ids of all.
    pub fn ids(&self) -> BTreeSet<DbId> {
        self.slots().names.values().copied().collect()
    }
}

impl Registry {
    /// A database, opened if it is closed. `None` if there is none; an error if it can't be opened, at least not now.
    pub async fn open(self: &Arc<Self>, id: DbId) -> Result<Option<Arc<Database>>, String> {
        loop {
            let mut news = {
                let mut slots = self.slots();
                slots.is_used(id);
                if let Some(database) = slots.take(id) {
                    return Ok(Some(database));
                }
                self.want(&mut slots, id);
                let Some(moving) = slots.moving.get(&id) else { return Ok(None) };
                moving.news.subscribe()
            };
            // An error: it has come to an end; look again.
            if news.changed().await.is_ok()
                && let Some(why) = news.borrow().clone()
            {
                return Err(why);
            }
        }
    }

    /// As [`Registry::open`], by name.
    pub async fn find(self: &Arc<Self>, name: &str) -> Result<Option<Arc<Database>>, String> {
        match self.id_of(name) {
            Some(id) => self.open(id).await,
            None => Ok(None),
        }
    }

    /// Hands an entry of the log, the one after `before`, to its database, if there is one. Doesn't wait for files.
    pub fn hand(self: &Arc<Self>, id: DbId, before: Option<LogPosition>, entry: Entry) {
        let mut slots = self.slots();
        if let Some(last) = entry.changes_at().filter(|_| slots.has(id)) {
            let complete = if slots.is_durable(id) { before } else { None };
            let complete = complete.or_else(|| slots.handed.get(&id)?.complete);
            slots.handed.insert(id, Handed { complete, last });
        }
        if let Some(database) = slots.take(id) {
            slots.is_used(id);
            drop(slots);
            return entry.give(&database);
        }
        if slots.closed.get_mut(&id).is_some_and(|closed| closed.knows(&entry)) {
            return;
        }
        slots.is_used(id);
        self.want(&mut slots, id);
        slots.keep(id, entry);
    }

    /// Hands a verification to all databases.
    pub fn verify(self: &Arc<Self>, index: u64, files: bool, scrub: bool) {
        for id in self.ids() {
            self.hand(id, None, Entry::Verify { index, files, scrub });
        }
    }

    /// The next entry is the first of this term.
    pub fn take_term(&self, term: u64) {
        let open = {
            let mut slots = self.slots();
            // What it is to end can only be among what waits.
            let waiting = slots.moving.iter().filter(|(_, moving)| !moving.waiting.is_empty());
            let waiting: Vec<_> = waiting.map(|(id, _)| *id).collect();
            waiting.into_iter().for_each(|id| slots.keep(id, Entry::Term(term)));
            slots.open.values().map(|open| open.database.clone()).collect::<Vec<_>>()
        };
        open.iter().for_each(|database| database.take_term(term));
    }

    /// Has a database opened that is closed, or that could not be.
    fn want(self: &Arc<Self>, slots: &mut Slots, id: DbId) {
        if let Some(closed) = slots.closed.remove(&id) {
            slots.moving.insert(id, Moving::new(closed, false));
        }
        let Some(moving) = slots
            .moving
            .get_mut(&id)
            .filter(|moving| !moving.is_busy && !moving.is_queued && !moving.is_resting)
            .filter(|moving| moving.creation.is_none())
        else {
            return;
        };
        moving.is_queued = true;
        slots.queue.push_back(id);
        if slots.openers < OPENERS {
            slots.openers += 1;
            let registry = self.clone();
            self.context.run_blocking(move || registry.open_queued());
        }
    }

    /// Opens what is to be opened, until nothing is.
    fn open_queued(self: Arc<Self>) {
        loop {
            let takes_a_place = {
                let mut slots = self.slots();
                let Some(next) = slots.queue.front() else {
                    slots.openers -= 1;
                    return;
                };
                slots.aside != Some(*next)
            };
            if takes_a_place {
                // It may take its time, in which the database can still be dropped as one that is closed.
                self.make_room();
            }
            let (id, name, page_size) = {
                let mut slots = self.slots();
                let Some(id) = slots.queue.pop_front() else { continue };
                let Some(moving) = slots.moving.get_mut(&id) else { continue };
                (moving.is_queued, moving.is_busy) = (false, true);
                (id, moving.closed.name.clone(), moving.closed.page_size)
            };
            let path = database_path(&self.directory, &name);
            match Database::open(self.context.clone(), &path, id, &name, page_size, true) {
                Ok(database) => self.is_open(id, Arc::new(database), true),
                Err(error) => self.has_not_opened(id, &error),
            }
        }
    }

    /// A thread has opened a database, or could not close it.
    fn is_open(self: &Arc<Self>, id: DbId, database: Arc<Database>, is_new: bool) {
        let mut slots = self.slots();
        let Some(moving) = slots.end_of(id) else {
            drop(slots);
            drop(database);
            return self.leave(id);
        };
        if is_new {
            database.resume(moving.closed);
        }
        let (waiting, has_lost) = moving.waiting.end();
        waiting.into_iter().for_each(|entry| entry.give(&database));
        if has_lost {
            database.fence_now("it could not be opened for so long that not all entries were kept for it");
        } else if database.fenced().is_some() {
            database.ask_repair();
        }
        let used = if slots.aside == Some(id) { self.began } else { clock::now() };
        slots.open.insert(id, Open { database, used });
    }

    fn has_not_opened(self: &Arc<Self>, id: DbId, error: &DbError) {
        let why = format!("it can't be opened: {error}");
        let mut slots = self.slots();
        let Some(moving) = slots.moving.get_mut(&id) else {
            drop(slots);
            return self.leave(id);
        };
        if moving.closed.trouble.as_ref() != Some(&why) {
            warn!(database = moving.closed.name, "{why}");
        }
        moving.is_busy = false;
        moving.closed.trouble = Some(why.clone());
        moving.news.send_replace(Some(why));
        if !moving.waiting.is_empty() {
            moving.is_resting = true;
            let registry = self.clone();
            self.context.spawn(async move {
                tokio::time::sleep(RETRY).await;
                let mut slots = registry.slots();
                if let Some(moving) = slots.moving.get_mut(&id) {
                    moving.is_resting = false;
                    registry.want(&mut slots, id);
                }
            });
        } else if let Some(moving) = slots.end_of(id) {
            slots.closed.insert(id, moving.closed);
        }
    }
}

impl Registry {
    /// A database that exists, after a start: opened, unless it was closed properly and nobody has touched it, and enough
    /// are open.
    pub fn start(&self, id: DbId, name: &str, page_size: PageSize) -> Result<(), DbError> {
        let path = database_path(&self.directory, name);
        let closed = Closed::find(&path, id, name, page_size)?;
        match closed.filter(|_| self.slots().open.len() >= self.keep.always()) {
            Some(closed) => self.insert_closed(closed),
            None => {
                let database = Database::open(self.context.clone(), &path, id, name, page_size, false)?;
                self.insert(Arc::new(database));
            }
        }
        Ok(())
    }

    /// Makes a database known.
    pub fn insert(&self, database: Arc<Database>) {
        let mut slots = self.slots();
        slots.names.insert(database.name.clone(), database.id);
        slots.open.insert(database.id, Open { database, used: clock::now() });
    }

    fn insert_closed(&self, closed: Closed) {
        let mut slots = self.slots();
        slots.names.insert(closed.name.clone(), closed.id);
        slots.closed.insert(closed.id, closed);
    }

    /// Removes a database that was prepared and never became known.
    pub fn discard(&self, database: &Arc<Database>) -> Result<(), DbError> {
        database.mark_dropped();
        // No manifest names it.
        dropping::bury(database.path(), database.id)?.remove();
        Ok(())
    }

    /// Whether a database that a manifest names was dropped after that.
    pub fn was_dropped(&self, id: DbId, name: &str) -> Result<bool, DbError> {
        let tombstone = dropping::find(&database_path(&self.directory, name), id)?;
        let found = tombstone.is_some();
        self.tombstones().extend(tombstone);
        Ok(found)
    }

    /// A manifest is stored that names these databases only.
    pub fn manifest_names(&self, named: &BTreeSet<DbId>) {
        self.tombstones().retain(|tombstone| {
            let stays = named.contains(&tombstone.id);
            if !stays {
                tombstone.remove();
            }
            stays
        });
    }

    /// At the start: what is left of databases that the manifest does not name.
    pub fn sweep(&self, named: &BTreeSet<DbId>) -> Result<(), DbError> {
        dropping::sweep(&self.directory, named)
    }

    fn tombstones(&self) -> MutexGuard<'_, Vec<Tombstone>> {
        self.tombstones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry at `position` creates a database, closed. Its files may be there already, when the log is read
    /// again. Returns false if the name is taken by an older one.
    pub fn create(&self, position: LogPosition, name: &str, page_size: PageSize) -> Result<bool, DbError> {
        let id = DbId(position.index);
        if self.contains(id) {
            return Ok(true);
        }
        if self.id_of(name).is_some() {
            return Ok(false);
        }
        let path = database_path(&self.directory, name);
        if has_files(&path, id, page_size)? {
            self.start(id, name, page_size)?;
        } else if !self.create_later(position, name, page_size) {
            let durable = create_files(&path, position, page_size)?;
            self.insert_closed(Closed::new(id, name, page_size, durable, ScrubMark::default()));
        }
        info!(database = name, %id, %page_size, "created");
        Ok(true)
    }

    /// The files of a database that was created at `position`, opened, but not known yet. Blocks.
    pub fn prepare(
        self: &Arc<Self>,
        position: LogPosition,
        name: &str,
        page_size: PageSize,
    ) -> Result<Arc<Database>, DbError> {
        let id = DbId(position.index);
        let path = database_path(&self.directory, name);
        if self.slots().is_leaving(name) {
            let busy =
                io::Error::new(io::ErrorKind::ResourceBusy, "a dropped one of that name is still there");
            return Err(DbError::io(&path, "creating it")(busy));
        }
        self.make_room();
        if !has_files(&path, id, page_size)? {
            create_files(&path, position, page_size)?;
        }
        Ok(Arc::new(Database::open(self.context.clone(), &path, id, name, page_size, false)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_not_all_for_databases_that_nobody_uses() {
        let keep = Keep { most: 256, idle: Duration::from_secs(300) };
        let most = |descriptors| keep.within(descriptors).most;
        assert_eq!((most(65_536), most(6144), most(1024), most(10)), (256, 256, 42, 1));
    }
}
