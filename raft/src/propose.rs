//! Proposals: bounded in bytes before they reach openraft, and honest about their fate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, ForwardReason};
use tokio::sync::OwnedSemaphorePermit;

use crate::log::LogStore;
use crate::types::{C, Command, HandedOver, position};
use crate::{LogPosition, ProposeError, Raft, ServerState};

/// Between attempts to propose as a leader without a lease.
const LEASE_POLL: Duration = Duration::from_millis(5);

type WriteResult = Result<openraft::raft::ClientWriteResponse<C>, ClientWriteError<C>>;

impl Raft {
    /// Proposes a command. Resolves when it is committed and was handed to this node's state machine.
    ///
    /// Every error but [`ProposeError::Unknown`] means that it was not and will not be appended. Dropping the future
    /// gives up the answer, not the proposal.
    pub async fn propose(&self, command: Bytes) -> Result<LogPosition, ProposeError> {
        let inner = &self.inner;
        let (size, limit) = (command.len(), inner.config.limits.command_bytes);
        if size > limit {
            return Err(ProposeError::TooLarge { size, limit });
        }
        let patience = inner.config.limits.propose_timeout;
        let cost = size.clamp(1, inner.config.limits.inflight_bytes) as u32;
        let room = tokio::time::timeout(patience, inner.room.clone().acquire_many_owned(cost)).await;
        let room =
            room.map_err(|_| ProposeError::Overloaded)?.map_err(|e| ProposeError::Stopped(e.to_string()))?;
        let bytes = LogStore::record_bytes(size);
        let flight = Room::take(&inner.inflight, bytes, room);
        inner.log.room_for(inner.inflight.load(Ordering::Relaxed)).map_err(ProposeError::DiskFull)?;

        let mut flight = Some(flight);
        let start = std::time::Instant::now();
        let unknown = |reason: String| ProposeError::Unknown { reason, position: None };
        loop {
            let (responder, answer) = openraft::impls::ProgressResponder::<C, WriteResult>::complete_only();
            let sent = inner.core.write(Command(command.clone())).responder(responder).await;
            sent.map_err(|e| ProposeError::Stopped(e.to_string()))?;
            let mut pending = Pending { answer: Some(answer), room: flight.take() };
            match tokio::time::timeout(patience.saturating_sub(start.elapsed()), pending.answer()).await {
                Ok(Some(Ok(done))) => {
                    let _: HandedOver = done.data;
                    return Ok(position(&done.log_id));
                }
                Ok(Some(Err(ClientWriteError::ForwardToLeader(f)))) => {
                    // A leader has no lease in its first moments, until a quorum has answered it once.
                    let young = f.reason == ForwardReason::LeaseExpired
                        && start.elapsed() < inner.config.election_min;
                    if !young || self.status().state != ServerState::Leader {
                        return Err(ProposeError::NotLeader { leader: self.leader_of(f) });
                    }
                    flight = pending.room.take();
                    tokio::time::sleep(LEASE_POLL).await;
                }
                Ok(Some(Err(e))) => return Err(unknown(e.to_string())),
                Ok(None) => return Err(unknown(self.why_stopped().await)),
                Err(_) => return Err(unknown(format!("no commit within {patience:?}"))),
            }
        }
    }
}

/// What a proposal occupies until it is resolved.
struct Room {
    total: Arc<AtomicU64>,
    bytes: u64,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    fn take(total: &Arc<AtomicU64>, bytes: u64, permit: OwnedSemaphorePermit) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Room { total: total.clone(), bytes, _permit: permit }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

type Answer = openraft::type_config::alias::OneshotReceiverOf<C, WriteResult>;

/// A proposal on its way. If the caller gives up, its room stays taken until the proposal is resolved.
struct Pending {
    answer: Option<Answer>,
    room: Option<Room>,
}

impl Pending {
    /// The answer; `None` if the core dropped the proposal.
    async fn answer(&mut self) -> Option<WriteResult> {
        let answer = match &mut self.answer {
            Some(rx) => rx.await.ok(),
            None => None,
        };
        self.answer = None;
        answer
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let (Some(answer), Some(room)) = (self.answer.take(), self.room.take())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                let _ = answer.await;
                drop(room);
            });
        }
    }
}
