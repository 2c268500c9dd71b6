//! A value of a result, as JSON brings it, and the forms in which it is printed.
//!
//! BLOBs come as arrays of numbers (`blob_array`), so that they can be told from texts. Numbers keep the text that the
//! server wrote: nothing is lost by reading them, and `9e999`, SQLite's infinity, is no error.

use crate::sql::json::base64;
use std::fmt::Write as _;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    /// The 0 or 1 of a column that is declared BOOLEAN.
    Bool(bool),
    Number(String),
    Text(String),
    Blob(Vec<u8>),
}

impl Cell {
    /// Reads one; the text is JSON.
    pub(super) fn parse(json: &str) -> Cell {
        let other = || Cell::Text(json.to_owned());
        match json.as_bytes().first() {
            Some(b'n') => Cell::Null,
            Some(b't') => Cell::Bool(true),
            Some(b'f') => Cell::Bool(false),
            Some(b'"') => serde_json::from_str(json).map_or_else(|_| other(), Cell::Text),
            Some(b'[') => serde_json::from_str(json).map_or_else(|_| other(), Cell::Blob),
            Some(b'-' | b'0'..=b'9') => Cell::Number(json.to_owned()),
            // An object, which no server sends.
            _ => other(),
        }
    }

    /// As it is read by people and programs that take text.
    pub(super) fn text(&self, null: &str) -> String {
        match self {
            Cell::Null => null.to_owned(),
            Cell::Bool(value) => u8::from(*value).to_string(),
            Cell::Number(text) | Cell::Text(text) => text.clone(),
            Cell::Blob(bytes) => hex(bytes),
        }
    }

    /// As SQL.
    pub(super) fn literal(&self) -> String {
        match self {
            Cell::Null => "NULL".into(),
            Cell::Text(text) if text.contains('\0') => format!("CAST({} AS TEXT)", hex(text.as_bytes())),
            Cell::Text(text) => format!("'{}'", text.replace('\'', "''")),
            other => other.text(""),
        }
    }

    /// As JSON.
    pub(super) fn json(&self) -> String {
        match self {
            Cell::Null => "null".into(),
            Cell::Bool(value) => value.to_string(),
            Cell::Number(text) => text.clone(),
            Cell::Text(text) => quote_json(text),
            Cell::Blob(bytes) => {
                let mut out = b"\"".to_vec();
                base64(bytes, &mut out);
                out.push(b'"');
                String::from_utf8_lossy(&out).into_owned()
            }
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Cell::Number(_) | Cell::Bool(_))
    }
}

/// A string as JSON.
pub(super) fn quote_json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `x'…'`
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(3 + 2 * bytes.len());
    out.push_str("x'");
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_all_forms() {
        for (json, text, literal, again) in [
            ("null", "~", "NULL", "null"),
            ("true", "1", "1", "true"),
            ("-9223372036854775808", "-9223372036854775808", "-9223372036854775808", "-9223372036854775808"),
            ("9e999", "9e999", "9e999", "9e999"),
            ("1.5", "1.5", "1.5", "1.5"),
            ("\"it's\\n\"", "it's\n", "'it''s\n'", "\"it's\\n\""),
            ("\"a\\u0000\"", "a\0", "CAST(x'6100' AS TEXT)", "\"a\\u0000\""),
            ("[0,255]", "x'00ff'", "x'00ff'", "\"AP8=\""),
            ("[]", "x''", "x''", "\"\""),
            ("{}", "{}", "'{}'", "\"{}\""),
        ] {
            let cell = Cell::parse(json);
            assert_eq!((&*cell.text("~"), &*cell.literal(), &*cell.json()), (text, literal, again), "{json}");
        }
        assert_eq!(Cell::parse("[256]"), Cell::Text("[256]".into()));
    }
}
