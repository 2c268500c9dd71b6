//! What a connection asks of its node before it reads, and that it then finds what it asked for: with SQLite
//! itself, and a node that appends to the WAL while it is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Replica, Txn, api, database_info, new_database};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::{PageSize, database};
use quire_vfs::gate::proto::{NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use quire_vfs::shim::vfs::{self, OpenRequest};
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// The node of all databases of this test.
struct Node {
    replica: Replica,
    version: u32,
    asked: Vec<ReadGoal>,
    /// Transactions that arrive while it is asked.
    arriving: u32,
    refuses: bool,
}

impl Node {
    /// Publishes the next version of the database.
    fn append(&mut self) {
        self.version += 1;
        let mut page = database::empty_database(PageSize::DEFAULT);
        page[60..64].copy_from_slice(&self.version.to_be_bytes());
        self.replica.append(&Txn { db_size: 1, pages: BTreeMap::from([(1, page)]) });
    }
}

type Shared = Arc<Mutex<Node>>;
static NODE: OnceLock<Shared> = OnceLock::new();

struct FakeGate(DatabaseInfo, Shared);

impl Gate for FakeGate {
    fn info(&self) -> &DatabaseInfo {
        &self.0
    }

    fn read(&mut self, goal: ReadGoal, wait: Duration) -> Result<(u64, Duration), Refusal> {
        assert!(wait > Duration::from_secs(1));
        let mut node = self.1.lock().unwrap();
        node.asked.push(goal);
        if node.refuses {
            return Err(Refusal::new(RefusalCode::Unavailable, "there is no leader"));
        }
        for _ in 0..node.arriving {
            node.append();
        }
        Ok((1000, Duration::ZERO))
    }

    fn status(&mut self) -> Result<NodeStatus, Refusal> {
        let leader = Some((2, "127.0.0.1:4001".into()));
        Ok(NodeStatus { index: 77, leader, checksum: "c0ffee".into(), json: "{}".into() })
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        Err(Refusal::new(RefusalCode::Busy, "nobody writes here"))
    }

    fn part(&mut self, _: &Grant, _: Vec<u8>) -> Result<(), String> {
        unreachable!()
    }

    fn commit(&mut self, _: &Grant, _: TxnId, _: WalTarget, _: Vec<u8>) -> Outcome {
        unreachable!()
    }

    fn release(&mut self, _: Grant, _: bool) {}
}

fn opener(request: &OpenRequest) -> Result<Box<dyn Gate>, String> {
    let (_, name) = vfs::locate(&request.path)?;
    Ok(Box::new(FakeGate(database_info(name), NODE.get().unwrap().clone())))
}

fn open(path: &Path, parameters: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(format!("file:{}?vfs=quire{parameters}", path.display()), flags);
    let db = db.unwrap();
    // The schema is read once, in a transaction of its own.
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap();
    node().asked.clear();
    db
}

fn node() -> MutexGuard<'static, Node> {
    NODE.get().unwrap().lock().unwrap()
}

fn read(db: &Connection) -> u32 {
    db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

fn pragma(db: &Connection, pragma: &str) -> Result<String, String> {
    db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).map_err(|error| error.to_string())
}

fn asked() -> Vec<ReadGoal> {
    std::mem::take(&mut node().asked)
}

#[test]
fn each_level_asks_what_it_needs_and_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_database(dir.path(), "node", PageSize::DEFAULT);
    let replica = Replica::open(&path, PageSize::DEFAULT);
    let node_state = Node { replica, version: 0, asked: vec![], arriving: 0, refuses: false };
    NODE.set(Arc::new(Mutex::new(node_state))).ok().unwrap();
    node().append();
    // SAFETY: the functions are those of the SQLite that is linked into this test.
    unsafe { vfs::register(api(), Box::new(opener), false) }.unwrap();

    let local = open(&path, "");
    assert_eq!((read(&local), pragma(&local, "quire_reads").unwrap()), (1, "local".into()));
    assert_eq!(asked(), []);

    // Whatever arrives during the question is found, and no question is asked twice.
    let db = open(&path, "&reads=linearizable");
    for arriving in [0, 1, 3] {
        for round in 0..150 {
            node().arriving = arriving;
            if round % 50 == 7 {
                // All in the database file: another of SQLite's ways to begin.
                node().replica.checkpoint();
            }
            let found = read(&db);
            assert_eq!((asked(), found), (vec![ReadGoal::Newest], node().version), "{arriving}, {round}");
        }
    }
    node().arriving = 1;
    db.execute_batch("BEGIN").unwrap();
    let first = read(&db);
    assert_eq!([read(&db), read(&db)], [first; 2]);
    db.execute_batch("COMMIT").unwrap();
    assert_eq!(asked(), [ReadGoal::Newest]);
    node().arriving = 0;

    // A refusal ends the statement, and nothing else.
    node().refuses = true;
    let refused = db.query_row("PRAGMA user_version", [], |_| Ok(())).unwrap_err();
    assert!(refused.to_string().contains("disk I/O error"), "{refused}");
    assert_eq!(pragma(&db, "quire_barrier"), Err("there is no leader".into()));
    node().refuses = false;
    assert_eq!((read(&db), pragma(&db, "quire_barrier").unwrap()), (node().version, "1000".into()));
    asked();

    // A token is asked for once; bounded asks when the last answer is too old.
    let db = open(&path, "&session=900");
    assert_eq!(pragma(&db, "quire_reads").unwrap(), "session");
    read(&db);
    assert_eq!(asked(), [], "the schema's transaction has asked");
    pragma(&db, "quire_session = 1100").unwrap();
    assert_eq!(pragma(&db, "quire_index").unwrap(), "1100");
    read(&db);
    assert_eq!(asked(), [ReadGoal::Index(1100)]);
    pragma(&db, "quire_reads = 'bounded:100s'").unwrap();
    for _ in 0..3 {
        read(&db);
    }
    assert_eq!(
        asked(),
        [ReadGoal::Index(1100), ReadGoal::Age(100_000), ReadGoal::Index(1100), ReadGoal::Index(1100)]
    );
    pragma(&db, "quire_reads = local").unwrap();
    read(&db);
    assert_eq!(asked(), []);

    // Pragmas that don't make sense say what does.
    for (text, why) in [
        ("quire_reads = strongest", "is no read level: there are local, session"),
        ("quire_session = 'x'", "is no token: it is the number that PRAGMA quire_index returned"),
        ("quire_leader = 3", "quire_leader takes no value"),
        ("quire_indx", "is no pragma of Quire's; there are quire_status, quire_leader, quire_index"),
    ] {
        let said = pragma(&db, text).unwrap_err();
        assert!(said.contains(why), "{text}: {said}");
    }
    assert_eq!(pragma(&db, "quire_leader").unwrap(), "2 127.0.0.1:4001");
    assert_eq!(pragma(&db, "quire_checksum").unwrap(), "c0ffee");
    // A statement that is kept is answered anew.
    let mut kept = db.prepare("PRAGMA quire_reads").unwrap();
    for level in ["local", "linearizable"] {
        pragma(&db, &format!("quire_reads = {level}")).unwrap();
        let found: String = kept.query_row([], |row| row.get(0)).unwrap();
        assert_eq!(found, level);
    }
}
