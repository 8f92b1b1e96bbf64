//! Who the proxy is: the node's id, cluster, locality and metadata, from flags, `ISTIO_META_…`, `ISTIO_METAJSON_…`, the pod's
//! variables and its labels file.
//!
//! Follows Istio 1.4: JSON objects are merged at the top level (so that annotations and labels become keys of their own), the
//! labels are in `LABELS` as well.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use proto_component::process::Usage;
use proto_mesh::node::{NodeId, NodeMetadata, NodeType};
use serde_json::{Map, Value};

use crate::args::{ProxyArgs, Role};

const META: &str = "ISTIO_META_";
const META_JSON: &str = "ISTIO_METAJSON_";
const META_LABELS: &str = "ISTIO_METAJSON_LABELS";
/// Keys that proxies tell each other.
const EXCHANGE_KEYS: &str = "NAME,NAMESPACE,INSTANCE_IPS,LABELS,OWNER,PLATFORM_METADATA,WORKLOAD_NAME,CANONICAL_TELEMETRY_SERVICE,MESH_ID,SERVICE_ACCOUNT";
const LOCALITY_LABEL: &str = "istio-locality";
const TELEMETRY_LABEL: &str = "istioTelemetryService";

/// The proxy as it introduces itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// `sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local`.
    pub id: NodeId,
    /// The service that it belongs to.
    pub cluster: String,
    /// Region, zone, sub-zone.
    pub locality: [String; 3],
    /// Everything else.
    pub metadata: NodeMetadata,
}

/// What the surroundings say, read once.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// The labels file's text.
    pub labels: String,
    /// This machine's addresses, loopback and link-local left out.
    pub addresses: Vec<IpAddr>,
}

impl Surroundings {
    /// Reads the real ones.
    pub fn read(args: &ProxyArgs, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: variables.filter_map(text).collect(),
            // Mostly not there.
            labels: std::fs::read_to_string(&args.features.labels_file).unwrap_or_default(),
            addresses: own_addresses(),
        }
    }
}

impl Node {
    /// Puts the node together.
    pub fn new(args: &ProxyArgs, surroundings: &Surroundings) -> Result<Self, Usage> {
        let features = &args.features;
        let address = address(args, surroundings)?;
        let namespace = &features.pod_namespace;
        let id = match &args.id {
            Some(id) => id.clone(),
            None if features.pod_name.is_empty() => {
                return Err(Usage(
                    "no name for this proxy: set POD_NAME and POD_NAMESPACE, or give --id"
                        .to_owned(),
                ));
            }
            None => format!("{}.{namespace}", features.pod_name),
        };
        let domain = match &args.domain {
            Some(domain) if !domain.is_empty() => domain.clone(),
            _ => format!("{namespace}.svc.cluster.local"),
        };
        let metadata = metadata(args, surroundings, address)?;
        let locality = locality(&metadata);
        Ok(Self {
            id: NodeId {
                node_type: match args.role {
                    Role::Sidecar => NodeType::Sidecar,
                    Role::Router => NodeType::Router,
                },
                address,
                id,
                dns_domain: domain,
            },
            cluster: String::new(),
            locality,
            metadata,
        })
    }
}

/// The flag (or INSTANCE_IP), else the machine's first address.
fn address(args: &ProxyArgs, surroundings: &Surroundings) -> Result<IpAddr, Usage> {
    if !args.ip.is_empty() {
        let invalid = |_| Usage(format!("--ip {}: not an IP address", args.ip));
        return args.ip.parse().map_err(invalid);
    }
    let first = surroundings.addresses.first().copied();
    Ok(first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

fn metadata(
    args: &ProxyArgs,
    surroundings: &Surroundings,
    address: IpAddr,
) -> Result<NodeMetadata, Usage> {
    let mut keys = Map::new();
    let mut labels = parse_labels(&surroundings.labels);
    for (name, value) in &surroundings.variables {
        if name.starts_with(META_JSON) {
            let Ok(Value::Object(object)) = serde_json::from_str::<Value>(value) else {
                return Err(Usage(format!("{name} is not a JSON object")));
            };
            if name == META_LABELS {
                labels.extend(
                    object
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
            }
            keys.extend(object);
        } else if let Some(key) = name.strip_prefix(META) {
            keys.insert(key.to_owned(), Value::String(value.clone()));
        }
    }
    let mut default = |key: &str, value: &str| {
        if !value.is_empty() && !keys.contains_key(key) {
            keys.insert(key.to_owned(), Value::String(value.to_owned()));
        }
    };
    let features = &args.features;
    default("NAME", &features.pod_name);
    default("POD_NAME", &features.pod_name);
    default("NAMESPACE", &features.pod_namespace);
    default("CONFIG_NAMESPACE", &features.pod_namespace);
    default("SERVICE_ACCOUNT", &features.service_account);
    default(
        "INSTANCE_IPS",
        &instance_ips(address, &surroundings.addresses),
    );
    default("CLUSTER_ID", "Kubernetes");
    // Without Citadel there is nothing to wait for: discovery must not ask this proxy for certificates.
    default("SDS", if args.ca_address.is_empty() { "0" } else { "1" });
    default("EXCHANGE_KEYS", EXCHANGE_KEYS);
    if let Some(service) = labels.get(TELEMETRY_LABEL).and_then(Value::as_str) {
        default("CANONICAL_TELEMETRY_SERVICE", service);
    }
    if !labels.is_empty() {
        keys.insert("LABELS".to_owned(), Value::Object(labels));
    }
    serde_json::from_value(Value::Object(keys))
        .map_err(|error| Usage(format!("node metadata: {error}")))
}

/// The proxy's own address first, then the others of the machine.
fn instance_ips(address: IpAddr, others: &[IpAddr]) -> String {
    let mut all = vec![address];
    all.extend(others.iter().filter(|other| **other != address));
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// `region/zone/subzone`, or with dots where a label cannot have slashes.
fn locality(metadata: &NodeMetadata) -> [String; 3] {
    let text = metadata
        .labels
        .get(LOCALITY_LABEL)
        .map(String::as_str)
        .or_else(|| metadata.get(LOCALITY_LABEL))
        .unwrap_or_default();
    let separator = if text.contains('/') { '/' } else { '.' };
    let mut parts = text.splitn(3, separator).map(str::to_owned);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// The downward API's form: `key="value"` with Go's escapes, one a line.
fn parse_labels(text: &str) -> Map<String, Value> {
    let pair = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        // A Go string literal of a label is a JSON string as well: labels have no exotic characters.
        let value = serde_json::from_str::<String>(value).ok()?;
        Some((key.to_owned(), Value::String(value)))
    };
    text.lines().filter_map(pair).collect()
}

fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(v4.ip()));
        }
        address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
    });
    let is_useful = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    let mut addresses: Vec<IpAddr> = addresses.filter(is_useful).collect();
    // IPv4 first, as Kubernetes clusters mostly are.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}
