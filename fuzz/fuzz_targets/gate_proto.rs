//! Messages of the gate's protocol, from apps and to them: what decodes means one thing, encodes to what decodes to
//! the same, and never asks for more than its bounds. The first byte chooses the direction.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quire_vfs::format::transaction::Piece;
use quire_vfs::gate::proto::{
    COMMIT_PREFIX, MAX_SMALL, Request, Response, commit_transaction, message_length,
};

fuzz_target!(|data: &[u8]| {
    let Some((&direction, message)) = data.split_first() else { return };
    if direction % 2 == 0 {
        request(message)
    } else {
        response(message)
    }
    if let Some(prefix) = message.first_chunk() {
        let length = message_length(*prefix, MAX_SMALL);
        assert!(length.is_err() || length.is_ok_and(|length| (1..=MAX_SMALL).contains(&length)));
    }
});

fn request(message: &[u8]) {
    let Ok(request) = Request::decode(message) else { return };
    let again = request.encode();
    let body = &again[4..];
    assert_eq!(again[..4], (body.len() as u32).to_le_bytes(), "its length comes first");
    assert_eq!(Request::decode(body).as_ref(), Ok(&request));
    match request {
        Request::Commit { .. } | Request::Part { .. } => {
            assert_eq!(body.len(), COMMIT_PREFIX);
            assert_eq!(body[..], message[..COMMIT_PREFIX], "all of its fixed part has a meaning");
            if let Ok(txn) = commit_transaction(message) {
                assert!(txn.page_count() > 0 && txn.page_count() <= txn.db_size() as usize);
                assert!(!matches!(txn.piece(), Piece::Part { .. }) || txn.before().pages == 0);
            }
        }
        _ => {
            assert!(Request::decode(&message[..message.len() - 1]).is_err(), "cut short");
            assert!(Request::decode(&[message, &[0]].concat()).is_err(), "something follows");
        }
    }
}

fn response(message: &[u8]) {
    let Ok(response) = Response::decode(message) else { return };
    let again = response.encode();
    assert_eq!(Response::decode(&again[4..]).as_ref(), Ok(&response));
    assert!(Response::decode(&message[..message.len() - 1]).is_err(), "cut short");
    assert!(Response::decode(&[message, &[0]].concat()).is_err(), "something follows");
}
