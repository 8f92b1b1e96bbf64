//! Making a connection to a host: socket options, connect, transport; counted from attempt to close.

use super::{Cluster, Host, HostAddress, circuit_breaker::Guard, cluster_config::Keepalive};
use crate::{
    listener::{TlsInfo, UpstreamSource, next_connection_id},
    stats::Scope,
    transport::{AlpnFallback, ClientAddresses, RawStream, TlsPeer, UpstreamStream, unpace},
};
use futures::stream::{FuturesUnordered, StreamExt as _};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream, UnixStream},
    time::Instant,
};

/// How long an address has for itself before the next one is tried too, as Envoy has it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(300);

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

/// What a connection carries.
pub(crate) enum Load {
    /// Nothing.
    Idle,
    /// A request, or a TCP connection.
    Busy,
    /// So many streams.
    Streams(Arc<AtomicU32>),
}

impl Load {
    fn is_busy(&self) -> bool {
        match self {
            Load::Idle => false,
            Load::Busy => true,
            Load::Streams(streams) => streams.load(Relaxed) > 0,
        }
    }
}

/// Counts a connection for as long as it lives.
pub(crate) struct ConnectionGuard {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    /// Unique in the process.
    pub(crate) id: u64,
    /// When it was begun.
    pub(crate) began: Instant,
    /// When TCP was connected; until then the same.
    pub(crate) connected: Instant,
    /// When the TLS handshake was over.
    pub(crate) secured: Option<Instant>,
    is_remote_close: bool,
    /// What it carries.
    pub(crate) load: Load,
    /// The TLS session, once there is one.
    pub(crate) tls: Option<Arc<TlsInfo>>,
    /// None for connections that do not count (health checks).
    breaker: Option<Guard>,
}

impl ConnectionGuard {
    fn new(cluster: Arc<Cluster>, host: Arc<Host>, breaker: Guard) -> Self {
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        host.stats.cx_total.inc();
        host.stats.cx_active.inc();
        Self::with_breaker(cluster, host, Some(breaker))
    }

    fn uncounted(cluster: Arc<Cluster>, host: Arc<Host>) -> Self {
        Self::with_breaker(cluster, host, None)
    }

    fn with_breaker(cluster: Arc<Cluster>, host: Arc<Host>, breaker: Option<Guard>) -> Self {
        let now = Instant::now();
        Self {
            cluster,
            host,
            id: next_connection_id(),
            began: now,
            connected: now,
            secured: None,
            is_remote_close: false,
            load: Load::Idle,
            tls: None,
            breaker,
        }
    }

    /// Bytes came in, bytes went out.
    pub(crate) fn add(&self, received: u64, sent: u64) {
        let stats = &self.cluster.stats;
        if received > 0 {
            stats.upstream_cx_rx_bytes_total.add(received);
        }
        if sent > 0 {
            stats.upstream_cx_tx_bytes_total.add(sent);
        }
    }

    /// Where the cluster's statistics are.
    pub(crate) fn scope(&self) -> &Scope {
        &self.cluster.scope
    }

    /// The peer has ended its side.
    pub(crate) fn closed_by_peer(&mut self) {
        self.is_remote_close = true;
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.breaker.is_none() {
            return;
        }
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.dec();
        self.host.stats.cx_active.dec();
        let is_busy = self.load.is_busy();
        stats.upstream_cx_destroy.inc();
        let (destroyed, with_request) = if self.is_remote_close {
            (
                &stats.upstream_cx_destroy_remote,
                &stats.upstream_cx_destroy_remote_with_active_rq,
            )
        } else {
            (
                &stats.upstream_cx_destroy_local,
                &stats.upstream_cx_destroy_local_with_active_rq,
            )
        };
        destroyed.inc();
        if is_busy {
            stats.upstream_cx_destroy_with_active_rq.inc();
            with_request.inc();
        }
        stats
            .upstream_cx_length_ms
            .record(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

/// Connects to where `host` wants its health checked; not counted among the cluster's connections.
pub(crate) async fn connect_for_health_check(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    alt_port: Option<u16>,
    transport: Option<&prost_types::Struct>,
    alpn: AlpnFallback,
) -> Result<UpstreamStream, ConnectError> {
    let mut address = host
        .health_check
        .address
        .map_or_else(|| host.address.clone(), HostAddress::Socket);
    if let (HostAddress::Socket(socket), Some(port), None) =
        (&mut address, alt_port, host.health_check.address)
    {
        socket.set_port(port);
    }
    let attempt = async {
        let socket = open(cluster, &address, &[], None)
            .await
            .map_err(ConnectError::Socket)?;
        let transport = transport.map_or_else(
            || host.transport.clone(),
            |criteria| cluster.config.transport.of_endpoint(Some(criteria)),
        );
        let guard = ConnectionGuard::uncounted(cluster.clone(), host.clone());
        let peer = TlsPeer {
            address: host.socket_address(),
            hostname: &host.hostname,
            sni: None,
            is_name_checked: false,
            client: None,
        };
        transport
            .connect(socket, guard, alpn, peer)
            .await
            .map_err(ConnectError::Transport)
    };
    tokio::time::timeout(cluster.config.connect_timeout, attempt)
        .await
        .unwrap_or(Err(ConnectError::Timeout))
}

/// What a connection asks for, where it comes from, and for whom it is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Aim<'a> {
    /// The server name to ask for instead of the transport's own.
    pub(crate) sni: Option<&'a str>,
    /// The source it takes instead of our own.
    pub(crate) source: Option<UpstreamSource>,
    /// The client that it is for, where hosts are told.
    pub(crate) client: Option<ClientAddresses>,
}

/// Connects to `host`, transport included, within the cluster's connect timeout.
pub(crate) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    breaker: Guard,
    alpn: AlpnFallback,
    aim: Aim<'_>,
) -> Result<UpstreamStream, ConnectError> {
    let mut guard = ConnectionGuard::new(cluster.clone(), host.clone(), breaker);
    let began = guard.began;
    let attempt = async {
        let socket = open(cluster, &host.address, &host.more_addresses, aim.source)
            .await
            .map_err(ConnectError::Socket)?;
        guard.connected = Instant::now();
        let peer = TlsPeer {
            address: host.socket_address(),
            hostname: &host.hostname,
            sni: aim.sni,
            is_name_checked: aim.sni.is_some() && cluster.config.http.auto_san_validation,
            client: aim.client,
        };
        host.transport
            .connect(socket, guard, alpn, peer)
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

async fn open(
    cluster: &Cluster,
    address: &HostAddress,
    more: &[SocketAddr],
    client: Option<UpstreamSource>,
) -> io::Result<RawStream> {
    let address = match address {
        HostAddress::Pipe(path) => {
            return UnixStream::connect(path.as_path())
                .await
                .map(RawStream::unix);
        }
        HostAddress::Socket(address) => *address,
    };
    let stream = if more.is_empty() {
        bound_socket(cluster, address, client)?
            .connect(address)
            .await?
    } else {
        race(cluster, address, more, client).await?
    };
    // Latency matters more than packets here; failure is harmless.
    let _ = stream.set_nodelay(true);
    if let Some(keepalive) = cluster.config.keepalive {
        set_keepalive(&stream, keepalive)?;
    }
    Ok(RawStream::tcp(stream, bytes::Bytes::new()))
}

/// Happy eyeballs: the next address is tried when the one before has not answered for a moment, or failed; the first wins.
async fn race(
    cluster: &Cluster,
    first: SocketAddr,
    more: &[SocketAddr],
    client: Option<UpstreamSource>,
) -> io::Result<TcpStream> {
    let order = cluster.config.families;
    let mut left = order.interleave(first, more).into_iter();
    let mut running = FuturesUnordered::new();
    let mut failure = io::Error::other("no address");
    loop {
        if let Some(address) = left.next() {
            running.push(async move {
                bound_socket(cluster, address, client)?
                    .connect(address)
                    .await
            });
        }
        let has_more = left.len() > 0;
        let next = async {
            match running.next().await {
                Some(outcome) => outcome,
                None => std::future::pending().await,
            }
        };
        let finished = if has_more {
            tokio::time::timeout(ATTEMPT_DELAY, next).await.ok()
        } else {
            Some(next.await)
        };
        match finished {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => failure = error,
            None => {}
        }
        if running.is_empty() && !has_more {
            return Err(failure);
        }
    }
}

fn bound_socket(
    cluster: &Cluster,
    address: SocketAddr,
    client: Option<UpstreamSource>,
) -> io::Result<TcpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    unpace(&socket, address.ip());
    // The client's own address: the answers come back here only where routing and marks see to it.
    if let Some(client) = client.filter(|client| client.address.is_ipv4() == address.is_ipv4()) {
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        if client.mark != 0 {
            socket.set_mark(client.mark)?;
        }
        socket
            .bind(&client.address.into())
            .inspect_err(|_| cluster.stats.bind_errors.inc())?;
        return Ok(TcpSocket::from_std_stream(socket.into()));
    }
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
