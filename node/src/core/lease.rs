//! The lease queue of one database: one writer at a time, first come, first served.
//!
//! The lease is a courtesy: it makes writers queue instead of collide. Correctness rests on the commit rule
//! alone ([`super::rule`]), so a lease that outlives its leader does no harm.
//!
//! - A lease is fenced by a token that is never used twice.
//! - The queue grants only while it is *open*: this node leads, and the database has nothing in flight.
//! - A writer that gives the lease back unused because its snapshot was old *lingers*: for a short while it
//!   is served before the others, so that its next try, with a fresh snapshot, succeeds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A connection to the gate.
pub type SessionId = u64;

/// How long a writer whose snapshot was old is waited for.
pub const LINGER: Duration = Duration::from_millis(10);

/// The right to write, as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its fence.
    pub token: u64,
    /// Who has it.
    pub session: SessionId,
    /// The term in which this node led when it was granted.
    pub term: u64,
}

/// What is to be told to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It has the lease.
    Grant(Lease),
    /// Its time in the queue is over.
    Expire(SessionId),
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    session: SessionId,
    deadline: Instant,
}

/// The queue before one database.
#[derive(Debug)]
pub struct LeaseQueue {
    next_token: u64,
    holder: Option<Lease>,
    waiters: VecDeque<Waiter>,
    linger: Option<Waiter>,
}

impl LeaseQueue {
    /// An empty queue whose tokens begin after `first_token`.
    pub fn new(first_token: u64) -> LeaseQueue {
        LeaseQueue { next_token: first_token, holder: None, waiters: VecDeque::new(), linger: None }
    }

    /// The lease that is out.
    pub fn holder(&self) -> Option<Lease> {
        self.holder
    }

    /// Number of sessions that wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// A session wants to write and is willing to wait until `deadline`. A session has at most one place.
    pub fn request(&mut self, session: SessionId, deadline: Instant) {
        self.waiters.retain(|w| w.session != session);
        self.waiters.push_back(Waiter { session, deadline });
    }

    /// A lease comes back. False if it isn't the one that is out.
    pub fn release(&mut self, token: u64, linger: bool, now: Instant) -> bool {
        match self.holder {
            Some(lease) if lease.token == token => {
                self.holder = None;
                self.linger = linger.then_some(Waiter { session: lease.session, deadline: now + LINGER });
                true
            }
            _ => false,
        }
    }

    /// A session is gone, and with it its lease and its place. True if it had the lease.
    pub fn gone(&mut self, session: SessionId) -> bool {
        self.waiters.retain(|w| w.session != session);
        self.linger = self.linger.filter(|w| w.session != session);
        let had = self.holder.is_some_and(|lease| lease.session == session);
        if had {
            self.holder = None;
        }
        had
    }

    /// Empties the queue, as this node no longer leads; returns who waited. A lease that is out stays out:
    /// its commit will be refused for its term.
    pub fn close(&mut self) -> Vec<SessionId> {
        self.linger = None;
        self.waiters.drain(..).map(|w| w.session).collect()
    }

    /// What is to be done now. `open` is the term in which this node leads if it may grant.
    pub fn poll(&mut self, now: Instant, open: Option<u64>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.waiters.retain(|w| {
            let alive = w.deadline > now;
            if !alive {
                actions.push(Action::Expire(w.session));
            }
            alive
        });
        self.linger = self.linger.filter(|w| w.deadline > now);
        let (Some(term), None) = (open, self.holder) else { return actions };
        let next = match self.linger {
            Some(first) => self.waiters.iter().position(|w| w.session == first.session),
            None => (!self.waiters.is_empty()).then_some(0),
        };
        if let Some(waiter) = next.and_then(|n| self.waiters.remove(n)) {
            self.next_token += 1;
            self.linger = None;
            let lease = Lease { token: self.next_token, session: waiter.session, term };
            self.holder = Some(lease);
            actions.push(Action::Grant(lease));
        }
        actions
    }

    /// When [`LeaseQueue::poll`] must be called again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let first = self.waiters.iter().map(|w| w.deadline).min()?;
        Some(self.linger.map_or(first, |w| w.deadline.min(first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const MS: Duration = Duration::from_millis(1);

    fn granted(actions: &[Action]) -> Option<Lease> {
        actions.iter().find_map(|a| match a {
            Action::Grant(lease) => Some(*lease),
            Action::Expire(_) => None,
        })
    }

    #[test]
    fn first_come_first_served_and_expiry() {
        let now = Instant::now();
        let mut q = LeaseQueue::new(100);
        for session in [1, 2, 3] {
            q.request(session, now + 50 * MS);
        }
        assert!(q.poll(now, None).is_empty(), "closed");
        let first = granted(&q.poll(now, Some(4))).unwrap();
        assert_eq!(first, Lease { token: 101, session: 1, term: 4 });
        assert!(q.poll(now, Some(4)).is_empty(), "one at a time");
        assert!(!q.release(99, false, now), "an old token releases nothing");
        assert!(q.release(101, false, now));
        assert_eq!(granted(&q.poll(now, Some(4))).unwrap().session, 2);
        assert_eq!(q.poll(now + 50 * MS, Some(4)), [Action::Expire(3)]);
        assert!(q.gone(2));
        assert_eq!(q.deadline(), None);
    }

    #[test]
    fn a_lingering_writer_goes_first_but_not_for_long() {
        let now = Instant::now();
        let mut q = LeaseQueue::new(0);
        q.request(1, now + 100 * MS);
        q.request(2, now + 100 * MS);
        let lease = granted(&q.poll(now, Some(1))).unwrap();
        assert!(q.release(lease.token, true, now));
        assert!(q.poll(now, Some(1)).is_empty(), "waits for session 1");
        q.request(1, now + 100 * MS);
        assert_eq!(granted(&q.poll(now + MS, Some(1))).unwrap().session, 1);
        let lease = q.holder().unwrap();
        assert!(q.release(lease.token, true, now));
        assert_eq!(granted(&q.poll(now + LINGER, Some(1))).unwrap().session, 2);
    }

    proptest! {
        #[test]
        fn one_holder_no_token_twice_nobody_forgotten(
            events in proptest::collection::vec((0u8..5, 1u64..5, any::<bool>()), 0..200),
        ) {
            let mut now = Instant::now();
            let mut q = LeaseQueue::new(0);
            let mut tokens = BTreeSet::new();
            let mut waiting = BTreeSet::new();
            for (event, session, flag) in events {
                now += MS;
                match event {
                    0 => {
                        if q.holder().is_none_or(|l| l.session != session) {
                            q.request(session, now + 20 * MS);
                            waiting.insert(session);
                        }
                    }
                    1 => {
                        if let Some(lease) = q.holder() { prop_assert!(q.release(lease.token, flag, now)); }
                    }
                    2 => { q.gone(session); waiting.remove(&session); }
                    3 => { for s in q.close() { prop_assert!(waiting.remove(&s)); } }
                    _ => {
                        let before = q.holder();
                        for action in q.poll(now, flag.then_some(1)) {
                            match action {
                                Action::Grant(lease) => {
                                    prop_assert!(before.is_none() && tokens.insert(lease.token));
                                    prop_assert!(waiting.remove(&lease.session));
                                }
                                Action::Expire(s) => prop_assert!(waiting.remove(&s)),
                            }
                        }
                    }
                }
                prop_assert_eq!(q.waiting(), waiting.len());
            }
            for action in q.poll(now + Duration::from_secs(1), None) {
                let Action::Expire(s) = action else { panic!("granted while closed") };
                prop_assert!(waiting.remove(&s));
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
