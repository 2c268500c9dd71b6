//! Databases go in and out as files and scripts, from and to any node, while everything goes on; what is no database,
//! or only a part of one, changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use nix::sys::signal::Signal;
use quire_node::cli::local::LocalCluster;
use quire_node::dump::dump;
use quire_tests::TestCluster;
use quire_tests::admin::{http, quire, quire_fails, quire_json};
use quire_tests::crash::{PATIENCE, Scene, have_app};
use quire_tests::programs;
use quire_tests::replicas::assert_identical;
use quire_tests::step;
use rusqlite::Connection;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// No node may grow by more than this, in KiB, while it takes or sends a file of [`LARGE`] rows.
const GROWTH: u64 = 200 << 10;
/// Rows of 1 MB.
const LARGE: u32 = 60;

/// All that is in a database, as a script.
fn contents(connection: &Connection) -> String {
    connection.execute_batch("BEGIN").unwrap();
    let mut script = Vec::new();
    dump(connection, &[], &mut script).unwrap();
    connection.execute_batch("COMMIT").unwrap();
    String::from_utf8(script).unwrap()
}

fn of_file(path: &Path) -> String {
    let connection = Connection::open(path).unwrap();
    let whole = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    assert_eq!(whole.as_deref(), Ok("ok"), "{}", path.display());
    contents(&connection)
}

fn sorted(script: &str) -> Vec<&str> {
    let mut lines: Vec<_> = script.lines().collect();
    lines.sort_unstable();
    lines
}

/// A database with something of everything.
fn make(path: &Path, page_size: u32, journal: &str) -> Connection {
    let connection = Connection::open(path).unwrap();
    let setup =
        format!("PRAGMA page_size={page_size}; PRAGMA journal_mode={journal}; PRAGMA wal_autocheckpoint=0;");
    connection.execute_batch(&setup).unwrap();
    connection
        .execute_batch(
            "PRAGMA user_version = 3;
             CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b TEXT, c BLOB, d REAL);
             CREATE INDEX by_b ON t(b);
             CREATE VIEW v AS SELECT b FROM t;
             CREATE VIRTUAL TABLE words USING fts5(word);
             CREATE TRIGGER added AFTER INSERT ON t BEGIN INSERT INTO words VALUES (new.b); END;
             INSERT INTO t(b, c, d) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
                SELECT 'row ''' || i, randomblob(i * 7), i / 3.0 FROM n;
             DELETE FROM t WHERE a % 5 = 0;",
        )
        .unwrap();
    connection
}

/// A database of `LARGE` rows of 1 MB.
fn make_large(path: &Path) -> PathBuf {
    let sql = format!(
        "PRAGMA synchronous=OFF; CREATE TABLE big(n INTEGER PRIMARY KEY, body BLOB); \
         INSERT INTO big WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {LARGE}) \
         SELECT i, randomblob(1000000) FROM n"
    );
    Connection::open(path).unwrap().execute_batch(&sql).unwrap();
    path.to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A value of `/proc/PID/status`, in KiB.
fn memory(pid: i32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn databases_go_in_and_out() {
    if !have_app() {
        return;
    }
    let scene = Scene::start(&["--heartbeat-ms", "200", "--election-timeout-ms", "6000"]);
    let address = |node: u64| scene.test.cluster.node(node).unwrap().http.clone();
    let (leader, follower) = (address(scene.leader()), address(scene.followers()[0]));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);

    step("every page size and journal mode comes in, and goes out the same", || {
        for (page_size, journal) in [(512, "delete"), (4096, "wal"), (65536, "wal")] {
            let name = format!("pages-{page_size}");
            let path = file(&format!("{name}.src"));
            // Open, so that with a WAL everything is in that alone.
            let source = make(&path, page_size, journal);
            let expected = contents(&source);
            quire_json(&["db", "import", text(&path), "--db", &name, "--http-addr", &follower]);
            assert_eq!(contents(&source), expected);
            scene.test.cluster.wait_applied(&name, PATIENCE).unwrap();
            for (node, form) in [(&leader, "delete"), (&follower, "binary")] {
                let out = file(&format!("{name}.{form}"));
                quire_json(&["db", "export", text(&out), "--db", &name, "--fmt", form, "--http-addr", node]);
                assert_eq!(std::fs::read(&out).unwrap()[18], if form == "binary" { 2 } else { 1 });
                assert!(of_file(&out) == expected, "{name} {form}");
            }
            assert_identical(&scene.test, &name, &[".dump"]);
        }
    });

    step("scripts, compressed and packed files", || {
        let expected = of_file(&file("pages-512.delete"));
        for (n, flags) in [
            vec!["--fmt", "sql"],
            vec!["--fmt", "sql", "--compress"],
            vec!["--compress"],
            vec!["--vacuum", "--noleader"],
        ]
        .iter()
        .enumerate()
        {
            let out = file(&format!("form-{n}"));
            let get = ["backup", text(&out), "--db", "pages-512", "--http-addr", &follower];
            quire_json(&[&get, flags.as_slice()].concat());
            let name = format!("form{n}");
            quire_json(&["restore", text(&out), "--db", &name, "--http-addr", &leader]);
            let again = file(&format!("again-{n}"));
            quire_json(&["db", "export", text(&again), "--db", &name, "--http-addr", &leader]);
            // VACUUM puts the schema in another order.
            assert!(sorted(&of_file(&again)) == sorted(&expected), "{flags:?}");
        }
        let some = file("some.sql");
        let args = ["--db", "pages-512", "--fmt", "sql", "--tables", "words,t", "--http-addr", &leader];
        quire_json(&[["backup", text(&some)].as_slice(), &args].concat());
        let some = std::fs::read_to_string(some).unwrap();
        assert!(some.contains("INTO \"t\"") && !some.contains("words_data"), "{some}");
    });

    step("what a database has is replaced only if that was said, and converted", || {
        let source = file("pages-512.src");
        let into = ["db", "import", text(&source), "--db", "pages-65536", "--http-addr", &leader];
        let mut reader = scene.idle_app();
        let path = scene.test.cluster.node(scene.followers()[1]).unwrap().database("pages-65536");
        scene.open_file(&mut reader, &path, 15);
        assert_eq!(reader.number("SELECT count(*) FROM t"), 240);
        let why = quire_fails(&into);
        assert!(why.contains("not empty") && why.contains("--replace"), "{why}");
        quire_json(&[into.as_slice(), &["--replace"]].concat());
        scene.test.cluster.wait_applied("pages-65536", PATIENCE).unwrap();
        // The schema is as large, and another: a statement that was prepared must notice.
        assert_eq!(
            reader.number("SELECT count(*) + (SELECT page_size FROM pragma_page_size) FROM t"),
            240 + 65536
        );
        let (code, said) =
            http(&leader, "POST", "/db/load?db=pages-65536", "DELETE FROM t; CREATE TABLE u(a)");
        assert_eq!(code, 200, "{said}");
        scene.test.cluster.wait_applied("pages-65536", PATIENCE).unwrap();
        assert_eq!(reader.number("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM u)"), 0);
        let (code, _) = http(&leader, "POST", "/db/load?db=pages-65536&replace", "CREATE TABLE only(a)");
        assert_eq!(code, 200);
        scene.test.cluster.wait_applied("pages-65536", PATIENCE).unwrap();
        assert_eq!(reader.number("SELECT count(*) FROM sqlite_schema"), 1);
        let why = quire_fails(&["backup", text(&source), "--db", "pages-512", "--http-addr", &leader]);
        assert!(why.contains("exists") && why.contains("--force"), "{why}");
        reader.quit();
    });

    step("backups under load are consistent, and contain what was acknowledged", || {
        let mut app = scene.app(scene.leader());
        app.rows("CREATE TABLE account(id INTEGER PRIMARY KEY, amount, filler)").unwrap();
        app.rows("INSERT INTO account VALUES (1, 1000, ''), (2, 0, '')").unwrap();
        let (ended, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (ended, acknowledged) = (&ended, &acknowledged);
            let writer = scope.spawn(move || {
                let mut n = 0;
                while !ended.load(Ordering::Relaxed) {
                    n += 1;
                    app.rows(
                        "UPDATE account SET amount = amount + CASE id WHEN 1 THEN -1 ELSE 1 END, \
                         filler = randomblob(9000)",
                    )
                    .unwrap();
                    acknowledged.store(n, Ordering::SeqCst);
                }
                app.quit();
            });
            for n in 0..6 {
                let before = acknowledged.load(Ordering::SeqCst);
                let out = file(&format!("load-{n}"));
                let from = if n % 2 == 0 { &follower } else { &leader };
                let form = if n < 4 { "delete" } else { "sql" };
                quire_json(&["backup", text(&out), "--fmt", form, "--http-addr", from]);
                let backup = match form {
                    "sql" => {
                        let backup = Connection::open_in_memory().unwrap();
                        backup.execute_batch(&std::fs::read_to_string(&out).unwrap()).unwrap();
                        backup
                    }
                    _ => Connection::open(&out).unwrap(),
                };
                let number =
                    |sql: &str| backup.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as u64;
                assert_eq!(number("SELECT sum(amount) FROM account"), 1000);
                let moved = number("SELECT amount FROM account WHERE id = 2");
                assert!(moved >= before, "backup {n} has {moved} of {before} acknowledged transactions");
                let whole = backup.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
                assert_eq!(whole.as_deref(), Ok("ok"));
            }
            ended.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
    });

    step("a large file takes no memory", || {
        let large = make_large(&file("large.db"));
        let pids: Vec<_> = scene.test.cluster.nodes.iter().map(|node| node.pid().unwrap().as_raw()).collect();
        let before: Vec<_> = pids
            .iter()
            .map(|pid| {
                std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
                memory(*pid, "VmRSS")
            })
            .collect();
        quire_json(&["db", "import", text(&large), "--db", "large", "--http-addr", &leader]);
        scene.test.cluster.wait_applied("large", PATIENCE).unwrap();
        let out = file("large.out");
        quire_json(&["backup", text(&out), "--db", "large", "--http-addr", &follower]);
        assert!(of_file(&out) == of_file(&large));
        for (pid, before) in pids.iter().zip(before) {
            let growth = memory(*pid, "VmHWM").saturating_sub(before);
            println!("a node took {} MiB more", growth >> 10);
            assert!(growth < GROWTH, "a node grew by {growth} KiB");
        }
    });

    step("databases are dropped, and created anew", || drops(&scene, &follower));

    step("a client that doesn't read is left alone", || {
        let mut stalled = TcpStream::connect(&follower).unwrap();
        write!(stalled, "GET /db/backup?db=large&timeout=1s HTTP/1.1\r\nHost: q\r\n\r\n").unwrap();
        let mut gone = TcpStream::connect(&follower).unwrap();
        write!(gone, "GET /db/backup?db=large HTTP/1.1\r\nHost: q\r\n\r\n").unwrap();
        std::io::Read::read_exact(&mut gone, &mut [0; 1000]).unwrap();
        drop(gone);
        let node = scene.test.cluster.node(scene.followers()[0]).unwrap();
        let said =
            |_: &_| node.log().contains("reads too slowly") && node.log().contains("the client is gone");
        scene.test.cluster.wait("the backups to be given up", PATIENCE, said).unwrap();
        drop(stalled);
    });

    step("scripts that don't end are ended", || runaways(&scene, &leader));

    step("what is no database is refused, and says why", || bad_inputs(&leader, dir.path()));

    step("all of it goes to another cluster", || {
        let all = file("all");
        quire_json(&["backup", "--all", text(&all), "--http-addr", &follower]);
        let mut other = TestCluster::prepare(1);
        other.cluster.start().unwrap();
        let there = other.cluster.nodes[0].http.clone();
        quire_json(&["restore", "--all", text(&all), "--http-addr", &there]);
        let again = file("again");
        quire_json(&["backup", "--all", text(&again), "--http-addr", &there]);
        let list = |address: &str| {
            let list = quire_json(&["db", "list", "--http-addr", address]);
            let list = list["databases"].as_array().unwrap().clone();
            list.iter().map(|db| db["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(list(&leader), list(&there));
        for name in list(&leader) {
            let name = format!("{name}.db");
            assert!(of_file(&all.join(&name)) == of_file(&again.join(&name)), "{name}");
        }
        let why = quire_fails(&["restore", "--all", text(&all), "--http-addr", &there]);
        assert!(why.contains("not empty") && why.contains("--force"), "{why}");
        quire_json(&["restore", "--all", text(&all), "--force", "--http-addr", &there]);
    });
}

/// A database is dropped while an app and a reader have it open; one of the same name is another one.
fn drops(scene: &Scene, follower: &str) {
    let leader = scene.leader();
    let path = scene.test.cluster.node(leader).unwrap().database("short-lived");
    let open = || {
        let mut app = scene.idle_app();
        scene.open_file(&mut app, &path, 5);
        app
    };
    let mut app = open();
    app.rows("CREATE TABLE first(a)").unwrap();
    app.rows("INSERT INTO first VALUES (1)").unwrap();
    // One that has opened the database, and not written yet.
    let mut idle = open();
    scene.test.cluster.wait_applied("short-lived", PATIENCE).unwrap();
    let why = quire_fails(&["db", "drop", "short-lived", "--http-addr", follower]);
    assert!(why.contains("not empty") && why.contains("--force"), "{why}");
    quire_json(&["db", "drop", "short-lived", "--force", "--http-addr", follower]);
    let why = app.rows("INSERT INTO first VALUES (2)").unwrap_err();
    assert!(why.contains("I/O"), "{why}");
    assert!(
        quire_fails(&["db", "drop", "short-lived", "--http-addr", follower]).contains("there is no database")
    );

    let mut second = open();
    second.rows("CREATE TABLE second(a, b)").unwrap();
    second.rows("INSERT INTO second VALUES (1, 2)").unwrap();
    // The old one is readable to its end, and neither writes to the new one.
    assert_eq!(app.number("SELECT count(*) FROM first"), 1);
    assert!(app.rows("INSERT INTO first VALUES (2)").is_err());
    assert!(idle.rows("SELECT count(*) FROM second").is_err());
    assert!(idle.rows("CREATE TABLE third(a)").is_err());
    assert_identical(&scene.test, "short-lived", &[".dump"]);
    for app in [app, idle, second] {
        app.quit();
    }
}

/// Nodes that are killed, and one that was away so long that it needs a snapshot, know of a drop afterwards.
#[test]
fn a_dropped_database_stays_dropped() {
    if !have_app() {
        return;
    }
    let mut scene = Scene::start(&[
        "--heartbeat-ms",
        "200",
        "--election-timeout-ms",
        "1500",
        "--log-retain-mib",
        "1",
        "--checkpoint-mib",
        "1",
    ]);
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, sql: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, sql).unwrap();
        path
    };
    let old = script("old.sql", "CREATE TABLE old(a); INSERT INTO old VALUES (1);");
    let new = script("new.sql", "CREATE TABLE new(a); INSERT INTO new VALUES (2);");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10)";
    let large = script(
        "large.sql",
        &format!("CREATE TABLE t(a); INSERT INTO t {rows} SELECT randomblob(1000000) FROM n;"),
    );
    let (leader, followers) = (scene.leader(), scene.followers());
    let address = scene.test.cluster.node(leader).unwrap().http.clone();
    let import = |path: &Path, name: &str| {
        quire_json(&["db", "import", text(path), "--db", name, "--replace", "--http-addr", &address]);
    };
    for name in ["again", "gone"] {
        import(&old, name);
        scene.test.cluster.wait_applied(name, PATIENCE).unwrap();
    }
    assert!(scene.test.cluster.stop(followers[1]).unwrap().success());
    for name in ["again", "gone"] {
        quire_json(&["db", "drop", name, "--force", "--http-addr", &address]);
    }
    import(&new, "again");
    // The log up to here is purged.
    let first = |scene: &Scene| {
        let segments = scene.test.cluster.node(leader).unwrap().dir.join("raft/log").read_dir().unwrap();
        let names = segments.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".seg")).min()
    };
    let (before, began) = (first(&scene), Instant::now());
    while first(&scene) == before {
        import(&large, "large");
        assert!(began.elapsed() < PATIENCE, "the log is not purged\n{}", scene.test.cluster.logs(20));
    }
    scene.test.cluster.kill(followers[0]).unwrap();
    scene.restart(followers[0]);
    scene.restart(followers[1]);
    scene.test.cluster.wait_applied("again", PATIENCE).unwrap();
    scene.test.cluster.wait_applied("large", PATIENCE).unwrap();
    for node in &scene.test.cluster.nodes {
        let list = quire_json(&["db", "list", "--http-addr", &node.http]);
        let list = list["databases"].as_array().unwrap().clone();
        let names: Vec<_> = list.iter().map(|db| db["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["again", "large", "main"], "node {}", node.id);
    }
    assert_identical(&scene.test, "again", &["SELECT a FROM new"]);
    let left = |_: &_| {
        let nodes = scene.test.cluster.nodes.iter();
        let mut files = nodes.flat_map(|node| node.dir.join("db").read_dir().unwrap());
        !files.any(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            name.contains("gone") || name.contains("-dropped-") || name.contains(".aside-")
        })
    };
    scene.test.cluster.wait("nothing to be left of the dropped databases", PATIENCE, left).unwrap();

    // A reader of an old state makes the WAL of its node grow, which that node says.
    let mut reader = scene.idle_app();
    scene.open_file(&mut reader, &scene.test.cluster.node(leader).unwrap().database("large"), 15);
    reader.rows("BEGIN").unwrap();
    assert_eq!(reader.number("SELECT count(*) FROM t"), 10);
    let kept = |cluster: &LocalCluster| {
        let status = cluster.node(leader).unwrap().status()?;
        let databases = status["store"]["databases"].as_array()?.clone();
        databases.iter().find(|db| db["name"] == "large")?["wal_kept_by_reader"].as_bool()
    };
    import(&large, "large");
    scene.test.cluster.wait("the WAL to be kept", PATIENCE, |c| kept(c) == Some(true)).unwrap();
    let said = |c: &LocalCluster| c.node(leader).unwrap().log().contains("its WAL grows: a reader");
    scene.test.cluster.wait("the node to say so", PATIENCE, said).unwrap();
    reader.rows("COMMIT").unwrap();
    scene.test.cluster.wait("the WAL to be free", PATIENCE, |c| kept(c) == Some(false)).unwrap();
}

/// A script that takes longer than it may, or that nobody waits for, keeps neither the database nor a place.
fn runaways(scene: &Scene, leader: &str) {
    const FOREVER: &str = "INSERT INTO t(b) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) \
                           SELECT max(n) FROM c;";
    let alone = format!("CREATE TABLE t(b); {FOREVER}");
    for (flags, script) in [("", FOREVER), ("&replace", &alone)] {
        let path = format!("/db/load?db=form1&timeout=300ms{flags}");
        let (code, said) = http(leader, "POST", &path, script);
        assert!(code == 408 && said.contains("timeout"), "{code} {said}");
    }
    let node = scene.test.cluster.node(scene.leader()).unwrap();
    // More than the places.
    for _ in 0..6 {
        let received = || node.log().matches("received what is to be loaded").count();
        let before = received();
        let mut stream = TcpStream::connect(leader).unwrap();
        let length = FOREVER.len();
        let head = format!("POST /db/load?db=form1 HTTP/1.1\r\nHost: q\r\nContent-Length: {length}\r\n\r\n");
        write!(stream, "{head}{FOREVER}").unwrap();
        let taken = |_: &_| received() > before;
        scene.test.cluster.wait("a load to be taken", PATIENCE, taken).unwrap();
        drop(stream);
        let free = |_: &_| http(leader, "POST", "/db/load?db=form1", "DELETE FROM t").0 == 200;
        scene.test.cluster.wait("the database to be free", PATIENCE, free).unwrap();
    }
}

fn bad_inputs(leader: &str, dir: &Path) {
    let whole = std::fs::read(dir.join("pages-512.delete")).unwrap();
    let mut corrupted = whole.clone();
    corrupted[512..700].fill(0x55);
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (bytes, said) in [
        (&whole[..whole.len() - 512], "truncated"),
        (&whole[..700], "truncated"),
        (&whole[..10], "truncated"),
        (&corrupted[..], "damaged"),
        (&whole[100..5000], "neither"),
        (b"", "empty"),
        (b"CREATE TABLE t(a); INSERT INTO none VALUES (1);", "no such table: none"),
        (b"CREATE TABLE t(a);\nATTACH 'x' AS y;", "line 2: a script may not use other databases"),
        (b"CREATE TABLE t(a);\nATTACH '/tmp/x'||'.db' AS y;", "line 2: a script may not use other databases"),
        (b"\x1f\x8b\x08\x00\x00\x00", "gzip"),
    ] {
        let path = file("bad", bytes);
        let why =
            quire_fails(&["db", "import", text(&path), "--db", "form0", "--replace", "--http-addr", leader]);
        assert!(why.contains(said), "{said}: {why}");
    }
    let missing = dir.join("none");
    let why = quire_fails(&["db", "import", text(&missing), "--http-addr", leader]);
    assert!(why.contains("none") && why.contains("No such file"), "{why}");
    let why = quire_fails(&["db", "import", text(dir), "--http-addr", leader]);
    assert!(why.contains("directory"), "{why}");
    let path = file("good.sql", b"CREATE TABLE t(a);");
    for name in ["../x", "a/b", ""] {
        let why = quire_fails(&["restore", text(&path), "--db", name, "--http-addr", leader]);
        assert!(why.contains("can't name a database"), "{why}");
    }
    for (method, path, code, said) in [
        ("POST", "/db/load?db=form0", 400, "empty"),
        ("POST", "/db/load?db=..", 400, "can't name"),
        ("GET", "/db/backup?db=none", 404, "there is no database none"),
        ("GET", "/db/backup?db=form0&fmt=xml", 400, "binary, delete or sql"),
        ("GET", "/db/backup?db=form0&fmt=sql&tables=t,nix", 400, "no table nix"),
        ("GET", "/db/backup?db=form0&tables=t", 400, "fmt=sql"),
        ("POST", "/db/create?db=form0", 409, "already"),
        ("POST", "/db/create", 400, "db=NAME"),
        ("POST", "/db/create?db=x&page_size=1000", 400, "power of two"),
        ("GET", "/db/load", 405, "method"),
    ] {
        let (found, body) = http(leader, method, path, "");
        assert!(found == code && body.contains(said), "{method} {path}: {found} {body}");
    }
    // What fails creates nothing either.
    for (name, bytes) in [
        ("new-script", b"CREATE TABLE t(a); INSERT INTO none VALUES (1);".as_slice()),
        ("new-file", &whole[..700]),
    ] {
        let path = file("bad", bytes);
        quire_fails(&["db", "import", text(&path), "--db", name, "--http-addr", leader]);
        let (code, said) = http(leader, "GET", &format!("/db/backup?db={name}"), "");
        assert!(code == 404 && said.contains("there is no database"), "{name}: {code} {said}");
    }
    // A client that stops sending keeps no place: more of them than there are.
    let stalled: Vec<_> = (0..6)
        .map(|n| {
            let mut stream = TcpStream::connect(leader).unwrap();
            let path =
                if n % 2 == 0 { "/db/load?db=form0&idle=300ms" } else { "/db/load?db=new-idle&idle=300ms" };
            write!(
                stream,
                "POST {path} HTTP/1.1\r\nHost: q\r\nConnection: close\r\nContent-Length: 1000\r\n\r\nCREATE"
            )
            .unwrap();
            stream
        })
        .collect();
    let mut given_up = 0;
    for mut stream in stalled {
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        let late = answer.contains(" 408 ") && answer.contains("the upload was not completed");
        assert!(late || answer.contains("too many loads"), "{answer}");
        given_up += u32::from(late);
    }
    assert!(given_up >= 4, "{given_up}");
    assert_eq!(http(leader, "POST", "/db/load?db=form0", "SELECT 1").0, 200, "all places are free");
    // More than any disk has.
    let mut stream = TcpStream::connect(leader).unwrap();
    let head = "POST /db/load?db=form0 HTTP/1.1\r\nHost: q\r\nConnection: close\r\nContent-Length: 1000000000000000\r\n";
    write!(stream, "{head}\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.contains("507") && answer.contains("not enough room"), "{answer}");
    // One that is made by hand.
    let created = quire_json(&["db", "create", "by-hand", "--page-size", "1024", "--http-addr", leader]);
    assert_eq!(created["page_size"], 1024);
    // Nothing of all that has changed anything.
    let out = dir.join("form0.after");
    quire_json(&["backup", text(&out), "--db", "form0", "--http-addr", leader]);
    assert!(of_file(&out) == of_file(&dir.join("again-0")));
    let output = quire(&["backup", text(&dir.join("x")), "--http-addr", "127.0.0.1:1"]);
    assert!(!output.status.success() && !dir.join("x").exists() && !dir.join("x.partial").exists());
}

#[test]
fn an_import_that_is_cut_short_leaves_nothing() {
    if !have_app() {
        return;
    }
    let mut scene =
        Scene::start(&["--heartbeat-ms", "200", "--election-timeout-ms", "1500", "--part-kib", "256"]);
    let dir = tempfile::tempdir().unwrap();
    let large = make_large(&dir.path().join("large.db"));
    let small = dir.path().join("small.sql");
    std::fs::write(&small, "CREATE TABLE old(a); INSERT INTO old VALUES (1), (2);").unwrap();
    let (leader, follower) = (scene.leader(), scene.followers()[0]);
    let address = |node: u64| scene.test.cluster.node(node).unwrap().http.clone();
    quire_json(&["db", "import", text(&small), "--db", "goods", "--http-addr", &address(leader)]);
    scene.test.cluster.wait_applied("goods", PATIENCE).unwrap();

    let mut import = Command::new(&programs().quire)
        .args(["db", "import", text(&large), "--db", "goods", "--replace", "--http-addr", &address(follower)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let node = scene.test.cluster.node(follower).unwrap();
    let parts = |_: &_| {
        let found = node.status().and_then(|s| s["store"]["databases"].as_array().cloned());
        let goods = found.and_then(|list| list.into_iter().find(|db| db["name"] == "goods"));
        goods.is_some_and(|db| db["unfinished_parts"].as_u64() >= Some(3))
    };
    scene.test.cluster.wait("some parts of the import", PATIENCE, parts).unwrap();
    scene.test.cluster.node(leader).unwrap().signal(Signal::SIGKILL).unwrap();
    assert!(!import.wait().unwrap().success());
    scene.test.cluster.kill(leader).unwrap();

    let rest = scene.test.cluster.wait_leader(PATIENCE).unwrap();
    let out = dir.path().join("out.db");
    let http = scene.test.cluster.node(rest).unwrap().http.clone();
    quire_json(&["backup", text(&out), "--db", "goods", "--http-addr", &http]);
    assert!(of_file(&out).contains("INSERT INTO \"old\" VALUES(2);") && !of_file(&out).contains("big"));
    scene.test.cluster.start_node(leader).unwrap();
    scene.wait_ready(leader);
    assert_identical(&scene.test, "goods", &[".dump"]);
    let left: Vec<_> = scene
        .test
        .cluster
        .nodes
        .iter()
        .flat_map(|node| node.dir.join("staging").read_dir().unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // And now all of it, where the old leader was.
    quire_json(&["db", "import", text(&large), "--db", "goods", "--replace", "--http-addr", &http]);
    assert_identical(&scene.test, "goods", &["SELECT count(*), sum(length(body)) FROM big"]);
}
