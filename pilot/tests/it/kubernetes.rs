//! Pilot with a real API server: `cargo test -p pilot --test it -- --ignored kubernetes`, with `KUBECONFIG` naming a cluster.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use pilot::model::Mesh;
use pilot::registry::kubernetes::{self, Options};
use proto::envoy::config::core::v3::Node as EnvoyNode;
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::type_url::ENDPOINT;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

mod machines;

use super::ads::{self, assignments};
use super::mesh::{Pilot, eventually};

const NAMESPACE: &str = "pilot-test";
const HOST: &str = "web.pilot-test.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes an object as it should be.
async fn apply<K>(api: &Api<K>, name: &str, object: Value)
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PatchParams::apply("pilot-test").force();
    let patch = Patch::Apply(object);
    api.patch(name, &params, &patch).await.unwrap();
}

async fn slice(api: &Api<EndpointSlice>, addresses: &[(&str, bool)]) {
    let endpoint = |(address, is_ready): &(&str, bool)| {
        json!({"addresses": [address], "conditions": {"ready": is_ready},
            "targetRef": {"kind": "Pod", "name": "web-1", "namespace": NAMESPACE}})
    };
    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
    apply(
        api,
        "web-1",
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]}),
    )
    .await;
}

/// A node, a namespace, a service without a selector, its slice and its pod.
async fn fill(client: &Client) -> Api<EndpointSlice> {
    let nodes: Api<Node> = Api::all(client.clone());
    let labels =
        json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1"});
    apply(&nodes, "pilot-test", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "pilot-test", "labels": labels}})).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    apply(
        &namespaces,
        NAMESPACE,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    )
    .await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "seller"}});
    apply(&accounts, "seller", account).await;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    apply(
        &services,
        "web",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}),
    )
    .await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    apply(&pods, "web-1", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "labels": {"app": "web"}},
        "spec": {"nodeName": "pilot-test", "automountServiceAccountToken": false, "serviceAccountName": "seller",
            "containers": [{"name": "web", "image": "web"}]}})).await;
    let slices = Api::namespaced(client.clone(), NAMESPACE);
    slice(&slices, &[("10.1.0.1", true), ("10.1.0.2", false)]).await;
    slices
}

/// Addresses and places of the endpoints that get traffic.
fn places(assignment: &ClusterLoadAssignment) -> Vec<String> {
    let mut places = Vec::new();
    for locality in &assignment.endpoints {
        let place = locality.locality.clone().unwrap_or_default();
        for endpoint in &locality.lb_endpoints {
            let text = format!("{:?}", endpoint.host_identifier);
            let address = text.split('"').nth(1).unwrap_or_default();
            places.push(format!("{address} {}/{}", place.region, place.zone));
        }
    }
    places
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn kubernetes_services_and_their_endpoints_are_served() {
    let pilot = Pilot::start_empty().await;
    let client = Client::try_default().await.expect("a cluster");
    let slices = fill(&client).await;
    let (_mesh, changes) = watch::channel(Arc::new(Mesh::default()));
    let options = Options {
        domain: "cluster.local".to_owned(),
        namespace: String::new(),
        mesh: changes,
        events: pilot.discovery.metrics.cluster_events.clone(),
    };
    let synced = kubernetes::start(&client, options, pilot.updates.clone(), &pilot.drain);
    tokio::time::timeout(PATIENCE, synced)
        .await
        .expect("in time")
        .unwrap();
    let has_service = || {
        let current = pilot.discovery.current();
        current.push.services.lookup(HOST, NAMESPACE).is_some()
    };
    eventually(has_service).await;

    let node = EnvoyNode {
        id: format!("sidecar~10.1.0.1~web-1.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
        ..EnvoyNode::default()
    };
    let mut stream = ads::Client::connect_as(&pilot, node).await;
    let cluster = format!("outbound|80||{HOST}");
    let response = stream.subscribe(ENDPOINT, &[&cluster]).await;
    assert_eq!(places(&assignments(&response)[0]), ["10.1.0.1 eu/eu-1"]);
    // Its node said nothing of where it is; its pod did.
    assert_eq!(pilot.discovery.connections()[0].proxy.locality, "eu/eu-1");

    let version = pilot.discovery.current().push.services.all().as_ptr();
    slice(&slices, &[("10.1.0.1", true), ("10.1.0.2", true)]).await;
    let response = stream.next().await;
    assert_eq!(response.type_url, ENDPOINT);
    assert_eq!(
        places(&assignments(&response)[0]),
        ["10.1.0.1 eu/eu-1", "10.1.0.2 eu/eu-1"]
    );
    // The fast path: everything but the endpoints is the same.
    let after = pilot.discovery.current().push.services.all().as_ptr();
    assert_eq!(version, after);

    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    services
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    eventually(|| !has_service()).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let now = DeleteParams::default().grace_period(0);
    pods.delete("web-1", &now).await.unwrap();
    slices
        .delete("web-1", &DeleteParams::default())
        .await
        .unwrap();
    let nodes: Api<Node> = Api::all(client);
    nodes
        .delete("pilot-test", &DeleteParams::default())
        .await
        .unwrap();
}
