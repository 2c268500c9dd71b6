//! What the log says of a database, ahead of its files: its last entry, and what became of the transactions that
//! were proposed.
//!
//! Entries are judged here the moment they are handed over, in log order, by the commit rule and the rule of runs,
//! as the worker will judge them when their turn comes. So the leader knows on which entry the next transaction
//! has to stand also while its own copy lags, be it that a paused app keeps it from being published.
//!
//! A transaction's outcome follows from the log alone: every one that was applied names the one before it as its base.
//! So the chain of bases from the last entry back tells of each remembered entry whether it counts, also on a node
//! that reads the log again and begins with entries that it contains already.

use super::rule::{Candidate, CommitRule, Verdict};
use super::run::{Last, Part, Runs};
use quire_vfs::format::transaction::TxnId;
use std::collections::VecDeque;

/// Transactions of a database that are remembered.
pub const REMEMBERED: usize = 4096;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It counts.
    Counts,
    /// It does not.
    Skipped,
    /// The database had it already: the log is being read again.
    Known,
    /// Entries before it never came here.
    Missing,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is committed, at this index.
    Committed(u64),
    /// It is in the log, at this index, and has no effect.
    Refused(u64),
    /// It is not in the log from this index on; nothing can be said of what comes before, and of anything if there is
    /// none.
    Absent(Option<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Past {
    index: u64,
    base: u64,
    id: TxnId,
}

/// A database, as the log that was handed over says.
#[derive(Clone, Debug)]
pub struct Head {
    rule: CommitRule,
    runs: Runs,
    is_sound: bool,
    /// Every transaction of the database from the entry `since` on, oldest first.
    past: VecDeque<Past>,
    since: Option<u64>,
    /// Every transaction that counts and stands after this entry is among them.
    reach: u64,
}

impl Head {
    /// A database whose last entry is `last`.
    pub fn new(last: u64) -> Head {
        Head {
            rule: CommitRule::new(last),
            runs: Runs::default(),
            is_sound: true,
            past: VecDeque::new(),
            since: None,
            reach: last,
        }
    }

    /// The database's last entry; `None` if entries are missing here.
    pub fn last(&self) -> Option<u64> {
        self.is_sound.then(|| self.rule.last())
    }

    /// The next entry is a transaction, or the last part of one.
    pub fn transaction(&mut self, entry: &Candidate, id: TxnId, last: Option<&Last>) -> Judged {
        self.remember(Past { index: entry.index, base: entry.base, id });
        match self.rule.judge(entry) {
            Verdict::Known => Judged::Known,
            Verdict::Missing { .. } => {
                self.is_sound = false;
                Judged::Missing
            }
            Verdict::LateTerm | Verdict::Conflict { .. } => Judged::Skipped,
            Verdict::Apply if last.is_some_and(|last| !self.runs.is_complete(entry, last)) => Judged::Skipped,
            Verdict::Apply => {
                self.rule.applied(entry.index);
                self.runs.moved_to(entry.index);
                Judged::Counts
            }
        }
    }

    /// The next entry is a part of a large transaction.
    pub fn part(&mut self, entry: &Candidate, part: &Part) {
        self.runs.part(self.rule.judge(entry), part);
    }

    /// No more parts of this transaction will come.
    pub fn void(&mut self, id: TxnId) {
        self.runs.void(id);
    }

    /// The next entry is the first of this term.
    pub fn new_term(&mut self, term: u64) {
        self.runs.new_term(term);
    }

    /// The database got the state at the entry `last` from elsewhere, with an open run there; `rest` takes
    /// the entries after it that were handed over already.
    pub fn moved_to(&mut self, last: u64, runs: Runs, rest: impl FnOnce(&mut Head)) {
        let mut moved = Head { rule: CommitRule::new(last), runs, ..Head::new(last) };
        rest(&mut moved);
        if self.is_sound && self.rule.last() >= moved.rule.last() {
            return;
        }
        let has_gap = !self.is_sound;
        (self.rule, self.runs, self.is_sound) = (moved.rule, moved.runs, moved.is_sound);
        self.reach = last;
        if has_gap {
            self.since = self.since.max(Some(last));
        }
        if self.past.back().is_none_or(|past| past.index < last) {
            // What came between was never handed over.
            self.past.clear();
            self.since = None;
        }
    }

    /// Remembers no more than the newest `most` transactions.
    pub fn shrink(&mut self, most: usize) {
        while self.past.len() > most {
            self.forget_oldest();
        }
        self.past.shrink_to_fit();
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.past.pop_front() {
            self.since = Some(oldest.index + 1);
            self.reach = self.reach.max(oldest.index);
        }
    }

    fn remember(&mut self, past: Past) {
        if self.past.back().is_some_and(|newest| newest.index >= past.index) {
            return;
        }
        self.since = self.since.or(Some(past.index));
        if self.past.len() == REMEMBERED {
            self.forget_oldest();
        }
        self.past.push_back(past);
    }

    /// Whether a transaction that was written on the entry `base` is remembered if it is committed.
    pub fn reaches(&self, base: u64) -> bool {
        self.is_sound
            && (base >= self.reach || self.since.is_some_and(|since| since <= base.saturating_add(1)))
    }

    fn at(&self, index: u64) -> Option<&Past> {
        let n = self.past.binary_search_by_key(&index, |past| past.index).ok()?;
        self.past.get(n)
    }

    /// What became of a transaction. `None`: it is there, but it can't be said whether it counts.
    pub fn fate(&self, id: TxnId) -> Option<Fate> {
        let mut found: Vec<u64> =
            self.past.iter().filter(|past| past.id == id).map(|past| past.index).collect();
        let Some(newest) = found.pop() else { return Some(Fate::Absent(self.since)) };
        found.push(newest);
        let mut counts = self.last()?;
        loop {
            if found.contains(&counts) {
                return Some(Fate::Committed(counts));
            }
            if found.iter().all(|&index| index > counts) {
                return Some(Fate::Refused(newest));
            }
            counts = self.at(counts)?.base;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u64) -> TxnId {
        let mut id = TxnId::default();
        id.0[..8].copy_from_slice(&n.to_le_bytes());
        id
    }

    proptest! {
        /// A node that starts from any state of the database, and reads the log again from any entry at or before
        /// it, says the same of every transaction that it has read, or nothing; and what it says is what happened.
        #[test]
        fn fates_are_what_happened(
            entries in proptest::collection::vec((0u64..4, 0u64..4, 0u64..4), 1..60),
            at in any::<proptest::sample::Index>(),
            from in any::<proptest::sample::Index>(),
        ) {
            let mut rule = CommitRule::new(0);
            let mut happened = Vec::new();
            let mut log = Vec::new();
            for (n, &(back, term, lease_term)) in entries.iter().enumerate() {
                let index = n as u64 + 1;
                let base = if back < 3 { rule.last() } else { index.saturating_sub(2).min(rule.last()) };
                let entry = Candidate { index, term: term.max(1), base, lease_term: lease_term.max(1) };
                let counts = rule.judge(&entry) == Verdict::Apply;
                if counts { rule.applied(index); }
                happened.push(counts);
                log.push((entry, rule));
            }
            let at = at.index(log.len());
            let from = from.index(at + 1);
            let mut head = Head::new(log[at].1.last());
            for (n, (entry, rule)) in log.iter().enumerate().skip(from) {
                let judged = head.transaction(entry, id(entry.index), None);
                prop_assert!(n <= at || (judged == Judged::Counts) == happened[n]);
                prop_assert!(n < at || head.last() == Some(rule.last()));
            }
            for (n, counts) in happened.iter().enumerate() {
                let index = n as u64 + 1;
                let may_be_absent = !counts || !head.reaches(log[n].0.base);
                prop_assert!(may_be_absent || !matches!(head.fate(id(index)), Some(Fate::Absent(_))));
                match head.fate(id(index)) {
                    Some(Fate::Committed(at)) => prop_assert!(*counts && at == index),
                    Some(Fate::Refused(at)) => prop_assert!(!*counts && at == index),
                    Some(Fate::Absent(since)) => prop_assert!(n < from && since.is_none_or(|since| since > index)),
                    // Only what comes before the oldest applied entry that was read can't be told.
                    None => prop_assert!(n >= from),
                }
            }
            prop_assert!(head.reaches(log[at].1.last()), "the state that it starts from is remembered enough");
            if from == 0 {
                prop_assert!((1..=log.len()).all(|n| head.fate(id(n as u64)).is_some()));
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_says_how_far_it_reaches() {
        let mut head = Head::new(4);
        let last = 4 + REMEMBERED as u64 + 10;
        for index in 5..=last {
            let entry = Candidate { index, term: 1, base: index - 1, lease_term: 1 };
            assert_eq!(head.transaction(&entry, id(index), None), Judged::Counts);
        }
        assert_eq!(head.past.len(), REMEMBERED);
        assert_eq!(head.fate(id(14)), Some(Fate::Absent(Some(15))));
        assert_eq!(head.fate(id(15)), Some(Fate::Committed(15)));
        assert_eq!(head.fate(id(1 << 40)), Some(Fate::Absent(Some(15))));
        assert_eq!((head.reaches(13), head.reaches(14)), (false, true));
        head.shrink(2);
        assert_eq!(head.fate(id(last - 2)), Some(Fate::Absent(Some(last - 1))));
        assert_eq!(head.fate(id(last - 1)), Some(Fate::Committed(last - 1)));
        assert_eq!((head.reaches(last - 3), head.reaches(last - 2)), (false, true));
        assert_eq!(head.last(), Some(last));
    }

    #[test]
    fn a_state_from_elsewhere_moves_it_on() {
        let mut head = Head::new(4);
        let entry = |index, base| Candidate { index, term: 1, base, lease_term: 1 };
        assert_eq!(head.transaction(&entry(9, 7), id(9), None), Judged::Missing);
        assert_eq!((head.last(), head.fate(id(9))), (None, None));
        let after = entry(10, 9);
        head.transaction(&after, id(10), None);
        head.moved_to(9, Runs::default(), |head| {
            head.transaction(&after, id(10), None);
        });
        assert_eq!(head.last(), Some(10));
        assert_eq!(head.fate(id(9)), Some(Fate::Committed(9)));
        assert_eq!(head.fate(id(10)), Some(Fate::Committed(10)));
        // A state that is older than what is known changes nothing.
        head.moved_to(9, Runs::default(), |_| {});
        assert_eq!(head.last(), Some(10));
        // One beyond all that was handed over leaves a gap that nothing is said about.
        head.moved_to(40, Runs::default(), |_| {});
        assert_eq!(head.last(), Some(40));
        assert_eq!(head.fate(id(9)), Some(Fate::Absent(None)));
        assert_eq!((head.reaches(39), head.reaches(40)), (false, true));
    }
}
