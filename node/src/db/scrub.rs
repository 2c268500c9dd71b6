//! Scrubbing: reading what really stands in WAL and file, and comparing it with the page hashes. A database with a
//! page that isn't what it should be is fenced, and repaired from another node.

use super::DbError;
use super::database::Database;
use super::side_file::ScrubMark;
use super::view::View;
use quire_vfs::format::PageNo;
use quire_vfs::format::checksum::{PageHashes, page_hash};
use quire_vfs::holder::Holder;
use std::io;
use std::sync::Arc;
use tracing::{debug, warn};

impl Database {
    /// Reads `count` pages from `from` on, as they are now, and fences the database if one is damaged. Returns the
    /// page to go on with, `None` at the end. Blocks, but nobody waits for it.
    pub fn scrub(self: &Arc<Self>, from: PageNo, count: u32) -> Result<Option<PageNo>, DbError> {
        if self.fenced().is_some() {
            return Ok(None);
        }
        let view = match self.wait_view_of(from, count) {
            Ok(view) => view,
            Err(DbError::Sqlite { error, .. }) if is_damage(&error) => {
                self.damaged(PageNo(1), self.dealt_with());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !view.consistent {
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(DbError::io(self.path(), "scrubbing it while the log is read again")(busy));
        }
        let last = from.0.saturating_add(count - 1).min(view.pages);
        let mut page = vec![0; self.page_size.bytes()];
        for number in (from.0..=last).map(PageNo) {
            // One that can't be read is as bad as one that is wrong.
            let sound = view.is_sound(number, &mut page).unwrap_or_else(|error| {
                warn!(database = self.name, page = number.0, "{error}");
                false
            });
            if !sound {
                self.damaged(number, view.position.index);
                return Ok(None);
            }
        }
        Ok((last < view.pages).then_some(PageNo(last + 1)))
    }

    /// How far the background scrub has come; kept across restarts.
    pub fn scrub_mark(&self) -> ScrubMark {
        self.state().scrub
    }

    /// Puts on record how far the background scrub has come.
    pub fn set_scrub_mark(&self, mark: ScrubMark) -> Result<(), DbError> {
        self.files().side.set_scrub_mark(mark)?;
        self.state().scrub = mark;
        Ok(())
    }

    /// A page is not what it should be. Blocks.
    pub fn damaged(&self, page: PageNo, index: u64) {
        {
            let mut state = self.state();
            if state.fenced.is_some() {
                return;
            }
            let why = format!("page {page} is not what it was at entry {index}: it was changed or damaged");
            self.fence_for(&mut state, why);
        }
        // A restart forgets the fence, but must not forget the damage.
        if let Err(error) = self.distrust_file() {
            warn!(database = self.name, "{error}");
        }
    }

    /// The view's hashes as they really are; 0 for a page that can't be read.
    pub fn true_hashes(&self, view: &View) -> Vec<u64> {
        let mut page = vec![0; self.page_size.bytes()];
        let mut hashes = Vec::with_capacity(view.hashes.len());
        let mut damaged = 0;
        for number in (1..=view.pages).map(PageNo) {
            let hash = match view.read(number, &mut page) {
                Ok(()) => page_hash(number, &page),
                Err(error) => {
                    warn!(database = self.name, page = number.0, "can't be read: {error}");
                    0
                }
            };
            damaged += u32::from(view.hashes[number.0 as usize - 1] != hash);
            hashes.push(hash);
        }
        debug!(database = self.name, damaged, pages = view.pages, "read all pages");
        hashes
    }
}

/// Whether SQLite takes the file for damaged.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Pages that the file may not have as the view has them count as unknown: they are to be sent again, so that the
/// pages that are sent lead to the new state from the file alone, too.
pub fn forget_dirty(hashes: &mut [u64], dirty: &[PageNo]) {
    for page in dirty {
        if let Some(hash) = hashes.get_mut((page.0 as usize).saturating_sub(1)) {
            *hash = 0;
        }
    }
}

/// Why a database file is not what the hashes say, if it isn't. Reads all of it.
pub(super) fn first_difference(holder: &Holder, hashes: &PageHashes) -> Result<Option<String>, DbError> {
    let size = hashes.page_size();
    let expected = u64::from(hashes.len()) * u64::from(size.get());
    let found = holder.file_size()?;
    if found != expected {
        return Ok(Some(format!(
            "the file has {found} bytes, not {expected}: it was changed while the node was down"
        )));
    }
    let mut page = vec![0; size.bytes()];
    for number in (1..=hashes.len()).map(PageNo) {
        holder.read_page(number, size, &mut page)?;
        if hashes.get(number) != Some(page_hash(number, &page)) {
            return Ok(Some(format!("page {number} of the file was changed while the node was down")));
        }
    }
    Ok(None)
}
