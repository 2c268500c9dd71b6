//! The loadable extension's entry points.
//!
//! `sqlite3_load_extension` finds `sqlite3_extension_init`, or `sqlite3_quirevfs_init` after the file's
//! name: either registers the VFS `quire`, to be named in a connection string. `sqlite3_quiredefault_init`
//! also makes it the default VFS, for hosts that can't name one; so does `QUIRE_DEFAULT_VFS=1`. The
//! extension stays loaded for the life of the process.

use super::ffi::*;
use super::file::guard;
use super::vfs;
use std::ffi::{CString, c_char, c_int, c_void};

/// Registers the VFS `quire`.
///
/// # Safety
/// To be called by SQLite as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_quirevfs_init(
    _db: *mut c_void,
    error: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    let default = std::env::var_os("QUIRE_DEFAULT_VFS").is_some_and(|value| value == "1");
    // SAFETY: SQLite passes its table and a place for an error message.
    unsafe { load(error, api, default) }
}

/// Registers the VFS `quire`: the name that SQLite tries first.
///
/// # Safety
/// To be called by SQLite as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut c_void,
    error: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    // SAFETY: the same contract.
    unsafe { sqlite3_quirevfs_init(db, error, api) }
}

/// Registers the VFS `quire` and makes it the default.
///
/// # Safety
/// To be called by SQLite as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_quiredefault_init(
    _db: *mut c_void,
    error: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    // SAFETY: SQLite passes its table and a place for an error message.
    unsafe { load(error, api, true) }
}

unsafe fn load(error: *mut *mut c_char, table: *const ApiRoutines, default: bool) -> c_int {
    guard(SQLITE_ERROR, || {
        // SAFETY: SQLite passes its table.
        let api = match unsafe { Api::from_host(table) } {
            Ok(api) => api,
            // A host this old may not have what an error message is made with at the place we know.
            Err(_version) => return SQLITE_ERROR,
        };
        // SAFETY: the table's functions are those of the library that loads us, which stays.
        let result = unsafe { vfs::register(api, vfs::socket_opener(), default) };
        match result {
            Ok(()) => SQLITE_OK_LOAD_PERMANENTLY,
            Err(why) => {
                if let Ok(text) = CString::new(format!("quire: {why}"))
                    && !error.is_null()
                {
                    // SAFETY: the message comes from SQLite's allocator, as the caller frees it with
                    // `sqlite3_free`.
                    unsafe { *error = (api.mprintf)(c"%s".as_ptr(), text.as_ptr()) };
                }
                SQLITE_ERROR
            }
        }
    })
}
