//! What changes a cluster from outside: the commands, and HTTP requests as somebody might get them wrong.

use crate::programs;
use serde_json::Value;
use std::process::{Command, Output};

/// Runs `quire` with these arguments.
pub fn quire(args: &[&str]) -> Output {
    Command::new(&programs().quire).args(args).output().unwrap()
}

/// Runs `quire`, which must succeed, and returns what it prints as JSON.
pub fn quire_json(args: &[&str]) -> Value {
    let output = quire(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `quire`, which must fail, and returns what it says about that.
pub fn quire_fails(args: &[&str]) -> String {
    let output = quire(args);
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// One HTTP request; returns the status code and the body.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let answer = crate::http::request(address, method, path, &[], body.as_bytes()).unwrap();
    (answer.status, answer.body)
}
