//! The side file `NAME.db-quire`, beside a database: what this node knows about it. Little-endian; each
//! record ends in the crc32 of the bytes before it.
//!
//! ```text
//!     0  header, 40 bytes     "QUIRESID", u32 version 2, u32 page size, u64 database id,
//!                             12 × 0, u32 crc32
//!   512  durable slot 0       u64 sequence, u64 term, u64 leader and u64 index of the durable entry,
//!  1024  durable slot 1       u64 target, u64 checksum, u32 pages, u64 size and u64 time of change (ns)
//!                             of the database file, u32 change counter in it, u32 crc32    (76 bytes)
//!  1536  scrub mark           u32 page to go on with, u32 0, u64 seconds since 1970 when the last scrub of all
//!                             pages ended, u32 crc32; not valid: none was ever ended     (20 bytes)
//!  2048  16 publications      u64 sequence, u64 index, u64 base, [u8;16] transaction id, [u8;8] salts,
//!        of 128 bytes         u32 frame, u32 seen, u32 crc32                           (60 bytes)
//!  4096  page hashes          u64 for each page
//! ```
//!
//! The valid durable slot with the higher sequence counts. It says: the database *file* holds everything up
//! to `index`, and the hashes are those of that state, except for pages that entries after it write. While
//! a checkpoint is at work, `target` is the entry that it copies up to: after a crash the file may hold
//! pages of entries up to there, so it must not serve before they have been read again. Where no checkpoint
//! was at work, a file that doesn't bear the slot's stamp was changed behind the node's back. Slots and hashes
//! are synced; publications need not be, as they matter only while the operating system lives, nor the scrub mark: what
//! is lost of it is read once more. Of publications that are void (frame all 1s) only the index counts.

use super::DbError;
use crate::command::DbId;
use crate::core::recovery::Publication;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, PageHashes};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::wal::Salts;
use quire_vfs::format::{FormatError, FrameNo, PageNo, PageSize, VersionError};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"QUIRESID";
const VERSION: u32 = 2;
const HEADER_SIZE: usize = 40;
const SLOT_AT: [u64; 2] = [512, 1024];
const SLOT_SIZE: usize = 76;
const SCRUB_AT: u64 = 1536;
const SCRUB_SIZE: usize = 20;
const RING_AT: u64 = 2048;
const RING_STRIDE: u64 = 128;
const RING_SIZE: usize = 60;
/// How many publications are on record.
pub const RING_LEN: u64 = 16;
const HASHES_AT: u64 = 4096;
const _: () = assert!(RING_AT + RING_STRIDE * RING_LEN == HASHES_AT);
const _: () = assert!(SCRUB_AT + SCRUB_SIZE as u64 <= RING_AT && SCRUB_AT >= SLOT_AT[1] + SLOT_SIZE as u64);

/// What a checkpoint has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The last entry in the database file.
    pub position: LogPosition,
    /// The entry up to which a checkpoint may have begun to copy.
    pub target: u64,
    /// The database's checksum at `position`.
    pub checksum: DbChecksum,
    /// Its size in pages.
    pub pages: u32,
    /// How the database file looked then.
    pub stamp: Stamp,
}

/// How a database file looks from outside: cheap to take, and different once somebody has changed the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub changed: u64,
    /// SQLite's change counter in the file's header.
    pub counter: u32,
}

impl Stamp {
    /// The stamp of a file whose first bytes are `head`. Opens nothing.
    pub fn of(path: &Path, head: &[u8]) -> Result<Stamp, DbError> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).map_err(DbError::io(path, "looking at it"))?;
        let changed = metadata.mtime() as u64 * 1_000_000_000 + metadata.mtime_nsec() as u64;
        let counter = head.get(24..28).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
        Ok(Stamp { size: metadata.len(), changed, counter })
    }

    /// Whether the file looks the same, as far as that can be seen without opening it.
    pub fn is_of(&self, path: &Path) -> bool {
        Stamp::of(path, &[]).is_ok_and(|found| (found.size, found.changed) == (self.size, self.changed))
    }
}

/// A publication as it is on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Entry, generation, frame, and whether it was seen.
    pub publication: Publication,
    /// The entry that it was written on.
    pub base: u64,
    /// The transaction.
    pub txn: TxnId,
}

/// How far the background scrub has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubMark {
    /// The page to go on with; `None` where all were read.
    pub next: Option<PageNo>,
    /// When all were last read, in seconds since 1970; 0 if they never were.
    pub ended: u64,
}

/// An open side file.
#[derive(Debug)]
pub struct SideFile {
    path: PathBuf,
    file: File,
    slot_sequence: u64,
    ring_sequence: u64,
    scrub: ScrubMark,
}

/// What stood in a side file.
#[derive(Debug)]
pub struct Contents {
    /// The newest durable slot.
    pub durable: Durable,
    /// The publications on record, oldest first.
    pub records: Vec<Record>,
    /// The page hashes, as many as the durable slot says.
    pub hashes: PageHashes,
}

/// The side file of a database file.
pub fn side_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-quire");
    path.into()
}

fn seal(record: &mut [u8]) {
    let at = record.len() - 4;
    let crc = crc32fast::hash(&record[..at]);
    record[at..].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(record: &[u8]) -> bool {
    let at = record.len() - 4;
    crc32fast::hash(&record[..at]).to_le_bytes() == record[at..]
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk::<8>()).map_or(0, |b| u64::from_le_bytes(*b))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn encode_header(id: DbId, page_size: PageSize) -> [u8; HEADER_SIZE] {
    let mut out = [0; HEADER_SIZE];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&page_size.get().to_le_bytes());
    out[16..24].copy_from_slice(&id.0.to_le_bytes());
    seal(&mut out);
    out
}

fn decode_header(bytes: &[u8]) -> Result<(DbId, PageSize), FormatError> {
    let err = |offset, reason: String| FormatError { what: "side file header", offset, reason };
    if bytes.len() < HEADER_SIZE {
        return Err(err(bytes.len() as u64, "the file is too short".into()));
    }
    if &bytes[..8] != MAGIC {
        return Err(err(0, "this is no side file of Quire's".into()));
    }
    if u32_at(bytes, 8) != VERSION {
        return Err(err(8, format!("version {}, this build reads {VERSION}", u32_at(bytes, 8))));
    }
    if !is_sealed(&bytes[..HEADER_SIZE]) {
        return Err(err(36, "crc32 does not match".into()));
    }
    let page_size = PageSize::new(u32_at(bytes, 12)).ok_or_else(|| err(12, "no page size".into()))?;
    Ok((DbId(u64_at(bytes, 16)), page_size))
}

fn encode_slot(sequence: u64, durable: &Durable) -> [u8; SLOT_SIZE] {
    let mut out = [0; SLOT_SIZE];
    let p = durable.position;
    let words = [sequence, p.term, p.leader, p.index, durable.target, durable.checksum.0];
    for (chunk, word) in out.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    out[48..52].copy_from_slice(&durable.pages.to_le_bytes());
    out[52..60].copy_from_slice(&durable.stamp.size.to_le_bytes());
    out[60..68].copy_from_slice(&durable.stamp.changed.to_le_bytes());
    out[68..72].copy_from_slice(&durable.stamp.counter.to_le_bytes());
    seal(&mut out);
    out
}

fn decode_slot(bytes: &[u8]) -> Option<(u64, Durable)> {
    let bytes = bytes.get(..SLOT_SIZE).filter(|b| is_sealed(b) && u64_at(b, 0) > 0)?;
    let position =
        LogPosition { term: u64_at(bytes, 8), leader: u64_at(bytes, 16), index: u64_at(bytes, 24) };
    let (target, checksum) = (u64_at(bytes, 32), DbChecksum(u64_at(bytes, 40)));
    let stamp = Stamp { size: u64_at(bytes, 52), changed: u64_at(bytes, 60), counter: u32_at(bytes, 68) };
    Some((u64_at(bytes, 0), Durable { position, target, checksum, pages: u32_at(bytes, 48), stamp }))
}

fn encode_record(sequence: u64, record: &Record) -> [u8; RING_SIZE] {
    let mut out = [0; RING_SIZE];
    out[0..8].copy_from_slice(&sequence.to_le_bytes());
    out[8..16].copy_from_slice(&record.publication.index.to_le_bytes());
    out[16..24].copy_from_slice(&record.base.to_le_bytes());
    out[24..40].copy_from_slice(&record.txn.0);
    out[40..48].copy_from_slice(&record.publication.salts.0);
    out[48..52].copy_from_slice(&record.publication.frame.0.to_le_bytes());
    out[52..56].copy_from_slice(&u32::from(record.publication.seen).to_le_bytes());
    seal(&mut out);
    out
}

fn decode_record(bytes: &[u8]) -> Option<(u64, Record)> {
    let bytes = bytes.get(..RING_SIZE).filter(|b| is_sealed(b) && u64_at(b, 0) > 0)?;
    let (mut txn, mut salts) = (TxnId::default(), Salts::default());
    txn.0.copy_from_slice(&bytes[24..40]);
    salts.0.copy_from_slice(&bytes[40..48]);
    let publication = Publication {
        index: u64_at(bytes, 8),
        salts,
        frame: FrameNo(u32_at(bytes, 48)),
        seen: u32_at(bytes, 52) != 0,
    };
    Some((u64_at(bytes, 0), Record { publication, base: u64_at(bytes, 16), txn }))
}

fn encode_scrub(mark: ScrubMark) -> [u8; SCRUB_SIZE] {
    let mut out = [0; SCRUB_SIZE];
    out[0..4].copy_from_slice(&mark.next.map_or(0, |page| page.0).to_le_bytes());
    out[8..16].copy_from_slice(&mark.ended.to_le_bytes());
    seal(&mut out);
    out
}

fn decode_scrub(bytes: &[u8]) -> ScrubMark {
    match bytes.get(..SCRUB_SIZE).filter(|b| is_sealed(b)) {
        Some(bytes) => {
            let next = Some(PageNo(u32_at(bytes, 0))).filter(|page| page.0 > 0);
            ScrubMark { next, ended: u64_at(bytes, 8) }
        }
        None => ScrubMark::default(),
    }
}

impl SideFile {
    /// Creates the side file of a new database, synced.
    pub fn create(
        database: &Path,
        id: DbId,
        durable: &Durable,
        hashes: &PageHashes,
    ) -> Result<SideFile, DbError> {
        let path = side_path(database);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(DbError::io(&path, "creating it"))?;
        let mut image = vec![0; HASHES_AT as usize];
        image[..HEADER_SIZE].copy_from_slice(&encode_header(id, hashes.page_size()));
        let slot = SLOT_AT[1] as usize;
        image[slot..slot + SLOT_SIZE].copy_from_slice(&encode_slot(1, durable));
        image.extend(hashes.as_slice().iter().flat_map(|hash| hash.to_le_bytes()));
        file.write_all_at(&image, 0).map_err(DbError::io(&path, "writing it"))?;
        file.sync_all().map_err(DbError::io(&path, "syncing it"))?;
        Ok(SideFile { path, file, slot_sequence: 1, ring_sequence: 0, scrub: ScrubMark::default() })
    }

    /// Which database a side file belongs to, if there is one.
    pub fn identify(database: &Path) -> Result<Option<(DbId, PageSize)>, DbError> {
        let path = side_path(database);
        let mut header = [0; HEADER_SIZE];
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DbError::io(&path, "opening it")(error)),
        };
        let n = read_up_to(&file, &mut header, 0).map_err(DbError::io(&path, "reading it"))?;
        VersionError::check("side file", &header[..n], MAGIC, VERSION).map_err(DbError::version(&path))?;
        decode_header(&header[..n]).map(Some).map_err(|error| DbError::Format { path, error })
    }

    /// Opens the side file of an existing database.
    pub fn open(database: &Path, id: DbId, page_size: PageSize) -> Result<(SideFile, Contents), DbError> {
        let path = side_path(database);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(DbError::io(&path, "opening it"))?;
        let bytes = std::fs::read(&path).map_err(DbError::io(&path, "reading it"))?;
        VersionError::check("side file", &bytes, MAGIC, VERSION).map_err(DbError::version(&path))?;
        let contents = decode(&bytes, id, page_size);
        let (slot_sequence, ring_sequence, contents) =
            contents.map_err(|error| DbError::Format { path: path.clone(), error })?;
        let scrub = decode_scrub(bytes.get(SCRUB_AT as usize..).unwrap_or_default());
        Ok((SideFile { path, file, slot_sequence, ring_sequence, scrub }, contents))
    }

    /// How far the background scrub has come.
    pub fn scrub_mark(&self) -> ScrubMark {
        self.scrub
    }

    /// Puts on record how far the background scrub has come; not synced.
    pub fn set_scrub_mark(&mut self, mark: ScrubMark) -> Result<(), DbError> {
        let written = self.file.write_all_at(&encode_scrub(mark), SCRUB_AT);
        written.map_err(DbError::io(&self.path, "recording how far the scrub has come"))?;
        self.scrub = mark;
        Ok(())
    }

    /// The newest durable slot, the last entry whose publication is on record (0: none), and the scrub mark, without
    /// reading the hashes.
    pub fn glance(
        database: &Path,
        id: DbId,
        page_size: PageSize,
    ) -> Result<(Durable, u64, ScrubMark), DbError> {
        let path = side_path(database);
        let file = File::open(&path).map_err(DbError::io(&path, "opening it"))?;
        let mut bytes = [0; HASHES_AT as usize];
        let n = read_up_to(&file, &mut bytes, 0).map_err(DbError::io(&path, "reading it"))?;
        VersionError::check("side file", &bytes[..n], MAGIC, VERSION).map_err(DbError::version(&path))?;
        let fixed = decode_fixed(&bytes[..n], id, page_size);
        let Fixed { durable, records, .. } = fixed.map_err(|error| DbError::Format { path, error })?;
        let scrub = decode_scrub(&bytes[SCRUB_AT as usize..]);
        Ok((durable, records.last().map_or(0, |(_, record)| record.publication.index), scrub))
    }

    /// Writes a durable slot and syncs the file, hashes written before included.
    pub fn set_durable(&mut self, durable: &Durable) -> Result<(), DbError> {
        let sequence = self.slot_sequence + 1;
        let at = SLOT_AT[(sequence % 2) as usize];
        let slot = encode_slot(sequence, durable);
        self.file.write_all_at(&slot, at).map_err(DbError::io(&self.path, "writing it"))?;
        self.sync()?;
        self.slot_sequence = sequence;
        Ok(())
    }

    /// Writes hashes of pages; not synced.
    pub fn write_hashes(&self, hashes: &[(PageNo, u64)]) -> Result<(), DbError> {
        for run in hashes.chunk_by(|a, b| b.0.0 == a.0.0 + 1) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, hash)| hash.to_le_bytes()).collect();
            let at = HASHES_AT + 8 * (u64::from(run[0].0.0) - 1);
            self.file.write_all_at(&bytes, at).map_err(DbError::io(&self.path, "writing hashes"))?;
        }
        Ok(())
    }

    /// Syncs the file.
    pub fn sync(&self) -> Result<(), DbError> {
        self.file.sync_data().map_err(DbError::io(&self.path, "syncing it"))
    }

    /// Makes all publications on record void, oldest first (see [`crate::core::recovery`]); not synced.
    pub fn void(&mut self, records: &[Record]) -> Result<(), DbError> {
        let Some(newest) = records.last() else { return Ok(()) };
        // As many as there are places, so that none of another kind is left.
        for record in records.iter().chain(std::iter::repeat(newest)).take(RING_LEN as usize) {
            self.record(&Record { publication: record.publication.void(), ..*record })?;
        }
        Ok(())
    }

    /// Puts a publication on record before it happens; not synced.
    pub fn record(&mut self, record: &Record) -> Result<(), DbError> {
        self.ring_sequence += 1;
        self.write_record(record)
    }

    /// Marks the newest publication as seen; not synced.
    pub fn mark_seen(&mut self, record: &Record) -> Result<(), DbError> {
        let publication = Publication { seen: true, ..record.publication };
        self.write_record(&Record { publication, ..*record })
    }

    fn write_record(&self, record: &Record) -> Result<(), DbError> {
        let at = RING_AT + RING_STRIDE * (self.ring_sequence % RING_LEN);
        let bytes = encode_record(self.ring_sequence, record);
        self.file.write_all_at(&bytes, at).map_err(DbError::io(&self.path, "recording a publication"))
    }
}

fn read_up_to(file: &File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut n = 0;
    while n < out.len() {
        match file.read_at(&mut out[n..], at + n as u64)? {
            0 => break,
            k => n += k,
        }
    }
    Ok(n)
}

/// What stands before the hashes.
struct Fixed {
    slot_sequence: u64,
    durable: Durable,
    /// Oldest first, each with its sequence.
    records: Vec<(u64, Record)>,
}

fn decode_fixed(bytes: &[u8], id: DbId, page_size: PageSize) -> Result<Fixed, FormatError> {
    let err = |offset: u64, reason: String| FormatError { what: "side file", offset, reason };
    let (found_id, found_size) = decode_header(bytes)?;
    if (found_id, found_size) != (id, page_size) {
        let reason = format!("it belongs to database {found_id} with pages of {found_size} bytes");
        return Err(err(12, format!("{reason}, not to {id} with {page_size}")));
    }
    let slots = SLOT_AT.iter().filter_map(|&at| decode_slot(bytes.get(at as usize..)?));
    let (slot_sequence, durable) = slots
        .max_by_key(|(sequence, _)| *sequence)
        .ok_or_else(|| err(SLOT_AT[0], "neither durable slot is valid".into()))?;
    let mut records: Vec<_> = (0..RING_LEN)
        .filter_map(|n| decode_record(bytes.get((RING_AT + n * RING_STRIDE) as usize..)?))
        .collect();
    records.sort_by_key(|(sequence, _)| *sequence);
    Ok(Fixed { slot_sequence, durable, records })
}

/// Reads a whole side file: sequence of the durable slot and of the newest record, and the contents.
pub(crate) fn decode(
    bytes: &[u8],
    id: DbId,
    page_size: PageSize,
) -> Result<(u64, u64, Contents), FormatError> {
    let err = |offset: u64, reason: String| FormatError { what: "side file", offset, reason };
    let Fixed { slot_sequence, durable, records } = decode_fixed(bytes, id, page_size)?;
    let ring_sequence = records.last().map_or(0, |(sequence, _)| *sequence);
    let end = (HASHES_AT + 8 * u64::from(durable.pages)) as usize;
    let array = bytes.get(HASHES_AT as usize..end);
    let array =
        array.ok_or_else(|| err(bytes.len() as u64, format!("{} page hashes are missing", durable.pages)))?;
    let hashes = PageHashes::from_hashes(page_size, array.chunks_exact(8).map(|c| u64_at(c, 0)).collect());
    if durable.target == durable.position.index && hashes.checksum() != durable.checksum {
        let reason = format!("page hashes make {}, the slot says {}", hashes.checksum(), durable.checksum);
        return Err(err(HASHES_AT, reason));
    }
    let records = records.into_iter().map(|(_, record)| record).collect();
    Ok((slot_sequence, ring_sequence, Contents { durable, records, hashes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(index: u64, hashes: &PageHashes) -> Durable {
        let position = LogPosition { term: 2, leader: 1, index };
        let stamp = Stamp { size: index * 4096, changed: 1 << 60, counter: 7 };
        Durable { position, target: index, checksum: hashes.checksum(), pages: hashes.len(), stamp }
    }

    fn record(index: u64) -> Record {
        let publication =
            Publication { index, salts: Salts([3; 8]), frame: FrameNo(index as u32), seen: false };
        Record { publication, base: index - 1, txn: TxnId([index as u8; 16]) }
    }

    #[test]
    fn void_records_leave_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let (id, size) = (DbId(9), PageSize::DEFAULT);
        let hashes = PageHashes::from_hashes(size, vec![1, 2, 3]);
        let mut file = SideFile::create(&db, id, &durable(4, &hashes), &hashes).unwrap();
        for count in [0, 3, 40] {
            for index in 0..count {
                file.record(&record(10 + index)).unwrap();
                file.mark_seen(&record(10 + index)).unwrap();
            }
            let (_, Contents { records, .. }) = SideFile::open(&db, id, size).unwrap();
            file.void(&records).unwrap();
            let (_, Contents { records, .. }) = SideFile::open(&db, id, size).unwrap();
            assert!(records.iter().all(|record| record.publication.is_void()));
            let newest = records.iter().map(|record| record.publication.index).max();
            assert_eq!(newest, (count > 0).then(|| 9 + count), "what was committed is still known");
        }
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        assert_eq!(SideFile::identify(&db).unwrap(), None);
        let (id, size) = (DbId(9), PageSize::DEFAULT);
        let hashes = PageHashes::from_hashes(size, vec![1, 2, 3]);
        let mut file = SideFile::create(&db, id, &durable(4, &hashes), &hashes).unwrap();
        assert_eq!(SideFile::identify(&db).unwrap(), Some((id, size)));
        for index in 5..30 {
            file.record(&record(index)).unwrap();
            if index < 29 {
                file.mark_seen(&record(index)).unwrap();
            }
        }
        let grown = PageHashes::from_hashes(size, vec![1, 7, 8, 9]);
        file.write_hashes(&[(PageNo(2), 7), (PageNo(3), 8), (PageNo(4), 9)]).unwrap();
        assert_eq!(file.scrub_mark(), ScrubMark::default());
        let mark = ScrubMark { next: Some(PageNo(3)), ended: 1 << 40 };
        file.set_scrub_mark(mark).unwrap();
        file.set_durable(&durable(20, &grown)).unwrap();
        drop(file);

        assert_eq!(SideFile::glance(&db, id, size).unwrap(), (durable(20, &grown), 29, mark));
        assert!(SideFile::glance(&db, DbId(8), size).is_err());
        let (mut file, contents) = SideFile::open(&db, id, size).unwrap();
        assert_eq!(contents.durable, durable(20, &grown));
        assert_eq!(file.scrub_mark(), mark);
        assert_eq!(contents.hashes.as_slice(), grown.as_slice());
        let indexes: Vec<_> = contents.records.iter().map(|r| r.publication.index).collect();
        assert_eq!(indexes, (14..30).collect::<Vec<_>>());
        let seen = contents.records.iter().filter(|r| r.publication.seen).count();
        assert_eq!(seen, 15, "all but the last");
        file.record(&record(30)).unwrap();
        drop(file);

        // One durable slot torn: the older one counts, and its hashes no longer fit.
        let path = side_path(&db);
        let good = std::fs::read(&path).unwrap();
        for (at, place) in [(0usize, 0u64), (20, 36), (4096 + 8, 4096)] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            match SideFile::open(&db, id, size) {
                Err(DbError::Format { error, .. }) => assert_eq!(error.offset, place, "{error}"),
                other => panic!("byte {at}: {other:?}"),
            }
        }
        let mut newer = good.clone();
        newer[8] += 1;
        std::fs::write(&path, &newer).unwrap();
        for refused in [SideFile::open(&db, id, size).map(drop), SideFile::identify(&db).map(drop)] {
            let why = refused.unwrap_err().to_string();
            assert!(why.contains("a.db-quire: the side file has version 3"), "{why}");
            assert!(why.contains("reads version 2: a newer Quire"), "{why}");
        }
        // Of a scrub mark that is torn nothing counts.
        let mut bad = good.clone();
        bad[1536 + 8] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(SideFile::open(&db, id, size).unwrap().0.scrub_mark(), ScrubMark::default());
        let mut bad = good.clone();
        bad[512] ^= 1;
        bad[1024] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(SideFile::open(&db, id, size).is_err());
        for cut in [0, 39, 600, 4096, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(SideFile::open(&db, id, size).is_err(), "cut at {cut}");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(SideFile::open(&db, DbId(8), size).is_err());
        assert!(SideFile::open(&db, id, size).is_ok());
    }
}
