//! What the integration tests share: an applier in miniature over [`Holder`], the transactions that stock
//! SQLite wrote into a WAL, and stock SQLites to judge the result.
//!
//! The tests never open a database file or a `-shm` by `std::fs` while this process holds one: closing any
//! descriptor would drop all of its POSIX locks. They copy such files with `cp`. WAL files carry no locks.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use quire_vfs::format::append::Appender;
use quire_vfs::format::wal::{self, Salts, Scan};
use quire_vfs::format::wal_index::{self, HeapIndex, IndexHeader, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize, database};
use quire_vfs::gate::DatabaseInfo;
use quire_vfs::holder::{Holder, IndexLock};
use quire_vfs::shim::ffi::{Api, sqlite3_vfs};
use rusqlite::{Connection, ffi};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The bundled SQLite's functions, as the daemon would take them.
pub(crate) fn api() -> Api {
    // SAFETY: sqlite3_initialize may be called at any time, from any thread.
    assert_eq!(unsafe { ffi::sqlite3_initialize() }, ffi::SQLITE_OK);
    type TheirFind = unsafe extern "C" fn(*const c_char) -> *mut ffi::sqlite3_vfs;
    type OurFind = unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs;
    type TheirRegister = unsafe extern "C" fn(*mut ffi::sqlite3_vfs, c_int) -> c_int;
    type OurRegister = unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int;
    Api {
        libversion_number: ffi::sqlite3_libversion_number,
        mprintf: ffi::sqlite3_mprintf,
        // SAFETY: both types describe the same C function; the two declarations of `sqlite3_vfs` have one
        // layout, that of sqlite3.h.
        vfs_find: unsafe { std::mem::transmute::<TheirFind, OurFind>(ffi::sqlite3_vfs_find) },
        // SAFETY: as above.
        vfs_register: unsafe { std::mem::transmute::<TheirRegister, OurRegister>(ffi::sqlite3_vfs_register) },
        log: ffi::sqlite3_log,
        uri_parameter: ffi::sqlite3_uri_parameter,
        filename_database: ffi::sqlite3_filename_database,
    }
}

/// `NAME.db` → `NAME.db-wal`.
pub(crate) fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// A new directory with an empty WAL-mode database in it.
pub(crate) fn new_database(dir: &Path, name: &str, page_size: PageSize) -> PathBuf {
    let home = dir.join(name);
    std::fs::create_dir(&home).unwrap();
    let path = home.join("app.db");
    std::fs::write(&path, database::empty_database(page_size)).unwrap();
    path
}

/// A stock connection that leaves the WAL alone: it neither checkpoints by itself nor at its close.
pub(crate) fn stock(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).unwrap();
    // Frequent spills: frames that are overwritten, and transactions with several frames of one page.
    conn.pragma_update(None, "cache_size", 12).unwrap();
    conn
}

/// The pages of one commit.
#[derive(Debug)]
pub(crate) struct Txn {
    pub(crate) db_size: u32,
    pub(crate) pages: BTreeMap<u32, Vec<u8>>,
}

/// Follows the transactions that stock SQLite appends to a WAL file.
#[derive(Debug)]
pub(crate) struct WalTail {
    path: PathBuf,
    salts: Option<Salts>,
    last: FrameNo,
    db_size: u32,
}

impl WalTail {
    /// Begins after what is in the WAL of `db` now; `db_size` is the size of the database in pages.
    pub(crate) fn at_end(db: &Path, db_size: u32) -> WalTail {
        let mut tail = WalTail { path: wal_path(db), salts: None, last: FrameNo(0), db_size };
        tail.take();
        tail.db_size = db_size;
        tail
    }

    pub(crate) fn db_size(&self) -> u32 {
        self.db_size
    }

    /// The transactions since the last call. As Quire lays them out: the last image of each page, no page
    /// beyond the new end, zeros for pages by which the file grew unwritten.
    pub(crate) fn take(&mut self) -> Vec<Txn> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return vec![],
            Err(error) => panic!("{}: {error}", self.path.display()),
        };
        if bytes.is_empty() {
            return vec![];
        }
        let scan = Scan::new(&bytes).unwrap();
        let header = scan.header();
        if self.salts != Some(header.salts) {
            self.salts = Some(header.salts);
            self.last = FrameNo(0);
        }
        let (mut done, mut pages) = (vec![], BTreeMap::new());
        for frame in scan.filter(|frame| frame.frame > self.last) {
            pages.insert(frame.header.page.0, frame.data.to_vec());
            let db_size = frame.header.commit_size;
            if db_size == 0 {
                continue;
            }
            let mut pages: BTreeMap<_, _> = std::mem::take(&mut pages);
            pages.retain(|&page, _| page <= db_size);
            for page in self.db_size + 1..=db_size {
                if PageNo(page) != header.page_size.lock_page() {
                    pages.entry(page).or_insert_with(|| vec![0; header.page_size.bytes()]);
                }
            }
            done.push((frame.frame, Txn { db_size, pages }));
            self.db_size = db_size;
        }
        if let Some((last, _)) = done.last() {
            self.last = *last;
        }
        done.into_iter().map(|(_, txn)| txn).collect()
    }
}

/// A database that only Quire writes: the node's side, without Raft.
pub(crate) struct Replica {
    pub(crate) path: PathBuf,
    pub(crate) holder: Holder,
    wal: File,
    page_size: PageSize,
    /// How often the WAL was started anew.
    pub(crate) restarts: u32,
}

impl Replica {
    /// Holds the database; stock SQLite initialises the wal-index from the WAL file.
    pub(crate) fn open(path: &Path, page_size: PageSize) -> Replica {
        // SAFETY: the functions are those of the SQLite that is linked into this test, just initialised.
        let holder = unsafe { Holder::open(&api(), path) }.unwrap();
        if wal_index::read_header(holder.region(0).unwrap()).is_none() {
            let conn = Connection::open(path).unwrap();
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap();
        }
        holder.lock(IndexLock::Write).unwrap();
        holder.lock(IndexLock::Checkpoint).unwrap();
        let wal =
            File::options().read(true).write(true).create(true).truncate(false).open(wal_path(path)).unwrap();
        Replica { path: path.to_owned(), holder, wal, page_size, restarts: 0 }
    }

    /// The published header.
    pub(crate) fn header(&self) -> IndexHeader {
        wal_index::recover_header(self.holder.region(0).unwrap()).unwrap()
    }

    /// Brings the index to order after a writer's death, and returns the published header. The index itself tells whether a
    /// restart was cut short: the next to come may be another than the one who saw that.
    pub(crate) fn tidy(&self) -> IndexHeader {
        wal_index::finish_restart(self.holder.region(0).unwrap(), self.header())
    }

    /// Appends and publishes a transaction, in a new generation of the WAL if all of it is in the database
    /// file and no reader needs it.
    pub(crate) fn append(&mut self, txn: &Txn) {
        self.try_restart();
        let header = self.write(txn, txn.pages.len());
        wal_index::publish(self.holder.region(0).unwrap(), &header);
    }

    /// Leaves the database as a writer that dies before its commit frame: frames in the file and in the
    /// hash tables, nothing published.
    pub(crate) fn append_unfinished(&mut self, txn: &Txn) {
        self.write(txn, txn.pages.len() - 1);
    }

    /// Leaves the database as a writer that dies between the two copies of the header.
    pub(crate) fn append_half_published(&mut self, txn: &Txn) {
        let header = self.write(txn, txn.pages.len());
        let elsewhere = HeapIndex::new(1);
        let words = elsewhere.region(0).unwrap();
        wal_index::publish(words, &header);
        let copy = wal_index::raw_header(words);
        for (cell, word) in self.holder.region(0).unwrap()[copy.len()..].iter().zip(copy) {
            cell.store(word, Ordering::SeqCst);
        }
    }

    /// Writes the first `count` frames of a transaction and enters them into the index.
    fn write(&mut self, txn: &Txn, count: usize) -> IndexHeader {
        let base = self.tidy();
        let fresh = if base.salts == Salts::default() { Salts(random()) } else { base.salts };
        let (mut appender, wal_header) = Appender::new(base, self.page_size, fresh, 0);
        if let Some(bytes) = wal_header {
            self.wal.write_all_at(&bytes, 0).unwrap();
        }
        let mut bytes = Vec::with_capacity(count * (wal::FRAME_HEADER_SIZE + self.page_size.bytes()));
        let mut entries = Vec::with_capacity(count);
        let mut start = None;
        for (i, (&page, data)) in txn.pages.iter().enumerate().take(count) {
            let is_last = i + 1 == txn.pages.len();
            let frame = appender.frame(PageNo(page), data, if is_last { txn.db_size } else { 0 });
            let start = *start.get_or_insert(frame.offset);
            assert_eq!(frame.offset, start + bytes.len() as u64, "frames follow each other");
            bytes.extend_from_slice(&frame.header);
            bytes.extend_from_slice(data);
            entries.push((frame.frame, PageNo(page)));
        }
        self.wal.write_all_at(&bytes, start.unwrap_or(0)).unwrap();
        wal_index::sweep(&self.holder, base.max_frame).unwrap();
        for &(frame, page) in &entries {
            wal_index::append(&self.holder, frame, page).unwrap();
        }
        appender.finish(txn.db_size)
    }

    /// Starts the WAL anew if that is possible now.
    pub(crate) fn try_restart(&mut self) -> bool {
        self.restart(true)
    }

    /// As [`Replica::try_restart`] by a writer that dies once the header is published.
    pub(crate) fn restart_cut_short(&mut self) -> bool {
        self.restart(false)
    }

    fn restart(&mut self, is_finished: bool) -> bool {
        let region0 = self.holder.region(0).unwrap();
        let base = self.header();
        if base.max_frame.0 == 0 || wal_index::backfilled(region0) != base.max_frame {
            return false;
        }
        if !self.holder.try_lock(IndexLock::Readers).unwrap() {
            return false;
        }
        let salts = base.salts.next(u32::from_ne_bytes(random()));
        wal_index::publish(region0, &IndexHeader { max_frame: FrameNo(0), salts, ..base });
        if is_finished {
            wal_index::reset_checkpoint_info(region0, FrameNo(0));
        }
        self.holder.unlock(IndexLock::Readers);
        self.restarts += 1;
        true
    }

    /// Whether a checkpoint has copied all frames.
    pub(crate) fn is_backfilled(&self) -> bool {
        wal_index::backfilled(self.holder.region(0).unwrap()) == self.header().max_frame
    }

    /// Lets the bundled SQLite checkpoint as much as readers allow. A PASSIVE checkpoint doesn't ask for
    /// the WRITE lock, which stays held.
    pub(crate) fn checkpoint(&self) {
        self.holder.unlock(IndexLock::Checkpoint);
        let conn = Connection::open(&self.path).unwrap();
        let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0);
        drop(conn);
        self.holder.lock(IndexLock::Checkpoint).unwrap();
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// The machine's own `sqlite3`, a SQLite of another version than the bundled one.
pub(crate) fn cli() -> Option<&'static Path> {
    tool("/usr/bin/sqlite3")
}

/// The machine's Python, whose `sqlite3` module links the machine's library.
pub(crate) fn python() -> Option<&'static Path> {
    tool("/usr/bin/python3")
}

fn tool(path: &'static str) -> Option<&'static Path> {
    let found = Path::new(path);
    if found.exists() {
        return Some(found);
    }
    assert!(std::env::var_os("CI").is_none(), "{path} is missing, and CI must not skip what needs it");
    eprintln!("skipped: {path} is not installed");
    None
}

/// Runs a command that must succeed and not complain; its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "{command:?}: {}\n{complaint}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Copies a file with all locks left alone.
pub(crate) fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg(from).arg(to));
}

/// Runs SQL and dot commands in the machine's `sqlite3`.
pub(crate) fn cli_output(cli: &Path, db: &Path, script: &[&str]) -> String {
    run(Command::new(cli).arg("-batch").arg("-bail").arg(db).args(script))
}

/// What a gate that is none says of a database: no limit is near.
pub(crate) fn database_info(name: String) -> DatabaseInfo {
    DatabaseInfo {
        name,
        node_id: 1,
        page_size: PageSize::DEFAULT,
        commit_deadline: Duration::from_secs(10),
        max_transaction: u64::MAX,
        part_bytes: 1 << 20,
        wal_limit: u64::MAX,
    }
}
