//! MCP over xDS: the collections of a [`Source`] as resources of the aggregated discovery service.
//!
//! A type is asked for as `group/version/Kind` (`networking.istio.io/v1/VirtualService`), as Istio's control planes do, or
//! by its collection's name. A resource is an `istio.mcp.v1alpha1.Resource` under the name `namespace/name`. Each stream is
//! a session of its own ([`session`]), state of the world or incremental, at its sink's pace.

use crate::source::Source;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use proto_component::{listen::Peer, task};
use std::{collections::HashMap, pin::Pin, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

mod session;

/// The gRPC path of the state-of-the-world stream (for metrics).
pub const STREAM_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// The gRPC path of the incremental stream.
pub const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Responses that wait for a slow connection, all types together.
const OUTGOING: usize = 4;

/// The service; clones share everything.
#[derive(Clone)]
pub struct Xds {
    source: Source,
    /// Collections by type URL.
    types: Arc<HashMap<String, String>>,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Xds {
    /// Serves what `source` has; `types` says under which type URLs.
    pub fn new(source: Source, types: HashMap<String, String>) -> Self {
        Self {
            source,
            types: Arc::new(types),
        }
    }

    /// The gRPC service.
    pub fn service(&self, max_message: usize) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone())
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(usize::MAX)
    }

    fn serve<Protocol: session::Protocol>(
        &self,
        request: Request<Streaming<Protocol::Request>>,
    ) -> Result<Response<Outgoing<Protocol::Response>>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .cloned()
            .unwrap_or_default();
        self.source.authorize(&peer)?;
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let (end, ended) = tokio::sync::oneshot::channel();
        let (source, types) = (self.source.clone(), self.types.clone());
        let requests = request.into_inner();
        task::spawn("mcp-xds-stream", async move {
            let outcome = session::run::<Protocol>(&source, &types, &peer, requests, sender).await;
            // The client may be gone already.
            let _ = end.send(outcome);
        });
        let last = async move { ended.await.ok().and_then(Result::err).map(Err) };
        let responses = ReceiverStream::new(receiver).map(Ok).chain(
            tokio_stream::once(last)
                .then(|last| last)
                .filter_map(|end| end),
        );
        Ok(Response::new(Box::pin(responses)))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Outgoing<DiscoveryResponse>>, Status> {
        self.serve::<session::StateOfTheWorld>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Outgoing<DeltaDiscoveryResponse>>, Status> {
        self.serve::<session::Incremental>(request)
    }
}
