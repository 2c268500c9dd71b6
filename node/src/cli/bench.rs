//! `quire bench`: commits per second through the VFS, as a ratio to plain SQLite with `synchronous=FULL` on
//! the same disk, in turns in one run.

use super::host;
use super::local::{LocalCluster, find_extension};
use crate::args::BenchArgs;
use anyhow::Context as _;
use rusqlite::Connection;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const INSERT: &str = "INSERT INTO t(body) VALUES (hex(randomblob(50)))";

struct Turn {
    commits: f64,
    latencies: Vec<Duration>,
}

/// Runs the benchmark on a temporary cluster.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let extension = find_extension(args.extension.as_deref())?;
    let dir = tempfile::Builder::new().prefix("quire-bench-").tempdir_in(".")?;
    let mut cluster = LocalCluster::new(&std::env::current_exe()?, dir.path(), args.nodes.into())?;
    cluster.start()?;
    let leader = cluster.wait_leader(Duration::from_secs(20))?;
    let node = match args.follower {
        true => cluster.nodes.iter().map(|node| node.id).find(|&id| id != leader),
        false => Some(leader),
    };
    let node = node.context("--follower needs more than one node")?;
    let path = cluster.node(node)?.database("bench").canonicalize();
    let path = path.unwrap_or(std::path::absolute(cluster.node(node)?.database("bench"))?);

    let plain = Connection::open(dir.path().join("plain.db"))?;
    plain.pragma_update(None, "journal_mode", "wal")?;
    plain.pragma_update(None, "synchronous", "full")?;
    let quire = host::open(Some(&extension), &format!("file:{}?vfs=quire", path.display()))?;
    for connection in [&plain, &quire] {
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT)")?;
        turn(connection, Duration::from_millis(300))?;
    }
    let length = Duration::from_secs(args.seconds);
    let mut rows = Vec::new();
    for _ in 0..args.turns {
        let (a, b) = (turn(&plain, length)?, turn(&quire, length)?);
        if !args.json {
            println!(
                "plain FULL {:>7.0}/s   quire on {} nodes {:>7.0}/s   ratio {:.2}   p50 {:?} p99 {:?} p99.9 {:?}",
                a.commits,
                args.nodes,
                b.commits,
                b.commits / a.commits,
                percentile(&b.latencies, 0.5),
                percentile(&b.latencies, 0.99),
                percentile(&b.latencies, 0.999),
            );
        }
        rows.push((a.commits, b.commits));
    }
    let mut ratios: Vec<f64> = rows.iter().map(|(a, b)| b / a).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    if args.json {
        println!(
            "{}",
            json!({ "nodes": args.nodes, "turns": rows, "ratios": ratios, "median_ratio": median })
        );
    } else {
        println!("median ratio {median:.2} (of {} turns)", ratios.len());
    }
    Ok(ExitCode::SUCCESS)
}

fn turn(connection: &Connection, length: Duration) -> anyhow::Result<Turn> {
    let mut statement = connection.prepare(INSERT)?;
    let began = Instant::now();
    let mut latencies = Vec::new();
    while began.elapsed() < length {
        let start = Instant::now();
        statement.execute([])?;
        latencies.push(start.elapsed());
    }
    let commits = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Turn { commits, latencies })
}

pub(super) fn percentile(sorted: &[Duration], q: f64) -> Duration {
    let n = (sorted.len() as f64 * q) as usize;
    sorted.get(n.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
