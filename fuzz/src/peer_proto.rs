//! What nodes ask of each other above Raft: requests of writers (`node/src/forward/message.rs`), SQL that is sent on
//! (`node/src/sql/forward.rs`), frames of a transfer (`node/src/transfer/frames.rs`). The first byte chooses. What decodes
//! encodes to the same bytes, or reads as the same where text was mended; the first byte of a request tells its kind apart from
//! the others; pages of a frame are exactly as many as the frame is long.

use crate::forward_message as writers;
use crate::sql::forward as statements;
use crate::transfer_frames::{Ask, Offer, decode_pages};
use bytes::Bytes;
use quire_vfs::format::PageSize;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&what, body)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(body);
    match what % 9 {
        0 => {
            let Some(request) = writers::Request::decode(&bytes) else {
                assert!(!writers::why_not(&bytes).is_empty());
                return;
            };
            assert!(writers::is_one(&bytes));
            let mut again = request.encode().to_vec();
            if let writers::Request::Propose { command, .. } = &request {
                again.extend_from_slice(command);
            } else {
                assert_eq!(writers::Request::decode(&bytes.slice(..bytes.len() - 1)), None, "cut short");
            }
            assert_eq!(again, bytes);
        }
        1 => {
            let Some(answer) = writers::Answer::decode(&bytes) else { return };
            assert_eq!(writers::Answer::decode(&answer.encode()), Some(answer));
        }
        2 => {
            let Some(forward) = statements::Forward::decode(&bytes) else { return };
            assert!(!writers::is_one(&bytes) && bytes[0] != b'{' && bytes[0] != b'"');
            assert_eq!(statements::Forward::decode(&forward.encode()), Some(forward));
        }
        3 => {
            let Some(answer) = statements::Answer::decode(&bytes) else { return };
            assert_eq!(statements::Answer::decode(&answer.encode()), Some(answer));
        }
        7 => {
            let Some(question) = statements::Question::decode(&bytes) else { return };
            assert!(statements::is_question(&bytes) && !statements::is_request(&bytes));
            assert_eq!(question.encode(), bytes);
        }
        8 => {
            let Some(without) = statements::decode_consent(&bytes) else { return };
            assert_eq!(statements::encode_consent(&without), bytes);
        }
        4 => {
            let Ok(ask) = Ask::decode(bytes.clone()) else { return };
            assert_eq!(ask.encode()[4..], bytes[4..]);
        }
        5 => {
            let Some(offer) = Offer::decode(bytes.clone()) else { return };
            assert_eq!(offer.encode()[4..], bytes[4..]);
            assert!(offer.differing <= offer.pages);
        }
        _ => {
            let Some((&shift, frame)) = body.split_first() else { return };
            let Some(size) = PageSize::new(512 << (shift % 8)) else { return };
            let frame = Bytes::copy_from_slice(frame);
            let Some(pages) = decode_pages(&frame, size, 1000) else { return };
            let mut bytes = 8;
            for (page, image) in pages {
                assert!((1..=1000).contains(&page.0));
                assert_eq!(image.len(), size.bytes());
                bytes += 4 + image.len();
            }
            assert_eq!(bytes, frame.len(), "all of it are pages");
        }
    }
}
