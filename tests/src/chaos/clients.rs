//! The clients: apps that use the VFS, each on one node, and HTTP clients, which go to any. Every client does one
//! thing at a time, and says of each what came of it.
//!
//! A client waits for [`HANG`]: more than all deadlines of the product and all that a fault may add to them on a slow
//! machine. What takes longer hangs.

use super::history::{Outcome, Record, Rows};
use super::run::Shared;
use super::web;
use super::work::{Chooser, Level, Request};
use crate::programs;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

/// What takes longer hangs.
pub const HANG: Duration = Duration::from_secs(90);
/// An app's busy timeout.
const BUSY_S: u64 = 4;
const PYTHON: &str = "/usr/bin/python3";

/// Where a node is, for its clients.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its id.
    pub id: u64,
    /// Its HTTP address.
    pub http: String,
    /// Its data directory.
    pub dir: PathBuf,
}

/// An app's process, which somebody else may signal meanwhile.
pub type Process = Arc<Mutex<Option<Child>>>;

#[derive(Debug)]
struct App {
    process: Process,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl App {
    fn start(script: &Path, errors: &Path, process: &Process) -> std::io::Result<App> {
        let errors = std::fs::File::options().create(true).append(true).open(errors)?;
        let mut command = Command::new(PYTHON);
        command.arg(script).arg(&programs().extension).arg(BUSY_S.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| std::io::Error::other("no stdin"))?;
        let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no stdout"))?;
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        *process.lock().unwrap() = Some(child);
        Ok(App { process: process.clone(), stdin, lines })
    }

    /// Ends it, if it still runs; the error says that it had ended by something else than a kill.
    fn end(self) -> Result<(), String> {
        let Some(mut child) = self.process.lock().unwrap().take() else { return Ok(()) };
        let _ = child.kill();
        match child.wait() {
            Ok(status) if status.signal() == Some(nix::libc::SIGKILL) => Ok(()),
            Ok(status) => Err(format!("an app ended by itself: {status}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// How a client reaches the cluster.
#[derive(Debug)]
pub enum Via {
    /// As an app on the node in this slot.
    Vfs {
        /// Which node.
        slot: usize,
        /// The app's process.
        process: Process,
    },
    /// By HTTP.
    Http,
}

/// Does operations until the run ends.
pub fn run(shared: &Shared, client: usize, via: &Via) {
    let mut chooser = Chooser::new(shared.seed, client);
    let mut app = None;
    while !shared.ends() {
        let op = chooser.next(shared.phase());
        let (slot, deferred) = (chooser.below(shared.slots() as u64) as usize, chooser.below(4) == 0);
        let pause = Duration::from_millis(chooser.below(40));
        // Some transactions stand open for a while: for kills to meet, and for others to wait.
        let hold = if chooser.below(8) == 0 { chooser.below(400) } else { 0 };
        // Over HTTP some take several requests.
        let several = chooser.below(6) == 0;
        let slot = if let Via::Vfs { slot, .. } = via { *slot } else { slot };
        let Some(place) = shared.place(slot) else {
            sleep(pause);
            continue;
        };
        let request = op.request();
        let invoked = shared.history.now();
        let outcome = match via {
            Via::Http => web::run(&place, &request, several),
            Via::Vfs { process, .. } => {
                vfs(shared, &mut app, process, client, &ask(&place, &request, deferred, hold))
            }
        };
        let returned = shared.history.now();
        if returned - invoked >= HANG {
            shared.violation(format!("hang: client {client} waited {:?} for {op:?}", returned - invoked));
        }
        if outcome.shows_damage() {
            shared.violation(format!("a damaged database: client {client}: {op:?}: {outcome:?}"));
        }
        let how = if matches!(via, Via::Http) { "http" } else { "vfs" };
        // What refuses at once is not asked at once again.
        let rest = if matches!(outcome, Outcome::Done(_)) { pause } else { pause * 4 };
        shared.history.add(Record {
            client,
            via: format!("{how} {}", place.id),
            op,
            invoked,
            returned,
            outcome,
        });
        sleep(rest);
    }
    if let Some(Err(why)) = app.map(App::end) {
        shared.violation(why);
    }
}

fn ask(place: &Place, request: &Request, deferred: bool, hold: u64) -> String {
    let path = place.dir.join("db").join(format!("{}.db", request.database));
    let (begin, reads) = match request.reads {
        Some(Level::Linearizable) => ("BEGIN", "linearizable"),
        Some(Level::Local) => ("BEGIN", "local"),
        // The snapshot is then taken before the right to write.
        None if deferred => ("BEGIN", "local"),
        None => ("BEGIN IMMEDIATE", "local"),
    };
    let statements = &request.statements;
    json!({ "path": path, "begin": begin, "reads": reads, "statements": statements, "hold": hold })
        .to_string()
}

fn vfs(shared: &Shared, app: &mut Option<App>, process: &Process, client: usize, request: &str) -> Outcome {
    if app.is_none() {
        let errors = shared.dir.join(format!("app{client}.log"));
        match App::start(&shared.script, &errors, process) {
            Ok(started) => *app = Some(started),
            Err(error) => return Outcome::Refused(format!("no app: {error}")),
        }
    }
    let Some(running) = app else { return Outcome::Refused("no app".into()) };
    // It may have been killed between two operations.
    let sent = writeln!(running.stdin, "{request}").is_ok();
    let line = if sent { running.lines.recv_timeout(HANG) } else { Err(RecvTimeoutError::Disconnected) };
    match line {
        Ok(line) => answer(&line).unwrap_or_else(|why| {
            shared.violation(format!("an app's answer: {why}: {line}"));
            Outcome::Unknown(why)
        }),
        Err(why) => {
            if let Some(Err(why)) = app.take().map(App::end) {
                shared.violation(why);
            }
            Outcome::Unknown(format!("the app was killed: {why}"))
        }
    }
}

fn answer(line: &str) -> Result<Outcome, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(why) = value["refused"].as_str() {
        return Ok(Outcome::Refused(why.into()));
    }
    if let Some(why) = value["unknown"].as_str() {
        return Ok(Outcome::Unknown(why.into()));
    }
    let rows = value["done"].as_array().ok_or("neither done nor failed")?;
    rows.iter().map(rows_of).collect::<Option<_>>().map(Outcome::Done).ok_or("no rows".into())
}

/// Rows as they come.
pub(super) fn rows_of(rows: &Value) -> Option<Rows> {
    rows.as_array()?.iter().map(|row| row.as_array().cloned()).collect()
}
