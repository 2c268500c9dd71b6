//! The world: nodes and what connects them. Real nodes, as far as leases, commits and databases go, over a simulated
//! Raft, network and clock; their files are in memory (`/dev/shm`).

use super::Hooks;
use super::logs;
use super::net::Seat;
use super::raft::{Entry, Replica, Role};
use super::rng::Rng;
use crate::args::NodeArgs;
use crate::clock;
use crate::config::Config;
use crate::db::context::Context;
use crate::db::registry::{Keep, Registry};
use crate::gate::session;
use crate::leadership::Leadership;
use crate::machine::Machine;
use crate::node::Node;
use quire_raft::simulation::{Disk, Log, membership};
use quire_raft::{LogPosition, Payload, ProposeError, RaftStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) const COMMIT_DEADLINE: Duration = Duration::from_secs(4);
/// All but one may be closed when it is not in use.
const KEEP: Keep = Keep { most: 4, idle: Duration::ZERO };
const LEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What can go wrong in a run, in thousandths of chances.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) drop: u64,
    pub(crate) twice: u64,
    pub(crate) slow: u64,
    pub(crate) slow_sync: u64,
    /// Of an app at each step of a commit: that it dies, or pauses.
    pub(crate) dies: u64,
    pub(crate) pauses: u64,
}

/// A node that runs.
pub(crate) struct Live {
    pub(crate) node: Arc<Node>,
    pub(super) machine: Arc<Machine>,
    pub(super) context: Arc<Context>,
    pub(super) status: watch::Sender<RaftStatus>,
    pub(super) flushed: watch::Sender<u64>,
    sessions: AtomicU64,
    pub(super) life: u64,
}

pub(super) struct Member {
    pub(super) replica: Replica,
    /// Its log while it runs, and what is left of that while it doesn't.
    pub(super) log: Option<Log>,
    pub(super) disk: Disk,
    pub(super) live: Option<Arc<Live>>,
    lives: u64,
    pub(super) applying: bool,
    pub(super) reporting: bool,
    pub(super) syncing: bool,
    /// What is left of its last life is ending.
    is_ending: bool,
    /// So many entries are durable in its databases.
    pub(super) durable: u64,
    /// Proposals of this node whose entry is in its log: term, and who waits.
    pub(super) pending: BTreeMap<u64, (u64, oneshot::Sender<Result<LogPosition, ProposeError>>)>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) members: BTreeMap<u64, Member>,
    /// Pairs (from, to) between which nothing gets through.
    pub(super) cut: BTreeSet<(u64, u64)>,
    /// What was applied first at each index, with a hash of what it says.
    pub(super) committed: Vec<(LogPosition, u64)>,
    pub(super) commands: Vec<Payload>,
    attached: BTreeMap<PathBuf, usize>,
}

pub(crate) struct World {
    this: Weak<World>,
    pub(crate) weather: Mutex<Weather>,
    rng: Mutex<Rng>,
    dir: PathBuf,
    start: Instant,
    verbose: bool,
    fingerprint: Mutex<u64>,
    failure: Mutex<Option<String>>,
    failed: watch::Sender<bool>,
    /// Changes with each machine that loses power: which one it was.
    power: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

/// Writes a line of the trace.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => { $world.note(format_args!($($arg)*)) };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(dir: &Path, nodes: u64, rng: Rng, verbose: bool) -> Arc<World> {
        let now = clock::now();
        let members: Vec<_> = (1..=nodes).collect();
        let world = Arc::new_cyclic(|this| World {
            this: this.clone(),
            weather: Mutex::default(),
            rng: Mutex::new(rng),
            dir: dir.to_owned(),
            start: now,
            verbose,
            fingerprint: Mutex::default(),
            failure: Mutex::default(),
            failed: watch::Sender::new(false),
            power: watch::Sender::new(0),
            inner: Mutex::default(),
        });
        for id in &members {
            let position = LogPosition::default();
            let payload = Payload::Membership(membership(position, &members));
            let first = Entry { position, payload };
            let disk = logs::with(*id, &first);
            let replica = Replica::new(*id, members.clone(), first, now);
            let member = Member {
                replica,
                log: None,
                disk,
                live: None,
                lives: 0,
                applying: false,
                reporting: false,
                syncing: false,
                is_ending: false,
                durable: 0,
                pending: BTreeMap::new(),
            };
            world.inner().members.insert(*id, member);
        }
        world
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn this(&self) -> Arc<World> {
        self.this.upgrade().expect("the world goes on")
    }

    pub(crate) fn rng<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    pub(crate) fn weather(&self) -> Weather {
        *self.weather.lock().unwrap()
    }

    /// A line of the trace.
    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = clock::since(self.start);
        let line = format!("{:>10.6} {what}", at.as_secs_f64());
        let mut fingerprint = self.fingerprint.lock().unwrap();
        let mut hasher = DefaultHasher::new();
        (*fingerprint, &line).hash(&mut hasher);
        *fingerprint = hasher.finish();
        if self.verbose {
            println!("{line}");
        }
    }

    /// The trace's hash: of two runs of a seed it is the same.
    pub(crate) fn fingerprint(&self) -> u64 {
        *self.fingerprint.lock().unwrap()
    }

    /// What must not happen has happened.
    pub(crate) fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        note!(self, "VIOLATION: {what}");
        self.failure.lock().unwrap().get_or_insert(what);
        self.failed.send_replace(true);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }

    pub(crate) async fn until_failed(&self) {
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    pub(crate) fn nodes(&self) -> Vec<u64> {
        self.inner().members.keys().copied().collect()
    }

    pub(crate) fn live(&self, id: u64) -> Option<Arc<Live>> {
        self.inner().members.get(&id).and_then(|member| member.live.clone())
    }

    /// Whether a node may be started.
    pub(crate) fn is_down(&self, id: u64) -> bool {
        self.inner().members.get(&id).is_some_and(|member| member.live.is_none() && !member.is_ending)
    }

    pub(crate) fn live_nodes(&self) -> Vec<u64> {
        let inner = self.inner();
        inner.members.iter().filter(|(_, member)| member.live.is_some()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let inner = self.inner();
        let leaders =
            inner.members.iter().filter(|(_, m)| m.live.is_some() && m.replica.role == Role::Leader);
        leaders.max_by_key(|(_, member)| member.replica.term).map(|(id, _)| *id)
    }

    /// Everything that was committed, in order, as far as a node has applied it.
    pub(crate) fn committed(&self) -> Vec<(LogPosition, Payload)> {
        let inner = self.inner();
        inner.committed.iter().map(|(at, _)| *at).zip(inner.commands.iter().cloned()).collect()
    }

    pub(crate) fn database_path(&self, id: u64, name: &str) -> PathBuf {
        crate::db::database::database_path(&self.node_dir(id).join("db"), name)
    }

    fn node_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("n{id}"))
    }

    /// An app has a database open, or no longer.
    pub(crate) fn attach(&self, path: &Path, is_open: bool) {
        let mut inner = self.inner();
        let count = inner.attached.entry(path.to_owned()).or_default();
        *count = if is_open { *count + 1 } else { *count - 1 };
    }

    pub(crate) fn is_attached(&self, path: &Path) -> bool {
        self.inner().attached.get(path).is_some_and(|count| *count > 0)
    }
}

// Nodes: their lives.
impl World {
    pub(crate) fn start(&self, id: u64) {
        let dir = self.node_dir(id);
        std::fs::create_dir_all(&dir).unwrap();
        // Clocks of machines differ, and may be set while a node is down.
        super::set_wall_clock(
            self.rng(|rng| rng.millis(3_000_000, 3_020_000)).as_micros() as u64,
            self.start,
        );
        let live = match self.open(id, &dir) {
            Ok(live) => Arc::new(live),
            Err(why) => return self.fail(format!("node {id} does not start: {why}")),
        };
        let mut inner = self.inner();
        if let Some(member) = inner.members.get_mut(&id) {
            member.live = Some(live);
            (member.applying, member.reporting, member.syncing) = (false, false, false);
        }
        drop(inner);
        note!(self, "node {id} started");
        self.changed(id);
    }

    fn open(&self, id: u64, dir: &Path) -> Result<Live, String> {
        let args = NodeArgs { data_dir: Some(dir.to_owned()), node_id: Some(id), ..NodeArgs::default() };
        let mut config = Config::new(args).map_err(|error| error.to_string())?;
        config.lease_timeout = LEASE_TIMEOUT;
        config.limits.commit_deadline = COMMIT_DEADLINE;
        config.checkpoint_bytes = 64 << 10;
        let (checkpoints, asked) = mpsc::unbounded_channel();
        let (repairs, _fenced) = mpsc::unbounded_channel();
        let context = Arc::new(Context {
            node_id: id,
            leadership: Leadership::new(super::raft::ELECTION * 2),
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
            sim: Hooks::of(self.this()),
        });
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let registry = Arc::new(Registry::new(&dir.join("db"), context.clone(), KEEP).map_err(|e| text(&e))?);
        let machine = Machine::open(dir, registry.clone(), context.clone()).map_err(|e| text(&e))?;
        let machine = Arc::new(machine);
        let durable = machine.durable().map_or(0, |at| at.index + 1);
        let (status, lives) = {
            let mut inner = self.inner();
            let member = inner.members.get_mut(&id).expect("a member");
            self.recover(id, member)?;
            let kept = member.replica.len();
            if durable > kept {
                return Err(format!("its state is that of {durable} entries, its log has {kept}"));
            }
            self.rng(|rng| member.replica.restart(durable, clock::now(), rng));
            member.lives += 1;
            (watch::Sender::new(member.replica.status()), member.lives)
        };
        let flushed = watch::Sender::new(0);
        context.leadership.attach(status.subscribe());
        let _ = context.flushed.set(flushed.subscribe());
        let consensus = Arc::new(Seat { world: self.this(), id, life: lives, watch: status.subscribe() });
        let node = Node::simulated(config, context.clone(), registry, machine.clone(), consensus);
        let node = node.map_err(|error| error.to_string())?;
        for database in node.registry().open_ones() {
            if let Some(why) = database.fenced() {
                return Err(format!("{} is fenced: {why}", database.name));
            }
        }
        let this = self.this();
        context.spawn(async move { this.checkpoints(id, asked).await });
        Ok(Live {
            sessions: AtomicU64::new(node.life()),
            node,
            machine,
            context,
            status,
            flushed,
            life: lives,
        })
    }

    async fn checkpoints(&self, id: u64, mut asked: mpsc::UnboundedReceiver<crate::command::DbId>) {
        while asked.recv().await.is_some() {
            self.checkpoint(id);
        }
    }

    /// Has a node checkpoint all that it has.
    pub(crate) fn checkpoint(&self, id: u64) {
        if let Some(live) = self.live(id) {
            note!(self, "node {id} checkpoints");
            let node = live.node.clone();
            live.context.run_blocking(move || node.checkpoint_all());
        }
    }

    /// Has a node close what it does not need open.
    pub(crate) fn close_idle(&self, id: u64) {
        if let Some(live) = self.live(id) {
            note!(self, "node {id} closes what is idle");
            let registry = live.node.registry().clone();
            live.context.run_blocking(move || registry.close_idle());
        }
    }

    /// Ends a node without a word. After a power cut, nothing is left of what the system had not written.
    pub(crate) async fn crash(&self, id: u64, power: bool) {
        let Some(live) = self.live(id) else { return };
        note!(self, "node {id} {}", if power { "loses power" } else { "is killed" });
        {
            let mut inner = self.inner();
            let Some(member) = inner.members.get_mut(&id) else { return };
            (member.live, member.is_ending) = (None, true);
            member.pending.clear();
            member.replica.crash();
            self.leave(member, power);
        }
        let gone = Arc::downgrade(&live.node);
        live.context.sim.abort();
        drop(live);
        for _ in 0..10_000 {
            if gone.strong_count() == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        if gone.strong_count() > 0 {
            self.fail(format!("node {id} lives on in {} places", gone.strong_count()));
        }
        if power {
            self.power.send_replace(id);
            // Its apps end as well.
            tokio::task::yield_now().await;
            self.lose_caches(id);
        }
        if let Some(member) = self.inner().members.get_mut(&id) {
            member.is_ending = false;
        }
    }

    /// Resolves when a machine loses power.
    pub(crate) async fn power_cut(&self, id: u64) {
        let mut power = self.power.subscribe();
        while power.changed().await.is_ok() && *power.borrow_and_update() != id {}
    }

    /// What a power cut makes of files that nobody syncs: WALs and their indexes.
    fn lose_caches(&self, id: u64) {
        let Ok(entries) = std::fs::read_dir(self.node_dir(id).join("db")) else { return };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let name = path.to_string_lossy().into_owned();
            if name.ends_with("-shm") {
                let _ = std::fs::remove_file(&path);
            } else if name.ends_with("-wal") {
                let len = std::fs::metadata(&path).map_or(0, |m| m.len());
                let left = self.rng(|rng| rng.below(len + 1));
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(left).unwrap();
            }
        }
    }

    /// A connection of an app to its node.
    pub(crate) fn connect(&self, id: u64) -> Option<DuplexStream> {
        let live = self.live(id)?;
        let (ours, theirs) = duplex(1 << 20);
        let session = live.sessions.fetch_add(1, Ordering::Relaxed);
        let node = live.node.clone();
        live.context.spawn(async move { session::run(tokio::io::split(theirs), session, node).await });
        Some(ours)
    }
}
