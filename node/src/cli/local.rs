//! A cluster of node processes on loopback, for the demo, the benchmark and the tests. Ends with its owner.

use super::client::Client;
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quire_raft::ClusterKey;
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// One node's process, running or not.
#[derive(Debug)]
pub struct LocalNode {
    /// Its id.
    pub id: u64,
    /// Its data directory.
    pub dir: PathBuf,
    /// Its HTTP address.
    pub http: String,
    /// Its Raft address.
    pub raft: String,
    /// Further flags.
    pub flags: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    child: Option<Child>,
}

/// Some nodes that form a cluster.
#[derive(Debug)]
pub struct LocalCluster {
    program: PathBuf,
    dir: PathBuf,
    ip: IpAddr,
    next_id: u64,
    /// The nodes, in order of their ids from 1.
    pub nodes: Vec<LocalNode>,
}

/// The loadable extension: as named, or beside the running program.
pub fn find_extension(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    const NAME: &str = "libquire_vfs.so";
    if let Some(path) = named {
        return path.canonicalize().with_context(|| path.display().to_string());
    }
    let program = std::env::current_exe()?;
    let here = program.parent().unwrap_or(Path::new("."));
    let places = [here.join(NAME), here.join("deps").join(NAME), here.join("../lib/quire").join(NAME)];
    // The newest: cargo leaves older ones of other builds lying there.
    let built = places.into_iter().filter_map(|place| Some((place.metadata().ok()?.modified().ok()?, place)));
    built.max().map(|(_, place)| place).with_context(|| {
        format!(
            "{NAME} is not beside {}; build it (cargo build) or name it with --extension",
            program.display()
        )
    })
}

fn free_ports(ip: IpAddr) -> anyhow::Result<(String, String)> {
    let tcp = TcpListener::bind((ip, 0))?.local_addr()?;
    let udp = UdpSocket::bind((ip, 0))?.local_addr()?;
    Ok((tcp.to_string(), udp.to_string()))
}

impl LocalNode {
    /// Its database file of that name.
    pub fn database(&self, name: &str) -> PathBuf {
        self.dir.join("db").join(format!("{name}.db"))
    }

    /// A client of its API.
    pub fn client(&self) -> Client {
        Client::new(&self.http)
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|child| Pid::from_raw(child.id() as i32))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("node {} is not running", self.id))?;
        Ok(kill(pid, signal)?)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// The ids of the voters, in order, as this node knows them, if it answers.
    pub fn voters(&self) -> Option<Vec<u64>> {
        let status = self.status()?;
        let nodes = status["store"]["nodes"].as_array()?.iter().filter(|n| n["suffrage"] == "voter");
        nodes.map(|n| n["id"].as_str()?.parse().ok()).collect()
    }

    /// Its `/status`, if it answers.
    pub fn status(&self) -> Option<Value> {
        self.child.as_ref().and_then(|_| self.client().get("/status").ok())
    }
}

impl LocalCluster {
    /// Prepares `count` nodes under `dir`, run by `program`; none is started.
    pub fn new(program: &Path, dir: &Path, count: u64) -> anyhow::Result<LocalCluster> {
        LocalCluster::on(Ipv4Addr::LOCALHOST.into(), program, dir, count)
    }

    /// The same on an address of its own, such as another one of 127.0.0.0/8: there nobody else, not even an outgoing
    /// connection, takes the port of a node that is down.
    pub fn on(ip: IpAddr, program: &Path, dir: &Path, count: u64) -> anyhow::Result<LocalCluster> {
        std::fs::create_dir_all(dir)?;
        ClusterKey::generate(dir.join("cluster.key"))?;
        let (program, dir) = (program.to_owned(), dir.to_owned());
        let mut cluster = LocalCluster { program, dir, ip, next_id: 1, nodes: Vec::new() };
        for _ in 0..count {
            cluster.add()?;
        }
        Ok(cluster)
    }

    /// Prepares one more node and returns its id.
    pub fn add(&mut self) -> anyhow::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let (http, raft) = self.unused_ports()?;
        let dir = self.dir.join(format!("node{id}"));
        self.nodes.push(LocalNode { id, dir, http, raft, flags: Vec::new(), env: Vec::new(), child: None });
        Ok(id)
    }

    /// Starts all nodes and waits until all vote.
    pub fn start(&mut self) -> anyhow::Result<()> {
        for id in 1..=self.nodes.len() as u64 {
            self.start_node(id)?;
            if id == 1 {
                self.wait_leader(Duration::from_secs(20))?;
            }
        }
        let count = self.nodes.len();
        self.wait("all nodes to vote", Duration::from_secs(60), |cluster| {
            cluster.nodes.iter().all(|node| node.voters().is_some_and(|voters| voters.len() == count))
        })
    }

    /// Kills a node and forgets it; its id is not used again.
    pub fn forget(&mut self, id: u64) -> anyhow::Result<()> {
        if self.node(id)?.is_running() {
            self.kill(id)?;
        }
        self.nodes.retain(|node| node.id != id);
        Ok(())
    }

    /// Gives a node, which must not run, other addresses.
    pub fn readdress(&mut self, id: u64) -> anyhow::Result<()> {
        let (http, raft) = self.unused_ports()?;
        let node = self.node_mut(id)?;
        (node.http, node.raft) = (http, raft);
        Ok(())
    }

    /// The kernel may hand out again what another node has been given and doesn't use yet.
    fn unused_ports(&self) -> anyhow::Result<(String, String)> {
        loop {
            let (http, raft) = free_ports(self.ip)?;
            if self.nodes.iter().all(|node| node.http != http && node.raft != raft) {
                return Ok((http, raft));
            }
        }
    }

    /// Starts a node, for the first time or again. All but the first are told to join the first in the list.
    pub fn start_node(&mut self, id: u64) -> anyhow::Result<()> {
        let join = self.nodes[0].raft.clone();
        let key = self.dir.join("cluster.key");
        let node = self.node_mut(id)?;
        std::fs::create_dir_all(&node.dir)?;
        let log = File::options().create(true).append(true).open(node.log_path())?;
        let mut command = Command::new(&self.program);
        let node = self.nodes.iter_mut().find(|n| n.id == id).context("no such node")?;
        command.arg("node").arg("--data-dir").arg(&node.dir).arg("--node-id").arg(id.to_string());
        command.args(["--http-addr", &node.http, "--raft-addr", &node.raft]);
        command.arg("--cluster-key").arg(key).args(&node.flags);
        if id != 1 {
            command.args(["--join", &join]);
        }
        command.envs(node.env.iter().map(|(k, v)| (k, v))).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.child = Some(command.spawn().with_context(|| format!("can't run {}", self.program.display()))?);
        Ok(())
    }

    /// A node by its id.
    pub fn node(&self, id: u64) -> anyhow::Result<&LocalNode> {
        self.nodes.iter().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// A node by its id.
    pub fn node_mut(&mut self, id: u64) -> anyhow::Result<&mut LocalNode> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        self.end(id, Signal::SIGKILL).map(drop)
    }

    /// Ends a node with SIGTERM and waits for it.
    pub fn stop(&mut self, id: u64) -> anyhow::Result<ExitStatus> {
        self.end(id, Signal::SIGTERM)
    }

    fn end(&mut self, id: u64, signal: Signal) -> anyhow::Result<ExitStatus> {
        let node = self.node_mut(id)?;
        node.signal(signal)?;
        let mut child = node.child.take().with_context(|| format!("node {id} is not running"))?;
        Ok(child.wait()?)
    }

    /// Waits for a node's process to end by itself.
    pub fn wait_exit(&mut self, id: u64, patience: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        let node = self.node_mut(id)?;
        let child = node.child.as_mut().with_context(|| format!("node {id} is not running"))?;
        loop {
            if let Some(status) = child.try_wait()? {
                node.child = None;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("node {id} still runs after {patience:?}");
            }
            sleep(POLL);
        }
    }

    /// The leader in whom a majority of the running nodes agree, once there is one that can take writes.
    pub fn wait_leader(&self, patience: Duration) -> anyhow::Result<u64> {
        let mut found = 0;
        self.wait("a leader", patience, |cluster| {
            let leads = |node: &&LocalNode| {
                node.status()
                    .is_some_and(|s| s["store"]["raft"]["state"] == "Leader" && s["store"]["ready"] == true)
            };
            let leader = cluster.nodes.iter().find(leads);
            let Some(leader) = leader else { return false };
            let id = leader.id.to_string();
            let agree = cluster.nodes.iter().filter_map(LocalNode::status);
            let agree = agree.filter(|s| s["store"]["leader"]["node_id"] == id.as_str()).count();
            found = leader.id;
            let running = cluster.nodes.iter().filter(|node| node.is_running()).count();
            2 * agree > running
        })?;
        Ok(found)
    }

    /// Waits until all running nodes have applied what the leader has.
    pub fn wait_applied(&self, name: &str, patience: Duration) -> anyhow::Result<()> {
        self.wait("all nodes to catch up", patience, |cluster| {
            let running = cluster.nodes.iter().filter(|node| node.is_running());
            let states: Vec<_> = running
                .map(|node| {
                    let status = node.status()?;
                    let databases = status["store"]["databases"].as_array()?.clone();
                    let database = databases.into_iter().find(|db| db["name"] == name)?;
                    Some((database["index"].clone(), database["queued"].clone()))
                })
                .collect();
            states.iter().all(|s| s.is_some() && *s == states[0] && s.as_ref().is_some_and(|s| s.1 == 0))
        })
    }

    /// Waits for a condition; the error says for what, and shows how the nodes' logs end.
    pub fn wait(
        &self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&LocalCluster) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            if Instant::now() >= deadline {
                bail!("waited {patience:?} for {what}\n{}", self.logs(15));
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// The last lines of all logs.
    pub fn logs(&self, lines: usize) -> String {
        let mut out = String::new();
        for node in &self.nodes {
            let log = node.log();
            let all: Vec<_> = log.lines().collect();
            out +=
                &format!("--- node {} ({})\n", node.id, if node.is_running() { "running" } else { "down" });
            for line in &all[all.len().saturating_sub(lines)..] {
                out += &format!("{line}\n");
            }
        }
        out
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
