//! Runs an SQL script of any size as one transaction, statement by statement as it is read.
//!
//! Where a statement ends is found by [`Splitter`]. The script's own BEGIN and COMMIT do nothing: all of it is one
//! transaction, whatever it says. What would reach beyond the database, or end the transaction another way, is refused.
//! A [`Stop`] ends it before its end, within a statement too.

use crate::splitter::Splitter;
use crate::sql::guard;
use crate::stop::Stop;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ffi};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest statement, in bytes.
pub const MAX_STATEMENT: usize = 64 << 20;
/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// Pragmas that scripts have, and about which the node decides: they do nothing.
const THE_NODES: [&str; 12] = [
    "cache_size",
    "cache_spill",
    "journal_mode",
    "journal_size_limit",
    "locking_mode",
    "mmap_size",
    "page_size",
    "synchronous",
    "temp_store",
    "threads",
    "wal_autocheckpoint",
    "wal_checkpoint",
];
/// Pragmas that scripts may set beside those of any request. Whatever is in neither list may be felt by the process.
const A_DUMPS: [&str; 4] = ["encoding", "legacy_alter_table", "legacy_file_format", "writable_schema"];

/// A script failed; nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It can't be read.
    #[error("reading the script: {0}")]
    Io(#[from] io::Error),
    /// A statement fails.
    #[error("line {line}: {why}")]
    Statement {
        /// The line where it begins.
        line: u64,
        /// Why.
        why: String,
    },
    /// It had to stop.
    #[error("line {line}: {why}")]
    Stopped {
        /// The line where the statement begins.
        line: u64,
        /// Why.
        why: &'static str,
    },
    /// The transaction can't begin or end.
    #[error("{what}: {error}")]
    Transaction {
        /// What was attempted.
        what: &'static str,
        /// What SQLite said.
        error: rusqlite::Error,
    },
}

/// Runs the script. The connection must be in no transaction; it is to be used for nothing else afterwards.
pub fn run(connection: &mut Connection, mut script: impl Read, stop: &Stop) -> Result<(), ScriptError> {
    let failed = |what| move |error| ScriptError::Transaction { what, error };
    let refused: Arc<Mutex<Option<String>>> = Arc::default();
    // A script brings its rows in any order.
    connection.execute_batch("PRAGMA foreign_keys=OFF; BEGIN IMMEDIATE").map_err(failed("beginning"))?;
    let ours = refused.clone();
    let authorize = move |context: AuthContext<'_>| judge(&context.action, &ours);
    connection.authorizer(Some(authorize)).map_err(failed("beginning"))?;
    let attached = close_off(connection).map_err(failed("beginning"))?;
    stop.watch(connection).map_err(failed("beginning"))?;

    let mut splitter = Splitter::default();
    let mut statement = Vec::new();
    let (mut line, mut begins, mut fresh) = (1, 1, true);
    let mut piece = vec![0; PIECE];
    let execute = |statement: &mut Vec<u8>, line: u64| {
        let stopped = |why| ScriptError::Stopped { line, why };
        // A short statement may end before SQLite looks.
        if let Some(why) = stop.why() {
            return Err(stopped(why));
        }
        let at = |why: String| ScriptError::Statement { line, why };
        let sql = std::str::from_utf8(statement).map_err(|_| at("this is no UTF-8 text".into()))?;
        if sql.contains('\0') {
            return Err(at("there is a NUL in the text".into()));
        }
        let done = connection.execute_batch(sql).map_err(|error| {
            if let Some(why) = stop.interrupted(&error) {
                return stopped(why);
            }
            let reason = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
            at(reason.unwrap_or_else(|| error.to_string()))
        });
        statement.clear();
        done
    };
    loop {
        let n = match script.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let mut from = 0;
        for (at, byte) in piece[..n].iter().enumerate() {
            if fresh && !byte.is_ascii_whitespace() {
                (begins, fresh) = (line, false);
            }
            line += u64::from(*byte == b'\n');
            if splitter.take(*byte) {
                statement.extend_from_slice(&piece[from..=at]);
                (from, fresh) = (at + 1, true);
                execute(&mut statement, begins)?;
            }
        }
        statement.extend_from_slice(&piece[from..n]);
        if statement.len() > MAX_STATEMENT {
            let why = format!("the statement has more than {} MiB", MAX_STATEMENT >> 20);
            return Err(ScriptError::Statement { line: begins, why });
        }
    }
    // The last one needs no semicolon.
    execute(&mut statement, begins)?;
    let none = None::<fn(AuthContext<'_>) -> Authorization>;
    connection.authorizer(none).map_err(failed("committing"))?;
    connection.progress_handler(0, None::<fn() -> bool>).map_err(failed("committing"))?;
    // For the VACUUM of whoever made the connection.
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, attached).map_err(failed("committing"))?;
    connection.execute_batch("COMMIT").map_err(failed("committing"))
}

/// Should the authorizer overlook something: no file is attached, none is created, and none is written. Returns how
/// many could be attached before.
fn close_off(connection: &Connection) -> rusqlite::Result<i32> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false)?;
    let attached = connection.limit(Limit::SQLITE_LIMIT_ATTACHED)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    Ok(attached)
}

/// What a script may do.
fn judge(action: &AuthAction<'_>, refused: &Mutex<Option<String>>) -> Authorization {
    let why;
    let refusal = match action {
        AuthAction::Transaction { operation } => match operation {
            rusqlite::hooks::TransactionOperation::Rollback => {
                "ROLLBACK: a script is one transaction, which only an error ends"
            }
            _ => return Authorization::Ignore,
        },
        // A name that is no literal is not told, and then rusqlite doesn't know the action.
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Unknown { code: ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH, .. } => {
            "a script may not use other databases"
        }
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            "a script may not load extensions"
        }
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let is = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(pragma_name));
            // Modules, such as rtree, look at some of them themselves.
            if is(&THE_NODES) && (pragma_value.is_some() || is(&["wal_checkpoint"])) {
                return Authorization::Ignore;
            }
            if pragma_value.is_none() || is(&A_DUMPS) || guard::is_harmless(pragma_name) {
                return Authorization::Allow;
            }
            why = format!("PRAGMA {pragma_name} can't be set by a script");
            &why
        }
        _ => return Authorization::Allow,
    };
    *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal.to_owned());
    Authorization::Deny
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run_any(connection: &mut Connection, script: impl Read) -> Result<(), ScriptError> {
        super::run(connection, script, &Stop::after(Duration::from_secs(600)))
    }

    fn run(connection: &mut Connection, script: &[u8]) -> Result<(), ScriptError> {
        run_any(connection, script)
    }

    #[test]
    fn a_script_is_one_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let open = || Connection::open(&path).unwrap();
        let count = || open().query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        run(&mut open(), "CREATE TABLE t(a); BEGIN; INSERT INTO t VALUES (1); COMMIT".as_bytes()).unwrap();
        assert_eq!(count(), Ok(1));
        for (bad, said) in [
            ("BEGIN; INSERT INTO t VALUES (2); COMMIT; INSERT INTO none VALUES (1);", "no such table: none"),
            ("INSERT INTO t VALUES (2);\n\nROLLBACK;", "line 3: ROLLBACK"),
            ("INSERT INTO t VALUES (2); ATTACH 'x' AS x;", "other databases"),
            ("INSERT INTO t VALUES (2); SELECT load_extension('x');", "load extensions"),
            ("INSERT INTO t VALUES (2); SELECT 'abc", "unrecognized token"),
            ("INSERT INTO t VALUES (2); VACUUM INTO 'x'", "within a transaction"),
            ("INSERT INTO t VALUES (2); \u{0}", "NUL"),
        ] {
            let why = run(&mut open(), bad.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(said), "{bad}: {why}");
            assert_eq!(count(), Ok(1), "{bad}");
        }
        run(&mut open(), "PRAGMA journal_mode=WAL; INSERT INTO t VALUES (2)".as_bytes()).unwrap();
        assert_eq!(count(), Ok(2));
    }

    /// A statement that never ends is not collected for ever.
    #[test]
    fn a_statement_has_a_longest_length() {
        let mut connection = Connection::open_in_memory().unwrap();
        let script = "CREATE TABLE t(a);\nINSERT INTO t VALUES ('".as_bytes().chain(io::repeat(b'x'));
        let why = run_any(&mut connection, script).unwrap_err();
        assert!(
            matches!(&why, ScriptError::Statement { line: 2, why } if why.contains("more than 64 MiB")),
            "{why}"
        );
    }

    /// Whatever the name of a file is made from, a script can't attach it.
    #[test]
    fn a_script_reaches_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other.db");
        let name = other.to_str().unwrap();
        let connection = Connection::open(dir.path().join("db")).unwrap();
        connection.execute_batch("CREATE TABLE name(n)").unwrap();
        connection.execute("INSERT INTO name VALUES (?)", [name]).unwrap();
        drop(connection);
        let stem = name.strip_suffix(".db").unwrap();
        for attach in [
            format!("ATTACH '{name}' AS x"),
            format!("ATTACH '{stem}'||'.db' AS x"),
            format!("ATTACH 'file:{stem}'||'.db?vfs=unix-none' AS x"),
            format!("ATTACH (SELECT '{name}') AS x"),
            format!("ATTACH \"{name}\" AS x"),
            format!("ATTACH CAST('{name}' AS TEXT) AS 'x'||'y'"),
            "ATTACH (SELECT n FROM name) AS x".into(),
            "ATTACH ''||'' AS x".into(),
            "ATTACH NULL AS x".into(),
            "DETACH 'ma'||'in'".into(),
        ] {
            let mut connection = Connection::open(dir.path().join("db")).unwrap();
            let why = run(&mut connection, attach.as_bytes()).unwrap_err().to_string();
            assert!(why.contains("other databases"), "{attach}: {why}");
            assert!(!other.exists(), "{attach}");
        }
        // Nor without the authorizer.
        let connection = Connection::open(dir.path().join("db")).unwrap();
        close_off(&connection).unwrap();
        assert!(connection.execute("ATTACH ? AS x", [name]).is_err());
        assert!(!other.exists());
    }

    /// The process is others', too: a script sets what dumps have, and nothing beyond.
    #[test]
    fn a_script_sets_no_pragma_of_the_process() {
        let fresh = || Connection::open_in_memory().unwrap();
        for pragma in [
            "hard_heap_limit=1",
            "soft_heap_limit(1000)",
            "max_page_count=1",
            "temp_store_directory='/tmp'",
            "trusted_schema=ON",
            "query_only=1",
            "schema_version=7",
            "no_such_pragma=1",
        ] {
            let why = run(&mut fresh(), format!("PRAGMA main.{pragma}").as_bytes()).unwrap_err().to_string();
            assert!(why.contains("can't be set by a script"), "{pragma}: {why}");
            let why = run(&mut fresh(), format!("PRAGMA {pragma}").as_bytes()).unwrap_err().to_string();
            assert!(why.contains("can't be set by a script"), "{pragma}: {why}");
        }
        let dumped = "PRAGMA hard_heap_limit; PRAGMA foreign_keys=OFF; PRAGMA encoding='UTF-16le'; \
                      PRAGMA page_size=1024; PRAGMA auto_vacuum=1; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; \
                      PRAGMA cache_size=-2000000; PRAGMA user_version=3; PRAGMA application_id=4; \
                      PRAGMA writable_schema=ON; CREATE TABLE t(a); PRAGMA writable_schema=OFF; \
                      CREATE VIRTUAL TABLE r USING rtree(id, a, b); INSERT INTO r VALUES (1, 2, 3);";
        let mut connection = fresh();
        run(&mut connection, dumped.as_bytes()).unwrap();
        let is = |pragma: &str, value: &str| {
            let sql = format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}");
            assert_eq!(connection.query_row(&sql, [], |row| row.get(0)), Ok(value.to_owned()), "{pragma}");
        };
        is("user_version", "3");
        is("application_id", "4");
        is("encoding", "UTF-16le");
        is("page_size", "4096");
        is("hard_heap_limit", "0");
        // The module has learned the page size.
        let node = connection.query_row("SELECT length(data) FROM r_node", [], |row| row.get::<_, u32>(0));
        assert!(node.unwrap() > 512);
    }

    /// A script that never ends is ended, within a statement and between two, and leaves nothing.
    #[test]
    fn a_script_stops() {
        const FOREVER: &str =
            "INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT n FROM c;";
        struct Endless;
        impl Read for Endless {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                into[..11].copy_from_slice(b" SELECT 1; ");
                Ok(11)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let open = || Connection::open(dir.path().join("db")).unwrap();
        open().execute_batch("CREATE TABLE t(a)").unwrap();
        let soon = || Stop::after(Duration::from_millis(50));
        let within = format!("INSERT INTO t VALUES (1);\n{FOREVER}");
        let late = super::run(&mut open(), within.as_bytes(), &soon()).unwrap_err();
        assert!(matches!(late, ScriptError::Stopped { line: 2, why } if why.contains("timeout")), "{late}");
        let late = super::run(&mut open(), Endless, &soon()).unwrap_err();
        assert!(matches!(late, ScriptError::Stopped { line: 1, .. }), "{late}");
        let stop = Stop::after(Duration::from_secs(600));
        let asker = stop.asker();
        let running = std::thread::spawn({
            let (mut connection, stop) = (open(), stop.clone());
            move || super::run(&mut connection, FOREVER.as_bytes(), &stop).unwrap_err()
        });
        drop(asker);
        let gone = running.join().unwrap();
        assert!(matches!(gone, ScriptError::Stopped { why, .. } if why.contains("gone")), "{gone}");
        assert_eq!(open().query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(0));
    }
}
