//! Statements: writes and reads, alone and in company.

use super::{ENDLESS, Scene};
use quire_tests::crash::PATIENCE;
use quire_tests::http::{get, ok, post, request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;

pub(super) fn writes_anywhere(scene: &Scene) {
    let create = r#"["CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT, age INTEGER)"]"#;
    assert_eq!(ok(&scene.leader, "/db/execute", create), r#"{"results":[{}]}"#);
    let insert = r#"["INSERT INTO foo(name) VALUES(\"fiona\")"]"#;
    for (n, address) in scene.all().enumerate() {
        let answer = post(address, "/db/execute", insert);
        let expected = format!(r#"{{"results":[{{"last_insert_id":{},"rows_affected":1}}]}}"#, n + 1);
        assert_eq!((answer.status, answer.body.as_str()), (200, expected.as_str()));
        assert!(answer.header("x-rqlite-version").unwrap().starts_with('v'));
        let by = answer.header("x-rqlite-served-by");
        assert_eq!(by, (n > 0).then_some(scene.leader.as_str()), "{answer:?}");
    }
    let answer = post(&scene.followers[0], "/db/execute?redirect&pretty", insert);
    let location = format!("http://{}/db/execute?redirect&pretty", scene.leader);
    assert_eq!((answer.status, answer.header("location")), (301, Some(location.as_str())));
    let answer = post(&scene.followers[0], "/db/execute?raft_index", insert).json();
    assert!(answer["raft_index"].as_u64().unwrap() > 0, "{answer}");
    let text = ["Content-Type: text/plain"];
    let sql = b"INSERT INTO foo(name) VALUES('text')";
    let answer = request(&scene.followers[1], "POST", "/db/execute", &text, sql).unwrap();
    assert_eq!(answer.body, r#"{"results":[{"last_insert_id":5,"rows_affected":1}]}"#);
}

pub(super) fn reads(scene: &Scene) {
    for address in scene.all() {
        for level in ["weak", "linearizable", "strong", "auto", "nonsense"] {
            let answer =
                get(address, &format!("/db/query?level={level}&q=SELECT%20count(*)%20AS%20n%20FROM%20foo"));
            let expected = r#"{"results":[{"columns":["n"],"types":["integer"],"values":[[5]]}]}"#;
            assert_eq!(answer.body, expected, "{level} at {address}");
        }
    }
    scene.test.cluster.wait_applied("main", PATIENCE).unwrap();
    for address in scene.all() {
        let body =
            ok(address, "/db/query?level=none&associative", r#"["SELECT id, name FROM foo WHERE id=1"]"#);
        assert_eq!(
            body,
            r#"{"results":[{"types":{"id":"integer","name":"text"},"rows":[{"id":1,"name":"fiona"}]}]}"#
        );
    }
    let follower = &scene.followers[0];
    let stale = get(follower, "/db/query?level=none&freshness=1ns&q=SELECT%201");
    assert_eq!(stale.body, r#"{"results":[],"error":"stale read"}"#);
    let fresh = get(follower, "/db/query?level=none&freshness=1m&freshness_strict&q=SELECT%201");
    assert_eq!(fresh.body, r#"{"results":[{"columns":["1"],"types":["integer"],"values":[[1]]}]}"#);
    assert_eq!(get(follower, "/db/query?level=none&freshness_strict&q=SELECT%201").status, 400);
    assert_eq!(get(follower, "/db/query?redirect&q=SELECT%201").status, 301);
    let write = ok(follower, "/db/query", r#"["DELETE FROM foo"]"#);
    assert_eq!(write, r#"{"results":[{"error":"attempt to change database via query operation"}]}"#);
    let body =
        r#"["INSERT INTO foo(name) VALUES('both')","SELECT name FROM foo WHERE id=6","SELECT * FROM bar"]"#;
    let both = r#"{"results":[{"last_insert_id":6,"rows_affected":1},{"columns":["name"],"types":["text"],"values":[["both"]]},{"error":"no such table: bar"}]}"#;
    assert_eq!(ok(follower, "/db/request", body), both);
    let reads = r#"{"results":[{"columns":["1"],"types":["integer"],"values":[[1]]}]}"#;
    assert_eq!(ok(follower, "/db/request", r#"["SELECT 1"]"#), reads);
    let late = ok(
        follower,
        "/db/query?db_timeout=50ms",
        &json!([format!("{ENDLESS} SELECT max(n) FROM c")]).to_string(),
    );
    assert_eq!(late, r#"{"results":[{"error":"query timeout"}]}"#);
}

/// Many at the same time, each of which must have what it would have alone.
pub(super) fn company(scene: &Scene) {
    ok(
        &scene.leader,
        "/db/execute",
        r#"["CREATE TABLE c(id INTEGER PRIMARY KEY, who INTEGER)","INSERT INTO c VALUES(0,0)"]"#,
    );
    let interrupted = format!("INSERT INTO c(who) {ENDLESS} SELECT max(n) FROM c");
    let one = |address: &str, client: u64, round: u64| {
        let id = 1 + client * 1000 + round * 10;
        let insert = |id: u64| format!("INSERT INTO c VALUES({id},{client})");
        let done = |id: u64| json!({ "last_insert_id": id, "rows_affected": 1 });
        let taken = json!({ "error": "UNIQUE constraint failed: c.id" });
        let (path, body, expected) = match (client + round) % 5 {
            0 => ("/db/execute", json!([insert(id)]), json!([done(id)])),
            1 => (
                "/db/execute",
                json!([insert(id), insert(0), insert(id + 1)]),
                json!([done(id), taken, done(id + 1)]),
            ),
            2 => (
                "/db/execute?transaction",
                json!([insert(id), insert(0), insert(id + 1)]),
                json!([done(id), taken]),
            ),
            3 => (
                "/db/execute",
                json!([insert(id), format!("INSERT OR ROLLBACK INTO c VALUES(0,{client})"), insert(id + 1)]),
                json!([done(id), taken, done(id + 1)]),
            ),
            _ => (
                "/db/execute?db_timeout=100ms",
                json!([insert(id), interrupted]),
                json!([done(id), { "error": "execute timeout" }]),
            ),
        };
        let answer = post(
            address,
            &format!("{path}{}raft_index", if path.contains('?') { '&' } else { '?' }),
            &body.to_string(),
        );
        let value = answer.json();
        assert_eq!(value["results"], expected, "{path} {body}");
        value["raft_index"].as_u64()
    };
    let (clients, rounds) = (15, 5);
    let addresses: Vec<_> = scene.all().cloned().collect();
    let indexes: Vec<Option<u64>> = thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let address = &addresses[client as usize % 3];
                scope.spawn(move || (0..rounds).map(|round| one(address, client, round)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let entries: BTreeSet<u64> = indexes.iter().flatten().copied().collect();
    assert!(entries.len() < indexes.len() / 2, "{} entries for {} requests", entries.len(), indexes.len());
    // Kinds 0, 1, 3 and 4 leave 1, 2, 2 and 1 rows; each comes 15 times.
    assert_eq!(scene.count("SELECT count(*) FROM c"), 1 + 15 * 6);
    assert_eq!(scene.rows("PRAGMA integrity_check"), json!([["ok"]]));
}

/// What could end a transaction that others share, one at a time.
pub(super) fn endings(scene: &Scene) {
    let at = &scene.leader;
    ok(
        at,
        "/db/execute",
        r#"["CREATE TABLE e(id INTEGER PRIMARY KEY)","CREATE TABLE raises(x)","CREATE TRIGGER r BEFORE INSERT ON raises BEGIN SELECT RAISE(ROLLBACK,'no'); END"]"#,
    );
    let body = r#"["INSERT INTO e VALUES(1)","INSERT INTO raises VALUES(1)","INSERT INTO e VALUES(2)"]"#;
    assert_eq!(
        ok(at, "/db/execute", body),
        r#"{"results":[{"last_insert_id":1,"rows_affected":1},{"error":"no"},{"last_insert_id":2,"rows_affected":1}]}"#
    );
    let body = r#"["INSERT INTO e VALUES(3)","INSERT INTO raises VALUES(1)","INSERT INTO e VALUES(4)"]"#;
    let undone = r#"{"results":[{"last_insert_id":3,"rows_affected":1},{"error":"no"}]}"#;
    assert_eq!(ok(at, "/db/execute?transaction", body), undone);
    // A statement that can't be prepared ends a transaction, too.
    for path in ["/db/execute?transaction", "/db/request?transaction"] {
        let body = r#"["INSERT INTO e VALUES(5)","nonsense","INSERT INTO e VALUES(6)"]"#;
        let expected = r#"{"results":[{"last_insert_id":5,"rows_affected":1},{"error":"near \"nonsense\": syntax error"}]}"#;
        assert_eq!(ok(at, path, body), expected);
    }
    assert_eq!(scene.rows("SELECT id FROM e"), json!([[1], [2]]));
    // A foreign key that is checked at the end.
    let keys = r#"["PRAGMA foreign_keys=ON","CREATE TABLE p(id INTEGER PRIMARY KEY)","CREATE TABLE q(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)","INSERT INTO q VALUES(1)","INSERT INTO p VALUES(1)","INSERT INTO q VALUES(1)"]"#;
    let value: Value = serde_json::from_str(&ok(at, "/db/execute", keys)).unwrap();
    assert_eq!(value["results"][3], json!({ "error": "FOREIGN KEY constraint failed" }));
    assert_eq!(value["results"][5], json!({ "last_insert_id": 1, "rows_affected": 1 }));
}

pub(super) fn alone(scene: &Scene) {
    let at = &scene.followers[0];
    // A setting lasts as long as its request.
    let value: Value =
        serde_json::from_str(&ok(at, "/db/request", r#"["PRAGMA foreign_keys=ON","PRAGMA foreign_keys"]"#))
            .unwrap();
    assert_eq!(value["results"][1]["values"], json!([[1]]));
    let value: Value =
        serde_json::from_str(&ok(at, "/db/request", r#"["PRAGMA foreign_keys","INSERT INTO e VALUES(11)"]"#))
            .unwrap();
    assert_eq!(value["results"][0]["values"], json!([[0]]));
    assert_eq!(ok(at, "/db/execute", r#"["PRAGMA user_version=7","VACUUM"]"#), r#"{"results":[{},{}]}"#);
    assert_eq!(scene.rows("PRAGMA user_version"), json!([[7]]));
    // Of a text, what is committed stands, and is said; the letters of a word make no difference.
    ok(at, "/db/execute", r#"["CREATE TABLE temperatures(x INTEGER PRIMARY KEY)"]"#);
    let text = "INSERT INTO temperatures VALUES(1); INSERT INTO temperatures VALUES(1)";
    let failed = r#"{"results":[{"error":"UNIQUE constraint failed: temperatures.x"}]}"#;
    assert_eq!(ok(at, "/db/execute", &json!([text]).to_string()), failed);
    let text =
        "PRAGMA foreign_keys=ON; INSERT INTO temperatures VALUES(2); INSERT INTO temperatures VALUES(2)";
    let value: Value =
        serde_json::from_str(&ok(at, "/db/execute?raft_index", &json!([text]).to_string())).unwrap();
    let said = value["results"][0]["error"].as_str().unwrap();
    let committed = format!("is committed, up to index {}", value["raft_index"]);
    assert!(said.starts_with("UNIQUE constraint failed") && said.ends_with(&committed), "{value}");
    assert_eq!(scene.rows("SELECT x FROM temperatures"), json!([[1], [2]]));
    let undone = ok(at, "/db/execute?transaction", &json!(["PRAGMA user_version=8", text]).to_string());
    assert!(undone.contains("UNIQUE constraint failed"), "{undone}");
    assert_eq!(scene.rows("PRAGMA user_version"), json!([[7]]));
}

pub(super) fn numbers(scene: &Scene) {
    let text = get(&scene.leader, "/metrics").body;
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse().unwrap()
    };
    assert_eq!((value("quire_raft_leader"), value("quire_raft_voters")), (1.0, 3.0));
    assert!(value("quire_http_commit_seconds_count") > 10.0);
    assert!(value("quire_http_batch_requests_sum") > value("quire_http_batch_requests_count"));
    assert!(value("quire_raft_log_bytes") > 0.0 && value("quire_db_fenced{db=\"main\"}") == 0.0);
    assert!(text.contains("quire_raft_replication_lag_entries{follower="), "{text}");
    let vars = get(&scene.followers[0], "/debug/vars?pretty").json();
    assert_eq!(vars["quire_raft_leader"], 0.0);
}
