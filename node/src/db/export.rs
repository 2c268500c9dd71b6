//! A view as an ordinary SQLite file: its pages in order. Every page is compared with its hash before it is handed out,
//! so that damage is never carried into a backup.

use super::DbError;
use super::database::Database;
use super::view::View;
use quire_vfs::format::PageNo;
use std::io::{self, Write};
use std::sync::Arc;

/// Where the file header says which journal the database uses: 1 for a rollback journal, 2 for a WAL.
/// Source: "File format version numbers", SQLite database file format §1.3.3.
pub const VERSIONS: std::ops::Range<usize> = 18..20;

/// Which journal mode a copy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// WAL, as the database itself: the copy is the same, byte for byte.
    Wal,
    /// A rollback journal: the copy can be opened anywhere, also where SQLite may create no files beside it.
    Delete,
}

/// A copy failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It can't be read.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A page isn't what it should be.
    #[error(
        "page {page} of {name} is damaged on this node; it is being repaired, take the backup from another node"
    )]
    Damaged {
        /// The database.
        name: String,
        /// The page.
        page: PageNo,
    },
    /// Whoever takes it doesn't.
    #[error("{0}")]
    Receiver(#[from] io::Error),
}

impl View {
    /// Size of the file.
    pub fn file_size(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_size().get())
    }

    /// Writes the whole file.
    pub fn write_file(
        &self,
        database: &Arc<Database>,
        journal: Journal,
        out: &mut impl Write,
    ) -> Result<(), ExportError> {
        let mut image = vec![0; self.page_size().bytes()];
        for page in (1..=self.pages).map(PageNo) {
            if !self.is_sound(page, &mut image)? {
                database.damaged(page, self.position.index);
                return Err(ExportError::Damaged { name: database.name.clone(), page });
            }
            if page == PageNo(1) {
                set_journal(&mut image, journal);
            }
            out.write_all(&image)?;
        }
        Ok(())
    }
}

/// Sets the journal mode in a file's first bytes.
pub fn set_journal(head: &mut [u8], journal: Journal) {
    if let Some(versions) = head.get_mut(VERSIONS) {
        versions.fill(if journal == Journal::Wal { 2 } else { 1 });
    }
}
