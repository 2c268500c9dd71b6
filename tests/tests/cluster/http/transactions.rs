//! Queued writes, and transactions over several requests.

use super::{ENDLESS, Scene};
use quire_node::cli::local::LocalCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{ok, post};
use serde_json::{Value, json};
use std::thread;

pub(super) fn queued(scene: &Scene) {
    let at = &scene.followers[1];
    ok(at, "/db/execute", r#"["CREATE TABLE w(x)"]"#);
    let mut last = 0;
    for n in 0..20 {
        let value: Value = serde_json::from_str(&ok(
            at,
            "/db/execute?queue",
            &json!([["INSERT INTO w VALUES(?)", n]]).to_string(),
        ))
        .unwrap();
        assert_eq!(value["results"], json!([]));
        let number = value["sequence_number"].as_u64().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
    }
    ok(at, "/db/execute?queue&wait", r#"["INSERT INTO w VALUES(20)"]"#);
    let rows: Vec<Value> = (0..=20).map(|n| json!([n])).collect();
    assert_eq!(scene.rows("SELECT x FROM w ORDER BY rowid"), Value::from(rows));
    // While another writer has the database, these come together, and stay apart nevertheless.
    ok(at, "/db/execute", r#"["CREATE TABLE apart(x INTEGER PRIMARY KEY)"]"#);
    let id = post(at, "/tx", "").json()["id"].as_str().unwrap().to_owned();
    let queue = |query: &str, body: &str| ok(at, &format!("/db/execute?queue{query}"), body);
    for n in 0..10 {
        queue("", &json!([["INSERT INTO apart VALUES(?)", n]]).to_string());
    }
    queue("", r#"["INSERT INTO apart VALUES(1)","INSERT INTO apart VALUES(20)"]"#);
    queue("&transaction", r#"["INSERT INTO apart VALUES(30)","INSERT INTO apart VALUES(1)"]"#);
    queue("", r#"["PRAGMA user_version=1","INSERT INTO apart VALUES(1)","INSERT INTO apart VALUES(40)"]"#);
    queue("", r#"["INSERT INTO apart VALUES(50)","INSERT INTO nowhere VALUES(1)"]"#);
    let endless =
        json!([format!("INSERT INTO apart {ENDLESS} SELECT max(n) FROM c"), "INSERT INTO apart VALUES(60)"]);
    queue("&db_timeout=100ms", &endless.to_string());
    queue("", r#"["INSERT INTO apart VALUES(70)"]"#);
    ok(at, &format!("/tx/{id}/rollback"), "");
    queue("&wait", r#"["INSERT INTO apart VALUES(80)"]"#);
    let rows: Vec<Value> = (0..10).chain([20, 40, 50, 70, 80]).map(|n| json!([n])).collect();
    let found = scene.rows("SELECT x FROM apart WHERE x<>60 ORDER BY x");
    assert_eq!(found, Value::from(rows));
    let late = post(at, "/db/execute?queue&wait&timeout=0ms", r#"["INSERT INTO w VALUES(21)"]"#);
    assert!(late.status == 408 || late.status == 503, "{late:?}");
}

pub(super) fn interactive(scene: &Scene) {
    let at = &scene.leader;
    ok(at, "/db/execute", r#"["CREATE TABLE i(x INTEGER PRIMARY KEY)"]"#);
    let begin = |query: &str| {
        let answer = post(at, &format!("/tx{query}"), "");
        answer.json()["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    };
    let id = begin("");
    let done =
        ok(at, &format!("/tx/{id}/execute"), r#"["INSERT INTO i VALUES(1)","INSERT INTO i VALUES(1)"]"#);
    let expected =
        r#"{"results":[{"last_insert_id":1,"rows_affected":1},{"error":"UNIQUE constraint failed: i.x"}]}"#;
    assert_eq!(done, expected);
    assert!(ok(at, &format!("/tx/{id}/query"), r#"["SELECT x FROM i"]"#).contains("[[1]]"));
    assert_eq!(scene.count("SELECT count(*) FROM i"), 0, "nobody else sees it");
    // Whoever writes meanwhile waits.
    thread::scope(|scope| {
        let waits = scope.spawn(|| ok(&scene.followers[0], "/db/execute", r#"["INSERT INTO i VALUES(2)"]"#));
        let committed = post(at, &format!("/tx/{id}/commit"), "").json();
        assert!(committed["raft_index"].as_u64().unwrap() > 0);
        assert!(waits.join().unwrap().contains(r#""rows_affected":1"#));
    });
    assert_eq!(post(at, &format!("/tx/{id}/commit"), "").status, 404);
    let id = begin("?timeout=20s");
    ok(at, &format!("/tx/{id}/execute"), r#"["INSERT INTO i VALUES(3)"]"#);
    assert_eq!(post(at, &format!("/tx/{id}/rollback"), "").body, "{}");
    let id = begin("?idle=1ms");
    let query = format!("/tx/{id}/query");
    let ended = |_: &LocalCluster| post(at, &query, r#"["SELECT 1"]"#).status == 404;
    scene.test.cluster.wait("an idle one to end", PATIENCE, ended).unwrap();
    let id = begin("");
    let body = r#"["INSERT INTO i VALUES(4)","INSERT OR ROLLBACK INTO i VALUES(1)"]"#;
    let lost = post(at, &format!("/tx/{id}/execute"), body);
    assert_eq!((lost.status, lost.body.contains("rolled back")), (409, true), "{lost:?}");
    let id = begin("");
    let refused = ok(at, &format!("/tx/{id}/execute"), r#"["COMMIT"]"#);
    assert!(refused.contains("transactions can't be begun or ended"), "{refused}");
    assert_eq!(post(at, &format!("/tx/{id}/nonsense"), "").status, 404);
    assert_eq!(post(at, &format!("/tx/{id}/execute"), "x").status, 400);
    assert_eq!(post(at, &format!("/tx/{id}/rollback"), "").status, 200);
    assert_eq!(scene.rows("SELECT x FROM i"), json!([[1], [2]]));
}

/// Transactions on a node that doesn't lead; what they have committed is there for the next read, at any node.
pub(super) fn interactive_anywhere(scene: &Scene) {
    let at = &scene.followers[0];
    ok(at, "/db/execute", r#"["CREATE TABLE large(x)"]"#);
    for n in 1..=15 {
        let id = post(at, "/tx?db=main", "").json()["id"].as_str().unwrap().to_owned();
        let insert = json!([["INSERT INTO i VALUES(?)", 100 + n]]).to_string();
        assert!(ok(at, &format!("/tx/{id}/execute"), &insert).contains(r#""rows_affected":1"#));
        if n % 3 == 0 {
            // Here it only has to be shown; the leader has to write it.
            let insert = r#"["INSERT INTO large VALUES(randomblob(3000000))"]"#;
            ok(at, &format!("/tx/{id}/execute"), insert);
        }
        assert_eq!(post(&scene.leader, &format!("/tx/{id}/commit"), "").status, 404, "it lives elsewhere");
        let committed = post(at, &format!("/tx/{id}/commit"), "");
        assert!(committed.json()["raft_index"].as_u64().unwrap() > 0, "{committed:?}");
        let reader = scene.all().nth(n % 3).unwrap();
        let count = ok(reader, "/db/query", r#"["SELECT count(*) FROM i WHERE x>100"]"#);
        assert!(count.contains(&format!("[[{n}]]")), "{count} instead of {n} at {reader}");
    }
}
