//! The first page of a database file (SQLite file format §1.3), as far as Quire reads or makes it.

use super::{FormatError, PageSize, be32};

/// What a database file's first 100 bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Page size.
    pub page_size: PageSize,
    /// Whether the file is in WAL mode (write and read version 2).
    pub wal_mode: bool,
    /// Size in pages, as the header says.
    pub pages: u32,
    /// Bytes at the end of each page that SQLite leaves alone.
    pub reserved: u8,
}

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

impl DatabaseHeader {
    /// Size of the header, in bytes.
    pub const SIZE: usize = 100;

    /// Reads the header.
    pub fn decode(bytes: &[u8]) -> Result<DatabaseHeader, FormatError> {
        let err = |at, reason: String| FormatError::new("database header", at, reason);
        if bytes.len() < Self::SIZE {
            return Err(err(0, format!("{} bytes, expected {}", bytes.len(), Self::SIZE)));
        }
        if &bytes[..16] != MAGIC {
            return Err(err(0, "this is not a SQLite database (or it is encrypted)".into()));
        }
        let raw = u16::from_be_bytes([bytes[16], bytes[17]]);
        let page_size = PageSize::from_u16(raw).ok_or_else(|| err(16, format!("{raw} is no page size")))?;
        Ok(DatabaseHeader {
            page_size,
            wal_mode: bytes[18] == 2 && bytes[19] == 2,
            pages: be32(bytes, 28),
            reserved: bytes[20],
        })
    }
}

/// The one page of an empty database in WAL mode, equal on every node: what SQLite writes for
/// `PRAGMA page_size=N; PRAGMA journal_mode=WAL;` on a new file, with version numbers fixed.
pub fn empty_database(page_size: PageSize) -> Vec<u8> {
    let mut page = vec![0; page_size.bytes()];
    page[..16].copy_from_slice(MAGIC);
    page[16..18].copy_from_slice(&page_size.to_u16().to_be_bytes());
    page[18] = 2; // write version: WAL
    page[19] = 2; // read version: WAL
    page[21] = 64; // embedded payload fractions: fixed by the format
    page[22] = 32;
    page[23] = 32;
    let put =
        |page: &mut Vec<u8>, at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(&mut page, 24, 1); // file change counter
    put(&mut page, 28, 1); // size in pages
    put(&mut page, 92, 1); // version-valid-for: the change counter
    put(&mut page, 96, 3_054_001); // SQLITE_VERSION_NUMBER of the last writer
    page[100] = 0x0d; // an empty leaf table b-tree
    // Start of cell content: the page's end; 65536 is stored as 0.
    page[105..107].copy_from_slice(&(page_size.get() as u16).to_be_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_database_is_sqlites() {
        for bytes in [512u32, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            let size = PageSize::new(bytes).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let ours = dir.path().join("ours.db");
            std::fs::write(&ours, empty_database(size)).unwrap();

            let theirs = dir.path().join("theirs.db");
            let conn = rusqlite::Connection::open(&theirs).unwrap();
            conn.pragma_update(None, "page_size", bytes).unwrap();
            conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
            drop(conn);
            let mut theirs = std::fs::read(&theirs).unwrap();
            // The change counter and the writer's version are all that may differ.
            let mine = empty_database(size);
            for at in (24..28).chain(92..100) {
                theirs[at] = mine[at];
            }
            assert!(theirs == mine, "page size {bytes}");
            assert_eq!(
                DatabaseHeader::decode(&mine).unwrap(),
                DatabaseHeader { page_size: size, wal_mode: true, pages: 1, reserved: 0 }
            );

            let conn = rusqlite::Connection::open(&ours).unwrap();
            let check: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
            assert_eq!(check, "ok");
            let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
            assert_eq!(mode, "wal");
            conn.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1);").unwrap();
        }
    }
}
