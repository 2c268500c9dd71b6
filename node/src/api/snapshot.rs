//! `POST /snapshot`: what the databases have goes into their files, and the log that this makes dispensable is purged, on
//! the node that is asked. `trailing_logs=N` keeps N entries more. 204 if there is nothing to purge.

use super::{NodeState, Params, error};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// Takes one.
pub(super) async fn take(State(node): NodeState, params: Params) -> Response {
    let trailing = match params.get("trailing_logs").map(str::parse).transpose() {
        Ok(trailing) => trailing.unwrap_or(0),
        Err(_) => return error(StatusCode::BAD_REQUEST, "trailing_logs=N: give a number of entries"),
    };
    match node.snapshot(trailing).await {
        Ok(true) => StatusCode::OK.into_response(),
        Ok(false) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}
