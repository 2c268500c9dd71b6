//! The VFS object: which opens are ours, and everything else straight to the host's VFS.

use super::connection::{self, Connection};
use super::ffi::*;
use super::file::{self, Kind};
use super::host::HostFile;
use super::reads::{ReadLevel, Reads, parse_token};
use crate::format::PageSize;
use crate::gate::Gate;
use crate::gate::client::SocketGate;
use crate::gate::proto::Hello;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_double, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file by which a directory of replicated databases is known.
pub const MARKER: &str = ".quire";
/// The node's socket in that directory.
pub const SOCKET: &str = "quire.sock";
/// The extension of a database file.
pub const EXTENSION: &str = "db";

/// What an app asks for when it opens a main database file.
#[derive(Debug)]
pub struct OpenRequest {
    /// The file.
    pub path: PathBuf,
    /// URI parameter `node`.
    pub node: Option<PathBuf>,
    /// URI parameter `page_size`, for a database that is created.
    pub page_size: Option<PageSize>,
    /// The database may be created.
    pub create: bool,
    /// Nothing will be written.
    pub read_only: bool,
    /// URI parameter `reads`.
    pub reads: ReadLevel,
    /// URI parameter `session`, or 0.
    pub session: u64,
}

/// Finds the gate for a database that is opened; the error is a line for the log.
pub type Opener = Box<dyn Fn(&OpenRequest) -> Result<Box<dyn Gate>, String> + Send + Sync>;

/// A registered VFS. Lives until the process ends, as SQLite keeps pointers into it.
pub struct QuireVfs {
    api: Api,
    host: *mut sqlite3_vfs,
    opener: Arc<Opener>,
    /// As the process's default VFS: only paths inside a node's directory are ours.
    is_default: bool,
    /// Open main files by SQLite's pointer to their name, so that a WAL finds its database.
    open: Mutex<HashMap<usize, Arc<Mutex<Connection>>>>,
}

/// Registering failed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There is nothing to wrap.
    #[error("this SQLite has no default VFS")]
    NoDefault,
    /// The VFS to wrap can't do WAL mode.
    #[error("this SQLite's default VFS is of version {0}; shared memory needs 2")]
    TooOld(c_int),
    /// SQLite said no.
    #[error("sqlite3_vfs_register failed with code {0}")]
    Refused(c_int),
}

/// Registers the VFS `quire`, and with `make_default` also `quire-default` as the default VFS. Does
/// nothing for a name that is registered already.
///
/// # Safety
/// `api` must hold functions of one SQLite library, initialised and loaded until the process ends.
pub unsafe fn register(api: Api, opener: Opener, make_default: bool) -> Result<(), RegisterError> {
    let opener = Arc::new(opener);
    // SAFETY: the caller vouches for `api`; names are C strings that live forever.
    unsafe {
        let existing = (api.vfs_find)(c"quire".as_ptr());
        let host = if existing.is_null() {
            let host = (api.vfs_find)(std::ptr::null());
            if host.is_null() {
                return Err(RegisterError::NoDefault);
            }
            if (*host).version < 2 {
                return Err(RegisterError::TooOld((*host).version));
            }
            register_one(api, host, opener.clone(), c"quire", false)?;
            host
        } else {
            (*(*existing).app_data.cast::<QuireVfs>()).host
        };
        if make_default && (api.vfs_find)(c"quire-default".as_ptr()).is_null() {
            register_one(api, host, opener, c"quire-default", true)?;
        }
        Ok(())
    }
}

unsafe fn register_one(
    api: Api,
    host: *mut sqlite3_vfs,
    opener: Arc<Opener>,
    name: &'static CStr,
    is_default: bool,
) -> Result<(), RegisterError> {
    let ours = Box::leak(Box::new(QuireVfs { api, host, opener, is_default, open: Mutex::default() }));
    // SAFETY: `host` is a registered VFS, which SQLite never frees.
    let (version, host_size, max_pathname) =
        unsafe { ((*host).version, (*host).file_size, (*host).max_pathname) };
    let vfs = Box::leak(Box::new(sqlite3_vfs {
        version: version.min(3),
        file_size: host_size + file::HOST_OFFSET as c_int,
        max_pathname,
        next: std::ptr::null_mut(),
        name: name.as_ptr(),
        app_data: std::ptr::from_mut(ours).cast(),
        open: Some(x_open),
        delete: Some(x_delete),
        access: Some(x_access),
        full_pathname: Some(x_full_pathname),
        dl_open: Some(x_dl_open),
        dl_error: Some(x_dl_error),
        dl_sym: Some(x_dl_sym),
        dl_close: Some(x_dl_close),
        randomness: Some(x_randomness),
        sleep: Some(x_sleep),
        current_time: Some(x_current_time),
        get_last_error: Some(x_get_last_error),
        current_time_int64: Some(x_current_time_int64),
        set_system_call: Some(x_set_system_call),
        get_system_call: Some(x_get_system_call),
        next_system_call: Some(x_next_system_call),
    }));
    // SAFETY: the object lives forever and all its methods are there.
    match unsafe { (api.vfs_register)(vfs, c_int::from(is_default)) } {
        SQLITE_OK => Ok(()),
        code => Err(RegisterError::Refused(code)),
    }
}

/// The opener of an app: the node's socket, from the URI parameter `node`, the environment variable
/// `QUIRE_SOCKET`, or the database's directory.
pub fn socket_opener() -> Opener {
    Box::new(|request| {
        let (directory, name) = locate(&request.path)?;
        let metadata = std::fs::metadata(&directory)
            .map_err(|error| format!("can't look at {}: {error}", directory.display()))?;
        let socket = request
            .node
            .clone()
            .or_else(|| std::env::var_os("QUIRE_SOCKET").filter(|s| !s.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| directory.join(SOCKET));
        let hello = Hello {
            create: request.create,
            read_only: request.read_only,
            pid: std::process::id(),
            page_size: request.page_size,
            directory: (metadata.dev(), metadata.ino()),
            name,
        };
        let gate =
            SocketGate::open(socket, request.path.clone(), hello).map_err(|error| error.to_string())?;
        Ok(Box::new(gate) as Box<dyn Gate>)
    })
}

/// Splits a database path into its directory and the database's name.
pub fn locate(path: &Path) -> Result<(PathBuf, String), String> {
    let refused =
        || format!("{} is no database of a node: its name must be NAME.{EXTENSION}", path.display());
    let name = path.file_stem().and_then(OsStr::to_str).ok_or_else(refused)?;
    if path.extension() != Some(OsStr::new(EXTENSION)) {
        return Err(refused());
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((directory, name.to_owned()))
}

impl QuireVfs {
    /// SQLite's functions.
    pub fn api(&self) -> &Api {
        &self.api
    }

    fn open_files(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<Mutex<Connection>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A main file was closed.
    pub fn forget(&self, name: *const c_char) {
        self.open_files().remove(&(name as usize));
    }

    /// Whether a main file is ours, and what its URI asks for.
    ///
    /// # Safety
    /// `name` must be a file name that SQLite passed to `xOpen`.
    unsafe fn request(&self, name: *const c_char, flags: c_int) -> Result<Option<OpenRequest>, String> {
        // SAFETY: as the caller vouches; parameters are C strings, or null if absent.
        let (path, node, page_size, reads, session, forbidden) = unsafe {
            let parameter = |key: &CStr| {
                let value = (self.api.uri_parameter)(name, key.as_ptr());
                (!value.is_null()).then(|| CStr::from_ptr(value))
            };
            let path = PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()));
            let node = parameter(c"node").map(|v| PathBuf::from(OsStr::from_bytes(v.to_bytes())));
            let forbidden = [c"immutable", c"nolock"].into_iter().find(|key| {
                parameter(key).is_some_and(|v| !matches!(v.to_bytes(), b"0" | b"no" | b"off" | b"false"))
            });
            let text = |key| parameter(key).map(CStr::to_string_lossy);
            (path, node, parameter(c"page_size"), text(c"reads"), text(c"session"), forbidden)
        };
        if self.is_default && !is_replicated(&path) {
            return Ok(None);
        }
        if let Some(key) = forbidden {
            return Err(format!(
                "{}: the URI parameter {} would read past the WAL; leave it out",
                path.display(),
                key.to_string_lossy()
            ));
        }
        let page_size =
            match page_size {
                None => None,
                Some(text) => {
                    let text = text.to_string_lossy();
                    let size = text.parse().ok().and_then(PageSize::new);
                    Some(size.ok_or_else(|| {
                        format!("page_size={text}: must be a power of two from 512 to 65536")
                    })?)
                }
            };
        let reads = reads.map_or(Ok(ReadLevel::Local), |text| text.parse());
        let reads = reads.map_err(|why| format!("{}: reads: {why}", path.display()))?;
        let session = session.map_or(Ok(0), |text| parse_token(&text));
        let session = session.map_err(|why| format!("{}: session: {why}", path.display()))?;
        let create = flags & SQLITE_OPEN_CREATE != 0;
        let read_only = flags & SQLITE_OPEN_READONLY != 0;
        Ok(Some(OpenRequest { path, node, page_size, create, read_only, reads, session }))
    }

    /// Opens with the host's VFS, in place.
    unsafe fn host_open(
        &self,
        name: *const c_char,
        file: *mut sqlite3_file,
        flags: c_int,
        out: *mut c_int,
    ) -> c_int {
        // SAFETY: the arguments are SQLite's, or ours of the same form; the host's VFS is registered.
        unsafe {
            match (*self.host).open {
                Some(open) => open(self.host, name, file, flags, out),
                None => SQLITE_CANTOPEN,
            }
        }
    }

    /// Opens one of ours: the host's file behind, then ours in front.
    unsafe fn open_ours(
        &self,
        kind: Kind,
        connection: Arc<Mutex<Connection>>,
        name: *const c_char,
        file: *mut sqlite3_file,
        flags: c_int,
        out: *mut c_int,
    ) -> c_int {
        // SAFETY: SQLite allocated `szOsFile` bytes at `file`, which has room for both objects.
        unsafe {
            let host = file::host_object(file);
            (*host).methods = std::ptr::null();
            let code = self.host_open(name, host, flags, out);
            if code != SQLITE_OK {
                return code;
            }
            let host = HostFile::new(host);
            if kind == Kind::Main && host.version() < 2 {
                host.close();
                connection::log(&self.api, SQLITE_CANTOPEN, "the host's VFS has no shared memory here");
                return SQLITE_CANTOPEN;
            }
            file::install(file, kind, connection, self, name);
            SQLITE_OK
        }
    }
}

/// Whether a path lies in the directory of a node, running or not.
fn is_replicated(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(EXTENSION))
        && path.parent().is_some_and(|directory| directory.join(MARKER).exists())
}

/// Our object behind a VFS pointer.
///
/// # Safety
/// `vfs` must be one that [`register_one`] made.
unsafe fn ours<'a>(vfs: *mut sqlite3_vfs) -> &'a QuireVfs {
    // SAFETY: `app_data` was set to a leaked QuireVfs.
    unsafe { &*(*vfs).app_data.cast::<QuireVfs>() }
}

unsafe extern "C" fn x_open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's contract for xOpen: an allocation of szOsFile bytes, a name with its parameters or
    // null, and `methods` left null where the open fails (so that it isn't closed).
    unsafe {
        (*file).methods = std::ptr::null();
        let vfs = ours(vfs);
        file::guard(SQLITE_CANTOPEN, || {
            if !name.is_null() && flags & SQLITE_OPEN_WAL != 0 {
                let database = (vfs.api.filename_database)(name);
                let connection = vfs.open_files().get(&(database as usize)).cloned();
                if let Some(connection) = connection {
                    // SQLite opens the WAL with the first read: by its name, which may be another database's by now.
                    if connection.lock().unwrap_or_else(PoisonError::into_inner).is_replaced() {
                        let text = "the database was dropped, or replaced by another one; close it";
                        connection::log(&vfs.api, SQLITE_CANTOPEN, text);
                        return SQLITE_CANTOPEN;
                    }
                    return vfs.open_ours(Kind::Wal, connection, name, file, flags, out);
                }
            }
            if name.is_null() || flags & SQLITE_OPEN_MAIN_DB == 0 {
                return vfs.host_open(name, file, flags, out);
            }
            let request = match vfs.request(name, flags) {
                Ok(Some(request)) => request,
                Ok(None) => return vfs.host_open(name, file, flags, out),
                Err(why) => {
                    connection::log(&vfs.api, SQLITE_CANTOPEN, &why);
                    return SQLITE_CANTOPEN;
                }
            };
            let gate = match (vfs.opener)(&request) {
                Ok(gate) => gate,
                Err(why) => {
                    let text = format!("can't open {}: {why}", request.path.display());
                    connection::log(&vfs.api, SQLITE_CANTOPEN, &text);
                    return SQLITE_CANTOPEN;
                }
            };
            let reads = Reads::new(request.reads, request.session);
            let connection = Arc::new(Mutex::new(Connection::new(vfs.api, gate, reads)));
            // The node has created the file; SQLite must not.
            let flags = flags & !SQLITE_OPEN_CREATE;
            let code = vfs.open_ours(Kind::Main, connection.clone(), name, file, flags, out);
            if code == SQLITE_OK {
                vfs.open_files().insert(name as usize, connection);
            }
            code
        })
    }
}

unsafe extern "C" fn x_delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite passes a registered VFS and a C string.
    unsafe {
        let ours = ours(vfs);
        let refused = file::guard(SQLITE_IOERR_DELETE, || {
            let bytes = CStr::from_ptr(name).to_bytes();
            let database = bytes.strip_suffix(b"-wal").or_else(|| bytes.strip_suffix(b"-shm"));
            match database {
                Some(path) if is_replicated(Path::new(OsStr::from_bytes(path))) => {
                    let text = format!("refused to delete {}", String::from_utf8_lossy(bytes));
                    connection::log(&ours.api, SQLITE_IOERR_DELETE, &text);
                    SQLITE_IOERR_DELETE
                }
                _ => SQLITE_OK,
            }
        });
        match (*ours.host).delete {
            Some(delete) if refused == SQLITE_OK => delete(ours.host, name, sync),
            _ => SQLITE_IOERR_DELETE,
        }
    }
}

/// Defines VFS methods that only call the host's method of the same name, with the host's VFS object.
macro_rules! forward {
    ($($name:ident => $method:ident ( $($arg:ident : $type:ty),* ) -> $ret:ty = $absent:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $arg: $type)*) -> $ret {
            // SAFETY: SQLite passes a registered VFS and what the method's contract asks for, which goes
            // to the host's method as it is.
            unsafe {
                let host = ours(vfs).host;
                match (*host).$method {
                    Some(method) => method(host $(, $arg)*),
                    None => $absent,
                }
            }
        }
    )*};
}

forward! {
    x_access => access(name: *const c_char, flags: c_int, out: *mut c_int) -> c_int = SQLITE_IOERR;
    x_full_pathname => full_pathname(name: *const c_char, len: c_int, out: *mut c_char) -> c_int = SQLITE_CANTOPEN;
    x_dl_open => dl_open(name: *const c_char) -> *mut c_void = std::ptr::null_mut();
    x_dl_error => dl_error(len: c_int, out: *mut c_char) -> () = ();
    x_dl_sym => dl_sym(library: *mut c_void, symbol: *const c_char) -> Option<DlSym> = None;
    x_dl_close => dl_close(library: *mut c_void) -> () = ();
    x_randomness => randomness(len: c_int, out: *mut c_char) -> c_int = 0;
    x_sleep => sleep(microseconds: c_int) -> c_int = 0;
    x_current_time => current_time(out: *mut c_double) -> c_int = SQLITE_ERROR;
    x_get_last_error => get_last_error(len: c_int, out: *mut c_char) -> c_int = 0;
    x_current_time_int64 => current_time_int64(out: *mut i64) -> c_int = SQLITE_ERROR;
    x_set_system_call => set_system_call(name: *const c_char, call: Option<DlSym>) -> c_int = SQLITE_NOTFOUND;
    x_get_system_call => get_system_call(name: *const c_char) -> Option<DlSym> = None;
    x_next_system_call => next_system_call(name: *const c_char) -> *const c_char = std::ptr::null();
}

/// The name of a file in a directory as SQLite wants it.
pub(crate) fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}
