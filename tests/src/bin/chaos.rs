//! `cargo run --release -p quire-tests --bin chaos -- [--seed S] [--minutes M] [--nodes N]`: faults for a long time;
//! see docs/chaos.md. Exits with 1 if anything is not as it must be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test support")]

use quire_tests::chaos::run::{Config, run};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
    let mut config = Config { seed: clock, lasts: Duration::from_secs(600), nodes: 3 };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().and_then(|value| value.parse::<u64>().ok());
        match (flag.as_str(), value) {
            ("--seed", Some(seed)) => config.seed = seed,
            ("--minutes", Some(minutes)) => config.lasts = Duration::from_secs(60 * minutes),
            ("--nodes", Some(nodes @ 1..=9)) => config.nodes = nodes,
            _ => {
                eprintln!("usage: chaos [--seed S] [--minutes M] [--nodes N]");
                return ExitCode::from(2);
            }
        }
    }
    match run(&config) {
        Ok(report) => {
            print!("{report}");
            ExitCode::from(u8::from(!report.violations.is_empty()))
        }
        Err(why) => {
            println!("seed {}: {why:#}", config.seed);
            ExitCode::FAILURE
        }
    }
}
