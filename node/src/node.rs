//! A node: what it is made of, how it starts, and how it ends.
//!
//! ```text
//! DIR/lock          one process at a time
//! DIR/identity      which node of which cluster this directory belongs to
//! DIR/cluster.key   unless --cluster-key names another file
//! DIR/manifest      the state machine's durable position
//! DIR/raft/         Raft's log and vote
//! DIR/staging/      databases on their way in or out; emptied at the start
//! DIR/db/           databases, and the socket quire.sock
//! ```

use crate::access::{Access, AccessError};
use crate::checkpointer::{self, checkpoint};
use crate::command::DbId;
use crate::config::{Config, Limits};
use crate::consensus::Consensus;
use crate::db::context::{Context, first_token};
use crate::db::database::Database;
use crate::db::registry::Registry;
use crate::db::{DbError, sql};
use crate::forward;
use crate::full_disk;
use crate::gate::reads::Confirmations;
use crate::gate::server::SocketError;
use crate::identity::Identity;
use crate::leadership::Leadership;
use crate::machine::{Machine, MachineError};
use crate::members;
use crate::peers::{self, LeaderError, PeerHandler, PeerRequest};
use crate::repair;
use nix::fcntl::{Flock, FlockArg};
use quire_raft::{ClusterKey, KeyError, Peer, Raft, RaftConfig, RaftStatus, StartError};
use quire_vfs::format::PageSize;
use quire_vfs::shim::vfs::SOCKET;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{error, info, warn};

/// How long an open may wait for the cluster.
const OPEN_DEADLINE: Duration = Duration::from_secs(8);
/// How often databases are looked for that nobody uses.
const CLOSE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a node that is told to stop waits for checkpoints that are under way.
const CHECKPOINT_AT_STOP: Duration = Duration::from_secs(10);
/// How long a node that is told to stop may take to purge its log.
const PURGE_AT_STOP: Duration = Duration::from_secs(5);

/// A node can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process uses the data directory.
    #[error("{}: another node is running on this data directory", .0.display())]
    Locked(PathBuf),
    /// The data directory is another node's or another cluster's.
    #[error("{}: {reason}", path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// What differs, and what to do.
        reason: String,
    },
    /// Rights can't be set up.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The cluster key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// SQLite can't be used.
    #[error(transparent)]
    Sql(#[from] sql::SqlError),
    /// The databases can't be opened.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The database directory can't be used.
    #[error(transparent)]
    Database(#[from] DbError),
    /// Raft can't start.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// The gate's socket can't be set up.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The cluster can't be joined or started.
    #[error("can't become part of a cluster: {0}")]
    Cluster(String),
    /// Raft has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// A database can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It doesn't exist.
    #[error("there is no database {0}")]
    NotFound(String),
    /// It can't exist.
    #[error("{0}")]
    Invalid(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    peer: Peer,
    access: Access,
    cluster_id: [u8; 16],
    context: Arc<Context>,
    registry: Arc<Registry>,
    machine: Arc<Machine>,
    raft: OnceLock<Raft>,
    consensus: Arc<dyn Consensus>,
    sql: OnceLock<Arc<crate::sql::service::Service>>,
    confirmations: Confirmations,
    /// Everything that the log held at the start has been applied.
    ready: watch::Sender<bool>,
    started: SystemTime,
    started_at: Instant,
    /// Why the databases have no room ([`full_disk`]).
    no_room: Mutex<Option<String>>,
    life: u64,
    /// Places for requests to the leader that wait for a lease there.
    asking: Semaphore,
    _lock: Flock<File>,
}

impl Node {
    /// This node's id.
    pub fn id(&self) -> u64 {
        self.config.node_id
    }

    /// Where this node is reached.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Who may touch its files.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The cluster's id, in hexadecimal.
    pub fn cluster_id(&self) -> String {
        self.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Bounds on transactions.
    pub fn limits(&self) -> Limits {
        self.config.limits
    }

    /// The databases.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The state machine.
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Whether this node may grant leases now.
    pub fn leadership(&self) -> &Leadership {
        &self.context.leadership
    }

    /// Up to where a leader was confirmed to have committed.
    pub(crate) fn confirmations(&self) -> &Confirmations {
        &self.confirmations
    }

    /// When it was started, and for how long it has run.
    pub fn started(&self) -> (SystemTime, Duration) {
        (self.started, self.started_at.elapsed())
    }

    /// When this life of the node began: sessions with lower ids are of an earlier one.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Places for requests to the leader that wait for a lease there.
    pub(crate) fn asking(&self) -> &Semaphore {
        &self.asking
    }

    /// Whether what the log held at the start has been applied.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Raft. Set before anything else can reach the node.
    #[allow(clippy::expect_used, reason = "`start` sets it before it lets go of the node")]
    pub fn raft(&self) -> &Raft {
        self.raft.get().expect("raft has been started")
    }

    /// Raft, as far as leases and commits go.
    pub(crate) fn consensus(&self) -> &dyn Consensus {
        &*self.consensus
    }

    /// Starts a task of this node.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.context.spawn(task)
    }

    /// SQL for clients of the HTTP API, once it has started.
    pub fn sql(&self) -> Option<&Arc<crate::sql::service::Service>> {
        self.sql.get()
    }

    /// SQL has started.
    pub fn attach_sql(&self, service: Arc<crate::sql::service::Service>) {
        let _ = self.sql.set(service);
    }

    /// Raft's status.
    pub fn raft_status(&self) -> RaftStatus {
        self.consensus.status()
    }

    /// Why nothing more can be written, if the disk of the log or of the databases is full.
    pub fn disk_full(&self) -> Option<String> {
        self.consensus.disk_full().or_else(|| self.no_room())
    }

    /// Why the databases have no room, as of the last look at their disk.
    pub fn no_room(&self) -> Option<String> {
        self.no_room.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a look at the databases' disk has come to.
    pub fn set_no_room(&self, why: Option<String>) {
        *self.no_room.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Starts a node: locks and checks the directory, opens the databases, starts Raft. It isn't part of a
    /// cluster yet; see [`Node::enter_cluster`].
    pub async fn start(config: Config) -> Result<Arc<Node>, NodeError> {
        let dir = config.data_dir.clone();
        let descriptors = crate::limits::open_files();
        let access = Access::new(config.socket_group.as_deref())?;
        Access::make(&dir)?;
        Access::check(&dir, false)?;
        Access::close(&dir)?;
        let lock = lock(&dir.join("lock"))?;
        let key = cluster_key(&config)?;
        let cluster_id = key.cluster_id();
        identity(&dir.join("identity"), Identity { cluster: cluster_id, node: config.node_id })?;
        sql::register()?;

        let (checkpoints, asked) = mpsc::unbounded_channel();
        let (repairs, fenced) = mpsc::unbounded_channel();
        let context = Arc::new(Context {
            node_id: config.node_id,
            leadership: Leadership::new(config.election_timeout * 2),
            runtime: tokio::runtime::Handle::current(),
            checkpoints,
            repairs,
            checkpoint_bytes: config.checkpoint_bytes,
            queue_bytes: config.queue_bytes,
            backlog: Default::default(),
            unstaged: watch::Sender::default(),
            flushed: OnceLock::new(),
            lease_timeout: config.lease_timeout,
            node: OnceLock::new(),
            #[cfg(test)]
            sim: Default::default(),
        });
        let keep = config.keep.within(descriptors);
        if keep.most < config.keep.most {
            let most = keep.most;
            warn!(
                descriptors,
                "keeping {most} databases open: more descriptors (LimitNOFILE) would allow for more"
            );
        }
        let registry = Arc::new(Registry::new(&dir.join("db"), context.clone(), keep)?);
        // What a --socket-group of before could do in it, it may until the mode is set again.
        Access::check(registry.directory(), config.socket_group.is_some())?;
        access.share(&dir, registry.directory())?;
        let machine = {
            let (dir, registry, context) = (dir.clone(), registry.clone(), context.clone());
            let open = tokio::task::spawn_blocking(move || Machine::open(&dir, registry, context));
            Arc::new(open.await.map_err(|error| NodeError::Stopped(error.to_string()))??)
        };
        let peer = Peer { raft_addr: config.raft_adv_addr.clone(), http_addr: config.http_adv_addr.clone() };
        let mut raft_config =
            RaftConfig::new(config.node_id, dir.join("raft"), config.raft_addr, peer.clone(), key);
        raft_config.heartbeat = config.heartbeat;
        raft_config.election_min = config.election_timeout;
        raft_config.election_max = 2 * config.election_timeout;
        raft_config.segment_bytes = config.segment_bytes;
        raft_config.await_admission = true;
        let handler = Arc::new(PeerHandler::default());
        let raft = Raft::start(raft_config, machine.clone(), handler.clone()).await?;
        context.leadership.attach(raft.watch());
        let _ = context.flushed.set(raft.flushed());

        let node = Arc::new(Node {
            config,
            peer,
            access,
            cluster_id,
            context,
            registry,
            machine,
            consensus: Arc::new(raft.clone()),
            raft: OnceLock::from(raft),
            sql: OnceLock::new(),
            confirmations: Confirmations::default(),
            ready: watch::Sender::new(false),
            started: SystemTime::now(),
            started_at: Instant::now(),
            no_room: Mutex::default(),
            life: first_token(),
            asking: Semaphore::new(forward::MAX_ASKING),
            _lock: lock,
        });
        let _ = node.context.node.set(Arc::downgrade(&node));
        handler.attach(&node);
        node.machine.attach(&node);
        tokio::spawn(repair::repair(node.clone(), fenced));
        tokio::spawn(repair::scrub(node.clone()));
        // Those that were found changed or damaged when they were opened.
        for database in node.registry.open_ones().iter().filter(|database| database.fenced().is_some()) {
            warn!(database = database.name, "fenced: {}", database.fenced().unwrap_or_default());
            database.ask_repair();
        }
        tokio::spawn(checkpointer::run(node.clone(), asked));
        tokio::spawn(close_idle(node.clone()));
        tokio::spawn(follow_leadership(node.clone()));
        tokio::spawn(full_disk::watch(node.clone()));
        tokio::spawn(become_ready(node.clone()));
        Ok(node)
    }

    /// Makes the node part of a cluster, if it isn't: a new one, or the one it is told to join.
    pub async fn enter_cluster(self: &Arc<Self>) -> Result<(), NodeError> {
        if self.raft().is_initialized() {
            tokio::spawn(members::keep(self.clone()));
            return Ok(());
        }
        let config = &self.config;
        let voter = !config.non_voter;
        let entered = match config.bootstrap_expect {
            Some(expect) if expect > 1 => peers::bootstrap(self, &config.join, expect, voter).await,
            _ if !config.join.is_empty() => peers::join_cluster(self, &config.join, voter).await,
            _ if config.non_voter => Err("--non-voter needs --join: a cluster's first node votes".into()),
            _ => {
                info!("starting a cluster of one");
                let members = [(self.id(), self.peer.clone())].into();
                let started = self.raft().initialize(members).await.map_err(|error| error.to_string());
                match started {
                    Ok(()) => peers::admit(self).await,
                    Err(error) => Err(error),
                }
            }
        };
        entered.map_err(NodeError::Cluster)?;
        tokio::spawn(members::keep(self.clone()));
        Ok(())
    }

    /// How much of the log a restart would have to read.
    pub(crate) fn bytes_to_replay(&self) -> u64 {
        self.raft().bytes_after(self.machine.durable().map_or(0, |position| position.index))
    }

    /// Purges what no restart here needs any more and what lagging members are not left time for.
    pub(crate) async fn purge_log(&self) {
        let Some(durable) = self.machine.durable() else { return };
        let Some(upto) = self.raft().purge_point(durable.index, self.config.log_retain_bytes) else { return };
        match self.raft().purge(upto).await {
            Ok(()) => info!(upto, log_bytes = self.raft().log_bytes(), "log purged"),
            Err(error) => warn!(upto, "log not purged: {error}"),
        }
    }

    /// The gate's socket.
    pub fn socket_path(&self) -> PathBuf {
        self.registry.directory().join(SOCKET)
    }

    /// Waits until an entry has been handed to the databases' queues.
    pub async fn wait_taken(&self, index: u64) {
        let mut taken = self.machine.taken();
        let _ = taken.wait_for(|at| at.is_some_and(|at| at >= index)).await;
    }

    /// The last entry that has been handed to the databases' queues.
    pub fn taken(&self) -> u64 {
        self.machine.taken().borrow().unwrap_or_default()
    }

    /// A database for an app, created cluster-wide if it doesn't exist and `create` says so; ready to read.
    pub async fn open_database(
        self: &Arc<Self>,
        name: &str,
        create: bool,
        page_size: Option<PageSize>,
    ) -> Result<Arc<Database>, OpenError> {
        let late = |what: &str| OpenError::Unavailable(format!("{what} took too long; try again"));
        let deadline = tokio::time::Instant::now() + OPEN_DEADLINE;
        let ready = tokio::time::timeout_at(deadline, async {
            let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
        });
        ready.await.map_err(|_| late("reading the log again after the start"))?;
        let id = match self.registry.id_of(name) {
            Some(id) => id,
            None if !create => return Err(OpenError::NotFound(name.to_owned())),
            None => self.create_by(name, page_size.unwrap_or(PageSize::DEFAULT), deadline).await?,
        };
        let opened = tokio::time::timeout_at(deadline, self.registry.open(id)).await;
        let opened = opened.map_err(|_| late("opening its files"))?;
        let opened = opened.map_err(|why| OpenError::Unavailable(format!("{name}: {why}")))?;
        let database = opened.ok_or_else(|| OpenError::NotFound(name.to_owned()))?;
        has_pages(name, database.page_size, page_size)?;
        if let Some(why) = database.fenced() {
            return Err(OpenError::Unavailable(format!("{name} is fenced on this node: {why}")));
        }
        let from = database.consistent_from();
        let mut progress = database.progress();
        let consistent = tokio::time::timeout_at(deadline, progress.wait_for(|at| *at >= from)).await;
        consistent.map_err(|_| late("applying what the database lacks"))?.map_err(|_| late("applying"))?;
        Ok(database)
    }

    /// Creates a database on all nodes, or finds one that is just being created. On this node it is there then, closed.
    /// Returns its id and page size.
    pub async fn create_database(
        self: &Arc<Self>,
        name: &str,
        page_size: Option<PageSize>,
    ) -> Result<(DbId, PageSize), OpenError> {
        let deadline = tokio::time::Instant::now() + OPEN_DEADLINE;
        let id = self.create_by(name, page_size.unwrap_or(PageSize::DEFAULT), deadline).await?;
        let has = self.registry.page_size_of(id);
        let has = has.ok_or_else(|| OpenError::Unavailable(format!("{name} was dropped again")))?;
        has_pages(name, has, page_size)?;
        Ok((id, has))
    }

    async fn create_by(
        self: &Arc<Self>,
        name: &str,
        page_size: PageSize,
        deadline: tokio::time::Instant,
    ) -> Result<DbId, OpenError> {
        let request = PeerRequest::CreateDatabase { name: name.to_owned(), page_size: page_size.get() };
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let index = peers::ask_leader(self, request, left).await.map_err(|error| match error {
            LeaderError::Refused(why) => OpenError::Invalid(why),
            LeaderError::Unavailable(why) => OpenError::Unavailable(format!("can't create {name}: {why}")),
        })?;
        let applied = tokio::time::timeout_at(deadline, self.wait_taken(index)).await;
        applied.map_err(|_| OpenError::Unavailable(format!("creating {name} took too long; try again")))?;
        self.registry.id_of(name).ok_or_else(|| OpenError::Unavailable(format!("{name} was dropped again")))
    }

    /// Drops a database on all nodes; on this one it is gone when this returns.
    pub async fn drop_database(self: &Arc<Self>, id: DbId, patience: Duration) -> Result<(), LeaderError> {
        let deadline = tokio::time::Instant::now() + patience;
        let index = peers::ask_leader(self, PeerRequest::DropDatabase { id: id.0 }, patience).await?;
        let applied = tokio::time::timeout_at(deadline, self.wait_taken(index)).await;
        applied.map_err(|_| LeaderError::Unavailable("dropping it takes long; look again".into()))
    }

    /// Has all nodes record their checksums at one entry, and returns its index.
    pub async fn verify(
        self: &Arc<Self>,
        files: bool,
        scrub: bool,
        deadline: Duration,
    ) -> Result<u64, LeaderError> {
        peers::ask_leader(self, PeerRequest::Verify { files, scrub }, deadline).await
    }

    /// Ends the node: what is in the WALs goes into the files, so that the next start has little to read.
    pub async fn stop(self: &Arc<Self>) {
        info!("stopping");
        let _ = std::fs::remove_file(self.socket_path());
        let node = self.clone();
        let _ = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + CHECKPOINT_AT_STOP;
            for database in node.registry.open_ones() {
                // One that is under way would be cut short, and keep this one from being made.
                database.await_checkpoint(deadline);
                checkpoint(&database);
            }
            node.store_manifest();
        })
        .await;
        // What the next start needn't read.
        let _ = tokio::time::timeout(PURGE_AT_STOP, self.purge_log()).await;
        self.raft().shutdown().await;
    }

    /// Checkpoints all databases and purges the log as far as they have made it dispensable, but for the last
    /// `trailing` entries of that. False if there is nothing to purge.
    pub async fn snapshot(self: &Arc<Self>, trailing: u64) -> Result<bool, String> {
        let node = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let held_up: Vec<_> =
                node.registry.open_ones().into_iter().filter(|database| !checkpoint(database)).collect();
            node.store_manifest();
            held_up.first().map(|database| database.name.clone())
        });
        let held_up = work.await.map_err(|_| "the checkpoint failed; the node's log says why".to_owned())?;
        if let Some(name) = held_up {
            return Err(format!("{name} can't be checkpointed now: a reader is in the way; try again"));
        }
        let durable = self.machine.durable().map_or(0, |position| position.index);
        let upto = durable.saturating_sub(trailing);
        if upto <= self.raft_status().purged_index.unwrap_or(0) {
            return Ok(false);
        }
        self.raft().purge(upto).await.map_err(|why| why.to_string())?;
        Ok(true)
    }

    /// Moves the manifest forward to what all databases have in their files.
    pub(crate) fn store_manifest(&self) {
        if let Err(error) = self.machine.store_manifest() {
            error!("can't write the manifest: {error}");
        }
    }
}

/// An error if the pages of a database have another size than was asked for. Where several create one of the same name
/// at once, the first in the log has said which.
fn has_pages(name: &str, has: PageSize, wanted: Option<PageSize>) -> Result<(), OpenError> {
    match wanted.filter(|wanted| *wanted != has) {
        Some(wanted) => Err(OpenError::Invalid(format!("{name} has pages of {has} bytes, not of {wanted}"))),
        None => Ok(()),
    }
}

/// Closes databases that nobody uses.
async fn close_idle(node: Arc<Node>) {
    let mut tick = tokio::time::interval(CLOSE_INTERVAL.min(node.config.keep.idle));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let registry = node.registry.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || registry.close_idle()).await {
            error!("closing databases failed: {error}");
        }
    }
}

/// Lets writers go on, or sends them away, as leadership changes.
async fn follow_leadership(node: Arc<Node>) {
    let mut status = node.consensus().watch();
    let mut last = None;
    while status.changed().await.is_ok() {
        let (state, term, leader) = {
            let status = status.borrow_and_update();
            (status.state, status.term, status.leader)
        };
        if last != Some((state, term, leader)) {
            last = Some((state, term, leader));
            info!(state = state.as_str(), term, leader, "raft");
            node.registry.open_ones().iter().for_each(|database| database.expire());
        }
    }
}

/// Waits until everything that the log held as committed at the start is applied.
async fn become_ready(node: Arc<Node>) {
    let status = node.raft_status();
    if let Some(index) = status.committed_index {
        node.wait_taken(index).await;
    }
    for database in node.registry.open_ones() {
        // A database whose gate a paused app holds must not keep the others.
        let _ = tokio::time::timeout(OPEN_DEADLINE, database.settled()).await;
    }
    node.ready.send_replace(true);
    info!(databases = node.registry.ids().len(), committed = status.committed_index, "ready");
}

pub(crate) fn lock(path: &Path) -> Result<Flock<File>, NodeError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(|error| NodeError::Io { path: path.to_owned(), error })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| NodeError::Locked(path.to_owned()))
}

/// The key: from the file named, or from the directory; made anew only where a new cluster of one starts.
fn cluster_key(config: &Config) -> Result<ClusterKey, NodeError> {
    if let Some(path) = &config.cluster_key {
        return Ok(ClusterKey::load(path)?);
    }
    let path = config.data_dir.join("cluster.key");
    if path.exists() {
        return Ok(ClusterKey::load(&path)?);
    }
    if !config.join.is_empty() {
        return Err(NodeError::Cluster(format!(
            "a node that joins needs the cluster's key: copy cluster.key from a node of it to {}, or name it \
             with --cluster-key",
            path.display()
        )));
    }
    if config.data_dir.join("identity").exists() {
        let reason = "the cluster key is gone; restore it from another node of the cluster".into();
        return Err(NodeError::Identity { path, reason });
    }
    Ok(ClusterKey::generate(&path)?)
}

/// Checks that the directory belongs to this node of this cluster; a new directory is taken into possession.
fn identity(path: &Path, expected: Identity) -> Result<(), NodeError> {
    let io = |error| NodeError::Io { path: path.to_owned(), error };
    let bad = |reason: String| NodeError::Identity { path: path.to_owned(), reason };
    let found = match std::fs::read_to_string(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return crate::manifest::replace_file(path, expected.encode().as_bytes()).map_err(io);
        }
        Err(error) => return Err(io(error)),
    };
    let found = Identity::decode(&found).map_err(bad)?;
    if found.cluster != expected.cluster {
        return Err(bad("this data directory belongs to another cluster (or the cluster key is another); \
                        use that cluster's key, or an empty directory"
            .into()));
    }
    if found.node != expected.node {
        let (ours, theirs) = (expected.node, found.node);
        return Err(bad(format!(
            "this data directory belongs to node {theirs}, not to node {ours}: start it with --node-id {theirs}, or use an \
             empty directory"
        )));
    }
    Ok(())
}

#[cfg(test)]
impl Node {
    /// A node over a simulated Raft: what [`Node::start`] makes, without the parts that reach outside.
    pub(crate) fn simulated(
        config: Config,
        context: Arc<Context>,
        registry: Arc<Registry>,
        machine: Arc<Machine>,
        consensus: Arc<dyn Consensus>,
    ) -> Result<Arc<Node>, NodeError> {
        let lock = lock(&config.data_dir.join("lock"))?;
        let peer = Peer { raft_addr: config.raft_adv_addr.clone(), http_addr: config.http_adv_addr.clone() };
        let node = Arc::new(Node {
            access: Access::new(None)?,
            config,
            peer,
            cluster_id: [0; 16],
            context,
            registry,
            machine,
            raft: OnceLock::new(),
            consensus,
            sql: OnceLock::new(),
            confirmations: Confirmations::default(),
            ready: watch::Sender::new(false),
            started: SystemTime::now(),
            started_at: Instant::now(),
            no_room: Mutex::default(),
            life: first_token(),
            asking: Semaphore::new(forward::MAX_ASKING),
            _lock: lock,
        });
        let _ = node.context.node.set(Arc::downgrade(&node));
        node.machine.attach(&node);
        node.spawn(follow_leadership(node.clone()));
        node.spawn(become_ready(node.clone()));
        Ok(node)
    }

    /// As the checkpointer does it, without purging the log. On a thread that may block.
    pub(crate) fn checkpoint_all(&self) {
        for database in self.registry.open_ones() {
            checkpoint(&database);
        }
        self.store_manifest();
    }
}
