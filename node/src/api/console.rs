//! `/console/`: a page to run SQL from, and to see who is there. It needs nothing from elsewhere, and asks this API as
//! any client does.

use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};

/// Nothing is loaded from, or sent to, anywhere else.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// The page.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    (headers, include_str!("console.html")).into_response()
}

/// `/` leads there.
pub(super) async fn root() -> Response {
    Redirect::to("/console/").into_response()
}
