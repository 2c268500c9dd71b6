//! Serial numbers and the counter. Both give out growing numbers, each once, so that a number given out must be greater
//! than all that had been given out before it was asked for. That is linearizability, in one pass.

use super::{Fate, Last};
use crate::chaos::history::Record;
use crate::chaos::work::Op;
use std::collections::{BTreeMap, BTreeSet};

/// Checks serial numbers and the counter.
pub fn check(records: &[Record], last: &Last) -> Vec<String> {
    let mut errors = Vec::new();
    serials(records, last, &mut errors);
    counter(records, last, &mut errors);
    errors
}

/// What returns numbers must return more than all that had returned before it was begun; `is_read` may return as
/// much, and may return the same as others.
fn grows(records: &[(&Record, u64, bool)], errors: &mut Vec<String>) {
    let mut given: BTreeMap<u64, &Record> = BTreeMap::new();
    for (record, number, is_read) in records {
        if !is_read && let Some(other) = given.insert(*number, record) {
            errors.push(format!("{number} was given out twice: {other:?}, {record:?}"));
        }
    }
    let mut by_return = records.to_vec();
    by_return.sort_by_key(|(record, ..)| record.returned);
    let mut by_begin = records.to_vec();
    by_begin.sort_by_key(|(record, ..)| record.invoked);
    let mut returned = by_return.into_iter().peekable();
    let mut most: Option<(&Record, u64)> = None;
    for (record, number, is_read) in by_begin {
        while let Some((before, n, _)) = returned.next_if(|(before, ..)| before.returned < record.invoked) {
            if most.is_none_or(|(_, most)| n > most) {
                most = Some((before, n));
            }
        }
        if let Some((before, most)) = most
            && (number < most || (number == most && !is_read))
        {
            errors.push(format!("{number} came after {most}: {record:?} began after {before:?}"));
        }
    }
}

fn serials(records: &[Record], last: &Last, errors: &mut Vec<String>) {
    let tags: BTreeMap<u64, u64> = last.serials.iter().map(|(number, tag)| (*tag, *number)).collect();
    let mut asked = BTreeSet::new();
    let mut given = Vec::new();
    for record in records {
        let Op::Serial(tag) = record.op else { continue };
        asked.insert(tag);
        let there = tags.get(&tag).copied();
        match (record.fate(), record.number()) {
            (Fate::Done, None) => errors.push(format!("a serial without a number: {record:?}")),
            (Fate::Done, Some(number)) => {
                given.push((record, number, false));
                if there != Some(number) {
                    errors.push(format!("lost: serial {number}; its tag has {there:?}: {record:?}"));
                }
            }
            (Fate::Refused, _) if there.is_some() => {
                errors.push(format!("refused, but there: {record:?}"));
            }
            _ => {}
        }
    }
    let strange = tags.keys().filter(|tag| !asked.contains(tag));
    errors.extend(strange.map(|tag| format!("strange: nobody asked for the serial with tag {tag}")));
    grows(&given, errors);
}

fn counter(records: &[Record], last: &Last, errors: &mut Vec<String>) {
    let (mut done, mut perhaps, mut given) = (0, 0, Vec::new());
    for record in records {
        match (&record.op, record.fate()) {
            (Op::Increment, Fate::Done) => done += 1,
            (Op::Increment, Fate::Unknown) => perhaps += 1,
            _ => {}
        }
        let is_read = record.op == Op::ReadCounter;
        if !is_read && record.op != Op::Increment {
            continue;
        }
        match record.number() {
            Some(number) => given.push((record, number, is_read)),
            None if record.fate() == Fate::Done => {
                errors.push(format!("the counter without a number: {record:?}"));
            }
            None => {}
        }
    }
    if last.counter < done || last.counter > done + perhaps {
        let count = last.counter;
        errors.push(format!("the counter is {count} after {done} increments and {perhaps} that may be"));
    }
    if let Some((record, number, _)) = given.iter().find(|(_, number, _)| *number > last.counter) {
        errors.push(format!("lost: the counter was {number} and is {} in the end: {record:?}", last.counter));
    }
    grows(&given, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::history::Outcome;
    use serde_json::json;
    use std::time::Duration;

    fn record(op: Op, span: (u64, u64), number: Option<u64>) -> Record {
        let time = Duration::from_millis;
        let outcome = match number {
            Some(number) => Outcome::Done(vec![vec![vec![json!(number)]]]),
            None => Outcome::Unknown("?".into()),
        };
        Record { client: 1, via: String::new(), op, invoked: time(span.0), returned: time(span.1), outcome }
    }

    fn state(serials: &[(u64, u64)], counter: u64) -> Last {
        Last { serials: serials.iter().copied().collect(), counter, ..Last::default() }
    }

    #[test]
    fn numbers_in_order_are_accepted() {
        let records = [
            record(Op::Serial(70), (0, 5), Some(2)),
            record(Op::Serial(71), (1, 4), Some(1)),
            record(Op::Serial(72), (6, 7), None),
            record(Op::Increment, (0, 3), Some(1)),
            record(Op::ReadCounter, (4, 5), Some(1)),
            record(Op::Increment, (6, 7), None),
        ];
        for end in [state(&[(1, 71), (2, 70)], 1), state(&[(1, 71), (2, 70), (3, 72)], 2)] {
            assert_eq!(check(&records, &end), Vec::<String>::new());
        }
    }

    #[test]
    fn numbers_that_are_doubled_lost_or_out_of_order_are_rejected() {
        let (a, b) = (Op::Serial(70), Op::Serial(71));
        let twice = [record(a.clone(), (0, 1), Some(1)), record(b.clone(), (2, 3), Some(1))];
        assert!(!check(&twice, &state(&[(1, 70)], 0)).is_empty());
        let lost = [record(a.clone(), (0, 1), Some(1))];
        assert!(!check(&lost, &state(&[], 0)).is_empty());
        let back = [record(a, (0, 1), Some(2)), record(b, (2, 3), Some(1))];
        assert_eq!(check(&back, &state(&[(2, 70), (1, 71)], 0)).len(), 1);
        let strange = check(&[], &state(&[(1, 70)], 0));
        assert_eq!(strange.len(), 1, "{strange:?}");
    }

    #[test]
    fn a_counter_that_lost_or_invented_increments_is_rejected() {
        let two = [record(Op::Increment, (0, 1), Some(1)), record(Op::Increment, (2, 3), Some(2))];
        assert!(check(&two, &state(&[], 2)).is_empty());
        assert!(!check(&two, &state(&[], 1)).is_empty());
        assert!(!check(&two, &state(&[], 3)).is_empty());
        let stale = [two[0].clone(), two[1].clone(), record(Op::ReadCounter, (4, 5), Some(1))];
        assert!(!check(&stale, &state(&[], 2)).is_empty());
    }
}
