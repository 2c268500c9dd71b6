//! `/outcome`: what became of a transaction, by its id. Asked of any node, which first makes sure that it has
//! everything that was proposed before the question.

use super::{NodeState, Params, body, error};
use crate::core::head::Fate;
use crate::db::database::Database;
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

/// Looks a transaction up.
pub(super) async fn get(State(node): NodeState, params: Params) -> Response {
    let Some(id) = params.get("id").and_then(TxnId::parse) else {
        let why = "id=ID is missing, or is not 32 hexadecimal digits: the id stands in the app's log line";
        return error(StatusCode::BAD_REQUEST, why);
    };
    let databases = match params.get("db") {
        None => node.registry().all(),
        Some(name) => match node.registry().find(name) {
            Some(database) => vec![database],
            None => return error(StatusCode::NOT_FOUND, &format!("there is no database {name}")),
        },
    };
    if let Some(found) = look_up(&databases, id) {
        return body(&found, params.flag("pretty"));
    }
    // Not there: to be sure, this node must have all that was proposed before now.
    let doubt = match databases.as_slice() {
        [database] => match tokio::time::timeout(CERTAINTY, certainty(&node, database, id)).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some("the cluster did not answer in time".into()),
        },
        [] => None,
        _ => Some("it is not in this node's log so far; name its database (db) for certainty".into()),
    };
    let found = look_up(&databases, id).unwrap_or_else(|| {
        let since = |database: &Arc<Database>| match database.fate(id) {
            Some(Fate::Absent(since)) => json!({ "db": database.name, "since": since }),
            _ => json!({ "db": database.name, "since": Value::Null }),
        };
        json!({
            "id": id.to_string(),
            "outcome": if doubt.is_some() { "unknown" } else { "not in the log" },
            "why": doubt,
            "databases": databases.iter().map(since).collect::<Vec<_>>(),
        })
    });
    body(&found, params.flag("pretty"))
}

/// What the log says of a transaction that is in it. Both answers are final.
fn look_up(databases: &[Arc<Database>], id: TxnId) -> Option<Value> {
    databases.iter().find_map(|database| {
        let (outcome, index, why) = match database.fate(id)? {
            Fate::Committed(index) => ("committed", index, None),
            Fate::Refused(index) => ("refused", index, Some(WITHOUT_EFFECT)),
            Fate::Absent(_) => return None,
        };
        let (id, db) = (id.to_string(), &database.name);
        Some(json!({ "id": id, "outcome": outcome, "db": db, "index": index, "why": why }))
    })
}

/// Waits until this node's log has everything that was proposed before now.
async fn certainty(node: &Arc<Node>, database: &Arc<Database>, id: TxnId) -> Result<(), String> {
    let index = forward::certainty(node, database, id).await?;
    node.wait_taken(index).await;
    Ok(())
}
