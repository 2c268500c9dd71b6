//! The commit rule. Every transaction names its *base*: the index of the entry that was the last one
//! applied to its database when it was written, and the term of the lease under which it was. It changes
//! the database if and only if that base is still the last entry, and the leader of that term appended it.
//! Every node sees the same entries in the same order and comes to the same answer.
//!
//! The term makes outcomes definite: once an entry of a later term has committed without it, a transaction
//! can't take effect any more, whoever still sends it around.

/// The part of a database's state on which the rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitRule {
    /// Index of the last entry that changed the database (at first: of the one that created it).
    last: u64,
}

/// What an entry is, as far as the rule asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its index.
    pub index: u64,
    /// The term in which it was appended.
    pub term: u64,
    /// The base that it names.
    pub base: u64,
    /// The term of the lease that it names.
    pub lease_term: u64,
}

/// The rule's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It changes the database.
    Apply,
    /// It was written on another state of the database.
    Conflict {
        /// The last entry of the database.
        last: u64,
    },
    /// It was written on an entry that never came here: this replica is not what it should be. (A base is always
    /// committed, so every node that has all entries has it.)
    Missing {
        /// The last entry of the database.
        last: u64,
    },
    /// It was appended by the leader of another term than its lease's.
    LateTerm,
    /// It is contained in the database already: the log is being read again.
    Known,
}

impl CommitRule {
    /// A database whose last entry is `last`.
    pub fn new(last: u64) -> CommitRule {
        CommitRule { last }
    }

    /// The last entry that changed the database: the base of the next transaction.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Judges the next entry in log order.
    pub fn judge(&self, entry: &Candidate) -> Verdict {
        #[cfg(test)]
        let entry = &self.without_broken(entry);
        if entry.index <= self.last {
            Verdict::Known
        } else if entry.term != entry.lease_term {
            Verdict::LateTerm
        } else if entry.base > self.last {
            Verdict::Missing { last: self.last }
        } else if entry.base != self.last {
            Verdict::Conflict { last: self.last }
        } else {
            Verdict::Apply
        }
    }

    /// The entry as it passes the rules that a simulation takes away.
    #[cfg(test)]
    fn without_broken(&self, entry: &Candidate) -> Candidate {
        use crate::sim::{Rule, is_broken};
        let mut entry = *entry;
        if is_broken(Rule::Base) {
            entry.base = self.last;
        }
        if is_broken(Rule::Term) {
            entry.lease_term = entry.term;
        }
        entry
    }

    /// The entry was applied.
    pub fn applied(&mut self, index: u64) {
        debug_assert!(index > self.last);
        self.last = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However proposals interleave, a node that starts from any of its durable states and reads the
        /// rest of the log again ends where one that never stopped ends.
        #[test]
        fn replay_from_anywhere_ends_in_the_same_state(
            entries in proptest::collection::vec((0u64..12, 0u64..3, 0u64..3), 0..40),
            from in any::<proptest::sample::Index>(),
        ) {
            let log: Vec<_> = entries.iter().enumerate().map(|(i, &(back, term, lease_term))| {
                let index = i as u64 + 1;
                Candidate { index, term, base: index.saturating_sub(1 + back % 3), lease_term }
            }).collect();
            let run = |mut rule: CommitRule, log: &[Candidate]| {
                let mut states = vec![rule];
                for entry in log {
                    if rule.judge(entry) == Verdict::Apply { rule.applied(entry.index); }
                    states.push(rule);
                }
                states
            };
            let states = run(CommitRule::new(0), &log);
            let start = from.index(states.len());
            // A durable state may be behind the entries that are read again, not only exactly before them.
            let again = run(states[start], &log);
            prop_assert_eq!(again.last(), states.last());
        }
    }

    #[test]
    fn the_rule_case_by_case() {
        let rule = CommitRule::new(7);
        let entry = Candidate { index: 9, term: 3, base: 7, lease_term: 3 };
        assert_eq!(rule.judge(&entry), Verdict::Apply);
        assert_eq!(rule.judge(&Candidate { base: 6, ..entry }), Verdict::Conflict { last: 7 });
        assert_eq!(rule.judge(&Candidate { base: 8, ..entry }), Verdict::Missing { last: 7 });
        assert_eq!(rule.judge(&Candidate { term: 4, ..entry }), Verdict::LateTerm);
        assert_eq!(rule.judge(&Candidate { index: 7, ..entry }), Verdict::Known);
    }
}
