//! The gate's socket, spoken to by somebody who doesn't keep to the protocol.

use crate::{PATIENCE, assert_locked};
use quire_tests::admin::quire_json;
use quire_tests::hosts::{Host, Program};
use quire_tests::replicas::{assert_identical, database, steady};
use quire_vfs::format::transaction::{Before, Piece, TxnId, encode_head, encode_piece};
use quire_vfs::format::wal::Salts;
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::proto::{
    Hello, MAX_RESPONSE, Outcome, ReadGoal, RefusalCode, Request, Response, WalTarget, commit_buffer,
    finish_commit, finish_part, message_length,
};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection that sends what it likes.
struct Raw(UnixStream);

impl Raw {
    fn connect(directory: &Path) -> Raw {
        let stream = UnixStream::connect(directory.join("quire.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw(stream)
    }

    /// Connects and is welcome.
    fn greeted(directory: &Path) -> Raw {
        let mut raw = Raw::connect(directory);
        raw.send(&greeting(hello(directory, "app")));
        assert!(matches!(raw.receive(), Some(Response::Welcome { .. })));
        raw
    }

    /// Sends; the other side may have had enough already.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next message; `None` once the node has closed the connection.
    fn receive(&mut self) -> Option<Response> {
        let mut prefix = [0; 4];
        if let Err(error) = self.0.read_exact(&mut prefix) {
            let closed = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "the node neither answers nor closes: {error}");
            return None;
        }
        let mut body = vec![0; message_length(prefix, MAX_RESPONSE).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        Some(Response::decode(&body).unwrap())
    }

    fn acquire(&mut self) -> u64 {
        self.send(&Request::Acquire { wait_ms: 10_000 }.encode());
        match self.receive() {
            Some(Response::Granted { token, .. }) => token,
            other => panic!("{other:?} in answer to Acquire"),
        }
    }
}

fn hello(directory: &Path, name: &str) -> Hello {
    let metadata = std::fs::metadata(directory).unwrap();
    let directory = (metadata.dev(), metadata.ino());
    Hello {
        create: true,
        read_only: false,
        pid: std::process::id(),
        page_size: None,
        directory,
        name: name.into(),
    }
}

fn greeting(hello: Hello) -> Vec<u8> {
    Request::Hello(hello).encode()
}

/// A Commit whose transaction is well-formed.
fn commit(token: u64) -> Vec<u8> {
    let mut message = commit_buffer(8192);
    encode_head(&mut message, TxnId([7; 16]), PageSize::DEFAULT, 1, &[PageNo(1)], 0);
    message.resize(message.len() + PageSize::DEFAULT.bytes(), 0);
    finish_commit(message, token, &WalTarget { salts: Salts([1; 8]), frame: FrameNo(1) })
}

#[test]
fn whoever_breaks_the_protocol_harms_only_himself() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(1, &[]);
    let path = database(&test, 1, "app");
    let directory = path.parent().unwrap();
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(a)").unwrap();
    let mut written = 0;
    let mut unharmed = |host: &mut Host, after: &str| {
        written += 1;
        host.sql(&format!("INSERT INTO t VALUES ({written})"))
            .unwrap_or_else(|why| panic!("after {after}: {why}"));
        assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), [written.to_string()], "after {after}");
    };

    // Names that are none.
    let long = "x".repeat(65);
    let names = [
        "..",
        "../app",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "",
        "a b",
        "a\0b",
        ".app",
        "-app",
        "a..b",
        "ä",
        "a\nb",
        &long,
    ];
    for name in names {
        let mut raw = Raw::connect(directory);
        raw.send(&greeting(hello(directory, name)));
        match raw.receive() {
            Some(Response::Refused(refusal)) => {
                assert_eq!(refusal.code, RefusalCode::Invalid, "{name:?}: {refusal}");
                assert!(refusal.message.contains("can't name a database"), "{name:?}: {refusal}");
            }
            other => panic!("{name:?}: {other:?}"),
        }
        assert_eq!(raw.receive(), None, "{name:?}");
    }
    unharmed(&mut host, "bad names");

    // Greetings that don't fit.
    let refused = |hello: Hello| {
        let mut raw = Raw::connect(directory);
        raw.send(&greeting(hello.clone()));
        match raw.receive() {
            Some(Response::Refused(refusal)) => (refusal.code, refusal.message),
            other => panic!("{hello:?}: {other:?}"),
        }
    };
    let good = hello(directory, "app");
    let (code, message) = refused(Hello { directory: (1, 2), ..good.clone() });
    assert_eq!(code, RefusalCode::Invalid);
    assert!(message.contains(directory.to_str().unwrap()), "{message}");
    let (code, message) = refused(Hello { name: "nothing".into(), create: false, ..good.clone() });
    assert_eq!(code, RefusalCode::NotFound);
    assert!(message.contains("nothing"), "{message}");
    let (code, _) = refused(Hello { page_size: PageSize::new(512), ..good.clone() });
    assert_eq!(code, RefusalCode::Invalid);
    let mut newer = greeting(good.clone());
    newer[6] = 99;
    let mut raw = Raw::connect(directory);
    raw.send(&newer);
    match raw.receive() {
        Some(Response::Refused(refusal)) => assert!(refusal.message.contains("protocol 99"), "{refusal}"),
        other => panic!("{other:?}"),
    }

    // Bytes that are no messages, before and after the greeting.
    let acquire = Request::Acquire { wait_ms: 10 }.encode();
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("zeros", vec![0; 64]),
        ("ones", vec![0xff; 64]),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("an oversized length", (u32::MAX).to_le_bytes().to_vec()),
        ("a length beyond a transaction's", (100u32 << 20).to_le_bytes().to_vec()),
        ("an unknown kind", vec![1, 0, 0, 0, 77]),
        ("a message that is too long", [&9u32.to_le_bytes()[..], &acquire[4..], &[0]].concat()),
        ("a message that is too short", [&5u32.to_le_bytes()[..], &acquire[4..9]].concat()),
        ("a Read with no goal", [&16u32.to_le_bytes()[..], &[7, 9], &[0; 14]].concat()),
        ("a Read of an age beyond all", [&16u32.to_le_bytes()[..], &[7, 2], &[0; 6], &[0xff; 8]].concat()),
        ("a Commit without a transaction", [&48u32.to_le_bytes()[..], &[3], &[0; 47]].concat()),
        (
            "a Commit with a broken transaction",
            [&148u32.to_le_bytes()[..], &[3], &[0; 47], &[9; 100]].concat(),
        ),
    ];
    for (what, bytes) in &garbage {
        for greeted in [false, true] {
            let mut raw = if greeted { Raw::greeted(directory) } else { Raw::connect(directory) };
            raw.send(bytes);
            let mut answers = 0;
            while let Some(answer) = raw.receive() {
                answers += 1;
                assert!(matches!(answer, Response::Refused(_)) && answers < 2, "{what}: {answer:?}");
            }
        }
        unharmed(&mut host, what);
    }
    // Half a message, and then nothing, or the end.
    let mut half = Raw::connect(directory);
    half.send(&greeting(good.clone())[..10]);
    let mut cut = Raw::greeted(directory);
    cut.send(&acquire[..6]);
    drop(cut);
    unharmed(&mut host, "half a message");
    assert_eq!(half.receive(), None, "a greeting has to be complete in time");

    // Messages at the wrong time.
    let mut raw = Raw::connect(directory);
    raw.send(&acquire);
    assert_eq!(raw.receive(), None, "Acquire before Hello");
    let mut raw = Raw::greeted(directory);
    raw.send(&greeting(good.clone()));
    assert_eq!(raw.receive(), None, "a second Hello");
    let mut holder = Raw::greeted(directory);
    let token = holder.acquire();
    let mut raw = Raw::greeted(directory);
    raw.send(&Request::Acquire { wait_ms: 10_000 }.encode());
    raw.send(&Request::Acquire { wait_ms: 10_000 }.encode());
    assert_eq!(raw.receive(), None, "a message while waiting");
    let future = Request::Read { goal: ReadGoal::Index(u64::MAX), wait_ms: 100 }.encode();
    let mut raw = Raw::greeted(directory);
    raw.send(&future);
    match raw.receive() {
        Some(Response::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Unavailable, "{refusal}"),
        other => panic!("{other:?} in answer to a Read of the future"),
    }
    raw.send(&Request::Read { goal: ReadGoal::Index(u64::MAX), wait_ms: u32::MAX }.encode());
    raw.send(&future);
    assert_eq!(raw.receive(), None, "a message while waiting for a read");

    // Another's lease: neither used nor ended.
    for token in [token, token + 1, 0, u64::MAX] {
        let mut thief = Raw::greeted(directory);
        thief.send(&commit(token));
        match thief.receive() {
            // Nobody but a lease's holder need be allowed so long a message.
            None => {}
            Some(Response::Outcome(Outcome::Refused(why))) => assert!(why.contains("lease"), "{why}"),
            other => panic!("a Commit without a grant: {other:?}"),
        }
        let mut thief = Raw::greeted(directory);
        thief.send(&Request::Release { token, linger: false }.encode());
        thief.send(&Request::Acquire { wait_ms: 10 }.encode());
        match thief.receive() {
            Some(Response::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Busy, "{refusal}"),
            other => panic!("{other:?} in answer to Acquire, after a forged Release"),
        }
    }
    host.sql("PRAGMA busy_timeout = 0").unwrap();
    assert_locked(&mut host, "BEGIN IMMEDIATE");
    host.sql("PRAGMA busy_timeout = 20000").unwrap();
    drop(holder);
    unharmed(&mut host, "a forged token");

    // A Commit that comes after its outcome was asked for: what was said stays true.
    let mut late = Raw::greeted(directory);
    let token = late.acquire();
    let id = TxnId([7; 16]).to_string();
    let http = test.cluster.node(1).unwrap().http.clone();
    let outcome = quire_json(&["tx", &id, "--db", "app", "--http-addr", &http]);
    assert_eq!(outcome["outcome"], "not in the log", "{outcome}");
    late.send(&commit(token));
    match late.receive() {
        Some(Response::Outcome(Outcome::Refused(why))) => assert!(why.contains("asked for before"), "{why}"),
        other => panic!("{other:?} in answer to a Commit that was said not to be in the log"),
    }
    drop(late);
    unharmed(&mut host, "a late Commit");

    // A question for a transaction that never was.
    let mut thief = Raw::greeted(directory);
    let target = WalTarget { salts: Salts([1; 8]), frame: FrameNo(1) };
    thief.send(&Request::Resolve { base: 1, target, id: TxnId([9; 16]) }.encode());
    match thief.receive() {
        Some(Response::Outcome(Outcome::Refused(_))) => {}
        other => panic!("{other:?} in answer to Resolve"),
    }
    unharmed(&mut host, "a question for a transaction that never was");
    let token = thief.acquire();
    thief.send(&Request::Release { token, linger: false }.encode());
    unharmed(&mut host, "all of that");

    let names: Vec<_> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    let foreign = names.iter().filter(|name| !name.to_str().unwrap().starts_with("app.db")).count();
    assert_eq!(foreign, 2, "only the marker and the socket: {names:?}");
    assert!(test.cluster.node(1).unwrap().status().is_some());
    drop(host);
    assert_identical(&test, "app", &["SELECT count(*) FROM t"]);
}

/// A piece of a transaction with one page, to be finished as a Part or a Commit.
fn piece(piece: Piece, page: u32) -> Vec<u8> {
    let mut message = commit_buffer(8192);
    encode_piece(&mut message, piece, TxnId([8; 16]), PageSize::DEFAULT, 9, &[PageNo(page)], 0);
    message.resize(message.len() + PageSize::DEFAULT.bytes(), 0);
    message
}

#[test]
fn parts_that_make_no_transaction_are_refused() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(1, &[]);
    let path = database(&test, 1, "app");
    let directory = path.parent().unwrap();
    let mut host = Host::open(Program::Cli, &path);
    host.sql("CREATE TABLE t(a)").unwrap();
    let target = WalTarget { salts: Salts([1; 8]), frame: FrameNo(1) };
    let part = |sequence, page, token| finish_part(piece(Piece::Part { sequence }, page), token);
    let last = |parts, page, token| {
        let before = Before { parts, pages: parts, fills: 0 };
        finish_commit(piece(Piece::Last(before), page), token, &target)
    };
    let refused = |raw: &mut Raw, message: &[u8], why: &str| {
        raw.send(message);
        match raw.receive() {
            Some(Response::Outcome(Outcome::Refused(said))) => assert!(said.contains(why), "{why}: {said}"),
            other => panic!("{why}: {other:?}"),
        }
    };
    let taken = |raw: &mut Raw, message: &[u8], n| {
        raw.send(message);
        assert_eq!(raw.receive(), Some(Response::Taken { sequence: n }));
    };

    // In the wrong order, in pieces that don't fit, or without their end.
    let mut raw = Raw::greeted(directory);
    let token = raw.acquire();
    refused(&mut raw, &part(1, 3, token), "the parts before it are void");
    refused(&mut raw, &last(1, 3, token), "the parts before its last one are void");
    refused(&mut raw, &part(0, 3, token + 1), "the lease has expired");
    taken(&mut raw, &part(0, 3, token), 0);
    refused(&mut raw, &last(2, 5, token), "the parts before its last one are void");
    refused(&mut raw, &last(1, 3, token), "the parts before its last one are void");
    refused(&mut raw, &part(1, 3, token), "does not continue");
    refused(&mut raw, &part(1, 4, token), "void");
    refused(&mut raw, &last(1, 4, token), "void");
    taken(&mut raw, &part(0, 3, token), 0);
    taken(&mut raw, &part(1, 4, token), 1);
    raw.send(&Request::Release { token, linger: false }.encode());
    host.sql("INSERT INTO t VALUES (1)").unwrap();
    let token = raw.acquire();
    refused(&mut raw, &last(2, 5, token), "void");
    taken(&mut raw, &part(0, 3, token), 0);
    drop(raw);

    // What is no part, or more than one.
    for what in ["a whole transaction as a part", "a part as a commit", "too long a part", "a part too early"]
    {
        let mut raw = Raw::greeted(directory);
        let token = if what == "a part too early" { 1 } else { raw.acquire() };
        raw.send(&match what {
            "a whole transaction as a part" => finish_part(piece(Piece::Whole, 1), token),
            "a part as a commit" => finish_commit(piece(Piece::Part { sequence: 0 }, 1), token, &target),
            "too long a part" => [&(5u32 << 20).to_le_bytes()[..], &[6]].concat(),
            _ => part(0, 1, token),
        });
        assert_eq!(raw.receive(), None, "{what}");
        host.sql("INSERT INTO t VALUES (2)").unwrap_or_else(|why| panic!("after {what}: {why}"));
    }
    assert_eq!(host.sql("SELECT count(*) FROM t").unwrap(), ["5"]);
    let is_left = |name: &std::ffi::OsStr| name.to_str().unwrap().contains("-parts-");
    let gone = |_: &_| std::fs::read_dir(directory).unwrap().all(|e| !is_left(&e.unwrap().file_name()));
    test.cluster.wait("staged parts to be gone", PATIENCE, gone).unwrap();
    drop(host);
    assert_identical(&test, "app", &["SELECT count(*) FROM t"]);
}
