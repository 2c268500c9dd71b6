//! Who doesn't hold the cluster key gets nothing; who holds it speaks for itself only; garbage harms its sender only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use quinn::crypto::rustls::QuicClientConfig;
use quire_raft::*;
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// Accepts any server: the attacker doesn't care whom he talks to.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519, rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// What a client shows.
enum Shows {
    Nothing,
    /// A certificate that it signed itself.
    Own(&'static str),
    /// One for these names, of a CA, valid from and to (years).
    Issued(Ca, Vec<&'static str>, (i32, i32)),
    /// As above, but followed by a leaf of the cluster's that it holds no key of.
    Borrowed(Vec<u8>),
}

enum Ca {
    /// As `docs/formats/raft.md` derives it from this key.
    Cluster([u8; 32]),
    /// Of the cluster's name, with a key of its own.
    Namesake,
    /// A leaf of the cluster's that signs further ones.
    Leaf,
}

const EVER: (i32, i32) = (1975, 4096);

fn issued(name: &'static str) -> Shows {
    Shows::Issued(Ca::Cluster(KEY), vec![name, "cluster.quire"], EVER)
}

fn client(shows: Shows, alpn: &str) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let leaf_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let named = |names: &[&str]| {
        rcgen::CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap()
    };
    let chain = match shows {
        Shows::Nothing => Vec::new(),
        Shows::Own(name) => vec![named(&[name]).self_signed(&leaf_key).unwrap().der().clone()],
        Shows::Borrowed(leaf) => vec![leaf.into()],
        Shows::Issued(issuer, names, (from, to)) => {
            let mut params = named(&names);
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            let sign = |params: &rcgen::CertificateParams, ca, ca_key| {
                params.signed_by(&leaf_key, &rcgen::Issuer::new(ca, ca_key)).unwrap().der().clone()
            };
            match issuer {
                Ca::Cluster(key) => {
                    let (ca, ca_key) = ca(key);
                    vec![sign(&params, ca, ca_key)]
                }
                Ca::Namesake => {
                    let own = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                    vec![sign(&params, ca(KEY).0, own)]
                }
                Ca::Leaf => {
                    let (ca, ca_key) = ca(KEY);
                    let middle_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                    let mut middle = named(&["node-9.quire"]);
                    middle.distinguished_name.push(rcgen::DnType::CommonName, "node-9.quire");
                    let signed = middle.signed_by(&middle_key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
                    let signed = signed.der().clone();
                    vec![sign(&params, middle, middle_key), signed]
                }
            }
        }
    };
    let mut tls = if chain.is_empty() {
        builder.with_no_client_auth()
    } else {
        // Not by `with_client_auth_cert`, which refuses a key that isn't the certificate's.
        let key = rustls::crypto::ring::sign::any_eddsa_type(&leaf_key.serialize_der().into()).unwrap();
        builder.with_client_cert_resolver(Arc::new(Always(Arc::new(rustls::sign::CertifiedKey::new(
            chain, key,
        )))))
    };
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

#[derive(Debug)]
struct Always(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn ca(key: [u8; 32]) -> (rcgen::CertificateParams, rcgen::KeyPair) {
    struct Len;
    impl ring::hkdf::KeyType for Len {
        fn len(&self) -> usize {
            32
        }
    }
    let prk = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"quire cluster key v1").extract(&key);
    let mut seed = [0; 32];
    prk.expand(&[b"ca ed25519 seed"], Len).unwrap().fill(&mut seed).unwrap();
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(seed);
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(der);
    let ca_key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.distinguished_name.push(rcgen::DnType::CommonName, "quire cluster");
    (params, ca_key)
}

/// Sends a stream and returns what comes back.
async fn send(endpoint: &quinn::Endpoint, addr: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let connection = endpoint.connect(addr, "cluster.quire").unwrap().await.map_err(|e| e.to_string())?;
    let (mut tx, mut rx) = connection.open_bi().await.map_err(|e| e.to_string())?;
    tx.write_all(bytes).await.map_err(|e| e.to_string())?;
    let _ = tx.finish();
    match tokio::time::timeout(Duration::from_secs(10), rx.read_to_end(1 << 20)).await {
        Ok(Ok(answer)) if !answer.is_empty() => Ok(answer),
        Ok(_) => Err(connection.closed().await.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

fn request(from: u64, body: &[u8]) -> Vec<u8> {
    let mut b = vec![3];
    b.extend(from.to_le_bytes());
    b.extend((body.len() as u32).to_le_bytes());
    b.extend(body);
    b
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_holders_of_the_key_get_an_answer() {
    let tmp = tempfile::tempdir().unwrap();
    let node = Node::start(1, tmp.path()).await;
    node.raft.initialize(BTreeMap::from([(1, node.peer())])).await.unwrap();
    until("node 1 leads", || node.raft.status().state == ServerState::Leader).await;
    let good = request(9, b"ping");

    let nine = client(issued("node-9.quire"), "quire-raft/1");
    let answer = send(&nine, node.addr, &good).await.unwrap();
    assert_eq!(&answer[12..], b"gnip", "the test speaks the protocol");
    // Its certificate goes over the wire in the clear to whoever it calls; without the key it is worth nothing.
    let connection = nine.connect(node.addr, "cluster.quire").unwrap().await.unwrap();
    let theirs = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    drop(connection);

    let cluster = |names: &[&'static str], valid| Shows::Issued(Ca::Cluster(KEY), names.to_vec(), valid);
    for (what, shows, alpn) in [
        ("no certificate", Shows::Nothing, "quire-raft/1"),
        ("a certificate of its own", Shows::Own("node-9.quire"), "quire-raft/1"),
        (
            "another cluster's key",
            Shows::Issued(Ca::Cluster([1; 32]), vec!["node-9.quire", "cluster.quire"], EVER),
            "quire-raft/1",
        ),
        ("a CA of the same name", Shows::Issued(Ca::Namesake, vec!["node-9.quire"], EVER), "quire-raft/1"),
        ("a leaf that signs", Shows::Issued(Ca::Leaf, vec!["node-9.quire"], EVER), "quire-raft/1"),
        ("an expired certificate", cluster(&["node-9.quire"], (1975, 2001)), "quire-raft/1"),
        ("one that isn't valid yet", cluster(&["node-9.quire"], (4000, 4096)), "quire-raft/1"),
        ("one that names no node", cluster(&["example.org"], EVER), "quire-raft/1"),
        ("one that names two", cluster(&["node-9.quire", "node-8.quire"], EVER), "quire-raft/1"),
        ("one that names node 0", cluster(&["node-0.quire"], EVER), "quire-raft/1"),
        ("the node's own certificate, without its key", Shows::Borrowed(theirs[0].to_vec()), "quire-raft/1"),
        ("another protocol version", issued("node-9.quire"), "quire-raft/2"),
        ("another protocol", issued("node-9.quire"), "h3"),
    ] {
        let answer = send(&client(shows, alpn), node.addr, &good).await;
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    // The right CA, but another node's name in the stream: nothing of it is read.
    let answer = send(&nine, node.addr, &request(1, b"ping")).await;
    assert!(answer.as_ref().is_err_and(|why| why.contains("malformed")), "{answer:?}");
    assert_eq!(
        HANDLED.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "one request came through to a handler"
    );

    // A node with another key is no peer either way.
    let mut other = config(2, &tmp.path().join("other"), free());
    other.key = ClusterKey::from_bytes([1; 32]);
    let other = start_with(other, Arc::default()).await.unwrap();
    let refused = other.raft.request_addr(&node.addr.to_string(), Bytes::from_static(b"hi"), LONG).await;
    assert!(matches!(refused, Err(RequestError::Unreachable(_) | RequestError::Lost(_))), "{refused:?}");
    other.raft.shutdown().await;
    node.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impostors_and_garbage_lose_their_connection_only() {
    let tmp = tempfile::tempdir().unwrap();
    let node = Node::start(1, tmp.path()).await;
    node.raft.initialize(BTreeMap::from([(1, node.peer())])).await.unwrap();
    until("node 1 leads", || node.raft.status().state == ServerState::Leader).await;
    let term = node.raft.status().term;
    let bystander = client(issued("node-8.quire"), "quire-raft/1");
    let steady = bystander.connect(node.addr, "cluster.quire").unwrap().await.unwrap();

    let nine = || client(issued("node-9.quire"), "quire-raft/1");
    let frame = |kind: u8, body: &[u8]| {
        let mut b = vec![kind];
        b.extend(9u64.to_le_bytes());
        b.extend((body.len() as u32).to_le_bytes());
        b.extend(body);
        b
    };
    // A vote request for a high term, in the name of node 3.
    let mut vote = vec![2];
    vote.extend(1000u64.to_le_bytes());
    vote.extend(3u64.to_le_bytes());
    vote.extend([0, 0, 0]);
    let mut huge = frame(3, b"");
    let at = huge.len() - 4;
    huge[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut append = vec![];
    append.extend(7u64.to_le_bytes());
    append.extend(9u64.to_le_bytes());
    append.extend([1, 0, 0]);
    append.extend(u32::MAX.to_le_bytes());
    for (what, bytes) in [
        ("another's name in the hello", request(8, b"ping")),
        ("another's name in a vote", frame(1, &vote)),
        ("an unknown stream kind", frame(77, b"abc")),
        ("an unknown call", frame(1, &[200, 1, 2])),
        ("an empty call", frame(1, b"")),
        ("a frame beyond all limits", huge),
        ("an append with four billion entries", frame(2, &append)),
        ("a truncated append", frame(2, &append[..10])),
    ] {
        let answer = send(&nine(), node.addr, &bytes).await;
        assert!(answer.as_ref().is_err_and(|e| e.contains("malformed")), "{what}: {answer:?}");
    }
    assert_eq!(node.raft.status().term, term);
    assert!(steady.close_reason().is_none(), "a bystander lost its connection");
    node.raft.propose(Bytes::from_static(b"still here")).await.unwrap();
    node.raft.shutdown().await;
}
