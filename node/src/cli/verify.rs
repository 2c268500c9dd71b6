//! `quire verify`: asks every node for its checksums at one entry of the log, and compares them.

use super::client::Client;
use crate::args::VerifyArgs;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What one verification came to.
#[derive(Debug)]
pub struct Report {
    /// The entry.
    pub index: u64,
    /// Whether everything agrees.
    pub identical: bool,
    /// What does not.
    pub faults: Vec<String>,
    /// By database name: what the nodes hold.
    pub databases: BTreeMap<String, Vec<(u64, Value)>>,
}

/// Prints the verification. Fails unless all nodes hold the same.
pub fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(&args.client)?;
    let report = verify_with(&client, args.files, args.scrub, Duration::from_secs(args.timeout))?;
    if args.client.json {
        let databases: BTreeMap<_, _> = report
            .databases
            .iter()
            .map(|(name, nodes)| (name, nodes.iter().map(|(_, found)| found).collect::<Vec<_>>()))
            .collect();
        println!(
            "{}",
            json!({ "index": report.index, "identical": report.identical, "faults": report.faults,
                    "databases": databases })
        );
    } else {
        print(&report);
    }
    Ok(if report.identical { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a verification over all nodes of the cluster that the node at `address` belongs to.
pub fn verify(address: &str, files: bool, scrub: bool, timeout: Duration) -> anyhow::Result<Report> {
    verify_with(&Client::new(address), files, scrub, timeout)
}

fn verify_with(client: &Client, files: bool, scrub: bool, timeout: Duration) -> anyhow::Result<Report> {
    let nodes = client.get("/nodes?nonvoters&ver=2")?;
    let started = client.post(match (files, scrub) {
        (false, false) => "/verify",
        (true, false) => "/verify?files",
        (false, true) => "/verify?scrub",
        (true, true) => "/verify?files&scrub",
    })?;
    let index = started["index"].as_u64().context("the node did not name an index")?;
    let deadline = Instant::now() + timeout;
    let mut report = Report { index, identical: true, faults: Vec::new(), databases: BTreeMap::new() };
    for node in nodes["nodes"].as_array().into_iter().flatten() {
        let id: u64 = node["id"].as_str().and_then(|id| id.parse().ok()).context("a node without an id")?;
        let found = ask(&client.at(node["api_addr"].as_str().unwrap_or_default()), index, deadline);
        match found {
            Err(error) => report.faults.push(format!("node {id}: {error:#}")),
            Ok(found) => {
                for database in found["databases"].as_array().into_iter().flatten() {
                    let name = database["name"].as_str().unwrap_or_default().to_owned();
                    let mut entry = database.clone();
                    entry["node_id"] = id.into();
                    report.databases.entry(name).or_default().push((id, entry));
                }
            }
        }
    }
    let members = nodes["nodes"].as_array().map_or(0, Vec::len);
    // One that was dropped meanwhile is rightly missing where that was seen first.
    let list = client.get("/db/list")?;
    let exists =
        |name: &str| list["databases"].as_array().is_some_and(|all| all.iter().any(|db| db["name"] == name));
    for (name, found) in &report.databases {
        if found.len() + report.faults.len() < members && exists(name) {
            report.faults.push(format!("{name}: not on every node"));
        }
        for (id, entry) in found {
            if let Some(why) = entry["error"].as_str() {
                report.faults.push(format!("{name} on node {id}: {why}"));
            }
        }
        for key in ["last_index", "checksum", "pages", "sha256"] {
            if found.iter().any(|(_, entry)| entry[key] != found[0].1[key]) {
                report.faults.push(format!("{name}: {key} differs"));
            }
        }
    }
    report.identical = report.faults.is_empty();
    Ok(report)
}

fn ask(client: &Client, index: u64, deadline: Instant) -> anyhow::Result<Value> {
    loop {
        match client.get(&format!("/verify?index={index}")) {
            Ok(found) if found["complete"] == true => return Ok(found),
            Ok(_) if Instant::now() >= deadline => bail!("{} lags behind entry {index}", client.address()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            _ => sleep(Duration::from_millis(50)),
        }
    }
}

fn print(report: &Report) {
    println!("at entry {}:", report.index);
    for (name, found) in &report.databases {
        println!("{name}");
        for (id, entry) in found {
            let checksum = entry["checksum"].as_str().unwrap_or("-");
            let sha = entry["sha256"].as_str().map(|hash| format!("  sha256 {hash}")).unwrap_or_default();
            println!("  node {id}: checksum {checksum}, {} pages{sha}", entry["pages"]);
        }
    }
    for fault in &report.faults {
        println!("FAULT {fault}");
    }
    println!("{}", if report.identical { "identical on all nodes" } else { "NOT identical" });
}
