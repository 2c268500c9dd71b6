//! The databases of this node, by id and by name, and the directory that they live in.

use super::DbError;
use super::database::{Context, Database, database_path};
use super::dropping::{self, Tombstone};
use super::side_file::{Durable, SideFile, Stamp, side_path};
use crate::command::DbId;
use crate::manifest::sync_dir;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::database::empty_database;
use quire_vfs::format::{PageNo, PageSize};
use quire_vfs::shim::vfs::MARKER;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;
use tracing::{info, warn};

/// All databases of the node.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    context: Arc<Context>,
    databases: RwLock<BTreeMap<DbId, Arc<Database>>>,
    /// What is left of dropped databases that the stored manifest may name.
    tombstones: Mutex<Vec<Tombstone>>,
    /// Rises with each change, for those who wait for a database.
    changes: watch::Sender<u64>,
}

impl Registry {
    /// An empty registry over `DIR/db`, which is created and marked.
    pub fn new(directory: &Path, context: Arc<Context>) -> Result<Registry, DbError> {
        std::fs::create_dir_all(directory).map_err(DbError::io(directory, "creating it"))?;
        let marker = directory.join(MARKER);
        let text =
            "The databases in this directory belong to a Quire node. Open them through the quire VFS.\n";
        if !marker.exists() {
            std::fs::write(&marker, text).map_err(DbError::io(&marker, "writing it"))?;
            sync_dir(&marker).map_err(DbError::io(&marker, "syncing its directory"))?;
        }
        Ok(Registry {
            directory: directory.to_owned(),
            context,
            databases: RwLock::default(),
            tombstones: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Device and inode of the directory: how an app shows that it sees the same files.
    pub fn directory_identity(&self) -> std::io::Result<(u64, u64)> {
        std::fs::metadata(&self.directory).map(|m| (m.dev(), m.ino()))
    }

    /// A database by id.
    pub fn get(&self, id: DbId) -> Option<Arc<Database>> {
        self.read().get(&id).cloned()
    }

    /// A database by name.
    pub fn find(&self, name: &str) -> Option<Arc<Database>> {
        self.read().values().find(|db| db.name == name).cloned()
    }

    /// All databases, by id.
    pub fn all(&self) -> Vec<Arc<Database>> {
        self.read().values().cloned().collect()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<DbId, Arc<Database>>> {
        self.databases.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Opens a database that exists, after a start.
    pub fn open(&self, id: DbId, name: &str, page_size: PageSize) -> Result<Arc<Database>, DbError> {
        let path = database_path(&self.directory, name);
        let database = Arc::new(Database::open(self.context.clone(), &path, id, name, page_size)?);
        self.insert(database.clone());
        Ok(database)
    }

    /// Makes a database known.
    pub fn insert(&self, database: Arc<Database>) {
        let mut databases = self.databases.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        databases.insert(database.id, database);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Drops a database, if it is there, and returns its name. Its files are gone when this returns.
    pub fn drop_database(&self, id: DbId) -> Result<Option<String>, DbError> {
        let Some(database) = self.get(id) else { return Ok(None) };
        database.mark_dropped();
        self.databases.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.changes.send_modify(|n| *n += 1);
        self.tombstones().push(dropping::bury(database.path(), id)?);
        Ok(Some(database.name.clone()))
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

    /// The entry at `position` creates a database. Its files may be there already, when the log is read
    /// again. Returns false if the name is taken by an older one.
    pub fn create(&self, position: LogPosition, name: &str, page_size: PageSize) -> Result<bool, DbError> {
        let id = DbId(position.index);
        if self.get(id).is_some() {
            return Ok(true);
        }
        if self.find(name).is_some() {
            return Ok(false);
        }
        self.insert(self.prepare(position, name, page_size)?);
        info!(database = name, %id, %page_size, "created");
        Ok(true)
    }

    /// The files of a database that was created at `position`, opened, but not known yet.
    pub fn prepare(
        &self,
        position: LogPosition,
        name: &str,
        page_size: PageSize,
    ) -> Result<Arc<Database>, DbError> {
        let id = DbId(position.index);
        let path = database_path(&self.directory, name);
        match SideFile::identify(&path)? {
            Some(found) if found == (id, page_size) && path.exists() => {}
            _ => create_files(&path, position, page_size)?,
        }
        Ok(Arc::new(Database::open(self.context.clone(), &path, id, name, page_size)?))
    }
}

/// Writes the files of an empty database. Whatever stands there under its name is put aside.
fn create_files(path: &Path, position: LogPosition, page_size: PageSize) -> Result<(), DbError> {
    put_aside(path)?;
    let image = empty_database(page_size);
    let mut hashes = PageHashes::new(page_size);
    hashes.apply(&PageHashes::delta(1, [(PageNo(1), image.as_slice())]));
    let mut file = File::create(path).map_err(DbError::io(path, "creating it"))?;
    file.write_all(&image).map_err(DbError::io(path, "writing it"))?;
    file.sync_all().map_err(DbError::io(path, "syncing it"))?;
    let (checksum, pages) = (hashes.checksum(), hashes.len());
    let stamp = Stamp::of(path, &image)?;
    let durable = Durable { position, target: position.index, checksum, pages, stamp };
    // The side file comes last: with it, the database counts as created.
    SideFile::create(path, DbId(position.index), &durable, &hashes)?;
    sync_dir(path).map_err(DbError::io(path, "syncing its directory"))
}

/// A file of the database's name that isn't the cluster's is kept, under another name.
fn put_aside(path: &Path) -> Result<(), DbError> {
    let aside = |file: &Path| -> Result<(), DbError> {
        if !file.exists() {
            return Ok(());
        }
        let seconds =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".aside-{seconds}"));
        warn!("{} is no file of this cluster; moved to {}", file.display(), Path::new(&name).display());
        std::fs::rename(file, &name).map_err(DbError::io(file, "moving it aside"))
    };
    aside(path)?;
    aside(&super::applier::wal_path(path))?;
    aside(&super::incoming::incoming_path(path))?;
    aside(&side_path(path))
}
