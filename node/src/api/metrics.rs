//! `/metrics` for Prometheus, and `/debug/vars` with the same numbers as JSON.

use super::{NodeState, Params, body};
use crate::node::Node;
use crate::sql::stats::Histogram;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use quire_raft::ServerState;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

/// Numbers of one name.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    /// Suffix of the name, labels, value.
    samples: Vec<(&'static str, String, f64)>,
}

/// GET `/metrics`
pub(super) async fn metrics(State(node): NodeState) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, render(&collect(&node))).into_response()
}

/// GET `/debug/vars`
pub(super) async fn vars(State(node): NodeState, params: Params) -> Response {
    let mut all = Map::new();
    for Family { name, samples, .. } in collect(&node) {
        let value = match samples.as_slice() {
            [("", labels, value)] if labels.is_empty() => json!(value),
            samples => {
                let each = samples
                    .iter()
                    .map(|(suffix, labels, value)| (format!("{suffix}{{{labels}}}"), json!(value)));
                Value::Object(each.collect())
            }
        };
        all.insert(name.to_owned(), value);
    }
    if let Some(key) = params.get("key") {
        all.retain(|name, _| name == key);
    }
    body(&Value::Object(all), params.flag("pretty"))
}

fn render(families: &[Family]) -> String {
    let mut out = String::new();
    for Family { name, help, kind, samples } in families {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (suffix, labels, value) in samples {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(out, "{name}{suffix}{labels} {value}");
        }
    }
    out
}

fn one(name: &'static str, help: &'static str, kind: &'static str, value: f64) -> Family {
    Family { name, help, kind, samples: vec![("", String::new(), value)] }
}

fn histogram<const N: usize>(name: &'static str, help: &'static str, per: f64, of: &Histogram<N>) -> Family {
    let (buckets, count, sum) = of.snapshot();
    let mut samples: Vec<_> = buckets
        .into_iter()
        .map(|(bound, n)| ("_bucket", format!("le=\"{}\"", bound as f64 / per), n as f64))
        .collect();
    samples.push(("_bucket", "le=\"+Inf\"".into(), count as f64));
    samples.push(("_sum", String::new(), sum as f64 / per));
    samples.push(("_count", String::new(), count as f64));
    Family { name, help, kind: "histogram", samples }
}

fn collect(node: &Node) -> Vec<Family> {
    let status = node.raft_status();
    let flag = |value: bool| f64::from(u8::from(value));
    let number = |value: Option<u64>| value.unwrap_or(0) as f64;
    let last = status.last_log_index.unwrap_or(0);
    let lag = status
        .replication
        .iter()
        .map(|(id, at)| ("", format!("follower=\"{id}\""), last.saturating_sub(*at) as f64));
    let mut all = vec![
        Family {
            name: "quire_build_info",
            help: "Version of this node.",
            kind: "gauge",
            samples: vec![("", format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1.0)],
        },
        one("quire_uptime_seconds", "Since this node was started.", "gauge", node.started().1.as_secs_f64()),
        one(
            "quire_ready",
            "Whether what the log held at the start has been applied.",
            "gauge",
            flag(node.is_ready()),
        ),
        one(
            "quire_disk_full",
            "Whether the disk of the log or of the databases is full.",
            "gauge",
            flag(node.disk_full().is_some()),
        ),
        one(
            "quire_removed",
            "Whether this node was removed from its cluster.",
            "gauge",
            flag(node.leadership().removed().is_some()),
        ),
        one(
            "quire_raft_leader",
            "Whether this node leads.",
            "gauge",
            flag(status.state == ServerState::Leader),
        ),
        one("quire_raft_has_leader", "Whether a leader is known.", "gauge", flag(status.leader.is_some())),
        one("quire_raft_term", "The term; rises with each election.", "counter", status.term as f64),
        one("quire_raft_last_log_index", "Last entry in the log.", "gauge", last as f64),
        one(
            "quire_raft_commit_index",
            "Last entry known to be committed.",
            "gauge",
            number(status.committed_index),
        ),
        one(
            "quire_raft_applied_index",
            "Last entry handed to the databases.",
            "gauge",
            number(status.applied_index),
        ),
        one("quire_raft_log_bytes", "Size of the log on disk.", "gauge", node.raft().log_bytes() as f64),
        one("quire_raft_voters", "Members with a vote.", "gauge", status.voters.len() as f64),
        Family {
            name: "quire_raft_replication_lag_entries",
            help: "Entries that a member lacks; on the leader only.",
            kind: "gauge",
            samples: lag.collect(),
        },
    ];
    let databases = node.registry().statuses();
    let mut each = |name, help, of: &dyn Fn(&crate::db::database::DatabaseStatus) -> Option<f64>| {
        // Names of databases need no escaping: see `crate::name`.
        let samples = databases.iter().filter_map(|db| Some(("", format!("db=\"{}\"", db.name), of(db)?)));
        all.push(Family { name, help, kind: "gauge", samples: samples.collect() });
    };
    each("quire_db_index", "Last entry applied.", &|db| Some(db.index as f64));
    each("quire_db_durable_index", "Last entry in the database file.", &|db| Some(db.durable_index as f64));
    each("quire_db_bytes", "Size of the database.", &|db| {
        Some(f64::from(db.pages) * f64::from(db.page_size))
    });
    each("quire_db_wal_bytes", "Pages in the WAL.", &|db| {
        Some(f64::from(db.wal_frames) * f64::from(db.page_size))
    });
    each("quire_db_queued_entries", "Entries that wait to be applied.", &|db| Some(db.queued as f64));
    each("quire_db_waiting_writers", "Writers that wait for the lease.", &|db| Some(db.waiting as f64));
    each(
        "quire_db_fenced",
        "Whether the copy here isn't what the checksum says, or can't be served.",
        &|db| Some(flag(db.fenced.is_some())),
    );
    each("quire_db_transfer_received_pages", "Pages received from another node.", &|db| {
        db.transfer.map(|transfer| transfer.received as f64)
    });
    each("quire_db_transfer_total_pages", "Pages to be received.", &|db| {
        db.transfer.map(|transfer| transfer.total as f64)
    });
    if let Some(sql) = node.sql() {
        let stats = sql.stats();
        let count = |value: &std::sync::atomic::AtomicU64| value.load(Relaxed) as f64;
        all.push(histogram(
            "quire_http_commit_seconds",
            "Transactions of the HTTP API, from the first statement to the outcome.",
            1e6,
            &stats.commit_micros,
        ));
        all.push(histogram(
            "quire_http_batch_requests",
            "Requests in a transaction of the HTTP API.",
            1.0,
            &stats.batch,
        ));
        all.push(one(
            "quire_http_empty_transactions_total",
            "Transactions of the HTTP API that changed nothing.",
            "counter",
            count(&stats.empty),
        ));
        all.push(one(
            "quire_http_unknown_outcomes_total",
            "Transactions of the HTTP API whose outcome was unknown.",
            "counter",
            count(&stats.unknown),
        ));
        let waiting = sql
            .waiting()
            .into_iter()
            .filter_map(|(id, n)| Some(("", format!("db=\"{}\"", node.registry().name_of(id)?), n as f64)));
        all.push(Family {
            name: "quire_http_waiting_requests",
            help: "Requests that wait for the next transaction.",
            kind: "gauge",
            samples: waiting.collect(),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let stats = crate::sql::stats::Stats::default();
        stats.committed(3, true, std::time::Duration::from_millis(2));
        let text = render(&[
            one("a_total", "What it is.", "counter", 7.0),
            histogram("b", "How many.", 1.0, &stats.batch),
            histogram("c_seconds", "How long.", 1e6, &stats.commit_micros),
        ]);
        assert!(
            text.starts_with("# HELP a_total What it is.\n# TYPE a_total counter\na_total 7\n"),
            "{text}"
        );
        assert!(text.contains("b_bucket{le=\"2\"} 0\nb_bucket{le=\"4\"} 1\n"), "{text}");
        assert!(text.contains("b_bucket{le=\"+Inf\"} 1\nb_sum 3\nb_count 1\n"), "{text}");
        assert!(
            text.contains("c_seconds_bucket{le=\"0.002\"} 1\n") && text.contains("c_seconds_sum 0.002\n"),
            "{text}"
        );
    }
}
