//! `quire remove`: removes a member from the cluster.

use super::client::Client;
use crate::args::RemoveArgs;
use serde_json::json;
use std::process::ExitCode;

/// Removes it; fails unless it is gone.
pub fn run(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(&args.client)?;
    let id = args.node_id;
    client.delete_json("/remove", &json!({ "id": id.to_string() }))?;
    if args.client.json {
        println!("{}", json!({ "removed": id.to_string() }));
    } else {
        println!("node {id} is not a member any more; stop it, and never use its id again");
    }
    Ok(ExitCode::SUCCESS)
}
