//! What rqlite's clients and tools expect, row by row and parameter by parameter: each request, and the answer to it.

use super::{ENDLESS, Scene};
use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::hosts::stock;
use quire_tests::http::{Answer, get, ok, post, request};
use serde_json::{Value, json};

pub(super) fn document(scene: &Scene) {
    bodies(scene);
    output(scene);
    times(scene);
    levels(scene);
    queues(scene);
    about_nodes(scene);
    readiness(scene);
    backups(scene);
    snapshots(scene);
    pages(scene);
    codes(scene);
    texts(scene);
    databases(scene);
    leads(scene);
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// The eight examples of requests and their results.
fn bodies(scene: &Scene) {
    let at = &scene.followers[0];
    ok(at, "/db/execute", r#"["CREATE TABLE doc(id INTEGER PRIMARY KEY, name TEXT, age INTEGER)"]"#);
    let execute = "/db/execute";
    for (path, body, expected) in [
        (
            execute,
            r#"["INSERT INTO doc(name) VALUES(\"fiona\")"]"#,
            r#"{"results":[{"last_insert_id":1,"rows_affected":1}]}"#,
        ),
        (
            execute,
            r#"[["INSERT INTO doc(name, age) VALUES(?, ?)","fiona",20]]"#,
            r#"{"results":[{"last_insert_id":2,"rows_affected":1}]}"#,
        ),
        (
            execute,
            r#"[["INSERT INTO doc(name, age) VALUES(:name, :age)",{"name":"ann","age":25}]]"#,
            r#"{"results":[{"last_insert_id":3,"rows_affected":1}]}"#,
        ),
        (execute, r#"["DELETE FROM doc"]"#, r#"{"results":[{"rows_affected":3}]}"#),
        (
            execute,
            r#"["INSERT INTO doc(id) VALUES(1)","INSERT INTO doc(id) VALUES(2)","INSERT INTO doc(id) VALUES(1)","INSERT INTO doc(id) VALUES(4)"]"#,
            r#"{"results":[{"last_insert_id":1,"rows_affected":1},{"last_insert_id":2,"rows_affected":1},{"error":"UNIQUE constraint failed: doc.id"},{"last_insert_id":4,"rows_affected":1}]}"#,
        ),
        (execute, r#"["DELETE FROM doc"]"#, r#"{"results":[{"rows_affected":3}]}"#),
        (
            "/db/execute?transaction",
            r#"["INSERT INTO doc(id) VALUES(1)","INSERT INTO doc(id) VALUES(2)","INSERT INTO doc(id) VALUES(1)","INSERT INTO doc(id) VALUES(4)"]"#,
            r#"{"results":[{"last_insert_id":1,"rows_affected":1},{"last_insert_id":2,"rows_affected":1},{"error":"UNIQUE constraint failed: doc.id"}]}"#,
        ),
        (
            "/db/query",
            r#"["SELECT id, name FROM doc"]"#,
            r#"{"results":[{"columns":["id","name"],"types":["integer","text"]}]}"#,
        ),
        (
            execute,
            r#"["INSERT INTO doc(id, name) VALUES(1, 'fiona'), (2, 'declan')"]"#,
            r#"{"results":[{"last_insert_id":2,"rows_affected":2}]}"#,
        ),
        (
            "/db/query",
            r#"[["SELECT id, name FROM doc WHERE name = ?","fiona"]]"#,
            r#"{"results":[{"columns":["id","name"],"types":["integer","text"],"values":[[1,"fiona"]]}]}"#,
        ),
        (
            "/db/query?associative",
            r#"["SELECT id, name FROM doc"]"#,
            r#"{"results":[{"types":{"id":"integer","name":"text"},"rows":[{"id":1,"name":"fiona"},{"id":2,"name":"declan"}]}]}"#,
        ),
        (
            "/db/request?associative",
            r#"["UPDATE doc SET age = 30 WHERE id = 2"]"#,
            r#"{"results":[{"rows_affected":1,"rows":null}]}"#,
        ),
        (
            "/db/request",
            r#"["INSERT INTO doc(id) VALUES(7)","SELECT id FROM doc WHERE id > 2","SELECT * FROM bar"]"#,
            r#"{"results":[{"last_insert_id":7,"rows_affected":1},{"columns":["id"],"types":["integer"],"values":[[7]]},{"error":"no such table: bar"}]}"#,
        ),
        // SQLite says that it returns rows, not its text.
        (
            "/db/request",
            r#"["DELETE FROM doc WHERE id = 7 RETURNING id"]"#,
            r#"{"results":[{"columns":["id"],"types":["integer"],"values":[[7]]}]}"#,
        ),
        (
            "/db/query",
            r#"["DELETE FROM doc"]"#,
            r#"{"results":[{"error":"attempt to change database via query operation"}]}"#,
        ),
        // A statement that can't be prepared ends a transaction.
        (
            "/db/request?transaction",
            r#"["DELETE FROM doc","nonsense"]"#,
            r#"{"results":[{"rows_affected":2},{"error":"near \"nonsense\": syntax error"}]}"#,
        ),
    ] {
        let said = ok(at, path, body);
        assert_eq!(said, expected, "{path} {body}");
    }
    assert_eq!(scene.count("SELECT count(*) FROM doc"), 2);
}

/// `pretty`, `timings`, `associative`, `blob_array`, `raft_index`, and values as they come out.
fn output(scene: &Scene) {
    let at = &scene.followers[1];
    let pretty = get(at, "/db/query?pretty&q=SELECT%201%20AS%20one").body;
    assert!(pretty.lines().count() > 5 && pretty.contains("    \"results\": ["), "{pretty}");
    let timed = value(&ok(at, "/db/request?timings", r#"["SELECT 1","INSERT INTO doc(id) VALUES(50)"]"#));
    for time in [&timed["time"], &timed["results"][0]["time"], &timed["results"][1]["time"]] {
        assert!(time.as_f64().unwrap() > 0.0, "{timed}");
    }
    let index = value(&ok(at, "/db/execute?raft_index", r#"["DELETE FROM doc WHERE id = 50"]"#));
    assert!(index["raft_index"].as_u64().unwrap() > 0, "{index}");
    ok(
        at,
        "/db/execute",
        r#"["CREATE TABLE doc_types(i INTEGER, r REAL, t TEXT, b BLOB, o BOOLEAN, d DATE, m DATETIME, s TIMESTAMP)",
            ["INSERT INTO doc_types VALUES(?,?,?,?,?,?,?,?)",-9223372036854775808,1.5,"é\u0001",[0,255],true,"2026-11-25","2026-11-25 12:30:00",null]]"#,
    );
    let rows = |query: &str| value(&ok(at, &format!("/db/query?{query}"), r#"["SELECT * FROM doc_types"]"#));
    let types = json!(["integer", "real", "text", "blob", "boolean", "date", "datetime", "timestamp"]);
    let mut expected =
        json!([i64::MIN, 1.5, "é\u{1}", "AP8=", true, "2026-11-25T00:00:00Z", "2026-11-25T12:30:00Z", null]);
    let found = rows("");
    assert_eq!((&found["results"][0]["types"], &found["results"][0]["values"][0]), (&types, &expected));
    expected[3] = json!([0, 255]);
    assert_eq!(rows("blob_array")["results"][0]["values"][0], expected);
    assert_eq!(rows("associative&blob_array")["results"][0]["rows"][0]["b"], json!([0, 255]));
    // What rqlite needs because it sends statements, and pages don't.
    let same = ok(at, "/db/execute?noparse&norwrandom&norwtime", r#"["UPDATE doc SET age = 1 WHERE 0"]"#);
    assert!(!same.contains("error"), "{same}");
}

/// `timeout`, `db_timeout`, `retries`, `redirect`.
fn times(scene: &Scene) {
    let at = &scene.followers[0];
    let endless = json!([format!("INSERT INTO doc(age) {ENDLESS} SELECT max(n) FROM c")]).to_string();
    let limited = ok(at, "/db/execute?db_timeout=50ms", &endless);
    assert_eq!(limited, r#"{"results":[{"error":"execute timeout"}]}"#);
    // Another writer has the database for longer than the request has time.
    let id = post(&scene.leader, "/tx", "").json()["id"].as_str().unwrap().to_owned();
    let late = post(at, "/db/execute?timeout=300ms&retries=3", r#"["INSERT INTO doc(id) VALUES(60)"]"#);
    assert_eq!((late.status, late.body.contains("nothing was changed")), (408, true), "{late:?}");
    ok(&scene.leader, &format!("/tx/{id}/rollback"), "");
    assert_eq!(scene.count("SELECT count(*) FROM doc WHERE id = 60"), 0);
    for path in ["/db/execute?redirect", "/db/query?redirect", "/db/request?redirect&transaction"] {
        let answer = post(at, path, r#"["SELECT 1"]"#);
        let location = format!("http://{}{path}", scene.leader);
        assert_eq!((answer.status, answer.header("location")), (301, Some(location.as_str())), "{path}");
        assert_eq!(post(&scene.leader, path, r#"["SELECT 1"]"#).status, 200, "{path} at the leader");
    }
}

/// `level`, `freshness`, `freshness_strict`, `linearizable_timeout`.
fn levels(scene: &Scene) {
    let one = r#"{"results":[{"columns":["1"],"types":["integer"],"values":[[1]]}]}"#;
    for address in scene.all() {
        for query in [
            "",
            "level=none",
            "level=weak",
            "level=linearizable",
            "level=linearizable&linearizable_timeout=20s",
            "level=strong",
            "level=auto",
            "level=whatever",
            "level=none&freshness=10m",
            "level=none&freshness=10m&freshness_strict",
            "level=weak&freshness=1ns",
        ] {
            assert_eq!(get(address, &format!("/db/query?{query}&q=SELECT%201")).body, one, "{query}");
        }
    }
    let stale = get(&scene.followers[0], "/db/query?level=none&freshness=1ns&q=SELECT%201");
    assert_eq!((stale.status, stale.body.as_str()), (200, r#"{"results":[],"error":"stale read"}"#));
    for bad in ["level=none&freshness_strict", "level=linearizable&linearizable_timeout=soon"] {
        assert_eq!(get(&scene.leader, &format!("/db/query?{bad}&q=SELECT%201")).status, 400, "{bad}");
    }
}

/// `queue`, `wait`.
fn queues(scene: &Scene) {
    let at = &scene.followers[1];
    let number = |answer: &str| {
        let answer = value(answer);
        assert_eq!(answer["results"], json!([]), "{answer}");
        answer["sequence_number"].as_u64().unwrap()
    };
    let first = number(&ok(at, "/db/execute?queue", r#"["INSERT INTO doc(id) VALUES(70)"]"#));
    let second =
        number(&ok(at, "/db/execute?queue&wait&timeout=60s", r#"["INSERT INTO doc(id) VALUES(71)"]"#));
    assert!(second > first);
    assert_eq!(scene.count("SELECT count(*) FROM doc WHERE id IN (70, 71)"), 2);
    assert_eq!(post(at, "/db/execute?queue", "[").status, 400);
}

/// `/nodes`, `/leader`, `/status`, `/debug/vars`, `/metrics`, OPTIONS, the version.
fn about_nodes(scene: &Scene) {
    let at = &scene.followers[0];
    let by_id = get(at, "/nodes?timeout=5s").json();
    let nodes = by_id.as_object().unwrap();
    assert_eq!(nodes.len(), 3);
    for (id, node) in nodes {
        assert_eq!(node["id"], json!(id));
        let keys: Vec<_> = node.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["addr", "api_addr", "id", "leader", "reachable", "time", "version", "voter"]);
        assert_eq!(node["leader"], node["api_addr"] == format!("http://{}", scene.leader));
    }
    for query in ["ver=2", "ver=2&nonvoters"] {
        assert_eq!(get(at, &format!("/nodes?{query}")).json()["nodes"].as_array().unwrap().len(), 3);
    }
    assert_eq!(get(at, "/nodes?timeout=x").status, 400);
    let leader = get(at, "/leader").json();
    assert_eq!(leader["api_addr"], format!("http://{}", scene.leader));
    let status = get(at, "/status").json();
    for (path, expected) in [
        ("/store/raft/state", json!("Follower")),
        ("/store/raft/voter", json!(true)),
        ("/store/leader/node_id", leader["id"].clone()),
        ("/store/leader/addr", leader["addr"].clone()),
        ("/http/auth", json!("disabled")),
        ("/http/tls/enabled", json!("false")),
    ] {
        assert_eq!(status.pointer(path), Some(&expected), "{path}: {status}");
    }
    for path in [
        "/store/raft/commit_index",
        "/store/raft/applied_index",
        "/store/raft/last_log_index",
        "/store/raft/last_snapshot_index",
        "/store/raft/term",
        "/store/node_id",
        "/store/addr",
        "/store/db_applied_index",
        "/store/fsm_index",
        "/store/sqlite3/path",
        "/store/sqlite3/db_size",
        "/store/sqlite3/version",
        "/store/nodes/0/addr",
        "/http/bind_addr",
        "/build/version",
        "/node/start_time",
        "/node/uptime",
        "/os/pid",
    ] {
        assert!(status.pointer(path).is_some_and(|found| !found.is_null()), "{path}: {status}");
    }
    for (key, expected) in [
        ("store.raft.state", json!("Follower")),
        ("store.leader.node_id", leader["id"].clone()),
        // As rqlite has it: what isn't there is an empty object, and what is no object ends the path.
        ("store.nothing", json!({})),
        ("nothing.at.all", json!({})),
        ("store.raft.state.more", json!("Follower")),
    ] {
        let answer = get(at, &format!("/status?key={key}"));
        assert_eq!((answer.status, answer.json()), (200, expected), "{key}");
    }
    assert!(get(at, "/status?pretty").body.lines().count() > 30);
    let vars = get(at, "/debug/vars?key=quire_raft_leader").json();
    assert_eq!(vars, json!({ "quire_raft_leader": 0.0 }));
    assert!(get(at, "/metrics").body.contains("# TYPE quire_raft_leader gauge"));
    for path in ["/db/execute", "/db/query", "/status", "/nothing"] {
        let answer = request(at, "OPTIONS", path, &[], b"").unwrap();
        assert_eq!((answer.status, answer.header("x-rqlite-version").is_some()), (200, true), "{path}");
    }
}

/// `/readyz`: `noleader`, `sync`, `timeout`.
fn readiness(scene: &Scene) {
    for address in scene.all() {
        let lines = |query: &str| {
            let answer = get(address, &format!("/readyz?{query}"));
            assert_eq!(answer.status, 200, "{query}: {answer:?}");
            answer.body
        };
        assert_eq!(lines(""), "[+]node ok\n[+]leader ok\n[+]member ok\n[+]store ok\n");
        assert_eq!(lines("noleader"), "[+]node ok\n[+]member ok\n[+]store ok\n");
        assert!(lines("sync&timeout=60s").contains("\n[+]sync ok\n"));
    }
    assert_eq!(get(&scene.leader, "/readyz?timeout=x").status, 400);
}

/// `/db/backup`: `fmt`, `tables`, `compress`, `vacuum`, `noleader`, `redirect`; `/db/load` takes what it gives.
fn backups(scene: &Scene) {
    let at = &scene.followers[0];
    let backup = |query: &str| {
        let answer = get(at, &format!("/db/backup?{query}"));
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        answer
    };
    let kind = |answer: &Answer| answer.header("content-type").unwrap().to_owned();
    for query in ["", "fmt=binary", "fmt=delete", "fmt=delete&vacuum", "noleader", "redirect&noleader"] {
        let answer = backup(query);
        assert!(answer.body.starts_with("SQLite format 3\0"), "{query}");
        assert_eq!(kind(&answer), "application/vnd.sqlite3");
    }
    assert_eq!(kind(&backup("compress")), "application/gzip");
    let script = backup("fmt=sql&tables=doc");
    assert!(script.body.contains("CREATE TABLE doc(") && !script.body.contains("doc_types"), "{script:?}");
    let moved = get(at, "/db/backup?fmt=sql&redirect");
    let location = format!("http://{}/db/backup?fmt=sql&redirect", scene.leader);
    assert_eq!((moved.status, moved.header("location")), (301, Some(location.as_str())));
    assert_eq!(get(&scene.leader, "/db/backup?fmt=sql&redirect").status, 200);
    assert_eq!(get(at, "/db/backup?fmt=other").status, 400);
    let loaded = value(&ok(at, "/db/load?db=doc_copy", &script.body));
    assert_eq!((&loaded["database"], &loaded["kind"]), (&json!("doc_copy"), &json!("script")));
    let copied = ok(at, "/db/query?db=doc_copy", r#"["SELECT count(*) FROM doc"]"#);
    assert_eq!(copied, ok(at, "/db/query", r#"["SELECT count(*) FROM doc"]"#));
    ok(at, "/db/drop?db=doc_copy", "");
    assert_eq!(post(at, "/boot", "SQLite format 3\0").status, 400, "more than one node");
}

/// `/snapshot`: `trailing_logs`; 204 where there is nothing new.
fn snapshots(scene: &Scene) {
    let at = &scene.followers[1];
    ok(at, "/db/execute", r#"["INSERT INTO doc(id) VALUES(80)"]"#);
    scene.test.cluster.wait_applied("main", PATIENCE).unwrap();
    let take = |query: &str| post(at, &format!("/snapshot{query}"), "");
    scene
        .test
        .cluster
        .wait("a snapshot, and nothing new after it", PATIENCE, |_| {
            // A reader may be in the way of one.
            let answer = take("");
            assert!(
                matches!(answer.status, 200 | 204 | 503) && answer.body.is_empty() || answer.status == 503
            );
            answer.status == 204
        })
        .unwrap();
    let purged = get(at, "/status?key=store.raft.purged_index").json();
    assert!(purged.as_u64().is_some_and(|index| index > 0), "{purged}");
    assert_eq!(take("?trailing_logs=1000000").status, 204);
    assert_eq!(take("?trailing_logs=x").status, 400);
    assert_eq!(get(at, "/snapshot").status, 405);
    // It is as before.
    assert_eq!(scene.count("SELECT count(*) FROM doc WHERE id = 80"), 1);
}

/// `/` and `/console/`.
fn pages(scene: &Scene) {
    let root = get(&scene.leader, "/");
    assert_eq!((root.status, root.header("location")), (303, Some("/console/")));
    let page = get(&scene.leader, "/console/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.contains("/db/request") && !page.body.contains("http://"), "{page:?}");
}

/// What is wrong with a request decides on its status.
fn codes(scene: &Scene) {
    let at = &scene.leader;
    for (method, path, body, status) in [
        ("POST", "/db/execute", "{", 400),
        ("POST", "/db/execute", "[]", 400),
        ("POST", "/db/execute?timeout=never", r#"["SELECT 1"]"#, 400),
        ("GET", "/db/query", "", 400),
        ("GET", "/nowhere", "", 404),
        ("GET", "/db/execute", "", 405),
        ("POST", "/status", "", 405),
        ("GET", "/remove", "", 405),
        ("DELETE", "/remove", "", 400),
        ("DELETE", "/remove", r#"{"id":"none"}"#, 400),
        ("DELETE", "/remove", r#"{"id":"77"}"#, 400),
        ("POST", "/leader", r#"{"id":"77"}"#, 400),
        ("POST", "/leader", "[", 400),
    ] {
        let answer = request(at, method, path, &[], body.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
    }
}

/// `text/plain`, the order of keys, who served, and a queue that waits in vain.
fn texts(scene: &Scene) {
    let plain = |at: &str, path: &str, sql: &str| {
        let answer = request(at, "POST", path, &["Content-Type: text/plain"], sql.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{path} {sql}: {answer:?}");
        answer
    };
    let at = &scene.followers[0];
    for (path, sql, expected) in [
        ("/db/execute", "CREATE TABLE doc_text(id INTEGER PRIMARY KEY, x)", r#"{"results":[{}]}"#),
        (
            "/db/execute",
            "INSERT INTO doc_text(x) VALUES('a, \"b\"')",
            r#"{"results":[{"last_insert_id":1,"rows_affected":1}]}"#,
        ),
        (
            "/db/request",
            "INSERT INTO doc_text(x) VALUES(2)",
            r#"{"results":[{"last_insert_id":2,"rows_affected":1}]}"#,
        ),
        (
            "/db/query",
            "SELECT x FROM doc_text WHERE id = 1",
            r#"{"results":[{"columns":["x"],"types":["text"],"values":[["a, \"b\""]]}]}"#,
        ),
    ] {
        assert_eq!(plain(at, path, sql).body, expected, "{path} {sql}");
    }
    let write = plain(at, "/db/execute", "UPDATE doc_text SET x = 3");
    assert_eq!(write.header("x-rqlite-served-by"), Some(scene.leader.as_str()));
    assert!(write.header("x-rqlite-version").is_some_and(|version| version.starts_with("v10.")), "{write:?}");
    let there = plain(&scene.leader, "/db/execute", "UPDATE doc_text SET x = 4");
    assert_eq!(there.header("x-rqlite-served-by"), None);
    let body =
        r#"["INSERT INTO doc_text(x) VALUES(5)","SELECT x FROM doc_text WHERE id = 3","SELECT * FROM bar"]"#;
    let said = ok(at, "/db/request?timings&raft_index", body);
    let mut rest = said.as_str();
    let of_write = ["results", "last_insert_id", "rows_affected", "time"];
    let of_read = ["columns", "types", "values", "time"];
    for key in of_write.iter().chain(&of_read).chain(&["error", "time", "raft_index"]) {
        let (_, after) = rest.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {said}"));
        rest = after;
    }
    // Another writer has the database for longer than that.
    let id = post(&scene.leader, "/tx", "").json()["id"].as_str().unwrap().to_owned();
    let late = post(at, "/db/execute?queue&wait&timeout=300ms", r#"["UPDATE doc_text SET x = 7"]"#);
    assert_eq!((late.status, late.body.as_str()), (408, "timeout\n"));
    ok(&scene.leader, &format!("/tx/{id}/rollback"), "");
}

/// `/db/list`, `/db/create`, `/db/drop`.
fn databases(scene: &Scene) {
    let at = &scene.followers[1];
    let created = value(&ok(at, "/db/create?db=doc_more&page_size=8192", ""));
    assert_eq!(created, json!({ "name": "doc_more", "id": created["id"], "page_size": 8192 }));
    for (path, status) in [
        ("/db/create?db=doc_more", 409),
        ("/db/create", 400),
        ("/db/create?db=x&page_size=1000", 400),
        ("/db/drop", 400),
        ("/db/drop?db=none", 404),
        ("/db/drop?db=doc_more&id=1", 409),
    ] {
        assert_eq!(post(at, path, "").status, status, "{path}");
    }
    let listed = || get(at, "/db/list").json();
    let all = listed();
    let found = all["databases"].as_array().unwrap().iter().find(|db| db["name"] == "doc_more").unwrap();
    assert_eq!((&found["id"], &found["fenced"]), (&created["id"], &json!(null)), "{all}");
    ok(at, "/db/execute?db=doc_more", r#"["CREATE TABLE t(x)"]"#);
    let dropped = value(&ok(at, &format!("/db/drop?db=doc_more&id={}", created["id"]), ""));
    assert_eq!(dropped, json!({ "name": "doc_more", "id": created["id"] }));
    let is_gone = |_: &_| !listed().to_string().contains("doc_more");
    scene.test.cluster.wait("it to be gone", PATIENCE, is_gone).unwrap();
    assert_eq!(post(at, "/db/query?db=doc_more", r#"["SELECT 1"]"#).status, 404);
}

/// `/leader`: POST with `id` and `wait`.
fn leads(scene: &Scene) {
    let leader = || get(&scene.leader, "/leader").json()["id"].clone();
    let first = leader();
    let nodes = get(&scene.leader, "/nodes").json();
    let other = nodes.as_object().unwrap().keys().find(|id| first != id.as_str()).unwrap();
    for id in [json!(other), first] {
        let body = json!({ "id": id }).to_string();
        // Refused for as long as that voter doesn't answer.
        let hand_over = |_: &_| {
            let answer = post(&scene.leader, "/leader?wait&timeout=20s", &body);
            answer.status == 200 || leader() == id
        };
        scene.test.cluster.wait("the lead to be handed over", PATIENCE, hand_over).unwrap();
        scene.test.cluster.wait_leader(PATIENCE).unwrap();
        assert_eq!(leader(), id);
    }
}

/// `/boot`: a file for a cluster of one.
#[test]
fn a_single_node_boots_from_a_file() {
    let test = TestCluster::start(1);
    let at = &test.cluster.nodes[0].http;
    let file = test.dir.path().join("app.db");
    stock(&file, "CREATE TABLE t(x INTEGER); INSERT INTO t VALUES(7);").unwrap();
    let booted = request(at, "POST", "/boot", &[], &std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((booted.status, &booted.json()["kind"]), (200, &json!("file")), "{booted:?}");
    assert_eq!(
        ok(at, "/db/query", r#"["SELECT x FROM t"]"#),
        r#"{"results":[{"columns":["x"],"types":["integer"],"values":[[7]]}]}"#
    );
    let script = post(at, "/boot", "CREATE TABLE u(x);");
    assert_eq!((script.status, script.body.contains("SQLite file")), (400, true), "{script:?}");
}
