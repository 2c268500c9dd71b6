//! Raft on the wire: `src/raft_wire.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::raft_wire::run(data));
