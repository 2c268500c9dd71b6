//! `quire shell` as its users run it, in pipes and at a terminal, on three real nodes, the last time while the leader dies;
//! and on a server that is not Quire's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod https;
mod import;

use quire_tests::crash::PATIENCE;
use quire_tests::{TestCluster, programs, step};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What a shell came to.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    error: String,
}

fn command(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(&programs().quire);
    command.args(["shell", address]).args(args);
    for name in ["QUIRE_HTTP_ADDR", "QUIRE_USER", "QUIRE_PASSWORD", "QUIRE_CACERT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn shell(address: &str, args: &[&str], input: &str) -> Ran {
    let mut child = command(address, args).spawn().unwrap();
    // It need not read to the end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code().unwrap(), out: text(output.stdout), error: text(output.stderr) }
}

/// What a shell that must succeed prints.
fn prints(address: &str, args: &[&str], input: &str) -> String {
    let ran = shell(address, args, input);
    assert_eq!((ran.status, &*ran.error), (0, ""), "{input}\n{ran:?}");
    ran.out
}

#[test]
fn a_shell_on_three_nodes() {
    let mut test = TestCluster::start(3);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let address = test.cluster.node(leader).unwrap().http.clone();
    let other = test.cluster.nodes.iter().find(|node| node.id != leader).unwrap().http.clone();
    step("statements", || statements(&address, &other));
    step("errors", || errors(&address));
    step("transactions", || transactions(&other));
    step("dot commands", || dot_commands(&address, &other));
    step("tables from text files", || import::imports(&other, test.dir.path()));
    step("files", || files(&other, test.dir.path()));
    step("a closed pipe", || closed_pipe(&address));
    step("at a terminal", || terminal(&address, test.dir.path()));
    step("the leader dies", || leader_dies(&mut test, leader, &address));
}

fn statements(address: &str, other: &str) {
    let script = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, data BLOB);\n\
        INSERT INTO t(name, data) VALUES('it''s; \"é\"', x'00ff'),\n  (NULL, NULL);\n\
        CREATE TRIGGER g AFTER DELETE ON t BEGIN\n  INSERT INTO t(name) VALUES('gone');\nEND;\n\
        SELECT * FROM t; -- done\nSELECT 'last'";
    assert_eq!(prints(other, &[], script), "1|it's; \"é\"|x'00ff'\n2||\nlast\n");
    let query = "SELECT id, name, data, 1.5 AS r FROM t ORDER BY id";
    let rows: Value = serde_json::from_str(&prints(address, &["--json", query], "")).unwrap();
    let expected = json!([{ "id": 1, "name": "it's; \"é\"", "data": "AP8=", "r": 1.5 },
        { "id": 2, "name": null, "data": null, "r": 1.5 }]);
    assert_eq!(rows, expected);
    let csv = prints(address, &["--csv", "--headers", "--nullvalue", "-", query], "");
    assert_eq!(csv, "id,name,data,r\n1,\"it's; \"\"é\"\"\",x'00ff',1.5\n2,-,-,1.5\n");
    // Without an address; what begins with a dot or has spaces is none.
    let mut command = Command::new(&programs().quire);
    let output = command.args(["shell", "--node", address, "SELECT 1;", ".print two"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1\ntwo\n");
    let many = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<200000) SELECT n FROM c";
    assert_eq!(prints(address, &[many], "").lines().count(), 200_000);
}

fn errors(address: &str) {
    let script = "SELECT 1;\n\nSELECT nope;\n.nonsense\nSELECT 2;\n";
    let ran = shell(address, &[], script);
    assert_eq!((ran.status, &*ran.out), (1, "1\n2\n"), "{ran:?}");
    assert!(ran.error.contains("Error near line 3: no such column: nope"), "{ran:?}");
    assert!(ran.error.contains("Error near line 4: there is no command .nonsense"), "{ran:?}");
    let ran = shell(address, &["--bail"], script);
    assert_eq!((ran.status, &*ran.out), (1, "1\n"), "{ran:?}");
    let ran = shell(address, &["SELECT 1; .quit 7"], "");
    assert_eq!(ran.status, 1, "a dot command begins a line: {ran:?}");
    assert_eq!(shell(address, &[], "SELECT 1;\n.quit 7\nSELECT nope;").status, 7);
    let ran = shell(address, &["--db", "../x", "SELECT 1"], "");
    assert!(ran.status == 1 && ran.error.contains("can't name a database"), "{ran:?}");
    let ran = shell(address, &[], "SELECT 1;\n.read /dev/zero\nSELECT 2;\n");
    assert_eq!((ran.status, &*ran.out), (1, "1\n2\n"), "{ran:?}");
    assert!(
        ran.error.contains("near line 1 of /dev/zero: reading the input: a line has more than"),
        "{ran:?}"
    );
    // What is over with its statement is said to be so.
    let ran = shell(
        address,
        &[],
        "PRAGMA foreign_keys=ON;\nPRAGMA foreign_keys=OFF;\nCREATE TEMP TABLE gone(x);\n",
    );
    let said =
        ["a setting lasts as long as its statement", "what is temporary lasts as long as its statement"];
    assert_eq!((ran.status, ran.error.lines().count()), (0, 2), "{ran:?}");
    assert!(said.iter().all(|said| ran.error.contains(said)), "{ran:?}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ran = shell(&nobody, &["SELECT 1"], "");
    assert!(ran.status == 1 && ran.error.contains("does not answer"), "{ran:?}");
}

fn transactions(address: &str) {
    let script = "CREATE TABLE x(a); BEGIN; INSERT INTO x VALUES(1); SELECT count(*) FROM x; ROLLBACK;\n\
        SELECT count(*) FROM x; BEGIN IMMEDIATE; INSERT INTO x VALUES(2); END; SELECT a FROM x;";
    assert_eq!(prints(address, &[], script), "1\n0\n2\n");
    let ran = shell(address, &[], "BEGIN;\nBEGIN;\nINSERT INTO x VALUES(3);\n");
    assert_eq!(ran.status, 1);
    assert!(ran.error.contains("cannot start a transaction within a transaction"), "{ran:?}");
    assert!(ran.error.contains("the open transaction is rolled back"), "{ran:?}");
    let ran = shell(address, &[], "COMMIT; ROLLBACK; SELECT count(*) FROM x;");
    assert_eq!((ran.status, &*ran.out), (1, "1\n"), "{ran:?}");
    // What SQLite ends takes everything up to the script's own end with it.
    let script = "CREATE TABLE u(a UNIQUE); INSERT INTO u VALUES(1);\nBEGIN; INSERT INTO u VALUES(2);\n\
        INSERT OR ROLLBACK INTO u VALUES(1);\nINSERT INTO u VALUES(3);\nCOMMIT;\nSELECT count(*) FROM u;";
    let ran = shell(address, &[], script);
    assert_eq!((ran.status, &*ran.out), (1, "1\n"), "{ran:?}");
    assert!(ran.error.contains("line 3: the transaction is lost"), "{ran:?}");
    assert!(ran.error.contains("line 4: not run") && ran.error.contains("line 5: nothing was"), "{ran:?}");
}

fn dot_commands(address: &str, other: &str) {
    assert_eq!(prints(address, &[".tables"], ""), "t\nu\nx\n");
    assert_eq!(prints(address, &[".tables x%", ".indexes u"], ""), "x\nsqlite_autoindex_u_1\n");
    assert_eq!(prints(address, &[".schema u"], ""), "CREATE TABLE u(a UNIQUE);\n");
    let nodes: Value = serde_json::from_str(&prints(other, &["--json", ".nodes"], "")).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 3, "{nodes}");
    assert!(nodes.as_array().unwrap().iter().all(|node| node["reachable"] == true), "{nodes}");
    assert!(prints(other, &[".leader"], "").contains(address));
    assert!(prints(address, &[".ready"], "").contains("[+]leader ok"));
    let status: Value = serde_json::from_str(&prints(address, &[".status store.raft"], "")).unwrap();
    assert_eq!(status["state"], "Leader");
    assert!(serde_json::from_str::<Value>(&prints(address, &[".expvar"], "")).unwrap().is_object());
    let script = ".timer on\n.changes on\nINSERT INTO x VALUES(9);\n.timer off\n.changes off\n.level strong\n\
        .level\n.mode line\nSELECT 1 AS a;\n.show\n.timeout 5s\n.help mode\n";
    let out = prints(address, &[], script);
    assert!(out.contains("changes: 1   last_insert_rowid: 2\nRun Time: real "), "{out}");
    assert!(
        out.contains("strong\na = 1\n") && out.contains("mode: line") && out.contains(".mode [MODE"),
        "{out}"
    );
    let ran = shell(address, &[".level sometimes"], "");
    assert!(ran.status == 1 && ran.error.contains("there is no level sometimes"), "{ran:?}");
    // Another database is there from its first use on, when it has been created.
    let create =
        Command::new(&programs().quire).args(["db", "create", "shop", "--http-addr", address]).output();
    assert!(create.unwrap().status.success());
    let script =
        ".db shop\nCREATE TABLE s(a);\n.db\n.tables\n.db main\nSELECT count(*) FROM u;\n.mode json\n.dbs\n";
    let out = prints(address, &[], script);
    let (before, list) = out.split_once('[').unwrap();
    assert_eq!(before, "shop\ns\n1\n");
    let list: Value = serde_json::from_str(&format!("[{list}")).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert_eq!(prints(address, &["--db", "shop", ".tables"], ""), "s\n");
}

fn files(address: &str, dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (backup, dump, out, script) = (path("b.db"), path("d.sql"), path("o.txt"), path("s.sql"));
    let said = prints(address, &[&format!(".backup {backup}")], "");
    assert!(said.starts_with("main: ") && said.contains(&backup), "{said}");
    let ran = shell(address, &[&format!(".backup {backup}")], "");
    assert!(ran.status == 1 && ran.error.contains("--force"), "{ran:?}");
    let copy = rusqlite::Connection::open(&backup).unwrap();
    assert_eq!(copy.query_row("SELECT count(*) FROM u", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    drop(copy);
    prints(address, &[&format!(".dump {dump} u")], "");
    let printed = prints(address, &[".dump - u"], "");
    assert_eq!(std::fs::read_to_string(&dump).unwrap(), printed);
    assert!(printed.contains("CREATE TABLE u(a UNIQUE)"), "{printed}");

    let changed = "INSERT INTO u VALUES(77);\nSELECT count(*) FROM u;\n";
    std::fs::write(&script, format!("{changed}SELECT nope;\n")).unwrap();
    let ran = shell(address, &[], &format!(".output {out}\n.read {script}\n.output\nSELECT 'here';\n"));
    assert_eq!((ran.status, &*ran.out), (1, "here\n"), "{ran:?}");
    assert!(ran.error.contains(&format!("line 3 of {script}: no such column: nope")), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "2\n");

    let ran = shell(address, &[&format!(".restore {backup}")], "");
    assert!(ran.status == 1 && ran.error.contains("--replace"), "{ran:?}");
    let script = format!("BEGIN;\n.restore --replace {backup}\nROLLBACK;\n");
    let ran = shell(address, &[], &script);
    assert!(ran.status == 1 && ran.error.contains("a transaction is open"), "{ran:?}");
    let script = format!(".restore --replace {backup}\nSELECT count(*) FROM u;\n");
    assert!(prints(address, &[], &script).ends_with("\n1\n"));
}

fn closed_pipe(address: &str) {
    let endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT n FROM c";
    let line = format!("'{}' shell {address} '{endless}' | head -n 2", programs().quire.display());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1\n2\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

fn terminal(address: &str, dir: &Path) {
    let mut command = Command::new("python3");
    command.args(["-c", include_str!("../../src/shell_pty.py")]).arg(&programs().quire).arg(address).arg(dir);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// A shell to talk with.
struct Talk {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Talk {
    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

fn leader_dies(test: &mut TestCluster, leader: u64, address: &str) {
    let talk = || {
        let mut child = command(address, &[]).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Talk { child, out }
    };
    let (mut plain, mut open) = (talk(), talk());
    // When it prints the second line, it knows the other nodes.
    plain.say("SELECT 'first';\n.print known\n");
    assert_eq!((plain.hear(), plain.hear()), ("first".into(), "known".into()));
    open.say("BEGIN;\nINSERT INTO x VALUES('lost');\nSELECT 'open';\n");
    assert_eq!(open.hear(), "open");
    test.cluster.kill(leader).unwrap();
    // A read first: a write whose connection breaks on its way would be told to be of unknown outcome.
    plain.say("SELECT 'second';\nINSERT INTO x VALUES('kept');\nSELECT count(*) FROM x WHERE a='kept';\n");
    assert_eq!((plain.hear(), plain.hear()), ("second".into(), "1".into()));
    open.say("INSERT INTO x VALUES('lost');\nINSERT INTO x VALUES('not run');\nROLLBACK;\n");
    open.say("SELECT count(*) FROM x WHERE a IN ('lost', 'not run');\n");
    assert_eq!(open.hear(), "0");
    for (talk, status, expected) in
        [(plain, 0, vec!["now at"]), (open, 1, vec!["line 4: the transaction is lost", "line 5: not run"])]
    {
        let output = talk.child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(expected.iter().all(|text| error.contains(text)), "{error}");
    }
}

/// Answers as rqlite does, which has neither `/tx` nor several databases.
fn rqlite() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap())));
    address
}

fn answer(mut stream: TcpStream) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let (status, answer) = match head.split([' ', '?']).nth(1).unwrap() {
        "/db/request" if body.contains("nope") => (200, r#"{"results":[{"error":"no such column: nope"}]}"#),
        "/db/request" if body.contains("INSERT") => {
            (200, r#"{"results":[{"last_insert_id":5,"rows_affected":1}]}"#)
        }
        "/db/request" => {
            (200, r#"{"results":[{"columns":["a","b"],"types":["integer","blob"],"values":[[1,[0,255]]]}]}"#)
        }
        "/readyz" => (200, "[+]node ok"),
        "/nodes" => (200, r#"{"nodes":[]}"#),
        _ => (404, "404 page not found"),
    };
    let head = format!("HTTP/1.1 {status} x\r\nX-Rqlite-Version: v8.36.5\r\nConnection: close\r\n");
    let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
}

#[test]
fn a_shell_on_another_server() {
    let address = rqlite();
    assert_eq!(prints(&address, &["--json", "SELECT * FROM t"], ""), "[{\"a\":1,\"b\":\"AP8=\"}]\n");
    let out = prints(&address, &[], ".changes on\nINSERT INTO t VALUES(1, x'00ff');\n");
    assert_eq!(out, "changes: 1   last_insert_rowid: 5\n");
    for (input, why) in [
        ("SELECT nope;", "no such column: nope"),
        ("BEGIN;", "BEGIN: rqlite v8.36.5 has no transactions over several statements"),
        (".db shop", ".db: only Quire's nodes can do that, and this is rqlite v8.36.5"),
        (".dbs", "only Quire's nodes can do that"),
        (".restore x.db", "say so with --replace"),
        (".expvar", "404 page not found"),
    ] {
        let ran = shell(&address, &[], input);
        assert!(ran.status == 1 && ran.error.contains(why), "{input}: {ran:?}");
    }
    let ran = shell(&address, &["--db", "shop", "INSERT INTO t VALUES(1)"], "");
    assert!(ran.status == 1 && ran.error.contains("database shop: only Quire's"), "{ran:?}");
}
