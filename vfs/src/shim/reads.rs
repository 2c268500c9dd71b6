//! How new a read has to be, and what is to be asked of the node for that before a read transaction begins.
//!
//! | level | a read transaction sees |
//! |---|---|
//! | `local` | a committed state of this node's copy; nothing is asked |
//! | `session` | at least what the session's token names, and what this connection has committed |
//! | `bounded:T` | everything that was committed longer ago than T |
//! | `linearizable` | everything that was committed before it began |
//!
//! What the node has confirmed once holds for good, as a copy never goes back: a token is asked for once, and
//! `bounded` asks again only when the last confirmation has become too old. `linearizable` asks each time.
//! Sans-io: [`Reads`] says what to ask, and is told the answer and the time.

use crate::gate::proto::ReadGoal;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How new a read has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadLevel {
    /// Whatever this node has.
    #[default]
    Local,
    /// What the session has seen elsewhere.
    Session,
    /// No older than this.
    Bounded(Duration),
    /// Everything that was committed before.
    Linearizable,
}

impl FromStr for ReadLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<ReadLevel, String> {
        let lower = text.trim().to_ascii_lowercase();
        let bound = || {
            let time = lower.strip_prefix("bounded:")?.trim();
            let (digits, unit) = match (time.strip_suffix("ms"), time.strip_suffix('s')) {
                (Some(digits), _) => (digits, 1),
                (None, digits) => (digits?, 1000),
            };
            let ms = digits.trim_end().parse::<u32>().ok()?.checked_mul(unit)?;
            (ms > 0).then(|| ReadLevel::Bounded(Duration::from_millis(ms.into())))
        };
        match lower.as_str() {
            "local" => Ok(ReadLevel::Local),
            "session" => Ok(ReadLevel::Session),
            "linearizable" => Ok(ReadLevel::Linearizable),
            _ => bound().ok_or_else(|| {
                format!(
                    "{text:?} is no read level: there are local, session, linearizable, and bounded:TIME \
                     (bounded:500ms, bounded:2s)"
                )
            }),
        }
    }
}

impl fmt::Display for ReadLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadLevel::Local => f.write_str("local"),
            ReadLevel::Session => f.write_str("session"),
            ReadLevel::Linearizable => f.write_str("linearizable"),
            ReadLevel::Bounded(bound) => write!(f, "bounded:{}ms", bound.as_millis()),
        }
    }
}

/// A session's token, as `PRAGMA quire_index` gives it.
pub fn parse_token(text: &str) -> Result<u64, String> {
    let token = text.trim().parse();
    token.map_err(|_| format!("{text:?} is no token: it is the number that PRAGMA quire_index returned"))
}

/// What one connection wants of its reads, and what it knows to have.
#[derive(Debug, Default)]
pub struct Reads {
    level: ReadLevel,
    /// The newest position that the session has been told of.
    token: u64,
    /// Entries up to here are in this node's copy.
    seen: u64,
    /// Until then the last confirmation is new enough for the bound.
    fresh_until: Option<Instant>,
}

impl Reads {
    /// Reads of a level, and of a session that was somewhere else before.
    pub fn new(level: ReadLevel, token: u64) -> Reads {
        let mut reads = Reads { level, ..Reads::default() };
        reads.join_session(token);
        reads
    }

    /// The level.
    pub fn level(&self) -> ReadLevel {
        self.level
    }

    /// Sets the level, for transactions that begin from now on.
    pub fn set_level(&mut self, level: ReadLevel) {
        self.level = level;
        self.fresh_until = None;
    }

    /// The newest position that the session has been told of, or has written.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Takes over a session's token. Who passes one wants it to have an effect.
    pub fn join_session(&mut self, token: u64) {
        self.token = self.token.max(token);
        if token > 0 && self.level == ReadLevel::Local {
            self.level = ReadLevel::Session;
        }
    }

    /// This connection has committed: it is in this node's copy at once.
    pub fn committed(&mut self, index: u64) {
        self.token = self.token.max(index);
        self.seen = self.seen.max(index);
    }

    /// What to ask of the node before a read transaction begins.
    pub fn goals(&self, now: Instant) -> impl Iterator<Item = ReadGoal> + use<> {
        let token = (self.token > self.seen).then_some(ReadGoal::Index(self.token));
        let goals = match self.level {
            ReadLevel::Local => [None, None],
            ReadLevel::Session => [token, None],
            // Whatever a token names was committed.
            ReadLevel::Linearizable => [Some(ReadGoal::Newest), None],
            ReadLevel::Bounded(bound) => {
                let is_fresh = self.fresh_until.is_some_and(|until| now < until);
                [token, (!is_fresh).then_some(ReadGoal::Age(bound.as_millis() as u32))]
            }
        };
        goals.into_iter().flatten()
    }

    /// The node has reached a goal that was asked for at `asked`: everything up to `index`, and all that was
    /// committed `age` before its answer.
    pub fn reached(&mut self, goal: ReadGoal, asked: Instant, index: u64, age: Duration) {
        self.seen = self.seen.max(index);
        // The answer was made after the question, so counting from the question is on the safe side.
        if let (ReadGoal::Age(_), ReadLevel::Bounded(bound)) = (goal, self.level) {
            self.fresh_until = bound.checked_sub(age).map(|left| asked + left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goals(reads: &Reads, now: Instant) -> Vec<ReadGoal> {
        reads.goals(now).collect()
    }

    #[test]
    fn levels_are_read_and_shown() {
        for (text, shown) in [
            ("local", "local"),
            (" Session", "session"),
            ("LINEARIZABLE", "linearizable"),
            ("bounded:500ms", "bounded:500ms"),
            ("bounded: 2 s", "bounded:2000ms"),
        ] {
            assert_eq!(text.parse::<ReadLevel>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "strong",
            "bounded",
            "bounded:",
            "bounded:5",
            "bounded:0ms",
            "bounded:-1s",
            "bounded:4294968s",
        ] {
            let why = text.parse::<ReadLevel>().unwrap_err();
            assert!(why.contains("bounded:500ms"), "{why}");
        }
    }

    #[test]
    fn a_token_is_asked_for_once_and_own_commits_never() {
        let now = Instant::now();
        let mut reads = Reads::new(ReadLevel::Local, 0);
        reads.committed(5);
        assert_eq!(goals(&reads, now), []);
        reads.join_session(9);
        assert_eq!(reads.level(), ReadLevel::Session);
        assert_eq!(goals(&reads, now), [ReadGoal::Index(9)]);
        reads.reached(ReadGoal::Index(9), now, 12, Duration::ZERO);
        assert_eq!(goals(&reads, now), []);
        reads.join_session(11);
        assert_eq!((goals(&reads, now), reads.token()), (vec![], 11));
        reads.committed(20);
        assert_eq!((goals(&reads, now), reads.token()), (vec![], 20));
        reads.join_session(21);
        reads.set_level(ReadLevel::Local);
        assert_eq!(goals(&reads, now), []);
    }

    #[test]
    fn linearizable_asks_each_time_and_bounded_when_the_last_answer_is_too_old() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut reads = Reads::new(ReadLevel::Linearizable, 7);
        for _ in 0..2 {
            assert_eq!(goals(&reads, now), [ReadGoal::Newest]);
            reads.reached(ReadGoal::Newest, now, 3, Duration::ZERO);
        }
        reads.set_level(ReadLevel::Bounded(ms(500)));
        assert_eq!(goals(&reads, now), [ReadGoal::Index(7), ReadGoal::Age(500)]);
        reads.reached(ReadGoal::Index(7), now, 7, Duration::ZERO);
        reads.reached(ReadGoal::Age(500), now, 7, ms(200));
        assert_eq!(goals(&reads, now + ms(299)), []);
        assert_eq!(goals(&reads, now + ms(300)), [ReadGoal::Age(500)]);
        // An answer that is too old is as good as none.
        reads.reached(ReadGoal::Age(500), now, 7, ms(501));
        assert_eq!(goals(&reads, now), [ReadGoal::Age(500)]);
        // Another bound counts anew.
        reads.reached(ReadGoal::Age(500), now, 7, ms(0));
        reads.set_level(ReadLevel::Bounded(ms(5)));
        assert_eq!(goals(&reads, now), [ReadGoal::Age(5)]);
    }
}
