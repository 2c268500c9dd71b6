//! A deterministic simulation of the core: whole nodes, as far as leases, commits and databases go, in one thread, over
//! a simulated Raft, network and clock. A seed decides everything that happens, and repeats it. See `docs/simulation.md`.
//!
//! | module | what it is |
//! |---|---|
//! | [`world`] | the nodes: how they start and how they crash |
//! | [`net`] | what connects them |
//! | [`raft`] | a small Raft, as adverse as Raft may be |
//! | [`app`] | what SQLite and the VFS do for an app, with accidents |
//! | [`nemesis`] | accidents of nodes and of the network |
//! | [`judge`] | what must be true of a run |
//! | [`logs`] | the log store of each node, on a disk in memory |
//! | [`random`] | random numbers of the system |
//! | [`threads`] | threads that block, one at a time |

mod app;
mod judge;
mod logs;
mod nemesis;
mod net;
mod raft;
mod random;
mod rng;
mod tests;
pub(crate) mod threads;
mod world;

use crate::clock;
use app::App;
use judge::{Judge, Sum};
use nemesis::Nemesis;
use rng::Rng;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use world::{Weather, World};

pub(crate) use world::note;

/// The database that is never dropped.
const MAIN: &str = "main";
/// The one that comes and goes.
const OTHER: &str = "other";

/// What a context of a simulated node has besides.
#[derive(Debug, Default)]
pub(crate) struct Hooks(OnceLock<Simulated>);

#[derive(Debug)]
struct Simulated {
    world: Arc<World>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Hooks {
    fn of(world: Arc<World>) -> Hooks {
        Hooks(OnceLock::from(Simulated { world, tasks: Mutex::default() }))
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.0.get().is_some()
    }

    /// A task of the node was started.
    pub(crate) fn started(&self, task: AbortHandle) {
        let Some(simulated) = self.0.get() else { return };
        let mut tasks = simulated.tasks.lock().unwrap();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    /// Runs what may block.
    pub(crate) fn run(&self, work: Box<dyn FnOnce() + Send>) {
        let Some(simulated) = self.0.get() else { return };
        let delay = simulated.world.rng(|rng| rng.micros(1, 300));
        self.started(
            tokio::runtime::Handle::current()
                .spawn(async move {
                    tokio::time::sleep(delay).await;
                    threads::drive(work).await;
                })
                .abort_handle(),
        );
    }

    /// Ends all tasks of the node where they wait.
    fn abort(&self) {
        let Some(simulated) = self.0.get() else { return };
        simulated.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    /// Whether an app has the database open.
    pub(crate) fn is_attached(&self, path: &Path) -> bool {
        self.0.get().is_some_and(|simulated| simulated.world.is_attached(path))
    }
}

/// A rule of the product that a test takes away, to see that this is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Only the holder of the lease may send a transaction, and only on the last entry.
    Lease,
    /// An entry changes a database only if its base is the last entry.
    Base,
    /// An entry counts only in the term of its lease.
    Term,
    /// What was said not to be in the log is not let through later.
    Bar,
    /// Once a WAL is dropped, the records of what was published in it are void.
    Void,
    /// Who touches the WAL holds the gate lock.
    GateLock,
    /// What the disk says that it has, it has.
    Sync,
}

impl Rule {
    const ALL: [Rule; 7] =
        [Rule::Lease, Rule::Base, Rule::Term, Rule::Bar, Rule::Void, Rule::GateLock, Rule::Sync];

    /// Those that are named.
    fn named(names: &str) -> Vec<Rule> {
        Rule::ALL
            .into_iter()
            .filter(|rule| names.split(',').any(|name| name == format!("{rule:?}")))
            .collect()
    }
}

thread_local! {
    static BROKEN: RefCell<Vec<Rule>> = const { RefCell::new(Vec::new()) };
    static WALL: Cell<Option<(u64, Instant)>> = const { Cell::new(None) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Whether a rule is taken away in this thread's simulation.
pub(crate) fn is_broken(rule: Rule) -> bool {
    BROKEN.with_borrow(|broken| broken.contains(&rule))
}

fn set_wall_clock(micros: u64, start: Instant) {
    WALL.set(Some((micros, start)));
}

/// Microseconds on the wall clock of the node that was started last.
pub(crate) fn wall_clock() -> Option<u64> {
    let (micros, start) = WALL.get()?;
    Some(micros + clock::since(start).as_micros() as u64)
}

/// What a run is to be like, beyond its seed.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) broken: Vec<Rule>,
    pub(crate) verbose: bool,
    /// No more accidents than this.
    pub(crate) steps: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { broken: Vec::new(), verbose: false, steps: u64::MAX }
    }
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) failure: Option<String>,
    pub(crate) fingerprint: u64,
    pub(crate) sum: Sum,
    /// Accidents that happened.
    pub(crate) steps: u64,
    pub(crate) virtual_time: Duration,
}

/// Runs a seed.
pub(crate) fn run(seed: u64, options: &Options) -> Report {
    crate::db::sql::register().expect("the VFS");
    BROKEN.set(options.broken.clone());
    let dir = tempfile::Builder::new()
        .prefix(&format!("quire-sim-{}-", std::process::id()))
        .tempdir_in("/dev/shm")
        .expect("a directory in memory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()))));
    let mut report = runtime.block_on(simulate(seed, options, dir.path()));
    runtime.shutdown_timeout(Duration::ZERO);
    std::panic::set_hook(hook);
    if let Some(panic) = PANICS.take().into_iter().next() {
        report.failure.get_or_insert(panic);
    }
    BROKEN.take();
    WALL.set(None);
    report
}

async fn simulate(seed: u64, options: &Options, dir: &Path) -> Report {
    let start = clock::now();
    let mut rng = Rng::new(seed);
    let nodes = if rng.chance(850) { 3 } else { 5 };
    let calm = rng.chance(100);
    let mut some = |most: u64| if calm || rng.chance(300) { 0 } else { rng.below(most) };
    let mut weather = Weather {
        drop: some(60),
        twice: some(60),
        slow: some(60),
        slow_sync: some(100),
        dies: some(25),
        pauses: some(25),
    };
    // In some runs, and to find what a missing rule does, everything happens all the time.
    let is_storm = !options.broken.is_empty() || seed.is_multiple_of(4);
    if is_storm {
        weather = Weather { drop: 60, twice: 60, slow: 150, slow_sync: 150, dies: 15, pauses: 50 };
    }
    let nemesis = Nemesis::new(&mut rng, options.steps, is_storm);
    let world = World::new(dir, nodes, rng, options.verbose);
    note!(world, "seed {seed}: {nodes} nodes, {weather:?}");
    let judge = Arc::new(Judge::default());
    let mut sum = Sum::default();
    let mut steps = 0;
    {
        let run = async {
            play(&world, &judge, nemesis, weather, &mut steps).await;
            if world.failure().is_none() {
                sum = judge.judge(&world);
            }
        };
        tokio::pin!(run);
        tokio::select! {
            biased;
            () = &mut run => {}
            () = world.until_failed() => {}
        }
    }
    judge.finish();
    let virtual_time = clock::since(start);
    let (failure, fingerprint) = (world.failure(), world.fingerprint());
    for id in world.nodes() {
        world.crash(id, false).await;
    }
    if failure.is_none() {
        world.look_at_logs();
    }
    Report { failure: failure.or(world.failure()), fingerprint, sum, steps, virtual_time }
}

/// A run: a cluster comes up, has apps and accidents, and must come to rest.
async fn play(world: &Arc<World>, judge: &Arc<Judge>, nemesis: Nemesis, weather: Weather, steps: &mut u64) {
    const HEALS: Duration = Duration::from_secs(60);
    let ids = world.nodes();
    ids.iter().for_each(|id| world.start(*id));
    tokio::spawn(world.clone().tick());
    until(world, HEALS, "there is no leader", || world.leader().is_some()).await;
    for name in [MAIN, OTHER] {
        nemesis::create(world, name);
    }
    let mut apps = Vec::new();
    for node in &ids {
        for (slot, name) in [MAIN, MAIN, OTHER].into_iter().enumerate() {
            if ids.len() == 3 || slot > 0 {
                apps.push(App {
                    world: world.clone(),
                    judge: judge.clone(),
                    node: *node,
                    slot: slot as u64,
                    name,
                });
            }
        }
    }
    let names: Vec<_> = apps.iter().map(|app| (app.node, app.slot, app.name)).collect();
    tokio::spawn(app::ask(world.clone(), judge.clone()));
    for node in &ids {
        tokio::spawn(app::read(world.clone(), judge.clone(), *node));
    }
    let running: Vec<_> = apps.into_iter().map(|app| tokio::spawn(app.run())).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    *world.weather.lock().unwrap() = weather;
    *steps = nemesis.rage(world).await;

    note!(world, "all is well again");
    *world.weather.lock().unwrap() = Weather::default();
    world.cut([]);
    for id in &ids {
        if world.is_down(*id) {
            world.start(*id);
        }
    }
    // Everybody can write again, and nobody has to be told of it.
    let before: Vec<_> = names.iter().map(|app| judge.commits(*app)).collect();
    let moved = |n: usize| names[n].2 != MAIN || judge.commits(names[n]) > before[n];
    until(world, HEALS, "an app can't write", || (0..names.len()).all(moved)).await;
    judge.finish();
    for app in running {
        if tokio::time::timeout(HEALS, app).await.is_err() {
            world.fail("an app does not end");
        }
    }
    nemesis::open_all(world).await;
    until(world, HEALS, "nodes do not come to the same state", || nemesis::is_at_rest(world)).await;
}

/// Waits for something that must come.
async fn until(world: &Arc<World>, patience: Duration, what: &str, holds: impl Fn() -> bool) {
    let deadline = clock::now() + patience;
    while !holds() && world.failure().is_none() {
        if clock::now() >= deadline {
            nemesis::describe(world);
            return world.fail(format!("{what}, {patience:?} after all is well"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
