//! Clusters that are not to change their leader while a test writes, and the proof that all their replicas
//! are identical.

use crate::TestCluster;
use crate::hosts::{PATIENCE, stock};
use quire_node::cli::verify::verify;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Starts a cluster whose leader stays, however busy the machine is.
pub fn steady(count: u64, flags: &[&str]) -> TestCluster {
    let mut test = steady_prepared(count, flags);
    test.cluster.start().unwrap();
    test
}

/// Prepares such a cluster; none of it is started.
pub fn steady_prepared(count: u64, flags: &[&str]) -> TestCluster {
    let mut test = TestCluster::prepare(count);
    for node in &mut test.cluster.nodes {
        node.flags = ["--heartbeat-ms", "200", "--election-timeout-ms", "6000"].map(String::from).to_vec();
        node.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }
    test
}

/// Writes the key of another cluster.
pub fn another_key(path: &Path) {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(&[0x51; 32]).unwrap();
}

/// A node's file of a database.
pub fn database(test: &TestCluster, node: u64, name: &str) -> PathBuf {
    test.cluster.node(node).unwrap().database(name)
}

/// Stock SQLite reads the same on all nodes; the files are whole, and identical once all is in them.
pub fn assert_identical(test: &TestCluster, name: &str, queries: &[&str]) {
    let nodes = 1..=test.cluster.nodes.len() as u64;
    test.cluster.wait_applied(name, PATIENCE).unwrap();
    for query in queries {
        let expected = stock(&database(test, 1, name), query).unwrap();
        for node in nodes.clone() {
            let found = stock(&database(test, node, name), query).unwrap();
            assert!(found == expected, "node {node}: {query} of {name} is another than on node 1");
        }
    }
    let report = verify(&test.cluster.nodes[0].http, true, false, PATIENCE).unwrap();
    assert!(report.identical, "{name}: {report:#?}\n{}", test.cluster.logs(30));
    assert!(report.databases.contains_key(name), "{report:#?}");
    for node in nodes {
        let whole = stock(&database(test, node, name), "PRAGMA integrity_check");
        assert_eq!(whole.as_deref(), Ok("ok"), "{name} on node {node}");
    }
}
