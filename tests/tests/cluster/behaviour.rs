//! What SQLite does beside plain statements: forks, threads, interrupts, backups, `VACUUM INTO`, `serialize`, blobs,
//! temporary tables, attached databases. `behaviour.py` does it all on plain files in WAL mode, then on replicated
//! databases, and both must come to the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_tests::hosts::{PATIENCE, Program};
use quire_tests::programs;
use quire_tests::replicas::{assert_identical, database, steady};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// What came of each case, and what SQLite logged.
fn run(extension: &str, directory: &Path, outside: &Path, mode: &str) -> (Value, String) {
    std::fs::create_dir_all(outside).unwrap();
    let mut command = Command::new(Program::Apsw.path());
    command
        .args(["-c", include_str!("../../src/behaviour.py"), extension])
        .arg(directory)
        .arg(outside)
        .arg(mode);
    command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS").env_remove("QUIRE_FAULT");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let times = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{times}", output.status);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let log = found["log"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    (found["results"].clone(), log.collect::<Vec<_>>().join("\n"))
}

#[test]
fn everything_is_as_in_plain_sqlite() {
    if !Program::Apsw.is_here() || !Program::Cli.is_here() {
        return;
    }
    let test = steady(3, &[]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let databases = database(&test, leader, "app").parent().unwrap().to_owned();
    let extension = programs().extension.to_str().unwrap();
    for mode in ["serialized", "multi"] {
        let plain = test.dir.path().join(format!("plain-{mode}"));
        std::fs::create_dir(&plain).unwrap();
        let (plain, _) = run("plain", &plain, &plain.join("outside"), mode);
        let outside = test.dir.path().join(format!("outside-{mode}"));
        let (replicated, log) = run(extension, &databases, &outside, mode);
        let cases = plain.as_object().unwrap();
        assert!(cases.len() >= 15, "{plain:#}");
        for (case, expected) in cases {
            let failed = |result: &Value| result.as_str().is_some_and(|text| text.starts_with("Traceback"));
            assert!(!failed(expected), "{case} on plain files: {}", expected.as_str().unwrap());
            let mut expected = expected.clone();
            if case == "attached_writing" {
                // Plain SQLite commits one file after the other; here the second is not to be written.
                assert_eq!((expected[0].take(), expected[2].take()), (Value::Null, Value::Null));
                (expected[0], expected[2]) = (json!("ReadOnlyError"), json!("ReadOnlyError"));
            }
            assert_eq!(replicated[case], expected, "{case}, {mode}\n{log}");
        }
        let why = format!(
            "this transaction writes to {mode}-attached_a, and can't write to two replicated databases"
        );
        assert!(log.contains(&why), "{log}");
    }
    for name in ["serialized-forks", "multi-threads", "multi-vacuums", "serialized-backup_in", "multi-blobs"]
    {
        assert_identical(&test, name, &["SELECT * FROM t ORDER BY a"]);
    }
}
