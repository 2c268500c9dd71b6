//! A run: a cluster, its clients, faults for so long, and then the proof.

use super::check::{self, Last};
use super::clients::{self, Place, Process, Via};
use super::history::History;
use super::nemesis::Nemesis;
use super::nodes::{Nodes, PATIENCE};
use super::plan::Plan;
use super::work::{BANK, DATABASES, MAIN, schema};
use crate::crash::stock;
use anyhow::{Context as _, ensure};
use quire_node::cli::verify::verify;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("app.py");
/// HTTP clients.
const HTTP_CLIENTS: usize = 3;
/// Violations beyond that are not kept.
const MOST: usize = 50;

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Faults and operations come from it.
    pub seed: u64,
    /// How long there are faults.
    pub lasts: Duration,
    /// Nodes that vote.
    pub nodes: u64,
}

/// What clients and nemesis share.
#[derive(Debug)]
pub struct Shared {
    /// The seed.
    pub seed: u64,
    /// Where the run keeps its files.
    pub dir: PathBuf,
    /// The app's script.
    pub script: PathBuf,
    /// What was done.
    pub history: History,
    places: Mutex<Vec<Option<Place>>>,
    violations: Mutex<Vec<String>>,
    phase: AtomicU64,
    failed: Mutex<BTreeMap<u64, u64>>,
    ends: AtomicBool,
}

impl Shared {
    fn new(config: &Config, dir: &Path, places: Vec<Option<Place>>) -> Shared {
        Shared {
            seed: config.seed,
            dir: dir.to_owned(),
            script: dir.join("app.py"),
            history: History::default(),
            places: Mutex::new(places),
            violations: Mutex::default(),
            phase: AtomicU64::new(0),
            failed: Mutex::default(),
            ends: AtomicBool::new(false),
        }
    }

    /// Whether clients are to end.
    pub fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// How often lists and cells have been given up for new ones.
    pub fn phase(&self) -> u64 {
        self.phase.load(Ordering::Relaxed)
    }

    /// How many nodes have clients.
    pub fn slots(&self) -> usize {
        self.places.lock().unwrap().len()
    }

    /// The node in a slot, unless it is being replaced.
    pub fn place(&self, slot: usize) -> Option<Place> {
        self.places.lock().unwrap().get(slot).cloned().flatten()
    }

    /// Puts a node into a slot.
    pub fn set_place(&self, slot: usize, place: Option<Place>) {
        self.places.lock().unwrap()[slot] = place;
    }

    /// Which slot a node is in.
    pub fn slot_of(&self, id: u64) -> Option<usize> {
        let places = self.places.lock().unwrap();
        places.iter().position(|place| place.as_ref().is_some_and(|place| place.id == id))
    }

    /// Something is not as it must be.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < MOST {
            println!("VIOLATION (seed {}, at {:.1?}): {what}", self.seed, self.history.now());
            violations.push(what);
        }
    }

    /// How many operations of a node's disk have failed so far.
    pub fn failed_operations(&self, id: u64, count: u64) {
        self.failed.lock().unwrap().insert(id, count);
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The run.
    pub config: Config,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Faults that could not be brought about, by kind, and why the last one.
    pub skipped: BTreeMap<&'static str, (u64, String)>,
    /// Operations of disks that failed.
    pub failed_operations: u64,
    /// Operations by name and outcome.
    pub operations: BTreeMap<(&'static str, &'static str), u64>,
    /// Operations by how they were done.
    pub ways: BTreeMap<String, u64>,
    /// The slowest operation, and how long it took.
    pub slowest: Option<(Duration, String)>,
    /// How long all took.
    pub wall: Duration,
    /// What is wrong.
    pub violations: Vec<String>,
    /// Where the files are, if something is wrong.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// How many faults there were.
    pub fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { seed, nodes, .. } = &self.config;
        let all: u64 = self.operations.values().sum();
        writeln!(
            f,
            "seed {seed}, {nodes} nodes: {} faults, {all} operations, {:.0} s",
            self.fault_count(),
            self.wall.as_secs_f64()
        )?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:5}  {kind}")?;
        }
        for (kind, (count, why)) in &self.skipped {
            writeln!(f, "  not brought about: {count} x {kind}, the last as {why}")?;
        }
        writeln!(f, "  operations of disks that failed: {}", self.failed_operations)?;
        for ((name, outcome), count) in &self.operations {
            writeln!(f, "  {count:6}  {name}: {outcome}")?;
        }
        writeln!(f, "  {:?}", self.ways)?;
        if let Some((time, record)) = &self.slowest {
            writeln!(f, "  the slowest operation took {:.1} s: {record}", time.as_secs_f64())?;
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATION: {violation}")?;
        }
        match &self.kept {
            Some(dir) => writeln!(f, "  FAILED; replay with seed {seed}; files: {}", dir.display()),
            None => writeln!(f, "  nothing lost, nothing different, nothing stuck"),
        }
    }
}

/// Runs on a thread of its own, since it enters a network namespace.
pub fn run(config: &Config) -> anyhow::Result<Report> {
    println!("chaos: seed {}, {} nodes, {:?}", config.seed, config.nodes, config.lasts);
    crate::programs();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_here(config));
        thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("seed {}: the run panicked", config.seed)))
    })
}

fn run_here(config: &Config) -> anyhow::Result<Report> {
    let began = Instant::now();
    let dir = tempfile::Builder::new().prefix("quire-chaos-").tempdir()?;
    let mut nodes = Nodes::prepare(dir.path(), config.seed, config.nodes)?;
    nodes.start_all()?;
    let places = nodes.ids().iter().map(|id| nodes.place(*id).map(Some)).collect::<anyhow::Result<_>>()?;
    let shared = Shared::new(config, dir.path(), places);
    std::fs::write(&shared.script, SCRIPT)?;
    set_up(&nodes)?;
    let mut vias: Vec<Via> =
        (0..config.nodes as usize).map(|slot| Via::Vfs { slot, process: Process::default() }).collect();
    let apps = vias.iter().filter_map(|via| match via {
        Via::Vfs { process, .. } => Some(process.clone()),
        Via::Http => None,
    });
    let apps: Vec<Process> = apps.collect();
    vias.extend((0..HTTP_CLIENTS).map(|_| Via::Http));
    let mut nemesis = Nemesis::new(&shared, nodes, apps);
    std::thread::scope(|scope| {
        for (client, via) in vias.iter().enumerate() {
            let shared = &shared;
            scope.spawn(move || clients::run(shared, client, via));
        }
        harm(config, &shared, &mut nemesis);
        shared.ends.store(true, Ordering::Relaxed);
    });
    let last = prove(&shared, &mut nemesis);
    let records = shared.history.records();
    match last {
        Ok(last) => check::check(&records, &last).into_iter().for_each(|why| shared.violation(why)),
        Err(why) => shared.violation(format!("{why:#}")),
    }
    let mut report = Report {
        config: config.clone(),
        faults: std::mem::take(&mut nemesis.counts),
        skipped: std::mem::take(&mut nemesis.skipped),
        failed_operations: shared.failed.lock().unwrap().values().sum(),
        operations: BTreeMap::new(),
        ways: BTreeMap::new(),
        slowest: None,
        wall: Duration::ZERO,
        violations: std::mem::take(&mut *shared.violations.lock().unwrap()),
        kept: None,
    };
    for record in &records {
        *report.operations.entry((record.op.name(), record.outcome.name())).or_default() += 1;
        let way = record.via.split(' ').next().unwrap_or_default();
        *report.ways.entry(format!("{way} {}", record.outcome.name())).or_default() += 1;
        let time = record.returned - record.invoked;
        if report.slowest.as_ref().is_none_or(|(slowest, _)| time > *slowest) {
            report.slowest = Some((time, format!("{record:?}")));
        }
    }
    drop(nemesis);
    if !report.violations.is_empty() {
        let dir = dir.keep();
        let lines: Vec<String> = records.iter().map(|record| format!("{record:?}\n")).collect();
        std::fs::write(dir.join("history.txt"), lines.concat())?;
        report.kept = Some(dir);
    }
    report.wall = began.elapsed();
    Ok(report)
}

/// Makes the databases, and has all of them in the files.
fn set_up(nodes: &Nodes) -> anyhow::Result<()> {
    let leader = nodes.cluster.wait_leader(PATIENCE)?;
    for database in DATABASES {
        if database != MAIN {
            let path = format!("/db/create?db={database}");
            let (status, body) = nodes.ask(leader, "POST", &path, "", PATIENCE)?;
            ensure!(status == 200, "{path}: {status} {body}");
        }
        let path = format!("/db/execute?db={database}&transaction");
        let body = serde_json::Value::from(schema(database)).to_string();
        let (status, body) = nodes.ask(leader, "POST", &path, &body, PATIENCE)?;
        ensure!(status == 200 && !body.contains("error"), "{path}: {status} {body}");
        nodes.cluster.wait_applied(database, PATIENCE)?;
    }
    let report = verify(&nodes.cluster.node(leader)?.http, true, false, PATIENCE)?;
    ensure!(report.identical, "{report:?}");
    Ok(())
}

/// Faults, as the plan says, until the time is over.
fn harm(config: &Config, shared: &Shared, nemesis: &mut Nemesis<'_>) {
    let until = Instant::now() + config.lasts;
    for (number, step) in Plan::new(config.seed).enumerate() {
        shared.phase.store(number as u64 / 2, Ordering::Relaxed);
        println!("{:7.1?} {:?}", shared.history.now(), step);
        nemesis.step(&step);
        nemesis.aftermath(&step);
        sleep(step.rest);
        if step.settle
            && let Err(why) = settle(shared, nemesis)
        {
            shared.violation(format!("after {step:?}: {why:#}"));
            return;
        }
        if Instant::now() >= until {
            return;
        }
    }
}

/// Waits until writes get through again.
fn settle(shared: &Shared, nemesis: &mut Nemesis<'_>) -> anyhow::Result<()> {
    let goal = shared.history.done_writes() + 5;
    nemesis.until("writes to get through", |_| shared.history.done_writes() >= goal)
}

/// Heals everything, and proves that nothing is lost and all are the same.
fn prove(shared: &Shared, nemesis: &mut Nemesis<'_>) -> anyhow::Result<Last> {
    nemesis.restart();
    let count = nemesis.nodes.ids().len();
    nemesis.until("all nodes to be ready", |nodes| {
        let ready = |id: &u64| nodes.get(*id, "/status").is_some_and(|s| s["store"]["ready"] == true);
        nodes.ids().iter().filter(|id| ready(id)).count() == count
    })?;
    let leader = nemesis.nodes.cluster.wait_leader(PATIENCE)?;
    // Without new writes.
    for database in DATABASES {
        nemesis.nodes.cluster.wait_applied(database, PATIENCE)?;
    }
    let address = nemesis.nodes.cluster.node(leader)?.http.clone();
    // Damaged pages that nobody has met are found, and repaired.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = verify(&address, false, true, PATIENCE)?;
        if report.identical {
            break;
        }
        ensure!(Instant::now() < deadline, "not repaired: {report:#?}\n{}", nemesis.nodes.cluster.logs(20));
        sleep(Duration::from_millis(500));
    }
    let report = verify(&address, true, false, PATIENCE)?;
    ensure!(report.identical, "divergence: {report:#?}\n{}", nemesis.nodes.cluster.logs(20));
    let mut last = None;
    for node in &nemesis.nodes.cluster.nodes {
        for database in DATABASES {
            let file = node.database(database);
            let sound = stock(&file, "PRAGMA integrity_check");
            ensure!(sound == ["ok"], "{}: {sound:?}", file.display());
        }
        let found = read_last(&node.database(MAIN), &node.database(BANK))?;
        let before = last.get_or_insert_with(|| found.clone());
        ensure!(*before == found, "node {} reads something else than the first", node.id);
    }
    for why in nemesis.nodes.reap() {
        shared.violation(why);
    }
    for line in nemesis.nodes.strange_fences()? {
        shared.violation(format!("fenced for no reason: {line}"));
    }
    last.context("there is no node")
}

/// Reads all by stock SQLite.
fn read_last(main: &Path, bank: &Path) -> anyhow::Result<Last> {
    let mut last = Last::default();
    for line in stock(main, "SELECT k, vs FROM lists") {
        let (key, values) = line.split_once('|').context("a list")?;
        last.lists.insert(key.parse()?, check::parse_list(values).context("a list's values")?);
    }
    let rows = |file: &Path, sql: &str| -> anyhow::Result<Vec<Vec<i64>>> {
        let parse = |line: &String| line.split('|').map(str::parse).collect::<Result<_, _>>();
        Ok(stock(file, sql).iter().map(parse).collect::<Result<_, _>>()?)
    };
    for row in rows(main, "SELECT k, v FROM cells")? {
        last.cells.insert(row[0] as u64, row[1] as u64);
    }
    for row in rows(bank, "SELECT n, tag FROM serials")? {
        last.serials.insert(row[0] as u64, row[1] as u64);
    }
    for row in rows(bank, "SELECT id, balance FROM accounts")? {
        last.balances.insert(row[0] as u64, row[1]);
    }
    for row in rows(bank, "SELECT id, source, target, amount FROM transfers")? {
        last.transfers.insert(row[0] as u64, (row[1] as u64, row[2] as u64, row[3]));
    }
    last.counter = rows(bank, "SELECT n FROM counter")?[0][0] as u64;
    Ok(last)
}
