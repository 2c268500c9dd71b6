//! The network: mutually authenticated QUIC.
//!
//! `tls.rs` makes the certificates, `endpoint.rs` the QUIC endpoint and its tuning, `codec.rs` the frames,
//! `buffer.rs` cuts them from streams, `link.rs` the connections to peers, `client.rs` openraft's network over them, `server.rs` the other side,
//! `snapshot.rs` both sides of a snapshot's transfer, `bulk.rs` the streams that it is made of.
//!
//! Up to three connections go from each node to each peer it talks to: *control* (votes, heartbeats, leader transfer),
//! *data* (appends, forwarded requests), and *bulk* (snapshots and what they need). Neither flow control nor
//! congestion of a later one can delay an earlier one.

pub(crate) mod buffer;
pub(crate) mod bulk;
pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod endpoint;
pub(crate) mod frame;
pub(crate) mod haste;
pub(crate) mod link;
pub(crate) mod server;
pub(crate) mod snapshot;
pub(crate) mod tls;
