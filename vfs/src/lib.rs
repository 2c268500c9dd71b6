//! Quire's side inside an app: a SQLite VFS that captures each transaction's WAL pages and lets the commit
//! through once the cluster has them. Knows SQLite; knows nothing of Raft.
//!
//! The life of a commit begins here: [`capture`] recognises the transaction in what SQLite writes,
//! [`gate`] carries it to the node. The node's applier uses [`mod@format`] to write the same pages into the
//! WALs of the other nodes, and [`holder`] to keep a database's files and locks.
//!
//! The crate is built twice: as a library for the daemon, and as the loadable extension
//! `libquire_vfs.so` ([`shim::extension`]).

pub mod capture;
pub mod fault;
pub mod format;
pub mod gate;
pub mod holder;
pub mod shim;
