//! The socket. Its mode is 0600 by default: only the node's own user may connect; with a group, 0660.

use super::session;
use crate::node::Node;
use nix::unistd::{Gid, Group, chown};
use std::io;
use std::os::unix::fs::PermissionsExt;
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
    /// There is no such group.
    #[error("--socket-group {0}: there is no such group on this machine")]
    Group(String),
}

/// Binds the socket. One that a dead node left behind is replaced; the data directory's lock has already
/// told that no other node is alive.
pub fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, SocketError> {
    let io = |error: io::Error| SocketError::Io { path: path.to_owned(), error };
    let gid: Option<Gid> = match group {
        None => None,
        Some(name) => {
            let found = Group::from_name(name).map_err(|errno| io(errno.into()))?;
            Some(found.ok_or_else(|| SocketError::Group(name.to_owned()))?.gid)
        }
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    // Bound under another name first, so that nobody can connect before the mode is right.
    let hidden = path.with_extension("sock-new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(io)?;
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode)).map_err(io)?;
    if gid.is_some() {
        chown(&hidden, None, gid).map_err(|errno| io(errno.into()))?;
    }
    std::fs::rename(&hidden, path).map_err(io)?;
    Ok(listener)
}

/// Serves connections until the node stops.
pub async fn serve(listener: UnixListener, node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(MAX_SESSIONS));
    let ids = AtomicU64::new(1);
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
            if let Err(error) = session::run(stream, id, node).await {
                debug!(session = id, "{error}");
            }
            drop(place);
        });
    }
}
