//! A bit that flips in a file: refused by name and offset, or without consequence.
//!
//! Every byte of every header, and samples of the rest. What a flip can not be told from is a torn write, and that
//! only where nothing was written since: the last write before a crash, as long as no mark record follows it.

use super::workload::{Book, LogImage, Rng, Run, Step, seed, workload};
use super::*;

/// Where to flip a bit, and where damage must then be reported: the offset of the record or header.
fn places(content: &[u8], rng: &mut Rng) -> (Vec<(usize, u64)>, u64) {
    let mut places: Vec<(usize, u64)> = (0..128).map(|at| (at, 0)).collect();
    places.extend((0..4).map(|_| (128 + rng.below(DATA_START as usize - 128), 0)));
    let seed = segment::SegmentHeader::decode(content, None).unwrap().seed;
    let (mut at, mut last_write) = (DATA_START as usize, DATA_START);
    while let Ok((h, payload)) = record::read(content.get(at..).unwrap_or_default(), seed) {
        places.extend((at..at + record::HEADER_BYTES).map(|i| (i, at as u64)));
        let rest = record::size(payload.len()) - record::HEADER_BYTES;
        if rest > 0 {
            let of_payload = [0, rng.below(rest), rng.below(rest), rest - 1];
            places.extend(of_payload.map(|i| (at + record::HEADER_BYTES + i, at as u64)));
        }
        at += record::size(payload.len());
        last_write = h.synced;
    }
    if at < content.len() {
        places.extend((0..4).map(|_| (at + rng.below(content.len() - at), at as u64)));
    }
    (places, last_write)
}

/// Flips bits everywhere. `known` is what the undamaged log must hold; `unmarked` that its last write is followed by
/// nothing, and that it held the records after the first so many.
async fn flip_everywhere(disk: &SimDisk, book: &Book, unmarked: Option<usize>, rng: &mut Rng) {
    let known = book.now();
    assert_eq!(known.acked, known.begun);
    let whole = &book.images[known.acked];
    let files = disk.contents();
    let last = files.keys().rfind(|n| n.ends_with(".seg")).unwrap().clone();
    let (mut flips, mut refused, mut cut) = (0, 0, 0);
    for (name, content) in files.iter().filter(|(n, _)| n.ends_with(".seg")) {
        let (places, last_write) = places(content, rng);
        for (at, start) in places {
            let bad = disk.fork();
            bad.corrupt(name, |b| b[at] ^= 1 << rng.below(8));
            flips += 1;
            match open_small(&bad) {
                Err(LogError::Damaged { path, offset, .. } | LogError::Foreign { path, offset, .. }) => {
                    assert_eq!(path.file_name().unwrap().to_str().unwrap(), name);
                    let in_header = start == 0 && offset < 128;
                    assert!(offset == start || in_header, "flip at {at} reported at {offset}");
                    refused += 1;
                }
                Err(e) => panic!("flip at {at} of {name}: {e}"),
                Ok(mut log) => {
                    let found = LogImage::of(&mut log).await;
                    if found != *whole {
                        let in_last_write = *name == last && at as u64 >= last_write;
                        let before = unmarked.filter(|_| in_last_write);
                        let before =
                            before.unwrap_or_else(|| panic!("flip at {at} of {name} changed the log"));
                        assert!(book.images[before..known.acked].contains(&found), "flip at {at} of {name}");
                        cut += 1;
                    }
                    close(log).await;
                }
            }
        }
    }
    println!("{flips} flips, {refused} refused, {cut} taken for a torn write");
    assert!(refused > flips / 2 && (cut > 0) == unmarked.is_some());
    for at in (0..96).chain(4096..4192).chain([100, 4000, 4200, 8191]) {
        let bad = disk.fork();
        bad.corrupt("vote", |b| b[at] ^= 1 << rng.below(8));
        let mut log = open_small(&bad).unwrap();
        book.check(&mut log, &known).await;
        close(log).await;
    }
}

#[test]
fn a_bit_that_flips_in_a_closed_log_is_refused() {
    run(async {
        let mut rng = Rng::new(seed());
        let disk = SimDisk::default();
        let mut run = Run::start(&disk);
        for step in workload(&mut rng, 4) {
            run.step(&step).await.unwrap();
        }
        run.step(&Step::Reopen).await.unwrap();
        run.close().await;
        flip_everywhere(&disk.crash(|| false), &run.book, None, &mut rng).await;
    });
}

#[test]
fn a_bit_that_flips_after_a_crash_is_refused_except_in_the_last_write() {
    run(async {
        let mut rng = Rng::new(seed());
        let disk = SimDisk::default();
        let mut run = Run::start(&disk);
        for step in workload(&mut rng, 4) {
            run.step(&step).await.unwrap();
        }
        for sizes in [vec![100, 20, 300], vec![40, 50, 60]] {
            run.step(&Step::Append(sizes)).await.unwrap();
        }
        let crashed = disk.crash(|| false);
        let before = run.book.now().acked - 3;
        run.close().await;
        flip_everywhere(&crashed, &run.book, Some(before), &mut rng).await;
    });
}
