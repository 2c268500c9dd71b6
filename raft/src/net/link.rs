//! Connections to peers: made on demand, kept, given up when silent, remade with back-off.
//!
//! Several tasks share one link; one of them at a time connects, in a task of its own, so that a caller that gives
//! up doesn't undo the attempt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, SendStream};

use super::codec::{self, StreamKind};
use super::endpoint::Endpoint;
use super::frame::{self, FrameError, FrameReader};
use super::haste::Haste;
use super::tls;
use crate::{NodeId, RequestError};

/// Calls in a row without an answer after which a connection is given up.
const SUSPECT_AFTER: u32 = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Links kept; the ones beyond it (addresses that members had long ago) are forgotten.
const MAX_LINKS: usize = 1024;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Control,
    Data,
    Bulk,
}

/// The peer (if known), its address, the lane.
type LinkKey = (Option<NodeId>, String, Lane);

/// Where members say that they are, ahead of the membership.
type Moved = Mutex<HashMap<NodeId, String>>;

/// All links of a node.
pub(crate) struct Links {
    endpoint: Arc<Endpoint>,
    pub(crate) node: NodeId,
    connect_timeout: Duration,
    links: Mutex<HashMap<LinkKey, Arc<Link>>>,
    /// Where members are of whom this node knows by a snapshot only, which it has yet to install.
    offered: Mutex<HashMap<NodeId, String>>,
    moved: Arc<Moved>,
    pub(crate) haste: Haste,
}

/// A link to one peer, on one lane.
pub(crate) struct Link {
    endpoint: Arc<Endpoint>,
    node: NodeId,
    peer: Option<NodeId>,
    /// Where the membership has it.
    addr: String,
    moved: Arc<Moved>,
    server_name: String,
    lane: Lane,
    connect_timeout: Duration,
    current: Mutex<Option<Connection>>,
    connecting: tokio::sync::Mutex<Backoff>,
    unanswered: AtomicU32,
}

#[derive(Default)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
    error: String,
}

impl Links {
    pub(crate) fn new(endpoint: Arc<Endpoint>, node: NodeId, connect_timeout: Duration) -> Self {
        let (links, moved, offered) = (Mutex::default(), Arc::default(), Mutex::default());
        Links { endpoint, node, connect_timeout, links, moved, offered, haste: Haste::default() }
    }

    /// The link to `peer` (`None`: whoever of the cluster answers there) at `addr`.
    pub(crate) fn to(&self, peer: Option<NodeId>, addr: &str, lane: Lane) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(|e| e.into_inner());
        if links.len() >= MAX_LINKS {
            links.retain(|_, l| Arc::strong_count(l) > 1);
        }
        let make = || {
            Arc::new(Link {
                endpoint: self.endpoint.clone(),
                node: self.node,
                peer,
                addr: addr.to_string(),
                moved: self.moved.clone(),
                server_name: peer.map_or(tls::ANY_NODE.to_string(), tls::node_name),
                lane,
                connect_timeout: self.connect_timeout,
                current: Mutex::default(),
                connecting: tokio::sync::Mutex::default(),
                unanswered: AtomicU32::new(0),
            })
        };
        links.entry((peer, addr.to_string(), lane)).or_insert_with(make).clone()
    }
}

impl Links {
    /// A snapshot says where a member is.
    pub(crate) fn offered(&self, peer: NodeId, addr: &str) {
        let mut offered = self.offered.lock().unwrap_or_else(|e| e.into_inner());
        if offered.len() < MAX_LINKS {
            offered.insert(peer, addr.to_string());
        }
    }

    /// Where a member is, as a snapshot says.
    pub(crate) fn offered_address(&self, peer: NodeId) -> Option<String> {
        self.offered.lock().unwrap_or_else(|e| e.into_inner()).get(&peer).cloned()
    }

    /// A member says that it is reached at `addr`. Links to it, those in use too, try that in turn with the address
    /// that they were made for: either may be the newer one, and who answers must be that member.
    pub(crate) fn moved(&self, peer: NodeId, addr: &str) {
        let before = self.moved.lock().unwrap_or_else(|e| e.into_inner()).insert(peer, addr.to_string());
        if before.as_deref() == Some(addr) {
            return;
        }
        let links = self.links.lock().unwrap_or_else(|e| e.into_inner());
        for link in links.values().filter(|l| l.peer == Some(peer) && (before.is_some() || l.addr != addr)) {
            // What is connected is connected to where it was.
            if let Some(c) = link.current.lock().unwrap_or_else(|e| e.into_inner()).take() {
                c.close(0u32.into(), b"moved");
            }
        }
    }

    /// Lets go of all connections (each holds on to the socket).
    pub(crate) fn clear(&self) {
        let links = std::mem::take(&mut *self.links.lock().unwrap_or_else(|e| e.into_inner()));
        for link in links.into_values() {
            *link.current.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }
}

impl Link {
    fn live(&self) -> Option<Connection> {
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        if current.as_ref().is_some_and(|c| c.close_reason().is_some()) {
            *current = None;
        }
        current.clone()
    }

    /// The live connection, or a new one; the error says why there is none.
    pub(crate) async fn connection(self: &Arc<Self>) -> Result<Connection, String> {
        if let Some(c) = self.live() {
            return Ok(c);
        }
        let link = self.clone();
        let attempt = tokio::spawn(async move { link.connect().await });
        attempt.await.map_err(|e| e.to_string())?
    }

    async fn connect(&self) -> Result<Connection, String> {
        let mut backoff = self.connecting.lock().await;
        if let Some(c) = self.live() {
            return Ok(c);
        }
        if backoff.until.is_some_and(|t| Instant::now() < t) {
            return Err(backoff.error.clone());
        }
        let attempt = tokio::time::timeout(self.connect_timeout, self.handshake(backoff.failures)).await;
        match attempt.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.connect_timeout))) {
            Ok(c) => {
                *backoff = Backoff::default();
                self.unanswered.store(0, Ordering::Relaxed);
                *self.current.lock().unwrap_or_else(|e| e.into_inner()) = Some(c.clone());
                tracing::debug!(peer = self.server_name, addr = self.addr, lane = ?self.lane, "connected");
                Ok(c)
            }
            Err(e) => {
                let error = format!("{} at {}: {e}", self.server_name, self.addr);
                if backoff.failures == 0 {
                    tracing::warn!(peer = self.server_name, addr = self.addr, error = %e, "can't connect");
                }
                let pause = BACKOFF_MIN * 2u32.pow(backoff.failures.min(5));
                backoff.failures = backoff.failures.saturating_add(1);
                backoff.until = Some(Instant::now() + pause.min(BACKOFF_MAX));
                backoff.error.clone_from(&error);
                Err(error)
            }
        }
    }

    async fn handshake(&self, attempt: u32) -> Result<Connection, String> {
        let moved = self.peer.and_then(|id| {
            self.moved
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .get(&id)
                .filter(|_| attempt.is_multiple_of(2))
                .cloned()
        });
        let addrs =
            tokio::net::lookup_host(moved.as_ref().unwrap_or(&self.addr)).await.map_err(|e| e.to_string())?;
        let v4 = self.endpoint.local_addr().is_ipv4();
        let endpoint = self.endpoint.get().ok_or("this node is shutting down")?;
        let mut error = "the name has no address of the family that this node listens on".to_string();
        for addr in addrs.filter(|a| a.is_ipv4() || !v4) {
            let connecting = endpoint.connect(addr, &self.server_name).map_err(|e| e.to_string())?;
            match connecting.await {
                Ok(c) => return Ok(c),
                Err(e) => error = tls::why(&e),
            }
        }
        Err(error)
    }

    /// Opens a stream of a kind.
    pub(crate) async fn open(
        self: &Arc<Self>,
        kind: StreamKind,
    ) -> Result<(SendStream, FrameReader), String> {
        let connection = self.connection().await?;
        let (mut send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.write_all(&codec::hello(kind, self.node)).await.map_err(|e| e.to_string())?;
        Ok((send, FrameReader::new(recv)))
    }

    /// One frame there, one back. The caller limits the time, and reports through [`Link::unanswered`].
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        kind: StreamKind,
        body: Vec<Bytes>,
        max: usize,
    ) -> Result<Bytes, RequestError> {
        let (mut send, mut recv) = self.open(kind).await.map_err(RequestError::Unreachable)?;
        let lost = |e: FrameError| RequestError::Lost(e.to_string());
        frame::write(&mut send, body).await.map_err(lost)?;
        // Fails only if the stream is gone, which the read reports.
        let _ = send.finish();
        let answer = recv.one(max).await.map_err(lost)?;
        self.unanswered.store(0, Ordering::Relaxed);
        Ok(answer)
    }

    /// A call ran into its deadline. After a few in a row the connection is given up, rather than at its idle
    /// time-out: the peer may have restarted.
    pub(crate) fn unanswered(&self) {
        if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= SUSPECT_AFTER {
            let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(c) = current.take() {
                tracing::warn!(peer = self.server_name, addr = self.addr, "no answers; reconnecting");
                c.close(0u32.into(), b"no answers");
            }
            self.unanswered.store(0, Ordering::Relaxed);
        }
    }
}
