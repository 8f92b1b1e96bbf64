//! Pods, as far as others look workloads up by them: names, owners, labels, ports and addresses, each a `Struct` of
//! Kubernetes' JSON. Nothing of what a pod runs leaves Galley.

use super::direct::reuse;
use crate::{
    event::{Content, Key, Object, Objects},
    validation::Kube,
};
use k8s_openapi::api::core::v1::Pod;
use prost_types::Any;
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto_mcp::snapshot::Collection;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::parse;
    use std::path::Path;

    fn objects(yaml: &str) -> Objects {
        let file = parse(Path::new("test.yaml"), yaml);
        let objects = file.documents.into_iter();
        objects
            .map(|document| (document.key.unwrap(), document.object.unwrap()))
            .collect()
    }

    const POD: &str = r"
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d8f, uid: u, controller: true}]
spec:
  serviceAccountName: web
  containers: [{name: web, image: x, env: [{name: SECRET, value: hidden}], ports: [{containerPort: 9080}]}]
status: {podIP: 10.1.0.1, hostIP: 10.0.0.1}
";

    #[test]
    fn a_pod_is_outlined_without_what_it_runs() {
        let made = Pods::default().build_collection(&objects(POD), None);
        let resource = &made.resources["shop/web-1"];
        let body = resource.body.as_ref().unwrap();
        assert_eq!(body.type_url, STRUCT);
        let shown = String::from_utf8_lossy(&body.value).into_owned();
        for part in ["10.1.0.1", "ReplicaSet", "web-5d8f", "serviceAccountName"] {
            assert!(shown.contains(part), "{part} is missing");
        }
        assert!(!shown.contains("hidden") && !shown.contains("image"));
    }

    #[test]
    fn only_pods_that_changed_are_made_anew() {
        let mut pods = Pods::default();
        let mut all = objects(POD);
        all.extend(objects(&POD.replace("web-1", "web-2")));
        let first = pods.build_collection(&all, None);
        all.extend(objects(
            &POD.replace("web-1", "web-2")
                .replace("10.1.0.1", "10.1.0.2"),
        ));
        let second = pods.build_collection(&all, Some(&first));
        let same = |name: &str| Arc::ptr_eq(&first.resources[name], &second.resources[name]);
        assert!(same("shop/web-1") && !same("shop/web-2"));
        let third = pods.build_collection(&all, Some(&second));
        assert!(Arc::ptr_eq(&second, &third));
    }
}
