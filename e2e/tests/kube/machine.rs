//! A machine as Pilot sees one: a stream that it opens with a token of its account, for a group, and what it says of its health.

use e2e::mesh::eventually;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use proto::envoy::service::discovery::v3::DiscoveryRequest;
use serde_json::json;

use crate::SOON;
use crate::component::{Component, log_of};
use crate::gateway::{Gateway, token};

const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// Its entry is there while it is, and says that it is healthy; a while after it has gone it is not.
pub(crate) async fn registers_itself(
    client: &Client,
    pilot: &Component,
    root: &str,
    namespace: &str,
) {
    let api = |kind: &str, plural: &str| -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("networking.istio.io", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    let groups = api("WorkloadGroup", "workloadgroups");
    let entries = api("WorkloadEntry", "workloadentries");
    let group = serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": "machines"},
        "spec": {"template": {"serviceAccount": "default"}, "probe": {"tcpSocket": {"port": 80}}},
    }));
    let params = PostParams::default();
    groups.create(&params, &group.unwrap()).await.unwrap();
    let token = token(client, namespace, "default").await;
    let mut machine = Gateway::open(pilot, root, &token).await;
    let node = json!({
        "id": format!("sidecar~10.0.0.8~vm-0.{namespace}~{namespace}.svc.cluster.local"),
        "metadata": {"AUTO_REGISTER_GROUP": "machines", "NAMESPACE": namespace},
    });
    let healthy = DiscoveryRequest {
        node: Some(proto::json::from_value(&node).unwrap()),
        type_url: HEALTH.to_owned(),
        ..DiscoveryRequest::default()
    };
    machine.requests.try_send(healthy).unwrap();
    let name = "machines-10.0.0.8";
    let is_told = eventually("the machine's entry", SOON, async || {
        let found = entries.get_opt(name).await.unwrap();
        found.is_some_and(|found| found.data["status"]["conditions"][0]["status"] == "True")
    });
    assert!(is_told.await.is_ok(), "{}", log_of(pilot));
    drop(machine);
    let is_gone = eventually("the machine's entry is gone", SOON, async || {
        entries.get_opt(name).await.unwrap().is_none()
    });
    assert!(is_gone.await.is_ok(), "{}", log_of(pilot));
    let now = DeleteParams::default();
    groups.delete("machines", &now).await.unwrap();
}
