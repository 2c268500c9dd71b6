//! The gate of one database: who may write it, and what becomes of a transaction that a writer sends. Apps
//! come through [`crate::gate::session`], one session for each connection.

use super::database::{Database, Pending, State, Work};
use super::parts;
use crate::command::TransactionHead;
use crate::core::lease::{Action, LINGER, SessionId};
use crate::core::rule::Candidate;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::gate::Grant;
use quire_vfs::gate::proto::{Outcome, Refusal, RefusalCode, WalTarget};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

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

impl Database {
    /// A session wants to write. The receiver gets the grant, or a refusal once it can't be had in time.
    pub fn acquire(
        self: &Arc<Self>,
        session: SessionId,
        wait: Duration,
    ) -> oneshot::Receiver<Result<Grant, Refusal>> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state();
        if let Err(refusal) = self.may_lead(&state) {
            let _ = tx.send(Err(refusal));
            return rx;
        }
        state.grants.insert(session, tx);
        state.lease.request(session, Instant::now() + wait);
        self.advance(&mut state);
        rx
    }

    /// A session's time in the queue is over; its receiver learns what it came to.
    pub fn expire(self: &Arc<Self>) {
        self.advance(&mut self.state());
    }

    fn may_lead(&self, state: &State) -> Result<u64, Refusal> {
        if self.is_dropped() {
            let why = format!("{} was dropped; close it", self.name);
            return Err(Refusal::new(RefusalCode::NotFound, why));
        }
        if let Some(why) = &state.fenced {
            return Err(Refusal::new(
                RefusalCode::Fenced,
                format!("{} is fenced on this node: {why}", self.name),
            ));
        }
        self.context.leadership.leading()
    }

    /// Grants, expires and refuses as far as the state allows.
    pub(super) fn advance(self: &Arc<Self>, state: &mut State) {
        let open = match self.may_lead(state) {
            Ok(term) => {
                let busy = state.running || state.pending.is_some() || state.publishing.is_some();
                let busy = busy || state.large.is_sending();
                (!busy && state.queue.is_empty()).then_some(term)
            }
            Err(refusal) => {
                for session in state.lease.close() {
                    if let Some(tx) = state.grants.remove(&session) {
                        let _ = tx.send(Err(refusal.clone()));
                    }
                }
                None
            }
        };
        for action in state.lease.poll(Instant::now(), open) {
            match action {
                Action::Expire(session) => {
                    let busy = Refusal::new(RefusalCode::Busy, format!("another writer has {}", self.name));
                    if let Some(tx) = state.grants.remove(&session) {
                        let _ = tx.send(Err(busy));
                    }
                }
                Action::Grant(lease) => {
                    let grant =
                        Grant { token: lease.token, base: state.rule.last(), pages: state.hashes.len() };
                    let sent =
                        state.grants.remove(&lease.session).is_some_and(|tx| tx.send(Ok(grant)).is_ok());
                    if !sent {
                        state.lease.gone(lease.session);
                    }
                }
            }
        }
    }

    /// A session gives its lease back.
    pub fn release(self: &Arc<Self>, session: SessionId, token: u64, linger: bool) {
        let mut state = self.state();
        // Only its holder gives a lease back, whoever else may know the token.
        if state.lease.holder().is_some_and(|lease| lease.session == session) {
            state.lease.release(token, linger, Instant::now());
        }
        self.end_publishing(&mut state, session);
        self.advance(&mut state);
        if linger && state.lease.waiting() > 0 {
            let database = self.clone();
            self.context.runtime.spawn(async move {
                tokio::time::sleep(LINGER).await;
                database.expire();
            });
        }
    }

    /// A session's connection ended: the app closed, was killed, or lost patience.
    pub fn gone(self: &Arc<Self>, session: SessionId) {
        let mut state = self.state();
        state.grants.remove(&session);
        if state.lease.gone(session) {
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

    /// Checks that the holder of a lease may send a transaction, or a part of one, now. Returns its base and the
    /// term of the lease.
    pub(super) fn may_send(
        &self,
        state: &State,
        session: SessionId,
        token: u64,
        txn: &Transaction<'_>,
    ) -> Result<(u64, u64), String> {
        if txn.page_size() != self.page_size {
            return Err(format!("pages of {} bytes, the database has {}", txn.page_size(), self.page_size));
        }
        let lease = state.lease.holder().filter(|lease| lease.token == token && lease.session == session);
        let lease = lease.ok_or("the lease has expired")?;
        let term = self.may_lead(state).map_err(|refusal| refusal.message)?;
        if term != lease.term {
            return Err(format!("the lease was of term {}, the leader is of term {term}", lease.term));
        }
        if state.pending.is_some() || state.publishing.is_some() || state.large.is_sending() {
            return Err("a transaction of this lease is under way".into());
        }
        Ok((state.rule.last(), term))
    }

    /// Takes a transaction, or the last part of one, for proposal: checks it against the lease, and computes the checksum that the
    /// database will have. The receiver gets the outcome.
    pub fn begin_commit(
        &self,
        session: SessionId,
        token: u64,
        target: WalTarget,
        txn: &Transaction<'_>,
    ) -> Result<(TransactionHead, oneshot::Receiver<Outcome>), String> {
        // Hashed before the lock is taken; the hashes of parts are there already.
        let whole = (txn.piece() == Piece::Whole).then(|| PageHashes::delta(txn.db_size(), txn.pages()));
        let mut state = self.state();
        let (base, term) = self.may_send(&state, session, token, txn)?;
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
        let origin = self.context.node_id;
        let head = TransactionHead { database: self.id, base, lease_term: term, checksum: sum, origin };
        let (tx, rx) = oneshot::channel();
        state.pending = Some(Pending {
            id: txn.id(),
            term: Some(term),
            base: head.base,
            target,
            session,
            waiter: Some(tx),
            delta: whole,
        });
        Ok((head, rx))
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
