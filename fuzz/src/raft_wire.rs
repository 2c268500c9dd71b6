//! Raft's frames. The first byte chooses. Bodies (calls, appends, answers, memberships, snapshot offers and answers): what decodes
//! encodes to what decodes to the same, a byte less or more is refused where the body has an end of its own, and no count makes
//! more memory be taken than the frame is long (`-malloc_limit_mb`). Streams: however the bytes are cut into chunks, the same
//! frames come out as by the lengths that stand there, and no length takes memory before its bytes have come.

use crate::encode;
use crate::wire_buffer::{Buffer, EAGER};
use crate::wire_codec::{self as codec, Call, HELLO_BYTES};
use bytes::Bytes;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&what, body)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(body);
    match what % 10 {
        0 => frames(body),
        1 => {
            if let Some(head) = body.first_chunk::<HELLO_BYTES>()
                && let Ok((kind, from)) = codec::read_hello(*head)
            {
                assert_eq!(codec::hello(kind, from), *head);
            }
        }
        2 => exact(&bytes, true, |b| codec::read_call(b).ok().map(|call| codec::call(&call).concat())),
        3 => {
            exact(&bytes, true, |b| codec::read_append(b).ok().map(|append| codec::append(&append).concat()))
        }
        4 => exact(&bytes, true, |b| {
            codec::read_append_result(b).ok().map(|result| codec::append_result(result.as_ref()).to_vec())
        }),
        5 => exact(&bytes, true, |b| {
            let answer = codec::read_vote_answer(b).ok()?;
            Some(answer.map_or_else(codec::stopped_answer, |answer| codec::vote_answer(&answer)).to_vec())
        }),
        6 => exact(&bytes, true, |b| {
            let answer = codec::read_transfer_answer(b).ok()?;
            Some(answer.map_or_else(codec::stopped_answer, |answer| codec::transfer_answer(&answer)).to_vec())
        }),
        7 => exact(&bytes, true, |b| {
            let stored = encode::read_membership(b).ok()?;
            let at = stored.log_id().as_ref().map(crate::types::position);
            Some(encode::membership(at, stored.membership()).to_vec())
        }),
        8 => exact(&bytes, false, |b| {
            codec::read_offer(b).ok().map(|(vote, snapshot)| codec::offer(&vote, &snapshot).concat())
        }),
        _ => {
            let ends =
                !matches!(codec::read_snapshot_answer(bytes.clone()), Ok(codec::SnapshotAnswer::Failed(_)));
            exact(&bytes, ends, |b| {
                codec::read_snapshot_answer(b).ok().map(|answer| codec::snapshot_answer(&answer).to_vec())
            });
        }
    }
    if what % 10 == 2 {
        follow(&bytes);
    }
}

/// `again` decodes and encodes.
fn exact(bytes: &Bytes, ends: bool, again: impl Fn(Bytes) -> Option<Vec<u8>>) {
    let Some(first) = again(bytes.clone()) else { return };
    let second = again(Bytes::from(first.clone()));
    assert_eq!(second.as_deref(), Some(&first[..]), "what was encoded reads as the same");
    if ends {
        assert!(again(bytes.slice(..bytes.len() - 1)).is_none(), "cut short");
        assert!(again([&bytes[..], &[0]].concat().into()).is_none(), "something follows");
    }
}

/// What the log store relies on.
fn follow(bytes: &Bytes) {
    let Ok(Call::Append(append)) = codec::read_call(bytes.clone()) else { return };
    let indexes: Vec<u64> = append.entries.iter().map(|entry| entry.log_id.index()).collect();
    assert!(indexes.windows(2).all(|two| two[0].checked_add(1) == Some(two[1])));
    let previous = append.prev_log_id.map(|id| id.index());
    assert!(indexes.first().is_none_or(|first| previous.is_none_or(|p| p.checked_add(1) == Some(*first))));
}

fn frames(data: &[u8]) {
    let Some((&[limit, size], stream)) = data.split_first_chunk::<2>() else { return };
    let max = usize::from(limit) * 8;
    let (mut expected, mut rest, mut refused) = (Vec::new(), stream, false);
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        refused = length > max;
        if refused || tail.len() < length {
            break;
        }
        expected.push(&tail[..length]);
        rest = &tail[length..];
    }
    let (mut buffer, mut found, mut error) = (Buffer::default(), Vec::new(), false);
    'stream: for chunk in stream.chunks(usize::from(size) + 1) {
        let missing = buffer.wanted(max).map_or(chunk.len(), |wanted| buffer.missing(wanted));
        buffer.push(chunk, missing);
        assert!(buffer.capacity() <= 2 * EAGER + stream.len());
        loop {
            match buffer.frame(max) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => {
                    error = true;
                    break 'stream;
                }
            }
        }
    }
    assert_eq!((found.len(), error), (expected.len(), refused));
    assert!(found.iter().zip(&expected).all(|(a, b)| a == b));
}
