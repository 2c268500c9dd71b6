//! `POST /db/load`: a SQLite file, or an SQL script, of any size becomes the content of a database, in one transaction.
//! Any node takes it. It may come compressed by gzip. What it is, is told by its beginning.
//!
//! | parameter | meaning |
//! |---|---|
//! | `db=NAME` | the database, created if it doesn't exist; default `main` |
//! | `replace` | a script, too, replaces what is there; else it is run on that, if there is such a database. A file always replaces |
//! | `noreplace` | 409 if the database has any content |
//! | `redirect` | accepted; there is nowhere to go, as any node writes |
//! | `timeout=1h` | how long it may take from when everything has come |
//! | `idle=30s` | how long the client may be silent while it sends, 10 minutes at most; after that time it must also have sent 64 KiB/s on average. 408 if not |
//!
//! The answer is `{"database", "kind", "bytes", "pages", "index"}`, once the transaction is committed. Whatever fails
//! before changes nothing; 504 says that the outcome is unknown. A database that doesn't exist is created when what came
//! has been found good, right before it is written. It is given up when the client leaves before the
//! commit. `Expect: 100-continue` spares a client to send what is refused anyway.

use super::exchange::{self, Exchange, ExchangeState};
use super::{Params, body, error};
use crate::load::{self, Kind, LoadError, Staged, Upload};
use crate::node::OpenError;
use crate::stop::Stop;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// How long the client may be silent, if it says nothing else: it keeps a place that others wait for.
const IDLE: Duration = Duration::from_secs(30);
/// The longest that it may ask for.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// The client must send so many bytes per second, on average and after the time that it may be silent.
const MIN_RATE: u64 = 64 << 10;
/// Pieces between the network and the disk.
const BACKLOG: usize = 8;
/// How long what a client still sends is taken, so that it reads why it was refused.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a load may take once everything has come, if the client says nothing else.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// The longest that it may ask for.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// The place that a load takes on this node, until the last of its threads has ended: also if the client has left, and
/// this future with it.
struct Place(Arc<OwnedSemaphorePermit>);

impl Place {
    /// Runs what blocks.
    fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let place = self.0.clone();
        spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        })
    }
}

/// A refusal, as HTTP has it.
struct Refused(StatusCode, String);

impl From<LoadError> for Refused {
    fn from(error: LoadError) -> Refused {
        let code = match &error {
            LoadError::Empty | LoadError::Foreign(_) | LoadError::Damaged(_) | LoadError::Script(_) => {
                StatusCode::BAD_REQUEST
            }
            LoadError::Stopped(_) => StatusCode::REQUEST_TIMEOUT,
            LoadError::NoRoom { .. } => StatusCode::INSUFFICIENT_STORAGE,
            LoadError::Refused(_) | LoadError::Database(_) => StatusCode::SERVICE_UNAVAILABLE,
            LoadError::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
            LoadError::Io(_) | LoadError::Sqlite { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused(code, error.to_string())
    }
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Refused {
        let code = match error {
            OpenError::NotFound(_) | OpenError::Invalid(_) => StatusCode::BAD_REQUEST,
            OpenError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refused(code, error.to_string())
    }
}

impl From<JoinError> for Refused {
    fn from(_: JoinError) -> Refused {
        Refused(StatusCode::INTERNAL_SERVER_ERROR, "loading failed; the node's log says why".into())
    }
}

/// Takes a database.
pub(super) async fn load(State(exchange): ExchangeState, params: Params, request: Request) -> Response {
    serve(exchange, params, request, false).await
}

/// `POST /boot`: a SQLite file for a cluster that has one node yet. Here it is as any load of a file: in one transaction,
/// while everything goes on.
pub(super) async fn boot(State(exchange): ExchangeState, params: Params, request: Request) -> Response {
    let members = exchange.node.raft_status().peers.len();
    if members > 1 {
        let why = format!("the cluster has {members} nodes, and /boot is for one; POST the file to /db/load");
        return error(StatusCode::BAD_REQUEST, &why);
    }
    serve(exchange, params, request, true).await
}

async fn serve(exchange: Arc<Exchange>, params: Params, request: Request, is_boot: bool) -> Response {
    let name = match exchange::database_name(&params) {
        Ok(name) => name,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    // What can't be written is not to be sent first.
    if exchange.node.raft_status().leader.is_none() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "leader not found");
    }
    let patience = match params.duration("timeout") {
        Ok(patience) => patience.unwrap_or(PATIENCE).min(MAX_PATIENCE),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let Ok(place) = exchange.loads.clone().try_acquire_owned() else {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many loads are under way on this node; try again",
        );
    };
    match Box::pin(take(&exchange, &Place(Arc::new(place)), &name, &params, (patience, is_boot), request))
        .await
    {
        Ok(answer) => body(&answer, params.flag("pretty")),
        Err(Refused(code, why)) => {
            warn!(database = name, "not loaded: {why}");
            error(code, &why)
        }
    }
}

async fn take(
    exchange: &Arc<Exchange>,
    place: &Place,
    name: &str,
    params: &Params,
    (patience, is_boot): (Duration, bool),
    request: Request,
) -> Result<Value, Refused> {
    let node = &exchange.node;
    let found =
        node.registry().find(name).await.map_err(|why| Refused(StatusCode::SERVICE_UNAVAILABLE, why))?;
    if params.flag("noreplace") && found.as_ref().is_some_and(|database| database.pages() > 1) {
        return Err(Refused(StatusCode::CONFLICT, format!("{name} exists and is not empty")));
    }
    if found.is_some() {
        // One that can't be written is no reason to have everything sent.
        node.open_database(name, false, None).await?;
    }
    let idle = params.duration("idle").map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
    let idle = idle.unwrap_or(IDLE).min(MAX_IDLE);
    let staged = receive(exchange, place, idle, request).await?;
    if is_boot && staged.kind != Kind::File {
        let why = "/boot takes a SQLite file; POST a script to /db/load";
        return Err(Refused(StatusCode::BAD_REQUEST, why.into()));
    }
    let stop = Stop::after(patience);
    let _asker = stop.asker();
    let (kind, bytes) = (staged.kind, staged.bytes);
    info!(database = name, bytes, ?kind, "received what is to be loaded");
    let socket = node.socket_path();
    // A script that fails, where there is nothing yet, leaves nothing: not even an empty database.
    let database = if kind == Kind::Script && !params.flag("replace") && found.is_some() {
        let database = node.open_database(name, false, None).await?;
        let path = database.path().to_owned();
        place.blocking(move || load::add(&staged, &path, &socket, &stop)).await??;
        database
    } else {
        let page_size = found.as_ref().map(|database| database.page_size);
        let preparing = stop.clone();
        let ready = place.blocking(move || load::prepare(staged, page_size, &preparing)).await??;
        let database = node.open_database(name, true, Some(ready.page_size)).await?;
        // Somebody else may have had the same idea meanwhile.
        if (found.is_none() || params.flag("noreplace")) && database.pages() > 1 {
            return Err(Refused(StatusCode::CONFLICT, format!("{name} exists and is not empty")));
        }
        let path = database.path().to_owned();
        let replaced = place.blocking(move || load::replace(&ready, &path, &socket, &stop)).await?;
        replaced.map_err(|error| match (&error, &found) {
            (LoadError::Unknown(_), _) | (_, Some(_)) => error.into(),
            // Not dropped: an app may have opened it by now, and be writing.
            (_, None) => {
                let Refused(code, why) = error.into();
                Refused(
                    code,
                    format!("{why}; {name} was created for it and is empty: load again, or drop it"),
                )
            }
        })?;
        database
    };
    database.settled().await;
    let status = database.status();
    info!(database = name, bytes, index = status.index, pages = status.pages, "loaded");
    let kind = if kind == Kind::File { "file" } else { "script" };
    Ok(
        json!({ "database": name, "kind": kind, "bytes": bytes, "pages": status.pages, "index": status.index }),
    )
}

/// How long the next piece of a body may take, of which `sent` bytes came in the time `taken`: `None` if it comes too
/// slowly.
fn next_within(idle: Duration, taken: Duration, sent: u64) -> Option<Duration> {
    let average = idle + Duration::from_secs(sent / MIN_RATE);
    average.checked_sub(taken).filter(|left| !left.is_zero()).map(|left| left.min(idle))
}

/// Stages the body; the disk is written on a thread of its own.
async fn receive(
    exchange: &Arc<Exchange>,
    place: &Place,
    idle: Duration,
    request: Request,
) -> Result<Staged, Refused> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut upload = Upload::begin(&exchange.staging, length)?;
    let (pieces, mut ready) = mpsc::channel::<axum::body::Bytes>(BACKLOG);
    let staging = place.blocking(move || {
        while let Some(piece) = ready.blocking_recv() {
            upload.write(&piece)?;
        }
        Ok::<_, LoadError>(upload)
    });
    let mut body = request.into_body().into_data_stream();
    let broken = |code, why: &str| Err(Refused(code, format!("the upload was not completed: {why}")));
    // The time that the disk takes is not the client's.
    let (mut waited, mut sent) = (Duration::ZERO, 0);
    loop {
        let Some(patience) = next_within(idle, waited, sent) else {
            let why = format!(
                "it comes too slowly: {sent} bytes in {waited:.0?}; the least is {MIN_RATE} per second"
            );
            return broken(StatusCode::REQUEST_TIMEOUT, &why);
        };
        let began = Instant::now();
        let next = timeout(patience, body.next()).await;
        waited += began.elapsed();
        match next {
            Err(_) if patience < idle => {}
            Err(_) => {
                let why = format!("nothing came for {idle:?}; idle=… allows for more");
                return broken(StatusCode::REQUEST_TIMEOUT, &why);
            }
            Ok(None) => break,
            Ok(Some(Err(why))) => return broken(StatusCode::BAD_REQUEST, &why.to_string()),
            Ok(Some(Ok(piece))) => {
                sent += piece.len() as u64;
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        }
    }
    drop(pieces);
    match staging.await? {
        Ok(upload) => Ok(place.blocking(move || upload.finish()).await??),
        Err(why) => {
            let rest = async { while let Some(Ok(_)) = body.next().await {} };
            let _ = timeout(DRAIN, rest).await;
            Err(why.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_upload_has_an_end() {
        let s = Duration::from_secs;
        assert_eq!(next_within(IDLE, s(0), 0), Some(IDLE));
        assert_eq!(next_within(IDLE, s(20), 0), Some(s(10)));
        assert_eq!(next_within(IDLE, s(30), 0), None, "nothing at all");
        assert_eq!(next_within(IDLE, s(100), 99 * MIN_RATE), Some(s(29)));
        assert_eq!(next_within(IDLE, s(100), 1000 * MIN_RATE), Some(IDLE), "however fast it was before");
        assert_eq!(next_within(IDLE, s(1000), 900 * MIN_RATE), None, "a byte now and then");
    }

    /// 503 promises that nothing was changed.
    #[test]
    fn an_unknown_outcome_has_a_code_of_its_own() {
        let code = |error: LoadError| Refused::from(error).0;
        assert_eq!(code(LoadError::Refused("no".into())), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code(LoadError::Unknown("?".into())), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(code(LoadError::Stopped("late".into())), StatusCode::REQUEST_TIMEOUT);
    }
}
