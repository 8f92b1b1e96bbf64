//! gRPC over a cluster: what a tonic client of ours uses to reach xDS, SDS and Mixer servers.
//!
//! One HTTP/2 connection, made when it is needed and made anew when it is gone; runs on whichever runtime it is used.

use super::{
    Aim, Cluster, ClusterManager, LoadBalancerContext, circuit_breaker::Priority, connect,
    load_balancer::mix,
};
use crate::transport::AlpnFallback;
use futures::future::BoxFuture;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tonic::body::Body;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A channel to one cluster; cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcChannel {
    clusters: Arc<ClusterManager>,
    name: Arc<str>,
    authority: Arc<str>,
    connection: Arc<Mutex<Option<SendRequest<Body>>>>,
    random: Arc<AtomicU64>,
}

impl GrpcChannel {
    /// A channel to the cluster called `name`; nothing is connected yet.
    pub(crate) fn new(clusters: Arc<ClusterManager>, name: &str, authority: &str) -> Self {
        let authority = if authority.is_empty() {
            name
        } else {
            authority
        };
        Self {
            clusters,
            name: name.into(),
            // A cluster's name may hold what a URI may not (`outbound|9091||istio-policy…`).
            authority: authority.replace('|', "_").as_str().into(),
            connection: Arc::default(),
            random: Arc::new(AtomicU64::new(rand::random())),
        }
    }

    /// The cluster it leads to.
    pub(crate) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.clusters.get(&self.name)
    }

    async fn connection(&self) -> Result<SendRequest<Body>, Error> {
        if let Some(living) = self
            .connection
            .lock()
            .clone()
            .filter(|connection| !connection.is_closed())
        {
            return Ok(living);
        }
        let cluster = self
            .clusters
            .get(&self.name)
            .ok_or_else(|| format!("no cluster {}", self.name))?;
        let random = mix(self.random.fetch_add(1, Relaxed));
        let host = cluster.choose_host(&LoadBalancerContext {
            random,
            ..LoadBalancerContext::default()
        })?;
        let room = cluster.breakers.first_connection(Priority::Default);
        let stream = connect(&cluster, &host, room, AlpnFallback::Http2, Aim::default()).await?;
        let sender = handshake(&cluster, stream).await?;
        *self.connection.lock() = Some(sender.clone());
        Ok(sender)
    }
}

async fn handshake(
    cluster: &Cluster,
    stream: crate::transport::UpstreamStream,
) -> Result<SendRequest<Body>, Error> {
    let options = &cluster.config.http;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20);
    // A silent peer must not keep us waiting for ever.
    let (interval, timeout) = options
        .keepalive
        .unwrap_or((Duration::from_secs(30), Duration::from_secs(10)));
    builder
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    proto_component::task::spawn("grpc-connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(target: "grpc", %error, "connection ended");
        }
    });
    Ok(sender)
}

impl tower::Service<http::Request<Body>> for GrpcChannel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let channel = self.clone();
        Box::pin(async move {
            let mut sender = channel.connection().await?;
            let path = request
                .uri()
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
            *request.uri_mut() = http::Uri::builder()
                .scheme("http")
                .authority(&*channel.authority)
                .path_and_query(path)
                .build()?;
            *request.version_mut() = http::Version::HTTP_2;
            Ok(sender.send_request(request).await?)
        })
    }
}
