//! What SQLite's `testfixture` says of its cases, and where it says something else through Quire than on plain files.
//!
//! `tests/judges/differences.txt` has every difference with its reason, a line for a file of tests and a reason:
//! `FILE REASON CASE…`. In a case's name `*` stands for anything. Each must happen in that file; `~` before it says that
//! it may as well not, for it depends on counts or on the moment. docs/judges.md explains the reasons.

use std::collections::BTreeMap;

/// What became of the cases of one run, by name. A name that comes again is told by its number.
pub type Outcomes = BTreeMap<String, String>;

/// A case that passed.
const OK: &str = "ok";
/// A case that did not run.
const MISSING: &str = "did not run";

/// Reads the output of a run in this directory.
pub fn outcomes(said: &str, directory: &str) -> Outcomes {
    let mut found = Outcomes::new();
    let mut put = |name: &str, outcome: &str| {
        let again = (2..).map(|n| format!("{name}#{n}"));
        let name = std::iter::once(name.to_owned()).chain(again).find(|name| !found.contains_key(name));
        found.insert(name.unwrap_or_default(), outcome.replace(directory, "."));
    };
    // The case that has begun, and what it was found to be if that takes several lines.
    let mut begun = "";
    let mut lines = said.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("! ") {
            let Some((name, got)) = rest.split_once(" got: ") else { continue };
            let mut got = got.trim_start().to_owned();
            while !got.ends_with(']') && lines.peek().is_some_and(|next| !next.contains("...")) {
                got = format!("{got} {}", lines.next().unwrap_or_default().trim());
            }
            put(name, &got);
        } else if let Some(why) = line.strip_prefix("Error: ") {
            put(begun, &format!("error: {why}"));
        } else if let Some((name, rest)) = line.split_once("...")
            && !name.contains(' ')
        {
            begun = name;
            if rest == " Ok" {
                put(name, OK);
            }
        }
    }
    found
}

/// A case that came out another way.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub case: String,
    /// On a plain file.
    pub plain: String,
    /// Through Quire.
    pub quire: String,
}

/// Compares two runs. Of one that was cut short only what it came to is compared.
pub fn compare(plain: &Outcomes, quire: &Outcomes, is_cut: bool) -> Vec<Difference> {
    let names = plain.keys().chain(quire.keys().filter(|name| !plain.contains_key(*name)));
    let of = |run: &Outcomes, name| run.get(name).map_or(MISSING, String::as_str).to_owned();
    let pairs = names.map(|name| (name, of(plain, name), of(quire, name)));
    pairs
        .filter(|(_, plain, quire)| {
            plain != quire && !(is_cut && [plain, quire].iter().any(|o| *o == MISSING))
        })
        .map(|(name, plain, quire)| Difference { case: name.clone(), plain, quire })
        .collect()
}

/// One expected difference.
#[derive(Debug)]
struct Expected {
    reason: String,
    pattern: String,
    is_certain: bool,
    happened: bool,
}

/// The differences that are expected, by file of tests.
#[derive(Debug, Default)]
pub struct Differences {
    files: BTreeMap<String, Vec<Expected>>,
}

impl Differences {
    /// Reads the list.
    pub fn parse(text: &str) -> Differences {
        let mut files: BTreeMap<String, Vec<Expected>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let (Some(file), Some(reason)) = (words.next(), words.next()) else {
                panic!("incomplete: {line}")
            };
            let expected = words.map(|word| Expected {
                reason: reason.to_owned(),
                pattern: word.trim_start_matches('~').to_owned(),
                is_certain: !word.starts_with('~'),
                happened: false,
            });
            files.entry(file.to_owned()).or_default().extend(expected);
        }
        Differences { files }
    }

    /// Why a case of a file may come out another way, if that is known.
    pub fn reason(&mut self, file: &str, case: &str) -> Option<&str> {
        // A case that comes again is the same case.
        let name = case.split('#').next().unwrap_or(case);
        let expected = self.files.get_mut(file)?.iter_mut().find(|e| matches(&e.pattern, name))?;
        expected.happened = true;
        Some(&expected.reason)
    }

    /// What is listed for a file, but has not happened.
    pub fn unheard(&self, file: &str) -> Vec<&str> {
        let expected = self.files.get(file).into_iter().flatten();
        expected.filter(|e| e.is_certain && !e.happened).map(|e| e.pattern.as_str()).collect()
    }

    /// Forgets what has happened.
    pub fn begin(&mut self, file: &str) {
        self.files.get_mut(file).into_iter().flatten().for_each(|expected| expected.happened = false);
    }
}

/// Whether a name is of a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| matches(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "wal-1.1... Ok\nwal-1.2...\n! wal-1.2 expected: [a]\n! wal-1.2 got:      [/tmp/x/b\n  c]\n\
                        wal-1.3...\nError: no such table: t1\nwal-1.1... Ok\nSQLite 2022-12-28\n2 errors out of 4";

    #[test]
    fn each_case_has_its_outcome() {
        let found = outcomes(SAID, "/tmp/x");
        let expected = [
            ("wal-1.1", "ok"),
            ("wal-1.1#2", "ok"),
            ("wal-1.2", "[./b c]"),
            ("wal-1.3", "error: no such table: t1"),
        ];
        assert_eq!(found, expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).into());
    }

    #[test]
    fn cases_that_differ_or_did_not_run_are_told() {
        let plain = outcomes(SAID, "/tmp/x");
        let quire = outcomes("wal-1.1... Ok\nwal-1.2... Ok\nwal-1.4... Ok\n", "/tmp/x");
        let cases = |is_cut| -> Vec<String> {
            compare(&plain, &quire, is_cut).into_iter().map(|difference| difference.case).collect()
        };
        assert_eq!(cases(false), ["wal-1.1#2", "wal-1.2", "wal-1.3", "wal-1.4"]);
        assert_eq!(cases(true), ["wal-1.2"]);
    }

    #[test]
    fn what_is_listed_has_a_reason_and_must_happen() {
        let mut list =
            Differences::parse("# a comment\nwal checkpoint wal-1.* ~wal-2\nwal files wal-3.*.x\n");
        assert_eq!(list.unheard("wal"), ["wal-1.*", "wal-3.*.x"]);
        assert_eq!(list.reason("wal", "wal-1.2#2"), Some("checkpoint"));
        assert_eq!(list.reason("wal", "wal-3.a.b.x"), Some("files"));
        assert_eq!(list.reason("wal", "wal-2.1"), None);
        assert_eq!(list.reason("wal2", "wal-1.2"), None);
        assert_eq!(list.unheard("wal"), Vec::<&str>::new());
        list.begin("wal");
        assert_eq!(list.unheard("wal").len(), 2);
    }
}
