//! A disk that fails, at every operation at which it can.

use super::workload::{LogImage, Rng, Run, durable_votes, seed, workload};
use super::*;
use crate::log::simdisk::{SYNCS, Site};

struct Fault {
    sites: &'static [Site],
    /// One operation fails, or all from there on.
    once: bool,
    kind: io::ErrorKind,
    /// What a failed sync was to write never gets to the disk, though reads show it.
    lost: bool,
}

/// After what fails the store must have failed. A new spare is thrown away instead, and so may the rest wait.
fn is_final(site: &Site) -> bool {
    matches!(site, Site::Sync | Site::SyncNames | Site::Write)
}

/// Nothing is acknowledged any more.
async fn is_dead(run: &mut Run) {
    let Some(mut log) = run.log.clone() else { return };
    let flushed = *log.flushed().borrow();
    assert!(log.failed().is_some());
    let now = run.now().clone();
    assert!(append(&mut log, vec![command(9, now.next(), 5)]).await.is_err());
    assert!(log.save_vote(&Vote::new(90, 1)).await.is_err());
    if now.entries.len() > 1 {
        assert!(log.truncate_after(now.last().map(|p| log_id(at(p.term, p.index - 1)))).await.is_err());
    }
    assert_eq!(*log.flushed().borrow(), flushed);
}

/// Lets the `n`-th operation fail in a run, for every `n`; afterwards the log must open with what was acknowledged.
async fn every_operation(fault: Fault) {
    let mut rng = Rng::new(seed());
    let steps = workload(&mut rng, 0);
    for n in 0.. {
        let disk = SimDisk::default();
        disk.fail(fault.sites, n, fault.once, fault.kind, fault.lost);
        let mut run = Run::start(&disk);
        assert!(run.log.is_some() || !disk.struck().is_empty());
        for step in &steps {
            let done = run.step(step).await;
            run.settled().await;
            let struck = disk.struck();
            if done.is_err() || struck.iter().any(is_final) {
                assert!(!struck.is_empty(), "an error from nowhere: {done:?}");
                is_dead(&mut run).await;
                break;
            }
        }
        run.close().await;
        let struck = disk.heal();
        if struck.is_empty() {
            assert!(n > 10, "nothing failed");
            return;
        }
        let known = run.book.now();
        let mut cuts = vec![disk.crash(|| false), disk.crash(|| true)];
        cuts.extend((0..2).map(|_| disk.crash(|| rng.below(2) == 0)));
        for cut in cuts {
            let mut log = open_small(&cut).unwrap_or_else(|e| panic!("{n}: {e}"));
            run.book.check(&mut log, &known).await;
            close(log).await;
        }
        // The process starts again while the machine runs on: what it then shows must survive.
        let mut log = open_small(&disk).unwrap_or_else(|e| panic!("{n}: {e}"));
        let found = run.book.check(&mut log, &known).await;
        let vote = log.read_vote().await.unwrap();
        assert_eq!(durable_votes(&disk), [vote; 2], "{n} {struck:?}");
        let after = disk.crash(|| false);
        close(log).await;
        let mut log = open_small(&after).unwrap_or_else(|e| panic!("{n} {struck:?}: {e}"));
        assert_eq!(LogImage::of(&mut log).await, found, "{n} {struck:?}");
        assert_eq!(log.read_vote().await.unwrap(), vote);
        close(log).await;
        assert_eq!(disk.violations(), Vec::<String>::new());
    }
}

#[test]
fn every_sync_fails_once_and_loses_its_data() {
    run(every_operation(Fault { sites: &SYNCS, once: true, kind: io::ErrorKind::Other, lost: true }));
}

#[test]
fn every_sync_fails_from_there_on() {
    run(every_operation(Fault { sites: &SYNCS, once: false, kind: io::ErrorKind::Other, lost: false }));
}

#[test]
fn every_write_and_every_new_file_meets_a_full_disk() {
    let sites = &[Site::Write, Site::Create];
    let kind = io::ErrorKind::StorageFull;
    run(async {
        every_operation(Fault { sites, once: false, kind, lost: false }).await;
        every_operation(Fault { sites, once: true, kind, lost: false }).await;
    });
}

#[test]
fn every_rename_and_every_removal_fails() {
    let sites = &[Site::Rename, Site::Remove];
    let kind = io::ErrorKind::Other;
    run(async {
        every_operation(Fault { sites, once: true, kind, lost: false }).await;
        every_operation(Fault { sites, once: false, kind, lost: false }).await;
    });
}

/// A follower can't refuse what its leader sends: what doesn't fit waits, and isn't lost when the disk has room again.
#[test]
fn appends_wait_for_room_on_a_full_disk() {
    // Into segments of the usual size, and into one that is made for one entry.
    for size in [900, 2 * SMALL as usize] {
        run(async {
            let disk = SimDisk::default();
            let options = LogOptions { segment_bytes: SMALL, wait_for_room: true, ..options() };
            let open =
                |disk: &SimDisk| super::super::open::open_on(Arc::new(disk.clone()), options.clone(), None);
            let log = open(&disk).unwrap();
            log.settled().await;
            for (round, gives_up) in [(0, false), (1, false), (2, true)] {
                disk.set_full(true);
                let from = log.last().map_or(0, |p| p.index + 1);
                let mut waiting = Vec::new();
                for n in from..from + 12 {
                    let mut ours = log.clone();
                    let entry = command(1, n, if n < from + 6 { 900 } else { size });
                    waiting.push(tokio::spawn(async move { append(&mut ours, vec![entry]).await }));
                    tokio::task::yield_now().await;
                }
                let mut voter = log.clone();
                let vote = tokio::spawn(async move { voter.save_vote(&Vote::new(2 + round, 1)).await });
                let deadline = Instant::now() + Duration::from_secs(10);
                while !log.is_waiting() {
                    assert!(Instant::now() < deadline);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                assert!(log.room_for(1).is_err() && log.failed().is_none());
                assert!(!vote.is_finished(), "it comes after what was appended before it");
                if gives_up {
                    close(log).await;
                    let results = futures_util::future::join_all(waiting).await;
                    let acked = results.iter().filter(|done| matches!(done, Ok(Ok(())))).count();
                    let last = results.last().unwrap().as_ref().unwrap().as_ref().unwrap_err();
                    assert_eq!(last.kind(), io::ErrorKind::StorageFull, "{last}");
                    let log = open(&disk.crash(|| false)).unwrap();
                    let last = log.last().unwrap().index;
                    assert!(acked < 12 && last + 1 >= from + acked as u64, "{acked} {last}");
                    return close(log).await;
                }
                disk.set_full(false);
                for done in waiting {
                    done.await.unwrap().unwrap();
                }
                vote.await.unwrap().unwrap();
                assert!(!log.is_waiting() && log.room_for(1).is_ok());
                assert_eq!(log.last().unwrap().index, from + 11);
            }
        });
    }
}
