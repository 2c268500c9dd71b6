//! A run of the log in which everything happens that can, and a book of what must be found afterwards.
//!
//! The log is a sequence of records, and a crash leaves a prefix of it. So after a crash the log must be *exactly* as
//! after some number of records: no fewer than were acknowledged, no more than were asked for.

use super::{
    BTreeMap, LogPosition, LogStore, RaftLogReader, RaftLogStorage, SimDisk, Vote, all, append, at, close,
    command, data, io, log_id, open_small,
};

/// One thing that a caller does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Append entries of these sizes.
    Append(Vec<usize>),
    /// Drop so many entries at the end, as far as they are not committed.
    Truncate(u64),
    /// Purge all but the last so many entries.
    Purge(u64),
    Vote,
    /// Everything so far is committed.
    Commit,
    Reopen,
}

/// What the log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogImage {
    pub(super) purged: Option<LogPosition>,
    pub(super) entries: BTreeMap<u64, (LogPosition, usize)>,
}

enum Record {
    Entry(LogPosition, usize),
    Base(u64),
    Purge(LogPosition),
}

impl LogImage {
    fn with(&self, r: &Record) -> LogImage {
        let mut next = self.clone();
        match *r {
            Record::Entry(p, size) => drop(next.entries.insert(p.index, (p, size))),
            Record::Base(index) => drop(next.entries.split_off(&index)),
            Record::Purge(p) => {
                next.entries = next.entries.split_off(&(p.index + 1));
                next.purged = Some(p);
            }
        }
        next
    }

    pub(super) fn last(&self) -> Option<LogPosition> {
        self.entries.values().next_back().map(|e| e.0).or(self.purged)
    }

    pub(super) fn next(&self) -> u64 {
        self.last().map_or(0, |p| p.index + 1)
    }

    /// What an open log holds; checks the entries' data and that nothing is missing between them.
    pub(super) async fn of(log: &mut LogStore) -> LogImage {
        let entries = all(log).await;
        let state = log.get_log_state().await.unwrap();
        let mut image = LogImage { purged: log.purged(), entries: BTreeMap::new() };
        let first = image.next();
        for (i, e) in entries.iter().enumerate() {
            let p = crate::types::position(&e.log_id);
            assert_eq!(p.index, first + i as u64, "a hole");
            assert_eq!(data(e), data(&command(p.term, p.index, data(e).len())), "entry {p}");
            image.entries.insert(p.index, (p, data(e).len()));
        }
        assert_eq!(state.last_log_id, image.last().map(log_id));
        assert_eq!(state.last_purged_log_id, image.purged.map(log_id));
        image
    }
}

/// What was acknowledged and what was asked for at some moment: numbers of records and of votes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) acked: usize,
    pub(super) begun: usize,
    votes_acked: usize,
    votes_begun: usize,
    committed: Option<u64>,
}

/// The history of a run.
pub(super) struct Book {
    /// The log after so many records.
    pub(super) images: Vec<LogImage>,
    votes: Vec<Option<Vote>>,
    pub(super) known: Vec<Known>,
}

impl Book {
    pub(super) fn now(&self) -> Known {
        *self.known.last().unwrap()
    }

    /// Checks an open log against what was known at some moment; returns what it holds.
    pub(super) async fn check(&self, log: &mut LogStore, known: &Known) -> LogImage {
        let found = LogImage::of(log).await;
        let allowed = &self.images[known.acked..=known.begun];
        assert!(allowed.contains(&found), "{known:?}\nallowed: {allowed:#?}\nfound: {found:#?}");
        let vote = log.read_vote().await.unwrap();
        let votes = &self.votes[known.votes_acked..=known.votes_begun];
        assert!(votes.contains(&vote), "{known:?}: vote {vote:?}, allowed {votes:?}");
        if let Some(c) = log.read_committed().await.unwrap() {
            assert!(Some(c.index()) <= known.committed, "{known:?}: committed {c}");
            assert_eq!(log.position_at(c.index()).map(log_id).unwrap_or(c), c);
        }
        found
    }
}

/// The votes in the two slots, as they are after a power cut.
pub(super) fn durable_votes(disk: &SimDisk) -> [Option<Vote>; 2] {
    let content = disk.crash(|| false).content("vote");
    [0, 4096].map(|at| crate::log::vote::decode(&content[at..], None).unwrap().vote)
}

/// A run on a disk.
pub(super) struct Run {
    pub(super) disk: SimDisk,
    /// `None` if it could not be opened.
    pub(super) log: Option<LogStore>,
    pub(super) book: Book,
    term: u64,
}

impl Run {
    /// Opens the log; that may fail on a faulty disk.
    pub(super) fn start(disk: &SimDisk) -> Run {
        let book =
            Book { images: vec![LogImage::default()], votes: vec![None], known: vec![Known::default()] };
        Run { disk: disk.clone(), log: open_small(disk).ok(), book, term: 1 }
    }

    fn know(&mut self, change: impl FnOnce(&mut Known)) {
        let mut known = self.book.now();
        change(&mut known);
        self.disk.note(self.book.known.len());
        self.book.known.push(known);
    }

    fn begin(&mut self, records: Vec<Record>) {
        for r in records {
            let next = self.book.images[self.book.images.len() - 1].with(&r);
            self.book.images.push(next);
        }
        let begun = self.book.images.len() - 1;
        self.know(|k| k.begun = begun);
    }

    /// All that was asked for is durable.
    fn acked(&mut self) {
        self.know(|k| (k.acked, k.votes_acked) = (k.begun, k.votes_begun));
    }

    pub(super) fn now(&self) -> &LogImage {
        &self.book.images[self.book.images.len() - 1]
    }

    /// Does one step. An error must come from the disk.
    pub(super) async fn step(&mut self, step: &Step) -> io::Result<()> {
        let mut log = self.log.clone().ok_or_else(|| io::Error::other("not open"))?;
        let now = self.now().clone();
        match step {
            Step::Append(sizes) => {
                let first = now.next();
                let term = self.term;
                let numbered = || sizes.iter().zip(first..).map(|(size, i)| (i, *size));
                self.begin(numbered().map(|(i, size)| Record::Entry(at(term, i), size)).collect());
                append(&mut log, numbered().map(|(i, size)| command(term, i, size)).collect()).await?;
            }
            Step::Truncate(n) => {
                let fixed = now.purged.map(|p| p.index).max(self.book.now().committed);
                let keep = now.next().saturating_sub(*n).max(fixed.map_or(0, |i| i + 1));
                if keep >= now.next() {
                    return Ok(());
                }
                let last = keep.checked_sub(1);
                let last = last.and_then(|i| now.entries.get(&i).map(|e| e.0).or(now.purged));
                self.term += 1;
                self.begin(vec![Record::Base(keep)]);
                log.truncate_after(last.map(log_id)).await?;
            }
            Step::Purge(n) => {
                let upto = now.next().checked_sub(n + 1).and_then(|i| now.entries.get(&i));
                let Some((upto, _)) = upto.copied() else { return Ok(()) };
                self.begin(vec![Record::Purge(upto)]);
                // Only what is committed is purged.
                self.know(|k| k.committed = k.committed.max(Some(upto.index)));
                log.purge(log_id(upto)).await?;
                // Nobody waits for it; what comes after it will tell.
                return Ok(());
            }
            Step::Vote => {
                self.term += 1;
                let vote = Vote::new(self.term, self.term % 3);
                self.book.votes.push(Some(vote));
                let begun = self.book.votes.len() - 1;
                self.know(|k| k.votes_begun = begun);
                log.save_vote(&vote).await?;
            }
            Step::Commit => {
                let last = now.last();
                self.know(|k| k.committed = last.map(|p| p.index).max(k.committed));
                log.save_committed(last.map(log_id)).await?;
                return Ok(());
            }
            Step::Reopen => {
                let failed = log.failed();
                close(log).await;
                let failed = failed.or(self.log.take().and_then(|l| l.failed()));
                if let Some(why) = failed {
                    return Err(io::Error::other(why));
                }
                self.log = Some(open_small(&self.disk).map_err(io::Error::other)?);
            }
        }
        self.acked();
        Ok(())
    }

    /// Waits until the disk is at rest, so that a run is much the same each time.
    pub(super) async fn settled(&self) {
        if let Some(log) = &self.log {
            log.settled().await;
        }
    }

    pub(super) async fn close(&mut self) {
        if let Some(log) = self.log.take() {
            close(log).await;
        }
    }
}

/// Seeded by `SEED`, else by the clock; says so where a failed test shows it.
pub(super) fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock);
    println!("SEED={seed}");
    seed
}

/// Random numbers (xorshift64*).
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n
    }
}

/// All that must be in, in an order that makes it meet, and then `more` steps at random.
pub(super) fn workload(rng: &mut Rng, more: usize) -> Vec<Step> {
    let mut steps = vec![
        Step::Append(vec![10]),
        Step::Append(vec![0, 100, 700]),
        Step::Vote,
        Step::Append(vec![1500, 1500]),
        Step::Append(vec![900]),
        Step::Commit,
        // Needs a segment of its own size.
        Step::Append(vec![6000]),
        Step::Append(vec![50, 50, 50]),
        Step::Truncate(2),
        Step::Append(vec![300]),
        Step::Reopen,
        // Rolls in the middle.
        Step::Append(vec![2000, 2000, 2000]),
        Step::Vote,
        // Back over segments.
        Step::Truncate(4),
        Step::Append(vec![1000]),
        Step::Append(vec![1000, 1000, 1000]),
        Step::Purge(3),
        Step::Append(vec![10]),
        // Into segments used before.
        Step::Append(vec![3000]),
        Step::Append(vec![3000]),
        Step::Commit,
        Step::Append(vec![3900]),
        Step::Purge(0),
        Step::Reopen,
        Step::Append(vec![700, 700]),
        Step::Truncate(1),
        Step::Reopen,
    ];
    steps.extend((0..more).map(|_| match rng.below(12) {
        0 => Step::Truncate(1 + rng.below(5) as u64),
        1 => Step::Purge(rng.below(5) as u64),
        2 => Step::Vote,
        3 => Step::Commit,
        4 => Step::Reopen,
        _ => Step::Append((0..1 + rng.below(3)).map(|_| rng.below(2500)).collect()),
    }));
    steps
}
