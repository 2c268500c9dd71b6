//! Recovery of a cluster whose quorum is gone for good, on a survivor's data directory. What is done to the Raft log
//! stands in [`quire_raft::recover`]; here is what a node's directory adds: its lock, its identity, its manifest.

use crate::identity::Identity;
use crate::manifest::Manifest;
use crate::node::{NodeError, lock};
use nix::fcntl::Flock;
use quire_raft::AppliedState;
use quire_raft::recover::{RecoverError, Recovery};
use std::fs::File;
use std::io;
use std::path::Path;

/// A directory can't be recovered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory can't be used, or a node runs on it.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It is no node's directory, or another node's.
    #[error("{0}")]
    Directory(String),
    /// There is nothing to recover, or the log can't be used.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

/// A stopped node's directory, locked, that can be recovered.
#[derive(Debug)]
pub struct Survivor {
    /// The cluster's id, in hexadecimal.
    pub cluster_id: String,
    /// What will be done.
    pub recovery: Recovery,
    _lock: Flock<File>,
}

impl Survivor {
    /// Locks and opens the directory of a stopped node.
    pub async fn open(dir: &Path, node_id: Option<u64>) -> Result<Survivor, Error> {
        let identity = dir.join("identity");
        // First, so that nothing is made where no node was.
        let found = match std::fs::read_to_string(&identity) {
            Ok(text) => Identity::decode(&text)
                .map_err(|why| Error::Directory(format!("{}: {why}", identity.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Directory(format!(
                    "{} is no node's data directory (there is no file identity in it); nothing to recover",
                    dir.display()
                )));
            }
            Err(error) => return Err(NodeError::Io { path: identity, error }.into()),
        };
        let Identity { cluster, node } = found;
        if let Some(expected) = node_id.filter(|&id| id != node) {
            return Err(Error::Directory(format!(
                "{} belongs to node {node}, not to node {expected}",
                dir.display()
            )));
        }
        let held = lock(&dir.join("lock")).map_err(|error| match error {
            NodeError::Locked(_) => Error::Directory(format!(
                "a node is running on {}; stop it first. If it still answers, look with `quire status` whether \
                 there is anything to recover at all",
                dir.display()
            )),
            error => error.into(),
        })?;
        let path = dir.join("manifest");
        let manifest = Manifest::load(&path)
            .map_err(|error| Error::Directory(format!("{}: {error}", path.display())))?;
        let membership = (!manifest.membership.is_empty()).then(|| manifest.membership.into());
        let applied = AppliedState { position: manifest.position, membership, ahead: manifest.ahead };
        let recovery = Recovery::open(&dir.join("raft"), cluster, node, &applied).await?;
        Ok(Survivor { cluster_id: found.cluster_id(), recovery, _lock: held })
    }
}
