//! Runs: large transactions, which come as several entries. Parts with the sequences 0, 1, 2 … are closed by a
//! last part, an ordinary transaction's entry that says what must have come before it. Only that entry changes
//! the database; before it, the parts are nothing.
//!
//! A database has at most one run open. It counts only if it is unbroken:
//! - every part has the run's id, base, lease term and database size, and the sequence that is next;
//! - every part was appended in the term of its lease, while its base was the database's last entry (the commit
//!   rule, [`super::rule`], asked for each part as for a transaction);
//! - pages ascend from part to part, so that each occurs once.
//!
//! An open run is *void* as soon as one of its own parts breaks that, another transaction is applied, another
//! run begins, an entry of a new term has committed, or it is declared void. A last part whose run is void or
//! lacks something is skipped, everywhere: its transaction is definitely refused. Parts that belong to no open
//! run are nothing.
//!
//! Every node sees the same entries in the same order and comes to the same answers; also one that reads the log
//! again, if it begins no later than at the first part of a run that is open. Its database's durable entry is
//! the run's base at the latest, so that is before it.

use super::rule::{Candidate, Verdict};
use quire_vfs::format::PageNo;
use quire_vfs::format::transaction::{Before, TxnId};

/// A part, as far as the rule asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The transaction.
    pub id: TxnId,
    /// Its place in it.
    pub sequence: u32,
    /// The base that it names.
    pub base: u64,
    /// The term of the lease that it names.
    pub lease_term: u64,
    /// Size of the database after the transaction, in pages.
    pub db_size: u32,
    /// Number of its pages, fills included.
    pub pages: u32,
    /// How many of them are fills.
    pub fills: u32,
    /// Its first page.
    pub first: PageNo,
    /// Its last page.
    pub last: PageNo,
}

/// What the last part says of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// The transaction.
    pub id: TxnId,
    /// What must have come before it.
    pub before: Before,
    /// Size of the database after the transaction, in pages.
    pub db_size: u32,
    /// Its own first page.
    pub first: PageNo,
}

/// An open run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The transaction.
    pub id: TxnId,
    /// The parts so far.
    pub before: Before,
    base: u64,
    lease_term: u64,
    db_size: u32,
    last: PageNo,
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It begins a run; one that was open is void.
    Begun,
    /// It continues the open run.
    Continued,
    /// It is nothing.
    Skipped(&'static str),
}

/// The runs of one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    open: Option<Run>,
}

impl Run {
    fn begin(part: &Part) -> Run {
        Run {
            id: part.id,
            before: Before { parts: 1, pages: part.pages, fills: part.fills },
            base: part.base,
            lease_term: part.lease_term,
            db_size: part.db_size,
            last: part.last,
        }
    }

    /// Takes the next part. False if it isn't that.
    fn take(&mut self, part: &Part) -> bool {
        let is_same =
            (part.base, part.lease_term, part.db_size) == (self.base, self.lease_term, self.db_size);
        if !is_same || part.sequence != self.before.parts || part.first <= self.last {
            return false;
        }
        // No overflow: pages ascend and are all within the database's size.
        self.before.parts += 1;
        self.before.pages += part.pages;
        self.before.fills += part.fills;
        self.last = part.last;
        true
    }
}

impl Runs {
    /// The open run.
    pub fn open(&self) -> Option<&Run> {
        self.open.as_ref()
    }

    /// Takes the next part in log order; `verdict` is the commit rule's on it.
    pub fn part(&mut self, verdict: Verdict, part: &Part) -> Taken {
        match verdict {
            Verdict::Apply => {}
            Verdict::Known => return Taken::Skipped("it is known already"),
            Verdict::LateTerm => return Taken::Skipped("the leader changed after it was written"),
            _ => return Taken::Skipped("it was written on another state of the database"),
        }
        if part.sequence == 0 {
            self.open = Some(Run::begin(part));
            return Taken::Begun;
        }
        match &mut self.open {
            Some(run) if run.id == part.id => {
                if run.take(part) {
                    return Taken::Continued;
                }
                self.open = None;
                Taken::Skipped("it does not continue the parts before it")
            }
            _ => Taken::Skipped("the parts before it are void"),
        }
    }

    /// Whether all that must come before a last part is there. The commit rule has let it through.
    pub fn is_complete(&self, entry: &Candidate, last: &Last) -> bool {
        self.open.is_some_and(|run| {
            (run.id, run.before, run.db_size) == (last.id, last.before, last.db_size)
                && (run.base, run.lease_term) == (entry.base, entry.lease_term)
                && run.last < last.first
        })
    }

    /// The database's last entry is `last` now: a transaction was applied, of the open run or another. A run that
    /// was written on another entry is void.
    pub fn moved_to(&mut self, last: u64) {
        self.open = self.open.filter(|run| run.base == last);
    }

    /// An entry of this term has committed.
    pub fn new_term(&mut self, term: u64) {
        self.open = self.open.filter(|run| run.lease_term >= term);
    }

    /// No more of this transaction will come.
    pub fn void(&mut self, id: TxnId) {
        self.open = self.open.filter(|run| run.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rule::CommitRule;
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Entry {
        Part(Part),
        Last { last: Last, base: u64, lease_term: u64 },
        Whole { base: u64, lease_term: u64 },
        Void(TxnId),
        Other,
    }

    /// A database as it takes entries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Db {
        rule: CommitRule,
        runs: Runs,
        term: u64,
        /// Index and id of the last large transaction that was applied.
        large: Option<(u64, TxnId)>,
    }

    impl Db {
        fn new(last: u64) -> Db {
            Db { rule: CommitRule::new(last), runs: Runs::default(), term: 0, large: None }
        }

        fn take(&mut self, index: u64, term: u64, entry: &Entry) {
            if term > self.term {
                self.term = term;
                self.runs.new_term(term);
            }
            match entry {
                Entry::Part(part) => {
                    let candidate = Candidate { index, term, base: part.base, lease_term: part.lease_term };
                    self.runs.part(self.rule.judge(&candidate), part);
                }
                Entry::Last { last, base, lease_term } => {
                    let candidate = Candidate { index, term, base: *base, lease_term: *lease_term };
                    if self.rule.judge(&candidate) == Verdict::Apply
                        && self.runs.is_complete(&candidate, last)
                    {
                        self.rule.applied(index);
                        self.runs.moved_to(index);
                        self.large = Some((index, last.id));
                    }
                }
                Entry::Whole { base, lease_term } => {
                    let candidate = Candidate { index, term, base: *base, lease_term: *lease_term };
                    if self.rule.judge(&candidate) == Verdict::Apply {
                        self.rule.applied(index);
                        self.runs.moved_to(index);
                    }
                }
                Entry::Void(id) => self.runs.void(*id),
                Entry::Other => {}
            }
        }
    }

    fn id(n: u8) -> TxnId {
        TxnId([n; 16])
    }

    /// A log as writers make it, with accidents: what (0 to 9), whose, and how wrong. Most entries continue what
    /// the log's own state suggests, so that runs do get long and complete.
    fn log(steps: &[(u8, u8, u8)]) -> (Vec<(u64, Entry)>, Vec<Db>) {
        let mut db = Db::new(0);
        let (mut entries, mut states, mut term) = (vec![], vec![db], 1);
        for (n, &(what, who, wrong)) in steps.iter().enumerate() {
            let index = n as u64 + 1;
            let slip = |this: u8| u64::from(wrong == this);
            let base = db.rule.last().saturating_sub(slip(1));
            let lease_term = term - slip(2).min(term);
            let run = db.runs.open().copied().filter(|_| wrong != 3);
            let before = run.map_or(Before::default(), |run| run.before);
            let first = PageNo(run.map_or(1, |run| run.last.0 + 1) - slip(4) as u32);
            let db_size = 1000 + slip(5) as u32;
            let id = match run {
                Some(run) if wrong != 6 => run.id,
                _ => id(who),
            };
            let entry = match what {
                0..=4 => Entry::Part(Part {
                    id,
                    sequence: before.parts + slip(7) as u32,
                    base,
                    lease_term,
                    db_size,
                    pages: 2,
                    fills: u32::from(who),
                    first,
                    last: PageNo(first.0 + 3),
                }),
                5 | 6 => Entry::Last { last: Last { id, before, db_size, first }, base, lease_term },
                7 => Entry::Whole { base, lease_term },
                8 => Entry::Void(id),
                _ => {
                    term += 1;
                    Entry::Other
                }
            };
            db.take(index, term, &entry);
            entries.push((term, entry));
            states.push(db);
        }
        (entries, states)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// A node that starts from the database as it was at any time, and reads the log again from any place
        /// up to there that is not behind the first part of a run that was open, ends where one that never
        /// stopped ends.
        #[test]
        fn replay_from_anywhere_ends_in_the_same_state(
            steps in proptest::collection::vec((0u8..10, 0u8..3, 0u8..24), 0..60),
            at in any::<proptest::sample::Index>(),
            from in any::<proptest::sample::Index>(),
        ) {
            let (entries, states) = log(&steps);
            let at = at.index(states.len());
            // Entries up to the run's base at the latest are durable where a run is open.
            let bound = if states[at].runs.open().is_some() { states[at].rule.last() as usize } else { at };
            let from = from.index(bound + 1);
            let mut again = Db { large: states[at].large, ..Db::new(states[at].rule.last()) };
            for (n, (term, entry)) in entries.iter().enumerate().skip(from) {
                again.take(n as u64 + 1, *term, entry);
            }
            let never_stopped = states.last().unwrap();
            again.term = never_stopped.term; // Without entries there is no term to be seen.
            prop_assert_eq!(&again, never_stopped);
        }

        /// What is applied is whole: exactly the parts that its last part names, in order, of one lease, on one
        /// base, with nothing applied and no new term in between.
        #[test]
        fn only_unbroken_runs_are_applied(
            steps in proptest::collection::vec((0u8..10, 0u8..3, 0u8..40), 0..60),
        ) {
            let (entries, states) = log(&steps);
            for (n, (term, entry)) in entries.iter().enumerate() {
                let Entry::Last { last, base, lease_term } = entry else { continue };
                if states[n + 1].large == states[n].large { continue; }
                prop_assert!(last.before.parts > 0 && term == lease_term);
                let mut wanted = last.before.parts;
                let mut pages = last.before.pages;
                let mut next = last.first;
                for (back, (term, entry)) in entries[..n].iter().enumerate().rev() {
                    if wanted == 0 { break; }
                    prop_assert!(back as u64 >= *base, "reaches back beyond its base");
                    let Entry::Part(part) = entry else { continue };
                    // A part that the commit rule skipped is nothing, whatever it says.
                    if part.id != last.id || part.base != *base || term != &part.lease_term { continue; }
                    if part.sequence + 1 != wanted { continue; }
                    prop_assert!(part.last < next);
                    prop_assert_eq!((part.lease_term, part.db_size), (*lease_term, last.db_size));
                    wanted -= 1;
                    pages -= part.pages;
                    next = part.first;
                }
                prop_assert_eq!((wanted, pages), (0, 0));
            }
        }
    }

    /// The generator above does make runs that count.
    #[test]
    fn logs_have_large_transactions() {
        let (_, states) =
            log(&[(0, 1, 20), (1, 2, 20), (8, 0, 6), (2, 0, 20), (5, 1, 20), (0, 1, 20), (9, 1, 20)]);
        let last = states.last().unwrap();
        assert_eq!((last.large, last.rule.last(), last.runs.open()), (Some((5, id(1))), 5, None));
        assert_eq!(states[6].runs.open().map(|run| run.before.parts), Some(1));
    }

    fn part(id: TxnId, sequence: u32, first: u32) -> Part {
        Part {
            id,
            sequence,
            base: 7,
            lease_term: 3,
            db_size: 100,
            pages: 2,
            fills: 1,
            first: PageNo(first),
            last: PageNo(first + 4),
        }
    }

    #[test]
    fn a_run_case_by_case() {
        let entry = Candidate { index: 12, term: 3, base: 7, lease_term: 3 };
        let mut runs = Runs::default();
        assert_eq!(
            runs.part(Verdict::Apply, &part(id(1), 1, 5)),
            Taken::Skipped("the parts before it are void")
        );
        assert_eq!(runs.part(Verdict::Apply, &part(id(1), 0, 5)), Taken::Begun);
        assert_eq!(runs.part(Verdict::Apply, &part(id(1), 1, 10)), Taken::Continued);
        // What belongs to nobody, or is late, harms nobody.
        assert!(matches!(runs.part(Verdict::Apply, &part(id(2), 4, 50)), Taken::Skipped(_)));
        assert!(matches!(runs.part(Verdict::LateTerm, &part(id(2), 0, 50)), Taken::Skipped(_)));
        runs.void(id(2));
        runs.new_term(3);
        runs.moved_to(7);
        let last = Last {
            id: id(1),
            before: Before { parts: 2, pages: 4, fills: 2 },
            db_size: 100,
            first: PageNo(15),
        };
        assert!(runs.is_complete(&entry, &last));
        for wrong in [
            Last { id: id(2), ..last },
            Last { before: Before { parts: 1, ..last.before }, ..last },
            Last { before: Before { pages: 5, ..last.before }, ..last },
            Last { before: Before { fills: 0, ..last.before }, ..last },
            Last { db_size: 99, ..last },
            Last { first: PageNo(14), ..last },
        ] {
            assert!(!runs.is_complete(&entry, &wrong), "{wrong:?}");
        }
        assert!(!runs.is_complete(&Candidate { lease_term: 4, term: 4, ..entry }, &last));

        for end in [
            |runs: &mut Runs| runs.moved_to(8),
            |runs: &mut Runs| runs.new_term(4),
            |runs: &mut Runs| runs.void(id(1)),
        ] {
            let mut runs = runs;
            end(&mut runs);
            assert_eq!(runs.open(), None);
            assert!(!runs.is_complete(&entry, &last));
        }
        for broken in [
            part(id(1), 1, 10),
            part(id(1), 3, 15),
            part(id(1), 2, 14),
            Part { base: 6, ..part(id(1), 2, 15) },
            Part { lease_term: 2, ..part(id(1), 2, 15) },
            Part { db_size: 99, ..part(id(1), 2, 15) },
        ] {
            let mut runs = runs;
            assert!(matches!(runs.part(Verdict::Apply, &broken), Taken::Skipped(_)), "{broken:?}");
            assert_eq!(runs.open(), None, "{broken:?}");
        }
        assert_eq!(runs.part(Verdict::Apply, &part(id(2), 0, 1)), Taken::Begun, "another takes its place");
        assert!(!runs.is_complete(&entry, &last));
    }
}
