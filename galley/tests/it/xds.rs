//! The collections of `galley server` over xDS, to a client that proves who it is.

use super::*;
use prost::Message as _;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use proto::istio::mcp::v1alpha1::Resource;
use proto::istio::networking::v1alpha3::VirtualService;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Streaming;

/// One collection under the names of two of its versions.
const ROUTES: &str = "networking.istio.io/v1/VirtualService";
const OLD_ROUTES: &str = "networking.istio.io/v1alpha3/VirtualService";

/// The first message that is wanted.
async fn hear<T>(responses: &mut Streaming<T>, is_wanted: impl Fn(&T) -> bool) -> T {
    loop {
        let message = tokio::time::timeout(SOON, responses.next()).await;
        let message = message.expect("in time").expect("the stream goes on");
        let message = message.unwrap();
        if is_wanted(&message) {
            return message;
        }
    }
}

async fn client(place: &Place) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
    place.until("/ready", |page| !page.is_empty()).await;
    AggregatedDiscoveryServiceClient::new(place.channel())
}

fn hosts(body: &[u8]) -> Vec<String> {
    let resource = Resource::decode(body).unwrap();
    let service: VirtualService = proto::any::unpack(&resource.body.unwrap()).unwrap();
    service.hosts
}

#[tokio::test]
async fn a_collection_is_a_whole_in_each_of_its_versions() {
    let place = Place::secure();
    place.write("a.yaml", &route("a", "one"));
    let _galley = place.start();
    let mut client = client(&place).await;
    let (requests, receiver) = mpsc::channel(16);
    let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver));
    for name in [ROUTES, OLD_ROUTES] {
        let request = DiscoveryRequest {
            type_url: name.into(),
            ..DiscoveryRequest::default()
        };
        requests.send(request).await.unwrap();
    }
    let mut responses = responses.await.unwrap().into_inner();
    for name in [ROUTES, OLD_ROUTES] {
        let response = hear(&mut responses, |response| {
            response.type_url == name && !response.resources.is_empty()
        });
        assert_eq!(hosts(&response.await.resources[0].value), ["one"], "{name}");
    }
}

#[tokio::test]
async fn increments_follow_the_files() {
    let place = Place::secure();
    place.write("a.yaml", &route("a", "one"));
    let _galley = place.start();
    let mut client = client(&place).await;
    let (requests, receiver) = mpsc::channel(16);
    let request = |nonce: &str| DeltaDiscoveryRequest {
        type_url: ROUTES.into(),
        response_nonce: nonce.into(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request("")).await.unwrap();
    let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver));
    let mut responses = responses.await.unwrap().into_inner();
    let first = hear(&mut responses, |response| !response.resources.is_empty()).await;
    assert_eq!(first.resources[0].name, "shop/a");
    requests.send(request(&first.nonce)).await.unwrap();
    place.write("b.yaml", &route("b", "two"));
    place.remove("a.yaml");
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    while added.is_empty() || removed.is_empty() {
        let next = hear(&mut responses, |_| true).await;
        requests.send(request(&next.nonce)).await.unwrap();
        added.extend(next.resources.into_iter().map(|resource| resource.name));
        removed.extend(next.removed_resources);
    }
    assert_eq!(
        (added, removed),
        (vec!["shop/b".to_owned()], vec!["shop/a".to_owned()])
    );
}
