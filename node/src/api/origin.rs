//! Pages of other sites: a browser that is logged in to the console sends its name and password along with whatever
//! any page has it send, so who sent a request that may change something is looked at, too.
//!
//! Browsers say it in `Sec-Fetch-Site`, older ones in `Origin`, and let no page set either. Other clients send neither.
//!
//! A page can also have its own name lead to the node (DNS rebinding): for the browser it is then a page of this node,
//! with no password, but a node without users wants none. So such a node looks at the name under which a browser asks for
//! it, also for GET. Names that can't be somebody else's on the internet are good; clients that are no browsers may use any.

use axum::http::{HeaderMap, Method, Uri, header};
use std::net::{IpAddr, Ipv6Addr};

/// What a refused request is told.
pub(super) const REFUSED: &str = "a page of another site sent this request; only pages of this node may, and behind a proxy \
     that must pass the Host header on";

/// What a browser is told that asks for a node under a name that isn't the node's.
pub(super) const NOT_OURS: &str = "this node has no users (--auth), and so serves pages only under its own names: use its IP \
     address, localhost, or the host of --http-adv-addr";

/// Whether a browser asks for this node under a name that may be somebody else's. `is_own` knows the names of the
/// cluster's nodes.
pub(super) fn is_rebound(uri: &Uri, headers: &HeaderMap, is_own: impl Fn(&str) -> bool) -> bool {
    if !is_browser(headers) {
        return false;
    }
    let Some(host) = host(uri, headers) else { return true };
    let name = host_name(host).trim_end_matches('.').to_ascii_lowercase();
    let is_local = |name: &str| {
        // The last are reserved for what is not on the internet.
        let reserved = [".localhost", ".local", ".internal", ".home.arpa"];
        !name.contains('.') || reserved.iter().any(|end| name.ends_with(end))
    };
    let is_address = name.parse::<IpAddr>().is_ok()
        || name.strip_prefix('[').and_then(|name| name.strip_suffix(']')?.parse::<Ipv6Addr>().ok()).is_some();
    !(is_address || is_local(&name) || is_own(&name))
}

/// The host of `HOST:PORT` or `HOST`.
pub(super) fn host_name(authority: &str) -> &str {
    let end =
        authority.rfind(':').filter(|&colon| authority.rfind(']').is_none_or(|bracket| bracket < colon));
    &authority[..end.unwrap_or(authority.len())]
}

/// Every browser sends one of these with each request, and lets no page leave it out: the first where it trusts the
/// way to the node, the others over plain HTTP. Node.js sends a mode without a site, which no browser does.
fn is_browser(headers: &HeaderMap) -> bool {
    let has = |name: &str| headers.contains_key(name);
    has("sec-fetch-site") || !has("sec-fetch-mode") && (has("origin") || has("accept-language"))
}

/// The authority that is asked for.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has it in the URI.
    host.or(uri.authority().map(|authority| authority.as_str()))
}

/// Whether a page of another site sent a request that may change something.
pub(super) fn is_foreign(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if sites.any(|site| site == "cross-site" || site == "same-site") {
        return true;
    }
    let host = host(uri, headers);
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
    fn names_that_are_not_the_nodes_own() {
        let rebound = |lines: &[(&'static str, &'static str)]| {
            let lines = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_rebound(&Uri::from_static("/db/query"), &lines.collect(), |name| name == "db.corp.example")
        };
        let browsers: [&[_]; 3] = [
            &[("accept-language", "en")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
            &[("origin", "http://evil.example:4001")],
        ];
        for browser in browsers {
            let asks = |host| rebound(&[browser, &[("host", host)]].concat());
            for bad in [
                "evil.example",
                "evil.example:4001",
                "evil.example.:4001",
                "127.0.0.1.evil.example",
                "1.2.3.4.5:80",
                "localhost.evil.example",
                "[::1].evil.example:80",
                "xlocal.example",
                "db.corp.example.evil",
            ] {
                assert!(asks(bad), "{bad}");
            }
            for good in [
                "127.0.0.1:4001",
                "10.0.0.1",
                "[::1]:4001",
                "[fe80::1]",
                "localhost",
                "LocalHost:4001",
                "a.localhost",
                "quire-1:4001",
                "quire-1.local",
                "db.corp.example",
                "DB.Corp.Example.:4001",
                "node.internal:80",
            ] {
                assert!(!asks(good), "{good}");
            }
            assert!(rebound(browser), "no host");
        }
        for client in
            [&[][..], &[("user-agent", "curl/8")], &[("sec-fetch-mode", "cors"), ("accept-language", "*")]]
        {
            assert!(!rebound(&[client, &[("host", "db.somewhere.example")]].concat()), "{client:?}");
        }
    }

    #[test]
    fn the_host_of_http_2() {
        let headers = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static("https://node"))]);
        assert!(!is_foreign(&Method::POST, &Uri::from_static("https://node/db/execute"), &headers));
        assert!(is_foreign(&Method::POST, &Uri::from_static("https://other/db/execute"), &headers));
    }
}
