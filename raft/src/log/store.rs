//! openraft's view of the log. Its calls touch memory and the writer's queue only, except for reads of entries that
//! have left the cache, which go to a blocking thread.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{oneshot, watch};

use super::Shared;
use super::record::{self, Kind};
use super::state::{Place, Segment, entry_bytes};
use super::writer::Op;
use crate::types::{C, Command, Entry, LogId, Vote, log_id, position};
use crate::{LogPosition, encode};

/// A handle to the log. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
    reader: LogReader,
}

/// A handle that only reads; it doesn't keep the writer running.
#[derive(Clone)]
pub(crate) struct LogReader {
    shared: Arc<Shared>,
    read_bytes: usize,
}

/// An entry to be returned: at hand, or to be read.
enum Found {
    Ready(Entry),
    OnDisk(LogPosition, Arc<Segment>, Place),
}

impl LogStore {
    pub(crate) fn new(shared: Arc<Shared>, queue: mpsc::Sender<Op>, read_bytes: usize) -> Self {
        let reader = LogReader { shared: shared.clone(), read_bytes };
        LogStore { shared, queue, reader }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Highest durable index.
    pub(crate) fn flushed(&self) -> watch::Receiver<u64> {
        self.shared.flushed.subscribe()
    }

    /// Why the log failed, if it has.
    pub(crate) fn failed(&self) -> Option<String> {
        self.shared.failed()
    }

    /// See [`Shared::room_for`].
    pub(crate) fn room_for(&self, bytes: u64) -> Result<(), String> {
        self.shared.room_for(bytes)
    }

    /// Whether the writer waits for room on a full disk.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.shared.pool.is_waiting()
    }

    /// Bytes a command takes in the log.
    pub(crate) fn record_bytes(command: usize) -> u64 {
        record::size(command) as u64
    }

    /// The position of the entry at `index`, if it is in the log or the purge mark.
    pub(crate) fn position_at(&self, index: u64) -> Option<LogPosition> {
        let s = self.shared.state();
        match s.purged {
            Some(p) if p.index >= index => (p.index == index).then_some(p),
            _ if index < s.next() => s.terms.at(index),
            _ => None,
        }
    }

    /// What is known to be committed.
    pub(crate) fn committed(&self) -> Option<LogPosition> {
        self.shared.state().committed
    }

    /// Some entries from `start` on, before `end`: as many as a reader takes at once.
    pub(crate) async fn read_some(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.reader.read(start, end, self.reader.read_bytes).await
    }

    /// Entries from `start` on, before `end`, read on the caller's thread.
    #[cfg(feature = "simulation")]
    pub(crate) fn read_here(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.reader.find(start, end, usize::MAX)?.into_iter().map(Found::load).collect()
    }

    /// The purge mark.
    pub(crate) fn purged(&self) -> Option<LogPosition> {
        self.shared.state().purged
    }

    /// See [`crate::Raft::log_bytes`].
    pub(crate) fn log_bytes(&self) -> u64 {
        self.shared.state().log_bytes()
    }

    /// See [`crate::Raft::bytes_after`].
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        self.shared.state().bytes_after(index)
    }

    /// See [`crate::Raft::purge_point`].
    pub(crate) fn purge_point(&self, durable: u64, retain_bytes: u64) -> Option<u64> {
        self.shared.state().purge_point(durable, retain_bytes)
    }

    /// The term of the vote.
    pub(crate) fn term(&self) -> u64 {
        self.shared.state().vote.map_or(0, |v| v.leader_id().term)
    }

    /// The last position in the log (or the purge mark).
    pub(crate) fn last(&self) -> Option<LogPosition> {
        self.shared.state().last
    }

    /// Writes out what is queued, ends the threads and releases the directory.
    pub(crate) async fn close(&self, deadline: Duration) -> bool {
        let _ = self.queue.send(Op::Close);
        self.shared.pool.hurry();
        let mut closed = self.shared.closed.subscribe();
        tokio::time::timeout(deadline, closed.wait_for(|c| *c)).await.is_ok_and(|r| r.is_ok())
    }

    /// Waits until all that was queued is done, and the preparer has nothing to do.
    #[cfg(test)]
    pub(crate) async fn settled(&self) {
        let (tx, rx) = oneshot::channel();
        let _ = self.submit(Op::Probe(tx));
        let _ = Self::wait(rx).await;
        while !self.shared.pool.quiet() {
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
    }

    fn submit(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).map_err(|_| io::Error::other("the log is closed"))
    }

    async fn wait(rx: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        rx.await.map_err(|_| io::Error::other("the log writer ended"))?
    }
}

impl LogReader {
    /// Finds the entries of `start..end`, clipped to the log, up to `max` bytes (but at least one).
    fn find(&self, start: u64, end: u64, max: usize) -> io::Result<Vec<Found>> {
        let s = self.shared.state();
        let (start, end) = (s.begins(start), end.min(s.next()));
        let mut found = Vec::new();
        let mut bytes = 0usize;
        for index in start..end {
            let item = match s.cache.get(index) {
                Some(e) => {
                    bytes = bytes.saturating_add(entry_bytes(e));
                    Found::Ready(e.clone())
                }
                None => {
                    let lost = || io::Error::other(format!("entry {index} is not where it must be"));
                    let place = s.places.get(index).ok_or_else(lost)?;
                    let position = s.terms.at(index).ok_or_else(lost)?;
                    let segment = s.segment(place.segment).ok_or_else(lost)?;
                    bytes = bytes.saturating_add(place.len as usize + record::HEADER_BYTES);
                    Found::OnDisk(position, segment, place)
                }
            };
            if bytes > max && !found.is_empty() {
                break;
            }
            found.push(item);
        }
        Ok(found)
    }

    async fn read(&self, start: u64, end: u64, max: usize) -> io::Result<Vec<Entry>> {
        let found = self.find(start, end, max)?;
        if found.iter().all(|f| matches!(f, Found::Ready(_))) {
            return Ok(found.into_iter().filter_map(Found::ready).collect());
        }
        let load = move || found.into_iter().map(Found::load).collect();
        tokio::task::spawn_blocking(load).await.map_err(io::Error::other)?
    }
}

impl Found {
    fn ready(self) -> Option<Entry> {
        match self {
            Found::Ready(e) => Some(e),
            Found::OnDisk(..) => None,
        }
    }

    /// Reads the entry and checks it once more: checksums, and that it is the one that was appended.
    fn load(self) -> io::Result<Entry> {
        let (at, segment, place) = match self {
            Found::Ready(e) => return Ok(e),
            Found::OnDisk(at, segment, place) => (at, segment, place),
        };
        let offset = u64::from(place.offset) * record::ALIGN as u64;
        let raw = segment.read(offset, record::HEADER_BYTES + place.len as usize)?;
        let bad = |why: &str| {
            let why = format!("log segment {} at offset {offset}: entry {at}: {why}", segment.sequence);
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        let (h, _) = record::read(&raw, segment.seed).map_err(|e| bad(&e.to_string()))?;
        if h.position != at {
            return Err(bad(&format!("found {} there", h.position)));
        }
        let payload = raw.slice(record::HEADER_BYTES..);
        let payload = match h.kind {
            Kind::Blank => EntryPayload::Blank,
            Kind::Command => EntryPayload::Normal(Command(payload)),
            Kind::Membership => {
                EntryPayload::Membership(encode::read_membership(payload)?.membership().clone())
            }
            Kind::Base | Kind::Purge | Kind::Mark => return Err(bad("not an entry")),
        };
        Ok(Entry { log_id: log_id(at), payload })
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(n) => *n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(n) => n.saturating_add(1),
        Bound::Excluded(n) => *n,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<C> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, self.read_bytes).await
    }

    /// What apply reads through: piece by piece, so that a long range never is in memory as a whole.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let piece = Vec::<Entry>::new().into_iter();
        Box::pin(stream::unfold(
            (self.clone(), start, piece),
            move |(reader, mut at, mut piece)| async move {
                loop {
                    if let Some(e) = piece.next() {
                        return Some((Ok(e), (reader, at, piece)));
                    }
                    if at >= end {
                        return None;
                    }
                    match reader.read(at, end, reader.read_bytes).await {
                        Ok(entries) => {
                            at = entries.last()?.log_id.index() + 1;
                            piece = entries.into_iter();
                        }
                        Err(e) => return Some((Err(e), (reader, end, piece))),
                    }
                }
            },
        ))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state().vote)
    }
}

impl RaftLogReader<C> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.reader.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.reader.read_vote().await
    }
}

impl RaftLogStorage<C> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let s = self.shared.state();
        Ok(LogState { last_purged_log_id: s.purged.map(log_id), last_log_id: s.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        self.submit(Op::Vote(*vote, tx))?;
        Self::wait(rx).await?;
        self.shared.state().vote = Some(*vote);
        Ok(())
    }

    /// Rides along with the next record; an unsynced hint, as openraft allows.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.state().committed = committed.as_ref().map(position);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.state().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut s = self.shared.state();
            if let Some(first) = entries.first().map(|e| e.log_id.index())
                && first != s.next()
            {
                if s.last.is_some() {
                    let want = s.next();
                    return Err(io::Error::other(format!(
                        "append of index {first} where {want} must follow"
                    )));
                }
                // The very first entry of a log may have any index.
                self.queue.send(Op::Base(first, None)).map_err(|_| io::Error::other("the log is closed"))?;
            }
            entries.iter().for_each(|e| s.append(e));
        }
        self.submit(Op::Append(entries, callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let next = last.map_or(0, |l| l.index() + 1);
        let (tx, rx) = oneshot::channel();
        {
            let mut s = self.shared.state();
            if next >= s.next() {
                return Ok(());
            }
            tracing::info!(from = next, to = s.next() - 1, "log tail of a deposed leader dropped");
            s.truncate(next);
        }
        self.submit(Op::Base(next, Some(tx)))?;
        Self::wait(rx).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let upto = position(&upto);
        self.shared.state().purge(upto);
        self.submit(Op::Purge(upto))?;
        self.shared.pool.nudge();
        Ok(())
    }
}
