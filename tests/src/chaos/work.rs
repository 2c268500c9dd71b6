//! What the clients do: operations, chosen by chance, and the SQL that each is. The same SQL goes over the VFS and
//! over HTTP, to the same databases.
//!
//! | operation | database | must hold |
//! |---|---|---|
//! | transactions that append to lists and read them | `main` | strict serializability |
//! | write and read a cell | `main` | linearizability, cell by cell |
//! | transfers between accounts, and all balances | `bank` | the total never changes, in whatever read |
//! | serial numbers | `bank` | unique, growing in real time, each as often as it was given out |
//! | a counter | `bank` | likewise |
//!
//! Lists and cells are given up for new ones as the run goes on (`phase`), so that each has a short history.

use crate::crash::Rng;
use serde_json::{Value, json};

/// The database of lists and cells.
pub const MAIN: &str = "main";
/// The database of accounts, serials and the counter.
pub const BANK: &str = "bank";
/// Both.
pub const DATABASES: [&str; 2] = [MAIN, BANK];
/// Accounts, and what is in each at the start.
pub const ACCOUNTS: u64 = 8;
/// What each account has at the start.
pub const OPENING: i64 = 100;
/// Values of one client: its number is what stands above them.
pub const VALUES: u64 = 10_000_000;

/// Lists and cells that are in use at a time.
const LISTS: u64 = 5;
const CELLS: u64 = 12;
const CHARS: u64 = 4000;
const FILLERS: u64 = 60;

/// Chance in here is the database's: what it writes is on all nodes the same.
const BALLAST: &str =
    "INSERT OR REPLACE INTO ballast VALUES (abs(random() % 20), randomblob(10000 + abs(random() % 40000)))";

/// What fills pages that nobody reads, so that their damage is not what a read returns.
pub fn filler() -> String {
    "filler. ".repeat((CHARS * 2 / 8) as usize)
}

/// The tables, statement by statement.
pub fn schema(database: &str) -> Vec<Value> {
    if database == MAIN {
        let fill = format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {FILLERS}) \
             INSERT INTO filler SELECT i, ?1 FROM n"
        );
        return vec![
            json!(["CREATE TABLE filler(id INTEGER PRIMARY KEY, body TEXT)"]),
            json!([fill, filler()]),
            json!(["CREATE TABLE lists(k INTEGER PRIMARY KEY, vs TEXT NOT NULL)"]),
            json!(["CREATE TABLE cells(k INTEGER PRIMARY KEY, v INTEGER NOT NULL)"]),
            json!(["CREATE TABLE ballast(id INTEGER PRIMARY KEY, body BLOB)"]),
        ];
    }
    let accounts = format!(
        "WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS} - 1) \
         INSERT INTO accounts SELECT i, {OPENING} FROM n"
    );
    vec![
        json!(["CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)"]),
        json!([accounts]),
        json!([
            "CREATE TABLE transfers(id INTEGER PRIMARY KEY, source INTEGER, target INTEGER, amount INTEGER)"
        ]),
        json!(["CREATE TABLE serials(n INTEGER PRIMARY KEY AUTOINCREMENT, tag INTEGER UNIQUE)"]),
        json!(["CREATE TABLE counter(n INTEGER)"]),
        json!(["INSERT INTO counter VALUES (0)"]),
    ]
}

/// A step of a transaction on lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends a value, which nothing else ever appends.
    Append(u64, u64),
    /// Reads a list.
    Read(u64),
}

/// How new a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As new as when it was begun.
    Linearizable,
    /// Any committed state of the whole database.
    Local,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A transaction that writes.
    Lists {
        /// What it does.
        steps: Vec<Step>,
        /// It writes several pages more, which nobody reads.
        ballast: bool,
    },
    /// A transaction that only reads lists.
    ReadLists(Vec<u64>, Level),
    /// Writes a cell, each time another value.
    WriteCell(u64, u64),
    /// Reads a cell.
    ReadCell(u64),
    /// Moves money; with the id of the move.
    Transfer {
        /// Nothing else has it.
        id: u64,
        /// From this account.
        source: u64,
        /// To this one.
        target: u64,
        /// So much.
        amount: i64,
    },
    /// Reads all balances.
    Balances(Level),
    /// Asks for a serial number, with a tag that nothing else has.
    Serial(u64),
    /// Adds one to the counter and reads it.
    Increment,
    /// Reads the counter.
    ReadCounter,
}

/// An operation as SQL.
#[derive(Clone, Debug)]
pub struct Request {
    /// On which database.
    pub database: &'static str,
    /// Statements with their values, as HTTP takes them.
    pub statements: Vec<Value>,
    /// Only reads, at this level.
    pub reads: Option<Level>,
}

impl Op {
    /// Its name, for the report.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Lists { .. } => "list transaction",
            Op::ReadLists(_, Level::Local) => "local read of lists",
            Op::ReadLists(..) => "read of lists",
            Op::WriteCell(..) => "cell write",
            Op::ReadCell(_) => "cell read",
            Op::Transfer { .. } => "transfer",
            Op::Balances(Level::Local) => "local read of balances",
            Op::Balances(_) => "read of balances",
            Op::Serial(_) => "serial",
            Op::Increment => "increment",
            Op::ReadCounter => "read of counter",
        }
    }

    /// What it is in SQL.
    pub fn request(&self) -> Request {
        let write = |database, statements| Request { database, statements, reads: None };
        let read = |database, statement, level| Request {
            database,
            statements: vec![statement],
            reads: Some(level),
        };
        match self {
            Op::Lists { steps, ballast } => {
                let mut statements: Vec<Value> = steps.iter().map(|step| step.sql()).collect();
                if *ballast {
                    statements.push(json!([BALLAST]));
                }
                write(MAIN, statements)
            }
            Op::ReadLists(keys, level) => {
                let marks = vec!["?"; keys.len()].join(", ");
                let mut statement = vec![json!(format!("SELECT k, vs FROM lists WHERE k IN ({marks})"))];
                statement.extend(keys.iter().map(|key| json!(key)));
                read(MAIN, statement.into(), *level)
            }
            Op::WriteCell(key, value) => {
                write(MAIN, vec![json!(["INSERT OR REPLACE INTO cells VALUES (?, ?)", key, value])])
            }
            Op::ReadCell(key) => {
                read(MAIN, json!(["SELECT v FROM cells WHERE k = ?", key]), Level::Linearizable)
            }
            Op::Transfer { id, source, target, amount } => write(
                BANK,
                vec![
                    json!(["UPDATE accounts SET balance = balance - ? WHERE id = ?", amount, source]),
                    json!(["UPDATE accounts SET balance = balance + ? WHERE id = ?", amount, target]),
                    json!(["INSERT INTO transfers VALUES (?, ?, ?, ?)", id, source, target, amount]),
                ],
            ),
            Op::Balances(level) => read(BANK, json!(["SELECT id, balance FROM accounts"]), *level),
            Op::Serial(tag) => {
                write(BANK, vec![json!(["INSERT INTO serials(tag) VALUES (?) RETURNING n", tag])])
            }
            Op::Increment => write(BANK, vec![json!(["UPDATE counter SET n = n + 1 RETURNING n"])]),
            Op::ReadCounter => read(BANK, json!(["SELECT n FROM counter"]), Level::Linearizable),
        }
    }
}

impl Step {
    fn sql(&self) -> Value {
        match self {
            Step::Append(key, value) => json!([
                "INSERT INTO lists VALUES (?, ?) ON CONFLICT(k) DO UPDATE SET vs = vs || ',' || excluded.vs",
                key,
                value.to_string()
            ]),
            Step::Read(key) => json!(["SELECT vs FROM lists WHERE k = ?", key]),
        }
    }
}

/// Chooses what one client does.
#[derive(Debug)]
pub struct Chooser {
    rng: Rng,
    next: u64,
}

impl Chooser {
    /// For client number `client` of a run.
    pub fn new(seed: u64, client: usize) -> Chooser {
        let next = (client as u64 + 1) * VALUES;
        Chooser { rng: Rng::seeded(seed ^ (next << 8)), next }
    }

    fn value(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.rng.below(n)
    }

    fn list(&mut self, phase: u64) -> u64 {
        phase * LISTS + self.below(LISTS)
    }

    fn level(&mut self) -> Level {
        if self.below(3) == 0 { Level::Local } else { Level::Linearizable }
    }

    /// The next operation.
    pub fn next(&mut self, phase: u64) -> Op {
        match self.below(20) {
            0..6 => {
                let count = self.below(3) + 1;
                let mut steps: Vec<Step> = (0..count).map(|_| self.step(phase)).collect();
                // At least one that writes.
                if !steps.iter().any(|step| matches!(step, Step::Append(..))) {
                    let key = self.list(phase);
                    let value = self.value();
                    steps.push(Step::Append(key, value));
                }
                Op::Lists { steps, ballast: self.below(6) == 0 }
            }
            6..9 => {
                let (first, more) = (self.below(LISTS), self.below(3) + 1);
                let keys = (first..first + more).map(|key| phase * LISTS + key % LISTS).collect();
                Op::ReadLists(keys, self.level())
            }
            9..11 => {
                let key = phase * CELLS + self.below(CELLS);
                Op::WriteCell(key, self.value())
            }
            11..13 => Op::ReadCell(phase * CELLS + self.below(CELLS)),
            13..15 => {
                let source = self.below(ACCOUNTS);
                let target = (source + 1 + self.below(ACCOUNTS - 1)) % ACCOUNTS;
                Op::Transfer { id: self.value(), source, target, amount: self.below(50) as i64 + 1 }
            }
            15..16 => Op::Balances(self.level()),
            16..18 => Op::Serial(self.value()),
            18..19 => Op::Increment,
            _ => Op::ReadCounter,
        }
    }

    fn step(&mut self, phase: u64) -> Step {
        let key = self.list(phase);
        if self.below(2) == 0 { Step::Read(key) } else { Step::Append(key, self.value()) }
    }
}
