//! A node's files, its entries, and what nodes say to each other, against golden files: see `tests/golden/golden.rs`.

#[path = "../../tests/golden/golden.rs"]
mod files;

use crate::command::{Command, DbId, PartHead, TransactionHead};
use crate::core::lease::Lease;
use crate::db::incoming::{Incoming, Staging, Target, incoming_path};
use crate::db::side_file::{Durable, Record, SideFile, Stamp, side_path};
use crate::forward::message as writers;
use crate::identity::Identity;
use crate::manifest::{Dropped, Manifest};
use crate::peers::{PeerRequest, PeerResponse};
use crate::sql::forward as statements;
use crate::sql::request::Kind;
use crate::transfer::frames::{Ask, DONE, Offer, decode_pages, encode_hashes, encode_refusal, pages_frame};
use bytes::Bytes;
use files::golden;
use quire_raft::LogPosition;
use quire_vfs::format::checksum::{DbChecksum, PageHashes, page_hash};
use quire_vfs::format::transaction::{Piece, TxnId, encode_piece};
use quire_vfs::format::wal::Salts;
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::proto::{Refusal, RefusalCode};
use std::collections::BTreeSet;
use std::time::Duration;

const DB: DbId = DbId(4);
const ID: TxnId = TxnId([0xa1; 16]);
const AT: LogPosition = LogPosition { term: 3, leader: 2, index: 77 };

fn small() -> PageSize {
    PageSize::new(512).unwrap()
}

fn body(piece: Piece) -> Bytes {
    let mut out = Vec::new();
    encode_piece(&mut out, piece, ID, small(), 2, &[PageNo(2)], 0);
    out.extend([7; 512]);
    out.into()
}

#[test]
fn golden_entries() {
    let head = TransactionHead {
        database: DB,
        base: 76,
        lease_term: 3,
        checksum: DbChecksum(0x0123_4567),
        origin: 1,
    };
    let part = PartHead { database: DB, base: 76, lease_term: 3, origin: 1 };
    for (name, command) in [
        ("entry-1-transaction", Command::Transaction { head, body: body(Piece::Whole) }),
        ("entry-1-part", Command::Part { head: part, body: body(Piece::Part { sequence: 0 }) }),
        ("entry-1-void", Command::Void { database: DB, transaction: ID }),
        ("entry-1-create", Command::CreateDatabase { name: "app".into(), page_size: small() }),
        ("entry-1-drop", Command::DropDatabase { database: DB }),
        ("entry-1-barrier", Command::Barrier { nonce: 5 }),
        ("entry-1-verify", Command::Verify { files: true, scrub: true, nonce: 5 }),
    ] {
        let kept = golden(name, &command.encode());
        assert_eq!(Command::decode(&kept.clone().into()), Ok(command), "{name}");
        let mut newer = kept;
        newer[1] = 2;
        let why = Command::decode(&newer.into()).unwrap_err().to_string();
        assert!(why.contains("version"), "{name}: {why}");
    }
}

#[test]
fn golden_identity() {
    let identity = Identity { cluster: *b"0123456789abcdef", node: 7 };
    let kept = golden("identity-1", identity.encode().as_bytes());
    assert_eq!(Identity::decode(std::str::from_utf8(&kept).unwrap()), Ok(identity));
}

#[test]
fn golden_manifest() {
    let manifest = Manifest {
        position: Some(AT),
        membership: b"in Raft's encoding".to_vec(),
        databases: vec![(DB, PageSize::DEFAULT, "main".into()), (DbId(9), small(), "b".into())],
        dropped: vec![
            Dropped { id: DbId(5), by: Some(80), name: "b".into() },
            Dropped { id: DbId(6), by: None, name: "c".into() },
        ],
        removed: BTreeSet::new(),
        ahead: true,
    };
    let kept = golden("manifest-2", &manifest.encode());
    assert_eq!(Manifest::decode(&kept).unwrap(), manifest);
    let manifest = Manifest { removed: BTreeSet::from([2, 6]), ..manifest };
    let kept = golden("manifest-3", &manifest.encode());
    assert_eq!(Manifest::decode(&kept).unwrap(), manifest);
    for (version, said) in [(4, "a newer Quire wrote it; run that"), (1, "an older Quire wrote it")] {
        let mut other = kept.clone();
        other[8] = version;
        let why = Manifest::decode(&other).unwrap_err().to_string();
        let found = format!("the manifest has version {version}, this build of Quire reads version 3: ");
        assert!(why.contains(&found) && why.contains(said), "{why}");
    }
}

#[test]
fn golden_side_file() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    let hashes = PageHashes::from_hashes(PageSize::DEFAULT, vec![1, 2, 3]);
    let stamp = Stamp { size: 12_288, changed: 1 << 60, counter: 7 };
    let durable = |index| {
        let position = LogPosition { index, ..AT };
        Durable { position, target: index, checksum: hashes.checksum(), pages: 3, stamp }
    };
    let mut file = SideFile::create(&db, DB, &durable(77), &hashes).unwrap();
    file.set_durable(&durable(78)).unwrap();
    let publication = crate::core::recovery::Publication {
        index: 79,
        salts: Salts([6; 8]),
        frame: FrameNo(12),
        seen: true,
    };
    let record = Record { publication, base: 78, txn: ID };
    file.record(&record).unwrap();
    drop(file);
    golden("side-file-2", &std::fs::read(side_path(&db)).unwrap());
    assert_eq!(SideFile::identify(&db).unwrap(), Some((DB, PageSize::DEFAULT)));
    let (_, contents) = SideFile::open(&db, DB, PageSize::DEFAULT).unwrap();
    assert_eq!((contents.durable, contents.records), (durable(78), vec![record]));
    assert_eq!(contents.hashes.as_slice(), [1, 2, 3]);
}

#[test]
fn golden_incoming_state() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    let image = [9; 512];
    let mut staging = Staging::open(&db, DB, small()).unwrap();
    staging.stage(PageNo(2), &[1; 512]).unwrap();
    staging.stage(PageNo(2), &image).unwrap();
    let hashes = [5, page_hash(PageNo(2), &image)];
    let checksum = DbChecksum(hashes[0] ^ hashes[1]);
    let target = Target { position: AT, as_of: 80, base: 70, checksum };
    staging.seal(target, 2, vec![5, 6]).unwrap();
    let mut kept = golden("incoming-1", &std::fs::read(incoming_path(&db)).unwrap());
    let found = Incoming::find(&db, DB, small()).unwrap().unwrap();
    found.check().unwrap();
    assert_eq!((found.target, found.hashes.as_slice()), (target, &hashes[..]));
    kept[8] = 2;
    std::fs::write(incoming_path(&db), &kept).unwrap();
    for refused in [Incoming::find(&db, DB, small()).map(drop), Staging::open(&db, DB, small()).map(drop)] {
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("a.db-incoming: the incoming state has version 2"), "{why}");
    }
    assert_eq!(std::fs::read(incoming_path(&db)).unwrap(), kept, "nothing of it is lost");
}

#[test]
fn golden_requests_of_writers() {
    let requests = [
        writers::Request::Acquire {
            database: DB,
            session: 5,
            ticket: 6,
            life: 4,
            wait_ms: 5000,
            attempts: 2,
        },
        writers::Request::Propose { database: DB, token: 7, command: Bytes::new() },
        writers::Request::Release { database: DB, token: 7, linger: true },
        writers::Request::Settle { database: DB, token: 7, life: 4, id: ID },
    ];
    for (name, request) in ["acquire", "propose", "release", "settle"].iter().zip(requests) {
        let kept = golden(&format!("writers-1-{name}"), &request.encode());
        assert_eq!(writers::Request::decode(&kept.into()), Some(request));
    }
    let refusal = Refusal::new(RefusalCode::Full, "no room");
    let answers = [
        writers::Answer::Leased(Lease { token: 7, term: 3, head: 76 }),
        writers::Answer::Refused(refusal),
        writers::Answer::Done(78),
        writers::Answer::Unknown("who knows".into()),
        writers::Answer::NotLeader,
    ];
    for (name, answer) in ["leased", "refused", "done", "unknown", "not-leader"].iter().zip(answers) {
        let kept = golden(&format!("writers-1-{name}"), &answer.encode());
        assert_eq!(writers::Answer::decode(&kept), Some(answer));
    }
}

#[test]
fn golden_transfer_and_statements() {
    let ask = Ask { hashes: 3, database: DB, at_least: 77 };
    assert_eq!(Ask::decode(golden("transfer-1-ask", &ask.encode()).into()).unwrap(), ask);
    let offer =
        Offer { page_size: 512, position: AT, as_of: 80, checksum: DbChecksum(9), pages: 6, differing: 5 };
    assert_eq!(Offer::decode(golden("transfer-1-state", &offer.encode()).into()).unwrap(), offer);
    golden("transfer-1-hashes", &encode_hashes(&[1, 0, 1 << 63]));
    let mut pages = pages_frame(&[PageNo(2), PageNo(6)], small());
    pages.extend([7; 512]);
    pages.extend([8; 512]);
    let kept = golden("transfer-1-pages", &pages).into();
    let read: Vec<_> = decode_pages(&kept, small(), 6).unwrap().collect();
    assert_eq!(read, [(PageNo(2), &[7; 512][..]), (PageNo(6), &[8; 512][..])]);
    golden("transfer-1-done", DONE);
    golden("transfer-1-refused", &encode_refusal("no such database"));
    let mut newer = ask.encode().to_vec();
    newer[1] = 2;
    let why = Ask::decode(newer.into()).unwrap_err();
    assert!(why.contains("version 2"), "{why}");

    let forward = statements::Forward {
        kind: Kind::Request,
        text: false,
        timeout: Duration::from_millis(1500),
        number: None,
        query: "timings&db=app".into(),
        body: Bytes::from_static(b"[\"SELECT 1\"]"),
    };
    let kept = golden("statements-1-request", &forward.encode());
    assert_eq!(statements::Forward::decode(&kept.into()), Some(forward.clone()));
    let numbered = statements::Forward { number: Some(7), ..forward };
    let kept = golden("statements-1-numbered", &numbered.encode());
    assert_eq!(statements::Forward::decode(&kept.into()), Some(numbered));
    let requests = vec![(7, Some(Bytes::from_static(b"{\"results\":[]}"))), (8, None)];
    let question = statements::Question { id: ID, requests };
    let kept = golden("statements-1-question", &question.encode());
    assert_eq!(statements::Question::decode(&kept.into()), Some(question));
    let kept = golden("statements-1-consent", &statements::encode_consent(&[7, 8]));
    assert_eq!(statements::decode_consent(&kept), Some(vec![7, 8]));
    let answer = statements::Answer::Response {
        status: 200,
        retry: false,
        body: Bytes::from_static(b"{\"results\":[]}"),
    };
    let kept = golden("statements-1-answer", &answer.encode());
    assert_eq!(statements::Answer::decode(&kept.into()), Some(answer));
}

/// One message a line.
#[test]
fn golden_requests_of_nodes() {
    let address = || ("10.0.0.2:4002".to_owned(), "10.0.0.2:4001".to_owned());
    let (raft_addr, http_addr) = address();
    let join = PeerRequest::Join { node_id: 2, raft_addr, http_addr, voter: true };
    let (raft_addr, http_addr) = address();
    let committed = Some((3, 2, 77));
    let announce = PeerRequest::Announce { node_id: 2, raft_addr, http_addr, voter: true, committed };
    let requests = [
        PeerRequest::Hello,
        join,
        announce,
        PeerRequest::CreateDatabase { name: "app".into(), page_size: 4096 },
        PeerRequest::DropDatabase { id: 4 },
        PeerRequest::Barrier,
        PeerRequest::ReadIndex { confirm: true },
        PeerRequest::Void { database: 4, transaction: ID.0 },
        PeerRequest::Verify { files: true, scrub: false },
        PeerRequest::Remove { node_id: 2 },
        PeerRequest::StepDown { to: Some(3) },
        {
            let (raft_addr, http_addr) = address();
            PeerRequest::MayJoin { node_id: 4, raft_addr, http_addr }
        },
    ];
    let lines = |all: Vec<String>| all.join("\n") + "\n";
    let json = |request: &PeerRequest| serde_json::to_string(request).unwrap();
    let kept = golden("peers-1-requests.jsonl", lines(requests.iter().map(json).collect()).as_bytes());
    for (line, request) in String::from_utf8(kept).unwrap().lines().zip(&requests) {
        let read: PeerRequest = serde_json::from_str(line).unwrap();
        assert_eq!(json(&read), json(request));
    }
    let (raft_addr, http_addr) = address();
    let responses = [
        // As earlier versions say it.
        PeerResponse::Hello { node_id: 2, initialized: true, raft_addr, http_addr, admitted: None },
        PeerResponse::Index(77),
        PeerResponse::NotLeader(Some(address().0)),
        PeerResponse::NotLeader(None),
        PeerResponse::Unavailable("later".into()),
        PeerResponse::Refused("no".into()),
        PeerResponse::NotMember,
        {
            let (raft_addr, http_addr) = address();
            PeerResponse::Hello { node_id: 2, initialized: false, raft_addr, http_addr, admitted: Some(true) }
        },
    ];
    let json = |response: &PeerResponse| serde_json::to_string(response).unwrap();
    let kept = golden("peers-1-responses.jsonl", lines(responses.iter().map(json).collect()).as_bytes());
    for (line, response) in String::from_utf8(kept).unwrap().lines().zip(&responses) {
        let read: PeerResponse = serde_json::from_str(line).unwrap();
        assert_eq!(json(&read), json(response));
    }
}
