//! Chaos in its short form: a seed that stays and one by chance, or the one in `SEED`. The long form: docs/chaos.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::chaos::run::{Config, run};
use quire_tests::crash::have_app;
use std::time::Duration;

fn survives(seed: u64, seconds: u64) {
    let report = run(&Config { seed, lasts: Duration::from_secs(seconds), nodes: 3 }).unwrap();
    println!("{report}");
    assert!(report.violations.is_empty(), "replay with SEED={seed}");
}

#[test]
fn nothing_is_lost_different_or_stuck() {
    if !have_app() {
        return;
    }
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        return survives(seed, 60);
    }
    survives(1, 45);
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_millis() as u64);
    survives(clock, 30);
}
