//! Rows of a text with separators between the columns, as RFC 4180 has them: a field in double quotes may hold separators,
//! line ends, and double quotes, which are doubled. What [`super::mode`] prints as CSV is read back as it was.

use crate::script::MAX_STATEMENT;
use std::io::{self, BufRead, ErrorKind, Read};

/// A row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The line where it begins, from 1.
    pub(super) line: u64,
    pub(super) fields: Vec<Field>,
}

/// What stands between two separators.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) text: String,
    pub(super) is_quoted: bool,
}

impl Row {
    /// Whether nothing stands on its line.
    pub(super) fn is_blank(&self) -> bool {
        matches!(&self.fields[..], [only] if only.text.is_empty() && !only.is_quoted)
    }
}

/// Reads rows.
pub(super) struct Rows<R> {
    input: R,
    separator: u8,
    /// Lines taken.
    lines: u64,
}

impl<R: BufRead> Rows<R> {
    /// Columns are separated by an ASCII character that is neither a quote nor a line end.
    pub(super) fn new(input: R, separator: u8) -> Rows<R> {
        Rows { input, separator, lines: 0 }
    }

    /// The next row; `None` after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Row>> {
        let line = self.lines + 1;
        let bad = |why: &str| io::Error::new(ErrorKind::InvalidData, format!("line {line}: {why}"));
        let mut bytes = Vec::new();
        let mut fields = Vec::new();
        // Of the field: where it begins, whether it began with a quote, and whether that is open.
        let (mut begin, mut is_quoted, mut is_open) = (0, false, false);
        let mut at = 0;
        loop {
            if at == bytes.len() {
                let left = (MAX_STATEMENT + 1).saturating_sub(bytes.len()) as u64;
                if self.input.by_ref().take(left).read_until(b'\n', &mut bytes)? == 0 {
                    if is_open {
                        return Err(bad("the quote that begins there is never closed"));
                    }
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    break;
                }
                if bytes.len() > MAX_STATEMENT {
                    return Err(bad(&format!("a row has more than {} MiB", MAX_STATEMENT >> 20)));
                }
                if self.lines == 0 && bytes.starts_with(b"\xef\xbb\xbf") {
                    bytes.drain(..3);
                }
                self.lines += 1;
                continue;
            }
            match bytes[at] {
                b'"' if is_open => is_open = false,
                _ if is_open => {}
                b'"' if at == begin => (is_quoted, is_open) = (true, true),
                // A doubled quote.
                b'"' if is_quoted && bytes[at - 1] == b'"' => is_open = true,
                b'\n' => break,
                byte if byte == self.separator => {
                    fields.push(field(&bytes[begin..at], is_quoted).map_err(bad)?);
                    (begin, is_quoted) = (at + 1, false);
                }
                _ => {}
            }
            at += 1;
        }
        let last = &bytes[begin..at];
        let last = if at < bytes.len() { last.strip_suffix(b"\r").unwrap_or(last) } else { last };
        fields.push(field(last, is_quoted).map_err(bad)?);
        Ok(Some(Row { line, fields }))
    }
}

/// A field without its quotes.
fn field(bytes: &[u8], is_quoted: bool) -> Result<Field, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "this is no UTF-8 text")?;
    if !is_quoted {
        return Ok(Field { text: text.to_owned(), is_quoted });
    }
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let inner = inner.filter(|inner| inner.matches('"').count() == 2 * inner.matches("\"\"").count());
    let inner = inner.ok_or("something stands behind the quote that closes a field")?;
    Ok(Field { text: inner.replace("\"\"", "\""), is_quoted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, separator: u8) -> Result<Vec<(u64, Vec<String>)>, String> {
        let mut rows = Rows::new(text.as_bytes(), separator);
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(|why| why.to_string())? {
            all.push((row.line, row.fields.into_iter().map(|field| field.text).collect()));
        }
        Ok(all)
    }

    #[test]
    fn rows_and_fields() {
        let read = |text: &str| -> Vec<Vec<String>> {
            rows(text, b',').unwrap().into_iter().map(|(_, fields)| fields).collect()
        };
        assert_eq!(read("a,b\n1,2\n"), [["a", "b"], ["1", "2"]]);
        assert_eq!(read("a,b\r\n1,2"), [["a", "b"], ["1", "2"]]);
        assert_eq!(read("\u{feff}a,\u{e9}\n,\n"), [["a", "\u{e9}"], ["", ""]]);
        assert_eq!(read("\"a,\"\"b\"\"\",\"\"\n"), [["a,\"b\"", ""]]);
        assert_eq!(read("\"\"\"\",\"\"\"\"\"\"\n"), [["\"", "\"\""]]);
        assert_eq!(read("x\"y,5\" nail\n"), [["x\"y", "5\" nail"]], "a quote within a field is one");
        assert_eq!(read(""), [[""; 0]; 0]);
        assert_eq!(
            rows("\"a\r\nb\",1\n\n2\n", b',').unwrap(),
            [(1, vec!["a\r\nb".into(), "1".into()]), (3, vec!["".into()]), (4, vec!["2".into()])]
        );
        assert_eq!(rows("a b|\"c|d\"\n", b'|').unwrap(), [(1, vec!["a b".into(), "c|d".into()])]);
    }

    #[test]
    fn what_is_quoted_and_what_is_blank() {
        let row = |text: &str| Rows::new(text.as_bytes(), b',').next().unwrap().unwrap();
        assert!(row("\n").is_blank() && row("\r\n").is_blank());
        assert!(!row("\"\"\n").is_blank() && !row(",\n").is_blank());
        let quoted: Vec<bool> = row(",\"\",x,\"x\"").fields.iter().map(|field| field.is_quoted).collect();
        assert_eq!(quoted, [false, true, false, true]);
    }

    #[test]
    fn what_makes_no_sense() {
        for (text, why) in [
            ("a\n\"b\nc", "line 2: the quote that begins there is never closed"),
            ("\"a\"b,c\n", "line 1: something stands behind"),
            ("\"a\" \n", "line 1: something stands behind"),
            ("\"a\"b\"\n", "line 1: something stands behind"),
        ] {
            let said = rows(text, b',').unwrap_err();
            assert!(said.starts_with(why), "{text:?}: {said}");
        }
        let mut rows = Rows::new(&b"\xff\n"[..], b',');
        assert_eq!(rows.next().unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
