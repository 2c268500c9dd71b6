//! The simulation as a test. Each seed runs in a process of its own: this test program, told by the environment to run
//! that one. So a seed that failed among thousands fails in the same way when it is run alone.

use super::{Options, Rule, run};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds that run at the same time.
const SIDE_BY_SIDE: usize = 2;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the process of a seed says of it.
#[derive(Clone, Debug, Default)]
struct Told {
    failure: Option<String>,
    steps: u64,
    committed: u64,
    millis: u64,
    fingerprint: String,
    /// All that it has printed.
    text: String,
}

/// Runs a seed in a process of its own, with these accidents at most and without these rules; `verbose` for all that happens.
fn tell(seed: u64, steps: Option<u64>, broken: &[Rule], verbose: bool) -> Told {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sim::tests::seeds", "--nocapture"]).env("SEED", seed.to_string());
    command.env("SIM_BROKEN", broken.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>().join(","));
    if let Some(steps) = steps {
        command.env("STEPS", steps.to_string());
    }
    if !verbose {
        command.env("SIM_QUIET", "1");
    }
    let output = command.output().expect("this program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = |name: &str| {
        let line = text.lines().find(|line| line.starts_with("SUM "))?;
        line.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned)
    };
    let number = |name: &str| word(name).and_then(|word| word.parse().ok()).unwrap_or(0);
    let failure = match (text.lines().find_map(|line| line.strip_prefix("FAILED: ")), output.status.success())
    {
        (Some(why), _) => Some(why.to_owned()),
        (None, true) => None,
        (None, false) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
    };
    let (steps, committed, millis) = (number("steps="), number("committed="), number("millis="));
    Told { failure, steps, committed, millis, fingerprint: word("fingerprint=").unwrap_or_default(), text }
}

/// Says what became of a failed seed, with the smallest number of accidents that still shows a failure.
fn explain(seed: u64) -> String {
    let told = tell(seed, None, &[], true);
    let (mut low, mut high, mut worst) = (0, told.steps, told);
    // Fewer accidents are the first of the same, so that the search may halve.
    while low < high {
        let middle = (low + high) / 2;
        let again = tell(seed, Some(middle), &[], true);
        if again.failure.is_some() {
            (high, worst) = (middle, again);
        } else {
            low = middle + 1;
        }
    }
    let (text, why) = (worst.text, worst.failure.unwrap_or_default());
    let replay = "cargo test -p quire-node --lib sim::tests::seeds -- --nocapture";
    format!("{text}\n{why}\n\nreplay: SEED={seed} STEPS={high} {replay}")
}

/// This process's own seed.
fn replay(seed: u64) {
    let steps = variable("STEPS").unwrap_or(u64::MAX);
    let broken = Rule::named(&std::env::var("SIM_BROKEN").unwrap_or_default());
    let verbose = std::env::var_os("SIM_QUIET").is_none();
    let report = run(seed, &Options { steps, broken, verbose });
    let (sum, millis) = (report.sum, report.virtual_time.as_millis());
    println!(
        "SUM committed={} refused={} unknown={} dead={} entries={} steps={} millis={millis} fingerprint={:x}",
        sum.committed, sum.refused, sum.unknown, sum.dead, sum.entries, report.steps, report.fingerprint
    );
    if let Some(why) = report.failure {
        println!("FAILED: {why}");
        panic!("seed {seed}: {why}");
    }
}

/// Runs seeds for some time, or until one fails; in the suite for a few seconds. `SEED=n` replays one and prints what
/// happens, with `STEPS=m` only its first accidents; `SIM_SECONDS=s` goes on for longer, from `SIM_FROM=n` on, with
/// `SIM_GO_ON=1` also after failures.
#[test]
fn seeds() {
    if let Some(seed) = variable("SEED") {
        return replay(seed);
    }
    let patience = Duration::from_secs(variable("SIM_SECONDS").unwrap_or(8));
    let (first, goes_on) = (variable("SIM_FROM").unwrap_or(1), variable("SIM_GO_ON").is_some());
    let began = Instant::now();
    let (next, ends) = (AtomicU64::new(first), AtomicBool::new(false));
    let all = Mutex::new(Vec::new());
    let work = || {
        while began.elapsed() < patience && !ends.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let told = tell(seed, None, &[], false);
            if let Some(why) = &told.failure {
                println!("SEED={seed}: {why}");
                ends.fetch_or(!goes_on, Ordering::Relaxed);
            }
            all.lock().unwrap().push((seed, told));
        }
    };
    std::thread::scope(|scope| (0..SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(work))));
    let all = all.into_inner().unwrap();
    let sum = |of: fn(&Told) -> u64| all.iter().map(|(_, told)| of(told)).sum::<u64>();
    let (n, took, committed) = (all.len() as u64, began.elapsed(), sum(|told| told.committed));
    println!(
        "{n} seeds from {first} in {took:.1?} ({:.0} a minute): {committed} acknowledged commits, {} accidents, {} s of \
         virtual time",
        n as f64 / took.as_secs_f64() * 60.0,
        sum(|told| told.steps),
        sum(|told| told.millis) / 1000,
    );
    let failed: Vec<_> = all.into_iter().filter(|(_, told)| told.failure.is_some()).collect();
    if let Some((seed, _)) = failed.first() {
        let seeds: Vec<_> = failed.iter().map(|(seed, _)| *seed).collect();
        panic!("{seeds:?} failed. The first:\n{}", explain(*seed));
    }
    assert!(committed > n, "hardly anything was written");
}

#[test]
fn a_seed_repeats() {
    for seed in [3, 14, 15] {
        let [a, b] = [(); 2].map(|()| tell(seed, None, &[], true));
        if a.fingerprint != b.fingerprint || a.fingerprint.is_empty() {
            let differs = a.text.lines().zip(b.text.lines()).find(|(a, b)| a != b);
            panic!("seed {seed} differs: {differs:?}");
        }
    }
}

/// Demands that one of some seeds fails without these rules; says which, and how.
fn notices(rules: &[Rule], says: &[&str]) {
    const MOST: u64 = 1000;
    for seed in 1..=MOST {
        if let Some(failure) = tell(seed, None, rules, false).failure {
            println!("without {rules:?}: seed {seed}: {failure}");
            if says.iter().any(|what| failure.contains(what)) {
                return;
            }
        }
    }
    panic!("{MOST} seeds notice nothing of {rules:?}");
}

#[test]
fn the_simulation_notices_missing_lease_fencing() {
    notices(&[Rule::Lease], &["told refused", "said of"]);
}

#[test]
fn the_simulation_notices_a_missing_base_check() {
    notices(&[Rule::Lease, Rule::Base], &["LOST", "fenced", "DIFFERENT"]);
}

#[test]
fn the_simulation_notices_a_missing_term_check() {
    notices(&[Rule::Term], &["LOST", "told refused", "DIFFERENT"]);
}

#[test]
fn the_simulation_notices_acknowledgements_before_the_disk() {
    notices(&[Rule::Sync], &["LOST", "lost", "applies", "its log has"]);
}

#[test]
fn the_simulation_notices_a_late_transaction_that_is_let_through() {
    notices(&[Rule::Bar], &["told refused", "said of"]);
}

#[test]
fn the_simulation_notices_records_of_a_wal_that_is_gone() {
    notices(&[Rule::Void], &["DIFFERENT", "another past", "not what its checksum", "fenced"]);
}

#[test]
fn the_simulation_notices_writers_without_the_gate_lock() {
    notices(&[Rule::GateLock], &["DIFFERENT", "another past", "not what its checksum", "fenced"]);
}
