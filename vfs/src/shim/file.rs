//! Trampolines: the method tables of a replicated database's main file and of its WAL.
//!
//! ```text
//! what SQLite allocates for us (sqlite3_vfs.szOsFile bytes)
//! ┌──────────────┬────────────────────────────────────────────┐
//! │ QuireFile    │ the host VFS's own file object             │
//! └──────────────┴────────────────────────────────────────────┘
//! ```
//!
//! Files that aren't ours never come here: the host's VFS opens them directly in the memory that SQLite
//! gave us, so they carry the host's own methods.
//!
//! No panic may cross into SQLite: every trampoline that runs code of ours goes through [`guard`]; the
//! others are one call to the host.

use super::connection::{Connection, Verdict};
use super::ffi::*;
use super::host::HostFile;
use super::pragma::{self, Answer};
use crate::format::wal_index::REGION_SIZE;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// A replicated database's file, as SQLite sees it.
#[repr(C)]
pub struct QuireFile {
    base: sqlite3_file,
    /// From `Arc::into_raw`; dropped by `xClose`.
    connection: *const Mutex<Connection>,
    vfs: *const super::vfs::QuireVfs,
    name: *const c_char,
    /// Where SQLite keeps the `sqlite3*` to which the file belongs now; null until it has told.
    handle: *const *const c_void,
}

/// Offset of the host's file object behind ours, aligned for any C type.
pub const HOST_OFFSET: usize = size_of::<QuireFile>().next_multiple_of(16);

/// Which of the two files it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The database file.
    Main,
    /// Its WAL.
    Wal,
}

/// The host's file object behind ours.
///
/// # Safety
/// `file` must point to `szOsFile` bytes that SQLite allocated for our VFS.
pub unsafe fn host_object(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: the allocation is HOST_OFFSET bytes longer than the host's object.
    unsafe { file.byte_add(HOST_OFFSET) }
}

/// Makes `file` one of ours, in front of an open host file.
///
/// # Safety
/// As for [`host_object`]; the host's file must be open, and `name` be valid until `xClose`.
pub unsafe fn install(
    file: *mut sqlite3_file,
    kind: Kind,
    connection: Arc<Mutex<Connection>>,
    vfs: *const super::vfs::QuireVfs,
    name: *const c_char,
) {
    let methods: &'static sqlite3_io_methods = match kind {
        Kind::Main => &MAIN,
        Kind::Wal => &WAL,
    };
    let ours = QuireFile {
        base: sqlite3_file { methods },
        connection: Arc::into_raw(connection),
        vfs,
        name,
        handle: std::ptr::null(),
    };
    // SAFETY: the allocation begins with room for a QuireFile.
    unsafe { file.cast::<QuireFile>().write(ours) };
}

/// Runs code of ours so that no panic leaves it.
pub fn guard(on_panic: c_int, body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}

/// The host's file behind one of ours.
///
/// # Safety
/// `file` must be one of ours and open.
unsafe fn host(file: *mut sqlite3_file) -> HostFile {
    // SAFETY: `install` stands before an open host file, which `x_close` closes last.
    unsafe { HostFile::new(host_object(file)) }
}

/// Runs `body` on the file's connection.
///
/// # Safety
/// `file` must be one of ours and open.
unsafe fn with<T>(file: *mut sqlite3_file, body: impl FnOnce(&mut Connection) -> T) -> T {
    // SAFETY: `install` left a pointer from Arc::into_raw there, which lives until `x_close`.
    let connection = unsafe { &*(*file.cast::<QuireFile>()).connection };
    body(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
}

static MAIN: sqlite3_io_methods = sqlite3_io_methods {
    version: 3,
    close: Some(x_close),
    read: Some(x_read),
    write: Some(main_write),
    truncate: Some(main_truncate),
    sync: Some(x_sync),
    file_size: Some(x_file_size),
    lock: Some(main_lock),
    unlock: Some(x_unlock),
    check_reserved_lock: Some(x_check_reserved_lock),
    file_control: Some(main_file_control),
    sector_size: Some(x_sector_size),
    device_characteristics: Some(main_device_characteristics),
    shm_map: Some(main_shm_map),
    shm_lock: Some(main_shm_lock),
    shm_barrier: Some(main_shm_barrier),
    shm_unmap: Some(main_shm_unmap),
    fetch: Some(main_fetch),
    unfetch: Some(main_unfetch),
};

/// A WAL has neither shared memory nor memory-mapped reads of its own.
static WAL: sqlite3_io_methods = sqlite3_io_methods {
    version: 1,
    write: Some(wal_write),
    truncate: Some(wal_truncate),
    sync: Some(wal_sync),
    lock: Some(x_lock),
    file_control: Some(x_file_control),
    device_characteristics: Some(x_device_characteristics),
    shm_map: None,
    shm_lock: None,
    shm_barrier: None,
    shm_unmap: None,
    fetch: None,
    unfetch: None,
    ..MAIN
};

// ---- both files -------------------------------------------------------------------------------------

unsafe extern "C" fn x_close(file: *mut sqlite3_file) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: SQLite closes each file once; the pointer is the one that `install` made, and the
        // connection is taken out of the file before it may be dropped.
        unsafe {
            let ours = &mut *file.cast::<QuireFile>();
            if std::ptr::eq(ours.base.methods, &raw const MAIN) {
                with(file, Connection::abandon);
                (*ours.vfs).forget(ours.name);
            }
            drop(Arc::from_raw(ours.connection));
            let code = host(file).close();
            ours.base.methods = std::ptr::null();
            code
        }
    })
}

/// Defines trampolines that only call the host's method of the same name.
macro_rules! forward {
    ($($name:ident => $method:ident ( $($arg:ident : $type:ty),* );)*) => {$(
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: SQLite passes an open file of ours and what the method's contract asks for, which
            // goes to the host's method as it is; the host's table has it, being of version 1 or higher.
            unsafe {
                let host = host(file).as_ptr();
                match (*(*host).methods).$method {
                    Some(method) => method(host $(, $arg)*),
                    None => SQLITE_IOERR,
                }
            }
        }
    )*};
}

forward! {
    x_read => read(data: *mut c_void, len: c_int, offset: i64);
    x_sync => sync(flags: c_int);
    x_file_size => file_size(size: *mut i64);
    x_lock => lock(level: c_int);
    x_unlock => unlock(level: c_int);
    x_check_reserved_lock => check_reserved_lock(out: *mut c_int);
    x_file_control => file_control(op: c_int, arg: *mut c_void);
    x_sector_size => sector_size();
    x_device_characteristics => device_characteristics();
}

// ---- the main file ----------------------------------------------------------------------------------

unsafe extern "C" fn main_write(
    file: *mut sqlite3_file,
    data: *const c_void,
    len: c_int,
    offset: i64,
) -> c_int {
    guard(SQLITE_IOERR_WRITE, || {
        // SAFETY: SQLite passes an open file of ours and `len` readable bytes.
        unsafe {
            match with(file, |c| c.main_write()) {
                Verdict::Forward => {
                    let data = std::slice::from_raw_parts(data.cast::<u8>(), len.max(0) as usize);
                    host(file).write(data, offset as u64)
                }
                Verdict::Answer(code) => code,
            }
        }
    })
}

unsafe extern "C" fn main_truncate(file: *mut sqlite3_file, size: i64) -> c_int {
    guard(SQLITE_IOERR_TRUNCATE, || {
        // SAFETY: SQLite passes an open file of ours.
        unsafe {
            match with(file, |c| c.main_write()) {
                Verdict::Forward => host(file).truncate(size),
                Verdict::Answer(code) => code,
            }
        }
    })
}

/// In WAL mode SQLite takes SHARED and keeps it. More is wanted only to leave WAL mode, for exclusive
/// locking mode, or to clean up as the last connection: all the node's business.
unsafe extern "C" fn main_lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    if level > SQLITE_LOCK_SHARED {
        return SQLITE_BUSY;
    }
    // SAFETY: SQLite passes an open file of ours.
    unsafe { host(file) }.lock(level)
}

unsafe extern "C" fn main_file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    match op {
        // The argument is `char*[4]`: result, name, value (sqlite3.h, SQLITE_FCNTL_PRAGMA).
        SQLITE_FCNTL_PRAGMA => {
            let answered = guard(SQLITE_ERROR, || {
                // SAFETY: as said; name and value are C strings, the value may be null; the result is to
                // come from `sqlite3_mprintf`.
                unsafe {
                    let arg = arg.cast::<*mut c_char>();
                    let text = |p: *const c_char| (!p.is_null()).then(|| CStr::from_ptr(p).to_string_lossy());
                    let (name, value) = (text(*arg.add(1)), text(*arg.add(2)));
                    let name = name.as_deref().unwrap_or_default();
                    let (code, text) = match with(file, |c| pragma::answer(c, name, value.as_deref())) {
                        Answer::Pass => return SQLITE_NOTFOUND,
                        Answer::Row(text) => (SQLITE_OK, text),
                        Answer::Error(why) => (SQLITE_ERROR, why),
                    };
                    let Ok(text) = CString::new(text.replace('\0', " ")) else { return SQLITE_ERROR };
                    let vfs = &*(*file.cast::<QuireFile>()).vfs;
                    *arg = (vfs.api().mprintf)(c"%s".as_ptr(), text.as_ptr());
                    code
                }
            });
            if answered != SQLITE_NOTFOUND {
                return answered;
            }
        }
        // The argument is a `sqlite3**`, inside the b-tree object to which the file belongs.
        SQLITE_FCNTL_PDB => {
            // SAFETY: SQLite passes an open file of ours; it uses one on one thread at a time.
            unsafe { (*file.cast::<QuireFile>()).handle = arg.cast() };
        }
        // Would grow the database file, which only the node's checkpointer may.
        SQLITE_FCNTL_SIZE_HINT => {
            // SAFETY: SQLite passes an open file of ours.
            let ours = guard(SQLITE_OK, || c_int::from(unsafe { with(file, |c| !c.is_checkpointer()) }));
            if ours != 0 {
                return SQLITE_OK;
            }
        }
        // The convention for a shim: its own name before the name of what it wraps.
        SQLITE_FCNTL_VFSNAME => {
            // SAFETY: the argument is a `char**` for a string from `sqlite3_mprintf`.
            unsafe {
                let code = host(file).file_control(op, arg);
                let out = arg.cast::<*mut c_char>();
                let vfs = &*(*file.cast::<QuireFile>()).vfs;
                if code == SQLITE_OK {
                    *out = (vfs.api().mprintf)(c"quire/%z".as_ptr(), *out);
                }
                return code;
            }
        }
        _ => {}
    }
    // SAFETY: SQLite passes an open file of ours and the argument that `op` asks for.
    unsafe { host(file).file_control(op, arg) }
}

/// Powersafe overwrite is always reported: without it SQLite pads a commit with copies of its last frame
/// (`padToSectorBoundary`), which would only be more pages to write.
unsafe extern "C" fn main_device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite passes an open file of ours.
    unsafe { host(file) }.device_characteristics() | SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn main_shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    guard(SQLITE_IOERR_SHMMAP, || {
        // SAFETY: SQLite passes an open file of ours and a place for the pointer. A mapped region stays
        // where it is until xShmUnmap, which takes it from the connection first.
        unsafe {
            match host(file).shm_map(region, size, extend) {
                Ok(mapped) => {
                    if region == 0 && size as usize == REGION_SIZE && !mapped.is_null() {
                        with(file, |c| c.mapped(&*mapped.cast()));
                    }
                    *out = mapped;
                    SQLITE_OK
                }
                Err(code) => {
                    *out = std::ptr::null_mut();
                    code
                }
            }
        }
    })
}

unsafe extern "C" fn main_shm_lock(file: *mut sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: SQLite passes an open file of ours.
        unsafe {
            // The b-tree object outlives its file, and is locked by its user during the call (`btree.c`).
            let handle = (*file.cast::<QuireFile>()).handle;
            let handle = if handle.is_null() { 0 } else { *handle as usize };
            match with(file, |c| c.shm_lock(offset, n, flags, handle)) {
                Verdict::Answer(code) => code,
                Verdict::Forward => {
                    let code = host(file).shm_lock(offset, n, flags);
                    with(file, |c| c.shm_locked(offset, flags, code));
                    code
                }
            }
        }
    })
}

unsafe extern "C" fn main_shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: SQLite passes an open file of ours; a host without the method has no shared memory either.
    unsafe {
        let host = host(file).as_ptr();
        if let Some(barrier) = (*(*host).methods).shm_barrier {
            barrier(host);
        }
    }
}

unsafe extern "C" fn main_shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: SQLite passes an open file of ours.
        unsafe {
            with(file, |c| c.unmapped());
            // Never delete: the node and other apps have it mapped.
            let _ = delete;
            host(file).shm_unmap(0)
        }
    })
}

unsafe extern "C" fn main_fetch(
    file: *mut sqlite3_file,
    offset: i64,
    len: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes an open file of ours and a place for the pointer. A host without the method
    // (version below 3) has no memory-mapped I/O, which a null pointer says.
    unsafe {
        let host = host(file);
        *out = std::ptr::null_mut();
        match (*(*host.as_ptr()).methods).fetch {
            Some(fetch) if host.version() >= 3 => fetch(host.as_ptr(), offset, len, out),
            _ => SQLITE_OK,
        }
    }
}

unsafe extern "C" fn main_unfetch(file: *mut sqlite3_file, offset: i64, page: *mut c_void) -> c_int {
    // SAFETY: as for `main_fetch`.
    unsafe {
        let host = host(file);
        match (*(*host.as_ptr()).methods).unfetch {
            Some(unfetch) if host.version() >= 3 => unfetch(host.as_ptr(), offset, page),
            _ => SQLITE_OK,
        }
    }
}

// ---- the WAL ----------------------------------------------------------------------------------------

unsafe extern "C" fn wal_write(
    file: *mut sqlite3_file,
    data: *const c_void,
    len: c_int,
    offset: i64,
) -> c_int {
    guard(SQLITE_IOERR_WRITE, || {
        // SAFETY: SQLite passes an open file of ours and `len` readable bytes.
        unsafe {
            let data = std::slice::from_raw_parts(data.cast::<u8>(), len.max(0) as usize);
            let host = host(file);
            with(file, |c| c.wal_write(host, data, offset as u64))
        }
    })
}

unsafe extern "C" fn wal_truncate(file: *mut sqlite3_file, size: i64) -> c_int {
    guard(SQLITE_IOERR_TRUNCATE, || {
        // SAFETY: SQLite passes an open file of ours.
        unsafe {
            match with(file, |c| c.wal_truncate()) {
                Verdict::Forward => host(file).truncate(size),
                Verdict::Answer(code) => code,
            }
        }
    })
}

/// The Raft log is what is durable; the WAL is rebuilt from it.
unsafe extern "C" fn wal_sync(_file: *mut sqlite3_file, _flags: c_int) -> c_int {
    SQLITE_OK
}
