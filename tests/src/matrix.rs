//! The programs under `tests/hosts`: how each is built, once, under `target/hosts`, and how it is talked to.
//!
//! What is downloaded comes from the language's own registry, pinned by the files beside the program. SQLite is
//! compiled without optimisation where a host brings it as source: that takes a third of the time.

use crate::hosts::{Program, skip};
use crate::programs;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;

const SQLITE_JDBC: &str = "org.xerial:sqlite-jdbc:3.50.3.0";
const MAVEN_DEPENDENCY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";

/// Every host.
pub const HOSTS: [&str; 8] = ["shell", "python", "apsw", "sqlalchemy", "django", "node", "go", "java"];

fn source(host: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts").join(host)
}

/// Where a host is built.
fn place(host: &str) -> PathBuf {
    let target = programs().extension.parent().and_then(Path::parent).unwrap();
    let place = target.join("hosts").join(host);
    std::fs::create_dir_all(&place).unwrap();
    place
}

/// Runs a step of a build; the error is all that it said.
fn step(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Err(format!("{command:?}: {}\n{}", output.status, said.join("\n")))
}

/// A program that does nothing but say that it is there.
fn need(program: &str, argument: &str) -> Result<(), String> {
    step(Command::new(program).arg(argument)).map_err(|why| format!("there is no usable {program}: {why}"))
}

fn python(program: Program, host: &str, module: &str) -> Result<Command, String> {
    step(Command::new(program.path()).args(["-c", &format!("import {module}")]))?;
    let mut command = Command::new(program.path());
    // The steps that all of them share, and Django's app.
    let paths = [source(""), source(host)].map(|path| path.display().to_string());
    command.arg("-B").arg(source(host).join("main.py")).env("PYTHONPATH", paths.join(":"));
    Ok(command)
}

fn node() -> Result<Command, String> {
    need("npm", "--version")?;
    let (source, place) = (source("node"), place("node"));
    let lock =
        std::fs::read_to_string(source.join("package-lock.json")).map_err(|error| error.to_string())?;
    let package = place.join("node_modules/better-sqlite3");
    let built = place.join("built");
    if std::fs::read_to_string(&built).ok().as_ref() != Some(&lock) {
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(source.join(file), place.join(file)).map_err(|error| error.to_string())?;
        }
        let npm = |arguments: &[&str], directory: &Path| {
            let mut npm = Command::new("npm");
            npm.args(arguments).current_dir(directory).env("npm_config_jobs", "max");
            // The headers that came with this Node; without them they are downloaded.
            let headers = which("node").and_then(|path| Some(path.parent()?.parent()?.to_owned()));
            if let Some(prefix) = headers.filter(|prefix| prefix.join("include/node/node.h").exists()) {
                npm.env("npm_config_nodedir", prefix);
            }
            step(&mut npm)
        };
        npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"], &place)?;
        npm(&["run", "build-debug"], &package)?;
        std::fs::write(&built, lock).map_err(|error| error.to_string())?;
    }
    let mut command = Command::new("node");
    command.arg(source.join("main.js")).env("NODE_PATH", place.join("node_modules"));
    command.env("BETTER_SQLITE3_BINDING", package.join("build/Debug/better_sqlite3.node"));
    Ok(command)
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.exists());
    found?.canonicalize().ok()
}

fn go() -> Result<Command, String> {
    need("go", "version")?;
    let program = place("go").join("host");
    let mut build = Command::new("go");
    build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".").current_dir(source("go"));
    step(build.env("CGO_ENABLED", "1").env("CGO_CFLAGS", "-O0"))?;
    Ok(Command::new(program))
}

fn java() -> Result<Command, String> {
    need("java", "-version")?;
    let place = place("java");
    let (_, artifact) = SQLITE_JDBC.split_once(':').unwrap();
    let jar = place.join(format!("{}.jar", artifact.replace(':', "-")));
    if !jar.exists() {
        let mut maven = Command::new("mvn");
        maven.args(["-q", "-B", MAVEN_DEPENDENCY]).arg(format!("-Dartifact={SQLITE_JDBC}"));
        step(maven.arg(format!("-DoutputDirectory={}", place.display())))?;
    }
    let mut command = Command::new("java");
    command.arg("-XX:TieredStopAtLevel=1").arg("-cp").arg(jar).arg(source("java").join("Main.java"));
    Ok(command)
}

/// Builds a host.
fn build(host: &str) -> Result<Command, String> {
    match host {
        "shell" => {
            need(Program::Cli.path().to_str().unwrap(), "-version")?;
            let mut command = Command::new("bash");
            // The distribution's `sqlite3`, whatever else there is.
            let path = std::env::var("PATH").unwrap_or_default();
            command.arg(source(host).join("main.sh")).env("PATH", format!("/usr/bin:{path}"));
            Ok(command)
        }
        "python" => python(Program::Python, host, "sqlite3"),
        "node" => node(),
        "go" => go(),
        "java" => java(),
        _ => python(Program::Apsw, host, host),
    }
}

/// Builds all hosts that this machine has the tools for, at the same time.
pub fn build_all() -> Vec<(&'static str, Command)> {
    programs();
    let building: Vec<_> = HOSTS.map(|host| (host, std::thread::spawn(move || build(host)))).into();
    let built = building.into_iter().map(|(host, thread)| (host, thread.join().unwrap()));
    let found = built.filter_map(|(host, built)| match built {
        Ok(command) => Some((host, command)),
        Err(why) => {
            skip(&format!("{host}: {why}"));
            None
        }
    });
    found.collect()
}

/// A running host.
#[derive(Debug)]
pub struct MatrixHost {
    /// Its name.
    pub name: &'static str,
    child: Child,
    stdin: ChildStdin,
    errors: PathBuf,
}

impl MatrixHost {
    /// Starts a host on the database's paths on all nodes. What it prints goes to `lines`, with its name; `None` when
    /// it has ended.
    pub fn start(
        name: &'static str,
        mut command: Command,
        databases: &[PathBuf],
        errors: &Path,
        lines: Sender<(&'static str, Option<String>)>,
    ) -> MatrixHost {
        command.arg(&programs().extension).args(databases);
        command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS").env_remove("QUIRE_FAULT");
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
