//! A log directory: `src/raft_log.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::raft_log::run(data));
