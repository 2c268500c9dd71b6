//! How a request says that it failed as a whole. Some clients (pyrqlite, rqlite-js) look at `results` only, others (gorqlite,
//! rqdb) at the error beside them: a write that failed, or of which nobody knows, says so in both. And what a node says
//! without a quorum.

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{Answer, get, ok, post};
use serde_json::{Value, json};

#[test]
fn a_request_that_fails_says_so_wherever_clients_look() {
    let mut test = TestCluster::prepare(3);
    for node in &mut test.cluster.nodes {
        let flags = ["--commit-timeout-ms", "1000", "--max-transaction-mib", "1", "--foreign-keys"];
        node.flags = flags.map(str::to_owned).to_vec();
    }
    test.cluster.start().unwrap();
    let id = test.cluster.wait_leader(PATIENCE).unwrap();
    let leader = test.cluster.node(id).unwrap().http.clone();
    let others: Vec<_> = test.cluster.nodes.iter().filter(|node| node.id != id).collect();
    for statement in [
        "CREATE TABLE t(x)",
        "CREATE TABLE p(x PRIMARY KEY)",
        "CREATE TABLE c(x REFERENCES p(x) DEFERRABLE INITIALLY DEFERRED)",
    ] {
        let said = ok(&leader, "/db/execute", &json!([statement]).to_string());
        assert_eq!(said, r#"{"results":[{}]}"#);
    }
    failures(&leader, true);
    failures(&others[0].http, false);
    let count = ok(&leader, "/db/query", r#"["SELECT count(*) FROM t"]"#);
    assert!(count.contains("[[2]]"), "{count}");

    others.iter().for_each(|node| node.signal(SIGSTOP).unwrap());
    let open = post(&leader, "/db/execute?timeout=3s", r#"["INSERT INTO t VALUES('open')"]"#);
    let why = says_so(&open, 1);
    assert!(why.starts_with("outcome unknown: ") && why.ends_with("look before you try again"), "{why}");
    without_quorum(&leader);
    others.iter().for_each(|node| node.signal(SIGCONT).unwrap());
    test.cluster.wait_leader(PATIENCE).unwrap();
    let rows = |x: &str| {
        let body = json!([format!("SELECT count(*) FROM t WHERE x = '{x}'")]).to_string();
        let value: Value = serde_json::from_str(&ok(&leader, "/db/query?level=strong", &body)).unwrap();
        value["results"][0]["values"][0][0].as_u64().unwrap()
    };
    assert!(rows("open") <= 1);
    assert_eq!(rows("never"), 0);
}

fn failures(at: &str, leads: bool) {
    // An error of one statement is its own.
    let said = ok(at, "/db/execute", r#"["INSERT INTO t VALUES(1)","INSERT INTO missing VALUES(1)"]"#);
    let second = r#"{"error":"no such table: missing"}]}"#;
    assert!(said.ends_with(second) && said.matches("error").count() == 1, "{said}");
    for path in ["/db/execute?", "/db/request?", "/db/execute?pretty&", "/db/execute?associative&timings&"] {
        let large = post(at, path, r#"["INSERT INTO t VALUES(randomblob(3000000))"]"#);
        let why = says_so(&large, 1);
        assert!(!why.contains("unknown"), "{why}");
        let keys = post(at, &format!("{path}transaction"), r#"["INSERT INTO c VALUES(9)"]"#);
        assert_eq!(says_so(&keys, 2), "FOREIGN KEY constraint failed");
    }
    // A read has no results to take for anything.
    let stale = get(at, "/db/query?level=none&freshness=1ns&q=SELECT%201");
    let expected = r#"{"results":[],"error":"stale read"}"#;
    assert_eq!((stale.status, stale.body == expected), (200, !leads), "{stale:?}");
}

fn without_quorum(at: &str) {
    for path in
        ["/db/execute?", "/db/request?", "/db/execute?transaction&", "/db/query?", "/db/query?level=strong&"]
    {
        let answer = post(at, &format!("{path}timeout=1s"), r#"["INSERT INTO t VALUES('never')"]"#);
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        let is_write = !path.contains("query");
        assert!(!is_write || answer.body.contains("leader not found"), "{path}: {answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{path}: {answer:?}");
    }
    let queued = post(at, "/db/execute?queue", r#"["INSERT INTO t VALUES('never')"]"#);
    assert_eq!((queued.status, queued.body.as_str()), (503, "leader not found\n"), "{queued:?}");
    let here = ok(at, "/db/query?level=none", r#"["SELECT count(*) FROM t WHERE x = 'never'"]"#);
    assert!(here.contains("[[0]]"), "{here}");
    assert_eq!(get(at, "/readyz?noleader&timeout=1s").status, 200);
}

/// The error of a write that failed as a whole: beside the results, and last of so many in them.
fn says_so(answer: &Answer, results: usize) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let value = answer.json();
    let all = value["results"].as_array().unwrap();
    assert_eq!(all.len(), results, "{answer:?}");
    let last = all.last().unwrap()["error"].as_str();
    assert!(last.is_some() && last == value["error"].as_str(), "{answer:?}");
    last.unwrap().to_owned()
}
