//! The network: mutually authenticated QUIC.
//!
//! `tls.rs` makes the certificates, `endpoint.rs` the QUIC endpoint and its tuning, `codec.rs` the frames,
//! `link.rs` the connections to peers, `client.rs` openraft's network over them, `server.rs` the other side.
//!
//! Two connections go from each node to each peer it talks to: *control* (votes, heartbeats, leader transfer), and
//! *data* (appends, forwarded requests). Neither flow control nor congestion of the second can delay the first.

pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod endpoint;
pub(crate) mod frame;
pub(crate) mod link;
pub(crate) mod server;
pub(crate) mod tls;
