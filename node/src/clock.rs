//! What time it is. The runtime's clock, so that a simulation can set it; in a running node it is the system's.

use std::time::{Duration, Instant};

/// Now.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long ago that was.
pub(crate) fn since(at: Instant) -> Duration {
    now().saturating_duration_since(at)
}
