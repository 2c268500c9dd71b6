//! The files of a new, empty database.

use super::DbError;
use super::side_file::{Durable, SideFile, Stamp, side_path};
use crate::command::DbId;
use crate::manifest::sync_dir;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::PageHashes;
use quire_vfs::format::database::empty_database;
use quire_vfs::format::{PageNo, PageSize};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tracing::warn;

/// Whether a database's files are there.
pub(super) fn has_files(path: &Path, id: DbId, page_size: PageSize) -> Result<bool, DbError> {
    Ok(SideFile::identify(path)? == Some((id, page_size)) && path.exists())
}

/// An empty database: its only page, the hashes, and what is durable of it, but for how its file looks.
pub(super) fn empty(position: LogPosition, page_size: PageSize) -> (Vec<u8>, PageHashes, Durable) {
    let image = empty_database(page_size);
    let mut hashes = PageHashes::new(page_size);
    hashes.apply(&PageHashes::delta(1, [(PageNo(1), image.as_slice())]));
    let (checksum, pages) = (hashes.checksum(), hashes.len());
    let durable = Durable { position, target: position.index, checksum, pages, stamp: Stamp::default() };
    (image, hashes, durable)
}

/// Writes the files of an empty database. Whatever stands there under its name is put aside.
pub(super) fn create_files(
    path: &Path,
    position: LogPosition,
    page_size: PageSize,
) -> Result<Durable, DbError> {
    put_aside(path)?;
    let (image, hashes, mut durable) = empty(position, page_size);
    let mut file = File::create(path).map_err(DbError::io(path, "creating it"))?;
    file.write_all(&image).map_err(DbError::io(path, "writing it"))?;
    file.sync_all().map_err(DbError::io(path, "syncing it"))?;
    durable.stamp = Stamp::of(path, &image)?;
    // The side file comes last: with it, the database counts as created.
    SideFile::create(path, DbId(position.index), &durable, &hashes)?;
    sync_dir(path).map_err(DbError::io(path, "syncing its directory"))?;
    Ok(durable)
}

/// A file of the database's name that isn't the cluster's is kept, under another name.
fn put_aside(path: &Path) -> Result<(), DbError> {
    let aside = |file: &Path| -> Result<(), DbError> {
        if !file.exists() {
            return Ok(());
        }
        let seconds =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".aside-{seconds}"));
        warn!("{} is no file of this cluster; moved to {}", file.display(), Path::new(&name).display());
        std::fs::rename(file, &name).map_err(DbError::io(file, "moving it aside"))
    };
    aside(path)?;
    aside(&super::applier::wal_path(path))?;
    aside(&super::incoming::incoming_path(path))?;
    aside(&super::lag::behind_path(path))?;
    aside(&side_path(path))
}
