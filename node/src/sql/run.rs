//! Runs a statement and writes its result, row by row, as it comes out of SQLite.
//!
//! A write's result is `{"last_insert_id":1,"rows_affected":1}` without what is 0; a query's is `columns`, `types`,
//! `values`, or with `associative` `types` as a map and `rows` as objects. An error takes the place of the result; after
//! the first row, it stands behind the rows.

use super::MAX_RESULT;
use super::ffi;
use super::guard::Guard;
use super::json::Json;
use super::request::{Kind, Output, Param, Statement};
use super::time;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, Error, ErrorCode};
use std::time::Instant;

/// Where results go when there is much of them.
pub trait Sink {
    /// Called after each row. May take what has been written; an error ends the statement.
    fn row(&mut self, json: &mut Json) -> Result<(), String>;
}

/// Keeps results, up to a size.
#[derive(Debug)]
pub struct Bounded(pub usize);

impl Sink for Bounded {
    fn row(&mut self, json: &mut Json) -> Result<(), String> {
        if json.out.len() > self.0 {
            return Err(format!("the results of the request exceed {} MiB", self.0 >> 20));
        }
        Ok(())
    }
}

/// Why a statement failed.
#[derive(Debug)]
pub struct Failure {
    /// For the client.
    pub message: String,
    /// What SQLite says.
    pub code: Option<ErrorCode>,
    /// It has been written, behind rows.
    written: bool,
}

/// What statements run with.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The connection.
    pub connection: &'a Connection,
    /// Its limits.
    pub guard: &'a Guard,
    /// Where the request came in.
    pub kind: Kind,
    /// How results look.
    pub output: Output,
}

/// Begins the document of a response.
pub fn begin(output: &Output) -> Json {
    let mut json = Json::new(output.pretty);
    json.begin_object();
    json.key("results");
    json.begin_array();
    json
}

/// Ends it.
pub fn end(json: &mut Json, output: &Output, error: Option<&str>, began: Instant, index: Option<u64>) {
    json.end_array();
    if let Some(error) = error {
        json.key("error");
        json.string(error);
    }
    if output.timings {
        json.seconds("time", began.elapsed());
    }
    if output.raft_index {
        json.count("raft_index", index.unwrap_or(0));
    }
    json.end_object();
}

/// A result that is only an error.
pub fn write_error(json: &mut Json, message: &str) {
    json.begin_object();
    json.key("error");
    json.string(message);
    json.end_object();
}

enum ColumnKind {
    Plain,
    Time,
    Bool,
}

struct Column {
    name: String,
    kind: ColumnKind,
    declared: String,
    /// A later column has the same name; only that one is written into an object.
    hidden: bool,
}

impl Runner<'_> {
    /// Runs a statement and writes its result. An error has been written when it is returned.
    pub fn statement(
        &self,
        statement: &Statement,
        json: &mut Json,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let _ = self.guard.denied();
        let ran = if is_single(&statement.sql) {
            self.single(statement, json, sink)
        } else {
            // What may have to be taken back must not have been sent.
            self.several(statement, json, &mut Bounded(MAX_RESULT))
        };
        if let Err(failure) = &ran
            && !failure.written
        {
            write_error(json, &failure.message);
        }
        ran
    }

    fn single(&self, statement: &Statement, json: &mut Json, sink: &mut dyn Sink) -> Result<(), Failure> {
        let began = Instant::now();
        self.guard.expect(&statement.sql);
        match self.connection.prepare_cached(&statement.sql) {
            Ok(mut prepared) => {
                bind(&mut prepared, &statement.params, &mut 0, true)?;
                self.prepared(&mut prepared, json, sink, began)
            }
            Err(Error::Empty) => {
                json.begin_object();
                json.end_object();
                Ok(())
            }
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Several statements in one text: the result is that of the last.
    fn several(&self, statement: &Statement, json: &mut Json, sink: &mut dyn Sink) -> Result<(), Failure> {
        let began = Instant::now();
        let mut batch = Batch::new(self.connection, &statement.sql);
        let mut next = batch.next().map_err(|error| self.failure(error))?;
        let mut used = 0;
        if next.is_none() {
            json.begin_object();
            json.end_object();
        }
        while let Some(mut prepared) = next {
            bind(&mut prepared, &statement.params, &mut used, false)?;
            // Whether it is the last can't be known before it has run: the next may need what it does.
            let mark = json.mark();
            self.prepared(&mut prepared, json, sink, began)?;
            drop(prepared);
            next = batch.next().map_err(|error| {
                json.reset(mark);
                self.failure(error)
            })?;
            if next.is_some() {
                json.reset(mark);
            }
        }
        Ok(())
    }

    fn prepared(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        json: &mut Json,
        sink: &mut dyn Sink,
        began: Instant,
    ) -> Result<(), Failure> {
        let reads = statement.readonly();
        if self.kind == Kind::Query && !reads {
            return Err(Failure::of("attempt to change database via query operation"));
        }
        let is_query = if reads { self.kind != Kind::Execute } else { statement.column_count() > 0 };
        if is_query && statement.column_count() > 0 {
            return self.rows(statement, json, sink, began);
        }
        let before = self.connection.total_changes();
        let mut rows = statement.raw_query();
        while rows.next().map_err(|error| self.failure(error))?.is_some() {}
        drop(rows);
        json.begin_object();
        if self.connection.total_changes() != before {
            let id = self.connection.last_insert_rowid();
            if id != 0 {
                json.key("last_insert_id");
                json.integer(id);
            }
            json.count("rows_affected", self.connection.changes());
        }
        if self.output.timings {
            json.seconds("time", began.elapsed());
        }
        if self.output.associative && self.kind == Kind::Request {
            json.key("rows");
            json.null();
        }
        json.end_object();
        Ok(())
    }

    fn rows(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        json: &mut Json,
        sink: &mut dyn Sink,
        began: Instant,
    ) -> Result<(), Failure> {
        let mut columns = columns(statement);
        let mut rows = statement.raw_query();
        let mut row = rows.next().map_err(|error| self.failure(error))?;
        if let Some(row) = row {
            for (i, column) in columns.iter_mut().enumerate().filter(|(_, column)| column.declared.is_empty())
            {
                column.declared = row.get_ref(i).map_or("", type_name).into();
            }
        }
        json.begin_object();
        self.header(&columns, json);
        let opens = row.is_some() || self.output.associative;
        if opens {
            json.key(if self.output.associative { "rows" } else { "values" });
            json.begin_array();
        }
        let mut failure = None;
        while let Some(current) = row {
            self.row(&columns, current, json);
            if let Err(why) = sink.row(json) {
                failure = Some(Failure::of(why));
                break;
            }
            row = match rows.next() {
                Ok(row) => row,
                Err(error) => {
                    failure = Some(self.failure(error));
                    break;
                }
            };
        }
        if opens {
            json.end_array();
        }
        if let Some(failure) = &failure {
            json.key("error");
            json.string(&failure.message);
        }
        if self.output.timings {
            json.seconds("time", began.elapsed());
        }
        json.end_object();
        failure.map_or(Ok(()), |failure| Err(Failure { written: true, ..failure }))
    }

    fn header(&self, columns: &[Column], json: &mut Json) {
        if self.output.associative {
            json.key("types");
            json.begin_object();
            for column in columns.iter().filter(|column| !column.hidden) {
                json.key(&column.name);
                json.string(&column.declared);
            }
            return json.end_object();
        }
        json.key("columns");
        json.begin_array();
        columns.iter().for_each(|column| json.string(&column.name));
        json.end_array();
        json.key("types");
        json.begin_array();
        columns.iter().for_each(|column| json.string(&column.declared));
        json.end_array();
    }

    fn row(&self, columns: &[Column], row: &rusqlite::Row<'_>, json: &mut Json) {
        let associative = self.output.associative;
        if associative {
            json.begin_object()
        } else {
            json.begin_array()
        }
        for (i, column) in columns.iter().enumerate() {
            if associative {
                if column.hidden {
                    continue;
                }
                json.key(&column.name);
            }
            // The index is one of the statement's own columns.
            let value = row.get_ref(i).unwrap_or(ValueRef::Null);
            self.value(&column.kind, value, json);
        }
        if associative { json.end_object() } else { json.end_array() }
    }

    fn value(&self, kind: &ColumnKind, value: ValueRef<'_>, json: &mut Json) {
        let time = match (kind, value) {
            (ColumnKind::Time, ValueRef::Text(text)) => {
                std::str::from_utf8(text).ok().and_then(time::normalize)
            }
            (ColumnKind::Time, ValueRef::Integer(value)) => time::from_unix(value),
            (ColumnKind::Bool, ValueRef::Integer(value @ (0 | 1))) => return json.bool(value == 1),
            _ => None,
        };
        match time {
            Some(time) => json.string(&time),
            None => json.value(value, self.output.blob_array),
        }
    }

    fn failure(&self, error: Error) -> Failure {
        let code = error.sqlite_error_code();
        let denied = self.guard.denied();
        let message = match (denied, code, error) {
            (Some(why), _, _) => why,
            (_, Some(ErrorCode::OperationInterrupted), _) if self.guard.is_late() => match self.kind {
                Kind::Query => "query timeout".into(),
                _ => "execute timeout".into(),
            },
            (_, _, Error::SqliteFailure(_, Some(message))) => message,
            (_, _, Error::SqlInputError { msg, .. }) => msg,
            (_, _, error) => error.to_string(),
        };
        Failure { message, code, written: false }
    }

    /// Whether a constraint that is checked at the end of a transaction doesn't hold.
    pub fn has_unresolved_keys(&self) -> bool {
        ffi::unresolved_foreign_keys(self.connection)
    }
}

impl Failure {
    pub(super) fn of(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: None, written: false }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::of(message)
    }
}

/// Whether a text certainly holds one statement at most.
pub(super) fn is_single(sql: &str) -> bool {
    !sql.trim_end().trim_end_matches([';', ' ', '\n']).contains(';')
}

fn type_name(value: ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Null => "",
        ValueRef::Integer(_) => "integer",
        ValueRef::Real(_) => "real",
        ValueRef::Text(_) => "text",
        ValueRef::Blob(_) => "blob",
    }
}

fn columns(statement: &rusqlite::Statement<'_>) -> Vec<Column> {
    let column = |column: rusqlite::Column<'_>| {
        let declared = column.decl_type().unwrap_or_default().to_lowercase();
        let kind = match declared.as_str() {
            "date" | "datetime" | "timestamp" => ColumnKind::Time,
            "boolean" => ColumnKind::Bool,
            _ => ColumnKind::Plain,
        };
        Column { name: column.name().to_owned(), kind, declared, hidden: false }
    };
    let mut columns: Vec<_> = statement.columns().map(column).collect();
    let mut seen = std::collections::HashSet::new();
    for column in columns.iter_mut().rev() {
        column.hidden = !seen.insert(column.name.clone());
    }
    columns
}

/// Binds what a statement needs. By place: from the place `used` on. By name: whatever has a name of its.
fn bind(
    statement: &mut rusqlite::Statement<'_>,
    params: &[Param],
    used: &mut usize,
    is_only: bool,
) -> Result<(), String> {
    let wanted = statement.parameter_count();
    if wanted == 0 && params.is_empty() {
        return Ok(());
    }
    let mut bound = vec![false; wanted];
    let mut set = |statement: &mut rusqlite::Statement<'_>, index: usize, param: &Param| {
        if let Some(bound) = bound.get_mut(index - 1) {
            *bound = true;
        }
        statement.raw_bind_parameter(index, &param.value).map_err(|error| error.to_string())
    };
    let given = params.iter().filter(|p| p.name.is_none()).count();
    for (i, param) in params.iter().filter(|p| p.name.is_none()).skip(*used).take(wanted).enumerate() {
        set(statement, i + 1, param)?;
    }
    for param in params {
        let Some(name) = &param.name else { continue };
        let has_prefix = name.starts_with([':', '@', '$']);
        let prefixes: &[&str] = if has_prefix { &[""] } else { &[":", "@", "$"] };
        for prefix in prefixes {
            if let Ok(Some(index)) = statement.parameter_index(&format!("{prefix}{name}")) {
                set(statement, index, param)?;
            }
        }
    }
    let bound = bound.iter().filter(|&&bound| bound).count();
    if bound < wanted {
        return Err(format!("not enough args to execute query: want {wanted} got {bound}"));
    }
    *used += wanted.min(given);
    if is_only && given > wanted {
        return Err(format!("too many args to execute query: want {wanted} got {given}"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
