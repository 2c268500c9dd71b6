//! Files and frames against golden files: see `tests/golden/golden.rs`.

#[path = "../../tests/golden/golden.rs"]
mod files;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use files::golden;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};

use crate::encode;
use crate::log::record::{self, Header, Kind};
use crate::log::segment::{Owner, SegmentHeader};
use crate::log::vote;
use crate::net::codec::{self, Call, SnapshotAnswer, StreamKind};
use crate::recovered::{self, Line};
use crate::types::{Command, Entry, Membership, Snapshot, SnapshotMeta, StoredMembership, Vote, log_id};
use crate::{ClusterKey, LogPosition, Peer};

const OWNER: Owner = Owner { cluster: [0xc1; 16], node: 2 };
const AT: LogPosition = LogPosition { term: 3, leader: 2, index: 9 };

fn membership() -> Membership {
    let peer = |n: u64| Peer { raft_addr: format!("10.0.0.{n}:4002"), http_addr: format!("10.0.0.{n}:4001") };
    let nodes: BTreeMap<_, _> = (1..=4).map(|n| (n, peer(n))).collect();
    Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])], nodes).unwrap()
}

#[test]
fn golden_segment() {
    let header = SegmentHeader {
        owner: OWNER,
        sequence: 7,
        seed: 0x1111_2222_3333_4445,
        next_index: 9,
        prev_end: 8192,
        prev_seed: 5,
        file_bytes: 1 << 20,
    };
    let mut bytes = header.encode();
    let stored = encode::membership(Some(AT), &membership());
    let records = [
        (Kind::Blank, &b""[..]),
        (Kind::Command, b"a command"),
        (Kind::Membership, &stored),
        (Kind::Base, b""),
        (Kind::Purge, b""),
        (Kind::Mark, b""),
    ];
    for (n, (kind, payload)) in records.iter().enumerate() {
        let position = LogPosition { index: 9 + n as u64, ..AT };
        let (len, synced) = (payload.len() as u32, bytes.len() as u64);
        let head = Header { kind: *kind, len, position, synced, committed: n as u64 };
        record::put(&mut bytes, header.seed, &head, payload);
    }
    // The zeros between header and records say nothing.
    let kept = golden("segment-1", &[&bytes[..128], &bytes[4096..]].concat());
    assert_eq!(SegmentHeader::decode(&kept, Some(&OWNER)), Ok(header.clone()));
    let mut rest = &kept[128..];
    for (n, (kind, payload)) in records.iter().enumerate() {
        let (head, found) = record::read(rest, header.seed).unwrap();
        assert_eq!((head.kind, head.position.index, found), (*kind, 9 + n as u64, *payload));
        rest = &rest[record::size(payload.len())..];
    }
    assert!(rest.is_empty());

    let mut newer = kept.clone();
    newer[8] = 2;
    let fault = SegmentHeader::decode(&newer, Some(&OWNER)).unwrap_err();
    assert!(fault.foreign && fault.reason.contains("segment has version 2"), "{}", fault.reason);
    assert!(fault.reason.contains("reads version 1: a newer Quire wrote it; run that"), "{}", fault.reason);
}

#[test]
fn golden_vote() {
    for (name, vote) in [
        ("vote-1-none", None),
        ("vote-1-given", Some(Vote::new(4, 3))),
        ("vote-1-leader", Some(Vote::new_committed(4, 2))),
    ] {
        let slot = vote::Slot { sequence: 6, vote };
        let kept = golden(name, &vote::encode(&OWNER, &slot));
        assert_eq!(vote::decode(&kept, Some(&OWNER)), Ok(slot));
    }
}

/// A newer version of the vote file, whatever its checksum: refused by its number, not taken for damage.
#[test]
fn golden_vote_of_a_newer_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vote");
    for (versions, said) in [([2, 2], "vote file has version 2"), ([2, 3], "both vote slots are bad")] {
        let mut bytes = vec![0; vote::FILE_BYTES as usize];
        for (slot, version) in versions.iter().enumerate() {
            let at = slot * 4096;
            bytes[at..at + 96]
                .copy_from_slice(&vote::encode(&OWNER, &vote::Slot { sequence: 1, vote: None }));
            bytes[at + 8] = *version;
        }
        std::fs::write(&path, &bytes).unwrap();
        let disk = crate::log::disk::RealDisk::new(dir.path()).unwrap();
        let file = crate::log::disk::Disk::open(&disk, "vote").unwrap();
        match vote::VoteFile::open(file, OWNER).map(drop) {
            Err(vote::VoteError::Fault(fault)) => assert!(fault.reason.contains(said), "{}", fault.reason),
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is written");
    }
}

#[test]
fn golden_membership_and_key() {
    let kept = golden("membership-1", &encode::membership(Some(AT), &membership()));
    let stored = StoredMembership::new(Some(log_id(AT)), membership());
    assert_eq!(encode::read_membership(kept.into()).unwrap(), stored);
    // What a node takes from the key is what any other node takes from it.
    let key = ClusterKey::from_bytes([0x5a; 32]);
    golden("cluster-key-1", &[&key.cluster_id()[..], &key.ca_seed(), &key.reset_key(2)].concat());
}

fn framed(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let with_length = |frame: Vec<u8>| [&(frame.len() as u32).to_le_bytes()[..], &frame].concat();
    frames.into_iter().flat_map(with_length).collect()
}

fn split(bytes: &[u8]) -> Vec<Bytes> {
    let mut buffer = crate::net::buffer::Buffer::default();
    buffer.push(bytes, bytes.len());
    std::iter::from_fn(|| buffer.frame(1 << 20).unwrap()).collect()
}

#[test]
fn golden_frames() {
    assert_eq!(crate::net::tls::ALPN, b"quire-raft/1", "frames of another form need another name");
    let hellos: Vec<u8> =
        [StreamKind::Call, StreamKind::Append, StreamKind::Request, StreamKind::Bulk, StreamKind::Snapshot]
            .into_iter()
            .flat_map(|kind| codec::hello(kind, 2))
            .collect();
    golden("raft-1-hellos", &hellos);

    let at = |index| LogPosition { index, ..AT };
    let entry = |index, payload| Entry { log_id: log_id(at(index)), payload };
    let vote = Vote::new_committed(3, 2);
    let append = |entries| AppendEntriesRequest {
        vote,
        prev_log_id: Some(log_id(at(8))),
        leader_commit: Some(log_id(at(7))),
        entries,
    };
    let entries = vec![
        entry(9, EntryPayload::Blank),
        entry(10, EntryPayload::Normal(Command(Bytes::from_static(b"a command")))),
        entry(11, EntryPayload::Membership(membership())),
    ];
    let request = VoteRequest::new(Vote::new(4, 3), Some(log_id(AT)));
    let mut transfer = request.clone();
    transfer.leadership_transfer = true;
    let calls = [
        Call::Append(append(Vec::new())),
        Call::Vote(request.clone()),
        Call::Vote(transfer),
        Call::PreVote(request),
        Call::Transfer(TransferLeaderRequest::new(vote, 3, Some(log_id(AT)))),
    ];
    let kept = golden("raft-1-calls", &framed(calls.iter().map(|call| codec::call(call).concat())));
    for (frame, call) in split(&kept).into_iter().zip(&calls) {
        assert_eq!(format!("{:?}", codec::read_call(frame).unwrap()), format!("{call:?}"));
    }
    let kept = golden("raft-1-append", &codec::append(&append(entries)).concat());
    let read = codec::read_append(kept.into()).unwrap();
    assert_eq!((read.vote, read.entries.len(), read.prev_log_id), (vote, 3, Some(log_id(at(8)))));

    let answers = [
        codec::append_result(Some(&Ok(Some(log_id(AT))))),
        codec::append_result(Some(&Ok(None))),
        codec::append_result(Some(&Err(StreamAppendError::Conflict(log_id(AT))))),
        codec::append_result(Some(&Err(StreamAppendError::HigherVote(vote)))),
        codec::append_result(None),
    ];
    let kept = golden("raft-1-append-results", &framed(answers.iter().map(|answer| answer.to_vec())));
    for (frame, answer) in split(&kept).into_iter().zip(&answers) {
        assert_eq!(codec::append_result(codec::read_append_result(frame).unwrap().as_ref()), answer);
    }
    let answers =
        [codec::vote_answer(&VoteResponse::new(vote, Some(log_id(AT)), true)), codec::stopped_answer()];
    let kept = golden("raft-1-vote-answers", &framed(answers.iter().map(|answer| answer.to_vec())));
    let read: Vec<_> =
        split(&kept).into_iter().map(|frame| codec::read_vote_answer(frame).unwrap()).collect();
    assert!(read[0].as_ref().is_some_and(|answer| answer.vote_granted && answer.vote == vote));
    assert!(read[1].is_none());
    let answers = [
        codec::transfer_answer(&Ok(())),
        codec::transfer_answer(&Err(TransferLeaderError::VoteChanged {
            expected: vote,
            actual: Vote::new(4, 3),
        })),
        codec::transfer_answer(&Err(TransferLeaderError::LogNotFlushed {
            expected: Some(log_id(AT)),
            actual: None,
        })),
    ];
    let kept = golden("raft-1-transfer-answers", &framed(answers.iter().map(|answer| answer.to_vec())));
    for (frame, answer) in split(&kept).into_iter().zip(&answers) {
        assert_eq!(codec::transfer_answer(&codec::read_transfer_answer(frame).unwrap().unwrap()), answer);
    }

    let meta = SnapshotMeta {
        last_log_id: Some(log_id(AT)),
        last_membership: StoredMembership::new(Some(log_id(at(5))), membership()),
    };
    let snapshot = Snapshot { meta: meta.clone(), snapshot: Bytes::from_static(b"what the machine says") };
    let kept = golden("raft-1-snapshot-offer", &codec::offer(&vote, &snapshot).concat());
    let (found, read) = codec::read_offer(kept.into()).unwrap();
    assert_eq!((found, read.meta, read.snapshot), (vote, meta, snapshot.snapshot));
    let answers =
        [SnapshotAnswer::AtWork, SnapshotAnswer::Installed(vote), SnapshotAnswer::Failed("no room".into())];
    let encoded = answers.iter().map(|answer| codec::snapshot_answer(answer).to_vec());
    let kept = golden("raft-1-snapshot-answers", &framed(encoded));
    for (frame, answer) in split(&kept).into_iter().zip(answers) {
        assert_eq!(codec::read_snapshot_answer(frame).unwrap(), answer);
    }
}

#[test]
fn golden_recoveries() {
    let line = |index, without: &[u64]| Line {
        at: LogPosition { index, ..AT },
        without: without.iter().copied().collect(),
    };
    let lines = vec![line(41, &[1, 3]), line(97, &[4])];
    let kept = golden("recovered-1", recovered::encode(&lines).as_bytes());
    assert_eq!(recovered::decode(&kept).unwrap(), lines);
}
