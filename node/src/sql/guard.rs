//! What a client's SQL may do on a connection, and for how long. SQLite asks before it compiles each action
//! (`sqlite3_set_authorizer`), and every few thousand instructions whether to go on (`sqlite3_progress_handler`).
//!
//! Transactions belong to the node, which groups requests into them. Files other than the database, extensions and
//! settings of the process are nobody's. A setting of the connection would be felt by the requests after it: it is
//! taken only where the connection is given up after the request ([`Mode::Alone`]).

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ffi};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Instructions of SQLite's machine between two looks at the clock: some ten microseconds.
const INSTRUCTIONS: i32 = 2000;
/// The longest value or row that SQL may make, in bytes: what one statement can take of the node's memory at once.
const MAX_VALUE: i32 = 256 << 20;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;
/// A reader that finds the wal-index in a writer's hands waits this long at most.
const BUSY: Duration = Duration::from_secs(5);

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// The node's own.
    Ours,
    /// A client's, in a transaction with others.
    Shared,
    /// A client's, on a connection that nobody else gets after it.
    Alone,
    /// A client's VACUUM, and nothing else, which begins a transaction and attaches a nameless file by itself.
    Vacuum,
}

/// Told when nobody waits any more for what SQL comes to. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Gone(Arc<AtomicBool>);

impl Gone {
    /// Whoever holds this waits.
    pub fn waiter(&self) -> Waiter {
        Waiter(self.clone())
    }
}

/// Somebody who waits for what SQL comes to, until it is dropped.
#[derive(Debug)]
pub struct Waiter(Gone);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Relaxed);
    }
}

#[derive(Debug)]
struct State {
    began: Instant,
    mode: AtomicU8,
    /// Nanoseconds after `began` at which to stop.
    deadline: AtomicU64,
    /// Nobody waits for the result any more.
    cancelled: Arc<AtomicBool>,
    /// The same, of the request that runs.
    gone: Mutex<Option<Gone>>,
    /// Why the last statement was denied.
    denied: Mutex<Option<String>>,
}

/// The limits of a connection.
#[derive(Clone, Debug)]
pub struct Guard(Arc<State>);

impl Guard {
    /// Puts a connection under guard.
    pub fn install(connection: &mut Connection, foreign_keys: bool) -> rusqlite::Result<Guard> {
        let state = Arc::new(State {
            began: Instant::now(),
            mode: AtomicU8::new(Mode::Ours as u8),
            deadline: AtomicU64::new(u64::MAX),
            cancelled: Arc::default(),
            gone: Mutex::default(),
            denied: Mutex::new(None),
        });
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, foreign_keys)?;
        // Beside the authorizer; a VACUUM, which attaches a nameless file, is exempt.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE)?;
        let guard = Guard(state.clone());
        connection.authorizer(Some(move |context: AuthContext<'_>| guard.authorize(&context)))?;
        let watch = state.clone();
        let stop = move || {
            let gone = || watch.gone.lock().unwrap_or_else(PoisonError::into_inner);
            watch.cancelled.load(Relaxed)
                || gone().as_ref().is_some_and(|gone| gone.0.load(Relaxed))
                || watch.began.elapsed().as_nanos() as u64 > watch.deadline.load(Relaxed)
        };
        connection.progress_handler(INSTRUCTIONS, Some(stop))?;
        Ok(Guard(state))
    }

    /// From now on it is this one's SQL, until `deadline`.
    pub fn enter(&self, mode: Mode, deadline: Option<Instant>) {
        self.0.mode.store(mode as u8, Relaxed);
        let at = deadline.map_or(u64::MAX, |at| at.saturating_duration_since(self.0.began).as_nanos() as u64);
        self.0.deadline.store(at, Relaxed);
    }

    /// From now on, until [`Guard::leave`], what runs is for whoever waits there, and ends when nobody does.
    pub fn runs_for(&self, gone: &Gone) {
        *self.0.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(gone.clone());
    }

    /// What runs next is one statement; if it is a VACUUM and may run, it may do what belongs to one.
    pub fn expect(&self, sql: &str) {
        let word = sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("vacuum"));
        if word {
            let (alone, vacuum) = (Mode::Alone as u8, Mode::Vacuum as u8);
            let _ = self.0.mode.compare_exchange(alone, vacuum, Relaxed, Relaxed);
        }
    }

    /// From now on it is the node's own SQL.
    pub fn leave(&self) {
        *self.0.gone.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.enter(Mode::Ours, None);
    }

    /// Whether the deadline has passed.
    pub fn is_late(&self) -> bool {
        self.0.began.elapsed().as_nanos() as u64 > self.0.deadline.load(Relaxed)
    }

    /// Setting it stops what runs.
    pub fn cancelled(&self) -> &Arc<AtomicBool> {
        &self.0.cancelled
    }

    /// Why the last statement was denied, if it was.
    pub fn denied(&self) -> Option<String> {
        self.0.denied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let mode = match self.0.mode.load(Relaxed) {
            ours if ours == Mode::Ours as u8 => return Authorization::Allow,
            shared if shared == Mode::Shared as u8 => Mode::Shared,
            vacuum if vacuum == Mode::Vacuum as u8 => Mode::Vacuum,
            _ => Mode::Alone,
        };
        match judge(&context.action, mode) {
            Ok(()) => Authorization::Allow,
            Err(why) => {
                *self.0.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                Authorization::Deny
            }
        }
    }
}

fn judge(action: &AuthAction<'_>, mode: Mode) -> Result<(), String> {
    let alone = mode != Mode::Shared;
    match action {
        AuthAction::Transaction { .. } if mode == Mode::Vacuum => Ok(()),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Err(
            "transactions can't be begun or ended by a statement: use the parameter transaction, or POST /tx"
                .into(),
        ),
        AuthAction::Attach { filename: "" } if mode == Mode::Vacuum => Ok(()),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Err("databases can't be attached over HTTP; name one with the parameter db".into())
        }
        AuthAction::Unknown { code: ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH, .. } => {
            Err("databases can't be attached over HTTP; name one with the parameter db".into())
        }
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Err("extensions can't be loaded over HTTP".into())
        }
        // SQLite switches it off, but not for arguments that are bound: it would give addresses away, and jump to any.
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("fts3_tokenizer") => {
            Err("the function fts3_tokenizer can't be used over HTTP".into())
        }
        AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
            if !alone =>
        {
            Err("temporary objects would outlive the request; use an ordinary table".into())
        }
        AuthAction::Pragma { pragma_name, pragma_value } => pragma(pragma_name, *pragma_value, alone),
        _ => Ok(()),
    }
}

/// Pragmas whose argument says what to look at or do, and that leave no trace on the connection.
const PLAIN: [&str; 19] = [
    "application_id",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "function_list",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "module_list",
    "optimize",
    "pragma_list",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
    "collation_list",
];
/// Pragmas that change how the connection works.
const SETTINGS: [&str; 14] = [
    "analysis_limit",
    "auto_vacuum",
    "automatic_index",
    "busy_timeout",
    "case_sensitive_like",
    "cell_size_check",
    "checkpoint_fullfsync",
    "defer_foreign_keys",
    "foreign_keys",
    "fullfsync",
    "ignore_check_constraints",
    "recursive_triggers",
    "reverse_unordered_selects",
    "secure_delete",
];

fn pragma(name: &str, value: Option<&str>, alone: bool) -> Result<(), String> {
    let is = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is(&["wal_checkpoint"]) {
        return Err("PRAGMA wal_checkpoint is refused: only the node checkpoints".into());
    }
    if value.is_none() || is(&PLAIN) {
        return Ok(());
    }
    if !is(&SETTINGS) {
        return Err(format!("PRAGMA {name} can't be set over HTTP"));
    }
    if alone { Ok(()) } else { Err(format!("PRAGMA {name} can't be set here")) }
}

/// Whether it is a pragma that changes how the connection works.
pub fn is_setting(name: &str) -> bool {
    SETTINGS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether it is a pragma that looks at, or changes, no more than the connection and its database.
pub fn is_harmless(name: &str) -> bool {
    PLAIN.iter().chain(&SETTINGS).any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(mode: Mode) -> (Connection, Guard) {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        let guard = Guard::install(&mut connection, false).unwrap();
        guard.enter(mode, None);
        (connection, guard)
    }

    #[test]
    fn what_is_denied() {
        for sql in [
            "BEGIN",
            " /* x */ begin immediate",
            "COMMIT",
            "END",
            "ROLLBACK",
            "SAVEPOINT a",
            "RELEASE a",
            "ROLLBACK TO a",
            "ATTACH 'x.db' AS x",
            "ATTACH ':memory:' AS x",
            "ATTACH ? AS x",
            "ATTACH 'a' || 'b' AS x",
            "DETACH x",
            "SELECT load_extension('x')",
            "SELECT fts3_tokenizer('simple')",
            "SELECT FTS3_TOKENIZER('mine', ?)",
            "PRAGMA journal_mode=DELETE",
            "PRAGMA journal_mode(delete)",
            "PRAGMA locking_mode=EXCLUSIVE",
            "PRAGMA synchronous=OFF",
            "PRAGMA wal_autocheckpoint=1",
            "PRAGMA query_only=1",
            "PRAGMA wal_checkpoint",
            "PRAGMA main.wal_checkpoint(TRUNCATE)",
            "PRAGMA writable_schema=ON",
            "PRAGMA schema_version=7",
            "PRAGMA hard_heap_limit=1000",
            "PRAGMA temp_store_directory='/tmp'",
            "PRAGMA mmap_size=1000000",
            "PRAGMA cache_size=1000000",
        ] {
            for mode in [Mode::Shared, Mode::Alone] {
                let (connection, guard) = guarded(mode);
                assert!(connection.prepare(sql).is_err(), "{sql} in {mode:?}");
                assert!(guard.denied().is_some(), "{sql} in {mode:?}: no reason");
                assert!(connection.is_autocommit());
            }
        }
    }

    #[test]
    fn what_is_taken_alone_only() {
        for sql in ["PRAGMA foreign_keys=ON", "VACUUM", "CREATE TEMP TABLE x(y)", "PRAGMA auto_vacuum=1"] {
            assert!(crate::sql::words::needs_a_connection(sql), "{sql}");
            let (connection, guard) = guarded(Mode::Alone);
            guard.expect(sql);
            connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            guard.enter(Mode::Shared, None);
            assert!(connection.execute_batch(sql).is_err(), "{sql}");
        }
        // To a file it would be a write behind everybody's back.
        let (connection, guard) = guarded(Mode::Alone);
        guard.expect("VACUUM INTO");
        assert!(connection.execute_batch("VACUUM INTO 'copy.db'").is_err());
        assert!(guard.denied().is_some_and(|why| why.contains("attached")));
        assert!(!std::path::Path::new("copy.db").exists());
    }

    #[test]
    fn what_is_taken() {
        let (connection, _) = guarded(Mode::Shared);
        for sql in [
            "PRAGMA user_version=3",
            "PRAGMA table_info(t)",
            "PRAGMA foreign_keys",
            "PRAGMA journal_mode",
            "PRAGMA integrity_check",
            "SELECT * FROM pragma_table_info('t')",
            "CREATE INDEX i ON t(x)",
            "ALTER TABLE t ADD COLUMN y",
            "ALTER TABLE t RENAME COLUMN y TO z",
            "REINDEX",
            "ANALYZE",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END",
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<3) SELECT * FROM c",
        ] {
            connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert!(connection.execute("INSERT INTO sqlite_master VALUES(1,2,3,4,5)", []).is_err());
    }

    #[test]
    fn values_have_a_bound() {
        let (connection, _) = guarded(Mode::Shared);
        let length =
            |n: i64| connection.query_row("SELECT length(zeroblob(?))", [n], |row| row.get::<_, i64>(0));
        assert_eq!(length(1 << 20), Ok(1 << 20));
        assert!(length(i64::from(MAX_VALUE) + 1).is_err());
    }

    #[test]
    fn a_deadline_and_a_client_that_left_interrupt() {
        const FOREVER: &str =
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT max(n) FROM c";
        let (connection, guard) = guarded(Mode::Shared);
        guard.enter(Mode::Shared, Some(Instant::now() + Duration::from_millis(20)));
        assert!(connection.query_row(FOREVER, [], |_| Ok(())).is_err());
        assert!(guard.is_late());
        guard.enter(Mode::Shared, None);
        connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        let gone = Gone::default();
        let waiter = gone.waiter();
        guard.runs_for(&gone);
        connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        drop(waiter);
        assert!(connection.query_row(FOREVER, [], |_| Ok(())).is_err());
        guard.leave();
        guard.cancelled().store(true, Relaxed);
        assert!(connection.query_row(FOREVER, [], |_| Ok(())).is_err());
    }
}
