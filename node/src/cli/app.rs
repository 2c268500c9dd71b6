//! A stock SQLite app in a process of its own: the machine's `sqlite3` or `python3` if they can load
//! extensions, else this program with its own SQLite (`quire host`). All it knows of Quire is the extension
//! and the connection string.

use anyhow::{Context as _, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A statement must be answered within this time: longer than the app's busy timeout and a commit's deadline.
const PATIENCE: Duration = Duration::from_secs(40);
const END: &str = "quire-end-of-answer";

/// Executes the lines of its input, as `sqlite3` does.
const PYTHON: &str = r#"
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None, timeout=15)
for line in sys.stdin:
    try:
        for row in db.execute(line):
            print("|".join(str(value) for value in row), flush=True)
    except sqlite3.Error as error:
        print("Error:", error, flush=True)
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite3,
    Python3,
    Own,
}

/// A running app.
#[derive(Debug)]
pub struct App {
    kind: Kind,
    connection: String,
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
}

impl App {
    /// Starts an app on a database.
    pub fn start(extension: &Path, database: &Path) -> anyhow::Result<App> {
        let kind = choose(extension);
        let connection = format!("file:{}?vfs=quire", database.display());
        let mut command = match kind {
            Kind::Sqlite3 => Command::new("sqlite3"),
            Kind::Python3 => {
                let mut command = Command::new("python3");
                command.args(["-c", PYTHON]).arg(extension).arg(&connection);
                command
            }
            Kind::Own => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("host").arg("--extension").arg(extension).args(["--database", &connection]);
                command
            }
        };
        // Answers and errors through one pipe, so that they come in order.
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().context("can't start the app")?;
        drop(command);
        let input = child.stdin.take();
        let (tx, output) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let mut app = App { kind, connection, child, input, output };
        if kind == Kind::Sqlite3 {
            app.send(&format!(".load {}", extension.display()))?;
            app.send(&format!(".open {}", app.connection))?;
            app.send(".timeout 15000")?;
        }
        Ok(app)
    }

    /// What kind of app it is, in words.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite3 => "the machine's sqlite3",
            Kind::Python3 => "the machine's python3",
            Kind::Own => "a plain rusqlite program",
        }
    }

    /// Its connection string.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    fn send(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the app has ended")?;
        writeln!(input, "{line}").and_then(|()| input.flush()).context("the app does not read any more")
    }

    /// Runs one statement and returns its rows.
    pub fn execute(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        self.send(&format!("{sql};"))?;
        self.send(&format!("SELECT '{END}';"))?;
        let mut rows = Vec::new();
        loop {
            let line = self.output.recv_timeout(PATIENCE).context("the app does not answer")?;
            if line == END {
                return Ok(rows);
            }
            if line.contains("Error: ") || line.contains("error near line") {
                bail!("{line}");
            }
            rows.push(line);
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first app on this machine that can load the extension.
fn choose(extension: &Path) -> Kind {
    let works = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let load = format!(".load {}", extension.display());
    if works(Command::new("sqlite3").args(["-bail", ":memory:", &load])) {
        return Kind::Sqlite3;
    }
    if works(Command::new("python3").args(["-c", PYTHON]).arg(extension).arg(":memory:")) {
        return Kind::Python3;
    }
    Kind::Own
}
