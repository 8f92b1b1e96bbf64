//! HTTP/2: one task a connection, which reads and writes frames, and one a stream, which runs the engine.

mod serve_stream;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use proto::envoy::config::core::v3::Http2ProtocolOptions;
use proto_component::drain::Drain;

use crate::http::config::ConnectionManager;
use crate::http::h2::{Connection, Error, FloodLimits, Handle, HeadLimits, Options};
use crate::http::stream::DownstreamConnection;
use crate::overload::Action;
use crate::transport::DownstreamStream;

use super::{DELAYED, DRAINED, Ending, NOT_UNDERSTOOD, count_ending, ending, greeted};

/// Envoy's windows.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
const MAX_STREAMS: u32 = 1024;
/// So many streams are accepted before others have their turn.
const TURN: u32 = 64;

/// Serves a connection to its end; `ahead` was read of it before.
pub(super) async fn serve(
    stream: DownstreamStream,
    ahead: &[u8],
    connection: Rc<DownstreamConnection>,
    drain: Drain,
) {
    let manager = connection.manager.clone();
    let is_tls = connection.info.tls.is_some();
    let server = &connection.worker.server;
    let stats = server.codecs.http2(&server.stats).clone();
    let mut http2 = Connection::server(stream, ahead, options(&manager), stats, is_tls);
    let greeting = poll_fn(|context| http2.poll_preface(context));
    match greeted(greeting, &connection, &drain).await {
        Some(Ok(())) => {}
        Some(Err(error)) => return note(&connection, error),
        None => return,
    }
    let handle = http2.handle();
    let end = tokio::select! {
        biased;
        () = run(&mut http2, &handle, &connection) => return linger(&mut http2, &connection).await,
        () = keep_alive(&manager, &handle) => {
            // Nobody is there to take what is left.
            connection.info.meter.because("http2_ping_timeout");
            return;
        }
        () = connection.overrun.notified() => {
            manager.stats.downstream_rq_too_many_premature_resets.inc();
            return;
        }
        end = ending(&connection, &drain) => end,
    };
    count_ending(&connection, end);
    handle.shut_down();
    let patience = (end != Ending::Drain).then_some(manager.timeouts.drain);
    tokio::select! {
        () = run(&mut http2, &handle, &connection) => linger(&mut http2, &connection).await,
        () = drain.expired() => {}
        () = idle_after(&connection, patience) => {}
    }
}

fn options(manager: &ConnectionManager) -> Options {
    let wire = &manager.http2;
    let usual = FloodLimits::USUAL;
    Options {
        max_concurrent_streams: wire.max_concurrent_streams.unwrap_or(MAX_STREAMS),
        stream_window: wire.initial_stream_window_size.unwrap_or(STREAM_WINDOW),
        connection_window: wire
            .initial_connection_window_size
            .unwrap_or(CONNECTION_WINDOW),
        head: HeadLimits {
            bytes: manager.limits.headers_bytes,
            count: manager.limits.headers_count,
        },
        allows_connect_protocol: wire.allow_connect,
        is_tolerant: is_tolerant(wire),
        flood: FloodLimits {
            answers: wire.max_outbound_control_frames.unwrap_or(usual.answers),
            empty: wire
                .max_consecutive_inbound_frames_with_empty_payload
                .unwrap_or(usual.empty),
            priorities: wire
                .max_inbound_priority_frames_per_stream
                .unwrap_or(usual.priorities),
            window_updates: wire
                .max_inbound_window_update_frames_per_data_frame_sent
                .unwrap_or(usual.window_updates),
        },
    }
}

/// Whether what is no HTTP ends its stream only; the newer field counts before the older one.
#[expect(deprecated, reason = "configurations have it still")]
fn is_tolerant(wire: &Http2ProtocolOptions) -> bool {
    let newer = wire.override_stream_error_on_invalid_http_message;
    newer.unwrap_or(wire.stream_error_on_invalid_http_messaging)
}

/// Accepts streams until the connection is over.
async fn run(
    http2: &mut Connection<DownstreamStream>,
    handle: &Handle,
    connection: &Rc<DownstreamConnection>,
) {
    let mut streams = 0;
    loop {
        let mut is_shed = false;
        let polled = poll_fn(|context| {
            let polled = http2.poll(context);
            if http2.take_read() {
                is_shed = connection.sheds(Action::ShedHttp2Close);
                if is_shed {
                    // Before a stream that has just come is let go, which would reset it.
                    handle.close();
                    return Poll::Ready(None);
                }
                if connection.worker.sheds(Action::ShedHttp2) {
                    handle.shut_down();
                }
            }
            polled
        });
        let Some(accepted) = polled.await else {
            if is_shed {
                // What was read meanwhile is not looked at, and a client that does not read is not waited for.
                let closed = async {
                    while let Some(Ok(_)) = poll_fn(|context| http2.poll(context)).await {}
                };
                let patience = connection.manager.timeouts.delayed_close;
                let _ = tokio::time::timeout(patience.unwrap_or_default(), closed).await;
            }
            return;
        };
        match accepted {
            Ok(incoming) => {
                if let Some(stream) = serve_stream::serve(connection.clone(), incoming) {
                    // Spawning moves a future eight times, and this one is large.
                    tokio::task::spawn_local(Box::pin(stream));
                }
                streams += 1;
                let is_last = connection.manager.limits.requests == Some(streams);
                if is_last {
                    connection
                        .manager
                        .stats
                        .downstream_cx_max_requests_reached
                        .inc();
                }
                if is_last || connection.is_unhealthy() {
                    // Streams that run go on; the client is told to open no more.
                    handle.shut_down();
                }
                if streams.is_multiple_of(TURN) {
                    // Those that came have their turn before more come.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => return note(connection, error),
        }
    }
}

/// Waits a while for a client that was told something last: a reset would take it from it.
async fn linger(http2: &mut Connection<DownstreamStream>, connection: &DownstreamConnection) {
    let manager = &connection.manager;
    connection.info.end_because(DRAINED);
    let Some(patience) = manager.timeouts.delayed_close else {
        return;
    };
    let gone = poll_fn(|context| http2.poll_past(context));
    if tokio::time::timeout(patience, gone).await.is_err() {
        manager.stats.downstream_cx_delayed_close_timeout.inc();
        connection.info.meter.because(DELAYED);
    }
}

/// Pings the client; resolves when it does not answer in time.
async fn keep_alive(manager: &ConnectionManager, handle: &Handle) {
    let duration =
        |wire: Option<prost_types::Duration>| wire.and_then(|wire| Duration::try_from(wire).ok());
    let options = manager.http2.connection_keepalive.as_ref();
    let interval = options
        .and_then(|options| duration(options.interval))
        .filter(|interval| !interval.is_zero());
    let (Some(options), Some(interval)) = (options, interval) else {
        return std::future::pending().await;
    };
    let patience = duration(options.timeout).unwrap_or(Duration::from_secs(20));
    handle.keep_alive(interval, patience).await;
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

fn note(connection: &DownstreamConnection, error: Error) {
    if matches!(error, Error::Protocol(_)) {
        connection.info.end_because(NOT_UNDERSTOOD);
        connection.manager.stats.downstream_cx_protocol_error.inc();
    }
    tracing::trace!(%error, connection = connection.info.id, "downstream connection ended");
}
