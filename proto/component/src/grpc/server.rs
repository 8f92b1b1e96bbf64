//! A gRPC server on any [`Incoming`], drained when the process drains.

use super::GrpcMetrics;
use crate::{args::KeepaliveArgs, drain::Drain, listen::Incoming};
use futures::future::BoxFuture;
use std::time::Duration;
use tonic::{service::Routes, transport::Server};

/// Limits of a server; the message size is set on each service.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Streams at once on one connection.
    pub max_concurrent_streams: u32,
    /// Interval between pings on a connection.
    pub keepalive_interval: Duration,
    /// How long to wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to come back.
    pub max_connection_age: Option<Duration>,
    /// HTTP/2 window of a stream.
    pub stream_window: u32,
    /// HTTP/2 window of a connection.
    pub connection_window: u32,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connection_age: None,
            stream_window: 1 << 20,
            connection_window: 16 << 20,
        }
    }
}

impl ServerOptions {
    /// With the keepalive flags.
    #[must_use]
    pub fn with_keepalive(mut self, args: &KeepaliveArgs) -> Self {
        self.keepalive_interval = args.interval;
        self.keepalive_timeout = args.timeout;
        self.max_connection_age = args.max_server_connection_age;
        self
    }
}

/// Serves until the drain begins, then lets calls in flight finish until its deadline.
///
/// Long-lived streams have to end themselves when the drain begins; those that do not are cut at the deadline.
///
/// Boxed, so that HTTP/2 is compiled here once and not in every component.
pub fn serve(
    incoming: Incoming,
    routes: Routes,
    options: &ServerOptions,
    metrics: Option<GrpcMetrics>,
    drain: Drain,
) -> BoxFuture<'static, anyhow::Result<()>> {
    let mut server = Server::builder()
        .max_concurrent_streams(options.max_concurrent_streams)
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout))
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .layer(metrics.unwrap_or_else(GrpcMetrics::unregistered));
    if let Some(age) = options.max_connection_age {
        server = server.max_connection_age(age);
    }
    let signal = drain.clone();
    let serving = server
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async move { signal.signaled().await });
    Box::pin(async move {
        tokio::select! {
            outcome = serving => Ok(outcome?),
            () = drain.expired() => Ok(()),
        }
    })
}
