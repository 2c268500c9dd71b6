//! The pragmas that a replicated database answers itself (`SQLITE_FCNTL_PRAGMA`), and those that it refuses.
//!
//! SQLite runs such a pragma when the statement is prepared. It prepares it anew for each run, so hosts may
//! keep statements.

use super::connection::Connection;
use super::reads::{ReadLevel, parse_token};

const OURS: &str = "quire_status, quire_leader, quire_index, quire_checksum, quire_barrier, quire_reads[=LEVEL], \
                    quire_session[=TOKEN]";

/// What to do with a pragma.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is SQLite's.
    Pass,
    /// One row with this text.
    Row(String),
    /// Fail with this message.
    Error(String),
}

/// Answers a pragma.
pub fn answer(connection: &mut Connection, name: &str, value: Option<&str>) -> Answer {
    let value = value.map(|v| v.trim_matches(|c: char| c == '\'' || c == '"' || c.is_whitespace()));
    if let Some(why) = refused(name, value) {
        return Answer::Error(why);
    }
    let name = name.to_ascii_lowercase();
    if !name.starts_with("quire_") {
        return Answer::Pass;
    }
    match ours(connection, &name, value) {
        Ok(text) => Answer::Row(text),
        Err(why) => Answer::Error(why),
    }
}

fn ours(connection: &mut Connection, name: &str, value: Option<&str>) -> Result<String, String> {
    match (name, value) {
        ("quire_reads", None) => Ok(connection.reads().level().to_string()),
        ("quire_reads", Some(level)) => {
            let level: ReadLevel = level.parse()?;
            connection.reads().set_level(level);
            Ok(level.to_string())
        }
        ("quire_session", None) => Ok(connection.reads().token().to_string()),
        ("quire_session", Some(token)) => {
            connection.reads().join_session(parse_token(token)?);
            Ok(connection.reads().token().to_string())
        }
        ("quire_status", None) => Ok(connection.status()?.json),
        ("quire_checksum", None) => Ok(connection.status()?.checksum),
        // What this connection has committed may be newer than what the node has heard of as published.
        ("quire_index", None) => {
            let index = connection.status()?.index;
            Ok(index.max(connection.reads().token()).to_string())
        }
        ("quire_leader", None) => match connection.status()?.leader {
            Some((id, address)) => Ok(format!("{id} {address}")),
            None => Err("this node knows of no leader at present; try again".into()),
        },
        ("quire_barrier", None) => Ok(connection.barrier()?.to_string()),
        ("quire_status" | "quire_checksum" | "quire_index" | "quire_leader" | "quire_barrier", Some(_)) => {
            Err(format!("{name} takes no value"))
        }
        _ => Err(format!("{name} is no pragma of Quire's; there are {OURS}")),
    }
}

/// The error for a pragma that would leave what replication stands on.
fn refused(name: &str, value: Option<&str>) -> Option<String> {
    let value = value?;
    if name.eq_ignore_ascii_case("journal_mode") && !value.eq_ignore_ascii_case("wal") {
        return Some(format!("journal_mode={value}: a replicated database stays in WAL mode"));
    }
    if name.eq_ignore_ascii_case("locking_mode") && value.eq_ignore_ascii_case("exclusive") {
        return Some("locking_mode=EXCLUSIVE: a replicated database is shared with its node".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pragmas_that_would_leave_wal_mode_are_refused() {
        for (name, value, is_refused) in [
            ("journal_mode", Some("DELETE"), true),
            ("JOURNAL_MODE", Some("off"), true),
            ("journal_mode", Some("WAL"), false),
            ("journal_mode", None, false),
            ("locking_mode", Some("exclusive"), true),
            ("locking_mode", Some("normal"), false),
            ("synchronous", Some("off"), false),
        ] {
            assert_eq!(refused(name, value).is_some(), is_refused, "{name}={value:?}");
        }
    }
}
