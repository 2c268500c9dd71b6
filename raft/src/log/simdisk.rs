//! A disk in memory that knows what was synced, can fail any operation, and rebuilds what a power cut may leave.
//!
//! Data becomes durable by `sync` of its file, names by `sync_names`. At a crash every 512-byte sector written since
//! the last sync survives or not, independently; of the name changes a prefix survives.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::disk::{Disk, DiskFile};

const SECTOR: u64 = 512;

#[derive(Clone, Default)]
struct FileState {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone)]
enum NameOp {
    Set(String, usize),
    Remove(String),
}

#[derive(Clone, Default)]
struct Inner {
    files: Vec<FileState>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameOp>,
    /// Syncs (of either kind) until one fails, and all after it.
    syncs_left: Option<u64>,
    /// No new files.
    full: bool,
}

#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

struct SimFile(SimDisk, usize);

fn apply(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Set(n, f) => drop(names.insert(n.clone(), *f)),
        NameOp::Remove(n) => drop(names.remove(n)),
    }
}

impl Inner {
    fn sync_allowed(&mut self) -> io::Result<()> {
        match &mut self.syncs_left {
            Some(0) => Err(io::Error::other("simulated EIO")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn name(&mut self, op: NameOp) {
        apply(&mut self.names, &op);
        self.pending_names.push(op);
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// After `n` more syncs, every sync fails.
    pub(crate) fn fail_syncs_after(&self, n: u64) {
        self.lock().syncs_left = Some(n);
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// The disk after a power cut; `survives` is asked for each unsynced sector and name change.
    pub(crate) fn crash(&self, mut survives: impl FnMut() -> bool) -> SimDisk {
        let mut s = self.lock().clone();
        for f in &mut s.files {
            let mut image = f.durable.clone();
            for (offset, data) in &f.pending {
                let mut at = 0;
                while at < data.len() {
                    let sector_end = ((offset + at as u64) / SECTOR + 1) * SECTOR - offset;
                    let end = (sector_end as usize).min(data.len());
                    if survives() {
                        image[*offset as usize + at..*offset as usize + end].copy_from_slice(&data[at..end]);
                    }
                    at = end;
                }
            }
            *f = FileState { current: image.clone(), durable: image, pending: Vec::new() };
        }
        let mut names = s.durable_names.clone();
        for op in s.pending_names.iter().take_while(|_| survives()) {
            apply(&mut names, op);
        }
        s.names.clone_from(&names);
        s.durable_names = names;
        s.pending_names.clear();
        (s.syncs_left, s.full) = (None, false);
        SimDisk(Arc::new(Mutex::new(s)))
    }

    /// Changes a file behind everyone's back.
    pub(crate) fn corrupt(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut s = self.lock();
        let f = s.file(name).unwrap();
        change(&mut s.files[f].current);
        s.files[f].durable = s.files[f].current.clone();
        s.files[f].pending.clear();
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let s = self.lock();
        s.files[s.file(name).unwrap()].current.clone()
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let f = self.lock().file(name)?;
        Ok(Arc::new(SimFile(self.clone(), f)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = self.lock();
        if s.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        s.sync_allowed()?;
        let zeros = vec![0; len as usize];
        s.files.push(FileState { current: zeros.clone(), durable: zeros, pending: Vec::new() });
        let f = s.files.len() - 1;
        s.name(NameOp::Set(name.to_string(), f));
        Ok(Arc::new(SimFile(self.clone(), f)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut s = self.lock();
        let f = s.file(from)?;
        // One step, as on a journaling file system.
        apply(&mut s.names, &NameOp::Remove(from.to_string()));
        s.pending_names.push(NameOp::Remove(from.to_string()));
        s.name(NameOp::Set(to.to_string(), f));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut s = self.lock();
        s.file(name)?;
        s.name(NameOp::Remove(name.to_string()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut s = self.lock();
        s.sync_allowed()?;
        s.durable_names = s.names.clone();
        s.pending_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().files[self.1].current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let s = self.0.lock();
        let range = offset as usize..offset as usize + buf.len();
        let data = s.files[self.1].current.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(data);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut s = self.0.lock();
        let f = &mut s.files[self.1];
        f.current[offset as usize..offset as usize + buf.len()].copy_from_slice(buf);
        f.pending.push((offset, buf.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.0.lock();
        s.sync_allowed()?;
        let f = &mut s.files[self.1];
        f.durable.clone_from(&f.current);
        f.pending.clear();
        Ok(())
    }

    fn map(&self) -> io::Result<Bytes> {
        Ok(self.0.lock().files[self.1].current.clone().into())
    }
}
