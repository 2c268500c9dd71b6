//! `/db/execute`, `/db/query` and `/db/request`, as rqlite v10 has them. What becomes of a request stands in
//! [`crate::sql`].

use super::NodeState;
use crate::sql::MAX_BODY;
use crate::sql::request::Kind;
use crate::sql::service::{Call, Reply, Served};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A body must be complete within this time.
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// Bodies that are being received or worked on, in KiB.
const BODIES_KIB: usize = 256 << 10;
static BODIES: Semaphore = Semaphore::const_new(BODIES_KIB);

/// POST `/db/execute`
pub(super) async fn execute(node: NodeState, request: Request) -> Response {
    serve(node, Kind::Execute, request).await
}

/// GET and POST `/db/query`
pub(super) async fn query(node: NodeState, request: Request) -> Response {
    serve(node, Kind::Query, request).await
}

/// POST `/db/request`
pub(super) async fn request(node: NodeState, request: Request) -> Response {
    serve(node, Kind::Request, request).await
}

async fn serve(State(node): NodeState, kind: Kind, request: Request) -> Response {
    let Some(service) = node.sql() else {
        return failed(StatusCode::SERVICE_UNAVAILABLE, "the node is starting", true);
    };
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    // The bodies count until they are answered.
    let mut room = None;
    let (text, body) = if parts.method == Method::GET {
        match super::Params::parse(&query).get("q") {
            Some(sql) if !sql.trim().is_empty() => match is_text_as_sent(sql, &query) {
                true => (true, Bytes::copy_from_slice(sql.as_bytes())),
                false => return failed(StatusCode::BAD_REQUEST, "the SQL is not UTF-8", false),
            },
            _ => {
                return failed(
                    StatusCode::BAD_REQUEST,
                    "bad query GET request: the parameter q is missing",
                    false,
                );
            }
        }
    } else {
        let text = is_text(&parts.headers);
        match read_body(&parts.headers, body, &mut room).await {
            Ok(body) => (text, body),
            Err(response) => return response,
        }
    };
    let path = parts.uri.path().to_owned();
    let call = Call { kind, query, text, body };
    let query = call.query.clone();
    let Served { reply, by } = service.serve(&node, call).await;
    let mut response = respond(reply, node.config().http_scheme(), &path, &query);
    if let Some(by) = by.and_then(|by| HeaderValue::from_str(&by).ok()) {
        response.headers_mut().insert("x-rqlite-served-by", by);
    }
    response
}

/// Whether SQL from a query is what its bytes say: what is no UTF-8 in them has become U+FFFD by now, which can also have
/// been sent.
fn is_text_as_sent(sql: &str, query: &str) -> bool {
    const LOST: char = '\u{fffd}';
    !sql.contains(LOST) || query.contains(LOST) || query.to_ascii_uppercase().contains("%EF%BF%BD")
}

/// Whether a body is SQL as it is.
pub(super) fn is_text(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/plain"))
}

/// What a body takes of the room for all bodies, until it is dropped.
pub(super) type Room = Option<tokio::sync::SemaphorePermit<'static>>;

/// Receives a body, in time.
pub(super) async fn read_body(headers: &HeaderMap, body: Body, room: &mut Room) -> Result<Bytes, Response> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    match tokio::time::timeout(BODY_DEADLINE, receive(body, declared.unwrap_or(0), room)).await {
        Ok(received) => received,
        Err(_) => Err(failed(StatusCode::REQUEST_TIMEOUT, "the body took too long", false)),
    }
}

/// Receives a body, within a bound for it and one for all.
async fn receive(body: Body, declared: usize, room: &mut Room) -> Result<Bytes, Response> {
    let too_large = || {
        let message = format!("the body exceeds {} MiB; load large databases with /db/load", MAX_BODY >> 20);
        failed(StatusCode::PAYLOAD_TOO_LARGE, &message, false)
    };
    if declared > MAX_BODY {
        return Err(too_large());
    }
    let mut frames = body.into_data_stream();
    let mut all: Vec<Bytes> = Vec::new();
    let (mut len, mut reserved) = (0, 0);
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|why| {
            failed(StatusCode::BAD_REQUEST, &format!("the body can't be read: {why}"), false)
        })?;
        len += frame.len();
        if len > MAX_BODY {
            return Err(too_large());
        }
        let kib = (len >> 10) + 1;
        if kib > reserved {
            let more = BODIES.try_acquire_many((kib - reserved) as u32).map_err(|_| {
                failed(StatusCode::SERVICE_UNAVAILABLE, "too many large requests at once", true)
            })?;
            reserved = kib;
            match room {
                Some(permit) => permit.merge(more),
                None => *room = Some(more),
            }
        }
        all.push(frame);
    }
    Ok(match all.len() {
        1 => all.swap_remove(0),
        _ => all.concat().into(),
    })
}

/// An error as rqlite has it: its text.
fn failed(status: StatusCode, message: &str, retry: bool) -> Response {
    let mut response = (status, format!("{message}\n")).into_response();
    if retry && status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(super) fn respond(reply: Reply, scheme: &str, path: &str, query: &str) -> Response {
    const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    match reply {
        Reply::Results(body) => (JSON, body).into_response(),
        Reply::Stream(first, reading) => {
            let rest = futures_util::stream::unfold(reading, |mut reading| async {
                reading.next().await.map(|chunk| (chunk, reading))
            });
            let all = futures_util::stream::once(async { first }).chain(rest);
            (JSON, Body::from_stream(all.map(Ok::<_, std::convert::Infallible>))).into_response()
        }
        Reply::Failed { status, message, retry } => {
            failed(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &message, retry)
        }
        Reply::Redirect(address) => {
            let query = if query.is_empty() { String::new() } else { format!("?{query}") };
            let location = format!("{scheme}://{address}{path}{query}");
            (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response()
        }
    }
}
