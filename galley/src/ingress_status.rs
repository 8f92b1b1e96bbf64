//! Where the mesh's Ingresses are reached from outside, written into their status.
//!
//! As in Istio: the addresses of the gateway's Service (`ingressService` of the mesh's settings, in Galley's own namespace), which
//! are those of its load balancer and its external ones; or, where the settings name no Service, the external addresses of the
//! nodes of the gateway's ready pods (`ingressSelector`). An Ingress that is no longer the mesh's loses what was written here, and
//! nothing else.
//!
//! The processor says what is wanted after each change ([`IngressStatus::look`]), and the leader writes it ([`keep`]). Nodes and
//! pods are known where service entries are made of them (`--enableServiceDiscovery`).

use crate::{
    event::{Content, Key, Object, Objects},
    transform::ingress,
    validation::{Kube, registration::MANAGER},
};
use anyhow::Context as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_component::{backoff::Backoff, drain::Drain, kubernetes::lease::Leadership, task};
use proto_mesh::kubernetes::object::{Ingress, LoadBalancerIngress, Pod, Service};
use serde_json::json;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long one write may take.
const CALL: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);

/// The addresses of those Ingresses that have others, by `namespace/name`.
pub type Wanted = BTreeMap<Arc<str>, Vec<LoadBalancerIngress>>;

/// What the processor knows of it.
#[derive(Clone, Debug)]
pub struct IngressStatus {
    /// Where the gateway's Service and pods are.
    namespace: String,
    /// Whether nodes and pods are read.
    knows_nodes: bool,
    /// Whether something has changed since the last look.
    pub is_due: bool,
    /// Whether the log says that it cannot be said.
    has_warned: bool,
    queue: watch::Sender<Arc<Wanted>>,
}

impl IngressStatus {
    /// With the gateway in `namespace`.
    pub fn new(namespace: String, knows_nodes: bool) -> Self {
        Self {
            namespace,
            knows_nodes,
            is_due: false,
            has_warned: false,
            queue: watch::Sender::default(),
        }
    }

    /// What is to be written, always the newest.
    pub fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.queue.subscribe()
    }

    /// Whether the addresses, or who has them, may depend on such an object.
    pub fn reads(&self, object: &Object, mesh: &MeshConfig) -> bool {
        match &object.content {
            Content::Kube(Kube::Ingress(_) | Kube::Service(_)) => true,
            Content::Kube(Kube::Pod(_) | Kube::Node(_)) => mesh.ingress_service.is_empty(),
            Content::Kube(_) | Content::Mesh(_) => false,
        }
    }

    /// Says what is wanted, if that may have changed.
    pub fn look(&mut self, objects: &Objects, mesh: &MeshConfig) {
        if !std::mem::take(&mut self.is_due) {
            return;
        }
        let addresses = if !mesh.ingress_service.is_empty() {
            of_service(objects, &self.namespace, &mesh.ingress_service)
        } else if self.knows_nodes {
            of_nodes(objects, &self.namespace, ingress::selector(mesh))
        } else {
            if !std::mem::replace(&mut self.has_warned, true) {
                let hint = "name the mesh's ingressService, or set --enableServiceDiscovery";
                tracing::warn!(target: "ingress", hint, "the gateway's nodes are not known, so Ingresses keep the addresses that they have");
            }
            return;
        };
        self.has_warned = false;
        let wanted = Arc::new(wanted(objects, mesh, &addresses));
        self.queue.send_if_modified(|current| {
            let is_other = *current != wanted;
            *current = wanted;
            is_other
        });
    }
}

/// Those Ingresses that should have these addresses, or none, and have others.
fn wanted(objects: &Objects, mesh: &MeshConfig, addresses: &[LoadBalancerIngress]) -> Wanted {
    let of = |(key, ingress): (&Key, &Ingress)| {
        let wanted = if ingress::is_of_the_mesh(ingress, mesh) {
            addresses
        } else if has_our_status(ingress) {
            &[]
        } else {
            return None;
        };
        let status = ingress.status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        let current = balancer.and_then(|balancer| balancer.ingress.as_deref());
        let is_other = current.unwrap_or_default() != wanted;
        is_other.then(|| (key.name.clone(), wanted.to_vec()))
    };
    ingress::all(objects).filter_map(of).collect()
}

/// Whether what is in the status was written by a Galley.
fn has_our_status(ingress: &Ingress) -> bool {
    let fields = ingress.metadata.managed_fields.iter().flatten();
    let mut ours = fields.filter(|fields| fields.manager.as_deref() == Some(MANAGER));
    ours.any(|fields| fields.subresource.as_deref() == Some("status"))
}

fn of_service(objects: &Objects, namespace: &str, name: &str) -> Vec<LoadBalancerIngress> {
    let object = objects.get(&Key::new("Service", &format!("{namespace}/{name}")));
    let Some(Content::Kube(Kube::Service(service))) = object.map(|object| &object.content) else {
        return Vec::new();
    };
    let Service { spec, status, .. } = service.as_ref();
    let spec = spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.external_name.as_deref()) {
        return addresses([name]);
    }
    let balancer = status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let balanced = balancer.and_then(|balancer| balancer.ingress.as_ref());
    let balanced = balanced.into_iter().flatten();
    let balanced =
        balanced.filter_map(|address| address.ip.as_deref().or(address.hostname.as_deref()));
    let external = spec.and_then(|spec| spec.external_ips.as_ref());
    let external = external.into_iter().flatten().map(String::as_str);
    addresses(balanced.chain(external))
}

fn of_nodes(objects: &Objects, namespace: &str, selector: &str) -> Vec<LoadBalancerIngress> {
    let prefix = format!("{namespace}/");
    let pods = objects
        .range(Key::new("Pod", &prefix)..)
        .take_while(|(key, _)| key.collection.as_ref() == "Pod" && key.name.starts_with(&prefix));
    let pods = pods.filter_map(|(_, object)| match &object.content {
        Content::Kube(Kube::Pod(pod)) => Some(pod.as_ref()),
        Content::Kube(_) | Content::Mesh(_) => None,
    });
    let nodes = pods
        .filter(|pod| is_ready_gateway(pod, selector))
        .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
        .filter_map(|name| objects.get(&Key::new("Node", name)));
    let found = nodes.flat_map(|object| match &object.content {
        Content::Kube(Kube::Node(node)) => {
            let status = node.status.as_ref();
            let all = status.and_then(|status| status.addresses.as_deref());
            all.unwrap_or_default()
        }
        Content::Kube(_) | Content::Mesh(_) => &[],
    });
    let external = found.filter(|address| address.type_ == "ExternalIP");
    addresses(external.map(|address| address.address.as_str()))
}

fn is_ready_gateway(pod: &Pod, selector: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    labels
        .and_then(|labels| labels.get("istio"))
        .map(String::as_str)
        == Some(selector)
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Each once, in their order.
fn addresses<'a>(all: impl IntoIterator<Item = &'a str>) -> Vec<LoadBalancerIngress> {
    let mut found: Vec<LoadBalancerIngress> = Vec::new();
    for text in all.into_iter().filter(|text| !text.is_empty()) {
        let is_ip = text.parse::<IpAddr>().is_ok();
        let address = LoadBalancerIngress {
            ip: is_ip.then(|| text.to_owned()),
            hostname: (!is_ip).then(|| text.to_owned()),
        };
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Writes what is wanted while this replica leads, until the drain.
pub fn keep(
    client: Client,
    mut wanted: watch::Receiver<Arc<Wanted>>,
    mut leadership: Leadership,
    drain: Drain,
) {
    task::spawn("ingress-status", async move {
        while leadership.gained().await {
            tokio::select! {
                () = follow(&client, &mut wanted) => return,
                // Whoever leads next writes what is left.
                () = leadership.lost() => wanted.mark_changed(),
                () = drain.signaled() => return,
            }
        }
    });
}

/// Until nobody says any more what is wanted.
async fn follow(client: &Client, wanted: &mut watch::Receiver<Arc<Wanted>>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut failure = None;
        for (name, addresses) in now.iter() {
            // One that cannot be written does not keep the others from it.
            if let Err(error) = write(client, name, addresses).await {
                failure = Some(format!("{name}: {error:#}"));
            }
        }
        match failure {
            None => {
                backoff.reset();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Some(error) => {
                tracing::warn!(target: "ingress", error, "cannot write the status of an Ingress; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn write(
    client: &Client,
    name: &str,
    addresses: &[LoadBalancerIngress],
) -> anyhow::Result<()> {
    let (namespace, name) = name.split_once('/').context("an Ingress has a namespace")?;
    let resource = ApiResource::erase::<Ingress>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": addresses}}}));
    let written = tokio::time::timeout(CALL, api.patch_status(name, &params, &patch)).await;
    match written.context("the API server does not answer")? {
        Ok(_) => {
            tracing::info!(target: "ingress", namespace, name, addresses = addresses.len(), "status of an Ingress written");
            Ok(())
        }
        // It has gone.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::parse;
    use proto::istio::mesh::v1alpha1::mesh_config::IngressControllerMode;
    use std::path::Path;

    const OBJECTS: &str = "
kind: Ingress
apiVersion: networking.k8s.io/v1
metadata: {name: ours, namespace: web, annotations: {kubernetes.io/ingress.class: istio}}
---
kind: Ingress
apiVersion: networking.k8s.io/v1
metadata: {name: has-it, namespace: web}
spec: {ingressClassName: istio}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: edge.example}, {ip: 192.0.2.9}]}}
---
kind: Ingress
apiVersion: networking.k8s.io/v1
metadata: {name: nobodys, namespace: web}
---
kind: Ingress
apiVersion: networking.k8s.io/v1
metadata: {name: was-ours, namespace: web, managedFields: [{manager: galley, operation: Update, subresource: status}]}
spec: {ingressClassName: other}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
kind: Ingress
apiVersion: networking.k8s.io/v1
metadata: {name: others, namespace: web, managedFields: [{manager: galley, operation: Update}]}
spec: {ingressClassName: other}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
kind: Service
apiVersion: v1
metadata: {name: istio-ingressgateway, namespace: mesh}
spec: {externalIPs: [192.0.2.9, 192.0.2.1]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: edge.example}]}}
---
kind: Service
apiVersion: v1
metadata: {name: named, namespace: mesh}
spec: {type: ExternalName, externalName: far.example}
---
kind: Pod
apiVersion: v1
metadata: {name: a, namespace: mesh, labels: {istio: ingressgateway}}
spec: {nodeName: one}
status: {conditions: [{type: Ready, status: 'True'}]}
---
kind: Pod
apiVersion: v1
metadata: {name: b, namespace: mesh, labels: {istio: ingressgateway}}
spec: {nodeName: two}
status: {conditions: [{type: Ready, status: 'False'}]}
---
kind: Pod
apiVersion: v1
metadata: {name: c, namespace: mesh, labels: {istio: other}}
spec: {nodeName: two}
status: {conditions: [{type: Ready, status: 'True'}]}
---
kind: Node
apiVersion: v1
metadata: {name: one}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: ExternalIP, address: 198.51.100.1}]}
---
kind: Node
apiVersion: v1
metadata: {name: two}
status: {addresses: [{type: ExternalIP, address: 198.51.100.2}]}
";

    fn shown(mesh: &MeshConfig, knows_nodes: bool) -> Vec<String> {
        let file = parse(Path::new("x.yaml"), OBJECTS);
        let objects = file.documents.into_iter();
        let objects: Objects = objects
            .filter_map(|document| Some((document.key?, document.object?)))
            .collect();
        let mut status = IngressStatus::new("mesh".to_owned(), knows_nodes);
        status.is_due = true;
        status.look(&objects, mesh);
        let wanted = status.wanted().borrow().clone();
        let text = |address: &LoadBalancerIngress| {
            let ip = address.ip.iter().map(|ip| format!("ip {ip}"));
            let name = address.hostname.iter().map(|name| format!("name {name}"));
            ip.chain(name).collect::<Vec<_>>().join(" and ")
        };
        let line = |(name, addresses): (&Arc<str>, &Vec<LoadBalancerIngress>)| {
            let all: Vec<String> = addresses.iter().map(text).collect();
            format!("{name}: {}", all.join(", "))
        };
        wanted.iter().map(line).collect()
    }

    #[test]
    fn ingresses_of_the_mesh_get_the_addresses_of_its_gateway() {
        let mut mesh = proto_mesh::mesh_config::defaults();
        let all = "ip 192.0.2.1, name edge.example, ip 192.0.2.9";
        let ours = format!("web/ours: {all}");
        assert_eq!(shown(&mesh, false), [ours.as_str(), "web/was-ours: "]);

        mesh.ingress_controller_mode = IngressControllerMode::Default.into();
        let nobodys = format!("web/nobodys: {all}");
        let lines = [nobodys.as_str(), &ours, "web/was-ours: "];
        assert_eq!(shown(&mesh, false), lines);

        mesh.ingress_controller_mode = IngressControllerMode::Off.into();
        assert_eq!(shown(&mesh, false), ["web/was-ours: "]);
    }

    #[test]
    fn addresses_come_from_the_service_or_from_nodes_or_there_are_none() {
        let mut mesh = proto_mesh::mesh_config::defaults();
        for (service, knows_nodes, addresses) in [
            ("named", false, "name far.example"),
            ("missing", false, ""),
            ("", true, "ip 198.51.100.1"),
        ] {
            service.clone_into(&mut mesh.ingress_service);
            let lines = ["web/has-it", "web/ours"].map(|name| format!("{name}: {addresses}"));
            let found = shown(&mesh, knows_nodes);
            let is_there = |line: &&String| !addresses.is_empty() || line.starts_with("web/has-it");
            let lines: Vec<&String> = lines.iter().filter(is_there).collect();
            let found: Vec<&String> = found
                .iter()
                .filter(|line| !line.starts_with("web/was"))
                .collect();
            assert_eq!(found, lines, "{service:?}");
        }
        // Nothing is known of the nodes, so nothing is written.
        assert!(shown(&mesh, false).is_empty());
    }
}
