//! Members that are told of each commit at once, as somebody there waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::NodeId;

/// How long one call lasts.
const WHILE: Duration = Duration::from_millis(200);
/// Members that are kept account of; beyond that, those that nobody sends to are forgotten.
const MAX_MEMBERS: usize = 1024;

/// All members of whom somebody asked it.
#[derive(Default)]
pub(crate) struct Haste {
    members: Mutex<HashMap<NodeId, Arc<Hurry>>>,
}

impl Haste {
    /// The account of one member.
    pub(crate) fn of(&self, member: NodeId) -> Arc<Hurry> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() >= MAX_MEMBERS {
            members.retain(|_, hurry| Arc::strong_count(hurry) > 1);
        }
        members.entry(member).or_default().clone()
    }

    /// Somebody on a member waits for a commit.
    pub(crate) fn hurry(&self, member: NodeId) {
        let hurry = self.of(member);
        let until = hurry.start.elapsed() + WHILE;
        hurry.until.fetch_max(until.as_millis() as u64, Ordering::Relaxed);
        hurry.begun.notify_waiters();
    }
}

/// Whether one member is to be told at once.
pub(crate) struct Hurry {
    start: Instant,
    /// In milliseconds after `start`.
    until: AtomicU64,
    begun: Notify,
}

impl Default for Hurry {
    fn default() -> Self {
        Hurry { start: Instant::now(), until: AtomicU64::new(0), begun: Notify::new() }
    }
}

impl Hurry {
    fn is_on(&self) -> bool {
        (self.start.elapsed().as_millis() as u64) < self.until.load(Ordering::Relaxed)
    }

    /// Waits for `wait`, unless or until there is a hurry; `None` also if `wait` itself has failed.
    pub(crate) async fn unless<T, E>(&self, wait: impl Future<Output = Result<T, E>>) -> Option<T> {
        let begun = self.begun.notified();
        if self.is_on() {
            return None;
        }
        tokio::select! {
            biased;
            done = wait => done.ok(),
            () = begun => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hurry_ends_a_wait_that_has_begun_and_those_to_come() {
        let haste = Arc::new(Haste::default());
        let hurry = haste.of(2);
        assert_eq!(hurry.unless(async { Ok::<_, ()>(7) }).await, Some(7));
        assert_eq!(hurry.unless(async { Err::<u8, _>(()) }).await, None);
        let (begun, too) = (hurry.clone(), haste.clone());
        let waiting =
            tokio::spawn(async move { begun.unless(std::future::pending::<Result<u8, ()>>()).await });
        while !waiting.is_finished() {
            too.hurry(2);
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.await.unwrap(), None);
        assert!(!haste.of(3).is_on(), "another member");
    }
}
