//! The programs under `tests/hosts` and `tests/clients`: how each is built ([`crate::toolchains`]), and how it is talked to.
//!
//! SQLite is compiled without optimisation where a host brings it as source: that takes a third of the time.

use crate::hosts::{PATIENCE, Program};
use crate::toolchains::{self, Sort, need, npm, step};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

const SQLITE_JDBC: &str = "org.xerial:sqlite-jdbc:3.50.3.0";
const MAVEN_DEPENDENCY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";

/// Programs that host SQLite, and load the extension into it.
const HOSTS: Sort = Sort("hosts");
/// Programs that use a client of rqlite.
pub const CLIENTS: Sort = Sort("clients");

/// Builds all hosts.
pub fn build_hosts() -> Vec<(&'static str, Command)> {
    let names = ["shell", "python", "apsw", "sqlalchemy", "django", "node", "go", "java"];
    toolchains::build_all(&names, host)
}

/// The clients.
pub const CLIENT_NAMES: [&str; 6] =
    ["pyrqlite", "sqlalchemy-rqlite", "rqdb", "rqlite-js", "gorqlite", "rqlite-rs"];

/// Builds all clients.
pub fn build_clients() -> Vec<(&'static str, Command)> {
    toolchains::build_all(&CLIENT_NAMES, client)
}

fn host(name: &str) -> Result<Command, String> {
    match name {
        "shell" => {
            need(Program::Cli.path().to_str().unwrap(), "-version")?;
            let mut command = Command::new("bash");
            // The distribution's `sqlite3`, whatever else there is.
            let path = std::env::var("PATH").unwrap_or_default();
            command.arg(HOSTS.source(name).join("main.sh")).env("PATH", format!("/usr/bin:{path}"));
            Ok(command)
        }
        "python" => HOSTS.python(Program::Python, name, "sqlite3"),
        "node" => {
            let package = "node_modules/better-sqlite3";
            let mut command = HOSTS.node(name, |place| npm(&["run", "build-debug"], &place.join(package)))?;
            let binding = HOSTS.place(name).join(package).join("build/Debug/better_sqlite3.node");
            command.env("BETTER_SQLITE3_BINDING", binding);
            Ok(command)
        }
        "go" => HOSTS.go(name, true),
        "java" => java(name),
        _ => HOSTS.python(Program::Apsw, name, name),
    }
}

fn client(name: &str) -> Result<Command, String> {
    match name {
        "rqlite-js" => CLIENTS.node(name, |_| Ok(())),
        "gorqlite" => CLIENTS.go(name, false),
        "rqlite-rs" => CLIENTS.rust(name),
        _ => CLIENTS.python(Program::Apsw, name, &name.replace('-', "_")),
    }
}

fn java(name: &str) -> Result<Command, String> {
    need("java", "-version")?;
    let place = HOSTS.place(name);
    let (_, artifact) = SQLITE_JDBC.split_once(':').unwrap();
    let jar = place.join(format!("{}.jar", artifact.replace(':', "-")));
    if !jar.exists() {
        let mut maven = Command::new("mvn");
        maven.args(["-q", "-B", MAVEN_DEPENDENCY]).arg(format!("-Dartifact={SQLITE_JDBC}"));
        step(maven.arg(format!("-DoutputDirectory={}", place.display())))?;
    }
    let mut command = Command::new("java");
    command.arg("-XX:TieredStopAtLevel=1").arg("-cp").arg(jar).arg(HOSTS.source(name).join("Main.java"));
    Ok(command)
}

/// A line of a program, with its name; `None` when it has ended.
pub type Line = (&'static str, Option<String>);

/// A running program.
#[derive(Debug)]
pub struct MatrixHost {
    /// Its name.
    pub name: &'static str,
    child: Child,
    stdin: ChildStdin,
    errors: PathBuf,
}

impl MatrixHost {
    /// Starts a program. What it prints goes to `lines`.
    pub fn start(name: &'static str, mut command: Command, errors: &Path, lines: Sender<Line>) -> MatrixHost {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(errors).unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send((name, Some(line)));
            }
            let _ = lines.send((name, None));
        });
        MatrixHost { name, child, stdin, errors: errors.to_owned() }
    }

    /// Tells it what to do.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}")
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.name, self.errors()));
    }

    /// What it has complained of.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for MatrixHost {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes lines until each program has printed the one that it is to print, and returns all, by program.
pub fn until(
    programs: &[MatrixHost],
    lines: &Receiver<Line>,
    what: &str,
    mut is_enough: impl FnMut(&BTreeMap<&'static str, Vec<String>>) -> bool,
) -> BTreeMap<&'static str, Vec<String>> {
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut found: BTreeMap<_, Vec<String>> = programs.iter().map(|program| (program.name, vec![])).collect();
    while !is_enough(&found) {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((name, Some(line))) => found.get_mut(name).unwrap().push(line),
            Ok((name, None)) => {
                let program = programs.iter().find(|program| program.name == name).unwrap();
                panic!("{name} ended while it was to {what}: {}", program.errors());
            }
            Err(why) => panic!("waiting for {what}: {why}: {found:#?}"),
        }
    }
    found
}

/// Whether the last line of each is this one.
pub fn all_said(line: String) -> impl Fn(&BTreeMap<&'static str, Vec<String>>) -> bool {
    move |found| found.values().all(|lines| lines.last() == Some(&line))
}
