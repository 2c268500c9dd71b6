//! What connects the nodes: messages and syncs of their Raft, which come late, twice or never; the entries that it
//! commits; and the requests that nodes send each other.

use super::raft::{Entry, Message, Output};
use super::world::{World, note};
use crate::clock;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::forward;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use quire_raft::{
    Committed, LogPosition, NodeId, Payload, ProposeError, RaftStatus, RequestError, StateMachine,
};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// As Raft's `propose_timeout`.
const PROPOSE: Duration = Duration::from_secs(6);

impl World {
    fn perform(&self, id: u64, outputs: Vec<Output>) {
        // Nobody is told anything before the log store has it.
        if let Err(why) = self.store(id, &outputs) {
            self.fail(format!("node {id}: {why}"));
        }
        for output in outputs {
            match output {
                Output::Send(to, message) => self.send(id, to, &message),
                Output::Cut(_) => {}
                Output::Sync => self.sync(id),
                Output::Deposed => self.deposed(id),
                Output::Lost(index) => self.fail(format!("node {id} lost the committed entry {index}")),
            }
        }
        self.changed(id);
    }

    fn send(&self, from: u64, to: u64, message: &Message) {
        let weather = self.weather();
        let copies = self.rng(|rng| match rng.chance(weather.drop) {
            true => 0,
            false => 1 + usize::from(rng.chance(weather.twice)),
        });
        for _ in 0..copies {
            let (this, message, delay) = (self.this(), message.clone(), self.delay());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                this.deliver(from, to, message);
            });
        }
    }

    fn delay(&self) -> Duration {
        let slow = self.weather().slow;
        self.rng(|rng| if rng.chance(slow) { rng.millis(2, 400) } else { rng.micros(100, 2000) })
    }

    fn deliver(&self, from: u64, to: u64, message: Message) {
        let outputs = {
            let mut inner = self.inner();
            if inner.cut.contains(&(from, to)) {
                return;
            }
            let Some(member) = inner.members.get_mut(&to).filter(|member| member.live.is_some()) else {
                return;
            };
            self.rng(|rng| member.replica.receive(from, message, clock::now(), rng))
        };
        self.perform(to, outputs);
    }

    /// Time goes by for all replicas.
    pub(crate) async fn tick(self: Arc<Self>) {
        loop {
            for id in self.live_nodes() {
                let outputs = {
                    let mut inner = self.inner();
                    let Some(member) = inner.members.get_mut(&id) else { continue };
                    self.rng(|rng| member.replica.tick(clock::now(), rng))
                };
                if !outputs.is_empty() {
                    self.perform(id, outputs);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has a node stand for election.
    pub(crate) fn rush(&self, id: u64) {
        let rushed = self.inner().members.get_mut(&id).map(|member| member.replica.rush(clock::now()));
        self.perform(id, rushed.unwrap_or_default());
    }

    /// Writes the log, after a while; what is appended meanwhile is written as well.
    fn sync(&self, id: u64) {
        let life = {
            let mut inner = self.inner();
            let Some(member) = inner.members.get_mut(&id) else { return };
            let Some(live) = &member.live else { return };
            if std::mem::replace(&mut member.syncing, true) {
                return;
            }
            live.life
        };
        let slow = self.weather().slow_sync;
        let delay = self.rng(|rng| if rng.chance(slow) { rng.millis(5, 300) } else { rng.micros(100, 1500) });
        let this = self.this();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let outputs = {
                let mut inner = this.inner();
                let Some(member) = inner.members.get_mut(&id) else { return };
                if member.live.as_ref().is_none_or(|live| live.life != life) {
                    return;
                }
                member.syncing = false;
                // That disk says that it has what it has not.
                let is_lying = super::is_broken(super::Rule::Sync);
                let Some(log) = member.log.as_mut().filter(|_| !is_lying) else { return };
                log.write().map(|durable| member.replica.synced(durable, clock::now()))
            };
            match outputs {
                Ok(outputs) => this.perform(id, outputs),
                Err(why) => this.fail(format!("node {id}: its log failed: {why}")),
            }
        });
    }

    /// What its proposals came to is open.
    fn deposed(&self, id: u64) {
        note!(self, "node {id} is deposed");
        let mut inner = self.inner();
        let Some(member) = inner.members.get_mut(&id) else { return };
        for (index, (term, answer)) in std::mem::take(&mut member.pending) {
            if self.rng(|rng| rng.chance(500)) {
                let _ = answer.send(unknown("the leader was deposed"));
            } else {
                member.pending.insert(index, (term, answer));
            }
        }
    }

    /// A replica's state may have changed: what is to be applied, and what its node is told.
    pub(super) fn changed(&self, id: u64) {
        let mut inner = self.inner();
        let Some(member) = inner.members.get_mut(&id) else { return };
        let Some(live) = member.live.clone() else { return };
        let is_due = !std::mem::replace(&mut member.reporting, true);
        let applies =
            member.replica.applied < member.replica.commit && !std::mem::replace(&mut member.applying, true);
        drop(inner);
        if is_due {
            let (this, delay) = (self.this(), self.rng(|rng| rng.micros(10, 10_000)));
            live.context.spawn(async move {
                tokio::time::sleep(delay).await;
                this.report(id);
            });
        }
        if applies {
            let this = self.this();
            live.context.spawn(async move { this.apply(id).await });
        }
    }

    fn report(&self, id: u64) {
        let mut inner = self.inner();
        let Some(member) = inner.members.get_mut(&id) else { return };
        member.reporting = false;
        let status = member.replica.status();
        let synced = member.replica.synced.saturating_sub(1);
        let Some(live) = member.live.clone() else { return };
        drop(inner);
        live.flushed.send_if_modified(|at| std::mem::replace(at, synced) != synced);
        live.status.send_if_modified(|known| {
            let is_new = *known != status;
            if (known.state, known.term) != (status.state, status.term) {
                note!(self, "node {id} is {} in term {}", status.state.as_str(), status.term);
            }
            *known = status;
            is_new
        });
    }

    async fn apply(&self, id: u64) {
        loop {
            let delay = self.rng(|rng| rng.micros(10, 1000));
            tokio::time::sleep(delay).await;
            let (batch, machine) = {
                let mut inner = self.inner();
                let Some(member) = inner.members.get_mut(&id) else { return };
                let (from, to) = (member.replica.applied, member.replica.commit);
                let Some(live) = &member.live else { return };
                if from >= to {
                    member.applying = false;
                    return;
                }
                let n = self.rng(|rng| 1 + rng.below(8)).min(to - from);
                let Some(log) = &member.log else { return };
                (log.read(from, from + n), live.machine.clone())
            };
            let batch: Vec<_> = match batch {
                Ok(read) => {
                    read.into_iter().map(|e| Entry { position: e.position, payload: e.payload }).collect()
                }
                Err(error) => return self.fail(format!("node {id} can't read its log: {error}")),
            };
            batch.iter().for_each(|entry| self.was_committed(id, entry));
            let upto = batch.last().map_or(0, |entry| entry.position.index + 1);
            let committed =
                batch.iter().cloned().map(|e| Committed { position: e.position, payload: e.payload });
            if let Err(error) = machine.apply(committed.collect()) {
                self.fail(format!("node {id} can't apply: {error}"));
            }
            let answers = {
                let mut inner = self.inner();
                let Some(member) = inner.members.get_mut(&id) else { return };
                member.replica.applied = upto;
                let later = member.pending.split_off(&upto);
                std::mem::replace(&mut member.pending, later)
            };
            for (index, (term, answer)) in answers {
                let entry = batch.iter().find(|entry| entry.position.index == index);
                let _ = answer.send(match entry.filter(|entry| entry.position.term == term) {
                    Some(entry) => Ok(entry.position),
                    None => unknown("another entry took its place"),
                });
            }
            self.changed(id);
            if self.rng(|rng| rng.chance(100)) {
                self.purge(id);
            }
        }
    }

    /// All nodes apply the same.
    fn was_committed(&self, id: u64, entry: &Entry) {
        let mut hasher = DefaultHasher::new();
        if let Payload::Command(bytes) = &entry.payload {
            bytes.hash(&mut hasher);
        }
        let found = (entry.position, hasher.finish());
        let index = entry.position.index as usize;
        let mut inner = self.inner();
        match inner.committed.get(index) {
            Some(known) if *known == found => {}
            Some((known, _)) => {
                let text = format!("node {id} applies {} where {known} was applied", entry.position);
                drop(inner);
                self.fail(text);
            }
            None => {
                inner.committed.push(found);
                inner.commands.push(entry.payload.clone());
                drop(inner);
                if let Payload::Command(bytes) = &entry.payload {
                    note!(
                        self,
                        "{}: {}",
                        entry.position,
                        crate::command::describe(bytes).unwrap_or_default()
                    );
                }
            }
        }
    }

    /// Lets nothing through between these, in this direction.
    pub(crate) fn cut(&self, pairs: impl IntoIterator<Item = (u64, u64)>) {
        let pairs: BTreeSet<_> = pairs.into_iter().collect();
        note!(self, "cut: {pairs:?}");
        self.inner().cut = pairs;
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.inner().cut.contains(&(from, to))
    }

    /// Proposes a command on whoever leads, for the nemesis.
    pub(crate) fn command(&self, command: &Command) {
        let Some(leader) = self.leader() else { return };
        let outputs = {
            let mut inner = self.inner();
            let Some(member) = inner.members.get_mut(&leader) else { return };
            member
                .replica
                .propose(Payload::Command(command.encode()), clock::now())
                .map(|(_, outputs)| outputs)
        };
        note!(self, "{command:?} proposed on {leader}");
        self.perform(leader, outputs.unwrap_or_default());
    }
}

fn unknown(reason: &str) -> Result<LogPosition, ProposeError> {
    Err(ProposeError::Unknown { reason: reason.into(), position: None })
}

/// A node's access to Raft, for one life of it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) world: Arc<World>,
    pub(super) id: u64,
    pub(super) life: u64,
    pub(super) watch: watch::Receiver<RaftStatus>,
}

impl Consensus for Seat {
    fn status(&self) -> RaftStatus {
        let inner = self.world.inner();
        inner
            .members
            .get(&self.id)
            .map_or_else(|| self.watch.borrow().clone(), |member| member.replica.status())
    }

    fn watch(&self) -> watch::Receiver<RaftStatus> {
        self.watch.clone()
    }

    fn propose(&self, command: Bytes) -> BoxFuture<'static, Result<LogPosition, ProposeError>> {
        let (world, id, life) = (self.world.clone(), self.id, self.life);
        Box::pin(async move {
            // Raft's core may be busy, and be in another term when it gets to it.
            let slow = world.weather().slow / 2;
            let busy =
                world.rng(|rng| if rng.chance(slow) { rng.millis(2, 1500) } else { rng.micros(1, 1500) });
            tokio::time::sleep(busy).await;
            let (answered, outputs) = {
                let mut inner = world.inner();
                let member = inner.members.get_mut(&id);
                let member =
                    member.filter(|member| member.live.as_ref().is_some_and(|live| live.life == life));
                let Some(member) = member else { return Err(ProposeError::Stopped("crashed".into())) };
                let term = member.replica.term;
                let proposed = member.replica.propose(Payload::Command(command), clock::now());
                let Some((index, outputs)) = proposed else {
                    return Err(ProposeError::NotLeader { leader: None });
                };
                let (answer, answered) = oneshot::channel();
                member.pending.insert(index, (term, answer));
                (answered, outputs)
            };
            world.perform(id, outputs);
            match tokio::time::timeout(PROPOSE, answered).await {
                Ok(Ok(answer)) => answer,
                _ => unknown("no commit in time"),
            }
        })
    }

    fn request(
        &self,
        to: NodeId,
        parts: Vec<Bytes>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Bytes, RequestError>> {
        let (world, from) = (self.world.clone(), self.id);
        Box::pin(async move {
            if (world.is_cut(from, to) || world.live(to).is_none()) && world.rng(|rng| rng.chance(500)) {
                tokio::time::sleep(world.delay()).await;
                return Err(RequestError::Unreachable("no connection".into()));
            }
            let mut body = BytesMut::new();
            parts.iter().for_each(|part| body.extend_from_slice(part));
            let (answer, answered) = oneshot::channel();
            // It is on its way, whatever becomes of its sender.
            tokio::spawn(world.clone().carry(from, to, body.freeze(), answer));
            match tokio::time::timeout(patience, answered).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(RequestError::Lost("connection lost".into())),
                Err(_) => Err(RequestError::TimedOut(patience)),
            }
        })
    }

    fn hurry(&self, _: NodeId) {}

    fn disk_full(&self) -> Option<String> {
        None
    }
}

impl World {
    /// Whether a message gets lost on this way.
    async fn is_lost(&self, from: u64, to: u64) -> bool {
        tokio::time::sleep(self.delay()).await;
        let drop = self.weather().drop;
        self.is_cut(from, to) || self.live(to).is_none() || self.rng(|rng| rng.chance(drop))
    }

    /// Carries a request to another node, and the answer back.
    async fn carry(self: Arc<Self>, from: u64, to: u64, request: Bytes, answer: oneshot::Sender<Bytes>) {
        // Whoever waits for what was lost learns of it by the connection's end, or only by its own patience.
        let lost = async |answer: oneshot::Sender<Bytes>| {
            let wait =
                self.rng(|rng| if rng.chance(500) { rng.millis(10, 500) } else { Duration::from_secs(60) });
            tokio::time::sleep(wait).await;
            drop(answer);
        };
        if self.is_lost(from, to).await {
            return lost(answer).await;
        }
        // A connection may be given up at one end, while what it carried is still to be read at the other.
        let drop_early = self.weather().drop / 2;
        let answer = if self.rng(|rng| rng.chance(drop_early)) {
            drop(answer);
            tokio::time::sleep(
                self.rng(|rng| if rng.chance(600) { rng.millis(1, 60) } else { rng.millis(60, 3000) }),
            )
            .await;
            None
        } else {
            Some(answer)
        };
        let Some(live) = self.live(to) else { return };
        let (served, serving) = oneshot::channel();
        let node = live.node.clone();
        live.context.spawn(async move {
            let _ = served.send(forward::serve(&node, from, &request).await);
        });
        drop(live);
        let served = serving.await;
        let Some(answer) = answer else { return };
        match served {
            Ok(bytes) if !self.is_lost(to, from).await => drop(answer.send(bytes)),
            _ => lost(answer).await,
        }
    }
}
