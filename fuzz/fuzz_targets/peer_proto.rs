//! What nodes ask of each other above Raft: `src/peer_proto.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::peer_proto::run(data));
