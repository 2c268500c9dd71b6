//! A batch of requests: run in one transaction, committed as one entry, answered when the outcome is known. What holds
//! for it stands in [`super::writer`].

use super::autocommit::{Ran, settle, unshown};
use super::consent::{self, Origin};
use super::gates::{Ear, OpenError, open_writer};
use super::guard::{Gone, Guard, Mode};
use super::json::Json;
use super::request::{Request, Statement};
use super::run::{self, Bounded, Failure, Runner, write_error};
use super::writer::{Job, Place, WriteError, Writer};
use super::{MAX_RESULT, ffi};
use crate::db::database::Database;
use bytes::Bytes;
use quire_vfs::gate::proto::{Outcome, Refusal, RefusalCode};
use rusqlite::{Connection, ErrorCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{debug, error};

/// Bytes of results that wait for a transaction's outcome; when there are more, no further request joins it.
const MAX_BATCH_RESULTS: usize = 64 << 20;
/// Between two attempts at something that the cluster isn't ready for.
const PAUSE: Duration = Duration::from_millis(20);

/// A request in a batch.
struct Member {
    job: Job,
    began: Instant,
    json: Json,
    /// For the whole request.
    error: Option<String>,
    /// Statements that ended a transaction, and with what error.
    known: Vec<(usize, String)>,
    /// Its results stand, and it changed nothing: a request with `transaction` that failed.
    is_done: bool,
}

impl Member {
    fn new(job: Job) -> Member {
        let json = Json::default();
        Member { job, began: Instant::now(), json, error: None, known: Vec::new(), is_done: false }
    }

    /// When its statements must have ended.
    fn limit(&self) -> Instant {
        let limit = self.job.request.db_timeout.map(|timeout| Instant::now() + timeout);
        limit.map_or(self.job.deadline, |limit| limit.min(self.job.deadline))
    }

    fn answer(mut self, index: Option<u64>) {
        let json = std::mem::take(&mut self.json);
        let results = self.document(json, index);
        let _ = self.job.reply.send(Ok(results));
    }

    /// The whole answer.
    fn document(&self, mut json: Json, index: Option<u64>) -> Vec<u8> {
        if let Some(error) = &self.error {
            // Also where clients look who see nothing but results.
            write_error(&mut json, error);
        }
        run::end(&mut json, &self.job.request.output, self.error.as_deref(), self.began, index);
        json.out
    }

    /// Who is to be asked before a part of it is committed; the results aren't there yet.
    fn alone(&self) -> Option<(Origin, Option<Bytes>)> {
        self.job.origin.map(|origin| (origin, None))
    }

    /// Who is to be asked before it is committed, and the answer without the index.
    fn asked(&self) -> Option<(Origin, Option<Bytes>)> {
        let fits = self.json.out.len() <= consent::MAX_RESULTS;
        Some((
            self.job.origin?,
            fits.then(|| self.document(self.json.clone(), Some(consent::INDEX_TO_COME)).into()),
        ))
    }

    /// Its node no longer waits for it.
    fn abandon(self) {
        self.fail(abandoned());
    }

    fn fail(self, error: WriteError) {
        let _ = self.job.reply.send(Err(error));
    }
}

/// SQLite ended the transaction.
struct Lost;

/// Why no further request joins a transaction.
enum Stop {
    Lost,
    Full,
}

impl From<Lost> for Stop {
    fn from(_: Lost) -> Stop {
        Stop::Lost
    }
}

/// What a commit came to.
pub(super) enum Committed {
    /// At this index; none if nothing changed.
    Yes(Option<u64>),
    /// It never will be, but perhaps another time.
    NotNow(String),
    /// It never will be.
    Never(String),
    /// It may be.
    Unknown(String),
}

/// A connection that writes, and what belongs to it.
pub(super) struct Open {
    connection: Connection,
    guard: Guard,
    ear: Ear,
}

/// A writer at work.
pub(super) struct Session<'a> {
    writer: &'a Writer,
    open: Option<Open>,
}

impl<'a> Session<'a> {
    /// Nothing is open yet.
    pub(super) fn new(writer: &'a Writer) -> Session<'a> {
        Session { writer, open: None }
    }

    /// Gives the connection up.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Runs requests until each has an answer.
    pub(super) fn run(&mut self, jobs: Vec<Job>) {
        let mut batch: Vec<Member> = jobs.into_iter().map(Member::new).collect();
        if batch.first().is_some_and(|member| member.job.alone) {
            if let Some(open) = &self.open {
                ffi::forget_last_rowid(&open.connection);
            }
            if let Some(member) = batch.pop() {
                self.alone(member);
            }
            // It may have changed how the connection works.
            self.open = None;
            return;
        }
        self.together(batch);
    }

    /// The connection, opened if it isn't. SQLite has no transaction open on it.
    fn open(&mut self) -> Result<&Open, OpenError> {
        if self.open.as_ref().is_some_and(|open| !open.connection.is_autocommit()) {
            self.open = None;
        }
        match self.open {
            Some(ref open) => Ok(open),
            None => Ok(self.open.insert(Open::new(&self.writer.database, &self.writer.place)?)),
        }
    }

    /// Runs requests until each has an answer: in one transaction, or in several if it must be.
    fn together(&mut self, mut batch: Vec<Member>) {
        let mut company = batch.len();
        let mut lost = 0;
        while self.begin(&mut batch) {
            let began = Instant::now();
            let Some(open) = &self.open else { return };
            let mut ran = 0;
            let mut room = MAX_BATCH_RESULTS;
            let run = batch.iter_mut().take(company).try_for_each(|member| {
                ran += 1;
                open.together(member)?;
                room = room.saturating_sub(member.json.out.len());
                // Those whose results would be too much to keep come after these.
                if room > 0 { Ok(()) } else { Err(Stop::Full) }
            });
            if let Err(Stop::Lost) = run {
                lost += 1;
                // Each time costs all that ran before; soon it is cheaper to do without company.
                company = if lost > 8 { 1 } else { company };
                continue;
            }
            let asking = Asking::before(self.writer, open, batch.iter().take(ran).filter_map(Member::asked));
            let committed = open.commit();
            let without = asking.end();
            if !without.is_empty() {
                let is_meant = |m: &mut Member| m.job.origin.is_some_and(|origin| without.contains(&origin));
                batch.extract_if(.., is_meant).for_each(Member::abandon);
                continue;
            }
            let mut answer = |answer: &dyn Fn(Member)| batch.drain(..ran).for_each(answer);
            match committed {
                Committed::Yes(index) => {
                    self.writer.place.stats.committed(ran, index.is_some(), began.elapsed());
                    answer(&|member| member.answer(index));
                }
                Committed::NotNow(why) => {
                    debug!(database = self.writer.database.name, "a batch is run again: {why}");
                    std::thread::sleep(PAUSE);
                }
                Committed::Never(_) if ran > 1 => company = 1,
                Committed::Never(why) => answer(&|member| member.fail(WriteError::Refused(why.clone()))),
                Committed::Unknown(why) => {
                    answer(&|member| member.fail(WriteError::Unknown(why.clone())));
                    self.open = None;
                    self.writer.place.stats.unknown();
                }
            }
        }
    }

    /// Begins a transaction for a batch, from which those go whose time is over. False if nobody is left.
    fn begin(&mut self, batch: &mut Vec<Member>) -> bool {
        let mut why = String::from("the database is busy");
        loop {
            let now = Instant::now();
            let fail = |member: Member, error: &WriteError| member.fail(error.clone());
            let late = WriteError::TimedOut(why.clone());
            batch.extract_if(.., |m| m.job.deadline <= now).for_each(|member| fail(member, &late));
            batch.retain(|member| !member.job.reply.is_closed());
            if batch.is_empty() {
                return false;
            }
            let opened = self.open().map(Open::begin);
            match opened {
                Ok(Ok(())) => return true,
                Ok(Err(NotBegun::Wait(reason))) => why = reason,
                Ok(Err(NotBegun::Error(error))) => {
                    batch.drain(..).for_each(|member| fail(member, &error));
                    return false;
                }
                Err(error) => why = error.to_string(),
            }
            std::thread::sleep(PAUSE / 10);
        }
    }

    /// Runs a request that shares nothing with others.
    fn alone(&mut self, mut member: Member) {
        let request = member.job.request.clone();
        member.json = run::begin(&request.output);
        let limit = member.limit();
        let mut index = None;
        if request.transaction {
            let mut batch = vec![member];
            while self.begin(&mut batch) {
                let (Some(mut member), Some(open)) = (batch.pop(), &self.open) else { return };
                let asking = Asking::before(self.writer, open, member.alone());
                member.error = None;
                member.json = run::begin(&request.output);
                match open.unit(&mut member, Mode::Alone) {
                    Err(Lost) if member.is_done => return member.answer(None),
                    Err(Lost) => {
                        return member.fail(WriteError::Refused("SQLite ended the transaction".into()));
                    }
                    Ok(()) => {}
                }
                let committed = open.commit();
                if !asking.end().is_empty() {
                    return member.abandon();
                }
                match committed {
                    Committed::Yes(index) => return member.answer(index),
                    Committed::NotNow(why) => {
                        debug!(database = self.writer.database.name, "a request is run again: {why}");
                        batch.push(member);
                        std::thread::sleep(PAUSE);
                    }
                    Committed::Never(why) => return member.fail(WriteError::Refused(why)),
                    Committed::Unknown(why) => return member.fail(WriteError::Unknown(why)),
                }
            }
            return;
        }
        for (i, statement) in request.statements.iter().enumerate() {
            if member.job.reply.is_closed() {
                return;
            }
            match self.autocommit(&mut member, statement, limit) {
                Ok(None) => {}
                Ok(at) => index = at,
                Err(error) if i == 0 => return member.fail(error),
                // What came before it stands.
                Err(WriteError::TimedOut(why)) => {
                    member.error = Some(format!("timeout: {why}; only what has a result was run"));
                    break;
                }
                Err(error) => {
                    member.error = Some(error.to_string());
                    break;
                }
            }
        }
        member.answer(index);
    }

    /// Runs a statement in a transaction of its own, again while it definitely had no effect.
    fn autocommit(
        &mut self,
        member: &mut Member,
        statement: &Statement,
        limit: Instant,
    ) -> Result<Option<u64>, WriteError> {
        let request = member.job.request.clone();
        loop {
            let (deadline, writer) = (member.job.deadline, self.writer);
            let open = match self.open() {
                Ok(open) => open,
                Err(error) if Instant::now() >= deadline => {
                    return Err(WriteError::TimedOut(error.to_string()));
                }
                Err(_) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let mark = member.json.mark();
            open.ear.take();
            let asking = Asking::before(writer, open, member.alone());
            let gone = &member.job.gone;
            let ran = open.statement(&request, statement, Mode::Alone, (limit, gone), &mut member.json);
            let is_abandoned = !asking.end().is_empty() || member.job.reply.is_closed();
            let why = match settle(ran, open.ear.take(), run::is_single(&statement.sql)) {
                Ran::Done(index) => return Ok(index),
                Ran::InPart(index, why) => {
                    member.json.reset(mark);
                    write_error(&mut member.json, &why);
                    return Ok(Some(index));
                }
                Ran::Failed(error) => {
                    member.json.reset(mark);
                    return Err(error);
                }
                Ran::Nothing(why) => why,
            };
            member.json.reset(mark);
            if is_abandoned {
                return Err(abandoned());
            }
            if Instant::now() >= limit {
                return Err(WriteError::TimedOut(why));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn abandoned() -> WriteError {
    WriteError::NotLeader("the node that sent it no longer waits for it".into())
}

/// A question to those who wait for what is about to be committed on a connection.
struct Asking<'a> {
    open: &'a Open,
    without: Arc<Mutex<Vec<Origin>>>,
}

impl<'a> Asking<'a> {
    fn before(
        writer: &Writer,
        open: &'a Open,
        requests: impl IntoIterator<Item = (Origin, Option<Bytes>)>,
    ) -> Asking<'a> {
        let asking = Asking { open, without: Arc::default() };
        let requests: Vec<_> = requests.into_iter().collect();
        if requests.is_empty() {
            return asking;
        }
        let (without, place, database) =
            (asking.without.clone(), writer.place.clone(), writer.database.clone());
        open.ear.ask_first(Some(Box::new(move |id| {
            let node = database.node().ok_or("the node is stopping")?;
            let missing = consent::ask(&node, (&place.runtime, &place.sent), id, &requests);
            if missing.is_empty() {
                return Ok(());
            }
            without.lock().unwrap_or_else(PoisonError::into_inner).extend(missing);
            Err("nobody waits for a request in it any more".into())
        })));
        asking
    }

    /// It is over; those that nobody waits for.
    fn end(self) -> Vec<Origin> {
        std::mem::take(&mut *self.without.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.open.ear.ask_first(None);
    }
}

/// Why a transaction could not begin.
pub(super) enum NotBegun {
    Wait(String),
    Error(WriteError),
}

impl Open {
    /// Opens one.
    pub(super) fn new(database: &Database, place: &Place) -> Result<Open, OpenError> {
        let (mut connection, ear) = open_writer(database, &place.socket, place.directory)?;
        let guard = Guard::install(&mut connection, place.foreign_keys)?;
        // Whoever writes waits for the gate by itself, and knows why.
        connection.busy_timeout(Duration::ZERO)?;
        Ok(Open { connection, guard, ear })
    }

    /// The connection.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Runs a client's statement, until then, and as long as somebody waits for it.
    pub(super) fn statement(
        &self,
        request: &Request,
        statement: &Statement,
        mode: Mode,
        (limit, gone): (Instant, &Gone),
        json: &mut Json,
    ) -> Result<(), Failure> {
        self.guard.enter(mode, Some(limit));
        self.guard.runs_for(gone);
        let ran = self.runner(request).statement(statement, json, &mut Bounded(MAX_RESULT));
        self.guard.leave();
        ran
    }

    /// Ends a transaction without its effects.
    pub(super) fn rollback(&self) {
        let _ = self.own("ROLLBACK");
    }

    fn runner<'a>(&'a self, request: &Request) -> Runner<'a> {
        Runner {
            connection: &self.connection,
            guard: &self.guard,
            kind: request.kind,
            output: request.output,
        }
    }

    /// The node's own SQL. Never from the cache of prepared statements, nor left there: a client that sends the same
    /// text would get a statement that nobody asked the authorizer about.
    fn own(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare(sql)?.raw_execute().map(drop)
    }

    /// Begins a transaction that will write.
    pub(super) fn begin(&self) -> Result<(), NotBegun> {
        self.guard.leave();
        self.ear.take();
        let Err(error) = self.own("BEGIN IMMEDIATE") else { return Ok(()) };
        let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        Err(match self.ear.take().refusal {
            Some(Refusal { code: RefusalCode::NotLeader, message }) => {
                NotBegun::Error(WriteError::NotLeader(message))
            }
            Some(Refusal {
                code: RefusalCode::Full | RefusalCode::Invalid | RefusalCode::NotFound,
                message,
            }) => NotBegun::Error(WriteError::Refused(message)),
            Some(refusal) => NotBegun::Wait(refusal.message),
            None if busy => NotBegun::Wait("the database is busy".into()),
            None => NotBegun::Error(WriteError::Refused(error.to_string())),
        })
    }

    /// Runs a request within the batch's transaction.
    fn together(&self, member: &mut Member) -> Result<(), Lost> {
        if member.is_done {
            return Ok(());
        }
        member.error = None;
        member.json = run::begin(&member.job.request.output);
        ffi::forget_last_rowid(&self.connection);
        self.unit(member, Mode::Shared)
    }

    /// Runs the statements of a request: all or nothing, or each for itself.
    fn unit(&self, member: &mut Member, mode: Mode) -> Result<(), Lost> {
        let request = member.job.request.clone();
        let limit = member.limit();
        // Outside a transaction of its own, a statement with keys that don't hold would have failed.
        let checks_each = !request.transaction && self.checks_keys();
        if request.transaction {
            self.savepoint()?;
        }
        for (i, statement) in request.statements.iter().enumerate() {
            if let Some((_, error)) = member.known.iter().find(|(known, _)| *known == i) {
                write_error(&mut member.json, error);
                continue;
            }
            if checks_each {
                self.savepoint()?;
            }
            let mark = member.json.mark();
            let until = (limit, &member.job.gone);
            let ran = self.statement(&request, statement, mode, until, &mut member.json);
            if self.connection.is_autocommit() {
                // Only a failure can have ended it.
                let message =
                    ran.err().map_or_else(|| "the transaction ended".into(), |failure| failure.message);
                member.is_done = request.transaction;
                member.known.push((i, message));
                return Err(Lost);
            }
            let failed = ran.is_err() || (checks_each && self.runner(&request).has_unresolved_keys());
            if checks_each {
                if failed && ran.is_ok() {
                    member.json.reset(mark);
                    write_error(&mut member.json, FOREIGN_KEY);
                }
                self.release(failed)?;
            }
            if failed && request.transaction {
                return self.release(true);
            }
        }
        if request.transaction {
            let unresolved = self.runner(&request).has_unresolved_keys();
            if unresolved {
                member.error = Some(FOREIGN_KEY.into());
            }
            self.release(unresolved)?;
        }
        Ok(())
    }

    fn checks_keys(&self) -> bool {
        self.connection.db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY).unwrap_or(true)
    }

    fn savepoint(&self) -> Result<(), Lost> {
        self.own("SAVEPOINT request").map_err(|error| self.unusable(&error))
    }

    fn release(&self, undo: bool) -> Result<(), Lost> {
        let undone = if undo { self.own("ROLLBACK TO request") } else { Ok(()) };
        undone.and_then(|()| self.own("RELEASE request")).map_err(|error| self.unusable(&error))
    }

    /// A savepoint can't be had: whatever is the reason, the transaction can't be trusted.
    fn unusable(&self, error: &rusqlite::Error) -> Lost {
        error!("savepoint: {error}");
        let _ = self.own("ROLLBACK");
        Lost
    }

    /// Commits it.
    pub(super) fn commit(&self) -> Committed {
        self.ear.take();
        let done = self.own("COMMIT");
        let said = self.ear.take();
        if !self.connection.is_autocommit() {
            let _ = self.own("ROLLBACK");
        }
        match (done, said.outcome) {
            (_, Some(Outcome::Unknown(why))) => Committed::Unknown(why),
            (Ok(()), Some(Outcome::Committed(index))) => Committed::Yes(Some(index)),
            (Ok(()), _) => Committed::Yes(None),
            (Err(error), Some(Outcome::Committed(index))) => {
                Committed::Unknown(unshown(index, &error.to_string()))
            }
            (Err(_), Some(Outcome::Refused(why))) => Committed::NotNow(why),
            (Err(error), None) => Committed::Never(error.to_string()),
        }
    }
}

/// SQLite's words.
const FOREIGN_KEY: &str = "FOREIGN KEY constraint failed";
