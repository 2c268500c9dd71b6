//! One test for each bug that was found or must not be made, named after it.

use super::*;
use crate::log::disk::Disk;
use crate::log::simdisk::{Change, Site};
use crate::log::writer::TAIL;

/// A log with entries `0..n` of 900 bytes: four of them in each segment.
async fn filled(disk: &SimDisk, n: u64) -> LogStore {
    let mut log = open_small(disk).unwrap();
    for i in 0..n {
        append(&mut log, vec![command(1, i, 900)]).await.unwrap();
        log.settled().await;
    }
    log
}

async fn holds(log: &mut LogStore, range: std::ops::Range<u64>) {
    let found: Vec<_> = all(log).await.iter().map(|e| e.log_id.index()).collect();
    assert_eq!(found, range.collect::<Vec<_>>());
}

fn segments(disk: &SimDisk) -> Vec<u64> {
    disk.list().unwrap().iter().filter_map(|n| segment::parse_file_name(n)).collect()
}

/// A purged segment whose file could be neither renamed nor removed was passed over: the next ones went, and the gap
/// was taken for damage at the next start.
#[test]
fn a_segment_that_can_not_be_given_up_leaves_no_gap() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 30).await;
        disk.fail(&[Site::Rename, Site::Remove], 1, true, io::ErrorKind::Other, false);
        log.purge(log_id(at(1, 25))).await.unwrap();
        log.settled().await;
        assert!(!disk.heal().is_empty());
        assert!(segments(&disk).windows(2).all(|w| w[0] + 1 == w[1]), "{:?}", segments(&disk));
        let mut other = open_small(&disk.crash(|| true)).unwrap();
        holds(&mut other, 26..30).await;
        close(other).await;
        // It is tried again, at the latest when the log is closed.
        close(log).await;
        assert_eq!(segments(&disk), [7, 8]);
    });
}

/// Each attempt to make a spare left a file behind when the names could not be synced, one every second.
#[test]
fn spares_do_not_pile_up_when_names_can_not_be_synced() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 3).await;
        disk.fail(&[Site::SyncNames], 1, false, io::ErrorKind::Other, false);
        // One sync for the new segment, the next one for a new spare.
        let mut acked = 3;
        for i in 3..5 {
            match append(&mut log, vec![command(1, i, 900)]).await {
                Ok(()) => acked = i + 1,
                // The spare was tried, and the log has failed, before this one came.
                Err(_) => break,
            }
        }
        assert!(acked > 3);
        log.settled().await;
        let files = disk.files_made();
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(disk.files_made(), files);
        assert!(log.failed().is_some());
        assert!(append(&mut log, vec![command(1, 5, 900)]).await.is_err());
        close(log).await;
        let mut log = open_small(&disk.crash(|| false)).unwrap();
        holds(&mut log, 0..acked).await;
        close(log).await;
    });
}

/// A mark record for which the segment had no room made an idle log on a full disk fail.
#[test]
fn an_idle_log_does_not_fail_for_a_mark_on_a_full_disk() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 1).await;
        disk.set_full(true);
        let used = record::size(900);
        let rest = (SMALL - DATA_START - TAIL) as usize - used - record::HEADER_BYTES;
        // Into the first segment, which is then full; and likewise the spare.
        append(&mut log, vec![command(1, 1, rest)]).await.unwrap();
        append(&mut log, vec![command(1, 2, rest + used)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(log.failed(), None);
        log.save_vote(&Vote::new(7, 1)).await.unwrap();
        close(log).await;
        let mut log = open_small(&disk).unwrap();
        holds(&mut log, 0..3).await;
        close(log).await;
    });
}

/// On a full disk a purge and an append after it failed the log, if the append needed a segment that the purge had
/// not given back yet.
#[test]
fn a_full_disk_waits_for_what_a_purge_gives_back() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 12).await;
        disk.set_full(true);
        let mut next = 12;
        while log.room_for(1).is_ok() {
            append(&mut log, vec![command(1, next, 900)]).await.unwrap();
            next += 1;
        }
        for _ in 0..3 {
            log.purge(log_id(at(1, next - 2))).await.unwrap();
            let batch = (next..next + 5).map(|i| command(1, i, 900)).collect();
            append(&mut log, batch).await.unwrap();
            next += 5;
        }
        assert_eq!(log.failed(), None);
        close(log).await;
    });
}

/// A log on a full disk that waits for room, and the append that waits there.
async fn waiting(
    disk: &SimDisk,
    n: u64,
    sizes: &[usize],
) -> (LogStore, tokio::task::JoinHandle<io::Result<()>>) {
    let options = LogOptions { segment_bytes: SMALL, wait_for_room: true, ..options() };
    let log = super::super::open::open_on(Arc::new(disk.clone()), options, None).unwrap();
    log.settled().await;
    disk.fill_up();
    let entries = (n..).zip(sizes).map(|(i, size)| command(1, i, *size)).collect();
    let mut ours = log.clone();
    let append = tokio::spawn(async move { append(&mut ours, entries).await });
    let deadline = Instant::now() + Duration::from_secs(10);
    while !log.is_waiting() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (log, append)
}

/// A purge that would have made room stood in the queue behind the append that waited for it, for ever.
#[test]
fn a_purge_makes_room_for_the_append_that_waits() {
    // In segments of the usual size, and in one that is made for one entry: for that, files have to go.
    for sizes in [vec![900; 12], vec![3 * SMALL as usize]] {
        run(async {
            let disk = SimDisk::default();
            close(filled(&disk, 30).await).await;
            let (mut log, append) = waiting(&disk, 30, &sizes).await;
            // Nothing goes for one that gives back no segment.
            log.purge(log_id(at(1, 1))).await.unwrap();
            log.purge(log_id(at(1, 25))).await.unwrap();
            let done = tokio::time::timeout(Duration::from_secs(10), append);
            done.await.expect("the purge makes room").unwrap().unwrap();
            let next = 30 + sizes.len() as u64;
            holds(&mut log, 26..next).await;
            assert!(!log.is_waiting());
            let crashed = disk.crash(|| false);
            close(log).await;
            for disk in [crashed, disk] {
                let mut log = open_small(&disk).unwrap();
                holds(&mut log, 26..next).await;
                assert_eq!(log.purged(), Some(at(1, 25)));
                close(log).await;
            }
        });
    }
}

/// A purge is brought forward past an append that waits, but not past a truncation: it may be of what comes after.
#[test]
fn a_purge_does_not_overtake_a_truncation() {
    run(async {
        let disk = SimDisk::default();
        close(filled(&disk, 30).await).await;
        let (mut log, waiting) = waiting(&disk, 30, &[900; 12]).await;
        let mut ours = log.clone();
        let truncate = tokio::spawn(async move { ours.truncate_after(Some(log_id(at(1, 19)))).await });
        while log.last() != Some(at(1, 19)) {
            tokio::task::yield_now().await;
        }
        let mut ours = log.clone();
        let entries: Vec<_> = (20..24).map(|i| command(2, i, 900)).collect();
        let again = tokio::spawn(async move { append(&mut ours, entries).await });
        while log.last() != Some(at(2, 23)) {
            tokio::task::yield_now().await;
        }
        log.purge(log_id(at(2, 21))).await.unwrap();
        assert!(log.is_waiting());
        disk.empty();
        waiting.await.unwrap().unwrap();
        truncate.await.unwrap().unwrap();
        again.await.unwrap().unwrap();
        holds(&mut log, 22..24).await;
        let crashed = disk.crash(|| false);
        close(log).await;
        for disk in [crashed, disk] {
            let mut log = open_small(&disk).unwrap();
            holds(&mut log, 22..24).await;
            assert_eq!((log.purged(), log.last()), (Some(at(2, 21)), Some(at(2, 23))));
            close(log).await;
        }
    });
}

/// A truncation or a purge that was the last record of a closed log had no mark after it: a flipped bit in it passed
/// for a torn write, and what it had removed came back.
#[test]
fn a_flip_in_a_truncation_or_purge_at_the_end_is_refused() {
    for purge in [false, true] {
        run(async move {
            let disk = SimDisk::default();
            let mut log = filled(&disk, 3).await;
            close(log).await;
            log = open_small(&disk).unwrap();
            if purge {
                log.purge(log_id(at(1, 1))).await.unwrap();
            } else {
                log.truncate_after(Some(log_id(at(1, 1)))).await.unwrap();
            }
            close(log).await;
            // Three entries and a mark before it.
            let offset = DATA_START as usize + 3 * record::size(900) + record::size(0);
            disk.corrupt(&segment::file_name(1), |b| b[offset + 40] ^= 1);
            assert_eq!(damaged(open_small(&disk)).1, offset as u64);
        });
    }
}

/// After a crash nothing followed the last write, until the next one: a flipped bit in it passed for a torn write,
/// even though it had been read, and counted as durable, in the meantime.
#[test]
fn what_was_found_after_a_crash_is_soon_marked() {
    run(async {
        let disk = SimDisk::default();
        let log = filled(&disk, 3).await;
        let crashed = disk.crash(|| false);
        close(log).await;
        let log = open_small(&crashed).unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let again = crashed.crash(|| false);
        close(log).await;
        let last = DATA_START as usize + 2 * record::size(900);
        again.corrupt(&segment::file_name(1), |b| b[last + 100] ^= 1);
        assert_eq!(damaged(open_small(&again)).1, last as u64);
    });
}

/// What was purged before a crash, but not given up yet, stayed until the next purge.
#[test]
fn what_a_crash_kept_from_being_given_up_goes_at_the_next_start() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 30).await;
        disk.fail(&[Site::Rename, Site::Remove], 0, false, io::ErrorKind::Other, false);
        log.purge(log_id(at(1, 25))).await.unwrap();
        log.settled().await;
        let crashed = disk.crash(|| false);
        close(log).await;
        assert_eq!(segments(&crashed).len(), 8);
        let mut log = open_small(&crashed).unwrap();
        holds(&mut log, 26..30).await;
        log.settled().await;
        assert_eq!(segments(&crashed), [7, 8]);
        close(log).await;
    });
}

/// A bad second vote slot was restored by writing the first one, the only good one, first.
#[test]
fn a_bad_vote_slot_is_restored_before_the_good_one_is_written() {
    run(async {
        let disk = SimDisk::default();
        let mut log = filled(&disk, 1).await;
        log.save_vote(&Vote::new(3, 1)).await.unwrap();
        close(log).await;
        for bad in [0, 4096] {
            let disk = disk.fork();
            disk.corrupt("vote", |b| b[bad + 60] ^= 1);
            disk.record();
            let mut log = open_small(&disk).unwrap();
            let first = disk.recorded().into_iter().find_map(|c| match c {
                Change::Write(_, offset, data) if data.starts_with(b"QUIREVOT") => Some(offset),
                _ => None,
            });
            assert_eq!(first, Some(bad));
            assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1)));
            close(log).await;
        }
    });
}

/// What lies beyond a torn record is zeroed: a new record of the same size must not make the rest of the torn write
/// read as the log again.
#[test]
fn nothing_of_a_torn_write_comes_back() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open_small(&disk).unwrap();
        disk.fail(&[Site::Sync], 0, false, io::ErrorKind::Other, false);
        // Each of them is a sector.
        let size = 512 - record::HEADER_BYTES;
        assert!(append(&mut log, (0..3).map(|i| command(1, i, size)).collect()).await.is_err());
        close(log).await;
        let torn = disk.image(|_, sector| sector > 0, 0);
        let mut log = open_small(&torn).unwrap();
        holds(&mut log, 0..0).await;
        append(&mut log, vec![command(2, 0, size)]).await.unwrap();
        let crashed = torn.crash(|| false);
        close(log).await;
        let mut log = open_small(&crashed).unwrap();
        holds(&mut log, 0..1).await;
        close(log).await;
    });
}

/// What follows the last index is computed in many places.
#[test]
fn an_index_that_no_entry_can_follow_is_damage() {
    use super::super::record::{Header, Kind, put};
    use super::super::segment::{SegmentHeader, file_name};
    use super::super::vote::{FILE_BYTES, FILE_NAME, VoteFile};

    for kind in [Kind::Command, Kind::Base, Kind::Purge] {
        let disk = SimDisk::default();
        VoteFile::init(disk.create(FILE_NAME, FILE_BYTES).unwrap(), OWNER).unwrap();
        let header = SegmentHeader {
            owner: OWNER,
            sequence: 1,
            seed: 3,
            next_index: u64::MAX,
            prev_end: 0,
            prev_seed: 0,
            file_bytes: SMALL,
        };
        let mut bytes = header.encode();
        let position = LogPosition { term: 1, leader: 1, index: u64::MAX };
        put(&mut bytes, 3, &Header { kind, len: 0, position, synced: DATA_START, committed: 0 }, b"");
        bytes.resize(SMALL as usize, 0);
        let file = disk.create(&file_name(1), SMALL).unwrap();
        file.write_at(&bytes, 0).unwrap();
        let refused = open_small(&disk).map(drop).unwrap_err();
        assert!(matches!(refused, LogError::Damaged { offset: DATA_START, .. }), "{kind:?}: {refused}");
    }
}

/// Segments are counted from 1, but a file may have any number in its name: for the one before it 1 was taken from 0.
#[test]
fn a_segment_of_number_0_is_refused() {
    use super::super::segment::{SegmentHeader, file_name};
    use super::super::vote::{FILE_BYTES, FILE_NAME, VoteFile};

    let disk = SimDisk::default();
    VoteFile::init(disk.create(FILE_NAME, FILE_BYTES).unwrap(), OWNER).unwrap();
    let header = SegmentHeader {
        owner: OWNER,
        sequence: 0,
        seed: 3,
        next_index: 5,
        prev_end: 0,
        prev_seed: 0,
        file_bytes: SMALL,
    };
    disk.create(&file_name(0), SMALL).unwrap().write_at(&header.encode(), 0).unwrap();
    let refused = open_small(&disk).map(drop).unwrap_err();
    assert!(matches!(refused, LogError::Damaged { offset: 0, .. }), "{refused}");
}

/// A log that was not purged, and begins far from 0: a read from the start looked at each index before its first entry. At
/// the next start it is refused, as there is a hole; that was done only once its first segment had left.
#[test]
fn a_log_that_begins_late_is_read_at_once_and_never_opened() {
    const FIRST: u64 = 1 << 50;
    for entries in [300, 1] {
        let disk = SimDisk::default();
        run(async {
            let mut log = open(&disk).unwrap();
            let last = FIRST + entries - 1;
            append(&mut log, (FIRST..=last).map(|index| command(1, index, 100)).collect()).await.unwrap();
            assert_eq!(all(&mut log).await.len(), entries as usize);
            assert!(log.read_some(0, FIRST).await.unwrap().is_empty());
            assert_eq!(log.read_some(last, u64::MAX).await.unwrap().len(), 1);
            close(log).await;
        });
        let refused = open(&disk).map(drop).unwrap_err();
        assert!(matches!(refused, LogError::Damaged { offset: 0, .. }), "{refused}");
        assert!(refused.to_string().contains("neither in the log nor purged"), "{refused}");
    }
}

/// Whoever removes the first segment of a log that was not purged has made a hole that must not be passed over.
#[test]
fn a_first_segment_that_is_gone_is_missed() {
    let disk = SimDisk::default();
    run(async { close(filled(&disk, 20).await).await });
    let first = *segments(&disk).iter().min().unwrap();
    disk.remove(&segment::file_name(first)).unwrap();
    disk.sync_names().unwrap();
    let refused = open_small(&disk).map(drop).unwrap_err();
    assert!(matches!(refused, LogError::Damaged { .. }), "{refused}");
}
