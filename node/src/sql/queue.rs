//! Writes that nobody waits for: they are answered with a number as soon as they are queued, and written in order, many
//! at a time. What is queued is in this node's memory only, and lost with it; their errors go to the log.
//!
//! Several are tried as one request that is all or nothing. If all goes well, each has done what it would have done
//! alone. If anything doesn't, nothing was done, and each is written by itself: none is lost by its company.

use super::options::Options;
use super::request::{Kind, Request, Statement};
use super::service::{Call, Reply, Service, encode};
use super::words::{looks_back, needs_a_connection};
use super::writer::WriteError;
use crate::node::Node;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::warn;

/// Requests that may wait for one database.
const MAX_QUEUE: usize = 1024;
/// Bytes of all requests that may wait, in KiB.
const MAX_KIB: usize = 64 << 10;
/// Requests that are taken from the queue at once.
const BATCH: usize = 128;
/// Bytes of requests that are written as one.
const MAX_BYTES: usize = 512 << 10;
/// Statements of requests that are written as one.
const MAX_STATEMENTS: usize = 1024;
/// One attempt at writing.
const ATTEMPT: Duration = Duration::from_secs(60);
/// For the statements of a request that doesn't say. Less than [`ATTEMPT`]: one that never ends must not be tried for ever.
const STATEMENTS: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

struct Queued {
    request: Arc<Request>,
    done: oneshot::Sender<()>,
    _room: OwnedSemaphorePermit,
}

/// The queues of a node.
#[derive(Debug)]
pub struct Queues {
    by_database: Mutex<HashMap<String, mpsc::Sender<Queued>>>,
    room: Arc<Semaphore>,
    last: AtomicU64,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queued").finish_non_exhaustive()
    }
}

impl Default for Queues {
    fn default() -> Queues {
        let (by_database, last) = (Mutex::default(), AtomicU64::new(0));
        Queues { by_database, room: Arc::new(Semaphore::new(MAX_KIB)), last }
    }
}

impl Queues {
    /// Queues a request.
    pub async fn submit(
        &self,
        service: &Arc<Service>,
        node: &Arc<Node>,
        options: &Options,
        request: Arc<Request>,
        deadline: Instant,
    ) -> Reply {
        let full = || Reply::Failed { status: 503, message: "the queue is full".into(), retry: true };
        if node.raft_status().leader.is_none() || node.leadership().leads_alone() {
            return Reply::Failed { status: 503, message: "leader not found".into(), retry: true };
        }
        if let Err(reply) = super::fresh::open(node, &options.database, deadline).await {
            return reply;
        }
        let kib = u32::try_from(request.size() >> 10).unwrap_or(u32::MAX).saturating_add(1);
        let Ok(room) = self.room.clone().try_acquire_many_owned(kib) else { return full() };
        let (done, written) = oneshot::channel();
        let number = {
            let mut queues = self.by_database.lock().unwrap_or_else(PoisonError::into_inner);
            let queue = queues.entry(options.database.clone()).or_insert_with(|| {
                let (queue, queued) = mpsc::channel(MAX_QUEUE);
                tokio::spawn(write(Arc::downgrade(service), node.clone(), options.database.clone(), queued));
                queue
            });
            if queue.try_send(Queued { request, done, _room: room }).is_err() {
                return full();
            }
            self.next()
        };
        if options.wait && tokio::time::timeout_at(deadline.into(), written).await.is_err() {
            return Reply::Failed { status: 408, message: "timeout".into(), retry: false };
        }
        let mut json = super::json::Json::new(options.output.pretty);
        json.begin_object();
        json.key("results");
        json.begin_array();
        json.end_array();
        json.count("sequence_number", number);
        json.end_object();
        Reply::Results(json.out.into())
    }

    /// Rises with each request, also over restarts, as long as the clock does.
    fn next(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let next = |last: u64| Some(now.max(last + 1));
        self.last.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }
}

/// What an attempt came to.
#[derive(Debug, PartialEq, Eq)]
enum Wrote {
    Done,
    /// There was an error. If the request was all or nothing, nothing was changed.
    Error(String),
    /// Nothing was changed within [`ATTEMPT`].
    Late(String),
    /// Nothing was changed; later perhaps.
    NotNow(String),
    /// It may have been done: it must not be done again.
    Unknown(String),
}

impl From<Reply> for Wrote {
    fn from(reply: Reply) -> Wrote {
        #[derive(Deserialize)]
        struct OfStatement {
            error: Option<String>,
        }
        #[derive(Deserialize)]
        struct OfRequest {
            results: Vec<OfStatement>,
            error: Option<String>,
        }
        let bytes = match reply {
            Reply::Results(bytes) => bytes,
            Reply::Failed { status: 408, message, .. } => return Wrote::Late(message),
            Reply::Failed { retry: true, message, .. } => return Wrote::NotNow(message),
            Reply::Failed { message, .. } => return Wrote::Error(message),
            // Neither comes of such a write.
            Reply::Stream(..) | Reply::Redirect(_) => return Wrote::Unknown("no results".into()),
        };
        match serde_json::from_slice::<OfRequest>(&bytes) {
            Ok(OfRequest { error: Some(why), .. }) if why.starts_with(WriteError::UNKNOWN) => {
                Wrote::Unknown(why)
            }
            Ok(OfRequest { error: Some(why), .. }) => Wrote::Error(why),
            Ok(OfRequest { results, .. }) => {
                results.into_iter().find_map(|of| of.error).map_or(Wrote::Done, Wrote::Error)
            }
            Err(why) => Wrote::Unknown(format!("the results make no sense: {why}")),
        }
    }
}

/// Whether a request that succeeds does the same within a transaction that it shares.
fn may_join(request: &Request) -> bool {
    let joins = |s: &Statement| !needs_a_connection(&s.sql) && !looks_back(&s.sql);
    !request.transaction && request.db_timeout.is_none() && request.statements.iter().all(joins)
}

/// How many of these, from the first on, are written as one.
fn company<'a>(requests: impl Iterator<Item = &'a Request>) -> usize {
    let (mut bytes, mut statements) = (0, 0);
    let fits = |request: &&Request| {
        bytes += request.size();
        statements += request.statements.len();
        bytes <= MAX_BYTES && statements <= MAX_STATEMENTS && may_join(request)
    };
    requests.take_while(fits).count().max(1)
}

/// Tries to write requests as one.
async fn attempt(service: &Arc<Service>, node: &Arc<Node>, database: &str, requests: &[&Request]) -> Wrote {
    let statements: Vec<Statement> = requests.iter().flat_map(|r| r.statements.clone()).collect();
    let (transaction, db_timeout) = match requests {
        [one] => (one.transaction, one.db_timeout.unwrap_or(STATEMENTS)),
        _ => (true, STATEMENTS),
    };
    let all_or_nothing = if transaction { "&transaction" } else { "" };
    let query = format!("db={database}&db_timeout={}ns{all_or_nothing}", db_timeout.as_nanos());
    let call = Call { kind: Kind::Execute, query, text: false, body: encode(&statements) };
    let db_timeout = Some(db_timeout);
    let options = Options { database: database.to_owned(), transaction, db_timeout, ..Options::default() };
    let request =
        Request { kind: Kind::Execute, statements, transaction, output: options.output, db_timeout };
    let deadline = Instant::now() + ATTEMPT;
    service.write(node, &call, &options, Arc::new(request), deadline).await.reply.into()
}

/// Writes what is queued for a database.
async fn write(
    service: std::sync::Weak<Service>,
    node: Arc<Node>,
    database: String,
    mut queue: mpsc::Receiver<Queued>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        // The first of them that are written one by one, because they can't be as one.
        let mut single = 0;
        while !batch.is_empty() {
            let Some(service) = service.upgrade() else { return };
            // With foreign keys, those that are checked at the end of a transaction would not be checked in between.
            let is_one = single > 0 || service.checks_keys();
            let count = if is_one { 1 } else { company(batch.iter().map(|q| &*q.request)) };
            let requests: Vec<&Request> = batch.iter().take(count).map(|q| &*q.request).collect();
            match attempt(&service, &node, &database, &requests).await {
                Wrote::Done => {}
                Wrote::Error(_) | Wrote::Late(_) if count > 1 => {
                    single = count;
                    continue;
                }
                Wrote::Error(why) => warn!(database, "a queued write failed: {why}"),
                Wrote::Late(why) | Wrote::NotNow(why) => {
                    warn!(database, "queued writes wait: {why}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Wrote::Unknown(why) => warn!(database, requests = count, "queued writes: {why}"),
            }
            single = single.saturating_sub(count);
            for queued in batch.drain(..count) {
                let _ = queued.done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sql: &str, transaction: bool) -> Request {
        let statements =
            crate::sql::request::parse_json(serde_json::json!([sql]).to_string().as_bytes()).unwrap();
        Request { kind: Kind::Execute, statements, transaction, output: Default::default(), db_timeout: None }
    }

    #[test]
    fn who_is_written_as_one() {
        let plain = || request("INSERT INTO temperatures VALUES(1)", false);
        let count = |requests: &[Request]| company(requests.iter());
        assert_eq!(count(&[plain(), plain(), plain()]), 3);
        assert_eq!(count(&[plain(), request("INSERT INTO t VALUES(1)", true), plain()]), 1);
        assert_eq!(count(&[request("INSERT INTO t VALUES(1)", true), plain()]), 1);
        assert_eq!(count(&[plain(), plain(), request("PRAGMA user_version=1", false)]), 2);
        assert_eq!(count(&[plain(), request("INSERT INTO t VALUES(last_insert_rowid())", false)]), 1);
        let limited = Request { db_timeout: Some(ATTEMPT), ..plain() };
        assert_eq!(count(&[limited, plain()]), 1);
        let large = || request(&format!("INSERT INTO t VALUES('{}')", "x".repeat(MAX_BYTES / 2)), false);
        assert_eq!(count(&[large(), plain(), large()]), 2);
        let many: Vec<_> = (0..2 * MAX_STATEMENTS).map(|_| plain()).collect();
        assert!((1..=MAX_STATEMENTS).contains(&count(&many)));
        let huge = request(&format!("INSERT INTO t VALUES('{}')", "x".repeat(MAX_BYTES)), false);
        assert_eq!(count(&[huge, plain()]), 1);
    }

    #[test]
    fn what_answers_mean() {
        let results = |text: &'static str| Wrote::from(Reply::Results(text.into()));
        assert_eq!(results(r#"{"results":[{},{"rows_affected":1}]}"#), Wrote::Done);
        let rows = r#"{"results":[{"columns":["error"],"types":["real"],"values":[[9e999]]}]}"#;
        assert_eq!(results(rows), Wrote::Done);
        let failed = r#"{"results":[{"rows_affected":1},{"error":"no"}]}"#;
        assert_eq!(results(failed), Wrote::Error("no".into()));
        assert_eq!(results(r#"{"results":[],"error":"refused"}"#), Wrote::Error("refused".into()));
        let unknown = WriteError::Unknown("gone".into()).to_string();
        let text = serde_json::json!({ "results": [], "error": unknown }).to_string();
        assert_eq!(Wrote::from(Reply::Results(text.into())), Wrote::Unknown(unknown));
        let failed = |status, retry| Wrote::from(Reply::Failed { status, message: "x".into(), retry });
        assert_eq!(failed(408, true), Wrote::Late("x".into()));
        assert_eq!(failed(503, true), Wrote::NotNow("x".into()));
        assert_eq!(failed(413, false), Wrote::Error("x".into()));
    }
}
