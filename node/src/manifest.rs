//! The manifest `DIR/manifest`: what the state machine has durably, apart from the databases themselves.
//! Little-endian, replaced as a whole.
//!
//! ```text
//!  0  "QUIREMAN", u32 version: 3, or 2 where no member was removed
//! 12  u64 term, u64 leader, u64 index of the last entry whose effects are all on disk (all 1s: none)
//! 36  u32 flags: 1 = ahead of the log, as a snapshot was installed
//! 40  u32 length, membership in Raft's own encoding
//!     u32 number of databases; for each: u64 id, u32 page size, u16 length, name
//!     u32 number of drops; for each: u64 id, u64 index of the entry that drops it (all 1s: not known), u16 length, name
//!     version 3 only: u32 number of ids of members that were removed, at least 1; each u64, ascending
//!     u32 crc32 of everything before
//! ```
//!
//! Entries after that position are read again from the log at the next start.

use crate::command::DbId;
use quire_raft::{AppliedState, LogPosition, NodeId};
use quire_vfs::format::{FormatError, PageSize, VersionError};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"QUIREMAN";
const VERSION: u32 = 3;
/// Without the ids of members that were removed.
const WITHOUT_REMOVED: u32 = 2;
/// A manifest is refused beyond this size, in bytes.
const MAX_SIZE: u64 = 64 << 20;

/// The contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The last entry whose effects are all on disk.
    pub position: Option<LogPosition>,
    /// The membership at that entry, in Raft's encoding.
    pub membership: Vec<u8>,
    /// The databases that exist: id, page size, name.
    pub databases: Vec<(DbId, PageSize, String)>,
    /// Databases that entries after the position drop, and that are gone already.
    pub dropped: Vec<Dropped>,
    /// Ids of members that were removed, at that position or since: nobody may have them again.
    pub removed: BTreeSet<NodeId>,
    /// The position comes from a snapshot, and the log may not know of it yet.
    pub ahead: bool,
}

/// A database that is gone, but is not for the entries before the one that drops it. When those are read again, they
/// must find its name taken, as they did the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The database.
    pub id: DbId,
    /// The entry that drops it; `None`: one that is yet to be read again.
    pub by: Option<u64>,
    /// Its name.
    pub name: String,
}

impl Dropped {
    /// Whether, at the entry `index`, this database had the name.
    pub fn has_name(&self, name: &str, index: u64) -> bool {
        self.name == name && self.id.0 <= index && self.by.is_none_or(|by| index < by)
    }
}

/// The manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another version of Quire wrote it.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// It is damaged.
    #[error("{0}; restore the file, or remove this node and join it anew")]
    Format(#[from] FormatError),
}

impl Manifest {
    /// What Raft calls the applied state.
    pub fn applied(&self) -> AppliedState {
        let membership = (!self.membership.is_empty()).then(|| self.membership.clone().into());
        AppliedState { position: self.position, membership, ahead: self.ahead }
    }

    /// The ids of the databases.
    pub fn ids(&self) -> BTreeSet<DbId> {
        self.databases.iter().map(|(id, ..)| *id).collect()
    }

    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let version = if self.removed.is_empty() { WITHOUT_REMOVED } else { VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        let words = self.position.map_or([u64::MAX; 3], |p| [p.term, p.leader, p.index]);
        words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out.extend_from_slice(&u32::from(self.ahead).to_le_bytes());
        out.extend_from_slice(&(self.membership.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.membership);
        out.extend_from_slice(&(self.databases.len() as u32).to_le_bytes());
        for (id, page_size, name) in &self.databases {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&page_size.get().to_le_bytes());
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(&(self.dropped.len() as u32).to_le_bytes());
        for Dropped { id, by, name } in &self.dropped {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&by.unwrap_or(u64::MAX).to_le_bytes());
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        if version == VERSION {
            out.extend_from_slice(&(self.removed.len() as u32).to_le_bytes());
            self.removed.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let has_removed = bytes.get(8..12) != Some(&WITHOUT_REMOVED.to_le_bytes());
        if has_removed {
            VersionError::check("manifest", bytes, MAGIC, VERSION)?;
        }
        Ok(Manifest::decode_this_version(bytes, has_removed)?)
    }

    fn decode_this_version(bytes: &[u8], has_removed: bool) -> Result<Manifest, FormatError> {
        let err = |offset: usize, reason: &str| FormatError {
            what: "manifest",
            offset: offset as u64,
            reason: reason.to_owned(),
        };
        if bytes.get(..8) != Some(MAGIC) {
            return Err(err(0, "this is no manifest of Quire's"));
        }
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return Err(err(0, "too short")) };
        if crc32fast::hash(body).to_le_bytes() != *crc {
            return Err(err(body.len(), "crc32 does not match"));
        }
        let mut at = 12;
        let mut take = |n: usize| {
            let taken = body.get(at..at + n).ok_or_else(|| err(at, "too short"));
            at += n;
            taken
        };
        let u64 = |b: &[u8]| b.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        let u32 = |b: &[u8]| b.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
        let (term, leader, index) = (u64(take(8)?), u64(take(8)?), u64(take(8)?));
        let position = (index != u64::MAX).then_some(LogPosition { term, leader, index });
        let ahead = u32(take(4)?) & 1 != 0;
        let len = u32(take(4)?) as usize;
        let membership = take(len)?.to_vec();
        let name =
            |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| err(0, "a name is not UTF-8"));
        let u16 = |b: &[u8]| b.first_chunk::<2>().map_or(0, |b| u16::from_le_bytes(*b));
        let mut databases = Vec::new();
        for _ in 0..u32(take(4)?) {
            let id = DbId(u64(take(8)?));
            let page_size = PageSize::new(u32(take(4)?)).ok_or_else(|| err(0, "no page size"))?;
            let len = u16(take(2)?);
            databases.push((id, page_size, name(take(usize::from(len))?)?));
        }
        let mut dropped = Vec::new();
        for _ in 0..u32(take(4)?) {
            let (id, by) = (DbId(u64(take(8)?)), u64(take(8)?));
            let len = u16(take(2)?);
            let by = (by != u64::MAX).then_some(by);
            dropped.push(Dropped { id, by, name: name(take(usize::from(len))?)? });
        }
        let mut removed = BTreeSet::new();
        if has_removed {
            for _ in 0..u32(take(4)?) {
                let id = u64(take(8)?);
                if removed.last().is_some_and(|last| *last >= id) {
                    return Err(err(at, "the ids of removed members are not in order"));
                }
                removed.insert(id);
            }
            if removed.is_empty() {
                return Err(err(at, "no ids of removed members, but the version that has them"));
            }
        }
        if at != body.len() {
            return Err(err(at, "something follows"));
        }
        Ok(Manifest { position, membership, databases, dropped, removed, ahead })
    }

    /// Reads the manifest; the default if there is none.
    pub fn load(path: &Path) -> Result<Manifest, ManifestError> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
            Ok(metadata) if metadata.len() > MAX_SIZE => {
                let reason = format!("{} bytes are too many", metadata.len());
                return Err(FormatError { what: "manifest", offset: MAX_SIZE, reason }.into());
            }
            _ => {}
        }
        Manifest::decode(&std::fs::read(path)?)
    }

    /// Replaces the manifest, durably.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &self.encode())
    }
}

/// Gives a file this content, durably: whatever happens meanwhile, it has the old one or the new one. It is this user's alone.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_dir(path)
}

/// Makes a directory entry durable.
pub fn sync_dir(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that met a full disk at its first start must be able to start later.
    #[test]
    fn a_file_that_can_not_be_replaced_is_not_left_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let in_the_way = dir.path().join("identity.new");
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(replace_file(&path, b"new").is_err());
        assert!(!path.exists());
        std::fs::remove_dir(&in_the_way).unwrap();
        replace_file(&path, b"old").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(!in_the_way.exists());
    }

    #[test]
    fn round_trip_and_every_flipped_byte_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest");
        assert_eq!(Manifest::load(&path).unwrap(), Manifest::default());
        let manifest = Manifest {
            position: Some(LogPosition { term: 3, leader: 2, index: 77 }),
            membership: vec![1, 2, 3],
            databases: vec![
                (DbId(4), PageSize::DEFAULT, "main".into()),
                (DbId(9), PageSize::DEFAULT, "b".into()),
            ],
            dropped: vec![
                Dropped { id: DbId(5), by: Some(80), name: "b".into() },
                Dropped { id: DbId(6), by: None, name: "c".into() },
            ],
            removed: BTreeSet::from([3, 8]),
            ahead: true,
        };
        manifest.store(&path).unwrap();
        assert_eq!(Manifest::load(&path).unwrap(), manifest);
        let before = Manifest { removed: BTreeSet::new(), ..manifest.clone() };
        assert_eq!((before.encode()[8], manifest.encode()[8]), (2, 3));
        assert_eq!(Manifest::decode(&before.encode()).unwrap(), before);
        Manifest::default().store(&path).unwrap();
        assert_eq!(Manifest::load(&path).unwrap(), Manifest::default());
        let bytes = manifest.encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Manifest::decode(&bad).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
