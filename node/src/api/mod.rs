//! The HTTP API: SQL, and what tells about a node, changes its cluster and proves its databases. The shapes of
//! `/db/*`, `/readyz`, `/status`, `/nodes`, `/leader` and `/remove` are those of rqlite v10, so that its tools can read them.
//!
//! | path | method | answer |
//! |---|---|---|
//! | `/db/execute`, `/db/query`, `/db/request` | | SQL, see [`sql`] |
//! | `/tx` | | transactions over several requests, see [`tx`] |
//! | `/readyz` | GET | 200 or 503, lines such as `[+]leader ok`, which a quorum confirms within `timeout=2s`; `noleader` leaves the leader out, `sync` waits until it has what the leader has, `timeout=10s` |
//! | `/status` | GET | JSON; `key=a.b` selects, `{}` if it isn't there; `pretty` indents |
//! | `/nodes` | GET | JSON map by id, `ver=2` a list; `nonvoters`, `timeout=5s` |
//! | `/leader` | GET | the leader, as one of `/nodes`; 503 while there is none |
//! | `/leader` | POST | has it step down; body `{"id":"2"}` names a successor; `wait`, `timeout=10s` |
//! | `/remove` | DELETE | removes the member of the body, `{"id":"2"}`; `timeout=30s` |
//! | `/metrics`, `/debug/vars` | GET | numbers, for Prometheus and as JSON |
//! | `/outcome?id=ID` | GET | what became of a transaction; `db=NAME` |
//! | `/verify` | POST | appends a verification, `files` with file hashes; `{"index":N}` |
//! | `/verify?index=N` | GET | what this node's databases were at that entry |
//! | `/db/backup` | GET | a database as a file or a script, see [`backup`] |
//! | `/db/load` | POST | a file or a script becomes a database, see [`load`] |
//! | `/boot` | POST | as `/db/load`, of a file, while the cluster has one node |
//! | `/snapshot` | POST | purges the log, see [`snapshot`] |
//! | `/`, `/console/` | GET | a page for people, see [`console`] |
//! | `/db/list` | GET | JSON list of the databases, see [`databases`] |
//! | `/db/create` | POST | creates the database `db=NAME`, with `page_size=N` |
//! | `/db/drop` | POST | drops the database `db=NAME` |

pub mod auth;
pub mod backup;
pub mod console;
pub mod databases;
pub mod exchange;
pub mod load;
pub mod members;
pub mod metrics;
mod origin;
pub mod outcome;
pub mod params;
pub mod server;
mod sink;
pub mod snapshot;
pub mod sql;
pub mod status;
mod throttle;
pub mod tx;
mod users;
pub mod verify;

pub use params::Params;

use crate::node::Node;
use auth::{Auth, Verdict};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// The version that clients of rqlite are told.
pub const RQLITE_VERSION: &str = concat!("v10.0.0-quire-", env!("CARGO_PKG_VERSION"));
/// No request of this API takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// The routes.
pub fn router(node: Arc<Node>, auth: Option<Arc<Auth>>) -> Router {
    // Over TLS a browser asks for no name that the certificate doesn't have.
    let is_open = auth.is_none() && node.config().https.is_none();
    let own = is_open.then(|| Arc::new(OwnNames::new(node.clone())));
    Router::new()
        .route("/db/execute", post(sql::execute))
        .route("/db/query", get(sql::query).post(sql::query))
        .route("/db/request", post(sql::request))
        .route("/tx", post(tx::begin))
        .route("/tx/{id}/{what}", post(tx::go_on))
        .route("/readyz", get(status::readyz))
        .route("/status", get(status::status))
        .route("/nodes", get(status::nodes))
        .route("/leader", get(members::leader).post(members::step_down))
        .route("/remove", delete(members::remove))
        .route("/metrics", get(metrics::metrics))
        .route("/debug/vars", get(metrics::vars))
        .route("/outcome", get(outcome::get))
        .route("/verify", get(verify::result).post(verify::start))
        .route("/snapshot", post(snapshot::take))
        .route("/", get(console::root))
        .route("/console/", get(console::page))
        .route("/console", get(console::root))
        .merge(exchange::router(node.clone()))
        .fallback(|| async { error(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            error(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(middleware::from_fn_with_state(auth, common))
        .layer(middleware::from_fn_with_state(own, own_pages))
        .layer(middleware::map_response(versioned))
        .with_state(node)
}

/// The names under which pages may ask for a node that wants no password.
#[derive(Debug)]
struct OwnNames {
    node: Arc<Node>,
    machine: Option<String>,
}

impl OwnNames {
    fn new(node: Arc<Node>) -> OwnNames {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        OwnNames { node, machine: machine.map(|name| name.trim().to_ascii_lowercase()) }
    }

    fn has(&self, name: &str) -> bool {
        let is = |address: &str| origin::host_name(address).eq_ignore_ascii_case(name);
        self.machine.as_deref() == Some(name)
            || is(&self.node.config().http_adv_addr)
            || self.node.raft_status().peers.values().any(|peer| is(&peer.http_addr))
    }
}

/// No page of another site has anything changed, whoever is logged in to the browser that it is shown in; nor does it take
/// the node for its own, where that has no users.
async fn own_pages(State(own): State<Option<Arc<OwnNames>>>, request: Request, next: Next) -> Response {
    if own.is_some_and(|own| origin::is_rebound(request.uri(), request.headers(), |name| own.has(name))) {
        return error(StatusCode::FORBIDDEN, origin::NOT_OURS);
    }
    if origin::is_foreign(request.method(), request.uri(), request.headers()) {
        return error(StatusCode::FORBIDDEN, origin::REFUSED);
    }
    next.run(request).await
}

/// Clients of rqlite look for its version in every answer.
async fn versioned(mut response: Response) -> Response {
    response.headers_mut().insert("x-rqlite-version", HeaderValue::from_static(RQLITE_VERSION));
    response
}

/// What every request has in common: who may do it, a deadline, OPTIONS.
async fn common(State(auth): State<Option<Arc<Auth>>>, request: Request, next: Next) -> Response {
    let needed = auth::needed(request.method(), request.uri().path());
    let verdict = match &auth {
        // A request that didn't come by a socket is from here.
        Some(auth) if request.method() != axum::http::Method::OPTIONS => {
            let from = request
                .extensions()
                .get::<server::Remote>()
                .map_or(Ipv4Addr::LOCALHOST.into(), |from| from.0);
            auth.check(from, request.headers(), needed).await
        }
        _ => Verdict::Allowed,
    };
    // These have deadlines of their own; a write must not be given up while its outcome is open.
    let has_deadline = ["/db/", "/tx", "/boot"].iter().any(|path| request.uri().path().starts_with(path));
    if request.method() == axum::http::Method::OPTIONS {
        StatusCode::OK.into_response()
    } else if verdict == Verdict::Denied {
        // No body, as rqlite has it.
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"quire\"")]).into_response()
    } else if let Verdict::Later(seconds) = verdict {
        (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())]).into_response()
    } else if has_deadline {
        next.run(request).await
    } else {
        match tokio::time::timeout(DEADLINE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => error(StatusCode::REQUEST_TIMEOUT, "the request took too long"),
        }
    }
}

/// An error as JSON.
fn error(code: StatusCode, message: &str) -> Response {
    (code, Json(json!({ "error": message }))).into_response()
}

/// JSON, indented if asked for.
fn body(value: &Value, pretty: bool) -> Response {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let kind = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (kind, text.unwrap_or_default()).into_response()
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Params, Self::Rejection> {
        Ok(Params::parse(parts.uri.query().unwrap_or_default()))
    }
}

type NodeState = State<Arc<Node>>;
