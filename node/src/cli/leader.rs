//! `quire leader`: shows the leader, or has it hand over.

use super::client::Client;
use crate::args::LeaderArgs;
use serde_json::json;
use std::process::ExitCode;

/// Prints the leader, after it was changed if that was asked for. Fails if there is none or it didn't change.
pub fn run(args: &LeaderArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(&args.client)?;
    if let Some(to) = args.to {
        client.post_json("/leader?wait", &json!({ "id": to.to_string() }))?;
    } else if args.step_down {
        client.post_json("/leader?wait", &json!({}))?;
    }
    let leader = client.get("/leader")?;
    if args.client.json {
        println!("{leader}");
    } else {
        let text = |key: &str| leader[key].as_str().unwrap_or("-").trim_start_matches("http://").to_owned();
        println!("node {} leads; http {}, raft {}", text("id"), text("api_addr"), text("addr"));
    }
    Ok(ExitCode::SUCCESS)
}
