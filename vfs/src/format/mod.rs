//! SQLite's on-disk and shared-memory formats, and Quire's own transaction format, as pure functions
//! over bytes. Nothing in here opens a file, takes a lock or reads a clock.
//!
//! | module | what it describes |
//! |---|---|
//! | [`wal`] | the write-ahead log: header, frames, checksums, scan |
//! | [`wal_index`] | the shared-memory index: header pair, checkpoint info, hash tables |
//! | [`append`] | what must be written, and in which order, to add a transaction to a WAL |
//! | [`database`] | the first page of a database file, and the empty database |
//! | [`transaction`] | the byte layout in which one commit's pages travel and are logged |
//! | [`checksum`] | the database checksum and its page array |

pub mod append;
pub mod checksum;
pub mod database;
pub mod transaction;
pub mod wal;
pub mod wal_index;

use std::fmt;

/// A database page number; the first page is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub u32);

/// A WAL frame number; the first frame is 1, and 0 means "no frame".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNo(pub u32);

/// The page that covers the byte at 1 GiB, where SQLite keeps its file locks; it never holds data.
/// Source: "The Lock-Byte Page", SQLite database file format §1.4.
pub const LOCK_BYTE: u64 = 0x4000_0000;

/// A page size that SQLite allows: a power of two from 512 to 65536 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// SQLite's default since 3.12.0.
    pub const DEFAULT: PageSize = PageSize(4096);

    /// Accepts a size in bytes if SQLite does.
    pub fn new(bytes: u32) -> Option<PageSize> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(PageSize(bytes))
    }

    /// Size in bytes.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Size in bytes, as the formats store it.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The 16-bit form of database and wal-index headers, where 1 stands for 65536.
    pub fn to_u16(self) -> u16 {
        ((self.0 & 0xff00) | (self.0 >> 16)) as u16
    }

    /// The inverse of [`PageSize::to_u16`].
    pub fn from_u16(raw: u16) -> Option<PageSize> {
        let raw = u32::from(raw);
        PageSize::new((raw & 0xfe00) | ((raw & 1) << 16))
    }

    /// The number of the page that holds the lock byte and therefore no data.
    pub fn lock_page(self) -> PageNo {
        PageNo((LOCK_BYTE / u64::from(self.0)) as u32 + 1)
    }

    /// Byte offset of a page in a database file.
    pub fn offset_of(self, page: PageNo) -> u64 {
        u64::from(page.0.saturating_sub(1)) * u64::from(self.0)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Bytes that do not have the form they should have. Names the thing, where in it, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is damaged at byte {offset}: {reason}")]
pub struct FormatError {
    /// The format, such as "WAL header".
    pub what: &'static str,
    /// Offset in bytes from the start of the thing.
    pub offset: u64,
    /// What was found, in words.
    pub reason: String,
}

impl FormatError {
    pub(crate) fn new(what: &'static str, offset: u64, reason: impl Into<String>) -> FormatError {
        FormatError { what, offset, reason: reason.into() }
    }
}

/// Sound bytes, as far as can be told, of a version that this build does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} has version {found}, this build of Quire reads version {reads}: {}", way_out(*found, *reads))]
pub struct VersionError {
    /// The format, such as "manifest".
    pub what: &'static str,
    /// The version that stands there.
    pub found: u32,
    /// The version that this build reads.
    pub reads: u32,
}

impl VersionError {
    /// Checks the head that every file of Quire's has: 8 bytes of magic, and a `u32` version. Bytes with another magic
    /// are not judged.
    pub fn check(what: &'static str, bytes: &[u8], magic: &[u8; 8], reads: u32) -> Result<(), VersionError> {
        match bytes.first_chunk::<12>() {
            Some(head) if head[..8] == magic[..] && le32(head, 8) != reads => {
                Err(VersionError { what, found: le32(head, 8), reads })
            }
            _ => Ok(()),
        }
    }
}

fn way_out(found: u32, reads: u32) -> &'static str {
    if found > reads {
        "a newer Quire wrote it; run that version or a later one"
    } else {
        "an older Quire wrote it; run that version, or remove this node from the cluster and let the machine join \
         again under a new id"
    }
}

/// Reads a big-endian `u32`; the caller has checked the bounds.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a little-endian `u32`; the caller has checked the bounds.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_from_damage() {
        let check = |bytes: &[u8]| VersionError::check("thing", bytes, b"QUIRETHG", 2);
        let file = |version: u32| [&b"QUIRETHG"[..], &version.to_le_bytes(), b"rest"].concat();
        assert_eq!(check(&file(2)), Ok(()));
        for other in [&b""[..], b"QUIRETHG\x03", b"QUIRELOG\x03\0\0\0"] {
            assert_eq!(check(other), Ok(()), "not for this to judge");
        }
        let newer = check(&file(3)).unwrap_err().to_string();
        assert!(
            newer.contains("thing has version 3, this build of Quire reads version 2: a newer"),
            "{newer}"
        );
        let older = check(&file(1)).unwrap_err().to_string();
        assert!(older.contains("version 1") && older.contains("join again"), "{older}");
    }

    #[test]
    fn page_sizes_are_sqlites() {
        for shift in 0..20 {
            let bytes = 1u32 << shift;
            assert_eq!(PageSize::new(bytes).is_some(), (9..=16).contains(&shift), "{bytes}");
        }
        assert_eq!(PageSize::new(1000), None);
        for bytes in [512, 1024, 4096, 32768, 65536] {
            let size = PageSize::new(bytes).unwrap();
            assert_eq!(PageSize::from_u16(size.to_u16()), Some(size));
        }
        assert_eq!(PageSize::from_u16(0), None);
        assert_eq!(PageSize::DEFAULT.lock_page(), PageNo(262_145));
    }
}
