//! Linearizability of cells, each by itself, by stateright's tester. Its search is exponential in what is concurrent,
//! so histories are short: cells are given up as the run goes on. A write of unknown outcome that nobody read is left
//! out: what has an order with it has one without.

use super::{Fate, Last};
use crate::chaos::history::Record;
use crate::chaos::work::Op;
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long the search for one cell's order may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Tester = LinearizabilityTester<u64, Register<Option<u64>>>;

/// Checks all cells.
pub fn check(records: &[Record], last: &Last) -> Vec<String> {
    let mut cells: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in records {
        if let Op::WriteCell(key, _) | Op::ReadCell(key) = record.op {
            cells.entry(key).or_default().push(record);
        }
    }
    let all = last.cells.keys().filter(|key| !cells.contains_key(key));
    let mut errors: Vec<String> = all.map(|key| format!("strange: nobody wrote cell {key}")).collect();
    for (key, records) in cells {
        let value = last.cells.get(&key).copied();
        if let Err(why) = check_cell(&records, value) {
            errors.push(format!("cell {key}, in the end {value:?}: {why}: {records:#?}"));
        }
    }
    errors
}

/// Checks one cell's records, which are in the order of their beginning.
fn check_cell(records: &[&Record], last: Option<u64>) -> Result<(), &'static str> {
    let mut seen: BTreeSet<u64> = records.iter().filter_map(|record| read(record).flatten()).collect();
    seen.extend(last);
    // Begun, returned, what, and with which result.
    let mut events = Vec::new();
    for (number, record) in records.iter().enumerate() {
        let (op, ret) = match (&record.op, record.fate()) {
            (Op::WriteCell(_, value), Fate::Done) => {
                (RegisterOp::Write(Some(*value)), Some(RegisterRet::WriteOk))
            }
            (Op::WriteCell(_, value), Fate::Unknown) if seen.contains(value) => {
                (RegisterOp::Write(Some(*value)), None)
            }
            (Op::ReadCell(_), Fate::Done) => {
                let Some(value) = read(record) else { return Err("a read without a result") };
                (RegisterOp::Read, Some(RegisterRet::ReadOk(value)))
            }
            _ => continue,
        };
        events.push((record.invoked, 0, number, Some(op), None));
        if ret.is_some() {
            events.push((record.returned, 1, number, None, ret));
        }
    }
    events.sort_by_key(|event| (event.0, event.1, event.2));
    let mut tester: Tester = LinearizabilityTester::new(Register(None));
    // A client whose outcome is unknown goes on as another one.
    let mut threads: BTreeMap<usize, u64> = BTreeMap::new();
    let mut fresh = 1000;
    for (_, _, number, op, ret) in events {
        let client = records[number].client;
        let thread = *threads.entry(client).or_insert(client as u64);
        if let Some(op) = op {
            tester.on_invoke(thread, op).map_err(|_| "a client did two things at once")?;
            if records[number].fate() == Fate::Unknown {
                fresh += 1;
                threads.insert(client, fresh);
            }
        }
        if let Some(ret) = ret {
            tester.on_return(thread, ret).map_err(|_| "a client returned twice")?;
        }
    }
    // A read of the end, after all that returned.
    let end = tester
        .on_invoke(u64::MAX, RegisterOp::Read)
        .and_then(|tester| tester.on_return(u64::MAX, RegisterRet::ReadOk(last)));
    end.map_err(|_| "no read of the end")?;
    let (tx, rx) = channel();
    std::thread::spawn(move || tx.send(tester.is_consistent()));
    match rx.recv_timeout(PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => Err("not linearizable"),
        Err(_) => Err("no order found in time: not decided"),
    }
}

/// What a read found, if it was done.
fn read(record: &Record) -> Option<Option<u64>> {
    if !matches!(record.op, Op::ReadCell(_)) {
        return None;
    }
    match record.rows()?.first() {
        None => Some(None),
        Some(row) => Some(Some(row.first()?.as_u64()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::history::Outcome;
    use serde_json::json;

    fn record(client: usize, op: Op, span: (u64, u64), outcome: Outcome) -> Record {
        let time = Duration::from_millis;
        Record { client, via: String::new(), op, invoked: time(span.0), returned: time(span.1), outcome }
    }

    fn write(client: usize, value: u64, span: (u64, u64)) -> Record {
        record(client, Op::WriteCell(1, value), span, Outcome::Done(vec![vec![]]))
    }

    fn read(client: usize, value: Option<u64>, span: (u64, u64)) -> Record {
        let rows = value.map(|value| vec![json!(value)]).into_iter().collect();
        record(client, Op::ReadCell(1), span, Outcome::Done(vec![rows]))
    }

    fn accepts(records: &[Record], last: Option<u64>) -> bool {
        let last = Last { cells: last.map(|value| (1, value)).into_iter().collect(), ..Last::default() };
        check(records, &last).is_empty()
    }

    #[test]
    fn what_is_in_order_is_accepted() {
        let records = [read(1, None, (0, 1)), write(1, 5, (2, 4)), read(2, Some(5), (3, 5))];
        assert!(accepts(&records, Some(5)));
        let concurrent = [write(1, 5, (0, 9)), write(2, 6, (0, 9)), read(3, Some(6), (10, 11))];
        assert!(accepts(&concurrent, Some(6)));
    }

    #[test]
    fn a_stale_read_is_rejected() {
        let records = [write(1, 5, (0, 1)), write(1, 6, (2, 3)), read(2, Some(5), (4, 5))];
        assert!(!accepts(&records, Some(6)));
        assert!(!accepts(&[write(1, 5, (0, 1)), read(2, None, (2, 3))], Some(5)));
    }

    #[test]
    fn a_lost_write_is_rejected() {
        assert!(!accepts(&[write(1, 5, (0, 1))], None));
        assert!(!accepts(&[write(1, 5, (0, 1)), write(1, 6, (2, 3))], Some(5)));
    }

    #[test]
    fn reads_that_go_back_are_rejected() {
        let records =
            [write(1, 5, (0, 1)), write(2, 6, (2, 9)), read(3, Some(6), (3, 4)), read(4, Some(5), (5, 6))];
        assert!(!accepts(&records, Some(6)));
    }

    #[test]
    fn what_is_unknown_may_take_effect_late_or_never_but_not_both() {
        let unknown = record(1, Op::WriteCell(1, 5), (0, 1), Outcome::Unknown("?".into()));
        let late = [unknown.clone(), read(1, None, (2, 3)), read(1, Some(5), (4, 5))];
        assert!(accepts(&late, Some(5)));
        assert!(accepts(&[unknown.clone(), read(1, None, (2, 3))], None));
        let back = [unknown, read(1, Some(5), (2, 3)), read(1, None, (4, 5))];
        assert!(!accepts(&back, Some(5)));
    }

    #[test]
    fn what_was_refused_is_not_read() {
        let refused = record(1, Op::WriteCell(1, 5), (0, 1), Outcome::Refused("no".into()));
        assert!(accepts(std::slice::from_ref(&refused), None));
        assert!(!accepts(&[refused.clone(), read(2, Some(5), (2, 3))], None));
        assert!(!accepts(&[refused], Some(5)));
    }
}
