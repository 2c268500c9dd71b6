//! Writes that nobody waits for: they are answered with a number as soon as they are queued, and written in order, many
//! at a time. What is queued is in this node's memory only, and lost with it; their errors go to the log.

use super::options::Options;
use super::request::{Kind, Request, Statement};
use super::service::{Call, Reply, Service, encode};
use crate::node::Node;
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
/// Requests that are written at once.
const BATCH: usize = 128;
/// One attempt at writing.
const ATTEMPT: Duration = Duration::from_secs(30);
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
        if node.raft_status().leader.is_none() {
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

/// Writes what is queued for a database.
async fn write(
    service: std::sync::Weak<Service>,
    node: Arc<Node>,
    database: String,
    mut queue: mpsc::Receiver<Queued>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let statements: Vec<Statement> = batch.iter().flat_map(|q| q.request.statements.clone()).collect();
        let transaction = batch.len() == 1 && batch[0].request.transaction;
        let query = format!("db={database}&{}", if transaction { "transaction" } else { "" });
        let body = encode(&statements);
        let call = Call { kind: Kind::Execute, query, text: false, body };
        let options = Options { database: database.clone(), transaction, ..Options::default() };
        let request = Request {
            kind: Kind::Execute,
            statements,
            transaction,
            output: options.output,
            db_timeout: None,
        };
        let request = Arc::new(request);
        loop {
            let Some(service) = service.upgrade() else { return };
            let deadline = Instant::now() + ATTEMPT;
            match service.write(&node, &call, &options, request.clone(), deadline).await.reply {
                Reply::Failed { retry: true, message, .. } => {
                    warn!(database, "queued writes wait: {message}");
                    tokio::time::sleep(PAUSE).await;
                }
                Reply::Failed { message, .. } => {
                    warn!(database, requests = batch.len(), "queued writes failed: {message}");
                    break;
                }
                Reply::Results(results) => {
                    complain(&database, &results);
                    break;
                }
                Reply::Stream(..) | Reply::Redirect(_) => break,
            }
        }
        for queued in batch.drain(..) {
            let _ = queued.done.send(());
        }
    }
}

/// Logs the first error among results.
fn complain(database: &str, results: &[u8]) {
    const ERROR: &[u8] = b"\"error\":";
    if let Some(at) = results.windows(ERROR.len()).position(|window| window == ERROR) {
        let text = String::from_utf8_lossy(&results[at..results.len().min(at + 200)]);
        warn!(database, "a queued write failed: {text}");
    }
}
