//! What the query of an HTTP request says, or, by the first byte, an app's URI, a pragma or the command line.
//!
//! - Options: what is taken has times that clocks can bear and a name that can be a database's, and names nothing that another
//!   request of the same text would not. A duration is what its parts come to.
//! - A transaction's id: what is taken is written in the same way.
//! - A read level and a token: what is taken is read again as it is shown.
//! - The first bytes of a file that is to become a database: a page size is one that SQLite has.

use crate::api::Params;
use crate::query_params::MAX_DURATION;
use crate::sql::options::Options;
use quire_vfs::format::database::DatabaseHeader;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::shim::reads::{ReadLevel, parse_token};
use std::time::Duration;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, body)) = data.split_first() else { return };
    if mode % 5 == 4 {
        return header(body);
    }
    let Ok(text) = std::str::from_utf8(body) else { return };
    match mode % 5 {
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
