//! Stock hosts as children: programs with a SQLite of their own, which know nothing of Quire but the
//! extension and the connection string.
//!
//! [`Program::Cli`] is driven through its standard input and shows where an answer ends by printing a mark;
//! the Python hosts run `host.py` and speak JSON lines. Every answer has a deadline. A host that is not on
//! this machine makes its test print why it is skipped; with `CI=true` it is a failure.

use crate::programs;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// No answer takes longer, on whatever machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program that hosts SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The distribution's `sqlite3`.
    Cli,
    /// The distribution's Python with its `sqlite3` module.
    Python,
    /// A Python with APSW, which brings a newer SQLite: `QUIRE_TEST_PYTHON`, or the workspace's `.venv`.
    Apsw,
}

/// What a host loads before it opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Nothing: stock SQLite.
    Nothing,
    /// The extension, whose VFS the connection string names.
    Vfs,
    /// The extension as the default VFS.
    Default,
}

impl Program {
    /// All of them.
    pub const ALL: [Program; 3] = [Program::Cli, Program::Python, Program::Apsw];

    /// Where it is.
    pub fn path(self) -> PathBuf {
        match self {
            Program::Cli => "/usr/bin/sqlite3".into(),
            Program::Python => "/usr/bin/python3".into(),
            Program::Apsw => std::env::var_os("QUIRE_TEST_PYTHON").map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python"),
                PathBuf::from,
            ),
        }
    }

    /// Whether the machine has it. Prints why not; with `CI=true` that is a failure.
    pub fn is_here(self) -> bool {
        let mut probe = Command::new(self.path());
        match self {
            Program::Cli => probe.arg("-version"),
            Program::Python => probe.args(["-c", "import sqlite3; sqlite3.Connection.enable_load_extension"]),
            Program::Apsw => probe.args(["-c", "import apsw"]),
        };
        let is_here = probe.output().is_ok_and(|output| output.status.success());
        if !is_here {
            skip(&format!("{self:?}: {} can't be used", self.path().display()));
        }
        is_here
    }
}

/// Prints why something is not tested; with `CI=true` it is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "not to be skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// The connection string of a database for a host that names the VFS.
pub fn uri(database: &Path) -> String {
    format!("file:{}?vfs=quire", database.display())
}

/// What stock `sqlite3` makes of one line of SQL, without the extension; the error is its message.
pub fn stock(database: &Path, sql: &str) -> Result<String, String> {
    let mut command = Command::new(Program::Cli.path());
    let output = command.args(["-batch", "-bail"]).arg(database).arg(sql).stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    program: Program,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Vec<String>,
    marks: u64,
}

impl Host {
    /// Starts a host and has it load what it is to load.
    pub fn start(program: Program, load: Load) -> Host {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(program.path());
        match program {
            // Errors and rows through one pipe, so that they come in order.
            Program::Cli => command.arg("-batch").stderr(writer.try_clone().unwrap()),
            Program::Python => command.args(["-c", include_str!("host.py"), "sqlite3"]),
            Program::Apsw => command.args(["-c", include_str!("host.py"), "apsw"]),
        };
        command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS").env_remove("QUIRE_FAULT");
        let mut child = command.stdin(Stdio::piped()).stdout(writer).spawn().unwrap();
        drop(command);
        let stdin = child.stdin.take();
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let mut host = Host { program, child, stdin, lines, log: Vec::new(), marks: 0 };
        if program == Program::Cli {
            host.ask(".log stderr\n.timeout 0").unwrap();
        }
        let entry = match load {
            Load::Nothing => return host,
            Load::Vfs => "sqlite3_quirevfs_init",
            Load::Default => "sqlite3_quiredefault_init",
        };
        let extension = programs().extension.display().to_string();
        match program {
            Program::Cli => host.ask(&format!(".load {extension} {entry}")).unwrap(),
            _ => host.ask(&json!({ "load": [extension, entry] }).to_string()).unwrap(),
        };
        host
    }

    /// Starts a host with the VFS and opens a database, whose writers are to wait for each other.
    pub fn open(program: Program, database: &Path) -> Host {
        let mut host = Host::start(program, Load::Vfs);
        host.connect(&uri(database)).unwrap();
        host.sql("PRAGMA busy_timeout = 20000").unwrap();
        host
    }

    /// Opens a database, in place of the one that is open.
    pub fn connect(&mut self, database: &str) -> Result<(), String> {
        match self.program {
            Program::Cli => self.ask(&format!(".open '{database}'")),
            _ => self.request(json!({ "open": database })),
        }
        .map(drop)
    }

    /// Runs statements, up to the first that fails, and returns the rows as `sqlite3` prints them.
    pub fn sql(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.send(sql);
        self.receive()
    }

    /// Begins to run statements; [`Host::receive`] gives the answer.
    pub fn send(&mut self, sql: &str) {
        match self.program {
            // On one line, so that nothing after a statement that failed is run.
            Program::Cli => self.put(&format!("{};", sql.replace('\n', " "))),
            _ => self.put(&json!({ "sql": sql }).to_string()),
        }
    }

    /// The answer to [`Host::send`].
    pub fn receive(&mut self) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        let mut error = None;
        let mark = format!("--- {}", self.marks);
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|why| panic!("{:?} does not answer: {why}", self.program));
            if self.program == Program::Cli {
                let is_log = line.split_once(") ").is_some_and(|(code, _)| {
                    code.strip_prefix('(').is_some_and(|code| code.parse::<u32>().is_ok())
                });
                match line {
                    line if line == mark => return error.map_or(Ok(rows), Err),
                    line if is_log => self.logged(line),
                    line if line.contains("rror") && line.contains(": ") => error = error.or(Some(line)),
                    line => rows.push(line),
                }
                continue;
            }
            let answer: Value = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"));
            if let Some(line) = answer["log"].as_str() {
                self.logged(line.to_owned());
            } else if let Some(why) = answer["error"].as_str() {
                return Err(why.to_owned());
            } else {
                let text = |row: &Value| row.as_str().unwrap().to_owned();
                return Ok(answer["rows"].as_array().unwrap().iter().map(text).collect());
            }
        }
    }

    /// A request that only the Python hosts know; see `host.py`.
    pub fn request(&mut self, request: Value) -> Result<Vec<String>, String> {
        self.post(request);
        self.receive()
    }

    /// Sends such a request; [`Host::receive`] gives the answer.
    pub fn post(&mut self, request: Value) {
        assert_ne!(self.program, Program::Cli, "the shell can't: {request}");
        self.put(&request.to_string());
    }

    /// Takes a line of SQLite's log; Quire splits its own where they are long.
    fn logged(&mut self, line: String) {
        match (line.split_once(") quire: ... "), self.log.last_mut()) {
            (Some((_, rest)), Some(last)) => *last += &format!(" {rest}"),
            _ => self.log.push(line),
        }
    }

    /// What Quire logged in this host (`sqlite3_log`); Python's own module can't show it.
    pub fn log(&self) -> String {
        self.log.join("\n")
    }

    /// Which program it is.
    pub fn program(&self) -> Program {
        self.program
    }

    fn ask(&mut self, line: &str) -> Result<Vec<String>, String> {
        self.put(line);
        self.receive()
    }

    fn put(&mut self, line: &str) {
        self.marks += 1;
        let mark = if self.program == Program::Cli {
            format!(".print '--- {}'\n", self.marks)
        } else {
            String::new()
        };
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n{mark}").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Ends the host as its user would: it closes its databases.
    pub fn close(mut self) {
        drop(self.stdin.take());
        while self.lines.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Disconnected) {}
        // The shell's exit status tells of errors that it was told to make.
        let status = self.child.wait().unwrap();
        assert!(status.code().is_some(), "{:?} crashed at its end: {status}", self.program);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
