//! What a client asks for: statements with their parameters, from JSON or plain text, within bounds.
//!
//! A body is a JSON array. Each item is a statement: `"SQL"`, or `["SQL", v1, …]`, or `["SQL", {"name": v}]`. A
//! value is an integer, a float, a bool (0 or 1 in SQLite), a string, null, or an array of bytes, which is a BLOB.
//! Nothing of it is built as a tree: a body costs about what its strings cost, however it is nested.

use rusqlite::types::Value;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::time::Duration;

/// The most statements of one request.
pub const MAX_STATEMENTS: usize = 100_000;
/// The most parameters of one statement: SQLite's own limit.
pub const MAX_PARAMETERS: usize = 32_766;

/// Which of the three endpoints a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/db/execute`: writes.
    Execute,
    /// `/db/query`: reads.
    Query,
    /// `/db/request`: both.
    Request,
}

/// One statement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statement {
    /// Its text.
    pub sql: String,
    /// What is bound to it.
    pub params: Vec<Param>,
}

/// A value for a statement, by its place or by its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name, without `:`, `@` or `$`.
    pub name: Option<String>,
    /// Its value.
    pub value: Value,
}

/// How results are to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Indented.
    pub pretty: bool,
    /// With the seconds that it took.
    pub timings: bool,
    /// Rows as objects.
    pub associative: bool,
    /// BLOBs as arrays of bytes.
    pub blob_array: bool,
    /// With the log index.
    pub raft_index: bool,
}

/// Statements, and how to run them.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it came in.
    pub kind: Kind,
    /// What to run, in order.
    pub statements: Vec<Statement>,
    /// All or nothing.
    pub transaction: bool,
    /// How results are to look.
    pub output: Output,
    /// How long the statements may run.
    pub db_timeout: Option<Duration>,
}

impl Request {
    /// About how many bytes it keeps.
    pub fn size(&self) -> usize {
        let param = |p: &Param| {
            let value = match &p.value {
                Value::Text(text) => text.len(),
                Value::Blob(bytes) => bytes.len(),
                _ => 0,
            };
            size_of::<Param>() + value + p.name.as_ref().map_or(0, String::len)
        };
        let statement =
            |s: &Statement| size_of::<Statement>() + s.sql.len() + s.params.iter().map(param).sum::<usize>();
        size_of::<Request>() + self.statements.iter().map(statement).sum::<usize>()
    }
}

/// A body that is no request. The first words are rqlite's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not JSON.
    #[error("invalid JSON body: {0}")]
    Json(String),
    /// JSON, but not of the form.
    #[error("invalid request: {0}")]
    Form(String),
    /// There is nothing to do.
    #[error("no statements")]
    Empty,
}

/// Reads the statements of a JSON body.
pub fn parse_json(body: &[u8]) -> Result<Vec<Statement>, ParseError> {
    if body.trim_ascii().is_empty() {
        return Err(ParseError::Empty);
    }
    let Statements(statements) = serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ParseError::Form(error.to_string()),
        _ => ParseError::Json(error.to_string()),
    })?;
    if statements.is_empty() { Err(ParseError::Empty) } else { Ok(statements) }
}

/// The statement of a body in plain text.
pub fn parse_text(body: &[u8]) -> Result<Vec<Statement>, ParseError> {
    let sql =
        std::str::from_utf8(body).map_err(|why| ParseError::Form(format!("the SQL is not UTF-8: {why}")))?;
    if sql.trim().is_empty() {
        return Err(ParseError::Empty);
    }
    check_sql(sql).map_err(|why| ParseError::Form(why.into()))?;
    Ok(vec![Statement { sql: sql.to_owned(), params: Vec::new() }])
}

/// SQLite would take a NUL for the end.
fn check_sql(sql: &str) -> Result<(), &'static str> {
    if sql.contains('\0') { Err("the SQL contains a NUL character") } else { Ok(()) }
}

struct Statements(Vec<Statement>);

impl<'de> Deserialize<'de> for Statements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Statements;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of statements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Statements, A::Error> {
                let mut all = Vec::new();
                while let Some(statement) = seq.next_element::<Statement>()? {
                    if all.len() == MAX_STATEMENTS {
                        return Err(de::Error::custom(format!("more than {MAX_STATEMENTS} statements")));
                    }
                    all.push(statement);
                }
                Ok(Statements(all))
            }
        }
        deserializer.deserialize_any(All)
    }
}

impl<'de> Deserialize<'de> for Statement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Statement;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a statement: \"SQL\" or [\"SQL\", values…]")
            }
            fn visit_str<E: de::Error>(self, sql: &str) -> Result<Statement, E> {
                self.visit_string(sql.to_owned())
            }
            fn visit_string<E: de::Error>(self, sql: String) -> Result<Statement, E> {
                check_sql(&sql).map_err(E::custom)?;
                Ok(Statement { sql, params: Vec::new() })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Statement, A::Error> {
                let sql: String =
                    seq.next_element()?.ok_or_else(|| de::Error::custom("a statement without SQL"))?;
                check_sql(&sql).map_err(de::Error::custom)?;
                let mut params = Vec::new();
                while seq.next_element_seed(Params(&mut params))?.is_some() {}
                Ok(Statement { sql, params })
            }
        }
        deserializer.deserialize_any(One)
    }
}

fn push<E: de::Error>(params: &mut Vec<Param>, name: Option<String>, value: Value) -> Result<(), E> {
    if params.len() == MAX_PARAMETERS {
        return Err(E::custom(format!("a statement with more than {MAX_PARAMETERS} parameters")));
    }
    params.push(Param { name, value });
    Ok(())
}

/// One item after the SQL: a value, or an object of named values.
struct Params<'a>(&'a mut Vec<Param>);

impl<'de> DeserializeSeed<'de> for Params<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Params<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, an array of bytes, or an object of named values")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let Scalar(value) = map.next_value()?;
            push(self.0, Some(name), value)?;
        }
        Ok(())
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<(), E> {
        push(self.0, None, Value::Integer(v.into()))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<(), E> {
        push(self.0, None, Value::Integer(v))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<(), E> {
        push(self.0, None, unsigned(v))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<(), E> {
        push(self.0, None, Value::Real(v))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<(), E> {
        push(self.0, None, Value::Text(v.to_owned()))
    }
    fn visit_string<E: de::Error>(self, v: String) -> Result<(), E> {
        push(self.0, None, Value::Text(v))
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        push(self.0, None, Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        push(self.0, None, Value::Blob(bytes(seq)?))
    }
}

/// An integer that SQLite can't hold is a float, as in SQL.
fn unsigned(v: u64) -> Value {
    i64::try_from(v).map_or(Value::Real(v as f64), Value::Integer)
}

fn bytes<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<u8>, A::Error> {
    let mut bytes = Vec::new();
    while let Some(byte) = seq.next_element::<u8>()? {
        bytes.push(byte);
    }
    Ok(bytes)
}

/// A named value.
struct Scalar(Value);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or an array of bytes")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Scalar, E> {
                Ok(Scalar(Value::Integer(v.into())))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar(Value::Integer(v)))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar(unsigned(v)))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar(Value::Real(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar(Value::Text(v.to_owned())))
            }
            fn visit_string<E>(self, v: String) -> Result<Scalar, E> {
                Ok(Scalar(Value::Text(v)))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
                bytes(seq).map(|bytes| Scalar(Value::Blob(bytes)))
            }
        }
        deserializer.deserialize_any(One)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(body: &str) -> Statement {
        let mut all = parse_json(body.as_bytes()).unwrap();
        assert_eq!(all.len(), 1, "{body}");
        all.remove(0)
    }

    fn values(body: &str) -> Vec<Value> {
        one(body).params.into_iter().map(|p| p.value).collect()
    }

    #[test]
    fn statements() {
        assert_eq!(one(r#"["SELECT 1"]"#), Statement { sql: "SELECT 1".into(), params: vec![] });
        assert_eq!(one(r#"[["SELECT 1"]]"#).sql, "SELECT 1");
        let both = parse_json(br#" ["A", ["B", 1], "C"] "#).unwrap();
        assert_eq!(both.iter().map(|s| s.sql.as_str()).collect::<Vec<_>>(), ["A", "B", "C"]);
        assert_eq!(both[1].params.len(), 1);
    }

    #[test]
    fn parameters() {
        assert_eq!(
            values(r#"[["x", 1, -1, 1.5, true, false, null, "a\u00e9", [1,2,255], []]]"#),
            [
                Value::Integer(1),
                Value::Integer(-1),
                Value::Real(1.5),
                Value::Integer(1),
                Value::Integer(0),
                Value::Null,
                Value::Text("aé".into()),
                Value::Blob(vec![1, 2, 255]),
                Value::Blob(vec![]),
            ]
        );
        assert_eq!(
            values("[[\"x\", 9223372036854775807, -9223372036854775808, 9223372036854775808]]"),
            [
                Value::Integer(i64::MAX),
                Value::Integer(i64::MIN),
                Value::Real(9_223_372_036_854_775_808_u64 as f64)
            ]
        );
        let named = one(r#"[["x", {"a": 1, "b": [7]}]]"#);
        assert_eq!(named.params[0], Param { name: Some("a".into()), value: Value::Integer(1) });
        assert_eq!(named.params[1], Param { name: Some("b".into()), value: Value::Blob(vec![7]) });
    }

    #[test]
    fn what_is_no_json() {
        for bad in
            ["[", "[\"x\"", "nonsense", "[\"x\"] trailing", "[\"a\" \"b\"]", "[[\"x\", 1e999]]", "\u{0}"]
        {
            assert!(matches!(parse_json(bad.as_bytes()), Err(ParseError::Json(_))), "{bad:?}");
        }
        assert!(matches!(parse_json(b"[\"\xff\"]"), Err(ParseError::Json(_))));
    }

    #[test]
    fn what_is_no_request() {
        let bytes = [
            r#"{"a":1}"#,
            "1",
            "null",
            "\"x\"",
            "[1]",
            "[null]",
            "[[]]",
            "[[1]]",
            r#"[["x",[256]]]"#,
            r#"[["x",[-1]]]"#,
            r#"[["x",["a"]]]"#,
            r#"[["x",[[1]]]]"#,
            r#"[["x",{"a":{}}]]"#,
            r#"["a\u0000b"]"#,
        ];
        for bad in bytes {
            let error = parse_json(bad.as_bytes()).unwrap_err();
            assert!(matches!(error, ParseError::Form(_)), "{bad}: {error:?}");
        }
        for empty in ["", "  ", "[]", "[ ]"] {
            assert_eq!(parse_json(empty.as_bytes()), Err(ParseError::Empty), "{empty:?}");
        }
    }

    #[test]
    fn deep_nesting_and_many_parameters() {
        let deep = "[".repeat(200_000);
        assert!(parse_json(deep.as_bytes()).is_err());
        let deep = format!("[[\"x\",{}1", "[".repeat(100_000));
        assert!(parse_json(deep.as_bytes()).is_err());
        let many = |n: usize| format!("[[\"x\"{}]]", ",1".repeat(n));
        assert_eq!(values(&many(10_000)).len(), 10_000);
        assert!(parse_json(many(MAX_PARAMETERS + 1).as_bytes()).is_err());
        let statements = format!("[\"x\"{}]", ",\"x\"".repeat(MAX_STATEMENTS));
        assert!(parse_json(statements.as_bytes()).is_err());
    }

    #[test]
    fn plain_text() {
        assert_eq!(parse_text(b" SELECT 1 ").unwrap()[0].sql, " SELECT 1 ");
        assert_eq!(parse_text(b" \n"), Err(ParseError::Empty));
        assert!(matches!(parse_text(b"SELECT '\xff'"), Err(ParseError::Form(_))));
        assert!(matches!(parse_text(b"SELECT 1\0"), Err(ParseError::Form(_))));
    }
}
