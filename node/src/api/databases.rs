//! `/db/list` and `/db/create`: which databases there are.
//!
//! `GET /db/list` answers `{"databases": [{"name", "id", "page_size", "pages", "bytes", "index", "fenced"}, …]}`, by
//! name. `POST /db/create?db=NAME&page_size=N` creates one on all nodes, whichever node is asked; 409 if there is one
//! of that name.

use super::exchange::{self, ExchangeState};
use super::{Params, body, error};
use crate::node::OpenError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use quire_vfs::format::PageSize;
use serde_json::{Value, json};

/// The databases.
pub(super) async fn list(State(exchange): ExchangeState, params: Params) -> Response {
    let mut databases: Vec<_> = exchange.node.registry().all().iter().map(|db| db.status()).collect();
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
    if exchange.node.registry().find(&name).is_some() {
        return error(StatusCode::CONFLICT, &format!("there is a database {name} already"));
    }
    match exchange.node.open_database(&name, true, page_size).await {
        Ok(database) => {
            let answer = json!({ "name": name, "id": database.id.0, "page_size": database.page_size.get() });
            body(&answer, params.flag("pretty"))
        }
        Err(why @ (OpenError::Invalid(_) | OpenError::NotFound(_))) => {
            error(StatusCode::BAD_REQUEST, &why.to_string())
        }
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
}
