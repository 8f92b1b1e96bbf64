//! Making a connection to a host: socket options, connect, transport; counted from attempt to close.

use super::{Cluster, Host, HostAddress, circuit_breaker::Guard, cluster_config::Keepalive};
use crate::transport::{AlpnFallback, UpstreamSocket, UpstreamStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{
    net::{TcpSocket, TcpStream, UnixStream},
    time::Instant,
};

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The cluster's connect timeout has passed.
    #[error("connection timeout")]
    Timeout,
    /// The system refused.
    #[error("delayed connect error: {}", reason(.0))]
    Socket(io::Error),
    /// The TLS handshake failed.
    #[error("TLS_error: {0}")]
    Transport(io::Error),
}

fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Counts a connection for as long as it lives.
pub(crate) struct ConnectionGuard {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    began: Instant,
    is_remote_close: bool,
    _breaker: Guard,
}

impl ConnectionGuard {
    fn new(cluster: Arc<Cluster>, host: Arc<Host>, breaker: Guard) -> Self {
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.stats.cx_total.inc();
        host.stats.cx_active.inc();
        Self {
            cluster,
            host,
            began: Instant::now(),
            is_remote_close: false,
            _breaker: breaker,
        }
    }

    /// Bytes came in.
    pub(crate) fn received(&self, count: u64) {
        self.cluster.stats.upstream_cx_rx_bytes_total.add(count);
    }

    /// Bytes went out.
    pub(crate) fn sent(&self, count: u64) {
        self.cluster.stats.upstream_cx_tx_bytes_total.add(count);
    }

    /// The peer has ended its side.
    pub(crate) fn closed_by_peer(&mut self) {
        self.is_remote_close = true;
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.dec();
        self.host.stats.cx_active.dec();
        stats.upstream_cx_destroy.inc();
        if self.is_remote_close {
            &stats.upstream_cx_destroy_remote
        } else {
            &stats.upstream_cx_destroy_local
        }
        .inc();
        stats
            .upstream_cx_length_ms
            .record(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

/// Connects to where `host` wants its health checked.
pub(crate) async fn connect_for_health_check(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    breaker: Guard,
) -> Result<UpstreamStream, ConnectError> {
    let address = host
        .health_check_address
        .map_or_else(|| host.address.clone(), HostAddress::Socket);
    connect_to(cluster, host, &address, breaker, AlpnFallback::Http1, None).await
}

/// Connects to `host`, transport included, within the cluster's connect timeout.
pub(crate) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    breaker: Guard,
    alpn: AlpnFallback,
    sni: Option<&str>,
) -> Result<UpstreamStream, ConnectError> {
    connect_to(cluster, host, &host.address, breaker, alpn, sni).await
}

async fn connect_to(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    address: &HostAddress,
    breaker: Guard,
    alpn: AlpnFallback,
    sni: Option<&str>,
) -> Result<UpstreamStream, ConnectError> {
    let guard = ConnectionGuard::new(cluster.clone(), host.clone(), breaker);
    let began = guard.began;
    let attempt = async {
        let socket = open(cluster, address).await.map_err(ConnectError::Socket)?;
        host.transport
            .connect(socket, guard, alpn, sni, host.socket_address())
            .await
            .map_err(ConnectError::Transport)
    };
    let outcome = tokio::time::timeout(cluster.config.connect_timeout, attempt)
        .await
        .unwrap_or(Err(ConnectError::Timeout));
    match &outcome {
        Ok(_) => cluster
            .stats
            .upstream_cx_connect_ms
            .record(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)),
        Err(error) => {
            if matches!(error, ConnectError::Timeout) {
                cluster.stats.upstream_cx_connect_timeout.inc();
            }
            cluster.stats.upstream_cx_connect_fail.inc();
            host.stats.cx_connect_fail.inc();
            tracing::debug!(target: "pool", cluster = %cluster.name(), host = %host.address_text, %error, "cannot connect");
        }
    }
    outcome
}

async fn open(cluster: &Cluster, address: &HostAddress) -> io::Result<UpstreamSocket> {
    let address = match address {
        HostAddress::Pipe(path) => {
            return UnixStream::connect(path.as_path())
                .await
                .map(UpstreamSocket::Unix);
        }
        HostAddress::Socket(address) => *address,
    };
    let socket = bound_socket(cluster, address)?;
    let stream: TcpStream = socket.connect(address).await?;
    // Latency matters more than packets here; failure is harmless.
    let _ = stream.set_nodelay(true);
    if let Some(keepalive) = cluster.config.keepalive {
        set_keepalive(&stream, keepalive)?;
    }
    Ok(UpstreamSocket::Tcp(stream))
}

fn bound_socket(cluster: &Cluster, address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    // A source of the other address family cannot be used; Envoy ignores it too.
    if let Some(source) = cluster
        .config
        .bind
        .filter(|source| source.is_ipv4() == address.is_ipv4())
    {
        if source.port() == 0 {
            // The port is chosen at connect, so that two destinations may share one.
            let _ = nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::IpBindAddressNoPort,
                &true,
            );
        }
        socket
            .bind(&source.into())
            .inspect_err(|_| cluster.stats.bind_errors.inc())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn set_keepalive(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    let mut options = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&options)
}
