//! A database on this node: its files, and the one worker that changes them.
//!
//! | module | what it is |
//! |---|---|
//! | [`registry`] | all databases of the node, by id and by name; which of them are open |
//! | `creation` | the files of a new one |
//! | [`closed`] | what is left of one that nobody uses |
//! | [`context`] | what they share |
//! | [`database`] | one database: its state, and its queue of entries |
//! | `open` | makes one of what a crash may have left |
//! | [`gate`] | which app here may write it, and what becomes of a transaction |
//! | [`lessor`] | on the leader: whose turn it is, on all nodes |
//! | [`publish`] | judges an entry and makes it visible, by its app or by the applier |
//! | `parts` | the parts of large transactions, staged in files |
//! | [`worker`] | drains the queue |
//! | [`applier`] | writes a transaction into the WAL beside its readers |
//! | [`side_file`] | `NAME.db-quire`: durable index, page hashes, publications |
//! | [`checkpoint`] | moves the durable index forward |
//! | [`view`] | the whole database at one entry, page by page |
//! | [`dropping`] | what becomes of a database that is dropped |
//! | [`export`] | a view as an ordinary SQLite file |
//! | [`scrub`] | reads pages and compares them with their hashes |
//! | [`backlog`] | what waits for workers, and keeps more from being taken from the log |
//! | `lag` | what is kept of entries while an app stands still |
//! | `strangers` | who writes past the gate |
//! | [`incoming`] | `NAME.db-incoming`: a state on its way from another node |
//! | [`install`] | makes an incoming state this node's own |
//! | [`sql`] | the daemon's own connections, through the quire VFS |
//! | [`ear`] | what the node says to one that writes |

pub mod applier;
pub mod backlog;
pub mod checkpoint;
pub mod closed;
pub mod context;
mod creation;
pub mod database;
pub mod dropping;
pub mod ear;
pub(crate) mod error;
pub mod export;
pub mod gate;
pub mod incoming;
pub mod install;
mod lag;
pub mod lessor;
mod open;
pub mod parts;
pub mod publish;
pub mod registry;
#[cfg(test)]
mod regressions;
pub mod scrub;
pub mod side_file;
pub mod sql;
mod strangers;
pub mod view;
pub mod worker;

pub use error::DbError;
