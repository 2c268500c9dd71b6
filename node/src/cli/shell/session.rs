//! What the shell talks to: a database on some nodes, and the transaction that may be open.
//!
//! Each statement is a request to `/db/request`, where SQLite says whether it reads or writes. Between BEGIN and COMMIT
//! statements go through `/tx`, at the node where that was begun. When such a transaction is lost, as it stood open too long
//! or its node died, no statement is run until COMMIT or ROLLBACK has acknowledged it: what was meant to be part of it must
//! not be committed alone.

use super::error::Error;
use super::nodes::{Ask, Nodes, Server, said, told, was_not_sent};
use super::reply::{self, Kept, ReadError, Rows, Summary};
use super::statement::{Kind, kind};
use crate::cli::client::Client;
use serde_json::{Value, json};
use std::time::Duration;
use ureq::{Body, http::Response};

/// How long the server may take to answer beyond the time that a statement has.
const GRACE: Duration = Duration::from_secs(20);
/// How long a transaction may last, and how long it may stand still: the most that a node grants.
const TRANSACTION: &str = "timeout=1h&idle=60s";
/// For what completion asks.
const GLANCE: Duration = Duration::from_secs(2);

/// Levels of reads.
pub(super) const LEVELS: [&str; 5] = ["none", "weak", "linearizable", "strong", "auto"];

#[derive(Debug)]
enum Transaction {
    None,
    /// At a node, of this address.
    Open {
        id: String,
        address: String,
    },
    /// Why.
    Lost(String),
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) nodes: Nodes,
    database: String,
    pub(super) level: String,
    /// How long a statement may take.
    pub(super) timeout: Duration,
    /// Whether the server is asked how long it took.
    pub(super) has_timings: bool,
    transaction: Transaction,
}

impl Session {
    pub(super) fn new(nodes: Nodes, database: &str, level: &str) -> Session {
        Session {
            nodes,
            database: database.to_owned(),
            level: level.to_owned(),
            timeout: Duration::from_secs(30),
            has_timings: false,
            transaction: Transaction::None,
        }
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// What the prompt shows of the transaction.
    pub(super) fn mark(&self) -> &'static str {
        match self.transaction {
            Transaction::None => "",
            Transaction::Open { .. } => "*",
            Transaction::Lost(_) => "!",
        }
    }

    /// Goes on with another database.
    pub(super) fn switch(&mut self, name: &str) -> Result<(), Error> {
        crate::name::check(name).map_err(|why| Error::said(why.to_string()))?;
        self.outside_transaction(".db")?;
        self.quire(".db")?;
        self.database = name.to_owned();
        Ok(())
    }

    /// Whether each statement has a connection to itself.
    pub(super) fn has_own_connections(&self) -> bool {
        matches!(self.transaction, Transaction::None) && self.nodes.is_quire()
    }

    /// For commands that would wait for the open transaction, which waits for them.
    pub(super) fn outside_transaction(&self, what: &str) -> Result<(), Error> {
        match self.transaction {
            Transaction::None => Ok(()),
            _ => Err(Error::said(format!("{what}: a transaction is open; COMMIT or ROLLBACK first"))),
        }
    }

    /// For what only Quire's nodes can do.
    pub(super) fn quire(&mut self, what: &str) -> Result<(), Error> {
        match self.nodes.meet()? {
            Server::Other(server) => {
                Err(Error::said(format!("{what}: only Quire's nodes can do that, and this is {server}")))
            }
            Server::Quire | Server::Unknown => Ok(()),
        }
    }

    /// Runs a statement; rows go where they should as they come.
    pub(super) fn run(&mut self, sql: &str, params: &[Value], rows: &mut dyn Rows) -> Result<Summary, Error> {
        let kind = kind(sql);
        match (kind, &self.transaction) {
            (Kind::Empty, _) => return Ok(Summary::default()),
            (Kind::Begin, Transaction::None) => return self.begin().map(|()| Summary::default()),
            (Kind::Begin, Transaction::Open { .. }) => {
                return Err(Error::said("cannot start a transaction within a transaction"));
            }
            (Kind::Commit, _) => return self.commit().map(|()| Summary::default()),
            (Kind::Rollback, _) => return self.rollback().map(|()| Summary::default()),
            (_, Transaction::Lost(_)) => {
                return Err(Error::said(
                    "not run: the transaction that it belongs to is lost; ROLLBACK first",
                ));
            }
            _ => {}
        }
        let statement: Vec<Value> = std::iter::once(json!(sql)).chain(params.iter().cloned()).collect();
        let body = json!([statement]).to_string();
        let response = match &self.transaction {
            Transaction::Open { id, address } => {
                let path = format!("/tx/{id}/request?{}", self.output());
                let client = self.nodes.client_at(address);
                self.within(&client, &path, &body, kind)?
            }
            _ => {
                if self.database != "main" {
                    self.quire(&format!("database {}", self.database))?;
                }
                let path = format!(
                    "/db/request?{}&db={}&level={}&timeout={}ms",
                    self.output(),
                    self.database,
                    self.level,
                    self.timeout.as_millis()
                );
                let (is_repeatable, patience) = (kind == Kind::Read, self.timeout + GRACE);
                self.nodes.ask(Ask { path: &path, body: Some(&body), is_repeatable, patience })?
            }
        };
        self.read(response, kind, rows)
    }

    /// Parameters for how results look.
    fn output(&self) -> &'static str {
        if self.has_timings { "blob_array&timings" } else { "blob_array" }
    }

    fn read(&self, response: Response<Body>, kind: Kind, rows: &mut dyn Rows) -> Result<Summary, Error> {
        if !response.status().is_success() {
            return Err(Error::said(said(response)));
        }
        let summary = match reply::read(response.into_body().into_reader(), rows) {
            Ok(summary) => summary,
            Err(ReadError::Sink(error)) => return Err(Error::Output(error)),
            Err(ReadError::Answer(_)) if self.nodes.was_interrupted() => return Err(Error::Interrupted("")),
            Err(error) if kind == Kind::Read => return Err(Error::said(error.to_string())),
            Err(error) => return Err(Error::said(format!("{error}; the statement may have been done"))),
        };
        match summary.error {
            Some(error) => Err(Error::Said(error)),
            None => Ok(summary),
        }
    }

    /// Rows for the shell itself; at its level, and in the open transaction if there is one.
    pub(super) fn rows(&mut self, sql: &str, params: &[Value]) -> Result<Kept, Error> {
        let mut kept = Kept::default();
        self.run(sql, params, &mut kept)?;
        Ok(kept)
    }

    /// The same for completion: at once, or not at all, and without a word.
    pub(super) fn glance(&mut self, sql: &str) -> Option<Kept> {
        let (client, path) = match &self.transaction {
            Transaction::Lost(_) => return None,
            Transaction::Open { id, address } => {
                (self.nodes.client_at(address), format!("/tx/{id}/query?blob_array"))
            }
            Transaction::None => {
                (self.nodes.client(), format!("/db/query?blob_array&level=none&db={}", self.database))
            }
        };
        let response = client.send(&path, &json!([sql]).to_string(), GLANCE).ok()?;
        let mut kept = Kept::default();
        self.read(response, Kind::Read, &mut kept).ok().map(|_| kept)
    }

    /// Runs what is to be done as a whole, or not at all, in a transaction of its own.
    pub(super) fn all_or_nothing<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.outside_transaction(what)?;
        self.quire(what)?;
        self.begin()?;
        let done = work(self).and_then(|done| self.commit().map(|()| done));
        if !matches!(self.transaction, Transaction::None) {
            // After Ctrl-C, too: as long as it stands open, others wait.
            self.nodes.resume();
            let _ = self.rollback();
        }
        done.map_err(|error| match error {
            Error::Interrupted(_) => Error::Interrupted("; nothing was changed"),
            error => error,
        })
    }

    /// Runs statements in the open transaction; if one of them failed, which, and why.
    pub(super) fn within_transaction(
        &mut self,
        statements: &[Value],
    ) -> Result<Option<(usize, String)>, Error> {
        let Transaction::Open { id, address } = &self.transaction else {
            return Err(Error::said("no transaction is open"));
        };
        if statements.is_empty() {
            return Ok(None);
        }
        let (path, client) = (format!("/tx/{id}/execute"), self.nodes.client_at(address));
        let mut response = self.within(&client, &path, &json!(statements).to_string(), Kind::Write)?;
        if !response.status().is_success() {
            return Err(Error::said(said(response)));
        }
        let answer = response.body_mut().read_json::<Value>();
        let answer =
            answer.map_err(|error| Error::said(format!("{}: {}", client.address(), told(&error))))?;
        let results = answer["results"].as_array().into_iter().flatten();
        let failed =
            results.enumerate().find_map(|(at, result)| Some((at, result["error"].as_str()?.to_owned())));
        Ok(failed.or_else(|| Some((0, answer["error"].as_str()?.to_owned()))))
    }

    fn begin(&mut self) -> Result<(), Error> {
        if let Server::Other(server) = self.nodes.meet()? {
            return Err(Error::said(format!(
                "BEGIN: {server} has no transactions over several statements; Quire's nodes have"
            )));
        }
        let path = format!("/tx?db={}&{TRANSACTION}", self.database);
        // Nothing is changed by one that nobody uses.
        let ask = Ask { path: &path, body: Some(""), is_repeatable: true, patience: self.timeout + GRACE };
        let mut response = self.nodes.ask(ask)?;
        if !response.status().is_success() {
            return Err(Error::said(format!("BEGIN: {}", said(response))));
        }
        let answer = response.body_mut().read_json::<Value>();
        let id = answer.ok().and_then(|answer| Some(answer["id"].as_str()?.to_owned()));
        let id = id.filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let id = id.ok_or_else(|| Error::said("BEGIN: the node gave the transaction no id"))?;
        self.transaction = Transaction::Open { id, address: self.nodes.client().address().to_owned() };
        Ok(())
    }

    /// A request within the transaction. If that is over, nothing of it remains.
    fn within(
        &mut self,
        client: &Client,
        path: &str,
        body: &str,
        kind: Kind,
    ) -> Result<Response<Body>, Error> {
        let patience = self.timeout + GRACE;
        let why = match client.send(path, body, patience) {
            Ok(response) => match response.status().as_u16() {
                404 => said(response),
                409 => {
                    let why = said(response);
                    if is_at_work(&why) {
                        return Err(Error::Said(why));
                    }
                    why
                }
                _ => return Ok(response),
            },
            Err(_) if self.nodes.was_interrupted() => {
                return Err(Error::Interrupted(match kind {
                    Kind::Read => "; the transaction is still open",
                    _ => "; the transaction may be over",
                }));
            }
            Err(error) => format!(
                "{} does not answer ({}), and the transaction is only there; it will be rolled back",
                client.address(),
                told(&error)
            ),
        };
        self.transaction = Transaction::Lost(why.clone());
        Err(Error::Said(format!("the transaction is lost: {why}")))
    }

    fn commit(&mut self) -> Result<(), Error> {
        let (id, address) = match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None => return Err(Error::said("cannot commit - no transaction is active")),
            Transaction::Lost(why) => {
                return Err(Error::Said(format!("nothing was committed: the transaction was lost: {why}")));
            }
            Transaction::Open { id, address } => (id, address),
        };
        let client = self.nodes.client_at(&address);
        match client.send(&format!("/tx/{id}/commit"), "", self.timeout + GRACE) {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => {
                let status = response.status().as_u16();
                let why = said(response);
                if status == 409 && is_at_work(&why) {
                    self.transaction = Transaction::Open { id, address };
                    return Err(Error::Said(why));
                }
                Err(Error::Said(if status == 404 { format!("nothing was committed: {why}") } else { why }))
            }
            Err(error) if was_not_sent(&error) => Err(Error::Said(format!(
                "nothing was committed: {} does not answer ({})",
                client.address(),
                told(&error)
            ))),
            Err(error) => Err(Error::Said(format!(
                "outcome unknown: {} did not answer ({}); the transaction may or may not be committed. Look before you \
                 try again",
                client.address(),
                told(&error)
            ))),
        }
    }

    fn rollback(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None => Err(Error::said("cannot rollback - no transaction is active")),
            Transaction::Lost(_) => Ok(()),
            Transaction::Open { id, address } => {
                let client = self.nodes.client_at(&address);
                match client.send(&format!("/tx/{id}/rollback"), "", self.timeout + GRACE) {
                    Ok(response) if response.status().as_u16() == 409 => {
                        let why = said(response);
                        if is_at_work(&why) {
                            self.transaction = Transaction::Open { id, address };
                            return Err(Error::Said(why));
                        }
                        Ok(())
                    }
                    // Whether it is gone already or its node is: it is rolled back, now or when its time is over.
                    _ => Ok(()),
                }
            }
        }
    }

    /// Ends the session; true if a transaction was open, which is rolled back.
    pub(super) fn close(&mut self) -> bool {
        let was_open = !matches!(self.transaction, Transaction::None);
        if was_open {
            let _ = self.rollback();
        }
        was_open
    }
}

/// Whether the transaction only has to finish what it does.
fn is_at_work(why: &str) -> bool {
    why == crate::sql::interactive::EndError::AtWork.to_string()
}
