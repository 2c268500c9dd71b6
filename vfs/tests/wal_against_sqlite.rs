//! Quire appends to WALs, stock SQLite judges them; stock SQLite appends, and Quire goes on.
//!
//! Two databases start equal. On one of them stock SQLite runs random SQL; each transaction's pages are
//! taken from its WAL and appended to the other by Quire's formats alone. Now and then the two change
//! places. The judges are the SQLite that is linked into this test, the machine's `sqlite3` and Python's
//! `sqlite3`, the latter two in processes of their own: over the live wal-index while Quire holds the
//! database, over a copy of database and WAL without an index (so that recovery has only checksums and
//! salts to go by), and after a checkpoint, when both files must be equal byte for byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Replica, WalTail, cli, cli_output, copy, new_database, python, run, stock, wal_path};
use proptest::prelude::*;
use quire_vfs::format::wal::{ByteOrder, Scan, WalHeader};
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use rusqlite::Connection;
use rusqlite::types::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DUMP: &[&str] = &["PRAGMA integrity_check;", ".dump"];

const PYTHON_DUMP: &str = "
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute('BEGIN')
print(conn.execute('PRAGMA integrity_check').fetchall())
for kind, name, sql in conn.execute('SELECT type, name, sql FROM sqlite_schema ORDER BY name').fetchall():
    print(kind, name, sql)
    if kind == 'table':
        for row in conn.execute(f'SELECT * FROM \"{name}\"'):
            print(row)
conn.execute('COMMIT')
";

/// What the bundled SQLite finds in a database, after an integrity check.
fn content(conn: &Connection) -> String {
    let mut out = String::new();
    let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    writeln!(out, "{check}").unwrap();
    let mut schema = conn.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY name").unwrap();
    let objects = schema
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Value>(2)?))
        })
        .unwrap();
    for (kind, name, sql) in objects.map(Result::unwrap) {
        writeln!(out, "{kind} {name} {sql:?}").unwrap();
        if kind != "table" {
            continue;
        }
        let mut rows = conn.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                write!(out, "{:?}|", row.get_ref(column).unwrap()).unwrap();
            }
            out.push('\n');
        }
    }
    out
}

/// A database that stock SQLite writes and one that Quire writes.
struct Pair {
    dir: tempfile::TempDir,
    page_size: PageSize,
    origin: PathBuf,
    conn: Connection,
    tail: WalTail,
    replica: Replica,
}

impl Pair {
    fn new(page_size: u32) -> Pair {
        let page_size = PageSize::new(page_size).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let origin = new_database(dir.path(), "a", page_size);
        let replica = new_database(dir.path(), "b", page_size);
        Pair::open(dir, page_size, origin, &replica, 1)
    }

    fn open(dir: tempfile::TempDir, page_size: PageSize, origin: PathBuf, replica: &Path, size: u32) -> Pair {
        let conn = stock(&origin);
        let tail = WalTail::at_end(&origin, size);
        let replica = Replica::open(replica, page_size);
        Pair { dir, page_size, origin, conn, tail, replica }
    }

    /// Runs SQL at the origin and has Quire repeat its transactions.
    fn sql(&mut self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        for txn in self.tail.take() {
            self.replica.append(&txn);
        }
    }

    /// As [`Pair::sql`], but each transaction is first begun and left by a writer that dies.
    fn sql_after_a_dead_writer(&mut self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        for txn in self.tail.take() {
            self.replica.append_unfinished(&txn);
            self.check_live(false);
            self.replica.append(&txn);
        }
    }

    /// Quire's database through the live wal-index, by all judges.
    fn check_live(&self, is_equal: bool) {
        let judge = |expected: String, found: String, who: &str| {
            assert!(found.starts_with("ok\n") || found.starts_with("[('ok',)]\n"), "{who}: {}", head(&found));
            if is_equal {
                assert!(expected == found, "{who} finds\n{}\nexpected\n{}", head(&found), head(&expected));
            }
        };
        let here = Connection::open(&self.replica.path).unwrap();
        judge(content(&self.conn), content(&here), "the bundled SQLite");
        if let Some(cli) = cli() {
            let dump = |db| cli_output(cli, db, DUMP);
            judge(dump(&self.origin), dump(&self.replica.path), "the machine's sqlite3");
        }
        if let Some(python) = python().filter(|_| is_equal) {
            let dump = |db: &Path| run(Command::new(python).arg("-c").arg(PYTHON_DUMP).arg(db));
            judge(dump(&self.origin), dump(&self.replica.path), "Python's sqlite3");
        }
    }

    /// A copy of Quire's database and WAL, recovered without an index.
    fn check_recovered(&self) {
        let home = tempfile::tempdir_in(self.dir.path()).unwrap();
        let db = home.path().join("app.db");
        copy(&self.replica.path, &db);
        copy(&wal_path(&self.replica.path), &wal_path(&db));
        let frames = self.replica.header().max_frame;

        if let Some(cli) = cli() {
            let expected = cli_output(cli, &self.origin, DUMP);
            // A connection that holds on to the WAL keeps the others from removing it when they close.
            let found =
                cli_output(cli, &db, &["PRAGMA integrity_check;", ".dump", ".filectrl persist_wal 1"]);
            assert!(
                found.starts_with(&expected),
                "recovered:\n{}\nexpected\n{}",
                head(&found),
                head(&expected)
            );
        }
        copy(&self.replica.path, &db);
        copy(&wal_path(&self.replica.path), &wal_path(&db));
        let conn = stock(&db);
        let (_, log, _) = checkpoint(&conn, "NOOP");
        assert!(content(&conn) == content(&self.conn), "recovered by the bundled SQLite");
        // Just after a restart the file still has the generation before, all of it in the database.
        assert!(
            frames.0 == 0 || log == i64::from(frames.0),
            "recovery found {log} frames, {frames} published"
        );
    }

    /// Both change places: what Quire wrote, stock SQLite goes on from, and the reverse.
    fn swap(self) -> Pair {
        let Pair { dir, page_size, origin, conn, tail, replica, .. } = self;
        let path = replica.path.clone();
        drop((conn, replica));
        Pair::open(dir, page_size, path, &origin, tail.db_size())
    }

    /// Ends with a checkpoint of both by stock SQLite: the files must be equal.
    fn finish(self) {
        let Pair { dir: _dir, origin, conn, replica, .. } = self;
        let path = replica.path.clone();
        drop((conn, replica));
        for db in [&origin, &path] {
            let conn = Connection::open(db).unwrap();
            assert_eq!(checkpoint(&conn, "TRUNCATE"), (0, 0, 0));
        }
        let (ours, theirs) = (std::fs::read(&path).unwrap(), std::fs::read(&origin).unwrap());
        assert_eq!(ours.len(), theirs.len());
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte that differs");
    }
}

fn head(text: &str) -> String {
    text.chars().take(2000).collect()
}

/// Runs a checkpoint: busy, frames in the WAL, frames copied.
fn checkpoint(conn: &Connection, mode: &str) -> (i64, i64, i64) {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
    .unwrap()
}

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, data BLOB);
                      CREATE TABLE u(k TEXT PRIMARY KEY, v) WITHOUT ROWID;";

#[derive(Clone, Debug)]
enum Step {
    Insert { rows: u32, bytes: u32 },
    Update { modulus: u32, bytes: u32 },
    Delete { modulus: u32 },
    Keyed { rows: u32 },
    Index,
    NoIndex,
    RollBack { rows: u32 },
    Savepoint { rows: u32 },
    Vacuum,
    IncrementalVacuum,
    DeadWriter { rows: u32 },
    CheckpointOrigin(&'static str),
    CheckpointReplica,
    Check,
    Reopen,
    Swap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..60, 0u32..3000).prop_map(|(rows, bytes)| Step::Insert { rows, bytes }),
        3 => (1u32..7, 0u32..2000).prop_map(|(modulus, bytes)| Step::Update { modulus, bytes }),
        2 => (1u32..5).prop_map(|modulus| Step::Delete { modulus }),
        2 => (1u32..80).prop_map(|rows| Step::Keyed { rows }),
        1 => Just(Step::Index),
        1 => Just(Step::NoIndex),
        1 => (20u32..100).prop_map(|rows| Step::RollBack { rows }),
        1 => (1u32..60).prop_map(|rows| Step::Savepoint { rows }),
        1 => Just(Step::Vacuum),
        1 => Just(Step::IncrementalVacuum),
        1 => (1u32..20).prop_map(|rows| Step::DeadWriter { rows }),
        1 => prop_oneof![Just("PASSIVE"), Just("RESTART"), Just("TRUNCATE")].prop_map(Step::CheckpointOrigin),
        3 => Just(Step::CheckpointReplica),
        1 => Just(Step::Check),
        1 => Just(Step::Reopen),
        1 => Just(Step::Swap),
    ]
}

/// Rows with random content: the generator is SQLite's, as it would be in an app.
fn insert(rows: u32, bytes: u32) -> String {
    format!(
        "INSERT INTO t(n, data) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
         SELECT random() % 1000, randomblob({bytes}) FROM c;"
    )
}

fn take(mut pair: Pair, step: &Step) -> Pair {
    match step {
        Step::Insert { rows, bytes } => pair.sql(&insert(*rows, *bytes)),
        Step::Update { modulus, bytes } => {
            pair.sql(&format!("UPDATE t SET data = randomblob({bytes}), n = n + 1 WHERE id % {modulus} = 0"));
        }
        Step::Delete { modulus } => pair.sql(&format!("DELETE FROM t WHERE id % {modulus} = 0")),
        Step::Keyed { rows } => pair.sql(&format!(
            "BEGIN IMMEDIATE;
             INSERT OR REPLACE INTO u
             WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
             SELECT hex(randomblob(2)), i FROM c;
             DELETE FROM u WHERE v % 3 = 0;
             COMMIT;"
        )),
        Step::Index => pair.sql("CREATE INDEX IF NOT EXISTS t_n ON t(n, data)"),
        Step::NoIndex => pair.sql("DROP INDEX IF EXISTS t_n"),
        // Spills frames that no commit follows.
        Step::RollBack { rows } => pair.sql(&format!("BEGIN; {} ROLLBACK;", insert(*rows, 900))),
        Step::Savepoint { rows } => pair.sql(&format!(
            "BEGIN; {a} SAVEPOINT s; {b} ROLLBACK TO s; UPDATE t SET n = -n; RELEASE s; COMMIT;",
            a = insert(*rows, 500),
            b = insert(*rows * 2, 700)
        )),
        Step::Vacuum => pair.sql("PRAGMA auto_vacuum = INCREMENTAL; VACUUM"),
        Step::IncrementalVacuum => pair.sql("PRAGMA incremental_vacuum"),
        Step::DeadWriter { rows } => pair.sql_after_a_dead_writer(&insert(*rows, 300)),
        Step::CheckpointOrigin(mode) => assert_eq!(checkpoint(&pair.conn, mode).0, 0),
        Step::CheckpointReplica => {
            pair.replica.checkpoint();
            assert!(pair.replica.is_backfilled(), "there are no readers");
        }
        Step::Check => {
            pair.check_live(true);
            pair.check_recovered();
        }
        Step::Reopen => {
            let (path, page_size) = (pair.replica.path.clone(), pair.page_size);
            let before = pair.replica.header();
            drop(pair.replica);
            std::fs::remove_file(path.with_extension("db-shm")).unwrap();
            pair.replica = Replica::open(&path, page_size);
            let after = pair.replica.header();
            if before.max_frame.0 > 0 {
                let known = |header: wal_index::IndexHeader| wal_index::IndexHeader { change: 0, ..header };
                assert_eq!(known(after), known(before), "recovery finds what was published");
            }
        }
        Step::Swap => return pair.swap(),
    }
    pair
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_replica_is_the_origin(
        page_size in prop_oneof![
            3 => Just(512u32), 1 => Just(1024u32), 1 => Just(2048u32), 3 => Just(4096u32),
            1 => Just(8192u32), 1 => Just(16384u32), 1 => Just(32768u32), 1 => Just(65536u32),
        ],
        steps in proptest::collection::vec(step(), 8..30),
    ) {
        let mut pair = Pair::new(page_size);
        pair.sql(SCHEMA);
        for step in &steps {
            pair = take(pair, step);
        }
        pair.check_live(true);
        pair.check_recovered();
        pair.finish();
    }
}

#[test]
fn every_page_size_and_both_directions() {
    for shift in 9..=16 {
        let mut pair = Pair::new(1 << shift);
        pair.sql(SCHEMA);
        pair.sql(&insert(50, 700));
        pair.check_live(true);
        pair.check_recovered();
        // Stock SQLite goes on where Quire stopped…
        pair = pair.swap();
        pair.sql(&insert(30, 300));
        pair.sql("DELETE FROM t WHERE id % 2 = 0");
        pair.check_live(true);
        // …and Quire where stock SQLite stopped.
        pair = pair.swap();
        pair.sql("UPDATE t SET n = 5");
        pair.check_live(true);
        pair.check_recovered();
        pair.finish();
    }
}

#[test]
fn a_restarted_wal_is_read_and_recovered() {
    let mut pair = Pair::new(1024);
    pair.sql(SCHEMA);
    for round in 0..4 {
        // Shorter each time, so that valid frames of the generation before stand behind the new ones.
        pair.sql(&insert(60 >> round, 900));
        pair.sql("UPDATE t SET n = n + 1 WHERE id % 10 = 0");
        pair.check_live(true);
        pair.check_recovered();
        pair.replica.checkpoint();
        assert!(pair.replica.is_backfilled());
        pair.check_live(true);
        pair.check_recovered();
        // A restart alone, before anything is appended to it.
        if round == 2 {
            let salts = pair.replica.header().salts;
            assert!(pair.replica.try_restart());
            assert_ne!(pair.replica.header().salts, salts);
            assert_eq!(pair.replica.header().max_frame, FrameNo(0));
            pair.check_live(true);
            pair.check_recovered();
        }
    }
    // A restart that its writer's death cuts short.
    assert!(pair.replica.restart_cut_short());
    pair.check_live(true);
    pair.check_recovered();
    assert!(!pair.replica.restart_cut_short(), "another has nothing to restart, and leaves it as it is");
    pair.sql(&insert(1, 10));
    assert_eq!(pair.replica.restarts, 4);
    pair.check_live(true);
    pair.replica.checkpoint();
    assert!(pair.replica.is_backfilled());
    pair.check_live(true);
    pair.check_recovered();
    pair.finish();
}

#[test]
fn stock_writers_and_checkpointers_are_kept_out() {
    let mut pair = Pair::new(4096);
    pair.sql(SCHEMA);
    let here = Connection::open(&pair.replica.path).unwrap();
    here.busy_timeout(std::time::Duration::ZERO).unwrap();
    let refused = here.execute_batch("INSERT INTO t(n) VALUES (1)").unwrap_err();
    assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    assert_eq!(checkpoint(&here, "PASSIVE").0, 1, "the checkpoint lock is held");
    if let Some(cli) = cli() {
        let script = ["INSERT INTO t(n) VALUES (1)"];
        let output = Command::new(cli).arg(&pair.replica.path).args(script).output().unwrap();
        assert!(!output.status.success());
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.contains("database is locked"), "{complaint}");
    }
    drop(here);
    assert!(wal_path(&pair.replica.path).exists(), "no closing process removes the WAL");
    pair.sql(&insert(1, 10));
    pair.check_live(true);
    pair.finish();
}

/// A wal-index of several regions: the first lists 4062 frames, each other 4096.
#[test]
fn several_regions_of_the_index() {
    const FIRST: u32 = 4062;
    const SECOND: u32 = FIRST + 4096;
    let mut pair = Pair::new(512);
    pair.sql(SCHEMA);
    // One transaction across the first boundary, small ones across the second.
    pair.sql(&insert(4500, 400));
    assert!(pair.replica.header().max_frame.0 > FIRST);
    pair.check_live(true);
    while pair.replica.header().max_frame.0 <= SECOND + 20 {
        let left = SECOND.saturating_sub(pair.replica.header().max_frame.0);
        pair.sql(&if left > 600 { insert(400, 400) } else { "UPDATE t SET n = n + 1 WHERE id < 200".into() });
    }
    pair.check_live(true);
    pair.check_recovered();

    // Every page's newest frame, by the index and by the file.
    let bytes = std::fs::read(wal_path(&pair.replica.path)).unwrap();
    let mut newest = std::collections::BTreeMap::new();
    for frame in Scan::new(&bytes).unwrap() {
        newest.insert(frame.header.page, frame.frame);
    }
    let max_frame = pair.replica.header().max_frame;
    for page in (1..=pair.replica.header().pages).map(PageNo) {
        let found = wal_index::find(&pair.replica.holder, page, max_frame).unwrap();
        assert_eq!(found, newest.get(&page).copied(), "page {page}");
    }

    // A new generation finds the regions full of the old one.
    pair.replica.checkpoint();
    pair.sql("UPDATE t SET n = n + 1 WHERE id % 100 = 0");
    assert_eq!(pair.replica.restarts, 1);
    assert!(pair.replica.header().max_frame.0 < FIRST);
    pair.check_live(true);
    pair.sql("UPDATE t SET data = randomblob(410)");
    assert!(pair.replica.header().max_frame.0 > FIRST);
    pair.check_live(true);
    pair.check_recovered();
    pair.finish();
}

/// Dead writers' remains: at the boundary of two regions, and more of them than a hash table has slots.
#[test]
fn remains_are_swept() {
    let mut pair = Pair::new(512);
    pair.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, data BLOB)");
    pair.sql(&insert(10, 400));
    pair.conn.execute_batch(&insert(3880, 400)).unwrap();
    for txn in pair.tail.take() {
        for _ in 0..3 {
            pair.replica.append_unfinished(&txn);
        }
        pair.check_live(false);
        pair.replica.append(&txn);
    }
    pair.check_live(true);
    let mut frames = pair.replica.header().max_frame.0;
    assert!(frames > 3000 && frames < 4062, "{frames} frames so far");
    while frames < 4070 {
        let rows = if frames < 4000 { 25 } else { 7 };
        pair.sql_after_a_dead_writer(&insert(rows, 400));
        frames = pair.replica.header().max_frame.0;
    }
    pair.check_live(true);
    pair.check_recovered();
    pair.finish();
}

/// A writer that dies between the copies of the header has published: the next one completes it. Readers
/// can't go on until then, since nobody but Quire may recover the WAL.
#[test]
fn a_half_published_header_is_completed() {
    let mut pair = Pair::new(1024);
    pair.sql(SCHEMA);
    for round in 1..4 {
        pair.conn.execute_batch(&insert(20, 600)).unwrap();
        for txn in pair.tail.take() {
            pair.replica.append_half_published(&txn);
        }
        assert_eq!(wal_index::read_header(pair.replica.holder.region(0).unwrap()), None);
        let reader = cli().map(|cli| {
            let mut command = Command::new(cli);
            command.arg(&pair.replica.path).arg("SELECT count(*) FROM t").stdout(Stdio::piped());
            command.spawn().unwrap()
        });
        let completed = pair.replica.header();
        assert_eq!(wal_index::read_header(pair.replica.holder.region(0).unwrap()), Some(completed));
        if let Some(reader) = reader {
            let output = reader.wait_with_output().unwrap();
            assert!(output.status.success());
            assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), (round * 20).to_string());
        }
        pair.check_live(true);
        pair.check_recovered();
        pair.sql("UPDATE t SET n = n + 1");
    }
    pair.check_live(true);
    pair.finish();
}

/// WALs from machines of the other byte order: both SQLite and Quire go on in the order that they find.
#[test]
fn foreign_byte_order() {
    let foreign = match ByteOrder::NATIVE {
        ByteOrder::Little => ByteOrder::Big,
        ByteOrder::Big => ByteOrder::Little,
    };
    let mut pair = Pair::new(1024);
    pair.sql(SCHEMA);
    pair.sql(&insert(40, 600));

    // The same WAL, with the other order's checksums.
    let path = pair.replica.path.clone();
    drop(pair.replica);
    let native = std::fs::read(wal_path(&path)).unwrap();
    let scan = Scan::new(&native).unwrap();
    let header = WalHeader { order: foreign, ..scan.header() };
    let (head, mut sum) = header.encode();
    let mut bytes = head.to_vec();
    for frame in scan {
        let (head, next) = frame.header.encode(frame.data, header.salts, sum, foreign);
        sum = next;
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(frame.data);
    }
    assert_eq!(bytes.len(), native.len());
    std::fs::write(wal_path(&path), bytes).unwrap();

    pair.replica = Replica::open(&path, pair.page_size);
    assert_eq!(pair.replica.header().order, foreign);
    pair.check_live(true);
    pair.sql("UPDATE t SET n = n + 1");
    pair.sql(&insert(20, 300));
    assert_eq!(pair.replica.header().order, foreign);
    pair.check_live(true);
    pair.check_recovered();

    // Stock SQLite writes, then Quire again.
    pair = pair.swap();
    pair.sql(&insert(10, 100));
    pair.check_live(true);
    pair = pair.swap();
    assert_eq!(pair.replica.header().order, foreign);
    pair.sql(&insert(10, 100));
    pair.check_live(true);
    pair.check_recovered();

    // A new generation is written in this machine's order.
    pair.replica.checkpoint();
    pair.sql(&insert(10, 100));
    assert_eq!(pair.replica.restarts, 1);
    assert_eq!(pair.replica.header().order, ByteOrder::NATIVE);
    pair.check_live(true);
    pair.check_recovered();
    pair.finish();
}

/// The holder's own view of the database file, past the WAL.
#[test]
fn pages_of_the_file_are_read_past_the_wal() {
    let mut pair = Pair::new(1024);
    pair.sql(SCHEMA);
    pair.sql(&insert(20, 600));
    let holder = |pair: &Pair, page| {
        let mut out = vec![7; 1024];
        pair.replica.holder.read_page(PageNo(page), pair.page_size, &mut out).unwrap();
        out
    };
    assert_eq!(pair.replica.holder.file_size().unwrap(), 1024);
    assert_eq!(holder(&pair, 1), quire_vfs::format::database::empty_database(pair.page_size));
    assert_eq!(holder(&pair, 9), vec![0; 1024], "beyond the end");
    pair.replica.checkpoint();
    let pages = pair.replica.header().pages;
    assert_eq!(pair.replica.holder.file_size().unwrap(), u64::from(pages) * 1024);
    let elsewhere = pair.dir.path().join("file.db");
    copy(&pair.replica.path, &elsewhere);
    let file = std::fs::read(elsewhere).unwrap();
    for (i, data) in file.chunks_exact(1024).enumerate() {
        assert_eq!(holder(&pair, i as u32 + 1), data);
    }
    assert!(pair.replica.holder.region(0).is_ok());
    pair.finish();
}
