//! The handle to a Raft node: everything a caller does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError,
};
use openraft::{ChangeMembers, ReadPolicy, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};

use crate::admission::Admission;
use crate::log::{self, LogOptions, LogStore};
use crate::machine::Machine;
use crate::net::client::Factory;
use crate::net::codec;
use crate::net::endpoint::{self, Endpoint};
use crate::net::link::{Lane, Link, Links};
use crate::net::server::Server;
use crate::recover;
use crate::status;
use crate::types::{C, Core};
use crate::{
    AppliedState, Bulk, LogPosition, NodeId, Peer, RaftConfig, RaftError, RaftStatus, RequestError,
    RequestHandler, ServerState, StartError, StateMachine,
};

/// For a change of membership, a transfer or a purge to take effect.
const ADMIN: Duration = Duration::from_secs(30);
/// For the core to answer a call at all.
pub(crate) const PING: Duration = Duration::from_secs(5);
/// A learner this close to the leader's log counts as caught up.
const CAUGHT_UP: u64 = 128;
/// For the log to be written out at shutdown.
const CLOSE: Duration = Duration::from_secs(10);
const MAX_ADDRESS: usize = 512;
const MAX_MEMBERS: usize = 256;

type RaftResult<T> = Result<T, RaftError>;

/// A running Raft node. Clones are handles to the same node, which runs until [`Raft::shutdown`].
#[derive(Clone)]
pub struct Raft {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: RaftConfig,
    pub(crate) core: Core,
    pub(crate) log: LogStore,
    machine: Machine,
    endpoint: Arc<Endpoint>,
    pub(crate) links: Arc<Links>,
    /// Members that the cluster was recovered without.
    pub(crate) given_up: BTreeSet<NodeId>,
    admission: Arc<Admission>,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) inflight: Arc<AtomicU64>,
    status: watch::Receiver<RaftStatus>,
    /// Membership changes and purges go one at a time.
    admin: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Raft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft").field("node_id", &self.inner.config.node_id).finish_non_exhaustive()
    }
}

fn core_config(config: &RaftConfig) -> Result<openraft::Config, StartError> {
    let ms = |d: Duration| d.as_millis() as u64;
    let core = openraft::Config {
        cluster_name: "quire".into(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_min),
        election_timeout_max: ms(config.election_max),
        max_payload_entries: 64,
        max_append_entries: Some(256),
        api_channel_size: Some(1024),
        // Each commit that is seen is a command, and the core stands still while there is no place for one. The state
        // machine may have no room for seconds, in which votes and heartbeats must go on.
        state_machine_channel_size: Some(1 << 16),
        snapshot_policy: SnapshotPolicy::Never,
        // Purging is the caller's decision alone, see `Raft::purge`.
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: CAUGHT_UP,
        enable_pre_vote: Some(true),
        // A leader that was restarted must stand for election again: it may have sent entries to followers that
        // it lost itself, unsynced, and would give their indexes away a second time in the same term.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    core.validate().map_err(|e| StartError::Config(e.to_string()))
}

/// Checks that what the state machine and the log say of the past fits together.
pub(crate) fn check_applied(applied: &AppliedState, log: &LogStore) -> Result<(), StartError> {
    let (purged, last) = (log.purged(), log.last());
    let say = |p: Option<LogPosition>| p.map_or("nothing".to_string(), |p| p.to_string());
    if purged.map(|p| p.index) > applied.position.map(|p| p.index) {
        return Err(StartError::StateMachine(format!(
            "it is durable up to {}, but the log was purged up to {}: entries in between are lost; \
             remove the member and join again under a new node id",
            say(applied.position),
            say(purged)
        )));
    }
    if !applied.ahead && applied.position.map(|p| p.index) > last.map(|p| p.index) {
        return Err(StartError::StateMachine(format!(
            "it is durable up to {}, but the log ends at {}: the log is not the one that state came from; \
             restore it, or remove the member and join again under a new node id",
            say(applied.position),
            say(last)
        )));
    }
    Ok(())
}

impl Raft {
    /// Opens the log, binds the endpoint and starts the node on the current tokio runtime.
    ///
    /// A node whose log is empty stays passive until [`Raft::initialize`], or until a leader adds it.
    pub async fn start(
        config: RaftConfig,
        machine: Arc<dyn StateMachine>,
        handler: Arc<dyn RequestHandler>,
    ) -> Result<Raft, StartError> {
        config.validate()?;
        let core_config = core_config(&config)?;
        let options = LogOptions {
            owner: log::segment::Owner { cluster: config.key.cluster_id(), node: config.node_id },
            segment_bytes: config.segment_bytes,
            cache_bytes: config.limits.cache_bytes,
            read_bytes: config.limits.append_frame_bytes,
            wait_for_room: true,
        };
        let dir = config.dir.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let log = log::open(&dir, options)?;
            let applied = machine.applied().map_err(|e| StartError::StateMachine(e.to_string()));
            Ok::<_, StartError>((log, applied, machine))
        });
        let (log, applied, machine) = opening.await.map_err(|e| StartError::Raft(e.to_string()))??;
        match Self::start_on(config, core_config, log.clone(), applied, machine, handler).await {
            Ok(raft) => Ok(raft),
            Err(e) => {
                log.close(CLOSE).await;
                Err(e)
            }
        }
    }

    async fn start_on(
        config: RaftConfig,
        core_config: openraft::Config,
        log: LogStore,
        applied: Result<AppliedState, StartError>,
        machine: Arc<dyn StateMachine>,
        handler: Arc<dyn RequestHandler>,
    ) -> Result<Raft, StartError> {
        let applied = applied?;
        check_applied(&applied, &log)?;
        let target = machine.clone();
        let given_up = recover::given_up(&config.dir, &log)?;
        let admission = Arc::new(Admission::new(&config, &log, &applied)?);
        let bad_machine = |e: std::io::Error| StartError::StateMachine(e.to_string());
        let mut machine = Machine::new(machine, applied).map_err(bad_machine)?;
        machine.replay(&log).await.map_err(bad_machine)?;
        let known_term = log.term();
        let endpoint = Arc::new(endpoint::bind(&config).await?);
        let limits = &config.limits;
        let links = Arc::new(Links::new(endpoint.clone(), config.node_id, config.election_max));
        let factory = Factory {
            links: links.clone(),
            window: limits.append_window_bytes,
            stall: endpoint::idle_timeout(&config).max(Duration::from_secs(5)),
        };
        let core =
            Core::new(config.node_id, Arc::new(core_config), factory, log.clone(), machine.clone()).await;
        let core = match core {
            Ok(core) => core,
            Err(e) => {
                endpoint.close().await;
                links.clear();
                return Err(StartError::Raft(e.to_string()));
            }
        };
        let status_tx = Arc::new(watch::Sender::new(RaftStatus::of(&core)));
        let status = status_tx.subscribe();
        let server = Server {
            core: core.clone(),
            handler,
            machine: target,
            links: links.clone(),
            receiving: tokio::sync::Mutex::default(),
            bulk: Semaphore::new(crate::net::server::MAX_BULK),
            append_frame: codec::max_append_frame(limits.command_bytes, limits.append_frame_bytes),
            append_window: limits.append_window_bytes,
            request_bytes: limits.request_bytes,
            given_up: given_up.clone(),
            admission: admission.clone(),
            node_id: config.node_id,
            status: status.clone(),
            bodies: Arc::new(Semaphore::new(limits.requests_inflight_bytes)),
        };
        if let Some(endpoint) = endpoint.get() {
            tokio::spawn(Arc::new(server).run(endpoint));
        }
        tokio::spawn(status::follow(core.clone(), status_tx));
        tracing::info!(node = config.node_id, addr = %endpoint.local_addr(), last = ?log.last(), "raft started");
        // What the core says of itself is right only from its first report on.
        let known = log.last().map(|p| p.index);
        let mut first = status.clone();
        let report = first.wait_for(|s| s.last_log_index >= known && s.term >= known_term);
        if !matches!(tokio::time::timeout(PING, report).await, Ok(Ok(_))) {
            endpoint.close().await;
            links.clear();
            return Err(StartError::Raft("the core doesn't report".into()));
        }
        let room = Arc::new(Semaphore::new(limits.inflight_bytes));
        let (inflight, admin) = (Arc::default(), tokio::sync::Mutex::new(()));
        let inner = Inner {
            config,
            core,
            log,
            machine,
            endpoint,
            links,
            given_up,
            admission,
            room,
            inflight,
            status,
            admin,
        };
        Ok(Raft { inner: Arc::new(inner) })
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node_id
    }

    /// The UDP address that the endpoint is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.endpoint.local_addr()
    }

    /// Whether this node has a vote, a log or a membership: whether it ever was part of a cluster.
    pub fn is_initialized(&self) -> bool {
        let s = self.status();
        s.term > 0 || s.last_log_index.is_some() || !s.voters.is_empty()
    }

    /// Whether this node takes part in Raft ([`RaftConfig::await_admission`]).
    pub fn is_admitted(&self) -> bool {
        self.inner.admission.is_admitted()
    }

    /// Lets this node take part in Raft from now on, also after a restart. The caller knows that no node has had its id
    /// before, with another directory.
    pub async fn admit(&self) -> Result<(), StartError> {
        let admission = self.inner.admission.clone();
        let stored = tokio::task::spawn_blocking(move || admission.admit()).await;
        Ok(stored.map_err(|e| StartError::Raft(e.to_string()))??)
    }

    /// Forms a new cluster of the given voters (this node among them). Done once, on one of them; returns when the
    /// membership is in this node's log. The others learn of it from this one.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Peer>) -> RaftResult<()> {
        members.values().try_for_each(check_peer)?;
        if members.len() > MAX_MEMBERS {
            return Err(RaftError::Refused(format!("more than {MAX_MEMBERS} members")));
        }
        match timed(ADMIN, "initialize", self.inner.core.initialize(members)).await? {
            Ok(()) => Ok(()),
            Err(openraft::errors::RaftError::APIError(e)) => Err(RaftError::Refused(e.to_string())),
            Err(openraft::errors::RaftError::Fatal(e)) => Err(stopped(e)),
        }
    }

    /// Confirms with a quorum that this node leads, and returns the index up to which a caller must have applied to
    /// read everything that was committed before this call (Raft's ReadIndex; no clock is trusted).
    pub async fn read_barrier(&self, deadline: Duration) -> RaftResult<u64> {
        let barrier = self.inner.core.get_read_log_id(ReadPolicy::ReadIndex);
        match timed(deadline, "read barrier", barrier).await? {
            Ok((read, _)) => Ok(read.log_id().index()),
            Err(openraft::errors::RaftError::APIError(LinearizableReadError::ForwardToLeader(f))) => {
                Err(RaftError::NotLeader { leader: self.leader_of(f) })
            }
            Err(openraft::errors::RaftError::APIError(LinearizableReadError::QuorumNotEnough(q))) => {
                Err(RaftError::NoQuorum(q.to_string()))
            }
            Err(openraft::errors::RaftError::Fatal(e)) => Err(stopped(e)),
        }
    }

    /// The last entry that this node knows to be committed in the cluster, as its core has it now; [`Raft::status`]
    /// can be a moment behind.
    pub async fn committed(&self) -> RaftResult<u64> {
        let look = self.inner.core.with_raft_state(|state| state.cluster_committed().map(|id| id.index()));
        let index = timed(PING, "committed index", look).await?.map_err(stopped)?;
        Ok(index.unwrap_or(0))
    }

    /// Adds a member without a vote, or changes the addresses of one; on the leader. Then waits up to
    /// `wait_caught_up` for it to have (almost) the whole log; [`RaftError::NotCaughtUp`] means that it was added,
    /// but is still behind.
    pub async fn add_learner(&self, id: NodeId, peer: Peer, wait_caught_up: Duration) -> RaftResult<()> {
        check_peer(&peer)?;
        {
            let _one = self.inner.admin.lock().await;
            // The new address first: the quorum that is to commit it may depend on the member that has moved. And
            // openraft goes on with the connections that it has, so it has to be told to them as well.
            self.peer_moved(id, &peer.raft_addr);
            self.wait_leading().await?;
            let now = self.status();
            if !now.peers.contains_key(&id) && now.peers.len() >= MAX_MEMBERS {
                return Err(RaftError::Refused(format!("more than {MAX_MEMBERS} members")));
            }
            match now.peers.get(&id) {
                Some(known) if *known == peer => {}
                Some(_) => self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)]))).await?,
                None => {
                    let added = self.inner.core.add_learner(id, peer, false);
                    self.changed(timed(ADMIN, "add a learner", added).await?)?;
                }
            }
        }
        self.wait_caught_up(id, wait_caught_up).await
    }

    /// Gives a caught-up learner a vote; on the leader.
    pub async fn promote(&self, id: NodeId) -> RaftResult<()> {
        let _one = self.inner.admin.lock().await;
        self.wait_leading().await?;
        let now = self.status();
        if now.voters.contains(&id) {
            return Ok(());
        }
        if !now.peers.contains_key(&id) {
            return Err(RaftError::Refused(format!("node {id} is not a member")));
        }
        self.wait_caught_up(id, Duration::ZERO).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    /// Removes a member, voter or learner; on the leader. Its id must never be used again.
    pub async fn remove(&self, id: NodeId) -> RaftResult<()> {
        let _one = self.inner.admin.lock().await;
        self.wait_leading().await?;
        let now = self.status();
        if now.voters.contains(&id) {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
        } else if now.peers.contains_key(&id) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await
        } else {
            Ok(())
        }
    }

    /// Hands the lead to a voter; on the leader. Returns when this node has seen the new leader.
    pub async fn transfer_leader(&self, to: NodeId) -> RaftResult<()> {
        let _one = self.inner.admin.lock().await;
        let now = self.status();
        if now.leader != Some(self.node_id()) {
            return Err(self.not_leader());
        }
        if !now.voters.contains(&to) {
            return Err(RaftError::Refused(format!("node {to} is not a voter")));
        }
        if to == self.node_id() {
            return Ok(());
        }
        timed(ADMIN, "transfer", self.inner.core.trigger().transfer_leader(to)).await?.map_err(stopped)?;
        let limit = self.inner.config.election_max * 2;
        self.wait_status(limit, "leader transfer", |s| s.leader.is_some_and(|l| l != s.node_id))
            .await
            .map(|_| ())
    }

    /// This node's status, as of now.
    pub fn status(&self) -> RaftStatus {
        let mut status = RaftStatus::of(&self.inner.core);
        if let Some(why) = self.inner.log.failed() {
            status.running = Err(format!("the log failed: {why}"));
        } else if status.running.is_ok() {
            // A core that panicked can't say so itself.
            status.running = self.inner.status.borrow().running.clone();
        }
        status
    }

    /// The status as it changes; up to some milliseconds behind [`Raft::status`].
    pub fn watch(&self) -> watch::Receiver<RaftStatus> {
        self.inner.status.clone()
    }

    /// How long ago this node last heard of a leader, or voted. `None` if it never did, or the core doesn't answer.
    pub async fn leader_contact(&self) -> Option<Duration> {
        let modified = self.inner.core.with_raft_state(|state| state.vote_last_modified());
        let modified = timed(PING, "leader contact", modified).await.ok()?.ok()??;
        Some(openraft::Instant::elapsed(&modified))
    }

    /// The highest log index that is durable on this node's disk (0 while there is none). It can step back, when a
    /// deposed leader's tail is dropped.
    pub fn flushed(&self) -> watch::Receiver<u64> {
        self.inner.log.flushed()
    }

    /// Why the log refuses proposals for want of disk space, while it does.
    pub fn disk_full(&self) -> Option<String> {
        self.inner.log.room_for(self.inner.inflight.load(Ordering::Relaxed) + 1).err()
    }

    /// Why the log can't have another segment, while it can't. Proposals that fit into the last one are still taken.
    pub fn log_stuck(&self) -> Option<String> {
        self.inner.log.room_for(u64::MAX).err()
    }

    /// Purges the log up to `upto`, inclusive. The caller guarantees that its state machine is durable up to there
    /// (it is what a member that lacks those entries will need). Returns when the purge is on its way: a leader
    /// defers it while it replicates from there.
    pub async fn purge(&self, upto: u64) -> RaftResult<()> {
        let _one = self.inner.admin.lock().await;
        if self.inner.log.purged().is_some_and(|p| p.index >= upto) {
            return Ok(());
        }
        let applied = self.status().applied_index;
        if applied.is_none_or(|a| a < upto) {
            return Err(RaftError::Refused(format!("can't purge up to {upto}: applied is {applied:?}")));
        }
        let durable = self.inner.machine.durable().map_err(|e| RaftError::Refused(e.to_string()))?;
        if durable.is_none_or(|d| d.index < upto) {
            return Err(RaftError::Refused(format!("can't purge up to {upto}: durable is {durable:?}")));
        }
        let trigger = self.inner.core.trigger();
        timed(ADMIN, "purge", trigger.snapshot()).await?.map_err(stopped)?;
        self.wait_status(ADMIN, "purge", |s| s.snapshot_index >= Some(upto)).await?;
        timed(ADMIN, "purge", trigger.purge_log(upto)).await?.map_err(stopped)
    }

    /// Bytes of log on this node's disk: the records of all segments that are still held, that is from the one with
    /// the first live entry (or the last purge mark, if that is older) to the end. Segment headers and unused ends
    /// don't count, nor do entries that aren't durable yet. From memory.
    pub fn log_bytes(&self) -> u64 {
        self.inner.log.log_bytes()
    }

    /// Bytes of log on this node's disk from the entry after `index` to the end, exact to the record; in the measure
    /// of [`Raft::log_bytes`]. All live entries if `index` is purged, 0 if nothing durable is after it. From memory.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.inner.log.bytes_after(index)
    }

    /// Where to purge the log so that as much disk as possible is given back, while `retain_bytes` bytes of records (in
    /// the measure of [`Raft::bytes_after`]) stay after it and nothing above `durable` goes: an index for
    /// [`Raft::purge`], which a caller passes after its state machine is durable up to `durable`.
    ///
    /// Disk is given back in whole segments. So this is the last entry before the first one of a segment, and any
    /// higher index within the bounds would free nothing more. `None` when not even one segment would be freed. From memory;
    /// there are no errors.
    pub fn purge_point(&self, durable: u64, retain_bytes: u64) -> Option<u64> {
        self.inner.log.purge_point(durable, retain_bytes)
    }

    /// Sends a request to a member; its [`RequestHandler`] answers.
    pub async fn request(&self, to: NodeId, body: Bytes, deadline: Duration) -> Result<Bytes, RequestError> {
        self.request_parts(to, vec![body], deadline).await
    }

    /// Sends a request whose body lies in several places, one after the other.
    pub async fn request_parts(
        &self,
        to: NodeId,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, RequestError> {
        let addr = self.status().peers.get(&to).map(|p| p.raft_addr.clone());
        let addr = addr.ok_or_else(|| RequestError::Unreachable(format!("node {to} is not a member")))?;
        self.send(self.inner.links.to(Some(to), &addr, Lane::Data), body, deadline).await
    }

    /// Sends a request to whichever node of this cluster is at `addr` (`host:port`), as a joining node does.
    pub async fn request_addr(
        &self,
        addr: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, RequestError> {
        self.send(self.inner.links.to(None, addr, Lane::Data), vec![body], deadline).await
    }

    /// Opens a bulk stream to a member, whose [`RequestHandler`] serves it.
    pub async fn open_bulk(&self, to: NodeId) -> Result<Bulk, RequestError> {
        let addr = self.status().peers.get(&to).map(|p| p.raft_addr.clone());
        let addr = addr.or_else(|| self.inner.links.offered_address(to));
        let addr = addr.ok_or_else(|| RequestError::Unreachable(format!("node {to} is not a member")))?;
        Bulk::open(&self.inner.links.to(Some(to), &addr, Lane::Bulk)).await
    }

    /// For a while, tells a member of each commit at once, rather than with the next append: somebody there waits for
    /// it. On the leader; elsewhere it does nothing.
    pub fn hurry(&self, member: NodeId) {
        self.inner.links.haste.hurry(member);
    }

    async fn send(
        &self,
        link: Arc<Link>,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, RequestError> {
        let limit = self.inner.config.limits.request_bytes;
        let size = body.iter().map(Bytes::len).sum();
        if size > limit {
            return Err(RequestError::TooLarge { size, limit });
        }
        let exchange = link.exchange(codec::StreamKind::Request, body, limit);
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(RequestError::TimedOut(deadline)),
        }
    }

    /// Whether the core answers. A core that hangs or has panicked doesn't, whatever its status says.
    pub async fn ping(&self) -> RaftResult<()> {
        timed(PING, "ping", self.inner.core.with_raft_state(|_| ())).await?.map_err(stopped)
    }

    /// Resolves, with the reason, when the core has stopped, by shutdown or fatally. The process should then exit.
    pub async fn stopped(&self) -> String {
        let mut status = self.inner.status.clone();
        loop {
            if let Some(why) = self.inner.log.failed() {
                return format!("the log failed: {why}");
            }
            if status.has_changed().is_err() || status.borrow_and_update().running.is_err() {
                return self.why_stopped().await;
            }
            if let Err(RaftError::Stopped(why)) = self.ping().await {
                return why;
            }
            let ended = status.wait_for(|s| s.running.is_err());
            let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        }
    }

    /// Stops the node: the core, the endpoint, the log. A leader first hands over, so that the cluster hardly notices. The directory and the address are free when this
    /// returns (the address: at the latest a moment later).
    pub async fn shutdown(&self) {
        let now = self.status();
        if now.state == ServerState::Leader
            && now.running.is_ok()
            && let Some(to) = self.successor()
        {
            // Best effort: without it the others elect a leader after their time-outs.
            let handed = tokio::time::timeout(self.inner.config.election_min, self.transfer_leader(to)).await;
            tracing::info!(to, ok = matches!(handed, Ok(Ok(()))), "leader hands over before it stops");
        }
        if tokio::time::timeout(CLOSE, self.inner.core.shutdown()).await.is_err() {
            tracing::error!("raft core didn't stop in time");
        }
        self.inner.endpoint.close().await;
        self.inner.links.clear();
        if !self.inner.log.close(CLOSE).await {
            tracing::error!("log writer didn't stop in time");
        }
        tracing::info!(node = self.node_id(), "raft stopped");
    }

    async fn change(&self, change: ChangeMembers<NodeId, Peer>) -> RaftResult<()> {
        let changing = self.inner.core.change_membership(change, false);
        self.changed(timed(ADMIN, "change of membership", changing).await?)
    }

    fn changed<T>(
        &self,
        r: Result<T, openraft::errors::RaftError<C, ClientWriteError<C>>>,
    ) -> RaftResult<()> {
        match r {
            Ok(_) => Ok(()),
            Err(openraft::errors::RaftError::Fatal(e)) => Err(stopped(e)),
            Err(openraft::errors::RaftError::APIError(e)) => Err(match e {
                ClientWriteError::ForwardToLeader(f) => RaftError::NotLeader { leader: self.leader_of(f) },
                ClientWriteError::LogEntryDiscarded(_) => RaftError::TimedOut(e.to_string()),
                // The one before is not committed yet, for want of a quorum; nothing is wrong with this one.
                ClientWriteError::ChangeMembershipError(e @ ChangeMembershipError::InProgress(_)) => {
                    RaftError::NoQuorum(e.to_string())
                }
                ClientWriteError::ChangeMembershipError(e) => RaftError::Refused(e.to_string()),
                ClientWriteError::PreconditionFailed(e) => RaftError::Refused(e.to_string()),
            }),
        }
    }

    /// Waits until this node, if it leads, has committed an entry of its own term: before that openraft refuses
    /// changes of membership.
    pub(crate) async fn wait_leading(&self) -> RaftResult<()> {
        if self.status().state != ServerState::Leader {
            return Err(self.not_leader());
        }
        let limit = self.inner.config.election_max * 2;
        // The barrier says that it leads, and which entry has to be committed for that; not that it is.
        let at = self.read_barrier(limit).await?;
        let done = |s: &RaftStatus| s.committed_index >= Some(at) || s.state != ServerState::Leader;
        let now = self.wait_status(limit, "commit of the leader's first entry", done).await?;
        if now.state == ServerState::Leader { Ok(()) } else { Err(self.not_leader()) }
    }

    async fn wait_caught_up(&self, id: NodeId, limit: Duration) -> RaftResult<()> {
        if id == self.node_id() {
            return Ok(());
        }
        let near = |s: &RaftStatus| {
            let last = s.last_log_index.unwrap_or(0);
            s.replication.get(&id).is_some_and(|m| *m > 0 && last.saturating_sub(*m) <= CAUGHT_UP)
        };
        let waited = self.wait_status(limit, "", |s| near(s) || s.state != ServerState::Leader).await;
        let now = self.status();
        if now.state != ServerState::Leader {
            return Err(self.not_leader());
        }
        if waited.is_ok() || near(&now) {
            return Ok(());
        }
        let (matched, last) = (now.replication.get(&id).copied(), now.last_log_index.unwrap_or(0));
        Err(RaftError::NotCaughtUp { node: id, matched, last })
    }

    /// Waits for a status of which `met` is true. The watch only says when to look again: it may be older than what
    /// the caller has seen.
    async fn wait_status(
        &self,
        limit: Duration,
        what: &str,
        met: impl Fn(&RaftStatus) -> bool,
    ) -> RaftResult<RaftStatus> {
        let mut rx = self.inner.status.clone();
        let waiting = async {
            loop {
                rx.mark_unchanged();
                let now = self.status();
                if now.running.is_err() || met(&now) {
                    return now;
                }
                if rx.changed().await.is_err() {
                    return self.status();
                }
            }
        };
        let now = timed(limit, what, waiting).await?;
        match now.running {
            Ok(()) => Ok(now),
            Err(_) => Err(RaftError::Stopped(self.why_stopped().await)),
        }
    }

    pub(crate) fn not_leader(&self) -> RaftError {
        let s = self.status();
        let leader = s.leader.filter(|l| *l != s.node_id);
        RaftError::NotLeader { leader: leader.and_then(|l| Some((l, s.peers.get(&l)?.clone()))) }
    }

    pub(crate) fn leader_of(&self, f: ForwardToLeader<C>) -> Option<(NodeId, Peer)> {
        let id = f.leader_id.filter(|l| *l != self.node_id())?;
        let peer = f.leader_node.or_else(|| self.status().peers.get(&id).cloned())?;
        Some((id, peer))
    }

    pub(crate) async fn why_stopped(&self) -> String {
        if let Some(why) = self.inner.log.failed() {
            return format!("the log failed: {why}");
        }
        let metrics = self.inner.core.metrics().borrow_watched().running_state.clone();
        match metrics {
            Err(e) => e.to_string(),
            Ok(()) => match tokio::time::timeout(PING, self.inner.core.with_raft_state(|_| ())).await {
                Ok(Err(e)) => e.to_string(),
                _ => "the raft core dropped the request".into(),
            },
        }
    }
}

pub(crate) fn stopped(e: Fatal<C>) -> RaftError {
    RaftError::Stopped(e.to_string())
}

pub(crate) async fn timed<T>(limit: Duration, what: &str, f: impl Future<Output = T>) -> RaftResult<T> {
    tokio::time::timeout(limit, f).await.map_err(|_| RaftError::TimedOut(format!("{what}: {limit:?}")))
}

fn check_peer(peer: &Peer) -> RaftResult<()> {
    if peer.raft_addr.is_empty() || peer.raft_addr.len() > MAX_ADDRESS || peer.http_addr.len() > MAX_ADDRESS {
        return Err(RaftError::Refused(format!("an address is empty or longer than {MAX_ADDRESS} bytes")));
    }
    Ok(())
}
