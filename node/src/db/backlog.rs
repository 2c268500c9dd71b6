//! What waits in the queues of open databases. The log is read as fast as the disk gives it, or as others send it; a
//! worker may be slower. So no entries are taken from the log while more than `--queue-mib` wait, of all databases
//! together, for workers that make room by themselves: the rest waits in the log.
//!
//! A worker doesn't make room by itself where an app stands still in its database: that is not waited for after a moment,
//! for the node's other databases must go on, and what is then beyond the bound is given up (`super::lag`). Nor where
//! the database is fenced: what comes is skipped, or waits for the repair, up to a bound of its own (`super::publish`).
//! Whatever else a worker waits for has an end without further entries: the disk, a checkpoint, whoever takes a
//! snapshot, and the log itself to be on disk.

use super::context::Context;
use super::database::{Database, State};
use crate::command::DbId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// A queue with more than this part of what all may hold is looked at.
const SHARE: usize = 64;
/// How often it is looked at whether workers make room, if they say nothing.
const LOOK: Duration = Duration::from_millis(100);

/// The long queues of a node.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Whose they are. Locked after a database's state.
    long: Mutex<BTreeMap<DbId, Weak<Database>>>,
    /// One is shorter.
    shorter: Notify,
}

impl Backlog {
    fn long(&self) -> MutexGuard<'_, BTreeMap<DbId, Weak<Database>>> {
        self.long.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that wait in long queues for workers that make room.
    fn bytes(&self) -> usize {
        let long: Vec<_> = self.long().values().cloned().collect();
        long.iter().filter_map(Weak::upgrade).map(|database| database.state().waits_for_worker()).sum()
    }
}

impl Context {
    /// Resolves when entries may be taken from the log: not too much waits to be staged, for which nothing but the disk
    /// is needed (a large transaction would come faster than it is written), nor for workers.
    pub async fn room(&self) {
        const MAX_UNSTAGED: usize = 32 << 20;
        let _ = self.unstaged.subscribe().wait_for(|bytes| *bytes < MAX_UNSTAGED).await;
        loop {
            // Before the look, so that nothing is missed.
            let shorter = self.backlog.shorter.notified();
            if self.backlog.bytes() <= self.queue_bytes {
                return;
            }
            let _ = timeout(LOOK, shorter).await;
        }
    }
}

impl State {
    /// Bytes that its worker takes out of the queue by itself.
    fn waits_for_worker(&self) -> usize {
        if self.fenced.is_some() || self.stands_still() { 0 } else { self.queued_bytes }
    }
}

impl Database {
    /// The queue has become longer, or shorter.
    pub(super) fn queue_changed(self: &Arc<Self>, state: &mut State) {
        let is_long = state.queued_bytes > self.context.queue_bytes / SHARE;
        if state.is_long != is_long {
            state.is_long = is_long;
            let mut long = self.context.backlog.long();
            match is_long {
                true => long.insert(self.id, Arc::downgrade(self)),
                false => long.remove(&self.id),
            };
        } else if !is_long {
            return;
        }
        self.context.backlog.shorter.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::{Keep, Registry};
    use super::*;
    use crate::command::TransactionHead;
    use crate::core::lease::Lease;
    use bytes::Bytes;
    use quire_raft::LogPosition;
    use quire_vfs::format::checksum::PageHashes;
    use quire_vfs::format::transaction::{Transaction, TxnId, encode_head};
    use quire_vfs::format::{PageNo, PageSize, database};
    use quire_vfs::gate::lock::GateLock;
    use quire_vfs::gate::proto::{Outcome, WalTarget};
    use std::path::Path;
    use std::sync::mpsc;

    const SIZE: PageSize = PageSize::DEFAULT;
    /// Pages of each transaction.
    const PAGES: u32 = 64;
    /// Transactions that are far more than may wait.
    const MANY: u64 = 40;

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, leader: 1, index }
    }

    /// Databases that the entries 1 and 2 create, in one of which much is written.
    async fn two(dir: &Path) -> (Arc<Registry>, Arc<Context>, Arc<Database>, Arc<Database>) {
        crate::db::sql::register().unwrap();
        let context = Arc::new(Context::alone());
        let keep = Keep { most: 16, idle: Duration::from_secs(60) };
        let registry = Arc::new(Registry::new(dir, context.clone(), keep).unwrap());
        assert!(
            registry.create(at(1), "busy", SIZE).unwrap() && registry.create(at(2), "other", SIZE).unwrap()
        );
        let busy = registry.open(DbId(1)).await.unwrap().unwrap();
        let other = registry.open(DbId(2)).await.unwrap().unwrap();
        (registry, context, busy, other)
    }

    /// The transaction at an entry, on top of another one.
    fn transaction(id: DbId, index: u64, base: u64) -> (TransactionHead, Bytes) {
        let mut first = database::empty_database(SIZE);
        first[60..64].copy_from_slice(&(index as u32).to_be_bytes());
        let rest = vec![index as u8; SIZE.bytes()];
        let image = |page: u32| if page == 1 { first.as_slice() } else { &rest };
        let pages: Vec<_> = (1..=PAGES).map(PageNo).collect();
        let mut hashes = PageHashes::new(SIZE);
        hashes.apply(&PageHashes::delta(PAGES, pages.iter().map(|page| (*page, image(page.0)))));
        let mut body = Vec::new();
        encode_head(&mut body, TxnId([index as u8; 16]), SIZE, PAGES, &pages, 0);
        (1..=PAGES).for_each(|page| body.extend_from_slice(image(page)));
        let checksum = hashes.checksum();
        (TransactionHead { database: id, base, lease_term: 1, checksum, origin: 1 }, body.into())
    }

    /// Hands over entries as the log does, until there has been no room for a while; returns the next one.
    async fn hand_over(context: &Context, database: &Arc<Database>, mut next: u64, base: u64) -> u64 {
        let first = next;
        while next < first + MANY && timeout(3 * LOOK, context.room()).await.is_ok() {
            let base = if next == first { base } else { next - 1 };
            let (head, body) = transaction(database.id, next, base);
            database.take(at(next), head, body);
            let queued = database.state().queued_bytes;
            assert!(queued < context.queue_bytes + (1 << 20), "{queued} bytes wait");
            next += 1;
        }
        next
    }

    /// A worker that is slower than the log: what is not applied waits there, not in memory.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slow_worker_keeps_entries_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (_registry, context, busy, _) = two(dir.path()).await;
        let (locked, is_locked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let ours = busy.clone();
        // As a disk that does nothing for a while.
        let disk = std::thread::spawn(move || {
            let _files = ours.files();
            locked.send(()).unwrap();
            let _ = released.recv();
        });
        is_locked.recv().unwrap();
        let next = hand_over(&context, &busy, 3, 1).await;
        assert!(next < 3 + MANY, "all {MANY} transactions were taken");
        assert_eq!(busy.dealt_with(), 1);
        drop(release);
        disk.join().unwrap();
        // It has room again, without a look from time to time.
        timeout(Duration::from_secs(20), context.room()).await.unwrap();
        let mut next = next;
        while next < 3 + MANY {
            next = hand_over(&context, &busy, next, next - 1).await;
        }
        busy.settled().await;
        assert_eq!((busy.fenced(), busy.dealt_with()), (None, next - 1));
        assert!(context.backlog.long().is_empty());
    }

    /// Goes on for the other database, and gives the busy one up, once its app has stood still for a while.
    async fn others_go_on(context: &Context, busy: &Arc<Database>, other: &Arc<Database>, next: u64) {
        assert!(next < 3 + MANY, "all {MANY} transactions were taken");
        assert_eq!(busy.fenced(), None);
        timeout(Duration::from_secs(20), context.room()).await.unwrap();
        let last = hand_over(context, busy, next, next - 1).await;
        assert_eq!(last, next + MANY, "an app that stands still holds up the log");
        assert!(busy.fenced().is_some_and(|why| why.contains("stands still")));
        let (head, body) = transaction(other.id, last, 2);
        other.take(at(last), head, body);
        timeout(Duration::from_secs(20), other.settled()).await.unwrap();
        assert_eq!((other.fenced(), other.dealt_with()), (None, last));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_app_that_stands_still_does_not_keep_the_log_from_being_read() {
        let dir = tempfile::tempdir().unwrap();
        let (_registry, context, busy, other) = two(dir.path()).await;
        let app = GateLock::open(busy.path(), false).unwrap();
        assert!(app.try_lock().unwrap());
        let next = hand_over(&context, &busy, 3, 1).await;
        others_go_on(&context, &busy, &other, next).await;
        app.unlock().unwrap();
        busy.settled().await;
    }

    /// An app was told that it is committed, and stopped before it published: no worker waits for it, as there is nothing
    /// that one could do. What others wrote was kept without a bound.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_app_that_stands_still_before_it_publishes_costs_a_bounded_lag() {
        let dir = tempfile::tempdir().unwrap();
        let (_registry, context, busy, other) = two(dir.path()).await;
        let (session, token) = (5, 7);
        let granted = busy.acquire(session, Duration::from_secs(10), 0);
        let ticket = busy.state().next_ticket;
        busy.arrived(session, ticket, Lease { token, term: 1, head: 1 }, 9);
        granted.await.unwrap().unwrap();
        let (_, body) = transaction(busy.id, 3, 1);
        let target = WalTarget { salts: Default::default(), frame: quire_vfs::format::FrameNo(PAGES) };
        let txn = Transaction::decode(&body).unwrap();
        let (head, _, outcome) = busy.begin_commit(session, token, target, &txn).unwrap();
        busy.take(at(3), head, body.clone());
        assert!(matches!(outcome.await, Ok(Outcome::Committed(3))));
        let next = hand_over(&context, &busy, 4, 3).await;
        assert!(busy.is_stuck());
        others_go_on(&context, &busy, &other, next).await;
        assert!(busy.status().lagging.is_some());
        // It is gone: what it was told to publish is.
        busy.gone(session);
        busy.settled().await;
        assert!(!busy.is_stuck());
        let (published, queued) = {
            let state = busy.state();
            (state.published, state.queued_bytes)
        };
        assert_eq!((published, queued), (3, 0));
        assert!(busy.fenced().is_some());
    }
}
