//! A client of a node's HTTP API, for the commands that ask one.

use crate::args::ClientArgs;
use crate::sql::json::base64;
use anyhow::{Context as _, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{RequestBuilder, SendBody};

/// No single request takes longer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A node that can be reached takes a connection within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Nor one that changes the membership: longer than the node takes until it gives up.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a node may be silent while it sends or takes a database.
const SILENCE: Duration = Duration::from_secs(90);
/// How long it may take to check and commit one that it has taken.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    /// With its scheme.
    base: String,
    /// The value of the header, if a user is given.
    authorization: Option<String>,
}

impl Client {
    /// For the node at `HOST:PORT`, in the clear and as nobody.
    pub fn new(address: &str) -> Client {
        Client { agent: config().build().into(), base: base(address), authorization: None }
    }

    /// As the flags of a command say.
    pub fn with(args: &ClientArgs) -> anyhow::Result<Client> {
        let authorization = args.user.as_deref().map(authorization);
        let mut config = config();
        if let Some(path) = &args.cacert {
            let certs = certificates(path)?;
            let certs: Vec<_> = certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&certs))
                .unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.build());
        } else if args.http_addr.starts_with("https://") {
            bail!("{}: name the certificate of the CA with --cacert", args.http_addr);
        }
        Ok(Client { agent: config.build().into(), base: base(&args.http_addr), authorization })
    }

    /// The same for another node, whose address comes with its scheme.
    pub fn at(&self, address: &str) -> Client {
        Client { base: base(address), ..self.clone() }
    }

    /// The same with connections of its own.
    pub fn renewed(&self) -> Client {
        let agent = ureq::Agent::new_with_config(self.agent.config().clone());
        Client { agent, ..self.clone() }
    }

    /// Ends all requests of this client and its clones, at once, and makes all later ones fail.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Where the node is.
    pub fn address(&self) -> &str {
        &self.base
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn authorize<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        }
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = self.url(path);
        self.read(self.authorize(self.agent.get(&url)).call())
    }

    /// POST without a body, as JSON.
    pub fn post(&self, path: &str) -> anyhow::Result<Value> {
        let url = self.url(path);
        self.read(self.authorize(self.agent.post(&url)).send_empty())
    }

    /// POST with a JSON body, for a change that may take a while.
    pub fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = self.url(path);
        let request =
            self.authorize(self.agent.post(&url)).config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        self.read(request.send_json(body))
    }

    /// DELETE with a JSON body, for a change that may take a while.
    pub fn delete_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = self.url(path);
        let request =
            self.authorize(self.agent.delete(&url)).config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        self.read(request.force_send_body().send_json(body))
    }

    /// GET of a body of any size; an answer that is none is an error.
    pub fn download(&self, path: &str) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let url = self.url(path);
        let request = self
            .authorize(self.agent.get(&url))
            .config()
            .timeout_global(None)
            .timeout_per_read(Some(SILENCE))
            .build();
        let response = request.call().with_context(|| self.unreachable())?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response)) }
    }

    /// POST of a body of any size. The answer may be long in coming.
    pub fn upload(&self, path: &str, body: &mut dyn Read, length: u64) -> anyhow::Result<Value> {
        let url = self.url(path);
        let request = self.authorize(self.agent.post(&url)).header("content-length", length);
        // What is refused is so before the body is on its way.
        let config = request.header("expect", "100-continue").config();
        let config = config.timeout_global(None).timeout_per_write(Some(SILENCE));
        let config = config.timeout_await_100(Some(CHANGE_TIMEOUT)).timeout_recv_response(Some(LOAD_TIMEOUT));
        self.read(config.build().send(SendBody::from_reader(body)))
    }

    /// POST of JSON; whatever comes of it is the caller's. The answer may take so long to begin; it may be of any size.
    pub fn send(
        &self,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let url = self.url(path);
        let request = self.authorize(self.agent.post(&url)).header("content-type", "application/json");
        let config = request.config().timeout_global(None).timeout_connect(Some(CONNECT_TIMEOUT));
        let config = config.timeout_recv_response(Some(patience)).timeout_per_write(Some(SILENCE));
        config.timeout_per_read(Some(SILENCE.max(patience))).build().send(body)
    }

    /// GET; whatever comes of it is the caller's.
    pub fn fetch(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let url = self.url(path);
        let config = self.authorize(self.agent.get(&url)).config().timeout_global(Some(patience));
        config.timeout_connect(Some(CONNECT_TIMEOUT.min(patience))).build().call()
    }

    /// The text of a path, whatever its status.
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let url = self.url(path);
        let mut response = self.authorize(self.agent.get(&url)).call().with_context(|| self.unreachable())?;
        Ok(response.body_mut().read_to_string()?)
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = response.with_context(|| self.unreachable())?;
        let status = response.status();
        if status == 401 {
            bail!("{} wants a user who may do that; give one with --user NAME:PASSWORD", self.base);
        }
        let value: Value = response
            .body_mut()
            .read_json()
            .with_context(|| format!("{} did not answer with JSON (HTTP {status})", self.base))?;
        if !status.is_success() {
            bail!("{}: {}", self.base, value["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(value)
    }

    fn refusal(&self, response: ureq::http::Response<ureq::Body>) -> anyhow::Error {
        match self.read(Ok(response)) {
            Ok(_) => anyhow::anyhow!("{}: an unexpected answer", self.base),
            Err(why) => why,
        }
    }

    fn unreachable(&self) -> String {
        format!("can't reach a node at {}; is it running, and is --http-addr right?", self.base)
    }
}

/// The value of the header that says who asks, as `NAME:PASSWORD`.
pub(super) fn authorization(user: &str) -> String {
    let mut value = b"Basic ".to_vec();
    base64(user.as_bytes(), &mut value);
    String::from_utf8_lossy(&value).into_owned()
}

/// The certificates of a file in PEM, of which there must be one.
pub(super) fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certs = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certs = certs.with_context(|| format!("{}: no certificate in PEM", path.display()))?;
    if certs.is_empty() {
        bail!("{}: no certificate in PEM", path.display());
    }
    Ok(certs)
}

fn config() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false)
}

fn base(address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}
