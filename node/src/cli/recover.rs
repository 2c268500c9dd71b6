//! `quire recover`: makes a stopped survivor the only voter of its cluster.

use crate::args::RecoverArgs;
use crate::recover::Survivor;
use quire_raft::recover::RecoveryPlan;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Says what it will do; does it if it was told to. Fails unless it was done.
pub fn run(args: &RecoverArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(recover(args))
}

async fn recover(args: &RecoverArgs) -> anyhow::Result<ExitCode> {
    let survivor = Survivor::open(&args.data_dir, args.node_id).await?;
    let plan = survivor.recovery.plan().clone();
    if !args.json {
        print(&plan, &survivor.cluster_id);
    }
    let done = if args.yes_i_know_what_may_be_lost {
        Some(survivor.recovery.run().await?)
    } else {
        survivor.recovery.cancel().await;
        None
    };
    if args.json {
        let mut value = describe(&plan, &survivor.cluster_id);
        value["done"] = done.is_some().into();
        println!("{value}");
    } else if let Some(at) = done {
        println!("Done, as entry {at}. Start node {} as ever; it will lead by itself.", plan.node_id);
    } else {
        println!("Nothing was changed. To do it, run this again with --yes-i-know-what-may-be-lost.");
    }
    Ok(if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(plan: &RecoveryPlan, cluster: &str) -> Value {
    let given_up: Vec<_> =
        plan.given_up().map(|(id, peer)| json!({ "id": id.to_string(), "addr": peer.raft_addr })).collect();
    json!({
        "cluster_id": cluster,
        "node_id": plan.node_id.to_string(),
        "last": { "term": plan.last.term, "leader": plan.last.leader, "index": plan.last.index },
        "commit_index": plan.committed,
        "new_term": plan.term,
        "voter_before": plan.voters.contains(&plan.node_id),
        "given_up": given_up,
    })
}

fn print(plan: &RecoveryPlan, cluster: &str) {
    let RecoveryPlan { node_id, last, .. } = plan;
    println!("Node {node_id} will be the only voter of cluster {cluster}.");
    println!();
    println!("  its last entry        {} of term {}", last.index, last.term);
    match plan.committed {
        Some(index) => println!("  known as committed    up to {index}"),
        None => println!("  known as committed    nothing"),
    }
    for (id, peer) in plan.given_up() {
        let role = if plan.voters.contains(&id) { "voter" } else { "read replica" };
        println!("  given up for good     node {id} at {} ({role})", peer.raft_addr);
    }
    if !plan.voters.contains(node_id) {
        println!("  note                  node {node_id} had no vote until now");
    }
    println!();
    println!(
        "What may be lost: every transaction after entry {} that the others committed; this node",
        last.index
    );
    println!("knows nothing of it. If another node has survived, run this command there too, and recover");
    println!("the one whose last entry has the greatest term, and of those the greatest index.");
    if plan.committed.is_none_or(|index| index < last.index) {
        let first = plan.committed.map_or(0, |index| index + 1);
        println!();
        println!(
            "What may appear: entries {first} to {} are not known to be committed. They will be. If the others",
            last.index
        );
        println!("have gone on without them, an app may have been told that such a transaction was refused.");
    }
    println!();
    println!(
        "The nodes that are given up must not run on: keep them stopped, remove their directories, and let"
    );
    println!("the machines join again under new node ids. This cluster will not listen to the old ones.");
    println!();
}
