//! Log entries that nobody vouches for: what decodes must keep its promises and survive a round trip.
//!
//! The decoder's source is taken as it is, without the crate that it belongs to: that would bring a SQLite and
//! an openraft to build under the sanitizer, for nothing.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quire_vfs::format::transaction::{HEADER_SIZE, LAST_HEADER_SIZE, Piece, Transaction, encoded_size};

#[allow(dead_code, reason = "the decoder is all that is used")]
#[path = "../../node/src/command.rs"]
mod command;
#[allow(dead_code, reason = "as above")]
#[path = "../../node/src/name.rs"]
mod name;

use command::{Command, TRANSACTION_PREFIX};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(command) = Command::decode(&bytes) else { return };
    let again = command.encode();
    assert_eq!(again.len(), bytes.len(), "nothing is dropped or added");
    assert_eq!(again[..2], bytes[..2], "kind and version");
    assert_eq!(Command::decode(&again).as_ref(), Ok(&command));
    match &command {
        Command::Transaction { body, .. } => {
            assert_eq!(again[8..], bytes[8..], "all but the reserved bytes");
            assert!(!matches!(transaction(body), Piece::Part { .. }));
        }
        Command::Part { body, .. } => {
            assert_eq!(again[8..], bytes[8..], "all but the reserved bytes");
            assert!(matches!(transaction(body), Piece::Part { .. }));
        }
        Command::CreateDatabase { name, .. } => {
            assert_eq!(again, bytes);
            assert_eq!(name::check(name), Ok(()));
        }
        Command::Barrier { .. }
        | Command::Verify { .. }
        | Command::Void { .. }
        | Command::DropDatabase { .. } => {
            assert_eq!(again[8..], bytes[8..]);
        }
    }
    let _ = command::describe(&bytes);
    for cut in [0, 1, TRANSACTION_PREFIX, TRANSACTION_PREFIX + HEADER_SIZE, bytes.len() - 1] {
        if cut < bytes.len() {
            assert!(Command::decode(&bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }
});

/// What whoever applies a transaction relies on.
fn transaction(body: &[u8]) -> Piece {
    let txn = Transaction::decode(body).expect("a decoded command has a valid body");
    let last = matches!(txn.piece(), Piece::Last(_));
    let more = if last { LAST_HEADER_SIZE - HEADER_SIZE } else { 0 };
    assert_eq!(body.len(), encoded_size(txn.page_count(), txn.page_size()) + more);
    assert!(txn.before().pages as usize + txn.page_count() <= txn.db_size() as usize);
    assert!(txn.page_count() > 0 && txn.fill_count() as usize <= txn.page_count());
    let mut last = 0;
    for (page, data) in txn.pages() {
        assert!(page.0 > last && page.0 <= txn.db_size(), "page {page} after {last}");
        assert_eq!(data.len(), txn.page_size().bytes());
        last = page.0;
    }
    for old_size in [0, 1, txn.db_size()] {
        for (page, data) in txn.fills(old_size) {
            assert!(page.0 > old_size && data.iter().all(|&byte| byte == 0));
        }
    }
    txn.piece()
}
