//! Pages of other sites: a browser that is logged in to the console sends its name and password along with whatever
//! any page has it send, so who sent a request that may change something is looked at, too.
//!
//! Browsers say it in `Sec-Fetch-Site`, older ones in `Origin`, and let no page set either. Other clients send neither.

use axum::http::{HeaderMap, Method, Uri, header};

/// What a refused request is told.
pub(super) const REFUSED: &str = "a page of another site sent this request; only pages of this node may, and behind a proxy \
     that must pass the Host header on";

/// Whether a page of another site sent a request that may change something.
pub(super) fn is_foreign(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if sites.any(|site| site == "cross-site" || site == "same-site") {
        return true;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has it in the URI.
    let host = host.or(uri.authority().map(|authority| authority.as_str()));
    headers.get_all(header::ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let (Some((scheme, origin)), Some(host)) = (origin, host) else { return true };
        let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        let name =
            |authority: &str| authority.strip_suffix(default).unwrap_or(authority).to_ascii_lowercase();
        name(origin) != name(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    #[test]
    fn pages_of_other_sites() {
        let foreign = |method: Method, lines: &[(&'static str, &'static str)]| {
            let lines = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_foreign(&method, &Uri::from_static("/db/execute"), &lines.collect())
        };
        let host = ("host", "node:4001");
        for bad in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "null"),
            ("origin", ""),
            ("origin", "http://evil"),
            ("origin", "http://node"),
            ("origin", "http://node:4002"),
            ("origin", "http://node:4001.evil"),
        ] {
            assert!(foreign(Method::POST, &[host, bad]), "{bad:?}");
            assert!(foreign(Method::DELETE, &[host, bad]), "{bad:?}");
            assert!(!foreign(Method::GET, &[host, bad]), "{bad:?}");
        }
        for good in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://node:4001"),
            ("origin", "https://NODE:4001"),
        ] {
            assert!(!foreign(Method::POST, &[host, good]), "{good:?}");
        }
        assert!(!foreign(Method::POST, &[host]) && !foreign(Method::POST, &[]));
        assert!(!foreign(Method::POST, &[("host", "node:443"), ("origin", "https://node")]));
        assert!(foreign(Method::POST, &[("host", "node:443"), ("origin", "http://node")]));
        assert!(foreign(Method::POST, &[host, ("sec-fetch-site", "same-origin"), ("origin", "http://evil")]));
        assert!(foreign(Method::POST, &[("origin", "http://node:4001")]), "no host");
    }

    #[test]
    fn the_host_of_http_2() {
        let headers = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static("https://node"))]);
        assert!(!is_foreign(&Method::POST, &Uri::from_static("https://node/db/execute"), &headers));
        assert!(is_foreign(&Method::POST, &Uri::from_static("https://other/db/execute"), &headers));
    }
}
