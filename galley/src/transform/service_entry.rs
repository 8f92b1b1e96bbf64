//! Kubernetes services with their endpoints as `ServiceEntry`s: the registry of services that Pilot gets over MCP.
//!
//! Follows the 1.4 conversion: host `NAME.NAMESPACE.svc.DOMAIN`; a cluster IP means STATIC, a headless service NONE (with
//! its endpoints), an ExternalName DNS outside the mesh. EndpointSlices count before Endpoints of the same service.
//! Endpoints that are not ready are in the list as well and named in the annotation `notReadyEndpoints`: a proxy that is
//! starting must find its own services before it can become ready.

use super::direct::reuse;
use crate::{
    event::{Content, Objects},
    source::file::version,
    validation::Kube,
};
use endpoints::{Backends, Found};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort as KubePort},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proto::istio::{
    mcp::v1alpha1::{Metadata, Resource},
    networking::v1alpha3::{
        ServiceEntry, ServicePort, WorkloadEntry,
        service_entry::{Location, Resolution},
    },
};
use proto_mcp::snapshot::Collection;
use proto_mesh::{protocol::Protocol, spiffe::SpiffeId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

mod dirty;
mod endpoints;
#[cfg(test)]
mod tests;

pub use dirty::Dirty;

const EXPORT_TO: &str = "networking.istio.io/exportTo";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
const SERVICE_VERSION: &str = "networking.alpha.istio.io/serviceVersion";
const ENDPOINTS_VERSION: &str = "networking.alpha.istio.io/endpointsVersion";
/// The name of a service's only port, if it has none: one that its endpoints share.
const UNNAMED_PORT: &str = "port";
const NOT_READY_ENDPOINTS: &str = "networking.alpha.istio.io/notReadyEndpoints";

/// What the conversion needs of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Domain of service names.
    pub domain: String,
    /// First part of SPIFFE ids.
    pub trust_domain: String,
}

/// A service entry for each service; those that are not dirty, or come out the same, are `last`'s own.
pub fn build_collection(
    objects: &Objects,
    settings: &Settings,
    dirty: &Dirty,
    last: Option<&Arc<Collection>>,
) -> Arc<Collection> {
    let backends = Backends::new(objects);
    let resources = objects.iter().filter_map(|(key, object)| {
        let Content::Kube(Kube::Service(service)) = &object.content else {
            return None;
        };
        let same = last.and_then(|last| last.resources.get(key.name.as_ref()));
        if let Some(same) = same
            && !dirty.has(&key.name)
        {
            return Some(same.clone());
        }
        let resource = build_resource(service, &backends, settings)?;
        // Unchanged ones keep their place in memory, so that they are known by it.
        let same = same.filter(|same| ***same == resource).cloned();
        Some(same.unwrap_or_else(|| Arc::new(resource)))
    });
    let mut resources: Vec<Arc<Resource>> = resources.collect();
    resources.sort_by(|a, b| proto_mcp::snapshot::name_of(a).cmp(proto_mcp::snapshot::name_of(b)));
    reuse(last, resources)
}

fn build_resource(
    service: &Service,
    backends: &Backends<'_>,
    settings: &Settings,
) -> Option<Resource> {
    let meta = &service.metadata;
    let name = meta.name.as_deref()?;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let found = backends.of(namespace, name);
    let entry = build_entry(service, &found, namespace, name, settings);
    let labels = meta.labels.clone().unwrap_or_default();
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.insert(SERVICE_VERSION.into(), object_version(meta, service));
    if !found.version.is_empty() {
        annotations.insert(ENDPOINTS_VERSION.into(), found.version.clone());
    }
    if !found.not_ready.is_empty() {
        let list: Vec<&str> = found.not_ready.iter().map(String::as_str).collect();
        annotations.insert(NOT_READY_ENDPOINTS.into(), list.join(","));
    }
    let body = proto::any::pack(&entry);
    let created = meta.creation_timestamp.as_ref();
    Some(Resource {
        metadata: Some(Metadata {
            name: format!("{namespace}/{name}"),
            create_time: created.and_then(|time| time_of(&serde_json::to_value(time).ok()?)),
            version: version(&body.value, &labels, &annotations),
            labels,
            annotations,
        }),
        body: Some(body),
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

fn cluster_ips(spec: &k8s_openapi::api::core::v1::ServiceSpec) -> Vec<String> {
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

/// The platform's version of an object, or a hash of it.
fn object_version<T: serde::Serialize>(meta: &ObjectMeta, object: &T) -> String {
    match &meta.resource_version {
        Some(version) => version.clone(),
        None => hash(object),
    }
}

fn hash<T: serde::Serialize>(object: &T) -> String {
    let text = serde_json::to_vec(object).unwrap_or_default();
    version(&text, &BTreeMap::new(), &BTreeMap::new())
}

fn time_of(value: &serde_json::Value) -> Option<prost_types::Timestamp> {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(value.as_str()?, format).ok()?;
    Some(SystemTime::from(time).into())
}
