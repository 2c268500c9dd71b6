//! `quire db`: which databases there are, and what they are made of.

use super::client::Client;
use super::{backup, restore};
use crate::args::Db;
use anyhow::bail;
use serde_json::json;
use std::process::ExitCode;

/// Runs a subcommand.
pub fn run(what: &Db) -> anyhow::Result<ExitCode> {
    match what {
        Db::Create { name, page_size, client: args } => {
            crate::name::check(name)?;
            let size = page_size.map(|size| format!("&page_size={size}")).unwrap_or_default();
            let created =
                Client::with(args)?.post_json(&format!("/db/create?db={name}{size}"), &json!({}))?;
            if args.json {
                println!("{created}");
            } else {
                println!("{name} is created, with pages of {} bytes", created["page_size"]);
            }
        }
        Db::Drop { name, force, client: args } => {
            crate::name::check(name)?;
            let client = Client::with(args)?;
            let found = backup::databases(&client)?.into_iter().find(|db| db["name"] == name.as_str());
            let Some(found) = found else { bail!("there is no database {name}") };
            if !force && found["pages"].as_u64() != Some(1) {
                bail!("{name} is not empty: {} bytes; drop it with --force", found["bytes"]);
            }
            let path = format!("/db/drop?db={name}&id={}", found["id"]);
            let dropped = client.post_json(&path, &json!({}))?;
            if args.json {
                println!("{dropped}");
            } else {
                println!("{name} is dropped");
            }
        }
        Db::List { client: args } => {
            let databases = backup::databases(&Client::with(args)?)?;
            if args.json {
                println!("{}", json!({ "databases": databases }));
                return Ok(ExitCode::SUCCESS);
            }
            println!("{:<24} {:>10} {:>14} {:>12}  state", "database", "page size", "bytes", "entry");
            for db in databases {
                let text = |key: &str| db[key].to_string();
                let (name, state) =
                    (db["name"].as_str().unwrap_or("-"), db["fenced"].as_str().unwrap_or("ok"));
                let (size, bytes, index) = (text("page_size"), text("bytes"), text("index"));
                println!("{name:<24} {size:>10} {bytes:>14} {index:>12}  {state}");
            }
        }
        Db::Import { file, db, replace, client: args } => {
            let done = restore::load(&Client::with(args)?, file, db, *replace, "--replace")?;
            restore::report(&[done], args.json);
        }
        Db::Export(args) => return backup::run(args),
    }
    Ok(ExitCode::SUCCESS)
}
