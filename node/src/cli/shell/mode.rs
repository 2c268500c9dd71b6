//! How results look. All modes but those of [`super::table`] print a row as soon as they have it.

use super::cell::{Cell, quote_json};
use super::output::Output;
use super::reply::Rows;
use super::statement::quoted;
use super::table::Table;
use std::io;
use unicode_width::UnicodeWidthStr;

/// A look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    Csv,
    Tabs,
    Json,
    Line,
    Column,
    Table,
    Box,
    Markdown,
    Insert,
    Quote,
}

pub(super) const MODES: [(&str, Mode); 11] = [
    ("box", Mode::Box),
    ("column", Mode::Column),
    ("csv", Mode::Csv),
    ("insert", Mode::Insert),
    ("json", Mode::Json),
    ("line", Mode::Line),
    ("list", Mode::List),
    ("markdown", Mode::Markdown),
    ("quote", Mode::Quote),
    ("table", Mode::Table),
    ("tabs", Mode::Tabs),
];

impl Mode {
    /// By its name, or the beginning of it.
    pub(super) fn named(name: &str) -> Option<Mode> {
        let name = name.to_ascii_lowercase();
        let exact = MODES.iter().find(|(known, _)| *known == name);
        let mut begins = MODES.iter().filter(|(known, _)| !name.is_empty() && known.starts_with(&name));
        exact.or_else(|| begins.next().filter(|_| begins.next().is_none())).map(|(_, mode)| *mode)
    }

    pub(super) fn name(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    /// Whether headings are printed unless somebody decides.
    fn has_headers(self) -> bool {
        matches!(self, Mode::Column | Mode::Table | Mode::Box | Mode::Markdown)
    }
}

/// What is set about it.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) mode: Mode,
    /// Whether headings are printed; `None`: as the mode has it.
    pub(super) headers: Option<bool>,
    pub(super) null: String,
    /// Between the columns of a list.
    pub(super) separator: String,
    /// The table of INSERT statements.
    pub(super) table: String,
}

/// Prints a result.
pub(super) struct Printer<'a> {
    look: &'a Look,
    output: &'a mut Output,
    names: Vec<String>,
    rows: u64,
    table: Option<Table>,
}

impl<'a> Printer<'a> {
    pub(super) fn new(look: &'a Look, output: &'a mut Output) -> Printer<'a> {
        Printer { look, output, names: Vec::new(), rows: 0, table: None }
    }

    /// Ends the result; it may be cut off by an error.
    pub(super) fn end(self, is_complete: bool) -> io::Result<()> {
        if let Some(mut table) = self.table {
            return table.end(self.output);
        }
        if self.look.mode == Mode::Json && !self.names.is_empty() {
            // One that is cut off stays without its end, so that nobody takes it for all.
            let end = if !is_complete { "" } else { "]" };
            let begin = if self.rows == 0 { "[" } else { "" };
            return self.output.line(&format!("{begin}{end}"));
        }
        Ok(())
    }

    fn values(&self, row: &[Cell], separator: &str, form: impl Fn(&Cell) -> String) -> String {
        row.iter().map(form).collect::<Vec<_>>().join(separator)
    }
}

impl Rows for Printer<'_> {
    fn columns(&mut self, names: Vec<String>) -> io::Result<()> {
        self.names = names;
        let headers = self.look.headers.unwrap_or_else(|| self.look.mode.has_headers());
        let mode = self.look.mode;
        if matches!(mode, Mode::Column | Mode::Table | Mode::Box | Mode::Markdown) {
            self.table = Some(Table::new(mode, &self.names, headers, &self.look.null));
        }
        if !headers {
            return Ok(());
        }
        match mode {
            Mode::List => self.output.line(&self.names.join(&self.look.separator)),
            Mode::Tabs => self.output.line(&self.names.join("\t")),
            Mode::Csv => {
                let names: Vec<String> = self.names.iter().map(|name| csv(name, "")).collect();
                self.output.line(&names.join(","))
            }
            Mode::Quote => {
                let names: Vec<String> = self.names.iter().map(|n| Cell::Text(n.clone()).literal()).collect();
                self.output.line(&names.join(","))
            }
            _ => Ok(()),
        }
    }

    fn row(&mut self, row: Vec<Cell>) -> io::Result<()> {
        self.rows += 1;
        if let Some(table) = &mut self.table {
            return table.row(row, self.output);
        }
        let null = &self.look.null;
        let line = match self.look.mode {
            Mode::List => self.values(&row, &self.look.separator, |cell| cell.text(null)),
            Mode::Tabs => self.values(&row, "\t", |cell| cell.text(null)),
            Mode::Csv => self.values(&row, ",", |cell| match cell {
                Cell::Null => null.clone(),
                other => csv(&other.text(null), null),
            }),
            Mode::Quote => self.values(&row, ",", Cell::literal),
            Mode::Insert => {
                let headers = self.look.headers.unwrap_or(false);
                let names: Vec<String> = self.names.iter().map(|name| quoted(name)).collect();
                let names = if headers { format!("({})", names.join(",")) } else { String::new() };
                let values = self.values(&row, ",", Cell::literal);
                format!("INSERT INTO {}{names} VALUES({values});", quoted(&self.look.table))
            }
            Mode::Json => {
                let pairs = self.names.iter().zip(&row);
                let pairs: Vec<_> =
                    pairs.map(|(name, cell)| format!("{}:{}", quote_json(name), cell.json())).collect();
                let before = if self.rows == 1 { "[" } else { ",\n" };
                return self.output.write(&format!("{before}{{{}}}", pairs.join(",")));
            }
            _ => {
                let width = self.names.iter().map(|name| name.width()).max().unwrap_or(0);
                if self.rows > 1 {
                    self.output.line("")?;
                }
                let pairs = self.names.iter().zip(&row);
                pairs
                    .map(|(name, cell)| {
                        let space = width - name.width();
                        format!("{:space$}{name} = {}", "", cell.text(null))
                    })
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        self.output.line(&line)
    }
}

/// A text as RFC 4180 has it. What could be taken for another value is quoted: the empty text, and what stands for NULL.
fn csv(text: &str, null: &str) -> String {
    let must = text.is_empty()
        || text == null
        || text.contains([',', '"', '\n', '\r'])
        || text.starts_with(' ')
        || text.ends_with(' ');
    if must { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
#[path = "mode_tests.rs"]
mod tests;
