//! The QUIC endpoint and its tuning.
//!
//! | setting | value | why |
//! |---|---|---|
//! | windows | 2 × the append window per stream, 4 × per connection | the byte window in `client.rs` is the limit, not QUIC's |
//! | initial RTT | 20 ms | members of a cluster are near; the default of 333 ms slows loss recovery of the first packets |
//! | idle timeout | see [`idle_timeout`] | a dead peer's connection must end, and with it what waits on it |
//! | keep-alive | a third of that | an idle, healthy connection must not |
//! | streams | 256 bidirectional, 0 unidirectional | bounds what one peer can have under way |
//! | datagrams | off | not used |

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use super::tls::Tls;
use crate::{RaftConfig, StartError};

/// Streams that one peer may have open on one connection.
const STREAMS: u32 = 256;

/// How long a silent connection lives.
pub(crate) fn idle_timeout(config: &RaftConfig) -> Duration {
    (config.election_max * 2).clamp(Duration::from_secs(2), Duration::from_secs(30))
}

/// A bound endpoint: server and client in one socket.
pub(crate) fn bind(config: &RaftConfig) -> Result<quinn::Endpoint, StartError> {
    let network = |what: &str, e: &dyn std::fmt::Display| StartError::Network(format!("{what}: {e}"));
    let tls = Tls::new(&config.key, config.node_id).map_err(|e| network("certificates", &e))?;
    let transport = Arc::new(transport(config)?);
    let crypto = QuicServerConfig::try_from(tls.server).map_err(|e| network("TLS", &e))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(transport.clone());
    server.migration(false);
    let crypto = QuicClientConfig::try_from(tls.client).map_err(|e| network("TLS", &e))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport);
    let socket = std::net::UdpSocket::bind(config.listen).map_err(|e| network(&config.listen.to_string(), &e))?;
    let runtime = quinn::default_runtime().ok_or_else(|| network("runtime", &"not inside a tokio runtime"))?;
    let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(server), socket, runtime);
    let mut endpoint = endpoint.map_err(|e| network(&config.listen.to_string(), &e))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn transport(config: &RaftConfig) -> Result<quinn::TransportConfig, StartError> {
    let window = config.limits.append_window_bytes.max(config.limits.append_frame_bytes) as u64;
    let var = |n: u64| quinn::VarInt::from_u64(n).map_err(|e| StartError::Network(e.to_string()));
    let idle = idle_timeout(config);
    let mut t = quinn::TransportConfig::default();
    t.max_concurrent_bidi_streams(STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(var(window * 2)?)
        .receive_window(var(window * 4)?)
        .send_window(window * 4)
        .initial_rtt(Duration::from_millis(20))
        .max_idle_timeout(Some(idle.try_into().map_err(|e| StartError::Network(format!("idle timeout: {e}")))?))
        .keep_alive_interval(Some(idle / 3))
        .datagram_receive_buffer_size(None);
    Ok(t)
}
