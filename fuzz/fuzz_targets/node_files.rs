//! Manifest, side file and incoming state: `src/node_files.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::node_files::run(data));
