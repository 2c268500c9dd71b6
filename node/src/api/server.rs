//! Accepts connections and speaks HTTP/1 on them, in the clear or over TLS. What a client may hold without sending
//! anything sensible is bounded: connections, the time for a handshake and for a head. Certificate, key and users are
//! read again when their files change, or at SIGHUP.

use super::auth::Auth;
use axum::Router;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

/// Connections at the same time, at most.
const MAX_CONNECTIONS: usize = 8192;
/// A TLS handshake must be over within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request must be there within this time, counted from the end of the last one.
const HEAD: Duration = Duration::from_secs(300);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// TLS can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TlsError {
    path: PathBuf,
    reason: String,
}

/// A certificate with its key, from files.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub fn load(cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        let config = RwLock::new(read(cert, key)?);
        Ok(Tls { cert: cert.to_owned(), key: key.to_owned(), config })
    }

    fn reload(&self) -> Result<(), TlsError> {
        let config = read(&self.cert, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let bad = |path: &Path, reason: String| TlsError { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|why| bad(cert, format!("no certificate in PEM: {why}")))?;
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|why| bad(key, format!("no key in PEM: {why}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|why| bad(cert, why.to_string()))?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, secret).map_err(|why| bad(cert, why.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How many connections there may be, so that files can still be opened for what matters more: the log, databases,
/// other nodes.
fn connection_limit() -> usize {
    const OTHERS: u64 = 512;
    // At most half of what is left: a reader or a writer may need files for its request.
    let connections = crate::limits::open_files().saturating_sub(OTHERS) / 2;
    usize::try_from(connections).unwrap_or(MAX_CONNECTIONS).clamp(64, MAX_CONNECTIONS)
}

/// Serves until the runtime ends.
pub async fn serve(listener: TcpListener, router: Router, tls: Option<Arc<Tls>>) {
    let limit = connection_limit();
    let places = Arc::new(Semaphore::new(limit));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, Remote(from.ip())),
            Err(error) => {
                warn!("HTTP: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            debug!("more than {limit} HTTP connections; one refused");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (router, acceptor) = (router.clone(), tls.as_ref().map(|tls| tls.acceptor()));
        tokio::spawn(async move {
            match acceptor {
                None => connection(stream, from, router).await,
                Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, from, router).await,
                    Ok(Err(error)) => debug!("TLS: {error}"),
                    Err(_) => debug!("TLS: no handshake within {HANDSHAKE:?}"),
                },
            }
            drop(place);
        });
    }
}

/// Where a request comes from: an extension of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote(pub(super) IpAddr);

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: Remote,
    router: Router,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(from);
        router.call(request)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!("HTTP: {error}");
    }
}

/// Reads the files again when they change.
pub async fn watch(auth: Option<Arc<Auth>>, tls: Option<Arc<Tls>>) {
    if auth.is_none() && tls.is_none() {
        return;
    }
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let files: Vec<PathBuf> = auth
        .iter()
        .map(|auth| auth.path().to_owned())
        .chain(tls.iter().flat_map(|tls| [tls.cert.clone(), tls.key.clone()]))
        .collect();
    let stamp = || -> Vec<Option<(SystemTime, u64)>> {
        let of =
            |path: &PathBuf| std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        files.iter().map(of).collect()
    };
    let mut seen = stamp();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = stamp();
        if !asked && now == seen {
            continue;
        }
        seen = now;
        let reloaded = |what: &str, result: Result<(), String>| match result {
            Ok(()) => info!("{what} read again"),
            Err(why) => warn!("{what} not read again; what was read before stays: {why}"),
        };
        if let Some(auth) = &auth {
            reloaded("users", auth.reload().map_err(|why| why.to_string()));
        }
        if let Some(tls) = &tls {
            reloaded("certificate", tls.reload().map_err(|why| why.to_string()));
        }
    }
}
