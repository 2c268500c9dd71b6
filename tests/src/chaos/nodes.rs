//! The nodes of a run: each a `quire` process, in a network namespace of its own if that can be had, with a disk and
//! a clock that can be made to fail.

use super::clients::Place;
use super::disk::{self, Disk};
use super::net::Network;
use crate::hosts::skip;
use nix::sys::signal::Signal;
use quire_node::cli::local::LocalCluster;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the cluster may take for anything once all is healed, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

const FLAGS: [&str; 14] = [
    "--log-segment-mib",
    "1",
    "--checkpoint-mib",
    "1",
    "--log-retain-mib",
    "1",
    "--commit-timeout-ms",
    "5000",
    "--lease-timeout-ms",
    "3000",
    "--catch-up-ms",
    "5000",
    "--scrub-rate-mib",
    "64",
];

/// By which runs differ beside their faults: some have transactions travel in parts.
const VARIANTS: [&[&str]; 3] =
    [&[], &["--part-kib", "8"], &["--part-kib", "64", "--election-timeout-ms", "1000"]];

/// The nodes.
#[derive(Debug)]
pub struct Nodes {
    /// Their processes.
    pub cluster: LocalCluster,
    /// Their network, unless they are on loopback.
    pub network: Option<Network>,
    disks: BTreeMap<u64, Disk>,
    dir: PathBuf,
    shim: Option<PathBuf>,
    variant: &'static [&'static str],
    /// Which were killed, and are to be started.
    pub down: BTreeSet<u64>,
    /// Which have a SIGSTOP.
    pub paused: BTreeSet<u64>,
    /// Which have a SIGTERM, and are to end.
    pub stopping: BTreeSet<u64>,
    /// Until when an exit is the consequence of a disk's fault.
    may_end: BTreeMap<u64, Instant>,
}

impl Nodes {
    /// Prepares `count` nodes; none is started. The calling thread enters the network.
    pub fn prepare(dir: &Path, seed: u64, count: u64) -> anyhow::Result<Nodes> {
        let shim = match disk::prepare(dir) {
            Ok(library) => Some(library),
            Err(why) => {
                skip(&format!("faults of disk and clock: {why}"));
                None
            }
        };
        let network = match Network::start(seed) {
            Ok(network) => Some(network),
            Err(why) => {
                skip(&format!("faults of the network, which need root and /dev/net/tun: {why}"));
                None
            }
        };
        let program = &crate::programs().quire;
        // In a namespace nobody else is on loopback.
        let ip = if network.is_some() { Ipv4Addr::LOCALHOST.into() } else { crate::own_address() };
        let cluster = LocalCluster::on(ip, program, dir, 0)?;
        let mut nodes = Nodes {
            cluster,
            network,
            disks: BTreeMap::new(),
            dir: dir.to_owned(),
            shim,
            variant: VARIANTS[(seed % VARIANTS.len() as u64) as usize],
            down: BTreeSet::new(),
            paused: BTreeSet::new(),
            stopping: BTreeSet::new(),
            may_end: BTreeMap::new(),
        };
        for _ in 0..count {
            nodes.add(&[])?;
        }
        Ok(nodes)
    }

    /// Starts all and waits until all vote.
    pub fn start_all(&mut self) -> anyhow::Result<()> {
        let ids = self.ids();
        for id in &ids {
            self.start(*id)?;
            if *id == ids[0] {
                self.cluster.wait_leader(PATIENCE)?;
            }
        }
        self.wait_voters(&ids)
    }

    /// Waits until all running nodes see these voters.
    pub fn wait_voters(&self, ids: &[u64]) -> anyhow::Result<()> {
        self.cluster.wait(&format!("{ids:?} to vote"), PATIENCE, |cluster| {
            let mut running = cluster.nodes.iter().filter(|node| node.is_running());
            running.all(|node| node.voters().is_some_and(|voters| voters == ids))
        })
    }

    /// Prepares one more node; its id.
    pub fn add(&mut self, flags: &[&str]) -> anyhow::Result<u64> {
        let id = self.cluster.add()?;
        let disk = Disk::create(self.dir.join(format!("control{id}")))?;
        let node = self.cluster.node_mut(id)?;
        node.flags = FLAGS.iter().chain(self.variant).chain(flags).map(|&flag| flag.to_owned()).collect();
        if let Some(shim) = &self.shim {
            node.env = disk.environment(shim, &node.dir);
        }
        self.disks.insert(id, disk);
        if let Some(network) = &mut self.network {
            network.place(node)?;
        }
        Ok(id)
    }

    /// Kills a node and forgets it, with all that it has.
    pub fn forget(&mut self, id: u64) -> anyhow::Result<()> {
        let dir = self.cluster.node(id)?.dir.clone();
        self.cluster.forget(id)?;
        self.down.remove(&id);
        self.paused.remove(&id);
        self.stopping.remove(&id);
        self.may_end.remove(&id);
        self.disks.remove(&id);
        // Its place in the network stays: what its kernel has to say to its clients must get through.
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }

    /// Starts a node, again or for the first time.
    pub fn start(&mut self, id: u64) -> anyhow::Result<()> {
        Network::start_node(self.network.as_ref(), &mut self.cluster, id)?;
        self.down.remove(&id);
        Ok(())
    }

    /// Kills a node, if it runs.
    pub fn kill(&mut self, id: u64) -> anyhow::Result<bool> {
        if !self.cluster.node(id)?.is_running() {
            return Ok(false);
        }
        self.cluster.kill(id)?;
        self.down.insert(id);
        self.paused.remove(&id);
        self.stopping.remove(&id);
        Ok(true)
    }

    /// All nodes' ids, in order.
    pub fn ids(&self) -> Vec<u64> {
        self.cluster.nodes.iter().map(|node| node.id).collect()
    }

    /// The ids of those that run and go on running.
    pub fn up(&self) -> Vec<u64> {
        let not_up = [&self.down, &self.paused, &self.stopping];
        let up = |id: &u64| not_up.iter().all(|ids| !ids.contains(id));
        self.ids().into_iter().filter(up).collect()
    }

    /// A node's disk, unless there is no way to make it fail.
    pub fn disk(&self, id: u64) -> Option<&Disk> {
        self.shim.as_ref()?;
        self.disks.get(&id)
    }

    /// A disk's fault may end its node from now on, and for so long.
    pub fn may_end(&mut self, id: u64, lasts: Duration) {
        self.may_end.insert(id, Instant::now() + lasts);
    }

    /// Has a node end in good order; [`Nodes::reap`] sees it.
    pub fn stop(&mut self, id: u64) -> anyhow::Result<()> {
        self.cluster.node(id)?.signal(Signal::SIGTERM)?;
        self.stopping.insert(id);
        Ok(())
    }

    /// Waits for those that are to end; what is wrong with that.
    pub fn wait_stopped(&mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut errors = Vec::new();
        while !self.stopping.is_empty() {
            errors.extend(self.reap());
            if Instant::now() >= deadline {
                let who = std::mem::take(&mut self.stopping);
                errors.push(format!("hang: {who:?} don't end\n{}", self.cluster.logs(15)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        errors
    }

    /// The disks have healed: from so long on no exit is their doing.
    pub fn shorten_aftermath(&mut self, lasts: Duration) {
        let until = Instant::now() + lasts;
        self.may_end.values_mut().for_each(|end| *end = until.min(*end));
    }

    /// Notices nodes that have ended, and why they should not have.
    pub fn reap(&mut self) -> Vec<String> {
        let mut errors = Vec::new();
        for id in self.ids() {
            let running = self.cluster.node(id).is_ok_and(|node| node.is_running());
            let Ok(status) = (if running { self.cluster.wait_exit(id, Duration::ZERO) } else { continue })
            else {
                continue;
            };
            self.down.insert(id);
            self.paused.remove(&id);
            // In its first moments the signal ends it at once.
            let by_signal = status.signal() == Some(Signal::SIGTERM as i32);
            if self.stopping.remove(&id) && (status.success() || by_signal) {
                continue;
            }
            // With a status of its own: it has said why. A signal is a crash.
            if status.code().is_none() || self.may_end.get(&id).is_none_or(|until| Instant::now() > *until) {
                let log = self.cluster.node(id).map(|node| node.log()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(12)..].join("\n");
                errors.push(format!("node {id} ended by itself: {status}\n{end}"));
            }
        }
        errors
    }

    /// Lines of logs, also of nodes that are gone, by which a database was fenced for another reason than a fault that
    /// fences it rightly.
    pub fn strange_fences(&self) -> std::io::Result<Vec<String>> {
        const RIGHTLY: [&str; 4] =
            ["changed or damaged", "changed while the node was down", "No space left", "Input/output error"];
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                let fences = log.lines().filter(|line| line.contains("ERROR") && line.contains("fenced: "));
                let strange = fences.filter(|line| RIGHTLY.iter().all(|reason| !line.contains(reason)));
                found.extend(strange.map(str::to_owned));
            }
        }
        Ok(found)
    }

    /// Who leads, as far as those know that answer soon.
    pub fn leader(&self) -> Option<u64> {
        let raft = |id: u64| {
            let status = self.get(id, "/status")?;
            let raft = &status["store"]["raft"];
            (raft["state"] == "Leader").then(|| (raft["term"].as_u64().unwrap_or(0), id))
        };
        self.up().into_iter().filter_map(raft).max().map(|(_, id)| id)
    }

    /// A quick question.
    pub fn get(&self, id: u64, path: &str) -> Option<Value> {
        let (_, body) = self.ask(id, "GET", path, "", Duration::from_secs(2)).ok()?;
        serde_json::from_str(&body).ok()
    }

    /// A request, to be answered in time.
    pub fn ask(
        &self,
        id: u64,
        method: &str,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> std::io::Result<(u16, String)> {
        use std::io::Write;
        let node = self.cluster.node(id).map_err(std::io::Error::other)?;
        let address: SocketAddr = node.http.parse().map_err(std::io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let (host, len) = (&node.http, body.len());
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {len}\r\n\r\n{body}");
        stream.write_all(head.as_bytes())?;
        let answer = crate::http::read(&mut stream)?;
        Ok((answer.status, answer.body))
    }

    /// Where a node is, for its clients.
    pub fn place(&self, id: u64) -> anyhow::Result<Place> {
        let node = self.cluster.node(id)?;
        Ok(Place { id, http: node.http.clone(), dir: node.dir.clone() })
    }
}
