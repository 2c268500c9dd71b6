//! From node/src/core.

#[path = "../../node/src/core/lease.rs"]
pub mod lease;
#[path = "../../node/src/core/recovery.rs"]
pub mod recovery;
