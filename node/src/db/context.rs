//! What all databases of a node share.

use super::backlog::Backlog;
use crate::blocking;
use crate::command::DbId;
use crate::leadership::Leadership;
use crate::node::Node;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// What all databases of a node share.
#[derive(Debug)]
pub struct Context {
    /// This node's id.
    pub node_id: u64,
    /// Whether it leads.
    pub leadership: Leadership,
    /// Where workers run.
    pub runtime: tokio::runtime::Handle,
    /// Databases whose WAL has grown long.
    pub checkpoints: mpsc::UnboundedSender<DbId>,
    /// Databases that were fenced.
    pub repairs: mpsc::UnboundedSender<DbId>,
    /// Bytes of pages after which a WAL counts as long.
    pub checkpoint_bytes: u64,
    /// Bytes of entries that wait for workers, in all databases together; and for an app that stands still, in each.
    pub queue_bytes: usize,
    /// What waits for workers.
    pub backlog: Backlog,
    /// Bytes of parts of large transactions that are yet to be staged.
    pub unstaged: watch::Sender<usize>,
    /// How far the log is on this node's disk, once Raft has started.
    pub flushed: OnceLock<watch::Receiver<u64>>,
    /// How long a writer may hold the lease without progress while others wait.
    pub lease_timeout: Duration,
    /// The node, once it has started.
    pub node: OnceLock<Weak<Node>>,
    #[cfg(test)]
    pub(crate) sim: crate::sim::Hooks,
}

#[cfg(test)]
impl Context {
    /// A node's without a node: what it asks for is done by nobody.
    pub(crate) fn alone() -> Context {
        Context {
            node_id: 1,
            leadership: Leadership::new(Duration::from_secs(1)),
            runtime: tokio::runtime::Handle::current(),
            checkpoints: mpsc::unbounded_channel().0,
            repairs: mpsc::unbounded_channel().0,
            checkpoint_bytes: 1 << 20,
            queue_bytes: 1 << 20,
            backlog: Backlog::default(),
            unstaged: watch::Sender::default(),
            flushed: OnceLock::new(),
            lease_timeout: Duration::from_secs(10),
            node: OnceLock::new(),
            sim: Default::default(),
        }
    }
}

impl Context {
    /// Starts a task of the node.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let task = self.runtime.spawn(task);
        #[cfg(test)]
        self.sim.started(task.abort_handle());
        task
    }

    /// Runs what may block.
    pub fn run_blocking(&self, work: impl FnOnce() + Send + 'static) {
        #[cfg(test)]
        if self.sim.is_simulated() {
            return self.sim.run(Box::new(work));
        }
        blocking::run(&self.runtime, work);
    }

    /// The node, while it runs.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.node.get().and_then(Weak::upgrade)
    }

    /// Whether a node that last did something at this time is up, as far as this leader can tell.
    pub fn hears(&self, node: u64, since: Instant) -> bool {
        node == self.node_id || self.leadership.hears(node, since)
    }

    /// Waits until the log is on disk up to `index`. To be called on a blocking thread.
    pub fn wait_flushed(&self, index: u64, patience: Duration) -> bool {
        let Some(mut flushed) = self.flushed.get().cloned() else { return false };
        if *flushed.borrow() >= index {
            return true;
        }
        #[cfg(test)]
        if self.sim.is_simulated() {
            return false;
        }
        self.runtime.block_on(async move {
            let waited = tokio::time::timeout(patience, flushed.wait_for(|&at| at >= index)).await;
            matches!(waited, Ok(Ok(_)))
        })
    }
}

/// Where a life of a node begins to count, be it tokens or sessions: lives don't meet.
pub(crate) fn first_token() -> u64 {
    #[cfg(test)]
    if let Some(micros) = crate::sim::wall_clock() {
        return micros;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
