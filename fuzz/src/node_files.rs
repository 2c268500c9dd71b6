//! Files in a node's directory. The first byte chooses the file; an odd second byte has checksums mended first, so that what
//! they guard is reached too.
//!
//! - **Manifest**: what is read is written as the same bytes; a flipped bit anywhere, a cut and a byte more are refused.
//! - **Side file**: hashes are as many as the durable slot says and make its checksum; records are in order.
//! - **Incoming state**: opening ends; what is sealed has only pages that are there, whose images `check` proves; going on
//!   with what was staged keeps only whole records.
//! - **Identity** and **file of recoveries**: what is read is written as the same bytes, so that there is one way to say it;
//!   of the second, a flipped bit anywhere and a cut are refused.

use crate::command::DbId;
use crate::db::incoming::{Incoming, Staging, incoming_path};
use crate::db::{DbError, side_file};
use crate::identity::Identity;
use crate::manifest::Manifest;
use crate::recovered;
use quire_vfs::format::checksum::page_hash;
use quire_vfs::format::{PageNo, PageSize};

const ID: DbId = DbId(9);

/// One run.
pub fn run(data: &[u8]) {
    let Some((&[what, mend], body)) = data.split_first_chunk::<2>() else { return };
    let mut bytes = body.to_vec();
    let mend = mend % 2 == 1;
    match what % 5 {
        0 => manifest(&mut bytes, mend),
        1 => side(&mut bytes, mend),
        2 => incoming(&mut bytes, mend),
        3 => identity(&bytes),
        _ => recoveries(bytes, mend),
    }
}

/// Makes the last four bytes of a range the crc32 of those before.
fn seal(bytes: &mut [u8], from: usize, to: usize) {
    if let Some(range) = bytes.get_mut(from..to)
        && let Some((body, crc)) = range.split_last_chunk_mut::<4>()
    {
        *crc = crc32fast::hash(body).to_le_bytes();
    }
}

fn manifest(bytes: &mut Vec<u8>, mend: bool) {
    let len = bytes.len();
    if mend {
        seal(bytes, 0, len);
    }
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let again = manifest.encode();
    assert_eq!(Manifest::decode(&again).ok().as_ref(), Some(&manifest));
    let _ = manifest.applied();
    for at in 0..again.len() {
        let mut bad = again.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Manifest::decode(&bad).is_err(), "byte {at}");
        assert!(Manifest::decode(&again[..at]).is_err(), "cut at {at}");
    }
    bytes.push(0);
    if mend {
        let len = bytes.len();
        seal(bytes, 0, len);
    }
    assert!(Manifest::decode(bytes).is_err(), "something follows");
}

fn side(bytes: &mut [u8], mend: bool) {
    if mend {
        seal(bytes, 0, 40);
        seal(bytes, 512, 512 + 76);
        seal(bytes, 1024, 1024 + 76);
        (0..16).map(|n| 2048 + 128 * n).for_each(|at| seal(bytes, at, at + 60));
    }
    let size = PageSize::DEFAULT;
    let Ok((slot, ring, contents)) = side_file::decode(bytes, ID, size) else { return };
    assert!(slot > 0 && contents.records.len() <= 16);
    assert!(ring > 0 || contents.records.is_empty());
    let durable = contents.durable;
    assert_eq!(contents.hashes.len(), durable.pages);
    if durable.target == durable.position.index {
        assert_eq!(contents.hashes.checksum(), durable.checksum);
    }
}

fn incoming(bytes: &mut Vec<u8>, mend: bool) {
    let size = PageSize::new(512).expect("it is one");
    if mend {
        let len = bytes.len();
        let at = bytes.get(24..32).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b));
        seal(bytes, 0, 48);
        if let Ok(at) = usize::try_from(at)
            && (64..len).contains(&at)
        {
            seal(bytes, at, len);
        }
        for at in (64..len.saturating_sub(520)).step_by(520).take(8) {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&bytes[at..at + 4]);
            crc.update(&bytes[at + 8..at + 520]);
            bytes[at + 4..at + 8].copy_from_slice(&crc.finalize().to_le_bytes());
        }
    }
    let db = crate::scratch().join("a.db");
    std::fs::write(incoming_path(&db), &bytes).expect("there is room");
    if let Ok(Some(incoming)) = Incoming::find(&db, ID, size) {
        let sound = incoming.check().is_ok();
        for (page, image) in incoming.pages() {
            assert!(page.0 > 0 && page.0 <= incoming.hashes.len() && image.len() == size.bytes());
            assert!(!sound || incoming.hashes.get(page) == Some(page_hash(page, image)));
        }
    }
    let mut staging = match Staging::open(&db, ID, size) {
        Ok(staging) => staging,
        Err(error) => {
            assert!(matches!(error, DbError::Version { .. }), "what is no whole file begins anew: {error}");
            assert!(
                std::fs::read(incoming_path(&db)).is_ok_and(|found| found == *bytes),
                "it stays as it was"
            );
            return;
        }
    };
    let (before, mut hashes) = (staging.len(), Vec::new());
    // A page number is not bounded by anything before the seal.
    if bytes.len() >= 68 && (64..bytes.len()).step_by(520).all(|at| page_at(bytes, at) < 1 << 16) {
        staging.overlay(&mut hashes);
        assert!(hashes.iter().filter(|hash| **hash != 0).count() <= before);
    }
    staging.stage(PageNo(1), &[7; 512]).expect("there is room");
    drop(staging);
    let staging = Staging::open(&db, ID, size).expect("it goes on");
    assert!(staging.len() == before || staging.len() == before + 1);
    staging.discard();
}

fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Identity::decode(text) {
        Ok(identity) => assert_eq!(identity.encode(), text),
        Err(why) => assert!(why.contains("under a new id"), "no way out: {why}"),
    }
}

fn recoveries(mut bytes: Vec<u8>, mend: bool) {
    if mend {
        let body = bytes.windows(6).rposition(|word| word == b"crc32 ").unwrap_or(bytes.len());
        bytes.truncate(body);
        bytes.extend(format!("crc32 {:08x}\n", crc32fast::hash(&bytes)).as_bytes());
    }
    let Ok(lines) = recovered::decode(&bytes) else { return };
    assert_eq!(recovered::encode(&lines).as_bytes(), bytes);
    // Of a long one, here and there.
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 512) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(recovered::decode(&bad).is_err(), "byte {at}");
        assert!(recovered::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

fn page_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
