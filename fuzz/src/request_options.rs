//! What the query of an HTTP request says, or, by the first byte, its headers, an app's URI, a pragma or the command line.
//!
//! - Options: what is taken has times that clocks can bear and a name that can be a database's, and names nothing that another
//!   request of the same text would not. A duration is what its parts come to.
//! - A transaction's id: what is taken is written in the same way.
//! - A read level and a token: what is taken is read again as it is shown.
//! - Who sent a request: one that is taken although a browser sent it to change something names in `Origin` the host and
//!   port of `Host`, read by other code; where names are looked at, that of `Host` is nobody else's, and is refused with another
//!   domain behind it. What no browser sent is taken.
//! - The first bytes of a file that is to become a database: a page size is one that SQLite has.

use crate::api::Params;
use crate::query_params::MAX_DURATION;
use crate::request_origin::{host_name, is_foreign, is_rebound};
use crate::sql::options::Options;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use quire_vfs::format::database::DatabaseHeader;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::shim::reads::{ReadLevel, parse_token};
use std::net::IpAddr;
use std::time::Duration;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, body)) = data.split_first() else { return };
    if mode % 6 == 4 {
        return header(body);
    }
    if mode % 6 == 5 {
        return sender(body);
    }
    let Ok(text) = std::str::from_utf8(body) else { return };
    match mode % 6 {
        0 => options(text),
        1 => duration(body),
        2 => id(text),
        _ => reads(text),
    }
}

fn options(query: &str) {
    let read = || Options::new(&Params::parse(query));
    let found = read();
    assert_eq!(found, read());
    let Ok(options) = found else { return };
    assert!(options.timeout <= Duration::from_secs(3600));
    let others = [options.db_timeout, options.freshness, Some(options.linearizable_timeout)];
    assert!(others.into_iter().flatten().all(|time| time <= MAX_DURATION));
    assert!(options.db_timeout.is_none_or(|time| !time.is_zero()));
    assert!(options.freshness.is_some() || !options.freshness_strict);
    assert!(crate::name::check(&options.database).is_ok());
}

/// A duration of these parts.
fn duration(parts: &[u8]) {
    const UNITS: [(&str, u64); 5] =
        [("us", 1), ("ms", 1000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
    let (mut text, mut micros) = (String::new(), 0);
    for part in parts.chunks_exact(3).take(16) {
        let (unit, each) = UNITS[usize::from(part[0]) % UNITS.len()];
        let number = u16::from_le_bytes([part[1], part[2]]);
        text += &format!("{number}{unit}");
        micros += u64::from(number) * each;
    }
    if text.is_empty() {
        return;
    }
    let found = Params::parse(&format!("timeout={text}")).duration("timeout").unwrap().unwrap();
    let expected = Duration::from_micros(micros).min(MAX_DURATION);
    assert!(found.abs_diff(expected) < Duration::from_micros(10), "{text}: {found:?}, not {expected:?}");
}

fn id(text: &str) {
    if let Some(id) = TxnId::parse(text) {
        assert_eq!(TxnId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string(), text.to_lowercase());
    }
}

fn reads(text: &str) {
    if let Ok(level) = text.parse::<ReadLevel>() {
        assert_eq!(level.to_string().parse(), Ok(level));
        assert!(!matches!(level, ReadLevel::Bounded(Duration::ZERO)));
    }
    if let Ok(token) = parse_token(text) {
        assert_eq!(parse_token(&token.to_string()), Ok(token));
    }
}

fn header(bytes: &[u8]) {
    if let Ok(header) = DatabaseHeader::decode(bytes) {
        let size = header.page_size.get();
        assert!(size.is_power_of_two() && (512..=65536).contains(&size));
    }
}

/// A line has a header; the first, without a colon, is what is asked for.
fn sender(bytes: &[u8]) {
    const OWN: &str = "db.corp.example";
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let uri = lines.next().and_then(|uri| Uri::try_from(uri).ok()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.take(16) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let rebound = |headers: &HeaderMap| is_rebound(&uri, headers, |name| name == OWN);
    assert!(!is_foreign(&Method::GET, &uri, &headers) && !is_foreign(&Method::HEAD, &uri, &headers));
    let has = |name: &str| headers.contains_key(name);
    let foreign = is_foreign(&Method::POST, &uri, &headers);
    if !has("sec-fetch-site") && !has("origin") {
        assert!(!foreign);
        assert!(has("accept-language") || !rebound(&headers));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(uri.authority().map(Authority::as_str)).map(str::to_owned);
    for origin in headers.get_all(header::ORIGIN).iter().filter(|_| !foreign) {
        let origin = origin.to_str().expect("what is no text is refused");
        let host = host.as_deref().expect("without a host it is refused");
        if let (Ok(origin), Ok(host)) = (origin.parse::<Uri>(), host.parse::<Authority>())
            && let Some(from) = origin.authority()
        {
            let usual = if origin.scheme_str().is_some_and(|scheme| scheme == "https") { 443 } else { 80 };
            assert!(from.host().eq_ignore_ascii_case(host.host()), "{from} is not {host}");
            assert_eq!(from.port_u16().unwrap_or(usual), host.port_u16().unwrap_or(usual), "{from}, {host}");
        }
    }
    let is_browser = has("sec-fetch-site") || has("origin") && !has("sec-fetch-mode");
    if let Some(host) = host.filter(|_| is_browser && !rebound(&headers))
        && let Ok(read) = host.parse::<Authority>()
        // The other code overlooks what stands beside brackets, which no browser says.
        && !host.contains('@')
        && (!host.contains('[') || host.starts_with('[') && host_name(&host).ends_with(']'))
    {
        let name = read.host();
        assert_eq!(name, host_name(&host));
        let plain = name.trim_end_matches('.').to_ascii_lowercase();
        let address = plain.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let reserved = ["localhost", "local", "internal", "arpa"];
        let last = plain.rsplit('.').next().unwrap_or_default();
        assert!(address || !plain.contains('.') || plain == OWN || reserved.contains(&last), "{host}");
        if let Ok(theirs) = HeaderValue::try_from(format!("{name}.evil.example:4001")) {
            headers.insert(header::HOST, theirs);
            assert!(rebound(&headers), "{headers:?}");
        }
    }
}
