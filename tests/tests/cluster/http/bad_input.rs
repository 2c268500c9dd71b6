//! What clients get wrong, on purpose or not, and too much of everything.

use super::{ENDLESS, Scene};
use quire_tests::http::{get, ok, post, read, request};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::thread;

/// What a browser sends for a page: refused if that is another site's and something could change.
pub(super) fn other_sites(scene: &Scene) {
    let address = &scene.leader;
    let said = |method: &str, path: &str, headers: &[&str], body: &str| {
        let mut lines = vec!["Content-Type: text/plain"];
        lines.extend(headers);
        request(address, method, path, &lines, body.as_bytes()).unwrap()
    };
    let own = format!("Origin: http://{address}");
    let create = "CREATE TABLE IF NOT EXISTS pages(x)";
    for foreign in [
        &["Sec-Fetch-Site: cross-site"][..],
        &["Sec-Fetch-Site: same-site", &own],
        &["Origin: http://evil.example"],
        &["Origin: http://127.0.0.1:1"],
        &["Origin: null"],
    ] {
        for (method, path) in [("POST", "/db/execute"), ("POST", "/db/load"), ("DELETE", "/remove")] {
            let answer = said(method, path, foreign, create);
            assert_eq!(answer.status, 403, "{path} {foreign:?}: {answer:?}");
            assert!(answer.body.contains("another site"), "{answer:?}");
        }
        assert_eq!(said("GET", "/db/query?q=SELECT%201", foreign, "").status, 200, "{foreign:?}");
    }
    assert_eq!(scene.count("SELECT count(*) FROM sqlite_schema WHERE name='pages'"), 0);
    for own in [&["Sec-Fetch-Site: same-origin", &own][..], &["Sec-Fetch-Site: none"], &[&own], &[]] {
        let answer = said("POST", "/db/execute", own, create);
        assert!(answer.status == 200 && !answer.body.contains("error"), "{own:?}: {answer:?}");
    }
    assert_eq!(scene.count("SELECT count(*) FROM sqlite_schema WHERE name='pages'"), 1);
}

/// A page whose own name leads here is for the browser a page of this node, and this node has no users.
pub(super) fn rebound_names(scene: &Scene) {
    let said = |method: &str, path: &str, lines: &[&str]| {
        let mut stream = TcpStream::connect(&scene.leader).unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        write!(stream, "{method} {path} HTTP/1.0\r\n{lines}Content-Length: 12\r\n\r\n[\"SELECT 1\"]")
            .unwrap();
        read(&mut stream).unwrap()
    };
    let evil = "Host: evil.example:4001";
    let german = "Accept-Language: de";
    let paths = [
        ("GET", "/db/query?q=SELECT%201"),
        ("POST", "/db/request"),
        ("GET", "/db/backup"),
        ("GET", "/status"),
    ];
    for (method, path) in paths {
        let browsers = [
            &[evil, german][..],
            &[evil, "Sec-Fetch-Site: same-origin"],
            &[evil, "Origin: http://evil.example:4001"],
            &[german],
        ];
        for browser in browsers {
            let answer = said(method, path, browser);
            assert_eq!(answer.status, 403, "{path} {browser:?}: {answer:?}");
            assert!(answer.body.contains("--http-adv-addr"), "{answer:?}");
        }
        let own = format!("Host: {}", scene.leader);
        let node_js = [evil, "Sec-Fetch-Mode: cors", "Accept-Language: *"];
        for good in [
            &[&own, german][..],
            &["Host: localhost:4001", german],
            &["Host: quire-1", german],
            &[evil],
            &node_js,
        ] {
            let answer = said(method, path, good);
            assert_eq!(answer.status, 200, "{path} {good:?}: {answer:?}");
        }
    }
}

pub(super) fn refusals(scene: &Scene) {
    let escaped = scene.test.dir.path().join("escaped.db");
    for address in scene.all() {
        for (sql, why) in [
            ("BEGIN", "transactions can't be begun or ended"),
            ("COMMIT", "transactions can't be begun or ended"),
            ("ROLLBACK", "transactions can't be begun or ended"),
            ("SAVEPOINT x", "transactions can't be begun or ended"),
            ("RELEASE request", "transactions can't be begun or ended"),
            ("SELECT 1; COMMIT", "transactions can't be begun or ended"),
            (&format!("ATTACH '{}' AS x", escaped.display()), "can't be attached"),
            (&format!("VACUUM INTO '{}'", escaped.display()), "can't be attached"),
            ("SELECT load_extension('x')", "extensions can't be loaded"),
            ("PRAGMA journal_mode=DELETE", "PRAGMA journal_mode can't be set"),
            ("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA locking_mode can't be set"),
            ("PRAGMA synchronous=OFF", "PRAGMA synchronous can't be set"),
            ("PRAGMA wal_autocheckpoint=1", "PRAGMA wal_autocheckpoint can't be set"),
            ("PRAGMA query_only=ON", "PRAGMA query_only can't be set"),
            ("PRAGMA wal_checkpoint(TRUNCATE)", "only the node checkpoints"),
            ("PRAGMA writable_schema=ON", "PRAGMA writable_schema can't be set"),
            ("UPDATE sqlite_schema SET sql='x'", "sqlite_master may not be modified"),
        ] {
            let body = json!([sql, "SELECT 1"]).to_string();
            for path in ["/db/execute", "/db/request", "/db/execute?transaction"] {
                let said = ok(address, path, &body);
                let also = "cannot VACUUM from within a transaction";
                assert!(said.contains(why) || said.contains(also), "{path} {sql}: {said}");
            }
        }
    }
    assert!(!escaped.exists());
    assert_eq!(
        ok(&scene.leader, "/db/execute", r#"["INSERT INTO e VALUES(10)"]"#).matches("error").count(),
        0
    );
}

pub(super) fn bad_bodies(scene: &Scene) {
    let at = &scene.followers[0];
    let post_bytes = |path: &str, body: &[u8]| request(at, "POST", path, &[], body).unwrap();
    for path in ["/db/execute", "/db/query", "/db/request", "/db/execute?queue"] {
        for body in [
            &b"["[..],
            b"nonsense",
            b"",
            b"[]",
            b"{}",
            b"[1]",
            b"[[]]",
            b"[[\"SELECT ?\", {\"a\": {}}]]",
            b"[[\"SELECT ?\", [300]]]",
            b"[\"SELECT '\xff'\"]",
            b"[\"SELECT 1\\u0000\"]",
        ] {
            let answer = post_bytes(path, body);
            assert_eq!(answer.status, 400, "{path} {}: {answer:?}", String::from_utf8_lossy(body));
        }
        let deep = [b"[".repeat(300_000), b"]".repeat(300_000)].concat();
        assert_eq!(post_bytes(path, &deep).status, 400);
        let headers = ["Content-Type: text/plain"];
        assert_eq!(request(at, "POST", path, &headers, b"SELECT '\xff'").unwrap().status, 400);
    }
    for query in ["timeout=x", "db_timeout=5", "freshness=x", "retries=x", "freshness_strict", "db=../x"] {
        let answer = post(at, &format!("/db/query?{query}"), r#"["SELECT 1"]"#);
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
    }
    assert_eq!(get(at, "/db/query").status, 400);
    assert_eq!(get(at, "/db/execute").status, 405);
    assert_eq!(get(at, "/db/nonsense").status, 404);
    assert_eq!(request(at, "OPTIONS", "/db/execute", &[], b"").unwrap().status, 200);
    let answer = post(at, "/db/execute?db=missing", r#"["SELECT 1"]"#);
    assert_eq!((answer.status, answer.body.contains("there is no database missing")), (404, true));
    // A length that is never sent.
    let mut stream = TcpStream::connect(at).unwrap();
    write!(stream, "POST /db/execute HTTP/1.0\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n[").unwrap();
    assert_eq!(read(&mut stream).unwrap().status, 413);
}

pub(super) fn slow_clients(scene: &Scene) {
    // Half a request each, or nothing at all, which nobody waits for.
    let held: Vec<TcpStream> = (0..2000)
        .map(|n| {
            let mut stream = TcpStream::connect(&scene.leader).unwrap();
            let part = match n % 3 {
                0 => "",
                1 => "POST /db/exec",
                _ => "POST /db/execute HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[",
            };
            stream.write_all(part.as_bytes()).unwrap();
            stream
        })
        .collect();
    // A large result that nobody reads.
    let mut greedy = TcpStream::connect(&scene.leader).unwrap();
    let body = json!([format!("{ENDLESS} SELECT n, hex(zeroblob(500)) FROM c")]).to_string();
    write!(greedy, "POST /db/query HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    // Endless reads of clients that have gone.
    for _ in 0..20 {
        let mut gone = TcpStream::connect(&scene.followers[0]).unwrap();
        let body = json!([format!("{ENDLESS} SELECT max(n) FROM c")]).to_string();
        write!(gone, "POST /db/query HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .unwrap();
    }
    for address in scene.all() {
        let done = ok(address, "/db/execute", r#"["INSERT INTO e(id) SELECT max(id)+1 FROM e"]"#);
        assert!(done.contains(r#""rows_affected":1"#), "{done}");
        ok(address, "/db/query", r#"["SELECT 1"]"#);
    }
    drop((held, greedy));
}

pub(super) fn much(scene: &Scene) {
    let at = &scene.followers[0];
    let values = vec!["(?)"; 10_000].join(",");
    let params: Vec<Value> = (1..=10_000).map(Value::from).collect();
    let mut statement = vec![json!(format!("INSERT INTO m VALUES{values}"))];
    statement.extend(params);
    let body = json!(["CREATE TABLE m(x)", statement]).to_string();
    let value: Value = serde_json::from_str(&ok(at, "/db/execute", &body)).unwrap();
    assert_eq!(value["results"][1]["rows_affected"], 10_000);
    // 6 MB in one value, and 2,000 statements.
    let blob = "x".repeat(6 << 20);
    ok(at, "/db/execute", &json!([["INSERT INTO m VALUES(?)", blob]]).to_string());
    assert_eq!(scene.count("SELECT max(length(x)) FROM m"), 6 << 20);
    let many: Vec<_> = (0..2000).map(|n| format!("INSERT INTO m VALUES(-{n})")).collect();
    let value: Value =
        serde_json::from_str(&ok(at, "/db/execute?transaction", &json!(many).to_string())).unwrap();
    assert_eq!(value["results"].as_array().unwrap().len(), 2000);
    // A result that goes out in pieces.
    let body = json!([format!("{ENDLESS} SELECT n, hex(zeroblob(50)) AS z FROM c LIMIT 100000")]).to_string();
    let value: Value = serde_json::from_str(&ok(at, "/db/query?level=none", &body)).unwrap();
    assert_eq!(value["results"][0]["values"].as_array().unwrap().len(), 100_000);
    assert_eq!(value["results"][0]["values"][99_999][0], 100_000);
}

/// While somebody else has the database, what waits for it is bounded; what is refused, or not done in time, has changed
/// nothing.
pub(super) fn overload(scene: &Scene) {
    let at = &scene.leader;
    ok(at, "/db/execute", r#"["CREATE TABLE overload(x)"]"#);
    let id = post(at, "/tx?timeout=60s&idle=60s", "").json()["id"].as_str().unwrap().to_owned();
    // 160 MiB, of which 128 may wait.
    let body = json!([["INSERT INTO overload VALUES(?)", "x".repeat(4 << 20)]]).to_string();
    let answers: Vec<_> = thread::scope(|scope| {
        let send = || post(at, "/db/execute?timeout=5s", &body);
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(!refused.is_empty(), "all of it was queued");
    for answer in &answers {
        match answer.status {
            503 => {
                assert_eq!(answer.header("retry-after"), Some("1"));
                assert_eq!(answer.body, "too many requests wait for this database\n");
            }
            408 => assert!(answer.body.ends_with("nothing was changed\n"), "{answer:?}"),
            other => panic!("{other}: {answer:?}"),
        }
    }
    ok(at, &format!("/tx/{id}/rollback"), "");
    assert_eq!(scene.count("SELECT count(*) FROM overload"), 0);
    ok(at, "/db/execute", r#"["INSERT INTO overload VALUES(1)"]"#);
}
