//! `quire tx`: what became of a transaction whose outcome an app was not told.

use super::client::Client;
use crate::args::TxArgs;
use anyhow::bail;
use quire_vfs::format::transaction::TxnId;
use std::process::ExitCode;

/// Prints the outcome. Fails if it can't be told.
pub fn run(args: &TxArgs) -> anyhow::Result<ExitCode> {
    if TxnId::parse(&args.id).is_none() {
        bail!("{:?} is no transaction id: give the 32 hexadecimal digits of the app's log line", args.id);
    }
    let db = args.db.as_ref().map_or(String::new(), |db| format!("&db={db}"));
    if let Some(db) = &args.db {
        crate::name::check(db).map_err(|why| anyhow::anyhow!("--db {db}: {why}"))?;
    }
    let base = args.base.map_or(String::new(), |base| format!("&base={base}"));
    let found = Client::new(&args.client.http_addr).get(&format!("/outcome?id={}{db}{base}", args.id))?;
    let outcome = found["outcome"].as_str().unwrap_or("unknown");
    let known = outcome != "unknown";
    if args.client.json {
        println!("{found}");
    } else {
        let text = |key: &str| found[key].as_str().unwrap_or("-");
        match outcome {
            "committed" => println!("committed in {}, at index {}", text("db"), found["index"]),
            "refused" => println!("refused in {}, at index {}: {}", text("db"), found["index"], text("why")),
            "not in the log" if args.base.is_some() => println!("not in the log, and never will be"),
            "not in the log" => {
                println!(
                    "not in the log, and never will be, as far as this node remembers (enough? give --base):"
                );
                for seen in found["databases"].as_array().into_iter().flatten() {
                    let name = seen["db"].as_str().unwrap_or("-");
                    match seen["since"].as_u64() {
                        Some(since) => println!("  {name}, from entry {since} on"),
                        None => println!("  {name}, of whose transactions this node remembers none"),
                    }
                }
            }
            _ => println!("unknown: {}", text("why")),
        }
    }
    Ok(if known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
