//! Streams: who is sent what, and when nothing.

use std::time::Duration;

use pilot::networking::endpoint::LOCAL_CLUSTER;
use pilot::xds::ResourceType;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::mesh::{Pilot, eventually};

/// Long enough for everything that is to come, and waited for only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

const REVIEWS: &str = "outbound|9080||reviews.default.svc.cluster.local";
const RATINGS: &str = "outbound|9080||ratings.default.svc.cluster.local";

pub(crate) fn service(name: &str, namespace: &str, addresses: &[&str]) -> String {
    let endpoints: String = addresses
        .iter()
        .map(|address| {
            format!("  - {{address: {address}, ports: {{http: 9080}}, labels: {{app: {name}}}}}\n")
        })
        .collect();
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         annotations: {{networking.alpha.istio.io/serviceVersion: \"1\"}}\nspec:\n  hosts: [{name}.{namespace}.svc.cluster.local]\n  \
         addresses: [10.96.0.{}]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{number: 9080, name: http, protocol: HTTP}}]\n  \
         endpoints:\n{endpoints}",
        name.len()
    )
}

fn route_rule(timeout: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: reviews, namespace: default}}\nspec:\n  \
         hosts: [reviews]\n  http: [{{timeout: {timeout}, route: [{{destination: {{host: reviews}}}}]}}]\n"
    )
}

fn base() -> String {
    service("reviews", "default", &["10.1.0.1"]) + &service("ratings", "default", &["10.1.0.2"])
}

pub(crate) fn node(name: &str, ip: &str) -> Node {
    Node {
        id: format!("sidecar~{ip}~{name}.default~default.svc.cluster.local"),
        ..Node::default()
    }
}

pub(crate) struct Client {
    node: Node,
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Client {
    pub(crate) async fn connect(pilot: &Pilot) -> Self {
        Client::connect_as(pilot, node("web", "10.1.9.9")).await
    }

    pub(crate) async fn connect_as(pilot: &Pilot, node: Node) -> Self {
        Client::connect_to(pilot.channel.clone(), node).await
    }

    pub(crate) async fn connect_to(channel: Channel, node: Node) -> Self {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .stream_aggregated_resources(ReceiverStream::new(outgoing))
            .await
            .unwrap()
            .into_inner();
        Client {
            node,
            requests,
            responses,
        }
    }

    pub(crate) async fn ask(
        &self,
        type_url: &str,
        names: &[&str],
        nonce: &str,
        error: Option<&str>,
    ) {
        let request = DiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.to_owned(),
            error_detail: error.map(|message| proto::google::rpc::Status {
                code: 13,
                message: message.to_owned(),
                details: vec![],
            }),
            ..DiscoveryRequest::default()
        };
        // A stream that has ended says why in what comes next.
        let _ = self.requests.send(request).await;
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        tokio::time::timeout(PATIENCE, self.responses.next())
            .await
            .expect("a response in time")
            .unwrap()
            .unwrap()
    }

    /// Why the stream ends.
    pub(crate) async fn refusal(&mut self) -> tonic::Code {
        let next = tokio::time::timeout(PATIENCE, self.responses.next()).await;
        next.expect("an end in time").unwrap().unwrap_err().code()
    }

    /// Takes and accepts what is sent of the endpoints of `cluster`, until they are `wanted`.
    pub(crate) async fn endpoints_become(&mut self, cluster: &str, wanted: &[&str]) {
        let waiting = async {
            loop {
                let response = self.next().await;
                self.ask(ENDPOINT, &[cluster], &response.nonce, None).await;
                if addresses(&assignments(&response)[0]) == wanted {
                    return;
                }
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        outcome.unwrap_or_else(|_| panic!("never {wanted:?}"));
    }

    /// Asks, takes the answer and accepts it.
    pub(crate) async fn subscribe(&mut self, type_url: &str, names: &[&str]) -> DiscoveryResponse {
        self.ask(type_url, names, "", None).await;
        let response = self.next().await;
        assert_eq!(response.type_url, type_url);
        self.ask(type_url, names, &response.nonce, None).await;
        response
    }
}

pub(crate) fn assignments(response: &DiscoveryResponse) -> Vec<ClusterLoadAssignment> {
    response
        .resources
        .iter()
        .map(|any| proto::any::unpack(any).unwrap())
        .collect()
}

/// The addresses of the endpoints.
pub(crate) fn addresses(assignment: &ClusterLoadAssignment) -> Vec<String> {
    let localities = assignment.endpoints.iter();
    let endpoints = localities.flat_map(|locality| &locality.lb_endpoints);
    endpoints
        .map(|endpoint| match &endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => {
                let address = endpoint.address.clone().unwrap();
                proto::json::to_value(&address).unwrap()["socketAddress"]["address"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn each_type_is_answered_and_an_ack_is_not() {
    let pilot = Pilot::start(&base()).await;
    let mut client = Client::connect(&pilot).await;
    let clusters = client.subscribe(CLUSTER, &[]).await;
    assert!(
        clusters.resources.len() >= 5,
        "{}",
        clusters.resources.len()
    );
    let endpoints = client.subscribe(ENDPOINT, &[REVIEWS]).await;
    assert_eq!(
        assignments(&endpoints)[0].endpoints[0].lb_endpoints.len(),
        1
    );
    client.subscribe(LISTENER, &[]).await;
    // Had an ACK been answered, this would be it instead.
    let routes = client.subscribe(ROUTE, &["9080"]).await;
    assert_eq!(routes.resources.len(), 1);
}

#[tokio::test]
async fn endpoint_changes_send_only_the_endpoints_that_changed() {
    let pilot = Pilot::start(&base()).await;
    let mut client = Client::connect(&pilot).await;
    client.subscribe(CLUSTER, &[]).await;
    client.subscribe(ENDPOINT, &[REVIEWS, RATINGS]).await;
    client.subscribe(LISTENER, &[]).await;
    client.subscribe(ROUTE, &["9080"]).await;
    let changed = service("reviews", "default", &["10.1.0.1", "10.1.0.3"])
        + &service("ratings", "default", &["10.1.0.2"]);
    pilot.apply(&changed).await;
    let push = client.next().await;
    assert_eq!(push.type_url, ENDPOINT);
    let names: Vec<String> = assignments(&push)
        .into_iter()
        .map(|assignment| assignment.cluster_name)
        .collect();
    assert_eq!(names, [REVIEWS]);
    client
        .ask(ENDPOINT, &[REVIEWS, RATINGS], &push.nonce, None)
        .await;
    // Nothing else has been sent: the next response is for the next change.
    pilot.apply(&(changed + &route_rule("1s"))).await;
    assert_eq!(client.next().await.type_url, ROUTE);
}

#[tokio::test]
async fn refused_responses_are_shown_and_old_nonces_ignored() {
    let pilot = Pilot::start(&base()).await;
    let mut client = Client::connect(&pilot).await;
    client.ask(ROUTE, &["9080"], "", None).await;
    let first = client.next().await;
    client
        .ask(ROUTE, &["9080"], &first.nonce, Some("no such thing"))
        .await;
    let refused = || {
        let watched = pilot.discovery.connections()[0]
            .watched(ResourceType::Route)
            .unwrap();
        (watched.nonce_rejected, watched.error)
    };
    // The change comes another way than the refusal: it must not overtake it.
    let wanted = (first.nonce.clone(), "no such thing".to_owned());
    eventually(|| refused() == wanted).await;
    pilot.apply(&(base() + &route_rule("2s"))).await;
    let second = client.next().await;
    assert_ne!(second.version_info, first.version_info);
    assert_eq!(refused(), wanted);
    // An answer to the first response comes too late and must not be answered with everything again.
    client.ask(ROUTE, &["9080", "80"], &first.nonce, None).await;
    client.ask(ROUTE, &["9080"], &second.nonce, None).await;
    pilot.apply(&(base() + &route_rule("3s"))).await;
    let third = client.next().await;
    assert_eq!(third.resources.len(), 1);
    assert_ne!(third.version_info, second.version_info);
}

#[tokio::test]
async fn a_proxy_that_is_not_affected_is_left_alone() {
    let other = service("shop", "prod", &["10.2.0.1"]);
    let scoped = "---\napiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {name: default, namespace: default}\nspec:\n  \
                  egress: [{hosts: [\"./*\"]}]\n";
    let pilot = Pilot::start(&(base() + &other + scoped)).await;
    let mut client = Client::connect(&pilot).await;
    client.subscribe(CLUSTER, &[]).await;
    client.subscribe(ROUTE, &["9080"]).await;
    // A service that the Sidecar hides changes its shape; then one that it shows changes its routes.
    let hidden = other.replace("number: 9080", "number: 9999");
    pilot.apply(&(base() + &hidden + scoped)).await;
    pilot
        .apply(&(base() + &hidden + scoped + &route_rule("4s")))
        .await;
    let push = client.next().await;
    assert_eq!(push.type_url, ROUTE);
}

#[tokio::test]
async fn the_first_request_must_say_who_asks() {
    let pilot = Pilot::start(&base()).await;
    let mut client = Client::connect(&pilot).await;
    client
        .requests
        .send(DiscoveryRequest {
            type_url: CLUSTER.to_owned(),
            ..DiscoveryRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(client.refusal().await, tonic::Code::InvalidArgument);
}

struct DeltaClient {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl DeltaClient {
    async fn connect(pilot: &Pilot) -> Self {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(pilot.channel.clone());
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(outgoing))
            .await
            .unwrap()
            .into_inner();
        DeltaClient {
            requests,
            responses,
        }
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests
            .send(DeltaDiscoveryRequest {
                node: Some(node("web", "10.1.9.9")),
                ..request
            })
            .await
            .unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = tokio::time::timeout(PATIENCE, self.responses.next())
            .await
            .expect("a response in time")
            .unwrap()
            .unwrap();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(ack).await;
        response
    }
}

fn subscribe(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn delta_sends_what_is_new_and_what_is_gone() {
    let pilot = Pilot::start(&base()).await;
    let mut client = DeltaClient::connect(&pilot).await;
    client.send(subscribe(CLUSTER, &[])).await;
    let first = client.next().await;
    assert!(
        first
            .resources
            .iter()
            .any(|resource| resource.name == RATINGS)
    );
    pilot
        .apply(&service("reviews", "default", &["10.1.0.1"]))
        .await;
    let gone = client.next().await;
    assert_eq!(gone.removed_resources, [RATINGS]);
    assert!(gone.resources.is_empty(), "{:?}", gone.resources);
}

#[tokio::test]
async fn delta_clients_that_come_back_are_sent_the_rest_only() {
    let pilot = Pilot::start(&base()).await;
    let mut client = DeltaClient::connect(&pilot).await;
    client.send(subscribe(CLUSTER, &[])).await;
    let first = client.next().await;
    let versions = first
        .resources
        .iter()
        .filter(|resource| resource.name != REVIEWS);
    let known = versions
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect();
    let mut again = DeltaClient::connect(&pilot).await;
    again
        .send(DeltaDiscoveryRequest {
            initial_resource_versions: known,
            ..subscribe(CLUSTER, &[])
        })
        .await;
    let rest = again.next().await;
    let names: Vec<&str> = rest
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    assert_eq!(names, [REVIEWS]);
}

#[tokio::test]
async fn delta_subscriptions_are_answered_by_name() {
    let pilot = Pilot::start(&base()).await;
    let mut client = DeltaClient::connect(&pilot).await;
    client.send(subscribe(ENDPOINT, &[REVIEWS])).await;
    assert_eq!(client.next().await.resources[0].name, REVIEWS);
    client.send(subscribe(ENDPOINT, &[RATINGS])).await;
    let second = client.next().await;
    assert_eq!(
        (second.resources.len(), second.resources[0].name.as_str()),
        (1, RATINGS)
    );
    client
        .send(DeltaDiscoveryRequest {
            type_url: ENDPOINT.to_owned(),
            resource_names_unsubscribe: vec![RATINGS.to_owned()],
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    // The change comes another way than the request: it must not overtake it.
    eventually(|| {
        let watched = pilot.discovery.connections()[0].watched(ResourceType::Endpoint);
        !watched.unwrap().wants(RATINGS)
    })
    .await;
    let changed = service("reviews", "default", &["10.1.0.7"])
        + &service("ratings", "default", &["10.1.0.8"]);
    pilot.apply(&changed).await;
    let push = client.next().await;
    let names: Vec<&str> = push
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    assert_eq!(names, [REVIEWS]);
}

#[tokio::test]
async fn a_proxy_is_told_of_its_own_cluster_even_if_it_may_not_call_it() {
    const NOTHING: &str = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: default}\nspec: {egress: [{hosts: [other/*]}]}\n";
    let webs = |addresses: &[&str]| service("web", "default", addresses) + NOTHING;
    let pilot = Pilot::start(&webs(&["10.1.9.9"])).await;
    let mut client = Client::connect(&pilot).await;
    client.ask(ENDPOINT, &[LOCAL_CLUSTER], "", None).await;
    client.endpoints_become(LOCAL_CLUSTER, &["10.1.9.9"]).await;
    pilot.apply(&webs(&["10.1.9.9", "10.1.9.8"])).await;
    client
        .endpoints_become(LOCAL_CLUSTER, &["10.1.9.8", "10.1.9.9"])
        .await;
}
