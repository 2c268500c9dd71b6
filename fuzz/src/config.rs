//! What an operator writes and an HTTP client says about users. Even first byte: the file of `--auth`. What is taken has only
//! known permissions, names that are there once, and hashes that can be checked with bounded memory and time; plain passwords are not
//! kept as they are. Odd: the value of an `Authorization` header. Name and password are what stands there in base64, and what was
//! encoded is understood.

use crate::users::{Secret, credentials, digest, parse};
use std::collections::HashSet;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, body)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(body) else { return };
    if mode % 2 == 0 { file(text) } else { header(text) }
}

fn file(text: &str) {
    let key = [7; 32];
    let Ok(users) = parse(text, &key) else { return };
    let mut names = HashSet::new();
    for user in &users.users {
        assert!(names.insert(&user.name) && user.name != "*" && !user.name.contains(':'));
        match &user.secret {
            Secret::Plain(kept) => assert_ne!(kept, &digest(&key, &[""]), "an empty password"),
            Secret::Hash(hash) => assert!(hash.starts_with("$argon2")),
        }
    }
    let perms = users.users.iter().flat_map(|user| &user.perms).chain(&users.everyone);
    perms.for_each(|perm| assert!(perm.bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase())));
}

fn header(text: &str) {
    if let Some((name, password)) = credentials(text) {
        assert!(!name.contains(':'));
        let again = format!("Basic {}", base64(format!("{name}:{password}").as_bytes()));
        assert_eq!(credentials(&again), Some((name, password)));
    }
    let said = format!("basic {}", base64(text.as_bytes()));
    let expected = text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()));
    assert_eq!(credentials(&said), expected);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().enumerate().fold(0u32, |word, (n, byte)| word | u32::from(*byte) << (16 - 8 * n));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n)) as usize & 63] as char;
            out.push(if n <= chunk.len() { digit } else { '=' });
        }
    }
    out
}
