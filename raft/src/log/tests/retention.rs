//! Bytes of log, where to purge, and that purging keeps the disk's use bounded.

use super::*;
use crate::log::disk::Disk;

/// What `purge_point` must be, by trying every index: segment sequence of each entry, bytes from each entry on.
fn by_trial(entries: &BTreeMap<u64, (u64, u64)>, active: u64, durable: u64, retain: u64) -> Option<u64> {
    let (first, oldest) = entries.iter().next().map(|(i, e)| (*i, e.0))?;
    let segment_after = |i: u64| entries.get(&(i + 1)).map_or(active, |e| e.0);
    let bytes_after = |i: u64| entries.get(&(i + 1)).map_or(0, |e| e.1);
    let allowed = |i: &u64| *i <= durable && bytes_after(*i) >= retain;
    let highest = entries.keys().copied().filter(allowed).max()?;
    let freed = segment_after(highest);
    // As good as the highest, but keeping what isn't freed anyway.
    (first..=highest).find(|i| segment_after(*i) == freed).filter(|_| freed > oldest)
}

/// Where each entry is, read from the files: its segment, and the bytes of records from it to the end.
fn entries_on(disk: &SimDisk, first: u64) -> (BTreeMap<u64, (u64, u64)>, u64, u64) {
    let mut found = BTreeMap::new();
    let (mut bytes, mut active) = (0, 0);
    for (name, content) in disk.contents() {
        let Some(sequence) = segment::parse_file_name(&name) else { continue };
        let seed = segment::SegmentHeader::decode(&content, None).unwrap().seed;
        let mut at = DATA_START as usize;
        while let Ok((h, payload)) = record::read(content.get(at..).unwrap_or_default(), seed) {
            if h.kind == record::Kind::Base {
                found.split_off(&h.position.index);
            } else if h.kind.is_entry() {
                found.insert(h.position.index, (sequence, bytes));
            }
            at += record::size(payload.len());
            bytes += record::size(payload.len()) as u64;
        }
        active = sequence;
    }
    let live = found.split_off(&first);
    (live.into_iter().map(|(i, (s, at))| (i, (s, bytes - at))).collect(), active, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Against the files and against trying every index; before and after a restart.
    #[test]
    fn purge_point_and_bytes_are_what_the_files_say(
        steps in proptest::collection::vec((0usize..3000, 0u8..12), 1..60),
        asked in proptest::collection::vec((0u64..70, 0u64..80_000), 12),
    ) {
        run(async {
            let disk = SimDisk::default();
            let mut log = open_small(&disk).unwrap();
            let (mut next, mut term) = (0, 1);
            for (size, what) in steps {
                match what {
                    0 if next > 0 => {
                        let keep = next - next.min(3).min(next - log.purged().map_or(0, |p| p.index + 1));
                        let last = keep.checked_sub(1).and_then(|i| log.position_at(i)).map(log_id);
                        log.truncate_after(last).await.unwrap();
                        (next, term) = (keep, term + 1);
                    }
                    1 if next > 4 => {
                        let position = log.position_at(next - 4);
                        if let Some(p) = position {
                            log.purge(log_id(p)).await.unwrap();
                        }
                    }
                    _ => {
                        append(&mut log, vec![command(term, next, size)]).await.unwrap();
                        next += 1;
                    }
                }
            }
            log.save_vote(&Vote::new(term, 1)).await.unwrap();
            for _ in 0..2 {
                log.settled().await;
                let first = log.purged().map_or(0, |p| p.index + 1);
                let (entries, active, bytes) = entries_on(&disk, first);
                assert_eq!(log.log_bytes(), bytes);
                assert_eq!(log.bytes_after(u64::MAX), 0);
                assert_eq!(log.bytes_after(next + 10), 0);
                for i in 0..next + 2 {
                    let expected = entries.get(&(i + 1).max(first)).map_or(0, |e| e.1);
                    assert_eq!(log.bytes_after(i), expected, "after {i}");
                }
                for (durable, retain) in asked.iter().copied().chain([(u64::MAX, 0), (next, 0), (0, 0)]) {
                    let expected = by_trial(&entries, active, durable, retain);
                    assert_eq!(log.purge_point(durable, retain), expected, "{durable} {retain} {entries:?}");
                }
                close(log).await;
                log = open_small(&disk).unwrap();
            }
            close(log).await;
            assert_eq!(disk.violations(), Vec::<String>::new());
        });
    }
}

/// Appends and purges for long, with readers in between and restarts: neither files nor spares pile up, and what was
/// purged is used again.
#[test]
fn purging_keeps_the_disk_bounded() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open_small(&disk).unwrap();
        let mut most = 0;
        for next in 0..1500 {
            append(&mut log, vec![command(1, next, (next as usize * 97) % 1200)]).await.unwrap();
            if next % 10 == 0 {
                // From disk.
                let from = next.saturating_sub(40);
                let _ = log.try_get_log_entries(from..from + 3).await.unwrap();
            }
            if let Some(upto) = log.purge_point(next, 30_000) {
                let at = log.position_at(upto).unwrap();
                let before = log.log_bytes();
                log.purge(log_id(at)).await.unwrap();
                log.settled().await;
                assert!(log.log_bytes() < before);
                assert!(log.bytes_after(upto) >= 30_000);
                assert_eq!(log.purge_point(next, 30_000), None);
            }
            assert!(log.log_bytes() < 30_000 + 2 * SMALL);
            most = most.max(disk.list().unwrap().len());
            if next % 400 == 399 {
                close(log).await;
                log = open_small(&disk).unwrap();
            }
        }
        close(log).await;
        // Eight or nine segments of 4 KiB of records, at most four spares and one in the making, the vote.
        assert!(most <= 17, "{most} files");
        let segments =
            segment::parse_file_name(disk.list().unwrap().iter().rfind(|n| n.ends_with(".seg")).unwrap());
        let made = disk.files_made() as u64;
        assert!(segments > Some(200) && made < 60, "{segments:?} segments in {made} files");
        assert_eq!(disk.violations(), Vec::<String>::new());
    });
}

/// Entries that were read don't keep their segment from being used again, and are not changed by that.
#[test]
fn a_segment_that_was_read_is_recycled() {
    run(async {
        let disk = SimDisk::default();
        let mut log = open_small(&disk).unwrap();
        for i in 0..60 {
            append(&mut log, vec![command(1, i, 900)]).await.unwrap();
        }
        log.settled().await;
        let files = disk.files_made();
        let held = log.try_get_log_entries(0..4).await.unwrap();
        drop(log.try_get_log_entries(4..51).await.unwrap());
        log.purge(log_id(at(1, 50))).await.unwrap();
        log.settled().await;
        for i in 60..72 {
            append(&mut log, vec![command(1, i, 900)]).await.unwrap();
            log.settled().await;
        }
        assert_eq!(disk.files_made(), files, "spares must come from purged segments");
        assert!(held.iter().enumerate().all(|(i, e)| data(e) == data(&command(1, i as u64, 900))));
        close(log).await;
        assert_eq!(disk.violations(), Vec::<String>::new());
    });
}
