//! What the lease's and the commit's protocol ([`crate::forward`]) needs of Raft, and nothing else: so that it also runs
//! over a simulated one.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::{LogPosition, NodeId, ProposeError, Raft, RaftStatus, RequestError};
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::watch;

/// A member's view of the cluster.
pub trait Consensus: Debug + Send + Sync + 'static {
    /// See [`Raft::status`].
    fn status(&self) -> RaftStatus;
    /// See [`Raft::watch`].
    fn watch(&self) -> watch::Receiver<RaftStatus>;
    /// See [`Raft::propose`].
    fn propose(&self, command: Bytes) -> BoxFuture<'static, Result<LogPosition, ProposeError>>;
    /// See [`Raft::request_parts`].
    fn request(
        &self,
        to: NodeId,
        parts: Vec<Bytes>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Bytes, RequestError>>;
    /// See [`Raft::hurry`].
    fn hurry(&self, member: NodeId);
    /// See [`Raft::disk_full`].
    fn disk_full(&self) -> Option<String>;
}

impl Consensus for Raft {
    fn status(&self) -> RaftStatus {
        Raft::status(self)
    }

    fn watch(&self) -> watch::Receiver<RaftStatus> {
        Raft::watch(self)
    }

    fn propose(&self, command: Bytes) -> BoxFuture<'static, Result<LogPosition, ProposeError>> {
        let raft = self.clone();
        Box::pin(async move { raft.propose(command).await })
    }

    fn request(
        &self,
        to: NodeId,
        parts: Vec<Bytes>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Bytes, RequestError>> {
        let raft = self.clone();
        Box::pin(async move { raft.request_parts(to, parts, patience).await })
    }

    fn hurry(&self, member: NodeId) {
        Raft::hurry(self, member);
    }

    fn disk_full(&self) -> Option<String> {
        Raft::disk_full(self)
    }
}
