//! The loadable extension as hosts see it: its symbols, the places at which it takes SQLite's functions, and
//! how it behaves in the machine's `sqlite3` and Python while no node runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{cli, python, run};
use quire_vfs::shim::ffi::{MIN_SQLITE, ROUTINES};
use quire_vfs::shim::vfs::{MARKER, SOCKET};
use std::path::{Path, PathBuf};
use std::process::Command;

const ENTRY_POINTS: [&str; 3] =
    ["sqlite3_extension_init", "sqlite3_quiredefault_init", "sqlite3_quirevfs_init"];

/// The extension that was built along with this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let places = [deps.join("libquire_vfs.so"), deps.parent().unwrap().join("libquire_vfs.so")];
    let built = places.into_iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    built.max().unwrap_or_else(|| panic!("no libquire_vfs.so beside {}", deps.display())).1
}

/// A host process with nothing of Quire in its environment.
fn host(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS");
    command
}

/// `SELECT load_extension(…)` with an entry point.
fn load(entry: &str) -> String {
    format!("SELECT load_extension('{}', '{entry}');", library().display())
}

/// Output, errors and success of a `sqlite3` that is given arguments after its database.
fn shell(cli: &Path, db: &str, script: &[&str]) -> (String, String, bool) {
    let output = host(cli).args(["-batch", "-bail", db]).args(script).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.success())
}

#[test]
fn symbols() {
    let nm = Path::new("/usr/bin/nm");
    if !nm.exists() {
        assert!(std::env::var_os("CI").is_none(), "nm is missing, and CI must not skip what needs it");
        eprintln!("skipped: nm is not installed");
        return;
    }
    let list = run(Command::new(nm).arg("-D").arg(library()));
    let mut defined = vec![];
    for line in list.lines() {
        let mut words = line.split_whitespace().rev();
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        if kind == "U" || kind.eq_ignore_ascii_case("w") {
            assert!(!name.starts_with("sqlite3"), "{name} is to be taken from the host's table");
        } else {
            defined.push(name);
        }
    }
    defined.sort_unstable();
    let sqlite: Vec<_> = defined.iter().copied().filter(|name| name.starts_with("sqlite3")).collect();
    assert_eq!(sqlite, ENTRY_POINTS);
    assert_eq!(defined, ENTRY_POINTS, "nothing else may clash with a host's symbols");
}

/// The members of `struct sqlite3_api_routines`, in order.
fn members(header: &str) -> Vec<String> {
    let (_, rest) = header.split_once("struct sqlite3_api_routines {").unwrap();
    let (body, _) = rest.split_once("\n};").unwrap();
    let mut code = String::new();
    let mut rest = body;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").unwrap().1;
    }
    code.push_str(rest);
    let declarations = code.split(';').map(str::trim).filter(|declaration| !declaration.is_empty());
    declarations
        .map(|declaration| {
            // `type (*name)(arguments)`: the name stands before the first closing parenthesis.
            let (head, _) = declaration.split_once(')').unwrap();
            head.rsplit('*').next().unwrap().to_owned()
        })
        .collect()
}

/// Headers of as many versions as this machine has.
fn headers() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/usr/include/sqlite3ext.h")];
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    for registry in cargo.into_iter().flat_map(|cargo| entries(cargo.join("registry/src"))) {
        for package in entries(registry) {
            let name = package.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("libsqlite3-sys-") {
                found.push(package.join("sqlite3/sqlite3ext.h"));
            }
        }
    }
    found.retain(|path| path.exists());
    found
}

#[test]
fn places_of_the_routines_are_those_of_the_header() {
    let headers = headers();
    if headers.is_empty() {
        eprintln!("skipped: no sqlite3ext.h on this machine");
    }
    for header in headers {
        let members = members(&std::fs::read_to_string(&header).unwrap());
        assert_eq!(members[0], "aggregate_context", "{}", header.display());
        for (name, place) in ROUTINES {
            // The header calls `sqlite3_vfs_register` by the name that the table's macros give it.
            assert_eq!(members[place], name, "{}", header.display());
        }
        println!("{}: {} routines", header.display(), members.len());
    }
    assert!(rusqlite::version_number() >= MIN_SQLITE);
}

#[test]
fn loads_into_sqlite3() {
    let Some(cli) = cli() else { return };
    for entry in ENTRY_POINTS {
        let (out, err, ok) = shell(cli, ":memory:", &[&load(entry), ".vfslist"]);
        assert!(ok && err.is_empty(), "{entry}: {err}");
        assert!(out.contains("\"quire\""), "{entry}: {out}");
        assert_eq!(out.contains("\"quire-default\""), entry == "sqlite3_quiredefault_init", "{entry}: {out}");
    }
    // By the file's name alone, twice, and then as the default too.
    let by_name = format!(".load {}", library().display());
    let script = [by_name.as_str(), &by_name, &load("sqlite3_quiredefault_init"), ".vfslist"];
    let (out, err, ok) = shell(cli, ":memory:", &script);
    assert!(ok && err.is_empty(), "{err}");
    assert_eq!(out.matches("\"quire\"").count(), 1, "{out}");
    let name = out.lines().find(|line| line.contains("vfs.zName"));
    assert!(name.is_some_and(|line| line.contains("\"quire-default\"")), "the default comes first: {out}");
}

#[test]
fn the_environment_makes_it_the_default() {
    let Some(cli) = cli() else { return };
    let by_name = format!(".load {}", library().display());
    for (value, expected) in [("1", true), ("0", false), ("", false)] {
        let mut command = host(cli);
        command.env("QUIRE_DEFAULT_VFS", value).args(["-batch", "-bail", ":memory:", &by_name, ".vfslist"]);
        assert_eq!(run(&mut command).contains("\"quire-default\""), expected, "QUIRE_DEFAULT_VFS={value}");
    }
}

#[test]
fn loads_into_python() {
    let Some(python) = python() else { return };
    let script = "
import os, sqlite3, sys, tempfile
db = sqlite3.connect(':memory:')
db.enable_load_extension(True)
db.load_extension(sys.argv[1])
db.close()
# It stays when the connection that loaded it is gone.
home = tempfile.mkdtemp()
for flags in ['', '&mode=ro', '&mode=rwc', '&node=' + home + '/elsewhere.sock']:
    try:
        sqlite3.connect(f'file:{home}/a.db?vfs=quire{flags}', uri=True)
        print('opened')
    except sqlite3.OperationalError as error:
        print(error, getattr(error, 'sqlite_errorname', 'SQLITE_CANTOPEN'))
print(os.listdir(home))
db = sqlite3.connect(home + '/plain.db')
db.execute('PRAGMA journal_mode = wal')
db.execute('CREATE TABLE t(a)')
db.execute('INSERT INTO t VALUES (1)')
db.commit()
print(db.execute('SELECT a FROM t').fetchall())
";
    let out = run(host(python).arg("-c").arg(script).arg(library()));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 6, "{out}");
    for line in &lines[..4] {
        assert_eq!(*line, "unable to open database file SQLITE_CANTOPEN");
    }
    assert_eq!(lines[4..], ["[]", "[(1,)]"], "a refused open creates nothing; plain databases work");
}

#[test]
fn no_node_no_database() {
    let Some(cli) = cli() else { return };
    let dir = tempfile::tempdir().unwrap();
    let by_name = format!(".load {}", library().display());
    let refused = |uri: &str| {
        let attach = format!("ATTACH '{uri}' AS a;");
        let (out, err, ok) = shell(cli, ":memory:", &[&by_name, ".log stderr", &attach]);
        assert!(!ok && out.is_empty(), "{uri}: {out}{err}");
        assert!(err.contains("unable to open database"), "{uri}: {err}");
        assert!(err.contains("(14) quire: "), "{uri}: {err}");
        err
    };

    let socket = dir.path().join(SOCKET);
    let err = refused(&format!("file:{}/a.db?vfs=quire", dir.path().display()));
    assert!(err.contains(socket.to_str().unwrap()) && err.contains("no node answers"), "{err}");

    let elsewhere = dir.path().join("elsewhere.sock");
    let err = refused(&format!("file:{}/a.db?vfs=quire&node={}", dir.path().display(), elsewhere.display()));
    assert!(err.contains(elsewhere.to_str().unwrap()), "{err}");

    // A socket at which nobody listens any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let err = refused(&format!("file:{}/a.db?vfs=quire", dir.path().display()));
    assert!(err.contains(socket.to_str().unwrap()), "{err}");

    let err = refused(&format!("file:{}/a.sqlite?vfs=quire", dir.path().display()));
    assert!(err.contains("a.sqlite") && err.contains("NAME.db"), "{err}");
    let err = refused(&format!("file:{}/none/a.db?vfs=quire", dir.path().display()));
    assert!(err.contains("none"), "{err}");
    for parameter in ["immutable=1", "nolock=1"] {
        let err = refused(&format!("file:{}/a.db?vfs=quire&{parameter}", dir.path().display()));
        assert!(err.contains("would read past the WAL"), "{err}");
    }
    let err = refused(&format!("file:{}/a.db?vfs=quire&page_size=1000", dir.path().display()));
    assert!(err.contains("page_size=1000"), "{err}");
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a refused open leaves nothing");
}

const PLAIN_SQL: &str = "
    CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB);
    INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 3000)
    SELECT i, printf('%08d', i * 7919 % 3001), zeroblob(i % 50) FROM c;
    CREATE INDEX t_a ON t(a);
    DELETE FROM t WHERE id % 3 = 0;
    VACUUM;
    BEGIN; UPDATE t SET a = a || 'x'; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT;
    BEGIN; DELETE FROM t; ROLLBACK;
    PRAGMA integrity_check;
    SELECT count(*), sum(length(a)), sum(length(b)) FROM t;";

#[test]
fn databases_that_are_not_replicated_are_as_in_plain_sqlite() {
    let Some(cli) = cli() else { return };
    let dir = tempfile::tempdir().unwrap();
    let default = load("sqlite3_quiredefault_init");
    for mode in ["delete", "truncate", "persist", "wal", "memory", "off"] {
        for exclusive in ["normal", "exclusive"] {
            let pragmas = format!("PRAGMA locking_mode = {exclusive}; PRAGMA journal_mode = {mode};");
            // Without a journal there is no way back.
            let sql = if mode == "off" { "CREATE TABLE t(a); INSERT INTO t VALUES (1);" } else { PLAIN_SQL };
            let [plain, shimmed] = ["plain", "shimmed"].map(|name| {
                let home = dir.path().join(format!("{name}-{mode}-{exclusive}"));
                std::fs::create_dir(&home).unwrap();
                home.join("app.db")
            });
            let script = [pragmas.as_str(), "PRAGMA cache_size = 10;", sql];
            let (expected, err, ok) = shell(cli, plain.to_str().unwrap(), &script);
            assert!(ok && err.is_empty(), "{err}");

            let open = format!(".open {}", shimmed.display());
            let script = [default.as_str(), &open, &pragmas, "PRAGMA cache_size = 10;", sql];
            let (found, err, ok) = shell(cli, ":memory:", &script);
            assert!(ok && err.is_empty(), "{mode}: {err}");
            assert_eq!(found.trim_start(), expected.trim_start(), "{mode}");
            let bytes = |path: &Path| std::fs::read(path).unwrap();
            assert!(bytes(&plain) == bytes(&shimmed), "journal_mode={mode}: the files differ");
            let files = |path: &Path| {
                let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(files(&plain), files(&shimmed), "{mode}: journals are removed alike");
        }
    }
}

/// What the default VFS takes for ours: `NAME.db` in a directory that a node has marked.
#[test]
fn the_default_vfs_knows_a_nodes_directory() {
    let Some(cli) = cli() else { return };
    let dir = tempfile::tempdir().unwrap();
    let marked = dir.path().join("db");
    std::fs::create_dir(&marked).unwrap();
    std::fs::write(marked.join(MARKER), "").unwrap();
    let default = load("sqlite3_quiredefault_init");
    // `.open`, as a connection keeps to the VFS that was the default when it was made.
    let open = |name: &str| {
        let open = format!(".open {}", marked.join(name).display());
        shell(cli, ":memory:", &[&default, ".log stderr", &open, "CREATE TABLE t(x);"])
    };
    let (_, err, _) = open("app.db");
    assert!(err.contains("no node answers"), "{err}");
    assert!(err.contains(marked.join(SOCKET).to_str().unwrap()), "{err}");
    assert!(!marked.join("app.db").exists());
    let (_, err, ok) = open("notes.sqlite");
    assert!(ok, "another file in the same directory passes through: {err}");
    assert!(marked.join("notes.sqlite").exists());

    // Nor does a refused open touch what a node left there.
    let wal = marked.join("app.db-wal");
    std::fs::write(&wal, "x").unwrap();
    let (_, err, _) = open("app.db");
    assert!(err.contains("no node answers"), "{err}");
    assert_eq!(std::fs::read(&wal).unwrap(), b"x");
}

#[test]
fn temporary_files_pass_through() {
    let Some(cli) = cli() else { return };
    let dir = tempfile::tempdir().unwrap();
    let sql = "
        PRAGMA temp_store = 1; PRAGMA cache_size = 5; PRAGMA temp.cache_size = 5;
        CREATE TEMP TABLE s(a, b);
        INSERT INTO s WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000)
        SELECT i * 7919 % 20011, zeroblob(100) FROM c;
        CREATE INDEX temp.s_a ON s(a);
        SELECT count(*), max(a) FROM (SELECT a, b FROM s ORDER BY b, a DESC LIMIT 15000);
        ATTACH '' AS scratch; PRAGMA scratch.cache_size = 5;
        CREATE TABLE scratch.u AS SELECT a, b FROM s;
        BEGIN; UPDATE scratch.u SET b = zeroblob(200); ROLLBACK;
        SELECT count(*), sum(length(b)) FROM scratch.u;";
    let path = dir.path().join("app.db");
    let open = format!(".open {}", path.display());
    let out = |script: &[&str]| {
        let (out, err, ok) = shell(cli, ":memory:", script);
        assert!(ok && err.is_empty(), "{err}");
        out
    };
    let expected = out(&[&open, sql]);
    assert_eq!(expected, "15000|20010\n20000|2000000\n");
    assert_eq!(out(&[&load("sqlite3_quiredefault_init"), &open, sql]).trim_start(), expected);
    // With ours named for the connection's files, and an in-memory main database.
    let by_name = format!(".load {}", library().display());
    assert_eq!(out(&[&by_name, "ATTACH 'file::memory:?vfs=quire' AS m;", sql]), expected);
    assert_eq!(out(&[&by_name, "ATTACH 'file:?vfs=quire' AS m; CREATE TABLE m.t(a);", sql]), expected);
}
