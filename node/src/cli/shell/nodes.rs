//! The nodes that the shell knows, and requests that find one that answers.
//!
//! A request goes to the node that answered last. If that one can't be reached, or says that nobody leads, the request
//! was certainly not done: it goes to the next one, and so on, until [`PATIENCE`] is over. If a connection breaks while a
//! request is on its way, that may be sent again only if doing it twice does no harm. The others are learnt from
//! `/nodes`, and asked only over the same scheme as the first: a password that was given for HTTPS is sent to nobody in
//! the clear.

use super::error::Error;
use super::interrupt::Interrupt;
use crate::cli::client::Client;
use serde_json::Value;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::{Body, Timeout, http::Response};

/// How long a request looks for a node that takes it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// For the answer to `/nodes`.
const LEARN: Duration = Duration::from_secs(3);
/// For the answer to `/readyz`.
const MEET: Duration = Duration::from_secs(10);
/// A cluster has no more.
const MAX_NODES: usize = 64;
/// An error is no longer.
const MAX_ERROR: u64 = 64 << 10;

/// What kind of server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// Nobody has answered so far.
    Unknown,
    Quire,
    /// Another one that speaks rqlite's API, with its version.
    Other(String),
}

/// The nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    /// With the connections; to the node that answered last.
    client: Client,
    known: Vec<String>,
    at: usize,
    server: Server,
    has_learnt: bool,
    interrupt: Arc<Interrupt>,
}

/// What a request is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) path: &'a str,
    /// JSON for POST; `None` for GET.
    pub(super) body: Option<&'a str>,
    /// Doing it twice does no harm.
    pub(super) is_repeatable: bool,
    /// How long the answer may take to begin.
    pub(super) patience: Duration,
}

impl Nodes {
    /// Some of the cluster's, the first of which `client` is for.
    pub(super) fn new(client: Client, others: &[&str], interrupt: Arc<Interrupt>) -> Nodes {
        let known = std::iter::once(client.address().to_owned());
        let known = known.chain(others.iter().map(|other| client.at(other).address().to_owned())).collect();
        Nodes { client, known, at: 0, server: Server::Unknown, has_learnt: false, interrupt }
    }

    /// A client of the node that answered last. Ctrl-C ends its requests.
    pub(super) fn client(&self) -> Client {
        self.interrupt.arm(&self.client);
        self.client.clone()
    }

    /// The same for another node.
    pub(super) fn client_at(&self, address: &str) -> Client {
        self.client().at(address)
    }

    /// The same after a look whether that node still answers, and if not, of one that does.
    pub(super) fn client_that_answers(&mut self) -> Result<Client, Error> {
        let ask = Ask { path: "/readyz?noleader", body: None, is_repeatable: true, patience: MEET };
        match self.ask(ask) {
            Err(error) if self.server == Server::Unknown || self.was_interrupted() => Err(error),
            // It answers, even if with a refusal.
            _ => Ok(self.client()),
        }
    }

    /// Whether Ctrl-C was pressed.
    pub(super) fn was_interrupted(&self) -> bool {
        self.interrupt.was_pressed()
    }

    /// Goes on after Ctrl-C.
    pub(super) fn resume(&mut self) {
        if self.interrupt.was_pressed() {
            self.client = self.client.renewed();
            self.interrupt.clear();
        }
    }

    /// Whether it is known to be Quire's.
    pub(super) fn is_quire(&self) -> bool {
        self.server == Server::Quire
    }

    /// Finds out what server it is.
    pub(super) fn meet(&mut self) -> Result<&Server, Error> {
        if self.server == Server::Unknown {
            self.client_that_answers()?;
        }
        Ok(&self.server)
    }

    /// Finds a node that answers this.
    pub(super) fn ask(&mut self, ask: Ask<'_>) -> Result<Response<Body>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let (first, mut tries) = (self.at, 0);
        loop {
            if self.was_interrupted() {
                return Err(Error::Interrupted(""));
            }
            let client = self.client();
            let why = match self.once(&client, ask) {
                Ok(response) => {
                    if self.at != first {
                        eprintln!("quire: now at {}", client.address());
                        self.learn();
                    }
                    return Ok(response);
                }
                Err(Refused::Final(error)) => return Err(error),
                Err(Refused::Silent(error)) => {
                    // It may stand still for long.
                    self.turn();
                    return Err(error);
                }
                Err(Refused::Elsewhere(why)) => why,
            };
            tries += 1;
            let is_round = tries % self.known.len() == 0;
            // If no node ever was there, the address is wrong.
            let is_hopeless = is_round && self.server == Server::Unknown;
            if is_hopeless || Instant::now() + PAUSE >= deadline {
                return Err(Error::said(why));
            }
            if tries == 1 {
                eprintln!("quire: {why}; looking for another node for up to {} s", PATIENCE.as_secs());
            }
            if is_round {
                std::thread::sleep(PAUSE);
            }
            self.turn();
        }
    }

    /// What is asked next goes to the next node.
    fn turn(&mut self) {
        self.at = (self.at + 1) % self.known.len();
        self.client = self.client.at(&self.known[self.at]);
    }

    fn once(&mut self, client: &Client, ask: Ask<'_>) -> Result<Response<Body>, Refused> {
        let sent = match ask.body {
            Some(body) => client.send(ask.path, body, ask.patience),
            None => client.fetch(ask.path, ask.patience),
        };
        let at = client.address();
        match sent {
            Ok(response) => {
                self.recognize(&response);
                match response.status().as_u16() {
                    503 => Err(Refused::Elsewhere(format!("{at}: {}", said(response)))),
                    401 => Err(Refused::Final(Error::said(format!(
                        "{at} wants a user who may do that; give one with --user NAME"
                    )))),
                    _ => Ok(response),
                }
            }
            Err(_) if self.interrupt.was_pressed() => {
                let doubt = if ask.is_repeatable { "" } else { "; it may or may not have been done" };
                Err(Refused::Final(Error::Interrupted(doubt)))
            }
            Err(error) if was_not_sent(&error) => {
                Err(Refused::Elsewhere(format!("{at} does not answer ({})", told(&error))))
            }
            Err(error) if is_of_tls(&error) => Err(Refused::Final(Error::said(format!("{at}: {error}")))),
            Err(ureq::Error::Timeout(_)) if ask.is_repeatable => {
                Err(Refused::Silent(Error::said(format!("{at} took longer than {:?}", ask.patience))))
            }
            Err(error) if ask.is_repeatable => {
                Err(Refused::Elsewhere(format!("{at} does not answer ({})", told(&error))))
            }
            Err(error) => {
                let why = Error::said(format!(
                    "outcome unknown: {at} did not answer ({}); the statement may or may not have been done. Look \
                     before you try again",
                    told(&error)
                ));
                let is_silent = matches!(error, ureq::Error::Timeout(_));
                Err(if is_silent { Refused::Silent(why) } else { Refused::Final(why) })
            }
        }
    }

    fn recognize(&mut self, response: &Response<Body>) {
        let version = response.headers().get("x-rqlite-version").and_then(|value| value.to_str().ok());
        self.server = match version {
            Some(version) if version.contains("quire") => Server::Quire,
            Some(version) => Server::Other(format!("rqlite {version}")),
            None => Server::Other("a server without a version".into()),
        };
    }

    /// Asks who else is there, once a node has answered, and if nobody has asked so far.
    pub(super) fn learn_once(&mut self) {
        if self.server != Server::Unknown && !self.has_learnt {
            self.learn();
        }
    }

    /// Asks who else is there. Who may not, or doesn't answer, leaves what is known.
    fn learn(&mut self) {
        self.has_learnt = true;
        let client = self.client();
        let Ok(mut response) = client.fetch("/nodes?nonvoters&ver=2&timeout=1s", LEARN) else { return };
        let Ok(nodes) = response.body_mut().read_json::<Value>() else { return };
        let scheme = |address: &str| address.split_once("://").map(|(scheme, _)| scheme.to_owned());
        for node in list(&nodes) {
            let Some(address) = node["api_addr"].as_str() else { continue };
            let address = self.client.at(address).address().to_owned();
            let is_new = !self.known.contains(&address) && scheme(&address) == scheme(self.client.address());
            if is_new && self.known.len() < MAX_NODES {
                self.known.push(address);
            }
        }
    }
}

/// The members, in either form of `/nodes`.
pub(super) fn list(nodes: &Value) -> Vec<Value> {
    match nodes["nodes"].as_array() {
        Some(list) => list.clone(),
        None => {
            let by_id = nodes.as_object().into_iter().flatten();
            by_id
                .map(|(id, node)| {
                    let mut node = node.clone();
                    node["id"] = Value::from(id.as_str());
                    node
                })
                .collect()
        }
    }
}

enum Refused {
    /// Nothing was done, or it doesn't matter: another node may take it.
    Elsewhere(String),
    Final(Error),
    /// The node took it, and did not answer in time.
    Silent(Error),
}

/// Whether the node certainly has not got the request.
pub(super) fn was_not_sent(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(timeout) => matches!(timeout, Timeout::Resolve | Timeout::Connect),
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable
        ),
        _ => false,
    }
}

fn is_of_tls(error: &ureq::Error) -> bool {
    let inner = |error: &std::io::Error| error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) | ureq::Error::BadUri(_) => true,
        ureq::Error::Io(error) => inner(error),
        _ => false,
    }
}

/// What an error says, without its kind.
pub(super) fn told(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// What an answer that is an error says: its text, or that of its JSON.
pub(super) fn said(response: Response<Body>) -> String {
    let status = response.status();
    let mut bytes = Vec::new();
    let _ = response.into_body().into_reader().take(MAX_ERROR).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let error = json.as_ref().and_then(|json| json["error"].as_str());
    match error {
        Some(error) => error.to_owned(),
        None if text.is_empty() => format!("HTTP {status}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_not_sent_can_go_elsewhere() {
        let io = |kind: ErrorKind| ureq::Error::Io(kind.into());
        assert!(was_not_sent(&io(ErrorKind::ConnectionRefused)) && was_not_sent(&ureq::Error::HostNotFound));
        assert!(was_not_sent(&ureq::Error::Timeout(Timeout::Connect)));
        for perhaps in [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe] {
            assert!(!was_not_sent(&io(perhaps)), "{perhaps}");
        }
        assert!(!was_not_sent(&ureq::Error::Timeout(Timeout::RecvResponse)));
    }

    #[test]
    fn a_node_that_stands_still_is_asked_once() {
        // A connection to it is taken, as the kernel does it for a process that is stopped.
        let still = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let [first, second] = [&still, &other].map(|listener| listener.local_addr().unwrap().to_string());
        let mut nodes = Nodes::new(Client::new(&first), &[&second], Arc::default());
        let patience = Duration::from_millis(100);
        for (is_repeatable, why) in [(true, "took longer"), (false, "outcome unknown")] {
            let ask = Ask { path: "/db/request", body: Some("[]"), is_repeatable, patience };
            assert_eq!(nodes.client().address(), format!("http://{first}"));
            let said = nodes.ask(ask).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains(&first), "{said}");
            assert_eq!(nodes.client().address(), format!("http://{second}"));
            nodes.turn();
        }
    }

    #[test]
    fn nodes_in_both_forms() {
        let node = json!({ "id": "1", "api_addr": "http://a:1" });
        assert_eq!(list(&json!({ "nodes": [node.clone()] })), std::slice::from_ref(&node));
        assert_eq!(list(&json!({ "1": { "api_addr": "http://a:1" } })), [node]);
        assert!(list(&json!(null)).is_empty());
    }
}
