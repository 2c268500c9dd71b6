//! Crash scenarios: a cluster, stock apps that write numbered transactions and say what came of each, a
//! journal of what they said, and the comparison of that with what the nodes' files hold in the end.
//!
//! What must hold, whatever was killed:
//! - every acknowledged transaction is in every node's file, and no definitely refused one is;
//! - every transaction is there as a whole or not at all: it has as many rows as it wrote, and a counter on
//!   another page agrees with the number of transactions;
//! - the files are sound, read by stock SQLite without the extension, and identical.

use crate::admin::http;
use crate::chaos::net::Network;
use crate::{TestCluster, programs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quire_node::cli::verify::verify;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How long a condition may take to become true on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The database that the scenarios write.
pub const DATABASE: &str = "main";

const SCRIPT: &str = include_str!("crash_app.py");
const PYTHON: &str = "/usr/bin/python3";
const SQLITE: &str = "/usr/bin/sqlite3";
const POLL: Duration = Duration::from_millis(10);
/// Rows of one transaction; as in the script.
const PARTS: u64 = 4;
/// Numbers that one `load` may use up.
const BLOCK: u64 = 1_000_000;

/// The tables that the apps write, statement by statement.
pub const SCHEMA: &str = "CREATE TABLE log(n INTEGER, part INTEGER, body BLOB, PRIMARY KEY(n, part)); \
                      CREATE TABLE total(n INTEGER); INSERT INTO total VALUES (0)";

/// Whether this machine has the app of these tests. With `CI=true` it must have.
pub fn have_app() -> bool {
    let probe = "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)";
    let found = Command::new(PYTHON).args(["-c", probe]).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{PYTHON} can't load SQLite extensions");
        println!("skipped: {PYTHON} is not here or can't load SQLite extensions");
    }
    found
}

/// What the apps said of their transactions.
#[derive(Debug, Default)]
pub struct Said {
    /// Begun; most of them said more later.
    pub tried: BTreeSet<u64>,
    /// COMMIT returned success.
    pub acked: BTreeSet<u64>,
    /// Definitely not committed.
    pub refused: BTreeSet<u64>,
    /// COMMIT failed and the outcome was not known.
    pub unknown: BTreeSet<u64>,
    next: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (word, n) = (words.next(), words.next().and_then(|n| n.parse().ok()));
        let Some(n) = n else { return };
        match word {
            Some("try") => self.tried.insert(n),
            Some("ack") => self.acked.insert(n),
            Some("busy" | "refused") => self.refused.insert(n),
            Some("unknown") => self.unknown.insert(n),
            _ => false,
        };
    }
}

#[derive(Debug, Default)]
struct Lines {
    lines: Mutex<(Vec<(Instant, String)>, bool)>,
    more: Condvar,
}

/// A running app.
#[derive(Debug)]
pub struct App {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Lines>,
    reader: Option<JoinHandle<()>>,
    /// Lines that [`App::until`] has passed.
    seen: usize,
}

impl App {
    /// Starts one; it isn't connected yet.
    fn start(script: &Path, journal: &Arc<Mutex<Said>>, env: &[(&str, &str)]) -> App {
        let mut command = Command::new(PYTHON);
        command.arg(script).arg(&programs().extension).envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let lines = Arc::new(Lines::default());
        let (journal, heard) = (journal.clone(), lines.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                journal.lock().unwrap().hear(&line);
                heard.lines.lock().unwrap().0.push((Instant::now(), line));
                heard.more.notify_all();
            }
            heard.lines.lock().unwrap().1 = true;
            heard.more.notify_all();
        });
        App { child, stdin, lines, reader: Some(reader), seen: 0 }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Gives it a command.
    pub fn tell(&mut self, command: &str) {
        // An app that has died shows in what it doesn't say.
        let _ = writeln!(self.stdin.as_mut().unwrap(), "{command}");
    }

    /// Waits for a line that begins with one of `words` (space included), and returns it with its time of
    /// arrival. Lines before it are passed over. `None` if the app ended first.
    pub fn hear(&mut self, words: &[&str], patience: Duration) -> Option<(Instant, String)> {
        let deadline = Instant::now() + patience;
        let mut lines = self.lines.lines.lock().unwrap();
        loop {
            while let Some((at, line)) = lines.0.get(self.seen) {
                self.seen += 1;
                if words.iter().any(|word| line.split(' ').next() == Some(word)) {
                    return Some((*at, line.clone()));
                }
            }
            if lines.1 {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "the app did not say {words:?} within {patience:?}: {:?}",
                lines.0.last()
            );
            lines = self.lines.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// As [`App::hear`], from an app that must be alive.
    pub fn until(&mut self, words: &[&str], patience: Duration) -> String {
        let heard = self.hear(words, patience);
        heard.unwrap_or_else(|| panic!("the app ended before it said {words:?}")).1
    }

    /// Gives it a command and waits for what comes of it.
    pub fn ask(&mut self, command: &str, words: &[&str]) -> String {
        self.tell(command);
        self.until(words, PATIENCE)
    }

    /// Runs SQL and returns the rows, values separated by `|`.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.tell(&format!("sql {sql}"));
        let mut rows = Vec::new();
        loop {
            let line = self.until(&["row", "done", "failed"], PATIENCE);
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("row", row) => rows.push(row.to_owned()),
                ("done", _) => return Ok(rows),
                (_, why) => return Err(why.to_owned()),
            }
        }
    }

    /// The only value of a query that must succeed.
    pub fn number(&mut self, sql: &str) -> u64 {
        self.rows(sql).unwrap_or_else(|why| panic!("{sql}: {why}"))[0].parse().unwrap()
    }

    /// As [`App::lines`], with the times at which they came, without the first `from`.
    pub fn heard(&self, from: usize) -> Vec<(Instant, String)> {
        self.lines.lines.lock().unwrap().0[from..].to_vec()
    }

    /// How long the slowest of its transactions has taken to come to a verdict, in seconds.
    pub fn slowest(&self) -> f64 {
        let lines = self.lines.lines.lock().unwrap();
        let verdicts = lines.0.iter().filter_map(|(_, line)| {
            let mut words = line.split(' ');
            matches!(words.next()?, "ack" | "busy" | "refused" | "unknown")
                .then(|| words.nth(1)?.parse().ok())?
        });
        verdicts.fold(0.0, f64::max)
    }

    /// How many of its verdicts are this one.
    pub fn verdicts(&self, verdict: &str) -> usize {
        self.lines().iter().filter(|line| line.split(' ').next() == Some(verdict)).count()
    }

    /// All that it has said.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lines.lock().unwrap().0.iter().map(|(_, line)| line.clone()).collect()
    }

    /// Waits for it to end by itself.
    pub fn wait_exit(mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.join();
                return status;
            }
            assert!(Instant::now() < deadline, "the app still runs after {patience:?}");
            sleep(POLL);
        }
    }

    /// Kills it, and has heard all that it said.
    pub fn kill(mut self) {
        self.end();
    }

    /// Has it close its connection and end.
    pub fn quit(mut self) {
        self.tell("quit");
        assert!(self.wait_exit(PATIENCE).success());
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a process ended by SIGKILL, as at a fault point.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGKILL as i32)
}

/// A cluster, its apps, and their journal.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub test: TestCluster,
    /// Where its nodes live, if they can be cut off ([`crate::partition`]).
    pub(crate) network: Option<Network>,
    journal: Arc<Mutex<Said>>,
    script: PathBuf,
}

impl Scene {
    /// Has `node` lead. Every node runs before and after.
    pub fn make_leader(&mut self, node: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader();
            if leader == node {
                return;
            }
            assert!(Instant::now() < deadline, "node {node} does not lead after {PATIENCE:?}");
            // Refused for as long as the voter doesn't answer the leader.
            let http_addr = &self.test.cluster.node(leader).unwrap().http;
            http(http_addr, "POST", "/leader?wait", &format!(r#"{{"id":"{node}"}}"#));
        }
    }

    /// Three nodes with further flags, and the tables that the apps write.
    pub fn start(flags: &[&str]) -> Scene {
        let mut test = Scene::prepare(flags);
        test.cluster.start().unwrap();
        Scene::on(test)
    }

    /// Prepares such nodes; none is started.
    pub(crate) fn prepare(flags: &[&str]) -> TestCluster {
        let mut test = TestCluster::prepare(3);
        for node in &mut test.cluster.nodes {
            // Small segments: zero-filling large ones keeps a shared disk busy for seconds.
            let flags = ["--log-segment-mib", "4"].iter().chain(flags);
            node.flags = flags.map(|&flag| flag.to_owned()).collect();
        }
        test
    }

    /// A running cluster, and the tables that the apps write.
    pub fn on(test: TestCluster) -> Scene {
        let script = test.dir.path().join("crash_app.py");
        std::fs::write(&script, SCRIPT).unwrap();
        let scene = Scene { test, network: None, journal: Arc::default(), script };
        let mut app = scene.app(scene.leader());
        for statement in SCHEMA.split(';') {
            app.rows(statement).unwrap();
        }
        app.quit();
        scene
    }

    /// The leader, once there is one.
    pub fn leader(&self) -> u64 {
        self.test.cluster.wait_leader(PATIENCE).unwrap()
    }

    /// The running nodes that don't lead.
    pub fn followers(&self) -> Vec<u64> {
        let leader = self.leader();
        self.test.cluster.nodes.iter().filter(|n| n.is_running() && n.id != leader).map(|n| n.id).collect()
    }

    /// An app that has the database open on a node.
    pub fn app(&self, node: u64) -> App {
        self.app_with(node, &[], 15)
    }

    /// The same with further environment and a busy timeout in seconds.
    pub fn app_with(&self, node: u64, env: &[(&str, &str)], timeout: u64) -> App {
        let mut app = App::start(&self.script, &self.journal, env);
        self.open(&mut app, node, timeout);
        app
    }

    /// An app that has nothing open.
    pub fn idle_app(&self) -> App {
        App::start(&self.script, &self.journal, &[])
    }

    /// Has an app open the database on a node; tries again while the node is starting.
    pub fn open(&self, app: &mut App, node: u64, timeout: u64) {
        let file = self.test.cluster.node(node).unwrap().database(DATABASE);
        self.open_file(app, &file, timeout);
    }

    /// The same for any database.
    pub fn open_file(&self, app: &mut App, file: &Path, timeout: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = app.ask(&format!("open {} {timeout}", file.display()), &["open", "closed"]);
            if line == "open" {
                return;
            }
            assert!(Instant::now() < deadline, "{line}\n{}", self.test.cluster.logs(15));
        }
    }

    /// A number for a transaction.
    pub fn number(&self) -> u64 {
        let mut said = self.said();
        said.next += 1;
        said.next
    }

    /// The first of many numbers, for a `load`.
    pub fn numbers(&self) -> u64 {
        let mut said = self.said();
        said.next = said.next.next_multiple_of(BLOCK) + BLOCK;
        said.next - BLOCK + 1
    }

    /// The journal.
    pub fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.journal.lock().unwrap()
    }

    /// One transaction; returns its verdict.
    pub fn write(&self, app: &mut App) -> String {
        app.ask(&format!("write {}", self.number()), &["ack", "busy", "refused", "unknown"])
    }

    /// One transaction that must succeed.
    pub fn must_write(&self, app: &mut App) {
        let verdict = self.write(app);
        assert!(verdict.starts_with("ack "), "{verdict}\n{}", self.test.cluster.logs(15));
    }

    /// Starts a load.
    pub fn load(&self, app: &mut App) {
        app.tell(&format!("load {}", self.numbers()));
    }

    /// Waits until the apps have been told of `count` more commits.
    pub fn wait_acks(&self, count: usize) {
        let goal = self.said().acked.len() + count;
        let what = format!("{count} more commits");
        self.test.cluster.wait(&what, PATIENCE, |_| self.said().acked.len() >= goal).unwrap();
    }

    /// Starts a node again and waits until it serves.
    pub fn restart(&mut self, node: u64) {
        Network::start_node(self.network.as_ref(), &mut self.test.cluster, node).unwrap();
        self.wait_ready(node);
    }

    /// Stops a node so that it has nothing to read again, and starts it with a fault.
    pub fn restart_with(&mut self, node: u64, fault: &str) {
        self.test.cluster.stop(node).unwrap();
        self.test.cluster.node_mut(node).unwrap().env = vec![("QUIRE_FAULT".into(), fault.into())];
        self.restart(node);
        self.test.cluster.node_mut(node).unwrap().env.clear();
    }

    /// Waits until a node has died at its fault point.
    pub fn dies(&mut self, node: u64, fault: &str) {
        let status = self.test.cluster.wait_exit(node, PATIENCE).unwrap();
        assert!(was_killed(status), "{fault}: {status}");
    }

    /// Waits until a node serves.
    pub fn wait_ready(&self, node: u64) {
        let ready = |cluster: &quire_node::cli::local::LocalCluster| {
            cluster.node(node).unwrap().status().is_some_and(|s| s["store"]["ready"] == true)
        };
        self.test.cluster.wait("the node to be ready", PATIENCE, ready).unwrap();
    }

    /// Waits until the cluster has healed, then checks everything (see the module's header). All nodes must
    /// have been started. Returns how many transactions there are.
    pub fn check(&self) -> usize {
        let leader = self.leader();
        if let Err(error) = self.test.cluster.wait_applied(DATABASE, PATIENCE) {
            let states = self.test.cluster.nodes.iter().map(|node| node.status().unwrap_or_default());
            let states: Vec<_> =
                states.map(|s| (s["store"]["raft"].clone(), s["store"]["databases"].clone())).collect();
            panic!("{error:#}\n{states:#?}");
        }
        // First, as everything that was proposed comes before it in the log or never.
        let address = self.test.cluster.node(leader).unwrap().http.clone();
        let report = verify(&address, true, false, PATIENCE).unwrap();
        assert!(report.identical, "{:?}\n{}", report.faults, self.test.cluster.logs(30));
        let mut files: Vec<(u64, BTreeSet<u64>)> = Vec::new();
        for node in &self.test.cluster.nodes {
            let found = self.check_file(&node.database(DATABASE));
            files.push((node.id, found));
        }
        {
            let said = self.said();
            for (id, found) in &files {
                let lost: Vec<_> = said.acked.difference(found).collect();
                assert!(
                    lost.is_empty(),
                    "node {id} lost acknowledged {lost:?}\n{}",
                    self.test.cluster.logs(30)
                );
                let wrong: Vec<_> = said.refused.intersection(found).collect();
                assert!(wrong.is_empty(), "node {id} has refused {wrong:?}\n{}", self.test.cluster.logs(30));
                let strange: Vec<_> = found.difference(&said.tried).collect();
                assert!(strange.is_empty(), "node {id} has {strange:?}, which nobody wrote");
                assert_eq!(*found, files[0].1, "nodes {id} and {} differ", files[0].0);
            }
        }
        files[0].1.len()
    }

    /// Checks one file by stock SQLite and returns the transactions in it.
    pub fn check_file(&self, file: &Path) -> BTreeSet<u64> {
        let integrity = stock(file, "PRAGMA integrity_check");
        assert_eq!(integrity, ["ok"], "{}", file.display());
        // One statement, so one snapshot, also where somebody writes.
        let sql = "SELECT n, count(*), (SELECT n FROM total) FROM log GROUP BY n";
        let mut found = BTreeSet::new();
        let mut total = None;
        for row in stock(file, sql) {
            let values: Vec<u64> = row.split('|').map(|value| value.parse().unwrap()).collect();
            assert_eq!(values[1], PARTS, "{}: transaction {} is not whole", file.display(), values[0]);
            found.insert(values[0]);
            total = Some(values[2]);
        }
        let count = found.len() as u64;
        assert_eq!(total.unwrap_or(0), count, "{}: its counter disagrees", file.display());
        found
    }
}

/// Runs a query in stock SQLite: the machine's shell, or else the bundled one without the extension.
pub fn stock(file: &Path, sql: &str) -> Vec<String> {
    let output = if Path::new(SQLITE).exists() {
        Command::new(SQLITE).args(["-batch", "-cmd", ".timeout 15000"]).arg(file).arg(sql).output()
    } else {
        Command::new(&programs().quire).args(["host", "--run", sql, "--database"]).arg(file).output()
    };
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {sql}: {errors}", file.display());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Random numbers that `SEED` replays (xorshift64*).
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// Seeded by `SEED`, else by the clock; prints the seed.
    pub fn from_env() -> Rng {
        let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_micros() as u64);
        let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
        println!("SEED={seed}");
        Rng::seeded(seed)
    }

    /// The numbers of a seed.
    pub fn seeded(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}
