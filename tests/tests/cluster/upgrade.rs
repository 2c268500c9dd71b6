//! A data directory that an earlier build left, by `kill -9`, opens with all that was in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{get, ok, post};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Two databases and one that was dropped; a clean stop; after another start one row that only the log has.
#[test]
fn a_directory_of_an_earlier_build_opens() {
    let mut test = TestCluster::prepare(1);
    let (dir, key) = (test.cluster.nodes[0].dir.clone(), test.dir.path().join("cluster.key"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data-directory-1.tar.xz");
    let unpacked = test.dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    assert!(Command::new("tar").arg("-xJf").arg(&kept).arg("-C").arg(&unpacked).status().unwrap().success());
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(unpacked.join("data"), &dir).unwrap();
    std::fs::rename(unpacked.join("key"), &key).unwrap();
    test.cluster.start_node(1).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    let address = test.cluster.nodes[0].http.clone();
    let rows =
        |db: &str, sql: &str| post(&address, &format!("/db/query?db={db}"), &json!([sql]).to_string()).json();
    let found = rows("main", "SELECT id, name, length(data) FROM t ORDER BY id");
    let expected = json!([[1, "ada", 5000], [2, "x", 2], [3, "only in the log", null]]);
    assert_eq!(found["results"][0]["values"], expected, "{found}");
    assert_eq!(rows("other", "SELECT x FROM u")["results"][0]["values"], json!([[42]]));
    assert_eq!(rows("main", "PRAGMA integrity_check")["results"][0]["values"], json!([["ok"]]));
    let listed = get(&address, "/db/list").json();
    let names: Vec<_> =
        listed["databases"].as_array().unwrap().iter().map(|db| db["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["main", "other"]);
    // It goes on, and comes back, as any other.
    ok(&address, "/db/execute", r#"["INSERT INTO t(name) VALUES('new')"]"#);
    assert!(test.cluster.stop(1).unwrap().success());
    test.cluster.start_node(1).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    assert_eq!(rows("main", "SELECT count(*) FROM t")["results"][0]["values"], json!([[4]]));
    test.cluster.stop(1).unwrap();
}
