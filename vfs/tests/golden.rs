//! Transactions, the gate's protocol, and what the database checksum is made of, against golden files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/golden/golden.rs"]
mod files;

use files::golden;
use quire_vfs::format::checksum::page_hash;
use quire_vfs::format::database::empty_database;
use quire_vfs::format::transaction::{Before, Piece, Transaction, TxnId, encode_piece};
use quire_vfs::format::wal::Salts;
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::proto::{
    Hello, NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, Request, Response, WalTarget, commit_buffer,
    finish_commit, finish_part, message_length,
};

const ID: TxnId = TxnId([0xa1; 16]);

fn small() -> PageSize {
    PageSize::new(512).unwrap()
}

fn piece(piece: Piece, numbers: &[u32], fills: u32) -> Vec<u8> {
    let numbers: Vec<_> = numbers.iter().map(|&page| PageNo(page)).collect();
    let mut out = Vec::new();
    encode_piece(&mut out, piece, ID, small(), 9, &numbers, fills);
    for page in &numbers {
        out.extend((0..small().bytes()).map(|n| if n < 8 { page.0 as u8 } else { 0 }));
    }
    out
}

#[test]
fn golden_transactions() {
    let last = Piece::Last(Before { parts: 2, pages: 4, fills: 1 });
    for (name, kind, numbers, fills) in [
        ("transaction-1-whole", Piece::Whole, &[2, 3][..], 1),
        ("transaction-1-part", Piece::Part { sequence: 1 }, &[4], 0),
        ("transaction-1-last", last, &[5, 9], 0),
    ] {
        let bytes = golden(name, &piece(kind, numbers, fills));
        let txn = Transaction::decode(&bytes).unwrap();
        assert_eq!((txn.id(), txn.piece(), txn.page_size()), (ID, kind, small()));
        assert_eq!((txn.db_size(), txn.fill_count()), (9, fills));
        assert!(txn.pages().map(|(page, _)| page.0).eq(numbers.iter().copied()));
        assert!(txn.pages().all(|(page, image)| image[7] == page.0 as u8 && image[8] == 0));
    }
    let mut newer = piece(Piece::Whole, &[2], 0);
    newer[0] = 2;
    let why = Transaction::decode(&newer).unwrap_err().to_string();
    assert!(why.contains("version 2, this build reads 1"), "{why}");
}

/// Splits a file of messages, each behind its length.
fn messages(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut all) = (bytes, Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (message, tail) = tail.split_at(message_length(*length, 1 << 20).unwrap());
        all.push(message);
        rest = tail;
    }
    all
}

#[test]
fn golden_gate_messages() {
    let target = WalTarget { salts: Salts([7; 8]), frame: FrameNo(12) };
    let hello = |create, page_size| {
        let name = "app".into();
        Request::Hello(Hello { create, read_only: !create, pid: 77, page_size, directory: (3, 4), name })
    };
    let requests = [
        hello(true, Some(small())),
        hello(false, None),
        Request::Acquire { wait_ms: 5000 },
        Request::Release { token: 9, linger: true },
        Request::Resolve { base: 8, target, id: ID },
        Request::Read { goal: ReadGoal::Index(6), wait_ms: 100 },
        Request::Read { goal: ReadGoal::Newest, wait_ms: 100 },
        Request::Read { goal: ReadGoal::Age(500), wait_ms: 100 },
        Request::Status,
    ];
    let bytes = golden("gate-3-requests", &requests.iter().flat_map(Request::encode).collect::<Vec<_>>());
    let read: Vec<_> =
        messages(&bytes).into_iter().map(|message| Request::decode(message).unwrap()).collect();
    assert_eq!(read, requests);

    let mut buffer = commit_buffer(0);
    buffer.extend(piece(Piece::Whole, &[2], 0));
    let mut both = finish_commit(buffer.clone(), 9, &target);
    buffer.truncate(4 + 48);
    buffer.extend(piece(Piece::Part { sequence: 0 }, &[2], 0));
    both.extend(finish_part(buffer, 9));
    let bytes = golden("gate-3-commits", &both);
    let read: Vec<_> =
        messages(&bytes).into_iter().map(|message| Request::decode(message).unwrap()).collect();
    assert_eq!(read, [Request::Commit { token: 9, target }, Request::Part { token: 9 }]);

    let status = |leader| {
        let (checksum, json) = ("0123456789abcdef".into(), "{}".into());
        Response::Status(NodeStatus { index: 5, leader, checksum, json })
    };
    let codes = (0..).map_while(RefusalCode::from_byte);
    let mut responses = vec![
        Response::Welcome {
            page_size: small(),
            node_id: 3,
            commit_deadline_ms: 10_000,
            max_transaction: u64::MAX,
            wal_limit: 1 << 24,
            part_bytes: 4 << 20,
        },
        Response::Granted { token: 9, base: 8, pages: 7 },
        Response::Outcome(Outcome::Committed(6)),
        Response::Outcome(Outcome::Refused("no".into())),
        Response::Outcome(Outcome::Unknown("who knows".into())),
        Response::Taken { sequence: 5 },
        Response::Reached { index: 4, age_ms: 3 },
        status(None),
        status(Some((2, "10.0.0.2:4001".into()))),
    ];
    responses.extend(codes.map(|code| Response::Refused(Refusal::new(code, "why"))));
    assert_eq!(responses.len(), 9 + 7);
    let bytes = golden("gate-3-responses", &responses.iter().flat_map(Response::encode).collect::<Vec<_>>());
    let read: Vec<_> =
        messages(&bytes).into_iter().map(|message| Response::decode(message).unwrap()).collect();
    assert_eq!(read, responses);
}

/// Nodes of one cluster must agree on these: a new database's first page, and the hash of a page.
#[test]
fn golden_database_checksum() {
    let mut out = Vec::new();
    for shift in 9..=16 {
        let size = PageSize::new(1 << shift).unwrap();
        out.extend(page_hash(PageNo(1), &empty_database(size)).to_le_bytes());
    }
    let page: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
    [1, 2, u32::MAX].iter().for_each(|&no| out.extend(page_hash(PageNo(no), &page).to_le_bytes()));
    golden("checksum-1", &out);
}
