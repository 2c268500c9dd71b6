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

/// A certificate for `name`, from the CA that `key` derives as documented in `docs/formats/raft.md`, or self-signed.
fn client(key: Option<[u8; 32]>, name: &str, certificate: bool, alpn: &str) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut tls = if certificate {
        let leaf_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
        let cert = match key {
            None => params.self_signed(&leaf_key).unwrap(),
            Some(key) => {
                let (ca, ca_key) = ca(key);
                params.signed_by(&leaf_key, &rcgen::Issuer::new(ca, ca_key)).unwrap()
            }
        };
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(leaf_key.serialize_der());
        builder.with_client_auth_cert(vec![cert.der().clone()], private.into()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
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

    let answer =
        send(&client(Some(KEY), "node-9.quire", true, "quire-raft/1"), node.addr, &good).await.unwrap();
    assert_eq!(&answer[12..], b"gnip", "the test speaks the protocol");

    for (what, endpoint) in [
        ("no certificate", client(None, "node-9.quire", false, "quire-raft/1")),
        ("a certificate of its own", client(None, "node-9.quire", true, "quire-raft/1")),
        ("another cluster's key", client(Some([1; 32]), "node-9.quire", true, "quire-raft/1")),
        ("a certificate that names no node", client(Some(KEY), "example.org", true, "quire-raft/1")),
        ("another protocol version", client(Some(KEY), "node-9.quire", true, "quire-raft/2")),
    ] {
        let answer = send(&endpoint, node.addr, &good).await;
        assert!(answer.is_err(), "{what}: {answer:?}");
    }

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
    let bystander = client(Some(KEY), "node-8.quire", true, "quire-raft/1");
    let steady = bystander.connect(node.addr, "cluster.quire").unwrap().await.unwrap();

    let nine = || client(Some(KEY), "node-9.quire", true, "quire-raft/1");
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
