//! What requests, URIs and pragmas say beside SQL: `src/request_options.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::request_options::run(data));
