//! HTTP/2: one task a connection, which reads and writes frames, and one a stream, which runs the engine.

mod serve_stream;
mod tunnel;

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::Connection;
use h2::{Ping, PingPong};
use proto_component::drain::Drain;
use tokio::time::Instant;

use crate::http::config::ConnectionManager;
use crate::http::stream::DownstreamConnection;
use crate::transport::{Cork, Corked, DownstreamStream, ReadAhead};

use super::{Ending, count_ending, ending};

pub(crate) use tunnel::Tunnel;

/// What a connection's frames are read from and written to.
type Io = ReadAhead<DownstreamStream>;

/// Envoy's windows.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
const MAX_STREAMS: u32 = 1024;
/// A client must have said its preface by then.
const PREFACE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(super) async fn serve(io: Io, connection: Rc<DownstreamConnection>, drain: Drain) {
    let start = Instant::now();
    let manager = connection.manager.clone();
    let (io, cork) = Corked::new(io);
    let handshake = builder(&manager).handshake::<_, Bytes>(io);
    let mut http2 = match tokio::time::timeout(PREFACE, handshake).await {
        Ok(Ok(http2)) => http2,
        Ok(Err(error)) => return note(&connection, &error),
        Err(_) => return,
    };
    let pings = keepalive(&manager, http2.ping_pong());
    tokio::pin!(pings);
    let end = tokio::select! {
        biased;
        () = run(&mut http2, &cork, &connection) => return,
        () = &mut pings => {
            http2.abrupt_shutdown(h2::Reason::NO_ERROR);
            Ending::Idle
        }
        () = connection.overrun.notified() => {
            manager.stats.downstream_rq_too_many_premature_resets.inc();
            return;
        }
        end = ending(&connection, &drain, start) => end,
    };
    count_ending(&connection, end);
    http2.graceful_shutdown();
    let patience = (end != Ending::Drain).then_some(manager.timeouts.drain);
    tokio::select! {
        () = run(&mut http2, &cork, &connection) => {}
        () = drain.expired() => {}
        () = idle_after(&connection, patience) => {}
    }
}

fn builder(manager: &ConnectionManager) -> h2::server::Builder {
    let options = &manager.http2;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .initial_window_size(options.initial_stream_window_size.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(
            options
                .initial_connection_window_size
                .unwrap_or(CONNECTION_WINDOW),
        )
        .max_header_list_size(u32::try_from(manager.limits.headers_bytes).unwrap_or(u32::MAX))
        // How many streams a client may break off is ours to say, see `DownstreamConnection::stream_ended`: this is more than
        // can come in one go.
        .max_pending_accept_reset_streams(1 << 16);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Accepts streams until the connection is over.
async fn run(
    http2: &mut Connection<Corked<Io>, Bytes>,
    cork: &Cork<Io>,
    connection: &Rc<DownstreamConnection>,
) {
    while let Some(accepted) =
        poll_fn(|context| cork.poll(context, |context| http2.poll_accept(context))).await
    {
        match accepted {
            Ok((request, respond)) => {
                let stream = serve_stream::serve(connection.clone(), request, respond);
                // Spawning moves a future eight times, and this one is large.
                tokio::task::spawn_local(Box::pin(stream));
                if connection.is_unhealthy() {
                    // Streams that run go on; the client is told to open no more.
                    http2.graceful_shutdown();
                }
            }
            Err(error) => return note(connection, &error),
        }
    }
}

/// Pings the client; resolves when it does not answer in time.
async fn keepalive(manager: &ConnectionManager, pings: Option<PingPong>) {
    let duration =
        |wire: Option<prost_types::Duration>| wire.and_then(|wire| Duration::try_from(wire).ok());
    let options = manager.http2.connection_keepalive.as_ref();
    let interval = options
        .and_then(|options| duration(options.interval))
        .filter(|interval| !interval.is_zero());
    let (Some(options), Some(interval), Some(mut pings)) = (options, interval, pings) else {
        return std::future::pending().await;
    };
    let patience = duration(options.timeout).unwrap_or(Duration::from_secs(20));
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(patience, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection itself says what was wrong with it.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Resolves when `patience` is over and nothing runs any more.
async fn idle_after(connection: &DownstreamConnection, patience: Option<Duration>) {
    let Some(patience) = patience else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(patience.max(Duration::from_millis(10))).await;
        if connection.active.get() == 0 {
            return;
        }
    }
}

fn note(connection: &DownstreamConnection, error: &h2::Error) {
    if error.is_library() {
        connection.manager.stats.downstream_cx_protocol_error.inc();
    }
    tracing::trace!(%error, connection = connection.info.id, "downstream connection ended");
}
