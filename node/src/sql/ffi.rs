//! What `rusqlite` has no function for.

use rusqlite::{Connection, ffi};

/// Forgets the last rowid, as on a new connection.
pub(super) fn forget_last_rowid(connection: &Connection) {
    // SAFETY: the handle is that of an open connection, which this thread alone uses while it is borrowed.
    unsafe { ffi::sqlite3_set_last_insert_rowid(connection.handle(), 0) };
}

/// Whether foreign keys that are checked when the transaction ends don't hold yet.
pub(super) fn unresolved_foreign_keys(connection: &Connection) -> bool {
    let (mut now, mut highest) = (0, 0);
    // SAFETY: as above; the two integers outlive the call.
    let code = unsafe {
        let handle = connection.handle();
        ffi::sqlite3_db_status(handle, ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &mut now, &mut highest, 0)
    };
    code == ffi::SQLITE_OK && now != 0
}
