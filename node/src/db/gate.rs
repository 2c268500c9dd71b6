//! The gate of one database on one node: which app here may write it, and what becomes of a transaction that it
//! sends. Apps come through [`crate::gate::session`], one session for each connection.
//!
//! ```text
//! app ──acquire──► waits ──ask──► lessor, here ([`super::lessor`]) or on the leader ([`crate::forward`])
//!                                    │ lease: token, term, head
//!      granted ◄── this node's copy is that of the head, and nobody publishes ◄── arrived
//! ```
//!
//! The lease orders writers in the whole cluster; on this node an app is let in once the copy here has
//! everything up to the lease's head. A lease that can't be used goes back.

use super::database::{Database, Pending, State, Work};
use super::lessor::Bid;
use super::parts;
use crate::clock;
use crate::command::TransactionHead;
use crate::core::lease::{Lease, SessionId, Who};
use crate::core::rule::Candidate;
use crate::forward;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::gate::Grant;
use quire_vfs::gate::proto::{Outcome, Refusal, RefusalCode, WalTarget};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::trace;

/// An app that publishes for longer than this stands still: others here don't wait for it with a lease in hand.
const PUBLISHING: Duration = Duration::from_secs(1);
/// A node whose copy is this many entries behind asks for no lease: others would wait for it.
const MAX_BEHIND: usize = 256;

/// What is known of a transaction that an app asks for.
#[derive(Debug)]
pub enum Resolution {
    /// All there is to say.
    Known(Outcome),
    /// It is under way in this process.
    Pending(oneshot::Receiver<Outcome>),
    /// This process knows nothing of it; once a barrier has been applied, it would.
    Unproven(oneshot::Receiver<Outcome>),
}

/// How much longer than it wants a session waits for the leader's answer, if that was asked in time: the leader may be
/// far away. Less than apps give their node (`vfs/src/gate/client.rs`).
const FAR_AWAY: Duration = Duration::from_secs(1);
/// How much longer than it wants a session waits whose turn it is: nobody else writes, but this node is still at the files,
/// with a checkpoint of what the session itself has written, say. To plain SQLite nothing would be locked then, and an
/// app that writes alone need have no busy timeout.
const ITS_TURN: Duration = Duration::from_millis(1500);

/// A session that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    ticket: u64,
    /// How often it has tried before.
    attempts: u32,
    deadline: Instant,
    /// The leader has been asked, and says when it is over.
    is_asked: bool,
    tx: oneshot::Sender<Result<Grant, Refusal>>,
    /// Why it has not come so far, if there is more to say than that another writer has it.
    why: Option<Refusal>,
    /// Nobody is asked for it, as an app here stands still, or the copy here is behind.
    is_parked: bool,
}

/// A lease for a session that waits, until the copy here is ready.
#[derive(Debug)]
pub(super) struct Arrived {
    session: SessionId,
    ticket: u64,
    lease: Lease,
    lessor: u64,
}

/// Who was let in.
#[derive(Debug)]
pub(super) struct Held {
    session: SessionId,
    lease: Lease,
    /// The node that granted the lease.
    lessor: u64,
    /// Its lease has ended without it.
    is_overtaken: bool,
    /// It was told that it is committed; its lease has ended with that.
    committed: Option<Instant>,
}

impl Held {
    fn stands_still(&self) -> bool {
        self.is_overtaken || self.committed.is_some_and(|at| clock::since(at) > PUBLISHING)
    }
}

/// How a transaction, or a part of one, gets to Raft: through the node that granted its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// That node.
    pub lessor: u64,
    /// The lease.
    pub token: u64,
}

impl Database {
    /// A session wants to write, and has tried so many times in vain. The receiver gets the grant, or a refusal once it can't be had in time; for
    /// that, [`Database::expire`] must be called then.
    pub fn acquire(
        self: &Arc<Self>,
        session: SessionId,
        wait: Duration,
        attempts: u32,
    ) -> oneshot::Receiver<Result<Grant, Refusal>> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state();
        if let Some(refusal) = self.is_closed(&state) {
            let _ = tx.send(Err(refusal));
            return rx;
        }
        let deadline = clock::now() + wait;
        state.grants.insert(
            session,
            Waiting { ticket: 0, attempts, deadline, is_asked: false, tx, why: None, is_parked: false },
        );
        self.ask(&mut state, session);
        self.advance(&mut state);
        rx
    }

    /// A session's time in the queue is over; its receiver learns what it came to.
    pub fn expire(self: &Arc<Self>) {
        self.advance(&mut self.state());
    }

    /// Why nobody may write it on this node, if that is so.
    fn is_closed(&self, state: &State) -> Option<Refusal> {
        if self.is_dropped() {
            return Some(Refusal::new(RefusalCode::NotFound, format!("{} was dropped; close it", self.name)));
        }
        let why = state.fenced.as_ref()?;
        Some(Refusal::new(RefusalCode::Fenced, format!("{} is fenced on this node: {why}", self.name)))
    }

    /// Asks for the lease on behalf of a session that waits, in a new attempt.
    pub(super) fn ask(self: &Arc<Self>, state: &mut State, session: SessionId) {
        let stands_still = state.held.as_ref().is_some_and(Held::stands_still);
        let is_behind = state.queue.len() > MAX_BEHIND;
        let Some(waiting) = state.grants.get_mut(&session) else { return };
        state.next_ticket += 1;
        waiting.ticket = state.next_ticket;
        waiting.is_parked = stands_still || is_behind;
        waiting.is_asked = false;
        if waiting.is_parked {
            let what = if stands_still {
                "an app on this node stands still in a transaction"
            } else {
                "this node's copy lags"
            };
            waiting.why =
                Some(Refusal::new(RefusalCode::Busy, format!("another writer has {}: {what}", self.name)));
            return;
        }
        let (ticket, attempts, deadline) = (waiting.ticket, waiting.attempts, waiting.deadline);
        let who = Who { node: self.context.node_id, session };
        match self.lease_here(state, who, (ticket, attempts), deadline) {
            Ok(None) => {}
            Ok(Some(lease)) => self.arrive(state, session, ticket, lease, who.node),
            Err(refusal) if refusal.code == RefusalCode::Busy => self.note(state, session, ticket, refusal),
            Err(_) => {
                let asking = forward::acquire(self.clone(), session, (ticket, attempts), deadline);
                self.context.spawn(asking);
            }
        }
    }

    /// Whether a session still waits, in this attempt; if so, asks here if this node leads by now.
    pub fn ask_here(self: &Arc<Self>, session: SessionId, ticket: u64) -> Asked {
        let mut state = self.state();
        let waiting = state.grants.get(&session).filter(|waiting| waiting.ticket == ticket);
        let Some((attempts, deadline)) = waiting.map(|waiting| (waiting.attempts, waiting.deadline)) else {
            return Asked::Over;
        };
        let who = Who { node: self.context.node_id, session };
        match self.lease_here(&mut state, who, (ticket, attempts), deadline) {
            Err(refusal) if refusal.code == RefusalCode::Busy => {
                self.note(&mut state, session, ticket, refusal);
                return Asked::Over;
            }
            Err(refusal) => return Asked::Elsewhere(refusal),
            Ok(None) => {}
            Ok(Some(lease)) => self.arrive(&mut state, session, ticket, lease, who.node),
        }
        self.advance(&mut state);
        Asked::Over
    }

    /// The leader is asked on behalf of a session.
    pub fn is_asking(&self, session: SessionId, ticket: u64) {
        let mut state = self.state();
        if let Some(waiting) = state.grants.get_mut(&session).filter(|waiting| waiting.ticket == ticket) {
            waiting.is_asked = true;
        }
    }

    /// Why a session has not got the lease so far. If its time is over, that is what it is told.
    pub fn has_not(&self, session: SessionId, ticket: u64, why: Refusal) {
        let mut state = self.state();
        self.note(&mut state, session, ticket, why);
        let Some(waiting) = state.grants.get_mut(&session).filter(|waiting| waiting.ticket == ticket) else {
            return;
        };
        waiting.is_asked = false;
        if waiting.deadline <= clock::now() {
            self.send_one_away(&mut state, session);
        }
    }

    fn note(&self, state: &mut State, session: SessionId, ticket: u64, why: Refusal) {
        if let Some(waiting) = state.grants.get_mut(&session).filter(|waiting| waiting.ticket == ticket) {
            waiting.why = Some(why);
        }
    }

    /// The leader has granted the lease to a session of this node.
    pub fn arrived(self: &Arc<Self>, session: SessionId, ticket: u64, lease: Lease, lessor: u64) {
        let mut state = self.state();
        self.arrive(&mut state, session, ticket, lease, lessor);
        self.advance(&mut state);
    }

    pub(super) fn arrive(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        ticket: u64,
        lease: Lease,
        lessor: u64,
    ) {
        let is_held = state.held.as_ref().is_some_and(|held| held.session == session && held.lease == lease);
        if is_held {
            return; // Said twice.
        }
        if state.grants.get(&session).is_none_or(|waiting| waiting.ticket != ticket) {
            return self.give_back(state, lessor, lease, false);
        }
        // There is one lease: that of an app that is still in here has ended, by its commit or without it.
        if let Some(held) = state.held.as_mut()
            && held.committed.is_none()
            && state.pending.as_ref().is_none_or(|pending| pending.session != held.session)
        {
            held.is_overtaken = true;
        }
        let before = state.arrived.replace(Arrived { session, ticket, lease, lessor });
        if let Some(before) = before.filter(|before| before.session != session) {
            self.ask(state, before.session);
        }
    }

    /// The lease of an app here has ended without it.
    pub(super) fn overtaken(&self, state: &mut State, session: SessionId) {
        if let Some(held) = state.held.as_mut().filter(|held| held.session == session) {
            held.is_overtaken = true;
        }
    }

    /// Gives a lease back to the node that granted it.
    fn give_back(self: &Arc<Self>, state: &mut State, lessor: u64, lease: Lease, linger: bool) {
        if lessor == self.context.node_id {
            self.returned(state, lease.token, linger);
        } else if let Some(node) = self.context.node() {
            self.context.spawn(forward::release(node, lessor, self.id, lease.token, linger));
        }
    }

    /// Grants, expires and refuses as far as the state allows.
    pub(super) fn advance(self: &Arc<Self>, state: &mut State) {
        self.send_away(state);
        loop {
            self.grant_leases(state);
            if !self.let_in(state) {
                return;
            }
        }
    }

    /// Those whose time is over.
    fn send_away(&self, state: &mut State) {
        let now = clock::now();
        // A copy that lags doesn't count: others, elsewhere, could write meanwhile.
        let last = state.rule.last();
        let turn = state.arrived.as_ref().filter(|arrived| arrived.lease.head == last);
        let turn = turn.map(|arrived| arrived.session);
        let is_over = |(session, waiting): &(&SessionId, &Waiting)| {
            let more = match (turn == Some(**session), waiting.is_asked) {
                (true, _) => ITS_TURN,
                (false, true) => FAR_AWAY,
                (false, false) => Duration::ZERO,
            };
            waiting.deadline + more <= now
        };
        let over = state.grants.iter().filter(is_over).map(|(session, _)| *session);
        for session in over.collect::<Vec<_>>() {
            self.send_one_away(state, session);
        }
        if self.is_dropped()
            && let Some(refusal) = self.is_closed(state)
        {
            let grants = std::mem::take(&mut state.grants);
            grants.into_values().for_each(|waiting| drop(waiting.tx.send(Err(refusal.clone()))));
        }
    }

    fn send_one_away(&self, state: &mut State, session: SessionId) {
        if let Some(Waiting { tx, why, .. }) = state.grants.remove(&session) {
            let _ = tx.send(Err(why.unwrap_or_else(|| self.busy())));
        }
    }

    /// Lets the session in whose lease has arrived, if all is ready for it. True if a lease went back, so that others
    /// may have their turn.
    fn let_in(self: &Arc<Self>, state: &mut State) -> bool {
        let Some(Arrived { session, ticket, lease, lessor }) = state.arrived else { return false };
        let is_wanted = state.grants.get(&session).is_some_and(|waiting| waiting.ticket == ticket);
        let last = state.rule.last();
        if is_wanted && let Some(refusal) = self.is_closed(state) {
            state.arrived = None;
            if let Some(waiting) = state.grants.remove(&session) {
                let _ = waiting.tx.send(Err(refusal));
            }
        } else if !is_wanted || last > lease.head || state.held.as_ref().is_some_and(Held::stands_still) {
            // Nobody waits for it any more, others have written since, or it would wait for who knows how long.
            state.arrived = None;
            self.give_back(state, lessor, lease, false);
            if is_wanted {
                self.ask(state, session);
            }
            return true;
        } else {
            let busy = state.running || state.pending.is_some() || state.publishing.is_some();
            let busy = busy || state.large.is_sending() || state.held.is_some() || !state.queue.is_empty();
            if busy || last < lease.head {
                return false;
            }
            state.arrived = None;
            trace!(database = self.name, session, token = lease.token, "let in");
            let grant = Grant { token: lease.token, base: last, pages: state.hashes.len() };
            if state.grants.remove(&session).is_some_and(|waiting| waiting.tx.send(Ok(grant)).is_ok()) {
                let (is_overtaken, committed) = (false, None);
                state.held = Some(Held { session, lease, lessor, is_overtaken, committed });
                return false;
            }
        }
        self.give_back(state, lessor, lease, false);
        true
    }

    /// An app is no longer in here: those who waited for that alone ask.
    fn left(self: &Arc<Self>, state: &mut State, held: &Held, linger: bool) {
        if held.committed.is_none() {
            self.give_back(state, held.lessor, held.lease, linger);
        }
        self.ask_for_parked(state);
    }

    /// What kept sessions from asking may be over: they ask.
    pub(super) fn ask_for_parked(self: &Arc<Self>, state: &mut State) {
        let parked =
            state.grants.iter().filter(|(_, waiting)| waiting.is_parked).map(|(session, _)| *session);
        for session in parked.collect::<Vec<_>>() {
            self.ask(state, session);
        }
    }

    /// A session gives its lease back.
    pub fn release(self: &Arc<Self>, session: SessionId, token: u64, linger: bool) {
        let mut state = self.state();
        // Only its holder gives a lease back, whoever else may know the token.
        let held = state.held.take_if(|held| held.session == session && held.lease.token == token);
        if let Some(held) = held {
            self.left(&mut state, &held, linger);
        }
        self.end_publishing(&mut state, session);
        self.advance(&mut state);
    }

    /// A session's connection ended: the app closed, was killed, or lost patience.
    pub fn gone(self: &Arc<Self>, session: SessionId) {
        let mut state = self.state();
        state.grants.remove(&session);
        let node = self.context.node_id;
        state.lease.forget(|who| who == Who { node, session });
        if let Some(held) = state.held.take_if(|held| held.session == session) {
            self.left(&mut state, &held, false);
            state.queue.push_back(Work::Tidy);
            self.wake(&mut state);
        }
        if let Some(pending) = state.pending.as_mut().filter(|p| p.session == session) {
            pending.waiter = None;
        }
        state.large.gone(session);
        self.end_publishing(&mut state, session);
        self.advance(&mut state);
    }

    /// The app that was publishing is done, or gone.
    fn end_publishing(self: &Arc<Self>, state: &mut State, session: SessionId) {
        let Some(publishing) = state.publishing.as_mut().filter(|p| p.session == session) else { return };
        publishing.ended = true;
        if !self.see_published(state) {
            self.wake(state);
        }
    }

    /// A session was told that its transaction is committed.
    pub(super) fn told(&self, state: &mut State, session: SessionId) {
        if let Some(held) = state.held.as_mut().filter(|held| held.session == session) {
            held.committed = Some(clock::now());
        }
    }

    /// Checks that an app that was let in may send a transaction, or a part of one, now. Returns its lease and the way
    /// that its entry takes. If this node is the lessor, the entry is in the air then.
    pub(super) fn may_send(
        &self,
        state: &mut State,
        session: SessionId,
        token: u64,
        txn: &Transaction<'_>,
    ) -> Result<(Lease, Route), String> {
        if txn.page_size() != self.page_size {
            return Err(format!("pages of {} bytes, the database has {}", txn.page_size(), self.page_size));
        }
        if let Some(refusal) = self.is_closed(state) {
            return Err(refusal.message);
        }
        let held = state.held.as_ref().filter(|held| held.lease.token == token && held.session == session);
        let held = held.ok_or_else(|| self.lease_ended())?;
        let (lease, lessor) = (held.lease, held.lessor);
        if held.is_overtaken || state.rule.last() != lease.head {
            return Err(self.lease_ended());
        }
        if self.context.leadership.applied_term() > lease.term {
            return Err("the leader has changed since the transaction began".into());
        }
        if state.pending.is_some() || state.publishing.is_some() || state.large.is_sending() {
            return Err("a transaction of this lease is under way".into());
        }
        Ok((lease, Route { lessor, token }))
    }

    /// Puts an entry of an app here in the air, if this node is the lessor; else the lessor will.
    pub(super) fn begin(
        &self,
        state: &mut State,
        lease: Lease,
        route: Route,
        id: TxnId,
    ) -> Result<(), String> {
        let origin = self.context.node_id;
        if route.lessor != origin {
            return Ok(());
        }
        let bid = Bid { database: self.id, id, base: lease.head, term: lease.term, origin };
        self.put_in_the_air(state, origin, route.token, &bid)
    }

    /// Takes a transaction, or the last part of one, for proposal: checks it against the lease, and computes the checksum that the
    /// database will have. The receiver gets the outcome.
    pub fn begin_commit(
        &self,
        session: SessionId,
        token: u64,
        target: WalTarget,
        txn: &Transaction<'_>,
    ) -> Result<(TransactionHead, Route, oneshot::Receiver<Outcome>), String> {
        // Hashed before the lock is taken; the hashes of parts are there already.
        let whole = (txn.piece() == Piece::Whole).then(|| PageHashes::delta(txn.db_size(), txn.pages()));
        let mut state = self.state();
        let (lease, route) = self.may_send(&mut state, session, token, txn)?;
        let (base, term) = (lease.head, lease.term);
        let entry = Candidate { index: u64::MAX, term, base, lease_term: term };
        let before = state.large.before(&entry, txn)?;
        // The VFS sends every page by which the database grew, all but the lock-byte page.
        let pages = txn.before().pages as usize + txn.page_count();
        if txn.db_size().saturating_sub(state.hashes.len()) as usize > pages + 1 {
            return Err(format!("it grows to {} pages and does not contain them", txn.db_size()));
        }
        let sum = match &whole {
            Some(delta) => state.hashes.checksum_after(delta),
            None => state.hashes.checksum_after(&parts::delta(&before, txn)),
        };
        self.begin(&mut state, lease, route, txn.id())?;
        let origin = self.context.node_id;
        let head = TransactionHead { database: self.id, base, lease_term: term, checksum: sum, origin };
        let (tx, rx) = oneshot::channel();
        state.pending = Some(Pending {
            id: txn.id(),
            term: Some(term),
            base,
            target,
            session,
            waiter: Some(tx),
            delta: whole,
        });
        Ok((head, route, rx))
    }

    /// The pending transaction was definitely not proposed.
    pub fn abort_commit(self: &Arc<Self>, id: TxnId, why: &str) {
        let mut state = self.state();
        if state.pending.as_ref().is_some_and(|p| p.id == id)
            && let Some(waiter) = state.pending.take().and_then(|p| p.waiter)
        {
            let _ = waiter.send(Outcome::Refused(why.to_owned()));
        }
        self.advance(&mut state);
    }

    /// Whether the fate of this transaction, or of a part of it, is still to come.
    pub fn is_open(&self, id: TxnId) -> bool {
        let state = self.state();
        state.pending.as_ref().is_some_and(|p| p.id == id) || state.large.is_sending_of(id)
    }

    /// The app of the pending transaction stopped waiting; the transaction itself goes on.
    pub fn give_up(&self, id: TxnId) {
        let mut state = self.state();
        if let Some(pending) = state.pending.as_mut().filter(|p| p.id == id) {
            pending.waiter = None;
        }
    }

    /// An app that lost its connection inside COMMIT asks for its transaction.
    pub fn resolve(&self, session: SessionId, base: u64, target: WalTarget, id: TxnId) -> Resolution {
        let mut state = self.state();
        if let Some(record) = state.recent.iter().find(|r| r.txn == id) {
            // Only the applier can have published it, behind a lock that the app had left.
            return Resolution::Known(Outcome::Unknown(format!(
                "it is committed at index {} and its node publishes it",
                record.publication.index
            )));
        }
        let (tx, rx) = oneshot::channel();
        match &mut state.pending {
            Some(pending) if pending.id == id => {
                pending.session = session;
                pending.waiter = Some(tx);
                self.changed.notify_all();
                Resolution::Pending(rx)
            }
            Some(_) => Resolution::Known(Outcome::Refused("another transaction took its place".into())),
            None => {
                let waiter = Some(tx);
                // Whatever its term was, it isn't beyond the present one.
                let term = self.context.leadership.status().map(|status| status.term);
                state.pending = Some(Pending { id, term, base, target, session, waiter, delta: None });
                self.changed.notify_all();
                Resolution::Unproven(rx)
            }
        }
    }
}

/// What came of asking here.
#[derive(Debug)]
pub enum Asked {
    /// The session waits in this node's table, or no longer.
    Over,
    /// This node can't grant leases, for this reason.
    Elsewhere(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::DbId;
    use crate::db::context::Context;
    use crate::db::registry::{Keep, Registry};
    use quire_raft::LogPosition;
    use quire_vfs::format::PageSize;

    /// An app without a busy timeout writes alone, and the node is still at work on its last transaction, for longer than the
    /// app would wait for another writer. It waits, as nobody has locked anything.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lone_writer_waits_for_its_own_node() {
        crate::db::sql::register().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep { most: 4, idle: Duration::from_secs(60) };
        let context = Arc::new(Context::alone());
        let registry = Arc::new(Registry::new(dir.path(), context, keep).unwrap());
        let position = LogPosition { term: 1, leader: 1, index: 1 };
        registry.create(position, "app", PageSize::DEFAULT).unwrap();
        let database = registry.open(DbId(1)).await.unwrap().unwrap();
        let lease = |token| Lease { token, term: 1, head: 1 };
        let waits = async |session, token| {
            let wait = Duration::from_millis(100);
            let mut answer = database.acquire(session, wait, 0);
            let ticket = database.state().next_ticket;
            database.arrived(session, ticket, lease(token), 9);
            tokio::time::sleep(wait).await;
            database.expire();
            assert_eq!(answer.try_recv().unwrap_err(), oneshot::error::TryRecvError::Empty);
            (answer,)
        };
        database.state().running = true;
        let (answer,) = waits(5, 1).await;
        database.state().running = false;
        database.expire();
        assert_eq!(answer.await.unwrap().unwrap().token, 1);
        database.release(5, 1, false);
        // Not for ever.
        database.state().running = true;
        let (answer,) = waits(5, 2).await;
        tokio::time::sleep(ITS_TURN).await;
        database.expire();
        assert_eq!(answer.await.unwrap().unwrap_err().code, RefusalCode::Busy);
        // Nor does it wait for another writer.
        let answer = database.acquire(6, Duration::ZERO, 0);
        database.expire();
        assert_eq!(answer.await.unwrap().unwrap_err().code, RefusalCode::Busy);
    }
}
