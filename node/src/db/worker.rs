//! The worker of one database: does what is in its queue, in log order. How an entry becomes visible stands in
//! [`super::publish`].
//!
//! The worker blocks, on the gate lock most of all, so it runs on the runtime's blocking threads, one for
//! each database that has something to do. While an app publishes there is nothing to do: it ends, and starts
//! again when the app is done.

use super::database::{Database, Scrubbed, State, VERIFICATIONS, Verification, Work};
use quire_vfs::gate::proto::Outcome;
use std::sync::{Arc, MutexGuard};
use tracing::warn;

impl Database {
    /// Works until the queue is empty.
    pub(super) fn drain(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            match &state.publishing {
                Some(publishing) if publishing.ended => {
                    state = self.finish(state);
                    continue;
                }
                Some(_) => {
                    state.running = false;
                    return;
                }
                None => {}
            }
            let Some(work) = state.take_work() else {
                state.running = false;
                self.watch_wal(&mut state);
                // The copy is no longer behind.
                self.ask_for_parked(&mut state);
                self.advance(&mut state);
                return;
            };
            self.queue_changed(&mut state);
            state = self.work(state, work);
        }
    }

    fn work<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, work: Work) -> MutexGuard<'a, State> {
        match work {
            Work::Entry { position, head, body } => return self.entry(state, position, head, body),
            Work::Part(part) => return self.part(state, &part),
            Work::Void { index, id } => self.void(&mut state, index, id),
            Work::Skipped(index) => self.has_dealt_with(&state, index),
            Work::Publish(entry) => return self.publish(state, entry),
            Work::NewTerm(term) => {
                state.large.new_term(term);
                if state.pending.as_ref().is_some_and(|p| p.term.is_some_and(|t| t < term)) {
                    refuse(&mut state, "the leader changed before it committed");
                }
            }
            Work::Conclude(id) => {
                if state.pending.as_ref().is_some_and(|p| p.id == id) {
                    refuse(&mut state, "it is not in the log");
                }
                state.large.conclude(id);
            }
            Work::Verify { index, files, scrub } => {
                let (last, pages) = (state.rule.last(), state.hashes.len());
                let mut found = Verification::new(index, last, state.hashes.checksum(), pages);
                if scrub {
                    found.scrubbed = Scrubbed::Underway;
                }
                if files {
                    drop(state);
                    found.file = Some(self.hash_file(index).map_err(|error| error.to_string()));
                    state = self.state();
                }
                if let Some(why) = &state.fenced {
                    found.file = Some(Err(format!("fenced: {why}")));
                }
                if state.verifications.len() == VERIFICATIONS {
                    state.verifications.pop_front();
                }
                state.verifications.push_back(found);
                if scrub {
                    // Later on, but the pages are those of no older entry than this.
                    self.context.spawn(crate::repair::scrub_now(self.clone(), index));
                }
                self.progress.send_if_modified(|at| std::mem::replace(at, index.max(*at)) < index);
            }
            Work::Signal(done) => {
                let _ = done.send(());
            }
            Work::Pause { paused, resume } => {
                drop(state);
                if paused.send(()).is_ok() {
                    // No time-out: going on while the snapshot is taken would make it wrong. The other end is
                    // dropped in any case.
                    crate::blocking::await_end(&resume);
                }
                state = self.state();
            }
            Work::Checkpoint => {
                drop(state);
                match self.checkpoint_all() {
                    Ok(_) => {}
                    Err(error) => warn!(database = self.name, "checkpoint: {error}"),
                }
                state = self.state();
            }
            Work::Drop => self.end(&mut state),
            Work::Install { incoming, read, done } => {
                let (again, result) = self.install(state, &incoming, read);
                drop(incoming);
                state = again;
                let _ = done.send(result);
            }
            Work::Tidy => {
                (state, _) = self.lock_gate(state, None);
                // Whoever syncs the files must not keep those waiting who need the state.
                drop(state);
                let result = self.tidy();
                self.unlock_gate();
                state = self.state();
                if let Err(error) = result {
                    self.fence(&mut state, &error);
                }
            }
        }
        state
    }
}

/// The pending transaction will never commit.
pub(super) fn refuse(state: &mut State, why: &str) {
    if let Some(waiter) = state.pending.take().and_then(|p| p.waiter) {
        let _ = waiter.send(Outcome::Refused(why.to_owned()));
    }
}
