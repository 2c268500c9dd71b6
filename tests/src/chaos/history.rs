//! What was done and what came of it: one record for each operation, with the times between which it took effect
//! if it did, and a verdict that is definite or unknown.

use super::work::Op;
use serde_json::Value;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The rows of one statement.
pub type Rows = Vec<Vec<Value>>;

/// What came of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Done; the rows of each statement.
    Done(Vec<Rows>),
    /// Definitely without effect, now and ever.
    Refused(String),
    /// It may take effect at any time after it was begun, or never.
    Unknown(String),
}

impl Outcome {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Done(_) => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => "unknown",
        }
    }
}

/// What SQLite says of a database that is not in order, and Python of a text.
const DAMAGE: [&str; 4] =
    ["database disk image is malformed", "database corruption", "file is not a database", "Could not decode"];

impl Outcome {
    /// Whether the client met a damaged database. No fault allows for that: what the nemesis damages, no client reads.
    pub fn shows_damage(&self) -> bool {
        let (Outcome::Refused(why) | Outcome::Unknown(why)) = self else { return false };
        DAMAGE.iter().any(|said| why.contains(said))
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who did it: one thing at a time.
    pub client: usize,
    /// How: `vfs` or `http`, and on which node.
    pub via: String,
    /// What.
    pub op: Op,
    /// When it was begun, since the start of the run.
    pub invoked: Duration,
    /// When its outcome was known.
    pub returned: Duration,
    /// What came of it.
    pub outcome: Outcome,
}

/// Takes records from all clients.
#[derive(Debug)]
pub struct History {
    began: Instant,
    records: Mutex<Vec<Record>>,
    writes: AtomicU64,
}

impl Default for History {
    fn default() -> History {
        History { began: Instant::now(), records: Mutex::default(), writes: AtomicU64::new(0) }
    }
}

impl History {
    /// The time, as records have it.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes a record.
    pub fn add(&self, record: Record) {
        if matches!(record.outcome, Outcome::Done(_)) && record.op.request().reads.is_none() {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.records.lock().unwrap().push(record);
    }

    /// How many of them wrote something.
    pub fn done_writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// All records, in the order of their beginning.
    pub fn records(&self) -> Vec<Record> {
        let mut records = self.records.lock().unwrap().clone();
        records.sort_by_key(|record| record.invoked);
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such an answer counted as one of many that were refused.
    #[test]
    fn a_damaged_database_is_no_refusal_like_others() {
        let refused = |why: &str| Outcome::Refused(why.into()).shows_damage();
        assert!(refused("database disk image is malformed"));
        assert!(refused("file is not a database; (26) file is encrypted or is not a database"));
        assert!(refused("COMMIT: x; database corruption at line 74 of [abc]"));
        assert!(Outcome::Unknown("Could not decode to UTF-8 column 'vs'".into()).shows_damage());
        assert!(!refused("database is locked") && !refused("disk I/O error"));
        assert!(!Outcome::Done(vec![]).shows_damage());
    }
}
