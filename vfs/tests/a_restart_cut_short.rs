//! A writer dies while it starts the log anew: the header says that the log is empty, and the count of backfilled frames still
//! speaks of the log before. SQLite would take the next log's frames, up to that count, to be in the database file: rows that
//! were committed would be missing, and a transaction that spills its cache would read old pages and write them back. Apps
//! that write through the VFS find a log that is in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Replica, api, database_info, new_database};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::{FrameNo, PageSize};
use quire_vfs::gate::proto::{Outcome, Refusal, WalTarget};
use quire_vfs::gate::{DatabaseInfo, Gate, Grant};
use quire_vfs::shim::vfs::{self, OpenRequest};
use rusqlite::{Connection, OpenFlags, ffi};
use std::path::Path;

/// Of a node that lets everybody in and commits everything.
struct OpenGate(DatabaseInfo);

impl Gate for OpenGate {
    fn info(&self) -> &DatabaseInfo {
        &self.0
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        Ok(Grant { token: 1, base: 1, pages: 1 })
    }

    fn part(&mut self, _: &Grant, _: Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    fn commit(&mut self, _: &Grant, _: TxnId, _: WalTarget, _: Vec<u8>) -> Outcome {
        Outcome::Committed(2)
    }

    fn release(&mut self, _: Grant, _: bool) {}
}

fn opener(request: &OpenRequest) -> Result<Box<dyn Gate>, String> {
    let (_, name) = vfs::locate(&request.path)?;
    Ok(Box::new(OpenGate(database_info(name))))
}

/// An app with a small cache, which spills.
fn app(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    let app = Connection::open_with_flags(format!("file:{}?vfs=quire", path.display()), flags).unwrap();
    app.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).unwrap();
    app.pragma_update(None, "cache_size", 12).unwrap();
    app
}

/// What everybody else finds: how many rows have this value, and whether the database is sound.
fn judge(path: &Path, n: i64) -> (i64, String) {
    let stock = Connection::open(path).unwrap();
    let rows = stock.query_row("SELECT count(*) FROM t WHERE n = ?", [n], |row| row.get(0)).unwrap();
    (rows, stock.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap())
}

const ROWS: i64 = 200;

#[test]
fn the_next_writer_finds_the_log_in_order_and_who_began_before_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = new_database(dir.path(), "node", PageSize::DEFAULT);
    let mut replica = Replica::open(&path, PageSize::DEFAULT);
    // SAFETY: the functions are those of the SQLite that is linked into this test.
    unsafe { vfs::register(api(), Box::new(opener), false) }.unwrap();
    let writer = app(&path);
    writer.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, data BLOB)").unwrap();
    let rows = format!(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS})
         INSERT INTO t SELECT i, 0, zeroblob(1500) FROM c"
    );
    writer.execute_batch(&rows).unwrap();
    let update = "UPDATE t SET n = n + 1, data = randomblob(1500)";

    // One that began when the restart was cut short, and writes before and after the log is brought to order; one that
    // begins after it.
    for round in 0..3 {
        replica.checkpoint();
        let before = replica.header().max_frame;
        assert!(replica.is_backfilled() && before.0 > 60 && replica.restart_cut_short());
        if round != 1 {
            writer.execute_batch("BEGIN").unwrap();
            let n: i64 = writer.query_row("SELECT max(n) FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(n, round);
            if round == 2 {
                replica.tidy();
            }
            let refused = writer.execute_batch(update).unwrap_err();
            let ffi::Error { extended_code, .. } = *refused.sqlite_error().unwrap();
            assert_eq!(extended_code, ffi::SQLITE_BUSY_SNAPSHOT, "{refused}");
            assert_eq!(replica.header().max_frame, FrameNo(0), "it wrote nothing");
            writer.execute_batch("ROLLBACK").unwrap();
        }
        // Fewer frames than the log before had, and then more.
        writer.execute_batch("UPDATE t SET n = n WHERE id = 1").unwrap();
        assert!(replica.header().max_frame < before);
        assert_eq!(judge(&path, round), (ROWS, "ok".into()), "round {round}");
        writer.execute_batch(update).unwrap();
        assert_eq!(judge(&path, round + 1), (ROWS, "ok".into()), "round {round}");
    }
}
