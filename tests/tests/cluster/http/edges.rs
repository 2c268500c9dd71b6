//! What lies between the rows of the document: what is in every answer, bad input in each place where there can be some, and
//! a read replica.

use super::{ENDLESS, Scene};
use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{get, ok, post, read, request};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

const TEXT: &[&str] = &["Content-Type: text/plain"];

pub(super) fn edges(scene: &Scene) {
    headers(scene);
    urls(scene);
    unending(scene);
    within_batches(scene);
    schemas(scene);
    outside(scene);
    gone(scene);
    gone_from_transactions(scene);
}

/// The version is in every answer, results are JSON, errors text or JSON.
fn headers(scene: &Scene) {
    let at = &scene.followers[0];
    let json = "application/json; charset=utf-8";
    let text = "text/plain; charset=utf-8";
    for (method, path, headers, body, status, kind) in [
        ("POST", "/db/execute", &[][..], r#"["SELECT 1"]"#, 200, Some(json)),
        ("POST", "/db/query", &[], r#"["SELECT 1"]"#, 200, Some(json)),
        ("GET", "/db/query?q=SELECT%201", &[], "", 200, Some(json)),
        ("POST", "/db/request", &[], r#"["SELECT 1"]"#, 200, Some(json)),
        ("POST", "/db/execute", &[], "[", 400, Some(text)),
        ("POST", "/db/execute", &["Origin: http://evil.example"], "[]", 403, Some("application/json")),
        ("GET", "/nothing", &[], "", 404, Some("application/json")),
        ("GET", "/db/execute", &[], "", 405, Some("application/json")),
        ("GET", "/status", &[], "", 200, Some(json)),
        ("GET", "/nodes", &[], "", 200, Some(json)),
        ("GET", "/readyz", &[], "", 200, Some(text)),
        ("OPTIONS", "/db/execute", &[], "", 200, None),
    ] {
        let answer = request(at, method, path, headers, body.as_bytes()).unwrap();
        let version = answer.header("x-rqlite-version").is_some_and(|version| version.starts_with("v10."));
        assert_eq!((answer.status, version), (status, true), "{method} {path}: {answer:?}");
        assert!(kind.is_none_or(|kind| answer.header("content-type") == Some(kind)), "{path}: {answer:?}");
    }
    // As bodies come from curl, which names another kind.
    let form = ["Content-Type: application/x-www-form-urlencoded"];
    let answer = request(at, "POST", "/db/query", &form, br#"["SELECT 1"]"#).unwrap();
    assert!(answer.status == 200 && answer.body.contains("[[1]]"), "{answer:?}");
    for path in ["/nodes?pretty", "/leader?pretty", "/status?pretty&key=store", "/db/execute?pretty"] {
        let answer = if path.contains("db") { post(at, path, r#"["SELECT 1"]"#) } else { get(at, path) };
        assert!(answer.status == 200 && answer.body.lines().count() > 3, "{path}: {answer:?}");
    }
}

/// SQL in a URL.
fn urls(scene: &Scene) {
    let at = &scene.followers[0];
    for (sql, why) in [
        ("SELECT%20'%FF'", "the SQL is not UTF-8"),
        ("SELECT%201%00", "a NUL character"),
        ("", "the parameter q is missing"),
        ("%20%0A", "the parameter q is missing"),
    ] {
        let answer = get(at, &format!("/db/query?q={sql}"));
        assert_eq!((answer.status, answer.body.contains(why)), (400, true), "{sql}: {answer:?}");
    }
    for (sql, value) in [("'%EF%BF%BD'", json!("\u{fffd}")), ("'%C3%A9+%2B'", json!("\u{e9} +"))] {
        let answer = get(at, &format!("/db/query?q=SELECT%20{sql}")).json();
        assert_eq!(answer["results"][0]["values"][0][0], value, "{sql}: {answer}");
    }
    let write = get(at, "/db/query?q=DELETE%20FROM%20doc").json();
    assert_eq!(write["results"][0]["error"], "attempt to change database via query operation");
}

/// A body of more than 64 MiB whose length nobody has said.
fn unending(scene: &Scene) {
    let mut stream = TcpStream::connect(&scene.leader).unwrap();
    write!(stream, "POST /db/execute HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n").unwrap();
    write!(stream, "Connection: close\r\n\r\n").unwrap();
    let chunk = [b"100000\r\n".as_slice(), &[b' '; 1 << 20], b"\r\n"].concat();
    // It is refused before all of it is there.
    let sent = (0..80).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent >= 64, "{sent} MiB were taken");
    match read(&mut stream) {
        Ok(answer) => assert_eq!(answer.status, 413, "{answer:?}"),
        // What came after the answer was not read: the connection is reset, and the answer may be lost.
        Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::ConnectionReset, "{why}"),
    }
    ok(&scene.leader, "/db/query", r#"["SELECT 1"]"#);
}

/// What would begin or end a transaction in the middle of a request ends nothing of it, or all of it.
fn within_batches(scene: &Scene) {
    let at = &scene.followers[0];
    ok(at, "/db/execute", r#"["CREATE TABLE edge(id INTEGER PRIMARY KEY)"]"#);
    let refused =
        "transactions can't be begun or ended by a statement: use the parameter transaction, or POST /tx";
    for (n, word) in ["BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT s", "RELEASE s"].iter().enumerate() {
        let (first, last) = (2 * n + 1, 2 * n + 2);
        let insert = |id: usize| format!("INSERT INTO edge VALUES({id})");
        let done = |id: usize| json!({ "last_insert_id": id, "rows_affected": 1 });
        let body = json!([insert(first), word, insert(last)]).to_string();
        let error = json!({ "error": refused });
        for path in ["/db/execute?transaction", "/db/request?transaction"] {
            let answer = post(at, path, &body).json();
            assert_eq!(answer["results"], json!([done(first), error]), "{path} {word}");
        }
        let path = ["/db/execute", "/db/request"][n % 2];
        let answer = post(at, path, &body).json();
        assert_eq!(answer["results"], json!([done(first), error, done(last)]), "{path} {word}");
        // In one text.
        let one = format!("{word}; {}", insert(100));
        let answer = request(at, "POST", path, TEXT, one.as_bytes()).unwrap().json();
        assert_eq!(answer["results"], json!([error]), "{path} {one}");
    }
    assert_eq!(scene.rows("SELECT count(*), max(id) FROM edge"), json!([[12, 12]]));
}

/// The schema is changed by nothing but statements that are there for it.
fn schemas(scene: &Scene) {
    let at = &scene.leader;
    let before = scene.rows("SELECT group_concat(sql) FROM sqlite_schema");
    let text = "UPDATE sqlite_schema SET sql = 'x' WHERE name = 'edge'";
    for sql in [
        "PRAGMA writable_schema",
        "PRAGMA writable_schema=1",
        "PRAGMA main.writable_schema(ON)",
        "PRAGMA \"writable_schema\" = RESET",
        "/* */ PRAGMA/**/writable_schema/**/=/**/1",
        "SELECT * FROM pragma_writable_schema(1)",
        "PRAGMA schema_version=99",
        "PRAGMA writable_schema=1; PRAGMA schema_version=99",
        "DELETE FROM sqlite_master",
        "INSERT INTO sqlite_schema VALUES('table','y','y',0,'CREATE TABLE y(x)')",
        "CREATE TABLE sqlite_mine(x)",
        "DROP TABLE sqlite_schema",
        "ALTER TABLE sqlite_schema RENAME TO mine",
        "CREATE TRIGGER tr AFTER INSERT ON sqlite_schema BEGIN SELECT 1; END",
        "UPDATE sqlite_temp_schema SET sql = 'x'",
    ] {
        for path in ["/db/execute", "/db/request", "/db/execute?transaction"] {
            let answer = post(at, path, &json!([sql, text]).to_string());
            let results = answer.json()["results"].clone();
            let last = results.as_array().unwrap().last().unwrap()["error"].clone();
            assert!(answer.status == 200 && last.is_string(), "{path} {sql}: {answer:?}");
            let looks = sql == "PRAGMA writable_schema";
            assert_eq!(results[0]["error"].is_null(), looks, "{path} {sql}: {answer:?}");
        }
    }
    assert_eq!(scene.rows("SELECT group_concat(sql) FROM sqlite_schema"), before);
    assert_eq!(scene.rows("PRAGMA integrity_check"), json!([["ok"]]));
}

/// No file but the database's is read or written, and no code is loaded.
fn outside(scene: &Scene) {
    let escaped = scene.test.dir.path().join("outside.db");
    let path = escaped.display();
    for sql in [
        format!("ATTACH '{path}' AS x"),
        format!("ATTACH 'file:{path}?mode=rwc' AS x"),
        format!("ATTACH 'file:{path}?vfs=unix' AS x"),
        format!("ATTACH '{path}' || '' AS x"),
        "ATTACH '' AS x".to_owned(),
        "ATTACH ':memory:' AS x".to_owned(),
        "ATTACH '../main.db' AS x".to_owned(),
        format!("VACUUM INTO '{path}'"),
        format!("VACUUM main INTO '{path}'"),
        format!("PRAGMA temp_store_directory='{}'", scene.test.dir.path().display()),
        format!("PRAGMA data_store_directory='{}'", scene.test.dir.path().display()),
        "SELECT load_extension('libm.so.6')".to_owned(),
        "SELECT load_extension('libm.so.6', 'main')".to_owned(),
        "CREATE VIEW v AS SELECT load_extension('x')".to_owned(),
        "SELECT readfile('/etc/hostname')".to_owned(),
        format!("SELECT writefile('{path}', 'x')"),
        "SELECT fts3_tokenizer('simple')".to_owned(),
        "CREATE VIRTUAL TABLE c USING csv(filename='/etc/passwd')".to_owned(),
    ] {
        for address in scene.all() {
            for kind in ["/db/execute", "/db/query", "/db/request"] {
                let answer = post(address, kind, &json!([sql]).to_string());
                let error = answer.json()["results"][0]["error"].is_string();
                // A view is compiled when it is used.
                let view = sql.starts_with("CREATE VIEW") && !kind.contains("query");
                assert!(answer.status == 200 && (error || view), "{kind} {sql}: {answer:?}");
            }
            if sql.starts_with("CREATE VIEW") {
                let used = post(address, "/db/query", r#"["SELECT * FROM v"]"#).json();
                assert!(used["results"][0]["error"].is_string(), "{used}");
                ok(address, "/db/execute", r#"["DROP VIEW IF EXISTS v"]"#);
            }
        }
    }
    assert!(!escaped.exists());
    // SQLite takes pointers from those who bind them; to nowhere, here.
    for sql in ["SELECT fts3_tokenizer(?)", "SELECT fts3_tokenizer('mine', ?)"] {
        let body = json!([[sql, [1, 2, 3, 4, 5, 6, 7, 8]]]).to_string();
        for kind in ["/db/execute", "/db/query", "/db/request"] {
            let answer = post(&scene.leader, kind, &body).json();
            let error = "the function fts3_tokenizer can't be used over HTTP";
            assert_eq!(answer["results"], json!([{ "error": error }]), "{kind} {sql}");
        }
    }
}

/// Sends a request, whose answer is for nobody.
fn send(address: &str, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    stream
}

/// A write that nobody waits for any more ends, and those behind it go on; wherever it came in.
fn gone(scene: &Scene) {
    let at = &scene.leader;
    let cluster = &scene.test.cluster;
    let numbers = |line: &str| get(at, "/metrics").body.contains(&format!("{line}\n"));
    let holds_up = |n: u8| numbers(&format!("quire_db_waiting_writers{{db=\"main\"}} {n}"));
    let count = || scene.count("SELECT count(*) FROM edge");
    let endless = format!("INSERT INTO edge {ENDLESS} SELECT max(n) FROM c");
    for (n, address) in scene.all().enumerate() {
        for (m, sql) in [endless.clone(), format!("PRAGMA foreign_keys=ON; {endless}")].iter().enumerate() {
            let before = count();
            assert!(before > 0);
            // It begins when another writer, and then one behind it, can be seen to wait.
            let id = post(at, "/tx?timeout=80s&idle=80s", "").json()["id"].as_str().unwrap().to_owned();
            let left = send(address, "/db/execute?timeout=1h", &json!(["DELETE FROM edge", sql]));
            cluster.wait("it to wait", PATIENCE, |_| holds_up(1)).unwrap();
            let row = 1000 + 10 * n + m;
            let insert = json!([format!("INSERT INTO edge VALUES({row})")]).to_string();
            thread::scope(|scope| {
                let behind = scope.spawn(|| ok(at, "/db/execute?timeout=80s", &insert));
                let waits = |_: &_| numbers("quire_http_waiting_requests{db=\"main\"} 1");
                cluster.wait("a write to wait for it", PATIENCE, waits).unwrap();
                ok(at, &format!("/tx/{id}/rollback"), "");
                // Alone on its connection, what came before is committed by itself.
                let runs = |_: &_| if m == 0 { holds_up(0) } else { count() == 0 };
                cluster.wait("it to run", PATIENCE, runs).unwrap();
                drop(left);
                let done = json!({ "results": [{ "last_insert_id": row, "rows_affected": 1 }] });
                assert_eq!(behind.join().unwrap(), done.to_string(), "{address} {sql}");
            });
            assert_eq!(count(), [before + 1, 1][m], "{address} {sql}");
        }
    }
}

/// The same within a transaction: a read ends alone, a write takes it along.
fn gone_from_transactions(scene: &Scene) {
    let at = &scene.followers[0];
    let cluster = &scene.test.cluster;
    let read = json!([format!("{ENDLESS} SELECT max(n) FROM c")]);
    let write = json!([format!("INSERT INTO edge {ENDLESS} SELECT max(n) FROM c")]);
    for (body, status) in [(read, 200), (write, 404)] {
        let id = post(at, "/tx?timeout=1h&idle=1h", "").json()["id"].as_str().unwrap().to_owned();
        let path = format!("/tx/{id}/query");
        // While it is at work, there is no answer to the next.
        let is_at_work = || {
            let mut next = send(at, &path, &json!(["SELECT 1"]));
            next.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            next.read(&mut [0; 64]).is_err()
        };
        let left = loop {
            let left = send(at, &format!("/tx/{id}/execute"), &body);
            left.set_nonblocking(true).unwrap();
            // If it came just while the other one was looked at.
            let is_refused = || left.peek(&mut [0]).is_ok();
            cluster.wait("it to be at work", PATIENCE, |_| is_refused() || is_at_work()).unwrap();
            if !is_refused() {
                break left;
            }
        };
        drop(left);
        let is_over = |_: &_| post(at, &path, r#"["SELECT 1"]"#).status == status;
        cluster.wait("it to end", PATIENCE, is_over).unwrap();
        assert_eq!(post(at, &format!("/tx/{id}/rollback"), "").status, status, "{body}");
    }
    ok(&scene.leader, "/db/execute", r#"["DELETE FROM edge"]"#);
}

/// A read replica: who lists it, and what it answers when nobody leads any more.
#[test]
fn a_read_replica() {
    let mut test = TestCluster::start(1);
    let id = test.cluster.add().unwrap();
    test.cluster.node_mut(id).unwrap().flags.push("--non-voter".into());
    test.cluster.start_node(id).unwrap();
    let voter = test.cluster.nodes[0].http.clone();
    let replica = test.cluster.node(id).unwrap().http.clone();
    let members = |at: &str, query: &str| -> Vec<(String, bool)> {
        let nodes = get(at, &format!("/nodes?{query}")).json();
        let nodes = nodes.as_object().cloned().unwrap_or_default();
        let voter = |node: &Value| node["voter"] == true;
        nodes
            .iter()
            .filter(|(_, node)| node["reachable"] == true)
            .map(|(id, n)| (id.clone(), voter(n)))
            .collect()
    };
    let (one, two) = (("1".to_owned(), true), (id.to_string(), false));
    let both = |_: &_| members(&voter, "nonvoters") == [one.clone(), two.clone()];
    test.cluster.wait("the replica to be a member", PATIENCE, both).unwrap();
    assert_eq!(members(&voter, ""), std::slice::from_ref(&one));
    let ready = |_: &_| get(&replica, "/readyz?sync").status == 200;
    test.cluster.wait("the replica to be ready", PATIENCE, ready).unwrap();
    assert_eq!(members(&replica, "nonvoters"), [one, two]);
    let written = post(&replica, "/db/execute", r#"["CREATE TABLE t(x)","INSERT INTO t VALUES(7)"]"#);
    assert_eq!(written.header("x-rqlite-served-by"), Some(voter.as_str()), "{written:?}");
    let select = |query: &str| get(&replica, &format!("/db/query?q=SELECT%20x%20FROM%20t&{query}"));
    assert!(select("").body.contains("[[7]]"));

    test.cluster.kill(1).unwrap();
    for query in ["level=auto", "level=none"] {
        assert!(select(query).body.contains("[[7]]"), "{query}: {:?}", select(query));
    }
    for query in ["level=weak", "level=linearizable&linearizable_timeout=300ms", "level=strong"] {
        let answer = select(&format!("{query}&timeout=1s"));
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{query}: {answer:?}");
    }
    // Nobody is there to try again at: with that said, at once.
    let insert = r#"["INSERT INTO t VALUES(8)"]"#;
    let none = post(&replica, "/db/execute?retries=0&timeout=60s", insert);
    assert_eq!((none.status, none.header("retry-after")), (503, Some("1")), "{none:?}");
    let ready = get(&replica, "/readyz?timeout=300ms");
    assert!(ready.status == 503 && ready.body.contains("[-]leader "), "{ready:?}");
    assert_eq!(get(&replica, "/readyz?noleader").status, 200);
}
