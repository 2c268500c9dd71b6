//! SQL for clients that don't run their own SQLite: what the HTTP API does, without HTTP.
//!
//! | module | what it is |
//! |---|---|
//! | [`request`] | statements and parameters, from JSON or text |
//! | [`options`] | the parameters of a request |
//! | [`service`] | what becomes of a request: here, or at the leader; now, or queued |
//! | [`forward`] | a request on its way to the leader, and its answer |
//! | [`consent`] | what became of a request when there is no answer |
//! | `fresh` | the database of a request, and reads that must not be old |
//! | [`writer`] | group commit: the queue and the thread |
//! | `batch` | group commit: the requests of one transaction |
//! | `autocommit` | what a text without a transaction comes to |
//! | [`reader`] | reads, on connections of their own |
//! | [`interactive`] | transactions over several requests |
//! | [`queue`] | writes that nobody waits for |
//! | [`run`] | one statement, and its result |
//! | [`guard`] | what a client's SQL may do, and for how long |
//! | [`words`] | what can be told of SQL before SQLite sees it |
//! | [`gates`] | how the connections reach the node's gate |
//! | [`json`], [`time`] | how results are written |
//! | [`stats`] | counters |

mod autocommit;
mod batch;
pub mod consent;
mod ffi;
pub mod forward;
mod fresh;
pub mod gates;
pub mod guard;
pub mod interactive;
pub mod json;
pub mod options;
pub mod queue;
pub mod reader;
pub mod request;
pub mod run;
pub mod service;
pub mod stats;
pub mod time;
pub mod words;
pub mod writer;

/// Bytes of results of one request that are kept until its transaction has an outcome.
pub const MAX_RESULT: usize = 32 << 20;
/// Bytes of one request's body.
pub const MAX_BODY: usize = 64 << 20;
/// Threads of this name may panic without ending the node.
pub const THREAD: &str = "quire-http";
