//! What Tab offers: dot commands and what goes behind them; keywords, tables and columns.

use super::keywords::KEYWORDS;
use super::mode::MODES;
use super::session::LEVELS;
use super::statement::quoted;
use std::collections::BTreeSet;

/// The tables and views of a database, and their columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(pub(super) Vec<(String, Vec<String>)>);

/// What could stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// These, in place of what stands from this byte on.
    Words(usize, Vec<String>),
    Files,
}

/// What completes the line up to the cursor. Lines before it belong to the same statement.
pub(super) fn offer(before: &str, line: &str, names: impl FnOnce() -> Names) -> Offer {
    if before.is_empty() && line.starts_with('.') {
        return dot(line, names);
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let start =
        line.rfind(|c| !is_word(c)).map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
    let (head, word) = line.split_at(start);
    let is_for_table = follows_table_word(before, head);
    if word.is_empty() && !head.ends_with('.') && !is_for_table {
        return Offer::Words(start, Vec::new());
    }
    let names = names();
    let mut found = BTreeSet::new();
    let mut add = |name: &str| {
        if begins(name, word) {
            found.insert(quoted(name));
        }
    };
    if let Some(head) = head.strip_suffix('.') {
        let table = head.rsplit(|c| !is_word(c) && c != '"').next().unwrap_or("").trim_matches('"');
        let known = names.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case(table));
        let mut columns: Vec<&String> = known.flat_map(|(_, columns)| columns).collect();
        // It may be an alias.
        if columns.is_empty() {
            columns = names.0.iter().flat_map(|(_, columns)| columns).collect();
        }
        columns.into_iter().for_each(|column| add(column));
        return Offer::Words(start, found.into_iter().collect());
    }
    names.0.iter().for_each(|(name, _)| add(name));
    if is_for_table {
        return Offer::Words(start, found.into_iter().collect());
    }
    let text = format!("{before} {head}").to_lowercase();
    let is_named = |name: &String| text.split(|c| !is_word(c)).any(|word| word.eq_ignore_ascii_case(name));
    let any_is_named = names.0.iter().any(|(name, _)| is_named(name));
    for (name, columns) in &names.0 {
        if !any_is_named || is_named(name) {
            columns.iter().for_each(|column| add(column));
        }
    }
    let mut found: Vec<String> = found.into_iter().collect();
    let is_lower = word.chars().any(char::is_lowercase);
    for keyword in KEYWORDS.iter().filter(|keyword| begins(keyword, word)) {
        found.push(if is_lower { keyword.to_lowercase() } else { (*keyword).to_owned() });
    }
    Offer::Words(start, found)
}

fn begins(name: &str, with: &str) -> bool {
    name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

/// Whether only a table can come next.
fn follows_table_word(before: &str, head: &str) -> bool {
    let text = format!("{before} {head}");
    let last = text.split_whitespace().next_back().unwrap_or("");
    let ends = text.ends_with(char::is_whitespace);
    ends && ["from", "join", "into", "update", "table"].iter().any(|word| last.eq_ignore_ascii_case(word))
}

fn dot(line: &str, names: impl FnOnce() -> Names) -> Offer {
    let Some((command, arguments)) = line.split_once(char::is_whitespace) else {
        let known = super::dot::COMMANDS.iter().flat_map(|command| command.names);
        let known = known.map(|name| format!(".{name}")).filter(|name| begins(name, line));
        return Offer::Words(0, known.collect());
    };
    let start = line.len() - arguments.split(char::is_whitespace).next_back().unwrap_or("").len();
    let word = &line[start..];
    let of = |words: Vec<&str>| {
        let fitting = words.into_iter().filter(|known| begins(known, word)).map(str::to_owned);
        Offer::Words(start, fitting.collect())
    };
    match command {
        ".mode" => of(MODES.iter().map(|(name, _)| *name).collect()),
        ".headers" | ".timer" | ".changes" | ".bail" => of(vec!["off", "on"]),
        ".level" | ".consistency" => of(LEVELS.to_vec()),
        ".leader" => of(vec!["transfer"]),
        ".help" => of(super::dot::COMMANDS.iter().flat_map(|command| command.names).copied().collect()),
        ".schema" | ".tables" | ".indexes" | ".indices" => {
            let names = names();
            of(names.0.iter().map(|(name, _)| name.as_str()).collect())
        }
        ".read" | ".backup" | ".restore" | ".output" | ".dump" | ".import" => Offer::Files,
        _ => of(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let table =
            |name: &str, columns: &[&str]| (name.into(), columns.iter().map(|c| (*c).into()).collect());
        Names(vec![
            table("orders", &["id", "item", "order date"]),
            table("people", &["id", "name"]),
            table("Group", &["x"]),
        ])
    }

    fn words(before: &str, line: &str) -> Vec<String> {
        match offer(before, line, names) {
            Offer::Words(_, words) => words,
            Offer::Files => vec!["(files)".into()],
        }
    }

    #[test]
    fn sql() {
        assert_eq!(words("", "GROU"), ["\"Group\"", "GROUP", "GROUPS"]);
        assert_eq!(words("", "sele"), ["select"]);
        assert_eq!(words("", "SELECT * FROM o"), ["orders"]);
        assert_eq!(words("", "SELECT * FROM "), ["\"Group\"", "orders", "people"]);
        assert_eq!(words("SELECT *\nFROM\n", ""), ["\"Group\"", "orders", "people"]);
        assert_eq!(words("", "SELECT na"), ["name", "natural"]);
        assert_eq!(words("SELECT * FROM orders\n", "WHERE i").first().unwrap(), "id");
        assert!(!words("SELECT * FROM orders\n", "WHERE n").contains(&"name".into()), "of the other table");
        assert_eq!(words("", "SELECT orders.o"), ["\"order date\""]);
        assert_eq!(words("", "SELECT p."), ["\"order date\"", "id", "item", "name", "x"]);
        assert_eq!(words("", "SELECT "), [""; 0]);
        assert_eq!(words("", "SELECT 'é"), [""; 0]);
    }

    #[test]
    fn what_is_replaced() {
        assert_eq!(offer("", "SELECT é, it", names), Offer::Words(11, vec!["item".into()]));
        assert_eq!(offer("", ".mode js", names), Offer::Words(6, vec!["json".into()]));
    }

    #[test]
    fn dot_commands() {
        assert_eq!(words("", ".tab"), [".tables"]);
        assert_eq!(words("", ".mode ta"), ["table", "tabs"]);
        assert_eq!(words("", ".schema pe"), ["people"]);
        assert_eq!(words("", ".level "), LEVELS);
        assert_eq!(words("", ".read x"), ["(files)"]);
        assert_eq!(words("", ".nonsense x"), [""; 0]);
    }
}
