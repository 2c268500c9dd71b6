//! Transactions that a client begins, works in and ends with requests of their own. Each has a thread and a connection;
//! while it is open it holds the database's lease, like an app between `BEGIN IMMEDIATE` and `COMMIT`, so all other
//! writers wait. Hence two time-outs, one between requests and one for the whole, after which it is rolled back.

use super::batch::{Committed, NotBegun, Open};
use super::ffi;
use super::guard::{Gone, Mode};
use super::request::Request;
use super::run;
use super::service::ELECTION;
use super::writer::{Place, WriteError};
use crate::db::database::Database;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Transactions that are open or about to be.
const MAX_OPEN: usize = 64;
/// Between two attempts at beginning.
const PAUSE: Duration = Duration::from_millis(5);

/// A request within a transaction, or its end.
#[derive(Debug)]
enum Command {
    Run(Arc<Request>, Gone, oneshot::Sender<Result<Vec<u8>, EndError>>),
    /// The flag is set once it is tried.
    Commit(Arc<AtomicBool>, oneshot::Sender<Result<Option<u64>, EndError>>),
    Rollback(oneshot::Sender<Result<Option<u64>, EndError>>),
}

/// A transaction can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// It isn't there.
    #[error(
        "there is no such transaction on this node: it has ended, timed out, or was begun on another node"
    )]
    NotFound,
    /// Its last request is still at work.
    #[error("the transaction is at work")]
    AtWork,
    /// It was rolled back.
    #[error("{0}; nothing was changed")]
    RolledBack(String),
    /// It may be committed.
    #[error("outcome unknown: {0}; look before you try again")]
    Unknown(String),
}

/// The open transactions of a node.
#[derive(Debug, Default)]
pub struct Transactions(Mutex<HashMap<String, SyncSender<Command>>>);

/// How long one may last.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When it must have ended.
    pub until: Instant,
    /// Between two requests.
    pub idle: Duration,
}

impl Transactions {
    fn all(&self) -> MutexGuard<'_, HashMap<String, SyncSender<Command>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one, and returns its id.
    pub async fn begin(
        self: &Arc<Self>,
        database: Arc<Database>,
        place: Place,
        limits: Limits,
    ) -> Result<String, WriteError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| WriteError::Refused(format!("no random bytes: {error}")))?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (commands, received) = sync_channel(1);
        {
            let mut all = self.all();
            if all.len() >= MAX_OPEN {
                return Err(WriteError::Overloaded);
            }
            all.insert(id.clone(), commands);
        }
        let (begun, begins) = oneshot::channel();
        let (transactions, name) = (self.clone(), id.clone());
        let thread = std::thread::Builder::new().name(super::THREAD.to_owned());
        let spawned = thread.spawn(move || {
            let own = Listed(transactions, name);
            match begin(&database, &place, limits.until) {
                Ok(open) => {
                    if begun.send(Ok(())).is_ok() {
                        serve(&open, &received, limits);
                    }
                }
                Err(error) => {
                    let _ = begun.send(Err(error));
                }
            }
            drop(own);
        });
        if let Err(error) = spawned {
            self.all().remove(&id);
            return Err(WriteError::TimedOut(format!("no thread: {error}")));
        }
        let begun = begins.await.unwrap_or_else(|_| Err(WriteError::TimedOut("it failed by a bug".into())));
        begun.map(|()| id)
    }

    async fn ask<T>(
        &self,
        id: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, EndError>>) -> Command,
    ) -> Result<T, EndError> {
        let commands = self.all().get(id).cloned().ok_or(EndError::NotFound)?;
        let (reply, answer) = oneshot::channel();
        commands.try_send(command(reply)).map_err(|error| match error {
            TrySendError::Full(_) => EndError::AtWork,
            TrySendError::Disconnected(_) => EndError::NotFound,
        })?;
        answer.await.unwrap_or(Err(EndError::NotFound))
    }

    /// Runs statements within one. Dropped, it interrupts them.
    pub async fn run(&self, id: &str, request: Arc<Request>) -> Result<Vec<u8>, EndError> {
        let gone = Gone::default();
        let _waiter = gone.waiter();
        self.ask(id, |reply| Command::Run(request, gone, reply)).await
    }

    /// Commits one; the log index, if it changed anything.
    pub async fn commit(&self, id: &str) -> Result<Option<u64>, EndError> {
        let is_tried = Arc::new(AtomicBool::new(false));
        let ended = self.ask(id, |reply| Command::Commit(is_tried.clone(), reply)).await;
        match ended {
            // Without a reply: what it came to can't be told.
            Err(EndError::NotFound) if is_tried.load(SeqCst) => {
                Err(EndError::Unknown("the transaction failed by a bug while it was committed".into()))
            }
            ended => ended,
        }
    }

    /// Rolls one back.
    pub async fn rollback(&self, id: &str) -> Result<Option<u64>, EndError> {
        self.ask(id, Command::Rollback).await
    }
}

/// Takes a transaction off the list when its thread ends, however it does.
struct Listed(Arc<Transactions>, String);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

fn begin(database: &Database, place: &Place, until: Instant) -> Result<Open, WriteError> {
    let began = Instant::now();
    let mut open = None;
    loop {
        let why = match &open {
            None => match Open::new(database, place) {
                Ok(new) => {
                    open = Some(new);
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Some(connection) => match connection.begin() {
                Ok(()) => return open.ok_or_else(|| WriteError::Refused("it was not begun".into())),
                // Who leads next may be known in a moment.
                Err(NotBegun::Error(WriteError::NotLeader(why))) if began.elapsed() < ELECTION => why,
                Err(NotBegun::Error(error)) => return Err(error),
                Err(NotBegun::Wait(why)) => why,
            },
        };
        if Instant::now() + PAUSE >= until {
            return Err(WriteError::TimedOut(why));
        }
        std::thread::sleep(PAUSE);
    }
}

fn serve(open: &Open, commands: &Receiver<Command>, limits: Limits) {
    loop {
        let left = limits.until.saturating_duration_since(Instant::now());
        match commands.recv_timeout(left.min(limits.idle)) {
            Ok(Command::Run(request, gone, reply)) => {
                let ran = statements(open, &request, (limits.until, &gone));
                let is_over = ran.is_err();
                let _ = reply.send(ran);
                if is_over {
                    return;
                }
            }
            Ok(Command::Commit(is_tried, reply)) => {
                is_tried.store(true, SeqCst);
                let _ = reply.send(match open.commit() {
                    Committed::Yes(index) => Ok(index),
                    Committed::NotNow(why) | Committed::Never(why) => Err(EndError::RolledBack(why)),
                    Committed::Unknown(why) => Err(EndError::Unknown(why)),
                });
                return;
            }
            Ok(Command::Rollback(reply)) => {
                open.rollback();
                let _ = reply.send(Ok(None));
                return;
            }
            // Dropping the connection rolls back, too; said here for the reader.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return open.rollback(),
        }
    }
}

fn statements(open: &Open, request: &Request, (until, gone): (Instant, &Gone)) -> Result<Vec<u8>, EndError> {
    let began = Instant::now();
    let limit = request.db_timeout.map_or(until, |timeout| until.min(began + timeout));
    let mut json = run::begin(&request.output);
    ffi::forget_last_rowid(open.connection());
    for statement in &request.statements {
        let ran = open.statement(request, statement, Mode::Alone, (limit, gone), &mut json);
        if open.connection().is_autocommit() {
            let why = ran.err().map_or_else(|| "it ended".into(), |failure| failure.message);
            return Err(EndError::RolledBack(format!("the transaction was rolled back: {why}")));
        }
    }
    run::end(&mut json, &request.output, None, began, None);
    Ok(json.out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction whose thread does this with its first command, and ends.
    fn transactions(thread: impl FnOnce(Command) + Send + 'static) -> Transactions {
        let (commands, received) = sync_channel(1);
        std::thread::spawn(move || thread(received.recv().unwrap()));
        Transactions(Mutex::new(HashMap::from([("id".to_owned(), commands)])))
    }

    #[tokio::test]
    async fn a_commit_without_a_reply_is_unknown_once_it_was_tried() {
        let tried = transactions(|command| {
            let Command::Commit(is_tried, _) = command else { panic!("{command:?}") };
            is_tried.store(true, SeqCst);
        });
        assert!(matches!(tried.commit("id").await, Err(EndError::Unknown(_))));
        assert_eq!(tried.commit("id").await, Err(EndError::NotFound));
        assert_eq!(transactions(drop).commit("id").await, Err(EndError::NotFound));
        assert_eq!(transactions(drop).rollback("id").await, Err(EndError::NotFound));
        assert_eq!(tried.commit("other").await, Err(EndError::NotFound));
    }
}
