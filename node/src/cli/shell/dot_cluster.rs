//! Commands that ask about the cluster, or change it.

use super::cell::Cell;
use super::dot::misused;
use super::error::Error;
use super::mode::{Mode, Printer};
use super::nodes::{list, said};
use super::reply::Rows;
use super::{Flow, Look, Shell};
use crate::cli::backup::escape;
use crate::cli::client::Client;
use serde_json::{Value, json};
use std::time::Duration;

/// For an answer about the node.
const PATIENCE: Duration = Duration::from_secs(15);

/// Prints objects as the rows of a result, with headings, in the present mode.
pub(super) fn print(shell: &mut Shell, columns: &[&str], objects: &[Value]) -> Result<Flow, Error> {
    // A list is for results, which have few columns; here it would be hard to read.
    let mode = if shell.look.mode == Mode::List { Mode::Column } else { shell.look.mode };
    let look = Look { mode, headers: Some(true), ..shell.look.clone() };
    let mut printer = Printer::new(&look, &mut shell.output);
    printer.columns(columns.iter().map(|name| (*name).to_owned()).collect())?;
    for object in objects {
        let cell = |name: &&str| match &object[*name] {
            // Not 0 and 1 here.
            Value::Bool(value) if look.mode != Mode::Json => Cell::Text(value.to_string()),
            value => Cell::parse(&value.to_string()),
        };
        printer.row(columns.iter().map(cell).collect())?;
    }
    printer.end(true)?;
    Ok(Flow::Go)
}

fn get(client: &Client, path: &str) -> Result<(u16, String), Error> {
    let mut response = client
        .fetch(path, PATIENCE)
        .map_err(|error| Error::said(format!("{}: {error}", client.address())))?;
    let status = response.status().as_u16();
    if !(200..300).contains(&status) && path != READY {
        return Err(Error::said(refusal(status, client, said(response))));
    }
    let text = response.body_mut().read_to_string();
    Ok((status, text.map_err(|error| Error::said(format!("{}: {error}", client.address())))?))
}

fn refusal(status: u16, client: &Client, why: String) -> String {
    match status {
        401 => format!("{} wants a user who may do that; give one with --user NAME", client.address()),
        _ => why,
    }
}

fn get_json(client: &Client, path: &str) -> Result<Value, Error> {
    let (_, text) = get(client, path)?;
    serde_json::from_str(&text)
        .map_err(|_| Error::said(format!("{}: the answer is no JSON", client.address())))
}

pub(super) fn nodes(shell: &mut Shell, _: &[String]) -> Result<Flow, Error> {
    let client = shell.session.nodes.client_that_answers()?;
    let nodes = list(&get_json(&client, "/nodes?nonvoters&ver=2")?);
    print(shell, &["id", "api_addr", "addr", "voter", "leader", "reachable", "error"], &nodes)
}

pub(super) fn status(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    describe(shell, "/status", args)
}

pub(super) fn expvar(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    describe(shell, "/debug/vars", args)
}

fn describe(shell: &mut Shell, path: &str, args: &[String]) -> Result<Flow, Error> {
    let client = shell.session.nodes.client_that_answers()?;
    let key = args.first().map(|key| format!("?key={}", escape(key))).unwrap_or_default();
    let value = get_json(&client, &format!("{path}{key}"))?;
    let text = serde_json::to_string_pretty(&value).unwrap_or_default();
    shell.output.line(&text)?;
    Ok(Flow::Go)
}

const READY: &str = "/readyz";

pub(super) fn ready(shell: &mut Shell, _: &[String]) -> Result<Flow, Error> {
    let client = shell.session.nodes.client_that_answers()?;
    let (status, text) = get(&client, READY)?;
    match status {
        200 => shell.output.line(text.trim_end())?,
        503 => return Err(Error::said(format!("{} is not ready\n{}", client.address(), text.trim_end()))),
        _ => return Err(Error::said(refusal(status, &client, text))),
    }
    Ok(Flow::Go)
}

pub(super) fn leader(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let to = match args {
        [] => None,
        [what] if what == "transfer" => Some(json!({})),
        [what, id] if what == "transfer" => Some(json!({ "id": id })),
        _ => return misused(),
    };
    if to.is_some() {
        shell.session.outside_transaction(".leader transfer")?;
    }
    let client = shell.session.nodes.client_that_answers()?;
    if let Some(to) = to {
        client.post_json("/leader?wait", &to)?;
    }
    let leader = get_json(&client, "/leader")?;
    print(shell, &["id", "api_addr", "addr"], &[leader])
}

pub(super) fn remove(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let Some(id) = args.first() else { return misused() };
    shell.session.outside_transaction(".remove")?;
    let client = shell.session.nodes.client_that_answers()?;
    client.delete_json("/remove", &json!({ "id": id }))?;
    shell.output.line(&format!("node {id} is removed"))?;
    Ok(Flow::Go)
}
