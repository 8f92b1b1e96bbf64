//! Pods, as far as others look workloads up by them: names, owners, labels, ports and addresses, each a `Struct` of
//! Kubernetes' JSON. Nothing of what a pod runs leaves Galley.

use super::direct::reuse;
use crate::{
    event::{Content, Key, Object, Objects},
    validation::Kube,
};
use prost_types::Any;
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto_mcp::snapshot::Collection;
use proto_mesh::kubernetes::object::Pod;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, sync::Arc};

const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// Remembers what it made of which object, so that a change of one pod costs that pod only.
#[derive(Debug, Default)]
pub struct Pods {
    made: BTreeMap<Key, (Arc<Object>, Arc<Resource>)>,
}

impl Pods {
    /// The collection of the pods among `objects`.
    pub fn build_collection(
        &mut self,
        objects: &Objects,
        last: Option<&Arc<Collection>>,
    ) -> Arc<Collection> {
        let mut made = BTreeMap::new();
        for (key, object) in objects {
            let Content::Kube(Kube::Pod(pod)) = &object.content else {
                continue;
            };
            let known = self.made.remove(key);
            let known = known.filter(|(of, _)| Arc::ptr_eq(of, object));
            let resource = known.map_or_else(|| resource(&key.name, pod), |(_, resource)| resource);
            made.insert(key.clone(), (object.clone(), resource));
        }
        self.made = made;
        let resources = self.made.values().map(|(_, resource)| resource.clone());
        reuse(last, resources.collect())
    }
}

fn resource(name: &str, pod: &Pod) -> Arc<Resource> {
    let body = proto::json::any_from_value("google.protobuf.Struct", &outline(pod));
    // Every JSON object is a Struct.
    let body = body.map_or_else(|_| Vec::new(), |any| any.value);
    let digest = Sha256::digest(&body);
    let version: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Arc::new(Resource {
        metadata: Some(Metadata {
            name: name.to_owned(),
            version,
            ..Metadata::default()
        }),
        body: Some(Any {
            type_url: STRUCT.to_owned(),
            value: body,
        }),
    })
}

fn outline(pod: &Pod) -> Value {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let containers = spec.map_or(&[][..], |spec| &spec.containers);
    let containers: Vec<Value> = containers
        .iter()
        .map(|container| {
            let ports = container.ports.iter().flatten();
            let ports: Vec<Value> = ports
                .map(|port| json!({"containerPort": port.container_port}))
                .collect();
            json!({"name": container.name, "ports": ports})
        })
        .collect();
    let owners: Vec<Value> = meta
        .owner_references
        .iter()
        .flatten()
        .map(|owner| {
            json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name,
                "controller": owner.controller.unwrap_or_default()})
        })
        .collect();
    json!({
        "metadata": {
            "name": meta.name.as_deref().unwrap_or_default(),
            "namespace": meta.namespace.as_deref().unwrap_or("default"),
            "labels": meta.labels.clone().unwrap_or_default(),
            "ownerReferences": owners,
        },
        "spec": {
            "serviceAccountName": spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default"),
            "containers": containers,
        },
        "status": {
            "podIP": status.and_then(|status| status.pod_ip.as_deref()).unwrap_or_default(),
            "hostIP": status.and_then(|status| status.host_ip.as_deref()).unwrap_or_default(),
        },
    })
}
