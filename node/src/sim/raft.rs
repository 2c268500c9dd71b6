//! A small Raft, sans-io: terms, votes, a log of which the end may be unsynced, leaders that are deposed without
//! knowing it. It exists to hand the product every order of events that Raft allows, and more often than the real one
//! would: it has no pre-vote, and its elections are as impatient as the seed wants them. The real one has tests of its own.

use super::rng::Rng;
use quire_raft::{LogPosition, Payload, Peer, RaftStatus, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
pub(crate) const ELECTION: Duration = Duration::from_millis(300);
/// Entries in one message.
const BATCH: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) position: LogPosition,
    pub(crate) payload: Payload,
}

/// What replicas tell each other. Lengths count entries from the beginning of the log.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Vote { term: u64, last: (u64, u64) },
    Voted { term: u64, granted: bool },
    Append { term: u64, before: u64, before_term: u64, entries: Vec<Entry>, commit: u64, sent: Instant },
    Appended { term: u64, matched: Result<u64, u64>, sent: Instant },
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Output {
    Send(u64, Message),
    /// Entries from this one on are given up.
    Cut(u64),
    /// What was appended is to be synced.
    Sync,
    /// No longer the leader.
    Deposed,
    /// An entry that was committed is gone: a bug of this model, or of the disk.
    Lost(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Follower,
    Candidate,
    Leader,
}

#[derive(Debug)]
struct Ack {
    to: u64,
    term: u64,
    upto: u64,
    sent: Instant,
}

#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) members: Vec<u64>,
    pub(crate) term: u64,
    pub(crate) voted: Option<u64>,
    pub(crate) log: Vec<Entry>,
    /// So many entries are on disk.
    pub(crate) synced: u64,
    /// The first entry that the log store still has; all have those before it.
    pub(crate) first: u64,
    pub(crate) role: Role,
    pub(crate) leader: Option<u64>,
    votes: BTreeSet<u64>,
    next: BTreeMap<u64, u64>,
    matched: BTreeMap<u64, u64>,
    heard: BTreeMap<u64, Instant>,
    acks: Vec<Ack>,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) election: Instant,
    heartbeat: Instant,
}

impl Replica {
    pub(crate) fn new(id: u64, members: Vec<u64>, first: Entry, now: Instant) -> Replica {
        Replica {
            id,
            members,
            term: 0,
            voted: None,
            log: vec![first],
            synced: 1,
            first: 0,
            role: Role::Follower,
            leader: None,
            votes: BTreeSet::new(),
            next: BTreeMap::new(),
            matched: BTreeMap::new(),
            heard: BTreeMap::new(),
            acks: Vec::new(),
            commit: 0,
            applied: 0,
            election: now,
            heartbeat: now,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.log.len() as u64
    }

    fn term_before(&self, len: u64) -> u64 {
        len.checked_sub(1).and_then(|n| self.log.get(n as usize)).map_or(0, |entry| entry.position.term)
    }

    fn others(&self) -> Vec<u64> {
        self.members.iter().copied().filter(|id| *id != self.id).collect()
    }

    fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// The process has ended.
    pub(crate) fn crash(&mut self) {
        (self.role, self.leader) = (Role::Follower, None);
        self.acks.clear();
        self.votes.clear();
    }

    /// What its log store has after that: so many entries, of which it says that so many are committed.
    pub(crate) fn recover(&mut self, kept: u64, commit: u64) {
        self.log.truncate(kept as usize);
        (self.synced, self.commit) = (kept, commit);
    }

    /// It is started again, over a state machine that has so many entries durably.
    pub(crate) fn restart(&mut self, durable: u64, now: Instant, rng: &mut Rng) {
        self.applied = durable;
        self.commit = self.commit.max(durable);
        self.wait_for_leader(now, rng);
    }

    fn wait_for_leader(&mut self, now: Instant, rng: &mut Rng) {
        self.election = now + ELECTION + rng.millis(0, 600);
    }

    fn step_down(&mut self, term: u64, out: &mut Vec<Output>) {
        if term > self.term {
            (self.term, self.voted, self.leader) = (term, None, None);
        }
        if self.role == Role::Leader {
            out.push(Output::Deposed);
        }
        self.role = Role::Follower;
    }

    /// Time goes by.
    pub(crate) fn tick(&mut self, now: Instant, rng: &mut Rng) -> Vec<Output> {
        let mut out = Vec::new();
        if self.role == Role::Leader {
            if now >= self.heartbeat {
                self.heartbeat = now + HEARTBEAT;
                self.others().into_iter().for_each(|to| self.append_to(to, now, &mut out));
            }
        } else if now >= self.election {
            self.stand(now, rng, &mut out);
        }
        out
    }

    fn stand(&mut self, now: Instant, rng: &mut Rng, out: &mut Vec<Output>) {
        self.step_down(self.term + 1, out);
        (self.voted, self.role) = (Some(self.id), Role::Candidate);
        self.votes = BTreeSet::from([self.id]);
        self.wait_for_leader(now, rng);
        let message = Message::Vote { term: self.term, last: (self.term_before(self.len()), self.len()) };
        out.extend(self.others().into_iter().map(|to| Output::Send(to, message.clone())));
    }

    /// Stands for election at once; also one that leads, in the next term.
    pub(crate) fn rush(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        self.step_down(self.term, &mut out);
        (self.leader, self.election) = (None, now);
        out
    }

    fn lead(&mut self, now: Instant, out: &mut Vec<Output>) {
        (self.role, self.leader) = (Role::Leader, Some(self.id));
        let len = self.len();
        self.next = self.others().into_iter().map(|id| (id, len)).collect();
        self.matched.clear();
        self.heard.clear();
        self.heartbeat = now + HEARTBEAT;
        self.push(Payload::Blank, now, out);
    }

    fn push(&mut self, payload: Payload, now: Instant, out: &mut Vec<Output>) -> u64 {
        let index = self.len();
        self.log.push(Entry { position: LogPosition { term: self.term, leader: self.id, index }, payload });
        out.push(Output::Sync);
        self.others().into_iter().for_each(|to| self.append_to(to, now, out));
        index
    }

    /// Appends a command, on the leader; returns its index.
    pub(crate) fn propose(&mut self, payload: Payload, now: Instant) -> Option<(u64, Vec<Output>)> {
        let mut out = Vec::new();
        (self.role == Role::Leader).then(|| (self.push(payload, now, &mut out), out))
    }

    fn append_to(&mut self, to: u64, now: Instant, out: &mut Vec<Output>) {
        // Nobody lacks what was purged, whatever an old answer says.
        let before = self.next.get(&to).copied().unwrap_or(0).clamp(self.first, self.len());
        let entries: Vec<_> = self.log[before as usize..].iter().take(BATCH).cloned().collect();
        // Optimistic, as a pipeline is; a gap is told of.
        self.next.insert(to, before + entries.len() as u64);
        let (term, before_term, commit) = (self.term, self.term_before(before), self.commit);
        out.push(Output::Send(to, Message::Append { term, before, before_term, entries, commit, sent: now }));
    }

    /// The log is on disk up to a length.
    pub(crate) fn synced(&mut self, upto: u64, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        // Without that rule, the disk says that it has what it has not.
        let is_lying = super::is_broken(super::Rule::Sync);
        self.synced = self.synced.max(upto);
        let (synced, term) = (if is_lying { self.len() } else { self.synced }, self.term);
        self.acks.retain(|ack| {
            if ack.term == term && ack.upto <= synced {
                let matched = Ok(ack.upto);
                out.push(Output::Send(ack.to, Message::Appended { term, matched, sent: ack.sent }));
            }
            ack.term == term && ack.upto > synced
        });
        self.count(now, &mut out);
        out
    }

    fn count(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.role != Role::Leader {
            return;
        }
        let mut all: Vec<_> =
            self.others().iter().map(|id| self.matched.get(id).copied().unwrap_or(0)).collect();
        all.push(if super::is_broken(super::Rule::Sync) { self.len() } else { self.synced });
        all.sort_unstable();
        let common = all[all.len() - self.quorum()];
        if common > self.commit && self.term_before(common) == self.term {
            self.commit = common;
            self.others().into_iter().for_each(|to| self.append_to(to, now, out));
        }
    }

    pub(crate) fn receive(
        &mut self,
        from: u64,
        message: Message,
        now: Instant,
        rng: &mut Rng,
    ) -> Vec<Output> {
        let mut out = Vec::new();
        match message {
            Message::Vote { term, last } => {
                if term > self.term {
                    self.step_down(term, &mut out);
                }
                let is_good = last >= (self.term_before(self.len()), self.len());
                let granted = term == self.term && is_good && self.voted.is_none_or(|id| id == from);
                if granted {
                    self.voted = Some(from);
                    self.wait_for_leader(now, rng);
                }
                out.push(Output::Send(from, Message::Voted { term: self.term, granted }));
            }
            Message::Voted { term, granted } => {
                if term > self.term {
                    self.step_down(term, &mut out);
                } else if granted && term == self.term && self.role == Role::Candidate {
                    self.votes.insert(from);
                    if self.votes.len() >= self.quorum() {
                        self.lead(now, &mut out);
                    }
                }
            }
            Message::Append { term, before, before_term, entries, commit, sent } => {
                if term < self.term {
                    let matched = Err(0);
                    out.push(Output::Send(from, Message::Appended { term: self.term, matched, sent }));
                    return out;
                }
                self.step_down(term, &mut out);
                self.leader = Some(from);
                self.wait_for_leader(now, rng);
                if before > self.len() || self.term_before(before) != before_term {
                    let hint = Err(self.len().min(before.saturating_sub(1)));
                    out.push(Output::Send(from, Message::Appended { term, matched: hint, sent }));
                    return out;
                }
                let upto = before + entries.len() as u64;
                for entry in entries {
                    let at = entry.position.index as usize;
                    if self.log.get(at).is_some_and(|own| own.position != entry.position) {
                        if (at as u64) < self.commit {
                            out.push(Output::Lost(at as u64));
                        }
                        self.log.truncate(at);
                        self.synced = self.synced.min(at as u64);
                        out.push(Output::Cut(at as u64));
                    }
                    if at == self.log.len() {
                        self.log.push(entry);
                    }
                }
                self.commit = self.commit.max(commit.min(upto));
                self.acks.push(Ack { to: from, term, upto, sent });
                if self.synced < self.len() {
                    out.push(Output::Sync);
                }
                out.extend(self.synced(self.synced, now));
            }
            Message::Appended { term, matched, sent } => {
                if term > self.term {
                    self.step_down(term, &mut out);
                } else if term == self.term && self.role == Role::Leader {
                    let heard = self.heard.entry(from).or_insert(sent);
                    *heard = sent.max(*heard);
                    match matched {
                        Ok(upto) => {
                            let known = self.matched.entry(from).or_default();
                            *known = upto.max(*known);
                            let next = self.next.entry(from).or_default();
                            *next = upto.max(*next);
                            if *next < self.len() {
                                self.append_to(from, now, &mut out);
                            }
                        }
                        Err(hint) => {
                            let known = self.matched.get(&from).copied().unwrap_or(0);
                            self.next.insert(from, hint.max(known));
                            self.append_to(from, now, &mut out);
                        }
                    }
                    self.count(now, &mut out);
                }
            }
        }
        out
    }

    pub(crate) fn status(&self) -> RaftStatus {
        let last = |len: u64| len.checked_sub(1);
        let peer = |id: &u64| (*id, Peer { raft_addr: format!("n{id}:2"), http_addr: format!("n{id}:1") });
        let leads = self.role == Role::Leader;
        let mut acked: Vec<_> = self.heard.values().copied().collect();
        acked.sort_unstable();
        let others = self.quorum() - 1;
        RaftStatus {
            node_id: self.id,
            term: self.term,
            state: match self.role {
                Role::Follower => ServerState::Follower,
                Role::Candidate => ServerState::Candidate,
                Role::Leader => ServerState::Leader,
            },
            leader: self.leader,
            last_log_index: last(self.len()),
            committed_index: last(self.commit),
            applied_index: last(self.applied),
            snapshot_index: None,
            purged_index: last(self.first),
            voters: self.members.iter().copied().collect(),
            peers: self.members.iter().map(peer).collect(),
            replication: if leads { self.matched.clone() } else { BTreeMap::new() },
            heard: if leads { self.heard.clone() } else { BTreeMap::new() },
            quorum_acked: acked
                .len()
                .checked_sub(others)
                .and_then(|n| acked.get(n))
                .copied()
                .filter(|_| leads),
            running: Ok(()),
        }
    }
}
