//! openraft's view of the caller's state machine.
//!
//! `apply` collects what is ready into batches, hands each over, and then answers the proposals in it.
//!
//! # Snapshots
//! A Raft snapshot here is the caller's own durable state: nothing is copied and no data is carried. Building one
//! only states up to where the state machine is durable, which is what permits a purge
//! ([`crate::Raft::purge`] moves it). Sending one to a member that needs purged entries arrives with compaction;
//! until then such a member stays behind, and the sender logs why.
//!
//! # Invariants
//! - Each entry is handed over once per process life, in log order.
//! - `durable` never passes what the caller reported durable.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use crate::types::{C, HandedOver, LogId, Snapshot, SnapshotMeta, StoredMembership, log_id, position};
use crate::{AppliedState, Committed, LogPosition, Payload, StateMachine, encode};

/// Entries handed over at once, at most.
const BATCH_ENTRIES: usize = 256;

struct Inner {
    applied: Option<LogPosition>,
    durable: Option<LogPosition>,
    /// The membership at `durable`, and those applied after it.
    memberships: VecDeque<StoredMembership>,
}

/// The adapter. Clones share it.
#[derive(Clone)]
pub(crate) struct Machine {
    target: Arc<dyn StateMachine>,
    inner: Arc<Mutex<Inner>>,
}

impl Machine {
    /// An adapter for a state machine that reported `state` as durable.
    pub(crate) fn new(target: Arc<dyn StateMachine>, state: AppliedState) -> io::Result<Self> {
        let membership = match state.membership {
            Some(bytes) => encode::read_membership(bytes)?,
            None => StoredMembership::default(),
        };
        let inner = Inner {
            applied: state.position,
            durable: state.position,
            memberships: VecDeque::from([membership]),
        };
        Ok(Machine { target, inner: Arc::new(Mutex::new(inner)) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The caller's state is durable up to here.
    pub(crate) fn set_durable(&self, upto: LogPosition) {
        let mut s = self.inner();
        if s.durable.is_some_and(|d| d.index >= upto.index) {
            return;
        }
        s.durable = Some(upto);
        let at = |m: &StoredMembership| m.log_id().as_ref().map(|l| l.index());
        while s.memberships.get(1).and_then(at).is_some_and(|i| i <= upto.index) {
            s.memberships.pop_front();
        }
    }

    fn hand_over(&self, batch: Vec<Committed>) -> io::Result<()> {
        let Some(last) = batch.last().map(|c| c.position) else { return Ok(()) };
        let mut memberships = Vec::new();
        for c in &batch {
            if let Payload::Membership(bytes) = &c.payload {
                memberships.push(encode::read_membership(bytes.clone())?);
            }
        }
        self.target.apply(batch)?;
        let mut s = self.inner();
        s.memberships.extend(memberships);
        s.applied = Some(last);
        Ok(())
    }
}

impl RaftStateMachine<C> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let s = self.inner();
        Ok((s.applied.map(log_id), s.memberships.back().cloned().unwrap_or_default()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let mut batch = Vec::with_capacity(chunk.len());
            let mut responders = Vec::new();
            for item in chunk {
                let (entry, responder) = item?;
                let at = position(&entry.log_id);
                let payload = match entry.payload {
                    EntryPayload::Blank => Payload::Blank,
                    EntryPayload::Normal(c) => Payload::Command(c.0),
                    EntryPayload::Membership(m) => Payload::Membership(encode::membership(Some(at), &m)),
                };
                batch.push(Committed { position: at, payload });
                responders.extend(responder);
            }
            self.hand_over(batch)?;
            responders.into_iter().for_each(|r| r.send(HandedOver));
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(Builder(self.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        let why = format!("a snapshot up to {:?} can't be installed by this version", meta.last_log_id);
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let s = self.inner();
        Ok(s.durable.is_some().then(|| s.snapshot()))
    }
}

impl Inner {
    fn snapshot(&self) -> Snapshot {
        let last_membership = self.memberships.front().cloned().unwrap_or_default();
        Snapshot {
            meta: SnapshotMeta { last_log_id: self.durable.map(log_id), last_membership },
            snapshot: (),
        }
    }
}

/// States what is durable.
pub(crate) struct Builder(Machine);

impl RaftSnapshotBuilder<C> for Builder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        Ok(self.0.inner().snapshot())
    }
}
