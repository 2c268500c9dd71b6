//! Configuration of one Raft node, validated before anything is opened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::{ClusterKey, NodeId, Peer, StartError};

/// Everything [`crate::Raft::start`] needs. [`RaftConfig::new`] fills in the defaults.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This node's id.
    pub node_id: NodeId,
    /// The Raft directory (`DIR/raft`); created if absent. One process at a time may have it open.
    pub dir: PathBuf,
    /// Local UDP address to bind; port 0 picks a free one (see [`crate::Raft::local_addr`]).
    pub listen: SocketAddr,
    /// The addresses under which others reach this node.
    pub advertise: Peer,
    /// The cluster key.
    pub key: ClusterKey,
    /// Interval of the leader's heartbeats. Default 250 ms.
    pub heartbeat: Duration,
    /// Shortest election timeout; at least three heartbeats. Default 1 s.
    pub election_min: Duration,
    /// Longest election timeout; above `election_min`. Default 2 s.
    pub election_max: Duration,
    /// Size of one log segment file in bytes. Default 64 MiB.
    pub segment_bytes: u64,
    /// A node whose log is empty takes nothing of Raft's from peers until [`crate::Raft::admit`]. Default false.
    pub await_admission: bool,
    /// Bounds on memory and time.
    pub limits: Limits,
}

/// Bounds on memory and time; the defaults suit a production node.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest command in bytes. Default 64 MiB.
    pub command_bytes: usize,
    /// Commands proposed on this node and not yet resolved, in bytes altogether. Default 256 MiB.
    pub inflight_bytes: usize,
    /// Longest body of a forwarded request or response, in bytes. Default 65 MiB.
    pub request_bytes: usize,
    /// Bodies of requests being received or handled, in bytes altogether. Default 256 MiB.
    pub requests_inflight_bytes: usize,
    /// Bytes of log kept in memory for readers (entries that aren't on disk yet come on top). Default 64 MiB.
    pub cache_bytes: usize,
    /// Bytes of appends in flight to one follower. Default 16 MiB.
    pub append_window_bytes: usize,
    /// Bytes of entries in one append frame, where entries allow it. Default 4 MiB.
    pub append_frame_bytes: usize,
    /// How long a proposal waits for room in `inflight_bytes`, and then for its commit. Default 30 s.
    pub propose_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            command_bytes: 64 << 20,
            inflight_bytes: 256 << 20,
            request_bytes: 65 << 20,
            requests_inflight_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            append_window_bytes: 16 << 20,
            append_frame_bytes: 4 << 20,
            propose_timeout: Duration::from_secs(30),
        }
    }
}

impl RaftConfig {
    /// A configuration with default timings and limits.
    pub fn new(
        node_id: NodeId,
        dir: impl Into<PathBuf>,
        listen: SocketAddr,
        advertise: Peer,
        key: ClusterKey,
    ) -> Self {
        RaftConfig {
            node_id,
            dir: dir.into(),
            listen,
            advertise,
            key,
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(1000),
            election_max: Duration::from_millis(2000),
            segment_bytes: 64 << 20,
            await_admission: false,
            limits: Limits::default(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), StartError> {
        let bad = |what: String| Err(StartError::Config(what));
        if self.node_id == 0 {
            return bad("the node id must not be 0".into());
        }
        if self.heartbeat < Duration::from_millis(10) {
            return bad(format!("heartbeat {:?} is below 10 ms", self.heartbeat));
        }
        if self.election_min < self.heartbeat * 3 || self.election_max <= self.election_min {
            return bad(format!(
                "election timeout {:?}..{:?} must start at three heartbeats ({:?} each) or more and not be empty",
                self.election_min, self.election_max, self.heartbeat
            ));
        }
        if !(64 << 10..=1 << 30).contains(&self.segment_bytes) {
            return bad(format!("segment size {} is not between 64 KiB and 1 GiB", self.segment_bytes));
        }
        let l = &self.limits;
        if !(1..=512 << 20).contains(&l.command_bytes) || !(1..=512 << 20).contains(&l.request_bytes) {
            return bad("command and request limits must be between 1 byte and 512 MiB".into());
        }
        if l.inflight_bytes < l.command_bytes || l.requests_inflight_bytes < l.request_bytes {
            return bad("a limit on all bytes in flight is below the limit on one command or request".into());
        }
        if l.inflight_bytes > u32::MAX as usize || l.requests_inflight_bytes > u32::MAX as usize {
            return bad("limits on bytes in flight must be below 4 GiB".into());
        }
        if !(4096..=64 << 20).contains(&l.append_frame_bytes) || l.append_window_bytes < l.append_frame_bytes
        {
            return bad("append frames must be 4 KiB to 64 MiB and fit the append window".into());
        }
        Ok(())
    }
}
