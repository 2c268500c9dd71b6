//! The lease table of one database, on the leader: one writer at a time in the whole cluster, first come, first
//! served, whichever nodes they are on.
//!
//! The lease is a courtesy: it makes writers queue instead of collide. Correctness rests on the commit rule
//! alone ([`super::rule`]), so a lease that outlives its leader, or is given to two, does no harm.
//!
//! - A lease is fenced by a token that no term uses twice, and is for one transaction.
//! - The table grants only while it is *open*: this node leads, and no proposal of the database is in the air.
//!   A lease names its *head*, the database's last entry then; its writer begins once it has that.
//! - A holder *gives way* when others wait and it has shown no progress for a while; sooner, if its node is dead.
//!   Its transaction, if it sends it after all, is refused for its token.
//! - SQLite asks in short attempts with pauses. A writer whose attempt ended keeps its *seat*: if it comes back
//!   soon, it stands where it stood.
//! - A writer that waited has an old snapshot, if others have written meanwhile. It gives the lease back unused, pauses,
//!   and tries again; it would find the same again. So it *lingers*: nobody else is served until it is back. SQLite's
//!   pauses grow with each attempt, and so does the time that it is waited for.
//! - Messages may be lost, doubled or overtaken. A session has at most one place, and a new *ticket* for each
//!   attempt. The same ticket again gets the same lease again; another ticket from the holder says that its lease
//!   has come to an end.

use quire_vfs::format::transaction::TxnId;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A connection to a gate; unique on its node across the node's lives.
pub type SessionId = u64;

/// How long a writer whose snapshot was old is waited for, by the number of attempts that were in vain: SQLite's pauses
/// (`sqliteDefaultBusyCallback`), and some time to come back.
const LINGER_MS: [u64; 13] = [10, 12, 15, 20, 25, 30, 35, 35, 35, 60, 60, 110, 150];

fn linger(attempts: u32) -> Duration {
    let ms = LINGER_MS.get(attempts as usize).or(LINGER_MS.last());
    Duration::from_millis(ms.copied().unwrap_or_default())
}

/// How long a writer that is told BUSY keeps its seat: longer than SQLite's busy handler pauses, also on a machine that
/// has much to do. Else those who were just served would be back first, again and again.
const SEAT: Duration = Duration::from_secs(2);
/// Writers of one node that may wait; and as many may have a seat.
pub const MAX_WAITING_PER_NODE: usize = 1024;
/// Writers that may wait altogether; and as many may have a seat.
pub const MAX_WAITING: usize = 4096;
/// Transactions that are barred under one lease; more of them end it.
const MAX_BARRED: usize = 64;

/// A writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    /// The node that it is on.
    pub node: u64,
    /// Its session there.
    pub session: SessionId,
}

/// The right to write, as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its fence.
    pub token: u64,
    /// The term in which it was granted.
    pub term: u64,
    /// The database's last entry when it was granted.
    pub head: u64,
}

/// When the table may grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The term in which this node leads.
    pub term: u64,
    /// The database's last entry.
    pub head: u64,
}

/// What is to be told to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It has the lease, for this attempt.
    Grant {
        /// Who.
        who: Who,
        /// The attempt.
        ticket: u64,
        /// The lease.
        lease: Lease,
    },
    /// Its attempt is over.
    Expire(Who),
    /// It held the lease for too long.
    GaveWay(Who),
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    who: Who,
    ticket: u64,
    deadline: Instant,
    /// Its place: who came first is served first.
    place: u64,
    /// Attempts before this one.
    attempts: u32,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    who: Who,
    ticket: u64,
    lease: Lease,
    place: u64,
    attempts: u32,
    /// When it last showed that it goes on.
    progress: Instant,
}

/// A place that is kept for somebody.
#[derive(Clone, Copy, Debug)]
struct Seat {
    who: Who,
    place: u64,
    attempts: u32,
    until: Instant,
}

/// The queue before one database.
#[derive(Debug)]
pub struct LeaseTable {
    next_token: u64,
    next_place: u64,
    /// How long a holder may go without progress while others wait.
    timeout: Duration,
    holder: Option<Holder>,
    /// What the holder may not send any more.
    barred: Vec<TxnId>,
    /// By their places.
    waiters: VecDeque<Waiter>,
    seats: VecDeque<Seat>,
    /// The seat of a writer that the others wait for.
    linger: Option<Seat>,
}

impl LeaseTable {
    /// An empty table whose tokens begin after `first_token`.
    pub fn new(first_token: u64, timeout: Duration) -> LeaseTable {
        LeaseTable {
            next_token: first_token,
            next_place: 0,
            timeout,
            holder: None,
            barred: Vec::new(),
            waiters: VecDeque::new(),
            seats: VecDeque::new(),
            linger: None,
        }
    }

    /// Who has the lease, and the lease.
    pub fn holder(&self) -> Option<(Who, Lease)> {
        self.holder.map(|holder| (holder.who, holder.lease))
    }

    /// Number of writers that wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Somebody wants to write and is willing to wait until `deadline`; it says how often it has tried in vain, perhaps
    /// at another leader. Returns the lease if it has that already;
    /// an error if too many wait.
    pub fn request(
        &mut self,
        who: Who,
        (ticket, attempts): (u64, u32),
        head: u64,
        deadline: Instant,
        now: Instant,
    ) -> Result<Option<Lease>, &'static str> {
        if let Some(holder) = self.holder.filter(|holder| holder.who == who) {
            if holder.ticket == ticket {
                return Ok(Some(holder.lease));
            }
            // Its release was lost, or was overtaken by this.
            let linger = holder.lease.head == head;
            self.release(holder.lease.token, linger, now);
        }
        if let Some(waiter) = self.waiters.iter_mut().find(|waiter| waiter.who == who) {
            (waiter.ticket, waiter.deadline) = (ticket, deadline);
            return Ok(None);
        }
        let here = self.waiters.iter().filter(|waiter| waiter.who.node == who.node).count();
        if here >= MAX_WAITING_PER_NODE {
            return Err("too many writers of this node wait for it");
        }
        if self.waiters.len() >= MAX_WAITING {
            return Err("too many writers wait for it");
        }
        let seat = self.seats.iter().position(|seat| seat.who == who).and_then(|n| self.seats.remove(n));
        let seat = self.linger.filter(|seat| seat.who == who).or(seat.filter(|seat| seat.until > now));
        let (place, attempts) = match seat {
            Some(seat) => (seat.place, seat.attempts.max(attempts)),
            None => {
                self.next_place += 1;
                (self.next_place, attempts)
            }
        };
        let at = self.waiters.partition_point(|waiter| waiter.place < place);
        self.waiters.insert(at, Waiter { who, ticket, deadline, place, attempts });
        Ok(None)
    }

    /// A writer went away in vain: its seat is kept.
    fn keep(&mut self, seat: Seat) {
        if self.seats.len() == MAX_WAITING {
            self.seats.pop_front();
        }
        self.seats.push_back(seat);
    }

    /// A lease comes back; with `lingers`, because its writer's snapshot was old. False if it isn't the one that is out.
    pub fn release(&mut self, token: u64, lingers: bool, now: Instant) -> bool {
        match self.holder {
            Some(Holder { who, lease, place, attempts, .. }) if lease.token == token => {
                self.holder = None;
                let until = now + linger(attempts);
                self.linger = lingers.then_some(Seat { who, place, attempts: attempts + 1, until });
                true
            }
            _ => false,
        }
    }

    /// Somebody is about to be told that this transaction is not in the log: it must not come there later. A
    /// transaction is sent under one lease only, and that was granted before anybody could ask for its id.
    pub fn bar(&mut self, id: TxnId) {
        if self.barred.contains(&id) {
            return;
        }
        if self.barred.len() == MAX_BARRED {
            self.holder = None;
        } else if self.holder.is_some() {
            self.barred.push(id);
        }
    }

    /// Whether the holder may not send this transaction any more.
    pub fn is_barred(&self, id: TxnId) -> bool {
        self.barred.contains(&id)
    }

    /// Until when a writer is waited for, if one is.
    pub fn lingers_until(&self) -> Option<Instant> {
        self.linger.map(|seat| seat.until)
    }

    /// The holder does something.
    pub fn progress(&mut self, token: u64, now: Instant) {
        if let Some(holder) = self.holder.as_mut().filter(|holder| holder.lease.token == token) {
            holder.progress = now;
        }
    }

    /// Forgets all writers of whom this is true, their leases and their places; returns who waited of them.
    pub fn forget(&mut self, gone: impl Fn(Who) -> bool) -> Vec<Who> {
        self.holder = self.holder.filter(|holder| !gone(holder.who));
        self.linger = self.linger.filter(|seat| !gone(seat.who));
        self.seats.retain(|seat| !gone(seat.who));
        let waited = self.waiters.iter().map(|waiter| waiter.who).filter(|who| gone(*who)).collect();
        self.waiters.retain(|waiter| !gone(waiter.who));
        waited
    }

    /// Empties the table, as this node no longer leads; returns who waited. The lease that is out is void: its term
    /// is over.
    pub fn close(&mut self) -> Vec<Who> {
        self.forget(|_| true)
    }

    /// What is to be done now. `open` says whether it may grant, `alive` whether the node of a holder that last did
    /// something at that time is up.
    pub fn poll(
        &mut self,
        now: Instant,
        open: Option<Open>,
        alive: impl Fn(u64, Instant) -> bool,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        self.seats.retain(|seat| seat.until > now);
        let over: Vec<_> = self.waiters.iter().filter(|waiter| waiter.deadline <= now).copied().collect();
        for Waiter { who, place, attempts, .. } in over {
            actions.push(Action::Expire(who));
            self.keep(Seat { who, place, attempts: attempts + 1, until: now + SEAT });
        }
        self.waiters.retain(|waiter| waiter.deadline > now);
        if let Some(seat) = self.linger.take_if(|seat| seat.until <= now) {
            // It came too late, if it does; or waits already, for somebody else was let in.
            if self.waiters.iter().all(|waiter| waiter.who != seat.who) {
                self.keep(Seat { until: now + SEAT, ..seat });
            }
        }
        let Some(open) = open else { return actions };
        // What a term before this granted is void.
        self.holder = self.holder.filter(|holder| holder.lease.term == open.term);
        if let Some(holder) = self.holder
            && !self.waiters.is_empty()
            && (now.saturating_duration_since(holder.progress) >= self.timeout
                || !alive(holder.who.node, holder.progress))
        {
            self.holder = None;
            actions.push(Action::GaveWay(holder.who));
        }
        if self.holder.is_some() {
            return actions;
        }
        let next = match self.linger {
            Some(first) => self.waiters.iter().position(|waiter| waiter.who == first.who),
            None => (!self.waiters.is_empty()).then_some(0),
        };
        if let Some(Waiter { who, ticket, place, attempts, .. }) = next.and_then(|n| self.waiters.remove(n)) {
            self.next_token += 1;
            self.linger = None;
            self.barred.clear();
            let lease = Lease { token: self.next_token, term: open.term, head: open.head };
            self.holder = Some(Holder { who, ticket, lease, place, attempts, progress: now });
            actions.push(Action::Grant { who, ticket, lease });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const MS: Duration = Duration::from_millis(1);
    const TIMEOUT: Duration = Duration::from_millis(400);

    fn who(node: u64, session: u64) -> Who {
        Who { node, session }
    }

    fn open(term: u64, head: u64) -> Option<Open> {
        Some(Open { term, head })
    }

    fn granted(actions: &[Action]) -> Option<(Who, Lease)> {
        actions.iter().find_map(|action| match action {
            Action::Grant { who, lease, .. } => Some((*who, *lease)),
            _ => None,
        })
    }

    fn table() -> (LeaseTable, Instant) {
        (LeaseTable::new(100, TIMEOUT), Instant::now())
    }

    fn up(_: u64, _: Instant) -> bool {
        true
    }

    #[test]
    fn first_come_first_served_across_nodes() {
        let (mut t, now) = table();
        for (n, w) in [who(1, 1), who(2, 1), who(1, 2)].into_iter().enumerate() {
            assert_eq!(t.request(w, (n as u64, 0), 7, now + 50 * MS, now), Ok(None));
        }
        assert!(t.poll(now, None, up).is_empty(), "closed");
        let (first, lease) = granted(&t.poll(now, open(4, 7), up)).unwrap();
        assert_eq!((first, lease), (who(1, 1), Lease { token: 101, term: 4, head: 7 }));
        assert!(t.poll(now, open(4, 7), up).is_empty(), "one at a time");
        assert!(!t.release(99, false, now), "an old token releases nothing");
        assert!(t.release(101, false, now));
        let (second, lease) = granted(&t.poll(now, open(4, 9), up)).unwrap();
        assert_eq!((second, lease), (who(2, 1), Lease { token: 102, term: 4, head: 9 }));
        assert_eq!(t.poll(now + 50 * MS, open(4, 9), up), [Action::Expire(who(1, 2))]);
        assert!(t.forget(|w| w.node == 2).is_empty());
        assert_eq!(t.holder(), None);
    }

    #[test]
    fn a_transaction_that_was_said_not_to_be_in_the_log_is_not_sent_later() {
        let (mut t, now) = table();
        let id = |n: usize| TxnId([n as u8; 16]);
        t.bar(id(1));
        assert!(!t.is_barred(id(1)), "no lease, so nothing to bar");
        t.request(who(1, 1), (1, 0), 7, now + 50 * MS, now).unwrap();
        let (_, lease) = granted(&t.poll(now, open(4, 7), up)).unwrap();
        t.bar(id(1));
        t.bar(id(1));
        assert!(t.is_barred(id(1)) && !t.is_barred(id(2)), "its holder may send any other");
        assert_eq!(t.holder(), Some((who(1, 1), lease)));
        // It is not forgotten before its lease ends, however many are asked for.
        (2..=MAX_BARRED).for_each(|n| t.bar(id(n)));
        assert_eq!(t.holder(), Some((who(1, 1), lease)));
        t.bar(id(MAX_BARRED + 1));
        assert_eq!(t.holder(), None);
        t.request(who(2, 1), (1, 0), 7, now + 50 * MS, now).unwrap();
        assert!(granted(&t.poll(now, open(4, 7), up)).is_some());
        assert!(!t.is_barred(id(2)), "the next lease is another's");
    }

    #[test]
    fn a_lingering_writer_goes_first_but_not_for_long() {
        let (mut t, now) = table();
        t.request(who(1, 1), (1, 0), 0, now + 100 * MS, now).unwrap();
        t.request(who(2, 2), (1, 0), 0, now + 100 * MS, now).unwrap();
        let (_, lease) = granted(&t.poll(now, open(1, 0), up)).unwrap();
        assert!(t.release(lease.token, true, now));
        assert!(t.poll(now, open(1, 0), up).is_empty(), "waits for the first");
        t.request(who(1, 1), (2, 0), 0, now + 100 * MS, now).unwrap();
        let (again, lease) = granted(&t.poll(now + MS, open(1, 0), up)).unwrap();
        assert_eq!(again, who(1, 1));
        assert!(t.release(lease.token, true, now));
        assert_eq!(granted(&t.poll(now + linger(1), open(1, 0), up)).unwrap().0, who(2, 2));
    }

    /// Two that write without a pause, and one that was busy so often that SQLite makes it pause for 100 ms: it always
    /// comes back to an old snapshot, until it is waited for.
    #[test]
    fn who_pauses_long_is_waited_for_in_the_end() {
        let (mut t, mut now) = table();
        let (mut head, mut ticket) = (1, 0);
        let slow = who(3, 1);
        let (mut back, mut snapshot, mut tries) = (now, None, 0);
        for step in 0..2000 {
            now += MS;
            for n in [1, 2] {
                ticket += 1;
                if t.holder().is_none_or(|(holder, _)| holder.node != n) {
                    t.request(who(n, 1), (ticket, 0), head, now + 100 * MS, now).unwrap();
                }
            }
            if now >= back && snapshot.is_none() {
                (ticket, snapshot) = (ticket + 1, Some(head));
                t.request(slow, (ticket, 0), head, now + 100 * MS, now).unwrap();
            }
            if step % 5 == 0
                && let Some((holder, lease)) = t.holder()
            {
                head += u64::from(holder != slow);
                t.release(lease.token, false, now);
            }
            for action in t.poll(now, open(1, head), up) {
                match action {
                    Action::Grant { who, lease, .. } if who == slow => {
                        if snapshot == Some(head) {
                            assert!(tries < 20, "{tries}");
                            return;
                        }
                        t.release(lease.token, true, now);
                        (back, snapshot, tries) = (now + 100 * MS, None, tries + 1);
                    }
                    Action::Expire(who) if who == slow => {
                        (back, snapshot, tries) = (now + 100 * MS, None, tries + 1);
                    }
                    _ => {}
                }
            }
        }
        panic!("it starves");
    }

    #[test]
    fn a_holder_gives_way_only_to_others_and_not_while_it_goes_on() {
        let (mut t, now) = table();
        t.request(who(1, 1), (1, 0), 0, now + MS, now).unwrap();
        let (_, lease) = granted(&t.poll(now, open(1, 0), up)).unwrap();
        assert!(t.poll(now + 10 * TIMEOUT, open(1, 0), up).is_empty(), "nobody waits");
        t.request(who(2, 1), (1, 0), 0, now + 100 * TIMEOUT, now).unwrap();
        t.progress(lease.token, now + 10 * TIMEOUT);
        assert!(t.poll(now + 10 * TIMEOUT + MS, open(1, 0), up).is_empty(), "it goes on");
        assert!(t.poll(now + 20 * TIMEOUT, None, up).is_empty(), "its commit is in the air");
        let actions = t.poll(now + 20 * TIMEOUT, open(1, 0), up);
        assert_eq!(actions[0], Action::GaveWay(who(1, 1)));
        let (next, second) = granted(&actions).unwrap();
        assert!(next == who(2, 1) && second.token != lease.token);
        assert!(!t.release(lease.token, false, now), "the old token means nothing any more");
        // A dead node's lease ends at once.
        t.request(who(3, 1), (1, 0), 0, now + 100 * TIMEOUT, now).unwrap();
        let dead = |node: u64, _: Instant| node != 2;
        assert_eq!(granted(&t.poll(now + 20 * TIMEOUT, open(1, 0), dead)).unwrap().0, who(3, 1));
    }

    #[test]
    fn who_comes_back_soon_stands_where_it_stood() {
        let (mut t, now) = table();
        for n in 1..=3 {
            t.request(who(n, 1), (1, 0), 0, now + 10 * MS * n as u32, now).unwrap();
        }
        let (_, lease) = granted(&t.poll(now, open(1, 0), up)).unwrap();
        assert_eq!(t.poll(now + 25 * MS, open(1, 0), up), [Action::Expire(who(2, 1))]);
        t.request(who(2, 1), (2, 0), 0, now + 100 * MS, now + 60 * MS).unwrap();
        assert_eq!(t.waiting(), 2);
        t.release(lease.token, false, now);
        assert_eq!(granted(&t.poll(now + 29 * MS, open(1, 0), up)).unwrap().0, who(2, 1));
    }

    #[test]
    fn doubled_and_overtaken_messages() {
        let (mut t, now) = table();
        t.request(who(1, 1), (1, 0), 5, now + 100 * MS, now).unwrap();
        let (_, lease) = granted(&t.poll(now, open(1, 5), up)).unwrap();
        assert_eq!(
            t.request(who(1, 1), (1, 0), 5, now + 100 * MS, now),
            Ok(Some(lease)),
            "the answer was lost"
        );
        t.request(who(2, 1), (1, 0), 5, now + 100 * MS, now).unwrap();
        // The next attempt comes before the release of the last.
        assert_eq!(t.request(who(1, 1), (2, 0), 6, now + 100 * MS, now), Ok(None));
        assert_eq!(granted(&t.poll(now, open(1, 6), up)).unwrap().0, who(2, 1));
        assert!(!t.release(lease.token, false, now));
        assert!(t.holder().is_some_and(|(holder, _)| holder == who(2, 1)));
    }

    #[test]
    fn queues_are_bounded() {
        let (mut t, now) = table();
        for session in 0..MAX_WAITING_PER_NODE as u64 {
            t.request(who(1, session), (1, 0), 0, now + MS, now).unwrap();
        }
        assert!(t.request(who(1, 1 << 40), (1, 0), 0, now + MS, now).is_err());
        assert_eq!(t.request(who(1, 5), (2, 0), 0, now + MS, now), Ok(None), "has its place already");
        assert_eq!(t.request(who(2, 1), (1, 0), 0, now + MS, now), Ok(None));
        t.poll(now + MS, None, up);
        assert!(t.seats.len() <= MAX_WAITING && t.waiting() == 0);
    }

    proptest! {
        /// Whatever comes in whatever order: one holder, no token twice, nobody forgotten, and a holder loses its
        /// lease only by what it did itself, by death, or by time.
        #[test]
        fn one_holder_no_token_twice_nobody_forgotten(
            events in proptest::collection::vec((0u8..8, 1u64..4, 1u64..4, any::<bool>()), 0..300),
        ) {
            let mut now = Instant::now();
            let mut t = LeaseTable::new(0, 30 * MS);
            let mut tokens = BTreeSet::new();
            let mut waiting = BTreeMap::new();
            let (mut ticket, mut head, mut moved) = (0, 0, now);
            for (event, node, session, flag) in events {
                now += MS;
                let w = who(node, session);
                match event {
                    0 | 1 => {
                        ticket += u64::from(flag);
                        let before = t.holder();
                        match t.request(w, (ticket, 0), head, now + 20 * MS, now).unwrap() {
                            Some(lease) => prop_assert_eq!(before, Some((w, lease))),
                            None => { waiting.insert(w, ticket); }
                        }
                        prop_assert!(t.holder().is_none_or(|(holder, _)| holder != w) || before.is_some());
                    }
                    2 => if let Some((_, lease)) = t.holder() {
                        prop_assert!(!t.release(lease.token + 1, flag, now));
                        prop_assert!(t.release(lease.token, flag, now));
                    },
                    3 => for gone in t.forget(|other| other == w) { waiting.remove(&gone); },
                    4 => if let Some((_, lease)) = t.holder() { t.progress(lease.token, now); moved = now; },
                    5 if flag && session == 1 => for gone in t.close() { prop_assert!(waiting.remove(&gone).is_some()); },
                    5 => head += 1,
                    _ => {
                        let mut before = t.holder();
                        let others = waiting.len();
                        for action in t.poll(now, flag.then_some(Open { term: 1, head }), |n, _| n != 3 || session != 3) {
                            match action {
                                Action::Grant { who, ticket, lease } => {
                                    prop_assert!(before.is_none() && tokens.insert(lease.token));
                                    prop_assert_eq!(waiting.remove(&who), Some(ticket));
                                    prop_assert_eq!(lease.head, head);
                                    moved = now;
                                }
                                Action::Expire(who) => prop_assert!(waiting.remove(&who).is_some()),
                                Action::GaveWay(who) => {
                                    let dead = who.node == 3 && session == 3;
                                    prop_assert!(others > 0 && (dead || now - moved >= 30 * MS));
                                    prop_assert_eq!(before.take().map(|(holder, _)| holder), Some(who));
                                }
                            }
                        }
                    }
                }
                prop_assert_eq!(t.waiting(), waiting.len());
                let places: Vec<_> = t.waiters.iter().map(|waiter| waiter.place).collect();
                prop_assert!(places.is_sorted());
            }
            for action in t.poll(now + Duration::from_secs(1), None, up) {
                let Action::Expire(who) = action else { panic!("granted while closed") };
                prop_assert!(waiting.remove(&who).is_some());
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
