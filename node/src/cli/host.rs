//! `quire host`: a plain SQLite app, for machines without one that can load extensions. It knows nothing of
//! Quire but the extension and the connection string. It runs the SQL lines of its standard input and prints
//! rows as `sqlite3` does.

use crate::args::HostArgs;
use anyhow::Context as _;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Opens a database as an app does: loads the extension if one is named, then opens the connection string.
pub fn open(extension: Option<&Path>, database: &str) -> anyhow::Result<Connection> {
    if let Some(extension) = extension {
        let loader = Connection::open_in_memory()?;
        // SAFETY: the extension is Quire's own, whose entry point keeps SQLite's rules; it stays loaded.
        unsafe {
            loader.load_extension_enable()?;
            loader.load_extension(extension, None::<&str>)?;
        }
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(database, flags).with_context(|| database.to_owned())?;
    connection.busy_timeout(Duration::from_secs(15))?;
    Ok(connection)
}

/// Runs the app.
pub fn run(args: &HostArgs) -> anyhow::Result<ExitCode> {
    let connection = open(args.extension.as_deref(), &args.database)?;
    if let Some(sql) = &args.run {
        return execute(&connection, sql).map(|()| ExitCode::SUCCESS);
    }
    for line in std::io::stdin().lock().lines() {
        if let Err(error) = execute(&connection, &line?) {
            eprintln!("Error: {error:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(connection: &Connection, sql: &str) -> anyhow::Result<()> {
    let mut batch = rusqlite::Batch::new(connection, sql);
    let mut out = std::io::stdout().lock();
    while let Some(mut statement) = batch.next()? {
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: Result<Vec<_>, _> = (0..columns).map(|n| row.get_ref(n).map(text)).collect();
            writeln!(out, "{}", values?.join("|"))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(x) => x.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}
