//! `/db/list`, `/db/create` and `/db/drop`: which databases there are.
//!
//! `GET /db/list` answers `{"databases": [{"name", "id", "page_size", "pages", "bytes", "index", "fenced"}, …]}`, by
//! name. `POST /db/create?db=NAME&page_size=N` creates one on all nodes, whichever node is asked; 409 if there is one
//! of that name. `POST /db/drop?db=NAME` drops it on all nodes, with all that it has; with `id=N` only if it is that one.

use super::exchange::{self, ExchangeState};
use super::{Params, body, error};
use crate::node::OpenError;
use crate::peers::LeaderError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use quire_vfs::format::PageSize;
use serde_json::{Value, json};
use std::time::Duration;

/// How long dropping a database may take.
const DROP: Duration = Duration::from_secs(20);

/// The databases.
pub(super) async fn list(State(exchange): ExchangeState, params: Params) -> Response {
    let mut databases = exchange.node.registry().statuses();
    databases.sort_by(|one, other| one.name.cmp(&other.name));
    let databases: Vec<Value> = databases
        .iter()
        .map(|db| {
            let bytes = u64::from(db.pages) * u64::from(db.page_size);
            json!({
                "name": db.name, "id": db.id, "page_size": db.page_size, "pages": db.pages, "bytes": bytes,
                "index": db.index, "fenced": db.fenced,
            })
        })
        .collect();
    body(&json!({ "databases": databases }), params.flag("pretty"))
}

/// Creates a database.
pub(super) async fn create(State(exchange): ExchangeState, params: Params) -> Response {
    let name = match exchange::database_name(&params) {
        Ok(name) => name,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    if params.get("db").is_none() {
        return error(StatusCode::BAD_REQUEST, "db=NAME is missing: which database is to be created");
    }
    let page_size = match params.get("page_size").map(|text| text.parse().ok().and_then(PageSize::new)) {
        None => None,
        Some(Some(size)) => Some(size),
        Some(None) => {
            return error(StatusCode::BAD_REQUEST, "page_size must be a power of two from 512 to 65536");
        }
    };
    if exchange.node.registry().id_of(&name).is_some() {
        return error(StatusCode::CONFLICT, &format!("there is a database {name} already"));
    }
    match exchange.node.create_database(&name, page_size).await {
        Ok((id, page_size)) => {
            let answer = json!({ "name": name, "id": id.0, "page_size": page_size.get() });
            body(&answer, params.flag("pretty"))
        }
        // Somebody else was just creating it.
        Err(why @ OpenError::Invalid(_)) if exchange.node.registry().id_of(&name).is_some() => {
            error(StatusCode::CONFLICT, &why.to_string())
        }
        Err(why @ (OpenError::Invalid(_) | OpenError::NotFound(_))) => {
            error(StatusCode::BAD_REQUEST, &why.to_string())
        }
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
}

/// Drops a database.
pub(super) async fn drop(State(exchange): ExchangeState, params: Params) -> Response {
    let name = match exchange::database_name(&params) {
        Ok(name) => name,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    if params.get("db").is_none() {
        return error(StatusCode::BAD_REQUEST, "db=NAME is missing: which database is to be dropped");
    }
    let Some(id) = exchange.node.registry().id_of(&name) else {
        return error(StatusCode::NOT_FOUND, &format!("there is no database {name}"));
    };
    if params.get("id").is_some_and(|asked| asked.parse() != Ok(id.0)) {
        let why = format!("{name} is another database by now: its id is {id}");
        return error(StatusCode::CONFLICT, &why);
    }
    match exchange.node.drop_database(id, DROP).await {
        Ok(()) => body(&json!({ "name": name, "id": id.0 }), params.flag("pretty")),
        Err(LeaderError::Refused(why)) => error(StatusCode::BAD_REQUEST, &why),
        Err(LeaderError::Unavailable(why)) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}
