//! Whatever SQLite does to its pages, the replicas end as identical files: rebuilding and shrinking, virtual
//! tables, triggers, values that differ at each call, transactions larger than the cache, every page size,
//! logs that are checkpointed. By an older SQLite in a process of its own, and by the bundled one in this
//! process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_node::cli::host;
use quire_tests::hosts::{Host, Load, PATIENCE, Program, stock, uri};
use quire_tests::replicas::{assert_identical, database, steady};
use quire_tests::{TestCluster, programs};
use rusqlite::Connection;
use rusqlite::fallible_iterator::FallibleIterator as _;
use serde_json::json;

/// Rows numbered from `first` to `last`, each with some text and a blob.
macro_rules! rows {
    ($table:literal, $first:literal, $last:literal, $blob:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " WITH RECURSIVE c(i) AS (SELECT ",
            $first,
            " UNION ALL SELECT i + 1 FROM c \
             WHERE i < ",
            $last,
            ") SELECT i, printf('%08d', i * 7919 % 3001), randomblob(",
            $blob,
            ") FROM c;"
        )
    };
}

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB); CREATE INDEX t_a ON t(a);";

/// A name, URI parameters, and what is done, one line after the other.
type Workload = (&'static str, &'static str, &'static [&'static str]);

const MIXED: &[&str] = &[
    TABLE,
    rows!("t", 1, 600, "i % 700"),
    "UPDATE t SET b = zeroblob(900) WHERE id % 7 = 0;",
    "DELETE FROM t WHERE id % 3 <> 0;",
    "VACUUM;",
    "BEGIN; DELETE FROM t WHERE id > 100; SAVEPOINT s;",
    rows!("t", 1000, 1400, "300"),
    "ROLLBACK TO s;",
    rows!("t", 2000, 2100, "300"),
    "COMMIT;",
];

const WORKLOADS: &[Workload] = &[
    (
        "vacuum",
        "",
        &[
            TABLE,
            rows!("t", 1, 3000, "i % 200"),
            "DELETE FROM t WHERE id % 3 <> 0;",
            "VACUUM;",
            rows!("t", 4000, 6000, "100"),
            "DROP INDEX t_a;",
            "VACUUM;",
            "REINDEX; ANALYZE;",
        ],
    ),
    (
        "auto_vacuum",
        "",
        &[
            "PRAGMA auto_vacuum = FULL; VACUUM;",
            TABLE,
            rows!("t", 1, 3000, "200"),
            "DELETE FROM t WHERE id > 40;",
            rows!("t", 100, 900, "2000"),
            "DELETE FROM t WHERE id % 2 = 0;",
            "DROP TABLE t;",
            TABLE,
            rows!("t", 1, 500, "100"),
        ],
    ),
    (
        "incremental_vacuum",
        "",
        &[
            "PRAGMA auto_vacuum = INCREMENTAL; VACUUM;",
            TABLE,
            rows!("t", 1, 3000, "400"),
            "DELETE FROM t WHERE id > 100;",
            "PRAGMA incremental_vacuum(37);",
            rows!("t", 200, 400, "400"),
            "BEGIN; DELETE FROM t WHERE id > 10; PRAGMA incremental_vacuum; COMMIT;",
            rows!("t", 500, 900, "1000"),
            "PRAGMA incremental_vacuum;",
        ],
    ),
    (
        "shrink_and_grow",
        "",
        &[
            TABLE,
            rows!("t", 1, 2000, "500"),
            "DELETE FROM t WHERE id > 5; VACUUM;",
            rows!("t", 100, 2500, "500"),
            "DELETE FROM t; VACUUM;",
            rows!("t", 1, 300, "3000"),
            // Freed pages that are taken again, in one transaction.
            "BEGIN; DELETE FROM t WHERE id > 20;",
            rows!("t", 400, 700, "3000"),
            "COMMIT;",
        ],
    ),
    (
        "virtual_tables",
        "",
        &[
            "CREATE TABLE doc(id INTEGER PRIMARY KEY, body TEXT);
             CREATE VIRTUAL TABLE f USING fts5(body, content='doc', content_rowid='id');
             CREATE TRIGGER doc_i AFTER INSERT ON doc BEGIN INSERT INTO f(rowid, body) VALUES (new.id, new.body); END;
             CREATE TRIGGER doc_d AFTER DELETE ON doc BEGIN
               INSERT INTO f(f, rowid, body) VALUES ('delete', old.id, old.body); END;
             CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1);",
            "INSERT INTO doc WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 800)
             SELECT i, printf('page %d of gathering %d sings %s', i, i / 8, hex(randomblob(i % 30))) FROM c;",
            "INSERT INTO r WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 800)
             SELECT i, i % 30, i % 30 + 2, i / 30, i / 30 + abs(random() % 5) FROM c;",
            "DELETE FROM doc WHERE id IN (SELECT rowid FROM f WHERE f MATCH 'gathering AND 17');",
            "DELETE FROM r WHERE x0 > 4 AND y1 < 20;",
            "INSERT INTO f(f) VALUES ('optimize');",
            "INSERT INTO f(f, rank) VALUES ('integrity-check', 1);",
            "INSERT INTO f(f) VALUES ('rebuild');",
        ],
    ),
    (
        "values",
        "",
        &[
            "CREATE TABLE w(k TEXT PRIMARY KEY, v, u UNIQUE) WITHOUT ROWID;
             CREATE TABLE audit(at TEXT DEFAULT CURRENT_TIMESTAMP, r INTEGER DEFAULT (random()), k, was, is_now);
             CREATE TRIGGER w_u AFTER UPDATE ON w BEGIN
               INSERT INTO audit(k, was, is_now) VALUES (old.k, old.v, new.v);
               DELETE FROM audit WHERE rowid % 10 = 0; END;
             CREATE TRIGGER w_i AFTER INSERT ON w WHEN new.v % 2 BEGIN
               UPDATE w SET v = random() WHERE k = new.k; END;
             CREATE TABLE g(a, b AS (a * 2) STORED, c REAL);",
            "INSERT INTO w WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 700)
             SELECT hex(randomblob(12)), i, randomblob(20) FROM c;",
            "UPDATE w SET v = abs(random() % 1000) WHERE k > '8';",
            "INSERT OR REPLACE INTO w SELECT k, random(), randomblob(9) FROM w WHERE v % 5 = 0;",
            "INSERT INTO g(a, c) SELECT random(), julianday('now') FROM w;",
            "ALTER TABLE g ADD COLUMN d DEFAULT 5; ALTER TABLE g DROP COLUMN c; ALTER TABLE g RENAME TO h;",
            "DELETE FROM w WHERE random() % 2;",
        ],
    ),
    (
        "large_values",
        "",
        &[
            "CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB);",
            "INSERT INTO big VALUES (1, randomblob(1048576)), (2, zeroblob(1048576));",
            "INSERT INTO big VALUES (3, randomblob(3000000));",
            "UPDATE big SET b = randomblob(1048576) WHERE id = 2;",
            "UPDATE big SET b = x'00' WHERE id = 1;",
            "INSERT INTO big VALUES (4, randomblob(1048576));",
            "DELETE FROM big WHERE id = 3; VACUUM;",
        ],
    ),
    (
        "spills",
        "",
        &[
            "PRAGMA cache_size = 10; PRAGMA cache_spill = 5;",
            TABLE,
            "BEGIN;",
            rows!("t", 1, 2000, "500"),
            // Pages that are in the log already change again, and again.
            "UPDATE t SET a = a || 'x'; UPDATE t SET b = randomblob(400) WHERE id % 2;",
            "SAVEPOINT one;",
            rows!("t", 3000, 4000, "500"),
            "UPDATE t SET a = 'gone';",
            "SAVEPOINT two; DELETE FROM t WHERE id % 3 = 0; ROLLBACK TO two; ROLLBACK TO one;",
            rows!("t", 5000, 5300, "500"),
            "RELEASE one; COMMIT;",
            "BEGIN; UPDATE t SET b = randomblob(600); DELETE FROM t WHERE id % 2; ROLLBACK;",
            "BEGIN; SAVEPOINT s; UPDATE t SET b = randomblob(450); ROLLBACK TO s; DELETE FROM t WHERE id < 9; COMMIT;",
            "UPDATE t SET a = a || id;",
        ],
    ),
    ("pages_512", "&page_size=512", MIXED),
    ("pages_1024", "&page_size=1024", MIXED),
    ("pages_8192", "&page_size=8192", MIXED),
    ("pages_65536", "&page_size=65536", MIXED),
    ("padded_512", "&page_size=512&psow=0", MIXED),
    ("padded", "&psow=0", MIXED),
];

/// An app that writes.
enum Writer {
    /// The machine's `sqlite3`.
    Older(Host),
    /// The bundled SQLite, in this process.
    Bundled(Connection),
}

impl Writer {
    fn open(is_older: bool, database: &str) -> Writer {
        if is_older {
            let mut host = Host::start(Program::Cli, Load::Vfs);
            host.connect(database).unwrap_or_else(|why| panic!("{database}: {why}\n{}", host.log()));
            host.sql("PRAGMA busy_timeout = 20000").unwrap();
            Writer::Older(host)
        } else {
            Writer::Bundled(host::open(Some(&programs().extension), database).unwrap())
        }
    }

    fn sql(&mut self, sql: &str) {
        match self {
            Writer::Older(host) => {
                host.sql(sql).unwrap_or_else(|why| panic!("{sql}: {why}\n{}", host.log()));
            }
            Writer::Bundled(connection) => {
                let mut batch = rusqlite::Batch::new(connection, sql);
                while let Some(mut statement) = batch.next().unwrap() {
                    let mut rows = statement.query([]).unwrap();
                    while rows.next().unwrap_or_else(|why| panic!("{sql}: {why}")).is_some() {}
                }
            }
        }
    }
}

#[test]
fn all_that_sqlite_does_to_pages_ends_in_identical_files() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(3, &["--checkpoint-mib", "1"]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    for is_older in [true, false] {
        for &(what, parameters, lines) in WORKLOADS {
            let name = format!("{what}-{}", if is_older { "older" } else { "bundled" });
            let path = database(&test, leader, &name);
            let mut writer = Writer::open(is_older, &format!("{}{parameters}", uri(&path)));
            for line in lines {
                writer.sql(line);
            }
            // Read from the live logs, then from files that hold everything.
            assert_identical(&test, &name, &[".dump"]);
            drop(writer);
            println!("{name}: {} bytes", std::fs::metadata(&path).unwrap().len());
        }
    }
    blobs_in_place(&test, leader);
}

/// Incremental writes into a value.
fn blobs_in_place(test: &TestCluster, leader: u64) {
    for program in [Program::Python, Program::Apsw] {
        if !program.is_here() {
            continue;
        }
        let name = format!("blobs-{program:?}");
        let mut host = Host::open(program, &database(test, leader, &name));
        host.sql(
            "CREATE TABLE b(id INTEGER PRIMARY KEY, v BLOB); INSERT INTO b VALUES (1, zeroblob(200000))",
        )
        .unwrap();
        for (n, offset) in [0, 4090, 100_000, 199_990].into_iter().enumerate() {
            host.request(json!({ "blob": ["b", "v", 1, offset, format!("written {n}")] })).unwrap();
        }
        assert_identical(test, &name, &["SELECT hex(v) FROM b"]);
        host.close();
    }
}

/// Many small commits, while logs are checkpointed beside them.
#[test]
fn logs_are_checkpointed_under_many_small_commits() {
    if !Program::Cli.is_here() {
        return;
    }
    const COMMITS: u32 = 1000;
    let test = &steady(3, &["--checkpoint-mib", "1", "--log-segment-mib", "1"]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    std::thread::scope(|scope| {
        for (is_older, name) in [(true, "older"), (false, "bundled")] {
            let path = database(test, leader, name);
            scope.spawn(move || {
                let mut writer = Writer::open(is_older, &uri(&path));
                writer.sql(TABLE);
                writer.sql("PRAGMA journal_size_limit = 50000");
                for n in 1..=COMMITS {
                    writer.sql(&format!("INSERT INTO t VALUES ({n}, 'text {n}', randomblob({n} % 3000))"));
                    if n % 100 == 0 {
                        writer.sql(&format!("DELETE FROM t WHERE id % 3 = 0 AND id < {n}"));
                    }
                }
            });
        }
    });
    for name in ["older", "bundled"] {
        assert_identical(test, name, &[".dump"]);
        for node in 1..=3 {
            // The header counts how often SQLite has started the log anew, which it does when all of it was checkpointed.
            let wal = std::fs::read(format!("{}-wal", database(test, node, name).display())).unwrap();
            let restarts = wal.get(12..16).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
            println!("{name} on node {node}: {} bytes of log, started anew {restarts:?} times", wal.len());
            assert!(
                restarts.is_none_or(|restarts| restarts > 0),
                "{name} on node {node}: the log only grows"
            );
        }
        let count = stock(&database(test, leader, name), "SELECT count(*) > 600 FROM t").unwrap();
        assert_eq!(count, "1");
    }
}
