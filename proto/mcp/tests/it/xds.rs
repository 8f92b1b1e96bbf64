//! The same collections over xDS, state of the world and incremental.

use super::*;
use prost::Message as _;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const TYPE: &str = "networking.istio.io/v1/Gateway";
const SOON: Duration = Duration::from_secs(60);

async fn whole(served: &Served) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(16);
    let mut client = AggregatedDiscoveryServiceClient::new(served.channel());
    let responses = client
        .stream_aggregated_resources(ReceiverStream::new(receiver))
        .await
        .unwrap();
    (requests, responses.into_inner())
}

async fn delta(
    served: &Served,
) -> (
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
) {
    let (requests, receiver) = mpsc::channel(16);
    let mut client = AggregatedDiscoveryServiceClient::new(served.channel());
    let responses = client
        .delta_aggregated_resources(ReceiverStream::new(receiver))
        .await
        .unwrap();
    (requests, responses.into_inner())
}

async fn hear<T>(responses: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(SOON, responses.message())
        .await
        .unwrap();
    message.unwrap().expect("the stream goes on")
}

fn ask(type_url: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        response_nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

#[tokio::test]
async fn a_whole_collection_is_sent_and_again_when_it_changes() {
    let served = Served::start("127.0.0.1:0").await;
    served.source.publish(gateways(&[("a/a", 1)]));
    let (requests, mut responses) = whole(&served).await;
    requests.send(ask(TYPE, "")).await.unwrap();
    let first = hear(&mut responses).await;
    assert_eq!(first.type_url, TYPE);
    let sent = Resource::decode(first.resources[0].value.as_ref()).unwrap();
    assert_eq!(sent.metadata.unwrap().name, "a/a");
    assert!(
        first.resources[0]
            .type_url
            .ends_with("/istio.mcp.v1alpha1.Resource")
    );

    requests.send(ask(TYPE, &first.nonce)).await.unwrap();
    served.source.publish(gateways(&[("a/a", 2), ("b/b", 1)]));
    let second = hear(&mut responses).await;
    assert_eq!(second.resources.len(), 2);
    assert_ne!(first.version_info, second.version_info);

    // A type that nobody knows is answered too: some clients wait for all of theirs.
    requests
        .send(ask("x.example/v1/Nothing", ""))
        .await
        .unwrap();
    let third = hear(&mut responses).await;
    assert_eq!(
        (third.type_url.as_str(), third.resources.len()),
        ("x.example/v1/Nothing", 0)
    );
}

#[tokio::test]
async fn increments_hold_what_changed_and_a_returning_sink_gets_what_it_lacks() {
    let served = Served::start("127.0.0.1:0").await;
    served.source.publish(gateways(&[("a/a", 1), ("b/b", 1)]));
    let (requests, mut responses) = delta(&served).await;
    let request = |nonce: &str| DeltaDiscoveryRequest {
        type_url: TYPE.into(),
        response_nonce: nonce.into(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request("")).await.unwrap();
    let first = hear(&mut responses).await;
    assert_eq!(first.resources.len(), 2);
    requests.send(request(&first.nonce)).await.unwrap();
    served.source.publish(gateways(&[("a/a", 2)]));
    let second = hear(&mut responses).await;
    assert_eq!(second.resources[0].name, "a/a");
    assert_eq!(second.removed_resources, ["b/b"]);

    let (requests, mut responses) = delta(&served).await;
    let versions = [("a/a", "2"), ("c/c", "9")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: versions.into_iter().collect(),
        ..request("")
    };
    requests.send(again).await.unwrap();
    let third = hear(&mut responses).await;
    assert_eq!(
        (third.resources.len(), third.removed_resources.len()),
        (0, 1)
    );
}
