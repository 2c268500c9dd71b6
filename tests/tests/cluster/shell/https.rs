//! The shell on nodes that speak HTTPS and have users: it checks the certificate, sends the password to nobody else, and
//! goes on over HTTPS when the leader dies. The benchmark checks and sends the same.

use super::{command, shell};
use quire_node::args::ClientArgs;
use quire_node::cli::client::Client;
use quire_tests::crash::PATIENCE;
use quire_tests::{TestCluster, programs};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;

#[test]
fn a_shell_over_https() {
    let mut test = TestCluster::prepare(3);
    let path = |name: &str| test.dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, other, auth) = (path("cert.pem"), path("key.pem"), path("other.pem"), path("auth.json"));
    let host = test.cluster.nodes[0].http.split_once(':').unwrap().0.to_owned();
    let made = rcgen::generate_simple_self_signed(vec![host.clone()]).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&other, rcgen::generate_simple_self_signed(vec![host]).unwrap().cert.pem()).unwrap();
    let users = json!([{ "username": "ann", "password": "se:cret", "perms": ["all"] }]);
    std::fs::write(&auth, users.to_string()).unwrap();
    for node in &mut test.cluster.nodes {
        let flags = ["--http-cert", &cert, "--http-key", &key, "--auth", &auth];
        node.flags = flags.map(str::to_owned).to_vec();
    }
    let client = |address: &str| {
        let (http_addr, user) = (format!("https://{address}"), Some("ann:se:cret".to_owned()));
        Client::with(&ClientArgs { http_addr, user, cacert: Some(cert.clone().into()), json: false }).unwrap()
    };
    for id in 1..=3 {
        test.cluster.start_node(id).unwrap();
        let first = client(&test.cluster.nodes[0].http);
        let all_vote = || {
            let nodes = first.get("/nodes?ver=2").ok()?;
            let nodes = nodes["nodes"].as_array()?;
            let voters =
                nodes.iter().filter(|node| node["voter"] == true && node["reachable"] == true).count();
            Some(voters == id as usize && nodes.iter().any(|node| node["leader"] == true))
        };
        test.cluster.wait("all to vote", PATIENCE, |_| all_vote().unwrap_or(false)).unwrap();
    }
    let leader =
        client(&test.cluster.nodes[0].http).get("/leader").unwrap()["id"].as_str().unwrap().to_owned();
    let leader: u64 = leader.parse().unwrap();
    let address = format!("https://{}", test.cluster.node(leader).unwrap().http);
    let ca = ["--cacert", &cert];
    let ann = [&ca[..], &["--user", "ann:se:cret"]].concat();

    // Whom not to trust, and who is not trusted.
    let fails = |args: &[&str], why: &str| {
        let ran = shell(&address, args, "SELECT 1;\n");
        assert!(ran.status == 1 && ran.out.is_empty() && ran.error.contains(why), "{args:?}: {ran:?}");
    };
    fails(&["--user", "ann:se:cret"], "--cacert");
    fails(&["--cacert", &other, "--user", "ann:se:cret"], "certificate");
    fails(&["--cacert", &auth, "--user", "ann:se:cret"], "no certificate in PEM");
    fails(&ca, "--user");
    fails(&[&ca[..], &["--user", "ann:wrong"]].concat(), "--user");
    let clear = shell(address.trim_start_matches("https://"), &ann, "SELECT 1;\n");
    assert!(clear.status == 1 && clear.out.is_empty(), "{clear:?}");

    let mut asked = command(&address, &[&ca[..], &["--user", "ann", "SELECT 1"]].concat());
    let asked = asked.env("QUIRE_PASSWORD", "se:cret").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "1\n", "{asked:?}");
    let ran = shell(
        &address,
        &ann,
        "CREATE TABLE t(x);\nBEGIN;\nINSERT INTO t VALUES(1);\nCOMMIT;\nSELECT x FROM t;\n",
    );
    assert_eq!((ran.status, ran.out.as_str()), (0, "1\n"), "{ran:?}");

    bench(&address, &cert, &other, test.dir.path());

    let mut child = command(&address, &ann).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut says = |line: &str, expected: &str| {
        writeln!(input, "{line}").unwrap();
        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim_end(), expected, "{line}");
    };
    says("SELECT count(*) FROM t;", "1");
    // By now it knows the other nodes.
    says(".print known", "known");
    test.cluster.kill(leader).unwrap();
    says("SELECT count(*) + 1 FROM t;", "2");
    says("INSERT INTO t VALUES(2); SELECT count(*) FROM t;", "2");
    drop(input);
    assert!(child.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("now at https://"), "{said}");
}

/// `quire bench http` on such a node.
fn bench(address: &str, cert: &str, other: &str, dir: &Path) {
    let run = |url: &str, args: &[&str]| {
        let mut command = Command::new(&programs().quire);
        command.args(["bench", "http", "--seconds", "1", "--turns", "1", "--concurrency", "1,3", "--json"]);
        command.args(["--url", url]).args(args).current_dir(dir);
        let output = command.env_remove("QUIRE_USER").env_remove("QUIRE_CACERT").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), error)
    };
    let ann = ["--user", "ann:se:cret"];
    for trust in [&["--cacert", cert][..], &["--insecure"]] {
        let (ok, out, error) = run(address, &[trust, &ann].concat());
        assert!(ok, "{trust:?}: {error}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["url"], address);
        let runs = report["runs"].as_array().unwrap();
        assert_eq!(runs.iter().map(|run| run["clients"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
        assert!(runs.iter().all(|run| run["turns"][0]["http_per_second"].as_f64().unwrap() > 0.0), "{out}");
    }
    let clear = address.replace("https", "http");
    for (url, args, why) in [
        (address, &ann[..], "--cacert"),
        (address, &["--cacert", other, ann[0], ann[1]], "invalid peer certificate"),
        (address, &["--cacert", "/nonexistent"], "/nonexistent"),
        (address, &["--insecure", "--user", "ann:wrong"], "--user NAME:PASSWORD"),
        (address, &["--insecure"], "--user NAME:PASSWORD"),
        (&clear, &ann, "closed the connection"),
    ] {
        let (ok, out, error) = run(url, args);
        assert!(!ok && out.is_empty() && error.contains(why), "{url} {args:?}: {error}");
    }
}
