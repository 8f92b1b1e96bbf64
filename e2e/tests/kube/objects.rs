//! Every object of a cluster, whatever its kind, and those that an installation should consist of.

use std::collections::BTreeSet;

use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, verbs};
use kube::{Client, ResourceExt as _};
use serde_json::Value;

/// What the cluster makes of other objects by itself, or makes of what happens in it.
const DERIVED: &[&str] = &[
    "APIService",
    "Endpoints",
    "EndpointSlice",
    "Event",
    "IPAddress",
];
/// What every namespace gets.
const EVERYWHERE: &[&str] = &["kube-root-ca.crt", "default"];

/// The names of objects: `Deployment istio-pilot`.
pub(crate) type Names = BTreeSet<String>;

/// Everything that is in the cluster, but what has an owner, what the cluster adds, and Helm's own record of releases.
pub(crate) async fn all(client: &Client) -> Names {
    let discovery = Discovery::new(client.clone()).run_aggregated().await;
    let mut names = Names::new();
    for group in discovery.unwrap().groups() {
        for (resource, capabilities) in group.resources_by_stability() {
            if !capabilities.supports_operation(verbs::LIST) {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            // A kind that is being taken away is not there.
            let Ok(found) = api.list(&ListParams::default()).await else {
                continue;
            };
            let found = found
                .iter()
                .filter(|object| !is_derived(&resource.kind, object));
            names.extend(found.map(|object| format!("{} {}", resource.kind, object.name_any())));
        }
    }
    names
}

fn is_derived(kind: &str, object: &DynamicObject) -> bool {
    // A slice is somebody's own where no controller has made it.
    let is_controllers = kind != "EndpointSlice"
        || object
            .labels()
            .contains_key("endpointslice.kubernetes.io/managed-by");
    (DERIVED.contains(&kind) && is_controllers)
        || !object.owner_references().is_empty()
        || object.metadata.deletion_timestamp.is_some()
        || object.name_any().starts_with("sh.helm.release.")
        || (["ConfigMap", "ServiceAccount"].contains(&kind)
            && EVERYWHERE.contains(&object.name_any().as_str()))
        // The cluster's own controllers are there.
        || object.namespace().as_deref() == Some("kube-system")
}

/// What is in the cluster beside what was there before.
pub(crate) async fn added(client: &Client, before: &Names) -> Names {
    let now = all(client).await;
    now.difference(before).cloned().collect()
}

/// The names of rendered objects.
pub(crate) fn names(manifests: &str) -> Names {
    let documents = proto::yaml::parse_documents(manifests).into_iter();
    let objects = documents.map(|document| document.unwrap().value);
    objects
        .filter(|object| !object.is_null())
        .map(|object| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            format!(
                "{} {}",
                text(&object["kind"]),
                text(&object["metadata"]["name"])
            )
        })
        .collect()
}
