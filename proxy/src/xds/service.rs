//! Which gRPC method serves which type: the aggregated one, or the one of the type.

use crate::{config::Kind, upstream::GrpcChannel};
use proto::envoy::service::{
    cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient as Cluster,
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Aggregated,
    },
    endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient as Endpoint,
    extension::v3::extension_config_discovery_service_client::ExtensionConfigDiscoveryServiceClient as Extension,
    listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient as Listener,
    route::v3::{
        route_discovery_service_client::RouteDiscoveryServiceClient as Route,
        virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient as VirtualHost,
    },
    runtime::v3::runtime_discovery_service_client::RuntimeDiscoveryServiceClient as Runtime,
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient as Secret,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Opened<T> = Result<Response<Streaming<T>>, Status>;

/// Calls `$method` of the client; a response may be as large as it likes.
macro_rules! call {
    ($client:ident, $channel:ident, $method:ident, $request:ident) => {
        $client::new($channel)
            .max_decoding_message_size(usize::MAX)
            .$method($request)
            .await
    };
}

/// Opens a state-of-the-world stream for `kind`, or for all types.
pub(super) async fn open_sotw(
    kind: Option<Kind>,
    channel: GrpcChannel,
    request: Request<ReceiverStream<DiscoveryRequest>>,
) -> Opened<DiscoveryResponse> {
    match kind {
        None => call!(Aggregated, channel, stream_aggregated_resources, request),
        Some(Kind::Cluster) => call!(Cluster, channel, stream_clusters, request),
        Some(Kind::Endpoint) => call!(Endpoint, channel, stream_endpoints, request),
        Some(Kind::Listener) => call!(Listener, channel, stream_listeners, request),
        Some(Kind::Route) => call!(Route, channel, stream_routes, request),
        Some(Kind::Secret) => call!(Secret, channel, stream_secrets, request),
        Some(Kind::Runtime) => call!(Runtime, channel, stream_runtime, request),
        Some(Kind::Extension) => {
            call!(Extension, channel, stream_extension_configs, request)
        }
        // Sources that do not speak delta were refused.
        Some(Kind::OnDemandCluster | Kind::VirtualHost) => {
            Err(Status::unimplemented("on demand is delta only"))
        }
    }
}

/// Opens a delta stream for `kind`, or for all types.
pub(super) async fn open_delta(
    kind: Option<Kind>,
    channel: GrpcChannel,
    request: Request<ReceiverStream<DeltaDiscoveryRequest>>,
) -> Opened<DeltaDiscoveryResponse> {
    match kind {
        None => call!(Aggregated, channel, delta_aggregated_resources, request),
        Some(Kind::Cluster | Kind::OnDemandCluster) => {
            call!(Cluster, channel, delta_clusters, request)
        }
        Some(Kind::Endpoint) => call!(Endpoint, channel, delta_endpoints, request),
        Some(Kind::Listener) => call!(Listener, channel, delta_listeners, request),
        Some(Kind::Route) => call!(Route, channel, delta_routes, request),
        Some(Kind::Secret) => call!(Secret, channel, delta_secrets, request),
        Some(Kind::Runtime) => call!(Runtime, channel, delta_runtime, request),
        Some(Kind::Extension) => call!(Extension, channel, delta_extension_configs, request),
        Some(Kind::VirtualHost) => call!(VirtualHost, channel, delta_virtual_hosts, request),
    }
}
