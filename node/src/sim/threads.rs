//! Threads that block, one at a time.
//!
//! The product's workers block, so each gets a thread of its own. But only one of all threads ever runs: the
//! simulation's own waits while a worker runs, and a worker that waits for something hands over to it for some virtual
//! time. So what happens depends on nothing but the seed. A worker whose node crashes unwinds where it waits.

use crate::clock;
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;
use tokio::runtime::Handle;

type Work = Box<dyn FnOnce() + Send>;

enum Report {
    /// It wants to go on after that time.
    Sleep(Duration),
    /// It has ended; with what it panicked, if it did.
    Ended(Option<Box<dyn Any + Send>>),
}

struct Baton {
    /// Whether it may go on, or is to end.
    resume: Receiver<bool>,
    report: Sender<Report>,
}

/// How a worker of a crashed node ends.
struct Crashed;

thread_local! {
    static BATON: RefCell<Option<Baton>> = const { RefCell::new(None) };
}

/// Threads that have nothing to do.
static IDLE: Mutex<Vec<Sender<Work>>> = Mutex::new(Vec::new());

/// Whether this is such a thread.
pub(crate) fn is_simulated() -> bool {
    BATON.with_borrow(Option::is_some)
}

/// Lets time go by.
pub(crate) fn sleep(time: Duration) {
    let goes_on = BATON.with_borrow(|baton| {
        let baton = baton.as_ref().expect("a simulated thread");
        baton.report.send(Report::Sleep(time)).is_ok() && baton.resume.recv() == Ok(true)
    });
    if !goes_on {
        resume_unwind(Box::new(Crashed));
    }
}

/// Waits for a message.
pub(crate) fn receive<T>(from: &Receiver<T>, patience: Duration) -> Result<T, RecvTimeoutError> {
    let began = clock::now();
    loop {
        match from.try_recv() {
            Ok(message) => return Ok(message),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) if clock::since(began) >= patience => {
                return Err(RecvTimeoutError::Timeout);
            }
            Err(TryRecvError::Empty) => sleep(Duration::from_millis(1)),
        }
    }
}

/// Runs work to its end. Dropped before, it ends the work where that waits.
pub(crate) async fn drive(work: Work) {
    let mut thread = Thread::start(work);
    while let Some(time) = thread.go_on() {
        tokio::time::sleep(time).await;
    }
}

struct Thread {
    resume: Sender<bool>,
    report: Receiver<Report>,
    has_ended: bool,
}

impl Thread {
    fn start(work: Work) -> Thread {
        let (resume, resumed) = channel();
        let (reports, report) = channel();
        let (runtime, broken) = (Handle::current(), super::BROKEN.with_borrow(Vec::clone));
        execute(Box::new(move || {
            let _inside = runtime.enter();
            super::BROKEN.set(broken);
            let begins = resumed.recv() == Ok(true);
            BATON.set(Some(Baton { resume: resumed, report: reports.clone() }));
            let ended = catch_unwind(AssertUnwindSafe(move || if begins { work() } else { drop(work) }));
            BATON.set(None);
            let panic = ended.err().filter(|payload| !payload.is::<Crashed>());
            let _ = reports.send(Report::Ended(panic));
        }));
        Thread { resume, report, has_ended: false }
    }

    /// Lets it run until it waits, and says for how long; `None` once it has ended.
    fn go_on(&mut self) -> Option<Duration> {
        let _ = self.resume.send(true);
        match self.report.recv() {
            Ok(Report::Sleep(time)) => return Some(time),
            Ok(Report::Ended(None)) | Err(_) => self.has_ended = true,
            Ok(Report::Ended(Some(panic))) => {
                self.has_ended = true;
                resume_unwind(panic);
            }
        }
        None
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        while !self.has_ended {
            let _ = self.resume.send(false);
            self.has_ended = !matches!(self.report.recv(), Ok(Report::Sleep(_)));
        }
    }
}

fn execute(work: Work) {
    let idle = IDLE.lock().unwrap().pop();
    let work = match idle {
        Some(thread) => match thread.send(work) {
            Ok(()) => return,
            Err(work) => work.0,
        },
        None => work,
    };
    let (give, take) = channel::<Work>();
    give.send(work).unwrap();
    std::thread::spawn(move || {
        while let Ok(work) = take.recv() {
            work();
            IDLE.lock().unwrap().push(give.clone());
        }
    });
}
