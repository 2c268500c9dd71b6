//! What must be true of a run.
//!
//! The judge reads the committed log by the words of the design, not by the product's code, and so knows of each
//! database which transactions it consists of. Then
//! - every acknowledged transaction is among them, at the index that its app was told; every refused one is not;
//! - the ledger in each node's files is exactly that list, and the files are what the checksum says;
//! - one that began after another was acknowledged comes after it;
//! - within a leader's term, each transaction's token is higher than that of the one before.

use super::app::{PAGE, ledger};
use super::world::World;
use crate::clock;
use crate::command::{Command, DbId};
use crate::db::database::Database;
use quire_raft::{LogPosition, Payload};
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::transaction::{Transaction, TxnId};
use quire_vfs::format::{PageNo, PageSize};
use quire_vfs::gate::proto::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A transaction that was sent to a node.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: TxnId,
    pub(crate) token: u64,
    pub(crate) base: u64,
    pub(crate) name: &'static str,
    pub(crate) app: (u64, u64),
    pub(crate) began: Instant,
}

#[derive(Clone, Debug)]
struct Told {
    outcome: Outcome,
    at: Instant,
}

#[derive(Debug, Default)]
struct Book {
    attempts: BTreeMap<[u8; 16], Attempt>,
    told: BTreeMap<[u8; 16], Told>,
    /// The longest ledger that was seen of each database: what was read once is there for ever.
    seen: BTreeMap<&'static str, Vec<u64>>,
    committed: BTreeMap<(u64, u64, &'static str), u64>,
    sent: Vec<TxnId>,
    /// What nodes said of a transaction when they were asked for it: the index, if it is committed.
    answers: Vec<(TxnId, u64, Option<u64>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Judge {
    book: Mutex<Book>,
    over: AtomicBool,
}

/// What became of all, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) committed: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) dead: u64,
    pub(crate) entries: u64,
}

impl Judge {
    pub(crate) fn begin(&self, attempt: Attempt) {
        let mut book = self.book.lock().unwrap();
        book.sent.push(attempt.id);
        book.attempts.insert(attempt.id.0, attempt);
    }

    /// One of the last transactions that were sent.
    pub(crate) fn some_attempt(&self, which: u64) -> Option<Attempt> {
        let book = self.book.lock().unwrap();
        let id = book.sent.iter().rev().nth(which as usize % 4)?;
        book.attempts.get(&id.0).cloned()
    }

    /// A node has said of a transaction that it is committed, or that it never will be.
    pub(crate) fn answered(&self, id: TxnId, node: u64, committed: Option<u64>) {
        self.book.lock().unwrap().answers.push((id, node, committed));
    }

    pub(crate) fn end(&self, id: TxnId, outcome: &Outcome, app: (u64, u64, &'static str)) {
        let mut book = self.book.lock().unwrap();
        book.told.insert(id.0, Told { outcome: outcome.clone(), at: clock::now() });
        if matches!(outcome, Outcome::Committed(_)) {
            *book.committed.entry(app).or_default() += 1;
        }
    }

    /// How often this app has committed.
    pub(crate) fn commits(&self, app: (u64, u64, &'static str)) -> u64 {
        self.book.lock().unwrap().committed.get(&app).copied().unwrap_or(0)
    }

    /// A writer has read this: of two that read, one has read the beginning of what the other has.
    pub(crate) fn saw(&self, name: &'static str, ledger: &[u64], world: &World) {
        if name != super::MAIN {
            return; // It may be another database of that name.
        }
        let mut book = self.book.lock().unwrap();
        let seen = book.seen.entry(name).or_default();
        let common = seen.len().min(ledger.len());
        if seen[..common] != ledger[..common] {
            world.fail(format!("a writer of {name} reads another past than one before it"));
        }
        if ledger.len() > seen.len() {
            *seen = ledger.to_vec();
        }
    }

    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// What each database consists of, by the log.
    fn histories(log: &[(LogPosition, Payload)]) -> BTreeMap<DbId, History> {
        let mut databases: BTreeMap<DbId, History> = BTreeMap::new();
        for (at, payload) in log {
            let Payload::Command(bytes) = payload else { continue };
            match Command::decode(bytes).expect("a command") {
                Command::CreateDatabase { name, .. }
                    if databases.values().all(|database| database.is_dropped || database.name != name) =>
                {
                    let (last, list) = (at.index, Vec::new());
                    databases.insert(DbId(at.index), History { name, last, list, is_dropped: false });
                }
                Command::DropDatabase { database } => {
                    if let Some(database) = databases.get_mut(&database) {
                        database.is_dropped = true;
                    }
                }
                Command::Transaction { head, body } => {
                    let Some(database) = databases.get_mut(&head.database) else { continue };
                    let counts = head.base == database.last && head.lease_term == at.term;
                    if counts && !database.is_dropped {
                        database.last = at.index;
                        database.list.push((Transaction::decode(&body).expect("a transaction").id(), *at));
                    }
                }
                _ => {}
            }
        }
        databases
    }

    /// Judges a run that has come to rest.
    pub(crate) fn judge(&self, world: &World) -> Sum {
        let book = self.book.lock().unwrap();
        let log = world.committed();
        let histories = Judge::histories(&log);
        let mut places = BTreeMap::new();
        for (id, history) in &histories {
            self.order(world, &book, history);
            for (n, (txn, at)) in history.list.iter().enumerate() {
                if places.insert(txn.0, (*id, n, at.index)).is_some() {
                    world.fail(format!("transaction {txn} took effect twice"));
                }
            }
        }
        let mut sum = Sum { entries: log.len() as u64, ..Sum::default() };
        for (id, attempt) in &book.attempts {
            let place = places.get(id).map(|(_, _, index)| *index);
            let (txn, app) = (attempt.id, attempt.app);
            match (book.told.get(id).map(|told| &told.outcome), place) {
                (Some(Outcome::Committed(index)), found) if found != Some(*index) => {
                    world.fail(format!(
                        "LOST: {txn} of app {app:?} was told committed at {index}; found: {found:?}"
                    ));
                }
                (Some(Outcome::Refused(why)), Some(index)) => {
                    world.fail(format!(
                        "{txn} of app {app:?} was told refused ({why}); it is committed at {index}"
                    ));
                }
                (Some(Outcome::Committed(_)), _) => sum.committed += 1,
                (Some(Outcome::Refused(_)), _) => sum.refused += 1,
                (Some(Outcome::Unknown(_)), _) => sum.unknown += 1,
                (None, _) => sum.dead += 1,
            }
        }
        for (id, node, said) in &book.answers {
            let found = places.get(&id.0).map(|(_, _, index)| *index);
            if found != *said {
                world.fail(format!("node {node} said of {id}: committed at {said:?}; found: {found:?}"));
            }
        }
        for node in world.nodes() {
            let Some(live) = world.live(node) else { continue };
            let found = live.node.registry().ids();
            let expected = histories.iter().filter(|(_, history)| !history.is_dropped).map(|(id, _)| *id);
            if found != expected.collect::<BTreeSet<_>>() {
                world.fail(format!("node {node} has the databases {found:?}"));
            }
            for database in live.node.registry().open_ones() {
                if let Some(history) = histories.get(&database.id) {
                    self.files(world, node, &database, history);
                }
            }
        }
        sum
    }

    fn order(&self, world: &World, book: &Book, history: &History) {
        let mut before: Option<(LogPosition, u64)> = None;
        let mut latest_start: Option<Instant> = None;
        for (txn, at) in &history.list {
            let Some(attempt) = book.attempts.get(&txn.0) else {
                world.fail(format!("transaction {txn} is nobody's"));
                continue;
            };
            if let Some((last, token)) = before
                && (last.term, last.leader) == (at.term, at.leader)
                && token >= attempt.token
            {
                world.fail(format!("{at} was written under token {}, {last} under {token}", attempt.token));
            }
            before = Some((*at, attempt.token));
            if let Some(told) = book.told.get(&txn.0)
                && matches!(told.outcome, Outcome::Committed(_))
                && latest_start.is_some_and(|start| start > told.at)
            {
                world.fail(format!("{txn} at {at} was acknowledged before one that precedes it began"));
            }
            latest_start = latest_start.max(Some(attempt.began));
        }
    }

    fn files(&self, world: &World, node: u64, database: &Arc<Database>, history: &History) {
        let name = &history.name;
        let size = PageSize::new(PAGE).unwrap();
        let (found, sum) = database.contents();
        let pages = found.len() as u32;
        let read = |page: PageNo| found[page.0 as usize - 1].clone();
        let expected: Vec<_> = history.list.iter().map(|(id, _)| word(id)).collect();
        let got = ledger(read, pages);
        if got != expected {
            let (n, m) = (got.len(), expected.len());
            let same = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            world.fail(format!(
                "DIFFERENT: node {node}: {name} lists {n} transactions, the log {m}, {same} are equal"
            ));
        }
        let mut hashes = PageHashes::new(size);
        let all = (1..).map(PageNo).zip(found.iter().map(Vec::as_slice));
        hashes.apply(&PageHashes::delta(pages, all));
        if hashes.checksum() != sum {
            let wrong: Vec<_> = (1..=pages).filter(|page| !database.is_sound(*page, &found)).collect();
            let text =
                format!("node {node}: the files of {name} are not what its checksum says: pages {wrong:?}");
            super::note!(world, "{}", database.debug());
            world.fail(text);
        }
    }
}

struct History {
    name: String,
    last: u64,
    list: Vec<(TxnId, LogPosition)>,
    is_dropped: bool,
}

fn word(id: &TxnId) -> u64 {
    u64::from_le_bytes(id.0[..8].try_into().unwrap())
}
