//! The schedule of a run: which faults, when, for how long, together with which others. It comes from the seed and
//! nothing else; who leads at that moment is the cluster's affair.

use crate::crash::Rng;
use std::collections::VecDeque;
use std::time::Duration;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The leader of the moment.
    Leader,
    /// One that doesn't lead.
    Follower(u64),
    /// One of all.
    Any(u64),
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(Whom),
    /// SIGKILL for all nodes.
    KillAll,
    /// SIGTERM: the node ends by itself, in good order.
    Stop(Whom),
    /// SIGSTOP, later SIGCONT.
    Pause(Whom),
    /// Nothing goes to a node, and nothing comes from it: the leader is in the minority, or a follower.
    Cut(Whom),
    /// Nothing comes from a node, but it hears the others; or the other way round.
    OneWay(Whom, bool),
    /// A node is cut off and not, in turns.
    Flap(Whom),
    /// So many packets in a thousand are lost, everywhere.
    Loss(u64),
    /// Packets take longer, and not all as long, everywhere.
    Delay(u64),
    /// Packets come twice and in another order, everywhere.
    Disorder,
    /// The wall clock steps so many seconds ahead, or back.
    Clock(Whom, i64),
    /// Syncs and writes take longer, so many milliseconds.
    SlowDisk(Whom, u64),
    /// So many operations on the disk fail with EIO.
    BadDisk(Whom, u64),
    /// Writes fail with ENOSPC.
    FullDisk(Whom),
    /// Bytes of a database file change behind the node's back.
    Corrupt(Whom, u64),
    /// The lead is handed over.
    Transfer,
    /// A member is removed, and a new one joins.
    Replace(Whom),
    /// A read replica joins, and is removed.
    Replica,
    /// An app is killed, wherever it is in a transaction.
    KillApp(u64),
    /// An app is stopped for a while, wherever it is in a transaction.
    PauseApp(u64),
}

impl Fault {
    /// Its kind, for the count.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Kill(Whom::Leader) => "kill -9 of the leader",
            Fault::Kill(_) => "kill -9 of a node",
            Fault::KillAll => "kill -9 of all nodes",
            Fault::Stop(_) => "SIGTERM of a node",
            Fault::Pause(Whom::Leader) => "SIGSTOP of the leader",
            Fault::Pause(_) => "SIGSTOP of a node",
            Fault::Cut(Whom::Leader) => "partition, leader in the minority",
            Fault::Cut(_) => "partition, leader in the majority",
            Fault::OneWay(..) => "one-way partition",
            Fault::Flap(_) => "flapping partition",
            Fault::Loss(_) => "packet loss",
            Fault::Delay(_) => "delay and jitter",
            Fault::Disorder => "duplicated and reordered packets",
            Fault::Clock(..) => "clock step",
            Fault::SlowDisk(..) => "slow disk",
            Fault::BadDisk(..) => "EIO",
            Fault::FullDisk(_) => "ENOSPC",
            Fault::Corrupt(..) => "corrupted page",
            Fault::Transfer => "leader transfer",
            Fault::Replace(_) => "member replaced",
            Fault::Replica => "read replica added and removed",
            Fault::KillApp(_) => "kill -9 of an app",
            Fault::PauseApp(_) => "SIGSTOP of an app",
        }
    }

    /// Faults of one lane exclude each other; those of different lanes come together.
    fn lane(&self) -> u8 {
        match self {
            Fault::Kill(_) | Fault::KillAll | Fault::Stop(_) | Fault::Pause(_) => 0,
            Fault::Cut(_) | Fault::OneWay(..) | Fault::Flap(_) => 1,
            Fault::Loss(_) | Fault::Delay(_) | Fault::Disorder => 2,
            Fault::Clock(..) => 3,
            Fault::SlowDisk(..) | Fault::BadDisk(..) | Fault::FullDisk(_) | Fault::Corrupt(..) => 4,
            Fault::Transfer | Fault::Replace(_) | Fault::Replica => 5,
            Fault::KillApp(_) | Fault::PauseApp(_) => 6,
        }
    }

    /// Whether it needs a network of our own.
    pub fn needs_network(&self) -> bool {
        matches!(self.lane(), 1 | 2)
    }
}

/// Faults that come together, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The faults.
    pub faults: Vec<Fault>,
    /// How long they last.
    pub lasts: Duration,
    /// How long nothing follows.
    pub rest: Duration,
    /// The cluster must work again before the next step.
    pub settle: bool,
}

/// An endless schedule.
#[derive(Debug)]
pub struct Plan {
    rng: Rng,
    bag: VecDeque<Fault>,
}

impl Plan {
    /// The schedule of a seed.
    pub fn new(seed: u64) -> Plan {
        Plan { rng: Rng::seeded(seed), bag: VecDeque::new() }
    }

    /// Every kind, in an order by chance; those that are quick more often.
    fn fill(&mut self) {
        let rng = &mut self.rng;
        let mut all = Vec::new();
        for _ in 0..2 {
            let mut pick = || rng.below(1 << 20);
            all.extend([
                Fault::Kill(Whom::Leader),
                Fault::Kill(Whom::Any(pick())),
                Fault::Pause(Whom::Leader),
                Fault::Pause(Whom::Any(pick())),
                Fault::Cut(Whom::Leader),
                Fault::Cut(Whom::Follower(pick())),
                Fault::OneWay(
                    if pick() % 2 == 0 { Whom::Leader } else { Whom::Any(pick()) },
                    pick() % 2 == 0,
                ),
                Fault::Loss(pick() % 250 + 20),
                Fault::Delay(pick() % 60 + 2),
                Fault::Transfer,
                Fault::KillApp(pick()),
                Fault::Clock(Whom::Any(pick()), pick() as i64 % 200_000 - 100_000),
            ]);
        }
        let mut pick = || rng.below(1 << 20);
        all.extend([
            Fault::KillAll,
            Fault::Stop(Whom::Leader),
            Fault::Stop(Whom::Any(pick())),
            Fault::Flap(Whom::Any(pick())),
            Fault::Disorder,
            Fault::SlowDisk(Whom::Leader, pick() % 80 + 5),
            Fault::SlowDisk(Whom::Any(pick()), pick() % 80 + 5),
            Fault::BadDisk(Whom::Any(pick()), pick() % 3 + 1),
            Fault::FullDisk(Whom::Any(pick())),
            Fault::Corrupt(Whom::Any(pick()), pick()),
            Fault::Replace(Whom::Any(pick())),
            Fault::Replica,
            Fault::PauseApp(pick()),
        ]);
        for place in (1..all.len()).rev() {
            all.swap(place, self.rng.below(place as u64 + 1) as usize);
        }
        self.bag.extend(all);
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.rng.below(most - least))
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.bag.len() < 3 {
            self.fill();
        }
        let count = [1, 1, 2, 2, 2, 3][self.rng.below(6) as usize];
        let mut faults: Vec<Fault> = Vec::new();
        let mut place = 0;
        while faults.len() < count && place < self.bag.len() {
            if faults.iter().all(|fault| fault.lane() != self.bag[place].lane()) {
                faults.extend(self.bag.remove(place));
            } else {
                place += 1;
            }
        }
        Some(Step {
            faults,
            lasts: self.ms(300, 3500),
            rest: self.ms(100, 1500),
            settle: self.rng.below(3) == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_a_schedule() {
        let steps = |seed| Plan::new(seed).take(100).collect::<Vec<_>>();
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn every_kind_comes_soon_and_faults_of_a_step_go_together() {
        let steps: Vec<Step> = Plan::new(3).take(40).collect();
        let kinds: BTreeSet<_> = steps.iter().flat_map(|step| &step.faults).map(Fault::kind).collect();
        assert_eq!(kinds.len(), 23, "{kinds:#?}");
        for step in &steps {
            let lanes: BTreeSet<u8> = step.faults.iter().map(Fault::lane).collect();
            assert_eq!(lanes.len(), step.faults.len(), "{step:?}");
        }
        assert!(steps.iter().any(|step| step.faults.len() == 3));
    }
}
