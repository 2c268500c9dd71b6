//! Reads the answer to one statement while it comes in: each row goes on as soon as it is there, so that a result of any
//! size takes the memory of one row. The shape is that of rqlite: `{"results":[{"columns":…,"values":…}]}`.

use super::cell::Cell;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

/// No row is longer, as JSON. A BLOB takes up to four bytes of it for each of its own.
const MAX_ROW: u64 = 2 << 30;

/// Where the rows of a result go.
pub(super) trait Rows {
    /// Before the rows. Not called for a statement without columns.
    fn columns(&mut self, names: Vec<String>) -> io::Result<()>;
    fn row(&mut self, row: Vec<Cell>) -> io::Result<()>;
}

/// What the answer says beside rows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Summary {
    pub(super) last_insert_id: i64,
    pub(super) rows_affected: u64,
    /// Rows that were given on.
    pub(super) rows: u64,
    /// Seconds that the server took.
    pub(super) time: Option<f64>,
    /// Why the statement failed, or the request.
    pub(super) error: Option<String>,
}

/// Why an answer can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Rows can't be given on.
    #[error("{0}")]
    Sink(io::Error),
    /// The connection, or what came over it.
    #[error("the answer broke off, or makes no sense: {0}")]
    Answer(serde_json::Error),
}

/// Reads an answer.
pub(super) fn read(answer: impl Read, rows: &mut dyn Rows) -> Result<Summary, ReadError> {
    let left = Rc::new(std::cell::Cell::new(MAX_ROW));
    let input = io::BufReader::with_capacity(64 << 10, Metered { input: answer, left: left.clone() });
    let mut state = State { rows, left, summary: Summary::default(), failed: None, columns: 0 };
    let mut json = serde_json::Deserializer::from_reader(input);
    let read = Document(&mut state).deserialize(&mut json);
    if let Some(failed) = state.failed {
        return Err(ReadError::Sink(failed));
    }
    read.map_err(ReadError::Answer)?;
    Ok(state.summary)
}

struct State<'a> {
    rows: &'a mut dyn Rows,
    left: Rc<std::cell::Cell<u64>>,
    summary: Summary,
    failed: Option<io::Error>,
    columns: usize,
}

impl State<'_> {
    fn done<E: serde::de::Error>(&mut self, result: io::Result<()>) -> Result<(), E> {
        self.left.set(MAX_ROW);
        result.map_err(|error| {
            self.failed = Some(error);
            E::custom("the output is closed")
        })
    }
}

/// Ends a row that is too long.
struct Metered<R> {
    input: R,
    left: Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        let left = self.left.get().checked_sub(n as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other(format!("a row has more than {} MiB", MAX_ROW >> 20)))?);
        Ok(n)
    }
}

macro_rules! seed {
    ($name:ident, $expecting:literal, $($visit:tt)*) => {
        struct $name<'s, 'a>(&'s mut State<'a>);

        impl<'de> DeserializeSeed<'de> for $name<'_, '_> {
            type Value = ();

            fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
                json.deserialize_any(self)
            }
        }

        impl<'de> Visitor<'de> for $name<'_, '_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expecting)
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
                Ok(())
            }

            $($visit)*
        }
    };
}

seed! { Document, "an answer",
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "results" => map.next_value_seed(Results(self.0))?,
                "error" => self.0.summary.error = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

seed! { Results, "a list of results",
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(One(self.0))?.is_some() {}
        Ok(())
    }
}

seed! { One, "a result",
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "columns" => {
                    let Some(names) = map.next_value::<Option<Vec<String>>>()? else { continue };
                    state.columns = names.len();
                    let taken = state.rows.columns(names);
                    state.done::<A::Error>(taken)?;
                }
                "values" => map.next_value_seed(Values(state))?,
                "last_insert_id" => state.summary.last_insert_id = map.next_value()?,
                "rows_affected" => state.summary.rows_affected = map.next_value()?,
                "time" => state.summary.time = Some(map.next_value()?),
                "error" => state.summary.error = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

seed! { Values, "rows",
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(row) = list.next_element::<Vec<Box<RawValue>>>()? {
            if row.len() != self.0.columns {
                return Err(A::Error::custom("a row has other columns than the heading"));
            }
            let cells = row.iter().map(|value| Cell::parse(value.get())).collect();
            let taken = self.0.rows.row(cells);
            self.0.done::<A::Error>(taken)?;
            self.0.summary.rows += 1;
        }
        Ok(())
    }
}

/// Keeps rows, for what the shell itself asks.
#[derive(Debug, Default)]
pub(super) struct Kept(pub(super) Vec<Vec<Cell>>);

/// The shell itself asks for no more.
pub(super) const MAX_KEPT: usize = 100_000;

impl Rows for Kept {
    fn columns(&mut self, _: Vec<String>) -> io::Result<()> {
        Ok(())
    }

    fn row(&mut self, row: Vec<Cell>) -> io::Result<()> {
        if self.0.len() == MAX_KEPT {
            return Err(io::Error::other(format!("there are more than {MAX_KEPT}")));
        }
        self.0.push(row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_what_stands_beside() {
        let mut kept = Kept::default();
        let answer = r#"{"results":[{"columns":["a","b"],"types":["","blob"],"values":[[1,[0]],[9e999,null]],
            "time":0.5}],"time":1}"#;
        let summary = read(answer.as_bytes(), &mut kept).unwrap();
        assert_eq!(summary, Summary { rows: 2, time: Some(0.5), ..Summary::default() });
        let number = |text: &str| Cell::Number(text.into());
        assert_eq!(kept.0, [[number("1"), Cell::Blob(vec![0])], [number("9e999"), Cell::Null]]);
        let mut kept = Kept::default();
        let answer = r#"{"results":[{"last_insert_id":-3,"rows_affected":1,"rows":null}],"raft_index":9}"#;
        let summary = read(answer.as_bytes(), &mut kept).unwrap();
        assert_eq!(summary, Summary { last_insert_id: -3, rows_affected: 1, ..Summary::default() });
        for (answer, error) in [
            (r#"{"results":[{"error":"no such table: t"}]}"#, "no such table: t"),
            (r#"{"results":[],"error":"stale read"}"#, "stale read"),
            (r#"{"results":[{"columns":["a"],"types":[""],"values":[[1]],"error":"cut"}]}"#, "cut"),
        ] {
            assert_eq!(read(answer.as_bytes(), &mut kept).unwrap().error.as_deref(), Some(error));
        }
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for bad in [
            "",
            "x",
            "[]",
            r#"{"results":[{"values":[[1]]}]}"#,
            r#"{"results":[{"columns":["a"],"values":[[1,2]]}]}"#,
            r#"{"results":[{"columns":["a"],"values":[[1],"#,
            r#"{"results":[{"rows_affected":"x"}]}"#,
        ] {
            assert!(matches!(read(bad.as_bytes(), &mut Kept::default()), Err(ReadError::Answer(_))), "{bad}");
        }
    }

    #[test]
    fn a_closed_output_ends_it() {
        struct Closed;
        impl Rows for Closed {
            fn columns(&mut self, _: Vec<String>) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn row(&mut self, _: Vec<Cell>) -> io::Result<()> {
                unreachable!()
            }
        }
        let answer = r#"{"results":[{"columns":["a"],"values":[[1]]}]}"#;
        let read = read(answer.as_bytes(), &mut Closed);
        assert!(matches!(read, Err(ReadError::Sink(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    }
}
