//! Every point at which the power can fail, or the process end, in a run in which everything happens.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::workload::{Book, LogImage, Rng, Run, durable_votes, seed, workload};
use super::*;
use crate::log::simdisk::Change;

fn hash(disk: &SimDisk) -> u64 {
    let mut h = DefaultHasher::new();
    disk.contents().hash(&mut h);
    h.finish()
}

/// What a power cut may leave of a disk: nothing that wasn't synced, all of it, all but one write, one write only,
/// writes torn between sectors; each with various numbers of name changes.
fn images(disk: &SimDisk, rng: &mut Rng) -> Vec<SimDisk> {
    let (writes, names) = disk.unsynced();
    let mut images: Vec<_> = (0..=names).map(|n| disk.image(|_, _| false, n)).collect();
    if writes.is_empty() {
        return images;
    }
    images.extend((0..=names).map(|n| disk.image(|_, _| true, n)));
    for (w, sectors) in writes.iter().copied().enumerate() {
        if writes.len() > 1 {
            images.push(disk.image(|write, _| write != w, names));
            images.push(disk.image(|write, _| write == w, names));
        }
        if sectors == 1 {
            continue;
        }
        for cut in [1, sectors / 2, sectors - 1] {
            images.push(disk.image(|write, sector| write < w || write == w && sector < cut, names));
            images.push(disk.image(|write, sector| write != w || sector >= cut, names));
        }
        let missing = rng.below(sectors);
        images.push(disk.image(|write, sector| write != w || sector != missing, names));
    }
    for _ in 0..2 {
        let names = rng.below(names + 1);
        images.push(disk.image(|_, _| rng.below(2) == 0, names));
    }
    images
}

/// A run, what it did to the disk, and what was known when.
async fn recorded(rng: &mut Rng) -> (Vec<Change>, Book) {
    let disk = SimDisk::default();
    disk.record();
    let mut run = Run::start(&disk);
    for step in workload(rng, 14) {
        run.step(&step).await.unwrap();
        run.settled().await;
    }
    run.close().await;
    assert_eq!(disk.violations(), Vec::<String>::new());
    (disk.recorded(), run.book)
}

/// The log opens and goes on, and what is then acknowledged is there after another power cut.
async fn goes_on(image: &SimDisk, mut log: LogStore, found: &LogImage) {
    let next = found.next();
    append(&mut log, vec![command(99, next, 700), command(99, next + 1, 5)]).await.unwrap();
    let vote = Vote::new_committed(99, 2);
    log.save_vote(&vote).await.unwrap();
    let after = image.crash(|| false);
    close(log).await;
    let mut log = open_small(&after).unwrap();
    let mut expected = found.clone();
    expected.entries.extend([(next, (at(99, next), 700)), (next + 1, (at(99, next + 1), 5))]);
    assert_eq!(LogImage::of(&mut log).await, expected);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    close(log).await;
    assert_eq!(image.violations(), Vec::<String>::new());
}

#[test]
fn every_power_cut_leaves_what_was_acknowledged() {
    run(async {
        let mut rng = Rng::new(seed());
        let (changes, book) = recorded(&mut rng).await;
        // Many points leave the same image; it must do for all of them.
        let mut cuts: HashMap<u64, (SimDisk, Vec<usize>)> = HashMap::new();
        SimDisk::default().replay(&changes, |_, noted, disk| {
            for image in images(disk, &mut rng) {
                let known = &mut cuts.entry(hash(&image)).or_insert((image, Vec::new())).1;
                if known.last() != Some(&noted) {
                    known.push(noted);
                }
            }
        });
        println!("{} changes, {} images", changes.len(), cuts.len());
        assert!(changes.len() > 200 && cuts.len() > 200);
        for (n, (image, known)) in cuts.into_values().enumerate() {
            let disk = image.fork();
            disk.record();
            let mut log = open_small(&disk).unwrap();
            let recovery = disk.recorded();
            let mut found = LogImage::default();
            for k in &known {
                found = book.check(&mut log, &book.known[*k]).await;
            }
            goes_on(&disk, log, &found).await;
            if n % 12 == 0 {
                // The power fails again while the log is being opened.
                let mut again = Vec::new();
                image.replay(&recovery, |_, _, disk| again.extend(images(disk, &mut rng)));
                for image in again {
                    let mut log = open_small(&image).unwrap();
                    for k in &known {
                        book.check(&mut log, &book.known[*k]).await;
                    }
                    close(log).await;
                }
            }
        }
    });
}

/// What a log shows when it has been opened may be told to others, so it must be durable, even where the process
/// before was killed between a write and its sync. Wherever the power fails then, in what is done next, it is there.
#[test]
fn what_a_killed_process_left_is_durable_once_it_was_read() {
    run(async {
        let mut rng = Rng::new(seed());
        let (changes, book) = recorded(&mut rng).await;
        let mut kills: HashMap<(u64, u64), (SimDisk, usize)> = HashMap::new();
        SimDisk::default().replay(&changes, |_, noted, disk| {
            let names = disk.contents();
            // Without the two the log makes them, and needs room for it.
            let made = names.contains_key("vote") && names.keys().any(|n| n.ends_with(".seg"));
            let (writes, names) = disk.unsynced();
            if made && writes.len() + names > 0 {
                let key = (hash(disk), hash(&disk.crash(|| false)));
                kills.insert(key, (disk.fork(), noted));
            }
        });
        println!("{} kills", kills.len());
        assert!(kills.len() > 50);
        for (disk, noted) in kills.into_values() {
            // The preparer must not sync names in passing.
            disk.set_full(true);
            let killed = disk.fork();
            disk.record();
            let mut log = open_small(&disk).unwrap();
            let found = book.check(&mut log, &book.known[noted]).await;
            let vote = log.read_vote().await.unwrap();
            assert_eq!(durable_votes(&disk), [vote; 2]);
            disk.note(1);
            let next_vote = Vote::new_committed(99, 1);
            log.save_vote(&next_vote).await.unwrap();
            disk.note(2);
            let next = found.next();
            let mut longer = found.clone();
            longer.entries.insert(next, (at(99, next), 5));
            // There may be no room for it.
            if append(&mut log, vec![command(99, next, 5)]).await.is_ok() {
                disk.note(3);
            }
            let changes = disk.recorded();
            close(log).await;
            let mut cuts = Vec::new();
            killed.replay(&changes, |_, at, disk| {
                // Until it is open nothing but what the process before promised holds; that is tried elsewhere, too.
                if at > 0 || rng.below(8) == 0 {
                    cuts.extend(images(disk, &mut rng).into_iter().map(|image| (at, image)));
                }
            });
            for (at, image) in cuts {
                let mut log = open_small(&image).unwrap();
                if at == 0 {
                    book.check(&mut log, &book.known[noted]).await;
                } else {
                    let (image, now) = (LogImage::of(&mut log).await, log.read_vote().await.unwrap());
                    assert!(image == longer || at < 3 && image == found, "{at}: {image:?}\n{found:?}");
                    assert!(now == Some(next_vote) || at < 2 && now == vote, "{at}: {now:?}, {vote:?}");
                }
                close(log).await;
            }
        }
    });
}
