//! Database names. A name becomes a file name on every node, so it is kept to what every file system takes.

/// Longest name, in bytes.
pub const MAX_LEN: usize = 64;

/// A name that can't be a database's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} can't name a database: {reason}; use 1 to 64 letters, digits, '_', '-' or '.', not first a '.' or '-'"
)]
pub struct NameError {
    name: String,
    reason: &'static str,
}

/// Accepts a name, or says what is wrong with it.
pub fn check(name: &str) -> Result<(), NameError> {
    let bad = |reason| Err(NameError { name: name.chars().take(MAX_LEN + 1).collect(), reason });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > MAX_LEN {
        return bad("it is too long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        return bad("it has other characters");
    }
    if name.starts_with(['.', '-']) || name.contains("..") {
        return bad("it looks like a path or a flag");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_flags_are_refused() {
        for good in ["main", "a", "Shop_2", "tenant-17.eu", "0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", "../a", "a/b", "a\\b", "-rf", ".hidden", "a..b", "ä", "a b", "a\0", &long]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
