//! What changes a cluster from outside: the commands, and HTTP requests as somebody might get them wrong.

use crate::programs;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

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
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
