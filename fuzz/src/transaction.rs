//! Transactions and pieces of them. Even first byte: any bytes, and what decodes is put together again from what its
//! methods say, byte for byte. Odd: a sound piece, which comes back as it went in; every cut of it, a byte more, and
//! each change of its fixed part that makes it mean something else than it is long are refused.

use arbitrary::{Arbitrary, Unstructured};
use quire_vfs::format::transaction::{
    Before, HEADER_SIZE, LAST_HEADER_SIZE, Piece, Transaction, TxnId, encode_piece, encoded_size,
};
use quire_vfs::format::{PageNo, PageSize};

#[derive(Debug, Arbitrary)]
struct Sound {
    id: [u8; 16],
    piece: u8,
    word: u32,
    before: (u32, u32),
    shift: u8,
    spare: u32,
    steps: Vec<u8>,
    fills: u8,
    harm: (u16, u8),
}

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        again(rest);
    } else if let Ok(sound) = Sound::arbitrary(&mut Unstructured::new(rest)) {
        structured(&sound);
    }
}

/// Takes any bytes; whether they are a transaction.
fn again(bytes: &[u8]) -> bool {
    let Ok(txn) = Transaction::decode(bytes) else { return false };
    let numbers: Vec<PageNo> = txn.pages().map(|(page, _)| page).collect();
    let mut out = Vec::new();
    let (piece, size) = (txn.piece(), txn.page_size());
    encode_piece(&mut out, piece, txn.id(), size, txn.db_size(), &numbers, txn.fill_count());
    txn.pages().for_each(|(_, image)| out.extend_from_slice(image));
    assert_eq!(out, bytes, "what was read makes the same bytes");
    assert_eq!(txn.bounds(), (numbers[0], numbers[numbers.len() - 1]));
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers[0].0 > 0);
    assert!(numbers.iter().all(|page| page.0 <= txn.db_size()));
    assert_eq!(txn.images().len(), numbers.len() * size.bytes());
    let before = txn.before();
    assert!(before.pages as usize + numbers.len() <= txn.db_size() as usize);
    for old in [0, txn.db_size() / 2, txn.db_size()] {
        let fills: Vec<_> = txn.fills(old).collect();
        assert!(fills.len() <= numbers.len());
        assert!(fills.iter().all(|(page, image)| page.0 > old && image.iter().all(|&byte| byte == 0)));
    }
    true
}

fn structured(sound: &Sound) {
    let Some(size) = PageSize::new(512 << (sound.shift % 2)) else { return };
    let mut numbers: Vec<PageNo> = Vec::new();
    for step in sound.steps.iter().take(12) {
        let last = numbers.last().map_or(0, |page| page.0);
        numbers.push(PageNo(last + 1 + u32::from(*step)));
    }
    let Some(last) = numbers.last() else { return };
    let count = numbers.len() as u32;
    let piece = match sound.piece % 3 {
        0 => Piece::Whole,
        1 => Piece::Part { sequence: sound.word },
        _ => {
            let pages = 1 + sound.before.0 % 1000;
            Piece::Last(Before { parts: 1 + sound.word % pages, pages, fills: sound.before.1 % (pages + 1) })
        }
    };
    let ahead = if let Piece::Last(before) = piece { before.pages } else { 0 };
    let db_size = (last.0 + ahead).saturating_add(sound.spare);
    let fills = u32::from(sound.fills) % (count + 1);
    let mut bytes = Vec::new();
    encode_piece(&mut bytes, piece, TxnId(sound.id), size, db_size, &numbers, fills);
    let head = bytes.len() - 4 * numbers.len();
    assert_eq!(head, if ahead > 0 { LAST_HEADER_SIZE } else { HEADER_SIZE });
    numbers.iter().for_each(|page| bytes.extend(std::iter::repeat_n(page.0 as u8, size.bytes())));
    assert_eq!(bytes.len(), encoded_size(numbers.len(), size) + head - HEADER_SIZE);
    let txn = Transaction::decode(&bytes).expect("it is sound");
    assert_eq!((txn.id(), txn.piece(), txn.page_size()), (TxnId(sound.id), piece, size));
    assert_eq!((txn.db_size(), txn.fill_count()), (db_size, fills));
    assert!(txn.pages().map(|(page, _)| page).eq(numbers.iter().copied()));
    assert!(again(&bytes));

    let (at, mask) = sound.harm;
    let cut = usize::from(at) % bytes.len();
    assert!(Transaction::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    bytes.push(0);
    assert!(Transaction::decode(&bytes).is_err(), "a byte more");
    bytes.pop();
    // Version, piece, reserved, page size, count: none of them may change alone.
    let fixed = [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15];
    if mask != 0 {
        let at = fixed[usize::from(at) % fixed.len()];
        bytes[at] ^= mask;
        let same =
            at == 1 && matches!(Transaction::decode(&bytes), Ok(txn) if txn.page_count() == numbers.len());
        assert!(Transaction::decode(&bytes).is_err() || same, "byte {at}");
    }
}
