//! SQL scripts: `src/sql_script.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::sql_script::run(data));
