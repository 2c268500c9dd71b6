//! SQLite's own judges: `speedtest1`, whose results are hashed, and `mptester`, many processes on one database, some of
//! which die. On plain files and through the VFS they must come to the same. docs/judges.md has what differs, and the
//! long form: `QUIRE_JUDGES=long cargo test -p quire-tests --test cluster judges`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quire_tests::hosts::{PATIENCE, skip, uri};
use quire_tests::programs;
use quire_tests::replicas::{assert_identical, database, steady};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The programs, built from the distribution's source of SQLite, once.
struct Judges {
    speedtest: PathBuf,
    mptester: PathBuf,
    scripts: PathBuf,
}

pub(crate) fn step(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}\n{said}", output.status)) }
}

/// Where this directory's own part of the judges is.
pub(crate) fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("judges")
}

/// Where the judges are built.
pub(crate) fn place() -> PathBuf {
    programs().extension.parent().and_then(Path::parent).unwrap().join("judges")
}

/// SQLite's source tree, fetched once.
pub(crate) fn source() -> Result<PathBuf, String> {
    static SOURCE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let fetch = || {
        let place = place();
        std::fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        let source = place.join("source");
        if !source.exists() {
            step(Command::new("bash").arg(here().join("fetch.sh")).arg(&place))?;
        }
        Ok(source)
    };
    SOURCE.get_or_init(fetch).clone()
}

fn build() -> Result<Judges, String> {
    let (place, source) = (place(), source()?);
    let compile = |file: PathBuf| {
        let program = place.join(file.file_stem().unwrap());
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-w", "-DSQLITE_ENABLE_RTREE", "-o"])
            .arg(&program)
            .arg(file)
            .arg(here().join("preload.c"));
        step(gcc.args(["-lsqlite3", "-lpthread"])).map(|()| program)
    };
    let speedtest = compile(source.join("test/speedtest1.c"))?;
    let mptester = compile(patient(&source, &place).map_err(|error| format!("mptest.c: {error}"))?)?;
    Ok(Judges { speedtest, mptester, scripts: source.join("mptest") })
}

/// mptester's source, with more time for its other processes to end and to add what they counted to the sum: with a second
/// or two, on a machine that is busy, those that were late were not in it.
fn patient(source: &Path, place: &Path) -> std::io::Result<PathBuf> {
    let mut text = std::fs::read_to_string(source.join("mptest/mptest.c"))?;
    for (short, long) in
        [("iTimeout = 1000;", "iTimeout = 60000;"), ("waitForClient(0, 2000,", "waitForClient(0, 60000,")]
    {
        assert!(text.contains(short), "{short}");
        text = text.replace(short, long);
    }
    let patient = place.join("mptest.c");
    std::fs::write(&patient, text)?;
    Ok(patient)
}

/// Runs a judge on a database, through the VFS if it is a node's; what it printed.
fn run(program: &Path, database: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.env_remove("QUIRE_SOCKET").env_remove("QUIRE_DEFAULT_VFS").env_remove("QUIRE_EXTENSION");
    if database.contains("vfs=quire") {
        command.env("QUIRE_EXTENSION", &programs().extension);
    }
    let output = command.arg(database).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    assert!(output.status.success(), "{program:?} on {database}: {}\n{said}", output.status);
    said
}

/// The line of what a judge printed that tells the result.
fn verdict(said: &str, what: &str) -> String {
    let line = said.lines().find(|line| line.contains(what));
    line.unwrap_or_else(|| panic!("no {what:?} in: {said}")).to_owned()
}

#[test]
fn they_judge_as_on_plain_files() {
    let judges = match build() {
        Ok(judges) => judges,
        Err(why) => return skip(&format!("SQLite's judges: {why}")),
    };
    // Test sets, each with its size; that of rtree grows with the square.
    let (testsets, repeat): (&[(&str, &str)], _) = if quire_tests::is_long("QUIRE_JUDGES") {
        (&[("main", "100"), ("cte", "100"), ("fp", "100"), ("orm", "100"), ("rtree", "10")], "5")
    } else {
        (&[("main", "10"), ("orm", "10")], "1")
    };
    let clusters = [steady(1, &[]), steady(3, &[])];
    // On a plain file, on a node alone, on a node that leads others.
    let mut places = vec![(clusters[0].dir.path().to_owned(), "")];
    for test in &clusters {
        let leader = test.cluster.wait_leader(PATIENCE).unwrap();
        places.push((database(test, leader, "app").parent().unwrap().to_owned(), "quire"));
    }
    let on = |place: usize, name: &str| {
        let (directory, vfs) = &places[place];
        let path = directory.join(format!("{name}.db"));
        if vfs.is_empty() { path.display().to_string() } else { uri(&path) }
    };
    let everywhere = |judge: &(dyn Fn(usize) -> String + Sync), what: &str| {
        let verdicts: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..places.len()).map(|place| scope.spawn(move || judge(place))).collect();
            running.into_iter().map(|thread| verdict(&thread.join().unwrap(), what)).collect()
        });
        assert_eq!([&verdicts[1], &verdicts[2]], [&verdicts[0]; 2], "{what}");
        verdicts[0].clone()
    };
    for (testset, size) in testsets {
        let arguments = ["--verify", "--journal", "wal", "--size", size, "--testset", testset];
        let judge = |place| run(&judges.speedtest, &on(place, &format!("speed-{testset}")), &arguments);
        println!("{testset}: {}", everywhere(&judge, "Verification Hash"));
    }
    for script in ["multiwrite01", "crash01"] {
        let path = judges.scripts.join(format!("{script}.test"));
        let arguments = ["--journalmode", "wal", "--repeat", repeat, path.to_str().unwrap()];
        let found = everywhere(&|place| run(&judges.mptester, &on(place, script), &arguments), "Summary:");
        println!("{script}: {found}");
        assert!(found.contains("Summary: 0 errors out of"), "{found}");
    }
    for (test, name) in
        [(&clusters[1], "speed-main"), (&clusters[1], "multiwrite01"), (&clusters[1], "crash01")]
    {
        assert_identical(test, name, &["SELECT count(*) FROM sqlite_schema"]);
    }
}
