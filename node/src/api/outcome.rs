//! `/outcome`: what became of a transaction, by its id. Asked of any node, which first makes sure that it has
//! everything that was proposed before the question.

use super::{NodeState, Params, body, error};
use crate::command::DbId;
use crate::core::head::Fate;
use crate::forward;
use crate::node::Node;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use quire_vfs::format::transaction::TxnId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long the cluster may take to give certainty.
const CERTAINTY: Duration = Duration::from_secs(10);
const WITHOUT_EFFECT: &str =
    "it is in the log without effect: another transaction came first, or the leader had changed";

const LACKING: &str =
    "it is in the log, but this node lacks entries that tell whether it counts; ask another node";
const NOTHING: &str = "this node has read none of the database's transactions since its start; give the entry that it \
     was written on (base), or ask another node";
const DROPPED: &str = "the database was dropped meanwhile, and with it what was known of its transactions";
const TOO_OLD: &str = "this node doesn't remember all transactions that came after the entry that it was written on; \
     ask another node";

/// Looks a transaction up.
pub(super) async fn get(State(node): NodeState, params: Params) -> Response {
    let Some(id) = params.get("id").and_then(TxnId::parse) else {
        let why = "id=ID is missing, or is not 32 hexadecimal digits: the id stands in the app's log line";
        return error(StatusCode::BAD_REQUEST, why);
    };
    let base = match params.get("base").map(str::parse).transpose() {
        Ok(base) => base,
        Err(_) => {
            return error(StatusCode::BAD_REQUEST, "base=N is no number: it stands in the app's log line");
        }
    };
    let all = node.registry().ids();
    let only = match params.get("db") {
        None => all.first().copied().filter(|_| all.len() == 1),
        Some(name) => match node.registry().id_of(name) {
            Some(database) => Some(database),
            None => return error(StatusCode::NOT_FOUND, &format!("there is no database {name}")),
        },
    };
    body(&find(&node, only, id, base).await, params.flag("pretty"))
}

/// Looks a transaction up in all databases or in `only` one; `base` is the entry that it was written on, if that is known.
pub(crate) async fn find(node: &Arc<Node>, only: Option<DbId>, id: TxnId, base: Option<u64>) -> Value {
    let look = || {
        let seen = node.registry().fates(id, base, only).into_iter();
        look_up(id, seen.map(|(db, fate, reaches)| Seen { db, fate, reaches }))
    };
    if let Ok(found) = look() {
        return found;
    }
    // Not there: to be sure, this node must have all that was proposed before now.
    let doubt = match only {
        Some(database) => match tokio::time::timeout(CERTAINTY, certainty(node, database, id)).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some("the cluster did not answer in time".into()),
        },
        None if node.registry().ids().is_empty() => None,
        None => Some("it is not in this node's log so far; name its database (db) for certainty".into()),
    };
    look().unwrap_or_else(|absent| {
        // Looked at after it was looked for in there.
        let is_gone = only.is_some_and(|database| !node.registry().contains(database));
        absent.tell(doubt.or(is_gone.then(|| DROPPED.to_owned())))
    })
}

/// What became of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// It is committed, at this index.
    Committed(u64),
    /// It has no effect, nor will have.
    Nothing,
    /// It can't be told yet, or not by this node.
    Unknown(String),
}

/// Looks a transaction up that was proposed when this node had the log up to `since`.
pub(crate) async fn came(node: &Arc<Node>, database: DbId, id: TxnId, since: u64) -> Came {
    let found = find(node, Some(database), id, Some(since)).await;
    match (found["outcome"].as_str(), found["index"].as_u64()) {
        (Some("committed"), Some(index)) => Came::Committed(index),
        (Some("refused" | "not in the log"), _) => Came::Nothing,
        _ => Came::Unknown(found["why"].as_str().unwrap_or("the log doesn't tell").to_owned()),
    }
}

/// A transaction of whose outcome the log says nothing.
#[derive(Debug)]
struct Absent {
    id: TxnId,
    /// The databases that were looked at, and from which entry on this node remembers their transactions.
    seen: Vec<(String, Option<u64>)>,
    /// Why it may be there nevertheless.
    doubt: Option<&'static str>,
}

impl Absent {
    /// The answer, if this is why it may yet come to be there.
    fn tell(self, doubt: Option<String>) -> Value {
        let doubt = doubt.or(self.doubt.map(str::to_owned));
        let seen = self.seen.into_iter().map(|(name, since)| json!({ "db": name, "since": since }));
        json!({
            "id": self.id.to_string(),
            "outcome": if doubt.is_some() { "unknown" } else { "not in the log" },
            "why": doubt,
            "databases": seen.collect::<Vec<_>>(),
        })
    }
}

/// What a database's log, as it was handed over here, says of a transaction.
#[derive(Debug)]
struct Seen {
    db: String,
    /// `None` if it is there, and can't be judged.
    fate: Option<Fate>,
    /// Whether all is remembered from its base on, if that is given.
    reaches: Option<bool>,
}

/// What the log says of a transaction, by what it says in each database. What is found is final.
fn look_up(id: TxnId, seen: impl Iterator<Item = Seen>) -> Result<Value, Absent> {
    let mut absent = Absent { id, seen: Vec::new(), doubt: None };
    for Seen { db, fate, reaches } in seen {
        let (outcome, index, why) = match fate {
            Some(Fate::Committed(index)) => ("committed", index, None),
            Some(Fate::Refused(index)) => ("refused", index, Some(WITHOUT_EFFECT)),
            Some(Fate::Absent(since)) => {
                absent.seen.push((db, since));
                absent.doubt = absent.doubt.or(match (reaches, since) {
                    (Some(false), _) => Some(TOO_OLD),
                    (None, None) => Some(NOTHING),
                    (Some(true), _) | (None, Some(_)) => None,
                });
                continue;
            }
            None => {
                absent.seen.push((db, None));
                absent.doubt = Some(LACKING);
                continue;
            }
        };
        return Ok(json!({ "id": id.to_string(), "outcome": outcome, "db": db, "index": index, "why": why }));
    }
    Err(absent)
}

/// Waits until this node's log has everything that was proposed before now.
async fn certainty(node: &Arc<Node>, database: DbId, id: TxnId) -> Result<(), String> {
    let database = node.registry().open(database).await?.ok_or("it was dropped")?;
    let index = forward::certainty(node, &database, id).await?;
    node.wait_taken(index).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fate: Option<Fate>) -> Value {
        told_with(None, fate)
    }

    fn told_with(reaches: Option<bool>, fate: Option<Fate>) -> Value {
        let other = Seen { db: "other".into(), fate: Some(Fate::Absent(Some(3))), reaches: Some(true) };
        let seen = [other, Seen { db: "a".into(), fate, reaches }];
        look_up(TxnId::default(), seen.into_iter()).unwrap_or_else(|absent| absent.tell(None))
    }

    #[test]
    fn what_is_found_is_told() {
        for (fate, outcome) in [(Fate::Committed(7), "committed"), (Fate::Refused(7), "refused")] {
            let told = told(Some(fate));
            assert_eq!(
                (&told["outcome"], &told["index"], &told["db"]),
                (&json!(outcome), &json!(7), &json!("a"))
            );
        }
        let told = told(Some(Fate::Absent(Some(5))));
        assert_eq!(told["outcome"], "not in the log");
        assert_eq!(told["databases"], json!([{ "db": "other", "since": 3 }, { "db": "a", "since": 5 }]));
    }

    #[test]
    fn a_node_that_remembers_nothing_does_not_call_it_absent() {
        let told = told(Some(Fate::Absent(None)));
        assert_eq!(told["outcome"], "unknown", "{told}");
        assert!(told["why"].as_str().unwrap().contains("since its start"), "{told}");
    }

    #[test]
    fn the_base_tells_whether_the_memory_reaches_far_enough() {
        for since in [None, Some(8)] {
            let outcome = |reaches| told_with(Some(reaches), Some(Fate::Absent(since)))["outcome"].clone();
            assert_eq!((outcome(true), outcome(false)), (json!("not in the log"), json!("unknown")));
        }
    }

    #[test]
    fn an_entry_that_cannot_be_judged_here_is_not_called_absent() {
        let told = told(None);
        assert_eq!(told["outcome"], "unknown", "{told}");
        assert!(told["why"].as_str().unwrap().contains("ask another node"), "{told}");
    }
}
