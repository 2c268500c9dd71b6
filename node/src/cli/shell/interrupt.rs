//! Ctrl-C while a statement runs: its connection is closed, at which the node gives the statement up, and the shell goes
//! on. A thread waits for the signal, which is blocked everywhere else; at the prompt, Ctrl-C is a key like others.

use crate::cli::client::Client;
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// What Ctrl-C interrupts.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    was_pressed: AtomicBool,
    at_work: Mutex<Option<Client>>,
}

impl Interrupt {
    /// Takes the signal from now on. To be called before there are other threads, which inherit that it is blocked.
    pub(super) fn catch() -> anyhow::Result<Arc<Interrupt>> {
        let interrupt: Arc<Interrupt> = Arc::default();
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        let ours = interrupt.clone();
        std::thread::Builder::new().name("interrupt".into()).spawn(move || {
            while signals.wait().is_ok() {
                ours.press();
            }
        })?;
        Ok(interrupt)
    }

    fn press(&self) {
        let at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        self.was_pressed.store(true, SeqCst);
        if let Some(client) = &*at_work {
            client.shutdown();
        }
    }

    /// From now on these requests are interrupted.
    pub(super) fn arm(&self, client: &Client) {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        if self.was_pressed.load(SeqCst) {
            client.shutdown();
        }
        *at_work = Some(client.clone());
    }

    /// Whether it was pressed since the last call of `clear`.
    pub(super) fn was_pressed(&self) -> bool {
        self.was_pressed.load(SeqCst)
    }

    /// Forgets what was pressed.
    pub(super) fn clear(&self) {
        self.was_pressed.store(false, SeqCst);
    }
}
