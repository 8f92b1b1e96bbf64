//! HTTP/2 by hyper: many streams at once, each a task of the worker's local set.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto_component::drain::Drain;
use tokio::time::Instant;

use crate::http::stream::{self, DownstreamConnection};

use super::detect::Prefixed;
use super::{Ending, count_ending, ending};

/// Envoy's windows.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
const MAX_STREAMS: u32 = 1024;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy)]
pub(super) struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(io: Prefixed, connection: Rc<DownstreamConnection>, drain: Drain) {
    let start = Instant::now();
    let manager = connection.manager.clone();
    let options = &manager.http2;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .initial_stream_window_size(options.initial_stream_window_size.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(
            options
                .initial_connection_window_size
                .unwrap_or(CONNECTION_WINDOW),
        )
        .max_header_list_size(u32::try_from(manager.limits.headers_bytes).unwrap_or(u32::MAX));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    if let Some(keepalive) = &options.connection_keepalive {
        let duration = |wire: &Option<prost_types::Duration>| {
            wire.and_then(|wire| Duration::try_from(wire).ok())
        };
        if let Some(interval) = duration(&keepalive.interval) {
            builder.keep_alive_interval(interval);
            builder.keep_alive_timeout(
                duration(&keepalive.timeout).unwrap_or(Duration::from_secs(20)),
            );
        }
    }
    let for_requests = connection.clone();
    let service = service_fn(move |request| stream::serve(for_requests.clone(), request));
    let serving = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(serving);
    let end = tokio::select! {
        result = &mut serving => {
            note(&connection, result);
            return;
        }
        end = ending(&connection, &drain, start) => end,
    };
    count_ending(&connection, end);
    serving.as_mut().graceful_shutdown();
    let patience = if end == Ending::Drain {
        None
    } else {
        Some(manager.timeouts.drain)
    };
    tokio::select! {
        result = &mut serving => note(&connection, result),
        () = drain.expired() => {}
        () = idle_after(&connection, patience) => {}
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

fn note(connection: &DownstreamConnection, result: hyper::Result<()>) {
    if let Err(error) = result {
        let is_protocol = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<::h2::Error>())
            .is_some_and(::h2::Error::is_library);
        if is_protocol {
            connection.manager.stats.downstream_cx_protocol_error.inc();
        }
        tracing::trace!(%error, connection = connection.info.id, "downstream connection ended");
    }
}
