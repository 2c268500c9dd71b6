//! Work that blocks, in the simulation's one thread.
//!
//! The product's workers block, so each runs on a stack of its own, as a coroutine: one that waits for something hands
//! over to the simulation for some virtual time. So what happens depends on nothing but the seed, and no thread ever waits
//! for another. Work of a node that crashes unwinds where it waits.

use crate::clock;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;
use tokio::runtime::Handle;

type Work = Box<dyn FnOnce() + Send>;
/// How it hands over: it asks to go on after some time, and is told whether it may, or is to end.
type Baton = Yielder<bool, Duration>;

/// As much as SQLite needs, and the product's code without optimization.
const STACK: usize = 2 << 20;

/// How work of a crashed node ends.
struct Crashed;

thread_local! {
    /// That of the work that runs at the moment.
    static BATON: Cell<Option<NonNull<Baton>>> = const { Cell::new(None) };
    /// Stacks that nobody uses.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// Whether such work runs.
pub(crate) fn is_simulated() -> bool {
    BATON.get().is_some()
}

/// Lets time go by.
pub(crate) fn sleep(time: Duration) {
    let baton = BATON.take().expect("work in a simulation");
    // SAFETY: it belongs to the coroutine on whose stack this is, and so outlives this call; nobody else has it.
    let goes_on = unsafe { baton.as_ref() }.suspend(time);
    BATON.set(Some(baton));
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
    let mut running = Running::start(work);
    while let Some(time) = running.go_on(true) {
        tokio::time::sleep(time).await;
    }
}

struct Running {
    /// Until it has ended.
    coroutine: Option<Coroutine<bool, Duration, ()>>,
    runtime: Handle,
}

// SAFETY: it never leaves its thread: a simulation's runtime has only one, and runs and drops all its tasks there.
unsafe impl Send for Running {}

impl Running {
    fn start(work: Work) -> Running {
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK).expect("a stack"));
        let coroutine = Coroutine::with_stack(stack, |baton: &Baton, begins| {
            BATON.set(Some(NonNull::from(baton)));
            // Of a panic the hook has told (`sim::run`).
            let _ = catch_unwind(AssertUnwindSafe(move || if begins { work() } else { drop(work) }));
            BATON.set(None);
        });
        Running { coroutine: Some(coroutine), runtime: Handle::current() }
    }

    /// Lets it run until it waits, and says for how long, or has it end where it waits; `None` once it has ended.
    fn go_on(&mut self, may: bool) -> Option<Duration> {
        let _inside = self.runtime.enter();
        let mut coroutine = self.coroutine.take()?;
        match coroutine.resume(may) {
            CoroutineResult::Yield(time) => {
                self.coroutine = Some(coroutine);
                Some(time)
            }
            CoroutineResult::Return(()) => {
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
                None
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        while self.go_on(false).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn simulated<T>(test: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(test)
    }

    #[test]
    fn where_one_waits_others_go_on() {
        let steps = Arc::new(Mutex::new(String::new()));
        let work = |name: char, pause: u64| {
            let steps = steps.clone();
            drive(Box::new(move || {
                for _ in 0..3 {
                    steps.lock().unwrap().push(name);
                    sleep(Duration::from_millis(pause));
                }
            }))
        };
        simulated(async { tokio::join!(work('a', 20), work('b', 11)) });
        assert_eq!(*steps.lock().unwrap(), "abbaba");
        assert!(!is_simulated());
    }

    #[test]
    fn work_that_is_given_up_unwinds_where_it_waits() {
        struct Ended(Arc<Mutex<u32>>);
        impl Drop for Ended {
            fn drop(&mut self) {
                *self.0.lock().unwrap() += 1;
            }
        }
        let ended = Arc::new(Mutex::new(0));
        simulated(async {
            let (held, begun) = (Ended(ended.clone()), Ended(ended.clone()));
            let waits = drive(Box::new(move || {
                let _begun = begun;
                sleep(Duration::from_secs(60));
                panic!("it goes on");
            }));
            // Which was never begun.
            let idle = drive(Box::new(move || drop(held)));
            let _ = tokio::time::timeout(Duration::from_secs(1), waits).await;
            assert_eq!(*ended.lock().unwrap(), 1);
            drop(idle);
        });
        assert_eq!(*ended.lock().unwrap(), 2);
        assert!(!is_simulated());
    }
}
