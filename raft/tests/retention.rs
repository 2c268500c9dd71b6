//! Compaction by bytes on a running node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::*;

const RETAIN: u64 = 3 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purging_by_bytes_bounds_the_disk_and_survives_restarts() {
    let tmp = tempfile::tempdir().unwrap();
    let mut node = Node::start(1, tmp.path()).await;
    node.raft.initialize(BTreeMap::from([(1, node.peer())])).await.unwrap();
    let mut purges = 0;
    for round in 0..3u8 {
        until("it leads", || node.raft.status().leader == Some(1)).await;
        for i in 0..80u8 {
            let last = propose(&[node.raft.clone()], Bytes::from(vec![round ^ i; 100_000])).await.index;
            let durable = node.machine.checkpoint().index;
            let Some(point) = node.raft.purge_point(durable, RETAIN) else { continue };
            assert!(point <= durable && node.raft.bytes_after(point) >= RETAIN);
            let before = node.raft.log_bytes();
            node.raft.purge(point).await.unwrap();
            until("freed", || node.raft.log_bytes() < before).await;
            assert_eq!(node.raft.status().purged_index, Some(point));
            assert_eq!(node.raft.purge_point(durable, RETAIN), None);
            assert_eq!(node.raft.bytes_after(last), 0);
            purges += 1;
        }
        // Segments of 1 MiB: what is retained, one that is partly needed, the one being written.
        assert!(node.raft.log_bytes() < RETAIN + (2 << 20), "{}", node.raft.log_bytes());
        let files = std::fs::read_dir(node.dir.join("log")).unwrap().count();
        assert!(files <= 12, "{files} files");
        let (kept, purged) = (node.raft.bytes_after(0), node.raft.status().purged_index);
        node.raft.shutdown().await;
        node = node.restart().await;
        assert_eq!(node.raft.status().purged_index, purged);
        // The same entries, and maybe a record or two that carry none.
        assert!((kept..kept + 4096).contains(&node.raft.bytes_after(0)));
    }
    assert!(purges > 15, "{purges}");
    node.raft.shutdown().await;
}
