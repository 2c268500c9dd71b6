//! The words of SQL, as far as the node looks at them before SQLite does.

/// A piece of SQL that isn't space or comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    Plain(&'a [u8]),
    /// A name or a string, without its quotes.
    Quoted(&'a [u8]),
    Sign(u8),
}

impl Word<'_> {
    fn is(self, word: &str) -> bool {
        matches!(self, Word::Plain(plain) if plain.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Whether it names something, with quotes or without.
    fn names(self, name: &str) -> bool {
        self.is(name) || matches!(self, Word::Quoted(quoted) if quoted.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Splits SQL into words.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn cut(&mut self, at: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(at.min(self.0.len()));
        self.0 = tail;
        head
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let find = |text: &[u8], end: &[u8]| text.windows(end.len()).position(|window| window == end);
        loop {
            let text = self.0;
            match *text {
                [] => return None,
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0c, ..] => drop(self.cut(1)),
                [b'-', b'-', ..] => drop(self.cut(find(text, b"\n").unwrap_or(text.len()))),
                [b'/', b'*', ..] => {
                    let end = find(text.get(2..).unwrap_or_default(), b"*/");
                    self.cut(end.map_or(text.len(), |end| end + 4));
                }
                // A doubled quote is one within: the pieces are not a name that is looked for here.
                [quote @ (b'\'' | b'"' | b'`' | b'['), ref rest @ ..] => {
                    let quote = if quote == b'[' { b']' } else { quote };
                    let end = rest.iter().position(|&byte| byte == quote).unwrap_or(rest.len());
                    self.cut(end + 2);
                    return rest.get(..end).map(Word::Quoted);
                }
                [first, ..] => {
                    let belongs =
                        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 128..);
                    let end = text.iter().position(|&byte| !belongs(byte)).unwrap_or(text.len());
                    if end == 0 {
                        self.cut(1);
                        return Some(Word::Sign(first));
                    }
                    return Some(Word::Plain(self.cut(end)));
                }
            }
        }
    }
}

/// Whether a request with this statement must have a connection to itself, without a transaction around it: what it
/// does can't be done within one, or would be felt by others. Where this says no wrongly, the guard refuses the
/// statement; where it says yes wrongly, the request is slower.
pub fn needs_a_connection(sql: &str) -> bool {
    let mut words = Words(sql.as_bytes()).peekable();
    let mut before: Option<Word<'_>> = None;
    while let Some(word) = words.next() {
        let begins = before.is_none_or(|b| b == Word::Sign(b';') || b.is("explain") || b.is("plan"));
        let creates = before.is_some_and(|b| b.is("create"));
        if begins && (word.is("pragma") || word.is("vacuum"))
            || creates && (word.is("temp") || word.is("temporary"))
            || word.names("temp") && words.peek() == Some(&Word::Sign(b'.'))
        {
            return true;
        }
        before = Some(word);
    }
    false
}

/// Whether a statement may ask what the connection did before it.
pub(super) fn looks_back(sql: &str) -> bool {
    let names = ["last_insert_rowid", "changes", "total_changes"];
    Words(sql.as_bytes()).any(|word| names.iter().any(|name| word.names(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_look_back() {
        assert!(
            looks_back("INSERT INTO t VALUES(last_insert_rowid ())") && looks_back("SELECT \"Changes\"()")
        );
        assert!(!looks_back("INSERT INTO exchanges VALUES('last insert_rowid')"));
    }

    #[test]
    fn words_not_letters_need_a_connection() {
        for sql in [
            "PRAGMA foreign_keys=ON",
            "/* x */ pragma user_version",
            "EXPLAIN PRAGMA foreign_keys=ON",
            "SELECT 1; -- x;\n vacuum",
            "VACUUM",
            "CREATE TEMP TABLE x(y)",
            "create/**/temporary view v AS SELECT 1",
            "CREATE TABLE temp.x(y)",
            "CREATE TABLE \"temp\" . x(y)",
            "CREATE TRIGGER [Temp].x AFTER INSERT ON y BEGIN SELECT 1; END",
            "SELECT * FROM t; INSERT INTO 'temp'.x VALUES(1)",
        ] {
            assert!(needs_a_connection(sql), "{sql}");
        }
        for sql in [
            "",
            ";",
            "'",
            "[",
            "/*",
            "--",
            "INSERT INTO temperatures VALUES(1); INSERT INTO temperatures VALUES(2)",
            "UPDATE template SET attempt=attempt+1",
            "INSERT INTO r(temp, vacuum) VALUES('PRAGMA x', 'it''s; VACUUM')",
            "SELECT temp FROM r WHERE temp>1.5",
            "CREATE TABLE t(temporary, pragma)",
            "SELECT 1 /* ; PRAGMA x */ -- ; VACUUM",
            "SELECT * FROM pragma_table_info('t')",
            "SELECT ':temp', :temp, \"temp\"\".x\", é",
        ] {
            assert!(!needs_a_connection(sql), "{sql}");
        }
    }
}
