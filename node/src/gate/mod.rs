//! The gate's server: apps' connections over the unix socket `DIR/db/quire.sock`.
//!
//! | module | what it is |
//! |---|---|
//! | [`server`] | the socket: who may connect, and how many |
//! | `parts` | large transactions in a session |
//! | [`reads`] | reads that are to find what is committed elsewhere |
//! | [`session`] | one connection, from Hello to its end |
//! | `wire` | the socket of one connection |

mod parts;
pub mod reads;
pub mod server;
pub mod session;
mod wire;
