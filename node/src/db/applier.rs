//! The applier: writes a committed transaction's pages into the live WAL of this node, with this node's own
//! salts and checksums, beside any number of readers. Frames first, then hash tables, then the header; see
//! [`quire_vfs::format::append`].
//!
//! The caller holds the gate lock, so nobody else writes the WAL. Nobody who keeps to the rules, that is: a process that
//! writes WAL or wal-index past the VFS is bound by nothing. So the header that the index should have is remembered. One that
//! has another gets it back, nothing is added to it, and the database is fenced ([`Wal::tidy`]).

use super::DbError;
use quire_vfs::fault;
use quire_vfs::format::append::Appender;
use quire_vfs::format::wal::{self, FRAME_HEADER_SIZE, HEADER_SIZE, Salts, WalHeader};
use quire_vfs::format::wal_index::{self, IndexHeader, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::holder::{Holder, IndexLock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The WAL of one database, for writing.
#[derive(Debug)]
pub struct Wal {
    path: PathBuf,
    file: File,
    page_size: PageSize,
    batch: Vec<u8>,
    /// What the index showed when it was last published, as far as this life of the node knows.
    shown: Option<IndexHeader>,
}

/// Frames that are in the WAL and the hash tables, and wait to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Prepared {
    /// The header to publish.
    pub header: IndexHeader,
}

/// What takes pages one by one.
pub type TakePage<'a> = dyn FnMut(PageNo, &[u8]) -> Result<(), DbError> + 'a;

/// SQLite takes no sector for larger (`MAX_SECTOR_SIZE`).
const MAX_SECTOR: usize = 1 << 16;
/// Bytes of frames that are written at once.
const BATCH: usize = 1 << 20;

/// The WAL of a database file.
pub fn wal_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

impl Wal {
    /// Opens the WAL of a database, creating it if need be. The file carries no POSIX locks, so it may be
    /// opened apart from SQLite.
    pub fn open(database: &Path, page_size: PageSize) -> Result<Wal, DbError> {
        let path = wal_path(database);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(DbError::io(&path, "opening it"))?;
        Ok(Wal { path, file, page_size, batch: Vec::new(), shown: None })
    }

    /// From now on every write fails, as on a full disk.
    #[cfg(test)]
    pub fn fail(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    /// Puts a long WAL that nobody needs out of the way, to be removed beside what goes on: truncating one of some GB
    /// takes seconds. Nobody may be attached.
    pub fn put_away(database: &Path) -> Result<(), DbError> {
        const LONG: u64 = 64 << 20;
        let path = wal_path(database);
        let mut old = path.as_os_str().to_owned();
        old.push("-old");
        let old = PathBuf::from(old);
        if path.metadata().is_ok_and(|metadata| metadata.len() >= LONG) {
            std::fs::rename(&path, &old).map_err(DbError::io(&path, "putting it away"))?;
        }
        // Also what a former life has not come to remove.
        if old.exists() {
            let removing = move || {
                if let Err(error) = std::fs::remove_file(&old) {
                    tracing::warn!("{}: {error}", old.display());
                }
            };
            let spawned = std::thread::Builder::new().name("remove-wal".into()).spawn(removing);
            spawned.map_err(DbError::io(&path, "removing it"))?;
        }
        Ok(())
    }

    /// Empties the WAL and makes the index one of an empty WAL. Nobody else may be attached, or readers
    /// must be kept out.
    pub fn reset(&mut self, holder: &Holder, db_size: u32) -> Result<(), DbError> {
        self.file.set_len(0).map_err(DbError::io(&self.path, "truncating it"))?;
        let region0 = holder.region(0)?;
        let change = wal_index::recover_header(region0).map_or(0, |header| header.change.wrapping_add(1));
        let header = IndexHeader { pages: db_size, change, ..IndexHeader::empty() };
        wal_index::publish(region0, &header);
        wal_index::reset_checkpoint_info(region0, FrameNo(0));
        self.shown = Some(header);
        Ok(())
    }

    /// An app has published this.
    pub fn saw(&mut self, header: IndexHeader) {
        self.shown = Some(header);
    }

    /// Whether an index with this header is one that apps of the gate and the applier have made, as far as that is known. A
    /// writer may have started the log anew, and then gone without adding to it.
    pub fn is_ours(&self, header: &IndexHeader) -> bool {
        self.shown.is_none_or(|shown| match header.max_frame.0 {
            0 => shown.max_frame.0 == 0 || header.salts != shown.salts,
            _ => {
                (header.salts, header.max_frame, header.pages) == (shown.salts, shown.max_frame, shown.pages)
            }
        })
    }

    /// Whether the log ends with what an app was told to publish, which ends at that frame. Where a VFS between SQLite and
    /// Quire doesn't say that the disk needs no such thing, SQLite fills up the sector with copies of the last frame.
    pub fn ends_with(&self, header: &IndexHeader, (salts, last): (Salts, FrameNo)) -> bool {
        let size = FRAME_HEADER_SIZE + self.page_size.bytes();
        let Some(copies) = header.max_frame.0.checked_sub(last.0) else { return false };
        if header.salts != salts || copies as usize > MAX_SECTOR / size + 1 {
            return false;
        }
        // All but the checksum.
        let frame = |number: u32| {
            let mut bytes = vec![0; size];
            let read =
                self.file.read_exact_at(&mut bytes, wal::frame_offset(FrameNo(number), self.page_size));
            bytes[FRAME_HEADER_SIZE - 8..FRAME_HEADER_SIZE].fill(0);
            read.ok().map(|()| bytes)
        };
        copies == 0
            || frame(last.0).is_some_and(|first| {
                (last.0 + 1..=header.max_frame.0).all(|copy| frame(copy).as_ref() == Some(&first))
            })
    }

    /// Puts the index right after a writer that died: the header, if it stopped between the two copies;
    /// the count of backfilled frames, if it stopped while it started the log anew. `told` is what an app may have
    /// published since the last time. An error, with the index as it should be, if a stranger has changed it.
    pub fn tidy(&self, holder: &Holder, told: Option<(Salts, FrameNo)>) -> Result<IndexHeader, DbError> {
        let region0 = holder.region(0)?;
        let index = |reason: String| DbError::Index { path: holder.path().to_owned(), reason };
        let header = wal_index::recover_header(region0);
        let is_told = |header: &IndexHeader| told.is_some_and(|told| self.ends_with(header, told));
        let header = match (header.filter(|header| is_told(header) || self.is_ours(header)), self.shown) {
            (Some(header), _) => header,
            (None, None) => return Err(index("the wal-index has no valid header".into())),
            (None, Some(shown)) => {
                wal_index::publish(region0, &shown);
                wal_index::finish_restart(region0, shown);
                let found =
                    header.map_or("is no header".into(), |it| format!("ends at frame {}", it.max_frame.0));
                let should = shown.max_frame.0;
                return Err(index(format!(
                    "a process past the gate has changed the wal-index: it {found}, and should end at frame {should}"
                )));
            }
        };
        Ok(wal_index::finish_restart(region0, header))
    }

    /// Starts the log anew if all of it is in the database file and no reader needs it (SQLite's
    /// `walRestartLog`).
    fn restart(&self, holder: &Holder, header: IndexHeader) -> Result<IndexHeader, DbError> {
        let region0 = holder.region(0)?;
        if header.max_frame.0 == 0 || wal_index::backfilled(region0) != header.max_frame {
            return Ok(header);
        }
        if !holder.try_lock(IndexLock::Readers)? {
            return Ok(header);
        }
        let restarted = IndexHeader { max_frame: FrameNo(0), salts: header.salts.next(random()), ..header };
        wal_index::publish(region0, &restarted);
        wal_index::reset_checkpoint_info(region0, FrameNo(0));
        holder.unlock(IndexLock::Readers);
        Ok(restarted)
    }

    /// The checkpoint sequence for the header of a log that begins: one more than the last log's.
    fn next_seq(&self, header: IndexHeader) -> u32 {
        let mut bytes = [0; HEADER_SIZE];
        if header.max_frame.0 > 0 || self.file.read_exact_at(&mut bytes, 0).is_err() {
            return 0;
        }
        WalHeader::decode(&bytes).map_or(0, |(last, _)| last.checkpoint_seq.wrapping_add(1))
    }

    /// Writes `pages` as frames and enters them into the hash tables; nothing is visible yet.
    pub fn prepare<'a>(
        &mut self,
        holder: &Holder,
        pages: impl ExactSizeIterator<Item = (PageNo, &'a [u8])> + Clone,
        db_size: u32,
    ) -> Result<Prepared, DbError> {
        let numbers = pages.clone().map(|(page, _)| page);
        self.prepare_from(holder, numbers, db_size, |frame| {
            pages.into_iter().try_for_each(|(page, data)| frame(page, data))
        })
    }

    /// As [`Wal::prepare`], for pages that are not in memory all at once: `feed` gives them one by one, in the
    /// order of `numbers`.
    pub fn prepare_from(
        &mut self,
        holder: &Holder,
        numbers: impl ExactSizeIterator<Item = PageNo>,
        db_size: u32,
        feed: impl FnOnce(&mut TakePage<'_>) -> Result<(), DbError>,
    ) -> Result<Prepared, DbError> {
        let header = self.tidy(holder, None)?;
        let header = self.restart(holder, header)?;
        let fresh = if header.salts == Salts::default() {
            let mut salts = Salts::default();
            salts.0[..4].copy_from_slice(&random().to_be_bytes());
            salts.0[4..].copy_from_slice(&random().to_be_bytes());
            salts
        } else {
            header.salts
        };
        let (mut appender, wal_header) = Appender::new(header, self.page_size, fresh, self.next_seq(header));
        if let Some(bytes) = wal_header {
            self.file.write_all_at(&bytes, 0).map_err(DbError::io(&self.path, "writing its header"))?;
        }
        let mut left = numbers.len();
        self.batch.clear();
        feed(&mut |page, data| {
            left = left.saturating_sub(1);
            self.add_frame(&mut appender, page, data, if left == 0 { db_size } else { 0 })
        })?;
        fault::point("apply.framed");

        let index_err = DbError::index(holder.path());
        wal_index::sweep(holder, header.max_frame).map_err(&index_err)?;
        let first = header.max_frame.0;
        for (n, page) in (1u32..).zip(numbers) {
            wal_index::append(holder, FrameNo(first + n), page).map_err(&index_err)?;
        }
        fault::point("apply.indexed");
        Ok(Prepared { header: appender.finish(db_size) })
    }

    /// Adds a frame to the batch. The batch is written when it is large, and with the last frame, whose
    /// `commit_size` is not 0.
    fn add_frame(
        &mut self,
        appender: &mut Appender,
        page: PageNo,
        data: &[u8],
        commit_size: u32,
    ) -> Result<(), DbError> {
        let frame = appender.frame(page, data, commit_size);
        self.batch.extend_from_slice(&frame.header);
        self.batch.extend_from_slice(data);
        if commit_size != 0 || self.batch.len() >= BATCH {
            let end = frame.offset + (frame.header.len() + data.len()) as u64;
            let start = end - self.batch.len() as u64;
            let written = self.file.write_all_at(&self.batch, start);
            written.map_err(DbError::io(&self.path, "writing frames"))?;
            self.batch.clear();
        }
        Ok(())
    }

    /// Makes prepared frames visible.
    pub fn publish(&mut self, holder: &Holder, prepared: Prepared) -> Result<(), DbError> {
        wal_index::publish(holder.region(0)?, &prepared.header);
        self.shown = Some(prepared.header);
        fault::point("apply.published");
        Ok(())
    }
}

fn random() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_last_frame_fill_up_a_sector() {
        let dir = tempfile::tempdir().unwrap();
        let size = PageSize::new(512).unwrap();
        let wal = Wal::open(&dir.path().join("a.db"), size).unwrap();
        // Frames 1 to 4: a transaction of two pages, two copies of its last frame; then one that is none.
        for (number, (page, fill)) in (1u8..).zip([(1, 1), (2, 2), (2, 2), (2, 2), (2, 3)]) {
            let mut frame = vec![fill; FRAME_HEADER_SIZE + size.bytes()];
            frame[..8].copy_from_slice(&[0, 0, 0, page, 0, 0, 0, 2]);
            frame[16..24].fill(number); // the checksum
            wal.file.write_all_at(&frame, wal::frame_offset(FrameNo(number.into()), size)).unwrap();
        }
        let salts = Salts([7; 8]);
        let ends = |salts, last: u32, frame: u32| {
            let header =
                IndexHeader { salts: Salts([7; 8]), max_frame: FrameNo(last), ..IndexHeader::empty() };
            wal.ends_with(&header, (salts, FrameNo(frame)))
        };
        assert!(ends(salts, 2, 2) && ends(salts, 3, 2) && ends(salts, 4, 2));
        assert!(!ends(salts, 1, 2), "it isn't there yet");
        assert!(!ends(salts, 2, 1), "another page");
        assert!(!ends(salts, 5, 2), "another content");
        assert!(!ends(salts, 6, 2), "nothing there");
        assert!(!ends(Salts([8; 8]), 2, 2), "another log");
        assert!(!ends(salts, 1000, 2), "more than a sector");
    }
}
