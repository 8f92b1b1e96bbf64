//! A service entry as services and endpoints.
//!
//! Every host becomes a service with all addresses, ports and endpoints of the entry. Without endpoints, DNS services have
//! their own host as the endpoint.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use proto::istio::networking::v1alpha3::{
    ServiceEntry, WorkloadEntry,
    service_entry::{Location, Resolution as WireResolution},
};
use proto_mesh::Metadata;
use proto_mesh::kubernetes::{ENDPOINT_NAMES, NOT_READY_ENDPOINTS, SECOND_ADDRESSES};
use proto_mesh::visibility::Visibility;
use xxhash_rust::xxh64::xxh64;

use super::Converted;
use crate::config::created;
use crate::model::{Endpoint, Protocol, Registry, Resolution, Service, ServicePort};

/// What a conversion needs of the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// First part of SPIFFE ids.
    pub trust_domain: &'a str,
    /// Who sees services that do not say.
    pub export_to: &'a [String],
    /// Name of the cluster that the platform's services are in.
    pub cluster: &'a Arc<str>,
}

/// Converts one entry.
#[must_use]
pub fn convert(
    meta: &Metadata,
    spec: &ServiceEntry,
    registry: Registry,
    settings: &Settings<'_>,
) -> Converted {
    let resolution = match spec.resolution() {
        WireResolution::None => Resolution::Passthrough,
        WireResolution::DynamicDns => Resolution::DynamicDns,
        WireResolution::Static => Resolution::Static,
        WireResolution::Dns => Resolution::Dns,
        WireResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
    };
    let (udp, mut ports): (Vec<ServicePort>, Vec<ServicePort>) = spec
        .ports
        .iter()
        .map(|port| ServicePort {
            name: port.name.clone(),
            number: port.number,
            protocol: protocol(&port.protocol, &port.name, port.number, registry),
            target_port: port.target_port,
        })
        .partition(|port| port.protocol == Protocol::Udp);
    ports.sort_by_key(|port| port.number);
    let services = spec
        .hosts
        .iter()
        .map(|host| Service {
            host: host.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            addresses: spec
                .addresses
                .iter()
                .filter(|address| *address != "0.0.0.0")
                .cloned()
                .collect(),
            ports: ports.clone(),
            resolution,
            is_external: spec.location() == Location::MeshExternal,
            visibility: Visibility::new(&spec.export_to, settings.export_to, &meta.namespace),
            created: created(meta),
            labels: meta.labels.clone(),
            registry,
            subject_alt_names: spec.subject_alt_names.clone(),
            auto_address: None,
        })
        .collect();
    let selector = spec.workload_selector.as_ref();
    Converted {
        services,
        endpoints: endpoints(meta, spec, (registry, resolution), &ports, settings),
        selector: selector.map(|selector| selector.labels.clone()),
        udp: udp.iter().map(|port| port.number).collect(),
    }
}

/// The protocol field says it; "TCP" from a platform's service is refined by the port's name, as in Kubernetes.
fn protocol(declared: &str, name: &str, number: u32, registry: Registry) -> Protocol {
    let declared_protocol = Protocol::parse(declared);
    if registry == Registry::ServiceEntry || !matches!(declared_protocol, Protocol::Unsupported) {
        return declared_protocol;
    }
    Protocol::of_service_port(number, name, None, declared)
}

fn endpoints(
    meta: &Metadata,
    spec: &ServiceEntry,
    (registry, resolution): (Registry, Resolution),
    ports: &[ServicePort],
    settings: &Settings<'_>,
) -> Vec<Endpoint> {
    if spec.workload_selector.is_some() {
        return Vec::new();
    }
    if spec.endpoints.is_empty() {
        if !matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
            return Vec::new();
        }
        let hosts = spec.hosts.iter().filter(|host| !host.starts_with('*'));
        return hosts
            .map(|host| Endpoint {
                address: host.clone(),
                is_ready: true,
                ..Endpoint::default()
            })
            .collect();
    }
    let not_ready: BTreeSet<&str> = meta
        .annotations
        .get(NOT_READY_ENDPOINTS)
        .map(|list| list.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let names = by_address(meta, ENDPOINT_NAMES);
    let seconds = by_address(meta, SECOND_ADDRESSES);
    let mut converted: Vec<Endpoint> = spec
        .endpoints
        .iter()
        .map(|entry| {
            let mut endpoint = workload(meta, entry, settings);
            let is_listed = |port: &ServicePort| {
                not_ready
                    .contains(format!("{}:{}", endpoint.address, endpoint.port_for(port)).as_str())
            };
            endpoint.is_ready = not_ready.is_empty() || !ports.iter().any(is_listed);
            if registry == Registry::Kubernetes {
                endpoint.cluster = Arc::clone(settings.cluster);
                let of = |known: &BTreeMap<&str, &str>| {
                    let known = known.get(endpoint.address.as_str()).copied();
                    known.unwrap_or_default().to_owned()
                };
                (endpoint.name, endpoint.second) = (of(&names), of(&seconds));
            }
            endpoint
        })
        .collect();
    converted.sort_by(|a, b| (&a.address, &a.ports).cmp(&(&b.address, &b.ports)));
    converted
}

/// What an annotation tells of addresses: `address=…`, comma-separated.
fn by_address<'a>(meta: &'a Metadata, key: &str) -> BTreeMap<&'a str, &'a str> {
    let list = meta.annotation(key).unwrap_or_default();
    list.split(',')
        .filter_map(|one| one.split_once('='))
        .collect()
}

/// One of the platform's pods as an endpoint.
#[must_use]
pub fn pod(meta: &Metadata, entry: &WorkloadEntry, settings: &Settings<'_>) -> Endpoint {
    Endpoint {
        cluster: Arc::clone(settings.cluster),
        ..workload(meta, entry, settings)
    }
}

/// A workload entry as an endpoint.
#[must_use]
pub fn workload(meta: &Metadata, entry: &WorkloadEntry, settings: &Settings<'_>) -> Endpoint {
    // The labels of the resource itself count as the workload's; its own go first.
    let mut labels = meta.labels.clone();
    labels.extend(entry.labels.clone());
    Endpoint {
        address: entry.address.clone(),
        ports: entry.ports.clone(),
        name: String::new(),
        second: String::new(),
        labels,
        identity: identity(
            &entry.service_account,
            &meta.namespace,
            settings.trust_domain,
        ),
        locality: entry.locality.clone(),
        weight: entry.weight,
        network: entry.network.clone(),
        is_ready: meta.annotation(NOT_READY_ENDPOINTS).is_none(),
        cluster: Arc::default(),
    }
}

/// Gives every service without an address one of 240.240.0.0/16. Which one depends on its name alone as long as no two names
/// want the same, so that it stays over restarts and is the same at every replica.
pub fn allocate_addresses(services: &mut [Arc<Service>]) {
    let mut order: Vec<usize> = (0..services.len())
        .filter(|index| wants_address(&services[*index]))
        .collect();
    order.sort_by(|a, b| services[*a].key().cmp(&services[*b].key()));
    let mut taken = HashSet::new();
    for index in order.into_iter().take(ADDRESSES as usize) {
        let key = services[index].key();
        let name = format!("{}/{}", key.namespace, key.host);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the remainder is far below 2³²"
        )]
        let mut slot = (xxh64(name.as_bytes(), 0) % u64::from(ADDRESSES)) as u32;
        while !taken.insert(slot) {
            slot = (slot + 1) % ADDRESSES;
        }
        let address = format!("240.240.{}.{}", slot / 255, slot % 255 + 1);
        if services[index].auto_address.as_deref() != Some(&address) {
            Arc::make_mut(&mut services[index]).auto_address = Some(address);
        }
    }
}

/// How many addresses there are to give.
const ADDRESSES: u32 = 255 * 255;

fn wants_address(service: &Service) -> bool {
    let is_resolved = !matches!(
        service.resolution,
        Resolution::Passthrough | Resolution::DynamicDns
    );
    service.registry == Registry::ServiceEntry
        && service.addresses.is_empty()
        && is_resolved
        && !service.host.starts_with('*')
}

/// A service account as a SPIFFE id: `name`, `namespace/name` or the whole id are accepted.
fn identity(account: &str, namespace: &str, trust_domain: &str) -> String {
    if account.is_empty() || account.starts_with("spiffe://") {
        return account.to_owned();
    }
    let (namespace, name) = account.split_once('/').unwrap_or((namespace, account));
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
}
