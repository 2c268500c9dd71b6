use super::*;
use proptest::prelude::*;

fn target() -> impl Strategy<Value = WalTarget> {
    (any::<[u8; 8]>(), any::<u32>()).prop_map(|(s, f)| WalTarget { salts: Salts(s), frame: FrameNo(f) })
}

fn goal() -> impl Strategy<Value = ReadGoal> {
    prop_oneof![
        any::<u64>().prop_map(ReadGoal::Index),
        Just(ReadGoal::Newest),
        any::<u32>().prop_map(ReadGoal::Age)
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let size = prop_oneof![Just(None), (9u32..=16).prop_map(|s| PageSize::new(1 << s))];
    prop_oneof![
        (any::<bool>(), any::<bool>(), any::<u32>(), size, any::<(u64, u64)>(), ".{0,80}").prop_map(
            |(create, read_only, pid, page_size, directory, name)| {
                Request::Hello(Hello { create, read_only, pid, page_size, directory, name })
            }
        ),
        any::<u32>().prop_map(|wait_ms| Request::Acquire { wait_ms }),
        (any::<u64>(), target()).prop_map(|(token, target)| Request::Commit { token, target }),
        any::<u64>().prop_map(|token| Request::Part { token }),
        (any::<u64>(), any::<bool>()).prop_map(|(token, linger)| Request::Release { token, linger }),
        (any::<u64>(), target(), any::<[u8; 16]>()).prop_map(|(base, target, id)| Request::Resolve {
            base,
            target,
            id: TxnId(id)
        }),
        (goal(), any::<u32>()).prop_map(|(goal, wait_ms)| Request::Read { goal, wait_ms }),
        Just(Request::Status),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        (any::<(u64, u32, u64, u64, u32)>()).prop_map(
            |(node_id, commit_deadline_ms, max_transaction, wal_limit, part_bytes)| {
                let page_size = PageSize::DEFAULT;
                Response::Welcome {
                    page_size,
                    node_id,
                    commit_deadline_ms,
                    max_transaction,
                    wal_limit,
                    part_bytes,
                }
            }
        ),
        any::<u32>().prop_map(|sequence| Response::Taken { sequence }),
        (0usize..7, ".{0,80}").prop_map(|(c, m)| Response::Refused(Refusal::new(RefusalCode::ALL[c], m))),
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(token, base, pages)| Response::Granted {
            token,
            base,
            pages
        }),
        any::<u64>().prop_map(|i| Response::Outcome(Outcome::Committed(i))),
        ".{0,80}".prop_map(|m| Response::Outcome(Outcome::Refused(m))),
        ".{0,80}".prop_map(|m| Response::Outcome(Outcome::Unknown(m))),
        any::<(u64, u32)>().prop_map(|(index, age_ms)| Response::Reached { index, age_ms }),
        (any::<u64>(), proptest::option::of((1u64.., ".{0,80}")), ".{0,20}", ".{0,80}").prop_map(
            |(index, leader, checksum, json)| {
                Response::Status(NodeStatus { index, leader, checksum, json })
            }
        ),
    ]
}

fn body(message: &[u8]) -> &[u8] {
    let len = message_length(message[..4].try_into().unwrap(), usize::MAX).unwrap();
    assert_eq!(len, message.len() - 4);
    &message[4..]
}

proptest! {
    #[test]
    fn messages_round_trip(request in request(), response in response()) {
        prop_assert_eq!(Request::decode(body(&request.encode())).unwrap(), request);
        prop_assert_eq!(Response::decode(body(&response.encode())).unwrap(), response);
    }

    #[test]
    fn cut_messages_are_refused(request in request(), cut in any::<proptest::sample::Index>()) {
        let message = request.encode();
        let body = body(&message);
        prop_assert!(Request::decode(&body[..cut.index(body.len())]).is_err());
    }

    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes);
        let _ = Response::decode(&bytes);
    }
}

/// The greeting is where versions meet: neither side may take the other's for something else.
#[test]
fn another_version_is_refused_by_both_sides_and_says_what_to_do() {
    let hello = Hello {
        create: true,
        read_only: false,
        pid: 1,
        page_size: None,
        directory: (1, 2),
        name: "app".into(),
    };
    let welcome = Response::Welcome {
        page_size: PageSize::DEFAULT,
        node_id: 1,
        commit_deadline_ms: 1,
        max_transaction: 1,
        wal_limit: 1,
        part_bytes: 1,
    };
    let (mut hello, mut welcome) = (Request::Hello(hello).encode(), welcome.encode());
    for message in [&mut hello, &mut welcome] {
        message[6..8].copy_from_slice(&1u16.to_le_bytes());
    }
    let why = Request::decode(body(&hello)).unwrap_err().to_string();
    assert!(why.contains("gate protocol 1, this node 3: use the libquire_vfs"), "{why}");
    // A node of version 1 says less in its Welcome.
    let why = Response::decode(&body(&welcome)[..36]).unwrap_err().to_string();
    assert!(why.contains("gate protocol 1, this VFS 3: use the libquire_vfs"), "{why}");
}

#[test]
fn lengths_are_bounded() {
    assert!(message_length(0u32.to_le_bytes(), 10).is_err());
    assert!(message_length(11u32.to_le_bytes(), 10).is_err());
    assert_eq!(message_length(10u32.to_le_bytes(), 10), Ok(10));
}
