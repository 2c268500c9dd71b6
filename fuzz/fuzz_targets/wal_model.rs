//! WALs that Quire writes, read by SQLite: `src/wal_model.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::wal_model::run(data));
