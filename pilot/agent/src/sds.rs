//! Secret discovery (SDS v3) for the proxy, over a Unix socket that only our own user may open: stream, delta and fetch.
//!
//! Semantics as Envoy expects them: a stream subscribes to names; a secret that is not at hand yet is withheld, not refused; a
//! change is pushed to every stream that wants it; a NACK is counted and logged, and the same secret is not sent again.

mod delta;
mod session;
mod stream;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use futures::Stream;
use prometheus::{IntCounter, IntGauge};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use proto_component::args::Address;
use proto_component::drain::Drain;
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::{BindError, Listener};
use proto_component::task;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::secret_cache::SecretCache;

/// Names that one stream may ask for.
const MAX_NAMES: usize = 64;
const MAX_NAME: usize = 512;
const MAX_MESSAGE: usize = 1 << 20;
/// Answers that may wait for a proxy that does not read.
const QUEUE: usize = 4;
/// Only the agent's own user may ask: the answer is its private key.
const SOCKET_MODE: u32 = 0o600;

/// The service.
#[derive(Clone)]
pub struct SecretDiscovery {
    cache: SecretCache,
    metrics: Metrics,
    drain: Drain,
}

/// What the service counts, with the names of Istio's node agent.
#[derive(Clone)]
pub struct Metrics {
    pushes: IntCounter,
    push_errors: IntCounter,
    connections: IntGauge,
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            pushes: IntCounter::new("total_pushes", "The total number of SDS pushes.")?,
            push_errors: IntCounter::new(
                "total_push_errors",
                "The total number of failed SDS pushes.",
            )?,
            connections: IntGauge::new(
                "total_active_connections",
                "The total number of active SDS connections.",
            )?,
        };
        registry.register(Box::new(metrics.pushes.clone()))?;
        registry.register(Box::new(metrics.push_errors.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        Ok(metrics)
    }
}

impl SecretDiscovery {
    /// A service of the cache's secrets.
    pub fn new(cache: SecretCache, metrics: Metrics, drain: Drain) -> Self {
        Self {
            cache,
            metrics,
            drain,
        }
    }

    /// Takes the socket and serves until the drain's end: connections that drain may need a renewed certificate.
    pub async fn start(self, socket: &Path) -> Result<(), BindError> {
        let address = Address::Unix(socket.to_owned());
        let listener = Listener::bind(&address, "--configPath").await?;
        let closed = fs::set_permissions(socket, fs::Permissions::from_mode(SOCKET_MODE));
        closed.map_err(|cause| BindError::Refused {
            address: address.to_string(),
            flag: "--configPath".to_owned(),
            cause,
        })?;
        let drain = self.drain.clone();
        let incoming = listener.plaintext(&drain);
        let service =
            SecretDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE);
        let options = ServerOptions {
            stream_window: 64 << 10,
            connection_window: 256 << 10,
            ..ServerOptions::default()
        };
        let routes = tonic::service::Routes::new(service);
        task::spawn("sds", async move {
            if let Err(error) = grpc::serve(incoming, routes, &options, None, drain).await {
                tracing::error!(target: "sds", %error, "the secret discovery service has ended");
            }
        });
        Ok(())
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SecretDiscovery {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(
            self.open::<stream::Sotw>(request.into_inner()),
        ))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(
            self.open::<delta::Delta>(request.into_inner()),
        ))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let request = request.into_inner();
        check_type(&request.type_url)?;
        let names = check_names(request.resource_names)?;
        let secrets: Vec<_> = names
            .iter()
            .filter_map(|name| self.cache.get(name))
            .collect();
        if secrets.is_empty() {
            return Err(Status::unavailable(
                "no secret of these names is at hand yet",
            ));
        }
        Ok(Response::new(stream::response(&secrets, String::new())))
    }
}

impl SecretDiscovery {
    /// Starts a session for one stream.
    fn open<P: session::Protocol>(
        &self,
        requests: impl Stream<Item = Result<P::Request, Status>> + Send + Unpin + 'static,
    ) -> Answers<P::Response> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let session = session::Session::<P>::new(
            self.cache.clone(),
            self.metrics.clone(),
            self.drain.clone(),
        );
        task::spawn("sds-stream", session.run(requests, sender));
        ReceiverStream::new(receiver)
    }
}

/// An empty type is the service's own.
fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == proto::type_url::SECRET {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{type_url} is not served here, only {}",
        proto::type_url::SECRET
    )))
}

fn check_names(names: Vec<String>) -> Result<BTreeSet<String>, Status> {
    if names.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!(
            "{} names in one request, at most {MAX_NAMES} are allowed",
            names.len()
        )));
    }
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(Status::invalid_argument("a secret's name is too long"));
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests;
