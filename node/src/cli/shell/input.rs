//! Lines become statements and dot commands. A statement ends where SQLite's `sqlite3_complete` says, on whichever line; a
//! dot command is a line that begins with a dot where no statement is open.

use crate::script::MAX_STATEMENT;
use crate::splitter::Splitter;
use std::io::{self, BufRead, ErrorKind, Read};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Sql {
        text: String,
        /// Where it begins, from 1.
        line: u64,
    },
    Dot {
        text: String,
        line: u64,
    },
}

/// Gathers lines.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    splitter: Splitter,
    /// The statement so far.
    text: String,
    /// Lines taken.
    lines: u64,
    /// Where the open statement begins.
    begins: u64,
}

impl Gatherer {
    /// Takes a line, or several, without the last line's end; returns what is complete.
    pub(super) fn take(&mut self, lines: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for line in lines.split('\n') {
            self.lines += 1;
            if self.text.is_empty() && line.starts_with('.') {
                pieces.push(Piece::Dot { text: line.trim_end().to_owned(), line: self.lines });
                continue;
            }
            self.line(line, &mut pieces);
        }
        pieces
    }

    fn line(&mut self, line: &str, pieces: &mut Vec<Piece>) {
        let mut from = 0;
        for (at, byte) in line.bytes().enumerate() {
            if self.splitter.take(byte) {
                self.add(&line[from..=at]);
                from = at + 1;
                let text = std::mem::take(&mut self.text);
                pieces.push(Piece::Sql { text, line: self.begins });
            }
        }
        self.splitter.take(b'\n');
        self.add(&line[from..]);
        if self.splitter.is_between() {
            self.text.clear();
        } else if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    fn add(&mut self, text: &str) {
        if self.text.is_empty() {
            self.begins = self.lines;
            self.text.push_str(text.trim_start());
        } else {
            self.text.push_str(text);
        }
    }

    /// How many lines it has taken.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether a statement is open, or a comment.
    pub(super) fn is_open(&self) -> bool {
        !self.text.is_empty()
    }

    /// The open statement so far.
    pub(super) fn open(&self) -> &str {
        &self.text
    }

    /// The statement that is open where the input ends.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        let (text, line) = (std::mem::take(&mut self.text), self.begins);
        self.splitter = Splitter::default();
        (!text.trim().is_empty()).then_some(Piece::Sql { text, line })
    }

    /// Forgets the open statement.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.splitter = Splitter::default();
    }
}

/// The next line of a file or a pipe, without its end; `None` after the last. No line is longer than a statement may be.
pub(super) fn read_line(input: &mut dyn BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if input.take(MAX_STATEMENT as u64 + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() > MAX_STATEMENT {
        let why = format!("a line has more than {} MiB", MAX_STATEMENT >> 20);
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    let text = String::from_utf8(line);
    text.map(Some).map_err(|_| io::Error::new(ErrorKind::InvalidData, "this is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str, line: u64) -> Piece {
        Piece::Sql { text: text.into(), line }
    }

    fn dot(text: &str, line: u64) -> Piece {
        Piece::Dot { text: text.into(), line }
    }

    #[test]
    fn statements_over_lines_and_lines_with_statements() {
        let mut gatherer = Gatherer::default();
        assert_eq!(gatherer.take("SELECT 1; SELECT 2;"), [sql("SELECT 1;", 1), sql("SELECT 2;", 1)]);
        assert!(!gatherer.is_open());
        assert_eq!(gatherer.take("  SELECT"), []);
        assert!(gatherer.is_open());
        assert_eq!(gatherer.take(".tables"), [], "within a statement, it is none");
        assert_eq!(gatherer.take("';"), []);
        assert_eq!(gatherer.take("';  SELECT 3"), [sql("SELECT\n.tables\n';\n';", 2)]);
        assert_eq!(gatherer.rest(), Some(sql("SELECT 3\n", 5)));
        assert_eq!(gatherer.rest(), None);
        assert_eq!(gatherer.take(".mode csv  "), [dot(".mode csv", 6)]);
    }

    #[test]
    fn triggers_have_semicolons() {
        let mut gatherer = Gatherer::default();
        let lines = ["CREATE TRIGGER t AFTER INSERT ON a BEGIN", "  DELETE FROM b;", "END;"];
        assert_eq!(gatherer.take(lines[0]), []);
        assert_eq!(gatherer.take(lines[1]), []);
        assert_eq!(gatherer.take(lines[2]), [sql(&lines.join("\n"), 1)]);
        assert_eq!(gatherer.take(&lines.join("\n")), [sql(&lines.join("\n"), 4)], "pasted");
    }

    #[test]
    fn comments_are_no_statements() {
        let mut gatherer = Gatherer::default();
        assert_eq!(gatherer.take("-- nothing; to do"), []);
        assert!(!gatherer.is_open());
        assert_eq!(gatherer.take(".quit"), [dot(".quit", 2)]);
        assert_eq!(gatherer.take("/* open;"), []);
        assert!(gatherer.is_open());
        assert_eq!(gatherer.take(".x */"), []);
        assert!(!gatherer.is_open());
        gatherer.take("SELECT 'never");
        gatherer.clear();
        assert_eq!(gatherer.take("SELECT 1;"), [sql("SELECT 1;", 6)]);
    }

    #[test]
    fn lines() {
        let mut input: &[u8] = b"a\r\n\nb";
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(
            [next(), next(), next(), next()],
            [Some("a".into()), Some("".into()), Some("b".into()), None]
        );
        let mut bad: &[u8] = b"\xff\n";
        assert_eq!(read_line(&mut bad).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
