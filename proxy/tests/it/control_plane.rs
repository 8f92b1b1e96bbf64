//! An ADS server for tests: says what it is given, remembers what it hears.

use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Resources by type URL, with a version.
type Resources = BTreeMap<String, (u64, Vec<Any>)>;

/// A control plane.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    resources: Arc<watch::Sender<Resources>>,
    heard: Arc<Mutex<Vec<DiscoveryRequest>>>,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plane = Self {
            address: listener.local_addr().unwrap(),
            resources: Arc::new(watch::channel(Resources::new()).0),
            heard: Arc::default(),
        };
        let service = AggregatedDiscoveryServiceServer::new(plane.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        plane
    }

    /// A bootstrap that takes clusters and listeners from here.
    pub(crate) fn bootstrap(&self) -> String {
        let cluster = crate::running::static_cluster("xds", self.address);
        let http2 = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
            "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
            explicit_http_config: {http2_protocol_options: {}}}}"#;
        let cluster = cluster.replacen("{name: xds", &format!("{{{http2}, name: xds"), 1);
        format!(
            "node: {{id: test, cluster: test}}\n\
             dynamic_resources: {{ads_config: {{api_type: GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}, \
             cds_config: {{ads: {{}}}}, lds_config: {{ads: {{}}}}}}\n\
             static_resources: {{clusters: [{cluster}]}}"
        )
    }

    /// Serves these resources (YAML) of a type from now on.
    pub(crate) fn set<T: prost::Message + prost::Name + Default>(&self, resources: &[String]) {
        let anys = resources
            .iter()
            .map(|text| proto::any::pack(&proto::yaml::from_str::<T>(text).unwrap()))
            .collect();
        let url = format!("{}{}", proto::type_url::PREFIX, T::full_name());
        self.resources.send_modify(|all| {
            let entry = all.entry(url).or_default();
            *entry = (entry.0 + 1, anys);
        });
    }

    /// The details of every NACK heard so far.
    pub(crate) fn nacks(&self) -> Vec<String> {
        let heard = self.heard.lock();
        let details = heard
            .iter()
            .filter_map(|request| request.error_detail.as_ref());
        details.map(|status| status.message.clone()).collect()
    }

    /// The node of the first request.
    pub(crate) fn node(&self) -> Option<proto::envoy::config::core::v3::Node> {
        self.heard.lock().first()?.node.clone()
    }

    /// Everything of a type that is asked for: all clusters and listeners, the rest by name.
    fn select(url: &str, names: &[String], all: &[Any]) -> Vec<Any> {
        let is_wildcard = url == proto::type_url::CLUSTER || url == proto::type_url::LISTENER;
        let name = |any: &Any| -> String {
            match url {
                proto::type_url::ENDPOINT => {
                    proto::any::unpack::<proto::envoy::config::endpoint::v3::ClusterLoadAssignment>(
                        any,
                    )
                    .unwrap()
                    .cluster_name
                }
                _ => {
                    proto::any::unpack::<proto::envoy::config::route::v3::RouteConfiguration>(any)
                        .unwrap()
                        .name
                }
            }
        };
        all.iter()
            .filter(|any| is_wildcard || names.contains(&name(any)))
            .cloned()
            .collect()
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (sender, responses) = mpsc::channel(16);
        let mut requests = request.into_inner();
        let (heard, mut changed) = (self.heard.clone(), self.resources.subscribe());
        tokio::spawn(async move {
            let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut sent: BTreeMap<String, (u64, Vec<String>)> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        names.insert(request.type_url.clone(), request.resource_names.clone());
                        heard.lock().push(request);
                    }
                    _ = changed.changed() => {}
                }
                let now = changed.borrow().clone();
                for (url, (version, all)) in now {
                    let Some(wanted) = names.get(&url) else {
                        continue;
                    };
                    let state = (version, wanted.clone());
                    let resources = ControlPlane::select(&url, wanted, &all);
                    if sent.get(&url) == Some(&state) {
                        continue;
                    }
                    sent.insert(url.clone(), state);
                    let response = DiscoveryResponse {
                        version_info: version.to_string(),
                        nonce: format!("{version}-{}", wanted.len()),
                        resources,
                        type_url: url,
                        ..DiscoveryResponse::default()
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }
}
