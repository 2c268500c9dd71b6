//! A database as an SQL script, in the form of the `.dump` of SQLite's shell. Rows are written as they are read.
//!
//! Beyond that form: text that is no UTF-8 or contains a NUL is written as `CAST(X'…' AS TEXT)`, so that it comes back
//! as it was, and `user_version` and `application_id` are kept. As in the original, rowids that no column shows are
//! not.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params};
use std::io::{self, Write};

/// A dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// SQLite can't read it.
    #[error("reading it: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// It can't be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The first of these names that is no table or view of the database.
pub fn missing<'a>(connection: &Connection, tables: &'a [String]) -> rusqlite::Result<Option<&'a String>> {
    let find =
        "SELECT count(*) FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = lower(?)";
    let mut find = connection.prepare(find)?;
    for table in tables {
        if find.query_row([table], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Writes the script; with `tables`, only of those and what belongs to them. The connection must be in a transaction,
/// as the script is made by many statements.
pub fn dump(connection: &Connection, tables: &[String], out: &mut impl Write) -> Result<(), DumpError> {
    let wanted = |name: &str| tables.is_empty() || tables.iter().any(|t| t.eq_ignore_ascii_case(name));
    out.write_all(b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n")?;
    if tables.is_empty() {
        for pragma in ["user_version", "application_id"] {
            let value: i64 = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))?;
            if value != 0 {
                writeln!(out, "PRAGMA {pragma}={value};")?;
            }
        }
    }
    let mut writable = false;
    // The sequences come last: the inserts before would change them.
    let order = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL \
                 ORDER BY tbl_name = 'sqlite_sequence', rowid";
    for (name, sql) in pairs(connection, order, [])? {
        if !wanted(&name) {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        if lower == "sqlite_sequence" {
            if tables.is_empty() {
                out.write_all(b"DELETE FROM sqlite_sequence;\n")?;
                rows(connection, &name, out)?;
            }
            continue;
        }
        if lower.starts_with("sqlite_stat") {
            out.write_all(b"ANALYZE sqlite_schema;\n")?;
        } else if lower.starts_with("sqlite_") {
            continue;
        } else if is_virtual(&sql) {
            // Its content is in tables of its own, which come by themselves.
            if !writable {
                out.write_all(b"PRAGMA writable_schema=ON;\n")?;
                writable = true;
            }
            out.write_all(b"INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table',")?;
            text(name.as_bytes(), out)?;
            out.write_all(b",")?;
            text(name.as_bytes(), out)?;
            out.write_all(b",0,")?;
            text(sql.as_bytes(), out)?;
            out.write_all(b");\n")?;
            continue;
        } else {
            statement(&sql, out)?;
        }
        rows(connection, &name, out)?;
    }
    let rest = "SELECT CASE type WHEN 'view' THEN name ELSE tbl_name END, sql FROM sqlite_schema \
                WHERE type IN ('index', 'trigger', 'view') AND sql IS NOT NULL \
                ORDER BY CASE type WHEN 'view' THEN 0 WHEN 'index' THEN 1 ELSE 2 END, rowid";
    for (name, sql) in pairs(connection, rest, [])? {
        if wanted(&name) {
            statement(&sql, out)?;
        }
    }
    if writable {
        out.write_all(b"PRAGMA writable_schema=OFF;\n")?;
    }
    Ok(out.write_all(b"COMMIT;\n")?)
}

fn pairs(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare(sql)?;
    statement.query_map(params, |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn is_virtual(sql: &str) -> bool {
    let mut words = sql.split_ascii_whitespace();
    words.next().is_some_and(|word| word.eq_ignore_ascii_case("create"))
        && words.next().is_some_and(|word| word.eq_ignore_ascii_case("virtual"))
}

/// A statement of the schema; a comment at its end must not take in what follows.
fn statement(sql: &str, out: &mut impl Write) -> io::Result<()> {
    let comment = sql.lines().last().is_some_and(|line| line.contains("--"));
    writeln!(out, "{sql}{};", if comment { "\n" } else { "" })
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The rows of a table, without columns that SQLite computes.
fn rows(connection: &Connection, table: &str, out: &mut impl Write) -> Result<(), DumpError> {
    let mut columns = connection.prepare("SELECT name FROM pragma_table_info(?) ORDER BY cid")?;
    let columns: Vec<String> =
        columns.query_map([table], |row| row.get::<_, String>(0))?.collect::<Result<_, _>>()?;
    let list: Vec<String> = columns.iter().map(|name| identifier(name)).collect();
    let insert = format!("INSERT INTO {} VALUES(", identifier(table));
    let select = format!("SELECT {} FROM {}", list.join(","), identifier(table));
    let mut select = connection.prepare(&select)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        out.write_all(insert.as_bytes())?;
        for column in 0..columns.len() {
            if column > 0 {
                out.write_all(b",")?;
            }
            value(row.get_ref(column)?, out)?;
        }
        out.write_all(b");\n")?;
    }
    Ok(())
}

fn value(value: ValueRef<'_>, out: &mut impl Write) -> io::Result<()> {
    match value {
        ValueRef::Null => out.write_all(b"NULL"),
        ValueRef::Integer(number) => write!(out, "{number}"),
        // SQLite reads a number that is too large as infinity.
        ValueRef::Real(number) if number.is_infinite() => {
            out.write_all(if number > 0.0 { b"9.0e+999" } else { b"-9.0e+999" })
        }
        // The shortest form that is read as the same number, always with a point or an exponent.
        ValueRef::Real(number) => write!(out, "{number:?}"),
        ValueRef::Text(bytes) => text(bytes, out),
        ValueRef::Blob(bytes) => hex(bytes, out),
    }
}

fn text(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    if bytes.contains(&0) || std::str::from_utf8(bytes).is_err() {
        out.write_all(b"CAST(")?;
        hex(bytes, out)?;
        return out.write_all(b" AS TEXT)");
    }
    out.write_all(b"'")?;
    let mut parts = bytes.split(|byte| *byte == b'\'');
    out.write_all(parts.next().unwrap_or_default())?;
    for part in parts {
        out.write_all(b"''")?;
        out.write_all(part)?;
    }
    out.write_all(b"'")
}

fn hex(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.write_all(b"X'")?;
    let mut piece = [0; 1024];
    for bytes in bytes.chunks(piece.len() / 2) {
        for (pair, byte) in piece.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        out.write_all(&piece[..2 * bytes.len()])?;
    }
    out.write_all(b"'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;
    use crate::stop::Stop;
    use std::time::Duration;

    const SCHEMA: &str = r#"
        PRAGMA user_version = 7;
        CREATE TABLE "odd ""name" (id INTEGER PRIMARY KEY AUTOINCREMENT, "a b", c AS ("a b" || '!'), d -- end
        );
        CREATE TABLE plain(x, y) ;
        CREATE TABLE pairs(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
        CREATE INDEX by_y ON plain(y);
        CREATE VIEW seen AS SELECT x FROM plain;
        CREATE TRIGGER after_insert AFTER INSERT ON plain BEGIN
            INSERT INTO pairs VALUES (new.x || ';' || random(), 'END;'); SELECT 1; END;
        CREATE VIRTUAL TABLE words USING fts5(body);
        INSERT INTO words VALUES ('to be or not to be'), ('it''s');
        INSERT INTO "odd ""name"("a b", d) VALUES ('it''s', 1.5), (X'00ff27', 1e300), (NULL, 9e999), ('a;b', -0.1);
        INSERT INTO "odd ""name"("a b", d) VALUES (CAST(X'6100ff' AS TEXT), -9223372036854775807);
        INSERT INTO plain VALUES (1, 2), ('three', 4.25);
        DELETE FROM "odd ""name" WHERE id = 2;
    "#;

    fn contents(connection: &Connection) -> Vec<String> {
        let mut found = Vec::new();
        for sql in [
            "SELECT quote(type) || quote(name) || quote(sql) FROM sqlite_schema ORDER BY type, name",
            "SELECT id || quote(hex(\"a b\")) || typeof(\"a b\") || quote(d) || c FROM \"odd \"\"name\"",
            "SELECT quote(x) || quote(y) FROM seen JOIN plain USING (x)",
            "SELECT quote(k) || quote(v) FROM pairs",
            "SELECT name || seq FROM sqlite_sequence",
            "SELECT body FROM words WHERE words MATCH 'be'",
            "SELECT user_version FROM pragma_user_version",
        ] {
            let mut statement = connection.prepare(sql).unwrap();
            let rows = statement.query_map([], |row| Ok(format!("{:?}", row.get_ref(0)?))).unwrap();
            found.extend(rows.map(Result::unwrap));
        }
        found
    }

    #[test]
    fn what_is_dumped_comes_back_the_same() {
        let from = Connection::open_in_memory().unwrap();
        from.execute_batch(SCHEMA).unwrap();
        let mut sql = Vec::new();
        dump(&from, &[], &mut sql).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let stop = Stop::after(Duration::from_secs(600));
        script::run(&mut Connection::open(&path).unwrap(), sql.as_slice(), &stop).unwrap();
        let again = Connection::open(&path).unwrap();
        assert_eq!(contents(&again), contents(&from), "{}", String::from_utf8_lossy(&sql));
        assert_eq!(again.query_row("PRAGMA integrity_check", [], |r| r.get(0)), Ok("ok".to_owned()));
    }

    #[test]
    fn some_tables() {
        let from = Connection::open_in_memory().unwrap();
        from.execute_batch(SCHEMA).unwrap();
        let mut sql = Vec::new();
        let tables = ["Plain".to_owned()];
        assert_eq!(missing(&from, &tables).unwrap(), None);
        assert_eq!(missing(&from, &["none".to_owned()]).unwrap(), Some(&"none".to_owned()));
        dump(&from, &tables, &mut sql).unwrap();
        let sql = String::from_utf8(sql).unwrap();
        assert!(sql.contains("INSERT INTO \"plain\" VALUES('three',4.25);\n"), "{sql}");
        assert!(sql.contains("CREATE INDEX by_y") && sql.contains("CREATE TRIGGER after_insert"), "{sql}");
        for other in ["odd", "INTO \"pairs\"", "words", "VIEW", "sqlite_sequence"] {
            assert!(!sql.contains(other), "{other}: {sql}");
        }
    }
}
