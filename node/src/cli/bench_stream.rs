//! What `quire bench http` speaks through: TCP, or TLS over it. Nothing is left in a buffer once a read has returned, so
//! that `poll(2)` on the socket tells all that there is to wait for.

use super::client::certificates;
use anyhow::{Context as _, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where a server is, and how it is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `HOST:PORT`.
    pub(super) address: String,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// From a URL, `http://HOST:PORT` or `https://HOST:PORT`; without a scheme it is the former.
    pub(super) fn new(url: &str, cacert: Option<&Path>, insecure: bool) -> anyhow::Result<Target> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let address = rest.trim_end_matches('/');
        if address.is_empty() || address.contains('/') || !["http", "https"].contains(&scheme) {
            bail!("--url {url}: give http://HOST:PORT or https://HOST:PORT");
        }
        let tls = match (scheme, cacert) {
            ("http", _) => None,
            (_, None) if !insecure => {
                bail!(
                    "--url {url}: name the certificate of the CA with --cacert, or trust anybody with --insecure"
                )
            }
            (_, cacert) => Some(Arc::new(config(cacert.filter(|_| !insecure))?)),
        };
        Ok(Target { address: address.to_owned(), tls })
    }

    /// With its scheme.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A connection that is ready for requests. A peer that is silent for so long is given up.
    pub(super) fn connect(&self, silence: Duration) -> anyhow::Result<Stream> {
        let unreachable = || format!("can't reach {}", self.url());
        let mut socket = TcpStream::connect(&self.address).with_context(unreachable)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(silence))?;
        socket.set_read_timeout(Some(silence))?;
        let Some(config) = &self.tls else { return Ok(Stream { socket, tls: None }) };
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).with_context(unreachable)?;
        let mut tls = ClientConnection::new(config.clone(), name).with_context(unreachable)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).with_context(unreachable)?;
        }
        Ok(Stream { socket, tls: Some(Box::new(tls)) })
    }
}

/// Trusts the CA of a file, or anybody.
fn config(cacert: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let Some(path) = cacert else {
        let anybody = Arc::new(Anybody(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth());
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| path.display().to_string())?;
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.socket.write_all(bytes) };
        tls.writer().write_all(bytes)?;
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads once from the socket, and appends what that brought, which may be nothing. False at the end of the stream.
    pub(super) fn receive(&mut self, answer: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut buffer = [0; 4096];
        let Some(tls) = &mut self.tls else {
            let n = self.socket.read(&mut buffer)?;
            answer.extend_from_slice(&buffer[..n]);
            return Ok(n > 0);
        };
        if tls.read_tls(&mut self.socket)? == 0 {
            return Ok(false);
        }
        tls.process_new_packets().map_err(|why| std::io::Error::new(ErrorKind::InvalidData, why))?;
        let before = answer.len();
        loop {
            match tls.reader().read(&mut buffer) {
                Ok(0) => return Ok(answer.len() > before),
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(why) => return Err(why),
            }
        }
    }
}

/// Takes any certificate, of whomever.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = |url: &str, insecure| Target::new(url, None, insecure).map(|target| target.url());
        for given in ["127.0.0.1:4001", "http://127.0.0.1:4001", "http://127.0.0.1:4001/"] {
            assert_eq!(url(given, false).unwrap(), "http://127.0.0.1:4001");
        }
        assert_eq!(url("https://db.example:4001/", true).unwrap(), "https://db.example:4001");
        for (given, insecure) in
            [("https://a:1", false), ("ftp://a:1", true), ("http://a:1/db", false), ("http://", false)]
        {
            assert!(url(given, insecure).is_err(), "{given}");
        }
    }
}
