//! Patches of the bootstrap: who is sent which, and how.

use pilot::xds::ResourceType;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::DiscoveryResponse;
use proto::type_url::CLUSTER;

use super::ads::Client;
use super::mesh::Pilot;

const FILTER: &str = "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: x, namespace: shop}\nspec:\n  \
    configPatches:\n  - {applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {stats_flush_interval: 7s}}}\n";

fn node(namespace: &str) -> Node {
    Node {
        id: format!("sidecar~10.1.9.9~web.{namespace}~{namespace}.svc.cluster.local"),
        ..Node::default()
    }
}

fn patches(response: &DiscoveryResponse) -> Bootstrap {
    assert_eq!(response.resources.len(), 1);
    proto::any::unpack(&response.resources[0]).unwrap()
}

#[tokio::test]
async fn an_agent_is_sent_what_its_proxys_bootstrap_lacks_and_nobody_takes_it_for_a_proxy() {
    let url = ResourceType::Bootstrap.url();
    let pilot = Pilot::start(FILTER).await;
    let mut agent = Client::connect_as(&pilot, node("shop")).await;
    let answer = agent.subscribe(url, &["patches"]).await;
    let interval = patches(&answer).stats_flush_interval.unwrap();
    assert_eq!(interval.seconds, 7);
    assert!(pilot.discovery.connections()[0].is_agent());

    // There is nothing for others, and they need not wait to hear it.
    let mut other = Client::connect_as(&pilot, node("default")).await;
    let answer = other.subscribe(url, &["patches"]).await;
    assert_eq!(patches(&answer), Bootstrap::default());

    // Who wants a whole bootstrap is not sent the patches instead: the first answer is the one to the next request.
    let mut stranger = Client::connect_as(&pilot, node("shop")).await;
    stranger.ask(url, &[], "", None).await;
    stranger.subscribe(CLUSTER, &[]).await;
    let is_agent = |connection: &&std::sync::Arc<pilot::xds::Connection>| connection.is_agent();
    assert_eq!(
        pilot
            .discovery
            .connections()
            .iter()
            .filter(is_agent)
            .count(),
        2
    );
}
