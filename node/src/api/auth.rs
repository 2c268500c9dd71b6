//! Who may do what: users, passwords and permissions from a file (`api/users.rs`), as rqlite has them, checked before
//! every request.
//!
//! - Passwords are compared by their digests under a key of this process, so that the time it takes says nothing about
//!   them. If any user has a hash, whatever is wrong costs a check of one: a name that nobody has takes as long as a wrong
//!   password, be that of a hash or a plain one.
//! - A hash, which is costly to check by design, is checked once for each password that was right. Two are checked at a time,
//!   and few wait; beyond that, requests are told to come again. So strangers take no more than that of the machine.
//! - Who fails often is put off (`api/throttle.rs`): from then on nothing of his is checked for a while, right or wrong.

use super::throttle::Throttle;
use super::users::{self, Secret, User, Users, digest};
use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use axum::http::{HeaderMap, Method, header};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::Semaphore;

/// The longest file.
const MAX_FILE: u64 = 1 << 20;
/// Passwords that are known to be right.
const MAX_KNOWN: usize = 1024;
/// Hashes that are checked at the same time.
const CHECKS: usize = 2;
/// Requests that have a hash checked, or wait for it.
const MAX_CHECKING: usize = 64;

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct AuthError {
    path: PathBuf,
    reason: String,
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served.
    Allowed,
    /// It says too little, or something wrong.
    Denied,
    /// Nothing was checked. It may come again after so many seconds.
    Later(u64),
}

/// Users and permissions.
#[derive(Debug)]
pub struct Auth {
    path: PathBuf,
    key: [u8; 32],
    users: RwLock<Arc<Users>>,
    known: Mutex<HashSet<[u8; 32]>>,
    throttle: Mutex<Throttle>,
    checking: Semaphore,
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
            throttle: Mutex::default(),
            checking: Semaphore::new(MAX_CHECKING),
            checks: Semaphore::new(CHECKS),
        })
    }

    /// Reads the file again; what was read before stays if that fails.
    pub fn reload(&self) -> Result<(), AuthError> {
        let users = Arc::new(read(&self.path, &self.key)?);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.throttle.lock().unwrap_or_else(PoisonError::into_inner) = Throttle::default();
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a request with these headers, from there, has all these permissions.
    pub async fn check(&self, from: IpAddr, headers: &HeaderMap, needed: &[&str]) -> Verdict {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner).clone();
        let has = |perms: &HashSet<String>| {
            perms.contains("all") || needed.iter().all(|perm| perms.contains(*perm))
        };
        if has(&users.everyone) {
            return Verdict::Allowed;
        }
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((name, password)) = value.and_then(users::credentials) else { return Verdict::Denied };
        let throttle = || self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let who = digest(&self.key, &[&name]);
        if let Some(seconds) = throttle().put_off(from, who, Instant::now()) {
            return Verdict::Later(seconds);
        }
        let user = users.users.iter().find(|user| user.name == name);
        let Some(right) = self.is_right(&users, user, &name, password).await else {
            return Verdict::Later(1);
        };
        let Some(user) = user.filter(|_| right) else {
            throttle().failed(from, who, Instant::now());
            return Verdict::Denied;
        };
        let all = |user: &User| {
            has(&user.perms)
                || needed.iter().all(|perm| user.perms.contains(*perm) || users.everyone.contains(*perm))
        };
        if all(user) { Verdict::Allowed } else { Verdict::Denied }
    }

    /// `None`: too many are being checked.
    async fn is_right(
        &self,
        users: &Users,
        user: Option<&User>,
        name: &str,
        password: String,
    ) -> Option<bool> {
        let (hash, may_be_right) = match user.map(|user| &user.secret) {
            Some(Secret::Plain(expected)) if digest(&self.key, &[&password]) == *expected => {
                return Some(true);
            }
            Some(Secret::Hash(hash)) => (hash.clone(), true),
            // Wrong already; only its cost is wanted.
            _ => match users.any_hash() {
                Some(hash) => (hash.to_owned(), false),
                None => return Some(false),
            },
        };
        let id = digest(&self.key, &[name, &hash, &password]);
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if may_be_right && known().contains(&id) {
            return Some(true);
        }
        let _place = self.checking.try_acquire().ok()?;
        let _turn = self.checks.acquire().await.ok()?;
        let check = move || {
            let parsed = PasswordHash::new(&hash);
            parsed.is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
        };
        let right = tokio::task::spawn_blocking(check).await.unwrap_or(false) && may_be_right;
        if right {
            let mut known = known();
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(id);
        }
        Some(right)
    }
}

fn read(path: &Path, key: &[u8; 32]) -> Result<Users, AuthError> {
    let bad = |reason: String| AuthError { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|why| bad(why.to_string()))?.len();
    if size > MAX_FILE {
        return Err(bad(format!("{size} bytes; more than {MAX_FILE} are not read")));
    }
    let text = std::fs::read_to_string(path).map_err(|why| bad(why.to_string()))?;
    users::parse(&text, key).map_err(bad)
}

/// A hash for the file.
pub fn hash(password: &str) -> Result<String, String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|e| e.to_string())
}

/// The permissions that a request needs. What isn't known needs all of them.
pub fn needed(method: &Method, path: &str) -> &'static [&'static str] {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/db/execute" | "/db/create" | "/db/drop" => &["execute"],
        "/db/query" | "/db/list" | "/outcome" => &["query"],
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn allows(auth: &Auth, headers: &HeaderMap, needed: &[&str]) -> bool {
        auth.check(HERE, headers, needed).await == Verdict::Allowed
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
        assert!(allows(&auth, &none, &["ready"]).await);
        assert!(!allows(&auth, &none, &["query"]).await);
        let bob = basic("bob", "plain");
        assert!(allows(&auth, &bob, &["query", "execute"]).await && allows(&auth, &bob, &["ready"]).await);
        assert!(!allows(&auth, &bob, &["status"]).await && !allows(&auth, &bob, &["all"]).await);
        for _ in 0..2 {
            assert!(allows(&auth, &basic("ann", "se:cret"), &["remove"]).await);
            assert!(allows(&auth, &basic("ann", "se:cret"), &["all"]).await);
        }
        for (name, password) in
            [("bob", "wrong"), ("bob", ""), ("ann", "wrong"), ("eve", "plain"), ("*", ""), ("", "")]
        {
            assert!(!allows(&auth, &basic(name, password), &["query"]).await, "{name}");
        }
        for bad in ["Basic", "Basic !", "Bearer x", "Basic Ym9i"] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bad.parse().unwrap())]);
            assert!(!allows(&auth, &headers, &["query"]).await, "{bad}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_guesses_is_put_off_whether_right_or_wrong() {
        let auth = auth(
            r#"[{"username":"bob","password":"plain","perms":["query"]},{"username":"ann","password":"x","perms":["query"]},
                {"username":"*","perms":["ready"]}]"#,
        )
        .unwrap();
        let mut later = 0;
        for n in 0..30 {
            match auth.check(HERE, &basic("bob", &format!("guess {n}")), &["query"]).await {
                Verdict::Later(_) => later += 1,
                verdict => assert_eq!((verdict, later), (Verdict::Denied, 0), "guess {n}"),
            }
        }
        assert!(later >= 10, "{later} of 30 guesses were put off");
        assert!(matches!(auth.check(HERE, &basic("bob", "plain"), &["query"]).await, Verdict::Later(1..)));
        let elsewhere = "192.0.2.1".parse().unwrap();
        assert_eq!(auth.check(elsewhere, &basic("bob", "plain"), &["query"]).await, Verdict::Allowed);
        assert!(allows(&auth, &basic("ann", "x"), &["query"]).await, "another user");
        assert!(
            allows(&auth, &basic("bob", "no"), &["ready"]).await,
            "what everybody may is not asked about"
        );
    }

    /// However many come at once, few hashes are checked, and nobody waits in a long line.
    #[tokio::test(flavor = "current_thread")]
    async fn checks_of_hashes_are_bounded() {
        let text =
            format!(r#"[{{"username":"ann","password":"{}","perms":["all"]}}]"#, hash("right").unwrap());
        let auth = auth(&text).unwrap();
        assert!(allows(&auth, &basic("ann", "right"), &["all"]).await);
        let from = |n: u32| IpAddr::V4(n.into());
        let asked: Vec<_> =
            (0..MAX_CHECKING as u32 + 20).map(|n| (from(n), basic("ann", &format!("wrong {n}")))).collect();
        let verdicts = futures_util::future::join_all(
            asked.iter().map(|(from, headers)| auth.check(*from, headers, &["all"])),
        );
        // A password that is known to be right needs no check, and so no place.
        let known = basic("ann", "right");
        let known = async {
            tokio::task::yield_now().await;
            (auth.checking.available_permits(), auth.check(from(7777), &known, &["all"]).await)
        };
        let (verdicts, known) = futures_util::future::join(verdicts, known).await;
        assert_eq!(known, (0, Verdict::Allowed));
        let put_off = verdicts.iter().filter(|verdict| **verdict == Verdict::Later(1)).count();
        assert_eq!((put_off, verdicts.len() - put_off), (20, MAX_CHECKING));
        assert!(!verdicts.contains(&Verdict::Allowed));
    }

    /// Where a check has no place, what would cost one is put off.
    #[tokio::test(flavor = "current_thread")]
    async fn whatever_is_wrong_costs_a_check() {
        let text = format!(
            r#"[{{"username":"bob","password":"plain","perms":["all"]}},
                {{"username":"ann","password":"{}","perms":["all"]}}]"#,
            hash("right").unwrap()
        );
        let mixed = auth(&text).unwrap();
        for (name, password) in [("eve", "right"), ("eve", "plain"), ("bob", "right")] {
            assert_eq!(mixed.check(HERE, &basic(name, password), &["all"]).await, Verdict::Denied, "{name}");
        }
        let _places = mixed.checking.acquire_many(MAX_CHECKING as u32).await.unwrap();
        for (name, password) in [("eve", "right"), ("bob", "wrong"), ("ann", "wrong")] {
            assert_eq!(
                mixed.check(HERE, &basic(name, password), &["all"]).await,
                Verdict::Later(1),
                "{name}"
            );
        }
        assert!(allows(&mixed, &basic("bob", "plain"), &["all"]).await);
        let plain = auth(r#"[{"username":"bob","password":"plain","perms":["all"]}]"#).unwrap();
        let _places = plain.checking.acquire_many(MAX_CHECKING as u32).await.unwrap();
        assert_eq!(plain.check(HERE, &basic("eve", "plain"), &["all"]).await, Verdict::Denied);
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
            r#"[{"username":"a","password":"$argon2id$v=19$m=4000000000,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"}]"#,
            r#"[{"username":"a","password":"$argon2id$v=19$m=8,t=4000000000,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"}]"#,
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
