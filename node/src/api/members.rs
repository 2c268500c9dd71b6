//! `/leader` and `/remove`: who leads, and changes of that and of the membership. Served on any node; the leader is
//! asked on the caller's behalf.

use super::status::{REACH, probe};
use super::{NodeState, Params, body, error};
use crate::members;
use crate::node::Node;
use crate::peers::LeaderError;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::time::Duration;

/// How long handing over may take, if the caller doesn't say.
const STEP_DOWN: Duration = Duration::from_secs(10);
/// How long a removal may take, if the caller doesn't say.
const REMOVE: Duration = Duration::from_secs(30);

/// The leader, in the shape of `/nodes`.
pub(super) async fn leader(State(node): NodeState, params: Params) -> Response {
    let timeout = match params.duration("timeout") {
        Ok(timeout) => timeout.unwrap_or(REACH),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let status = node.raft_status();
    let found = status.leader.and_then(|id| Some((id, status.peers.get(&id)?)));
    let is_one = |node: &Node| node.leadership().removed().is_none() && !node.leadership().leads_alone();
    match found.filter(|_| is_one(&node)) {
        Some((id, peer)) => body(&probe(&node, &status, id, peer, timeout).await, params.flag("pretty")),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "leader not found"),
    }
}

/// Has the leader step down.
pub(super) async fn step_down(State(node): NodeState, params: Params, request: Bytes) -> Response {
    let to = match read_id(&request, true) {
        Ok(to) => to,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let deadline = match params.duration("timeout") {
        Ok(timeout) => timeout.unwrap_or(STEP_DOWN),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    answer(members::step_down(&node, to, params.flag("wait"), deadline).await)
}

/// Removes a member.
pub(super) async fn remove(State(node): NodeState, params: Params, request: Bytes) -> Response {
    let id = match read_id(&request, false) {
        Ok(Some(id)) => id,
        Ok(None) => return error(StatusCode::BAD_REQUEST, EXPECTED),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let deadline = match params.duration("timeout") {
        Ok(timeout) => timeout.unwrap_or(REMOVE),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    answer(members::remove(&node, id, deadline).await)
}

fn answer(done: Result<(), LeaderError>) -> Response {
    match done {
        Ok(()) => body(&json!({}), false),
        Err(LeaderError::Refused(why)) => error(StatusCode::BAD_REQUEST, &why),
        Err(LeaderError::Unavailable(why)) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

const EXPECTED: &str = "the body must name a node: {\"id\":\"2\"}";

/// The id in a body `{"id":"2"}`; `None` for an empty body or an empty object, where there may be one.
fn read_id(request: &[u8], optional: bool) -> Result<Option<u64>, String> {
    if request.trim_ascii().is_empty() {
        return if optional { Ok(None) } else { Err(EXPECTED.into()) };
    }
    let value: Value =
        serde_json::from_slice(request).map_err(|why| format!("the body is no JSON: {why}"))?;
    let Some(object) = value.as_object() else { return Err(EXPECTED.into()) };
    if optional && object.is_empty() {
        return Ok(None);
    }
    if let Some(other) = object.keys().find(|key| *key != "id") {
        return Err(format!("unknown key {other:?}; {EXPECTED}"));
    }
    let id = object.get("id").ok_or(EXPECTED)?;
    let number = match id {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    match number {
        Some(number) if number > 0 => Ok(Some(number)),
        _ => Err(format!("{id} is no node id; ids are whole numbers from 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(read_id(br#"{"id":"2"}"#, false), Ok(Some(2)));
        assert_eq!(read_id(br#" {"id": 2} "#, false), Ok(Some(2)));
        assert_eq!(read_id(b"", true), Ok(None));
        assert_eq!(read_id(b"{}", true), Ok(None));
        for bad in [
            "",
            "{}",
            "2",
            "[]",
            "{",
            r#"{"id":"0"}"#,
            r#"{"id":"x"}"#,
            r#"{"id":-1}"#,
            r#"{"id":null}"#,
            r#"{"id":"1","n":2}"#,
            "\u{0}",
        ] {
            assert!(read_id(bad.as_bytes(), false).is_err(), "{bad:?}");
        }
    }
}
