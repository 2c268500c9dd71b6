//! A state of a database on its way to this node, in the file `NAME.db-incoming`: the pages that this node's copy
//! lacks of it, and the hashes of all. Little-endian.
//!
//! ```text
//!     0  header, 48 bytes     "QUIREINC", u32 version 1, u32 page size, u64 database id,
//!                             u64 offset of the seal (0: not complete), 12 × 0, u32 crc32
//!    64  page records         u32 page number, u32 crc32 of number and image, image
//!     …  seal                 u64 term, u64 leader, u64 index of the state, u64 as-of, u64 base,
//!                             u64 checksum, u32 pages, u32 number of records, u32 × records page numbers,
//!                             u64 × pages hashes, u32 crc32 of the seal
//! ```
//!
//! Pages are staged as they come; after a break what is there isn't sent again. Sealing syncs the file: from then on
//! it is a durable promise, and stays until the database file itself holds the state. Of two records of one page the
//! later counts. A page without a record is as this node's *file* had it at entry `base`, and as readers see it at
//! that entry; so the records lead both from there and from the durable state before it to the new state.

use super::DbError;
use super::side_file::{u32_at, u64_at};
use crate::command::DbId;
use memmap2::{Mmap, UncheckedAdvice};
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, PageHashes, page_hash};
use quire_vfs::format::{FormatError, PageNo, PageSize, VersionError};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"QUIREINC";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 48;
const RECORDS_AT: u64 = 64;
const RECORD_HEADER: usize = 8;
const SEAL_FIXED: usize = 56;

/// The incoming file of a database file.
pub fn incoming_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-incoming");
    path.into()
}

/// Which state a seal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The last entry in the state.
    pub position: LogPosition,
    /// The entry up to which no other one changed the database.
    pub as_of: u64,
    /// The last entry in the state that the records are to be added to.
    pub base: u64,
    /// Checksum of the state.
    pub checksum: DbChecksum,
}

/// Pages that are being collected.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    file: File,
    page_size: PageSize,
    id: DbId,
    records: u32,
    /// Number and hash of the newest record of each page.
    newest: BTreeMap<PageNo, (u32, u64)>,
    image: Vec<u8>,
}

/// A complete state, ready to be installed.
#[derive(Clone, Debug)]
pub struct Incoming {
    path: PathBuf,
    /// What it is.
    pub target: Target,
    /// Hashes of all its pages.
    pub hashes: PageHashes,
    map: Arc<Mmap>,
    /// The pages that it changes, ascending, and where their images begin.
    pages: Arc<Vec<(PageNo, usize)>>,
}

fn record_size(page_size: PageSize) -> u64 {
    (RECORD_HEADER + page_size.bytes()) as u64
}

fn record_crc(page: PageNo, image: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&page.0.to_le_bytes());
    crc.update(image);
    crc.finalize()
}

fn encode_header(id: DbId, page_size: PageSize, seal: u64) -> [u8; HEADER_SIZE] {
    let mut out = [0; HEADER_SIZE];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&page_size.get().to_le_bytes());
    out[16..24].copy_from_slice(&id.0.to_le_bytes());
    out[24..32].copy_from_slice(&seal.to_le_bytes());
    let crc = crc32fast::hash(&out[..44]);
    out[44..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Offset of the seal, if the header is that of this database; 0 for none. A seal never lies before the records.
fn decode_header(bytes: &[u8], id: DbId, page_size: PageSize) -> Option<u64> {
    let bytes = bytes.get(..HEADER_SIZE)?;
    let seal = u64_at(bytes, 24);
    let may_be = seal == 0 || seal >= RECORDS_AT;
    (may_be && bytes == encode_header(id, page_size, seal)).then_some(seal)
}

impl Staging {
    /// Opens the incoming file of a database to go on with it, or makes a new one. What is there and whole is
    /// kept, whatever state it was for. Nothing of an installed state may depend on the file any more.
    pub fn open(database: &Path, id: DbId, page_size: PageSize) -> Result<Staging, DbError> {
        let path = incoming_path(database);
        let io = |what| DbError::io(&path, what);
        let (file, len) = Staging::unseal(&path, id, page_size)?;
        if let Some(len) = len {
            file.set_len(len).map_err(io("truncating it"))?;
        }
        let mut staging = Staging {
            path: path.clone(),
            file,
            page_size,
            id,
            records: 0,
            newest: BTreeMap::new(),
            image: vec![0; page_size.bytes()],
        };
        staging.scan().map_err(io("reading it"))?;
        Ok(staging)
    }

    /// Opens the file as one that promises nothing, durably, and returns where it is to be cut, if it is. Only then: one
    /// whose seal was cut off, but which says that it has one, would be taken for a damaged promise.
    fn unseal(path: &Path, id: DbId, page_size: PageSize) -> Result<(File, Option<u64>), DbError> {
        let io = |what| DbError::io(path, what);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = options.map_err(io("opening it"))?;
        let mut header = [0; HEADER_SIZE];
        let whole = file.read_exact_at(&mut header, 0).is_ok();
        // One that was cut off is of no version.
        if whole {
            VersionError::check("incoming state", &header, MAGIC, VERSION).map_err(DbError::version(path))?;
        }
        let seal = whole.then(|| decode_header(&header, id, page_size)).flatten();
        if seal == Some(0) {
            return Ok((file, None));
        }
        let written = file.write_all_at(&encode_header(id, page_size, 0), 0);
        written.and_then(|()| file.sync_all()).map_err(io("writing it"))?;
        let len = file.metadata().map_err(io("looking at it"))?.len();
        Ok((file, Some(seal.unwrap_or(HEADER_SIZE as u64).min(len))))
    }

    /// Takes stock of the records up to the first that isn't whole, and cuts the file there.
    fn scan(&mut self) -> io::Result<()> {
        let size = record_size(self.page_size);
        let mut record = vec![0; size as usize];
        loop {
            let at = RECORDS_AT + u64::from(self.records) * size;
            match self.file.read_exact_at(&mut record, at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.file.set_len(at),
                Err(error) => return Err(error),
            }
            let (page, image) = (PageNo(u32_at(&record, 0)), &record[RECORD_HEADER..]);
            if page.0 == 0 || record_crc(page, image) != u32_at(&record, 4) {
                return self.file.set_len(at);
            }
            self.newest.insert(page, (self.records, page_hash(page, image)));
            self.records += 1;
        }
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages that are there.
    pub fn len(&self) -> usize {
        self.newest.len()
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// The hashes that the database has once the staged pages are in it; grown with zeros where need be.
    pub fn overlay(&self, hashes: &mut Vec<u64>) {
        for (page, (_, hash)) in &self.newest {
            let at = page.0 as usize - 1;
            if hashes.len() <= at {
                hashes.resize(at + 1, 0);
            }
            hashes[at] = *hash;
        }
    }

    /// Stages a page.
    pub fn stage(&mut self, page: PageNo, image: &[u8]) -> Result<(), DbError> {
        let at = RECORDS_AT + u64::from(self.records) * record_size(self.page_size);
        self.image.clear();
        self.image.extend_from_slice(&page.0.to_le_bytes());
        self.image.extend_from_slice(&record_crc(page, image).to_le_bytes());
        self.image.extend_from_slice(image);
        let written = self.file.write_all_at(&self.image, at);
        written.map_err(DbError::io(&self.path, "writing a page that was received"))?;
        self.newest.insert(page, (self.records, page_hash(page, image)));
        self.records += 1;
        Ok(())
    }

    /// Gives up what was staged.
    pub fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Completes the state: `hashes` are those of the pages that were not staged. Durable on return.
    pub fn seal(self, target: Target, pages: u32, mut hashes: Vec<u64>) -> Result<Incoming, DbError> {
        self.overlay(&mut hashes);
        hashes.resize(pages as usize, 0);
        let found = hashes.iter().fold(0, |sum, hash| sum ^ hash);
        if DbChecksum(found) != target.checksum {
            let (path, index) = (self.path.clone(), target.position.index);
            self.discard();
            let expected = target.checksum;
            return Err(DbError::Diverged { path, index, found: DbChecksum(found), expected });
        }
        let at = RECORDS_AT + u64::from(self.records) * record_size(self.page_size);
        let mut seal = Vec::with_capacity(SEAL_FIXED + 4 * self.records as usize + 8 * hashes.len() + 4);
        let p = target.position;
        for word in [p.term, p.leader, p.index, target.as_of, target.base, target.checksum.0] {
            seal.extend_from_slice(&word.to_le_bytes());
        }
        seal.extend_from_slice(&pages.to_le_bytes());
        seal.extend_from_slice(&self.records.to_le_bytes());
        let mut numbers = vec![0; self.records as usize];
        for (page, (record, _)) in &self.newest {
            numbers[*record as usize] = page.0;
        }
        seal.extend(numbers.iter().flat_map(|number: &u32| number.to_le_bytes()));
        seal.extend(hashes.iter().flat_map(|hash| hash.to_le_bytes()));
        let crc = crc32fast::hash(&seal);
        seal.extend_from_slice(&crc.to_le_bytes());
        let written = self.file.write_all_at(&seal, at).and_then(|()| self.file.sync_all());
        written.map_err(DbError::io(&self.path, "sealing it"))?;
        // The header counts only once all before it is on disk.
        let header = encode_header(self.id, self.page_size, at);
        let written = self.file.write_all_at(&header, 0).and_then(|()| self.file.sync_all());
        written.map_err(DbError::io(&self.path, "sealing it"))?;
        crate::manifest::sync_dir(&self.path).map_err(DbError::io(&self.path, "syncing its directory"))?;
        let missing = || DbError::io(&self.path, "reading it")(io::ErrorKind::InvalidData.into());
        Incoming::read(&self.path, &self.file, self.id, self.page_size)?.ok_or_else(missing)
    }
}

impl Incoming {
    /// The complete state that waits beside a database, if there is one. A file that isn't complete says nothing.
    pub fn find(database: &Path, id: DbId, page_size: PageSize) -> Result<Option<Incoming>, DbError> {
        let path = incoming_path(database);
        match File::open(&path) {
            Ok(file) => Incoming::read(&path, &file, id, page_size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DbError::io(&path, "opening it")(error)),
        }
    }

    fn read(path: &Path, file: &File, id: DbId, page_size: PageSize) -> Result<Option<Incoming>, DbError> {
        let mut header = [0; HEADER_SIZE];
        if file.read_exact_at(&mut header, 0).is_err() {
            return Ok(None);
        }
        VersionError::check("incoming state", &header, MAGIC, VERSION).map_err(DbError::version(path))?;
        let seal_at = match decode_header(&header, id, page_size) {
            None | Some(0) => return Ok(None),
            Some(at) => at,
        };
        // SAFETY: the file is this node's own; sealed, it is neither written nor truncated by anybody while an
        // `Incoming` exists: `Staging::open` goes to work on it only after the state was installed or refused.
        let map = unsafe { Mmap::map(file) }.map_err(DbError::io(path, "mapping it"))?;
        let err = |at: usize, reason: &str| {
            let error =
                FormatError { what: "incoming state", offset: seal_at + at as u64, reason: reason.into() };
            DbError::Format { path: path.to_owned(), error }
        };
        let seal = map.get(seal_at as usize..).unwrap_or_default();
        let (body, crc) = seal.split_last_chunk::<4>().ok_or_else(|| err(0, "too short"))?;
        if body.len() < SEAL_FIXED || crc32fast::hash(body).to_le_bytes() != *crc {
            return Err(err(0, "crc32 does not match"));
        }
        let word = |n: usize| u64_at(body, 8 * n);
        let position = LogPosition { term: word(0), leader: word(1), index: word(2) };
        let target = Target { position, as_of: word(3), base: word(4), checksum: DbChecksum(word(5)) };
        let (count, records) = (u32_at(body, 48) as usize, u32_at(body, 52) as usize);
        let numbers_end = SEAL_FIXED + 4 * records;
        if body.len() != numbers_end + 8 * count
            || seal_at != RECORDS_AT + records as u64 * record_size(page_size)
        {
            return Err(err(48, "its counts don't fit its size"));
        }
        let hashes = body[numbers_end..].chunks_exact(8).map(|chunk| u64_at(chunk, 0)).collect();
        let mut pages = BTreeMap::new();
        for record in 0..records {
            // 0: a later record of the same page counts.
            let page = PageNo(u32_at(body, SEAL_FIXED + 4 * record));
            if page.0 > 0 && page.0 as usize <= count {
                let at = RECORDS_AT + record as u64 * record_size(page_size);
                pages.insert(page, at as usize + RECORD_HEADER);
            }
        }
        Ok(Some(Incoming {
            path: path.to_owned(),
            target,
            hashes: PageHashes::from_hashes(page_size, hashes),
            map: Arc::new(map),
            pages: Arc::new(pages.into_iter().collect()),
        }))
    }

    /// The pages that it changes, ascending.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = (PageNo, &[u8])> + Clone {
        let size = self.hashes.page_size().bytes();
        self.pages.iter().map(move |&(page, at)| {
            self.pass(at, size);
            (page, &self.map[at..at + size])
        })
    }

    /// What was read before `at` needn't stay in this process's memory, of which there may be less than of the state.
    fn pass(&self, at: usize, size: usize) {
        const EVERY: usize = 16 << 20;
        if at / EVERY != (at + size) / EVERY && at >= EVERY {
            let from = (at / EVERY - 1) * EVERY;
            // SAFETY: a shared mapping of a file that nobody writes: what is dropped is read again when it is needed.
            let passed = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, EVERY) };
            if let Err(error) = passed {
                tracing::debug!("{}: {error}", self.path.display());
            }
        }
    }

    /// Checks every image against its hash, as the file may have lain there for long.
    pub fn check(&self) -> Result<(), DbError> {
        match self.pages().find(|(page, image)| self.hashes.get(*page) != Some(page_hash(*page, image))) {
            None => Ok(()),
            Some((page, _)) => {
                let reason = format!("page {page} is damaged");
                let error = FormatError { what: "incoming state", offset: RECORDS_AT, reason };
                Err(DbError::Format { path: self.path.clone(), error })
            }
        }
    }

    /// Its work is done.
    pub fn remove(&self) -> Result<(), DbError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DbError::io(&self.path, "removing it")(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: DbId = DbId(9);

    fn size() -> PageSize {
        PageSize::new(512).unwrap()
    }

    fn target(index: u64, hashes: &[u64]) -> Target {
        let position = LogPosition { term: 2, leader: 1, index };
        Target {
            position,
            as_of: index + 1,
            base: 3,
            checksum: DbChecksum(hashes.iter().fold(0, |sum, hash| sum ^ hash)),
        }
    }

    fn image(page: u32, version: u8) -> Vec<u8> {
        vec![version ^ page as u8; 512]
    }

    proptest! {
        /// However often the transfer breaks, and wherever the file is cut, what is sealed in the end is the
        /// state that was sent.
        #[test]
        fn breaks_and_cuts_change_nothing(
            sent in proptest::collection::vec((1u32..12, any::<u8>(), any::<bool>(), 0u64..700), 1..40),
            pages in 1u32..14,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let db = dir.path().join("a.db");
            let base: Vec<u64> = (1..=10).map(|page| page_hash(PageNo(page), &image(page, 0))).collect();
            let mut staging = Staging::open(&db, ID, size()).unwrap();
            for (page, version, breaks, cut) in &sent {
                staging.stage(PageNo(*page), &image(*page, *version)).unwrap();
                if *breaks {
                    drop(staging);
                    let file = OpenOptions::new().write(true).open(incoming_path(&db)).unwrap();
                    file.set_len(file.metadata().unwrap().len().saturating_sub(*cut)).unwrap();
                    staging = Staging::open(&db, ID, size()).unwrap();
                }
            }
            // What a cut lost is sent again, as its hash differs.
            let mut wanted = base.clone();
            let mut newest = BTreeMap::new();
            for (page, version, ..) in &sent {
                newest.insert(*page, *version);
            }
            wanted.resize(pages as usize, 0);
            for page in 1..=pages {
                let fallback = if page <= 10 { 0 } else { 77 };
                let version = newest.get(&page).copied().unwrap_or(fallback);
                wanted[page as usize - 1] = page_hash(PageNo(page), &image(page, version));
            }
            let mut have = base.clone();
            staging.overlay(&mut have);
            for page in 1..=pages {
                if have.get(page as usize - 1) != Some(&wanted[page as usize - 1]) {
                    let fallback = if page <= 10 { 0 } else { 77 };
                    let version = newest.get(&page).copied().unwrap_or(fallback);
                    staging.stage(PageNo(page), &image(page, version)).unwrap();
                }
            }
            let target = target(8, &wanted);
            let sealed = staging.seal(target, pages, base.clone()).unwrap();
            let found = Incoming::find(&db, ID, size()).unwrap().unwrap();
            for incoming in [&sealed, &found] {
                prop_assert_eq!(incoming.target, target);
                prop_assert_eq!(incoming.hashes.as_slice(), &wanted[..]);
                incoming.check().unwrap();
                let mut result = base.clone();
                result.resize(pages as usize, 0);
                for (page, image) in incoming.pages() {
                    result[page.0 as usize - 1] = page_hash(page, image);
                }
                prop_assert_eq!(&result, &wanted);
            }
            prop_assert!(Incoming::find(&db, DbId(8), size()).unwrap().is_none(), "another database's");
            found.remove().unwrap();
            prop_assert!(Incoming::find(&db, ID, size()).unwrap().is_none());
        }
    }

    /// Found by fuzzing: no transfer could begin any more, as the file can't be made that long.
    #[test]
    fn a_seal_beyond_the_file_does_not_keep_a_transfer_from_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        for seal in [65, 1 << 40, u64::MAX] {
            std::fs::write(incoming_path(&db), encode_header(ID, size(), seal)).unwrap();
            let mut staging = Staging::open(&db, ID, size()).unwrap();
            assert!(staging.is_empty());
            staging.stage(PageNo(1), &image(1, 1)).unwrap();
            drop(staging);
            assert_eq!(Staging::open(&db, ID, size()).unwrap().len(), 1);
        }
    }

    /// One that lay in the header had the file cut there: without the rest of it, it was of no version.
    #[test]
    fn a_seal_within_the_header_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        for seal in [1, 8, RECORDS_AT - 1] {
            std::fs::write(incoming_path(&db), encode_header(ID, size(), seal)).unwrap();
            assert!(Incoming::find(&db, ID, size()).unwrap().is_none(), "{seal}");
            let mut staging = Staging::open(&db, ID, size()).unwrap();
            staging.stage(PageNo(1), &image(1, 1)).unwrap();
            drop(staging);
            assert_eq!(Staging::open(&db, ID, size()).unwrap().len(), 1, "{seal}");
            std::fs::remove_file(incoming_path(&db)).unwrap();
        }
    }

    /// The seal was cut off while the head still spoke of it: after a crash in between the file passed for a damaged
    /// promise, and the database was fenced.
    #[test]
    fn a_transfer_that_dies_while_it_reopens_a_sealed_file_leaves_no_broken_promise() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let mut staging = Staging::open(&db, ID, size()).unwrap();
        staging.stage(PageNo(1), &image(1, 1)).unwrap();
        let hashes = [page_hash(PageNo(1), &image(1, 1)), 5];
        let sealed = staging.seal(target(8, &hashes), 2, vec![0, 5]).unwrap();
        drop(sealed);
        // It dies before it cuts the file, and then after that.
        let (file, cut) = Staging::unseal(&incoming_path(&db), ID, size()).unwrap();
        assert!(Incoming::find(&db, ID, size()).unwrap().is_none(), "it promises nothing");
        let cut = cut.unwrap();
        assert!(cut > RECORDS_AT && cut < file.metadata().unwrap().len());
        file.set_len(cut).unwrap();
        drop(file);
        assert!(Incoming::find(&db, ID, size()).unwrap().is_none());
        let staging = Staging::open(&db, ID, size()).unwrap();
        assert_eq!(staging.len(), 1, "and what was received isn't sent again");
    }

    #[test]
    fn damage_and_a_wrong_sum_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let mut staging = Staging::open(&db, ID, size()).unwrap();
        staging.stage(PageNo(1), &image(1, 1)).unwrap();
        let hashes = [page_hash(PageNo(1), &image(1, 1)), 5];
        assert!(matches!(
            staging.seal(target(8, &[1, 2]), 2, vec![0, 5]),
            Err(DbError::Diverged { index: 8, .. })
        ));
        assert!(!incoming_path(&db).exists(), "what adds up to nothing isn't kept");
        let mut staging = Staging::open(&db, ID, size()).unwrap();
        staging.stage(PageNo(1), &image(1, 1)).unwrap();
        staging.seal(target(8, &hashes), 2, vec![0, 5]).unwrap();
        let good = std::fs::read(incoming_path(&db)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(incoming_path(&db), &bad).unwrap();
            let ok = match Incoming::find(&db, ID, size()) {
                Ok(Some(incoming)) => incoming.check().is_ok(),
                // A header that isn't ours says that nothing is there.
                Ok(None) => !(0..HEADER_SIZE).contains(&at),
                Err(_) => false,
            };
            // Only what nothing reads may change unnoticed: padding, and the checksum for resuming.
            let unread = (HEADER_SIZE..RECORDS_AT as usize + RECORD_HEADER).contains(&at);
            assert_eq!(ok, unread, "byte {at}");
        }
        // Sealed but not installed: what is there is kept for the next state.
        std::fs::write(incoming_path(&db), &good).unwrap();
        assert_eq!(Staging::open(&db, ID, size()).unwrap().len(), 1);
    }
}
