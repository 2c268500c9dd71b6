//! Safe access to an open file of the host's VFS.

use super::ffi::*;
use std::ffi::{c_int, c_void};

/// A pointer to an open file of the host's VFS.
///
/// Whoever makes one vouches that the file stays open as long as the value is used. SQLite serialises the
/// calls on one file; the daemon does it by exclusive access to the owner.
#[derive(Clone, Copy, Debug)]
pub struct HostFile(*mut sqlite3_file);

// SAFETY: SQLite allows any thread to use a file object, as long as calls don't overlap (sqlite3_file,
// "threading modes"); the owners of a HostFile see to that.
unsafe impl Send for HostFile {}

macro_rules! call {
    ($self:ident, $method:ident, $absent:expr $(, $arg:expr)*) => {{
        // SAFETY: `new` vouched for an open file, whose method table is valid until it is closed.
        match unsafe { (*(*$self.0).methods).$method } {
            // SAFETY: as above; the arguments are what the method's contract asks for.
            Some(method) => unsafe { method($self.0 $(, $arg)*) },
            None => $absent,
        }
    }};
}

impl HostFile {
    /// Wraps an open file.
    ///
    /// # Safety
    /// `file` must be an open file of a VFS and stay open while the value or a copy of it is used.
    pub unsafe fn new(file: *mut sqlite3_file) -> HostFile {
        HostFile(file)
    }

    /// The pointer itself, for calls that only pass it on.
    pub fn as_ptr(self) -> *mut sqlite3_file {
        self.0
    }

    /// Version of the file's method table.
    pub fn version(self) -> c_int {
        // SAFETY: as in `call`.
        unsafe { (*(*self.0).methods).version }
    }

    /// `xRead`: fills `out`. A short read is an error and leaves zeros.
    pub fn read(self, out: &mut [u8], offset: u64) -> c_int {
        let (data, len) = (out.as_mut_ptr().cast::<c_void>(), out.len() as c_int);
        call!(self, read, SQLITE_IOERR, data, len, offset as i64)
    }

    /// `xWrite`.
    pub fn write(self, data: &[u8], offset: u64) -> c_int {
        let (data, len) = (data.as_ptr().cast::<c_void>(), data.len() as c_int);
        call!(self, write, SQLITE_IOERR_WRITE, data, len, offset as i64)
    }

    /// `xTruncate`.
    pub fn truncate(self, size: i64) -> c_int {
        call!(self, truncate, SQLITE_IOERR_TRUNCATE, size)
    }

    /// `xSync`.
    pub fn sync(self, flags: c_int) -> c_int {
        call!(self, sync, SQLITE_IOERR, flags)
    }

    /// `xFileSize`, in bytes.
    pub fn file_size(self) -> Result<u64, c_int> {
        let mut size = 0i64;
        match call!(self, file_size, SQLITE_IOERR, &mut size) {
            SQLITE_OK => Ok(size.max(0) as u64),
            code => Err(code),
        }
    }

    /// `xLock`.
    pub fn lock(self, level: c_int) -> c_int {
        call!(self, lock, SQLITE_IOERR, level)
    }

    /// `xUnlock`.
    pub fn unlock(self, level: c_int) -> c_int {
        call!(self, unlock, SQLITE_IOERR, level)
    }

    /// `xFileControl`.
    ///
    /// # Safety
    /// `arg` must be what `op` asks for.
    pub unsafe fn file_control(self, op: c_int, arg: *mut c_void) -> c_int {
        call!(self, file_control, SQLITE_NOTFOUND, op, arg)
    }

    /// `xDeviceCharacteristics`.
    pub fn device_characteristics(self) -> c_int {
        call!(self, device_characteristics, 0)
    }

    /// `xShmMap`: a region of the wal-index, or null if it doesn't exist and `extend` is false.
    pub fn shm_map(self, region: c_int, size: c_int, extend: c_int) -> Result<*mut c_void, c_int> {
        let mut mapped = std::ptr::null_mut();
        if self.version() < 2 {
            return Err(SQLITE_IOERR_SHMMAP);
        }
        match call!(self, shm_map, SQLITE_IOERR_SHMMAP, region, size, extend, &mut mapped) {
            SQLITE_OK => Ok(mapped),
            code => Err(code),
        }
    }

    /// `xShmLock`.
    pub fn shm_lock(self, offset: c_int, n: c_int, flags: c_int) -> c_int {
        call!(self, shm_lock, SQLITE_IOERR, offset, n, flags)
    }

    /// `xShmUnmap`.
    pub fn shm_unmap(self, delete: c_int) -> c_int {
        call!(self, shm_unmap, SQLITE_OK, delete)
    }

    /// `xClose`. No copy of the value may be used afterwards.
    pub fn close(self) -> c_int {
        call!(self, close, SQLITE_OK)
    }
}
