//! Commands that begin with a dot: which there are, how a line becomes one, and those that set something.

use super::error::Error;
use super::mode::{MODES, Mode};
use super::session::LEVELS;
use super::{Flow, Shell, dot_cluster, dot_files, dot_import, dot_schema};
use crate::api::Params;

/// A command.
pub(super) struct Command {
    /// Without the dot; the first is its own, the others are rqlite's or SQLite's.
    pub(super) names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    /// How many arguments there may be.
    most: usize,
    run: fn(&mut Shell, &[String]) -> Result<Flow, Error>,
}

macro_rules! commands {
    ($($names:expr, $arguments:literal, $most:expr, $help:literal, $run:expr;)*) => {
        &[$(Command { names: &$names, arguments: $arguments, most: $most, help: $help, run: $run }),*]
    };
}

/// All of them, in order.
pub(super) const COMMANDS: &[Command] = commands! {
    ["backup"], "[--force] FILE", 2, "The database to a SQLite file", dot_files::backup;
    ["bail"], "on|off", 1, "End at the first error", |shell, args| set_flag(&mut shell.has_bail, args);
    ["changes"], "on|off", 1, "Print how many rows each statement changed", |shell, args| {
        set_flag(&mut shell.has_changes, args)
    };
    ["db"], "[NAME]", 1, "Go on with another database; which one it is", dot_schema::db;
    ["dbs", "databases"], "", 0, "The databases", dot_schema::dbs;
    ["dump"], "[--force] [FILE|-] [TABLE …]", 100, "The database, or tables, as an SQL script", dot_files::dump;
    ["expvar"], "[KEY]", 1, "The node's counters, as JSON", dot_cluster::expvar;
    ["headers"], "on|off", 1, "Print headings, or not", headers;
    ["help"], "[COMMAND]", 1, "This", help;
    ["import"], "[--csv|--tabs] [--skip N] FILE TABLE", 6, "The rows of a text file into a table", dot_import::import;
    ["indexes", "indices"], "[TABLE]", 1, "Names of the indexes", dot_schema::indexes;
    ["leader"], "[transfer [NODE_ID]]", 2, "Who leads; have it hand over the lead", dot_cluster::leader;
    ["level", "consistency"], "[LEVEL]", 1, "How new reads are: none, weak, linearizable, strong, auto", level;
    ["mode"], "[MODE [TABLE]]", 2,
        "How results look: list csv tabs json line column table box markdown quote insert", mode;
    ["nodes"], "", 0, "The nodes of the cluster", dot_cluster::nodes;
    ["nullvalue"], "TEXT", 1, "What stands for NULL", |shell, args| {
        shell.look.null = args.first().cloned().unwrap_or_default();
        Ok(Flow::Go)
    };
    ["output"], "[FILE]", 1, "Write results to a file; without one, here again", dot_files::output;
    ["print"], "[TEXT …]", 100, "Print this", |shell, args| {
        shell.output.line(&args.join(" "))?;
        Ok(Flow::Go)
    };
    ["quit", "exit"], "[STATUS]", 1, "Leave", quit;
    ["read"], "FILE", 1, "Run the statements and commands of a file", dot_files::read;
    ["ready"], "", 0, "Whether the node serves", dot_cluster::ready;
    ["remove"], "NODE_ID", 1, "Remove a member from the cluster for good", dot_cluster::remove;
    ["restore"], "[--replace] FILE", 2, "A SQLite file or an SQL script becomes the database", dot_files::restore;
    ["schema"], "[PATTERN]", 1, "CREATE statements", dot_schema::schema;
    ["separator"], "TEXT", 1, "What stands between the columns of a list", |shell, args| {
        shell.look.separator = args.first().cloned().unwrap_or_default();
        Ok(Flow::Go)
    };
    ["show"], "", 0, "What is set", show;
    ["status"], "[KEY]", 1, "Everything about the node, as JSON", dot_cluster::status;
    ["tables"], "[PATTERN]", 1, "Names of the tables and views", dot_schema::tables;
    ["timeout"], "[TIME]", 1, "How long a statement may take, such as 30s or 5m", timeout;
    ["timer"], "on|off", 1, "Print how long each statement took", |shell, args| {
        set_flag(&mut shell.has_timer, args)?;
        shell.session.has_timings = shell.has_timer;
        Ok(Flow::Go)
    };
};

/// Runs a line.
pub(super) fn run(shell: &mut Shell, line: &str) -> Result<Flow, Error> {
    let mut words = split(line).map_err(Error::said)?;
    let name = words.remove(0).trim_start_matches('.').to_lowercase();
    let command = find(&name).ok_or_else(|| {
        Error::said(format!("there is no command .{name}, or there are several that begin so; see .help"))
    })?;
    if words.len() > command.most {
        return Err(usage(command));
    }
    (command.run)(shell, &words).map_err(|error| match error {
        Error::Said(text) if text.is_empty() => usage(command),
        error => error,
    })
}

fn usage(command: &Command) -> Error {
    Error::said(format!("usage: .{} {}", command.names[0], command.arguments))
}

/// Wrong arguments.
pub(super) fn misused<T>() -> Result<T, Error> {
    Err(Error::said(""))
}

/// By its name, or the beginning of it.
fn find(name: &str) -> Option<&'static Command> {
    let exact = COMMANDS.iter().find(|command| command.names.contains(&name));
    let is_begun = |command: &&Command| command.names.iter().any(|known| known.starts_with(name));
    let mut begun = COMMANDS.iter().filter(is_begun);
    exact.or_else(|| begun.next().filter(|_| !name.is_empty() && begun.next().is_none()))
}

/// The words of a line. One in quotes may have spaces; in double quotes, `\t`, `\n`, `\"` and `\\` have their meaning.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { break };
        let mut word = String::new();
        if first == '"' || first == '\'' {
            chars.next();
            loop {
                match chars.next() {
                    Some(c) if c == first => break,
                    Some('\\') if first == '"' => match chars.next() {
                        Some('t') => word.push('\t'),
                        Some('n') => word.push('\n'),
                        Some(c) => word.push(c),
                        None => {}
                    },
                    Some(c) => word.push(c),
                    None => return Err(format!("{first} is never closed")),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
    }
    if words.is_empty() { Err("a command is missing".into()) } else { Ok(words) }
}

fn set_flag(flag: &mut bool, args: &[String]) -> Result<Flow, Error> {
    *flag = is_on(args)?;
    Ok(Flow::Go)
}

fn is_on(args: &[String]) -> Result<bool, Error> {
    match args.first().map(|word| word.to_lowercase()).as_deref() {
        Some("on" | "yes" | "1" | "true") => Ok(true),
        Some("off" | "no" | "0" | "false") => Ok(false),
        _ => misused(),
    }
}

fn headers(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    shell.look.headers = Some(is_on(args)?);
    Ok(Flow::Go)
}

fn mode(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let Some(name) = args.first() else {
        shell.output.line(shell.look.mode.name())?;
        return Ok(Flow::Go);
    };
    let known = MODES.map(|(name, _)| name).join(", ");
    shell.look.mode = Mode::named(name)
        .ok_or_else(|| Error::said(format!("there is no mode {name}; there are {known}")))?;
    if let Some(table) = args.get(1) {
        shell.look.table.clone_from(table);
    }
    Ok(Flow::Go)
}

fn level(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let Some(level) = args.first().map(|level| level.to_lowercase()) else {
        shell.output.line(&shell.session.level)?;
        return Ok(Flow::Go);
    };
    if !LEVELS.contains(&&*level) {
        return Err(Error::said(format!("there is no level {level}; there are {}", LEVELS.join(", "))));
    }
    shell.session.level = level;
    Ok(Flow::Go)
}

fn timeout(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let Some(text) = args.first() else {
        shell.output.line(&format!("{:?}", shell.session.timeout))?;
        return Ok(Flow::Go);
    };
    // Whoever means seconds says so as elsewhere.
    let parsed = Params::parse(&format!("timeout={text}")).duration("timeout");
    match parsed.map_err(Error::Said)? {
        Some(timeout) if timeout.as_millis() > 0 && timeout.as_secs() <= 3600 => {
            shell.session.timeout = timeout
        }
        _ => return Err(Error::said("give a time from 1ms to 1h")),
    }
    Ok(Flow::Go)
}

fn quit(_: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    match args.first().map(|status| status.parse()) {
        None => Ok(Flow::Quit(0)),
        Some(Ok(status)) => Ok(Flow::Quit(status)),
        Some(Err(_)) => misused(),
    }
}

fn show(shell: &mut Shell, _: &[String]) -> Result<Flow, Error> {
    let flag = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let all = [
        ("address", shell.session.nodes.client().address().to_owned()),
        ("bail", flag(shell.has_bail)),
        ("changes", flag(shell.has_changes)),
        ("db", shell.session.database().to_owned()),
        ("headers", shell.look.headers.map_or_else(|| "as the mode has it".into(), flag)),
        ("level", shell.session.level.clone()),
        ("mode", shell.look.mode.name().to_owned()),
        ("nullvalue", format!("{:?}", shell.look.null)),
        ("separator", format!("{:?}", shell.look.separator)),
        ("timeout", format!("{:?}", shell.session.timeout)),
        ("timer", flag(shell.has_timer)),
    ];
    for (name, value) in all {
        shell.output.line(&format!("{name:>10}: {value}"))?;
    }
    Ok(Flow::Go)
}

fn help(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let wanted = args.first().map(|name| name.trim_start_matches('.').to_lowercase());
    let mut found = false;
    for command in COMMANDS {
        let is_wanted = |name: &String| command.names.iter().any(|known| known.starts_with(name.as_str()));
        if wanted.as_ref().is_some_and(|name| !is_wanted(name)) {
            continue;
        }
        found = true;
        let usage = format!(".{} {}", command.names[0], command.arguments);
        let others: Vec<String> = command.names[1..].iter().map(|name| format!(".{name}")).collect();
        let also = if others.is_empty() { String::new() } else { format!(" (also {})", others.join(", ")) };
        shell.output.line(&format!("{:<30} {}{also}", usage.trim_end(), command.help))?;
    }
    match wanted {
        Some(name) if !found => Err(Error::said(format!("there is no command .{name}"))),
        Some(_) => Ok(Flow::Go),
        None => {
            shell.output.line(
                "\nA statement ends with a semicolon. BEGIN opens a transaction, which COMMIT or ROLLBACK ends.",
            )?;
            Ok(Flow::Go)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_words() {
        let words = |line: &str| split(line).unwrap();
        assert_eq!(words(".mode  insert 'two words'"), [".mode", "insert", "two words"]);
        assert_eq!(words(".separator \"a\\t\\\"\\\\\""), [".separator", "a\t\"\\"]);
        assert_eq!(words(".nullvalue ''"), [".nullvalue", ""]);
        assert!(split(".read 'x").is_err() && split("  ").is_err());
    }

    #[test]
    fn commands_are_found() {
        for command in COMMANDS {
            for name in command.names {
                assert_eq!(find(name).unwrap().names, command.names);
            }
        }
        assert_eq!(find("tab").unwrap().names, ["tables"]);
        assert_eq!(find("consist").unwrap().names, ["level", "consistency"]);
        assert!(find("re").is_none() && find("").is_none() && find("none").is_none());
        assert!(COMMANDS.is_sorted_by_key(|command| command.names[0]));
    }
}
