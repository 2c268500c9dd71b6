//! What became of a write when nobody says so: the leader that ran it died, or lost its quorum, before it answered.
//!
//! ```text
//! client ──► node ──── request, its number ────► leader: runs it, with others, in a transaction
//!            node ◄─── question: the transaction's id, the numbers, their results ─── leader
//!            node ──── consent ────────────────► leader: proposes the transaction
//!            node ◄─── answer ───────────────── leader
//! ```
//!
//! - Nothing is proposed to which a node with requests in it has not consented. If one doesn't, the others are run
//!   again without its requests.
//! - A node that gets no answer first ends its consent: from then on it says no for that request. If it never said yes,
//!   the request was not done, nor will be, and it may be sent again. If it did, it knows the ids of the transactions: the
//!   log tells which of them counts ([`crate::api::outcome`]), and the results are known, too.
//!
//! So a write is done at most once, and it is unknown only where no leader comes in time, or this node lacks the entries that
//! tell. A node asks itself in the same way for what came to it as the leader.

use super::forward::{Question, decode_consent, encode_consent};
use super::request::Request;
use super::run::is_single;
use super::words::needs_a_connection;
use crate::api::outcome::{self, Came};
use crate::command::DbId;
use crate::node::Node;
use bytes::Bytes;
use futures_util::future::join_all;
use quire_raft::NodeId;
use quire_vfs::format::transaction::TxnId;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// A node whose consent doesn't come within this time has given none. All in the transaction wait for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at the log.
const PAUSE: Duration = Duration::from_millis(50);
/// Stands for the index in results that are written before there is one.
pub(super) const INDEX_TO_COME: u64 = u64::MAX;
/// Results of a request that are longer don't go along with the question.
pub(super) const MAX_RESULTS: usize = 4 << 10;

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The node that it came to.
    pub node: NodeId,
    /// What it is known by there.
    pub number: u64,
}

/// The requests that this node waits for.
#[derive(Debug)]
pub struct Sent {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Record>>,
}

#[derive(Debug)]
struct Record {
    /// Who runs it, and so may ask.
    leader: NodeId,
    agreed: Agreed,
}

/// What a node has consented to for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The transactions; there are several where the leader had to try again, or the request is several.
    pub transactions: Vec<TxnId>,
    /// What it is answered if the last one commits.
    pub results: Option<Bytes>,
}

impl Sent {
    /// Numbers begin anywhere, so that those of an earlier life of this node mean nothing.
    pub fn new() -> std::io::Result<Sent> {
        let mut start = [0; 8];
        getrandom::fill(&mut start).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Sent { last: AtomicU64::new(u64::from_le_bytes(start)), open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Record>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request goes to the leader.
    pub fn wait(self: &Arc<Self>, leader: NodeId) -> Waiting {
        let number = self.last.fetch_add(1, Relaxed);
        self.open().insert(number, Record { leader, agreed: Agreed::default() });
        Waiting { sent: self.clone(), number }
    }

    /// Consents to a transaction that the leader is about to propose; returns the numbers of those that are no longer
    /// waited for.
    pub fn consent(&self, leader: NodeId, question: Question) -> Vec<u64> {
        let Question { id, requests } = question;
        let mut open = self.open();
        let mut consent = |(number, results)| {
            let Some(record) = open.get_mut(&number).filter(|record| record.leader == leader) else {
                return Some(number);
            };
            record.agreed.transactions.push(id);
            record.agreed.results = results;
            None
        };
        requests.into_iter().filter_map(&mut consent).collect()
    }

    /// The same, in bytes.
    pub fn consent_bytes(&self, leader: NodeId, question: &Bytes) -> Bytes {
        Question::decode(question)
            .map_or_else(Bytes::new, |question| encode_consent(&self.consent(leader, question)))
    }
}

/// A request that this node waits for; it consents to nothing more when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    sent: Arc<Sent>,
    /// What it is known by.
    pub number: u64,
}

impl Waiting {
    /// What has been consented to; there will be no more.
    pub fn end(self) -> Agreed {
        self.sent.open().remove(&self.number).map(|record| record.agreed).unwrap_or_default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.sent.open().remove(&self.number);
    }
}

/// Asks the nodes that wait for requests before the transaction with these is proposed; returns those that nobody waits for.
/// Blocks.
pub(super) fn ask(
    node: &Arc<Node>,
    (runtime, sent): (&Handle, &Sent),
    id: TxnId,
    requests: &[(Origin, Option<Bytes>)],
) -> Vec<Origin> {
    let mut by_node: BTreeMap<NodeId, Vec<(u64, Option<Bytes>)>> = BTreeMap::new();
    for (origin, results) in requests {
        by_node.entry(origin.node).or_default().push((origin.number, results.clone()));
    }
    let own = by_node.remove(&node.id()).map(|requests| sent.consent(node.id(), Question { id, requests }));
    let of = |node: NodeId| move |number| Origin { node, number };
    let mut without: Vec<_> = own.into_iter().flatten().map(of(node.id())).collect();
    if by_node.is_empty() {
        return without;
    }
    let asked = by_node.into_iter().map(async |(to, requests)| {
        let all: Vec<_> = requests.iter().map(|(number, _)| *number).collect();
        let answer = node.raft().request(to, Question { id, requests }.encode(), PATIENCE).await;
        let without = answer.ok().and_then(|answer| decode_consent(&answer)).unwrap_or(all);
        without.into_iter().map(of(to)).collect::<Vec<_>>()
    });
    without.extend(runtime.block_on(join_all(asked)).into_iter().flatten());
    without
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was done, at this index; the results, if they are known.
    Done(u64, Option<Bytes>),
    /// Something of it was done, at this index.
    InPart(u64),
    /// It wasn't done, nor will be.
    NotDone,
    /// It can't be told.
    Unknown(String),
}

/// What is needed to look for a request in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The database; `None` if this node didn't know it when it sent the request.
    pub database: Option<DbId>,
    /// What this node had of the log before it sent the request.
    pub since: u64,
}

/// Looks in the log, until this is certain.
pub(super) async fn fate(
    node: &Arc<Node>,
    place: Place,
    request: &Request,
    agreed: Agreed,
    deadline: Instant,
) -> Fate {
    let Agreed { transactions, results } = agreed;
    let Some(database) = place.database.filter(|_| !transactions.is_empty()) else {
        return if transactions.is_empty() {
            Fate::NotDone
        } else {
            Fate::Unknown("this node doesn't know the database yet".into())
        };
    };
    let last = transactions.last().copied();
    for id in transactions {
        loop {
            let looked = outcome::came(node, database, id, place.since);
            let doubt = match tokio::time::timeout_at(deadline.into(), looked).await {
                Ok(Came::Committed(index)) if is_one_transaction(request) => {
                    return Fate::Done(index, results.filter(|_| last == Some(id)));
                }
                Ok(Came::Committed(index)) => return Fate::InPart(index),
                Ok(Came::Nothing) => break,
                Ok(Came::Unknown(why)) => why,
                Err(_) => "no leader has told in time".into(),
            };
            if Instant::now() + PAUSE >= deadline {
                return Fate::Unknown(doubt);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Fate::NotDone
}

/// Whether a request can't be committed in parts.
fn is_one_transaction(request: &Request) -> bool {
    let has_own = request.statements.iter().any(|statement| needs_a_connection(&statement.sql));
    request.transaction || !has_own || matches!(&request.statements[..], [one] if is_single(&one.sql))
}

/// Results that were written before there was an index, with it. It is the last that stands in them.
pub(super) fn with_index(results: Bytes, index: u64) -> Bytes {
    let text = String::from_utf8_lossy(&results);
    match text.rsplit_once(&INDEX_TO_COME.to_string()) {
        Some((before, after)) if before.trim_end().ends_with("\"raft_index\":") => {
            format!("{before}{index}{after}").into()
        }
        _ => results,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::request::{Kind, parse_json};

    fn question(id: u8, numbers: &[u64]) -> Question {
        let requests = numbers.iter().map(|number| (*number, Some(Bytes::from(vec![id])))).collect();
        Question { id: TxnId([id; 16]), requests }
    }

    #[test]
    fn a_node_says_no_once_it_has_stopped_waiting() {
        let sent = Arc::new(Sent::new().unwrap());
        let (one, two) = (sent.wait(7), sent.wait(7));
        let numbers = [one.number, two.number];
        assert!(sent.consent(7, question(1, &numbers)).is_empty());
        assert_eq!(sent.consent(8, question(2, &numbers)), numbers, "not the node that it was sent to");
        assert!(sent.consent(7, question(3, &numbers[1..])).is_empty());
        let agreed = |ids: &[u8]| Agreed {
            transactions: ids.iter().map(|id| TxnId([*id; 16])).collect(),
            results: ids.last().map(|id| Bytes::from(vec![*id])),
        };
        assert_eq!(one.end(), agreed(&[1]));
        assert_eq!(sent.consent(7, question(4, &numbers)), numbers[..1], "its fate is being decided");
        assert_eq!(two.end(), agreed(&[1, 3, 4]));
        assert_eq!(sent.consent(7, question(5, &numbers)), numbers);
        let never = sent.wait(7);
        assert_eq!(never.end(), agreed(&[]));
        drop(sent.wait(7));
        assert!(sent.open().is_empty());
        assert_ne!(
            Arc::new(Sent::new().unwrap()).wait(7).number,
            numbers[0],
            "a later life has other numbers"
        );
    }

    #[test]
    fn results_get_their_index() {
        let with = |text: &str| with_index(Bytes::copy_from_slice(text.as_bytes()), 17);
        let compact = r#"{"results":[{}],"raft_index":18446744073709551615}"#;
        assert_eq!(with(compact), r#"{"results":[{}],"raft_index":17}"#);
        assert_eq!(with("{\n    \"raft_index\": 18446744073709551615\n}"), "{\n    \"raft_index\": 17\n}");
        for other in [
            r#"{"results":[{"rows_affected":10}]}"#,
            r#"{"results":[{"error":"18446744073709551615"}]}"#,
            "{}",
        ] {
            assert_eq!(with(other), other);
        }
    }

    #[test]
    fn what_may_be_committed_in_parts() {
        let request = |body: &str, transaction| Request {
            kind: Kind::Execute,
            statements: parse_json(body.as_bytes()).unwrap(),
            transaction,
            output: Default::default(),
            db_timeout: None,
        };
        assert!(is_one_transaction(&request(
            r#"["INSERT INTO t VALUES(1)","INSERT INTO t VALUES(2)"]"#,
            false
        )));
        assert!(is_one_transaction(&request(r#"["PRAGMA user_version=1"]"#, false)));
        let two = r#"["PRAGMA user_version=1","INSERT INTO t VALUES(2)"]"#;
        assert!(is_one_transaction(&request(two, true)) && !is_one_transaction(&request(two, false)));
        assert!(!is_one_transaction(&request(r#"["PRAGMA user_version=1; DELETE FROM t"]"#, false)));
    }
}
