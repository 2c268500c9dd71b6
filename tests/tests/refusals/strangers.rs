//! A process that writes a replica's files past the VFS and past SQLite's locks: the node finds out, and puts things right.

use quire_node::cli::verify::verify;
use quire_tests::TestCluster;
use quire_tests::hosts::{Host, PATIENCE, Program};
use quire_tests::replicas::{assert_identical, database, steady};
use quire_vfs::format::wal::{ByteOrder, Checksum};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What is done to a word.
type Change = fn(u32) -> u32;

/// A header of the wal-index is so long, and stands there twice.
const HEADER: usize = 48;

fn beside(database: &Path, suffix: &str) -> File {
    let path = PathBuf::from(format!("{}{suffix}", database.display()));
    File::options().read(true).write(true).open(path).unwrap()
}

/// Changes a word of the wal-index's header, and seals it.
fn forge(database: &Path, word: usize, change: impl Fn(u32) -> u32) {
    let index = beside(database, "-shm");
    let mut header = [0; HEADER];
    index.read_exact_at(&mut header, 0).unwrap();
    let bytes = &mut header[4 * word..4 * word + 4];
    let value = u32::from_ne_bytes(bytes.try_into().unwrap());
    bytes.copy_from_slice(&change(value).to_ne_bytes());
    let sum = Checksum::default().over(&header[..40], ByteOrder::NATIVE);
    header[40..44].copy_from_slice(&sum.0.to_ne_bytes());
    header[44..].copy_from_slice(&sum.1.to_ne_bytes());
    index.write_all_at(&header, HEADER as u64).unwrap();
    index.write_all_at(&header, 0).unwrap();
}

/// Waits until the node has said so, and is well again.
fn heals(test: &TestCluster, node: u64, name: &str, why: &str, times: usize) {
    test.cluster
        .wait(&format!("{why:?}, and the repair"), PATIENCE, |cluster| {
            let node = cluster.node(node).unwrap();
            let status = node.status().unwrap_or_default();
            let databases = status["store"]["databases"].as_array().cloned().unwrap_or_default();
            let is_well = databases.iter().any(|db| db["name"] == name && db["fenced"].is_null());
            is_well && node.log().matches(why).count() >= times
        })
        .unwrap();
}

#[test]
fn whoever_writes_past_the_gate_is_found_out() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(3, &[]);
    let leader = test.cluster.wait_leader(PATIENCE).unwrap();
    let node = (1..=3).find(|id| *id != leader).unwrap();
    let mut writer = Host::open(Program::Cli, &database(&test, leader, "app"));
    writer.sql("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, randomblob(9000))").unwrap();
    test.cluster.wait_applied("app", PATIENCE).unwrap();
    let path = database(&test, node, "app");
    let mut reader = Host::open(Program::Cli, &path);
    assert_eq!(reader.sql("SELECT count(*) FROM t").unwrap(), ["1"]);
    let mut rows = 1;
    // Others write, and all nodes have the same, also in their files.
    let mut goes_on = |reader: &mut Host| {
        rows += 1;
        writer.sql(&format!("INSERT INTO t VALUES ({rows}, randomblob(9000))")).unwrap();
        test.cluster.wait_applied("app", PATIENCE).unwrap();
        assert_eq!(reader.sql("SELECT count(*) FROM t").unwrap(), [rows.to_string()]);
        assert_identical(&test, "app", &["SELECT * FROM t"]);
        writer.sql(&format!("UPDATE t SET b = randomblob(9000) WHERE a = {rows}")).unwrap();
        test.cluster.wait_applied("app", PATIENCE).unwrap();
    };
    goes_on(&mut reader);

    // The index: more frames, fewer, another size of the database, no header at all.
    let why = "a process past the gate has changed the wal-index";
    let forgeries: [(usize, Change); 4] =
        [(4, |frames| frames + 1), (4, |frames| frames - 1), (5, |pages| pages - 1), (0, |_| 7)];
    for (times, (word, change)) in forgeries.into_iter().enumerate() {
        forge(&path, word, change);
        heals(&test, node, "app", why, times + 1);
        goes_on(&mut reader);
    }

    // A frame: found by whoever reads all pages.
    let wal = beside(&path, "-wal");
    let end = wal.metadata().unwrap().len();
    let mut page = vec![0; 4096];
    let header: [u8; HEADER] = {
        let mut bytes = [0; HEADER];
        beside(&path, "-shm").read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let frames = u64::from(u32::from_ne_bytes(header[16..20].try_into().unwrap()));
    let last = 32 + (frames - 1) * (24 + 4096) + 24;
    assert!(frames > 0 && last + 4096 <= end);
    wal.read_exact_at(&mut page, last).unwrap();
    page[2000..2100].fill(0xee);
    wal.write_all_at(&page, last).unwrap();
    let report = verify(&test.cluster.nodes[0].http, false, true, PATIENCE).unwrap();
    assert!(!report.identical && report.faults.iter().any(|fault| fault.contains("page")), "{report:?}");
    heals(&test, node, "app", "is not what it was at entry", 1);
    goes_on(&mut reader);

    // The file: touched, which is no harm, and changed. (The verification before has brought it up to date.)
    assert_identical(&test, "app", &[]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    heals(&test, node, "app", "was touched by another process", 1);
    file.read_exact_at(&mut page, 2 * 4096).unwrap();
    page[3000..3100].fill(0xee);
    file.write_all_at(&page, 2 * 4096).unwrap();
    heals(&test, node, "app", "is not what it was at entry", 2);
    goes_on(&mut reader);
}
