//! Snapshots between members. The leader says which state it has; the member that lacks purged entries gets what it
//! needs of that state itself ([`crate::StateMachine::fetch`]), and then installs it. Meanwhile it says once a second
//! that it is at it.

use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use quinn::SendStream;

use super::codec::{SnapshotAnswer, StreamKind, offer, read_offer, read_snapshot_answer, snapshot_answer};
use super::frame::{self, FrameError, FrameReader};
use super::link::Link;
use super::server::{Server, gone, within};
use crate::NodeId;
use crate::types::{C, Snapshot, Vote};

/// Longest offer: what describes a state, in bytes.
const OFFER_BYTES: usize = 64 << 20;
/// Longest answer.
const ANSWER_BYTES: usize = 64 << 10;
/// Longest reason in one.
const WHY_CHARS: usize = 8 << 10;
/// The receiver says so often that it is at it.
const PROGRESS: Duration = Duration::from_secs(1);
/// A receiver that says nothing for so long is lost.
const STALL: Duration = Duration::from_secs(30);
/// For the offer to be received.
const TRANSFER: Duration = Duration::from_secs(60);

/// Offers a snapshot to a member, and waits until it is installed there.
pub(crate) async fn send(
    link: &Arc<Link>,
    (node, target): (NodeId, NodeId),
    vote: Vote,
    snapshot: Snapshot,
    cancel: impl Future<Output = ReplicationClosed>,
) -> Result<SnapshotResponse<C>, StreamingError<C>> {
    let index = snapshot.meta.last_log_id.map(|l| l.index());
    tracing::info!(peer = target, index, "member needs purged entries; snapshot offered");
    let stalled = || {
        let action = RPCTypes::InstallSnapshot;
        StreamingError::from(Timeout::<C> { action, id: node, target, timeout: STALL })
    };
    let exchange = async {
        let opened = tokio::time::timeout(STALL, link.open(StreamKind::Snapshot)).await;
        let opened = opened.map_err(|_| StreamingError::from(Unreachable::from_string("no answer")))?;
        let (mut send, mut recv) = opened.map_err(|e| StreamingError::from(Unreachable::from_string(e)))?;
        let network = |e: FrameError| StreamingError::from(NetworkError::from_string(e));
        within(TRANSFER, frame::write(&mut send, offer(&vote, &snapshot))).await.map_err(network)?;
        loop {
            let next = tokio::time::timeout(STALL, recv.one(ANSWER_BYTES)).await;
            let answer = read_snapshot_answer(next.map_err(|_| stalled())?.map_err(network)?);
            match answer.map_err(|e| StreamingError::from(NetworkError::from_string(e)))? {
                SnapshotAnswer::AtWork => {}
                SnapshotAnswer::Installed(vote) => return Ok(SnapshotResponse::new(vote)),
                SnapshotAnswer::Failed(why) => {
                    tracing::warn!(peer = target, why, "snapshot not installed; it is offered again");
                    return Err(Unreachable::from_string(why).into());
                }
            }
        }
    };
    tokio::select! {
        done = exchange => done,
        closed = cancel => Err(closed.into()),
    }
}

/// Takes a snapshot that the leader offers: gets what it describes, and installs it. One at a time.
pub(crate) async fn receive(
    server: &Arc<Server>,
    peer: NodeId,
    mut send: SendStream,
    mut recv: FrameReader,
) -> Result<(), FrameError> {
    let (vote, snapshot) = read_offer(within(TRANSFER, recv.one(OFFER_BYTES)).await?)?;
    server.hears(&vote, peer)?;
    // A new member knows nobody yet.
    if let Some(at) = snapshot.meta.last_membership.membership().get_node(&peer) {
        server.links.offered(peer, &at.raft_addr);
    }
    let ours = server.clone();
    // On a task of its own: what is fetched and under installation is not given up with the stream.
    let mut work = tokio::spawn(async move {
        let server = ours;
        let _one = server.receiving.lock().await;
        let index = snapshot.meta.last_log_id.map(|l| l.index());
        tracing::info!(peer, index, "receiving a snapshot");
        let fetched = server.machine.fetch(peer, snapshot.snapshot.clone()).await;
        fetched.map_err(|e| format!("fetching it: {e}"))?;
        let installed = server.core.install_full_snapshot(vote, snapshot).await;
        server.machine.abandon();
        installed.map_err(|e| format!("installing it: {e}"))
    });
    let answer = loop {
        tokio::select! {
            done = &mut work => break done.unwrap_or_else(|e| Err(e.to_string())),
            () = tokio::time::sleep(PROGRESS) => {
                let at_work = snapshot_answer(&SnapshotAnswer::AtWork);
                within(STALL, frame::write(&mut send, vec![at_work])).await?;
            }
        }
    };
    let answer = match answer {
        Ok(response) => SnapshotAnswer::Installed(response.vote),
        Err(why) => {
            tracing::warn!(peer, why, "snapshot not received");
            SnapshotAnswer::Failed(why.chars().take(WHY_CHARS).collect())
        }
    };
    within(STALL, frame::write(&mut send, vec![snapshot_answer(&answer)])).await?;
    send.finish().map_err(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LogPosition;
    use crate::types::{SnapshotMeta, log_id};
    use bytes::Bytes;
    use proptest::prelude::*;

    #[test]
    fn offer_round_trip() {
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(LogPosition { term: 3, leader: 2, index: 9 })),
            ..SnapshotMeta::default()
        };
        let snapshot = Snapshot { meta, snapshot: Bytes::from_static(b"what it is") };
        let vote = Vote::new_committed(3, 2);
        let bytes: Bytes = offer(&vote, &snapshot).concat().into();
        let (read_vote, read) = read_offer(bytes.clone()).unwrap();
        assert_eq!((read_vote, &read.meta, &read.snapshot), (vote, &snapshot.meta, &snapshot.snapshot));
        for cut in 0..bytes.len() - snapshot.snapshot.len() {
            assert!(read_offer(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_offer(bytes.into());
        }
    }
}
