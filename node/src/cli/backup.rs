//! `quire backup` and `quire db export`: databases to files. What a node sends is written under another name, synced,
//! and renamed when all of it has come.

use super::client::Client;
use crate::args::BackupArgs;
use crate::manifest::sync_dir;
use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A bar for so many bytes; without a size, a counter. Hidden where nobody looks.
pub(super) fn bar(what: &str, size: Option<u64>) -> ProgressBar {
    let (bar, form) = match size {
        Some(size) => {
            (ProgressBar::new(size), "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        }
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(what.to_owned())
}

/// The databases of the cluster.
pub(super) fn databases(client: &Client) -> anyhow::Result<Vec<Value>> {
    let list = client.get("/db/list")?;
    Ok(list["databases"].as_array().context("the node did not list its databases")?.clone())
}

/// Takes the backup.
pub fn run(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let client = Client::with(&args.client)?;
    let mut done = Vec::new();
    match (&args.file, &args.all) {
        (Some(file), None) => done.push(one(&client, args, &args.db, file)?),
        (_, Some(dir)) => {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            for database in databases(&client)? {
                let name = database["name"].as_str().context("a database without a name")?;
                // It becomes a path here, whatever the node says.
                crate::name::check(name)?;
                done.push(one(&client, args, name, &dir.join(file_name(args, name)))?);
            }
        }
        (None, None) => bail!("name a file, or a directory with --all"),
    }
    if args.client.json {
        println!("{}", json!({ "backups": done }));
    } else {
        for backup in &done {
            let text = |key: &str| backup[key].as_str().unwrap_or("-").to_owned();
            println!("{}: {} bytes in {}", text("database"), backup["bytes"], text("file"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn file_name(args: &BackupArgs, name: &str) -> String {
    let ending = if args.fmt == "sql" { "sql" } else { "db" };
    format!("{name}.{ending}{}", if args.compress { ".gz" } else { "" })
}

fn one(client: &Client, args: &BackupArgs, name: &str, file: &Path) -> anyhow::Result<Value> {
    if file.exists() && !args.force {
        bail!("{} exists; name another file, or overwrite it with --force", file.display());
    }
    let mut path = format!("/db/backup?db={name}&fmt={}", args.fmt);
    for (flag, given) in [("vacuum", args.vacuum), ("compress", args.compress), ("noleader", args.noleader)] {
        if given {
            path += &format!("&{flag}");
        }
    }
    if !args.tables.is_empty() {
        let tables: Vec<String> = args.tables.iter().map(|table| escape(table)).collect();
        path += &format!("&tables={}", tables.join(","));
    }
    download(client, &path, name, !args.compress, file)
}

/// Writes what a path of `/db/backup` gives to a file; its size is known beforehand unless it is compressed.
pub(super) fn download(
    client: &Client,
    path: &str,
    name: &str,
    is_plain: bool,
    file: &Path,
) -> anyhow::Result<Value> {
    let response = client.download(path)?;
    let number = |key: &str| response.headers().get(key)?.to_str().ok()?.parse::<u64>().ok();
    let (size, index) = (number("x-quire-size"), number("x-quire-index"));
    let expected = size.filter(|_| is_plain);
    let bar = bar(name, expected);
    let written = write(&mut bar.wrap_read(response.into_body().into_reader()), expected, file);
    bar.finish_and_clear();
    let bytes = written.with_context(|| file.display().to_string())?;
    Ok(json!({ "database": name, "file": file, "bytes": bytes, "index": index }))
}

/// Characters of a name in a URL.
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02x}") })
        .collect()
}

/// Writes all that comes, or nothing.
fn write(from: &mut impl Read, expected: Option<u64>, file: &Path) -> anyhow::Result<u64> {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let written = (|| {
        let mut out = File::create(&partial)?;
        let bytes = io::copy(from, &mut out).context("the backup broke off")?;
        if let Some(expected) = expected.filter(|expected| *expected != bytes) {
            bail!("the backup broke off after {bytes} of {expected} bytes");
        }
        out.sync_all()?;
        std::fs::rename(&partial, file)?;
        sync_dir(&std::path::absolute(file)?)?;
        Ok(bytes)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}
