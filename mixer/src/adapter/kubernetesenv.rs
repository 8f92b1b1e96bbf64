//! `kubernetesenv`: what Kubernetes knows of the workloads at both ends of a request, as attributes.
//!
//! Pods come from where the configuration comes from (MCP), so its parameters for reaching an API server are read and checked,
//! and nothing else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto_mesh::attribute::{MapRef, ValueRef};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{Adapter, AdapterConfig, AdapterError, BuildContext, Generated};
use crate::config::params;
use crate::pods::{Pod, Pods};
use crate::template::{Payload, Peer, Values};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KubernetesEnv {
    #[serde(default, alias = "kubeconfig_path", rename = "kubeconfigPath")]
    _kubeconfig_path: String,
    #[serde(
        default = "default_refresh",
        alias = "cache_refresh_duration",
        rename = "cacheRefreshDuration",
        deserialize_with = "params::duration"
    )]
    _cache_refresh_duration: Duration,
    #[serde(
        default,
        alias = "cluster_registries_namespace",
        rename = "clusterRegistriesNamespace"
    )]
    _cluster_registries_namespace: String,
}

/// Names of the outputs for one end of a request.
struct Names {
    pod_ip: &'static str,
    pod_name: &'static str,
    pod_uid: &'static str,
    labels: &'static str,
    namespace: &'static str,
    service_account: &'static str,
    host_ip: &'static str,
    workload_uid: &'static str,
    workload_name: &'static str,
    workload_namespace: &'static str,
    owner: &'static str,
}

const SOURCE: Names = Names {
    pod_ip: "output.source_pod_ip",
    pod_name: "output.source_pod_name",
    pod_uid: "output.source_pod_uid",
    labels: "output.source_labels",
    namespace: "output.source_namespace",
    service_account: "output.source_service_account_name",
    host_ip: "output.source_host_ip",
    workload_uid: "output.source_workload_uid",
    workload_name: "output.source_workload_name",
    workload_namespace: "output.source_workload_namespace",
    owner: "output.source_owner",
};

const DESTINATION: Names = Names {
    pod_ip: "output.destination_pod_ip",
    pod_name: "output.destination_pod_name",
    pod_uid: "output.destination_pod_uid",
    labels: "output.destination_labels",
    namespace: "output.destination_namespace",
    service_account: "output.destination_service_account_name",
    host_ip: "output.destination_host_ip",
    workload_uid: "output.destination_workload_uid",
    workload_name: "output.destination_workload_name",
    workload_namespace: "output.destination_workload_namespace",
    owner: "output.destination_owner",
};

fn default_refresh() -> Duration {
    Duration::from_secs(300)
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    Ok(Box::new(params::read::<KubernetesEnv>(json)?))
}

impl AdapterConfig for KubernetesEnv {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Adapter for KubernetesEnv {
    fn generate<'p>(
        &self,
        instance: &Values<'_>,
        pods: &'p Pods,
    ) -> Result<Generated<'p>, AdapterError> {
        let Payload::Workloads {
            source,
            destination,
            destination_port,
        } = &instance.payload
        else {
            return Err(AdapterError::new("not an instance of kubernetes"));
        };
        let mut generated = Generated::new();
        if let Some(pod) = find(source, pods) {
            add(&mut generated, &SOURCE, pod);
        }
        if let Some(pod) = find(destination, pods) {
            add(&mut generated, &DESTINATION, pod);
            if let Some(name) = pod.container_with(*destination_port) {
                let value = ValueRef::String(name);
                generated.push(("output.destination_container_name", value));
            }
        }
        Ok(generated)
    }
}

fn find<'p>(peer: &Peer<'_>, pods: &'p Pods) -> Option<&'p Pod> {
    let known = peer.ip.filter(|ip: &IpAddr| !ip.is_unspecified());
    pods.find(&peer.uid, known)
}

/// What is empty is not there.
fn add<'p>(generated: &mut Generated<'p>, names: &Names, pod: &'p Pod) {
    let texts = [
        (names.pod_name, &pod.name),
        (names.pod_uid, &pod.uid),
        (names.namespace, &pod.namespace),
        (names.service_account, &pod.service_account),
        (names.workload_uid, &pod.workload.uid),
        (names.workload_name, &pod.workload.name),
        (names.workload_namespace, &pod.namespace),
        (names.owner, &pod.workload.owner),
    ];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    generated.extend(texts.map(|(name, text)| (name, ValueRef::String(text))));
    let addresses = [(names.pod_ip, &pod.ip), (names.host_ip, &pod.host_ip)];
    let addresses = addresses.into_iter().filter(|(_, bytes)| !bytes.is_empty());
    generated.extend(addresses.map(|(name, bytes)| (name, ValueRef::Bytes(bytes))));
    let labels = ValueRef::StringMap(MapRef::Plain(&pod.labels));
    generated.push((names.labels, labels));
}
