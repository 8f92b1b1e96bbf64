//! Kubernetes services with what is behind them as `ServiceEntry`s, in which the mesh speaks of services.
//!
//! Follows the 1.4 conversion: host `NAME.NAMESPACE.svc.DOMAIN`; a cluster IP means STATIC, a headless service NONE (with
//! its endpoints), an ExternalName DNS outside the mesh. EndpointSlices count before Endpoints of the same service.
//! Endpoints that are not ready are in the list as well and named in the annotation [`NOT_READY_ENDPOINTS`]: a proxy that is
//! starting must find its own services before it can become ready. Those behind a headless service that have names of their own
//! (pods of a stateful set) are named in the annotation [`ENDPOINT_NAMES`]; [`SECOND_ADDRESSES`] tells which two are one pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proto::istio::networking::v1alpha3::{
    ServiceEntry, ServicePort, WorkloadEntry,
    service_entry::{Location, Resolution},
};

use crate::protocol::Protocol;
use crate::resource::Metadata;
use crate::spiffe::SpiffeId;

mod backend;
pub mod object;

pub use backend::{Lookup, Source, ip_of, service_of, source, workload};

use backend::Found;
use object::{Service, ServicePort as KubePort, ServiceSpec};

/// Annotation with the endpoints (`ip:port`, comma-separated) that exist and must not get traffic.
pub const NOT_READY_ENDPOINTS: &str = "networking.alpha.istio.io/notReadyEndpoints";
/// Annotation with the names that endpoints of a headless service have below it (`ip=name`, comma-separated).
pub const ENDPOINT_NAMES: &str = "networking.alpha.istio.io/endpointNames";
/// Annotation with the IPv6 addresses of pods that have IPv4 addresses, too (`ipv4=ipv6`, comma-separated).
pub const SECOND_ADDRESSES: &str = "networking.alpha.istio.io/secondAddresses";
const EXPORT_TO: &str = "networking.istio.io/exportTo";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
/// The name of a service's only port, if it has none: one that its endpoints share.
const UNNAMED_PORT: &str = "port";

/// What the conversion needs of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Domain of service names.
    pub domain: String,
    /// First part of SPIFFE ids.
    pub trust_domain: String,
}

/// The service entry of `service`; none if the service has no name.
pub fn service_entry<L: Lookup>(
    service: &Service,
    lookup: &L,
    settings: &Settings,
) -> Option<(Metadata, ServiceEntry)> {
    let mut meta = metadata(&service.metadata)?;
    let found = backend::find(lookup, service, &meta.namespace, &meta.name);
    let entry = build_entry(service, &found, &meta.namespace, &meta.name, settings);
    if !found.not_ready.is_empty() {
        let list: Vec<&str> = found.not_ready.iter().map(String::as_str).collect();
        let list = list.join(",");
        meta.annotations
            .insert(NOT_READY_ENDPOINTS.to_owned(), list);
    }
    if entry.resolution() == Resolution::None {
        annotate(&mut meta, ENDPOINT_NAMES, &found.names);
    }
    annotate(&mut meta, SECOND_ADDRESSES, &found.seconds);
    Some((meta, entry))
}

/// Lists what is known by address.
fn annotate(meta: &mut Metadata, key: &str, by_address: &BTreeMap<String, String>) {
    if !by_address.is_empty() {
        let pairs = by_address.iter().map(|(ip, what)| format!("{ip}={what}"));
        let list = pairs.collect::<Vec<_>>().join(",");
        meta.annotations.insert(key.to_owned(), list);
    }
}

/// An object's metadata; none if it has no name.
#[must_use]
pub fn metadata(meta: &ObjectMeta) -> Option<Metadata> {
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    Some(Metadata {
        name: meta.name.clone()?,
        namespace: namespace.to_owned(),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
        creation_time: (meta.creation_timestamp.as_ref()).map(|time| SystemTime::from(time.0)),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        origin: None,
    })
}

fn build_entry(
    service: &Service,
    found: &Found,
    namespace: &str,
    name: &str,
    settings: &Settings,
) -> ServiceEntry {
    let spec = service.spec.clone().unwrap_or_default();
    let external = spec
        .external_name
        .as_deref()
        .filter(|host| spec.type_.as_deref() == Some("ExternalName") && !host.is_empty());
    let addresses: Vec<String> = cluster_ips(&spec);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (resolution, location) = match external {
        Some(_) => (Resolution::Dns, Location::MeshExternal),
        None if addresses.is_empty() => (Resolution::None, Location::MeshInternal),
        None => (Resolution::Static, Location::MeshInternal),
    };
    let endpoints = match external {
        Some(host) => vec![WorkloadEntry {
            address: host.to_owned(),
            ports: ports
                .iter()
                .map(|port| (port_name(port), number(port.port)))
                .collect(),
            ..WorkloadEntry::default()
        }],
        None => found.endpoints.clone(),
    };
    let names: BTreeSet<String> = ports.iter().map(port_name).collect();
    let endpoints = endpoints.into_iter().map(|mut endpoint| {
        endpoint.ports.retain(|name, _| names.contains(name));
        endpoint
    });
    ServiceEntry {
        hosts: vec![format!("{name}.{namespace}.svc.{}", settings.domain)],
        addresses,
        ports: ports.iter().map(build_port).collect(),
        location: location as i32,
        resolution: resolution as i32,
        subject_alt_names: accounts(&service.metadata, found, namespace, settings),
        export_to: list(annotation(&service.metadata, EXPORT_TO)),
        endpoints: endpoints.collect(),
        ..ServiceEntry::default()
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<String> {
    let first = spec.cluster_ip.iter();
    let all = spec.cluster_ips.iter().flatten();
    let mut addresses: Vec<String> = Vec::new();
    for address in first.chain(all) {
        if !address.is_empty() && address != "None" && !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    addresses
}

fn build_port(port: &KubePort) -> ServicePort {
    let protocol = Protocol::of_service_port(
        number(port.port),
        port.name.as_deref().unwrap_or_default(),
        port.app_protocol.as_deref(),
        port.protocol.as_deref().unwrap_or("TCP"),
    );
    ServicePort {
        number: number(port.port),
        name: port_name(port),
        // Left empty where the name says nothing: the proxy finds it out.
        protocol: match protocol {
            Protocol::Unsupported => String::new(),
            known => known.as_str().to_owned(),
        },
        ..ServicePort::default()
    }
}

/// The only port of a service may have no name; a service entry's must.
fn port_name(port: &KubePort) -> String {
    match port.name.as_deref() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => UNNAMED_PORT.to_owned(),
    }
}

fn number(port: i32) -> u32 {
    u32::try_from(port).unwrap_or(0)
}

/// Who may answer for the service: the accounts that its annotations name, and those of the pods behind it.
fn accounts(meta: &ObjectMeta, found: &Found, namespace: &str, settings: &Settings) -> Vec<String> {
    let id = |namespace: &str, account: &str| {
        SpiffeId::new(&settings.trust_domain, namespace, account)
            .ok()
            .map(|id| id.to_string())
    };
    let mut names: BTreeSet<String> = list(annotation(meta, CANONICAL_ACCOUNTS))
        .into_iter()
        .collect();
    names.extend(
        list(annotation(meta, KUBERNETES_ACCOUNTS))
            .iter()
            .filter_map(|account| id(namespace, account)),
    );
    names.extend(
        found
            .accounts
            .iter()
            .filter_map(|(namespace, account)| id(namespace, account)),
    );
    names.into_iter().collect()
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> &'a str {
    meta.annotations
        .as_ref()
        .and_then(|annotations| annotations.get(key))
        .map_or("", String::as_str)
}

fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}
