//! Transactions and their pieces: `src/transaction.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::transaction::run(data));
