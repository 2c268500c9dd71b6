//! Brings the faults of a [`Step`] about, and heals them.

use super::clients::Process;
use super::links::Link;
use super::net::HARNESS;
use super::nodes::{Nodes, PATIENCE};
use super::plan::{Fault, Step, Whom};
use super::run::Shared;
use super::work::MAIN;
use nix::libc::{EIO, ENOSPC};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// After a disk's fault has gone, its node may still end by what it met.
const AFTERMATH: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(150);
const PAGE: usize = 4096;

/// What a step has begun.
#[derive(Debug)]
enum Begun {
    Nothing,
    Flap(u64),
    PausedApp(Process),
    Corrupted,
    Removing {
        id: u64,
        slot: usize,
    },
    Replica(u64),
    /// A disk of which so many operations had failed before.
    Disk {
        id: u64,
        kind: &'static str,
        before: u64,
    },
}

/// Who does the harm.
#[derive(Debug)]
pub struct Nemesis<'a> {
    shared: &'a Shared,
    /// The nodes.
    pub nodes: Nodes,
    apps: Vec<Process>,
    /// How many faults there were, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// How many could not be brought about, and why the last one.
    pub skipped: BTreeMap<&'static str, (u64, String)>,
}

impl<'a> Nemesis<'a> {
    /// One who harms these nodes, and these apps.
    pub fn new(shared: &'a Shared, nodes: Nodes, apps: Vec<Process>) -> Nemesis<'a> {
        Nemesis { shared, nodes, apps, counts: BTreeMap::new(), skipped: BTreeMap::new() }
    }

    /// Runs one step: faults, their time, their end.
    pub fn step(&mut self, step: &Step) {
        let mut begun = Vec::new();
        for fault in &step.faults {
            match self.begin(fault) {
                Ok(what) => {
                    *self.counts.entry(fault.kind()).or_default() += 1;
                    begun.push(what);
                }
                Err(why) => self.skip(fault.kind(), format!("{why:#}")),
            }
        }
        let until = Instant::now() + step.lasts;
        let mut cut = false;
        while Instant::now() < until {
            sleep(TICK.min(until.saturating_duration_since(Instant::now())));
            cut = !cut;
            for what in &begun {
                if let Begun::Flap(id) = what {
                    self.cut(*id, cut, cut);
                }
            }
        }
        if let Err(why) = self.heal(begun) {
            self.shared.violation(format!("after {:?}: {why:#}", step.faults));
        }
    }

    /// A fault could not be brought about.
    fn skip(&mut self, kind: &'static str, why: String) {
        let skipped = self.skipped.entry(kind).or_default();
        *skipped = (skipped.0 + 1, why);
    }

    /// A fault that was begun has met nothing: it doesn't count.
    fn in_vain(&mut self, kind: &'static str, why: &str) {
        if let Some(count) = self.counts.get_mut(kind) {
            *count -= 1;
        }
        self.counts.retain(|_, count| *count > 0);
        self.skip(kind, why.to_owned());
    }

    fn whom(&self, whom: Whom) -> anyhow::Result<u64> {
        let up = self.nodes.up();
        anyhow::ensure!(!up.is_empty(), "no node is up");
        let among = |ids: &[u64], pick: u64| ids.get(pick as usize % ids.len().max(1)).copied();
        let found = match whom {
            Whom::Any(pick) => among(&up, pick),
            Whom::Leader => self.nodes.leader(),
            Whom::Follower(pick) => {
                let leader = self.nodes.leader();
                let others: Vec<u64> = up.into_iter().filter(|id| Some(*id) != leader).collect();
                among(&others, pick)
            }
        };
        found.ok_or_else(|| anyhow::anyhow!("there is none: {whom:?}"))
    }

    fn begin(&mut self, fault: &Fault) -> anyhow::Result<Begun> {
        if fault.needs_network() && self.nodes.network.is_none() {
            anyhow::bail!("there is no network of our own");
        }
        match *fault {
            Fault::Kill(whom) => {
                let id = self.whom(whom)?;
                anyhow::ensure!(self.nodes.kill(id)?, "node {id} had ended already");
            }
            Fault::KillAll => {
                for id in self.nodes.ids() {
                    self.nodes.kill(id)?;
                }
            }
            Fault::Stop(whom) => self.nodes.stop(self.whom(whom)?)?,
            Fault::Pause(whom) => {
                let id = self.whom(whom)?;
                self.nodes.cluster.node(id)?.signal(Signal::SIGSTOP)?;
                self.nodes.paused.insert(id);
            }
            Fault::Cut(whom) => self.cut(self.whom(whom)?, true, true),
            Fault::OneWay(whom, outward) => self.cut(self.whom(whom)?, outward, !outward),
            Fault::Flap(whom) => return Ok(Begun::Flap(self.whom(whom)?)),
            Fault::Loss(loss) => self.everywhere(Link { loss, ..Link::default() }),
            Fault::Delay(ms) => {
                let delay = Duration::from_millis(ms);
                self.everywhere(Link { delay, jitter: delay, ..Link::default() });
            }
            Fault::Disorder => self.everywhere(Link { twice: 200, late: 200, ..Link::default() }),
            Fault::Clock(whom, seconds) => self.disk(whom)?.1.clock(seconds)?,
            Fault::SlowDisk(whom, ms) => {
                let time = Duration::from_millis(ms);
                self.disk(whom)?.1.slow(time, time / 10)?;
            }
            Fault::BadDisk(whom, count) => return self.fail(fault.kind(), whom, EIO, Some(count as i32)),
            Fault::FullDisk(whom) => return self.fail(fault.kind(), whom, ENOSPC, None),
            Fault::Corrupt(whom, pick) => return self.corrupt(whom, pick),
            Fault::Transfer => {
                let leader = self.whom(Whom::Leader)?;
                let (status, body) =
                    self.nodes.ask(leader, "POST", "/leader", "", Duration::from_secs(10))?;
                anyhow::ensure!(status == 200, "{status}: {}", body.trim_end());
            }
            Fault::Replace(whom) => return self.remove(whom),
            Fault::Replica => {
                let id = self.nodes.add(&["--non-voter"])?;
                self.nodes.start(id)?;
                return Ok(Begun::Replica(id));
            }
            Fault::KillApp(pick) => {
                anyhow::ensure!(signal(&self.app(pick)?, Signal::SIGKILL), "the app does not run");
            }
            Fault::PauseApp(pick) => {
                let app = self.app(pick)?;
                anyhow::ensure!(signal(&app, Signal::SIGSTOP), "the app does not run");
                return Ok(Begun::PausedApp(app));
            }
        }
        Ok(Begun::Nothing)
    }

    fn app(&self, pick: u64) -> anyhow::Result<Process> {
        let app = self.apps.get(pick as usize % self.apps.len().max(1));
        app.cloned().ok_or_else(|| anyhow::anyhow!("there is no app"))
    }

    /// Cuts a node off from the others, or puts it back.
    fn cut(&self, id: u64, outward: bool, inward: bool) {
        let Some(network) = &self.nodes.network else { return };
        let mut links = network.links();
        for other in self.nodes.ids().into_iter().filter(|other| *other != id) {
            for (from, to, cut) in [(id, other, outward), (other, id, inward)] {
                let link = links.get(from as u8, to as u8);
                links.set(from as u8, to as u8, Link { cut, ..link });
            }
        }
    }

    /// The same for all links between nodes; what is cut stays so.
    fn everywhere(&self, link: Link) {
        let Some(network) = &self.nodes.network else { return };
        let mut links = network.links();
        let ids = self.nodes.ids();
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from && *to != &u64::from(HARNESS)) {
                let cut = links.get(*from as u8, *to as u8).cut;
                links.set(*from as u8, *to as u8, Link { cut, ..link });
            }
        }
    }

    fn disk(&self, whom: Whom) -> anyhow::Result<(u64, &super::disk::Disk)> {
        let id = self.whom(whom)?;
        let disk = self.nodes.disk(id);
        Ok((id, disk.ok_or_else(|| anyhow::anyhow!("disks can't be made to fail here"))?))
    }

    fn fail(
        &mut self,
        kind: &'static str,
        whom: Whom,
        errno: i32,
        count: Option<i32>,
    ) -> anyhow::Result<Begun> {
        let (id, disk) = self.disk(whom)?;
        let before = disk.injected();
        disk.fail(errno, count)?;
        self.nodes.may_end(id, PATIENCE);
        Ok(Begun::Disk { id, kind, before })
    }

    /// Changes bytes of a page that no client reads, where the file has it.
    fn corrupt(&mut self, whom: Whom, pick: u64) -> anyhow::Result<Begun> {
        let id = self.whom(whom)?;
        let path = self.nodes.cluster.node(id)?.database(MAIN);
        let file = File::options().read(true).write(true).open(&path)?;
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes)?;
        let text = super::work::filler();
        // An overflow page of the filler: a page number, then text to its end.
        let inner = text.as_bytes().get(..PAGE / 2).unwrap_or_default();
        let is_filler =
            |page: &[u8]| (0..8).any(|shift| page[4 + shift..].starts_with(&inner[..PAGE / 2 - 8]));
        let pages: Vec<usize> = bytes
            .chunks_exact(PAGE)
            .enumerate()
            .filter(|(_, page)| is_filler(page))
            .map(|(n, _)| n)
            .collect();
        anyhow::ensure!(!pages.is_empty(), "{} has no page of the filler", path.display());
        let page = pages[pick as usize % pages.len()];
        let at = page * PAGE + 100 + pick as usize % 3000;
        let spoilt: Vec<u8> = bytes[at..at + 16].iter().map(|byte| !byte).collect();
        file.write_all_at(&spoilt, at as u64)?;
        Ok(Begun::Corrupted)
    }

    fn remove(&mut self, whom: Whom) -> anyhow::Result<Begun> {
        let id = self.whom(whom)?;
        let slot = self.shared.slot_of(id).ok_or_else(|| anyhow::anyhow!("node {id} has no clients"))?;
        self.ask_to_remove(id);
        Ok(Begun::Removing { id, slot })
    }

    fn ask_to_remove(&self, id: u64) {
        let other = self.nodes.up().into_iter().find(|other| *other != id);
        let body = json!({ "id": id.to_string() }).to_string();
        // What came of it is seen in the membership.
        let _ = other.map(|other| self.nodes.ask(other, "DELETE", "/remove", &body, Duration::from_secs(20)));
    }

    /// Ends all faults, and completes what was begun.
    fn heal(&mut self, begun: Vec<Begun>) -> anyhow::Result<()> {
        if let Some(network) = &self.nodes.network {
            network.links().heal();
        }
        for id in self.nodes.ids() {
            if let Some(disk) = self.nodes.disk(id) {
                let before = disk.injected();
                disk.heal()?;
                self.shared.failed_operations(id, before);
            }
        }
        for id in std::mem::take(&mut self.nodes.paused) {
            self.nodes.cluster.node(id)?.signal(Signal::SIGCONT)?;
        }
        for why in self.nodes.wait_stopped() {
            self.shared.violation(why);
        }
        self.restart();
        for what in begun {
            match what {
                Begun::Nothing | Begun::Flap(_) => {}
                Begun::PausedApp(app) => drop(signal(&app, Signal::SIGCONT)),
                Begun::Disk { id, kind, before } => {
                    if self.nodes.disk(id).is_some_and(|disk| disk.injected() == before) {
                        self.in_vain(kind, "no operation met it");
                    }
                }
                // Also without this it would be found, within the hour.
                Begun::Corrupted => {
                    if let Some(id) = self.nodes.up().first() {
                        let _ = self.nodes.ask(*id, "POST", "/verify?scrub", "", Duration::from_secs(20));
                    }
                }
                Begun::Removing { id, slot } => self.replace(id, slot)?,
                Begun::Replica(id) => {
                    self.until("a read replica to be a member", |nodes| member(nodes, id))?;
                    self.gone(id)?;
                }
            }
        }
        Ok(())
    }

    /// Starts what is down.
    pub fn restart(&mut self) {
        for why in self.nodes.reap() {
            self.shared.violation(why);
        }
        for id in self.nodes.down.clone() {
            if let Err(why) = self.nodes.start(id) {
                self.shared.violation(format!("node {id} can't be started: {why:#}"));
            }
        }
    }

    /// Waits for a condition, and starts nodes meanwhile that end by what a disk did to them.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&Nodes) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.nodes) {
            anyhow::ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for {what}\n{}",
                self.nodes.cluster.logs(15)
            );
            self.restart();
            sleep(TICK);
        }
        Ok(())
    }

    /// Removes a member, which may have been removed already, and its process.
    fn gone(&mut self, id: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while member(&self.nodes, id) {
            anyhow::ensure!(
                Instant::now() < deadline,
                "node {id} can't be removed\n{}",
                self.nodes.cluster.logs(15)
            );
            self.ask_to_remove(id);
            self.restart();
        }
        self.nodes.forget(id)
    }

    fn replace(&mut self, id: u64, slot: usize) -> anyhow::Result<()> {
        self.shared.set_place(slot, None);
        self.gone(id)?;
        let new = self.nodes.add(&[])?;
        self.nodes.start(new)?;
        self.shared.set_place(slot, Some(self.nodes.place(new)?));
        let ids = self.nodes.ids();
        self.until("the new member to vote", |nodes| {
            nodes.cluster.node(new).is_ok_and(|node| node.voters().is_some_and(|voters| voters == ids))
        })
    }

    /// Has the nodes' disks forgiven: what ends by itself from now on plus a while has another reason.
    pub fn aftermath(&mut self, step: &Step) {
        if step.faults.iter().any(|fault| matches!(fault, Fault::BadDisk(..) | Fault::FullDisk(_))) {
            self.nodes.shorten_aftermath(AFTERMATH);
        }
    }
}

/// Whether a node is a member, as the leader has it; also if nobody can be asked.
fn member(nodes: &Nodes, id: u64) -> bool {
    let Some(leader) = nodes.leader() else { return true };
    let Some(status) = nodes.get(leader, "/status") else { return true };
    let all = status["store"]["nodes"].as_array().cloned().unwrap_or_default();
    all.iter().any(|node| node["id"] == id.to_string().as_str())
}

/// Sends a signal to an app; false if it doesn't run.
fn signal(app: &Process, signal: Signal) -> bool {
    let mut app = app.lock().unwrap();
    let Some(child) = app.as_mut() else { return false };
    matches!(child.try_wait(), Ok(None)) && kill(Pid::from_raw(child.id() as i32), signal).is_ok()
}
