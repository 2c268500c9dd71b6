//! The file of users, and what a request says that it is. Pure functions over text.
//!
//! ```json
//! [{"username": "bob", "password": "$argon2id$…", "perms": ["execute", "query"]}, {"username": "*", "perms": ["status"]}]
//! ```
//!
//! A password is plain, or a hash that `quire passwd` prints. User `*` says what everybody may do, without a password.
//! A plain password is kept as its digest under a key of this process, so that the time that comparing takes says nothing
//! about it.

use argon2::password_hash::phc::PasswordHash;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// The most memory, in KiB, and passes over it that a hash may take to check: the file is the operator's, but a slip in it
/// should not stop the node.
const MAX_COST: (u32, u32) = (1 << 20, 64);
/// Permissions, as rqlite names them.
const PERMISSIONS: [&str; 13] = [
    "all",
    "join",
    "join-read-only",
    "remove",
    "execute",
    "query",
    "status",
    "ready",
    "backup",
    "load",
    "snapshot",
    "leader-ops",
    "ui",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    perms: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum Secret {
    Plain([u8; 32]),
    Hash(String),
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) secret: Secret,
    pub(crate) perms: HashSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Users {
    pub(crate) users: Vec<User>,
    pub(crate) everyone: HashSet<String>,
}

impl Users {
    /// The hash of some user, if any has one.
    pub(crate) fn any_hash(&self) -> Option<&str> {
        self.users.iter().find_map(|user| match &user.secret {
            Secret::Hash(hash) => Some(hash.as_str()),
            Secret::Plain(_) => None,
        })
    }
}

/// A digest under a key, of parts that can't run into each other.
pub(crate) fn digest(key: &[u8; 32], parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(key);
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// Reads the file; `key` is that of [`digest`].
pub(crate) fn parse(text: &str, key: &[u8; 32]) -> Result<Users, String> {
    let entries: Vec<Entry> = serde_json::from_str(text)
        .map_err(|why| format!("{why}; it must be a list of username, password and perms"))?;
    let mut users = Users::default();
    let mut names = HashSet::new();
    for Entry { username, password, perms } in entries {
        if let Some(unknown) = perms.iter().find(|perm| !PERMISSIONS.contains(&perm.as_str())) {
            let known = PERMISSIONS.join(" ");
            return Err(format!("{username} has the unknown permission {unknown:?}; there are {known}"));
        }
        if username == "*" {
            users.everyone.extend(perms);
            continue;
        }
        if username.contains(':') || !names.insert(username.clone()) {
            return Err(format!("{username:?} stands there twice, or contains a colon"));
        }
        let secret = if password.starts_with("$argon2") {
            let hash = PasswordHash::new(&password);
            let hash = hash.map_err(|why| format!("the password hash of {username} can't be used: {why}"))?;
            let cost = |name: &str| hash.params.get_decimal(name).unwrap_or(0);
            if cost("m") > MAX_COST.0 || cost("t") > MAX_COST.1 {
                return Err(format!(
                    "the password hash of {username} takes too much to check; see quire passwd"
                ));
            }
            Secret::Hash(password)
        } else if password.is_empty() {
            return Err(format!("{username} has no password"));
        } else {
            Secret::Plain(digest(key, &[&password]))
        };
        users.users.push(User { name: username, secret, perms: perms.into_iter().collect() });
    }
    Ok(users)
}

/// Name and password in the value of an `Authorization` header.
pub(crate) fn credentials(value: &str) -> Option<(String, String)> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(from_base64(encoded.trim())?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}
