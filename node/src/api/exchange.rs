//! What goes in and out as a whole: routes of backup, load, and of databases themselves, and what they share.

use super::{Params, backup, databases, load};
use crate::node::Node;
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tracing::error;

/// Backups that a node sends at once.
const MAX_BACKUPS: usize = 8;
/// Loads that it takes at once.
const MAX_LOADS: usize = 4;

/// The node, and what these requests may use of it.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) node: Arc<Node>,
    pub(super) staging: PathBuf,
    pub(super) backups: Arc<Semaphore>,
    pub(super) loads: Arc<Semaphore>,
}

pub(super) type ExchangeState = State<Arc<Exchange>>;

/// The routes.
pub(super) fn router<S>(node: Arc<Node>) -> Router<S> {
    let staging = crate::load::staging(&node.config().data_dir).unwrap_or_else(|why| {
        // Requests that need it say so again.
        error!("the staging directory can't be used: {why}");
        node.config().data_dir.join("staging")
    });
    let exchange = Exchange {
        node,
        staging,
        backups: Arc::new(Semaphore::new(MAX_BACKUPS)),
        loads: Arc::new(Semaphore::new(MAX_LOADS)),
    };
    Router::new()
        .route("/db/backup", get(backup::backup))
        .route("/db/load", post(load::load))
        .route("/boot", post(load::boot))
        .route("/db/list", get(databases::list))
        .route("/db/create", post(databases::create))
        .route("/db/drop", post(databases::drop))
        .with_state(Arc::new(exchange))
}

/// The database that a request names.
pub(super) fn database_name(params: &Params) -> Result<String, String> {
    let name = params.get("db").unwrap_or("main");
    crate::name::check(name).map_err(|why| why.to_string())?;
    Ok(name.to_owned())
}
