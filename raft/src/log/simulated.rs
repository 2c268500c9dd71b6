//! The log store for simulations of whole nodes: the store itself, over a disk in memory, without its threads. What the
//! writer and the preparer would do is done when [`Log::write`] is called. A crash may come at any change of the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "only tests have it")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};

use super::open::prepare;
use super::segment::Owner;
use super::simdisk::SimDisk;
use super::writer::Writer;
use super::{LogOptions, LogStore};
use crate::types::{Command, Entry, Membership, Vote, log_id, position};
use crate::{Committed, LogPosition, NodeId, Payload, Peer, encode};

/// Few entries fill a segment, so that many segments come and go.
const SEGMENT: u64 = 16 << 10;

/// A node's log.
pub struct Log {
    disk: SimDisk,
    store: LogStore,
    writer: Writer,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

/// What is left of a log while nobody has it open.
#[derive(Default)]
pub struct Disk(SimDisk);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// A number below the one that is given, of which 1 is the least.
pub type Draw<'a> = &'a mut dyn FnMut(u64) -> u64;

/// The bytes of a membership of these voters, whose addresses are made up.
pub fn membership(at: LogPosition, voters: &[NodeId]) -> Bytes {
    let peer = |id: &NodeId| (*id, Peer { raft_addr: format!("n{id}:2"), http_addr: format!("n{id}:1") });
    let config = voters.iter().copied().collect::<BTreeSet<_>>();
    let membership = Membership::new(vec![config], voters.iter().map(peer).collect::<BTreeMap<_, _>>());
    encode::membership(Some(at), &membership.expect("a membership"))
}

/// The disk as it is when the process ends somewhere within what `work` does to it, or the machine loses power.
fn interrupted(disk: &SimDisk, power: bool, draw: Draw<'_>, work: impl FnOnce(&SimDisk)) -> Disk {
    let busy = disk.fork();
    busy.record();
    work(&busy);
    let changes = busy.recorded();
    let upto = draw(changes.len() as u64 + 1) as usize;
    let mut left = disk.fork();
    disk.replay(&changes[..upto], |n, _, now| {
        if n == upto {
            left = now.fork();
        }
    });
    Disk(if power { left.crash(|| draw(2) == 0) } else { left })
}

fn prepared(disk: &SimDisk, node: NodeId) -> Result<(LogStore, Writer), String> {
    let options = LogOptions {
        owner: Owner { cluster: [7; 16], node },
        segment_bytes: SEGMENT,
        cache_bytes: 4 << 10,
        read_bytes: 8 << 10,
        wait_for_room: false,
    };
    let (store, writer) = prepare(Arc::new(disk.clone()), &options).map_err(|error| error.to_string())?;
    store.shared().pool.alone();
    Ok((store, writer))
}

impl Log {
    /// Opens a log.
    pub fn open(disk: &Disk, node: NodeId) -> Result<Log, String> {
        let disk = disk.0.fork();
        let (store, writer) = prepared(&disk, node)?;
        let mut log = Log { disk, store, writer };
        log.writer.begin();
        log.store.shared().pool.catch_up();
        Ok(log)
    }

    /// Opens a log, and ends somewhere in the middle of that.
    pub fn open_in_vain(disk: &Disk, node: NodeId, power: bool, draw: Draw<'_>) -> Result<Disk, String> {
        let mut opened = Ok(());
        let left = interrupted(&disk.0, power, draw, |busy| opened = prepared(busy, node).map(drop));
        opened.map(|()| left)
    }

    /// The process ends, as it may in the middle of what it was to write; or the machine loses power.
    pub fn crash(mut self, power: bool, draw: Draw<'_>) -> Disk {
        if draw(2) == 0 {
            let left = self.disk.fork();
            return Disk(if power { left.crash(|| draw(2) == 0) } else { left });
        }
        let before = self.disk.fork();
        self.disk.record();
        let _ = self.write();
        let changes = self.disk.recorded();
        interrupted(&before, power, draw, |busy| busy.make(&changes))
    }

    /// What was done to the disk that must not be.
    pub fn violations(&self) -> Vec<String> {
        self.disk.violations()
    }

    /// The vote: the term, and whom it is for.
    pub fn vote(&self) -> Option<(u64, NodeId)> {
        let vote = self.store.shared().state().vote;
        vote.map(|vote| (vote.leader_id().term, vote.leader_id().node_id))
    }

    /// The entries that are there: from the first to before the last.
    pub fn range(&self) -> (u64, u64) {
        let state = self.store.shared().state();
        (state.first(), state.next())
    }

    /// Up to where the log says that it is committed.
    pub fn committed(&self) -> Option<LogPosition> {
        self.store.committed()
    }

    /// Reads entries, from memory or from the disk.
    pub fn read(&self, from: u64, to: u64) -> io::Result<Vec<Committed>> {
        let entry = |entry: Entry| {
            let position = position(&entry.log_id);
            let payload = match entry.payload {
                EntryPayload::Blank => Payload::Blank,
                EntryPayload::Normal(command) => Payload::Command(command.0),
                EntryPayload::Membership(members) => {
                    Payload::Membership(encode::membership(Some(position), &members))
                }
            };
            Committed { position, payload }
        };
        Ok(self.store.read_here(from, to)?.into_iter().map(entry).collect())
    }

    /// What openraft says of what is committed; it gets to the disk with the next entry.
    pub fn commit(&mut self, at: Option<LogPosition>) -> io::Result<()> {
        let mut store = self.store.clone();
        self.drive(store.save_committed(at.map(log_id)))
    }

    /// Saves a vote, durably, and with it all that was appended before.
    pub fn save_vote(&mut self, term: u64, node: NodeId) -> io::Result<()> {
        let mut store = self.store.clone();
        self.drive(store.save_vote(&Vote::new(term, node)))
    }

    /// Appends entries; they are on disk only after [`Log::write`].
    pub fn append(&mut self, entries: Vec<Committed>) -> io::Result<()> {
        let entries = entries.into_iter().map(|Committed { position, payload }| {
            let payload = match payload {
                Payload::Blank => EntryPayload::Blank,
                Payload::Command(bytes) => EntryPayload::Normal(Command(bytes)),
                Payload::Membership(bytes) => {
                    EntryPayload::Membership(encode::read_membership(bytes)?.membership().clone())
                }
            };
            Ok(Entry { log_id: log_id(position), payload })
        });
        let entries = entries.collect::<io::Result<Vec<_>>>()?;
        let mut store = self.store.clone();
        self.drive(store.append(entries, IOFlushed::noop()))
    }

    /// Gives up entries from `next` on, durably.
    pub fn truncate(&mut self, next: u64) -> io::Result<()> {
        let last = next.checked_sub(1).and_then(|index| self.store.position_at(index));
        let mut store = self.store.clone();
        self.drive(store.truncate_after(last.map(log_id)))
    }

    /// Gives up whole segments of entries up to `upto`.
    pub fn purge(&mut self, upto: u64) -> io::Result<()> {
        let point = self.store.purge_point(upto, 0).and_then(|index| self.store.position_at(index));
        let Some(point) = point else { return Ok(()) };
        let mut store = self.store.clone();
        self.drive(store.purge(log_id(point)))
    }

    /// Writes what was appended. Returns how many entries are on disk, counted from the beginning of all.
    pub fn write(&mut self) -> Result<u64, String> {
        self.store.shared().pool.catch_up();
        self.writer.catch_up();
        self.store.shared().pool.catch_up();
        match self.store.failed() {
            Some(why) => Err(why),
            None => Ok(self.store.shared().state().places.next()),
        }
    }

    /// What the writer does after a while of silence.
    pub fn rest(&mut self) {
        self.writer.idle();
    }

    /// Runs one of the store's operations, for which the writer may have to write something.
    fn drive<T>(&mut self, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut operation = pin!(operation);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            if let Poll::Ready(result) = operation.as_mut().poll(&mut context) {
                return result;
            }
            self.write().map_err(io::Error::other)?;
        }
        Err(io::Error::other("the log does not get done what it was to do"))
    }
}
