//! Where Ingresses say that they are reached: Galley's leader writes what the gateway's Service, or its nodes, have, to those of the
//! mesh's class.

use std::fs;

use e2e::mesh::eventually;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::component::{Component, GALLEY, log_of, start_replica};
use crate::{NAMESPACE, SOON, fresh, install};

const GATEWAY: &str = "istio-ingressgateway";

#[tokio::test]
async fn ingresses_say_where_their_gateway_is_reached() {
    let client = fresh().await;
    install("galley: {enableServiceDiscovery: true}");
    let api: Api<Ingress> = Api::namespaced(client.clone(), "default");
    for (name, class) in [("a", "istio"), ("b", "nginx"), ("c", "")] {
        create(&api, name, class).await;
    }
    let first = start_replica(&client, &GALLEY, "first").await;
    is_balanced(
        &client,
        &json!([{"ip": "192.0.2.10"}, {"hostname": "edge.example"}]),
    )
    .await;
    let all = ["192.0.2.10", "edge.example"];
    say(&api, &first, [&all, &[], &[]]).await;

    // Another replica goes on with it.
    let second = start_replica(&client, &GALLEY, "second").await;
    drop(first);
    is_balanced(&client, &json!([{"ip": "192.0.2.11"}])).await;
    say(&api, &second, [&["192.0.2.11"], &[], &[]]).await;

    // Whoever changes hands takes nothing of ours along.
    for (name, class) in [("a", "nginx"), ("b", "istio")] {
        let spec = json!({"spec": {"ingressClassName": class}});
        let params = PatchParams::default();
        api.patch(name, &params, &Patch::Merge(spec)).await.unwrap();
    }
    say(&api, &second, [&[], &["192.0.2.11"], &[]]).await;
    mesh_is(&second, "ingressControllerMode: DEFAULT\n");
    let of_mesh = ["192.0.2.11"];
    say(&api, &second, [&[], &of_mesh, &of_mesh]).await;
    is_balanced(&client, &json!(null)).await;
    say(&api, &second, [&[], &[], &[]]).await;

    a_gateway_runs_on_a_node(&client).await;
    mesh_is(&second, "ingressService: ''\n");
    say(&api, &second, [&[], &["198.51.100.7"], &[]]).await;
    // Without quotes it would be a truth value.
    mesh_is(
        &second,
        "ingressService: \"\"\ningressControllerMode: 'OFF'\n",
    );
    say(&api, &second, [&[], &[], &[]]).await;
    let now = DeleteParams::default().grace_period(0);
    for name in ["a", "b", "c"] {
        api.delete(name, &now).await.unwrap();
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    pods.delete("edge", &now).await.unwrap();
    let nodes: Api<Node> = Api::all(client);
    nodes.delete("edge", &now).await.unwrap();
}

/// An Ingress of the mesh gets its address.
pub(crate) async fn is_told_its_address(client: &Client, namespace: &str) {
    let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
    create(&api, "told", "istio").await;
    is_balanced(client, &json!([{"ip": "192.0.2.12"}])).await;
    let is_told = async || addresses(&api, "told").await == ["192.0.2.12"];
    let told = eventually("the Ingress' address", SOON, is_told).await;
    told.unwrap();
    is_balanced(client, &json!(null)).await;
    let now = DeleteParams::default();
    api.delete("told", &now).await.unwrap();
}

async fn create(api: &Api<Ingress>, name: &str, class: &str) {
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let mut spec = json!({"defaultBackend": backend});
    if !class.is_empty() {
        spec["ingressClassName"] = json!(class);
    }
    let ingress = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}));
    let params = PostParams::default();
    api.create(&params, &ingress.unwrap()).await.unwrap();
}

/// As a cloud's controller does.
async fn is_balanced(client: &Client, addresses: &Value) {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let status = json!({"status": {"loadBalancer": {"ingress": addresses}}});
    let (params, status) = (PatchParams::default(), Patch::Merge(status));
    let written = services.patch_status(GATEWAY, &params, &status).await;
    written.unwrap();
}

/// A ready pod of the gateway, on a node with an address outside.
async fn a_gateway_runs_on_a_node(client: &Client) {
    let params = PostParams::default();
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "edge"}}));
    nodes.create(&params, &node.unwrap()).await.unwrap();
    let found = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.7"}, {"type": "ExternalIP", "address": "198.51.100.7"},
    ]}});
    let found = Patch::Merge(found);
    let patch = PatchParams::default();
    nodes.patch_status("edge", &patch, &found).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "edge", "labels": {"istio": "ingressgateway"}},
        "spec": {
            "automountServiceAccountToken": false, "nodeName": "edge",
            "containers": [{"name": "istio-proxy", "image": "proxy"}],
        },
    }));
    pods.create(&params, &pod.unwrap()).await.unwrap();
    let ready = json!({"status": {
        "phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let ready = Patch::Merge(ready);
    pods.patch_status("edge", &patch, &ready).await.unwrap();
}

/// Changes the mesh's settings under a Galley: these in place of what it is started with.
fn mesh_is(galley: &Component, settings: &str) {
    fs::write(galley.folder.join("mesh-config/mesh"), settings).unwrap();
}

/// Waits until the three Ingresses say this.
async fn say(api: &Api<Ingress>, galley: &Component, wanted: [&[&str]; 3]) {
    let mut found = Vec::new();
    let said = eventually("the Ingresses' addresses", SOON, async || {
        found.clear();
        for name in ["a", "b", "c"] {
            found.push(addresses(api, name).await);
        }
        found == wanted
    });
    let said = said.await;
    assert!(said.is_ok(), "{found:?}: {}", log_of(galley));
}

async fn addresses(api: &Api<Ingress>, name: &str) -> Vec<String> {
    let found = api.get_status(name).await.unwrap();
    let balancer = found.status.and_then(|status| status.load_balancer);
    let all = balancer.and_then(|balancer| balancer.ingress).into_iter();
    all.flatten()
        .filter_map(|address| address.ip.or(address.hostname))
        .collect()
}
