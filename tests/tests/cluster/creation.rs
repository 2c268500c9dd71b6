//! Databases of one name that several create at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use quire_tests::TestCluster;
use quire_tests::hosts::{Host, Load, Program, uri};
use quire_tests::http::{Answer, post};
use quire_tests::replicas::{assert_identical, database, steady};

const SIZES: [u32; 3] = [512, 4096, 65536];
/// What a client of the HTTP API asks for.
const OVER_HTTP: u32 = 1024;

fn page_size(host: &mut Host) -> u32 {
    host.sql("PRAGMA page_size").unwrap()[0].parse().unwrap()
}

/// An app on each node, and a client of the API, create the same name with different page sizes. The first one in the log
/// wins, on all nodes; the others are told which size it has, or, where they name none, take that.
#[test]
fn one_page_size_wins() {
    if !Program::Cli.is_here() {
        return;
    }
    let test = steady(3, &[]);
    let mut winners = Vec::new();
    for round in 0..8 {
        winners.push(create(&test, &format!("same{round}")));
    }
    println!("pages of {winners:?} bytes");
}

fn create(test: &TestCluster, name: &str) -> u32 {
    let mut hosts: Vec<_> = SIZES.iter().map(|_| Host::start(Program::Cli, Load::Vfs)).collect();
    let path = |node: usize| database(test, 1 + node as u64, name);
    let url = format!("/db/create?db={name}&page_size={OVER_HTTP}");
    let (opened, created): (Vec<_>, Answer) = std::thread::scope(|scope| {
        let opening: Vec<_> = hosts
            .iter_mut()
            .zip(SIZES)
            .enumerate()
            .map(|(node, (host, size))| {
                let database = format!("{}&page_size={size}", uri(&path(node)));
                scope.spawn(move || host.connect(&database))
            })
            .collect();
        let created = post(&test.cluster.nodes[0].http, &url, "");
        (opening.into_iter().map(|thread| thread.join().unwrap()).collect(), created)
    });
    // Who names no size takes what there is.
    let mut any = Host::open(Program::Cli, &path(0));
    let winner = page_size(&mut any);
    any.sql("CREATE TABLE t(a); INSERT INTO t VALUES (zeroblob(100000))").unwrap();
    assert!(SIZES.contains(&winner) || winner == OVER_HTTP, "{winner}");
    let why = format!("pages of {winner} bytes");
    for (node, ((host, size), opened)) in hosts.iter_mut().zip(SIZES).zip(opened).enumerate() {
        assert_eq!(opened.is_ok(), size == winner, "{name}, {size}: {opened:?}, {}", host.log());
        if opened.is_err() {
            assert!(host.log().contains(&why), "{name}, {size}: {}", host.log());
            host.connect(&uri(&path(node))).unwrap();
        }
        host.sql("PRAGMA busy_timeout = 20000; INSERT INTO t VALUES (zeroblob(100000))").unwrap();
        assert_eq!(page_size(host), winner);
    }
    match created.status {
        200 => {
            assert_eq!((created.json()["page_size"].as_u64(), winner), (Some(OVER_HTTP.into()), OVER_HTTP))
        }
        // Found there, or by the one that it lost against.
        409 => {}
        status => panic!("{status}: {created:?}"),
    }
    any.close();
    hosts.into_iter().for_each(Host::close);
    assert_identical(test, name, &["SELECT count(*), sum(length(a)) FROM t"]);
    winner
}
