//! openraft's view of the caller's state machine.
//!
//! `apply` collects what is ready into batches, hands each over, and then answers the proposals in it.
//!
//! # Snapshots
//! A Raft snapshot is the caller's own durable state: nothing is copied when one is built. It states up to where the
//! state machine is durable, which is what permits a purge ([`crate::Raft::purge`] moves it), and carries what the
//! caller says of that state. A member that needs purged entries is offered it, gets the state from the leader as the
//! caller knows to ([`StateMachine::fetch`]), and installs it.
//!
//! # Invariants
//! - Each entry is handed over once per process life, in log order.
//! - A snapshot never claims more than the caller reported durable.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use crate::log::LogStore;
use crate::types::{C, HandedOver, LogId, Snapshot, SnapshotMeta, StoredMembership, log_id, position};
use crate::{AppliedState, Committed, LogPosition, Payload, StateMachine, encode};

/// Entries handed over at once, at most.
const BATCH_ENTRIES: usize = 256;

struct Inner {
    applied: Option<LogPosition>,
    /// The membership at `applied`.
    membership: StoredMembership,
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
        let inner = Inner { applied: state.position, membership };
        Ok(Machine { target, inner: Arc::new(Mutex::new(inner)) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Up to where the caller's state is durable.
    pub(crate) fn durable(&self) -> io::Result<Option<LogPosition>> {
        Ok(self.target.applied()?.position)
    }

    /// The durable state as it is now; `None` as long as there is none.
    fn snapshot(&self) -> io::Result<Option<Snapshot>> {
        let (state, snapshot) = self.target.snapshot()?;
        let Some(at) = state.position else { return Ok(None) };
        let last_membership = state.membership.map(encode::read_membership).transpose()?.unwrap_or_default();
        let meta = SnapshotMeta { last_log_id: Some(log_id(at)), last_membership };
        Ok(Some(Snapshot { meta, snapshot }))
    }

    /// Hands over what is committed and was not applied, some megabytes at a time. openraft would do so itself, 64
    /// entries at once, whatever their size.
    pub(crate) async fn replay(&mut self, log: &LogStore) -> io::Result<()> {
        let Some(committed) = log.committed() else { return Ok(()) };
        let mut next = self.inner().applied.map_or(0, |at| at.index + 1);
        while next <= committed.index {
            let entries = log.read_some(next, committed.index + 1).await?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { break };
            // What is missing is for openraft to name.
            if first.log_id.index() != next {
                break;
            }
            next = last.log_id.index() + 1;
            self.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await?;
        }
        Ok(())
    }

    fn hand_over(&self, batch: Vec<Committed>) -> io::Result<()> {
        let Some(last) = batch.last().map(|c| c.position) else { return Ok(()) };
        let mut membership = None;
        for c in &batch {
            if let Payload::Membership(bytes) = &c.payload {
                membership = Some(encode::read_membership(bytes.clone())?);
            }
        }
        self.target.apply(batch)?;
        let mut s = self.inner();
        if let Some(membership) = membership {
            s.membership = membership;
        }
        s.applied = Some(last);
        Ok(())
    }
}

impl RaftStateMachine<C> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let s = self.inner();
        Ok((s.applied.map(log_id), s.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            self.target.room().await;
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

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let at = meta.last_log_id.as_ref().map(position);
        let membership = meta.last_membership.clone();
        let bytes = encode::membership(membership.log_id().as_ref().map(position), membership.membership());
        let state = AppliedState { position: at, membership: Some(bytes), ahead: true };
        self.target.install(state, snapshot).await?;
        let mut s = self.inner();
        (s.applied, s.membership) = (at, membership);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.snapshot()
    }
}

/// States what is durable.
pub(crate) struct Builder(Machine);

impl RaftSnapshotBuilder<C> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.0.snapshot()?.ok_or_else(|| io::Error::other("nothing is durable yet"))
    }
}
