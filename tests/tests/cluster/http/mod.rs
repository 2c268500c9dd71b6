//! SQL over HTTP on three real nodes: writes on any of them, group commit, reads at all levels, a leader that dies with
//! requests in flight, and what clients get wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_node::args::ClientArgs;
use quire_node::cli::client::Client;
use quire_node::cli::local::LocalCluster;
use quire_tests::admin::quire_json;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{Answer, get, ok, post, read, request};
use quire_tests::step;
use quire_tests::{TestCluster, programs};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c)";

struct Scene {
    test: TestCluster,
    leader: String,
    followers: Vec<String>,
}

impl Scene {
    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.leader).chain(&self.followers)
    }

    /// The rows of a query, at the leader.
    fn rows(&self, sql: &str) -> Value {
        let body = ok(&self.leader, "/db/query", &json!([sql]).to_string());
        let value: Value = serde_json::from_str(&body).unwrap();
        assert!(value["results"][0]["error"].is_null(), "{sql}: {value}");
        value["results"][0]["values"].clone()
    }

    fn count(&self, sql: &str) -> u64 {
        self.rows(sql)[0][0].as_u64().unwrap()
    }
}

#[test]
fn sql_over_http() {
    let test = TestCluster::start(3);
    let id = test.cluster.wait_leader(PATIENCE).unwrap();
    let leader = test.cluster.node(id).unwrap().http.clone();
    let followers = test.cluster.nodes.iter().filter(|n| n.id != id).map(|n| n.http.clone()).collect();
    let mut scene = Scene { test, leader, followers };
    step("writes on any node", || writes_anywhere(&scene));
    step("reads", || reads(&scene));
    step("requests in company", || company(&scene));
    step("endings of transactions", || endings(&scene));
    step("what a request can't do", || refusals(&scene));
    step("connections of their own", || alone(&scene));
    step("bodies that make no sense", || bad_bodies(&scene));
    step("slow clients", || slow_clients(&scene));
    step("much of everything", || much(&scene));
    step("queued writes", || queued(&scene));
    step("transactions over several requests", || interactive(&scene));
    step("transactions on any node", || interactive_anywhere(&scene));
    step("numbers", || numbers(&scene));
    step("the leader dies", || leader_dies(&mut scene));
}

#[test]
fn users_and_https() {
    let mut test = TestCluster::prepare(1);
    let path = |name: &str| test.dir.path().join(name);
    let (cert, key, auth) = (path("cert.pem"), path("key.pem"), path("auth.json"));
    let host = test.cluster.nodes[0].http.split_once(':').unwrap().0.to_owned();
    let certify = || {
        let made = rcgen::generate_simple_self_signed(vec![host.clone()]).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        made.cert.pem()
    };
    certify();
    let mut hash = Command::new(&programs().quire);
    let mut hash = hash.arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    hash.stdin.take().unwrap().write_all(b"se:cret\n").unwrap();
    let hash = String::from_utf8(hash.wait_with_output().unwrap().stdout).unwrap();
    let users = |bob: &str| {
        json!([
            { "username": "ann", "password": hash.trim(), "perms": ["all"] },
            { "username": "bob", "password": bob, "perms": ["query"] },
            { "username": "*", "perms": ["ready"] },
        ])
    };
    std::fs::write(&auth, users("plain").to_string()).unwrap();
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    test.cluster.nodes[0].flags = vec![
        "--http-cert".into(),
        text(&cert),
        "--http-key".into(),
        text(&key),
        "--auth".into(),
        text(&auth),
    ];
    test.cluster.start_node(1).unwrap();
    let node = &test.cluster.nodes[0];
    let address = format!("https://{}", node.http);
    // Trusts what the file held when it was made.
    let client = |user: Option<&str>| {
        let user = user.map(str::to_owned);
        let args = ClientArgs { http_addr: address.clone(), user, cacert: Some(cert.clone()), json: false };
        Client::with(&args).unwrap()
    };
    let wait = |what: &str, condition: &dyn Fn() -> bool| {
        test.cluster.wait(what, PATIENCE, |_| condition()).unwrap();
    };
    let (ann, bob) = (client(Some("ann:se:cret")), client(Some("bob:plain")));
    wait("the node to serve", &|| ann.text("/readyz").is_ok_and(|text| text.contains("[+]leader ok")));
    let create = json!(["CREATE TABLE t(x)"]);
    assert_eq!(ann.post_json("/db/execute", &create).unwrap(), json!({ "results": [{}] }));
    assert!(bob.get("/db/query?q=SELECT%201").is_ok());
    assert!(client(None).text("/readyz").unwrap().contains("[+]node ok"));
    for (who, path) in [(&bob, "/status"), (&bob, "/metrics"), (&client(None), "/db/query?q=SELECT%201")] {
        assert!(who.get(path).unwrap_err().to_string().contains("--user"), "{path}");
    }
    for path in ["/db/execute", "/db/request"] {
        assert!(bob.post_json(path, &create).unwrap_err().to_string().contains("--user"), "{path}");
    }
    assert!(client(Some("ann:wrong")).get("/status").is_err());
    let status = ann.get("/status").unwrap();
    assert_eq!(
        (&status["http"]["auth"], &status["http"]["tls"]["enabled"]),
        (&json!("enabled"), &json!("true"))
    );
    let args = ["status", "--http-addr", &address, "--cacert", &text(&cert), "--user", "ann:se:cret"];
    assert_eq!(quire_json(&args)["healthy"], true);
    let metrics = ann.text("/metrics").unwrap();
    assert!(
        metrics.contains("\nquire_raft_leader 1\n") && metrics.contains("quire_db_fenced{db=\"main\"} 0"),
        "{metrics}"
    );
    // Without TLS there is nothing to hear.
    assert!(request(&node.http, "GET", "/readyz", &[], b"").is_err());

    // All of it is replaced while the node runs; a file that can't be used changes nothing.
    std::fs::write(&auth, "[{").unwrap();
    node.signal(Signal::SIGHUP).unwrap();
    wait("a bad file to be reported", &|| node.log().contains("users not read again"));
    assert!(ann.get("/status").is_ok());
    std::fs::write(&auth, users("new").to_string()).unwrap();
    certify();
    node.signal(Signal::SIGHUP).unwrap();
    let renewed = client(Some("bob:new"));
    wait("the new certificate and user", &|| renewed.get("/db/query?q=SELECT%201").is_ok());
    assert!(client(Some("bob:plain")).get("/db/query?q=SELECT%201").is_err());
    test.cluster.stop(1).unwrap();
}

fn writes_anywhere(scene: &Scene) {
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

fn reads(scene: &Scene) {
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
fn company(scene: &Scene) {
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
fn endings(scene: &Scene) {
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

fn refusals(scene: &Scene) {
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

fn alone(scene: &Scene) {
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

fn bad_bodies(scene: &Scene) {
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

fn slow_clients(scene: &Scene) {
    // Half a request each, which nobody waits for.
    let held: Vec<TcpStream> = (0..1500)
        .map(|n| {
            let mut stream = TcpStream::connect(&scene.leader).unwrap();
            let part = if n % 2 == 0 {
                "POST /db/exec"
            } else {
                "POST /db/execute HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n["
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

fn much(scene: &Scene) {
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

fn queued(scene: &Scene) {
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

fn interactive(scene: &Scene) {
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
fn interactive_anywhere(scene: &Scene) {
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

fn numbers(scene: &Scene) {
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

/// What is said of a write must be true, whatever happens to the leader meanwhile.
fn leader_dies(scene: &mut Scene) {
    ok(&scene.leader, "/db/execute", r#"["CREATE TABLE d(id INTEGER PRIMARY KEY)"]"#);
    let stop = AtomicBool::new(false);
    let id = scene.test.cluster.wait_leader(PATIENCE).unwrap();
    let addresses: Vec<_> = scene.followers.clone();
    let (mut yes, mut perhaps, mut no) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = (0..8u64)
            .map(|client| {
                let address = addresses[client as usize % 2].clone();
                scope.spawn(move || {
                    let mut fates: Vec<(u64, Result<(), bool>)> = Vec::new();
                    let mut id = client * 1_000_000;
                    // Some more after the end of the old leader.
                    let mut left = 20;
                    while left > 0 {
                        left -= u32::from(stop.load(SeqCst));
                        id += 1;
                        let body = json!([["INSERT INTO d VALUES(?)", id]]).to_string();
                        let answer = request(&address, "POST", "/db/execute", &[], body.as_bytes()).unwrap();
                        fates.push((id, fate(&answer)));
                    }
                    fates
                })
            })
            .collect();
        let cluster = &mut scene.test.cluster;
        let client = cluster.node(id).unwrap().http.clone();
        let written = || {
            let value: Value =
                serde_json::from_str(&ok(&client, "/db/query", r#"["SELECT count(*) FROM d"]"#)).unwrap();
            value["results"][0]["values"][0][0].as_u64().unwrap()
        };
        while written() < 100 {}
        cluster.kill(id).unwrap();
        stop.store(true, SeqCst);
        for (id, fate) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            match fate {
                Ok(()) => yes.insert(id),
                Err(true) => perhaps.insert(id),
                Err(false) => no.insert(id),
            };
        }
    });
    let value = post(&addresses[0], "/db/query?level=strong", r#"["SELECT id FROM d"]"#).json();
    let rows = value["results"][0]["values"].as_array().unwrap();
    let found: BTreeSet<u64> = rows.iter().map(|row| row[0].as_u64().unwrap()).collect();
    println!("{} done, {} perhaps, {} not done", yes.len(), perhaps.len(), no.len());
    assert!(yes.is_subset(&found), "acknowledged, but lost: {:?}", yes.difference(&found));
    assert!(no.is_disjoint(&found), "denied, but there: {:?}", no.intersection(&found));
    assert!(perhaps.len() <= 8, "each client has at most one request in flight");
    assert!(yes.len() >= 100 + 8 * 10, "most go on with the new leader: {}", yes.len());
}

/// What an answer says: done, perhaps (`Err(true)`), or not done.
fn fate(answer: &Answer) -> Result<(), bool> {
    if answer.status != 200 {
        assert!(matches!(answer.status, 408 | 503), "{answer:?}");
        return Err(false);
    }
    let value = answer.json();
    if let Some(error) = value["error"].as_str() {
        return Err(error.contains("outcome unknown"));
    }
    assert_eq!(value["results"][0]["rows_affected"], 1, "{answer:?}");
    Ok(())
}
