//! `/readyz`, `/status` and `/nodes`.

use super::{NodeState, Params, RQLITE_VERSION, body, error};
use crate::leadership::NO_QUORUM;
use crate::node::Node;
use crate::peers::{self, PeerRequest, PeerResponse};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quire_raft::{NodeId, Peer, RaftStatus, ServerState};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long `/readyz?sync` waits for this node to have what the leader has, if the caller doesn't say.
const SYNC: Duration = Duration::from_secs(10);
/// How long another node may take to answer, if the caller doesn't say: to `/nodes`, and the leader to `/readyz`.
pub(super) const REACH: Duration = Duration::from_secs(2);

/// Whether the node serves: 200, or 503 and what is missing.
///
/// A leader is one only if a quorum says so now: with the others paused or cut off, Raft still has this node lead, or
/// believe in the leader that it knew.
pub(super) async fn readyz(State(node): NodeState, params: Params) -> Response {
    let (sync, noleader) = (params.flag("sync"), params.flag("noleader"));
    let patience = match params.duration("timeout") {
        Ok(timeout) => timeout.unwrap_or(if sync { SYNC } else { REACH }),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let deadline = tokio::time::Instant::now() + patience;
    let confirmed = match noleader && !sync {
        true => None,
        false => Some(confirmed(&node, sync, deadline).await),
    };
    let behind = match &confirmed {
        Some(Ok(index)) if sync => {
            let late = || format!("is not there within {patience:?}");
            let done = tokio::time::timeout_at(deadline, in_sync(&node, *index)).await;
            Some(done.unwrap_or_else(|_| Err(late())).err())
        }
        Some(Err(why)) if sync => Some(Some(why.clone())),
        _ => None,
    };
    let status = node.raft_status();
    let mut lines = Vec::new();
    let mut ok = true;
    let mut line = |what: &str, fault: Option<String>| {
        ok &= fault.is_none();
        lines.push(match fault {
            None => format!("[+]{what} ok"),
            Some(why) => format!("[-]{what} {why}"),
        });
    };
    line("node", status.running.clone().err());
    if let Some(confirmed) = confirmed.filter(|_| !noleader) {
        line("leader", confirmed.err());
    }
    if let Some(behind) = behind {
        line("sync", behind);
    }
    line("member", node.leadership().removed());
    line("store", (!node.is_ready()).then(|| "is reading the log again".to_owned()));
    for (name, why) in node.registry().faults() {
        line(&format!("database {name}"), Some(why));
    }
    if let Some(why) = node.disk_full() {
        line("disk", Some(why));
    }
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, lines.join("\n") + "\n").into_response()
}

/// Up to where the leader has committed, if a quorum confirms that it leads. With nobody to ask for that it is worth waiting
/// only for who waits anyway.
async fn confirmed(
    node: &Arc<Node>,
    is_patient: bool,
    deadline: tokio::time::Instant,
) -> Result<u64, String> {
    if !is_patient && node.raft_status().leader.is_none() {
        return Err("not known".to_owned());
    }
    if !is_patient && node.leadership().leads_alone() {
        return Err(NO_QUORUM.to_owned());
    }
    node.confirmations().newest(node, deadline).await
}

/// Waits until this node has all up to an entry.
async fn in_sync(node: &Arc<Node>, index: u64) -> Result<(), String> {
    node.wait_taken(index).await;
    // A closed database has all that came for it.
    for id in node.registry().in_use() {
        if let Some(database) = node.registry().open(id).await? {
            database.caught_up().await;
        }
    }
    Ok(())
}

/// Everything that there is to say of the node.
pub(super) async fn status(State(node): NodeState, params: Params) -> Response {
    let mut value = describe(&node);
    if let Some(path) = params.get("key") {
        for key in path.split('.') {
            value = match value.get(key) {
                Some(found) => found.clone(),
                // As rqlite has it; and what is no object ends the path.
                None if value.is_object() => json!({}),
                None => value,
            };
        }
    }
    body(&value, params.flag("pretty"))
}

fn describe(node: &Arc<Node>) -> Value {
    let status = node.raft_status();
    let config = node.config();
    let (started, uptime) = node.started();
    let databases = node.registry().statuses();
    let main = databases.iter().find(|db| db.name == "main");
    let arriving = node.machine().arriving().into_iter();
    let arriving: Vec<Value> =
        arriving.map(|(name, progress)| json!({ "name": name, "transfer": progress })).collect();
    // Texts, as in rqlite, also where there is none.
    let leader =
        status.leader.and_then(|id| Some((id.to_string(), status.peers.get(&id)?.raft_addr.clone())));
    let leader = leader.unwrap_or_default();
    let nodes: Vec<Value> = status
        .peers
        .iter()
        .map(|(id, peer)| {
            let suffrage = if status.voters.contains(id) { "voter" } else { "nonvoter" };
            json!({ "id": id.to_string(), "addr": peer.raft_addr, "suffrage": suffrage })
        })
        .collect();
    json!({
        "build": { "version": RQLITE_VERSION, "quire": env!("CARGO_PKG_VERSION") },
        "http": {
            "bind_addr": config.http_addr.to_string(),
            "auth": if config.auth.is_some() { "enabled" } else { "disabled" },
            "tls": { "enabled": config.https.is_some().to_string() },
        },
        "node": { "start_time": rfc3339(started), "uptime": format!("{}s", uptime.as_secs()) },
        "os": { "os": std::env::consts::OS, "arch": std::env::consts::ARCH, "pid": std::process::id() },
        "store": {
            "node_id": node.id().to_string(),
            "addr": config.raft_adv_addr,
            "cluster_id": node.cluster_id(),
            "dir": config.data_dir.display().to_string(),
            "leader": { "node_id": leader.0, "addr": leader.1 },
            "nodes": nodes,
            "fsm_index": status.applied_index,
            "db_applied_index": main.map(|db| db.index),
            "ready": node.is_ready(),
            "removed": node.leadership().removed(),
            "raft": raft(&status),
            "log_bytes": node.raft().log_bytes(),
            "sqlite3": {
                "version": rusqlite::version(),
                "path": main.map(|db| node.registry().directory().join(format!("{}.db", db.name))),
                "db_size": main.map(|db| u64::from(db.pages) * u64::from(db.page_size)),
            },
            "disk_full": node.disk_full(),
            "arriving": arriving,
            "databases": databases,
        },
    })
}

fn raft(status: &RaftStatus) -> Value {
    let state = match status.state {
        ServerState::Leader => "Leader",
        ServerState::Candidate => "Candidate",
        ServerState::Follower | ServerState::Learner => "Follower",
        ServerState::Shutdown => "Shutdown",
    };
    json!({
        "state": state,
        "voter": status.voters.contains(&status.node_id),
        "term": status.term,
        "commit_index": status.committed_index,
        "applied_index": status.applied_index,
        "last_log_index": status.last_log_index,
        "last_snapshot_index": status.snapshot_index.unwrap_or(0),
        "purged_index": status.purged_index,
        "replication": status.replication,
        "running": status.running.clone().err().unwrap_or_else(|| "ok".into()),
    })
}

/// The members of the cluster, and whether this node reaches them.
pub(super) async fn nodes(State(node): NodeState, params: Params) -> Response {
    let timeout = match params.duration("timeout") {
        Ok(timeout) => timeout.unwrap_or(REACH),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let status = node.raft_status();
    let members =
        status.peers.iter().filter(|(id, _)| params.flag("nonvoters") || status.voters.contains(id));
    let probes = members.map(|(id, peer)| probe(&node, &status, *id, peer, timeout));
    let entries = futures_util::future::join_all(probes).await;
    let value = if params.get("ver") == Some("2") {
        json!({ "nodes": entries })
    } else {
        let by_id = entries.into_iter().map(|mut entry| {
            let id = entry["id"].take().as_str().unwrap_or_default().to_owned();
            entry["id"] = Value::String(id.clone());
            (id, entry)
        });
        Value::Object(by_id.collect::<Map<_, _>>())
    };
    body(&value, params.flag("pretty"))
}

/// What `/nodes` says of a member.
pub(super) async fn probe(
    node: &Arc<Node>,
    status: &RaftStatus,
    id: NodeId,
    peer: &Peer,
    timeout: Duration,
) -> Value {
    let began = Instant::now();
    let reached = if id == status.node_id { Ok(()) } else { reach(node, id, peer, timeout).await };
    let scheme = node.config().http_scheme();
    let mut entry = json!({
        "id": id.to_string(),
        "api_addr": format!("{scheme}://{}", peer.http_addr),
        "addr": peer.raft_addr,
        "version": RQLITE_VERSION,
        "voter": status.voters.contains(&id),
        "reachable": reached.is_ok(),
        "leader": status.leader == Some(id),
        "time": began.elapsed().as_secs_f64(),
    });
    if let Err(why) = reached {
        entry["error"] = Value::String(why);
    }
    entry
}

/// Has a member answer, and its HTTP take a connection. The latter alone says little: the kernel does it for a process
/// that stands still.
async fn reach(node: &Arc<Node>, id: NodeId, peer: &Peer, timeout: Duration) -> Result<(), String> {
    let answers = async {
        match peers::ask(node, id, &PeerRequest::Hello, timeout).await {
            PeerResponse::Hello { .. } => Ok(()),
            PeerResponse::Unavailable(why) | PeerResponse::Refused(why) => Err(why),
            other => Err(format!("the answer makes no sense: {other:?}")),
        }
    };
    let connects = async {
        match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(&peer.http_addr)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("HTTP at {}: {error}", peer.http_addr)),
            Err(_) => Err(format!("HTTP at {}: no connection within {timeout:?}", peer.http_addr)),
        }
    };
    tokio::try_join!(answers, connects).map(|_| ())
}

/// A time as RFC 3339 has it, in UTC. The calendar is computed as in "chrono-compatible low-level date
/// algorithms" (`civil_from_days`).
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_437_123), "2026-11-23T12:32:03Z");
    }
}
