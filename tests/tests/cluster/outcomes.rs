//! Commits that are interrupted: the leader, or the node that the app is on, is killed, stopped or cut off from the others
//! while apps are inside COMMIT. (Cutting off needs root and network namespaces; else the test says so.) Each is classified by what its app was told, and that is compared with the files of all nodes, with the log,
//! and with what `quire tx` says.
//!
//! The short form interrupts 20 commits, the long one (`QUIRE_OUTCOMES=long`, `QUIRE_LONG=1`) 500. `SEED` replays which
//! nodes fail, and how.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_node::cli::verify::verify;
use quire_tests::admin::quire;
use quire_tests::crash::{App, PATIENCE, Rng, SCHEMA, Scene, have_app};
use quire_tests::is_long;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Apps, each with a database to itself, so that as many can be inside COMMIT at once.
const APPS: u64 = 9;
const VERDICTS: [&str; 4] = ["ack", "busy", "refused", "unknown"];

/// What was told of a transaction of which the app got to know the id.
struct Told {
    id: String,
    verdict: String,
    /// The app was told on which entry it was written, so that what is not in the log is not there at all.
    is_certain: bool,
    says: Value,
}

struct Writer {
    app: App,
    database: String,
    /// Commits that a fault came into, by their numbers.
    interrupted: BTreeSet<u64>,
    told: BTreeMap<u64, Told>,
    /// Lines that have been looked at.
    seen: usize,
}

impl Writer {
    fn start(scene: &Scene, n: u64) -> Writer {
        let mut app = scene.idle_app();
        let database = format!("outcome{n}");
        let file = scene.test.cluster.node(1 + n % 3).unwrap().database(&database);
        scene.open_file(&mut app, &file, 20);
        for statement in SCHEMA.split(';') {
            app.rows(statement).unwrap();
        }
        let (interrupted, told) = (BTreeSet::new(), BTreeMap::new());
        Writer { app, database, interrupted, told, seen: 0 }
    }

    /// The transaction that was inside COMMIT at that time.
    fn inside(&self, at: Instant) -> Option<u64> {
        let heard = self.app.heard(self.seen);
        let before = heard.iter().take_while(|(when, _)| *when <= at);
        let (word, n) = before.filter_map(|(_, line)| word_of(line)).last()?;
        (word == "sent").then_some(n)
    }

    /// What the app was told of a transaction, once it has been.
    fn verdict(&self, n: u64) -> Option<String> {
        let mut lines = self.app.heard(self.seen).into_iter().map(|(_, line)| line);
        lines.find(|line| word_of(line).is_some_and(|(word, of)| of == n && VERDICTS.contains(&word)))
    }

    /// Looks up what the app was told of since the last time and got an id for. Who was just restarted may not remember it:
    /// then another node does.
    fn look_up(&mut self, nodes: &[String]) {
        let heard = self.app.heard(self.seen);
        self.seen += heard.len();
        for (_, line) in heard {
            let Some((verdict @ ("refused" | "unknown"), n)) = word_of(&line) else { continue };
            let after = |mark: &str| Some(line.split(mark).nth(1)?.split(' ').next()?.to_owned());
            let Some(id) = after("transaction ").filter(|_| !self.told.contains_key(&n)) else { continue };
            // SQLite's lines are short: it may have been broken before the number.
            let base = line.split("--base ").nth(1).and_then(|rest| {
                rest.split(' ').map(|word| word.trim_matches('`')).find(|word| word.parse::<u64>().is_ok())
            });
            let ask = |http: &String| {
                let mut ask = vec!["tx", &id, "--db", &self.database, "--http-addr", http];
                ask.extend(base.iter().flat_map(|base| ["--base", *base]));
                ask.push("--json");
                // It fails where the node doesn't know.
                let output = quire(&ask);
                serde_json::from_slice::<Value>(&output.stdout)
                    .unwrap_or_else(|_| panic!("{ask:?}: {output:?}"))
            };
            let answers: Vec<_> = nodes.iter().map(ask).collect();
            let says =
                answers.iter().find(|says| says["outcome"] != "unknown").unwrap_or(&answers[0]).clone();
            let (verdict, is_certain) = (verdict.to_owned(), base.is_some());
            self.told.insert(n, Told { id, verdict, is_certain, says });
        }
    }
}

fn word_of(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split(' ');
    let word = words.next()?;
    (word == "sent" || VERDICTS.contains(&word)).then_some(())?;
    Some((word, words.next()?.parse().ok()?))
}

#[test]
fn interrupted_commits_came_to_what_was_told() {
    if !have_app() {
        return;
    }
    let goal = if is_long("QUIRE_OUTCOMES") { 500 } else { 20 };
    // The log is kept, to be looked at in the end; a leader stays on a busy machine, but not for long when it is killed.
    let flags = ["--heartbeat-ms", "150", "--election-timeout-ms", "1500", "--log-retain-mib", "4096"];
    let mut scene = Scene::start_apart(&flags);
    let mut writers: Vec<_> = (0..APPS).map(|n| Writer::start(&scene, n)).collect();
    writers.iter_mut().for_each(|writer| scene.load(&mut writer.app));
    let mut rng = Rng::from_env();
    let mut faults = BTreeMap::new();
    while writers.iter().map(|writer| writer.interrupted.len()).sum::<usize>() < goal {
        scene.wait_acks(3 * APPS as usize);
        *faults.entry(fault(&mut scene, &mut writers, &mut rng)).or_default() += 1;
        let nodes = addresses(&scene);
        writers.iter_mut().for_each(|writer| writer.look_up(&nodes));
    }
    scene.wait_acks(APPS as usize);
    for writer in &mut writers {
        writer.app.ask("sql SELECT 1", &["loaded"]);
        writer.app.until(&["done"], PATIENCE);
        println!("{}: slowest verdict {:.1} s", writer.database, writer.app.slowest());
    }
    let nodes = addresses(&scene);
    writers.iter_mut().for_each(|writer| writer.look_up(&nodes));
    judge(&mut scene, &writers, &faults);
}

/// The leader's address, then the others'.
fn addresses(scene: &Scene) -> Vec<String> {
    let leader = scene.leader();
    let mut nodes: Vec<_> = scene.test.cluster.nodes.iter().collect();
    nodes.sort_by_key(|node| node.id != leader);
    nodes.into_iter().map(|node| node.http.clone()).collect()
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Killed,
    Paused,
    CutOff,
}

/// Something happens to a node while apps are inside COMMIT, and passes; all of them are told what came of it.
fn fault(scene: &mut Scene, writers: &mut [Writer], rng: &mut Rng) -> Fault {
    let leader = scene.leader();
    let node = if rng.below(4) == 0 { scene.followers()[rng.below(2) as usize] } else { leader };
    let fault = match rng.below(6) {
        0..3 => Fault::Killed,
        3 => Fault::Paused,
        _ if scene.can_cut() => Fault::CutOff,
        _ => Fault::Killed,
    };
    // At any point of what goes on; nothing is waited for.
    sleep(Duration::from_millis(rng.below(30)));
    let at = Instant::now();
    match fault {
        Fault::Killed => scene.test.cluster.kill(node).unwrap(),
        Fault::Paused => scene.test.cluster.node(node).unwrap().signal(Signal::SIGSTOP).unwrap(),
        Fault::CutOff => scene.cut(node),
    }
    let mut inside = Vec::new();
    for (n, writer) in writers.iter().enumerate() {
        inside.extend(writer.inside(at).map(|number| (n, number)));
    }
    // Those on the two other nodes go on, under another leader if that was it.
    scene.wait_acks(APPS as usize);
    match fault {
        Fault::Killed => scene.restart(node),
        // It doesn't know that it was deposed.
        Fault::Paused => scene.test.cluster.node(node).unwrap().signal(Signal::SIGCONT).unwrap(),
        Fault::CutOff => scene.heal(),
    }
    scene.wait_ready(node);
    for (n, number) in inside {
        let writer = &mut writers[n];
        let told = |_: &_| writer.verdict(number).is_some();
        scene.test.cluster.wait("a verdict on what was interrupted", PATIENCE, told).unwrap();
        writer.interrupted.insert(number);
    }
    fault
}

/// The entries that a log has, by index, from all records of its files: what a deposed leader had alone was cut off.
fn entries(records: &[u8]) -> BTreeMap<u64, String> {
    let mut log = BTreeMap::new();
    for line in String::from_utf8_lossy(records).lines() {
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        let Some(index) = record["index"].as_u64() else { continue };
        match record["kind"].as_str().unwrap() {
            "Base" => drop(log.split_off(&index)),
            "Blank" | "Command" | "Membership" => drop(log.insert(index, record["command"].to_string())),
            _ => {}
        }
    }
    log
}

/// What was told is what the files and the log have.
fn judge(scene: &mut Scene, writers: &[Writer], faults: &BTreeMap<Fault, usize>) {
    for writer in writers {
        scene.test.cluster.wait_applied(&writer.database, PATIENCE).unwrap();
    }
    let report = verify(&scene.test.cluster.nodes[0].http, true, false, PATIENCE).unwrap();
    assert!(report.identical, "{:?}\n{}", report.faults, scene.test.cluster.logs(30));
    let log = scene.test.cluster.nodes[0].dir.join("raft");
    let log = entries(&quire(&["inspect", "log", log.to_str().unwrap(), "--json"]).stdout);
    let mut classes = BTreeMap::<String, usize>::new();
    let mut looked_up = 0;
    for writer in writers {
        let name = &writer.database;
        let files: Vec<_> =
            scene.test.cluster.nodes.iter().map(|node| scene.check_file(&node.database(name))).collect();
        assert!(files.iter().all(|found| *found == files[0]), "{name}: the nodes differ");
        let found = &files[0];
        let mut told = BTreeMap::<u64, String>::new();
        for line in writer.app.lines() {
            if let Some((verdict, n)) = word_of(&line).filter(|(word, _)| *word != "sent") {
                told.insert(n, verdict.to_owned());
            }
        }
        for (n, verdict) in &told {
            match verdict.as_str() {
                "ack" => assert!(found.contains(n), "{name}: {n} was acknowledged, and is lost"),
                "busy" | "refused" => assert!(!found.contains(n), "{name}: {n} was {verdict}, and is there"),
                _ => {}
            }
        }
        let strange: Vec<_> = found.iter().filter(|n| !told.contains_key(n)).collect();
        assert!(strange.is_empty(), "{name} has {strange:?}, of which nobody was told");
        for (n, Told { id, verdict, is_certain, says }) in &writer.told {
            let (is_there, is_logged) =
                (found.contains(n), log.values().any(|entry| entry.contains(id.as_str())));
            let holds = match says["outcome"].as_str() {
                Some("committed") => is_there && is_logged && verdict == "unknown",
                Some("refused") => !is_there && is_logged,
                Some("not in the log") => !is_there && (!is_logged || !is_certain),
                // Where the app was told the base, one of the nodes can tell.
                _ => !is_there && !is_certain,
            };
            assert!(holds, "{name}: {n} was {verdict}; there {is_there}, in the log {is_logged}: {says}");
            looked_up += 1;
        }
        for n in &writer.interrupted {
            *classes.entry(told[n].clone()).or_default() += 1;
        }
    }
    let commits: usize = classes.values().sum();
    println!("{commits} interrupted commits, nodes {faults:?}: {classes:?}; {looked_up} looked up");
}
