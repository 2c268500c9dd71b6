//! Users and what each may do, and HTTPS.

use nix::sys::signal::Signal;
use quire_node::args::ClientArgs;
use quire_node::cli::client::Client;
use quire_tests::admin::quire_json;
use quire_tests::crash::PATIENCE;
use quire_tests::http::request;
use quire_tests::{TestCluster, programs};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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
