//! Writes the seed corpora under `fuzz/seeds`, always the same: `cargo run --example seeds` in `fuzz/`.

use bytes::Bytes;
use quire_vfs::format::checksum::DbChecksum;
use quire_vfs::format::transaction::{Before, Piece, TxnId, encode_head, encode_piece};
use quire_vfs::format::wal::{ByteOrder, FrameHeader, Salts, WalHeader};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::proto::{Hello, Outcome, Refusal, RefusalCode, Request, Response, WalTarget};
use std::path::Path;

#[allow(dead_code, reason = "the encoder is all that is used")]
#[path = "../../node/src/command.rs"]
mod command;
#[allow(dead_code, reason = "as above")]
#[path = "../../node/src/name.rs"]
mod name;

use command::{Command, DbId, PartHead, TransactionHead};

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
    write("wal_index", "steps", &(1..=96).collect::<Vec<u8>>())
}
