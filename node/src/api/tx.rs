//! `/tx`: transactions over several requests.
//!
//! | path | method | |
//! |---|---|---|
//! | `/tx` | POST | begins one: `{"id":"…"}`; `db`, `timeout=30s` for all of it, `idle=5s` between requests |
//! | `/tx/ID/execute`, `query`, `request` | POST | as `/db/…`, within it |
//! | `/tx/ID/commit`, `/tx/ID/rollback` | POST | ends it |
//!
//! One lives on the node that it was begun on, whichever that is: its connection is an app's, and apps write on any node.

use super::{NodeState, Params, body, error};
use crate::sql::interactive::EndError;
use crate::sql::request::Kind;
use crate::sql::service::{Call, Reply};
use crate::sql::writer::WriteError;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use std::time::Duration;

/// Between two requests, unless the request says.
const IDLE: Duration = Duration::from_secs(5);
/// The longest that may be asked for.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// POST `/tx`
pub(super) async fn begin(State(node): NodeState, RawQuery(query): RawQuery) -> Response {
    let Some(service) = node.sql() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the node is starting");
    };
    let query = query.unwrap_or_default();
    let idle = match Params::parse(&query).duration("idle") {
        Ok(idle) => idle.unwrap_or(IDLE).min(MAX_IDLE),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    match service.begin(&node, &query, idle).await {
        Ok(id) => body(&json!({ "id": id }), false),
        Err(Ok(reply)) => super::sql::respond(reply, node.config().http_scheme(), "/tx", &query),
        Err(Err(why)) => {
            let status = match why {
                WriteError::Refused(_) | WriteError::Unknown(_) => StatusCode::BAD_REQUEST,
                WriteError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                WriteError::Overloaded | WriteError::NotLeader(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            error(status, &why.to_string())
        }
    }
}

/// POST `/tx/ID/…`
pub(super) async fn go_on(
    State(node): NodeState,
    Path((id, what)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let Some(service) = node.sql() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the node is starting");
    };
    let kind = match what.as_str() {
        "commit" | "rollback" => {
            let transactions = service.transactions();
            let ended = if what == "commit" {
                transactions.commit(&id).await
            } else {
                transactions.rollback(&id).await
            };
            return match ended {
                Ok(None) => body(&json!({}), false),
                Ok(Some(index)) => body(&json!({ "raft_index": index }), false),
                Err(why) => failed(&why),
            };
        }
        "execute" => Kind::Execute,
        "query" => Kind::Query,
        "request" => Kind::Request,
        _ => return error(StatusCode::NOT_FOUND, "there is no such path"),
    };
    let (parts, request) = request.into_parts();
    let mut room = None;
    let request = match super::sql::read_body(&parts.headers, request, &mut room).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let text = super::sql::is_text(&parts.headers);
    let call = Call { kind, query: query.unwrap_or_default(), text, body: request };
    match service.go_on(&id, &call).await {
        Ok(Ok(results)) => super::sql::respond(Reply::Results(results.into()), "", "", ""),
        Ok(Err(why)) => failed(&why),
        Err(why) => error(StatusCode::BAD_REQUEST, &why),
    }
}

fn failed(why: &EndError) -> Response {
    let status = match why {
        EndError::NotFound => StatusCode::NOT_FOUND,
        EndError::AtWork | EndError::RolledBack(_) => StatusCode::CONFLICT,
        EndError::Unknown(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, &why.to_string())
}
