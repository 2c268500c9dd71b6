//! The daemon's own SQL connections. They go through the quire VFS like an app's. Whoever opens one hands in its
//! gate; without one it is the checkpointer's, the only connection anywhere that may write a database file. A
//! [`writer`] is an app's in every respect: its gate is the node's socket.

use super::DbError;
use super::ear::{Ear, Listening};
use quire_vfs::format::PageSize;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::proto::{Outcome, Refusal, RefusalCode, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use quire_vfs::shim::ffi::Api;
use quire_vfs::shim::reads::ReadLevel;
use quire_vfs::shim::vfs::{self, RegisterError};
use rusqlite::{Connection, OpenFlags, ffi};
use std::cell::RefCell;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// SQLite from this version on has no race between a checkpoint and a restart of the WAL.
pub const MIN_VERSION: i32 = 3_051_003;
const _: () = assert!(ffi::SQLITE_VERSION_NUMBER >= MIN_VERSION, "the bundled SQLite has the WAL-reset bug");

/// The functions of the SQLite that is linked into this program.
pub fn api() -> Api {
    // SAFETY: each function has the C signature that `Api` names; the types differ in name only, being
    // declared twice (here and by rusqlite) for the same C structs.
    unsafe {
        Api {
            libversion_number: ffi::sqlite3_libversion_number,
            mprintf: ffi::sqlite3_mprintf,
            vfs_find: std::mem::transmute::<
                unsafe extern "C" fn(*const std::ffi::c_char) -> *mut ffi::sqlite3_vfs,
                unsafe extern "C" fn(*const std::ffi::c_char) -> *mut quire_vfs::shim::ffi::sqlite3_vfs,
            >(ffi::sqlite3_vfs_find),
            vfs_register: std::mem::transmute::<
                unsafe extern "C" fn(*mut ffi::sqlite3_vfs, i32) -> i32,
                unsafe extern "C" fn(*mut quire_vfs::shim::ffi::sqlite3_vfs, i32) -> i32,
            >(ffi::sqlite3_vfs_register),
            log: ffi::sqlite3_log,
            uri_parameter: ffi::sqlite3_uri_parameter,
            filename_database: ffi::sqlite3_filename_database,
        }
    }
}

/// Why the daemon can't use its SQLite.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// It was linked with another SQLite than it was built with.
    #[error(
        "linked with SQLite {0}, which loses commits when a checkpoint races a WAL reset; 3.51.3 is needed"
    )]
    Version(i32),
    /// The VFS can't be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Registers the quire VFS in this process.
pub fn register() -> Result<(), SqlError> {
    let version = rusqlite::version_number();
    if version < MIN_VERSION {
        return Err(SqlError::Version(version));
    }
    // SAFETY: `sqlite3_initialize` may be called at any time; the library is part of this program.
    unsafe { ffi::sqlite3_initialize() };
    let opener = |request: &vfs::OpenRequest| {
        let (_, name) = vfs::locate(&request.path)?;
        if let Some(gate) = GATE.take() {
            return Ok(gate);
        }
        Ok(Box::new(CheckpointerGate::new(name)) as Box<dyn Gate>)
    };
    // SAFETY: as above.
    unsafe { vfs::register(api(), Box::new(opener), false)? };
    Ok(())
}

thread_local! {
    /// The gate for the connection that this thread is opening.
    static GATE: RefCell<Option<Box<dyn Gate>>> = const { RefCell::new(None) };
}

/// Opens a connection whose gate is the caller's. SQLite opens the main file at once, on this thread.
pub fn open(database: &Path, flags: OpenFlags, gate: Box<dyn Gate>) -> Result<Connection, DbError> {
    GATE.set(Some(gate));
    let opened =
        Connection::open_with_flags_and_vfs(database, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX, c"quire");
    GATE.set(None);
    opened.map_err(error(database, "opening it"))
}

/// Opens a connection for the checkpointer.
pub fn checkpointer(database: &Path) -> Result<Connection, DbError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(database, flags, c"quire").map_err(error(database, "opening it"))
}

/// Opens a connection that writes as an app does, through the node's socket. For threads that may block. What the node
/// says to it is heard by the [`Ear`].
pub fn writer(database: &Path, socket: &Path) -> Result<(Connection, Ear), DbError> {
    let request = vfs::OpenRequest {
        path: database.to_owned(),
        node: Some(socket.to_owned()),
        page_size: None,
        create: false,
        read_only: false,
        reads: ReadLevel::default(),
        session: 0,
    };
    let gate = vfs::socket_opener()(&request).map_err(io::Error::other);
    let gate = gate.map_err(DbError::io(database, "opening it"))?;
    let (gate, ear) = Listening::to(gate);
    Ok((open(database, OpenFlags::SQLITE_OPEN_READ_WRITE, Box::new(gate))?, ear))
}

/// A path as SQLite's URIs have it.
pub fn uri_path(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let escape = |byte: &u8| if plain(*byte) { char::from(*byte).into() } else { format!("%{byte:02x}") };
    path.as_os_str().as_bytes().iter().map(escape).collect()
}

/// Names file and attempt in an error of SQLite's.
pub fn error(database: &Path, what: &'static str) -> impl Fn(rusqlite::Error) -> DbError {
    move |error| DbError::Sqlite { path: database.to_owned(), what, error }
}

/// The gate of a connection that checkpoints and never writes a transaction.
struct CheckpointerGate {
    info: DatabaseInfo,
}

impl CheckpointerGate {
    fn new(name: String) -> CheckpointerGate {
        let info = DatabaseInfo {
            name,
            node_id: 0,
            page_size: PageSize::DEFAULT,
            commit_deadline: Duration::ZERO,
            max_transaction: 0,
            part_bytes: 0,
            wal_limit: u64::MAX,
        };
        CheckpointerGate { info }
    }
}

impl Gate for CheckpointerGate {
    fn info(&self) -> &DatabaseInfo {
        &self.info
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        Err(Refusal::new(RefusalCode::Invalid, "the checkpointer writes no transactions"))
    }

    fn part(&mut self, _: &Grant, _: Vec<u8>) -> Result<(), String> {
        Err("the checkpointer writes no transactions".into())
    }

    fn commit(&mut self, _: &Grant, _: TxnId, _: WalTarget, _: Vec<u8>) -> Outcome {
        Outcome::Refused("the checkpointer writes no transactions".into())
    }

    fn release(&mut self, _: Grant, _: bool) {}

    fn is_checkpointer(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_uris_are_escaped() {
        assert_eq!(uri_path(Path::new("/a b/c?d#e%f/x-1.db")), "/a%20b/c%3fd%23e%25f/x-1.db");
    }
}
