//! The nodes' logs: the product's log store, over a disk in memory. The simulated Raft ([`super::raft`]) is the model that
//! it is held against: what it is given is what it must have after a crash, at least as far as it said that it was synced.

use super::raft::{Entry, Output};
use super::world::{Member, World, note};
use quire_raft::simulation::{Disk, Log};
use quire_raft::{Committed, Payload};

/// A disk with a log of one entry.
pub(super) fn with(id: u64, first: &Entry) -> Disk {
    let mut log = Log::open(&Disk::default(), id).expect("a new log");
    log.append(vec![committed(first)]).expect("a first entry");
    log.write().expect("a first entry on disk");
    log.crash(false, &mut |_| 0)
}

fn committed(entry: &Entry) -> Committed {
    Committed { position: entry.position, payload: entry.payload.clone() }
}

fn is_same(a: &Payload, b: &Payload) -> bool {
    match (a, b) {
        (Payload::Blank, Payload::Blank) => true,
        (Payload::Command(a), Payload::Command(b)) | (Payload::Membership(a), Payload::Membership(b)) => {
            a == b
        }
        _ => false,
    }
}

impl World {
    /// Gives the log store what is new: what was cut, the vote, and what was appended.
    pub(super) fn store(&self, id: u64, outputs: &[Output]) -> Result<(), String> {
        let mut inner = self.inner();
        let Some(member) = inner.members.get_mut(&id) else { return Ok(()) };
        let (Some(log), replica) = (&mut member.log, &member.replica) else { return Ok(()) };
        let failed = |error: std::io::Error| format!("its log failed: {error}");
        for output in outputs {
            if let Output::Cut(next) = output {
                log.truncate(*next).map_err(failed)?;
            }
        }
        let vote = (replica.term, replica.voted.unwrap_or(0));
        if log.vote().unwrap_or_default() != vote {
            log.save_vote(vote.0, vote.1).map_err(failed)?;
        }
        let at = |index: u64| replica.log.get(index as usize).map(|entry| entry.position);
        log.commit(replica.commit.checked_sub(1).and_then(at)).map_err(failed)?;
        let new = &replica.log[log.range().1.min(replica.len()) as usize..];
        if !new.is_empty() {
            log.append(new.iter().map(committed).collect()).map_err(failed)?;
        }
        Ok(())
    }

    /// A node's process has ended, or its machine has lost power: what its log is then.
    pub(super) fn leave(&self, member: &mut Member, power: bool) {
        let Some(log) = member.log.take() else { return };
        for violation in log.violations() {
            self.fail(violation);
        }
        member.disk = log.crash(power, &mut |n| self.rng(|rng| rng.below(n)));
    }

    /// Opens a node's log, and compares what is there with what must be.
    pub(super) fn recover(&self, id: u64, member: &mut Member) -> Result<(), String> {
        // Now and then it doesn't get far.
        while self.rng(|rng| rng.chance(150)) {
            let power = self.rng(|rng| rng.chance(500));
            member.disk = Log::open_in_vain(&member.disk, id, power, &mut |n| self.rng(|rng| rng.below(n)))?;
        }
        let log = Log::open(&member.disk, id)?;
        let replica = &member.replica;
        let (first, next) = log.range();
        if next < replica.synced || next > replica.len() {
            let (synced, all) = (replica.synced, replica.len());
            return Err(format!("its log has {next} entries; {all} were written, {synced} synced: LOST"));
        }
        if first > member.durable {
            return Err(format!(
                "its log begins with {first}, its databases have {} entries",
                member.durable
            ));
        }
        let vote = (replica.term, replica.voted.unwrap_or(0));
        if log.vote().unwrap_or_default() != vote {
            return Err(format!("its log lost the vote {vote:?}: {:?}", log.vote()));
        }
        let found = log.read(first, next).map_err(|error| format!("its log can't be read: {error}"))?;
        if found.len() as u64 != next - first {
            return Err(format!("its log has {} of the entries {first}..{next}", found.len()));
        }
        for (found, entry) in found.iter().zip(&replica.log[first as usize..]) {
            if found.position != entry.position || !is_same(&found.payload, &entry.payload) {
                return Err(format!("its log has {} where {} was written", found.position, entry.position));
            }
        }
        let commit = log.committed().map_or(0, |at| at.index + 1);
        if commit > replica.commit.max(first) {
            return Err(format!("its log says that {commit} entries are committed; {} were", replica.commit));
        }
        note!(self, "node {id}: its log has the entries {first}..{next}, of which {commit} are committed");
        member.replica.recover(next, commit);
        member.replica.first = first;
        member.log = Some(log);
        Ok(())
    }

    /// Opens all logs once more, of nodes that are down.
    pub(super) fn look_at_logs(&self) {
        let mut found = Vec::new();
        for (id, member) in &mut self.inner().members {
            found.extend(self.recover(*id, member).err().map(|why| format!("node {id}: {why}")));
        }
        found.into_iter().for_each(|why| self.fail(why));
    }

    /// Has a node give up the entries that no node needs any more; or else write what it writes when it is idle.
    pub(super) fn purge(&self, id: u64) {
        let mut inner = self.inner();
        for member in inner.members.values_mut() {
            if let Some(at) = member.live.as_ref().and_then(|live| live.machine.durable()) {
                member.durable = member.durable.max(at.index + 1);
            }
        }
        let all_have = inner.members.values().map(|member| member.durable).min().unwrap_or(0);
        let Some(member) = inner.members.get_mut(&id) else { return };
        let Some(log) = &mut member.log else { return };
        log.rest();
        let Some(upto) = all_have.checked_sub(1) else { return };
        let purged = log.purge(upto);
        member.replica.first = log.range().0;
        let first = member.replica.first;
        drop(inner);
        match purged {
            Ok(()) => note!(self, "node {id}: its log begins with {first}"),
            Err(error) => self.fail(format!("node {id}: its log failed: {error}")),
        }
    }
}
