//! Machines that register themselves: who has an entry, and when it is sent to others.

use pilot::registry::registration::HEALTH;
use proto::envoy::config::core::v3::Node;
use proto::type_url::ENDPOINT;

use super::ads::Client;
use super::credentials::{Authority, connect_as, start_with};
use super::mesh::Pilot;

pub(crate) const CLUSTER: &str = "outbound|80||legacy.test";
pub(crate) const MACHINE: &str = "10.7.0.7";
pub(crate) const OWNER: &str = "spiffe://cluster.local/ns/shop/sa/legacy";
pub(crate) const CONFIG: &str = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: legacy, namespace: shop}\nspec:\n  \
    hosts: [legacy.test]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  \
    workloadSelector: {labels: {app: legacy}}\n";
pub(crate) const GROUP: &str = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: legacy, namespace: shop}\nspec:\n  \
    metadata: {labels: {app: legacy}}\n  template: {serviceAccount: legacy, ports: {http: 8080}}\n";
pub(crate) const PROBE: &str = "  probe: {httpGet: {port: 8080, path: /healthz}}\n";

pub(crate) fn machine(namespace: &str) -> Node {
    proto::json::from_value(&serde_json::json!({
        "id": format!("sidecar~{MACHINE}~vm-1.{namespace}~{namespace}.svc.cluster.local"),
        "metadata": {"AUTO_REGISTER_GROUP": "legacy", "NAMESPACE": namespace},
    }))
    .unwrap()
}

pub(crate) fn web() -> Node {
    Node {
        id: "sidecar~10.1.9.9~web.default~default.svc.cluster.local".to_owned(),
        ..Node::default()
    }
}

async fn started(group: &str) -> (Authority, Pilot, u16, Client) {
    let authority = Authority::new();
    let (pilot, port) = start_with(&authority, &format!("{CONFIG}{group}")).await;
    let client = Client::connect_as(&pilot, web()).await;
    client.ask(ENDPOINT, &[CLUSTER], "", None).await;
    (authority, pilot, port, client)
}

#[tokio::test]
async fn a_machine_serves_while_its_agent_calls_it_healthy() {
    let (authority, _pilot, port, mut web) = started(&format!("{GROUP}{PROBE}")).await;
    web.endpoints_become(CLUSTER, &[]).await;
    let agent = connect_as(&authority, port, OWNER, machine("shop")).await;
    agent.ask(HEALTH, &[], "", None).await;
    web.endpoints_become(CLUSTER, &[MACHINE]).await;
    agent.ask(HEALTH, &[], "", Some("503 from /healthz")).await;
    web.endpoints_become(CLUSTER, &[]).await;
    agent.ask(HEALTH, &[], "", None).await;
    web.endpoints_become(CLUSTER, &[MACHINE]).await;
    drop(agent);
    web.endpoints_become(CLUSTER, &[]).await;
}

#[tokio::test]
async fn without_a_probe_it_serves_as_soon_as_both_it_and_its_group_are_there() {
    let (authority, pilot, port, mut web) = started("").await;
    web.endpoints_become(CLUSTER, &[]).await;
    let agent = connect_as(&authority, port, OWNER, machine("shop")).await;
    // Says who it is.
    agent.ask(ENDPOINT, &[CLUSTER], "", None).await;
    pilot.apply(&format!("{CONFIG}{GROUP}")).await;
    web.endpoints_become(CLUSTER, &[MACHINE]).await;
}

#[tokio::test]
async fn nobody_registers_in_a_namespace_that_is_not_proved_to_be_his() {
    let (authority, pilot, port, mut web) = started(GROUP).await;
    web.endpoints_become(CLUSTER, &[]).await;
    let in_the_clear = Client::connect_as(&pilot, machine("shop")).await;
    in_the_clear.ask(HEALTH, &[], "", None).await;
    let stranger = "spiffe://cluster.local/ns/other/sa/legacy";
    let mut liar = connect_as(&authority, port, stranger, machine("shop")).await;
    liar.ask(HEALTH, &[], "", None).await;
    assert_eq!(liar.refusal().await, tonic::Code::PermissionDenied);
    // In its own namespace there is no such group.
    let elsewhere = connect_as(&authority, port, stranger, machine("other")).await;
    elsewhere.ask(HEALTH, &[], "", None).await;
    // Whatever they had brought about would be seen with this.
    let more = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: by-hand, namespace: shop}\nspec: {address: 10.7.0.9, labels: {app: legacy}}\n";
    pilot.apply(&format!("{CONFIG}{GROUP}{more}")).await;
    web.endpoints_become(CLUSTER, &["10.7.0.9"]).await;
}
