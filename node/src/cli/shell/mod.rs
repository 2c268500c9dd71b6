//! `quire shell`: SQL at a prompt or in a pipe, over HTTP.
//!
//! A line goes through `input`, which gathers statements and dot commands; a statement through `session`, which sends
//! it to a node that answers (`nodes`) and hands the rows of the answer on as they come (`reply`) to what prints them
//! (`mode`, `table`) on the `output`. At a terminal, `editor` reads the lines, with history and completion.

mod cell;
mod complete;
mod csv;
mod dot;
mod dot_cluster;
mod dot_files;
mod dot_import;
mod dot_schema;
mod editor;
mod error;
mod input;
mod interrupt;
mod keywords;
mod mode;
mod nodes;
mod output;
mod reply;
mod session;
mod statement;
mod table;

use super::client::Client;
use super::passwd;
use crate::args::{ClientArgs, ShellArgs};
use anyhow::{Context as _, bail};
use complete::Names;
use editor::{Editor, Line};
use error::Error;
use input::{Gatherer, Piece, read_line};
use interrupt::Interrupt;
use mode::{Look, Mode, Printer};
use nodes::{Nodes, Server};
use output::{Output, visible};
use session::{LEVELS, Session};
use statement::{Kind, kind};
use std::cell::RefCell;
use std::io::{BufRead, IsTerminal, stdin};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The status of a program that is ended by SIGPIPE.
const CLOSED_OUTPUT: u8 = 141;

/// What comes after a statement or a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Go,
    /// Nothing more of this input.
    Stop,
    /// The end, with this status.
    Quit(u8),
}

/// The shell.
#[derive(Debug)]
struct Shell {
    session: Session,
    look: Look,
    output: Output,
    /// An error ends the shell.
    has_bail: bool,
    has_timer: bool,
    has_changes: bool,
    /// Something has failed.
    has_failed: bool,
    /// What completion knows of the database, until that changes.
    names: Option<Names>,
    /// Files that are being read, within each other.
    depth: usize,
}

/// Runs the shell.
pub fn run(args: &ShellArgs) -> anyhow::Result<ExitCode> {
    let (address, sql) = targets(args);
    let is_interactive = sql.is_empty() && stdin().is_terminal();
    let interrupt = if is_interactive { Interrupt::catch()? } else { Default::default() };
    let mut shell = Shell::new(args, &address, is_interactive, interrupt)?;
    let flow = if is_interactive {
        shell.greet()?;
        let shell = Rc::new(RefCell::new(shell));
        let flow = at_prompt(&shell)?;
        return Ok(ExitCode::from(shell.borrow_mut().close(flow, true)));
    } else if sql.is_empty() {
        shell.input(&mut stdin().lock(), Some(""))
    } else {
        let mut flow = Flow::Go;
        for text in sql {
            if flow == Flow::Go {
                flow = shell.input(&mut text.as_bytes(), None);
            }
        }
        flow
    };
    Ok(ExitCode::from(shell.close(flow, false)))
}

/// The address, and the statements to run.
fn targets(args: &ShellArgs) -> (String, Vec<&String>) {
    let is_sql = |text: &str| text.starts_with('.') || text.contains(|c: char| c.is_whitespace() || c == ';');
    let sql: Vec<&String> = args.sql.iter().collect();
    match &args.address {
        Some(first) if is_sql(first) => (args.node.clone(), [vec![first], sql].concat()),
        Some(address) => (address.clone(), sql),
        None => (args.node.clone(), sql),
    }
}

/// The user with a password.
fn user(given: Option<&String>) -> anyhow::Result<Option<String>> {
    let Some(user) = given else { return Ok(None) };
    if user.contains(':') {
        return Ok(Some(user.clone()));
    }
    let password = match std::env::var("QUIRE_PASSWORD") {
        Ok(password) => password,
        Err(_) if stdin().is_terminal() => passwd::ask(&format!("Password of {user}: "))?,
        Err(_) => bail!("--user {user}: set QUIRE_PASSWORD, or give --user NAME:PASSWORD"),
    };
    Ok(Some(format!("{user}:{password}")))
}

/// Reads lines at the prompt and runs what they say.
fn at_prompt(shell: &Rc<RefCell<Shell>>) -> anyhow::Result<Flow> {
    let mut editor = Editor::new(shell)?;
    let mut gatherer = Gatherer::default();
    // What goes into the history: all lines of a statement.
    let mut entry = String::new();
    loop {
        let prompt = shell.borrow().prompt(gatherer.is_open());
        match editor.line(&prompt, gatherer.open())? {
            Line::End => return Ok(Flow::Go),
            Line::Interrupted => {
                gatherer.clear();
                entry.clear();
            }
            Line::Text(line) => {
                entry += &line;
                let pieces = gatherer.take(&line);
                if gatherer.is_open() {
                    entry.push('\n');
                } else {
                    editor.remember(&std::mem::take(&mut entry));
                }
                let mut shell = shell.borrow_mut();
                shell.session.nodes.resume();
                for piece in pieces {
                    match shell.piece(&piece, None) {
                        Flow::Go => {}
                        Flow::Stop => break,
                        quit => return Ok(quit),
                    }
                }
                shell.session.nodes.resume();
            }
        }
    }
}

impl Shell {
    fn new(
        args: &ShellArgs,
        address: &str,
        is_interactive: bool,
        interrupt: std::sync::Arc<Interrupt>,
    ) -> anyhow::Result<Shell> {
        crate::name::check(&args.db)?;
        let mut addresses = address.split(',').map(str::trim).filter(|address| !address.is_empty());
        let first = addresses.next().context("no address is given")?;
        let client = ClientArgs {
            http_addr: first.to_owned(),
            user: user(args.user.as_ref())?,
            cacert: args.cacert.clone(),
            json: false,
        };
        let others: Vec<&str> = addresses.collect();
        let nodes = Nodes::new(Client::with(&client)?, &others, interrupt);
        let output = Output::stdout();
        let mode = match &args.mode {
            Some(name) => {
                Mode::named(name).with_context(|| format!("--mode {name}: there is no such mode"))?
            }
            None if args.csv => Mode::Csv,
            None if args.json => Mode::Json,
            None if is_interactive && output.is_terminal() => Mode::Table,
            None => Mode::List,
        };
        let level = args.level.as_deref().unwrap_or("weak");
        if !LEVELS.contains(&level) {
            bail!("--level {level}: give one of {}", LEVELS.join(", "));
        }
        Ok(Shell {
            session: Session::new(nodes, &args.db, level),
            look: Look {
                mode,
                headers: args.headers.then_some(true),
                null: args.nullvalue.clone().unwrap_or_default(),
                separator: "|".into(),
                table: "tab".into(),
            },
            output,
            has_bail: args.bail,
            has_timer: false,
            has_changes: is_interactive,
            has_failed: false,
            names: None,
            depth: 0,
        })
    }

    fn greet(&mut self) -> anyhow::Result<()> {
        let server = match self.session.nodes.meet().map_err(|why| anyhow::anyhow!("{why}"))? {
            Server::Other(server) => server.clone(),
            _ => "a node of Quire".into(),
        };
        self.session.nodes.learn_once();
        let address = self.session.nodes.client().address().to_owned();
        let version = env!("CARGO_PKG_VERSION");
        self.output.line(&format!("Quire shell {version} at {address}, {server}. Type .help for help."))?;
        Ok(self.output.flush()?)
    }

    fn prompt(&self, is_open: bool) -> String {
        let prompt = format!("quire:{}{}> ", self.session.database(), self.session.mark());
        if is_open { format!("{:>width$}", "...> ", width = prompt.len()) } else { prompt }
    }

    /// Runs all of an input, whose name is for errors.
    fn input(&mut self, input: &mut dyn BufRead, name: Option<&str>) -> Flow {
        let mut gatherer = Gatherer::default();
        loop {
            let pieces = match read_line(input) {
                Ok(Some(line)) => gatherer.take(&line),
                Ok(None) => break,
                Err(error) => {
                    let line = gatherer.lines() + 1;
                    return self.failed(&Error::said(format!("reading the input: {error}")), line, name);
                }
            };
            for piece in pieces {
                let flow = self.piece(&piece, name);
                if flow != Flow::Go {
                    return flow;
                }
            }
            // While the node is there; but not for a statement alone.
            if name.is_some() {
                self.session.nodes.learn_once();
            }
        }
        gatherer.rest().map_or(Flow::Go, |piece| self.piece(&piece, name))
    }

    fn piece(&mut self, piece: &Piece, input: Option<&str>) -> Flow {
        let (done, line) = match piece {
            Piece::Sql { text, line } => (self.statement(text).map(|()| Flow::Go), *line),
            Piece::Dot { text, line } => (dot::run(self, text), *line),
        };
        let done = done.and_then(|flow| self.output.flush().map(|()| flow).map_err(Error::Output));
        done.unwrap_or_else(|error| self.failed(&error, line, input))
    }

    /// Tells what went wrong.
    fn failed(&mut self, error: &Error, line: u64, input: Option<&str>) -> Flow {
        if error.is_closed_output() {
            return Flow::Quit(CLOSED_OUTPUT);
        }
        let _ = self.output.flush();
        let place = match input {
            Some("") => format!(" near line {line}"),
            Some(name) => format!(" near line {line} of {name}"),
            None => String::new(),
        };
        eprintln!("Error{place}: {}", visible(&error.to_string()));
        self.has_failed = true;
        match error {
            _ if self.has_bail => Flow::Quit(1),
            Error::Interrupted(_) => Flow::Stop,
            _ => Flow::Go,
        }
    }

    fn statement(&mut self, sql: &str) -> Result<(), Error> {
        let began = Instant::now();
        let mut printer = Printer::new(&self.look, &mut self.output);
        let ran = self.session.run(sql, &[], &mut printer);
        let ended = printer.end(ran.is_ok());
        let kind = kind(sql);
        if matches!(kind, Kind::Schema | Kind::Rollback) {
            self.names = None;
        }
        let summary = ran?;
        ended?;
        if let Some(what) = statement::passing(sql)
            && self.session.has_own_connections()
        {
            eprintln!("quire: {what} lasts as long as its statement, which has a connection to itself");
        }
        if self.has_changes && kind == Kind::Write && summary.rows == 0 {
            let (changes, id) = (summary.rows_affected, summary.last_insert_id);
            self.output.line(&format!("changes: {changes}   last_insert_rowid: {id}"))?;
        }
        if self.has_timer {
            self.time(began.elapsed(), summary.time)?;
        }
        Ok(())
    }

    fn time(&mut self, took: Duration, at_server: Option<f64>) -> Result<(), Error> {
        let server = at_server.map(|seconds| format!(" server {seconds:.6}")).unwrap_or_default();
        self.output.line(&format!("Run Time: real {:.6}{server}", took.as_secs_f64()))?;
        Ok(())
    }

    /// Ends the session; the exit status.
    fn close(&mut self, flow: Flow, is_interactive: bool) -> u8 {
        if self.session.close() && !matches!(flow, Flow::Quit(CLOSED_OUTPUT)) {
            eprintln!("quire: the open transaction is rolled back");
            self.has_failed = true;
        }
        match (flow, self.output.flush()) {
            (Flow::Quit(status), _) => status,
            (_, Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => CLOSED_OUTPUT,
            _ if is_interactive => 0,
            _ => u8::from(self.has_failed),
        }
    }
}
