//! The part of SQLite's C interface that a VFS sees, after `sqlite3.h` and `sqlite3ext.h`.
//!
//! SQLite's own functions are taken as pointers ([`Api`]): from the host's `sqlite3_api_routines` when
//! loaded as an extension, from the linked library when registered by the daemon. So one build serves both,
//! and the extension neither contains a SQLite nor needs its symbols.

#![allow(missing_docs, reason = "names and meanings are those of sqlite3.h")]

use std::ffi::{c_char, c_double, c_int, c_uchar, c_uint, c_void};

pub type SqliteInt64 = i64;

pub const SQLITE_OK: c_int = 0;
pub const SQLITE_ERROR: c_int = 1;
pub const SQLITE_BUSY: c_int = 5;
pub const SQLITE_NOMEM: c_int = 7;
pub const SQLITE_READONLY: c_int = 8;
pub const SQLITE_IOERR: c_int = 10;
pub const SQLITE_NOTFOUND: c_int = 12;
pub const SQLITE_FULL: c_int = 13;
pub const SQLITE_CANTOPEN: c_int = 14;
pub const SQLITE_WARNING: c_int = 28;
pub const SQLITE_OK_LOAD_PERMANENTLY: c_int = 256;
pub const SQLITE_IOERR_WRITE: c_int = SQLITE_IOERR | (3 << 8);
pub const SQLITE_IOERR_TRUNCATE: c_int = SQLITE_IOERR | (6 << 8);
pub const SQLITE_IOERR_DELETE: c_int = SQLITE_IOERR | (10 << 8);
pub const SQLITE_IOERR_SHMLOCK: c_int = SQLITE_IOERR | (20 << 8);
pub const SQLITE_IOERR_SHMMAP: c_int = SQLITE_IOERR | (21 << 8);

pub const SQLITE_OPEN_READONLY: c_int = 0x1;
pub const SQLITE_OPEN_READWRITE: c_int = 0x2;
pub const SQLITE_OPEN_CREATE: c_int = 0x4;
pub const SQLITE_OPEN_MAIN_DB: c_int = 0x100;
pub const SQLITE_OPEN_WAL: c_int = 0x80000;

pub const SQLITE_LOCK_NONE: c_int = 0;
pub const SQLITE_LOCK_SHARED: c_int = 1;
pub const SQLITE_LOCK_EXCLUSIVE: c_int = 4;

pub const SQLITE_SYNC_NORMAL: c_int = 2;

pub const SQLITE_IOCAP_POWERSAFE_OVERWRITE: c_int = 0x1000;

pub const SQLITE_FCNTL_SIZE_HINT: c_int = 5;
pub const SQLITE_FCNTL_VFSNAME: c_int = 12;
pub const SQLITE_FCNTL_PRAGMA: c_int = 14;
pub const SQLITE_FCNTL_PDB: c_int = 30;

pub const SQLITE_SHM_UNLOCK: c_int = 1;
pub const SQLITE_SHM_LOCK: c_int = 2;
pub const SQLITE_SHM_SHARED: c_int = 4;
pub const SQLITE_SHM_EXCLUSIVE: c_int = 8;
pub const SQLITE_SHM_NLOCK: c_int = 8;

/// The wal-index locks by their number (`wal.c`).
pub const WAL_WRITE_LOCK: c_int = 0;
pub const WAL_CKPT_LOCK: c_int = 1;
pub const WAL_RECOVER_LOCK: c_int = 2;
pub const WAL_READ_LOCK0: c_int = 3;

#[repr(C)]
pub struct sqlite3_file {
    pub methods: *const sqlite3_io_methods,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct sqlite3_io_methods {
    pub version: c_int,
    pub close: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
    pub read: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut c_void, c_int, SqliteInt64) -> c_int>,
    pub write: Option<unsafe extern "C" fn(*mut sqlite3_file, *const c_void, c_int, SqliteInt64) -> c_int>,
    pub truncate: Option<unsafe extern "C" fn(*mut sqlite3_file, SqliteInt64) -> c_int>,
    pub sync: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
    pub file_size: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut SqliteInt64) -> c_int>,
    pub lock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
    pub unlock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
    pub check_reserved_lock: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut c_int) -> c_int>,
    pub file_control: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int, *mut c_void) -> c_int>,
    pub sector_size: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
    pub device_characteristics: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
    // Version 2.
    pub shm_map:
        Option<unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int, *mut *mut c_void) -> c_int>,
    pub shm_lock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int) -> c_int>,
    pub shm_barrier: Option<unsafe extern "C" fn(*mut sqlite3_file)>,
    pub shm_unmap: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
    // Version 3.
    pub fetch: Option<unsafe extern "C" fn(*mut sqlite3_file, SqliteInt64, c_int, *mut *mut c_void) -> c_int>,
    pub unfetch: Option<unsafe extern "C" fn(*mut sqlite3_file, SqliteInt64, *mut c_void) -> c_int>,
}

pub type DlSym = unsafe extern "C" fn();

#[repr(C)]
pub struct sqlite3_vfs {
    pub version: c_int,
    pub file_size: c_int,
    pub max_pathname: c_int,
    pub next: *mut sqlite3_vfs,
    pub name: *const c_char,
    pub app_data: *mut c_void,
    pub open: Option<
        unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, *mut sqlite3_file, c_int, *mut c_int) -> c_int,
    >,
    pub delete: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int) -> c_int>,
    pub access: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_int) -> c_int>,
    pub full_pathname:
        Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_char) -> c_int>,
    pub dl_open: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *mut c_void>,
    pub dl_error: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char)>,
    pub dl_sym: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char) -> Option<DlSym>>,
    pub dl_close: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void)>,
    pub randomness: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
    pub sleep: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int>,
    pub current_time: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_double) -> c_int>,
    pub get_last_error: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
    // Version 2.
    pub current_time_int64: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut SqliteInt64) -> c_int>,
    // Version 3.
    pub set_system_call:
        Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, Option<DlSym>) -> c_int>,
    pub get_system_call: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> Option<DlSym>>,
    pub next_system_call: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *const c_char>,
}

/// The functions of SQLite that Quire calls.
#[derive(Clone, Copy)]
pub struct Api {
    pub libversion_number: unsafe extern "C" fn() -> c_int,
    pub mprintf: unsafe extern "C" fn(*const c_char, ...) -> *mut c_char,
    pub vfs_find: unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs,
    pub vfs_register: unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int,
    pub log: unsafe extern "C" fn(c_int, *const c_char, ...),
    pub uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    pub filename_database: unsafe extern "C" fn(*const c_char) -> *const c_char,
}

/// The oldest host whose interface has all of [`Api`] (`sqlite3_filename_database` came with it).
pub const MIN_SQLITE: c_int = 3_031_000;

/// The host's `sqlite3_api_routines`: a struct of function pointers to which SQLite only ever adds at the
/// end. The indexes below are places in `sqlite3ext.h`; a test compares them with the header.
#[repr(transparent)]
pub struct ApiRoutines([*const c_void; 247]);

/// Place of each function in [`ApiRoutines`].
pub const ROUTINES: [(&str, usize); 7] = [
    ("libversion_number", 67),
    ("mprintf", 69),
    ("vfs_find", 141),
    ("vfs_register", 142),
    ("log", 167),
    ("uri_parameter", 189),
    ("filename_database", 246),
];

impl Api {
    /// Takes the functions from the table that SQLite hands to an extension.
    ///
    /// Errors with the host's version if it is older than [`MIN_SQLITE`].
    ///
    /// # Safety
    /// `table` must be the table that SQLite passed to an extension's entry point.
    pub unsafe fn from_host(table: *const ApiRoutines) -> Result<Api, c_int> {
        // SAFETY: a place up to libversion_number exists in every SQLite since 3.3.13; the read is of one
        // pointer and forms no reference to the (perhaps shorter) whole.
        let routine = |n: usize| unsafe { table.cast::<*const c_void>().add(ROUTINES[n].1).read() };
        // SAFETY: each pointer is read at the place that the host's version guarantees, and given the type
        // that sqlite3ext.h declares for it.
        unsafe {
            let libversion_number: unsafe extern "C" fn() -> c_int = std::mem::transmute(routine(0));
            let version = libversion_number();
            if version < MIN_SQLITE {
                return Err(version);
            }
            Ok(Api {
                libversion_number,
                mprintf: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*const c_char, ...) -> *mut c_char,
                >(routine(1)),
                vfs_find: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs,
                >(routine(2)),
                vfs_register: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int,
                >(routine(3)),
                log: std::mem::transmute::<*const c_void, unsafe extern "C" fn(c_int, *const c_char, ...)>(
                    routine(4),
                ),
                uri_parameter: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
                >(routine(5)),
                filename_database: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*const c_char) -> *const c_char,
                >(routine(6)),
            })
        }
    }
}

// The layout that the C headers give on every 64-bit target.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<sqlite3_io_methods>() == 19 * 8);
    assert!(size_of::<sqlite3_vfs>() == 168);
    assert!(size_of::<c_uint>() == 4 && size_of::<c_uchar>() == 1);
};
