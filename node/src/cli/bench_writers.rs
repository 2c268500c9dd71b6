//! `quire bench writers`: what it costs where one writes, that writers on two nodes take turns, and that they write
//! different databases. One-row commits through the VFS on a temporary cluster; in each turn one after the other
//!
//! - a writer on the leader, then one on a follower, each alone;
//! - both, one commit each in turn: the lease changes hands before every commit;
//! - one database, then several at the same time, each with a writer of its own on the leader.
//!
//! Only what was measured in one run can be compared.

use super::bench::percentile;
use super::host;
use super::local::{LocalCluster, find_extension};
use crate::args::BenchWritersArgs;
use anyhow::{Context as _, anyhow};
use rusqlite::Connection;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const INSERT: &str = "INSERT INTO t(body) VALUES (hex(randomblob(50)))";
/// Before the first turn.
const WARM_UP: Duration = Duration::from_millis(300);

/// One turn's figures.
struct Turn {
    leader: Duration,
    follower: Duration,
    alternating: Duration,
    one: f64,
    many: f64,
}

impl Turn {
    /// How much longer a commit takes if the one before was another node's.
    fn hand_over(&self) -> f64 {
        millis(self.alternating) - (millis(self.leader) + millis(self.follower)) / 2.0
    }
}

/// Runs the benchmark on a temporary cluster.
pub fn run(args: &BenchWritersArgs) -> anyhow::Result<ExitCode> {
    let extension = find_extension(args.extension.as_deref())?;
    let dir = tempfile::Builder::new().prefix("quire-bench-").tempdir_in(".")?;
    let mut cluster = LocalCluster::new(&std::env::current_exe()?, dir.path(), args.nodes.into())?;
    cluster.start()?;
    let leader = cluster.wait_leader(Duration::from_secs(20))?;
    let follower = cluster.nodes.iter().map(|node| node.id).find(|&id| id != leader);
    let follower = follower.context("--nodes must be 2 at least")?;
    let open = |node: u64, name: &str| -> anyhow::Result<Connection> {
        let path = std::path::absolute(cluster.node(node)?.database(name))?;
        connect(&extension, &path)
    };
    let mut here = open(leader, "bench")?;
    let mut there = open(follower, "bench")?;
    let mut many = Vec::new();
    for n in 0..args.databases {
        many.push(open(leader, &format!("bench{n}"))?);
    }
    for connection in many.iter().chain([&here]) {
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body TEXT)")?;
    }
    alone(&mut here, WARM_UP)?;
    alone(&mut there, WARM_UP)?;

    let length = Duration::from_secs(args.seconds);
    let mut turns = Vec::new();
    for _ in 0..args.turns {
        let turn = Turn {
            leader: median(alone(&mut here, length)?),
            follower: median(alone(&mut there, length)?),
            alternating: median(in_turn(&mut here, &mut there, length)?),
            one: at_once(&mut many[..1], length)?,
            many: at_once(&mut many, length)?,
        };
        if !args.json {
            println!(
                "p50 on the leader {:.2} ms, on a follower {:.2} ms ({:.2} times), alternating {:.2} ms: hand-over {:.2} ms   \
                 1 database {:.0}/s, {} {:.0}/s ({:.2} times)",
                millis(turn.leader),
                millis(turn.follower),
                millis(turn.follower) / millis(turn.leader),
                millis(turn.alternating),
                turn.hand_over(),
                turn.one,
                args.databases,
                turn.many,
                turn.many / turn.one,
            );
        }
        turns.push(turn);
    }
    let middle = |of: &dyn Fn(&Turn) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let follower = middle(&|turn| millis(turn.follower) / millis(turn.leader));
    let hand_over = middle(&Turn::hand_over);
    let relative = middle(&|turn| turn.hand_over() / millis(turn.leader));
    let parallel = middle(&|turn| turn.many / turn.one);
    if args.json {
        let rows = turns.iter().map(|turn| {
            json!({ "leader_p50_ms": millis(turn.leader), "follower_p50_ms": millis(turn.follower),
                "alternating_p50_ms": millis(turn.alternating), "hand_over_ms": turn.hand_over(),
                "one_per_second": turn.one, "many_per_second": turn.many })
        });
        let rows: Vec<_> = rows.collect();
        println!(
            "{}",
            json!({ "nodes": args.nodes, "databases": args.databases, "turns": rows,
                "follower_to_leader": follower, "hand_over_ms": hand_over, "hand_over_to_leader": relative,
                "many_to_one": parallel })
        );
    } else {
        println!(
            "medians of {} turns: a follower's commit takes {follower:.2} times a leader's; a hand-over {hand_over:.2} ms, \
             {relative:.2} times a leader's commit; {} databases {parallel:.2} times the commits of one",
            turns.len(),
            args.databases
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(extension: &Path, path: &Path) -> anyhow::Result<Connection> {
    host::open(Some(extension), &format!("file:{}?vfs=quire", path.display()))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    percentile(&latencies, 0.5)
}

fn commit(connection: &mut Connection) -> anyhow::Result<Duration> {
    let began = Instant::now();
    connection.prepare_cached(INSERT)?.execute([])?;
    Ok(began.elapsed())
}

fn alone(writer: &mut Connection, length: Duration) -> anyhow::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut latencies = Vec::new();
    while began.elapsed() < length {
        latencies.push(commit(writer)?);
    }
    Ok(latencies)
}

fn in_turn(one: &mut Connection, other: &mut Connection, length: Duration) -> anyhow::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut latencies = Vec::new();
    while began.elapsed() < length {
        latencies.push(commit(one)?);
        latencies.push(commit(other)?);
    }
    Ok(latencies)
}

/// Commits per second of all together.
fn at_once(writers: &mut [Connection], length: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let commits = std::thread::scope(|scope| {
        let running: Vec<_> =
            writers.iter_mut().map(|writer| scope.spawn(move || alone(writer, length))).collect();
        let counts = running.into_iter().map(|thread| {
            let latencies = thread.join().map_err(|_| anyhow!("a writer has failed"))??;
            anyhow::Ok(latencies.len())
        });
        counts.sum::<anyhow::Result<usize>>()
    })?;
    Ok(commits as f64 / began.elapsed().as_secs_f64())
}
