//! The socket. Its mode is 0600 by default: only the node's own user may connect; with a group, 0660.

use super::{session, wire};
use crate::access::{Access, AccessError};
use crate::node::Node;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Connections beyond this many are refused.
const MAX_SESSIONS: usize = 10_000;

/// The socket can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Its rights can't be set.
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// Binds the socket. One that a dead node left behind is replaced; the data directory's lock has already
/// told that no other node is alive.
pub fn bind(path: &Path, access: &Access) -> Result<UnixListener, SocketError> {
    let io = |error: io::Error| SocketError::Io { path: path.to_owned(), error };
    // Bound under another name first, so that nobody can connect before the mode is right.
    let hidden = path.with_extension("sock-new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(io)?;
    access.share_socket(&hidden)?;
    std::fs::rename(&hidden, path).map_err(io)?;
    Ok(listener)
}

/// Serves connections until the node stops.
pub async fn serve(listener: UnixListener, node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(MAX_SESSIONS));
    let ids = AtomicU64::new(node.life());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("gate socket: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            warn!("more than {MAX_SESSIONS} connections to the gate; one refused");
            continue;
        };
        let id = ids.fetch_add(1, Ordering::Relaxed);
        let node = node.clone();
        tokio::spawn(async move {
            let result = match wire::split(stream) {
                Ok(stream) => session::run(stream, id, node).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                debug!(session = id, "{error}");
            }
            drop(place);
        });
    }
}
