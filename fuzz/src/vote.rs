//! The vote file. Even first byte: any bytes as a slot, with the checksum mended when the second byte is odd; what is
//! read encodes to what reads the same. Odd: a sound file and harm done to it. A flip in one slot is never believed, and never
//! loses the vote; flips in both are a refusal or one of the votes; what an open file shows survives a power cut and stays.

use crate::log::disk::Disk;
use crate::log::segment::Owner;
use crate::log::simdisk::SimDisk;
use crate::log::vote::{FILE_BYTES, FILE_NAME, Slot, VoteFile, decode, encode};
use crate::types::Vote;
use arbitrary::{Arbitrary, Unstructured};
use std::sync::Arc;

const OWNER: Owner = Owner { cluster: [5; 16], node: 2 };
const SLOT: usize = 96;
const STRIDE: usize = 4096;

#[derive(Debug, Arbitrary)]
struct Votes {
    saved: Vec<(u64, u64, bool)>,
    /// Which slot, which byte, which bits.
    harm: Vec<(bool, u8, u8)>,
    length: Option<u16>,
}

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        slot(rest);
    } else if let Ok(votes) = Votes::arbitrary(&mut Unstructured::new(rest)) {
        file(&votes);
    }
}

fn slot(data: &[u8]) {
    let Some((&mend, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mend % 2 == 1 && bytes.len() >= SLOT {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..12]);
        crc.update(&bytes[16..SLOT]);
        bytes[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    let _ = decode(&bytes, Some(&OWNER));
    let Ok(found) = decode(&bytes, None) else { return };
    let again = encode(&OWNER, &found);
    assert_eq!(decode(&again, Some(&OWNER)), Ok(found));
    assert_eq!(again[..12], bytes[..12], "magic and version");
    for at in 0..SLOT {
        let mut bad = again;
        bad[at] ^= 1 << (at % 8);
        assert!(decode(&bad, None).is_err(), "byte {at}");
    }
}

fn vote(&(term, node, committed): &(u64, u64, bool)) -> Vote {
    if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
}

fn file(votes: &Votes) {
    let disk = SimDisk::default();
    let file = disk.create(FILE_NAME, FILE_BYTES).expect("there is room");
    disk.sync_names().expect("it is a disk in memory");
    let mut open = VoteFile::init(file, OWNER).expect("it is new");
    for saved in votes.saved.iter().take(6) {
        open.save(Some(vote(saved))).expect("it is a disk in memory");
    }
    let last = open.vote();
    drop(open);
    let mut harmed = [false; 2];
    disk.corrupt(FILE_NAME, |bytes| {
        for (second, at, mask) in votes.harm.iter().take(4) {
            let before = bytes.clone();
            bytes[usize::from(*second) * STRIDE + usize::from(*at) % SLOT] ^= mask;
            harmed[usize::from(*second)] |= *bytes != before;
        }
        if let Some(length) = votes.length {
            bytes.resize(usize::from(length), 0);
        }
    });
    let whole = votes.length.is_none_or(|length| u64::from(length) == FILE_BYTES);
    let reopen = |disk: &SimDisk| {
        let file = disk.open(FILE_NAME).expect("it is there");
        VoteFile::open(file, OWNER).map(|open| open.vote())
    };
    match reopen(&disk) {
        Ok(found) => {
            assert!(whole, "its length is checked");
            assert_eq!(found, last, "a flipped bit is not believed");
            for disk in [disk.image(|_, _| false, 0), disk.fork()] {
                assert_eq!(reopen(&disk).ok(), Some(last), "what was shown stays");
            }
        }
        Err(_) => assert!(!whole || harmed == [true; 2], "one slot is enough"),
    }
}
