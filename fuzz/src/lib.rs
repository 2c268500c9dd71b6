//! What the fuzz targets run, one module each; its head says what it checks beyond "no panic".
//!
//! Parsers and state machines are taken as they stand in the crates, file by file, without the crates that they belong
//! to: those would bring much to build under the sanitizer that is never run. So this crate poses as `quire_raft` too, and
//! as `axum` where that only hands on `http`.

#![allow(dead_code, reason = "only a part of each source is run")]
#![allow(unused_imports, reason = "as above")]

extern crate self as axum;
extern crate self as quire_raft;

pub use ::http;

pub mod capture_model;
pub mod config;
pub mod http_statements;
pub mod node_files;
pub mod peer_proto;
pub mod raft_log;
pub mod raft_wire;
pub mod request_options;
pub mod sql_script;
pub mod transaction;
pub mod vote;
pub mod wal_model;

/// A directory for this process, in memory where there is such a thing. libFuzzer ends without ceremony, so what processes
/// that are gone have left is removed here.
fn scratch() -> &'static std::path::Path {
    static SCRATCH: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    SCRATCH.get_or_init(|| {
        let memory = std::path::Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }.join("quire-fuzz");
        for old in std::fs::read_dir(&root).into_iter().flatten().flatten() {
            if !std::path::Path::new("/proc").join(old.file_name()).exists() {
                let _ = std::fs::remove_dir_all(old.path());
            }
        }
        let ours = root.join(std::process::id().to_string());
        std::fs::create_dir_all(&ours).expect("a directory for what is read");
        ours
    })
}

// ---- from raft/ -------------------------------------------------------------------------------------

pub use position::{AppliedState, LogPosition, NodeId, Peer};

#[path = "../../raft/src/encode.rs"]
mod encode;
#[path = "../../raft/src/error.rs"]
mod error;
#[path = "../../raft/src/log/mod.rs"]
mod log;
#[path = "../../raft/src/position.rs"]
mod position;
#[path = "../../raft/src/recovered.rs"]
mod recovered;
#[path = "../../raft/src/types.rs"]
mod types;
#[path = "../../raft/src/net/buffer.rs"]
mod wire_buffer;
#[path = "../../raft/src/net/codec.rs"]
mod wire_codec;

pub use error::{LogError, RequestError};

/// In its place: openraft's state machine, which nothing here runs.
mod machine {
    pub(crate) enum Machine {}
}

// ---- from node/ -------------------------------------------------------------------------------------

#[path = "../../node/src/command.rs"]
pub mod command;
pub mod core;
pub mod db;
#[path = "../../node/src/forward/message.rs"]
mod forward_message;
#[path = "../../node/src/identity.rs"]
pub mod identity;
#[path = "../../node/src/manifest.rs"]
pub mod manifest;
#[path = "../../node/src/name.rs"]
pub mod name;
#[path = "../../node/src/api/params.rs"]
mod query_params;
#[path = "../../node/src/api/origin.rs"]
mod request_origin;
#[path = "../../node/src/splitter.rs"]
mod script_splitter;
pub mod sql;
#[path = "../../node/src/transfer/frames.rs"]
mod transfer_frames;
#[path = "../../node/src/api/users.rs"]
mod users;

/// In its place: the routes, which nothing here runs.
pub mod api {
    pub(crate) use crate::query_params::Params;
}

// ---- from vfs/ --------------------------------------------------------------------------------------

#[path = "../../vfs/tests/common/mod.rs"]
mod common;
