//! `GET /db/backup`: a database as a file, or as an SQL script, while everything goes on. Served by any node, from its
//! own copy, after that has everything that was committed before the request (`noleader`: as it is).
//!
//! | parameter | meaning |
//! |---|---|
//! | `db=NAME` | the database; default `main` |
//! | `fmt=binary` | the file as it is, in WAL mode (default) |
//! | `fmt=delete` | the same with a rollback journal, so that it can be opened anywhere |
//! | `fmt=sql` | an SQL script like that of `.dump`; `tables=a,b`: only of these |
//! | `vacuum` | packed; takes a copy on this node's disk first |
//! | `compress` | as a gzip stream |
//! | `noleader` | this node's state as it is, also without a leader |
//! | `redirect` | 301 to the leader, from another node |
//! | `timeout=60s` | how long the client may read slower than 64 KiB/s |
//!
//! The headers `x-quire-size` (bytes before compression, where known), `x-quire-index` and `x-quire-checksum` tell what
//! comes. No backup is sent for longer than six hours. A body that could not be completed ends with a broken
//! connection, never as if it were whole.

use super::exchange::{self, ExchangeState};
use super::sink::{self, Sink};
use super::{Params, error};
use crate::db::database::Database;
use crate::db::export::{ExportError, Journal, set_journal};
use crate::db::sql;
use crate::db::view::View;
use crate::dump;
use crate::load;
use crate::node::OpenError;
use crate::peers::{self, PeerRequest};
use crate::stop::Stop;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use rusqlite::Connection;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

/// How long the node may take to have what was committed before the request.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Bytes of the disk that a packed copy leaves to the node's own writing.
const SPARE: u64 = 64 << 20;

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    form: Form,
    vacuum: bool,
    compress: bool,
    grace: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    File(Journal),
    Sql(Vec<String>),
}

impl Wanted {
    fn new(params: &Params) -> Result<Wanted, String> {
        let tables = params.get("tables").map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
        let form = match params.get("fmt").unwrap_or("binary") {
            "binary" | "" => Form::File(Journal::Wal),
            "delete" => Form::File(Journal::Delete),
            "sql" => Form::Sql(tables.clone().unwrap_or_default()),
            other => return Err(format!("fmt={other}: give binary, delete or sql")),
        };
        if tables.is_some() && !matches!(form, Form::Sql(_)) {
            return Err("tables: goes with fmt=sql only".into());
        }
        let vacuum = params.flag("vacuum");
        if vacuum && matches!(form, Form::Sql(_)) {
            return Err("vacuum: an SQL script has nothing to pack".into());
        }
        Ok(Wanted {
            name: exchange::database_name(params)?,
            form,
            vacuum,
            compress: params.flag("compress"),
            grace: params.duration("timeout")?.unwrap_or(sink::GRACE).min(sink::MAX_GRACE),
        })
    }

    fn file_name(&self) -> String {
        let ending = if matches!(self.form, Form::Sql(_)) { "sql" } else { "db" };
        format!("{}.{ending}{}", self.name, if self.compress { ".gz" } else { "" })
    }
}

/// What the body is made from.
enum Source {
    View(Box<View>),
    /// A packed copy, and its size.
    Packed(TempDir, File, u64),
    /// A connection in a read transaction.
    Sql(Connection, Vec<String>),
}

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
enum BackupError {
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("{0}")]
    Dump(#[from] dump::DumpError),
    #[error("there is no table {0}")]
    NoTable(String),
    #[error("{0} is reading its log again after a start; try again")]
    Starting(String),
    #[error(
        "not enough room to pack it: {need} bytes are needed on this node's disk, {free} are free; make room, or take \
         it as it is, without vacuum"
    )]
    NoRoom { need: u64, free: u64 },
    #[error("packing it: {0}")]
    Pack(rusqlite::Error),
}

impl From<crate::db::DbError> for BackupError {
    fn from(error: crate::db::DbError) -> BackupError {
        BackupError::Export(error.into())
    }
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> BackupError {
        BackupError::Export(error.into())
    }
}

/// Sends a backup.
pub(super) async fn backup(State(exchange): ExchangeState, uri: Uri, params: Params) -> Response {
    let wanted = match Wanted::new(&params) {
        Ok(wanted) => wanted,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    if params.flag("redirect") && !params.flag("noleader") {
        let status = exchange.node.raft_status();
        let leader = status.leader.filter(|&id| id != status.node_id).and_then(|id| status.peers.get(&id));
        if let Some(peer) = leader {
            let to = format!("{}://{}{uri}", exchange.node.config().http_scheme(), peer.http_addr);
            return (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response();
        }
    }
    let Ok(place) = exchange.backups.clone().try_acquire_owned() else {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many backups are under way on this node; try again",
        );
    };
    let node = exchange.node.clone();
    if !params.flag("noleader") {
        let up_to_date = Box::pin(async {
            let index = peers::ask_leader(&node, PeerRequest::Barrier, CATCH_UP).await.ok()?;
            node.wait_taken(index).await;
            node.registry().find(&wanted.name).await.ok()??.settled().await;
            Some(())
        });
        let known = node.registry().id_of(&wanted.name).is_some();
        let caught_up = tokio::time::timeout(CATCH_UP, up_to_date).await;
        if !matches!(caught_up, Ok(Some(()))) && known {
            let why = "this node can't tell whether it has everything that is committed: leader not found, or it \
                       lags; add noleader for its state as it is";
            return error(StatusCode::SERVICE_UNAVAILABLE, why);
        }
    }
    let database = match Box::pin(node.open_database(&wanted.name, false, None)).await {
        Ok(database) => database,
        Err(why @ OpenError::NotFound(_)) => return error(StatusCode::NOT_FOUND, &why.to_string()),
        Err(why) => return error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    };
    let (ours, asked, staging) = (database.clone(), wanted.clone(), exchange.staging.clone());
    let stop = Stop::after(sink::LONGEST);
    let asker = stop.asker();
    // The place is the threads': a client that leaves doesn't give it back before they end.
    let opened =
        spawn_blocking(move || Ok::<_, BackupError>((open(&ours, &asked, &staging, &stop)?, place))).await;
    drop(asker);
    let ((source, mut headers), place) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(why @ BackupError::NoRoom { .. })) => {
            return error(StatusCode::INSUFFICIENT_STORAGE, &why.to_string());
        }
        Ok(Err(why @ BackupError::NoTable(_))) => return error(StatusCode::BAD_REQUEST, &why.to_string()),
        Ok(Err(why)) => return error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
        Err(_) => return error(StatusCode::INTERNAL_SERVER_ERROR, "the backup failed"),
    };
    describe(&mut headers, &wanted);
    let (sink, body) = sink::sink(wanted.grace);
    spawn_blocking(move || {
        match send(&database, source, &wanted, sink) {
            Ok(()) => info!(database = database.name, "backup sent"),
            Err(why) => warn!(database = database.name, "backup not completed: {why}"),
        }
        drop(place);
    });
    (headers, body).into_response()
}

fn describe(headers: &mut HeaderMap, wanted: &Wanted) {
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    let kind = match wanted.form {
        _ if wanted.compress => "application/gzip",
        Form::File(_) => "application/vnd.sqlite3",
        Form::Sql(_) => "application/sql",
    };
    put(header::CONTENT_TYPE, kind.into());
    put(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", wanted.file_name()));
}

/// Whether a packed copy of a database of this size has room: at worst it is as large.
fn check_room(staging: &Path, bytes: u64) -> Result<(), BackupError> {
    let (need, free) = (bytes.saturating_add(SPARE), load::free(staging)?);
    if need > free { Err(BackupError::NoRoom { need, free }) } else { Ok(()) }
}

/// Takes the snapshot, and says what it is.
fn open(
    database: &Arc<Database>,
    wanted: &Wanted,
    staging: &Path,
    stop: &Stop,
) -> Result<(Source, HeaderMap), BackupError> {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    let source = match &wanted.form {
        Form::Sql(tables) => {
            let connection = sql::checkpointer(database.path())?;
            connection.execute_batch("BEGIN").map_err(dump::DumpError::from)?;
            if let Some(table) = dump::missing(&connection, tables).map_err(dump::DumpError::from)? {
                return Err(BackupError::NoTable(table.clone()));
            }
            Source::Sql(connection, tables.clone())
        }
        Form::File(_) if wanted.vacuum => {
            check_room(staging, u64::from(database.pages()) * u64::from(database.page_size.get()))?;
            let dir = tempfile::Builder::new().prefix("backup-").tempdir_in(staging)?;
            let path = dir.path().join("packed");
            let mut connection = sql::checkpointer(database.path())?;
            stop.watch(&mut connection).map_err(BackupError::Pack)?;
            // By the host's own VFS: to ours, it would be a replicated database.
            let into = format!("file:{}?vfs=unix", sql::uri_path(&path));
            connection.execute("VACUUM INTO ?", [into]).map_err(BackupError::Pack)?;
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            put("x-quire-size", &size.to_string());
            Source::Packed(dir, file, size)
        }
        Form::File(_) => {
            let view = database.wait_view()?;
            if !view.consistent {
                return Err(BackupError::Starting(database.name.clone()));
            }
            put("x-quire-size", &view.file_size().to_string());
            put("x-quire-index", &view.position.index.to_string());
            put("x-quire-checksum", &view.checksum.to_string());
            Source::View(Box::new(view))
        }
    };
    if let (false, Some(size)) = (wanted.compress, headers.get("x-quire-size").cloned()) {
        headers.insert(header::CONTENT_LENGTH, size);
    }
    Ok((source, headers))
}

fn send(
    database: &Arc<Database>,
    source: Source,
    wanted: &Wanted,
    mut sink: Sink,
) -> Result<(), BackupError> {
    let (sink, sent) = if wanted.compress {
        let mut gzip = GzEncoder::new(sink, Compression::fast());
        let written = write(database, source, wanted, &mut gzip);
        (gzip.finish()?, written)
    } else {
        let written = write(database, source, wanted, &mut sink);
        (sink, written)
    };
    match sent {
        Ok(()) => Ok(sink.end()?),
        Err(why) => {
            sink.fail(&why.to_string());
            Err(why)
        }
    }
}

fn write(
    database: &Arc<Database>,
    source: Source,
    wanted: &Wanted,
    out: &mut impl Write,
) -> Result<(), BackupError> {
    let Form::File(journal) = wanted.form else {
        let Source::Sql(connection, tables) = source else { return Ok(()) };
        return Ok(dump::dump(&connection, &tables, out)?);
    };
    match source {
        Source::View(view) => view.write_file(database, journal, out)?,
        Source::Packed(_dir, file, size) => {
            let mut file = file.take(size);
            let mut head = vec![0; 512];
            file.read_exact(&mut head)?;
            set_journal(&mut head, journal);
            out.write_all(&head)?;
            io::copy(&mut file, out)?;
        }
        Source::Sql(..) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_copy_must_have_room() {
        let dir = tempfile::tempdir().unwrap();
        let free = load::free(dir.path()).unwrap();
        check_room(dir.path(), 0).unwrap();
        for bytes in [free, u64::MAX] {
            let why = check_room(dir.path(), bytes).unwrap_err().to_string();
            assert!(why.starts_with("not enough room to pack it"), "{why}");
        }
    }
}
