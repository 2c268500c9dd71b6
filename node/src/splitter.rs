//! Where one statement of an SQL text ends and the next begins, byte by byte, by the rules of `sqlite3_complete`: at
//! semicolons, but not those of strings, names, comments and the bodies of triggers.

/// Tells where statements end.
#[derive(Debug)]
pub struct Splitter {
    /// What comes next, byte by byte.
    lex: Lex,
    /// What came before, token by token.
    seen: Seen,
    word: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lex {
    Plain,
    Word,
    /// A `-`, which may begin a comment.
    Dash,
    /// A `/`, likewise.
    Slash,
    Line,
    /// Inside `/* */`; true after a `*`.
    Block(bool),
    /// Until this byte. One that is doubled ends, and begins again.
    Quote(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Normal,
    Explain,
    Create,
    /// In a trigger, whose statements have semicolons of their own.
    Trigger,
    /// After one of these.
    Semicolon,
    /// After `; END`.
    End,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter { lex: Lex::Plain, seen: Seen::Nothing, word: Vec::new() }
    }
}

impl Splitter {
    /// Takes a byte, and tells whether a statement ends with it.
    pub fn take(&mut self, byte: u8) -> bool {
        match self.lex {
            Lex::Word if is_word(byte) => {
                // No keyword is longer.
                if self.word.len() < 16 {
                    self.word.push(byte.to_ascii_lowercase());
                }
                return false;
            }
            Lex::Word => {
                let word = std::mem::take(&mut self.word);
                self.token(&word);
            }
            Lex::Dash if byte == b'-' => {
                self.lex = Lex::Line;
                return false;
            }
            Lex::Slash if byte == b'*' => {
                self.lex = Lex::Block(false);
                return false;
            }
            Lex::Dash | Lex::Slash => self.token(b"-"),
            Lex::Line => {
                if byte == b'\n' {
                    self.lex = Lex::Plain;
                }
                return false;
            }
            Lex::Block(star) => {
                self.lex = if star && byte == b'/' { Lex::Plain } else { Lex::Block(byte == b'*') };
                return false;
            }
            Lex::Quote(end) => {
                if byte == end {
                    self.lex = Lex::Plain;
                }
                return false;
            }
            Lex::Plain => {}
        }
        self.lex = Lex::Plain;
        match byte {
            b';' => return self.semicolon(),
            b' ' | b'\t' | b'\r' | b'\n' | b'\x0c' => {}
            b'-' => self.lex = Lex::Dash,
            b'/' => self.lex = Lex::Slash,
            b'\'' | b'"' | b'`' | b'[' => {
                self.token(b"'");
                self.lex = Lex::Quote(if byte == b'[' { b']' } else { byte });
            }
            _ if is_word(byte) => {
                self.lex = Lex::Word;
                self.word.push(byte.to_ascii_lowercase());
            }
            _ => self.token(&[byte]),
        }
        false
    }

    /// Whether nothing but space and comments has come since the last statement, and no comment is open.
    pub fn is_between(&self) -> bool {
        self.seen == Seen::Nothing && matches!(self.lex, Lex::Plain | Lex::Line)
    }

    /// The table of `sqlite3_complete` (complete.c), but for semicolons and white space.
    fn token(&mut self, word: &[u8]) {
        self.seen = match (self.seen, word) {
            (Seen::Nothing, b"explain") => Seen::Explain,
            (Seen::Nothing | Seen::Explain, b"create") => Seen::Create,
            (Seen::Explain, b"explain" | b"temp" | b"temporary" | b"trigger" | b"end") => Seen::Normal,
            (Seen::Explain, _) => Seen::Explain,
            (Seen::Create, b"temp" | b"temporary") => Seen::Create,
            (Seen::Create, b"trigger") => Seen::Trigger,
            (Seen::Semicolon, b"end") => Seen::End,
            (Seen::Trigger | Seen::Semicolon | Seen::End, _) => Seen::Trigger,
            _ => Seen::Normal,
        };
    }

    fn semicolon(&mut self) -> bool {
        let inside = matches!(self.seen, Seen::Trigger | Seen::Semicolon);
        self.seen = if inside { Seen::Semicolon } else { Seen::Nothing };
        !inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(sql: &str) -> Vec<&str> {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        let mut from = 0;
        for (at, byte) in sql.bytes().enumerate() {
            if splitter.take(byte) {
                out.push(sql[from..=at].trim());
                from = at + 1;
            }
        }
        out.extend(Some(sql[from..].trim()).filter(|rest| !rest.is_empty()));
        out
    }

    #[test]
    fn statements_end_where_sqlite_ends_them() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN SELECT ';'; SELECT 'end'; END;";
        for statement in [
            "SELECT 1;",
            "SELECT ';', \"a;b\", `;`, [;], 'it''s;';",
            "SELECT 1 - 2 / 3; ",
            "/* ; */ SELECT 1 -- ; '\n;",
            "EXPLAIN CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END ;",
            "CREATE TABLE trigger_log(a, \"end\");",
            "SELECT CASE WHEN 1 THEN 2 END;",
            trigger,
        ] {
            let twice = format!("{statement}\n{statement}");
            assert_eq!(split(&twice), [statement.trim(), statement.trim()], "{statement}");
        }
        assert_eq!(split("SELECT 1; SELECT 2"), ["SELECT 1;", "SELECT 2"]);
    }

    proptest! {
        /// Whatever SQLite takes for complete, this takes for complete, and the other way round.
        #[test]
        fn as_sqlite3_complete(parts in proptest::collection::vec(proptest::sample::select(vec![
            "CREATE ", "TRIGGER ", "END", ";", " ", "TEMP ", "EXPLAIN ", "'a;'", "\"", "--", "\n", "/*", "*/", "x", "-",
            "/", "1", "$",
        ]), 0..14))
        {
            let sql = parts.concat();
            let c = std::ffi::CString::new(sql.clone()).unwrap();
            // SAFETY: `sqlite3_complete` reads a C string.
            let complete = unsafe { rusqlite::ffi::sqlite3_complete(c.as_ptr()) } != 0;
            let mut splitter = Splitter::default();
            let ended = sql.bytes().filter(|byte| splitter.take(*byte)).count() > 0;
            let ours = ended && splitter.seen == Seen::Nothing && splitter.lex == Lex::Plain;
            prop_assert_eq!(ours, complete, "{:?}", sql);
        }
    }
}
