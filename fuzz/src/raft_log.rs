//! A log directory: segments and a vote file on a disk in memory, opened as at a start. The segments are made of records with
//! right checksums, in an order and with fields that may be wrong, and are then harmed here and there.
//!
//! An open log shows entries without a gap, each of which is read with its own position; what it shows survives a power cut and
//! a further start. A sound log opens and shows exactly what was put there. Refusals name a file. Memory is taken for what is on
//! the disk, not for what a field says.

use crate::LogPosition;
use crate::log::disk::Disk;
use crate::log::open::open_on;
use crate::log::record::{self, Header, Kind};
use crate::log::segment::{DATA_START, Owner, SegmentHeader, file_name};
use crate::log::simdisk::SimDisk;
use crate::log::{LogOptions, LogStore, vote};
use crate::types::position;
use arbitrary::{Arbitrary, Unstructured};
use std::sync::Arc;
use std::time::Duration;

const OWNER: Owner = Owner { cluster: [3; 16], node: 1 };
const FILE: usize = 8 << 10;

#[derive(Debug, Arbitrary)]
struct Log {
    first: Option<u64>,
    segments: Vec<Segment>,
    harm: Vec<Harm>,
    cut: Option<u16>,
}

#[derive(Debug, Arbitrary)]
struct Segment {
    odd: Option<Odd>,
    records: Vec<Record>,
}

/// One field of a header that is another than it should be.
#[derive(Debug, Arbitrary)]
enum Odd {
    Sequence(u64),
    Next(u64),
    PrevEnd(u64),
    PrevSeed(u64),
    FileBytes(u64),
    Node(u64),
}

#[derive(Debug, Arbitrary)]
struct Record {
    kind: u8,
    term: u8,
    back: u8,
    /// Instead of the index that follows.
    index: Option<u64>,
    synced: Option<u64>,
    committed: Option<u64>,
    payload: u8,
}

#[derive(Debug, Arbitrary)]
struct Harm {
    segment: u8,
    at: u16,
    mask: u8,
}

/// One run.
pub fn run(data: &[u8]) {
    if let Ok(log) = Log::arbitrary(&mut Unstructured::new(data)) {
        try_out(&log);
    }
}

/// What a log must show.
#[derive(Default)]
struct Model {
    first: u64,
    /// Terms of the entries from `first` on.
    terms: Vec<u64>,
    purged: Option<LogPosition>,
    term: u64,
    /// Whether all is as the writer would have it.
    sound: bool,
}

impl Model {
    fn next(&self) -> u64 {
        self.first.wrapping_add(self.terms.len() as u64)
    }
}

fn try_out(log: &Log) {
    let disk = SimDisk::default();
    let votes = disk.create(vote::FILE_NAME, vote::FILE_BYTES).expect("there is room");
    vote::VoteFile::init(votes, OWNER).expect("it is new");
    let mut model = Model { sound: log.cut.is_none(), ..Model::default() };
    let first = log.first.unwrap_or(1).max(1);
    model.sound &= first == 1;
    let (mut end, mut seed) = (0, 0);
    for (n, segment) in log.segments.iter().take(4).enumerate() {
        let sequence = first.wrapping_add(n as u64);
        let prev = (end, seed);
        seed = 0x1234_5678_0000_0001 + n as u64 * 0x1_0000_0002;
        let mut header = SegmentHeader {
            owner: OWNER,
            sequence,
            seed,
            next_index: model.next(),
            prev_end: prev.0,
            prev_seed: prev.1,
            file_bytes: FILE as u64,
        };
        model.sound &= segment.odd.is_none();
        match segment.odd {
            Some(Odd::Sequence(it)) => header.sequence = it,
            Some(Odd::Next(it)) => {
                header.next_index = it;
                if n == 0 {
                    model.first = it;
                }
            }
            Some(Odd::PrevEnd(it)) => header.prev_end = it,
            Some(Odd::PrevSeed(it)) => header.prev_seed = it,
            Some(Odd::FileBytes(it)) => header.file_bytes = it,
            Some(Odd::Node(it)) => header.owner.node = it,
            None => {}
        }
        let mut bytes = header.encode();
        for record in segment.records.iter().take(24) {
            put(&mut bytes, seed, record, &mut model);
        }
        end = bytes.len() as u64;
        bytes.resize(FILE, 0);
        let name = file_name(sequence);
        disk.create(&name, FILE as u64).expect("there is room");
        disk.corrupt(&name, |file| *file = bytes);
    }
    for Harm { segment, at, mask } in log.harm.iter().take(3) {
        let n = u64::from(*segment) % log.segments.len().clamp(1, 4) as u64;
        let name = file_name(first.wrapping_add(n));
        if disk.contents().contains_key(&name) {
            disk.corrupt(&name, |file| file[usize::from(*at) % FILE] ^= mask);
            model.sound &= *mask == 0;
        }
    }
    if let Some(cut) = log.cut
        && let Some(name) = disk.contents().keys().rfind(|name| name.ends_with(".seg"))
    {
        disk.corrupt(name, |file| file.truncate(usize::from(cut)));
    }
    disk.sync_names().expect("it is a disk in memory");
    look(&disk, &model);
}

fn put(bytes: &mut Vec<u8>, seed: u64, record: &Record, model: &mut Model) {
    let kinds = [Kind::Blank, Kind::Command, Kind::Command, Kind::Base, Kind::Purge, Kind::Mark];
    let kind = kinds[usize::from(record.kind) % kinds.len()];
    let payload = if kind == Kind::Command { usize::from(record.payload) } else { 0 };
    let size = record::size(payload);
    if bytes.len() + size > FILE {
        return;
    }
    let term = model.term + u64::from(record.term % 2);
    let back = u64::from(record.back) % (model.terms.len() as u64 + 1);
    let index = match kind {
        Kind::Base | Kind::Purge => model.next().wrapping_sub(back),
        _ => model.next(),
    };
    let mut position = LogPosition { term, leader: 7, index };
    if kind == Kind::Purge {
        // Of an entry that is there.
        match index.checked_sub(model.first).and_then(|at| model.terms.get(at as usize)) {
            Some(&term) => position.term = term,
            None => return,
        }
    }
    model.sound &= record.index.is_none() && record.synced.is_none() && record.committed.is_none();
    position.index = record.index.unwrap_or(position.index);
    let header = Header {
        kind,
        len: payload as u32,
        position,
        synced: record.synced.unwrap_or(bytes.len() as u64),
        committed: record.committed.unwrap_or(0),
    };
    record::put(bytes, seed, &header, &vec![record.payload; payload]);
    match kind {
        Kind::Blank | Kind::Command | Kind::Membership => {
            model.terms.push(term);
            model.term = term;
        }
        Kind::Base => model.terms.truncate((index - model.first.min(index)) as usize),
        Kind::Purge => {
            model.terms.drain(..=(index - model.first) as usize);
            model.first = index + 1;
            model.purged = Some(position);
        }
        Kind::Mark => {}
    }
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fn run_it<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn open(disk: &SimDisk) -> Result<LogStore, String> {
    let options = LogOptions {
        owner: OWNER,
        segment_bytes: FILE as u64,
        cache_bytes: 2000,
        read_bytes: 2000,
        wait_for_room: false,
    };
    open_on(Arc::new(disk.clone()), options, None).map_err(|error| error.to_string())
}

/// All entries: positions and payloads' lengths.
fn show(log: &LogStore) -> (Option<LogPosition>, Option<LogPosition>, Vec<LogPosition>) {
    let (purged, last) = (log.purged(), log.last());
    let mut entries = Vec::new();
    if let Some(last) = last {
        let mut next = purged.map_or(0, |p| p.index.saturating_add(1));
        while next <= last.index {
            let some = run_it(log.read_some(next, last.index.saturating_add(1)));
            let Ok(some) = some else { break };
            assert!(!some.is_empty(), "entry {next} of {last} is missing");
            for entry in some {
                let at = position(&entry.log_id);
                assert_eq!(at.index, next, "entries follow each other");
                assert_eq!(log.position_at(next), Some(at));
                entries.push(at);
                match next.checked_add(1) {
                    Some(it) => next = it,
                    None => return (purged, Some(last), entries),
                }
            }
        }
    }
    (purged, last, entries)
}

fn look(disk: &SimDisk, model: &Model) {
    let log = match open(disk) {
        Ok(log) => log,
        Err(why) => {
            assert!(!model.sound, "a sound log is refused: {why}");
            assert!(why.starts_with("sim"), "a refusal names its file: {why}");
            return;
        }
    };
    let shown = show(&log);
    if model.sound {
        let terms: Vec<u64> = shown.2.iter().map(|at| at.term).collect();
        assert_eq!((shown.0, &terms), (model.purged, &model.terms));
    }
    let cut = disk.image(|_, _| false, 0);
    assert!(run_it(log.close(Duration::from_secs(20))), "it closes");
    assert!(disk.violations().is_empty(), "{:?}", disk.violations());
    drop(log);
    for disk in [cut, disk.fork()] {
        let log = open(&disk).unwrap_or_else(|why| panic!("what was open is refused: {why}"));
        assert_eq!(show(&log), shown, "what was shown stays");
        assert!(run_it(log.close(Duration::from_secs(20))), "it closes");
    }
}
