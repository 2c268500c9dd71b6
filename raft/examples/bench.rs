//! Commit latency and throughput of three nodes in one process, over QUIC on loopback and real fdatasync.
//!
//! `cargo run --release -p quire-raft --example bench [DIR] [SECONDS]`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_raft::*;

struct Sink;

impl StateMachine for Sink {
    fn applied(&self) -> std::io::Result<AppliedState> {
        Ok(AppliedState::default())
    }

    fn apply(&self, _batch: Vec<Committed>) -> std::io::Result<()> {
        Ok(())
    }

    fn snapshot(&self) -> std::io::Result<(AppliedState, Bytes)> {
        Ok((AppliedState::default(), Bytes::new()))
    }

    fn fetch(&self, _from: NodeId, _snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }

    fn install(&self, _state: AppliedState, _snapshot: Bytes) -> BoxFuture<'static, std::io::Result<()>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }

    fn abandon(&self) {}
}

impl RequestHandler for Sink {
    fn handle(&self, _from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move { request })
    }

    fn bulk(&self, _from: NodeId, _stream: Bulk) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("quire-raft-bench"), PathBuf::from);
    let seconds = args.next().map_or(Ok(5), |s| s.parse())?;
    let _ = std::fs::remove_dir_all(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(dir.clone(), Duration::from_secs(seconds)))?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn run(dir: PathBuf, duration: Duration) -> Result<(), Error> {
    let mut nodes = Vec::new();
    for id in 1..=3u64 {
        let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
        let key = ClusterKey::from_bytes([9; 32]);
        let config = RaftConfig::new(id, dir.join(id.to_string()), listen, Peer::default(), key);
        nodes.push(Raft::start(config, Arc::new(Sink), Arc::new(Sink)).await?);
    }
    let mut members = BTreeMap::new();
    for n in &nodes {
        let raft_addr = n.local_addr().to_string();
        members.insert(n.node_id(), Peer { raft_addr, http_addr: String::new() });
    }
    let t = Instant::now();
    nodes[0].initialize(members).await?;
    let mut watch = nodes[0].watch();
    let leader = watch.wait_for(|s| s.leader.is_some()).await?.leader;
    let leader = nodes.iter().find(|n| Some(n.node_id()) == leader).ok_or("no leader")?.clone();
    println!("leader elected after {:?}", t.elapsed());
    for (clients, size) in [(1, 8192), (1, 128), (8, 8192), (64, 8192), (64, 128)] {
        measure(&leader, clients, size, duration).await?;
    }
    let mut reads = Vec::new();
    for _ in 0..500 {
        let t = Instant::now();
        leader.read_barrier(Duration::from_secs(5)).await?;
        reads.push(t.elapsed());
    }
    report("read barrier", reads, 0, Duration::ZERO);
    let mut survivors = nodes.clone();
    survivors.retain(|n| n.node_id() != leader.node_id());
    let t = Instant::now();
    leader.shutdown().await;
    let mut watch = survivors[0].watch();
    watch.wait_for(|s| s.leader.is_some_and(|l| l != leader.node_id())).await?;
    println!("failover {:?} after the start of a clean shutdown", t.elapsed());
    for n in survivors {
        n.shutdown().await;
    }
    Ok(())
}

async fn measure(raft: &Raft, clients: usize, size: usize, duration: Duration) -> Result<(), Error> {
    let bytes = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let start = Instant::now();
    for c in 0..clients {
        let (raft, bytes) = (raft.clone(), bytes.clone());
        tasks.push(tokio::spawn(async move {
            let command = Bytes::from(vec![c as u8; size]);
            let mut times = Vec::new();
            while start.elapsed() < duration {
                let t = Instant::now();
                raft.propose(command.clone()).await?;
                times.push(t.elapsed());
                bytes.fetch_add(size as u64, Ordering::Relaxed);
            }
            Ok::<_, ProposeError>(times)
        }));
    }
    let mut all = Vec::new();
    for t in tasks {
        all.extend(t.await??);
    }
    report(&format!("{clients:>2} clients, {size} B"), all, bytes.load(Ordering::Relaxed), start.elapsed());
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>, bytes: u64, elapsed: Duration) {
    times.sort_unstable();
    let at = |p: usize| times.get(times.len() * p / 1000).copied().unwrap_or_default();
    print!(
        "{what}: {} calls, p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}",
        times.len(),
        at(500),
        at(900),
        at(990),
        at(999)
    );
    if !elapsed.is_zero() {
        let s = elapsed.as_secs_f64();
        print!(", {:.0}/s, {:.1} MB/s", times.len() as f64 / s, bytes as f64 / s / 1e6);
    }
    println!();
}
