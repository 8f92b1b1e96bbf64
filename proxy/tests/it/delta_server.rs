//! An xDS server that a test plays itself, in delta: it hears each question and says each answer.

use crate::running::{PATIENCE, over_http2, static_cluster};
use prost::{Message, Name};
use proto::envoy::service::{
    cluster::v3::cluster_discovery_service_server::{
        ClusterDiscoveryService, ClusterDiscoveryServiceServer,
    },
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    route::v3::virtual_host_discovery_service_server::{
        VirtualHostDiscoveryService, VirtualHostDiscoveryServiceServer,
    },
};
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answers = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
type Nothing = ReceiverStream<Result<DiscoveryResponse, Status>>;

/// The server.
pub(crate) struct DeltaServer {
    address: SocketAddr,
    opened: Mutex<mpsc::Receiver<Conversation>>,
}

/// A stream that a proxy has opened.
pub(crate) struct Conversation {
    questions: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    said: u64,
}

#[derive(Clone)]
struct Service(Arc<mpsc::Sender<Conversation>>);

impl DeltaServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, opened) = mpsc::channel(16);
        let service = Service(Arc::new(sender));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
                .add_service(ClusterDiscoveryServiceServer::new(service.clone()))
                .add_service(VirtualHostDiscoveryServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self {
            address,
            opened: Mutex::new(opened),
        }
    }

    /// The cluster that leads here, as YAML; its name is `xds`.
    pub(crate) fn cluster(&self) -> String {
        over_http2(&static_cluster("xds", self.address), "")
    }

    /// The next stream.
    pub(crate) async fn accept(&self) -> Conversation {
        let opened = async { self.opened.lock().await.recv().await };
        tokio::time::timeout(PATIENCE, opened)
            .await
            .expect("a stream")
            .unwrap()
    }
}

/// The source of a stream of its own, as YAML. With Envoy every user of a source has a stream; with us those of one `authority`
/// share it.
pub(crate) fn source(authority: &str) -> String {
    format!(
        "{{resource_api_version: V3, api_config_source: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [\
         {{envoy_grpc: {{cluster_name: xds, authority: {authority}}}}}]}}}}"
    )
}

impl Conversation {
    /// The next message, whatever it says.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryRequest {
        tokio::time::timeout(PATIENCE, self.questions.message())
            .await
            .expect("a message")
            .unwrap()
            .expect("an open stream")
    }

    /// The names that are asked for next; what is only confirmed or given up is passed over.
    pub(crate) async fn asked(&mut self) -> Vec<String> {
        loop {
            let message = self.next().await;
            assert_eq!(message.error_detail, None);
            if !message.resource_names_subscribe.is_empty() {
                return message.resource_names_subscribe;
            }
        }
    }

    /// The reason of the next refusal.
    pub(crate) async fn refused(&mut self) -> String {
        loop {
            if let Some(error) = self.next().await.error_detail {
                return error.message;
            }
        }
    }

    /// Says that this is there (YAML, under the name and the aliases) and that is gone.
    pub(crate) async fn say<T: Message + Name + Default>(
        &mut self,
        there: &[(&str, &[&str], &str)],
        gone: &[&str],
    ) {
        self.said += 1;
        let resources = there.iter().map(|(name, aliases, text)| Resource {
            name: (*name).to_owned(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            version: self.said.to_string(),
            // Nothing is there but a name.
            resource: (!text.is_empty())
                .then(|| proto::any::pack(&proto::yaml::from_str::<T>(text).unwrap())),
            ..Resource::default()
        });
        let response = DeltaDiscoveryResponse {
            system_version_info: self.said.to_string(),
            nonce: self.said.to_string(),
            type_url: format!("{}{}", proto::type_url::PREFIX, T::full_name()),
            resources: resources.collect(),
            removed_resources: gone.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.answers.send(Ok(response)).await.unwrap();
    }
}

impl Service {
    async fn open(&self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Response<Answers> {
        let (answers, stream) = mpsc::channel(16);
        let conversation = Conversation {
            questions: request.into_inner(),
            answers,
            said: 0,
        };
        self.0.send(conversation).await.unwrap();
        Response::new(ReceiverStream::new(stream))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Nothing;
    type DeltaAggregatedResourcesStream = Answers;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("delta is spoken"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Ok(self.open(request).await)
    }
}

#[tonic::async_trait]
impl ClusterDiscoveryService for Service {
    type StreamClustersStream = Nothing;
    type DeltaClustersStream = Answers;

    async fn stream_clusters(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("delta is spoken"))
    }

    async fn delta_clusters(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Ok(self.open(request).await)
    }

    async fn fetch_clusters(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("delta is spoken"))
    }
}

#[tonic::async_trait]
impl VirtualHostDiscoveryService for Service {
    type DeltaVirtualHostsStream = Answers;

    async fn delta_virtual_hosts(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Ok(self.open(request).await)
    }
}
