//! Users, passwords and what HTTP clients say that they are: `src/config.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::config::run(data));
