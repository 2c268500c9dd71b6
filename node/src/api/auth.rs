//! Who may do what: users, passwords and permissions from a file, as rqlite has them, checked before every request.
//!
//! ```json
//! [{"username": "bob", "password": "$argon2id$…", "perms": ["execute", "query"]}, {"username": "*", "perms": ["status"]}]
//! ```
//!
//! A password is plain, or a hash that `quire passwd` prints. User `*` says what everybody may do, without a password.
//! Passwords are compared by their digests under a key of this process, so that the time it takes says nothing about
//! them; and a hash, which is costly to check by design, is checked once for each password that was right.

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use axum::http::{HeaderMap, Method, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Semaphore;

/// The longest file.
const MAX_FILE: u64 = 1 << 20;
/// Passwords that are known to be right.
const MAX_KNOWN: usize = 1024;
/// Hashes that are checked at the same time.
const CHECKS: usize = 2;
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

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct AuthError {
    path: PathBuf,
    reason: String,
}

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
enum Secret {
    Plain([u8; 32]),
    Hash(String),
}

#[derive(Debug)]
struct User {
    name: String,
    secret: Secret,
    perms: HashSet<String>,
}

#[derive(Debug, Default)]
struct Users {
    users: Vec<User>,
    everyone: HashSet<String>,
}

/// Users and permissions.
#[derive(Debug)]
pub struct Auth {
    path: PathBuf,
    key: [u8; 32],
    users: RwLock<Arc<Users>>,
    known: Mutex<HashSet<[u8; 32]>>,
    checks: Semaphore,
}

impl Auth {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Auth, AuthError> {
        let mut key = [0; 32];
        for chunk in key.chunks_mut(8) {
            chunk.copy_from_slice(&RandomState::new().hash_one(0).to_le_bytes());
        }
        let users = read(path, &key)?;
        let users = RwLock::new(Arc::new(users));
        Ok(Auth {
            path: path.to_owned(),
            key,
            users,
            known: Mutex::default(),
            checks: Semaphore::new(CHECKS),
        })
    }

    /// Reads the file again; what was read before stays if that fails.
    pub fn reload(&self) -> Result<(), AuthError> {
        let users = Arc::new(read(&self.path, &self.key)?);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a request with these headers has all these permissions.
    pub async fn allows(&self, headers: &HeaderMap, needed: &[&str]) -> bool {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner).clone();
        let has = |perms: &HashSet<String>| {
            perms.contains("all") || needed.iter().all(|perm| perms.contains(*perm))
        };
        if has(&users.everyone) {
            return true;
        }
        let Some((name, password)) = credentials(headers) else { return false };
        let user = users.users.iter().find(|user| user.name == name);
        // A name that nobody has takes as long as a wrong password.
        let secret = user.or(users.users.first()).map(|user| &user.secret);
        let Some(secret) = secret else { return false };
        let right = self.is_right(secret, &name, password).await;
        let all = |user: &User| {
            has(&user.perms)
                || needed.iter().all(|perm| user.perms.contains(*perm) || users.everyone.contains(*perm))
        };
        right && user.is_some_and(all)
    }

    async fn is_right(&self, secret: &Secret, name: &str, password: String) -> bool {
        match secret {
            Secret::Plain(expected) => digest(&self.key, &[&password]) == *expected,
            Secret::Hash(hash) => {
                let id = digest(&self.key, &[name, hash, &password]);
                let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known().contains(&id) {
                    return true;
                }
                let Ok(_turn) = self.checks.acquire().await else { return false };
                let hash = hash.clone();
                let check = move || {
                    let parsed = PasswordHash::new(&hash);
                    parsed.is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
                };
                let right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
                if right {
                    let mut known = known();
                    if known.len() >= MAX_KNOWN {
                        known.clear();
                    }
                    known.insert(id);
                }
                right
            }
        }
    }
}

/// A digest under a key, of parts that can't run into each other.
fn digest(key: &[u8; 32], parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(key);
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

fn read(path: &Path, key: &[u8; 32]) -> Result<Users, AuthError> {
    let bad = |reason: String| AuthError { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|why| bad(why.to_string()))?.len();
    if size > MAX_FILE {
        return Err(bad(format!("{size} bytes; more than {MAX_FILE} are not read")));
    }
    let text = std::fs::read_to_string(path).map_err(|why| bad(why.to_string()))?;
    let entries: Vec<Entry> = serde_json::from_str(&text)
        .map_err(|why| bad(format!("{why}; it must be a list of username, password and perms")))?;
    let mut users = Users::default();
    for Entry { username, password, perms } in entries {
        if let Some(unknown) = perms.iter().find(|perm| !PERMISSIONS.contains(&perm.as_str())) {
            let known = PERMISSIONS.join(" ");
            return Err(bad(format!("{username} has the unknown permission {unknown:?}; there are {known}")));
        }
        if username == "*" {
            users.everyone.extend(perms);
            continue;
        }
        if username.contains(':') || users.users.iter().any(|user| user.name == username) {
            return Err(bad(format!("{username:?} stands there twice, or contains a colon")));
        }
        let secret = if password.starts_with("$argon2") {
            PasswordHash::new(&password)
                .map_err(|why| bad(format!("the password hash of {username} can't be used: {why}")))?;
            Secret::Hash(password)
        } else if password.is_empty() {
            return Err(bad(format!("{username} has no password")));
        } else {
            Secret::Plain(digest(key, &[&password]))
        };
        users.users.push(User { name: username, secret, perms: perms.into_iter().collect() });
    }
    Ok(users)
}

/// A hash for the file.
pub fn hash(password: &str) -> Result<String, String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|e| e.to_string())
}

/// Name and password of a request.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
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

/// The permissions that a request needs. What isn't known needs all of them.
pub fn needed(method: &Method, path: &str) -> &'static [&'static str] {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/db/execute" | "/db/create" | "/db/drop" => &["execute"],
        "/db/query" | "/db/list" => &["query"],
        "/db/request" => &["query", "execute"],
        "/db/backup" => &["backup"],
        "/db/load" | "/boot" => &["load"],
        "/snapshot" => &["snapshot"],
        "/remove" => &["remove"],
        "/readyz" => &["ready"],
        "/status" | "/nodes" | "/metrics" | "/debug/vars" => &["status"],
        "/leader" if reads => &["status"],
        "/verify" if reads => &["status"],
        "/leader" | "/verify" => &["leader-ops"],
        "/" | "/console" | "/console/" => &["ui"],
        path if path == "/tx" || path.starts_with("/tx/") => &["query", "execute"],
        _ => &["all"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(text: &str) -> Result<Auth, AuthError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Auth::load(file.path())
    }

    fn basic(name: &str, password: &str) -> HeaderMap {
        let mut encoded = Vec::new();
        crate::sql::json::base64(format!("{name}:{password}").as_bytes(), &mut encoded);
        let value = format!("Basic {}", String::from_utf8(encoded).unwrap());
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[tokio::test(flavor = "current_thread")]
    async fn passwords_and_permissions() {
        let hash = hash("se:cret").unwrap();
        let text = format!(
            r#"[{{"username":"bob","password":"plain","perms":["execute","query"]}},
                {{"username":"ann","password":"{hash}","perms":["all"]}},
                {{"username":"*","perms":["ready"]}}]"#
        );
        let auth = auth(&text).unwrap();
        let none = HeaderMap::new();
        assert!(auth.allows(&none, &["ready"]).await);
        assert!(!auth.allows(&none, &["query"]).await);
        let bob = basic("bob", "plain");
        assert!(auth.allows(&bob, &["query", "execute"]).await && auth.allows(&bob, &["ready"]).await);
        assert!(!auth.allows(&bob, &["status"]).await && !auth.allows(&bob, &["all"]).await);
        for _ in 0..2 {
            assert!(auth.allows(&basic("ann", "se:cret"), &["remove"]).await);
            assert!(auth.allows(&basic("ann", "se:cret"), &["all"]).await);
        }
        for (name, password) in
            [("bob", "wrong"), ("bob", ""), ("ann", "wrong"), ("eve", "plain"), ("*", ""), ("", "")]
        {
            assert!(!auth.allows(&basic(name, password), &["query"]).await, "{name}");
        }
        for bad in ["Basic", "Basic !", "Bearer x", "Basic Ym9i"] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bad.parse().unwrap())]);
            assert!(!auth.allows(&headers, &["query"]).await, "{bad}");
        }
    }

    #[test]
    fn files_that_can_not_be_used() {
        for bad in [
            "",
            "{}",
            r#"[{"password":"x"}]"#,
            r#"[{"username":"a"}]"#,
            r#"[{"username":"a","password":"x","perms":["everything"]}]"#,
            r#"[{"username":"a","password":"x"},{"username":"a","password":"y"}]"#,
            r#"[{"username":"a:b","password":"x"}]"#,
            r#"[{"username":"a","password":"$argon2id$nonsense"}]"#,
        ] {
            assert!(auth(bad).is_err(), "{bad}");
        }
        assert!(Auth::load(Path::new("/nonexistent/auth.json")).is_err());
    }

    #[test]
    fn what_is_not_known_needs_all() {
        assert_eq!(needed(&Method::GET, "/something"), ["all"]);
        assert_eq!(needed(&Method::GET, "/leader"), ["status"]);
        assert_eq!(needed(&Method::POST, "/leader"), ["leader-ops"]);
        assert_eq!(needed(&Method::POST, "/db/request"), ["query", "execute"]);
    }
}
