//! Strict serializability of transactions on lists, after Elle (Kingsbury and Alvaro, VLDB 2020): since every value is
//! appended once and every read shows the whole list, the final lists give the order of all writes, and each read its
//! place in it. From that follows which transaction must come before which:
//!
//! - `ww`: its append precedes the other's in a list;
//! - `wr`: the other read what it appended;
//! - `rw`: the other appended what it did not see yet;
//! - `rt`: it had returned before the other was invoked. Not for reads that may be old.
//!
//! An order of all exists if and only if there is no cycle. What a transaction reads after its own append must end
//! with that; all that a list's reads show must be beginnings of the final list.

use super::Fate;
use super::cycles::Graph;
use crate::chaos::work::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A list's values, by its key.
pub type Lists = BTreeMap<u64, Vec<u64>>;

/// A transaction on lists.
#[derive(Clone, Debug)]
pub struct Txn {
    /// When it was begun.
    pub invoked: Duration,
    /// When its outcome was known.
    pub returned: Duration,
    /// What came of it.
    pub fate: Fate,
    /// Its reads may be old.
    pub may_be_old: bool,
    /// Its steps, in order; with what a read found, if it is known.
    pub steps: Vec<(Step, Option<Vec<u64>>)>,
}

/// Checks transactions against the lists as they were in the end. The errors name transactions by their places.
pub fn check(txns: &[Txn], last: &Lists) -> Vec<String> {
    let mut checker = Checker { txns, last, writers: BTreeMap::new(), errors: Vec::new() };
    checker.appends();
    let graph = checker.graph();
    for cycle in graph.cycles() {
        checker.errors.push(checker.show(&cycle));
    }
    checker.errors
}

#[derive(Debug)]
struct Checker<'a> {
    txns: &'a [Txn],
    last: &'a Lists,
    /// Who appended a value, and to which list.
    writers: BTreeMap<u64, (usize, u64)>,
    errors: Vec<String>,
}

impl Checker<'_> {
    /// What was appended is there, once, where it was appended; what was refused is not; all of a transaction or
    /// nothing.
    fn appends(&mut self) {
        let mut present: BTreeMap<u64, u64> = BTreeMap::new();
        for (key, values) in self.last {
            for value in values {
                if present.insert(*value, *key).is_some() {
                    self.errors.push(format!("duplicate: {value} is there twice, in list {key}"));
                }
            }
        }
        for (number, txn) in self.txns.iter().enumerate() {
            let mut found = BTreeSet::new();
            for (step, _) in &txn.steps {
                let Step::Append(key, value) = step else { continue };
                self.writers.insert(*value, (number, *key));
                let there = present.get(value) == Some(key);
                found.insert(there);
                match txn.fate {
                    Fate::Done if !there => {
                        self.errors
                            .push(format!("lost: {value} of list {key}, appended by {number}: {txn:?}"));
                    }
                    Fate::Refused if there => {
                        self.errors
                            .push(format!("refused, but there: {value} of list {key}: {number}: {txn:?}"));
                    }
                    _ => {}
                }
            }
            if found.len() > 1 {
                self.errors.push(format!("torn: only some of transaction {number} is there: {txn:?}"));
            }
        }
        for (value, key) in present {
            if self.writers.get(&value).is_none_or(|(_, wrote)| *wrote != key) {
                self.errors.push(format!("strange: nobody appended {value} to list {key}"));
            }
        }
    }

    /// Whether it took effect: it was done, or something of it is there.
    fn counts(&self, txn: &Txn) -> bool {
        let is_there = |key: &u64, value: &u64| self.last.get(key).is_some_and(|all| all.contains(value));
        txn.fate == Fate::Done
            || txn.steps.iter().any(|(step, _)| matches!(step, Step::Append(k, v) if is_there(k, v)))
    }

    fn graph(&mut self) -> Graph {
        let mut graph = Graph::new(self.txns.len());
        for values in self.last.values() {
            for pair in values.windows(2) {
                if let (Some(a), Some(b)) = (self.writers.get(&pair[0]), self.writers.get(&pair[1])) {
                    graph.edge(a.0, b.0, "ww");
                }
            }
        }
        for number in 0..self.txns.len() {
            if self.txns[number].fate == Fate::Done {
                self.reads(number, &mut graph);
            }
        }
        self.real_time(&mut graph);
        graph
    }

    /// Places a transaction by what it read.
    fn reads(&mut self, number: usize, graph: &mut Graph) {
        const EMPTY: &[u64] = &[];
        let txn = &self.txns[number];
        let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut seen: BTreeMap<u64, &[u64]> = BTreeMap::new();
        for (step, found) in &txn.steps {
            let (key, found) = match (step, found) {
                (Step::Append(key, value), _) => {
                    own.entry(*key).or_default().push(*value);
                    continue;
                }
                (Step::Read(key), Some(found)) => (*key, found),
                // Without a result that is a list, nothing could be said of what it read.
                (Step::Read(key), None) => {
                    self.errors
                        .push(format!("what transaction {number} read of list {key} is none: {txn:?}"));
                    continue;
                }
            };
            let mine = own.get(&key).map_or(EMPTY, Vec::as_slice);
            let Some(others) = found.strip_suffix(mine) else {
                self.errors.push(format!("its own append is not in what {number} read of {key}: {txn:?}"));
                continue;
            };
            if seen.insert(key, others).is_some_and(|before| before != others) {
                self.errors.push(format!("list {key} changed under transaction {number}: {txn:?}"));
            }
            let last = self.last.get(&key).map_or(EMPTY, Vec::as_slice);
            if !last.starts_with(others) {
                self.errors.push(format!(
                    "lost: what transaction {number} read of list {key} is no beginning of {last:?}: {txn:?}"
                ));
                continue;
            }
            let writer = |value: Option<&u64>| value.and_then(|value| self.writers.get(value));
            if let Some((writer, _)) = writer(others.last()) {
                graph.edge(*writer, number, "wr");
            }
            if let Some((writer, _)) = writer(last.get(others.len())) {
                graph.edge(number, *writer, "rw");
            }
        }
    }

    /// A chain of moments stands between those who had returned and those who were invoked later, so that the edges
    /// are as many as the transactions.
    fn real_time(&self, graph: &mut Graph) {
        let mut events = Vec::new();
        for (number, txn) in self.txns.iter().enumerate() {
            if txn.may_be_old || !self.counts(txn) {
                continue;
            }
            // At the same moment: at the same time, so neither comes first.
            events.push((txn.invoked, 0, number));
            if txn.fate == Fate::Done {
                events.push((txn.returned, 1, number));
            }
        }
        events.sort();
        let mut moment = None;
        for (_, returns, number) in events {
            if returns == 1 {
                let next = graph.node();
                graph.edge(number, next, "rt");
                if let Some(before) = moment {
                    graph.edge(before, next, "rt");
                }
                moment = Some(next);
            } else if let Some(before) = moment {
                graph.edge(before, number, "rt");
            }
        }
    }

    fn show(&self, cycle: &[(usize, &str)]) -> String {
        let mut text = String::from("not serializable:");
        for (number, kind) in cycle {
            if let Some(txn) = self.txns.get(*number) {
                text += &format!("\n    {number} {txn:?}\n      before, by {kind}:");
            }
        }
        text
    }
}

#[cfg(test)]
#[path = "lists_tests.rs"]
mod tests;
