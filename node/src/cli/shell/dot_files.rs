//! Commands that read and write files.

use super::dot::misused;
use super::error::Error;
use super::nodes::Server;
use super::output::Output;
use super::{Flow, Shell};
use crate::cli::{backup, restore};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Files that read files that read files.
const MAX_DEPTH: usize = 16;

/// Takes a flag off the arguments.
fn flag(args: &[String], flag: &str) -> (bool, Vec<String>) {
    let rest: Vec<String> = args.iter().filter(|arg| *arg != flag).cloned().collect();
    (rest.len() < args.len(), rest)
}

fn may_write(path: &Path, is_forced: bool) -> Result<(), Error> {
    if path.exists() && !is_forced {
        let path = path.display();
        return Err(Error::said(format!("{path} exists; name another file, or overwrite it with --force")));
    }
    Ok(())
}

/// Ctrl-C closes the connection; that is then what the command says went wrong.
fn interrupted(shell: &Shell, error: anyhow::Error) -> Error {
    if shell.session.nodes.was_interrupted() { Error::Interrupted("") } else { error.into() }
}

pub(super) fn backup(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let (is_forced, rest) = flag(args, "--force");
    let [file] = rest.as_slice() else { return misused() };
    fetch(shell, "fmt=delete", file, is_forced)
}

fn fetch(shell: &mut Shell, parameters: &str, file: &str, is_forced: bool) -> Result<Flow, Error> {
    let path = Path::new(file);
    may_write(path, is_forced)?;
    let client = shell.session.nodes.client_that_answers()?;
    let name = shell.session.database().to_owned();
    let done = backup::download(&client, &format!("/db/backup?db={name}&{parameters}"), &name, true, path);
    let done = done.map_err(|error| interrupted(shell, error))?;
    shell.output.line(&format!("{name}: {} bytes in {file}", done["bytes"]))?;
    Ok(Flow::Go)
}

pub(super) fn dump(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let (is_forced, rest) = flag(args, "--force");
    let mut parameters = String::from("fmt=sql");
    if rest.len() > 1 {
        let tables: Vec<String> = rest[1..].iter().map(|table| backup::escape(table)).collect();
        parameters += &format!("&tables={}", tables.join(","));
    }
    match rest.first().map(String::as_str) {
        Some(file) if file != "-" => return fetch(shell, &parameters, file, is_forced),
        _ => {}
    }
    let client = shell.session.nodes.client_that_answers()?;
    let path = format!("/db/backup?db={}&{parameters}", shell.session.database());
    let response = client.download(&path).map_err(|error| interrupted(shell, error))?;
    let mut script = BufReader::new(response.into_body().into_reader());
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = script.read_until(b'\n', &mut line);
        if read.map_err(|error| interrupted(shell, anyhow::anyhow!("the dump broke off: {error}")))? == 0 {
            return Ok(Flow::Go);
        }
        shell.output.write(&String::from_utf8_lossy(&line))?;
    }
}

pub(super) fn restore(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let (does_replace, rest) = flag(args, "--replace");
    let [file] = rest.as_slice() else { return misused() };
    shell.session.outside_transaction(".restore")?;
    if let Server::Other(server) = shell.session.nodes.meet()?
        && !does_replace
    {
        return Err(Error::said(format!("{server} replaces what the database has; say so with --replace")));
    }
    let client = shell.session.nodes.client_that_answers()?;
    let name = shell.session.database().to_owned();
    let loaded = restore::load(&client, Path::new(file), &name, does_replace, "--replace");
    shell.names = None;
    let loaded = loaded.map_err(|error| interrupted(shell, error))?;
    // Where the script failed, rqlite says so beside the results.
    let errors =
        loaded["results"].as_array().into_iter().flatten().filter_map(|result| result["error"].as_str());
    if let Some(error) = errors.chain(loaded["error"].as_str()).next() {
        return Err(Error::said(error));
    }
    let index = match &loaded["index"] {
        Value::Null => String::new(),
        index => format!(", as entry {index}"),
    };
    shell.output.line(&format!("{name}: {file} is loaded{index}"))?;
    Ok(Flow::Go)
}

pub(super) fn read(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let [name] = args else { return misused() };
    if shell.depth >= MAX_DEPTH {
        return Err(Error::said(format!(
            "{name}: files are read within each other {MAX_DEPTH} deep at most"
        )));
    }
    let file = File::open(name).map_err(|error| Error::said(format!("{name}: {error}")))?;
    shell.depth += 1;
    let flow = shell.input(&mut BufReader::new(file), Some(name));
    shell.depth -= 1;
    Ok(flow)
}

pub(super) fn output(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    shell.output.flush()?;
    shell.output = match args.first().map(String::as_str) {
        None | Some("stdout" | "-") => Output::stdout(),
        Some(file) => Output::file(Path::new(file))?,
    };
    Ok(Flow::Go)
}
