//! Writes the seed corpora under `fuzz/seeds`, always the same: `RUSTFLAGS="--cfg fuzzing" cargo run --example seeds` in `fuzz/`. Many are golden
//! files (`tests/golden`), behind the bytes that tell the target what they are.

use bytes::Bytes;
use quire_fuzz::command::{Command, DbId, PartHead, TransactionHead};
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::transaction::{Before, Piece, TxnId, encode_head, encode_piece};
use quire_vfs::format::wal::{ByteOrder, FrameHeader, Salts, WalHeader};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::proto::{Hello, Outcome, Refusal, RefusalCode, Request, Response, WalTarget};
use std::path::Path;

fn wal(order: ByteOrder, page_size: PageSize, frames: &[(u32, u32)]) -> Vec<u8> {
    let header = WalHeader { order, page_size, checkpoint_seq: 1, salts: Salts([7; 8]) };
    let (head, mut sum) = header.encode();
    let mut out = vec![0]; // The first byte says: a WAL as it is.
    out.extend_from_slice(&head);
    for &(page, commit_size) in frames {
        let data = vec![page as u8; page_size.bytes()];
        let (head, next) =
            FrameHeader { page: PageNo(page), commit_size }.encode(&data, header.salts, sum, order);
        out.extend_from_slice(&head);
        out.extend_from_slice(&data);
        sum = next;
    }
    out
}

fn transaction(page_size: PageSize, db_size: u32, pages: &[u32], fills: u32) -> Command {
    let head = TransactionHead {
        database: DbId(1),
        base: 2,
        lease_term: 3,
        checksum: DbChecksum(0x0123_4567_89ab_cdef),
        origin: 1,
    };
    let numbers: Vec<_> = pages.iter().map(|&page| PageNo(page)).collect();
    let mut body = Vec::new();
    encode_head(&mut body, TxnId([9; 16]), page_size, db_size, &numbers, fills);
    for &page in pages {
        body.extend(std::iter::repeat_n(if page > 2 { 0 } else { page as u8 }, page_size.bytes()));
    }
    Command::Transaction { head, body: Bytes::from(body) }
}

fn main() -> std::io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(seeds.join(target))?;
        std::fs::write(seeds.join(target).join(name), bytes)
    };
    let small = PageSize::new(512).expect("a page size");
    write("wal_scan", "header-only", &wal(ByteOrder::Little, PageSize::DEFAULT, &[]))?;
    write("wal_scan", "two-commits", &wal(ByteOrder::Little, small, &[(1, 0), (2, 2), (1, 2)]))?;
    write("wal_scan", "big-endian", &wal(ByteOrder::Big, small, &[(1, 1), (3, 0)]))?;
    // Odd: what `Arbitrary` makes of it is a log, and harm done to it.
    write("wal_scan", "structured", &[&[1u8][..], &[0x5a; 96]].concat())?;
    write("wal_scan", "structured-ascending", &(1..=160).collect::<Vec<u8>>())?;

    let create = Command::CreateDatabase { name: "main".into(), page_size: PageSize::DEFAULT };
    write("entry_decode", "create", &create.encode())?;
    write("entry_decode", "barrier", &Command::Barrier { nonce: 1 }.encode())?;
    write("entry_decode", "verify", &Command::Verify { files: true, scrub: false, nonce: 2 }.encode())?;
    write("entry_decode", "drop", &Command::DropDatabase { database: DbId(1) }.encode())?;
    write("entry_decode", "one-page", &transaction(small, 1, &[1], 0).encode())?;
    write("entry_decode", "with-fills", &transaction(small, 4, &[2, 3, 4], 2).encode())?;

    let piece = |piece, page| {
        let mut body = Vec::new();
        encode_piece(&mut body, piece, TxnId([9; 16]), small, 4, &[PageNo(page)], 0);
        body.extend_from_slice(&[page as u8; 512]);
        Bytes::from(body)
    };
    let part = PartHead { database: DbId(1), base: 2, lease_term: 3, origin: 1 };
    let part = Command::Part { head: part, body: piece(Piece::Part { sequence: 0 }, 1) };
    write("entry_decode", "part", &part.encode())?;
    let Command::Transaction { head, .. } = transaction(small, 1, &[1], 0) else { return Ok(()) };
    let last = Piece::Last(Before { parts: 1, pages: 1, fills: 0 });
    let last = Command::Transaction { head, body: piece(last, 2) };
    write("entry_decode", "last-part", &last.encode())?;
    let void = Command::Void { database: DbId(1), transaction: TxnId([9; 16]) };
    write("entry_decode", "void", &void.encode())?;

    // The first byte says which way it goes; the length in front of each message is not part of it.
    let (target, id) = (WalTarget { salts: Salts([7; 8]), frame: FrameNo(3) }, TxnId([9; 16]));
    let hello = Hello {
        create: true,
        read_only: false,
        pid: 1,
        page_size: Some(small),
        directory: (1, 2),
        name: "main".into(),
    };
    for (name, request) in [
        ("hello", Request::Hello(hello)),
        ("acquire", Request::Acquire { wait_ms: 5000 }),
        ("commit", Request::Commit { token: 1, target }),
        ("part", Request::Part { token: 1 }),
        ("release", Request::Release { token: 1, linger: true }),
        ("resolve", Request::Resolve { base: 1, target, id }),
    ] {
        write("gate_proto", name, &[&[0], &request.encode()[4..]].concat())?;
    }
    for (name, response) in [
        ("refused", Response::Refused(Refusal::new(RefusalCode::Busy, "later"))),
        ("granted", Response::Granted { token: 1, base: 2, pages: 3 }),
        ("committed", Response::Outcome(Outcome::Committed(4))),
        ("taken", Response::Taken { sequence: 5 }),
    ] {
        write("gate_proto", name, &[&[1], &response.encode()[4..]].concat())?;
    }
    write("wal_index", "bytes", &[&[0u8][..], &[1; 64]].concat())?;
    write("wal_index", "steps", &(1..=96).collect::<Vec<u8>>())?;

    let golden = seeds.join("../../tests/golden");
    let kept = |target: &str, first: &[u8], name: &str| {
        let bytes = std::fs::read(golden.join(name))?;
        write(target, name, &[first, &bytes].concat())
    };
    // Of a file of frames, each behind its length, each one.
    let frames = |target: &str, first: &[u8], name: &str| {
        let bytes = std::fs::read(golden.join(name))?;
        let (mut rest, mut n) = (&bytes[..], 0);
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (frame, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            write(target, &format!("{name}-{n}"), &[first, frame].concat())?;
            (rest, n) = (tail, n + 1);
        }
        Ok::<_, std::io::Error>(())
    };
    for name in ["transaction-1-whole", "transaction-1-part", "transaction-1-last"] {
        kept("transaction", &[0], name)?;
    }
    for name in ["vote-1-none", "vote-1-given", "vote-1-leader"] {
        kept("vote", &[0, 0], name)?;
    }
    kept("raft_wire", &[0, 255, 3], "raft-1-calls")?;
    kept("raft_wire", &[1], "raft-1-hellos")?;
    frames("raft_wire", &[2], "raft-1-calls")?;
    kept("raft_wire", &[3], "raft-1-append")?;
    frames("raft_wire", &[4], "raft-1-append-results")?;
    frames("raft_wire", &[5], "raft-1-vote-answers")?;
    frames("raft_wire", &[6], "raft-1-transfer-answers")?;
    kept("raft_wire", &[7], "membership-1")?;
    kept("raft_wire", &[8], "raft-1-snapshot-offer")?;
    frames("raft_wire", &[9], "raft-1-snapshot-answers")?;
    for name in ["acquire", "propose", "release", "settle"] {
        kept("peer_proto", &[0], &format!("writers-1-{name}"))?;
    }
    for name in ["leased", "refused", "done", "unknown", "not-leader"] {
        kept("peer_proto", &[1], &format!("writers-1-{name}"))?;
    }
    kept("peer_proto", &[2], "statements-1-request")?;
    kept("peer_proto", &[2], "statements-1-numbered")?;
    kept("peer_proto", &[3], "statements-1-answer")?;
    kept("peer_proto", &[7], "statements-1-question")?;
    kept("peer_proto", &[8], "statements-1-consent")?;
    kept("peer_proto", &[4], "transfer-1-ask")?;
    kept("peer_proto", &[5], "transfer-1-state")?;
    let mut pages = vec![6, 0, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0];
    pages.resize(pages.len() + 1024, 9);
    write("peer_proto", "pages", &pages)?;
    for (first, name) in [
        (0, "manifest-2"),
        (0, "manifest-3"),
        (1, "side-file-2"),
        (2, "incoming-1"),
        (3, "identity-1"),
        (4, "recovered-1"),
    ] {
        let bytes = std::fs::read(golden.join(name))?;
        write("node_files", name, &[&[first, 0], &bytes[..]].concat())?;
        write("node_files", &format!("{name}-mended"), &[&[first, 1], &bytes[..]].concat())?;
    }

    for (name, body) in [
        (
            "statements",
            r#"["SELECT 1", ["INSERT INTO t VALUES(?, ?, ?)", 1, -2.5, "x"], ["SELECT :a", {"a": null}]]"#,
        ),
        (
            "values",
            r#"[["x", true, false, null, [1, 2, 255], [], 9223372036854775808, "a\u00e9\ud83d\ude00"]]"#,
        ),
        ("wrong", r#"[["x", [256]], {"a": 1}, [[]], "a\u0000b"]"#),
    ] {
        write("http_statements", name, &[&[0u8][..], body.as_bytes()].concat())?;
    }
    write("http_statements", "text", b"\x01SELECT * FROM t WHERE a = 'b'")?;
    for (name, script) in [
        (
            "dump",
            "BEGIN TRANSACTION;\nCREATE TABLE t(a, \"b;c\");\nINSERT INTO t VALUES(1, 'x;''y');\nCOMMIT;\n",
        ),
        (
            "trigger",
            "CREATE TEMP TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; UPDATE t SET a = [;]; END; SELECT 2;",
        ),
        ("comments", "-- a;\n/* b; */ SELECT `x;` /* * / ; **/; EXPLAIN CREATE TRIGGER"),
    ] {
        write("sql_script", name, script.as_bytes())?;
    }
    let users = r#"[{"username":"bob","password":"plain","perms":["query","execute"]},{"username":"*","perms":["ready"]},
        {"username":"ann","password":"$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$GpZ3sK/oH9p7VIiV56G/64Zo/8GaUw434IimaPqxwCo",
         "perms":["all"]}]"#;
    write("config", "users", &[&[0u8][..], users.as_bytes()].concat())?;
    write("config", "header", b"\x01Basic Ym9iOnNlOmNyZXQ=")?;
    write("config", "plain", b"\x01bob:se:cret")?;

    let query = "pretty&timings&associative&transaction&queue&wait&timeout=5s&db_timeout=20ms&retries=2&redirect&\
        level=linearizable&freshness=1m30.5s&freshness_strict&linearizable_timeout=2s&db=other";
    write("request_options", "query", &[&[0u8][..], query.as_bytes()].concat())?;
    write(
        "request_options",
        "escaped",
        b"\x00db=a%2Db&level=none&timeout=250%C2%B5s&raft_index=false&retries=+",
    )?;
    write("request_options", "duration", &[1, 4, 1, 0, 3, 30, 0, 2, 5, 0, 1, 0x2c, 1])?;
    write("request_options", "id", b"\x020123456789abcdef0123456789ABCDEF")?;
    write("request_options", "level", b"\x03 bounded:500ms ")?;
    write("request_options", "token", b"\x0318446744073709551615")?;
    for (name, request) in [
        ("own-page", "/db/execute\nhost:node:4001\norigin:http://node:4001\nsec-fetch-site:same-origin"),
        ("usual-port", "https://node/db/execute\nhost:node:443\norigin:https://NODE\naccept-language:en"),
        ("other-page", "/db/execute\nhost:node:4001\norigin:null\nsec-fetch-site:cross-site"),
        ("rebound", "/db/query\nhost:[::1].evil.example:80\norigin:http://evil.example\nsec-fetch-mode:cors"),
        (
            "names",
            "/\nhost:db.corp.example.:80\norigin:http://127.0.0.1\naccept-language:.localhost.local.internal",
        ),
    ] {
        write("request_options", name, &[&[5u8][..], request.as_bytes()].concat())?;
    }
    let page = quire_vfs::format::database::empty_database(quire_vfs::format::PageSize::DEFAULT);
    write("request_options", "header", &[&[4u8][..], &page[..100]].concat())?;

    // What `Arbitrary` makes of these are steps.
    for target in ["raft_log", "vote", "capture_model", "wal_model", "transaction"] {
        for (name, factor) in [("steps-ascending", 1u8), ("steps-mixed", 37), ("steps-few", 64)] {
            let bytes: Vec<u8> = (1..=192u8).map(|n| n.wrapping_mul(factor) | 1).collect();
            write(target, name, &bytes)?;
        }
    }
    Ok(())
}
