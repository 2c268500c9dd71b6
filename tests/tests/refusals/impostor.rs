//! An app whose node is none, is of another version, or is not for this user: a clear line, and no harm.

use quire_tests::hosts::{Host, Load, PATIENCE, Program, skip, uri};
use quire_tests::programs;
use quire_tests::replicas::{database, steady};
use quire_vfs::format::PageSize;
use quire_vfs::gate::proto::{MAX_SMALL, Outcome, Request, Response, message_length};
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Answers each connection's first message with the first of these, and so on; then it hangs up.
fn impostor(socket: &Path, answers: Vec<Vec<u8>>) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            serve(stream, &answers);
        }
    });
}

fn serve(mut stream: UnixStream, answers: &[Vec<u8>]) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for answer in answers {
        let mut prefix = [0; 4];
        if stream.read_exact(&mut prefix).is_err() {
            return;
        }
        let mut body = vec![0; message_length(prefix, MAX_SMALL).unwrap()];
        stream.read_exact(&mut body).unwrap();
        assert!(Request::decode(&body).is_ok());
        if let Err(error) = stream.write_all(answer) {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
    }
}

fn welcome() -> Vec<u8> {
    let welcome = Response::Welcome {
        page_size: PageSize::DEFAULT,
        node_id: 1,
        commit_deadline_ms: 2000,
        max_transaction: 1 << 30,
        wal_limit: 1 << 30,
        part_bytes: 1 << 20,
    };
    welcome.encode()
}

#[test]
fn a_node_that_talks_nonsense_is_told_from_one_that_is_away() {
    if !Program::Cli.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    // Keeps the wal-index in order, as a node would.
    let mut keeper = Host::start(Program::Cli, Load::Nothing);
    keeper.connect(path.to_str().unwrap()).unwrap();
    keeper.sql("PRAGMA journal_mode = WAL; CREATE TABLE t(a)").unwrap();
    let mut count = 0;
    let mut host_of = |answers: Vec<Vec<u8>>| {
        count += 1;
        let socket = dir.path().join(format!("{count}.sock"));
        impostor(&socket, answers);
        let mut host = Host::start(Program::Cli, Load::Vfs);
        let opened = host.connect(&format!("{}&node={}", uri(&path), socket.display()));
        (host, opened)
    };

    let mut newer = welcome();
    newer[6..8].copy_from_slice(&99u16.to_le_bytes());
    let long = (MAX_SMALL as u32 + 1).to_le_bytes().to_vec();
    let outcome = Response::Outcome(Outcome::Committed(1)).encode();
    for (what, answer, why) in [
        ("another version", newer, "the node speaks gate protocol 99, this VFS 3: use the libquire_vfs"),
        ("zeros", vec![0; 64], "does not speak this VFS's protocol"),
        ("text", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "does not speak this VFS's protocol"),
        ("a length that is too much", long, "does not speak this VFS's protocol"),
        ("the wrong answer", outcome.clone(), "in answer to Hello"),
        ("half an answer", welcome()[..20].to_vec(), "the node closed the connection"),
        ("nothing", vec![], "the node closed the connection"),
    ] {
        let (host, opened) = host_of(vec![answer]);
        assert!(opened.unwrap_err().contains("unable to open database"), "{what}");
        assert!(host.log().contains(why), "{what}: {}", host.log());
    }

    // One that is well-behaved at first.
    let (mut host, opened) = host_of(vec![welcome(), outcome]);
    opened.unwrap();
    let said = host.sql("PRAGMA quire_status").unwrap_err();
    assert!(said.contains("in answer to Status"), "{said}");
    host.sql("PRAGMA quire_reads = linearizable").unwrap();
    let refused = host.sql("SELECT * FROM t").unwrap_err();
    assert!(refused.contains("disk I/O error"), "{refused}\n{}", host.log());
    assert!(host.log().contains("in answer to Read"), "{}", host.log());
    host.sql("PRAGMA quire_reads = local").unwrap();
    let refused = host.sql("INSERT INTO t VALUES (1)").unwrap_err();
    assert!(refused.contains("database is locked"), "{refused}\n{}", host.log());
    assert!(host.log().contains("in answer to Acquire"), "{}", host.log());
    assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), ["0"]);
    host.close();
}

#[test]
fn who_may_not_use_the_socket_is_told_so() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(1, &[]);
    let path = database(&test, 1, "app");
    Host::open(Program::Cli, &path).close();
    // Everybody may come as far as the socket.
    let directory = path.parent().unwrap();
    let extension = test.dir.path().join("libquire_vfs.so");
    std::fs::copy(&programs().extension, &extension).unwrap();
    let socket = directory.join("quire.sock");
    for open in [test.dir.path(), directory.parent().unwrap(), directory, &extension] {
        std::fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    let mut sqlite = Command::new(Program::Cli.path());
    if nix::unistd::geteuid().is_root() {
        sqlite.uid(65534).gid(65534);
    } else {
        // Nor may its own user, then.
        std::fs::set_permissions(&socket, Permissions::from_mode(0o000)).unwrap();
    }
    sqlite.args(["-batch", ":memory:", ".log stderr", &format!(".load {}", extension.display())]);
    sqlite.arg(format!(".open {}", uri(&path))).stdin(Stdio::null()).current_dir("/");
    let output = sqlite.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).replace("\n(14) quire: ...", "");
    if said.contains("Operation not permitted") {
        return skip("another user can't be had here");
    }
    let why = format!("this user may not talk to the node at {}: Permission denied", socket.display());
    assert!(said.contains(&why) && said.contains("--socket-group"), "{said}");
}
