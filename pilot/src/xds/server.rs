//! The gRPC services: aggregated discovery, and one service for each type.

use std::pin::Pin;
use std::sync::Arc;

use proto::envoy::service::cluster::v3::cluster_discovery_service_server::{
    ClusterDiscoveryService, ClusterDiscoveryServiceServer,
};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::endpoint::v3::endpoint_discovery_service_server::{
    EndpointDiscoveryService, EndpointDiscoveryServiceServer,
};
use proto::envoy::service::listener::v3::listener_discovery_service_server::{
    ListenerDiscoveryService, ListenerDiscoveryServiceServer,
};
use proto::envoy::service::route::v3::route_discovery_service_server::{
    RouteDiscoveryService, RouteDiscoveryServiceServer,
};
use proto_component::task;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::delta::Delta;
use super::state_of_the_world::StateOfTheWorld;
use super::stream::{OUTGOING, StreamLimits};
use super::{Discovery, ResourceType, stream};

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves every discovery service.
#[derive(Clone, Debug)]
pub struct Server {
    discovery: Arc<Discovery>,
    limits: StreamLimits,
}

impl Server {
    /// A server of `discovery`.
    #[must_use]
    pub fn new(discovery: Arc<Discovery>, limits: StreamLimits) -> Self {
        Server { discovery, limits }
    }

    /// The services, for a gRPC server.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(AggregatedDiscoveryServiceServer::new(self.clone()))
            .add_service(ClusterDiscoveryServiceServer::new(self.clone()))
            .add_service(EndpointDiscoveryServiceServer::new(self.clone()))
            .add_service(ListenerDiscoveryServiceServer::new(self.clone()))
            .add_service(RouteDiscoveryServiceServer::new(self.clone()))
    }

    fn state_of_the_world(
        &self,
        requests: Streaming<DiscoveryRequest>,
        only: Option<ResourceType>,
    ) -> Outgoing<DiscoveryResponse> {
        let (outgoing, responses) = mpsc::channel(OUTGOING);
        let (discovery, limits) = (Arc::clone(&self.discovery), self.limits.clone());
        task::spawn(
            "xds-stream",
            stream::serve::<StateOfTheWorld>(discovery, requests, outgoing, only, limits),
        );
        Box::pin(ReceiverStream::new(responses))
    }

    fn delta(
        &self,
        requests: Streaming<DeltaDiscoveryRequest>,
        only: Option<ResourceType>,
    ) -> Outgoing<DeltaDiscoveryResponse> {
        let (outgoing, responses) = mpsc::channel(OUTGOING);
        let (discovery, limits) = (Arc::clone(&self.discovery), self.limits.clone());
        task::spawn(
            "xds-stream",
            stream::serve::<Delta>(discovery, requests, outgoing, only, limits),
        );
        Box::pin(ReceiverStream::new(responses))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(
            self.state_of_the_world(request.into_inner(), None),
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.delta(request.into_inner(), None)))
    }
}

/// The service of a single type. Polling is not offered.
macro_rules! single_type {
    ($service:ident, $kind:ident, $stream:ident $stream_type:ident, $delta:ident $delta_type:ident, $fetch:ident) => {
        #[tonic::async_trait]
        impl $service for Server {
            type $stream_type = Outgoing<DiscoveryResponse>;
            type $delta_type = Outgoing<DeltaDiscoveryResponse>;

            async fn $stream(
                &self,
                request: Request<Streaming<DiscoveryRequest>>,
            ) -> Result<Response<Self::$stream_type>, Status> {
                Ok(Response::new(self.state_of_the_world(
                    request.into_inner(),
                    Some(ResourceType::$kind),
                )))
            }

            async fn $delta(
                &self,
                request: Request<Streaming<DeltaDiscoveryRequest>>,
            ) -> Result<Response<Self::$delta_type>, Status> {
                Ok(Response::new(
                    self.delta(request.into_inner(), Some(ResourceType::$kind)),
                ))
            }

            async fn $fetch(
                &self,
                _: Request<DiscoveryRequest>,
            ) -> Result<Response<DiscoveryResponse>, Status> {
                Err(Status::unimplemented(
                    "polling is not offered; open a stream",
                ))
            }
        }
    };
}

single_type!(ClusterDiscoveryService, Cluster, stream_clusters StreamClustersStream, delta_clusters DeltaClustersStream, fetch_clusters);
single_type!(EndpointDiscoveryService, Endpoint, stream_endpoints StreamEndpointsStream, delta_endpoints DeltaEndpointsStream, fetch_endpoints);
single_type!(ListenerDiscoveryService, Listener, stream_listeners StreamListenersStream, delta_listeners DeltaListenersStream, fetch_listeners);
single_type!(RouteDiscoveryService, Route, stream_routes StreamRoutesStream, delta_routes DeltaRoutesStream, fetch_routes);
