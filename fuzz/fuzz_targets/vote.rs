//! The vote file: `src/vote.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::vote::run(data));
