//! Every path of the HTTP API asks for its permission: the routes are taken from the sources, so that a new one which nobody
//! made a rule for is found here. And who guesses passwords is put off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{Answer, request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What each route needs.
const RULES: &[(&str, &str, &[&str])] = &[
    ("POST", "/db/execute", &["execute"]),
    ("GET", "/db/query", &["query"]),
    ("POST", "/db/query", &["query"]),
    ("POST", "/db/request", &["query", "execute"]),
    ("GET", "/db/backup", &["backup"]),
    ("POST", "/db/load", &["load"]),
    ("POST", "/boot", &["load"]),
    ("POST", "/snapshot", &["snapshot"]),
    ("GET", "/", &["ui"]),
    ("GET", "/console", &["ui"]),
    ("GET", "/console/", &["ui"]),
    ("GET", "/db/list", &["query"]),
    ("POST", "/db/create", &["execute"]),
    ("POST", "/db/drop", &["execute"]),
    ("POST", "/tx", &["query", "execute"]),
    ("POST", "/tx/{id}/{what}", &["query", "execute"]),
    ("GET", "/readyz", &["ready"]),
    ("GET", "/status", &["status"]),
    ("GET", "/nodes", &["status"]),
    ("GET", "/metrics", &["status"]),
    ("GET", "/debug/vars", &["status"]),
    ("GET", "/outcome", &["query"]),
    ("GET", "/verify", &["status"]),
    ("POST", "/verify", &["leader-ops"]),
    ("GET", "/leader", &["status"]),
    ("POST", "/leader", &["leader-ops"]),
    ("DELETE", "/remove", &["remove"]),
];

/// Methods and paths of all `.route("PATH", get(…).post(…))` in the sources of the API.
fn routes() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/src/api");
    for file in std::fs::read_dir(sources).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for route in source.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').unwrap();
            // Up to the parenthesis that closes `.route(`.
            let mut depth = 1;
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let handlers = &rest[..end.unwrap()];
            for method in ["get", "post", "put", "delete", "patch", "head", "any", "on"] {
                let is_there = handlers.match_indices(&format!("{method}(")).any(|(at, _)| {
                    !handlers[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if is_there {
                    found.insert((method.to_uppercase(), path.to_owned()));
                }
            }
        }
    }
    found
}

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

fn name(perms: &BTreeSet<&str>) -> String {
    perms.iter().copied().collect::<Vec<_>>().join("+")
}

/// Exactly what a rule needs, and all that lacks one thing of it.
fn enough_and_too_little(needed: &[&'static str]) -> (BTreeSet<&'static str>, Vec<BTreeSet<&'static str>>) {
    let all_but =
        |lacks: &str| PERMISSIONS.into_iter().filter(|perm| *perm != lacks && *perm != "all").collect();
    (needed.iter().copied().collect(), needed.iter().map(|lacks| all_but(lacks)).collect())
}

#[test]
fn every_path_asks_for_its_permission() {
    let rules: BTreeSet<_> =
        RULES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(routes(), rules, "a route without a rule: see auth::needed, and add it to RULES");

    let mut users = BTreeSet::new();
    for (_, _, needed) in RULES {
        let (enough, too_little) = enough_and_too_little(needed);
        users.insert(enough);
        users.extend(too_little);
    }
    let user =
        |perms: &BTreeSet<&str>| json!({ "username": name(perms), "password": "secret", "perms": perms });
    let mut list: Vec<Value> = users.iter().map(user).collect();
    list.push(json!({ "username": "victim", "password": "secret", "perms": ["all"] }));
    let mut test = TestCluster::prepare(1);
    let file = test.dir.path().join("auth.json");
    std::fs::write(&file, json!(list).to_string()).unwrap();
    test.cluster.nodes[0].flags = vec!["--auth".into(), file.to_str().unwrap().into()];
    test.cluster.start_node(1).unwrap();
    let address = test.cluster.nodes[0].http.clone();
    let ask = |method: &str, path: &str, who: Option<(&str, &str)>| -> Option<Answer> {
        let path = path.replace("{id}", "none").replace("{what}", "rollback");
        let header = who.map(|(name, password)| format!("Authorization: Basic {}", base64(name, password)));
        let headers: Vec<&str> = header.as_deref().into_iter().collect();
        request(&address, method, &path, &headers, b"").ok()
    };
    let status = |method: &str, path: &str, who: Option<(&str, &str)>| {
        ask(method, path, who).map(|answer| answer.status)
    };
    test.cluster
        .wait("the node to answer", PATIENCE, |_| status("GET", "/status", None) == Some(401))
        .unwrap();

    for (method, path, needed) in RULES {
        let (enough, too_little) = enough_and_too_little(needed);
        assert_eq!(status(method, path, None), Some(401), "{method} {path} without a user");
        for perms in too_little {
            let who = name(&perms);
            assert_eq!(status(method, path, Some((&who, "secret"))), Some(401), "{method} {path} with {who}");
        }
        let who = name(&enough);
        let found = status(method, path, Some((&who, "secret")));
        assert!(!matches!(found, None | Some(401 | 429)), "{method} {path} with {who}: {found:?}");
    }
    for path in ["/", "/nothing", "/db/nothing", "//status", "/status/", "/STATUS", "/db/../status"] {
        let found = ask("GET", path, None).unwrap();
        assert_eq!((found.status, found.body.as_str()), (401, ""), "{path}");
    }

    // Guesses: at first each is answered, then none is even looked at.
    let guesses: Vec<_> =
        (0..40).map(|n| ask("GET", "/status", Some(("victim", &format!("guess {n}")))).unwrap()).collect();
    assert_eq!(guesses[0].status, 401);
    let put_off =
        guesses.iter().find(|answer| answer.status == 429).expect("somebody who guesses is put off");
    assert!(
        put_off.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()),
        "{put_off:?}"
    );
    assert!(guesses.iter().all(|answer| matches!(answer.status, 401 | 429)));
    assert_eq!(
        status("GET", "/status", Some(("status", "secret"))),
        Some(200),
        "another user is not held up"
    );
    let patient = |_: &_| status("GET", "/status", Some(("victim", "secret"))) == Some(200);
    test.cluster.wait("the user to be let in again", PATIENCE, patient).unwrap();
    test.cluster.stop(1).unwrap();
}

fn base64(name: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in format!("{name}:{password}").as_bytes().chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n)) as usize & 63] as char;
            out.push(if n <= chunk.len() { digit } else { '=' });
        }
    }
    out
}
