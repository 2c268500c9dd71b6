//! The node's hold on a database: one file object of SQLite's own default VFS, through which the daemon
//! keeps the locks that nobody else may have, maps the wal-index, and reads the database file.
//!
//! POSIX locks belong to the process: closing *any* descriptor of a file drops all of the process's locks
//! on it. So the daemon opens neither `NAME.db` nor `NAME.db-shm` by itself while it holds one; the unix VFS
//! keeps account of its descriptors for all file objects of the process. (The WAL carries no locks.)

use crate::format::wal_index::{REGION_SIZE, Region, WalIndex};
use crate::format::{PageNo, PageSize};
use crate::shim::ffi::*;
use crate::shim::host::HostFile;
use crate::shim::vfs::c_path;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::ffi::{CString, c_int};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;

/// Why the node can't hold a database.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// SQLite's VFS refused.
    #[error("{}: {what} failed with SQLite code {code}", path.display())]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// SQLite's (extended) result code.
        code: c_int,
    },
    /// Another process has a lock that only the node may have.
    #[error(
        "{}: another process holds SQLite's {lock} lock, so it writes or checkpoints without the quire VFS; \
         end it", path.display()
    )]
    Locked {
        /// The database file.
        path: PathBuf,
        /// Which lock.
        lock: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The path can't be given to SQLite.
    #[error("{}: a path with a zero byte", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
}

/// A wal-index lock, by SQLite's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexLock {
    /// The writer's.
    Write,
    /// The checkpointer's.
    Checkpoint,
    /// The recoverer's: readers that find no valid header wait for it.
    Recover,
    /// The reader slots 1 to 4, which a restart of the WAL needs to be free.
    Readers,
    /// Those and slot 0, whose readers read the file alone: what a checkpoint needs to be free.
    AllReaders,
}

impl IndexLock {
    fn range(self) -> (c_int, c_int) {
        match self {
            IndexLock::Write => (WAL_WRITE_LOCK, 1),
            IndexLock::Checkpoint => (WAL_CKPT_LOCK, 1),
            IndexLock::Recover => (WAL_RECOVER_LOCK, 1),
            IndexLock::Readers => (WAL_READ_LOCK0 + 1, 4),
            IndexLock::AllReaders => (WAL_READ_LOCK0, 5),
        }
    }

    fn name(self) -> &'static str {
        match self {
            IndexLock::Write => "WRITE",
            IndexLock::Checkpoint => "CKPT",
            IndexLock::Recover => "RECOVER",
            IndexLock::Readers | IndexLock::AllReaders => "READ",
        }
    }
}

/// An open database file of the host's VFS, with SHARED on the file and the wal-index mapped.
pub struct Holder {
    path: PathBuf,
    file: HostFile,
    /// A descriptor of `-shm` to ask the kernel with. Closed after `file`, when no lock is left to lose.
    shm: std::fs::File,
    /// The memory behind `file`, and the name that the VFS keeps a pointer to.
    _memory: Box<[u128]>,
    _name: CString,
    regions: Mutex<Vec<Mapped>>,
    /// The wal-index goes with it.
    removes_index: bool,
}

#[derive(Clone, Copy)]
struct Mapped(NonNull<Region>);

// SAFETY: a mapped region is shared memory made of atomics, usable from every thread.
unsafe impl Send for Mapped {}

// SAFETY: the unix VFS guards what file objects of one process share with its own mutexes, and the methods
// used through `&Holder` (xRead by pread, xShmMap under `regions`, xShmLock) touch no other state of the
// object that isn't guarded by it.
unsafe impl Sync for Holder {}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Holder {
    /// Opens an existing database, takes SHARED on the file and maps the wal-index.
    ///
    /// # Safety
    /// `api` must hold functions of one SQLite library, initialised and loaded until the process ends.
    pub unsafe fn open(api: &Api, path: &Path) -> Result<Holder, HoldError> {
        // A file name as VFSes want it: followed by an empty list of URI parameters and by empty journal and
        // WAL names (sqlite3_create_filename).
        let name = c_path(path).ok_or_else(|| HoldError::Path { path: path.to_owned() })?;
        let err = |what, code| HoldError::Sqlite { path: path.to_owned(), what, code };
        let shm_path = PathBuf::from(format!("{}-shm", path.display()));
        let shm =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&shm_path);
        let shm = shm.map_err(|error| HoldError::Io { path: shm_path, error })?;
        let mut padded = vec![0u8; 4];
        padded.extend_from_slice(name.as_bytes_with_nul());
        padded.extend_from_slice(&[0; 8]);
        // SAFETY: the buffer has NULs inside on purpose; it is only used as memory with a stable address.
        let padded = unsafe { CString::from_vec_unchecked(padded) };
        // SAFETY: the caller vouches for `api`; file and name live as long as the Holder, at fixed addresses.
        let (file, memory) = unsafe {
            let vfs = default_host(api);
            if vfs.is_null() {
                return Err(err("finding the default VFS", SQLITE_ERROR));
            }
            let mut memory = vec![0u128; ((*vfs).file_size as usize).div_ceil(16)].into_boxed_slice();
            let object = memory.as_mut_ptr().cast::<sqlite3_file>();
            let flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_DB;
            let mut out = 0;
            let open = (*vfs).open.ok_or_else(|| err("opening", SQLITE_ERROR))?;
            match open(vfs, padded.as_ptr().add(4), object, flags, &mut out) {
                SQLITE_OK if out & SQLITE_OPEN_READONLY == 0 => (HostFile::new(object), memory),
                SQLITE_OK => {
                    HostFile::new(object).close();
                    return Err(err("opening it for writing", SQLITE_CANTOPEN));
                }
                code => return Err(err("opening it", code)),
            }
        };
        let holder = Holder {
            path: path.to_owned(),
            file,
            shm,
            _memory: memory,
            _name: padded,
            regions: Mutex::new(Vec::new()),
            removes_index: false,
        };
        match holder.file.lock(SQLITE_LOCK_SHARED) {
            SQLITE_OK => {}
            SQLITE_BUSY => return Err(HoldError::Locked { path: path.to_owned(), lock: "EXCLUSIVE" }),
            code => return Err(err("locking it", code)),
        }
        holder.region(0)?;
        Ok(holder)
    }

    /// The database file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another process has the wal-index mapped: it holds SHARED on the dead-man byte of `-shm`
    /// (SQLite's `UNIX_SHM_DMS`).
    pub fn others_attached(&self) -> Result<bool, HoldError> {
        const DEAD_MAN_SWITCH: i64 = 128;
        let mut region = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: DEAD_MAN_SWITCH,
            l_len: 1,
            l_pid: 0,
        };
        // F_GETLK asks for locks of other processes; our own don't count.
        fcntl(&self.shm, FcntlArg::F_GETLK(&mut region))
            .map_err(|errno| HoldError::Io { path: self.path.clone(), error: errno.into() })?;
        Ok(region.l_type != libc::F_UNLCK as libc::c_short)
    }

    /// Takes a wal-index lock exclusively. `Ok(false)` if somebody else has it.
    pub fn try_lock(&self, lock: IndexLock) -> Result<bool, HoldError> {
        let (offset, n) = lock.range();
        match self.file.shm_lock(offset, n, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE) {
            SQLITE_OK => Ok(true),
            SQLITE_BUSY => Ok(false),
            code => Err(HoldError::Sqlite { path: self.path.clone(), what: "locking the wal-index", code }),
        }
    }

    /// Takes a wal-index lock that only the node may have.
    pub fn lock(&self, lock: IndexLock) -> Result<(), HoldError> {
        match self.try_lock(lock)? {
            true => Ok(()),
            false => Err(HoldError::Locked { path: self.path.clone(), lock: lock.name() }),
        }
    }

    /// Gives a wal-index lock back.
    pub fn unlock(&self, lock: IndexLock) {
        let (offset, n) = lock.range();
        self.file.shm_lock(offset, n, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
    }

    /// Keeps new readers out (they get SQLITE_BUSY) until [`Holder::admit_readers`]. `Ok(false)` if a reader is
    /// there already.
    pub fn exclude_readers(&self) -> Result<bool, HoldError> {
        match self.file.lock(SQLITE_LOCK_EXCLUSIVE) {
            SQLITE_OK => Ok(true),
            SQLITE_BUSY => Ok(false),
            code => Err(HoldError::Sqlite { path: self.path.clone(), what: "locking it", code }),
        }
    }

    /// Goes back to SHARED.
    pub fn admit_readers(&self) {
        self.file.unlock(SQLITE_LOCK_SHARED);
    }

    /// When this is dropped, the wal-index goes, too. Nobody else may be attached, as [`Holder::exclude_readers`] ensures.
    pub fn remove_index(&mut self) {
        self.removes_index = true;
    }

    /// Size of the database file, in bytes.
    pub fn file_size(&self) -> Result<u64, HoldError> {
        let err = |code| HoldError::Sqlite { path: self.path.clone(), what: "asking for its size", code };
        self.file.file_size().map_err(err)
    }

    /// Reads a page of the database *file*, past the WAL. Beyond the end of the file it is zeros.
    pub fn read_page(&self, page: PageNo, size: PageSize, out: &mut [u8]) -> Result<(), HoldError> {
        const SHORT_READ: c_int = SQLITE_IOERR | (2 << 8);
        match self.file.read(out, size.offset_of(page)) {
            SQLITE_OK | SHORT_READ => Ok(()),
            code => Err(HoldError::Sqlite { path: self.path.clone(), what: "reading it", code }),
        }
    }

    /// Writes a page of the database *file*. Readers must be kept out.
    pub fn write_page(&self, page: PageNo, size: PageSize, data: &[u8]) -> Result<(), HoldError> {
        self.checked("writing it", self.file.write(data, size.offset_of(page)))
    }

    /// Cuts the database *file* to a number of pages, and syncs it. Readers must be kept out.
    pub fn cut_and_sync(&self, pages: u32, size: PageSize) -> Result<(), HoldError> {
        let bytes = i64::from(pages) * i64::from(size.get());
        if self.file_size()? > bytes as u64 {
            self.checked("truncating it", self.file.truncate(bytes))?;
        }
        self.checked("syncing it", self.file.sync(SQLITE_SYNC_NORMAL))
    }

    fn checked(&self, what: &'static str, code: c_int) -> Result<(), HoldError> {
        match code {
            SQLITE_OK => Ok(()),
            code => Err(HoldError::Sqlite { path: self.path.clone(), what, code }),
        }
    }
}

/// The VFS that ours wrap, or the default one if none is registered.
unsafe fn default_host(api: &Api) -> *mut sqlite3_vfs {
    // SAFETY: the caller vouches for `api`. "unix" is the default VFS of every build for Unix.
    unsafe {
        let unix = (api.vfs_find)(c"unix".as_ptr());
        if unix.is_null() { (api.vfs_find)(std::ptr::null()) } else { unix }
    }
}

impl WalIndex for Holder {
    type Error = HoldError;

    fn region(&self, n: u32) -> Result<&Region, HoldError> {
        let err = |code| HoldError::Sqlite { path: self.path.clone(), what: "mapping the wal-index", code };
        let mut regions = self.regions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while regions.len() <= n as usize {
            let next = regions.len() as c_int;
            let mapped = self.file.shm_map(next, REGION_SIZE as c_int, 1).map_err(err)?;
            regions.push(Mapped(NonNull::new(mapped.cast()).ok_or_else(|| err(SQLITE_IOERR_SHMMAP))?));
        }
        // SAFETY: the region stays mapped until the Holder is dropped; it is page-aligned shared memory of
        // REGION_SIZE bytes that everyone accesses atomically, word by word.
        Ok(unsafe { regions[n as usize].0.as_ref() })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The VFS doesn't: they would stay with the index as long as anything else in this process has it open.
        self.unlock(IndexLock::Write);
        self.unlock(IndexLock::Checkpoint);
        self.file.shm_unmap(c_int::from(self.removes_index));
        self.file.unlock(SQLITE_LOCK_NONE);
        self.file.close();
    }
}
