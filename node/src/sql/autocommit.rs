//! What a text of SQL comes to that runs without a transaction around it: each of its statements is committed by itself.

use super::gates::Said;
use super::run::Failure;
use super::writer::WriteError;
use quire_vfs::gate::proto::{Outcome, Refusal, RefusalCode};
use rusqlite::ErrorCode;

/// What it came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It has its result, which may be an error of its own.
    Done(Option<u64>),
    /// Of its statements, some are committed, the last at this index, and then one failed.
    InPart(u64, String),
    /// It had no effect, but perhaps another time.
    Nothing(String),
    /// It has no result.
    Failed(WriteError),
}

/// Each statement of a text is committed by itself. Once one is, the text must not be run again, and it is never said
/// that nothing was changed.
pub(super) fn settle(ran: Result<(), Failure>, said: Said, is_single: bool) -> Ran {
    let Said { refusal, outcome, committed } = said;
    if let Some(Outcome::Unknown(why)) = outcome {
        return Ran::Failed(WriteError::Unknown(why));
    }
    let Err(failure) = ran else { return Ran::Done(committed) };
    match committed {
        Some(index) if is_single => {
            return Ran::Failed(WriteError::Unknown(unshown(index, &failure.message)));
        }
        Some(index) => {
            let why = match outcome {
                Some(Outcome::Refused(why)) => why,
                _ => refusal.map_or(failure.message, |refusal| refusal.message),
            };
            return Ran::InPart(
                index,
                format!("{why}; what this text did before is committed, up to index {index}"),
            );
        }
        None => {}
    }
    let is_busy = failure.code == Some(ErrorCode::DatabaseBusy);
    match (outcome, refusal) {
        (Some(Outcome::Refused(why)), _) => Ran::Nothing(why),
        (None, Some(Refusal { code: RefusalCode::NotLeader, message })) if is_busy => {
            Ran::Failed(WriteError::NotLeader(message))
        }
        (None, Some(refusal)) if is_busy => Ran::Nothing(refusal.message),
        (None, None) if is_busy => Ran::Nothing(failure.message),
        _ => Ran::Done(None),
    }
}

/// A commit that SQLite could not publish here.
pub(super) fn unshown(index: u64, error: &str) -> String {
    format!("it is committed at index {index}, but this node can't show it: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(message: &str) -> Result<(), Failure> {
        let mut failure = Failure::of(message);
        failure.code = Some(ErrorCode::DatabaseBusy);
        Err(failure)
    }

    fn not_leader() -> Option<Refusal> {
        Some(Refusal::new(RefusalCode::NotLeader, "node 1 does not lead"))
    }

    #[test]
    fn a_text_of_which_a_part_is_committed_is_neither_run_again_nor_denied() {
        let refused = || Some(Outcome::Refused("the leader has changed".into()));
        let in_part = |said: Said, why: &str| {
            let Ran::InPart(7, told) = settle(busy("database is locked"), said, false) else {
                panic!("{why}");
            };
            assert!(told.contains(why) && told.contains("is committed, up to index 7"), "{told}");
        };
        let committed = Some(7);
        in_part(Said { refusal: None, outcome: refused(), committed }, "the leader has changed");
        let outcome = || Some(Outcome::Committed(7));
        in_part(Said { refusal: not_leader(), outcome: outcome(), committed }, "does not lead");
        in_part(Said { refusal: None, outcome: outcome(), committed }, "database is locked");
        // One statement that is committed, but can't be shown.
        let said = Said { refusal: None, outcome: outcome(), committed };
        assert!(matches!(settle(busy("x"), said, true), Ran::Failed(WriteError::Unknown(_))));
        let outcome = Some(Outcome::Unknown("gone".into()));
        let said = Said { refusal: None, outcome, committed };
        assert_eq!(settle(busy("x"), said, false), Ran::Failed(WriteError::Unknown("gone".into())));
        // Nothing is committed: again, here or elsewhere.
        let said = Said { refusal: None, outcome: refused(), committed: None };
        assert_eq!(settle(busy("x"), said, false), Ran::Nothing("the leader has changed".into()));
        let said = Said { refusal: not_leader(), outcome: None, committed: None };
        let expected = Ran::Failed(WriteError::NotLeader("node 1 does not lead".into()));
        assert_eq!(settle(busy("x"), said, false), expected);
        assert_eq!(settle(busy("x"), Said::default(), true), Ran::Nothing("x".into()));
        assert_eq!(settle(Err(Failure::of("its own")), Said::default(), true), Ran::Done(None));
        let said = Said { refusal: None, outcome: Some(Outcome::Committed(7)), committed };
        assert_eq!(settle(Ok(()), said, false), Ran::Done(committed));
    }
}
