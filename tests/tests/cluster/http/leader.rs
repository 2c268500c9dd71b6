//! A leader that dies with requests in flight.

use super::Scene;
use quire_tests::crash::PATIENCE;
use quire_tests::http::{Answer, ok, post, request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

/// What is said of a write must be true, whatever happens to the leader meanwhile.
pub(super) fn leader_dies(scene: &mut Scene) {
    ok(&scene.leader, "/db/execute", r#"["CREATE TABLE d(id INTEGER PRIMARY KEY)"]"#);
    let stop = AtomicBool::new(false);
    let id = scene.test.cluster.wait_leader(PATIENCE).unwrap();
    let addresses: Vec<_> = scene.followers.clone();
    let (mut yes, mut perhaps, mut no) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = (0..8u64)
            .map(|client| {
                let address = addresses[client as usize % 2].clone();
                scope.spawn(move || {
                    let mut fates: Vec<(u64, Result<(), bool>)> = Vec::new();
                    let mut id = client * 1_000_000;
                    // Some more after the end of the old leader.
                    let mut left = 20;
                    while left > 0 {
                        left -= u32::from(stop.load(SeqCst));
                        id += 1;
                        let body = json!([["INSERT INTO d VALUES(?)", id]]).to_string();
                        let answer = request(&address, "POST", "/db/execute", &[], body.as_bytes()).unwrap();
                        fates.push((id, fate(&answer)));
                    }
                    fates
                })
            })
            .collect();
        let cluster = &mut scene.test.cluster;
        let client = cluster.node(id).unwrap().http.clone();
        let written = || {
            let value: Value =
                serde_json::from_str(&ok(&client, "/db/query", r#"["SELECT count(*) FROM d"]"#)).unwrap();
            value["results"][0]["values"][0][0].as_u64().unwrap()
        };
        while written() < 100 {}
        cluster.kill(id).unwrap();
        stop.store(true, SeqCst);
        for (id, fate) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            match fate {
                Ok(()) => yes.insert(id),
                Err(true) => perhaps.insert(id),
                Err(false) => no.insert(id),
            };
        }
    });
    let value = post(&addresses[0], "/db/query?level=strong", r#"["SELECT id FROM d"]"#).json();
    let rows = value["results"][0]["values"].as_array().unwrap();
    let found: BTreeSet<u64> = rows.iter().map(|row| row[0].as_u64().unwrap()).collect();
    println!("{} done, {} perhaps, {} not done", yes.len(), perhaps.len(), no.len());
    assert!(yes.is_subset(&found), "acknowledged, but lost: {:?}", yes.difference(&found));
    assert!(no.is_disjoint(&found), "denied, but there: {:?}", no.intersection(&found));
    assert!(perhaps.len() <= 8, "each client has at most one request in flight");
    assert!(yes.len() >= 100 + 8 * 10, "most go on with the new leader: {}", yes.len());
}

/// What an answer says: done, perhaps (`Err(true)`), or not done.
fn fate(answer: &Answer) -> Result<(), bool> {
    if answer.status != 200 {
        assert!(matches!(answer.status, 408 | 503), "{answer:?}");
        return Err(false);
    }
    let value = answer.json();
    if let Some(error) = value["error"].as_str() {
        return Err(error.contains("outcome unknown"));
    }
    assert_eq!(value["results"][0]["rows_affected"], 1, "{answer:?}");
    Ok(())
}
