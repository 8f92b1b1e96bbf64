//! The way of an accepted connection: listener filters, chain, transport, network filters.

use super::{
    Connection, ConnectionInfo, Listener, ListenerConfig, Listeners, TransportProtocol,
    accept::Admission, connection::next_connection_id,
};
use crate::{
    access_log::LogType,
    filter_state::FilterState,
    http::timer::Timer,
    listener_filter::{Accepted, ListenerFilter},
    network::Verdict,
    overload::TimerType,
    stream_info::{DynamicMetadata, ResponseFlag, StreamInfo},
    transport::{HandshakeNotes, RawStream},
    worker::Worker,
};
use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::Instant,
};

/// Counts a connection while it lives.
struct Counted {
    listener: Arc<Listener>,
    worker: usize,
    began: Instant,
    _admission: Admission,
}

impl Counted {
    fn new(listener: Arc<Listener>, worker: usize, admission: Admission) -> Self {
        listener.stats.downstream_cx_total.inc();
        listener.stats.downstream_cx_active.inc();
        if let Some(stats) = listener.worker_stats.get(worker) {
            stats.downstream_cx_total.inc();
            stats.downstream_cx_active.inc();
        }
        Self {
            listener,
            worker,
            began: Instant::now(),
            _admission: admission,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.listener.stats;
        stats.downstream_cx_active.dec();
        if let Some(stats) = self.listener.worker_stats.get(self.worker) {
            stats.downstream_cx_active.dec();
        }
        stats.downstream_cx_destroy.inc();
        stats
            .downstream_cx_length_ms
            .record(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

fn new_info(config: &ListenerConfig, local: SocketAddr, remote: SocketAddr) -> ConnectionInfo {
    ConnectionInfo {
        id: next_connection_id(),
        began: Instant::now(),
        remote_address: remote,
        direct_remote_address: remote,
        local_address: local,
        direct_local_address: local,
        is_local_restored: false,
        transport_protocol: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
        tls: None,
        handshake: HandshakeNotes::default(),
        fingerprints: None,
        listener: config.name.clone(),
        listener_metadata: config.metadata.clone(),
        direction: config.direction,
        chain: None,
        meter: Arc::default(),
        filter_state: FilterState::default(),
        metadata: DynamicMetadata::default(),
        cluster_override: None,
        dynamic_host: None,
        seen: Arc::default(),
        upstream_source: None,
        drains_when_unhealthy: config.drains_when_unhealthy,
        is_shed: Cell::new(false),
        buffer_limit: config.buffer_limit,
    }
}

/// Serves a TCP connection to its end.
pub(super) async fn serve_tcp(
    worker: Rc<Worker>,
    listeners: &Listeners,
    mut listener: Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
    admission: Admission,
) -> io::Result<()> {
    let mut config = listener.config.load_full();
    let local = canonical(stream.local_addr()?);
    let mut info = new_info(&config, local, canonical(remote));
    let mut accepted = Accepted::new(stream);
    let outcome = inspect(&listener, &config, &mut accepted, &mut info).await;
    if !matches!(outcome, Ok(true)) {
        log_refused(&config, info, Refused::Early);
        return outcome.map(drop);
    }
    // A redirected connection belongs to the listener of its destination, if there is one; that one looks at it again.
    if config.hands_over
        && info.is_local_restored
        && let Some(target) = listeners.map().for_destination(info.local_address)
        && !Arc::ptr_eq(target, &listener)
    {
        listener = target.clone();
        config = listener.config.load_full();
        info.listener = config.name.clone();
        info.listener_metadata.clone_from(&config.metadata);
        info.direction = config.direction;
        let outcome = inspect(&listener, &config, &mut accepted, &mut info).await;
        if !matches!(outcome, Ok(true)) {
            log_refused(&config, info, Refused::Early);
            return outcome.map(drop);
        }
    }
    let (stream, ahead) = accepted.into_parts();
    serve(
        worker,
        listener,
        config,
        RawStream::tcp(stream, ahead),
        info,
        admission,
    )
    .await
}

/// Serves a Unix connection to its end.
pub(super) async fn serve_unix(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    stream: UnixStream,
    admission: Admission,
) {
    let config = listener.config.load_full();
    // A Unix socket has no addresses worth telling.
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let info = new_info(&config, nowhere, nowhere);
    let raw = RawStream::unix(stream);
    if let Err(error) = serve(worker, listener, config, raw, info, admission).await {
        tracing::debug!(target: "connection", %error, "connection ended early");
    }
}

/// Lets the listener filters look; `false` when the connection is to be closed.
async fn inspect(
    listener: &Listener,
    config: &ListenerConfig,
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
) -> io::Result<bool> {
    if config.filters.is_empty() {
        return Ok(true);
    }
    if !config.filters.iter().all(ListenerFilter::is_configured) {
        listener.stats.extension_config_missing.inc();
        return Ok(false);
    }
    listener.stats.downstream_pre_cx_active.inc();
    let look = async {
        for filter in &config.filters {
            filter.inspect(accepted, info).await?;
        }
        Ok::<_, io::Error>(())
    };
    let outcome = if config.filters_timeout.is_zero() {
        Ok(look.await)
    } else {
        tokio::time::timeout(config.filters_timeout, look).await
    };
    listener.stats.downstream_pre_cx_active.dec();
    match outcome {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                listener.stats.downstream_listener_filter_remote_close.inc();
            } else {
                listener.stats.downstream_listener_filter_error.inc();
            }
            Err(error)
        }
        Err(_) => {
            listener.stats.downstream_pre_cx_timeout.inc();
            Ok(config.continues_on_timeout)
        }
    }
}

async fn serve(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    config: Arc<ListenerConfig>,
    raw: RawStream,
    mut info: ConnectionInfo,
    admission: Admission,
) -> io::Result<()> {
    let Some(chain) = config.chains.find(&info).cloned() else {
        listener.stats.no_filter_chain_match.inc();
        log_refused(&config, info, Refused::NoChain);
        return Ok(());
    };
    let counted = Counted::new(listener.clone(), worker.index, admission);
    if !chain.is_configured() {
        listener.stats.network_extension_config_missing.inc();
        return Ok(());
    }
    let addresses = Some((info.local_address.ip(), info.remote_address.ip()));
    let handshake = chain
        .transport
        .accept(raw, addresses, &mut info.handshake, || listener.tls_stats());
    let accepted = tokio::select! {
        accepted = handshake => Some(accepted),
        () = too_late(&worker, chain.transport_timeout) => None,
    };
    let (stream, tls) = match accepted {
        Some(Ok(accepted)) => accepted,
        Some(Err(error)) => {
            log_refused(&config, info, Refused::Early);
            return Err(io::Error::other(error));
        }
        None => {
            listener
                .stats
                .downstream_cx_transport_socket_connect_timeout
                .inc();
            log_refused(&config, info, Refused::HandshakeTimeout);
            return Ok(());
        }
    };
    if let Some(tls) = tls {
        info.transport_protocol = TransportProtocol::Tls;
        if info.server_name.is_none() {
            info.server_name = tls.server_name.as_deref().map(Into::into);
        }
        info.tls = Some(tls);
    }
    info.chain = Some(chain.clone());
    info.meter = stream.meter();
    let mut connection = Connection {
        stream,
        info: Rc::new(info),
        worker,
        drain: chain.drain.clone(),
        watchers: vec![Box::new(counted)],
    };
    let mut verdict = Verdict::Continue;
    for filter in &chain.passing {
        verdict = filter.on_new_connection(&mut connection).await;
        if verdict == Verdict::Close {
            break;
        }
    }
    // After the filters, as it tells what they have left.
    if !config.access_logs.is_empty() {
        connection
            .watchers
            .push(Box::new(ConnectionLog(config, connection.info.clone())));
    }
    if verdict == Verdict::Close {
        return Ok(());
    }
    chain.terminal.clone().serve(connection).await;
    Ok(())
}

/// Writes the listener's access log when the connection is over.
struct ConnectionLog(Arc<ListenerConfig>, Rc<ConnectionInfo>);

impl Drop for ConnectionLog {
    fn drop(&mut self) {
        let mut info = StreamInfo::new(self.1.clone(), None);
        info.bytes_received = self.1.meter.received();
        info.bytes_sent = self.1.meter.sent();
        info.end = Some(Instant::now());
        if self.1.is_shed.get() {
            info.flags.set(ResponseFlag::OverloadManager);
        }
        crate::network::log_connection(&self.0.access_logs, &info, LogType::NotSet);
    }
}

/// Why a connection came to no filter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// A listener filter wanted no more of it, its handshake failed, or its client left meanwhile.
    Early,
    /// No chain is for it.
    NoChain,
    /// The handshake took too long.
    HandshakeTimeout,
}

fn log_refused(config: &ListenerConfig, info: ConnectionInfo, why: Refused) {
    if config.access_logs.is_empty() {
        return;
    }
    let mut info = StreamInfo::new(Rc::new(info), None);
    info.end = Some(Instant::now());
    match why {
        Refused::Early => {}
        Refused::NoChain => {
            info.set_details("filter_chain_not_found");
            info.flags.set(ResponseFlag::NoRouteFound);
        }
        Refused::HandshakeTimeout => {
            info.connection_termination_details =
                Some("transport socket timeout was reached".into());
            info.connection.meter.because("transport_socket_timeout");
        }
    }
    crate::network::log_connection(&config.access_logs, &info, LogType::NotSet);
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Resolves when a handshake that begins now has taken too long; a limit of zero is none.
async fn too_late(worker: &Worker, limit: Duration) {
    if limit.is_zero() {
        return std::future::pending().await;
    }
    let start = Instant::now();
    let mut timer = Timer::pooled(&worker.timers);
    loop {
        let at = start + timer.limit(TimerType::TransportSocketConnect, limit);
        if at <= Instant::now() {
            return;
        }
        timer.wait(Some(at)).await;
    }
}
