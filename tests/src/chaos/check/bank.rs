//! Transfers between accounts: whatever read sees all of each transfer or nothing of it, so the total never changes;
//! each acknowledged transfer is there once, as it was made; in the end the balances are what the transfers make them.

use super::{Fate, Last};
use crate::chaos::history::Record;
use crate::chaos::work::{ACCOUNTS, OPENING, Op};
use std::collections::{BTreeMap, BTreeSet};

const TOTAL: i64 = ACCOUNTS as i64 * OPENING;

/// Checks transfers and balances.
pub fn check(records: &[Record], last: &Last) -> Vec<String> {
    let mut errors = Vec::new();
    let mut made = BTreeSet::new();
    for record in records {
        match &record.op {
            Op::Transfer { id, source, target, amount } => {
                made.insert(*id);
                let there = last.transfers.get(id);
                match record.fate() {
                    Fate::Done if there.is_none() => errors.push(format!("lost: {record:?}")),
                    Fate::Refused if there.is_some() => {
                        errors.push(format!("refused, but there: {record:?}"));
                    }
                    _ => {}
                }
                if there.is_some_and(|there| *there != (*source, *target, *amount)) {
                    errors.push(format!("another transfer is there, {there:?}: {record:?}"));
                }
            }
            Op::Balances(_) => {
                let Some(rows) = record.rows() else { continue };
                let total: Option<i64> = rows.iter().map(|row| row.get(1)?.as_i64()).sum();
                if rows.len() as u64 != ACCOUNTS || total != Some(TOTAL) {
                    errors.push(format!("the total is not {TOTAL}: {record:?}"));
                }
            }
            _ => {}
        }
    }
    let strange = last.transfers.keys().filter(|id| !made.contains(id));
    errors.extend(strange.map(|id| format!("strange: nobody made transfer {id}")));
    let mut expected: BTreeMap<u64, i64> = (0..ACCOUNTS).map(|id| (id, OPENING)).collect();
    for (source, target, amount) in last.transfers.values() {
        *expected.entry(*source).or_default() -= amount;
        *expected.entry(*target).or_default() += amount;
    }
    if expected != last.balances {
        errors.push(format!("balances are {:?}; the transfers make them {expected:?}", last.balances));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::history::Outcome;
    use crate::chaos::work::Level;
    use serde_json::json;
    use std::time::Duration;

    fn transfer(outcome: Outcome) -> Record {
        let op = Op::Transfer { id: 7, source: 0, target: 1, amount: 30 };
        let (invoked, returned) = (Duration::ZERO, Duration::from_millis(1));
        Record { client: 1, via: String::new(), op, invoked, returned, outcome }
    }

    fn state(moved: bool) -> Last {
        let mut balances: BTreeMap<u64, i64> = (0..ACCOUNTS).map(|id| (id, OPENING)).collect();
        let mut transfers = BTreeMap::new();
        if moved {
            balances.extend([(0, OPENING - 30), (1, OPENING + 30)]);
            transfers.insert(7, (0, 1, 30));
        }
        Last { balances, transfers, ..Last::default() }
    }

    #[test]
    fn a_transfer_is_there_or_not_as_was_said() {
        let done = || transfer(Outcome::Done(vec![]));
        let refused = || transfer(Outcome::Refused("no".into()));
        let unknown = || transfer(Outcome::Unknown("?".into()));
        assert!(check(&[done()], &state(true)).is_empty());
        assert!(check(&[refused()], &state(false)).is_empty());
        assert!(check(&[unknown()], &state(true)).is_empty());
        assert!(check(&[unknown()], &state(false)).is_empty());
        assert!(!check(&[done()], &state(false)).is_empty(), "lost");
        assert!(!check(&[refused()], &state(true)).is_empty(), "refused, but there");
        assert!(!check(&[], &state(true)).is_empty(), "strange");
    }

    #[test]
    fn half_a_transfer_is_rejected() {
        let mut half = state(true);
        half.balances.insert(1, OPENING);
        assert!(!check(&[transfer(Outcome::Done(vec![]))], &half).is_empty());
        let rows = (0..ACCOUNTS).map(|id| vec![json!(id), json!(OPENING - i64::from(id == 0))]).collect();
        let mut read = transfer(Outcome::Done(vec![rows]));
        read.op = Op::Balances(Level::Local);
        assert!(!check(&[read], &state(false)).is_empty());
    }
}
