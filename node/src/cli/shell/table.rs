//! Results as tables: columns as wide as what is in them. For that the first rows are held back, [`HELD_ROWS`] or
//! [`HELD_BYTES`] of them; later ones are printed as they come, and where one is wider, so is its line.

use super::cell::{Cell, hex};
use super::mode::Mode;
use super::output::{Output, visible};
use std::io;
use unicode_width::UnicodeWidthStr;

/// Rows that decide about the widths.
const HELD_ROWS: usize = 2000;
/// And how much of them.
const HELD_BYTES: usize = 4 << 20;
/// So much of a BLOB is shown.
const SHOWN_BLOB: usize = 16;

/// A cell, line by line.
struct Shown {
    lines: Vec<String>,
    is_number: bool,
}

/// A table that is being printed.
pub(super) struct Table {
    mode: Mode,
    names: Vec<String>,
    has_headers: bool,
    null: String,
    widths: Vec<usize>,
    held: Vec<Vec<Shown>>,
    bytes: usize,
    /// The heading is printed.
    has_begun: bool,
}

impl Table {
    pub(super) fn new(mode: Mode, names: &[String], has_headers: bool, null: &str) -> Table {
        let names: Vec<String> = names.iter().map(|name| flat(name)).collect();
        // Markdown has no tables without.
        let has_headers = has_headers || mode == Mode::Markdown;
        let widths = names.iter().map(|name| if has_headers { name.width() } else { 0 }).collect();
        let null = null.to_owned();
        Table { mode, names, has_headers, null, widths, held: Vec::new(), bytes: 0, has_begun: false }
    }

    pub(super) fn row(&mut self, row: Vec<Cell>, output: &mut Output) -> io::Result<()> {
        let row: Vec<Shown> = row.iter().map(|cell| self.show(cell)).collect();
        if self.has_begun {
            return self.print(&row, output);
        }
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            for line in &cell.lines {
                *width = line.width().max(*width);
                self.bytes += line.len();
            }
        }
        self.held.push(row);
        if self.held.len() >= HELD_ROWS || self.bytes >= HELD_BYTES { self.begin(output) } else { Ok(()) }
    }

    /// Prints what is left. A result without rows is not printed, as in SQLite's shell.
    pub(super) fn end(&mut self, output: &mut Output) -> io::Result<()> {
        if !self.has_begun {
            if self.held.is_empty() {
                return Ok(());
            }
            self.begin(output)?;
        }
        match self.mode {
            Mode::Table => self.rule(output, "+", "-", "+", "+"),
            Mode::Box => self.rule(output, "└", "─", "┴", "┘"),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, output: &mut Output) -> io::Result<()> {
        self.has_begun = true;
        match self.mode {
            Mode::Table => self.rule(output, "+", "-", "+", "+")?,
            Mode::Box => self.rule(output, "┌", "─", "┬", "┐")?,
            _ => {}
        }
        if self.has_headers {
            let heading = |name: &String| Shown { lines: vec![name.clone()], is_number: false };
            let heading: Vec<Shown> = self.names.iter().map(heading).collect();
            self.print(&heading, output)?;
            match self.mode {
                Mode::Table => self.rule(output, "+", "-", "+", "+")?,
                Mode::Box => self.rule(output, "├", "─", "┼", "┤")?,
                Mode::Markdown => self.rule(output, "|", "-", "|", "|")?,
                _ => {
                    let rules: Vec<String> = self.widths.iter().map(|&width| "-".repeat(width)).collect();
                    output.line(&rules.join("  "))?;
                }
            }
        }
        for row in std::mem::take(&mut self.held) {
            self.print(&row, output)?;
        }
        Ok(())
    }

    fn show(&self, cell: &Cell) -> Shown {
        let text = match cell {
            Cell::Blob(bytes) if bytes.len() > SHOWN_BLOB => {
                let shown = hex(&bytes[..SHOWN_BLOB]);
                format!("{}…' ({} bytes)", shown.trim_end_matches('\''), bytes.len())
            }
            cell => cell.text(&self.null),
        };
        let lines = match self.mode {
            Mode::Markdown => vec![flat(&text.replace('|', "\\|").replace('\n', "<br>"))],
            _ => text.trim_end_matches('\n').split('\n').map(flat).collect(),
        };
        Shown { lines, is_number: cell.is_number() }
    }

    fn print(&self, row: &[Shown], output: &mut Output) -> io::Result<()> {
        let (left, between, right) = match self.mode {
            Mode::Table | Mode::Markdown => ("| ", " | ", " |"),
            Mode::Box => ("│ ", " │ ", " │"),
            _ => ("", "  ", ""),
        };
        let height = row.iter().map(|cell| cell.lines.len()).max().unwrap_or(1);
        for n in 0..height {
            let mut line = String::from(left);
            for (i, cell) in row.iter().enumerate() {
                if i > 0 {
                    line += between;
                }
                let text = cell.lines.get(n).map_or("", String::as_str);
                let width = self.widths.get(i).copied().unwrap_or(0);
                let space = " ".repeat(width.saturating_sub(text.width()));
                if cell.is_number {
                    line += &space;
                    line += text;
                } else {
                    line += text;
                    line += &space;
                }
            }
            line += right;
            output.line(line.trim_end())?;
        }
        Ok(())
    }

    fn rule(&self, output: &mut Output, left: &str, fill: &str, cross: &str, right: &str) -> io::Result<()> {
        let parts: Vec<String> = self.widths.iter().map(|&width| fill.repeat(width + 2)).collect();
        output.line(&format!("{left}{}{right}", parts.join(cross)))
    }
}

/// One line of a cell: tabs as spaces, and control characters visible, as widths are counted in characters.
fn flat(line: &str) -> String {
    let line = visible(line).replace('\n', "^J");
    if !line.contains('\t') {
        return line;
    }
    let mut out = String::new();
    for (i, part) in line.split('\t').enumerate() {
        if i > 0 {
            out += &" ".repeat(8 - out.width() % 8);
        }
        out += part;
    }
    out
}
