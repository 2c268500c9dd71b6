//! Golden files: what each format was when it got its version. Today's code reads them, and writes the same bytes.
//!
//! A test that fails here has found that a format changed. Then its version must change too, the new bytes get a file of
//! their own (`QUIRE_GOLDEN=write cargo test golden` writes files that are missing, and none that is there), and what becomes of
//! the old ones stands in docs/upgrades.md.

use std::path::Path;

/// What the golden file has, which must be these bytes.
pub(crate) fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if !path.exists() && std::env::var_os("QUIRE_GOLDEN").is_some_and(|what| what == "write") {
        std::fs::write(&path, bytes).unwrap();
    }
    let found = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = found.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(found.len().min(bytes.len()));
    assert!(
        found == bytes,
        "{name}: {} bytes there, {} made here, different from byte {differs} on; see tests/golden/golden.rs",
        found.len(),
        bytes.len()
    );
    found
}
