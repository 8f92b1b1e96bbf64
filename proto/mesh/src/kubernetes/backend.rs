//! What is behind a service: its EndpointSlices (or Endpoints), joined with pods and nodes.

use super::{UNNAMED_PORT, hash, number};
use crate::{
    event::{Content, Objects},
    validation::Kube,
};
use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Pod, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use proto::istio::networking::v1alpha3::WorkloadEntry;
use proto_mesh::locality::Locality;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MIRRORING: &str = "endpointslicemirroring-controller.k8s.io";
const LOCALITY_LABEL: &str = "istio-locality";
const NETWORK_LABEL: &str = "topology.istio.io/network";
const REGION_LABELS: [&str; 3] = [
    "topology.kubernetes.io/region",
    "failure-domain.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/region",
];
const ZONE_LABELS: [&str; 3] = [
    "topology.kubernetes.io/zone",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
const SUBZONE_LABEL: &str = "topology.istio.io/subzone";

type Named<'a> = (&'a str, &'a str);

/// Everything that services are made of, by name.
pub(super) struct Backends<'a> {
    services: HashMap<Named<'a>, &'a Service>,
    slices: HashMap<Named<'a>, Vec<&'a EndpointSlice>>,
    endpoints: HashMap<Named<'a>, &'a Endpoints>,
    pods: HashMap<Named<'a>, &'a Pod>,
    pods_by_ip: HashMap<&'a str, &'a Pod>,
    nodes: HashMap<&'a str, &'a Node>,
}

/// What was found behind one service.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By address; ready or not.
    pub(super) endpoints: Vec<WorkloadEntry>,
    /// `ip:port` of those that are not ready.
    pub(super) not_ready: BTreeSet<String>,
    /// Namespace and service account of each pod.
    pub(super) accounts: BTreeSet<(String, String)>,
    /// Changes with the endpoints; empty if there is no such object.
    pub(super) version: String,
}

/// One address, as slices or endpoints tell.
struct Address<'a> {
    ip: &'a str,
    ports: BTreeMap<String, u32>,
    is_ready: bool,
    pod: Option<&'a Pod>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut all = Self {
            services: HashMap::new(),
            slices: HashMap::new(),
            endpoints: HashMap::new(),
            pods: HashMap::new(),
            pods_by_ip: HashMap::new(),
            nodes: HashMap::new(),
        };
        for (key, object) in objects {
            let named: Named<'a> = key.name.split_once('/').unwrap_or(("", &key.name));
            let Content::Kube(kube) = &object.content else {
                continue;
            };
            match kube {
                Kube::Service(service) => {
                    all.services.insert(named, service);
                }
                Kube::EndpointSlice(slice) => {
                    if let Some(service) = service_label(slice) {
                        let slices = all.slices.entry((named.0, service)).or_default();
                        slices.push(slice);
                    }
                }
                Kube::Endpoints(endpoints) => {
                    all.endpoints.insert(named, endpoints);
                }
                Kube::Pod(pod) => all.insert_pod(named, pod),
                Kube::Node(node) => {
                    all.nodes.insert(named.1, node);
                }
                Kube::Namespace(_) | Kube::ServiceAccount(_) | Kube::Ingress(_) => {}
            }
        }
        all
    }

    fn insert_pod(&mut self, named: Named<'a>, pod: &'a Pod) {
        self.pods.insert(named, pod);
        let status = pod.status.as_ref();
        let shares_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        if let Some(ip) = status.and_then(|status| status.pod_ip.as_deref())
            && !shares_host
        {
            self.pods_by_ip.insert(ip, pod);
        }
    }

    /// What is behind the service of that name.
    pub(super) fn of(&self, namespace: &str, name: &str) -> Found {
        let key = (namespace, name);
        let publishes_all = self.services.get(&key).is_some_and(|service| {
            let spec = service.spec.as_ref();
            spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
        });
        let own: Vec<&EndpointSlice> = self.slices.get(&key).cloned().unwrap_or_default();
        let endpoints = self.endpoints.get(&key);
        // Slices that mirror Endpoints say nothing new.
        let mirrors = |slice: &&EndpointSlice| {
            let labels = slice.metadata.labels.as_ref();
            labels
                .and_then(|labels| labels.get(MANAGED_BY))
                .is_some_and(|by| by == MIRRORING)
        };
        let slices: Vec<&EndpointSlice> = match endpoints {
            Some(_) => own.into_iter().filter(|slice| !mirrors(slice)).collect(),
            None => own,
        };
        let (addresses, version) = if !slices.is_empty() {
            (self.addresses_of_slices(&slices, namespace), hash(&slices))
        } else if let Some(endpoints) = endpoints {
            (
                self.addresses_of_endpoints(endpoints, namespace),
                hash(endpoints),
            )
        } else {
            return Found::default();
        };
        self.join(addresses, publishes_all, version)
    }

    fn addresses_of_slices(
        &self,
        slices: &[&'a EndpointSlice],
        namespace: &str,
    ) -> Vec<Address<'a>> {
        let mut addresses = Vec::new();
        for slice in slices {
            let ports: BTreeMap<String, u32> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|port| Some(named_port(port.name.as_deref(), port.port?)))
                .collect();
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.as_ref();
                let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let is_going = conditions.and_then(|c| c.terminating) == Some(true);
                // On its way out and no longer serving: it is no endpoint any more.
                if is_going && !is_ready && conditions.and_then(|c| c.serving) != Some(true) {
                    continue;
                }
                for ip in &endpoint.addresses {
                    addresses.push(Address {
                        ip,
                        ports: ports.clone(),
                        is_ready,
                        pod: self.pod_of(endpoint, ip, namespace),
                        node: endpoint.node_name.as_deref(),
                        zone: endpoint.zone.as_deref(),
                    });
                }
            }
        }
        addresses
    }

    fn pod_of(&self, endpoint: &Endpoint, ip: &str, namespace: &str) -> Option<&'a Pod> {
        let target = endpoint.target_ref.as_ref();
        target
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| {
                let namespace = target.namespace.as_deref().unwrap_or(namespace);
                self.pods.get(&(namespace, target.name.as_deref()?))
            })
            .or_else(|| self.pods_by_ip.get(ip))
            .copied()
    }

    fn addresses_of_endpoints(
        &self,
        endpoints: &'a Endpoints,
        namespace: &str,
    ) -> Vec<Address<'a>> {
        let mut addresses = Vec::new();
        for subset in endpoints.subsets.iter().flatten() {
            let ports: BTreeMap<String, u32> = subset
                .ports
                .iter()
                .flatten()
                .map(|port| named_port(port.name.as_deref(), port.port))
                .collect();
            let ready = subset
                .addresses
                .iter()
                .flatten()
                .map(|address| (address, true));
            let not_ready = subset.not_ready_addresses.iter().flatten();
            for (address, is_ready) in ready.chain(not_ready.map(|address| (address, false))) {
                let target = address.target_ref.as_ref();
                let pod = target.and_then(|target| {
                    let namespace = target.namespace.as_deref().unwrap_or(namespace);
                    self.pods.get(&(namespace, target.name.as_deref()?))
                });
                addresses.push(Address {
                    ip: &address.ip,
                    ports: ports.clone(),
                    is_ready,
                    pod: pod
                        .or_else(|| self.pods_by_ip.get(address.ip.as_str()))
                        .copied(),
                    node: address.node_name.as_deref(),
                    zone: None,
                });
            }
        }
        addresses
    }

    fn join(&self, addresses: Vec<Address<'a>>, publishes_all: bool, version: String) -> Found {
        let mut found = Found {
            version,
            ..Found::default()
        };
        let mut by_ip: BTreeMap<&str, WorkloadEntry> = BTreeMap::new();
        for address in addresses {
            if !address.is_ready && !publishes_all {
                let listed = address
                    .ports
                    .values()
                    .map(|port| format!("{}:{port}", address.ip));
                found.not_ready.extend(listed);
            }
            let account = address.pod.map(account_of);
            found.accounts.extend(account.clone());
            let entry = by_ip.entry(address.ip).or_insert_with(|| WorkloadEntry {
                address: address.ip.to_owned(),
                labels: address
                    .pod
                    .and_then(|pod| pod.metadata.labels.clone())
                    .unwrap_or_default(),
                network: address
                    .pod
                    .and_then(|pod| pod.metadata.labels.as_ref()?.get(NETWORK_LABEL).cloned())
                    .unwrap_or_default(),
                locality: self.locality(&address),
                service_account: account.map(|(_, account)| account).unwrap_or_default(),
                ..WorkloadEntry::default()
            });
            // One address may be in several slices, each with some of the ports.
            entry.ports.extend(address.ports);
        }
        found.endpoints = by_ip.into_values().collect();
        found
    }

    fn locality(&self, address: &Address<'_>) -> String {
        let pod_labels = address.pod.and_then(|pod| pod.metadata.labels.as_ref());
        if let Some(label) = pod_labels.and_then(|labels| labels.get(LOCALITY_LABEL)) {
            return Locality::parse_label(label).to_string();
        }
        let node = address
            .node
            .or_else(|| address.pod?.spec.as_ref()?.node_name.as_deref())
            .and_then(|name| self.nodes.get(name));
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        let first = |keys: &[&str]| {
            labels
                .and_then(|labels| keys.iter().find_map(|key| labels.get(*key)))
                .cloned()
                .unwrap_or_default()
        };
        let zone = first(&ZONE_LABELS);
        let locality = Locality {
            region: first(&REGION_LABELS),
            zone: if zone.is_empty() {
                address.zone.unwrap_or_default().to_owned()
            } else {
                zone
            },
            subzone: first(&[SUBZONE_LABEL]),
        };
        if locality.is_empty() {
            String::new()
        } else {
            locality.to_string()
        }
    }
}

/// The service (`namespace/name`) that a slice of that name belongs to.
pub(super) fn service_of(slice: &EndpointSlice, name: &str) -> Option<String> {
    let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
    Some(format!("{namespace}/{}", service_label(slice)?))
}

fn service_label(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(SERVICE_NAME).map(String::as_str)
}

fn account_of(pod: &Pod) -> (String, String) {
    let namespace = pod
        .metadata
        .namespace
        .clone()
        .unwrap_or_else(|| "default".into());
    let spec = pod.spec.as_ref();
    let account = spec
        .and_then(|spec| spec.service_account_name.clone())
        .filter(|account| !account.is_empty())
        .unwrap_or_else(|| "default".into());
    (namespace, account)
}

/// Name and number; the name of a service's only port may be left out there and here alike.
fn named_port(name: Option<&str>, port: i32) -> (String, u32) {
    let name = name.filter(|name| !name.is_empty());
    (name.unwrap_or(UNNAMED_PORT).to_owned(), number(port))
}
