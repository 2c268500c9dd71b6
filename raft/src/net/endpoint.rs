//! The QUIC endpoint and its tuning.
//!
//! | setting | value | why |
//! |---|---|---|
//! | windows | 2 × the append window per stream, 4 × per connection | the byte window in `client.rs` is the limit, not QUIC's |
//! | initial RTT | 20 ms | members of a cluster are near; the default of 333 ms slows loss recovery of the first packets |
//! | idle timeout | see [`idle_timeout`] | a dead peer's connection must end, and with it what waits on it |
//! | keep-alive | a third of that | an idle, healthy connection must not |
//! | acknowledgements | after 64 packets or 5 ms | an append's answer carries them; alone they double the packets |
//! | packet size | probed up to jumbo frames | a page then takes one packet instead of three |
//! | streams | 256 bidirectional, 0 unidirectional | bounds what one peer can have under way |
//! | datagrams | off | not used |

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use super::tls::Tls;
use crate::{RaftConfig, StartError};

/// Streams that one peer may have open on one connection.
const STREAMS: u32 = 256;

/// How long a silent connection lives.
pub(crate) fn idle_timeout(config: &RaftConfig) -> Duration {
    (config.election_max * 2).clamp(Duration::from_secs(2), Duration::from_secs(30))
}

/// Payload of a UDP packet in a jumbo frame (9000 bytes, less the headers of IPv6 and UDP).
const MAX_PACKET: u16 = 8952;
/// Packets that a peer may leave unacknowledged, and for how long.
const ACK_THRESHOLD: u32 = 64;
const ACK_DELAY: Duration = Duration::from_millis(5);

/// Bytes of socket buffer asked for, each way.
const SOCKET_BUFFER: libc::c_int = 4 << 20;
/// How long to wait for an address that a predecessor is just giving up.
const BIND_PATIENCE: Duration = Duration::from_secs(5);

/// The endpoint, until it is closed. All handles to the socket are behind this, so that closing frees the address.
pub(crate) struct Endpoint {
    current: Mutex<Option<quinn::Endpoint>>,
    addr: SocketAddr,
}

impl Endpoint {
    /// The endpoint, unless closed.
    pub(crate) fn get(&self) -> Option<quinn::Endpoint> {
        self.current.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The bound address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections, and waits a little for the peers to learn of it.
    pub(crate) async fn close(&self) {
        let current = self.current.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(endpoint) = current {
            endpoint.close(0u32.into(), b"shutdown");
            let _ = tokio::time::timeout(Duration::from_secs(2), endpoint.wait_idle()).await;
        }
    }
}

/// Asks for socket buffers that hold a burst of appends: what overflows them is lost, and loss costs milliseconds.
/// The system's limits (`net.core.rmem_max`, `wmem_max`) apply, unless the process may exceed them.
fn enlarge_buffers(socket: &UdpSocket) {
    let size: libc::c_int = SOCKET_BUFFER;
    let set = |option: libc::c_int| {
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; the value is a C int that lives across
        // the call, and its size is passed along.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(&size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            ) == 0
        }
    };
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // The first needs a privilege. Smaller buffers only cost speed.
        let _ = set(force) || set(plain);
    }
}

async fn bind_socket(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let start = Instant::now();
    loop {
        match UdpSocket::bind(addr) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && start.elapsed() < BIND_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// A bound endpoint: server and client in one socket.
pub(crate) async fn bind(config: &RaftConfig) -> Result<Endpoint, StartError> {
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
    let socket = bind_socket(config.listen).await.map_err(|e| network(&config.listen.to_string(), &e))?;
    let runtime =
        quinn::default_runtime().ok_or_else(|| network("runtime", &"not inside a tokio runtime"))?;
    enlarge_buffers(&socket);
    let addr = socket.local_addr().map_err(|e| network("address", &e))?;
    // A node that was restarted can then tell its peers that it doesn't know their old connections.
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &config.key.reset_key(config.node_id));
    let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(reset_key));
    endpoint_config.max_udp_payload_size(MAX_PACKET).map_err(|e| network("packet size", &e))?;
    let endpoint = quinn::Endpoint::new(endpoint_config, Some(server), socket, runtime);
    let mut endpoint = endpoint.map_err(|e| network(&config.listen.to_string(), &e))?;
    endpoint.set_default_client_config(client);
    Ok(Endpoint { current: Mutex::new(Some(endpoint)), addr })
}

fn transport(config: &RaftConfig) -> Result<quinn::TransportConfig, StartError> {
    let window = config.limits.append_window_bytes.max(config.limits.append_frame_bytes) as u64;
    let var = |n: u64| quinn::VarInt::from_u64(n).map_err(|e| StartError::Network(e.to_string()));
    let idle = idle_timeout(config);
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_THRESHOLD.into()).max_ack_delay(Some(ACK_DELAY));
    let mut probes = quinn::MtuDiscoveryConfig::default();
    probes.upper_bound(MAX_PACKET);
    let mut t = quinn::TransportConfig::default();
    t.ack_frequency_config(Some(acks)).mtu_discovery_config(Some(probes));
    t.max_concurrent_bidi_streams(STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(var(window * 2)?)
        .receive_window(var(window * 4)?)
        .send_window(window * 4)
        .initial_rtt(Duration::from_millis(20))
        .max_idle_timeout(Some(
            idle.try_into().map_err(|e| StartError::Network(format!("idle timeout: {e}")))?,
        ))
        .keep_alive_interval(Some(idle / 3))
        .datagram_receive_buffer_size(None);
    Ok(t)
}
