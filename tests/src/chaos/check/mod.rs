//! Whether a history is what the databases promise.
//!
//! | what | how |
//! |---|---|
//! | lists | [`lists`]: strict serializability, by cycles |
//! | cells | [`cells`]: linearizability, by stateright's tester |
//! | serials, counter | [`numbers`]: unique, and growing in real time |
//! | accounts | [`bank`]: the total, and each transfer once |
//!
//! All of them know the state in the end, which must have everything that was acknowledged and nothing that was
//! refused. What is unknown may be there or not, but as a whole.

pub mod bank;
pub mod cells;
pub mod cycles;
pub mod lists;
pub mod numbers;

use super::history::{Outcome, Record, Rows};
use super::work::{Level, Op, Step};
use serde_json::Value;
use std::collections::BTreeMap;

/// What came of an operation, without its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged.
    Done,
    /// Definitely without effect.
    Refused,
    /// Either.
    Unknown,
}

impl Record {
    /// What came of it.
    pub fn fate(&self) -> Fate {
        match self.outcome {
            Outcome::Done(_) => Fate::Done,
            Outcome::Refused(_) => Fate::Refused,
            Outcome::Unknown(_) => Fate::Unknown,
        }
    }

    /// The rows of its first statement, if it was done.
    pub fn rows(&self) -> Option<&Rows> {
        if let Outcome::Done(all) = &self.outcome { all.first() } else { None }
    }

    /// The number that it returned, if it was done.
    pub fn number(&self) -> Option<u64> {
        self.rows()?.first()?.first()?.as_u64()
    }
}

/// The databases as they were in the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Last {
    /// All lists.
    pub lists: lists::Lists,
    /// All cells.
    pub cells: BTreeMap<u64, u64>,
    /// Serial numbers and their tags.
    pub serials: BTreeMap<u64, u64>,
    /// The counter.
    pub counter: u64,
    /// Balances by account.
    pub balances: BTreeMap<u64, i64>,
    /// Transfers by id: from, to, how much.
    pub transfers: BTreeMap<u64, (u64, u64, i64)>,
}

/// What is wrong with a history; nothing, if it is empty.
pub fn check(records: &[Record], last: &Last) -> Vec<String> {
    let mut errors = Vec::new();
    let txns: Vec<lists::Txn> = records.iter().filter_map(transaction).collect();
    errors.extend(lists::check(&txns, &last.lists));
    errors.extend(cells::check(records, last));
    errors.extend(numbers::check(records, last));
    errors.extend(bank::check(records, last));
    errors
}

/// A list as the table has it.
pub fn parse_list(text: &str) -> Option<Vec<u64>> {
    text.split(',').map(|value| value.parse().ok()).collect()
}

fn transaction(record: &Record) -> Option<lists::Txn> {
    let results = if let Outcome::Done(results) = &record.outcome { Some(results) } else { None };
    let read = |rows: &Rows, column: usize| match rows.first() {
        None => Some(Vec::new()),
        Some(row) => parse_list(row.get(column)?.as_str()?),
    };
    let steps = match &record.op {
        Op::Lists { steps, .. } => {
            let found = |(place, step): (usize, &Step)| match step {
                Step::Append(..) => (*step, None),
                Step::Read(_) => (*step, results.and_then(|all| read(all.get(place)?, 0))),
            };
            steps.iter().enumerate().map(found).collect()
        }
        Op::ReadLists(keys, _) => {
            let rows = results.and_then(|all| all.first());
            let found = |key: &u64| {
                let row = rows?.iter().find(|row| row.first().and_then(Value::as_u64) == Some(*key));
                row.map_or(Some(Vec::new()), |row| parse_list(row.get(1)?.as_str()?))
            };
            keys.iter().map(|key| (Step::Read(*key), found(key))).collect()
        }
        _ => return None,
    };
    Some(lists::Txn {
        invoked: record.invoked,
        returned: record.returned,
        fate: record.fate(),
        may_be_old: matches!(record.op, Op::ReadLists(_, Level::Local)),
        steps,
    })
}
