//! Loading a database from a file: what comes from outside is staged, checked, and becomes the database's content as
//! one transaction.
//!
//! 1. [`Upload`]: the bytes go to a file in `DIR/staging`, never more of them than the disk has room for. A gzip stream
//!    is unpacked on the way. What it is tells its beginning: a SQLite file, or else an SQL script.
//! 2. [`prepare`]: a SQLite file is looked at as a whole (header, length, `PRAGMA quick_check`). A script that is to
//!    replace a database is run into an empty file first. A file whose pages have another size than the database's is
//!    rewritten by `VACUUM INTO`.
//! 3. [`replace`] or [`add`]: through a connection like an app's, with SQLite's own backup API or the script's
//!    statements. A large transaction travels in parts, as any app's does; readers see one switch, and whatever fails
//!    before the end leaves nothing.
//!
//! A [`Stop`] ends the second and the third step while nothing is committed.

use crate::db::ear::Said;
use crate::db::export::{Journal, VERSIONS, set_journal};
use crate::db::{DbError, sql};
use crate::script::{self, ScriptError};
use crate::stop::Stop;
use flate2::write::MultiGzDecoder;
use nix::sys::statvfs::statvfs;
use quire_vfs::format::PageSize;
use quire_vfs::gate::proto::Outcome;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{DirBuilder, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How a SQLite file begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// How a gzip stream begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Loading takes this many times the size beside the staged file: in the log, in the staged parts, in the WAL, and in
/// the database file.
const ROOM: u64 = 4;
/// Bytes between two looks at the disk.
const LOOK: u64 = 16 << 20;
/// How long a load waits for its turn to write.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that are copied at once.
const STEP: i32 = 256;

/// What came can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is nothing.
    #[error("there is nothing to load: the body is empty")]
    Empty,
    /// The disk is too small.
    #[error(
        "not enough room to load it: {need} bytes are needed on this node's disk, {free} are free; make room, or load \
         something smaller"
    )]
    NoRoom {
        /// Bytes.
        need: u64,
        /// Bytes.
        free: u64,
    },
    /// It is something else.
    #[error("this is neither a SQLite database nor an SQL script{0}")]
    Foreign(&'static str),
    /// The file isn't whole.
    #[error("the file is {0}")]
    Damaged(String),
    /// The script fails.
    #[error("the SQL script fails, and nothing was changed: {0}")]
    Script(ScriptError),
    /// It had to stop.
    #[error("it was given up, and nothing was changed: {0}")]
    Stopped(String),
    /// Nobody may write now.
    #[error("it could not be written, and nothing was changed: {0}")]
    Refused(String),
    /// It is unknown whether it was written.
    #[error(
        "its outcome is unknown: it may or may not have been written; look before you load it again: {0}"
    )]
    Unknown(String),
    /// The database can't be opened.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The disk refuses.
    #[error("staging it: {0}")]
    Io(#[from] io::Error),
    /// SQLite refuses.
    #[error("{what}: {error}")]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// Why.
        error: rusqlite::Error,
    },
}

/// Where uploads are staged. What a former life of the node left there is removed.
pub fn staging(data_dir: &Path) -> io::Result<PathBuf> {
    let path = data_dir.join("staging");
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Bytes that the disk has free.
pub fn free(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn check_room(path: &Path, need: u64) -> Result<(), LoadError> {
    let free = free(path)?;
    if need > free { Err(LoadError::NoRoom { need, free }) } else { Ok(()) }
}

/// A file that grows as far as the disk has room to load it.
#[derive(Debug)]
struct Growing {
    file: File,
    path: PathBuf,
    written: u64,
    looked: u64,
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.looked {
            check_room(&self.path, ROOM * self.written + LOOK).map_err(io::Error::other)?;
            self.looked = self.written + LOOK;
        }
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[derive(Debug)]
enum Sink {
    Plain(Growing),
    Gzip(Box<MultiGzDecoder<Growing>>),
}

/// What is being received.
#[derive(Debug)]
pub struct Upload {
    dir: TempDir,
    head: Vec<u8>,
    sink: Option<Sink>,
}

/// What was received.
#[derive(Debug)]
pub struct Staged {
    dir: TempDir,
    path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What was received may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SQLite file.
    File,
    /// An SQL script.
    Script,
}

impl Upload {
    /// Begins; `length` is the size that was announced, if any.
    pub fn begin(staging: &Path, length: Option<u64>) -> Result<Upload, LoadError> {
        if let Some(length) = length {
            check_room(staging, length.saturating_mul(ROOM + 1))?;
        }
        let dir = tempfile::Builder::new().prefix("load-").tempdir_in(staging)?;
        Ok(Upload { dir, head: Vec::new(), sink: None })
    }

    fn start(&mut self) -> Result<&mut Sink, LoadError> {
        let path = self.dir.path().join("upload");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let file = Growing { file, path, written: 0, looked: 0 };
        let is_gzip = self.head.starts_with(&GZIP);
        let sink = if is_gzip { Sink::Gzip(Box::new(MultiGzDecoder::new(file))) } else { Sink::Plain(file) };
        Ok(self.sink.insert(sink))
    }

    /// Takes what comes next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let mut first = Vec::new();
        let mut bytes = bytes;
        if self.sink.is_none() {
            self.head.extend_from_slice(bytes);
            if self.head.len() < GZIP.len() {
                return Ok(());
            }
            self.start()?;
            first = std::mem::take(&mut self.head);
            bytes = &first;
        }
        let written = match &mut self.sink {
            Some(Sink::Plain(file)) => file.write_all(bytes),
            Some(Sink::Gzip(decoder)) => decoder.write_all(bytes),
            None => Ok(()),
        };
        drop(first);
        written.map_err(unwrap_room)
    }

    /// All has come.
    pub fn finish(mut self) -> Result<Staged, LoadError> {
        if self.sink.is_none() && !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            if let Sink::Plain(file) = self.start()? {
                file.write_all(&head).map_err(unwrap_room)?;
            }
        }
        let file = match self.sink.take() {
            None => return Err(LoadError::Empty),
            Some(Sink::Plain(file)) => file,
            Some(Sink::Gzip(decoder)) => decoder.finish().map_err(unwrap_room)?,
        };
        let (path, bytes) = (file.path, file.written);
        if bytes == 0 {
            return Err(LoadError::Empty);
        }
        let mut head = [0; 512];
        let n = file.file.read_at(&mut head, 0)?;
        Ok(Staged { kind: sniff(&head[..n])?, dir: self.dir, path, bytes })
    }
}

/// An error of the disk, or what was hidden in one.
fn unwrap_room(error: io::Error) -> LoadError {
    match error.downcast::<LoadError>() {
        Ok(error) => error,
        Err(error) => match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                LoadError::Damaged(format!("compressed, and the gzip stream is damaged or cut off: {error}"))
            }
            _ => LoadError::Io(error),
        },
    }
}

fn sniff(head: &[u8]) -> Result<Kind, LoadError> {
    if head.starts_with(MAGIC) {
        return Ok(Kind::File);
    }
    if head.len() >= 6 && MAGIC.starts_with(head) {
        return Err(LoadError::Damaged("truncated: it ends in its header".into()));
    }
    let text = std::str::from_utf8(head);
    // The last character may be cut.
    let is_text = text.is_ok() || text.is_err_and(|error| error.error_len().is_none());
    let control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    if is_text && !head.iter().any(control) {
        return Ok(Kind::Script);
    }
    Err(LoadError::Foreign("; an encrypted database must be decrypted first"))
}

fn sqlite(what: &'static str) -> impl FnOnce(rusqlite::Error) -> LoadError {
    move |error| LoadError::Sqlite { what, error }
}

/// The same, for a connection that is watched.
fn watched(what: &'static str, stop: &Stop) -> impl FnOnce(rusqlite::Error) -> LoadError {
    move |error| match stop.interrupted(&error) {
        Some(why) => LoadError::Stopped(format!("{what}: {why}")),
        None => LoadError::Sqlite { what, error },
    }
}

fn of_script(error: ScriptError) -> LoadError {
    match error {
        ScriptError::Stopped { .. } => LoadError::Stopped(error.to_string()),
        other => LoadError::Script(other),
    }
}

/// A SQLite file that is ready to become a database's content.
#[derive(Debug)]
pub struct Ready {
    _dir: TempDir,
    path: PathBuf,
    /// Its page size.
    pub page_size: PageSize,
}

/// Makes a file of what was received that can replace a database: one of this page size, if there is one to be kept.
pub fn prepare(staged: Staged, page_size: Option<PageSize>, stop: &Stop) -> Result<Ready, LoadError> {
    let Staged { dir, path, kind, bytes } = staged;
    let (path, found) = match kind {
        Kind::File => {
            let found = check_header(&path, bytes)?;
            check_pages(&path, stop)?;
            (path, found)
        }
        Kind::Script => {
            let size = page_size.unwrap_or(PageSize::DEFAULT);
            let built = dir.path().join("built");
            run_aside(&path, &built, size, stop)?;
            (built, size)
        }
    };
    let wanted = page_size.unwrap_or(found);
    if wanted == found {
        return Ok(Ready { _dir: dir, path, page_size: found });
    }
    check_room(dir.path(), (ROOM + 1) * bytes)?;
    let converted = dir.path().join("converted");
    let mut from = aside(&path)?;
    stop.watch(&mut from).map_err(sqlite("converting it"))?;
    let into = converted.to_string_lossy();
    from.pragma_update(None, "page_size", wanted.get()).map_err(sqlite("converting it"))?;
    let what = "converting it to the database's page size";
    from.execute("VACUUM INTO ?", [&into]).map_err(watched(what, stop))?;
    Ok(Ready { _dir: dir, path: converted, page_size: wanted })
}

/// Opens a staged file, which is nobody else's.
fn aside(path: &Path) -> Result<Connection, LoadError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = connection.map_err(sqlite("opening it"))?;
    // Whatever its schema has in store, it runs nothing here.
    connection.pragma_update(None, "trusted_schema", false).map_err(sqlite("opening it"))?;
    Ok(connection)
}

/// Looks at the header of a SQLite file, and makes it one with a rollback journal: its WAL, if it had one, isn't here.
fn check_header(path: &Path, bytes: u64) -> Result<PageSize, LoadError> {
    let damaged = |why: String| Err(LoadError::Damaged(why));
    if bytes < 512 {
        return damaged(format!("truncated: {bytes} bytes are less than a page"));
    }
    let file = File::options().read(true).write(true).open(path)?;
    let mut head = [0; 100];
    file.read_exact_at(&mut head, 0)?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let page_size = match u16::from_be_bytes([head[16], head[17]]) {
        1 => 65536,
        size => u32::from(size),
    };
    let Some(size) = PageSize::new(page_size) else {
        return damaged(format!("damaged: {page_size} is no page size"));
    };
    if head[VERSIONS].iter().any(|version| !matches!(version, 1 | 2)) {
        return damaged("damaged, or of a format that is newer than this program".into());
    }
    let pages = bytes / u64::from(page_size);
    // The number of pages is valid if it was written with the last change.
    let (changes, valid_for, said) = (word(24), word(92), u64::from(word(28)));
    if changes == valid_for && said > pages {
        return damaged(format!(
            "truncated: it has {pages} pages of {page_size} bytes, its header says {said}"
        ));
    }
    if !bytes.is_multiple_of(u64::from(page_size)) {
        return damaged(format!("truncated: {bytes} bytes are no multiple of its page size, {page_size}"));
    }
    set_journal(&mut head, Journal::Delete);
    file.write_all_at(&head[VERSIONS], VERSIONS.start as u64)?;
    Ok(size)
}

/// Has SQLite look at every page.
fn check_pages(path: &Path, stop: &Stop) -> Result<(), LoadError> {
    let mut connection = aside(path)?;
    stop.watch(&mut connection).map_err(sqlite("checking it"))?;
    // CHECK constraints may need functions that only the app has.
    let ignore = connection.pragma_update(None, "ignore_check_constraints", true);
    ignore.map_err(sqlite("checking it"))?;
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match found {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => Err(LoadError::Damaged(format!("damaged: {}", found.replace('\n', " ")))),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Err(LoadError::Damaged(format!("damaged: {error}")))
            }
            // A schema with functions, collations or modules of the app's.
            Some(ErrorCode::Unknown) => {
                tracing::warn!("a file that is loaded can't be checked completely: {error}");
                Ok(())
            }
            _ => Err(watched("checking it", stop)(error)),
        },
    }
}

/// Runs a script into a new file.
fn run_aside(script: &Path, into: &Path, page_size: PageSize, stop: &Stop) -> Result<(), LoadError> {
    let room = free(into.parent().unwrap_or(into))? / (ROOM + 1);
    let mut connection = aside(into)?;
    let most = room / u64::from(page_size.get()) + 1;
    // Nothing needs to survive a crash.
    let setup = format!(
        "PRAGMA page_size={page_size}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA max_page_count={most};"
    );
    connection.execute_batch(&setup).map_err(sqlite("preparing a file"))?;
    let script = BufReader::new(File::open(script)?);
    script::run(&mut connection, script, stop).map_err(of_script)?;
    stop.watch(&mut connection).map_err(sqlite("writing a file"))?;
    // One without a single table is yet to be written.
    connection.execute_batch("VACUUM").map_err(watched("writing a file", stop))
}

/// Makes the file the database's content, in one transaction.
pub fn replace(ready: &Ready, database: &Path, socket: &Path, stop: &Stop) -> Result<(), LoadError> {
    let from = aside(&ready.path)?;
    let (mut to, ear) = sql::writer(database, socket)?;
    let backup = Backup::new(&from, &mut to).map_err(sqlite("beginning to write"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(why) = stop.why() {
            return Err(LoadError::Stopped(why.into()));
        }
        match backup.step(STEP).map_err(|error| not_written(&error, ear.take()))? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let why = ear.take().refusal.map(|refusal| refusal.to_string());
                let why = why.unwrap_or_else(|| "another writer has the database; try again".into());
                return Err(LoadError::Refused(why));
            }
        }
    }
}

/// Runs the script on the database as it is, in one transaction.
pub fn add(staged: &Staged, database: &Path, socket: &Path, stop: &Stop) -> Result<(), LoadError> {
    let (mut to, ear) = sql::writer(database, socket)?;
    to.busy_timeout(PATIENCE).map_err(sqlite("beginning to write"))?;
    let script: BufReader<Box<dyn Read>> = BufReader::new(Box::new(File::open(&staged.path)?));
    script::run(&mut to, script, stop).map_err(|error| match error {
        ScriptError::Transaction { error, .. } => not_written(&error, ear.take()),
        // A part of the transaction was refused: the script is not to blame.
        ScriptError::Statement { line, why } => match ear.take().outcome {
            Some(Outcome::Refused(why)) => LoadError::Refused(why),
            _ => LoadError::Script(ScriptError::Statement { line, why }),
        },
        other => of_script(other),
    })
}

/// What became of a transaction that failed with this error.
fn not_written(error: &rusqlite::Error, said: Said) -> LoadError {
    match (said.outcome, said.refusal) {
        (Some(Outcome::Unknown(why)), _) => LoadError::Unknown(why),
        (Some(Outcome::Committed(index)), _) => LoadError::Unknown(format!(
            "it is committed at index {index}, but this node can't show it: {error}"
        )),
        (Some(Outcome::Refused(why)), _) => LoadError::Refused(why),
        (None, Some(refusal)) => LoadError::Refused(refusal.to_string()),
        (None, None) => LoadError::Refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn prepare(staged: Staged, page_size: Option<PageSize>) -> Result<Ready, LoadError> {
        super::prepare(staged, page_size, &Stop::after(Duration::from_secs(600)))
    }

    fn upload(pieces: &[&[u8]]) -> Result<Staged, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let mut upload = Upload::begin(dir.path(), None)?;
        for piece in pieces {
            upload.write(piece)?;
        }
        let staged = upload.finish()?;
        // Not removed before the test ends.
        let _ = dir.keep();
        Ok(staged)
    }

    fn file(page_size: u32) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let connection = Connection::open(&path).unwrap();
        let fill = "CREATE TABLE t(a); INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c \
                    WHERE i < 200) SELECT randomblob(100) FROM c;";
        connection.execute_batch(&format!("PRAGMA page_size={page_size}; {fill}")).unwrap();
        drop(connection);
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_comes_is_told_by_its_beginning() {
        let bytes = file(4096);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let gzip = gzip.finish().unwrap();
        for (pieces, kind) in [
            (vec![&bytes[..1], &bytes[1..]], Kind::File),
            (vec![&gzip[..1], &gzip[1..9], &gzip[9..]], Kind::File),
            (vec![b"S".as_slice()], Kind::Script),
            ("-- größer\nCREATE TABLE t(a);".as_bytes().chunks(1).collect(), Kind::Script),
        ] {
            let staged = upload(&pieces).unwrap();
            assert_eq!(staged.kind, kind);
            if kind == Kind::File {
                assert_eq!(std::fs::read(&staged.path).unwrap(), bytes);
            }
        }
        let cut = &gzip[..gzip.len() / 2];
        for (bad, said) in [
            (vec![], "empty"),
            (vec![b"".as_slice()], "empty"),
            (vec![b"\x89PNG\r\n\x1a\n".as_slice()], "neither"),
            (vec![&bytes[16..4096]], "neither"),
            (vec![&bytes[..12]], "truncated"),
            (vec![cut], "gzip"),
        ] {
            let why = upload(&bad).unwrap_err().to_string();
            assert!(why.contains(said), "{said}: {why}");
        }
    }

    #[test]
    fn files_are_checked_and_converted() {
        for size in [512, 4096, 65536] {
            let staged = upload(&[&file(size)]).unwrap();
            let wanted = PageSize::new(1024);
            assert_eq!(prepare(staged, None).unwrap().page_size.get(), size);
            let ready = prepare(upload(&[&file(size)]).unwrap(), wanted).unwrap();
            let connection = aside(&ready.path).unwrap();
            let pages = connection.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0));
            assert_eq!((pages, ready.page_size.get()), (Ok(1024), 1024));
            assert_eq!(connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(200));
        }
        let whole = file(4096);
        let mut damaged = whole.clone();
        damaged[4096..4200].fill(0xff);
        let mut no_size = whole.clone();
        no_size[16..18].copy_from_slice(&[0, 3]);
        for (bad, said) in [
            (&whole[..whole.len() - 4096], "truncated"),
            (&whole[..whole.len() - 1], "truncated"),
            (&whole[..300], "truncated"),
            (&damaged[..], "damaged"),
            (&no_size[..], "page size"),
        ] {
            let why = prepare(upload(&[bad]).unwrap(), None).unwrap_err().to_string();
            assert!(why.contains(said), "{said}: {why}");
        }
    }

    #[test]
    fn more_than_the_disk_has_is_refused_before_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let why = Upload::begin(dir.path(), Some(1 << 60)).unwrap_err().to_string();
        assert!(why.starts_with("not enough room"), "{why}");
    }

    #[test]
    fn a_script_makes_a_file() {
        let staged = upload(&[b"CREATE TABLE t(a); INSERT INTO t VALUES (1)"]).unwrap();
        let ready = prepare(staged, PageSize::new(512)).unwrap();
        let connection = aside(&ready.path).unwrap();
        assert_eq!(connection.query_row("SELECT a FROM t", [], |row| row.get(0)), Ok(1));
        let ready = prepare(upload(&[b"-- nothing"]).unwrap(), None).unwrap();
        assert!(ready.path.metadata().unwrap().len() >= 4096);
    }

    #[test]
    fn what_is_prepared_stops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let rows = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 5000)";
        let script = format!("CREATE TABLE t(a UNIQUE); INSERT INTO t {rows} SELECT i FROM c;");
        Connection::open(&path).unwrap().execute_batch(&script).unwrap();
        let stop = Stop::after(Duration::from_secs(600));
        drop(stop.asker());
        for bytes in [&std::fs::read(&path).unwrap()[..], script.as_bytes()] {
            let why = super::prepare(upload(&[bytes]).unwrap(), None, &stop).unwrap_err();
            assert!(matches!(&why, LoadError::Stopped(why) if why.contains("gone")), "{why}");
        }
    }

    /// What may have been written is never said to have changed nothing.
    #[test]
    fn an_unknown_outcome_is_no_refusal() {
        let error = || rusqlite::Error::InvalidQuery;
        let said = |outcome| not_written(&error(), Said { outcome: Some(outcome), ..Said::default() });
        for outcome in [Outcome::Unknown("the leader is gone".into()), Outcome::Committed(7)] {
            let why = said(outcome);
            assert!(matches!(why, LoadError::Unknown(_)), "{why}");
            assert!(why.to_string().contains("unknown") && !why.to_string().contains("nothing"), "{why}");
        }
        // The word makes no difference.
        let why = said(Outcome::Refused("an unknown database".into()));
        assert!(matches!(why, LoadError::Refused(_)), "{why}");
        let why = not_written(&error(), Said::default());
        assert!(matches!(why, LoadError::Refused(_)), "{why}");
    }
}
