//! The log store as a whole: openraft's suite over the real disk; crashes, damage and full disks over the simulated
//! one.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{
    EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, OptionalSend, StorageError};
use proptest::prelude::*;

mod crash;
mod damage;
mod faults;
mod regressions;
mod retention;
mod workload;

use super::segment::{self, DATA_START, Owner};
use super::simdisk::{SimDisk, Site};
use super::{LogOptions, LogStore, record};
use crate::types::{
    C, Command, Entry, HandedOver, LogId, Snapshot, SnapshotMeta, StoredMembership, Vote, log_id,
};
use crate::{LogError, LogPosition};

const OWNER: Owner = Owner { cluster: [3; 16], node: 1 };
const SEGMENT: u64 = 64 << 10;

fn options() -> LogOptions {
    LogOptions {
        owner: OWNER,
        segment_bytes: SEGMENT,
        cache_bytes: 20_000,
        read_bytes: 30_000,
        wait_for_room: false,
    }
}

fn open(disk: &SimDisk) -> Result<LogStore, LogError> {
    super::open::open_on(Arc::new(disk.clone()), options(), None)
}

/// Segments of 4 KiB of records: few bytes make many of them.
const SMALL: u64 = 8 << 10;

fn open_small(disk: &SimDisk) -> Result<LogStore, LogError> {
    let options = LogOptions { segment_bytes: SMALL, cache_bytes: 2000, read_bytes: 2000, ..options() };
    super::open::open_on(Arc::new(disk.clone()), options, None)
}

fn run<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
}

fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term, leader: 7, index }
}

fn command(term: u64, index: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|i| (i as u64 * 31 + index * 7 + term) as u8).collect();
    Entry { log_id: log_id(at(term, index)), payload: EntryPayload::Normal(Command(data.into())) }
}

fn data(e: &Entry) -> &[u8] {
    match &e.payload {
        EntryPayload::Normal(c) => &c.0,
        _ => &[],
    }
}

/// Appends as one call and waits for the flush.
async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (tx, rx) = C::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await?;
    rx.await.map_err(io::Error::other)?
}

async fn all(log: &mut LogStore) -> Vec<Entry> {
    log.try_get_log_entries(0..u64::MAX).await.unwrap()
}

async fn close(log: LogStore) {
    assert!(log.close(Duration::from_secs(10)).await);
}

// ---- openraft's suite ----

#[derive(Default)]
struct MemState {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

#[derive(Clone, Default)]
struct MemMachine(Arc<Mutex<MemState>>);

impl RaftSnapshotBuilder<C> for MemMachine {
    type SnapshotData = bytes::Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut s = self.0.lock().unwrap();
        let meta = SnapshotMeta { last_log_id: s.applied, last_membership: s.membership.clone() };
        s.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: bytes::Bytes::new() })
    }
}

impl RaftStateMachine<C> for MemMachine {
    type SnapshotData = bytes::Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let s = self.0.lock().unwrap();
        Ok((s.applied, s.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut s = self.0.lock().unwrap();
            s.applied = Some(entry.log_id);
            if let EntryPayload::Membership(m) = entry.payload {
                s.membership = StoredMembership::new(Some(entry.log_id), m);
            }
            if let Some(r) = responder {
                r.send(HandedOver);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _: bytes::Bytes) -> io::Result<()> {
        let mut s = self.0.lock().unwrap();
        s.applied = meta.last_log_id;
        s.membership = meta.last_membership.clone();
        s.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self
            .0
            .lock()
            .unwrap()
            .snapshot
            .clone()
            .map(|meta| Snapshot { meta, snapshot: bytes::Bytes::new() }))
    }
}

struct RealStores;

impl StoreBuilder<C, LogStore, MemMachine, tempfile::TempDir> for RealStores {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, MemMachine), StorageError<C>> {
        let dir = tempfile::tempdir().unwrap();
        let log = super::open(dir.path(), options()).unwrap();
        Ok((dir, log, MemMachine::default()))
    }
}

struct SimStores;

impl StoreBuilder<C, LogStore, MemMachine, ()> for SimStores {
    async fn build(&self) -> Result<((), LogStore, MemMachine), StorageError<C>> {
        Ok(((), open(&SimDisk::default()).unwrap(), MemMachine::default()))
    }
}

#[tokio::test]
async fn openraft_suite_on_the_real_disk() {
    Suite::test_all(RealStores).await.unwrap();
}

#[tokio::test]
async fn openraft_suite_on_the_simulated_disk() {
    Suite::test_all(SimStores).await.unwrap();
}

// ---- reopening ----

#[test]
fn reopen_finds_everything() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut log = super::open(dir.path(), options()).unwrap();
        let entries: Vec<_> = (0..200).map(|i| command(1 + i / 50, i, (i as usize * 37) % 5000)).collect();
        for chunk in entries.chunks(7) {
            append(&mut log, chunk.to_vec()).await.unwrap();
        }
        append(&mut log, vec![command(5, 200, 300_000)]).await.unwrap();
        log.save_vote(&Vote::new_committed(5, 2)).await.unwrap();
        log.save_committed(Some(log_id(at(4, 190)))).await.unwrap();
        let before = all(&mut log).await;
        assert_eq!(before.len(), 201);
        let locked = super::open(dir.path(), options());
        assert!(matches!(locked.err(), Some(LogError::Locked { .. })));
        close(log).await;

        let mut log = super::open(dir.path(), options()).unwrap();
        let after = all(&mut log).await;
        assert!(before.iter().zip(&after).all(|(a, b)| a.log_id == b.log_id && data(a) == data(b)));
        assert_eq!(after.len(), 201);
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(5, 2)));
        assert_eq!(*log.flushed().borrow(), 200);
        let limited = log.get_log_reader().await.limited_get_log_entries(0, 200).await.unwrap();
        assert!(!limited.is_empty() && limited.len() < 60);
        let big = log.get_log_reader().await.limited_get_log_entries(200, 201).await.unwrap();
        assert_eq!(big.len(), 1);

        let records: usize = crate::inspect::segments(dir.path())
            .unwrap()
            .iter()
            .map(|s| s.records().unwrap().map(|r| assert_eq!(r.unwrap().fault, None)).count())
            .sum();
        assert!(records >= 201);
        assert!(
            crate::inspect::votes(dir.path())
                .unwrap()
                .iter()
                .all(|v| v.as_ref().unwrap().vote == Some((5, 2, true)))
        );
        close(log).await;
    });
}

#[test]
fn truncation_and_purge_survive() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        for i in 0..100 {
            append(&mut log, vec![command(1, i, 3000)]).await.unwrap();
        }
        log.truncate_after(Some(log_id(at(1, 39)))).await.unwrap();
        for i in 40..80 {
            append(&mut log, vec![command(2, i, 3000)]).await.unwrap();
        }
        log.purge(log_id(at(1, 30))).await.unwrap();
        close(log).await;
        for _ in 0..2 {
            let mut log = open(&disk.crash(|| true)).unwrap();
            let entries = all(&mut log).await;
            assert_eq!(
                entries.iter().map(|e| e.log_id.index()).collect::<Vec<_>>(),
                (31..80).collect::<Vec<_>>()
            );
            assert!(entries.iter().all(|e| data(e)
                == data(&command(if e.log_id.index() < 40 { 1 } else { 2 }, e.log_id.index(), 3000))));
            let state = log.get_log_state().await.unwrap();
            assert_eq!(state.last_purged_log_id, Some(log_id(at(1, 30))));
            assert_eq!(state.last_log_id, Some(log_id(at(2, 79))));
            close(log).await;
        }
        // Beyond the tail: everything goes, and the next entry follows the mark.
        let mut log = open(&disk).unwrap();
        log.purge(log_id(at(3, 500))).await.unwrap();
        append(&mut log, vec![command(3, 501, 10)]).await.unwrap();
        close(log).await;
        let mut log = open(&disk.crash(|| false)).unwrap();
        assert_eq!(all(&mut log).await.len(), 1);
        assert_eq!(log.purged(), Some(at(3, 500)));
        assert_eq!(log.last(), Some(at(3, 501)));
        close(log).await;
    });
}

#[test]
fn recycled_segments_show_nothing_of_their_former_life() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        let mut next = 0;
        for round in 0..12 {
            // Ten segments' worth, in records of one size: old and new records line up.
            for _ in 0..20 {
                append(&mut log, vec![command(1, next, 4000)]).await.unwrap();
                next += 1;
            }
            log.purge(log_id(at(1, next - 2))).await.unwrap();
            if round % 3 == 2 {
                close(log).await;
                log = open(&disk.crash(|| false)).unwrap();
                let entries = all(&mut log).await;
                assert_eq!(entries.len(), 1);
                assert_eq!(data(&entries[0]), data(&command(1, next - 1, 4000)));
                close(log).await;
                log = open(&disk).unwrap();
            }
        }
        use super::disk::Disk;
        let names = disk.list().unwrap();
        assert!(names.len() < 12, "files must be recycled: {names:?}");
        close(log).await;
    });
}

// ---- damage ----

fn damaged(r: Result<LogStore, LogError>) -> (String, u64) {
    match r.err() {
        Some(LogError::Damaged { path, offset, .. }) => (path.display().to_string(), offset),
        other => panic!("must be refused as damaged, got {other:?}"),
    }
}

#[test]
fn damage_in_the_middle_is_refused_by_name_and_offset() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        for i in 0..40 {
            append(&mut log, vec![command(1, i, 4000)]).await.unwrap();
        }
        close(log).await;
        let step = record::size(4000) as u64;
        // In a sealed segment, in the last one, and the very last entry (the mark record tells that it was durable).
        for (sequence, nth) in [(1, 3), (3, 0), (3, 5), (3, 40 - 2 * 15 - 1)] {
            let name = segment::file_name(sequence);
            let offset = DATA_START + nth * step;
            for within in [0, 5, 40, 50, 64, 2000, 4063] {
                let bad = disk.crash(|| true);
                bad.corrupt(&name, |b| b[(offset + within) as usize] ^= 0x10);
                assert_eq!(
                    damaged(open(&bad)),
                    (format!("sim/{name}"), offset),
                    "byte {within} of record {nth}"
                );
            }
        }
        let bad = disk.crash(|| true);
        bad.corrupt(&segment::file_name(2), |b| b[60] ^= 1);
        assert_eq!(damaged(open(&bad)).1, 12);
        // Missing segments.
        use super::disk::Disk;
        for sequence in [1, 2] {
            let bad = disk.crash(|| true);
            bad.remove(&segment::file_name(sequence)).unwrap();
            assert_eq!(damaged(open(&bad)).0, format!("sim/{}", segment::file_name(sequence)));
        }
        let bad = disk.crash(|| true);
        bad.remove("vote").unwrap();
        assert_eq!(damaged(open(&bad)).0, "sim/vote");
        // Another version.
        let bad = disk.crash(|| true);
        bad.corrupt(&segment::file_name(1), |b| b[8] = 9);
        assert!(matches!(open(&bad).err(), Some(LogError::Foreign { offset: 8, .. })));
    });
}

#[test]
fn vote_slots() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        log.save_vote(&Vote::new(4, 2)).await.unwrap();
        log.save_vote(&Vote::new_committed(5, 3)).await.unwrap();
        close(log).await;
        for slot in [0, 4096] {
            let bad = disk.crash(|| true);
            bad.corrupt("vote", |b| b[slot + 60] ^= 1);
            let mut log = open(&bad).unwrap();
            assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(5, 3)));
            close(log).await;
            // The bad slot was restored.
            let content = bad.content("vote");
            assert_eq!(content[..96], content[4096..4192]);
        }
        let bad = disk.crash(|| true);
        bad.corrupt("vote", |b| {
            b[60] ^= 1;
            b[4096 + 60] ^= 1;
        });
        assert_eq!(damaged(open(&bad)), ("sim/vote".to_string(), 12));
        // A torn save leaves the old vote or the new one.
        for syncs in 0..2 {
            let disk = disk.crash(|| true);
            let mut log = open(&disk).unwrap();
            // Of writes alone: a spare segment is being made at the same time.
            disk.fail(&[Site::Sync], syncs, false, io::ErrorKind::Other, false);
            assert!(log.save_vote(&Vote::new(9, 1)).await.is_err());
            close(log).await;
            for survive in [false, true] {
                let mut log = open(&disk.crash(|| survive)).unwrap();
                let vote = log.read_vote().await.unwrap().unwrap();
                assert!(
                    vote == Vote::new(9, 1) || (vote == Vote::new_committed(5, 3) && syncs == 0),
                    "{vote}"
                );
                close(log).await;
            }
        }
    });
}

#[test]
fn a_failed_sync_is_final() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        append(&mut log, vec![command(1, 0, 10)]).await.unwrap();
        disk.fail_syncs_after(0);
        assert!(append(&mut log, vec![command(1, 1, 10)]).await.is_err());
        assert!(log.failed().is_some());
        disk.fail_syncs_after(1000);
        assert!(append(&mut log, vec![command(1, 2, 10)]).await.is_err(), "must not retry");
        assert!(log.save_vote(&Vote::new(1, 1)).await.is_err());
        assert_eq!(*log.flushed().borrow(), 0);
        close(log).await;
    });
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        append(&mut log, vec![command(1, 0, 1000)]).await.unwrap();
        // Let the preparer have its spare, then no more files.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !disk.list_spares() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        disk.set_full(true);
        let mut i = 1;
        while log.room_for(5000).is_ok() {
            append(&mut log, vec![command(1, i, 4900)]).await.unwrap();
            i += 1;
            assert!(i < 100);
            // Once the spare is in use, the preparer has to find out that there is no other.
            while !disk.list_spares() && log.room_for(u64::MAX).is_ok() {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
        }
        // The reserve still takes what isn't a proposal.
        append(&mut log, vec![command(1, i, 4000)]).await.unwrap();
        i += 1;
        assert!(log.failed().is_none());
        disk.set_full(false);
        while log.room_for(5000).is_err() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..20 {
            append(&mut log, vec![command(1, i, 4900)]).await.unwrap();
            i += 1;
        }
        close(log).await;

        // Who appends regardless is told so, and nothing was acknowledged or damaged.
        let mut log = open(&disk).unwrap();
        disk.set_full(true);
        let error = loop {
            match append(&mut log, vec![command(1, i, 4900)]).await {
                Ok(()) => i += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        close(log).await;
        let mut log = open(&disk.crash(|| false)).unwrap();
        assert_eq!(log.last(), Some(at(1, i - 1)));
        append(&mut log, vec![command(1, i, 4900)]).await.unwrap();
        close(log).await;
    });
}

impl SimDisk {
    fn list_spares(&self) -> bool {
        use super::disk::Disk;
        self.list().unwrap().iter().any(|n| n.ends_with(".free"))
    }
}

// ---- crashes ----

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Truncate(u64),
    Purge(u64),
    Vote,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(0usize..6000, 1..6).prop_map(Step::Append),
        1 => (1u64..8).prop_map(Step::Truncate),
        1 => (1u64..8).prop_map(Step::Purge),
        1 => Just(Step::Vote),
    ]
}

/// What must and what may be in the log.
#[derive(Default)]
struct Model {
    /// All that was appended, by index; the last append of an index counts.
    entries: BTreeMap<u64, (LogPosition, usize)>,
    purged: Option<u64>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.keys().next_back().map(|i| i + 1).or(self.purged.map(|p| p + 1)).unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever subset of unsynced sectors and names a power cut leaves, at whichever sync it strikes: the log opens,
    /// has everything that was acknowledged, and beyond that only what was being appended. And it goes on.
    #[test]
    fn any_crash_image_opens(
        steps in proptest::collection::vec(step(), 1..25), syncs in 0u64..60, seed in any::<u64>(), keep in 0u8..=4,
    ) {
        run(async {
            let disk = SimDisk::default();
            let mut log = open(&disk).unwrap();
            disk.fail_syncs_after(syncs);
            let mut m = Model { term: 1, ..Model::default() };
            let mut acked_vote = None;
            let mut in_doubt = Vec::new();
            let mut truncating = None;
            for s in steps {
                let ok = match s {
                    Step::Append(sizes) => {
                        let first = m.next();
                        let list: Vec<_> = sizes.iter().enumerate().map(|(i, s)| command(m.term, first + i as u64, *s)).collect();
                        let model = sizes.iter().enumerate().map(|(i, s)| (first + i as u64, (at(m.term, first + i as u64), *s)));
                        let ok = append(&mut log, list).await.is_ok();
                        if ok { m.entries.extend(model) } else { in_doubt.extend(model) }
                        ok
                    }
                    Step::Truncate(n) => {
                        let keep = m.next().saturating_sub(n).max(m.purged.map_or(0, |p| p + 1));
                        let last = keep.checked_sub(1).map(|i| log_id(m.entries.get(&i).map_or(at(0, i), |e| e.0)));
                        m.term += 1;
                        let ok = log.truncate_after(last).await.is_ok();
                        if ok { drop(m.entries.split_off(&keep)) } else { truncating = Some(keep) }
                        ok
                    }
                    Step::Purge(n) => {
                        if let Some((i, e)) = m.entries.iter().nth(n as usize) {
                            let (i, p) = (*i, e.0);
                            m.entries = m.entries.split_off(&(i + 1));
                            m.purged = Some(i);
                            log.purge(log_id(p)).await.is_ok()
                        } else {
                            true
                        }
                    }
                    Step::Vote => {
                        m.term += 1;
                        let vote = Vote::new(m.term, 1);
                        let ok = log.save_vote(&vote).await.is_ok();
                        if ok { acked_vote = Some(vote) }
                        ok
                    }
                };
                if !ok {
                    break;
                }
            }
            let _ = log.close(Duration::from_secs(10)).await;
            let mut rng = seed;
            let crashed = disk.crash(|| {
                rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((rng >> 33) % 4) < u64::from(keep)
            });
            for round in 0..2 {
                let mut log = open(&crashed).unwrap();
                let found: BTreeMap<_, _> = all(&mut log).await.into_iter().map(|e| (e.log_id.index(), e)).collect();
                for (i, (p, size)) in &m.entries {
                    if truncating.is_some_and(|k| *i >= k) {
                        continue;
                    }
                    let e = found.get(i).unwrap_or_else(|| panic!("acknowledged entry {i} is lost"));
                    assert_eq!(e.log_id, log_id(*p));
                    assert_eq!(data(e), data(&command(p.term, *i, *size)));
                }
                for (i, e) in &found {
                    let expected = in_doubt.iter().rfind(|d| d.0 == *i).map(|d| d.1).or(m.entries.get(i).copied());
                    // A purge that wasn't durable yet may leave what it was to remove.
                    if let Some((p, size)) = expected {
                        assert_eq!(e.log_id, log_id(p));
                        assert_eq!(data(e), data(&command(p.term, *i, size)));
                    } else {
                        assert!(round > 0 || m.purged.is_some_and(|p| *i <= p), "entry {i} from nowhere");
                    }
                }
                let vote = log.read_vote().await.unwrap();
                assert!(vote >= acked_vote, "vote {vote:?} after {acked_vote:?}");
                let next = log.last().map_or(0, |p| p.index + 1);
                append(&mut log, vec![command(99, next, 700)]).await.unwrap();
                in_doubt.push((next, (at(99, next), 700)));
                m.entries.remove(&next);
                close(log).await;
            }
        });
    }

    /// A flipped bit anywhere in the log is refused or cut, and never read as something else.
    #[test]
    fn a_flipped_bit_never_shows(position in any::<proptest::sample::Index>(), bit in 0u8..8, clean in any::<bool>()) {
        run(async {
            let disk = SimDisk::default();
            let mut log = open(&disk).unwrap();
            for i in 0..10 {
                append(&mut log, (i * 3..i * 3 + 3).map(|i| command(1, i, 1000)).collect()).await.unwrap();
            }
            if clean {
                close(log).await;
            }
            let bad = disk.crash(|| true);
            let end = DATA_START as usize + 30 * record::size(1000);
            let offset = position.index(end);
            bad.corrupt(&segment::file_name(1), |b| b[offset] ^= 1 << bit);
            match open(&bad) {
                Err(LogError::Damaged { .. } | LogError::Foreign { .. }) => {}
                Err(e) => panic!("{e}"),
                Ok(mut log) => {
                    let entries = all(&mut log).await;
                    assert!(entries.iter().enumerate().all(|(i, e)| data(e) == data(&command(1, i as u64, 1000))));
                    // Only the padding, the rest of the header block, or the last write.
                    assert!(entries.len() == 30 || (!clean && entries.len() >= 27));
                    close(log).await;
                }
            }
        });
    }
}

#[test]
fn every_prefix_of_an_unsynced_write_opens() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        append(&mut log, vec![command(1, 0, 900)]).await.unwrap();
        disk.fail_syncs_after(0);
        let batch: Vec<_> = (1..8).map(|i| command(1, i, 700)).collect();
        assert!(append(&mut log, batch).await.is_err());
        let _ = log.close(Duration::from_secs(10)).await;
        for sectors in 0..16 {
            let mut left = sectors;
            let crashed = disk.crash(|| {
                left -= 1;
                left >= 0
            });
            let mut log = open(&crashed).unwrap();
            let entries = all(&mut log).await;
            assert!(entries.iter().enumerate().all(|(i, e)| e.log_id.index() == i as u64));
            let whole = (sectors as usize * 512).saturating_sub(488) / record::size(700);
            assert!(entries.len() > whole.min(7), "{sectors} sectors, {} entries", entries.len());
            close(log).await;
        }
    });
}

#[test]
fn entries_stream_reads_in_pieces() {
    use futures_util::StreamExt;
    run(async {
        let disk = SimDisk::default();
        let mut log = open(&disk).unwrap();
        for i in 0..50 {
            append(&mut log, vec![command(1, i, 4000)]).await.unwrap();
        }
        let mut reader = log.get_log_reader().await;
        let stream = reader.entries_stream(5..45).await;
        let indexes: Vec<u64> = stream.map(|e| e.unwrap().log_id.index()).collect().await;
        assert_eq!(indexes, (5..45).collect::<Vec<_>>());
        close(log).await;
    });
}
