//! A network of our own: each node in a network namespace, whose only device is a TUN; all TUNs end in one
//! thread here, which passes the packets on as [`Links`] says. Node `N` has 10.77.0.`N`; the harness has
//! 10.77.0.254, and its links are perfect.
//!
//! `tc netem`, iptables and nft would do the same, where the kernel has them; this needs /dev/net/tun and root.

use super::links::Links;
use super::tun;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use quire_node::cli::local::{LocalCluster, LocalNode};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The harness's place in the network.
pub const HARNESS: u8 = 254;
/// Packets under way; beyond that they are dropped, as by any switch.
const QUEUE: usize = 20_000;
/// How soon the switch notices that a node was added, or that it is to end.
const IDLE_MS: u8 = 20;

/// Where a node listens, in its place.
const HTTP_PORT: u16 = 4001;
const RAFT_PORT: u16 = 4002;

/// A node's address.
pub fn address(id: u8) -> String {
    format!("10.77.0.{id}")
}

/// A network namespace, for as long as this or a process in it lives.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    fn create(id: u8) -> io::Result<(Namespace, File)> {
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| -> io::Result<(Namespace, File)> {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    let device = tun::open()?;
                    ip(&["link", "set", "lo", "up"])?;
                    ip(&["addr", "add", &format!("{}/24", address(id)), "dev", tun::DEVICE])?;
                    ip(&["link", "set", tun::DEVICE, "up"])?;
                    Ok((Namespace { handle: File::open("/proc/thread-self/ns/net")? }, device))
                })
                .join()
        });
        made.unwrap_or_else(|_| Err(io::Error::other("the thread that made a namespace panicked")))
    }

    /// Moves the calling thread there, with all threads and processes that it starts from then on.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs something there, on a thread of its own.
    pub fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let there = || {
            self.enter().unwrap();
            body()
        };
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }
}

fn ip(args: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {args:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The network.
#[derive(Debug)]
pub struct Network {
    namespaces: BTreeMap<u8, Namespace>,
    shared: Arc<Shared>,
    switch: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ports: Mutex<BTreeMap<u8, Arc<File>>>,
    links: Mutex<Links>,
    ends: AtomicBool,
}

impl Network {
    /// A network without nodes, which the calling thread enters.
    pub fn start(seed: u64) -> io::Result<Network> {
        let shared = Arc::new(Shared {
            ports: Mutex::default(),
            links: Mutex::new(Links::new(seed)),
            ends: AtomicBool::new(false),
        });
        let mut network = Network { namespaces: BTreeMap::new(), shared: shared.clone(), switch: None };
        network.add(HARNESS)?.enter()?;
        network.switch = Some(std::thread::spawn(move || switch(&shared)));
        Ok(network)
    }

    /// Makes a node's place.
    pub fn add(&mut self, id: u8) -> io::Result<&Namespace> {
        let (namespace, device) = Namespace::create(id)?;
        self.shared.ports.lock().unwrap().insert(id, Arc::new(device));
        Ok(self.namespaces.entry(id).or_insert(namespace))
    }

    /// Makes a cluster's node its place, and gives it the addresses there.
    pub fn place(&mut self, node: &mut LocalNode) -> anyhow::Result<()> {
        let id = u8::try_from(node.id)?;
        node.http = format!("{}:{HTTP_PORT}", address(id));
        node.raft = format!("{}:{RAFT_PORT}", address(id));
        self.add(id)?;
        Ok(())
    }

    /// Starts a cluster's node in its place, or where the others are if there is no network.
    pub fn start_node(network: Option<&Network>, cluster: &mut LocalCluster, id: u64) -> anyhow::Result<()> {
        match network.and_then(|network| network.namespace(id as u8)) {
            Some(namespace) => namespace.within(|| cluster.start_node(id)),
            None => cluster.start_node(id),
        }
    }

    /// A node's place.
    pub fn namespace(&self, id: u8) -> Option<&Namespace> {
        self.namespaces.get(&id)
    }

    /// What the links are like.
    pub fn links(&self) -> MutexGuard<'_, Links> {
        self.shared.links.lock().unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(switch) = self.switch.take() {
            let _ = switch.join();
        }
    }
}

/// A packet under way: when it is due, in which order it came, to whom.
type Due = Reverse<(Instant, u64, u8, Vec<u8>)>;

fn switch(shared: &Shared) {
    let mut heap: BinaryHeap<Due> = BinaryHeap::new();
    let mut order = 0;
    let mut buffer = [0; 65536];
    while !shared.ends.load(Ordering::Relaxed) {
        let ports: Vec<Arc<File>> = shared.ports.lock().unwrap().values().cloned().collect();
        let mut polled: Vec<PollFd<'_>> =
            ports.iter().map(|port| PollFd::new(port.as_fd(), PollFlags::POLLIN)).collect();
        let wait = heap
            .peek()
            .map_or(Duration::MAX, |Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let wait = wait.as_micros().div_ceil(1000).min(u128::from(IDLE_MS)) as u8;
        if poll(&mut polled, PollTimeout::from(wait)).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|p| p.any() == Some(true)).collect();
        for (port, _) in ports.iter().zip(ready).filter(|(_, ready)| *ready) {
            // What has come, but not for ever: others wait.
            for _ in 0..64 {
                let Ok(len) = port.as_ref().read(&mut buffer) else { break };
                // IPv4 only; the last bytes of source and destination say between whom.
                if len < 20 || buffer[0] >> 4 != 4 {
                    continue;
                }
                let (from, to) = (buffer[15], buffer[19]);
                for delay in shared.links.lock().unwrap().pass(from, to) {
                    if heap.len() < QUEUE {
                        order += 1;
                        heap.push(Reverse((Instant::now() + delay, order, to, buffer[..len].to_vec())));
                    }
                }
            }
        }
        while heap.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, _, to, packet))) = heap.pop() else { break };
            let port = shared.ports.lock().unwrap().get(&to).cloned();
            // Nobody there, or its queue is full: lost, as on any network.
            let _ = port.map(|port| port.as_ref().write(&packet));
        }
    }
}
