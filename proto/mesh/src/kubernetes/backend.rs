//! What is behind a service: its EndpointSlices (or Endpoints), joined with pods and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proto::istio::networking::v1alpha3::WorkloadEntry;

use super::object::{EndpointSlice, Endpoints, Node, ObjectReference, Pod, Service};
use super::{UNNAMED_PORT, number};
use crate::locality::Locality;

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

/// Where the conversion finds what belongs to a service.
pub trait Lookup {
    /// The slices of a service.
    fn slices(&self, namespace: &str, service: &str) -> Vec<&EndpointSlice>;
    /// The Endpoints of a service, if they are followed.
    fn endpoints(&self, namespace: &str, service: &str) -> Option<&Endpoints>;
    /// A pod by name.
    fn pod(&self, namespace: &str, name: &str) -> Option<&Pod>;
    /// The pod with this address, unless it is its host's.
    fn pod_at(&self, ip: &str) -> Option<&Pod>;
    /// A node by name.
    fn node(&self, name: &str) -> Option<&Node>;
}

/// The objects that say what is behind one service.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    /// Slices.
    Slices(Vec<&'a EndpointSlice>),
    /// Endpoints, where there are no slices but those that mirror them.
    Endpoints(&'a Endpoints),
    /// Nothing.
    None,
}

/// What was found behind one service.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By address; ready or not.
    pub(super) endpoints: Vec<WorkloadEntry>,
    /// `ip:port` of those that are not ready.
    pub(super) not_ready: BTreeSet<String>,
    /// Names below the service's, by address.
    pub(super) names: BTreeMap<String, String>,
    /// IPv6 addresses by the IPv4 address of the same pod.
    pub(super) seconds: BTreeMap<String, String>,
    /// Namespace and service account of each pod.
    pub(super) accounts: BTreeSet<(String, String)>,
}

/// One address, as slices or endpoints tell.
struct Address<'a> {
    ip: &'a str,
    name: Option<&'a str>,
    ports: BTreeMap<String, u32>,
    is_ready: bool,
    pod: Option<&'a Pod>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
}

/// Which objects count: slices before Endpoints.
pub fn source<'a, L: Lookup>(lookup: &'a L, namespace: &str, service: &str) -> Source<'a> {
    let endpoints = lookup.endpoints(namespace, service);
    // Slices that mirror Endpoints say nothing new.
    let mirrors = |slice: &&EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(MANAGED_BY))
            .is_some_and(|by| by == MIRRORING)
    };
    let mut slices = lookup.slices(namespace, service);
    if endpoints.is_some() {
        slices.retain(|slice| !mirrors(slice));
    }
    match endpoints {
        Some(endpoints) if slices.is_empty() => Source::Endpoints(endpoints),
        _ if slices.is_empty() => Source::None,
        _ => Source::Slices(slices),
    }
}

/// What is behind `service`.
pub(super) fn find<L: Lookup>(lookup: &L, service: &Service, namespace: &str, name: &str) -> Found {
    let join = Join {
        lookup,
        namespace,
        service: name,
    };
    let addresses = match source(lookup, namespace, name) {
        Source::Slices(slices) => join.addresses_of_slices(&slices),
        Source::Endpoints(endpoints) => join.addresses_of_endpoints(endpoints),
        Source::None => return Found::default(),
    };
    let spec = service.spec.as_ref();
    let publishes_all = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    join.join(addresses, publishes_all)
}

/// Joins the addresses of one service with the rest of the cluster.
struct Join<'a, L> {
    lookup: &'a L,
    namespace: &'a str,
    service: &'a str,
}

impl<'a, L: Lookup> Join<'a, L> {
    fn addresses_of_slices(&self, slices: &[&'a EndpointSlice]) -> Vec<Address<'a>> {
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
                    let pod = self.pod_of(endpoint.target_ref.as_ref(), ip);
                    addresses.push(Address {
                        ip,
                        name: self.name_of(endpoint.hostname.as_deref(), pod),
                        ports: ports.clone(),
                        is_ready,
                        pod,
                        node: endpoint.node_name.as_deref(),
                        zone: endpoint.zone.as_deref(),
                    });
                }
            }
        }
        addresses
    }

    /// The pod that is named as the target, or has the address.
    fn pod_of(&self, target: Option<&ObjectReference>, ip: &str) -> Option<&'a Pod> {
        target
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| {
                let namespace = target.namespace.as_deref().unwrap_or(self.namespace);
                self.lookup.pod(namespace, target.name.as_deref()?)
            })
            .or_else(|| self.lookup.pod_at(ip))
    }

    /// Its name below the service's: what is said, else what a pod with the service as its subdomain is called.
    fn name_of(&self, said: Option<&'a str>, pod: Option<&'a Pod>) -> Option<&'a str> {
        let of_pod = || {
            let pod = pod?;
            let spec = pod.spec.as_ref()?;
            let is_below = spec.subdomain.as_deref() == Some(self.service);
            let hostname = filled(spec.hostname.as_deref());
            hostname
                .or(pod.metadata.name.as_deref())
                .filter(|_| is_below)
        };
        filled(said).or_else(of_pod)
    }

    fn addresses_of_endpoints(&self, endpoints: &'a Endpoints) -> Vec<Address<'a>> {
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
                let pod = self.pod_of(address.target_ref.as_ref(), &address.ip);
                addresses.push(Address {
                    ip: &address.ip,
                    name: self.name_of(address.hostname.as_deref(), pod),
                    ports: ports.clone(),
                    is_ready,
                    pod,
                    node: address.node_name.as_deref(),
                    zone: None,
                });
            }
        }
        addresses
    }

    fn join(&self, addresses: Vec<Address<'a>>, publishes_all: bool) -> Found {
        let mut found = Found::default();
        let mut by_ip: BTreeMap<&str, WorkloadEntry> = BTreeMap::new();
        let mut by_pod: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for address in addresses {
            if !address.is_ready && !publishes_all {
                let listed = address
                    .ports
                    .values()
                    .map(|port| format!("{}:{port}", address.ip));
                found.not_ready.extend(listed);
            }
            if let Some(name) = address.name {
                found.names.insert(address.ip.to_owned(), name.to_owned());
            }
            if let (Some(pod), Ok(ip)) = (address.pod, address.ip.parse::<IpAddr>()) {
                let meta = &pod.metadata;
                let ips = by_pod.entry((meta.namespace.as_ref(), meta.name.as_ref()));
                ips.or_default().insert((ip, address.ip));
            }
            let account = address.pod.map(account_of);
            found.accounts.extend(account.clone());
            let entry = by_ip.entry(address.ip).or_insert_with(|| WorkloadEntry {
                address: address.ip.to_owned(),
                locality: locality(self.lookup, address.pod, address.node, address.zone),
                service_account: account.map(|(_, account)| account).unwrap_or_default(),
                ..outline(address.pod)
            });
            // One address may be in several slices, each with some of the ports.
            entry.ports.extend(address.ports);
        }
        // Addresses of IPv4 come first.
        let ips = by_pod.into_values().map(Vec::from_iter);
        found.seconds = ips
            .filter_map(|ips| match ips[..] {
                [(IpAddr::V4(_), first), (IpAddr::V6(_), second)] => {
                    Some((first.to_owned(), second.to_owned()))
                }
                _ => None,
            })
            .collect();
        found.endpoints = by_ip.into_values().collect();
        found
    }
}

/// What a pod's labels say of it as an endpoint.
fn outline(pod: Option<&Pod>) -> WorkloadEntry {
    let labels = pod.and_then(|pod| pod.metadata.labels.clone());
    let labels = labels.unwrap_or_default();
    WorkloadEntry {
        network: labels.get(NETWORK_LABEL).cloned().unwrap_or_default(),
        labels,
        ..WorkloadEntry::default()
    }
}

/// A pod by itself, as a workload entry without ports, and whether it is ready. It has no address while it has none of its own.
pub fn workload<L: Lookup>(lookup: &L, pod: &Pod) -> (WorkloadEntry, bool) {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let is_ready = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True");
    let entry = WorkloadEntry {
        address: ip_of(pod).unwrap_or_default().to_owned(),
        locality: locality(lookup, Some(pod), None, None),
        service_account: account_of(pod).1,
        ..outline(Some(pod))
    };
    (entry, is_ready)
}

/// The address that belongs to the pod alone.
#[must_use]
pub fn ip_of(pod: &Pod) -> Option<&str> {
    let shares_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let ip = pod.status.as_ref()?.pod_ip.as_deref()?;
    (!shares_host && !ip.is_empty()).then_some(ip)
}

/// `region/zone/subzone`: the pod's label says it, or the labels of its node.
fn locality<L: Lookup>(
    lookup: &L,
    pod: Option<&Pod>,
    node: Option<&str>,
    zone: Option<&str>,
) -> String {
    let pod_labels = pod.and_then(|pod| pod.metadata.labels.as_ref());
    if let Some(label) = pod_labels.and_then(|labels| labels.get(LOCALITY_LABEL)) {
        return Locality::parse_label(label).to_string();
    }
    let node = node
        .or_else(|| pod?.spec.as_ref()?.node_name.as_deref())
        .and_then(|name| lookup.node(name));
    let labels = node.and_then(|node| node.metadata.labels.as_ref());
    let first = |keys: &[&str]| {
        labels
            .and_then(|labels| keys.iter().find_map(|key| labels.get(*key)))
            .cloned()
            .unwrap_or_default()
    };
    let of_node = first(&ZONE_LABELS);
    let locality = Locality {
        region: first(&REGION_LABELS),
        zone: if of_node.is_empty() {
            zone.unwrap_or_default().to_owned()
        } else {
            of_node
        },
        subzone: first(&[SUBZONE_LABEL]),
    };
    if locality.is_empty() {
        String::new()
    } else {
        locality.to_string()
    }
}

/// The name of the service that a slice belongs to.
#[must_use]
pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
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

fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Name and number; the name of a service's only port may be left out there and here alike.
fn named_port(name: Option<&str>, port: i32) -> (String, u32) {
    (
        filled(name).unwrap_or(UNNAMED_PORT).to_owned(),
        number(port),
    )
}
