//! What SQLite writes to the WAL, captured, against a model of the file: `src/capture_model.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::capture_model::run(data));
