//! HTTP/1 by hyper: one connection, requests one after the other, upgrades.

use std::rc::Rc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto_component::drain::Drain;
use tokio::time::Instant;

use crate::http::stream::{self, DownstreamConnection};

use super::detect::Prefixed;
use super::{Ending, count_ending, ending};

/// hyper wants at least this much for a request's head.
const MIN_BUFFER: usize = 8192;

/// Serves a connection to its end.
pub(super) async fn serve(io: Prefixed, connection: Rc<DownstreamConnection>, drain: Drain) {
    let start = Instant::now();
    let manager = connection.manager.clone();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(manager.timeouts.request_headers)
        .max_headers(manager.limits.headers_count.max(1) + 1)
        .max_buf_size(manager.limits.headers_bytes.max(MIN_BUFFER))
        .half_close(false);
    if manager.limits.requests == Some(1) {
        builder.keep_alive(false);
    }
    let for_requests = connection.clone();
    let service = service_fn(move |request| stream::serve(for_requests.clone(), request));
    let serving = builder
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::pin!(serving);
    let end = tokio::select! {
        result = &mut serving => {
            note(&connection, result);
            return;
        }
        end = ending(&connection, &drain, start) => end,
        () = too_many(&connection) => {
            manager.stats.downstream_cx_max_requests_reached.inc();
            Ending::MaxDuration
        }
    };
    count_ending(&connection, end);
    if end == Ending::Idle && connection.active.get() == 0 {
        return;
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        result = &mut serving => note(&connection, result),
        () = drain.expired() => {}
    }
}

/// Resolves when the connection has carried all the requests it may.
async fn too_many(connection: &DownstreamConnection) {
    let Some(limit) = connection.manager.limits.requests else {
        return std::future::pending().await;
    };
    std::future::poll_fn(|_| {
        // Polled with the connection itself, so every new request is seen.
        if connection.total.get() >= limit {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

fn note(connection: &DownstreamConnection, result: hyper::Result<()>) {
    let Err(error) = result else {
        return;
    };
    let stats = &connection.manager.stats;
    if error.is_parse() {
        stats.downstream_cx_protocol_error.inc();
        if error.is_parse_too_large() {
            stats.downstream_rq_too_large.inc();
        }
    } else if error.is_timeout() {
        stats.downstream_rq_header_timeout.inc();
    }
    tracing::trace!(%error, connection = connection.info.id, "downstream connection ended");
}
