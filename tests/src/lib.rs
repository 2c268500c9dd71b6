//! What the end-to-end tests share: the programs under test, stock hosts, and clusters to run them on.
//!
//! Every test runs real processes: nodes (`quire node`), and hosts that load `libquire_vfs.so` into their own
//! SQLite. A host that is not on this machine makes its test print why it is skipped; with `CI=true` it is a
//! failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support")]

pub mod admin;
pub mod chaos;
pub mod crash;
pub mod fixture;
pub mod hosts;
pub mod http;
pub mod matrix;
pub mod partition;
pub mod replicas;
pub mod toolchains;

use quire_node::cli::local::LocalCluster;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;
use tempfile::TempDir;

/// The programs under test.
#[derive(Debug)]
pub struct Programs {
    /// The `quire` binary.
    pub quire: PathBuf,
    /// The loadable extension.
    pub extension: PathBuf,
}

/// Whether a test is to run in its long form: `QUIRE_LONG=1` says so of all that have one, `VARIABLE=long` of this one.
pub fn is_long(variable: &str) -> bool {
    let all = std::env::var_os("QUIRE_LONG").is_some_and(|value| !value.is_empty() && value != "0");
    all || std::env::var_os(variable).is_some_and(|form| form == "long")
}

/// A step of a long test, which says how long it took.
pub fn step(name: &str, body: impl FnOnce()) {
    let began = Instant::now();
    body();
    println!("{name}: {:.1} s", began.elapsed().as_secs_f64());
}

/// Builds the programs as the tests themselves are built, once per test binary.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        // Tests are one level deeper than binaries.
        let target = test.parent().unwrap();
        let target = if target.ends_with("deps") { target.parent().unwrap() } else { target };
        let mut build = toolchains::cargo();
        build.args(["build", "--workspace", "--quiet", "--manifest-path"]);
        build.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
        build.arg("--target-dir").arg(target.parent().unwrap());
        if target.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the programs under test don't build");
        let extension = target.join("libquire_vfs.so");
        let programs = Programs { quire: target.join("quire"), extension };
        assert!(programs.quire.exists() && programs.extension.exists(), "{programs:?}");
        programs
    })
}

/// A loopback address that no other test uses.
pub(crate) fn own_address() -> IpAddr {
    let random = RandomState::new().hash_one(std::process::id());
    let [a, b, c, ..] = random.to_le_bytes();
    Ipv4Addr::new(127, a | 1, b, c.clamp(1, 254)).into()
}

/// A cluster in a directory of its own, which goes with it.
#[derive(Debug)]
pub struct TestCluster {
    /// The nodes.
    pub cluster: LocalCluster,
    /// Where they live.
    pub dir: TempDir,
}

impl TestCluster {
    /// Prepares nodes; none is started.
    pub fn prepare(count: u64) -> TestCluster {
        let dir = tempfile::Builder::new().prefix("quire-test-").tempdir().unwrap();
        let cluster = LocalCluster::on(own_address(), &programs().quire, dir.path(), count).unwrap();
        TestCluster { cluster, dir }
    }

    /// Starts a cluster and waits until all of it votes.
    pub fn start(count: u64) -> TestCluster {
        let mut test = TestCluster::prepare(count);
        test.cluster.start().unwrap();
        test
    }
}
