//! `quire status`: a cluster's nodes and databases, as one of its nodes sees them.

use super::client::Client;
use crate::args::ClientArgs;
use serde_json::Value;
use std::process::ExitCode;

/// Prints the status. Fails if a node is unreachable, there is no leader, a database is fenced,
/// the disk is full or the node was removed.
pub fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(args)?;
    let status = client.get("/status")?;
    let nodes = client.get("/nodes?nonvoters&ver=2")?;
    let store = &status["store"];
    let reached = nodes["nodes"].as_array().is_some_and(|list| {
        list.iter().all(|n| n["reachable"] == true) && list.iter().any(|n| n["leader"] == true)
    });
    let served = store["disk_full"].is_null()
        && store["removed"].is_null()
        && store["databases"].as_array().into_iter().flatten().all(|db| db["fenced"].is_null());
    let healthy = reached && served;
    if args.json {
        println!("{}", serde_json::json!({ "status": status, "nodes": nodes["nodes"], "healthy": healthy }));
        return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(why) = store["removed"].as_str() {
        println!("{why}");
    }
    println!("cluster {}   term {}", text(&store["cluster_id"]), store["raft"]["term"]);
    println!();
    println!("{:<6} {:<9} {:<22} {:<22} reachable", "node", "role", "http", "raft");
    for node in nodes["nodes"].as_array().into_iter().flatten() {
        let role = match (node["leader"] == true, node["voter"] == true) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let http = text(&node["api_addr"]).trim_start_matches("http://");
        let reachable = if node["reachable"] == true { "yes" } else { text(&node["error"]) };
        println!("{:<6} {role:<9} {http:<22} {:<22} {reachable}", text(&node["id"]), text(&node["addr"]));
    }
    println!();
    println!(
        "node {} applied {} of {}",
        text(&store["node_id"]),
        store["fsm_index"],
        store["raft"]["last_log_index"]
    );
    println!(
        "{:<20} {:>10} {:>10} {:>10}  {:<16} state",
        "database", "pages", "index", "durable", "checksum"
    );
    for db in store["databases"].as_array().into_iter().flatten() {
        let state = db["fenced"].as_str().unwrap_or("ok");
        let name = text(&db["name"]);
        let (pages, index, durable) = (&db["pages"], &db["index"], &db["durable_index"]);
        let (pages, index, durable) = (pages.to_string(), index.to_string(), durable.to_string());
        println!("{name:<20} {pages:>10} {index:>10} {durable:>10}  {:<16} {state}", text(&db["checksum"]));
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
