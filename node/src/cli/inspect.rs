//! `quire inspect`: what stands in files, without a running node.

use crate::args::Inspect;
use crate::command;
use crate::db::side_file::SideFile;
use anyhow::Context as _;
use quire_raft::inspect as raft;
use quire_vfs::format::wal::Scan;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Prints what stands in a file. Fails if something is damaged.
pub fn run(what: &Inspect) -> anyhow::Result<ExitCode> {
    match what {
        Inspect::Wal { file, json } => wal(file, *json),
        Inspect::Log { dir, json } => log(dir, *json),
        Inspect::Db { file } => database(file),
    }
}

fn wal(path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    if bytes.is_empty() {
        println!("{}: empty", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let scan = Scan::new(&bytes).with_context(|| path.display().to_string())?;
    let header = scan.header();
    println!(
        "page size {}, {:?} checksums, salts {:02x?}, checkpoint sequence {}",
        header.page_size, header.order, header.salts.0, header.checkpoint_seq
    );
    let (mut frames, mut commits) = (0, 0);
    for frame in scan {
        frames += 1;
        commits += u32::from(frame.header.commit_size > 0);
        let (number, page, size) = (frame.frame.0, frame.header.page.0, frame.header.commit_size);
        if as_json {
            println!("{}", json!({ "frame": number, "page": page, "commit_size": size }));
        } else if size > 0 {
            println!("frame {number:>7}  page {page:>9}  commit, {size} pages");
        } else {
            println!("frame {number:>7}  page {page:>9}");
        }
    }
    println!("{frames} valid frames, {commits} commits");
    Ok(ExitCode::SUCCESS)
}

fn log(dir: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut sound = true;
    for (n, slot) in raft::votes(dir).with_context(|| dir.display().to_string())?.into_iter().enumerate() {
        match slot {
            Ok(slot) => println!("vote slot {n}: sequence {}, {:?}", slot.sequence, slot.vote),
            Err(why) => println!("vote slot {n}: {why}"),
        }
    }
    for segment in raft::segments(dir).with_context(|| dir.display().to_string())? {
        println!("{} ({} bytes)", segment.path.display(), segment.bytes);
        match &segment.header {
            Ok(head) => println!("  node {}, next index {}", head.node_id, head.next_index),
            Err(why) => {
                println!("  DAMAGED {why}");
                sound = false;
                continue;
            }
        }
        for record in segment.records()? {
            let record = record?;
            let command = command::describe(&record.payload_head);
            if as_json {
                let kind = format!("{:?}", record.kind);
                let line = json!({ "offset": record.offset, "kind": kind, "term": record.position.term,
                    "index": record.position.index, "bytes": record.payload_bytes, "fault": record.fault,
                    "command": command });
                println!("{line}");
                continue;
            }
            match &record.fault {
                // Where the records end, too: what follows was never written.
                Some(why) => println!("  {:>10}  end of the records: {why}", record.offset),
                None => println!(
                    "  {:>10}  {:<10} {}  {} bytes{}{}",
                    record.offset,
                    format!("{:?}", record.kind),
                    record.position,
                    record.payload_bytes,
                    if command.is_some() { "  " } else { "" },
                    command.unwrap_or_default()
                ),
            }
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn database(path: &Path) -> anyhow::Result<ExitCode> {
    let found = SideFile::identify(path)?;
    let (id, page_size) = found.with_context(|| format!("{} is no database of a node", path.display()))?;
    let (_, contents) = SideFile::open(path, id, page_size)?;
    let durable = contents.durable;
    println!("database {id}, pages of {page_size} bytes");
    println!("durable entry {}, {} pages, checksum {}", durable.position, durable.pages, durable.checksum);
    if durable.target != durable.position.index {
        println!("a checkpoint up to entry {} had begun", durable.target);
    }
    for record in contents.records {
        let p = record.publication;
        let seen = if p.seen { "published" } else { "not seen to be published" };
        println!(
            "entry {:>8} on {:>8}  transaction {}  frame {:>7}  {seen}",
            p.index, record.base, record.txn, p.frame
        );
    }
    Ok(ExitCode::SUCCESS)
}
