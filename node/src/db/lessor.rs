//! The lessor: what the leader does for all writers of a database, wherever they are. It hands out the lease
//! ([`crate::core::lease`]), and lets the entries of its holder through to Raft.
//!
//! Nothing here waits for this node's own copy: leases are granted by what the log says ([`crate::core::head`]). At
//! most one proposal of a database is in the *air*: from the moment when the lessor lets it through until it is handed
//! over in log order, or is certain not to come. Meanwhile no lease is granted, as its writer would only collide.
//!
//! A lease ends with its transaction: as soon as that is decided, the next writer's turn has come, while the
//! app is still publishing.

use super::database::{Database, State};
use crate::clock;
use crate::command::{Command, DbId, TransactionHead};
use crate::core::head::{Fate, Head, Judged};
use crate::core::lease::{Action, Lease, Open, Who};
use crate::core::rule::Candidate;
use crate::core::run::{Last, Part};
use bytes::Bytes;
use quire_raft::LogPosition;
use quire_vfs::format::transaction::{Piece, Transaction, TxnId};
use quire_vfs::gate::proto::{Refusal, RefusalCode};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::{trace, warn};

/// A proposal whose fate is not known yet.
#[derive(Debug)]
pub(super) struct Air {
    /// Tells it from others of the same transaction, which has several if it comes in parts.
    flight: u64,
    id: TxnId,
    term: u64,
    token: u64,
    /// Raft has it: what is proposed from now on comes after it.
    sent: bool,
    /// Who wants to know when it has come down, or Raft has it.
    watchers: Vec<oneshot::Sender<()>>,
}

/// What an entry of a lease's holder is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bid {
    /// The database.
    pub database: DbId,
    /// The transaction.
    pub id: TxnId,
    /// The entry that it was written on.
    pub base: u64,
    /// The term of its lease.
    pub term: u64,
    /// The node that it comes from.
    pub origin: u64,
}

impl Bid {
    /// Reads it off an entry; an error if the entry is none of a lease's holder.
    pub fn of(command: &Bytes) -> Result<Bid, String> {
        let (database, base, term, origin, body) = match Command::decode(command)
            .map_err(|error| error.to_string())?
        {
            Command::Transaction { head, body } => {
                (head.database, head.base, head.lease_term, head.origin, body)
            }
            Command::Part { head, body } => (head.database, head.base, head.lease_term, head.origin, body),
            _ => return Err("it is no transaction".into()),
        };
        let id = Transaction::decode(&body).map_err(|error| error.to_string())?.id();
        Ok(Bid { database, id, base, term, origin })
    }
}

impl Database {
    /// In which term, and on which entry, this node may grant leases.
    fn leasing(&self, state: &State) -> Result<Open, Refusal> {
        if self.is_dropped() {
            return Err(Refusal::new(RefusalCode::NotFound, format!("{} was dropped", self.name)));
        }
        let term = self.context.leadership.leading()?;
        let lacking = || {
            let why = format!("the leader lacks entries of {} and is getting them; try again", self.name);
            Refusal::new(RefusalCode::Unavailable, why)
        };
        Ok(Open { term, head: state.head.last().ok_or_else(lacking)? })
    }

    /// A writer of this node asks, if this node leads.
    pub(super) fn lease_here(
        &self,
        state: &mut State,
        who: Who,
        attempt: (u64, u32),
        deadline: Instant,
    ) -> Result<Option<Lease>, Refusal> {
        let open = self.leasing(state)?;
        let asked = state.lease.request(who, attempt, open.head, deadline, clock::now());
        asked.map_err(|why| Refusal::new(RefusalCode::Busy, format!("{}: {why}", self.name)))
    }

    /// A writer of another node, in the life of it that began at `life`, asks, with its ticket and the number of attempts
    /// before. The receiver gets the lease, or a refusal.
    pub fn lease(
        self: &Arc<Self>,
        who: Who,
        attempt: (u64, u32),
        life: u64,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<Lease, Refusal>> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state();
        self.restarted(&mut state, who.node, life);
        match self.lease_here(&mut state, who, attempt, deadline) {
            Ok(Some(lease)) => {
                let _ = tx.send(Ok(lease));
            }
            Ok(None) => {
                state.asked.insert(who, tx);
                self.advance(&mut state);
            }
            Err(refusal) => {
                let _ = tx.send(Err(refusal));
            }
        }
        rx
    }

    /// What a node had before this life of it is void.
    fn restarted(&self, state: &mut State, node: u64, life: u64) {
        for who in state.lease.forget(|who| who.node == node && who.session < life) {
            state.asked.remove(&who);
        }
    }

    /// Grants, expires and refuses leases as far as the log allows.
    pub(super) fn grant_leases(self: &Arc<Self>, state: &mut State) {
        if state.lease.waiting() == 0 {
            return;
        }
        loop {
            let open = match self.leasing(state) {
                Ok(open) => state.air.is_none().then_some(open),
                Err(refusal) => {
                    for who in state.lease.close() {
                        if who.node == self.context.node_id {
                            self.ask(state, who.session);
                        } else if let Some(tx) = state.asked.remove(&who) {
                            let _ = tx.send(Err(refusal.clone()));
                        }
                    }
                    return;
                }
            };
            let mut lost = false;
            let hears = |node, since| self.context.hears(node, since);
            for action in state.lease.poll(clock::now(), open, hears) {
                trace!(database = self.name, ?action, "lease");
                match action {
                    Action::Grant { who, ticket, lease } if who.node == self.context.node_id => {
                        self.arrive(state, who.session, ticket, lease, who.node);
                    }
                    Action::Grant { who, lease, .. } => {
                        let sent = state.asked.remove(&who).is_some_and(|tx| tx.send(Ok(lease)).is_ok());
                        lost |= !sent && state.lease.release(lease.token, false, clock::now());
                    }
                    Action::Expire(who) => {
                        if let Some(tx) = state.asked.remove(&who) {
                            let _ = tx.send(Err(self.busy()));
                        }
                    }
                    Action::GaveWay(who) => {
                        warn!(
                            database = self.name,
                            node = who.node,
                            session = who.session,
                            "a transaction stands open for longer than the lease timeout, and others wait; its lease \
                             has ended, and its COMMIT will be refused"
                        );
                        if who.node == self.context.node_id {
                            self.overtaken(state, who.session);
                        }
                    }
                }
            }
            if !lost {
                break;
            }
        }
        // Others go on when the writer that they wait for isn't back in time.
        let until = state.lease.lingers_until().filter(|_| state.lease.waiting() > 0);
        if let Some(until) = until.filter(|_| until != state.linger_timer) {
            state.linger_timer = Some(until);
            let database = self.clone();
            self.context.spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                database.expire();
            });
        }
    }

    pub(super) fn busy(&self) -> Refusal {
        Refusal::new(RefusalCode::Busy, format!("another writer has {}", self.name))
    }

    /// A lease comes back to this node.
    pub(super) fn returned(&self, state: &mut State, token: u64, linger: bool) {
        state.lease.release(token, linger, clock::now());
    }

    /// A node gives a lease back.
    pub fn take_back(self: &Arc<Self>, node: u64, token: u64, linger: bool) {
        let mut state = self.state();
        if state.lease.holder().is_some_and(|(who, _)| who.node == node) {
            self.returned(&mut state, token, linger);
            self.advance(&mut state);
        }
    }

    /// Lets an entry of the lease's holder through to Raft, or says why not.
    pub fn let_through(&self, from: u64, token: u64, bid: &Bid) -> Result<(), String> {
        self.put_in_the_air(&mut self.state(), from, token, bid)
    }

    pub(super) fn put_in_the_air(
        &self,
        state: &mut State,
        from: u64,
        token: u64,
        bid: &Bid,
    ) -> Result<(), String> {
        let open = self.leasing(state).map_err(|refusal| refusal.message)?;
        if bid.term != open.term {
            return Err(format!("the lease was of term {}, the leader is of term {}", bid.term, open.term));
        }
        #[cfg(test)]
        if crate::sim::is_broken(crate::sim::Rule::Lease) {
            return Ok(());
        }
        let holder = state.lease.holder().filter(|(who, lease)| who.node == from && lease.token == token);
        if holder.is_none() || bid.origin != from {
            return Err(self.lease_ended());
        }
        if state.lease.is_barred(bid.id) {
            return Err(
                "it came so late that its outcome was asked for before, and told: not in the log".into()
            );
        }
        if state.air.is_some() {
            return Err("a transaction of this lease is under way".into());
        }
        if bid.base != open.head {
            return Err("another transaction came first".into());
        }
        state.lease.progress(token, clock::now());
        let Bid { id, term, .. } = *bid;
        trace!(database = self.name, from, transaction = %id, "let through");
        state.next_ticket += 1;
        let flight = state.next_ticket;
        state.air = Some(Air { flight, id, term, token, sent: false, watchers: Vec::new() });
        Ok(())
    }

    pub(super) fn lease_ended(&self) -> String {
        format!(
            "the lease has expired: the transaction stood open for longer than {:?} (--lease-timeout-ms) while others \
             waited, or its node was out of the leader's reach",
            self.context.lease_timeout
        )
    }

    /// The proposal of a transaction, or of a part of it, that is in the air.
    pub fn flight(&self, id: TxnId) -> Option<u64> {
        self.state().air.as_ref().filter(|air| air.id == id).map(|air| air.flight)
    }

    /// Whether a proposal is still in the air.
    pub fn is_in_the_air(&self, flight: u64) -> bool {
        self.state().air.as_ref().is_some_and(|air| air.flight == flight)
    }

    /// A proposal was not appended, or all that could contain it has been handed over.
    pub fn has_landed(self: &Arc<Self>, flight: u64) {
        let mut state = self.state();
        // The lease itself is given back by its writer.
        if state.air.take_if(|air| air.flight == flight).is_some() {
            self.advance(&mut state);
        }
    }

    /// Raft has a proposal; its fate is open.
    pub fn is_sent(&self, flight: u64) {
        if let Some(air) = self.state().air.as_mut().filter(|air| air.flight == flight) {
            air.sent = true;
            air.watchers.clear();
        }
    }

    /// A node wants to know what became of a transaction, or can't know any more that it sent it: no proposal under this
    /// token, or of an earlier life of the node, or of that transaction, is let through from now on. If there is a receiver, it ends once what
    /// was let through of that transaction is with Raft.
    pub fn close_off(
        self: &Arc<Self>,
        node: u64,
        life: u64,
        token: u64,
        id: TxnId,
    ) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state();
        self.restarted(&mut state, node, life);
        if state.lease.holder().is_some_and(|(who, _)| who.node == node) {
            state.lease.release(token, false, clock::now());
        }
        // Whose lease it is isn't known to everybody who asks.
        #[cfg(test)]
        let id = if crate::sim::is_broken(crate::sim::Rule::Bar) { TxnId::default() } else { id };
        state.lease.bar(id);
        self.advance(&mut state);
        let air = state.air.as_mut().filter(|air| air.id == id && !air.sent)?;
        let (tx, rx) = oneshot::channel();
        air.watchers.push(tx);
        Some(rx)
    }

    /// Everything that could contain this transaction has been handed over.
    pub(super) fn has_come_down(self: &Arc<Self>, state: &mut State, id: TxnId) {
        if state.air.take_if(|air| air.id == id).is_some() {
            self.advance(state);
        }
    }

    /// The next entry is a transaction: what does it do to the database's last entry, and to the lease?
    pub(super) fn judge(
        &self,
        state: &mut State,
        position: LogPosition,
        head: &TransactionHead,
        body: &Bytes,
    ) {
        let Some((id, judged)) = judge(&mut state.head, position, head, body) else { return };
        if let Some(air) = state.air.take_if(|air| air.id == id) {
            trace!(database = self.name, transaction = %id, ?judged, "decided");
            if judged == Judged::Counts {
                state.lease.release(air.token, false, clock::now());
            } else {
                state.lease.progress(air.token, clock::now());
            }
        }
    }

    /// The next entry is a part.
    pub(super) fn judge_part(&self, state: &mut State, entry: &Candidate, part: &Part) {
        state.head.part(entry, part);
        if let Some(air) = state.air.take_if(|air| air.id == part.id) {
            state.lease.progress(air.token, clock::now());
        }
    }

    /// The next entry is the first of a term: what was proposed before and isn't in the log never will be.
    pub(super) fn judge_term(&self, state: &mut State, term: u64) {
        state.head.new_term(term);
        state.air.take_if(|air| air.term < term);
    }

    /// What became of a transaction, as far as this node's log tells; `None` if it can't.
    pub fn fate(&self, id: TxnId) -> Option<Fate> {
        self.state().head.fate(id)
    }

    /// Whether this node remembers a transaction that was written on the entry `base`, if it is committed.
    pub fn reaches(&self, base: u64) -> bool {
        self.state().head.reaches(base)
    }
}

/// Judges the next transaction in log order.
pub(super) fn judge(
    database: &mut Head,
    position: LogPosition,
    head: &TransactionHead,
    body: &Bytes,
) -> Option<(TxnId, Judged)> {
    let txn = Transaction::decode(body).ok()?;
    let (index, term) = (position.index, position.term);
    let entry = Candidate { index, term, base: head.base, lease_term: head.lease_term };
    let last = match txn.piece() {
        Piece::Last(before) => {
            Some(Last { id: txn.id(), before, db_size: txn.db_size(), first: txn.bounds().0 })
        }
        _ => None,
    };
    Some((txn.id(), database.transaction(&entry, txn.id(), last.as_ref())))
}
