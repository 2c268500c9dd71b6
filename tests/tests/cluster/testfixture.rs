//! SQLite's own tests of transactions, run by its `testfixture` on plain files and through the VFS. Every case that comes
//! out another way stands in `tests/judges/differences.txt`, with the reason; docs/judges.md tells more.
//!
//! `QUIRE_JUDGES=long` runs all files, on a node alone and on the leader of three; `QUIRE_FIXTURE="wal wal2"` those.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::judges::{here, place, source, step};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use quire_node::cli::verify::verify;
use quire_tests::fixture::{Differences, Outcomes, compare, outcomes};
use quire_tests::hosts::{PATIENCE, skip};
use quire_tests::replicas::{database, steady};
use quire_tests::{TestCluster, http, programs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// All that is run in the long form.
const FILES: &str = "
    savepoint savepoint2 savepoint5 savepoint7 vacuum vacuum2 vacuum4 vacuum5 vacuum6 vacuum-into vacuummem e_vacuum
    incrvacuum incrvacuum2 incrvacuum3 autovacuum autovacuum2 pager1 pager3 pager4 pageropt
    wal wal2 wal3 wal4 wal5 wal6 wal7 wal8 wal9 walbak walcksum walcrash2 walfault2 walhook walmode waloverwrite
    walpersist walshared walslow walvfs writecrash incrvacuum_ioerr savepoint6 savepointfault vacuum3";
/// What is run in the short form, on a node alone.
const SHORT: &str = "savepoint savepoint2 vacuum incrvacuum wal2 wal6 wal8 walmode";
/// A run that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(90);
/// A run is cut short after this, or `QUIRE_FIXTURE_SECONDS`; some files have thousands of cases, each on a database of
/// its own.
const LONGEST: Duration = Duration::from_secs(120);

/// Builds `testfixture`, unless it is there.
fn build() -> Result<PathBuf, String> {
    let source = source()?;
    let directory = place().join("fixture");
    let program = directory.join("testfixture");
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let ours = ["names.c", "build.sh"].map(|file| time(&here().join(file)));
    if time(&program).is_none_or(|built| ours.iter().any(|changed| *changed > Some(built))) {
        let _ = fs::remove_dir_all(&directory);
        step(Command::new("bash").arg(here().join("build.sh")).arg(&source).arg(&directory))?;
    }
    Ok(program)
}

/// What a run came to.
struct Run {
    outcomes: Outcomes,
    is_cut: bool,
}

/// Runs a file of tests, through the VFS of a node whose directory `db/` is given.
fn run(program: &Path, file: &str, node: Option<&Path>) -> Run {
    let directory = tempfile::Builder::new().prefix("quire-fixture-").tempdir().unwrap();
    let said = directory.path().join("said");
    let script = source().unwrap().join("test").join(format!("{file}.test"));
    let mut command = Command::new(program);
    command.arg(here().join("fixture.tcl")).arg(script).current_dir(directory.path());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUIRE_")) {
        command.env_remove(name);
    }
    if ["incrvacuum", "autovacuum"].iter().any(|kind| file.starts_with(kind)) {
        command.env("QUIRE_FIXTURE_VACUUM", "1");
    }
    match node {
        Some(db) => command.env("QUIRE_EXTENSION", &programs().extension).env("QUIRE_FIXTURE_DB", db),
        // Those that are about WAL mode see to that themselves; the VFS of the others can't do with it.
        None if ["wal", "crash", "savepoint4"].iter().any(|kind| file.starts_with(kind)) => &mut command,
        None => command.env("QUIRE_FIXTURE_WAL", "1"),
    };
    let out = File::create(&said).unwrap();
    let errors = File::create(directory.path().join("errors")).unwrap();
    // With all the children that it starts.
    command.process_group(0).stdin(Stdio::null()).stdout(out).stderr(errors);
    let mut child = command.spawn().unwrap();
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let began = Instant::now();
    let seconds = std::env::var("QUIRE_FIXTURE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let longest = seconds.map_or(LONGEST, Duration::from_secs);
    let (mut length, mut heard) = (0, began);
    let (mut is_cut, mut hangs) = (false, false);
    // It is left unreaped, so that the group's number stays its own until all of the group has been ended.
    let ended = || waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT);
    while !is_cut && !hangs && ended().unwrap() == WaitStatus::StillAlive {
        let now = fs::metadata(&said).unwrap().len();
        if now != length {
            (length, heard) = (now, Instant::now());
        }
        is_cut = began.elapsed() > longest;
        hangs = heard.elapsed() > SILENCE;
        sleep(Duration::from_millis(20));
    }
    killpg(group, Signal::SIGKILL).unwrap();
    let status = child.wait().unwrap();
    let text = fs::read(&said).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(!hangs, "{file} hangs, {node:?}: {:?}", text.lines().rev().take(5).collect::<Vec<_>>());
    let testdir = fs::canonicalize(directory.path()).unwrap().join("testdir");
    let outcomes = outcomes(&text, testdir.to_str().unwrap());
    println!("  {file} {node:?}: {status}, {} cases, {:.1} s", outcomes.len(), began.elapsed().as_secs_f64());
    Run { outcomes, is_cut }
}

/// Leaves what two runs came to under `target/judges/found`, for who wants to look: case, plain, Quire.
fn keep(name: &str, plain: &Outcomes, quire: &Outcomes) {
    let cases: BTreeSet<_> = plain.keys().chain(quire.keys()).collect();
    let of = |run: &Outcomes, case: &String| run.get(case).cloned().unwrap_or_default();
    let lines = cases.iter().map(|case| format!("{case}\t{}\t{}\n", of(plain, case), of(quire, case)));
    let directory = place().join("found");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(name), lines.collect::<String>()).unwrap();
}

/// A cluster and the directory through which it is used.
struct Place {
    test: TestCluster,
    db: PathBuf,
}

impl Place {
    fn start(count: u64) -> Place {
        let test = steady(count, &[]);
        let leader = test.cluster.wait_leader(PATIENCE).unwrap();
        let db = database(&test, leader, "app").parent().unwrap().to_owned();
        Place { test, db }
    }

    /// All nodes have the same. Then it goes: a file of tests makes hundreds.
    fn check_and_clear(&self, file: &str) {
        let address = &self.test.cluster.nodes[0].http;
        let report = verify(address, false, false, PATIENCE).unwrap();
        assert!(report.identical, "{file}: {report:#?}\n{}", self.test.cluster.logs(30));
        for name in report.databases.keys().filter(|name| name.starts_with('f')) {
            http::ok(address, &format!("/db/drop?db={name}"), "");
        }
    }
}

#[test]
fn its_cases_come_out_as_on_plain_files() {
    let program = match build() {
        Ok(program) => program,
        Err(why) => return skip(&format!("SQLite's testfixture: {why}")),
    };
    let mut expected = Differences::parse(&fs::read_to_string(here().join("differences.txt")).unwrap());
    let named = std::env::var("QUIRE_FIXTURE").ok();
    let is_long = quire_tests::is_long("QUIRE_JUDGES");
    let files = named.as_deref().unwrap_or(if is_long { FILES } else { SHORT });
    let places: Vec<_> = if is_long { vec![Place::start(1), Place::start(3)] } else { vec![Place::start(1)] };
    let (mut cases, mut different, mut wrong) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for file in files.split_whitespace() {
        let (plain, runs) = std::thread::scope(|scope| {
            let plain = scope.spawn(|| run(&program, file, None));
            let runs: Vec<_> =
                places.iter().map(|p| scope.spawn(|| run(&program, file, Some(&p.db)))).collect();
            (plain.join().unwrap(), runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>())
        });
        for (place, found) in places.iter().zip(runs) {
            let nodes = place.test.cluster.nodes.len();
            let is_cut = plain.is_cut || found.is_cut;
            cases += found.outcomes.len();
            keep(&format!("{file}.{nodes}"), &plain.outcomes, &found.outcomes);
            expected.begin(file);
            for difference in compare(&plain.outcomes, &found.outcomes, is_cut) {
                match expected.reason(file, &difference.case) {
                    Some(reason) => *different.entry(reason.to_owned()).or_default() += 1,
                    None => wrong.push(format!("{nodes} {file}: {difference:?}")),
                }
            }
            if !is_cut {
                let unheard = expected.unheard(file);
                wrong.extend(unheard.iter().map(|case| format!("{nodes} {file}: {case} does not differ")));
            }
            place.check_and_clear(file);
        }
    }
    println!("{cases} cases, different: {different:?}");
    assert!(wrong.is_empty(), "{} more differences:\n{}", wrong.len(), wrong.join("\n"));
}
