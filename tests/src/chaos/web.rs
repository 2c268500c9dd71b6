//! Operations over HTTP, and what an answer means by docs/http.md.

use super::clients::{HANG, Place, rows_of};
use super::history::Outcome;
use super::work::{Level, Request};
use crate::http::Answer;
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a request may take, as the node is told.
const TIMEOUT_S: u64 = 8;
const CONNECT: Duration = Duration::from_secs(5);

/// An operation: one request, or a transaction over several.
pub fn run(place: &Place, request: &Request, several: bool) -> Outcome {
    let body = Value::from(request.statements.clone()).to_string();
    let (path, options) = match request.reads {
        None if several => return transaction(place, request.database, &body).unwrap_or_else(|end| end),
        None => ("request", "transaction"),
        Some(Level::Linearizable) => ("query", "level=linearizable"),
        Some(Level::Local) => ("query", "level=none"),
    };
    let path = format!("/db/{path}?db={}&timeout={TIMEOUT_S}s&{options}", request.database);
    match post(place, &path, &body) {
        Ok(answer) => judge(answer.status, &answer.body),
        Err(outcome) => outcome,
    }
}

/// Begins a transaction, runs the statements in it, and commits it. Before the commit was sent nothing is done.
fn transaction(place: &Place, database: &str, body: &str) -> Result<Outcome, Outcome> {
    let definite = |outcome: Outcome| match outcome {
        Outcome::Unknown(why) => Outcome::Refused(format!("before COMMIT: {why}")),
        other => other,
    };
    let begun = post(place, &format!("/tx?db={database}&timeout={TIMEOUT_S}s"), "").map_err(definite)?;
    let id = serde_json::from_str::<Value>(&begun.body)
        .ok()
        .and_then(|value| value["id"].as_str().map(str::to_owned));
    let Some(id) = id.filter(|_| begun.status == 200) else {
        return Err(Outcome::Refused(format!("/tx: {}: {}", begun.status, begun.body.trim_end())));
    };
    let answer = post(place, &format!("/tx/{id}/request"), body).map_err(definite)?;
    let done = definite(judge(answer.status, &answer.body));
    if !matches!(done, Outcome::Done(_)) {
        // If this doesn't get through, it is rolled back when its time is over.
        let _ = post(place, &format!("/tx/{id}/rollback"), "");
        return Err(done);
    }
    let ended = post(place, &format!("/tx/{id}/commit"), "")?;
    match ended.status {
        200 => Ok(done),
        400..500 | 503 => {
            Err(Outcome::Refused(format!("commit: {}: {}", ended.status, ended.body.trim_end())))
        }
        _ => Err(Outcome::Unknown(format!("commit: {}: {}", ended.status, ended.body.trim_end()))),
    }
}

/// One request. Nothing was sent if there was no connection; after that nothing is known without an answer.
fn post(place: &Place, path: &str, body: &str) -> Result<Answer, Outcome> {
    let Ok(address) = place.http.parse::<SocketAddr>() else {
        return Err(Outcome::Refused(format!("{} is no address", place.http)));
    };
    let stream = TcpStream::connect_timeout(&address, CONNECT)
        .map_err(|error| Outcome::Refused(format!("no connection: {error}")))?;
    send(stream, &place.http, path, body)
        .map_err(|error| Outcome::Unknown(format!("{path}: the connection broke: {error}")))
}

fn send(mut stream: TcpStream, host: &str, path: &str, body: &str) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(HANG))?;
    stream.set_write_timeout(Some(HANG))?;
    let len = body.len();
    let head = format!("POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {len}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    crate::http::read(&mut stream)
}

/// What an answer with results means.
fn judge(status: u16, body: &str) -> Outcome {
    match status {
        200 => {}
        400..500 | 503 => return Outcome::Refused(format!("{status}: {}", body.trim_end())),
        _ => return Outcome::Unknown(format!("{status}: {}", body.trim_end())),
    }
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        return Outcome::Unknown(format!("no JSON: {body}"));
    };
    let failed = |why: &str| match why.contains("outcome unknown") {
        true => Outcome::Unknown(why.into()),
        false => Outcome::Refused(why.into()),
    };
    if let Some(why) = value["error"].as_str() {
        return failed(why);
    }
    let Some(results) = value["results"].as_array() else {
        return Outcome::Unknown(format!("no results: {body}"));
    };
    if let Some(why) = results.iter().find_map(|result| result["error"].as_str()) {
        return failed(why);
    }
    // Statements without rows have none. What is there but no rows is kept as it is: no checker takes it for any.
    let rows = |values: &Value| match values {
        Value::Null => Vec::new(),
        values => rows_of(values).unwrap_or_else(|| vec![vec![values.clone()]]),
    };
    Outcome::Done(results.iter().map(|result| rows(&result["values"])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_judged_as_documented() {
        let done = r#"{"results":[{"values":[[1]]},{}]}"#;
        assert_eq!(judge(200, done), Outcome::Done(vec![vec![vec![json!(1)]], vec![]]));
        let garbage = r#"{"results":[{"values":"x"}]}"#;
        assert_eq!(judge(200, garbage), Outcome::Done(vec![vec![vec![json!("x")]]]), "not an empty result");
        for (status, body, name) in [
            (200, r#"{"results":[{"error":"UNIQUE constraint failed"}]}"#, "refused"),
            (200, r#"{"results":[],"error":"outcome unknown: gone; look"}"#, "unknown"),
            (200, r#"{"results":[{}],"error":"stale read"}"#, "refused"),
            (200, r#"{"results":["#, "unknown"),
            (408, "time", "refused"),
            (503, "leader not found", "refused"),
            (500, "?", "unknown"),
        ] {
            assert_eq!(judge(status, body).name(), name, "{status} {body}");
        }
    }
}
