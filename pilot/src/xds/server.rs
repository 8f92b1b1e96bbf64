//! The gRPC services: aggregated discovery, and one service for each type, each with both forms. Polling is not offered.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use proto::envoy::service::cluster::v3::cluster_discovery_service_server as cds;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
use proto::envoy::service::endpoint::v3::endpoint_discovery_service_server as eds;
use proto::envoy::service::listener::v3::listener_discovery_service_server as lds;
use proto::envoy::service::route::v3::route_discovery_service_server as rds;
use proto_component::task;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::service::Routes;

use super::authenticate::{Authenticator, Evidence};
use super::delta::Delta;
use super::form::Form;
use super::frame::{Requests, Responses};
use super::state_of_the_world::StateOfTheWorld;
use super::stream::{OUTGOING, StreamLimits};
use super::{Discovery, ResourceType, stream};

/// The services, what their methods end with, and the only type that they serve.
const SERVICES: [(&str, &str, Option<ResourceType>); 5] = [
    (ads::SERVICE_NAME, "AggregatedResources", None),
    (cds::SERVICE_NAME, "Clusters", Some(ResourceType::Cluster)),
    (eds::SERVICE_NAME, "Endpoints", Some(ResourceType::Endpoint)),
    (lds::SERVICE_NAME, "Listeners", Some(ResourceType::Listener)),
    (rds::SERVICE_NAME, "Routes", Some(ResourceType::Route)),
];

/// Serves every discovery service.
#[derive(Clone, Debug)]
pub struct Server {
    discovery: Arc<Discovery>,
    limits: StreamLimits,
    authenticator: Authenticator,
}

impl Server {
    /// A server of `discovery`.
    #[must_use]
    pub fn new(
        discovery: Arc<Discovery>,
        limits: StreamLimits,
        authenticator: Authenticator,
    ) -> Self {
        Server {
            discovery,
            limits,
            authenticator,
        }
    }

    /// The services, for a gRPC server.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let mut router = Router::new().fallback(|| async {
            Status::unimplemented(
                "streams of aggregated discovery, CDS, EDS, LDS and RDS are served",
            )
            .into_http::<axum::body::Body>()
        });
        for (service, name, only) in SERVICES {
            let world = self.clone();
            let increments = self.clone();
            router = router
                .route(
                    &format!("/{service}/Stream{name}"),
                    post(async move |request| world.open::<StateOfTheWorld>(request, only)),
                )
                .route(
                    &format!("/{service}/Delta{name}"),
                    post(async move |request| increments.open::<Delta>(request, only)),
                );
        }
        Routes::from(router)
    }

    /// Begins a stream.
    fn open<F: Form>(&self, request: Request, only: Option<ResourceType>) -> Response<Responses> {
        let (outgoing, responses) = mpsc::channel(OUTGOING);
        let evidence = Evidence::of(request.extensions(), request.headers());
        let requests = Requests::new(request.into_body());
        let (discovery, limits) = (Arc::clone(&self.discovery), self.limits.clone());
        let authenticator = self.authenticator.clone();
        task::spawn("xds-stream", async move {
            let admitted = async {
                discovery.ready().await;
                if discovery.admission.admit().await.is_err() {
                    return Err(Status::resource_exhausted("too many streams begin at once"));
                }
                let mesh = Arc::clone(&discovery.current().push.mesh);
                let caller = authenticator.caller(&evidence, &mesh).await;
                caller.map_err(Status::unauthenticated)
            };
            let admitted = tokio::select! {
                admitted = admitted => admitted,
                // Whoever has gone gives up its turn, and whoever is not served yet looks for another replica.
                () = outgoing.closed() => return,
                () = limits.drain.signaled() => Err(Status::unavailable("this replica is going")),
            };
            match admitted {
                Ok(caller) => {
                    stream::serve::<F>(discovery, requests, outgoing, only, caller, limits).await;
                }
                Err(refused) => {
                    tracing::warn!(target: "ads", reason = refused.message(), "stream refused");
                    stream::refuse(&outgoing, refused).await;
                }
            }
        });
        let mut response = Response::new(Responses::new(responses));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        response
    }
}
