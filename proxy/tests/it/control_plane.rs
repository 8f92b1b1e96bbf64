//! A control plane for tests: says what it is given, remembers what it hears. Aggregated and per type, both variants.

use parking_lot::Mutex;
use prost_types::Any;
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
    endpoint::v3::endpoint_discovery_service_server::{
        EndpointDiscoveryService, EndpointDiscoveryServiceServer,
    },
    listener::v3::listener_discovery_service_server::{
        ListenerDiscoveryService, ListenerDiscoveryServiceServer,
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
type SotwStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
type DeltaStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

/// A control plane.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    resources: Arc<watch::Sender<Resources>>,
    heard: Arc<Mutex<Vec<DiscoveryRequest>>>,
    heard_delta: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
    /// How long delta resources live.
    ttl: Arc<Mutex<Option<prost_types::Duration>>>,
    /// Delta resources that are sent to everybody.
    strays: Arc<Mutex<Vec<String>>>,
    /// Ends the delta streams of the moment.
    cut: Arc<tokio::sync::Notify>,
}

/// How the proxy is to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Ads,
    DeltaAds,
    PerType,
    DeltaPerType,
}

impl Api {
    /// The source of a type, as YAML.
    pub(crate) fn source(self) -> String {
        let api = |kind: &str| {
            format!(
                "{{api_config_source: {{api_type: {kind}, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}}}"
            )
        };
        match self {
            Self::Ads | Self::DeltaAds => "{ads: {}}".to_owned(),
            Self::PerType => api("GRPC"),
            Self::DeltaPerType => api("DELTA_GRPC"),
        }
    }
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plane = Self {
            address: listener.local_addr().unwrap(),
            resources: Arc::new(watch::channel(Resources::new()).0),
            heard: Arc::default(),
            heard_delta: Arc::default(),
            ttl: Arc::default(),
            strays: Arc::default(),
            cut: Arc::default(),
        };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(plane.clone()))
                .add_service(ClusterDiscoveryServiceServer::new(plane.clone()))
                .add_service(EndpointDiscoveryServiceServer::new(plane.clone()))
                .add_service(ListenerDiscoveryServiceServer::new(plane.clone()))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        plane
    }

    /// A bootstrap that takes clusters and listeners from here.
    pub(crate) fn bootstrap(&self) -> String {
        self.bootstrap_over(Api::Ads)
    }

    /// As [`Self::bootstrap`], asking in this way.
    pub(crate) fn bootstrap_over(&self, api: Api) -> String {
        let cluster = crate::running::static_cluster("xds", self.address);
        let http2 = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
            "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
            explicit_http_config: {http2_protocol_options: {}}}}"#;
        let cluster = cluster.replacen("{name: xds", &format!("{{{http2}, name: xds"), 1);
        let kind = if api == Api::DeltaAds {
            "DELTA_GRPC"
        } else {
            "GRPC"
        };
        let ads = match api {
            Api::Ads | Api::DeltaAds => format!(
                "ads_config: {{api_type: {kind}, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}, "
            ),
            Api::PerType | Api::DeltaPerType => String::new(),
        };
        let source = api.source();
        format!(
            "node: {{id: test, cluster: test}}\n\
             dynamic_resources: {{{ads}cds_config: {source}, lds_config: {source}}}\n\
             static_resources: {{clusters: [{cluster}]}}"
        )
    }

    /// Delta resources live so long from now on, unless they are sent again.
    pub(crate) fn set_ttl(&self, ttl: std::time::Duration) {
        *self.ttl.lock() = Some(ttl.try_into().unwrap());
    }

    /// A delta resource of this name is sent, too, to those who do not ask for it.
    pub(crate) fn stray(&self, name: &str) {
        self.strays.lock().push(name.to_owned());
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

    /// Serves this resource (YAML) in place of the one that has its name.
    pub(crate) fn change<T: prost::Message + prost::Name + Default>(&self, resource: &str) {
        let any = proto::any::pack(&proto::yaml::from_str::<T>(resource).unwrap());
        self.resources.send_modify(|all| {
            let (version, served) = all.get_mut(&any.type_url).unwrap();
            *version += 1;
            let changed = name(&any);
            let place = served.iter_mut().find(|one| name(one) == changed);
            *place.unwrap() = any;
        });
    }

    /// How many delta requests were heard so far.
    pub(crate) fn heard(&self) -> usize {
        self.heard_delta.lock().len()
    }

    /// The details of every NACK heard so far.
    pub(crate) fn nacks(&self) -> Vec<String> {
        let heard = self.heard.lock();
        let delta = self.heard_delta.lock();
        let details = heard
            .iter()
            .filter_map(|request| request.error_detail.as_ref());
        let delta = delta
            .iter()
            .filter_map(|request| request.error_detail.as_ref());
        details
            .chain(delta)
            .map(|status| status.message.clone())
            .collect()
    }

    /// Cuts every delta stream; the proxy may come back.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Whether a delta stream began with the version of this resource.
    pub(crate) fn was_told(&self, url: &str, name: &str) -> bool {
        self.heard_delta.lock().iter().any(|request| {
            request.type_url == url && request.initial_resource_versions.contains_key(name)
        })
    }

    /// Whether a delta stream has asked for this resource.
    pub(crate) fn was_asked(&self, url: &str, name: &str) -> bool {
        self.heard_delta.lock().iter().any(|request| {
            let mut names = request.resource_names_subscribe.iter();
            request.type_url == url && names.any(|asked| asked == name)
        })
    }

    /// The node of the first request.
    pub(crate) fn node(&self) -> Option<proto::envoy::config::core::v3::Node> {
        self.heard.lock().first()?.node.clone()
    }

    /// Everything of a type that is asked for: all clusters and listeners, the rest by name.
    fn select(url: &str, names: &[String], all: &[Any]) -> Vec<Any> {
        let is_wildcard = url == proto::type_url::CLUSTER || url == proto::type_url::LISTENER;
        all.iter()
            .filter(|any| is_wildcard || names.contains(&name(any)))
            .cloned()
            .collect()
    }

    fn sotw(&self, request: Request<Streaming<DiscoveryRequest>>) -> Response<SotwStream> {
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
                    let resources = Self::select(&url, wanted, &all);
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
        Response::new(ReceiverStream::new(responses))
    }

    fn delta(&self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Response<DeltaStream> {
        let (sender, responses) = mpsc::channel(16);
        let mut requests = request.into_inner();
        let (plane, mut changed) = (self.clone(), self.resources.subscribe());
        tokio::spawn(async move {
            let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut sent: BTreeMap<String, BTreeMap<String, Any>> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        let known = names.entry(request.type_url.clone()).or_default();
                        known.extend(request.resource_names_subscribe.iter().cloned());
                        known.retain(|name| !request.resource_names_unsubscribe.contains(name));
                        plane.heard_delta.lock().push(request);
                    }
                    _ = changed.changed() => {}
                    () = plane.cut.notified() => return,
                }
                let now = changed.borrow().clone();
                for (url, (version, all)) in now {
                    let Some(wanted) = names.get(&url) else {
                        continue;
                    };
                    let before = sent.entry(url.clone()).or_default();
                    let wanted = [wanted.as_slice(), &plane.strays.lock()].concat();
                    let all: BTreeMap<String, Any> = Self::select(&url, &wanted, &all)
                        .into_iter()
                        .map(|any| (name(&any), any))
                        .collect();
                    let ttl = *plane.ttl.lock();
                    let resources: Vec<Resource> = all
                        .iter()
                        .filter(|(name, any)| before.get(*name) != Some(*any))
                        .map(|(name, any)| Resource {
                            name: name.clone(),
                            version: version.to_string(),
                            resource: Some(any.clone()),
                            ttl,
                            ..Resource::default()
                        })
                        .collect();
                    let removed_resources: Vec<String> = before
                        .keys()
                        .filter(|name| !all.contains_key(*name))
                        .cloned()
                        .collect();
                    if resources.is_empty() && removed_resources.is_empty() {
                        continue;
                    }
                    *before = all;
                    let response = DeltaDiscoveryResponse {
                        system_version_info: version.to_string(),
                        nonce: version.to_string(),
                        resources,
                        removed_resources,
                        type_url: url,
                        ..DeltaDiscoveryResponse::default()
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Response::new(ReceiverStream::new(responses))
    }
}

/// The name of a resource.
fn name(any: &Any) -> String {
    use proto::envoy::config::{
        cluster::v3::Cluster, core::v3::TypedExtensionConfig, endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener, route::v3::RouteConfiguration,
    };
    use proto::envoy::extensions::transport_sockets::tls::v3::Secret;
    match any.type_url.as_str() {
        proto::type_url::SECRET => proto::any::unpack::<Secret>(any).unwrap().name,
        proto::type_url::CLUSTER => proto::any::unpack::<Cluster>(any).unwrap().name,
        proto::type_url::LISTENER => proto::any::unpack::<Listener>(any).unwrap().name,
        proto::type_url::ENDPOINT => {
            proto::any::unpack::<ClusterLoadAssignment>(any)
                .unwrap()
                .cluster_name
        }
        _ if proto::any::is::<TypedExtensionConfig>(any) => {
            proto::any::unpack::<TypedExtensionConfig>(any)
                .unwrap()
                .name
        }
        _ => proto::any::unpack::<RouteConfiguration>(any).unwrap().name,
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = SotwStream;
    type DeltaAggregatedResourcesStream = DeltaStream;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<SotwStream>, Status> {
        Ok(self.sotw(request))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<DeltaStream>, Status> {
        Ok(self.delta(request))
    }
}

#[tonic::async_trait]
impl ClusterDiscoveryService for ControlPlane {
    type StreamClustersStream = SotwStream;
    type DeltaClustersStream = DeltaStream;

    async fn stream_clusters(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<SotwStream>, Status> {
        Ok(self.sotw(request))
    }

    async fn delta_clusters(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<DeltaStream>, Status> {
        Ok(self.delta(request))
    }

    async fn fetch_clusters(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("REST is not spoken"))
    }
}

#[tonic::async_trait]
impl EndpointDiscoveryService for ControlPlane {
    type StreamEndpointsStream = SotwStream;
    type DeltaEndpointsStream = DeltaStream;

    async fn stream_endpoints(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<SotwStream>, Status> {
        Ok(self.sotw(request))
    }

    async fn delta_endpoints(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<DeltaStream>, Status> {
        Ok(self.delta(request))
    }

    async fn fetch_endpoints(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("REST is not spoken"))
    }
}

#[tonic::async_trait]
impl ListenerDiscoveryService for ControlPlane {
    type StreamListenersStream = SotwStream;
    type DeltaListenersStream = DeltaStream;

    async fn stream_listeners(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<SotwStream>, Status> {
        Ok(self.sotw(request))
    }

    async fn delta_listeners(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<DeltaStream>, Status> {
        Ok(self.delta(request))
    }

    async fn fetch_listeners(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("REST is not spoken"))
    }
}
