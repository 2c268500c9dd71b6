//! Nodes of an earlier version: one that doesn't know the newest form of a request says so, and has it in the older one.

use quire_tests::crash::PATIENCE;
use quire_tests::http::{Answer, ok, post, request};
use quire_tests::{TestCluster, step};
use serde_json::{Value, json};
use std::thread;

/// Rows of a query at a node.
fn rows(address: &str, sql: &str) -> Value {
    let value = post(address, "/db/query?level=strong", &json!([sql]).to_string()).json();
    assert!(value["results"][0]["error"].is_null(), "{value}");
    value["results"][0]["values"].clone()
}

#[test]
fn a_leader_of_an_earlier_version() {
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        node.env = vec![("QUIRE_AS_EARLIER".into(), "1".into())];
    }
    test.cluster.start().unwrap();
    for node in &test.cluster.nodes[1..] {
        assert!(node.log().contains("a version of Quire that doesn't check who joins"), "{}", node.log());
    }
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let at = test.cluster.node(leader).unwrap().http.clone();
    let others: Vec<_> = test.cluster.nodes.iter().filter(|node| node.id != leader).collect();
    let (follower, third) = (others[0].http.clone(), others[1].http.clone());
    step("what is sent on is done, once", || {
        let create = r#"["CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT UNIQUE)"]"#;
        let answer = post(&follower, "/db/execute", create);
        assert_eq!(answer.json(), json!({ "results": [{}] }));
        assert_eq!(answer.header("x-rqlite-served-by"), Some(at.as_str()));
        for (path, body, expected) in [
            (
                "/db/execute",
                r#"[["INSERT INTO t(name) VALUES(?)", "a"]]"#,
                json!([{ "last_insert_id": 1, "rows_affected": 1 }]),
            ),
            (
                "/db/request",
                r#"["INSERT INTO t(name) VALUES('b') RETURNING id", "SELECT count(*) AS n FROM t"]"#,
                json!([{ "columns": ["id"], "types": ["integer"], "values": [[2]] },
                    { "columns": ["n"], "types": ["integer"], "values": [[2]] }]),
            ),
            (
                "/db/execute?transaction",
                r#"["INSERT INTO t(name) VALUES('c')", "INSERT INTO t(name) VALUES('a')"]"#,
                json!([{ "last_insert_id": 3, "rows_affected": 1 },
                    { "error": "UNIQUE constraint failed: t.name" }]),
            ),
        ] {
            assert_eq!(post(&follower, path, body).json(), json!({ "results": expected }), "{path} {body}");
        }
        let text = ["Content-Type: text/plain"];
        let sql = b"INSERT INTO t(name) VALUES('d')";
        let answer = request(&follower, "POST", "/db/execute?raft_index", &text, sql).unwrap().json();
        assert!(answer["raft_index"].as_u64().is_some_and(|index| index > 0), "{answer}");
        assert_eq!(rows(&third, "SELECT id, name FROM t"), json!([[1, "a"], [2, "b"], [3, "d"]]));
    });
    step("it dies with one: nobody can tell, and nobody does it again", || {
        // It has the database to itself, so that the request has to wait.
        let begun: Value = serde_json::from_str(&ok(&at, "/tx?timeout=60s&idle=60s", "")).unwrap();
        let id = begun["id"].as_str().unwrap();
        ok(&at, &format!("/tx/{id}/execute"), r#"["INSERT INTO t(name) VALUES('never')"]"#);
        let answer: Answer = thread::scope(|scope| {
            let sent = scope
                .spawn(|| post(&follower, "/db/execute", r#"["INSERT INTO t(name) VALUES('perhaps')"]"#));
            let waits = |_: &_| {
                let vars = quire_tests::http::get(&at, "/metrics").body;
                vars.contains("quire_db_waiting_writers{db=\"main\"} 1\n")
            };
            test.cluster.wait("the leader to have it", PATIENCE, waits).unwrap();
            test.cluster.kill(leader).unwrap();
            sent.join().unwrap()
        });
        let value = answer.json();
        let said = value["error"].as_str().unwrap_or_default();
        assert!(answer.status == 200 && said.starts_with("outcome unknown"), "{answer:?}");
        assert_eq!(value["results"], json!([{ "error": said }]));
    });
    step("and the next leader is asked as that one was", || {
        test.cluster.wait_leader(PATIENCE).unwrap();
        for address in [&follower, &third] {
            ok(address, "/db/execute", r#"["INSERT INTO t(name) VALUES(hex(randomblob(8)))"]"#);
        }
        let names = "SELECT count(*), count(*) FILTER (WHERE name IN ('never', 'perhaps')) FROM t";
        assert_eq!(rows(&follower, names), json!([[5, 0]]));
    });
}
