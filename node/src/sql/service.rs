//! What becomes of a request for SQL: which database, who leads, how fresh, now or queued.
//!
//! Writes run at the leader. Another node sends the request there, and again while it certainly was not done and there
//! is time. Reads run here: a node that doesn't lead asks the leader up to which entry it must have applied (Raft's
//! read index), so that results never cross the network twice.

use super::consent::{self, Fate, Origin, Sent, Waiting};
use super::forward::{Answer, Forward};
use super::fresh::{fresh, open};
use super::guard::Gone;
use super::interactive::{EndError, Limits, Transactions};
use super::options::Options;
use super::queue::Queues;
use super::reader::{ReadError, Readers, Reading};
use super::request::{Kind, ParseError, Request, Statement, parse_json, parse_text};
use super::stats::Stats;
use super::words::needs_a_connection;
use super::writer::{Job, Place, WriteError, Writer};
use crate::api::Params;
use crate::command::DbId;
use crate::db::database::Database;
use crate::node::Node;
use bytes::Bytes;
use quire_raft::{NodeId, RequestError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::debug;

/// Connections to a database that nobody asks for are closed after so long, or sooner if its files are.
const IDLE: Duration = Duration::from_secs(30);
/// How long a request waits for somebody to lead.
pub(super) const ELECTION: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(30);
/// A transaction that has begun has its outcome after this time at the latest, or never.
const GRACE: Duration = Duration::from_secs(15);

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    /// By which endpoint.
    pub kind: Kind,
    /// The query of its URL.
    pub query: String,
    /// The body is plain SQL.
    pub text: bool,
    /// The body.
    pub body: Bytes,
}

/// The answer.
#[derive(Debug)]
pub enum Reply {
    /// Results, complete.
    Results(Bytes),
    /// Results that are still being read.
    Stream(Bytes, Reading),
    /// No results.
    Failed {
        /// HTTP status.
        status: u16,
        /// Why.
        message: String,
        /// The client may try again.
        retry: bool,
    },
    /// The leader's HTTP address.
    Redirect(String),
}

impl Reply {
    /// A request that makes no sense.
    pub fn bad(message: impl Into<String>) -> Reply {
        Reply::Failed { status: 400, message: message.into(), retry: false }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Reply {
        Reply::Failed { status: 503, message: message.into(), retry: true }
    }

    /// The error for the request as a whole, beside no results, as rqlite has it.
    pub(super) fn in_band(options: &Options, message: &str) -> Reply {
        Reply::beside(super::run::begin(&options.output), message)
    }

    /// The error of a request that writes. Some clients look at results only: one that finds no error there takes the
    /// write for done.
    fn not_done(options: &Options, message: &str) -> Reply {
        let mut json = super::run::begin(&options.output);
        super::run::write_error(&mut json, message);
        Reply::beside(json, message)
    }

    fn beside(mut json: super::json::Json, message: &str) -> Reply {
        super::run::end(&mut json, &Default::default(), Some(message), Instant::now(), None);
        Reply::Results(json.out.into())
    }
}

/// An answer, and which other node gave it.
#[derive(Debug)]
pub struct Served {
    /// The answer.
    pub reply: Reply,
    /// The HTTP address of the node that gave it, if it was another.
    pub by: Option<String>,
}

impl From<Reply> for Served {
    fn from(reply: Reply) -> Served {
        Served { reply, by: None }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    writer: Arc<Writer>,
    readers: Arc<Readers>,
    used: Instant,
}

impl Entry {
    /// Whether no request is under way.
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.readers) == 1 && self.writer.is_unused()
    }

    /// It is no longer in the table.
    fn end(self) {
        self.writer.end();
    }
}

/// SQL of one node.
#[derive(Debug)]
pub struct Service {
    runtime: Handle,
    place: Place,
    /// Connections to a database that nobody asks for are closed after so long.
    idle: Duration,
    databases: Mutex<HashMap<DbId, Entry>>,
    queues: Queues,
    transactions: Arc<Transactions>,
}

impl Service {
    /// Starts on the current runtime, which must not be Raft's.
    pub fn start(node: &Node, foreign_keys: bool) -> std::io::Result<Arc<Service>> {
        let place = Place {
            socket: node.socket_path(),
            directory: node.registry().directory_identity()?,
            foreign_keys,
            stats: Arc::default(),
            sent: Arc::new(Sent::new()?),
            runtime: Handle::current(),
        };
        let (runtime, databases) = (Handle::current(), Mutex::default());
        let idle = node.config().keep.idle.min(IDLE);
        let service = Arc::new(Service {
            runtime,
            place,
            idle,
            databases,
            queues: Queues::default(),
            transactions: Arc::default(),
        });
        let weak = Arc::downgrade(&service);
        let pause = idle.min(Duration::from_secs(10));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(service) = weak.upgrade() else { return };
                let _ = tokio::task::spawn_blocking(move || service.tidy()).await;
            }
        });
        Ok(service)
    }

    fn databases(&self) -> MutexGuard<'_, HashMap<DbId, Entry>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it runs.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.place.stats
    }

    /// Requests that wait to be written, by database.
    pub fn waiting(&self) -> Vec<(DbId, usize)> {
        self.databases().iter().map(|(id, entry)| (*id, entry.writer.waiting())).collect()
    }

    /// Closes what has not been used for a while. Blocks.
    fn tidy(&self) {
        let unused: Vec<_> = {
            let mut databases = self.databases();
            let old = |_: &DbId, entry: &mut Entry| entry.used.elapsed() > self.idle && entry.is_unused();
            databases.extract_if(old).map(|(_, entry)| entry).collect()
        };
        unused.into_iter().for_each(Entry::end);
        let all: Vec<_> = self.databases().values().map(|entry| entry.readers.clone()).collect();
        all.iter().for_each(|readers| readers.tidy());
    }

    /// Makes room for another database among so many: that which was not used for longest goes, if nobody uses it.
    fn make_room(&self, databases: &mut HashMap<DbId, Entry>, most: usize) {
        if databases.len() < most {
            return;
        }
        let unused = databases.iter().filter(|(_, entry)| entry.is_unused());
        let oldest = unused.min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id);
        if let Some(entry) = oldest.and_then(|id| databases.remove(&id)) {
            // Closing connections takes its time.
            self.runtime.spawn_blocking(move || entry.end());
        }
    }

    fn entry(&self, node: &Node, database: &Arc<Database>) -> Entry {
        let mut databases = self.databases();
        if let Some(entry) = databases.get_mut(&database.id) {
            entry.used = Instant::now();
            return entry.clone();
        }
        // Those that were dropped meanwhile.
        databases.retain(|id, _| node.registry().contains(*id));
        self.make_room(&mut databases, node.config().keep.most);
        let entry = Entry {
            used: Instant::now(),
            writer: Writer::new(database.clone(), self.place.clone()),
            readers: Readers::new(database.clone(), self.place.foreign_keys),
        };
        databases.insert(database.id, entry.clone());
        entry
    }

    /// Serves a client.
    pub async fn serve(self: &Arc<Self>, node: &Arc<Node>, call: Call) -> Served {
        let options = match Options::new(&Params::parse(&call.query)) {
            Ok(options) => options,
            Err(why) => return Reply::bad(why).into(),
        };
        let request = match request(&call, &options) {
            Ok(request) => Arc::new(request),
            Err(error) => return Reply::bad(error.to_string()).into(),
        };
        let deadline = Instant::now() + options.timeout;
        if options.queue && call.kind == Kind::Execute {
            return self.queues.submit(self, node, &options, request, deadline).await.into();
        }
        let database = match open(node, &options.database, deadline).await {
            Ok(database) => database,
            Err(reply) => return reply.into(),
        };
        let readers = self.entry(node, &database).readers;
        let may_read = match call.kind {
            Kind::Execute => false,
            Kind::Query => true,
            Kind::Request => !request.statements.iter().any(|s| certainly_writes(&s.sql)),
        };
        if may_read {
            let read = self.read(node, &database, &readers, &options, request.clone(), deadline).await;
            if let Ok(reply) = read {
                return reply.into();
            }
        }
        self.write(node, &call, &options, request, deadline).await
    }

    /// Whether foreign keys are enforced.
    pub(super) fn checks_keys(&self) -> bool {
        self.place.foreign_keys
    }

    /// Transactions over several requests.
    pub fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    /// Begins one of them.
    pub async fn begin(
        &self,
        node: &Arc<Node>,
        query: &str,
        idle: Duration,
    ) -> Result<String, Result<Reply, WriteError>> {
        let options = Options::new(&Params::parse(query)).map_err(|why| Ok(Reply::bad(why)))?;
        let until = Instant::now() + options.timeout;
        let database = open(node, &options.database, until).await.map_err(Ok)?;
        self.transactions.begin(database, self.place.clone(), Limits { until, idle }).await.map_err(Err)
    }

    /// Runs statements within one; the outer error is for a request that makes no sense.
    pub async fn go_on(&self, id: &str, call: &Call) -> Result<Result<Vec<u8>, EndError>, String> {
        let options = Options::new(&Params::parse(&call.query))?;
        let request = request(call, &options).map_err(|error| error.to_string())?;
        Ok(self.transactions.run(id, Arc::new(request)).await)
    }

    /// Answers a question of the leader.
    pub fn consent(&self, from: NodeId, question: &Bytes) -> Bytes {
        self.place.sent.consent_bytes(from, question)
    }

    /// Serves a node that doesn't lead.
    pub async fn serve_node(self: &Arc<Self>, node: &Arc<Node>, from: NodeId, forward: Forward) -> Answer {
        let failed = |status, message: &str, retry| Answer::Response {
            status,
            retry,
            body: Bytes::copy_from_slice(message.as_bytes()),
        };
        let Forward { kind, text, timeout, number, query, body } = forward;
        let origin = number.map(|number| Origin { node: from, number });
        let call = Call { kind, query, text, body };
        let options = match Options::new(&Params::parse(&call.query)) {
            Ok(options) => options,
            Err(why) => return failed(400, &why, false),
        };
        let request = match request(&call, &options) {
            Ok(request) => Arc::new(request),
            Err(error) => return failed(400, &error.to_string(), false),
        };
        let deadline = Instant::now() + timeout;
        let reply = match self.write_here(node, &options, request, origin, deadline).await {
            Ok(results) => Reply::Results(results),
            Err(WriteHere::NotLeader(why)) => return Answer::NotLeader(why),
            // The node that sent it looks in the log.
            Err(WriteHere::Unknown(why)) if number.is_some() => return Answer::Unknown(why),
            Err(WriteHere::Unknown(why)) => Reply::not_done(&options, &WriteError::Unknown(why).to_string()),
            Err(WriteHere::Reply(reply)) => reply,
        };
        match reply {
            Reply::Results(body) => Answer::Response { status: 200, retry: false, body },
            Reply::Failed { status, message, retry } => failed(status, &message, retry),
            // Neither comes of a write.
            Reply::Stream(..) | Reply::Redirect(_) => failed(500, "the answer makes no sense", false),
        }
    }

    /// Runs a request at the leader, here or elsewhere.
    pub async fn write(
        self: &Arc<Self>,
        node: &Arc<Node>,
        call: &Call,
        options: &Options,
        request: Arc<Request>,
        deadline: Instant,
    ) -> Served {
        let began = Instant::now();
        let mut tries = 0;
        let mut numbered = true;
        let mut why = String::from("leader not found");
        loop {
            let place =
                consent::Place { database: node.registry().id_of(&options.database), since: node.taken() };
            // What it came to is to be looked for, as the answer doesn't tell.
            let mut lost = None;
            if node.leadership().leading().is_ok() {
                let waiting = self.place.sent.wait(node.id());
                let origin = Some(Origin { node: node.id(), number: waiting.number });
                match self.write_here(node, options, request.clone(), origin, deadline).await {
                    Ok(results) => return Reply::Results(results).into(),
                    Err(WriteHere::Reply(reply)) => return reply.into(),
                    Err(WriteHere::NotLeader(reason)) => why = reason,
                    Err(WriteHere::Unknown(reason)) => lost = Some((waiting, reason)),
                }
            } else {
                let status = node.raft_status();
                let leader = status.leader.filter(|&id| id != node.id());
                let leader = leader.and_then(|id| Some((id, status.peers.get(&id)?.http_addr.clone())));
                match leader {
                    Some((_, address)) if options.redirect => return Reply::Redirect(address).into(),
                    Some((id, address)) => {
                        let waiting = numbered.then(|| self.place.sent.wait(id));
                        match self.forward(node, id, call, waiting.as_ref(), deadline).await {
                            Ok(reply) => return Served { reply, by: Some(address) },
                            Err(Unanswered::No(reason)) => why = format!("leader not contactable: {reason}"),
                            Err(Unanswered::Older) => {
                                numbered = false;
                                continue;
                            }
                            Err(Unanswered::Perhaps(reason)) => {
                                let reason = format!("leader (node {id}): {reason}");
                                let Some(waiting) = waiting else {
                                    let unknown = WriteError::Unknown(reason);
                                    return Reply::not_done(options, &unknown.to_string()).into();
                                };
                                lost = Some((waiting, reason));
                            }
                        }
                    }
                    None if began.elapsed() > ELECTION => return Reply::unavailable(why).into(),
                    None => {}
                }
            }
            if let Some((waiting, reason)) = lost {
                let fate = consent::fate(node, place, &request, waiting.end(), deadline).await;
                let said = match fate {
                    Fate::Done(index, Some(results)) if options.output.raft_index => {
                        return Reply::Results(consent::with_index(results, index)).into();
                    }
                    Fate::Done(_, Some(results)) => return Reply::Results(results).into(),
                    Fate::Done(index, None) => Some(format!(
                        "it is committed at index {index}, but its results are lost: {reason}; don't try again"
                    )),
                    Fate::InPart(index) => Some(format!(
                        "it is committed up to index {index}, perhaps not all of it: {reason}; look before you try again"
                    )),
                    Fate::Unknown(doubt) => {
                        Some(WriteError::Unknown(format!("{reason}; {doubt}")).to_string())
                    }
                    Fate::NotDone => None,
                };
                if let Some(said) = said {
                    return Reply::not_done(options, &said).into();
                }
                debug!("a request was not done, and is tried again: {reason}");
                why = reason;
            }
            tries += 1;
            if Instant::now() + PAUSE >= deadline || options.retries.is_some_and(|max| tries > max) {
                return Reply::unavailable(why).into();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn forward(
        &self,
        node: &Arc<Node>,
        to: NodeId,
        call: &Call,
        waiting: Option<&Waiting>,
        deadline: Instant,
    ) -> Result<Reply, Unanswered> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let Call { kind, query, text, body } = call.clone();
        let number = waiting.map(|waiting| waiting.number);
        let message = Forward { kind, text, timeout, number, query, body }.encode();
        let mut status = node.raft().watch();
        let term = status.borrow().term;
        let deposed = status.wait_for(|now| now.term > term && now.leader.is_some_and(|leader| leader != to));
        let answer = tokio::select! {
            biased;
            answer = node.raft().request(to, message, timeout + GRACE) => answer,
            // The log will tell sooner than a leader that may have lost its quorum.
            Ok(_) = deposed, if number.is_some() => {
                return Err(Unanswered::Perhaps("another node leads by now".into()));
            }
        };
        match answer {
            Ok(bytes) => match Answer::decode(&bytes) {
                Some(Answer::NotLeader(why)) => Err(Unanswered::No(why)),
                Some(Answer::Unknown(why)) => Err(Unanswered::Perhaps(why)),
                Some(Answer::Response { status: 200, body, .. }) => Ok(Reply::Results(body)),
                Some(Answer::Response { status, retry, body }) => {
                    Ok(Reply::Failed { status, message: String::from_utf8_lossy(&body).into_owned(), retry })
                }
                // JSON, which says that it doesn't know such requests.
                None if number.is_some() && bytes.starts_with(b"{") => Err(Unanswered::Older),
                None => Err(Unanswered::Perhaps("its answer makes no sense".into())),
            },
            Err(RequestError::TooLarge { limit, .. }) => Ok(Reply::Failed {
                status: 413,
                message: format!(
                    "the request exceeds {} MiB, which is what nodes send each other",
                    limit >> 20
                ),
                retry: false,
            }),
            Err(error @ RequestError::Unreachable(_)) => Err(Unanswered::No(error.to_string())),
            Err(error) => Err(Unanswered::Perhaps(error.to_string())),
        }
    }

    /// Runs a request on this node, which should lead.
    async fn write_here(
        self: &Arc<Self>,
        node: &Arc<Node>,
        options: &Options,
        request: Arc<Request>,
        origin: Option<Origin>,
        deadline: Instant,
    ) -> Result<Bytes, WriteHere> {
        if let Err(refusal) = node.leadership().leading() {
            return Err(WriteHere::NotLeader(refusal.message));
        }
        let database = open(node, &options.database, deadline).await.map_err(WriteHere::Reply)?;
        let (reply, answer) = oneshot::channel();
        let alone = request.statements.iter().any(|s| needs_a_connection(&s.sql));
        let gone = Gone::default();
        let _waiter = gone.waiter();
        let job = Job { request, alone, deadline, origin, gone, reply };
        let submitted = self.entry(node, &database).writer.submit(job);
        let written = match submitted {
            Err(error) => Err(error),
            Ok(()) => match tokio::time::timeout_at((deadline + GRACE).into(), answer).await {
                Ok(Ok(written)) => written,
                Ok(Err(_)) => Err(WriteError::Unknown("the writer failed by a bug".into())),
                Err(_) => Err(WriteError::Unknown("no answer from the writer in time".into())),
            },
        };
        written.map(Bytes::from).map_err(|error| {
            let message = error.to_string();
            WriteHere::Reply(match error {
                WriteError::NotLeader(why) => return WriteHere::NotLeader(why),
                WriteError::Unknown(why) => return WriteHere::Unknown(why),
                WriteError::Overloaded => Reply::unavailable(message),
                WriteError::TimedOut(_) => Reply::Failed { status: 408, message, retry: true },
                WriteError::Refused(_) => Reply::not_done(options, &message),
            })
        })
    }

    async fn read(
        &self,
        node: &Arc<Node>,
        database: &Arc<Database>,
        readers: &Arc<Readers>,
        options: &Options,
        request: Arc<Request>,
        deadline: Instant,
    ) -> Result<Reply, Writes> {
        if let Err(reply) = fresh(node, database, options, deadline).await {
            return Ok(reply);
        }
        let mut reading = match readers.read(request, deadline).await {
            Ok(reading) => reading,
            Err(ReadError::Writes) => return Err(Writes),
            Err(error @ ReadError::TimedOut) => {
                return Ok(Reply::Failed { status: 408, message: error.to_string(), retry: true });
            }
            Err(error @ ReadError::Bug(_)) => {
                return Ok(Reply::Failed { status: 500, message: error.to_string(), retry: false });
            }
            Err(error) => return Ok(Reply::unavailable(error.to_string())),
        };
        let Some(first) = reading.next().await else {
            return Ok(Reply::Failed {
                status: 500,
                message: "the read failed by a bug".into(),
                retry: false,
            });
        };
        // Most results are one piece.
        Ok(match reading.next().await {
            None => Reply::Results(first),
            Some(second) => Reply::Stream([first, second].concat().into(), reading),
        })
    }
}

/// A request that came as a read writes.
struct Writes;

enum WriteHere {
    NotLeader(String),
    /// It may have been done.
    Unknown(String),
    Reply(Reply),
}

/// There is no answer of the leader: whether it may have got the request.
enum Unanswered {
    No(String),
    /// It is of an older version, and doesn't know requests with a number; nothing was done.
    Older,
    Perhaps(String),
}

fn request(call: &Call, options: &Options) -> Result<Request, ParseError> {
    let statements = if call.text { parse_text(&call.body) } else { parse_json(&call.body) }?;
    let Options { transaction, output, db_timeout, .. } = *options;
    Ok(Request { kind: call.kind, statements, transaction, output, db_timeout })
}

/// A statement that begins with such a word writes; for others SQLite has to be asked.
fn certainly_writes(sql: &str) -> bool {
    const WORDS: [&str; 7] = ["insert", "update", "delete", "replace", "create", "drop", "alter"];
    let sql = sql.trim_start();
    WORDS.iter().any(|word| sql.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
}

/// A request from statements, to be sent to another node.
pub(super) fn encode(statements: &[Statement]) -> Bytes {
    let mut json = super::json::Json::new(false);
    json.begin_array();
    for statement in statements {
        json.begin_array();
        json.string(&statement.sql);
        for param in &statement.params {
            let value = rusqlite::types::ValueRef::from(&param.value);
            match &param.name {
                None => json.value(value, true),
                Some(name) => {
                    json.begin_object();
                    json.key(name);
                    json.value(value, true);
                    json.end_object();
                }
            }
        }
        json.end_array();
    }
    json.end_array();
    json.out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_survive_being_sent() {
        let body = br#"["A",["B",1,1.5,null,"x",[0,255]],["C",{"n":true}]]"#;
        let statements = parse_json(body).unwrap();
        assert_eq!(parse_json(&encode(&statements)).unwrap(), statements);
    }

    #[test]
    fn what_certainly_writes() {
        assert!(certainly_writes(" insert INTO t VALUES(1)") && certainly_writes("CREATE TABLE t(x)"));
        assert!(!certainly_writes("SELECT 1") && !certainly_writes("WITH a AS (SELECT 1) SELECT 1"));
        assert!(!certainly_writes("é") && !certainly_writes(""));
    }
}
