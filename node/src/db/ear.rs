//! What the node says to a writer of its own: SQLite's result codes only tell that it refused, and not whether the
//! outcome of a transaction is unknown.

use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::proto::{NodeStatus, Outcome, ReadGoal, Refusal, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the node last said to a writer.
#[derive(Debug, Default)]
pub struct Said {
    /// Why there is no lease.
    pub refusal: Option<Refusal>,
    /// What became of the transaction; of the last, if there were several.
    pub outcome: Option<Outcome>,
    /// The last index at which one of them was committed.
    pub committed: Option<u64>,
}

/// Asked with the id of a transaction that is about to be proposed; an error keeps it from that.
pub type Question = Box<dyn FnMut(TxnId) -> Result<(), String> + Send>;

/// The place where a writer finds what the node said.
#[derive(Clone, Default)]
pub struct Ear {
    said: Arc<Mutex<Said>>,
    question: Arc<Mutex<Option<Question>>>,
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ear").field("said", &self.said).finish_non_exhaustive()
    }
}

impl Ear {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn question(&self) -> MutexGuard<'_, Option<Question>> {
        self.question.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks this before each transaction that is proposed from now on.
    pub fn ask_first(&self, question: Option<Question>) {
        *self.question() = question;
    }

    fn hear(&self, outcome: &Outcome) {
        let mut said = self.said();
        if let Outcome::Committed(index) = outcome {
            said.committed = Some(*index);
        }
        said.outcome = Some(outcome.clone());
    }

    /// What the node said since the last time.
    pub fn take(&self) -> Said {
        std::mem::take(&mut *self.said())
    }
}

/// A writer's gate, and an ear at it.
pub struct Listening {
    inner: Box<dyn Gate>,
    ear: Ear,
}

impl Listening {
    /// Listens at this gate.
    pub fn to(inner: Box<dyn Gate>) -> (Listening, Ear) {
        let ear = Ear::default();
        (Listening { inner, ear: ear.clone() }, ear)
    }
}

impl Gate for Listening {
    fn info(&self) -> &DatabaseInfo {
        self.inner.info()
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        let answer = self.inner.acquire();
        self.ear.said().refusal = answer.as_ref().err().cloned();
        answer
    }

    fn part(&mut self, grant: &Grant, message: Vec<u8>) -> Result<(), String> {
        let answer = self.inner.part(grant, message);
        if let Err(why) = &answer {
            self.ear.hear(&Outcome::Refused(why.clone()));
        }
        answer
    }

    fn commit(&mut self, grant: &Grant, id: TxnId, target: WalTarget, message: Vec<u8>) -> Outcome {
        let answer = self.ear.question().as_mut().map_or(Ok(()), |question| question(id));
        let outcome = match answer {
            Ok(()) => self.inner.commit(grant, id, target, message),
            Err(why) => Outcome::Refused(why),
        };
        self.ear.hear(&outcome);
        outcome
    }

    fn release(&mut self, grant: Grant, linger: bool) {
        self.inner.release(grant, linger);
    }

    fn is_replaced(&self) -> bool {
        self.inner.is_replaced()
    }

    fn read(&mut self, goal: ReadGoal, wait: Duration) -> Result<(u64, Duration), Refusal> {
        self.inner.read(goal, wait)
    }

    fn status(&mut self) -> Result<NodeStatus, Refusal> {
        self.inner.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_remembered_whatever_comes_after_it() {
        let ear = Ear::default();
        ear.hear(&Outcome::Committed(7));
        ear.hear(&Outcome::Refused("the leader has changed".into()));
        let said = ear.take();
        assert_eq!(said.committed, Some(7));
        assert!(matches!(said.outcome, Some(Outcome::Refused(_))));
        assert_eq!(ear.take().committed, None);
    }
}
