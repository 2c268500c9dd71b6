//! One test for each bug that was found in how databases are opened, installed and given up, named after it.

use crate::command::{DbId, TransactionHead};
use crate::db::DbError;
use crate::db::applier::{Wal, wal_path};
use crate::db::context::Context;
use crate::db::database::{Database, Work};
use crate::db::incoming::{Incoming, Staging, Target, incoming_path};
use crate::db::install::InstallError;
use crate::db::lag::behind_path;
use crate::db::registry::{Keep, Registry};
use crate::db::side_file::SideFile;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::transaction::encode_head;
use quire_vfs::format::{PageNo, PageSize};
use quire_vfs::gate::lock::GateLock;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

const SIZE: PageSize = PageSize::DEFAULT;

fn at(index: u64) -> LogPosition {
    LogPosition { term: 1, leader: 1, index }
}

fn context() -> Arc<Context> {
    crate::db::sql::register().unwrap();
    Arc::new(Context { flushed: OnceLock::from(watch::channel(1000).1), ..Context::alone() })
}

/// Two pages: a database header with this user version, and anything.
fn pages(path: &Path, version: u8) -> [(PageNo, Vec<u8>); 2] {
    let mut head = std::fs::read(path).unwrap()[..SIZE.bytes()].to_vec();
    head[63] = version;
    [(PageNo(1), head), (PageNo(2), vec![version; SIZE.bytes()])]
}

fn hashes(pages: &[(PageNo, Vec<u8>)]) -> PageHashes {
    let mut hashes = PageHashes::new(SIZE);
    hashes.apply(&PageHashes::delta(
        pages.len() as u32,
        pages.iter().map(|(page, image)| (*page, image.as_slice())),
    ));
    hashes
}

/// A registry with a database that was created by entry 1.
async fn created(dir: &Path) -> (Arc<Registry>, Arc<Database>) {
    let keep = Keep { most: 16, idle: Duration::from_secs(60) };
    let registry = Arc::new(Registry::new(dir, context(), keep).unwrap());
    assert!(registry.create(at(1), "x", SIZE).unwrap());
    let database = registry.open(DbId(1)).await.unwrap().unwrap();
    (registry, database)
}

fn open(path: &Path) -> Result<Database, DbError> {
    Database::open(context(), path, DbId(1), "x", SIZE, false)
}

/// A state as of entry 10, received on top of entry 1.
fn sealed(path: &Path, pages: &[(PageNo, Vec<u8>)]) -> Incoming {
    let mut staging = Staging::open(path, DbId(1), SIZE).unwrap();
    pages.iter().for_each(|(page, image)| staging.stage(*page, image).unwrap());
    let checksum = hashes(pages).checksum();
    let target = Target { position: at(10), as_of: 10, base: 1, checksum };
    staging.seal(target, 2, Vec::new()).unwrap()
}

/// Hands over the transaction at entry 20, on top of another one.
fn take(database: &Arc<Database>, base: u64, pages: &[(PageNo, Vec<u8>)]) {
    let numbers: Vec<_> = pages.iter().map(|(page, _)| *page).collect();
    let mut body = vec![];
    encode_head(&mut body, TxnId([20; 16]), SIZE, numbers.len() as u32, &numbers, 0);
    pages.iter().for_each(|(_, image)| body.extend_from_slice(image));
    let checksum = hashes(pages).checksum();
    let head = TransactionHead { database: DbId(1), base, lease_term: 1, checksum, origin: 1 };
    database.take(at(20), head, body.into());
}

/// The sealed state of another node is still needed, as the file doesn't have it, when publishing the next entry
/// fails: no checkpoint of what the hashes say could ever end, and no repair begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_publication_leaves_no_installed_state_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (first, database) = created(dir.path()).await;
    let path = database.path().to_owned();
    let (old, new) = (pages(&path, 10), pages(&path, 20));

    let incoming = sealed(&path, &old);
    let (done, installed) = oneshot::channel();
    database.enqueue(Work::Install { incoming, read: false, done });
    installed.await.unwrap().unwrap();

    database.files().wal.fail();
    take(&database, 10, &new);
    database.settled().await;
    assert!(database.fenced().is_some());
    database.files().wal = Wal::open(&path, SIZE).unwrap();
    let ours = database.clone();
    tokio::task::spawn_blocking(move || ours.settle_installed()).await.unwrap().unwrap();
    assert!(!incoming_path(&path).exists());
    assert!(database.fenced().is_some(), "that is for the repair to end");
    let durable = database.state().durable;
    assert_eq!((durable.position, durable.target), (at(10), 20));

    // And should the node be started again before the repair has ended, its log has what is missing.
    drop((database, first));
    let database = Arc::new(open(&path).unwrap());
    assert_eq!(database.fenced(), None);
    assert_eq!((database.dealt_with(), database.consistent_from()), (10, 20));
    take(&database, 10, &new);
    database.settled().await;
    assert_eq!(database.fenced(), None);
    let view = tokio::task::spawn_blocking(move || database.wait_view()).await.unwrap().unwrap();
    assert_eq!(view.hashes, hashes(&new).as_slice());
    let mut image = vec![0; SIZE.bytes()];
    for (page, expected) in &new {
        assert!(view.is_sound(*page, &mut image).unwrap() && image == *expected);
    }
}

/// A repair waited for the gate lock that an app kept, and what came meanwhile was given up, as the queue was full. The
/// state that was then installed ended before that, but the database passed for whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_waited_for_the_gate_does_not_forget_what_was_given_up_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, database) = created(dir.path()).await;
    let path = database.path().to_owned();
    let incoming = sealed(&path, &pages(&path, 10));
    database.fence_now("for a test");
    let app = GateLock::open(&path, false).unwrap();
    assert!(app.try_lock().unwrap());
    let (done, installed) = oneshot::channel();
    database.enqueue_before_held(Work::Install { incoming, read: true, done });
    while database.state().lagging().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // More than may wait for an app that stands still.
    let large: Vec<_> = (1..=300).map(|page| (PageNo(page), vec![7; SIZE.bytes()])).collect();
    take(&database, 1, &large);
    while database.state().behind.is_none_or(|behind| !behind.is_recorded) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    app.unlock().unwrap();
    let result = installed.await.unwrap();
    assert!(matches!(result, Err(InstallError::Behind(20))), "{result:?}");
    database.settled().await;
    assert!(database.fenced().is_some() && behind_path(&path).exists());
    assert_eq!(database.state().position, at(1));
}

/// A state that had been received before entries were given up, and was completed at the next start, took the mark away
/// that they are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_state_does_not_cancel_at_a_start_that_the_database_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, database) = created(dir.path()).await;
    let path = database.path().to_owned();
    drop(sealed(&path, &pages(&path, 10)));
    std::fs::write(behind_path(&path), "").unwrap();
    drop((database, registry));
    for start in 0..2 {
        let database = Arc::new(open(&path).unwrap());
        assert_eq!(database.durable().0, at(10), "the state is completed");
        let why = database.fenced().unwrap_or_default();
        assert!(why.contains("entries were not kept for it"), "start {start}: {why}");
        let ours = database.clone();
        tokio::task::spawn_blocking(move || ours.checkpoint()).await.unwrap().unwrap();
        assert!(behind_path(&path).exists(), "start {start}");
    }
}

/// The WAL was put away while there was still on record what had been published in it: had the node died in between, the
/// next one would have looked for that in another WAL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_record_is_void_before_its_wal_is_put_away() {
    const LONG: u64 = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (registry, database) = created(dir.path()).await;
    let path = database.path().to_owned();
    take(&database, 1, &pages(&path, 20));
    database.settled().await;
    assert_eq!(database.fenced(), None);
    drop((database, registry));
    let records = || SideFile::open(&path, DbId(1), SIZE).unwrap().1.records;
    assert!(records().iter().any(|record| !record.publication.is_void()));
    std::fs::File::options().write(true).open(wal_path(&path)).unwrap().set_len(LONG).unwrap();
    // Nothing can take the place of a directory: the node ends when it comes to that.
    let mut in_the_way = wal_path(&path).into_os_string();
    in_the_way.push("-old");
    std::fs::create_dir(&in_the_way).unwrap();
    let why = open(&path).unwrap_err().to_string();
    assert!(why.contains("putting it away"), "{why}");
    assert!(wal_path(&path).metadata().unwrap().len() == LONG);
    assert!(records().iter().all(|record| record.publication.is_void()));

    std::fs::remove_dir(&in_the_way).unwrap();
    let database = open(&path).unwrap();
    assert_eq!((database.fenced(), database.dealt_with(), database.consistent_from()), (None, 1, 20));
}
