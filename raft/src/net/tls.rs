//! Certificates and TLS configuration.
//!
//! From the cluster key every node derives the same Ed25519 CA key, so every node can issue its own leaf and trusts
//! exactly the leaves that a holder of the key issued. A leaf is made afresh (fresh key) at each start and never
//! leaves memory; it names `node-<id>.quire` and `cluster.quire`. A client that knows whom it calls verifies the
//! first name, one that joins by address only the second. A server demands a certificate and takes the caller's id
//! from its `node-<id>.quire` name.
//!
//! Validity runs from 1975 to 4096: trust rests on the key alone, and a node with a wrong clock (a board without a
//! battery starts in 1980) must still find its cluster. Revocation is a new cluster key.
//!
//! TLS 1.3 only, no session resumption, no early data: nothing is ever replayed.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::{ClusterKey, NodeId};

/// Names protocol and version; peers that don't share one don't get past the handshake.
pub(crate) const ALPN: &[u8] = b"quire-raft/1";
/// The name that every node's certificate has.
pub(crate) const ANY_NODE: &str = "cluster.quire";
/// DER of a PKCS#8 v1 Ed25519 private key, up to the 32 byte seed.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The name in a node's certificate.
pub(crate) fn node_name(id: NodeId) -> String {
    format!("node-{id}.quire")
}

/// The TLS configurations of one node.
pub(crate) struct Tls {
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) client: Arc<rustls::ClientConfig>,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

impl Tls {
    pub(crate) fn new(key: &ClusterKey, id: NodeId) -> Result<Self, String> {
        let validity = (rcgen::date_time_ymd(1975, 1, 1), rcgen::date_time_ymd(4096, 1, 1));
        let mut der = PKCS8_ED25519.to_vec();
        der.extend_from_slice(&key.ca_seed());
        let ca_key =
            KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &rcgen::PKCS_ED25519);
        let ca_key = ca_key.map_err(text)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "quire cluster");
        (params.not_before, params.not_after) = validity;
        let ca = params.self_signed(&ca_key).map_err(text)?;
        let issuer = Issuer::new(params, ca_key);

        let leaf_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(text)?;
        let mut params = CertificateParams::new(vec![node_name(id), ANY_NODE.to_string()]).map_err(text)?;
        params.distinguished_name.push(DnType::CommonName, node_name(id));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = validity;
        let leaf = params.signed_by(&leaf_key, &issuer).map_err(text)?;

        let chain = vec![leaf.der().clone()];
        let private = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).map_err(text)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(text)?
            .with_client_cert_verifier(verifier.build().map_err(text)?)
            .with_single_cert(chain.clone(), private())
            .map_err(text)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;

        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(text)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private())
            .map_err(text)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_early_data = false;
        Ok(Tls { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// TLS: the peers have no protocol in common.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Why there is no connection.
pub(crate) fn why(error: &quinn::ConnectionError) -> String {
    let versions = quinn::TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL);
    let code = match error {
        quinn::ConnectionError::ConnectionClosed(close) => Some(close.error_code),
        quinn::ConnectionError::TransportError(error) => Some(error.code),
        _ => None,
    };
    if code == Some(versions) {
        let ours = String::from_utf8_lossy(ALPN);
        return format!(
            "one of the two doesn't speak {ours}: run the same version of Quire on all nodes ({error})"
        );
    }
    error.to_string()
}

/// The node id in a verified peer certificate.
pub(crate) fn node_id_of(cert: &CertificateDer<'_>) -> Option<NodeId> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    let mut ids =
        cert.valid_dns_names().filter_map(|n| n.strip_prefix("node-")?.strip_suffix(".quire")?.parse().ok());
    let id = ids.next()?;
    // One certificate is one node.
    if ids.next().is_some() || id == 0 { None } else { Some(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_name_their_node() {
        let key = ClusterKey::from_bytes([7; 32]);
        let tls = Tls::new(&key, 42).unwrap();
        let again = Tls::new(&key, 43).unwrap();
        assert_eq!(tls.server.alpn_protocols, again.client.alpn_protocols);
    }
}
