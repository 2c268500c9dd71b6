//! What a statement is, as far as the shell has to know: whether it ends or begins a transaction, whether it may be sent
//! again, whether it changes the schema. SQLite has the last word on everything else.

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is only space, comments and semicolons.
    Empty,
    Begin,
    Commit,
    /// Not to a savepoint.
    Rollback,
    /// Nothing changes if it runs twice.
    Read,
    /// It changes which tables and columns there are.
    Schema,
    Write,
}

/// What a statement does, by its first words.
pub(super) fn kind(sql: &str) -> Kind {
    let mut words = Words(sql);
    let Some(first) = words.next() else { return Kind::Empty };
    let is = |word: &str| first.eq_ignore_ascii_case(word);
    if is("begin") {
        Kind::Begin
    } else if is("commit") || is("end") {
        Kind::Commit
    } else if is("rollback") {
        let to_savepoint = words.any(|word| word.eq_ignore_ascii_case("to"));
        if to_savepoint { Kind::Write } else { Kind::Rollback }
    } else if is("select") || is("values") || is("explain") || is("pragma") {
        Kind::Read
    } else if is("with") {
        const WRITES: [&str; 4] = ["insert", "update", "delete", "replace"];
        let writes = words.any(|word| WRITES.iter().any(|write| word.eq_ignore_ascii_case(write)));
        if writes { Kind::Write } else { Kind::Read }
    } else if is("create") || is("drop") || is("alter") {
        Kind::Schema
    } else {
        Kind::Write
    }
}

/// What a statement makes that lasts no longer than its connection, which is its own outside a transaction.
pub(super) fn passing(sql: &str) -> Option<&'static str> {
    let words: Vec<&str> = Words(sql).take(6).collect();
    let is = |at: usize, known: &[&str]| {
        words.get(at).is_some_and(|word| known.iter().any(|known| word.eq_ignore_ascii_case(known)))
    };
    if is(0, &["create"]) && is(1, &["temp", "temporary"]) {
        return Some("what is temporary");
    }
    let at = if is(2, &["."]) { 3 } else { 1 };
    // What is off is so anyway.
    let sets = is(0, &["pragma"]) && is(at + 1, &["=", "("]) && !is(at + 2, &["off", "no", "false", "0"]);
    (sets && words.get(at).is_some_and(|name| crate::sql::guard::is_setting(name))).then_some("a setting")
}

/// The words and signs of SQL without space, comments and the semicolons before the first one. A string or a quoted
/// name comes as its first quote.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let text =
                self.0.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';' || c == '\u{feff}');
            let skipped = if text.starts_with("--") {
                text.find('\n').unwrap_or(text.len())
            } else if let Some(comment) = text.strip_prefix("/*") {
                comment.find("*/").map_or(text.len(), |end| end + 4)
            } else {
                let first = text.chars().next()?;
                let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
                let (word, rest) = if is_word(first) {
                    text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()))
                } else {
                    text.split_at(first.len_utf8())
                };
                let closing = match first {
                    '\'' | '"' | '`' => Some(first),
                    '[' => Some(']'),
                    _ => None,
                };
                let quoted = closing.map(|end| rest.find(end).map_or(rest.len(), |at| at + 1));
                self.0 = &rest[quoted.unwrap_or(0)..];
                return Some(word);
            };
            self.0 = &text[skipped..];
        }
    }
}

/// A name as SQL has it: quoted where it must be.
pub(super) fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let plain = begins && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_keyword = super::keywords::KEYWORDS.iter().any(|word| word.eq_ignore_ascii_case(name));
    if plain && !is_keyword { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (sql, expected) in [
            ("", Kind::Empty),
            (" ; -- x", Kind::Empty),
            ("/* a; */ -- b\n ;", Kind::Empty),
            ("/* open", Kind::Empty),
            ("BEGIN", Kind::Begin),
            ("; /**/ begin immediate;", Kind::Begin),
            ("END TRANSACTION;", Kind::Commit),
            ("commit", Kind::Commit),
            ("rollback;", Kind::Rollback),
            ("ROLLBACK TO x", Kind::Write),
            ("rollback transaction to savepoint x", Kind::Write),
            ("SELECT 1", Kind::Read),
            ("select* from t", Kind::Read),
            ("EXPLAIN DELETE FROM t", Kind::Read),
            ("WITH a AS (SELECT 'x; insert') SELECT * FROM a", Kind::Read),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", Kind::Write),
            ("Create Table t(a)", Kind::Schema),
            ("begins", Kind::Write),
            ("\u{e9}", Kind::Write),
            ("'begin'", Kind::Write),
        ] {
            assert_eq!(kind(sql), expected, "{sql:?}");
        }
    }

    #[test]
    fn what_is_over_with_its_statement() {
        for sql in ["PRAGMA foreign_keys=ON;", "pragma main.foreign_keys ( 1 )", "PRAGMA busy_timeout = 100"]
        {
            assert_eq!(passing(sql), Some("a setting"), "{sql}");
        }
        assert_eq!(passing("CREATE /**/ TEMP TABLE t(a);"), Some("what is temporary"));
        for sql in [
            "PRAGMA foreign_keys;",
            "PRAGMA foreign_keys=OFF;",
            "PRAGMA user_version=7",
            "PRAGMA table_info(t)",
            "CREATE TABLE temp(a)",
            "SELECT 1",
            "",
        ] {
            assert_eq!(passing(sql), None, "{sql}");
        }
    }

    #[test]
    fn names_are_quoted_where_they_must_be() {
        for (name, expected) in [
            ("orders", "orders"),
            ("_x1", "_x1"),
            ("1x", "\"1x\""),
            ("two words", "\"two words\""),
            ("a\"b", "\"a\"\"b\""),
            ("Order", "\"Order\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }
}
