//! The log writer: the one thread that writes to the log and the vote file.
//!
//! It drains its queue, encodes all appends found there into one buffer, writes that with one `pwrite`, makes it
//! durable with one `fdatasync`, and then completes everything it covers, in order. Votes go through the same queue:
//! what was queued before a vote is durable before it.
//!
//! # Invariants
//! - At most one write is not yet synced, ever. (`segment.rs` tells torn tails from damage by that.)
//! - A segment is synced before its successor's header is written; that header is synced before the file gets its
//!   name, and the name before any record is written to it.
//! - The segment with the latest purge record is never retired.
//! - After any failure nothing is written or acknowledged again: every completion gets the error.
//!
//! On a full disk the writer waits until there is room for a segment; what it was given meanwhile, votes included, is
//! not acknowledged before. Only purges that give back a segment go on, as they may be what makes room: each segment
//! keeps some bytes for them ([`TAIL`]). A leader rarely gets there, as proposals are refused earlier
//! ([`Shared::room_for`]). A follower can't refuse its leader: the others are a majority without it, and it goes on where
//! it was. Where the log is closed first, or may not wait, the append fails with [`std::io::ErrorKind::StorageFull`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use openraft::EntryPayload;
use openraft::storage::IOFlushed;
use ring::rand::SecureRandom;
use tokio::sync::oneshot;

use super::Shared;
use super::record::{self, Header, Kind};
use super::segment::{self, DATA_START, Owner, SegmentHeader};
use super::state::{Place, Segment};
use super::vote::VoteFile;
use crate::types::{C, Entry, Vote, position};
use crate::{LogPosition, encode};

/// A batch stops growing here, so that no sync covers too much.
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of the buffer kept between batches.
const KEEP_BUFFER: usize = 1 << 20;
/// Idle time after which a mark record protects the last entries.
const IDLE: Duration = Duration::from_millis(500);

/// At the end of each segment so much is kept for purge records: two of them.
pub(super) const TAIL: u64 = 2 * record::size(0) as u64;

/// What a caller waits for.
pub(crate) type Ack = oneshot::Sender<io::Result<()>>;

/// Work for the writer.
pub(crate) enum Op {
    /// Append entries, then tell openraft.
    Append(Vec<Entry>, IOFlushed<C>),
    /// Save the vote.
    Vote(Vote, Ack),
    /// Void entries at this index and above; it is the next one to be appended.
    Base(u64, Option<Ack>),
    /// Everything up to this position is gone.
    Purge(LogPosition),
    /// Write out what is queued, then end.
    Close,
    /// Nothing; for tests that want to know how far the writer is.
    #[cfg(test)]
    Probe(Ack),
}

/// What to do once the current batch is durable.
enum Done {
    Flushed(IOFlushed<C>),
    Ack(Ack),
    Purged,
}

/// A change of the places, in order, to be made when the batch is durable.
enum Move {
    Push(u64, Place),
    Base(u64),
    Purge(u64),
}

/// Where the log ends.
pub(crate) struct Tail {
    pub(crate) active: Arc<Segment>,
    /// End of what is durable in the active segment.
    pub(crate) synced: u64,
    /// The index after the last appended entry.
    pub(crate) next: u64,
    /// Segment of the latest purge record.
    pub(crate) purge_segment: u64,
    /// A mark record is due.
    pub(crate) unmarked: bool,
}

/// The state of the writer thread. The first fields are as in [`Tail`].
pub(crate) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Op>,
    /// What came out of the queue while the writer waited for room, in order.
    backlog: VecDeque<Op>,
    owner: Owner,
    votes: VoteFile,
    active: Arc<Segment>,
    synced: u64,
    next: u64,
    purge_segment: u64,
    buf: Vec<u8>,
    moves: Vec<Move>,
    done: Vec<Done>,
    /// Records were written since the last mark record.
    unmarked: bool,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Receiver<Op>,
        owner: Owner,
        votes: VoteFile,
        tail: Tail,
    ) -> Self {
        Writer {
            shared,
            queue,
            backlog: VecDeque::new(),
            owner,
            votes,
            active: tail.active,
            synced: tail.synced,
            next: tail.next,
            purge_segment: tail.purge_segment,
            buf: Vec::new(),
            moves: Vec::new(),
            done: Vec::new(),
            unmarked: tail.unmarked,
        }
    }

    /// Runs until the queue is closed.
    pub(crate) fn run(mut self) {
        self.begin();
        loop {
            let backlog = self.backlog.pop_front();
            let first = match backlog.map_or_else(|| self.queue.recv_timeout(IDLE), Ok) {
                Ok(op) => op,
                Err(RecvTimeoutError::Timeout) if !self.unmarked => match self.queue.recv() {
                    Ok(op) => op,
                    Err(_) => break,
                },
                Err(RecvTimeoutError::Timeout) => {
                    let result = self.mark();
                    self.settle(result);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if self.turn(first) {
                break;
            }
        }
        if self.unmarked && self.check().is_ok() {
            let result = self.mark();
            self.settle(result);
        }
        // Whoever still queues something must not wait for ever.
        while let Some(op) = self.next_op() {
            let gone = Err(io::Error::other("the log is closed"));
            let result = self.handle(op, gone);
            self.settle(result);
        }
        self.shared.pool.close();
    }

    /// The next operation, if there is one.
    fn next_op(&mut self) -> Option<Op> {
        self.backlog.pop_front().or_else(|| self.queue.try_recv().ok())
    }

    /// Gives up what a crash or a failure kept from being given up.
    pub(crate) fn begin(&mut self) {
        self.retire();
    }

    /// Does what was taken from the queue, and what has queued behind it. True if that is the end.
    fn turn(&mut self, first: Op) -> bool {
        let mut closing = false;
        let mut next = Some(first);
        let mut result = self.check();
        while let Some(op) = next.take() {
            closing |= matches!(op, Op::Close);
            result = self.handle(op, result);
            if !closing && self.buf.len() < BATCH_BYTES {
                next = self.next_op();
            }
        }
        let result = result.and_then(|()| self.flush());
        self.settle(result);
        closing
    }

    /// Does all that is in the queue, on the caller's thread: a simulation has no other.
    #[cfg(feature = "simulation")]
    pub(crate) fn catch_up(&mut self) {
        while let Some(op) = self.next_op() {
            self.turn(op);
        }
    }

    /// What is done when there is nothing to do, likewise.
    #[cfg(feature = "simulation")]
    pub(crate) fn idle(&mut self) {
        if self.unmarked && self.check().is_ok() {
            let result = self.mark();
            self.settle(result);
        }
    }

    fn check(&self) -> io::Result<()> {
        self.shared.check()
    }

    /// Takes one operation into the batch. After an error the operation only joins those that will get it.
    fn handle(&mut self, op: Op, so_far: io::Result<()>) -> io::Result<()> {
        let ok = so_far.is_ok();
        match op {
            Op::Append(entries, flushed) => {
                let result = if ok { entries.iter().try_for_each(|e| self.append(e)) } else { so_far };
                self.done.push(Done::Flushed(flushed));
                result
            }
            Op::Vote(vote, ack) => {
                let result = so_far.and_then(|()| self.flush()).and_then(|()| self.votes.save(Some(vote)));
                self.done.push(Done::Ack(ack));
                result
            }
            Op::Base(next, ack) => {
                let result = if ok { self.base(next) } else { so_far };
                self.done.extend(ack.map(Done::Ack));
                result
            }
            Op::Purge(upto) => {
                let result = if ok { self.purge(upto) } else { so_far };
                self.done.push(Done::Purged);
                result
            }
            Op::Close => so_far,
            #[cfg(test)]
            Op::Probe(ack) => {
                self.done.push(Done::Ack(ack));
                so_far
            }
        }
    }

    fn append(&mut self, e: &Entry) -> io::Result<()> {
        let p = position(&e.log_id);
        if p.index != self.next {
            let want = self.next;
            return Err(io::Error::other(format!("append of index {} where {want} must follow", p.index)));
        }
        match &e.payload {
            EntryPayload::Blank => self.put(Kind::Blank, p, &[]),
            EntryPayload::Normal(c) => self.put(Kind::Command, p, &c.0),
            EntryPayload::Membership(m) => self.put(Kind::Membership, p, &encode::membership(Some(p), m)),
        }?;
        self.next = p.index + 1;
        Ok(())
    }

    fn base(&mut self, next: u64) -> io::Result<()> {
        self.put(Kind::Base, LogPosition { index: next, ..LogPosition::default() }, &[])?;
        self.moves.push(Move::Base(next));
        self.next = next;
        Ok(())
    }

    fn purge(&mut self, upto: LogPosition) -> io::Result<()> {
        self.put(Kind::Purge, upto, &[])?;
        self.purge_segment = self.active.sequence;
        self.moves.push(Move::Purge(upto.index));
        self.next = self.next.max(upto.index + 1);
        Ok(())
    }

    fn mark(&mut self) -> io::Result<()> {
        let fits = self.synced + record::size(0) as u64 + TAIL <= self.active.bytes;
        if !fits && !self.shared.pool.ready() {
            // The mark can wait; the log must not fail for it because the disk is full.
            return Ok(());
        }
        self.put(Kind::Mark, LogPosition::default(), &[])?;
        self.unmarked = false;
        self.flush()
    }

    /// Encodes a record into the buffer, rolling to a new segment first if it doesn't fit.
    fn put(&mut self, kind: Kind, position: LogPosition, payload: &[u8]) -> io::Result<()> {
        let size = record::size(payload.len()) as u64;
        let len = u32::try_from(payload.len()).map_err(|_| io::Error::other("entry too long"))?;
        let tail = if kind == Kind::Purge { 0 } else { TAIL };
        if self.synced + self.buf.len() as u64 + size + tail > self.active.bytes {
            // What is about to be voided is not to be purged.
            let keep_from = if kind == Kind::Base { position.index } else { u64::MAX };
            self.roll(size, keep_from)?;
        }
        let offset = self.synced + self.buf.len() as u64;
        let committed = self.shared.state().committed.map_or(0, |p| p.index + 1);
        let header = Header { kind, len, position, synced: self.synced, committed };
        record::put(&mut self.buf, self.active.seed, &header, payload);
        self.unmarked = true;
        if kind.is_entry() {
            let offset = u32::try_from(offset / record::ALIGN as u64);
            let offset = offset.map_err(|_| io::Error::other("segment too long"))?;
            self.moves.push(Move::Push(
                position.index,
                Place { segment: self.active.sequence as u32, offset, len },
            ));
        }
        Ok(())
    }

    /// Writes and syncs the buffer, and publishes where its entries are.
    fn flush(&mut self) -> io::Result<()> {
        if !self.buf.is_empty() {
            self.active.file.write_at(&self.buf, self.synced)?;
            self.active.file.sync()?;
            self.synced += self.buf.len() as u64;
            self.active.set_end(self.synced);
            self.buf.clear();
            self.buf.shrink_to(KEEP_BUFFER);
        }
        if self.moves.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.state();
        for m in self.moves.drain(..) {
            match m {
                Move::Base(next) => state.places.rebase(next),
                Move::Purge(upto) => state.places.purge(upto),
                Move::Push(index, place) => {
                    if !state.places.push(index, place) {
                        return Err(io::Error::other(format!("entry {index} written out of order")));
                    }
                }
            }
        }
        let next = state.places.next();
        state.written(next, self.shared.cache_bytes);
        Ok(())
    }

    /// Ends the active segment and starts the next one, which must hold `size` more bytes. Entries from `keep_from` on
    /// are not to be purged before.
    fn roll(&mut self, size: u64, keep_from: u64) -> io::Result<()> {
        self.flush()?;
        // A purge in this very batch may be what makes room.
        self.retire();
        let spare = loop {
            match self.shared.pool.take(DATA_START + size + TAIL)? {
                Some(spare) => break spare,
                None => self.purge_meanwhile(keep_from)?,
            }
        };
        let header = SegmentHeader {
            owner: self.owner,
            sequence: self.active.sequence + 1,
            seed: new_seed()?,
            next_index: self.next,
            prev_end: self.synced,
            prev_seed: self.active.seed,
            file_bytes: spare.bytes,
        };
        spare.file.write_at(&header.encode(), 0)?;
        spare.file.sync()?;
        self.shared.disk.rename(&spare.name, &segment::file_name(header.sequence))?;
        self.shared.disk.sync_names()?;
        tracing::debug!(segment = header.sequence, index = header.next_index, "log segment started");
        self.active = Arc::new(Segment::new(&header, spare.file, self.active.stream_end()));
        self.synced = DATA_START;
        self.shared.state().segments.push_back(self.active.clone());
        Ok(())
    }

    /// There is no room for the next segment, and all that came before is durable: a purge that came later, of entries
    /// that are on disk, is brought forward if it gives back a segment.
    fn purge_meanwhile(&mut self, keep_from: u64) -> io::Result<()> {
        self.backlog.extend(self.queue.try_iter());
        let upto = {
            let state = self.shared.state();
            let next = state.places.next().min(keep_from);
            // Behind a truncation it may be of entries that are yet to come.
            let before = self.backlog.iter().take_while(|op| !matches!(op, Op::Base(..)));
            let purges = before.filter_map(|op| match op {
                Op::Purge(upto) => Some(*upto),
                _ => None,
            });
            let upto = purges.filter(|upto| upto.index < next).max_by_key(|upto| upto.index);
            let segment_after = |upto: LogPosition| {
                let place = state.places.get(upto.index + 1);
                place.map_or(self.active.sequence as u32, |place| place.segment)
            };
            let oldest = state.segments.front().map(|segment| segment.sequence as u32);
            upto.filter(|upto| oldest != Some(segment_after(*upto)))
        };
        let fits = self.synced + record::size(0) as u64 <= self.active.bytes;
        let Some(upto) = upto.filter(|_| fits) else { return Ok(()) };
        self.purge(upto)?;
        self.flush()?;
        self.retire();
        self.backlog.retain(|op| !matches!(op, Op::Purge(other) if other.index <= upto.index));
        tracing::info!(upto = upto.index, "purged while the log waits for room");
        Ok(())
    }

    /// Completes everything of the batch, with its result.
    fn settle(&mut self, result: io::Result<()>) {
        self.shared.set_tail(self.active.bytes.saturating_sub(self.synced));
        if let Err(e) = &result {
            self.fail(e);
        } else {
            let durable = self.shared.state().places.next().saturating_sub(1);
            self.shared.flushed.send_if_modified(|f| std::mem::replace(f, durable) != durable);
        }
        for done in std::mem::take(&mut self.done) {
            let result = result.as_ref().copied().map_err(|e| io::Error::new(e.kind(), e.to_string()));
            match done {
                Done::Flushed(f) => f.io_completed(result),
                // Who waits for this may have given up; that is his affair.
                Done::Ack(a) => drop(a.send(result)),
                Done::Purged if result.is_ok() => self.retire(),
                Done::Purged => {}
            }
        }
    }

    fn fail(&mut self, e: &io::Error) {
        self.buf.clear();
        self.moves.clear();
        self.unmarked = false;
        let mut state = self.shared.state();
        if state.failed.is_none() {
            tracing::error!(error = %e, "the log failed; this node stops");
            state.failed = Some(e.to_string());
        }
    }

    /// Gives up segments that hold nothing live any more, oldest first.
    fn retire(&mut self) {
        let mut state = self.shared.state();
        let live = state.places.first_segment();
        while let Some(oldest) = state.segments.front() {
            let needed = oldest.sequence >= self.purge_segment || live == Some(oldest.sequence as u32);
            if needed || oldest.sequence == self.active.sequence {
                break;
            }
            if let Some(oldest) = state.segments.pop_front() {
                self.shared.pool.retire(oldest);
            }
        }
    }
}

/// A new life seed; its low half, the record marker, is not 0.
pub(crate) fn new_seed() -> io::Result<u64> {
    let rng = ring::rand::SystemRandom::new();
    loop {
        let mut b = [0; 8];
        rng.fill(&mut b).map_err(|_| io::Error::other("the system has no random numbers"))?;
        let seed = u64::from_le_bytes(b);
        if seed as u32 != 0 {
            return Ok(seed);
        }
    }
}
