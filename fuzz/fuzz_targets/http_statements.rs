//! Bodies of HTTP requests for SQL: `src/http_statements.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::http_statements::run(data));
