//! Data directories that are another's, and files that are damaged: the node says which file and where, and
//! doesn't start.

use crate::PATIENCE;
use quire_tests::hosts::{Host, Program, stock};
use quire_tests::replicas::{another_key, database, steady};
use quire_tests::{TestCluster, programs};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs a node on `dir` until it ends by itself, and returns how, and what it said.
fn run(dir: &Path, id: u64, key: &Path, flags: &[&str]) -> (Option<ExitStatus>, String) {
    let log = dir.with_extension("run");
    let out = File::create(&log).unwrap();
    let mut command = Command::new(&programs().quire);
    command
        .arg("node")
        .arg("--data-dir")
        .arg(dir)
        .args(["--node-id", &id.to_string()])
        .arg("--cluster-key")
        .arg(key);
    command.args(["--http-addr", "127.0.0.1:0", "--raft-addr", "127.0.0.1:0", "--log-segment-mib", "1"]);
    command.args(flags);
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            // It got past everything that could be refused.
            None if std::fs::read_to_string(&log).unwrap().contains("started") => break None,
            None => assert!(Instant::now() < deadline, "neither starts nor ends"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = child.kill();
    let _ = child.wait();
    (status, std::fs::read_to_string(&log).unwrap())
}

/// The node does not start, and what it says contains all of `said`.
fn assert_refused(what: &str, dir: &Path, id: u64, key: &Path, said: &[&str]) {
    let (status, log) = run(dir, id, key, &[]);
    let status = status.unwrap_or_else(|| panic!("{what}: it starts\n{log}"));
    assert!(!status.success(), "{what}: it ends with success\n{log}");
    let last = log.lines().last().unwrap_or_default();
    println!("{what}: {last}");
    for part in said {
        assert!(log.contains(part), "{what}: {part:?} is not in\n{log}");
    }
    assert!(!log.contains("panicked"), "{what}: {log}");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A node with a database of some MiB, ended in order.
fn stopped_node() -> (TestCluster, PathBuf) {
    let mut test = steady(1, &["--log-segment-mib", "1"]);
    let mut host = Host::open(Program::Cli, &database(&test, 1, "app"));
    host.sql("CREATE TABLE t(a)").unwrap();
    for _ in 0..12 {
        host.sql("INSERT INTO t VALUES (randomblob(300000))").unwrap();
    }
    host.close();
    assert!(test.cluster.stop(1).unwrap().success());
    let dir = test.cluster.node(1).unwrap().dir.clone();
    (test, dir)
}

#[test]
fn a_directory_serves_one_node_of_one_cluster_at_a_time() {
    if !Program::Cli.is_here() {
        return;
    }
    let (mut test, dir) = stopped_node();
    let key = test.dir.path().join("cluster.key");
    let other = test.dir.path().join("other.key");
    another_key(&other);
    let identity = dir.join("identity");
    let named = identity.to_str().unwrap();
    assert_refused(
        "another node id",
        &dir,
        7,
        &key,
        &[named, "belongs to node 1, not to node 7", "--node-id 1"],
    );
    assert_refused("another cluster", &dir, 1, &other, &[named, "another cluster"]);

    let good = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, good.replace("version 1", "version 2")).unwrap();
    assert_refused("another version", &dir, 1, &key, &[named, "version"]);
    std::fs::write(&identity, &good).unwrap();

    // Only the log is another's.
    let stranger = test.dir.path().join("stranger");
    copy(&dir, &stranger);
    std::fs::write(stranger.join("identity"), good.replace("node 1", "node 2")).unwrap();
    assert_refused("another node's log", &stranger, 2, &key, &["raft/log", "node 1", "offset"]);

    // The key.
    let copied = test.dir.path().join("copied.key");
    let bytes = std::fs::read(&key).unwrap();
    for (mode, contents, said) in [
        (0o644, &bytes[..], "0644"),
        (0o600, &bytes[..31], "31 bytes"),
        (0o600, &[bytes.as_slice(), b"\n"].concat(), "33 bytes"),
    ] {
        std::fs::write(&copied, contents).unwrap();
        std::fs::set_permissions(&copied, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_refused("the key", &dir, 1, &copied, &[copied.to_str().unwrap(), said]);
    }
    assert_refused("no key", &dir, 1, &test.dir.path().join("no.key"), &["no.key"]);

    // Directories in which others could put files of theirs in the place of the node's.
    for (path, mode) in [(dir.clone(), 0o777), (dir.join("db"), 0o770)] {
        let was = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = [path.to_str().unwrap(), &format!("{mode:04o}"), "run: chmod go-w"];
        assert_refused("a loose directory", &dir, 1, &key, &said);
        std::fs::set_permissions(&path, was).unwrap();
    }

    // It is as it was; and once it runs, no second node may have it.
    test.cluster.start_node(1).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    let lock = dir.join("lock");
    assert_refused("a second node", &dir, 1, &key, &[lock.to_str().unwrap(), "another node is running"]);
    assert_eq!(stock(&database(&test, 1, "app"), "SELECT count(*) FROM t").unwrap(), "12");
    let mut host = Host::open(Program::Cli, &database(&test, 1, "app"));
    let written = host.sql("INSERT INTO t VALUES (13)");
    written.unwrap_or_else(|why| panic!("{why}\n{}\n{}", host.log(), test.cluster.logs(20)));
}

/// The group is often the one that is the user's own, too. It was let in to the log, the vote and the manifest as well; and
/// a directory that the node had just made itself was refused.
#[test]
fn a_socket_group_gets_the_databases_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, key) = (temp.path().join("node"), temp.path().join("key"));
    another_key(&key);
    let group = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap();
    let Some(group) = group else { return eprintln!("skipped: this user's group has no name") };
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for attempt in 0..2 {
        let (ended, log) = run(&dir, 1, &key, &["--socket-group", &group.name]);
        assert!(ended.is_none(), "{log}");
        assert_eq!((mode(&dir), mode(&dir.join("db"))), (0o711, 0o2770));
        let own = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let own: Vec<_> = own.filter(|path| !path.ends_with("db")).collect();
        assert!(own.len() >= 3, "{own:?}");
        for path in own {
            assert_eq!(mode(&path) & 0o077, 0, "start {attempt}: {}", path.display());
            // As earlier versions made them.
            let was = mode(&path);
            set(&path, was | was >> 3 & 0o070);
        }
    }
}

/// Does something to a file's bytes.
type Damage = fn(&mut Vec<u8>);

#[test]
fn damaged_files_are_named_with_the_place() {
    if !Program::Cli.is_here() {
        return;
    }
    let (mut test, dir) = stopped_node();
    let key = test.dir.path().join("cluster.key");
    let mut segments: Vec<_> =
        std::fs::read_dir(dir.join("raft/log")).unwrap().map(|e| e.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort();
    assert!(segments.len() > 2, "{segments:?}");
    let segment = segments[0].strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
    let segment = segment.as_str();
    let cases: &[(&str, &str, Damage, &[&str])] = &[
        ("manifest: a flipped bit", "manifest", |b| b[20] ^= 1, &["at byte"]),
        ("manifest: cut", "manifest", |b| b.truncate(30), &["at byte"]),
        ("manifest: emptied", "manifest", Vec::clear, &["at byte"]),
        ("manifest: another version", "manifest", |b| b[8] = 1, &["version 1", "version 3"]),
        ("identity: a flipped bit", "identity", |b| b[40] ^= 1, &[]),
        ("identity: cut", "identity", |b| b.truncate(40), &[]),
        ("identity: no text", "identity", |b| b[3] = 0xff, &[]),
        ("side file: its magic", "db/app.db-quire", |b| b[0] ^= 1, &["byte 0"]),
        ("side file: its header", "db/app.db-quire", |b| b[17] ^= 1, &["byte 36"]),
        (
            "side file: both slots",
            "db/app.db-quire",
            |b| {
                b[512] ^= 1;
                b[1024] ^= 1;
            },
            &["byte 512"],
        ),
        ("side file: a hash", "db/app.db-quire", |b| b[4100] ^= 1, &["byte 4096"]),
        ("side file: cut", "db/app.db-quire", |b| b.truncate(4100), &["at byte"]),
        ("side file: emptied", "db/app.db-quire", Vec::clear, &["at byte"]),
        ("log: a flipped bit in the middle", segment, |b| b[300_000] ^= 1, &["offset", "damaged"]),
        ("log: a segment's header", segment, |b| b[50] ^= 1, &["offset 12", "damaged"]),
        ("log: cut", segment, |b| b.truncate(500_000), &["offset", "damaged"]),
        ("log: zeros", segment, |b| b[200_000..204_096].fill(0), &["offset", "damaged"]),
        (
            "vote: both slots",
            "raft/log/vote",
            |b| {
                b[60] ^= 1;
                b[4096 + 60] ^= 1;
            },
            &["offset"],
        ),
        ("vote: cut", "raft/log/vote", |b| b.truncate(100), &["offset"]),
    ];
    for (what, file, damage, said) in cases {
        let scratch = test.dir.path().join("scratch");
        copy(&dir, &scratch);
        let path = scratch.join(file);
        let mut bytes = std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let said: Vec<&str> = said.iter().copied().chain([path.to_str().unwrap()]).collect();
        assert_refused(what, &scratch, 1, &key, &said);
        std::fs::remove_dir_all(&scratch).unwrap();
    }

    // Files that are missing.
    for (file, said) in [
        (segment, "segment missing"),
        ("raft/log/vote", "vote"),
        ("db/app.db-quire", "app.db-quire"),
        ("db/app.db", "app.db"),
    ] {
        let scratch = test.dir.path().join("scratch");
        copy(&dir, &scratch);
        std::fs::remove_file(scratch.join(file)).unwrap();
        // The first segment could also have been purged; then what is missing is what comes after the purge.
        if file == segment {
            std::fs::remove_file(scratch.join(segments[1].strip_prefix(&dir).unwrap())).unwrap();
            copy(&segments[0], &scratch.join(segment));
        }
        assert_refused(&format!("{file} is gone"), &scratch, 1, &key, &[said]);
        std::fs::remove_dir_all(&scratch).unwrap();
    }

    // One bad slot of two is no damage.
    let vote = dir.join("raft/log/vote");
    let mut bytes = std::fs::read(&vote).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&vote, bytes).unwrap();
    test.cluster.start_node(1).unwrap();
    test.cluster.wait_leader(PATIENCE).unwrap();
    assert_eq!(stock(&database(&test, 1, "app"), "SELECT count(*) FROM t").unwrap(), "12");
}
