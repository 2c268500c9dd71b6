//! Quire's node: the daemon that ties SQLite's pages to Raft's log, and its command line.
//!
//! The life of a commit goes on here after [`quire_vfs::capture`]: [`gate::session`] takes the transaction
//! from the app and proposes it; Raft logs and replicates it; [`machine`] hands it to its database;
//! [`db::worker`] judges and checks it, and [`db::applier`] publishes it on the nodes where no app does.

pub mod access;
pub mod api;
#[allow(missing_docs, reason = "clap shows the documentation of each flag; the types only group them")]
pub mod args;
pub(crate) mod blocking;
pub(crate) mod checkpointer;
pub mod cli;
pub(crate) mod clock;
pub mod command;
pub mod config;
pub mod consensus;
pub mod core;
pub mod db;
pub mod dump;
pub mod forward;
pub mod full_disk;
pub mod gate;
#[cfg(test)]
mod golden;
pub mod identity;
pub mod leadership;
pub mod limits;
pub mod load;
pub mod machine;
pub mod manifest;
pub mod members;
pub mod name;
pub mod node;
pub mod peers;
pub mod recover;
pub mod repair;
pub mod script;
#[cfg(test)]
mod sim;
pub mod splitter;
pub mod sql;
pub mod stop;
pub mod transfer;
