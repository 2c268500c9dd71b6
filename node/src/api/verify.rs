//! `/verify`: proof that all nodes hold the same databases. A verification is an entry of the log: each node
//! records each database's checksum as it is at exactly that entry, and the records are compared.

use super::{NodeState, Params, body, error};
use crate::db::database::Scrubbed;
use crate::peers::LeaderError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the leader may take to append it.
const APPEND: Duration = Duration::from_secs(10);

/// Starts a verification.
pub(super) async fn start(State(node): NodeState, params: Params) -> Response {
    match node.verify(params.flag("files"), params.flag("scrub"), APPEND).await {
        Ok(index) => body(&json!({ "index": index }), params.flag("pretty")),
        Err(LeaderError::Refused(why)) => error(StatusCode::BAD_REQUEST, &why),
        Err(LeaderError::Unavailable(why)) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// What this node found at an entry. `complete` is false while a database has not come there yet.
pub(super) async fn result(State(node): NodeState, params: Params) -> Response {
    let Some(index) = params.get("index").and_then(|text| text.parse::<u64>().ok()) else {
        return error(StatusCode::BAD_REQUEST, "index=N is missing: the index that POST /verify returned");
    };
    let taken = node.raft_status().applied_index.is_some_and(|at| at >= index);
    let mut complete = taken;
    let databases: Vec<Value> = node
        .registry()
        .verifications(index)
        .into_iter()
        .map(|(name, id, found)| match found {
            None => {
                complete = false;
                json!({ "name": name, "id": id.0 })
            }
            Some(found) => {
                complete &= found.scrubbed != Scrubbed::Underway;
                let (sha256, mut fault) = match found.file {
                    None => (None, None),
                    Some(Ok(hash)) => (Some(hash), None),
                    Some(Err(why)) => (None, Some(why)),
                };
                if let Scrubbed::Damaged(why) = found.scrubbed {
                    fault = Some(why);
                }
                json!({
                    "name": name,
                    "id": id.0,
                    "last_index": found.last_index,
                    "checksum": found.checksum.to_string(),
                    "pages": found.pages,
                    "sha256": sha256,
                    "error": fault,
                })
            }
        })
        .collect();
    let value = json!({ "node_id": node.id(), "index": index, "complete": complete, "databases": databases });
    body(&value, params.flag("pretty"))
}
