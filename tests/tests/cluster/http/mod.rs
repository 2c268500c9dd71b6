//! SQL over HTTP on three real nodes: writes on any of them, group commit, reads at all levels, leaders that end with
//! requests in flight, what clients get wrong, and everything that rqlite's clients and tools expect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bad_input;
mod contract;
mod document;
mod earlier;
mod edges;
mod leader;
mod quorum;
mod statements;
mod transactions;
mod users;

use quire_tests::TestCluster;
use quire_tests::crash::PATIENCE;
use quire_tests::http::ok;
use quire_tests::step;
use serde_json::{Value, json};

const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c)";

struct Scene {
    test: TestCluster,
    leader: String,
    followers: Vec<String>,
}

impl Scene {
    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.leader).chain(&self.followers)
    }

    /// The rows of a query, at the leader.
    fn rows(&self, sql: &str) -> Value {
        let body = ok(&self.leader, "/db/query", &json!([sql]).to_string());
        let value: Value = serde_json::from_str(&body).unwrap();
        assert!(value["results"][0]["error"].is_null(), "{sql}: {value}");
        value["results"][0]["values"].clone()
    }

    fn count(&self, sql: &str) -> u64 {
        self.rows(sql)[0][0].as_u64().unwrap()
    }
}

#[test]
fn sql_over_http() {
    let test = TestCluster::start(3);
    let id = test.cluster.wait_leader(PATIENCE).unwrap();
    let leader = test.cluster.node(id).unwrap().http.clone();
    let followers = test.cluster.nodes.iter().filter(|n| n.id != id).map(|n| n.http.clone()).collect();
    let scene = Scene { test, leader, followers };
    step("writes on any node", || statements::writes_anywhere(&scene));
    step("reads", || statements::reads(&scene));
    step("requests in company", || statements::company(&scene));
    step("endings of transactions", || statements::endings(&scene));
    step("what a request can't do", || bad_input::refusals(&scene));
    step("connections of their own", || statements::alone(&scene));
    step("pages of other sites", || bad_input::other_sites(&scene));
    step("names of other sites", || bad_input::rebound_names(&scene));
    step("bodies that make no sense", || bad_input::bad_bodies(&scene));
    step("slow clients", || bad_input::slow_clients(&scene));
    step("the document", || document::document(&scene));
    step("between its rows", || edges::edges(&scene));
    step("too many at once", || bad_input::overload(&scene));
    step("much of everything", || bad_input::much(&scene));
    step("queued writes", || transactions::queued(&scene));
    step("transactions over several requests", || transactions::interactive(&scene));
    step("transactions on any node", || transactions::interactive_anywhere(&scene));
    step("numbers", || statements::numbers(&scene));
}
