//! Quire's WAL writer against a model and stock SQLite. A database that SQLite writes is repeated, transaction by transaction,
//! by Quire's formats alone; in between come restarts of the log, checkpoints, writers that die at each stage, reopening from the
//! WAL file without an index, and readers that stay open over all of it.
//!
//! After each step SQLite reads of Quire's database what the model has: the rows. A reader sees until its end what it saw when it began.
//! At the end both databases have the same content, `integrity_check` included, and are the same file after a checkpoint.

use crate::common::{Replica, WalTail, new_database, stock};
use arbitrary::{Arbitrary, Unstructured};
use quire_vfs::format::PageSize;
use rusqlite::Connection;
use std::collections::BTreeMap;

#[derive(Debug, Arbitrary)]
enum Step {
    Put {
        key: u8,
        len: u16,
        fill: u8,
    },
    /// Many at once, so that the cache spills.
    PutMany {
        key: u8,
        count: u8,
        len: u8,
    },
    Delete {
        key: u8,
    },
    RolledBack {
        key: u8,
    },
    Restart,
    RestartCutShort,
    DeadWriter {
        key: u8,
        half: bool,
    },
    Checkpoint,
    Reopen,
    BeginRead,
    EndRead {
        which: u8,
    },
    Look,
}

#[derive(Debug, Arbitrary)]
struct Run {
    shift: u8,
    steps: Vec<Step>,
}

type Rows = BTreeMap<i64, Vec<u8>>;

/// One run.
pub fn run(data: &[u8]) {
    let Ok(run) = Run::arbitrary(&mut Unstructured::new(data)) else { return };
    let home = tempfile::tempdir_in(crate::scratch()).expect("a directory for the run");
    follow(home.path(), &run);
}

struct World {
    origin: Connection,
    tail: WalTail,
    replica: Option<Replica>,
    path: std::path::PathBuf,
    page_size: PageSize,
    rows: Rows,
    readers: Vec<(Connection, Rows)>,
}

impl World {
    fn sql(&mut self, sql: &str, change: impl FnOnce(&mut Rows)) {
        self.origin.execute_batch(sql).expect("SQLite runs it");
        change(&mut self.rows);
        for txn in self.tail.take() {
            self.replica().append(&txn);
        }
    }

    fn replica(&mut self) -> &mut Replica {
        self.replica.as_mut().expect("it is open")
    }

    fn look(&self) {
        let reader = Connection::open(&self.path).expect("SQLite opens it");
        assert_eq!(rows(&reader), self.rows, "what SQLite reads");
        for (reader, expected) in &self.readers {
            assert_eq!(&rows(reader), expected, "what a reader saw stays");
        }
    }
}

fn rows(connection: &Connection) -> Rows {
    let mut statement = connection.prepare("SELECT k, v FROM t").expect("there is the table");
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("SQLite reads it");
    found.collect::<Result<_, _>>().expect("SQLite reads it")
}

fn put(key: i64, len: usize, fill: u8) -> String {
    let value: String = std::iter::repeat_n(format!("{fill:02x}"), len).collect();
    format!("INSERT OR REPLACE INTO t VALUES ({key}, x'{value}');")
}

fn follow(home: &std::path::Path, run: &Run) {
    let page_size = PageSize::new(512 << (run.shift % 4)).expect("it is one");
    let origin_path = new_database(home, "a", page_size);
    let path = new_database(home, "b", page_size);
    let origin = stock(&origin_path);
    origin.execute_batch("PRAGMA synchronous=OFF").expect("SQLite runs it");
    let tail = WalTail::at_end(&origin_path, 1);
    let replica = Some(Replica::open(&path, page_size));
    let mut world = World { origin, tail, replica, path, page_size, rows: Rows::new(), readers: Vec::new() };
    world.sql("CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB)", |_| {});
    for step in run.steps.iter().take(24) {
        take(&mut world, step);
    }
    world.look();
    world.readers.clear();
    let World { origin, replica, path, .. } = world;
    drop((origin, replica));
    let mut files = Vec::new();
    for db in [&origin_path, &path] {
        let connection = Connection::open(db).expect("SQLite opens it");
        let sound: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("SQLite checks it");
        assert_eq!(sound, "ok");
        let done: (i64, i64, i64) = connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .expect("SQLite copies it");
        assert_eq!(done, (0, 0, 0));
        drop(connection);
        files.push(std::fs::read(db).expect("it is there"));
    }
    assert!(files[0] == files[1], "the files are the same");
}

fn take(world: &mut World, step: &Step) {
    match *step {
        Step::Put { key, len, fill } => {
            let (key, len) = (i64::from(key), usize::from(len % 4000));
            world.sql(&put(key, len, fill), |rows| drop(rows.insert(key, vec![fill; len])));
        }
        Step::PutMany { key, count, len } => {
            let keys = || (0..i64::from(count % 40)).map(move |n| i64::from(key) + n * 7);
            let len = usize::from(len) * 4;
            let all: String = keys().map(|key| put(key, len, key as u8)).collect();
            world.sql(&format!("BEGIN; {all} SAVEPOINT s; {all} ROLLBACK TO s; COMMIT"), |rows| {
                keys().for_each(|key| drop(rows.insert(key, vec![key as u8; len])));
            });
        }
        Step::Delete { key } => {
            let key = i64::from(key);
            world.sql(&format!("DELETE FROM t WHERE k = {key}"), |rows| drop(rows.remove(&key)));
        }
        Step::RolledBack { key } => {
            let all: String = (0..30).map(|n| put(i64::from(key) + n, 900, 1)).collect();
            world.sql(&format!("BEGIN; {all} ROLLBACK"), |_| {});
        }
        Step::Restart => drop(world.replica().try_restart()),
        Step::RestartCutShort => drop(world.replica().restart_cut_short()),
        Step::DeadWriter { key, half } => {
            let key = i64::from(key);
            world.origin.execute_batch(&put(key, 700, 9)).expect("SQLite runs it");
            for txn in world.tail.take() {
                let replica = world.replica();
                if half {
                    replica.append_half_published(&txn);
                } else {
                    replica.append_unfinished(&txn);
                    replica.append(&txn);
                }
            }
            world.rows.insert(key, vec![9; 700]);
            if half {
                // Whoever comes next brings the index to order, as the node does.
                let _ = world.replica().header();
            }
        }
        Step::Checkpoint => world.replica().checkpoint(),
        Step::Reopen => {
            if world.readers.is_empty() {
                world.replica = None;
                let _ = std::fs::remove_file(world.path.with_extension("db-shm"));
                world.replica = Some(Replica::open(&world.path, world.page_size));
            }
        }
        Step::BeginRead => {
            if world.readers.len() < 3 {
                let reader = Connection::open(&world.path).expect("SQLite opens it");
                reader.execute_batch("BEGIN").expect("SQLite runs it");
                assert_eq!(rows(&reader), world.rows, "what a reader sees when it begins");
                world.readers.push((reader, world.rows.clone()));
            }
        }
        Step::EndRead { which } => {
            if let Some(which) = usize::from(which).checked_rem(world.readers.len()) {
                let (reader, expected) = world.readers.swap_remove(which);
                assert_eq!(rows(&reader), expected, "what a reader saw stays");
            }
        }
        Step::Look => world.look(),
    }
}
