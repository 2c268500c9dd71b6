//! `.import`: the rows of a text file become rows of a table, all or none.
//!
//! They go to the node some hundreds at a time, in a transaction over several requests. What stands for NULL when results are
//! printed does so here, too, unless it is quoted: a table that was printed as CSV is read back as it was.

use super::cell::Cell;
use super::csv::{Row, Rows};
use super::dot::misused;
use super::error::Error;
use super::mode::Mode;
use super::session::Session;
use super::statement::quoted;
use super::{Flow, Shell};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Rows in one request.
const MAX_ROWS: usize = 500;
/// And the bytes of their texts.
const MAX_BYTES: usize = 1 << 20;

/// What there is to do.
struct Import<'a, R> {
    rows: Rows<R>,
    file: &'a str,
    table: &'a str,
    null: &'a str,
}

pub(super) fn import(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let mut separator = match shell.look.mode {
        Mode::List => shell.look.separator.clone(),
        Mode::Tabs => "\t".into(),
        _ => ",".into(),
    };
    let (mut skip, mut words) = (0, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--csv" => separator = ",".into(),
            "--tabs" => separator = "\t".into(),
            "--skip" => skip = args.next().and_then(|rows| rows.parse().ok()).ok_or(Error::said(""))?,
            _ => words.push(arg.as_str()),
        }
    }
    let [file, table] = words[..] else { return misused() };
    let separator = match *separator.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => byte,
        _ => return Err(Error::said(format!("columns can't be separated by {separator:?}; see .separator"))),
    };
    let input = File::open(file).map_err(|error| Error::said(format!("{file}: {error}")))?;
    let rows = Rows::new(BufReader::new(input), separator);
    let mut import = Import { rows, file, table, null: &shell.look.null };
    for _ in 0..skip {
        import.next()?;
    }
    let count = "SELECT count(*) FROM pragma_table_info(?)";
    let columns = match shell.session.rows(count, &[json!(table)])?.0.first().and_then(|row| row.first()) {
        Some(Cell::Number(count)) => count.parse().unwrap_or(0),
        _ => 0,
    };
    let done = shell.session.all_or_nothing(".import", |session| import.run(session, columns));
    shell.names = None;
    let count = done?;
    if shell.has_changes {
        shell.output.line(&format!("changes: {count}"))?;
    }
    Ok(Flow::Go)
}

impl<R: BufRead> Import<'_, R> {
    fn next(&mut self) -> Result<Option<Row>, Error> {
        self.rows.next().map_err(|error| Error::said(format!("{}: {error}", self.file)))
    }

    fn failed(&self, line: u64, why: &str) -> Error {
        Error::said(format!("{}: line {line}: {why}; nothing is imported", self.file))
    }

    /// Puts all rows into a table of so many columns, or into a new one if there are none; how many rows there were.
    fn run(&mut self, session: &mut Session, columns: usize) -> Result<usize, Error> {
        let columns = if columns > 0 { columns } else { self.create(session)? };
        let places = vec!["?"; columns].join(",");
        let insert = format!("INSERT INTO {} VALUES({places})", quoted(self.table));
        // Of the next request.
        let (mut statements, mut lines, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut count = 0;
        loop {
            let row = self.next()?;
            let is_over = row.is_none();
            // A single column may be empty.
            if let Some(row) = row.filter(|row| columns == 1 || !row.is_blank()) {
                if row.fields.len() != columns {
                    let why = format!("there are {} columns, but the table has {columns}", row.fields.len());
                    return Err(self.failed(row.line, &why));
                }
                count += 1;
                bytes += row.fields.iter().map(|field| field.text.len()).sum::<usize>();
                lines.push(row.line);
                statements.push(self.statement(&insert, row));
            }
            if is_over || statements.len() == MAX_ROWS || bytes >= MAX_BYTES {
                if let Some((at, why)) = session.within_transaction(&std::mem::take(&mut statements))? {
                    return Err(self.failed(lines.get(at).copied().unwrap_or(0), &why));
                }
                lines.clear();
                bytes = 0;
            }
            if is_over {
                return Ok(count);
            }
        }
    }

    /// Creates the table, whose columns the first row names; how many there are. Values stay what they are: `007` is a text.
    fn create(&mut self, session: &mut Session) -> Result<usize, Error> {
        let Some(row) = self.next()? else {
            return Err(Error::said(format!(
                "{}: it has no rows, and there is no table {}",
                self.file, self.table
            )));
        };
        let columns: Vec<_> =
            row.fields.iter().map(|field| format!("{} TEXT", quoted(&field.text))).collect();
        let create = format!("CREATE TABLE {}({})", quoted(self.table), columns.join(", "));
        match session.within_transaction(&[json!(create)])? {
            Some((_, why)) => Err(self.failed(row.line, &why)),
            None => Ok(columns.len()),
        }
    }

    fn statement(&self, insert: &str, row: Row) -> Value {
        let value = |field: super::csv::Field| match !field.is_quoted && field.text == self.null {
            true => Value::Null,
            false => Value::String(field.text),
        };
        std::iter::once(Value::from(insert)).chain(row.fields.into_iter().map(value)).collect()
    }
}
