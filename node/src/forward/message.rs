//! The bytes of what a node asks of the leader for its writers, and of the answers. Little-endian.
//!
//! ```text
//! request                                             answer
//!   0 u8 kind, u8 version 1, u8 flags, 5 × 0            0 u8 kind, u8 code, 6 × 0
//!   8 u64 database                                      1 Leased   8 u64 token · 16 u64 term · 24 u64 head
//!   1 Acquire  16 u64 session · 24 u64 ticket           2 Refused  code of the refusal · 8 message, UTF-8
//!              32 u64 life · 40 u32 wait in ms          3 Done     8 u64 index, or 0
//!              44 u32 attempts before
//!   2 Propose  16 u64 token · 24 an entry               4 Unknown  8 message
//!   3 Release  flags 1: linger · 16 u64 token           5 NotLeader
//!   4 Settle   16 u64 token · 24 u64 life · 32 [u8;16] transaction
//! ```
//!
//! The kinds are below any byte that JSON begins with, which other requests of nodes are in (`peers.rs`), and below that
//! of SQL that is sent on ([`crate::sql::forward`]).

use crate::command::DbId;
use crate::core::lease::{Lease, SessionId};
use bytes::{BufMut, Bytes, BytesMut};
use quire_vfs::format::transaction::TxnId;
use quire_vfs::gate::proto::{Refusal, RefusalCode};

const VERSION: u8 = 1;
/// Bytes of a request before what is of its kind.
const HEAD: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Acquire { database: DbId, session: SessionId, ticket: u64, life: u64, wait_ms: u32, attempts: u32 },
    Propose { database: DbId, token: u64, command: Bytes },
    Release { database: DbId, token: u64, linger: bool },
    Settle { database: DbId, token: u64, life: u64, id: TxnId },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Leased(Lease),
    Refused(Refusal),
    Done(u64),
    Unknown(String),
    NotLeader,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<8>().map(|chunk| u64::from_le_bytes(*chunk))
}

impl Request {
    /// The bytes; of a Propose, those before its entry.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, flags, database, words) = match self {
            Request::Acquire { database, session, ticket, life, wait_ms, attempts } => {
                let both = u64::from(*wait_ms) | u64::from(*attempts) << 32;
                (1, 0, database, vec![*session, *ticket, *life, both])
            }
            Request::Propose { database, token, .. } => (2, 0, database, vec![*token]),
            Request::Release { database, token, linger } => (3, u8::from(*linger), database, vec![*token]),
            Request::Settle { database, token, life, .. } => (4, 0, database, vec![*token, *life]),
        };
        let mut out = BytesMut::with_capacity(64);
        out.put_slice(&[kind, VERSION, flags, 0, 0, 0, 0, 0]);
        out.put_u64_le(database.0);
        words.into_iter().for_each(|word| out.put_u64_le(word));
        if let Request::Settle { id, .. } = self {
            out.put_slice(&id.0);
        }
        out.freeze()
    }

    /// Reads one; the entry of a Propose stays where it is.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Request> {
        let [kind, VERSION, flags @ (0 | 1), 0, 0, 0, 0, 0] = *bytes.first_chunk::<8>()? else { return None };
        let database = DbId(word(bytes, 8)?);
        let word = |n: usize| word(bytes, HEAD + 8 * n);
        let (request, len) = match kind {
            1 => {
                let (session, ticket, life, both) = (word(0)?, word(1)?, word(2)?, word(3)?);
                let (wait_ms, attempts) = (both as u32, (both >> 32) as u32);
                (Request::Acquire { database, session, ticket, life, wait_ms, attempts }, 48)
            }
            2 => {
                let (token, command) = (word(0)?, bytes.slice(HEAD + 8..));
                (Request::Propose { database, token, command }, bytes.len())
            }
            3 => (Request::Release { database, token: word(0)?, linger: flags == 1 }, 24),
            4 => {
                let id = TxnId(*bytes.get(32..)?.first_chunk()?);
                (Request::Settle { database, token: word(0)?, life: word(1)?, id }, 48)
            }
            _ => return None,
        };
        (bytes.len() == len && (flags == 0 || kind == 3)).then_some(request)
    }

    pub(crate) fn database(&self) -> DbId {
        match self {
            Request::Acquire { database, .. }
            | Request::Propose { database, .. }
            | Request::Release { database, .. }
            | Request::Settle { database, .. } => *database,
        }
    }
}

impl Answer {
    pub(crate) fn refused(why: impl Into<String>) -> Answer {
        Answer::Refused(Refusal::new(RefusalCode::Unavailable, why))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        let mut head = |kind: u8, code: u8| out.put_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
        match self {
            Answer::Leased(lease) => {
                head(1, 0);
                [lease.token, lease.term, lease.head].into_iter().for_each(|word| out.put_u64_le(word));
            }
            Answer::Refused(refusal) => {
                head(2, refusal.code as u8);
                out.put_slice(refusal.message.as_bytes());
            }
            Answer::Done(index) => {
                head(3, 0);
                out.put_u64_le(*index);
            }
            Answer::Unknown(why) => {
                head(4, 0);
                out.put_slice(why.as_bytes());
            }
            Answer::NotLeader => head(5, 0),
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Answer> {
        let [kind, code, 0, 0, 0, 0, 0, 0] = *bytes.first_chunk::<8>()? else { return None };
        let text = || String::from_utf8_lossy(bytes.get(8..).unwrap_or_default()).into_owned();
        Some(match kind {
            1 => Answer::Leased(Lease {
                token: word(bytes, 8)?,
                term: word(bytes, 16)?,
                head: word(bytes, 24)?,
            }),
            2 => Answer::Refused(Refusal::new(RefusalCode::from_byte(code)?, text())),
            3 => Answer::Done(word(bytes, 8)?),
            4 => Answer::Unknown(text()),
            5 => Answer::NotLeader,
            _ => return None,
        })
    }
}

/// Whether a request of another node is one of these.
pub(crate) fn is_one(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|kind| *kind < 0x10)
}

/// Why bytes are no request: for the node that sent them.
pub(crate) fn why_not(bytes: &[u8]) -> String {
    match bytes.get(1) {
        Some(&found) if found != VERSION => format!(
            "version {found} of the writers' protocol is not spoken by this node, but version {VERSION}; run the same \
             version of Quire on all nodes"
        ),
        _ => "the request makes no sense to this node".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            any::<(u64, u64, u64, u64, u32, u32)>().prop_map(
                |(db, session, ticket, life, wait_ms, attempts)| {
                    Request::Acquire { database: DbId(db), session, ticket, life, wait_ms, attempts }
                }
            ),
            any::<(u64, u64, Vec<u8>)>().prop_map(|(db, token, command)| Request::Propose {
                database: DbId(db),
                token,
                command: command.into()
            }),
            any::<(u64, u64, bool)>().prop_map(|(db, token, linger)| Request::Release {
                database: DbId(db),
                token,
                linger
            }),
            any::<(u64, u64, u64, [u8; 16])>().prop_map(|(db, token, life, id)| Request::Settle {
                database: DbId(db),
                token,
                life,
                id: TxnId(id)
            }),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            any::<(u64, u64, u64)>().prop_map(|(token, term, head)| Answer::Leased(Lease {
                token,
                term,
                head
            })),
            (0u8..7, "\\PC{0,40}").prop_map(|(code, why)| {
                Answer::Refused(Refusal::new(RefusalCode::from_byte(code).unwrap(), why))
            }),
            any::<u64>().prop_map(Answer::Done),
            "\\PC{0,40}".prop_map(Answer::Unknown),
            Just(Answer::NotLeader),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in request(), cut in any::<proptest::sample::Index>()) {
            let mut bytes = request.encode().to_vec();
            if let Request::Propose { command, .. } = &request {
                bytes.extend_from_slice(command);
            }
            prop_assert!(is_one(&bytes));
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(Request::decode(&bytes), Some(request.clone()));
            if !matches!(request, Request::Propose { .. }) {
                prop_assert_eq!(Request::decode(&bytes.slice(..cut.index(bytes.len()))), None);
            }
        }

        #[test]
        fn answers_round_trip(answer in answer()) {
            prop_assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0u8..7) {
            let _ = Answer::decode(&bytes);
            let mut bytes = bytes;
            bytes.splice(0..0, [kind, 1, 0, 0, 0, 0, 0, 0]);
            let _ = Answer::decode(&bytes);
            let _ = Request::decode(&bytes.into());
        }
    }

    #[test]
    fn another_version_is_told_what_is_spoken_here() {
        let mut bytes = Request::Release { database: DbId(1), token: 2, linger: true }.encode().to_vec();
        bytes[1] = 2;
        assert_eq!(Request::decode(&bytes.clone().into()), None);
        let why = why_not(&bytes);
        assert!(why.contains("version 2 ") && why.contains("but version 1;"), "{why}");
        assert!(!why_not(&[9, VERSION]).contains("version") && !why_not(&[1]).contains("version"));
    }

    #[test]
    fn requests_in_json_are_none_of_these() {
        for json in ["\"Hello\"", "{\"Remove\":{}}", " {}"] {
            assert!(!is_one(json.as_bytes()), "{json}");
        }
    }
}
