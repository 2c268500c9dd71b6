//! A disk in memory that knows what was synced, can fail any operation, and rebuilds what a power cut may leave.
//!
//! Data becomes durable by `sync` of its file, names by `sync_names`. At a crash every 512-byte sector written since
//! the last sync survives or not, independently; of the name changes a prefix survives, as in a file system with a
//! journal.
//!
//! Everything that changes the disk is a [`Change`]. A disk that records keeps all of them, so that a test can go
//! through a run again and look at the disk as it was after each ([`SimDisk::replay`]).
//!
//! A failed sync is as on Linux: what it was to write is no longer dirty, so that no later sync writes it, while reads
//! still show it ([`SimDisk::fail`] with `lost`). Whoever trusts what he reads then is shown by the next crash.

#![allow(clippy::unwrap_used, reason = "only tests, simulations and fuzz targets have it")]
#![cfg_attr(not(test), allow(dead_code, reason = "not all of them use all of it"))]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};

pub(crate) const SECTOR: usize = 512;

/// One step that changes the disk.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A new, empty file.
    New(String),
    /// It grows to so many zero bytes, durably.
    Fill(usize, usize),
    Write(usize, usize, Vec<u8>),
    Sync(usize),
    Rename(String, String),
    Remove(String),
    SyncNames,
    /// Nothing, but the test wants to find the place.
    Note(usize),
}

/// What an operation is to the one who lets it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Create,
    /// The sync of a new file's zeros.
    CreateSync,
    Write,
    Sync,
    SyncNames,
    Rename,
    Remove,
}

struct Fault {
    sites: Vec<Site>,
    /// So many still succeed.
    left: u64,
    once: bool,
    kind: io::ErrorKind,
    /// A sync that fails loses what it was to write.
    lost: bool,
}

#[derive(Clone, Default)]
struct FileState {
    current: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum NameOp {
    Set(String, usize),
    Rename(String, String),
    Remove(String),
}

type Names = BTreeMap<String, usize>;

/// The content of the disk.
#[derive(Clone, Default)]
struct Content {
    files: Vec<FileState>,
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameOp>,
}

#[derive(Default)]
struct Inner {
    content: Content,
    fault: Option<Fault>,
    /// Where faults struck.
    struck: Vec<Site>,
    /// No new files.
    full: bool,
    /// Bytes that all files may have together.
    capacity: Option<usize>,
    journal: Option<Vec<Change>>,
    /// What must never be done to a disk.
    violations: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

struct SimFile(SimDisk, usize);

fn apply(names: &mut Names, op: &NameOp) {
    match op {
        NameOp::Set(n, f) => drop(names.insert(n.clone(), *f)),
        NameOp::Rename(from, to) => {
            if let Some(f) = names.remove(from) {
                names.insert(to.clone(), f);
            }
        }
        NameOp::Remove(n) => drop(names.remove(n)),
    }
}

fn put(image: &mut Arc<Vec<u8>>, offset: usize, data: &[u8]) {
    Arc::make_mut(image)[offset..offset + data.len()].copy_from_slice(data);
}

/// The sectors that a write touches, as ranges of its data.
fn sectors(offset: usize, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        at = ((offset + at) / SECTOR * SECTOR + SECTOR - offset).min(len);
        (start < len).then_some(start..at)
    })
}

impl Content {
    fn name(&mut self, op: NameOp) {
        apply(&mut self.names, &op);
        self.pending_names.push(op);
    }

    fn change(&mut self, c: &Change) {
        match c {
            Change::New(name) => {
                self.files.push(FileState::default());
                self.name(NameOp::Set(name.clone(), self.files.len() - 1));
            }
            Change::Fill(f, len) => {
                let zeros = Arc::new(vec![0; *len]);
                (self.files[*f].current, self.files[*f].durable) = (zeros.clone(), zeros);
            }
            Change::Write(f, offset, data) => {
                put(&mut self.files[*f].current, *offset, data);
                self.files[*f].pending.push((*offset, data.clone()));
            }
            Change::Sync(f) => {
                let f = &mut self.files[*f];
                for (offset, data) in f.pending.drain(..) {
                    put(&mut f.durable, offset, &data);
                }
            }
            Change::Rename(from, to) => self.name(NameOp::Rename(from.clone(), to.clone())),
            Change::Remove(name) => self.name(NameOp::Remove(name.clone())),
            Change::SyncNames => {
                self.durable_names = self.names.clone();
                self.pending_names.clear();
            }
            Change::Note(_) => {}
        }
    }

    fn image(&self, mut keep: impl FnMut(usize, usize) -> bool, names: usize) -> Content {
        let mut write = 0;
        let files = self.files.iter().map(|f| {
            let mut image = f.durable.clone();
            for (offset, data) in &f.pending {
                for (i, range) in sectors(*offset, data.len()).enumerate() {
                    if keep(write, i) {
                        put(&mut image, offset + range.start, &data[range]);
                    }
                }
                write += 1;
            }
            FileState { current: image.clone(), durable: image, ..FileState::default() }
        });
        let files = files.collect();
        let mut kept = self.durable_names.clone();
        self.pending_names.iter().take(names).for_each(|op| apply(&mut kept, op));
        Content { files, names: kept.clone(), durable_names: kept, pending_names: Vec::new() }
    }
}

impl Inner {
    fn change(&mut self, c: Change) {
        self.content.change(&c);
        if let Some(j) = &mut self.journal {
            j.push(c);
        }
    }

    fn trip(&mut self, site: Site) -> io::Result<()> {
        let Some(fault) = &mut self.fault else { return Ok(()) };
        if !fault.sites.contains(&site) {
            return Ok(());
        }
        if fault.left > 0 {
            fault.left -= 1;
            return Ok(());
        }
        self.struck.push(site);
        let error = io::Error::new(fault.kind, format!("simulated failure of {site:?}"));
        if fault.once {
            self.fault = None;
        }
        Err(error)
    }

    fn used(&self) -> usize {
        self.content.names.values().map(|f| self.content.files[*f].current.len()).sum()
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.content.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// All that is a sync to the one who waits for it.
pub(crate) const SYNCS: [Site; 3] = [Site::CreateSync, Site::Sync, Site::SyncNames];

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn of(content: Content) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner { content, ..Inner::default() })))
    }

    /// Lets operations of the given sites fail after `left` of them: one, or all from there on.
    pub(crate) fn fail(&self, sites: &[Site], left: u64, once: bool, kind: io::ErrorKind, lost: bool) {
        self.lock().fault = Some(Fault { sites: sites.to_vec(), left, once, kind, lost });
    }

    /// After `n` more syncs, every sync fails.
    pub(crate) fn fail_syncs_after(&self, n: u64) {
        self.fail(&SYNCS, n, false, io::ErrorKind::Other, false);
    }

    /// Ends the faults; returns where they struck.
    pub(crate) fn heal(&self) -> Vec<Site> {
        let mut s = self.lock();
        s.fault = None;
        std::mem::take(&mut s.struck)
    }

    /// Whether a fault has struck.
    pub(crate) fn struck(&self) -> Vec<Site> {
        self.lock().struck.clone()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// From now on there is no more room than what files take at this moment.
    pub(crate) fn fill_up(&self) {
        let mut s = self.lock();
        s.capacity = Some(s.used());
    }

    /// There is room again.
    pub(crate) fn empty(&self) {
        self.lock().capacity = None;
    }

    /// Starts to record changes.
    pub(crate) fn record(&self) {
        self.lock().journal = Some(Vec::new());
    }

    pub(crate) fn note(&self, note: usize) {
        self.lock().change(Change::Note(note));
    }

    /// Ends recording; returns what was recorded.
    pub(crate) fn recorded(&self) -> Vec<Change> {
        self.lock().journal.take().unwrap_or_default()
    }

    /// Makes recorded changes once more.
    #[cfg(feature = "simulation")]
    pub(crate) fn make(&self, changes: &[Change]) {
        let mut s = self.lock();
        changes.iter().for_each(|c| s.change(c.clone()));
    }

    /// Goes through recorded changes again, from this disk's content; `see` gets the disk before the first change and
    /// after each, with how many were made and the last note.
    pub(crate) fn replay(&self, changes: &[Change], mut see: impl FnMut(usize, usize, &SimDisk)) {
        let disk = self.fork();
        let mut noted = 0;
        for n in 0..=changes.len() {
            see(n, noted, &disk);
            if let Some(c) = changes.get(n) {
                disk.lock().change(c.clone());
                if let Change::Note(n) = c {
                    noted = *n;
                }
            }
        }
    }

    /// The same disk once more, with all that is unsynced: what a killed process leaves to the next one.
    pub(crate) fn fork(&self) -> SimDisk {
        SimDisk::of(self.lock().content.clone())
    }

    /// How many sectors each unsynced write has, and how many name changes are unsynced.
    pub(crate) fn unsynced(&self) -> (Vec<usize>, usize) {
        let s = self.lock();
        let writes = s.content.files.iter().flat_map(|f| &f.pending);
        let writes = writes.map(|(offset, data)| sectors(*offset, data.len()).count());
        (writes.collect(), s.content.pending_names.len())
    }

    /// The disk after a power cut: of the unsynced writes those sectors for which `keep(write, sector)`, of the name
    /// changes the first `names`.
    pub(crate) fn image(&self, keep: impl FnMut(usize, usize) -> bool, names: usize) -> SimDisk {
        SimDisk::of(self.lock().content.image(keep, names))
    }

    /// The disk after a power cut; `survives` is asked for each unsynced sector and name change.
    pub(crate) fn crash(&self, mut survives: impl FnMut() -> bool) -> SimDisk {
        let s = self.lock();
        let image = s.content.image(|_, _| survives(), 0);
        let names = (0..s.content.pending_names.len()).take_while(|_| survives()).count();
        let names = s.content.image(|_, _| false, names).names;
        SimDisk::of(Content { durable_names: names.clone(), names, ..image })
    }

    /// What reads would show: names and contents.
    pub(crate) fn contents(&self) -> BTreeMap<String, Arc<Vec<u8>>> {
        let s = self.lock();
        s.content.names.iter().map(|(n, f)| (n.clone(), s.content.files[*f].current.clone())).collect()
    }

    /// Files ever made.
    pub(crate) fn files_made(&self) -> usize {
        self.lock().content.files.len()
    }

    /// What was done that must not be.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Changes a file behind everyone's back.
    pub(crate) fn corrupt(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut s = self.lock();
        let f = s.file(name).unwrap();
        let f = &mut s.content.files[f];
        change(Arc::make_mut(&mut f.current));
        f.durable = f.current.clone();
        f.pending.clear();
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let s = self.lock();
        s.content.files[s.file(name).unwrap()].current.to_vec()
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().content.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let f = self.lock().file(name)?;
        Ok(Arc::new(SimFile(self.clone(), f)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = self.lock();
        if s.full || s.capacity.is_some_and(|capacity| s.used() + len as usize > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        s.trip(Site::Create)?;
        let f = s.content.files.len();
        s.change(Change::New(name.to_string()));
        // Not at once, as a crash can come in between.
        s.change(Change::Fill(f, len as usize / 2));
        if let Err(e) = s.trip(Site::CreateSync) {
            s.change(Change::Remove(name.to_string()));
            return Err(e);
        }
        s.change(Change::Fill(f, len as usize));
        Ok(Arc::new(SimFile(self.clone(), f)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut s = self.lock();
        s.trip(Site::Rename)?;
        s.file(from)?;
        s.change(Change::Rename(from.to_string(), to.to_string()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut s = self.lock();
        s.trip(Site::Remove)?;
        s.file(name)?;
        s.change(Change::Remove(name.to_string()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut s = self.lock();
        s.trip(Site::SyncNames)?;
        s.change(Change::SyncNames);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().content.files[self.1].current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let s = self.0.lock();
        let range = offset as usize..offset as usize + buf.len();
        let data = s.content.files[self.1].current.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(data);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut s = self.0.lock();
        let (f, offset) = (self.1, offset as usize);
        if offset + buf.len() > s.content.files[f].current.len() {
            s.violations.push(format!("a write to {offset} + {} lets a file grow", buf.len()));
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Err(e) = s.trip(Site::Write) {
            // A short write.
            s.change(Change::Write(f, offset, buf[..buf.len() / 2].to_vec()));
            return Err(e);
        }
        s.change(Change::Write(f, offset, buf.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.0.lock();
        let lost = s.fault.as_ref().is_some_and(|f| f.lost);
        if let Err(e) = s.trip(Site::Sync) {
            if lost {
                s.content.files[self.1].pending.clear();
            }
            return Err(e);
        }
        s.change(Change::Sync(self.1));
        Ok(())
    }
}
