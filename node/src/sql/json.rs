//! Writes JSON as it comes, compact or indented as Go's `json.Indent` does with four spaces, so that no result is
//! ever held as a tree.

use rusqlite::types::ValueRef;
use std::io::Write;

/// A document under construction.
#[derive(Clone, Debug, Default)]
pub struct Json {
    /// What has been written and not taken.
    pub out: Vec<u8>,
    pretty: bool,
    /// Whether something stands in each open container.
    open: Vec<bool>,
    /// A key was written; its value follows.
    keyed: bool,
}

/// A place in a document.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    len: usize,
    depth: usize,
    filled: bool,
}

impl Json {
    /// An empty document.
    pub fn new(pretty: bool) -> Json {
        Json { pretty, ..Json::default() }
    }

    /// The present place, to come back to if nothing is taken meanwhile.
    pub fn mark(&self) -> Mark {
        Mark {
            len: self.out.len(),
            depth: self.open.len(),
            filled: self.open.last().copied().unwrap_or(false),
        }
    }

    /// Forgets what was written since.
    pub fn reset(&mut self, mark: Mark) {
        self.out.truncate(mark.len);
        self.open.truncate(mark.depth);
        if let Some(filled) = self.open.last_mut() {
            *filled = mark.filled;
        }
        self.keyed = false;
    }

    fn line(&mut self) {
        if self.pretty {
            self.out.push(b'\n');
            for _ in 0..self.open.len() {
                self.out.extend_from_slice(b"    ");
            }
        }
    }

    /// What goes before a value.
    fn separate(&mut self) {
        if std::mem::take(&mut self.keyed) {
            return;
        }
        if let Some(filled) = self.open.last_mut() {
            if std::mem::replace(filled, true) {
                self.out.push(b',');
            }
            self.line();
        }
    }

    fn begin(&mut self, bracket: u8) {
        self.separate();
        self.out.push(bracket);
        self.open.push(false);
    }

    fn end(&mut self, bracket: u8) {
        if self.open.pop() == Some(true) {
            self.line();
        }
        self.out.push(bracket);
    }

    /// `{`
    pub fn begin_object(&mut self) {
        self.begin(b'{');
    }

    /// `}`
    pub fn end_object(&mut self) {
        self.end(b'}');
    }

    /// `[`
    pub fn begin_array(&mut self) {
        self.begin(b'[');
    }

    /// `]`
    pub fn end_array(&mut self) {
        self.end(b']');
    }

    /// A key of the open object.
    pub fn key(&mut self, key: &str) {
        self.separate();
        self.quote(key);
        self.out.push(b':');
        if self.pretty {
            self.out.push(b' ');
        }
        self.keyed = true;
    }

    // Writing to a vector can't fail, and neither strings nor numbers can be impossible JSON.
    fn quote(&mut self, text: &str) {
        let _ = serde_json::to_writer(&mut self.out, text);
    }

    /// A string.
    pub fn string(&mut self, text: &str) {
        self.separate();
        self.quote(text);
    }

    /// `null`
    pub fn null(&mut self) {
        self.separate();
        self.out.extend_from_slice(b"null");
    }

    /// `true` or `false`
    pub fn bool(&mut self, value: bool) {
        self.separate();
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A whole number.
    pub fn integer(&mut self, value: i64) {
        self.separate();
        let _ = serde_json::to_writer(&mut self.out, &value);
    }

    /// A number. JSON has no infinities; they are written as SQLite writes them.
    pub fn real(&mut self, value: f64) {
        self.separate();
        if value.is_infinite() {
            self.out.extend_from_slice(if value > 0.0 { b"9e999" } else { b"-9e999" });
        } else {
            let _ = serde_json::to_writer(&mut self.out, &value);
        }
    }

    /// A BLOB: base64, or an array of numbers.
    pub fn blob(&mut self, bytes: &[u8], as_array: bool) {
        if as_array {
            self.begin_array();
            bytes.iter().for_each(|&byte| self.integer(byte.into()));
            return self.end_array();
        }
        self.separate();
        self.out.push(b'"');
        base64(bytes, &mut self.out);
        self.out.push(b'"');
    }

    /// A value as it is in SQLite.
    pub fn value(&mut self, value: ValueRef<'_>, blob_array: bool) {
        match value {
            ValueRef::Null => self.null(),
            ValueRef::Integer(value) => self.integer(value),
            ValueRef::Real(value) => self.real(value),
            ValueRef::Text(text) => self.string(&String::from_utf8_lossy(text)),
            ValueRef::Blob(bytes) => self.blob(bytes, blob_array),
        }
    }

    /// `"key":seconds`
    pub fn seconds(&mut self, key: &str, time: std::time::Duration) {
        self.key(key);
        self.real(time.as_secs_f64());
    }

    /// `"key":n`, unless it is 0.
    pub fn count(&mut self, key: &str, n: u64) {
        if n != 0 {
            self.key(key);
            let _ = write!(self.out, "{n}");
            self.keyed = false;
        }
    }
}

/// Base64 with padding.
pub fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            let index = (group >> (18 - 6 * digit)) & 63;
            out.push(if is_there { DIGITS[index as usize] } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: Json) -> String {
        String::from_utf8(json.out).unwrap()
    }

    #[test]
    fn compact_and_pretty() {
        let write = |pretty| {
            let mut json = Json::new(pretty);
            json.begin_object();
            json.key("results");
            json.begin_array();
            json.begin_object();
            json.count("last_insert_id", 1);
            json.count("rows_affected", 0);
            json.key("a");
            json.begin_array();
            json.end_array();
            json.end_object();
            json.begin_object();
            json.end_object();
            json.end_array();
            json.key("s");
            json.string("a\"\n<é>");
            json.end_object();
            text(json)
        };
        assert_eq!(write(false), r#"{"results":[{"last_insert_id":1,"a":[]},{}],"s":"a\"\n<é>"}"#);
        let expected = "{\n    \"results\": [\n        {\n            \"last_insert_id\": 1,\n            \"a\": []\n        \
                        },\n        {}\n    ],\n    \"s\": \"a\\\"\\n<é>\"\n}";
        assert_eq!(write(true), expected);
    }

    #[test]
    fn values() {
        let mut json = Json::new(false);
        json.begin_array();
        let all = [
            ValueRef::Null,
            ValueRef::Integer(i64::MIN),
            ValueRef::Real(1.5),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Text(b"x\xff"),
            ValueRef::Blob(b"\x00\x01"),
        ];
        all.into_iter().for_each(|value| json.value(value, false));
        json.value(ValueRef::Blob(b"\x00\xff"), true);
        json.end_array();
        assert_eq!(text(json), "[null,-9223372036854775808,1.5,9e999,\"x\u{fffd}\",\"AAE=\",[0,255]]");
    }

    #[test]
    fn base64_of_all_lengths() {
        let encode = |text: &[u8]| {
            let mut out = Vec::new();
            base64(text, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|t| encode(t.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }
}
