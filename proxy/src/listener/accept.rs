//! Accepting on a worker: from socket through listener filters, chain and transport to the network filters.

use super::{
    Connection, ConnectionInfo, Listener, ListenerConfig, Listeners, TransportProtocol,
    socket::BoundSocket,
};
use crate::{
    listener_filter::Accepted,
    network::Verdict,
    stream_info::{DynamicMetadata, StreamInfo},
    transport::RawStream,
    worker::Worker,
};
use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::Instant,
};

/// Follows the listeners of the process for ever: accepts on those that are new.
pub(crate) async fn run_listeners(worker: Rc<Worker>, listeners: Arc<Listeners>) {
    let mut changed = listeners.watch();
    listeners.stats.workers_started.set(1);
    let mut known: HashSet<usize> = HashSet::new();
    loop {
        changed.mark_unchanged();
        let map = listeners.map();
        let now: HashSet<usize> = map
            .by_name
            .values()
            .map(|listener| Arc::as_ptr(listener) as usize)
            .collect();
        for listener in map.by_name.values() {
            if known.insert(Arc::as_ptr(listener) as usize)
                && let Some(socket) = listener.take_socket(worker.index)
            {
                start(&worker, &listeners, listener.clone(), socket);
            }
        }
        known.retain(|pointer| now.contains(pointer));
        drop(map);
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn start(
    worker: &Rc<Worker>,
    listeners: &Arc<Listeners>,
    listener: Arc<Listener>,
    socket: BoundSocket,
) {
    let (worker, listeners) = (worker.clone(), listeners.clone());
    tokio::task::spawn_local(async move {
        let name = listener.name.clone();
        let closed = listener.closed.clone();
        let outcome = tokio::select! {
            outcome = accept(worker, listeners, listener, socket) => outcome,
            () = closed.cancelled() => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(target: "connection", listener = %name, %error, "accepting ended");
        }
    });
}

async fn accept(
    worker: Rc<Worker>,
    listeners: Arc<Listeners>,
    listener: Arc<Listener>,
    socket: BoundSocket,
) -> io::Result<()> {
    match socket {
        BoundSocket::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            loop {
                match socket.accept().await {
                    Ok((stream, remote)) => {
                        spawn_tcp(&worker, &listeners, &listener, stream, remote);
                    }
                    Err(error) => pause(&listener, &error).await,
                }
            }
        }
        BoundSocket::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            loop {
                match socket.accept().await {
                    Ok((stream, _)) => {
                        let (worker, listener) = (worker.clone(), listener.clone());
                        tokio::task::spawn_local(serve_unix(worker, listener, stream));
                    }
                    Err(error) => pause(&listener, &error).await,
                }
            }
        }
    }
}

/// Out of file descriptors, or a connection that was gone before it was accepted.
async fn pause(listener: &Listener, error: &io::Error) {
    tracing::warn!(target: "connection", listener = %listener.name, %error, "cannot accept");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn spawn_tcp(
    worker: &Rc<Worker>,
    listeners: &Arc<Listeners>,
    listener: &Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
) {
    let (worker, listeners, listener) = (worker.clone(), listeners.clone(), listener.clone());
    tokio::task::spawn_local(async move {
        // Latency matters more than packets here; failure is harmless.
        let _ = stream.set_nodelay(true);
        if let Err(error) = serve_tcp(worker, &listeners, listener, stream, remote).await {
            tracing::debug!(target: "connection", %remote, %error, "connection ended early");
        }
    });
}

/// Counts a connection while it lives.
struct Counted(Arc<Listener>, Instant);

impl Counted {
    fn new(listener: Arc<Listener>) -> Self {
        listener.stats.downstream_cx_total.inc();
        listener.stats.downstream_cx_active.inc();
        Self(listener, Instant::now())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.0.stats;
        stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        stats
            .downstream_cx_length_ms
            .record(u64::try_from(self.1.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

fn new_info(
    worker: &Worker,
    config: &ListenerConfig,
    local: SocketAddr,
    remote: SocketAddr,
) -> ConnectionInfo {
    ConnectionInfo {
        id: worker.server.next_connection_id(),
        remote_address: remote,
        direct_remote_address: remote,
        local_address: local,
        is_local_restored: false,
        transport_protocol: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
        tls: None,
        listener: config.name.clone(),
        direction: config.direction,
        chain: None,
        meter: Arc::default(),
        metadata: DynamicMetadata::default(),
        cluster_override: None,
    }
}

async fn serve_tcp(
    worker: Rc<Worker>,
    listeners: &Listeners,
    mut listener: Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
) -> io::Result<()> {
    let mut config = listener.config.load_full();
    let local = canonical(stream.local_addr()?);
    let mut info = new_info(&worker, &config, local, canonical(remote));
    let mut accepted = Accepted::new(stream);
    if !inspect(&listener, &config, &mut accepted, &mut info).await? {
        return Ok(());
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
        info.direction = config.direction;
        if !inspect(&listener, &config, &mut accepted, &mut info).await? {
            return Ok(());
        }
    }
    let (stream, ahead) = accepted.into_parts();
    serve(
        worker,
        listener,
        config,
        RawStream::tcp(stream, ahead),
        info,
    )
    .await
}

async fn serve_unix(worker: Rc<Worker>, listener: Arc<Listener>, stream: UnixStream) {
    let config = listener.config.load_full();
    // A Unix socket has no addresses worth telling.
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let info = new_info(&worker, &config, nowhere, nowhere);
    if let Err(error) = serve(worker, listener, config, RawStream::unix(stream), info).await {
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
            listener.stats.downstream_listener_filter_error.inc();
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
) -> io::Result<()> {
    let counted = Counted::new(listener.clone());
    let Some(chain) = config.chains.find(&info).cloned() else {
        listener.stats.no_filter_chain_match.inc();
        log_refused(&config, info, "filter_chain_not_found");
        return Ok(());
    };
    let accepted = tokio::time::timeout(chain.transport_timeout, chain.transport.accept(raw)).await;
    let (stream, tls) = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            listener.ssl.connection_error.inc();
            log_refused(&config, info, "transport_socket_error");
            return Err(io::Error::other(error));
        }
        Err(_) => {
            listener
                .stats
                .downstream_cx_transport_socket_connect_timeout
                .inc();
            return Ok(());
        }
    };
    if let Some(tls) = tls {
        listener.ssl.handshake.inc();
        if tls.peer.is_none() {
            listener.ssl.no_certificate.inc();
        }
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
    if !config.access_logs.is_empty() {
        connection
            .watchers
            .push(Box::new(ConnectionLog(config, connection.info.clone())));
    }
    for filter in &chain.passing {
        if filter.on_new_connection(&mut connection).await == Verdict::Close {
            return Ok(());
        }
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
        crate::network::log_connection(&self.0.access_logs, &info);
    }
}

fn log_refused(config: &ListenerConfig, info: ConnectionInfo, details: &'static str) {
    if config.access_logs.is_empty() {
        return;
    }
    let mut info = StreamInfo::new(Rc::new(info), None);
    info.set_details(details);
    info.end = Some(Instant::now());
    if details == "filter_chain_not_found" {
        info.flags
            .set(crate::stream_info::ResponseFlag::NoRouteFound);
    }
    crate::network::log_connection(&config.access_logs, &info);
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
