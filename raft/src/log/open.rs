//! Opening a log: read everything, check everything, cut a torn tail, start the threads.
//!
//! Every record of every segment is read and its checksums verified; a log is opened rarely and damage found late
//! is damage spread. What is refused and what is cut is decided in `segment.rs`; how records add up is [`Replay`].
//!
//! # Invariant
//! What an open log shows is durable, whatever became of the process before. That one may have been killed between a
//! write and its sync, or been told that a sync failed: then what is read now may be in the page cache only, and the
//! kernel may even hold it for clean and not write it any more. So names are synced before they are looked at, and
//! what may have been the last write, to the log and to the vote file, is written once more and synced.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::watch;

use super::Shared;
use super::disk::{Disk, DiskFile, RealDisk};
use super::pool::Pool;
use super::record::{ALIGN, Header, Kind};
use super::segment::{self, DATA_START, Fault, Owner, SegmentHeader};
use super::state::{Place, Places, Segment, State, Terms};
use super::store::LogStore;
use super::vote::{self, VoteError, VoteFile};
use super::writer::{Tail, Writer, new_seed};
use crate::{LogError, LogPosition};

/// What a log needs to know.
#[derive(Clone, Debug)]
pub(crate) struct LogOptions {
    pub(crate) owner: Owner,
    pub(crate) segment_bytes: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) read_bytes: usize,
    /// On a full disk appends wait for room, until the log is closed; else they fail.
    pub(crate) wait_for_room: bool,
}

/// Opens the log in `dir`, creating it if absent. Blocks on the disk.
pub(crate) fn open(dir: &Path, options: LogOptions) -> Result<LogStore, LogError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |source| LogError::Io { path, source }
    };
    let log_dir = dir.join("log");
    let disk = RealDisk::new(&log_dir).map_err(io_at(&log_dir))?;
    let path = dir.join("lock");
    let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(io_at(&path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(LogError::Locked { path }),
        Err(std::fs::TryLockError::Error(e)) => return Err(io_at(&path)(e)),
    }
    open_on(Arc::new(disk), options, Some(lock))
}

/// Opens a log on any disk. `lock` is held until the writer thread has ended.
pub(crate) fn open_on(
    disk: Arc<dyn Disk>,
    options: LogOptions,
    lock: Option<File>,
) -> Result<LogStore, LogError> {
    let (store, writer) = prepare(disk, &options)?;
    let shared = store.shared().clone();
    let pool = shared.pool.clone();
    let thread_error = |source| LogError::Io { path: shared.disk.path(""), source };
    let preparer = std::thread::Builder::new().name("quire-log-prep".into()).spawn(move || pool.run());
    let preparer = preparer.map_err(thread_error)?;
    let finished = shared.clone();
    let run = move || {
        writer.run();
        // Only after both threads have ended is the directory free for the next one.
        let _ = preparer.join();
        drop(lock);
        finished.closed.send_replace(true);
    };
    std::thread::Builder::new().name("quire-log".into()).spawn(run).map_err(thread_error)?;
    Ok(store)
}

/// Opens a log, without its threads.
pub(crate) fn prepare(disk: Arc<dyn Disk>, options: &LogOptions) -> Result<(LogStore, Writer), LogError> {
    let io_of = |name: &str| {
        let path = disk.path(name);
        move |source| LogError::Io { path, source }
    };
    disk.sync_names().map_err(io_of(""))?;
    let mut names = disk.list().map_err(io_of(""))?;
    names.sort();
    for name in names.iter().filter(|n| n.ends_with(".tmp")) {
        disk.remove(name).map_err(io_of(name))?;
    }
    let segments: Vec<u64> = names.iter().filter_map(|n| segment::parse_file_name(n)).collect();
    let votes = open_votes(&disk, &names, &segments, options.owner)?;
    let spares = names.into_iter().filter(|n| n.ends_with(".free")).collect();
    let pool = Pool::new(disk.clone(), options.segment_bytes, spares, options.wait_for_room);
    let pool = pool.map_err(io_of(""))?;

    let replay = match segments.as_slice() {
        [] => create_first(&disk, options)?,
        sequences => replay(&disk, sequences, options.owner)?,
    };
    let active =
        replay.segments.back().cloned().ok_or_else(|| fault(&disk, "", Fault::damaged(0, "no segment")))?;

    let next = replay.places.next();
    let committed = replay.committed_position();
    let mut state = State {
        vote: votes.vote(),
        committed,
        last: None,
        purged: None,
        terms: replay.terms,
        places: replay.places,
        segments: replay.segments,
        ..State::default()
    };
    state.last = state.places.first().and_then(|_| state.terms.at(next - 1)).or(replay.purged);
    state.purged = replay.purged;
    let shared = Arc::new(Shared {
        disk,
        pool: Arc::new(pool),
        state: Mutex::new(state),
        flushed: watch::Sender::new(next.saturating_sub(1)),
        cache_bytes: options.cache_bytes,
        segment_bytes: options.segment_bytes,
        tail: (active.bytes - replay.end).into(),
        closed: watch::Sender::new(false),
    });

    let (queue, ops) = mpsc::channel();
    let tail = Tail {
        active,
        synced: replay.end,
        next,
        purge_segment: replay.purge_segment,
        unmarked: replay.unmarked,
    };
    let writer = Writer::new(shared.clone(), ops, options.owner, votes, tail);
    Ok((LogStore::new(shared, queue, options.read_bytes), writer))
}

fn fault(disk: &Arc<dyn Disk>, name: &str, f: Fault) -> LogError {
    f.at(disk.path(name))
}

fn open_votes(
    disk: &Arc<dyn Disk>,
    names: &[String],
    segments: &[u64],
    owner: Owner,
) -> Result<VoteFile, LogError> {
    let io = |source| LogError::Io { path: disk.path(vote::FILE_NAME), source };
    if names.iter().any(|n| n == vote::FILE_NAME) {
        let file = disk.open(vote::FILE_NAME).map_err(io)?;
        let votes = VoteFile::open(file, owner).map_err(|e| match e {
            VoteError::Io(e) => io(e),
            VoteError::Fault(f) => fault(disk, vote::FILE_NAME, f),
        })?;
        if segments.is_empty() && votes.vote().is_some() {
            return Err(fault(
                disk,
                "",
                Fault::damaged(0, "this node has voted, but its log segments are missing"),
            ));
        }
        return Ok(votes);
    }
    if !segments.is_empty() {
        let missing = Fault::damaged(0, "the vote file is missing, but there are log segments");
        return Err(fault(disk, vote::FILE_NAME, missing));
    }
    let file = disk.create("vote.tmp", vote::FILE_BYTES).map_err(io)?;
    let votes = VoteFile::init(file, owner).map_err(io)?;
    disk.rename("vote.tmp", vote::FILE_NAME).and_then(|()| disk.sync_names()).map_err(io)?;
    Ok(votes)
}

fn create_first(disk: &Arc<dyn Disk>, options: &LogOptions) -> Result<Replay, LogError> {
    let name = segment::file_name(1);
    let make = || -> io::Result<Segment> {
        let bytes = options.segment_bytes;
        let file = disk.create("first.tmp", bytes)?;
        let header = SegmentHeader {
            owner: options.owner,
            sequence: 1,
            seed: new_seed()?,
            next_index: 0,
            prev_end: 0,
            prev_seed: 0,
            file_bytes: bytes,
        };
        file.write_at(&header.encode(), 0)?;
        file.sync()?;
        disk.rename("first.tmp", &name)?;
        disk.sync_names()?;
        Ok(Segment::new(&header, file, 0))
    };
    let segment = make().map_err(|source| LogError::Io { path: disk.path(&name), source })?;
    let mut replay = Replay { end: DATA_START, ..Replay::default() };
    replay.segments.push_back(Arc::new(segment));
    Ok(replay)
}

/// What the records of a log add up to.
#[derive(Default)]
struct Replay {
    segments: VecDeque<Arc<Segment>>,
    places: Places,
    terms: Terms,
    purged: Option<LogPosition>,
    /// Segment of the latest purge record, 0 for none.
    purge_segment: u64,
    /// 1 + the highest committed index seen.
    committed: u64,
    /// End of the records in the last segment.
    end: u64,
    /// Where the write that the last record belongs to began.
    last_write: u64,
    /// The last record is not a mark, and nothing else shows that it was durable.
    unmarked: bool,
}

impl Replay {
    /// Takes one record; an error is a contradiction to what came before.
    fn record(&mut self, segment: u64, offset: u64, h: &Header) -> Result<(), String> {
        self.committed = self.committed.max(h.committed);
        (self.last_write, self.unmarked) = (h.synced, h.kind != Kind::Mark);
        if h.kind != Kind::Mark && h.position.index == u64::MAX {
            return Err("an index that no entry can have, as none could follow it".into());
        }
        match h.kind {
            Kind::Mark => {}
            Kind::Base => {
                self.places.rebase(h.position.index);
                self.terms.truncate(h.position.index);
            }
            Kind::Purge => {
                self.places.purge(h.position.index);
                if self.places.first().is_none() {
                    self.terms = Terms::default();
                }
                self.terms.purge(h.position.index);
                self.purged = self.purged.max(Some(h.position));
                self.purge_segment = segment;
            }
            Kind::Blank | Kind::Command | Kind::Membership => {
                let offset =
                    u32::try_from(offset / ALIGN as u64).map_err(|_| "offset too large".to_string())?;
                let want = self.places.next();
                let index = h.position.index;
                if !self.places.push(index, Place { segment: segment as u32, offset, len: h.len }) {
                    return Err(format!("entry {index} where {want} must follow"));
                }
                self.terms.push(&h.position);
            }
        }
        Ok(())
    }

    fn committed_position(&self) -> Option<LogPosition> {
        let index = self.committed.checked_sub(1)?;
        match self.purged {
            Some(p) if index <= p.index => Some(p),
            // What is known to be committed is in the log, unless the tail was lost before it was acknowledged here.
            _ => self.terms.at(index.min(self.places.next().checked_sub(1)?)),
        }
    }
}

fn replay(disk: &Arc<dyn Disk>, sequences: &[u64], owner: Owner) -> Result<Replay, LogError> {
    let mut files = Vec::with_capacity(sequences.len());
    for (i, &sequence) in sequences.iter().enumerate() {
        let name = segment::file_name(sequence);
        if i > 0 && sequence != sequences[i - 1] + 1 {
            let missing = segment::file_name(sequences[i - 1] + 1);
            return Err(fault(disk, &missing, Fault::damaged(0, format!("segment missing before {name}"))));
        }
        let io = |source| LogError::Io { path: disk.path(&name), source };
        let file = disk.open(&name).map_err(io)?;
        let len = file.len().map_err(io)?;
        let mut head = vec![0; DATA_START.min(len) as usize];
        file.read_at(&mut head, 0).map_err(io)?;
        let header = SegmentHeader::decode(&head, Some(&owner)).map_err(|f| fault(disk, &name, f))?;
        if header.sequence != sequence {
            let reason = format!("the file's header says segment {}", header.sequence);
            return Err(fault(disk, &name, Fault::damaged(40, reason)));
        }
        if header.file_bytes != len {
            let reason = format!("the file has {len} bytes, its header says {}", header.file_bytes);
            return Err(fault(disk, &name, Fault::damaged(80, reason)));
        }
        files.push((name, file, header));
    }
    let mut replay = Replay::default();
    for i in 0..files.len() {
        replay_segment(disk, &mut replay, &files[i], files.get(i + 1).map(|f| &f.2))?;
    }
    // Segments leave in order, and only when nothing in them is live: what is left starts where the purge mark ends.
    let oldest = files.first().map_or(1, |f| f.2.sequence);
    let first = replay.places.first().unwrap_or(replay.places.next());
    if first > replay.purged.map_or(0, |p| p.index + 1) {
        let name = segment::file_name(oldest.max(2) - 1);
        let reason = format!("entries before {first} are neither in the log nor purged");
        return Err(fault(disk, &name, Fault::damaged(0, reason)));
    }
    Ok(replay)
}

type SegmentFile = (String, Arc<dyn DiskFile>, SegmentHeader);

fn replay_segment(
    disk: &Arc<dyn Disk>,
    replay: &mut Replay,
    (name, file, header): &SegmentFile,
    successor: Option<&SegmentHeader>,
) -> Result<(), LogError> {
    let io = |source| LogError::Io { path: disk.path(name), source };
    if replay.segments.is_empty() {
        replay.places.rebase(header.next_index);
    } else if header.next_index != replay.places.next() {
        let reason = format!("segment starts at index {}, not {}", header.next_index, replay.places.next());
        return Err(fault(disk, name, Fault::damaged(56, reason)));
    }
    if let Some(s) = successor
        && s.prev_seed != header.seed
    {
        let reason = "the next segment was written after another one";
        return Err(fault(disk, name, Fault::damaged(48, reason)));
    }
    let mut bytes = vec![0; header.file_bytes as usize];
    file.read_at(&mut bytes, 0).map_err(io)?;
    // Without a record in this segment the one before is sealed, and nothing can be torn.
    (replay.last_write, replay.unmarked) = (DATA_START, false);
    let visit = |at: u64, h: &Header, _: &[u8]| replay.record(header.sequence, at, h);
    let end = segment::scan(&bytes, header.seed, successor.map(|s| s.prev_end), visit);
    let end = end.map_err(|f| fault(disk, name, f))?;
    if successor.is_none() {
        // Everything before the last write was synced when that was made. That itself is written again, see above.
        let from = replay.last_write.clamp(DATA_START, end.end) as usize;
        let mut to = end.end as usize;
        if end.torn {
            tracing::warn!(file = %disk.path(name).display(), offset = end.end, "torn log tail cut");
            bytes[to..].fill(0);
            to = bytes.len();
        }
        if from < to {
            file.write_at(&bytes[from..to], from as u64).map_err(io)?;
        }
        file.sync().map_err(io)?;
        replay.end = end.end;
    }
    let start = replay.segments.back().map_or(0, |s| s.stream_end());
    let segment = Segment::new(header, file.clone(), start);
    segment.set_end(end.end);
    replay.segments.push_back(Arc::new(segment));
    Ok(())
}
