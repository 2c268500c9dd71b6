//! `quire restore` and `quire db import`: files to databases. A SQLite file that may be in use is read through SQLite,
//! so that what is sent is its state at one moment, with what is only in its WAL.

use super::backup::bar;
use super::client::{Client, LOAD_TIMEOUT};
use crate::args::RestoreArgs;
use anyhow::{Context as _, bail};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tempfile::NamedTempFile;

/// How long others may keep the file locked.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that are copied at once.
const STEP: i32 = 1024;

/// Restores.
pub fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(&args.client)?;
    let files = match (&args.file, &args.all) {
        (Some(file), None) => vec![(file.clone(), args.db.clone())],
        (_, Some(dir)) => files(dir)?,
        (None, None) => bail!("name a file, or a directory with --all"),
    };
    let mut done = Vec::new();
    for (file, name) in &files {
        done.push(load(&client, file, name, args.force, "--force")?);
    }
    report(&done, args.client.json);
    Ok(ExitCode::SUCCESS)
}

/// Says what was loaded.
pub(super) fn report(done: &[Value], as_json: bool) {
    if as_json {
        println!("{}", json!({ "loaded": done }));
        return;
    }
    for one in done {
        let name = one["database"].as_str().unwrap_or("-");
        println!("{name}: {} bytes loaded, {} pages, entry {}", one["bytes"], one["pages"], one["index"]);
    }
}

/// The backups of a directory, and the databases that they are of.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let Some(name) = name.strip_suffix(".db").or_else(|| name.strip_suffix(".sql")) else { continue };
        crate::name::check(name).with_context(|| path.display().to_string())?;
        if let Some((other, _)) = found.iter().find(|(_, taken)| taken == name) {
            bail!("{} and {} are both of {name}; keep one", other.display(), path.display());
        }
        found.push((path.clone(), name.to_owned()));
    }
    if found.is_empty() {
        bail!("{}: there is no FILE.db or FILE.sql", dir.display());
    }
    found.sort();
    Ok(found)
}

/// Sends a file to be loaded.
pub(super) fn load(
    client: &Client,
    path: &Path,
    name: &str,
    replace: bool,
    flag: &str,
) -> anyhow::Result<Value> {
    crate::name::check(name)?;
    let mut source = Source::open(path).with_context(|| path.display().to_string())?;
    let size = source.file.metadata()?.len();
    if size == 0 {
        bail!("{} is empty", path.display());
    }
    let bar = bar(name, Some(size));
    let mut body = Watched { file: &mut source.file, bar: bar.clone() };
    let query = if replace { "replace" } else { "noreplace" };
    let patience = LOAD_TIMEOUT.as_secs();
    let path = format!("/db/load?db={name}&timeout={patience}s&{query}");
    let loaded = client.upload(&path, &mut body, size);
    bar.finish_and_clear();
    loaded.map_err(|why| match why.to_string() {
        said if said.ends_with("is not empty") => anyhow::anyhow!("{said}; replace what it has with {flag}"),
        _ => why,
    })
}

/// Shows how much was sent, and then that the node is at work.
struct Watched<'a> {
    file: &'a mut File,
    bar: indicatif::ProgressBar,
}

impl Read for Watched<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(out)?;
        self.bar.inc(n as u64);
        if n == 0 || self.bar.length().is_some_and(|all| self.bar.position() >= all) {
            let style = indicatif::ProgressStyle::with_template(
                "{prefix} {spinner} {elapsed} checked and committed by the node",
            );
            self.bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_spinner()));
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        Ok(n)
    }
}

/// A file that stays as it is while it is read.
#[derive(Debug)]
struct Source {
    file: File,
    /// Keeps writers of the file away; or the copy, if there is one. After `file`: closing that would drop the locks
    /// that this one has.
    _held: Held,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Lock(#[allow(dead_code, reason = "held")] Connection),
    Copy(#[allow(dead_code, reason = "held")] NamedTempFile),
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Source> {
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            bail!("this is a directory; --all takes one");
        }
        let mut head = [0; 20];
        let n = file.read(&mut head)?;
        file.rewind()?;
        if n < head.len() || !head.starts_with(b"SQLite format 3\0") {
            return Ok(Source { file, _held: Held::Nothing });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        // The node finds out what is wrong with a file; here it only has to be held.
        let begun = connection.execute_batch("BEGIN; PRAGMA user_version; PRAGMA schema_version");
        let begun =
            begun.and_then(|()| connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())));
        match begun {
            Ok(()) => {}
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                bail!("another process keeps it locked: {error}")
            }
            Err(error) if wal_of(path).is_some() => bail!("it can't be read together with its WAL: {error}"),
            Err(_) => return Ok(Source { file, _held: Held::Nothing }),
        }
        // A rollback journal: nobody writes the file while somebody reads.
        if head[18] == 1 {
            return Ok(Source { file, _held: Held::Lock(connection) });
        }
        let copy = tempfile::Builder::new().prefix("quire-").suffix(".db").tempfile()?;
        let mut to = Connection::open(copy.path())?;
        let copied = copy_pages(&connection, &mut to);
        copied.with_context(|| format!("copying it to {}", copy.path().display()))?;
        drop(to);
        Ok(Source { file: File::open(copy.path())?, _held: Held::Copy(copy) })
    }
}

/// The WAL beside a file, if it has one with content.
fn wal_of(path: &Path) -> Option<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let wal = PathBuf::from(name);
    wal.metadata().is_ok_and(|metadata| metadata.len() > 0).then_some(wal)
}

fn copy_pages(from: &Connection, to: &mut Connection) -> anyhow::Result<()> {
    let backup = Backup::new(from, to)?;
    loop {
        match backup.step(STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
