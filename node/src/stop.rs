//! When work that blocks a thread has to end: at its deadline, or as soon as whoever asked for it is gone.

use rusqlite::{Connection, ErrorCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Instructions of SQLite's machine between two looks.
const INSTRUCTIONS: i32 = 2000;

/// Tells the work when to end.
#[derive(Clone, Debug)]
pub struct Stop {
    deadline: Instant,
    gone: Arc<AtomicBool>,
}

/// Whoever asked for the work. Dropping it ends that.
#[derive(Debug)]
pub struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Stop {
    /// For work that may take this long.
    pub fn after(time: Duration) -> Stop {
        Stop { deadline: Instant::now() + time, gone: Arc::default() }
    }

    /// What is to be kept as long as the result is wanted.
    pub fn asker(&self) -> Asker {
        Asker(self.gone.clone())
    }

    /// Why the work has to end, if it has to.
    pub fn why(&self) -> Option<&'static str> {
        if self.gone.load(Relaxed) {
            return Some("the client is gone");
        }
        (Instant::now() >= self.deadline).then_some("it takes longer than its timeout")
    }

    /// Has the connection's statements interrupted when it is time.
    pub fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let stop = self.clone();
        connection.progress_handler(INSTRUCTIONS, Some(move || stop.why().is_some()))
    }

    /// Why a statement was interrupted, if this is its error.
    pub fn interrupted(&self, error: &rusqlite::Error) -> Option<&'static str> {
        let interrupted = error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted);
        if interrupted { self.why() } else { None }
    }
}
