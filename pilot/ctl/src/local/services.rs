//! Services: their endpoints from the pods that their selectors select, and from these what the network shows: names,
//! cluster addresses, ports on the host.

use std::{
    collections::BTreeMap,
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    network::{
        dns::Zone,
        service_proxy::{Firewall, ServicePort},
    },
    platform::Platform,
    pod::lifecycle::PodContext,
    store::{Key, selects},
};

/// What was published last, so that only changes are.
#[derive(Debug)]
pub(crate) struct Sync {
    firewall: Firewall,
    rules: String,
}

/// A pod as a service sees it.
struct Endpoint {
    pod: Arc<PodContext>,
    ip: Ipv4Addr,
    is_ready: bool,
    is_terminating: bool,
}

impl Sync {
    /// Nothing was published yet.
    pub(crate) fn new() -> Self {
        Self {
            firewall: Firewall::find(),
            rules: String::new(),
        }
    }

    /// One pass over all services.
    pub(crate) async fn reconcile(&mut self, platform: &Platform) -> anyhow::Result<()> {
        let pods = running_pods(platform);
        let mut zone = Zone::default();
        let mut ports = Vec::new();
        for endpoint in &pods {
            zone.namespaces
                .insert(endpoint.ip, endpoint.pod.namespace().to_owned());
        }
        let mut slices = Vec::new();
        for (key, service) in platform.store.list("", "Service") {
            let name = (key.namespace.clone(), key.name.clone());
            if let Some(target) = service["spec"]["externalName"].as_str() {
                zone.aliases.insert(name, target.to_owned());
                continue;
            }
            let endpoints: Vec<&Endpoint> = selected(&service, &key, &pods);
            slices.extend(endpoint_slices(&key, &service, &endpoints));
            let cluster_ip = service["spec"]["clusterIP"]
                .as_str()
                .and_then(|ip| ip.parse::<Ipv4Addr>().ok());
            let ready = || {
                endpoints
                    .iter()
                    .filter(|endpoint| endpoint.is_ready)
                    .copied()
            };
            zone.services.insert(
                name,
                cluster_ip.map_or_else(
                    || ready().map(|endpoint| endpoint.ip).collect(),
                    |ip| vec![ip],
                ),
            );
            if let Some(ip) = cluster_ip {
                ports.extend(service_ports(
                    &key,
                    &service,
                    ip,
                    &ready().collect::<Vec<_>>(),
                ));
            }
        }
        publish_slices(platform, slices);
        platform.names.set(zone);
        let rules = self.firewall.build_rules(&ports);
        if rules != self.rules && platform.mode.is_isolated() {
            let (program, arguments) = self.firewall.restore();
            platform
                .node
                .run_program(program, arguments, rules.clone())
                .await?;
            self.rules = rules;
        }
        if !platform.mode.is_isolated() {
            forward_cluster_ports(platform, &ports).await;
        }
        let wanted = host_ports(&pods);
        for address in platform.forwarder.sync(&wanted) {
            if let Err(error) = platform.forwarder.bind(address).await {
                tracing::error!(error = format!("{error:#}"), "a host port cannot be had");
            }
        }
        // What was just bound has its pods now.
        platform.forwarder.sync(&wanted);
        Ok(())
    }
}

/// Serves the cluster addresses of TCP services where no firewall does: each is forwarded by this process.
async fn forward_cluster_ports(platform: &Platform, ports: &[ServicePort]) {
    // Below it only root may listen; what has such a port is found through its proxy.
    const UNPRIVILEGED: u16 = 1024;
    let wanted: BTreeMap<SocketAddr, Vec<SocketAddrV4>> = ports
        .iter()
        .filter(|port| port.protocol == "tcp" && port.address.port() >= UNPRIVILEGED)
        .map(|port| (SocketAddr::V4(port.address), port.endpoints.clone()))
        .collect();
    for address in platform.cluster_ports.sync(&wanted) {
        if let Err(error) = platform.cluster_ports.bind(address).await {
            tracing::error!(
                error = format!("{error:#}"),
                "a service's port cannot be had"
            );
        }
    }
    // What was just bound has its endpoints now.
    platform.cluster_ports.sync(&wanted);
}

fn running_pods(platform: &Platform) -> Vec<Endpoint> {
    let pods = platform.pods.lock();
    let contexts = pods.values().map(|handle| handle.context.clone());
    contexts
        .filter_map(|pod| {
            let (ip, is_ready, is_terminating) = {
                let status = pod.status.lock();
                (status.ip?, status.is_ready(), status.is_terminating)
            };
            Some(Endpoint {
                pod,
                ip,
                is_ready,
                is_terminating,
            })
        })
        .collect()
}

fn selected<'a>(service: &Value, key: &Key, pods: &'a [Endpoint]) -> Vec<&'a Endpoint> {
    let selector = &service["spec"]["selector"];
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return Vec::new();
    }
    let selector = json!({"matchLabels": selector});
    let publishes_all = service["spec"]["publishNotReadyAddresses"] == true;
    let of_namespace = pods
        .iter()
        .filter(|endpoint| endpoint.pod.namespace() == key.namespace);
    of_namespace
        .filter(|endpoint| publishes_all || !endpoint.is_terminating || endpoint.is_ready)
        .filter(|endpoint| selects(&selector, &json!(endpoint.pod.pod.metadata.labels)))
        .collect()
}

/// The number of a service's target port in a pod.
fn target_port(port: &Value, pod: &PodContext) -> Option<u16> {
    let target = if port["targetPort"].is_null() {
        &port["port"]
    } else {
        &port["targetPort"]
    };
    if let Some(number) = target.as_u64() {
        return u16::try_from(number).ok();
    }
    let name = target.as_str()?;
    let containers = pod.pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|candidate| candidate.name.as_deref() == Some(name));
    named
        .and_then(|port| u16::try_from(port.container_port).ok())
        .or_else(|| name.parse().ok())
}

fn protocol_of(port: &Value) -> &'static str {
    if port["protocol"] == "UDP" {
        "udp"
    } else {
        "tcp"
    }
}

fn service_ports(
    key: &Key,
    service: &Value,
    ip: Ipv4Addr,
    ready: &[&Endpoint],
) -> Vec<ServicePort> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let number = port["port"]
                .as_u64()
                .and_then(|port| u16::try_from(port).ok())?;
            let target = |endpoint: &&Endpoint| {
                Some(SocketAddrV4::new(
                    endpoint.ip,
                    target_port(port, &endpoint.pod)?,
                ))
            };
            Some(ServicePort {
                name: format!("{}/{}:{number}", key.namespace, key.name),
                address: SocketAddrV4::new(ip, number),
                protocol: protocol_of(port),
                endpoints: ready.iter().filter_map(target).collect(),
            })
        })
        .collect()
}

/// The slices of a service: pods whose named ports have the same numbers share one of each family.
fn endpoint_slices(key: &Key, service: &Value, endpoints: &[&Endpoint]) -> Vec<(Key, Value)> {
    let mut groups: BTreeMap<(&str, String), (Value, Vec<Value>)> = BTreeMap::new();
    let families = service["spec"]["ipFamilies"].as_array();
    let has_ipv6 = families.is_some_and(|families| families.contains(&json!("IPv6")));
    for endpoint in endpoints {
        let ports = service["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| {
                let mut entry = json!({
                    "name": port["name"].as_str().unwrap_or_default(),
                    "port": target_port(port, &endpoint.pod)?,
                    "protocol": port["protocol"].as_str().unwrap_or("TCP"),
                });
                if let Some(protocol) = port["appProtocol"].as_str() {
                    entry["appProtocol"] = json!(protocol);
                }
                Some(entry)
            });
        let ports = Value::Array(ports.collect());
        let second = endpoint.pod.second_ip().filter(|_| has_ipv6);
        let second = second.map(|ip| ("IPv6", ip.to_string()));
        for (family, ip) in iter::once(("IPv4", endpoint.ip.to_string())).chain(second) {
            let entry = json!({
                "addresses": [ip],
                "conditions": {"ready": endpoint.is_ready, "serving": endpoint.is_ready, "terminating": endpoint.is_terminating},
                "nodeName": "local",
                "targetRef": {"kind": "Pod", "namespace": endpoint.pod.namespace(), "name": endpoint.pod.name()},
            });
            groups
                .entry((family, ports.to_string()))
                .or_insert_with(|| (ports.clone(), Vec::new()))
                .1
                .push(entry);
        }
    }
    let slice = |(index, ((family, _), (ports, endpoints)))| {
        let name = format!("{}-{index}", key.name);
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": key.namespace, "labels": {
                "kubernetes.io/service-name": key.name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            }},
            "addressType": family,
            "endpoints": endpoints,
            "ports": ports,
        });
        (
            Key::platform("EndpointSlice", &key.namespace, &name),
            object,
        )
    };
    groups.into_iter().enumerate().map(slice).collect()
}

fn publish_slices(platform: &Platform, slices: Vec<(Key, Value)>) {
    let old = platform.store.list("discovery.k8s.io", "EndpointSlice");
    for (key, _) in old {
        if slices.iter().all(|(wanted, _)| *wanted != key) {
            platform.store.remove(&key);
        }
    }
    for (key, slice) in slices {
        platform.store.put(&key, slice);
    }
}

/// Which ready pods stand behind each port of the host.
fn host_ports(pods: &[Endpoint]) -> BTreeMap<SocketAddr, Vec<SocketAddrV4>> {
    let mut ports: BTreeMap<SocketAddr, Vec<SocketAddrV4>> = BTreeMap::new();
    for endpoint in pods {
        for (address, number) in pod_host_ports(&endpoint.pod.pod) {
            let targets = ports.entry(address).or_default();
            if endpoint.is_ready {
                targets.push(SocketAddrV4::new(endpoint.ip, number));
            }
        }
    }
    ports
}

/// The host's ports that a pod asks for, with its own port for each. Without `hostIP` only the loopback interface.
pub(crate) fn pod_host_ports(pod: &k8s_openapi::api::core::v1::Pod) -> Vec<(SocketAddr, u16)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host = u16::try_from(port.host_port?)
                .ok()
                .filter(|port| *port != 0)?;
            let ip = port
                .host_ip
                .as_deref()
                .and_then(|ip| ip.parse().ok())
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            Some((
                SocketAddr::new(ip, host),
                u16::try_from(port.container_port).ok()?,
            ))
        })
        .collect()
}
