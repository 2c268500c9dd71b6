//! A client of a node's HTTP API, for the commands that ask one.

use anyhow::{Context as _, bail};
use serde_json::Value;
use std::time::Duration;

/// No single request takes longer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Nor one that changes the membership: longer than the node takes until it gives up.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(45);

/// A client of one node.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    address: String,
}

impl Client {
    /// For the node at `HOST:PORT`.
    pub fn new(address: &str) -> Client {
        let address = address.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false);
        Client { agent: config.build().into(), address }
    }

    /// Where the node is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        self.read(self.agent.get(&url).call())
    }

    /// POST without a body, as JSON.
    pub fn post(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        self.read(self.agent.post(&url).send_empty())
    }

    /// POST with a JSON body, for a change that may take a while.
    pub fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let request = self.agent.post(&url).config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        self.read(request.send_json(body))
    }

    /// DELETE with a JSON body, for a change that may take a while.
    pub fn delete_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let request = self.agent.delete(&url).config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        self.read(request.force_send_body().send_json(body))
    }

    /// The text of a path, whatever its status.
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{}{path}", self.address);
        let mut response = self.agent.get(&url).call().with_context(|| self.unreachable())?;
        Ok(response.body_mut().read_to_string()?)
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = response.with_context(|| self.unreachable())?;
        let status = response.status();
        let value: Value = response
            .body_mut()
            .read_json()
            .with_context(|| format!("{} did not answer with JSON (HTTP {status})", self.address))?;
        if !status.is_success() {
            bail!("{}: {}", self.address, value["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(value)
    }

    fn unreachable(&self) -> String {
        format!("can't reach a node at {}; is it running, and is --http-addr right?", self.address)
    }
}
