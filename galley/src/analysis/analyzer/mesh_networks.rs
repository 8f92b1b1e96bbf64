//! Networks of several clusters: each registry that they name is a cluster that the mesh knows.

use super::super::{
    Code, Context,
    message::Messages,
    object::{MESH_NETWORKS, SECRET, items, text},
};
use std::collections::BTreeSet;

/// The label of secrets that hold the access to another cluster.
const CLUSTER_SECRET: &str = "istio/multiCluster";

pub(super) fn check(context: &Context, messages: &mut Messages) {
    let mut known: BTreeSet<&str> = BTreeSet::from(["Mock", "Kubernetes", "External"]);
    for secret in context.of(SECRET) {
        if secret.labels.get(CLUSTER_SECRET).map(String::as_str) == Some("true") {
            let names = ["data", "stringData"].into_iter();
            known.extend(
                names
                    .filter_map(|field| secret.value[field].as_object())
                    .flat_map(|clusters| clusters.keys().map(String::as_str)),
            );
        }
    }
    for networks in context.of(MESH_NETWORKS) {
        for (name, network) in networks.spec()["networks"]
            .as_object()
            .into_iter()
            .flatten()
        {
            for (index, endpoint) in items(&network["endpoints"]).enumerate() {
                let registry = text(&endpoint["fromRegistry"]);
                if !registry.is_empty() && !known.contains(registry) {
                    let text =
                        format!("Network {name} is of registry {registry:?}, which nobody knows");
                    let path = format!("networks.{name}.endpoints[{index}].fromRegistry");
                    let code = Code::UnknownMeshNetworksServiceRegistry;
                    messages.add(code, networks, &path, text);
                }
            }
        }
    }
}
