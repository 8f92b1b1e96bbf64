//! Resources of one type for one proxy, encoded.
//!
//! What does not depend on the proxy itself is made and encoded once for all proxies of a class: those that agree in everything
//! that generators look at.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::ResourceType;
use super::cache::Cache;
use super::frame::{RESOURCES, field_length, open_field};
use super::name::Name;
use crate::networking::{
    View, bootstrap, cluster, endpoint, extension, listener, name_table, route, secret,
};

/// `resource` of a `Resource`.
const RESOURCE: u32 = 2;
/// Fields of an `Any`.
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;

/// Metadata of nodes that generators look at.
const METADATA: &[&str] = &[
    "APPLICATION_ADDRESS",
    "CLUSTER_ID",
    "DNS_AUTO_ALLOCATE",
    "DNS_CAPTURE",
    "DUAL_STACK",
    "HTTP10",
    "NETWORK",
    "policy.istio.io/check",
    "policy.istio.io/checkBaseRetryWaitTime",
    "policy.istio.io/checkMaxRetryWaitTime",
    "policy.istio.io/checkRetries",
];

/// One encoded resource.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its name.
    pub name: Name,
    /// Hash of its bytes: its version.
    pub hash: u64,
    /// The field `resources` of an increment, which ends with that of a state of the world, which ends with the resource.
    field: Bytes,
    /// Where the field of a state of the world begins.
    world: usize,
    /// Where the resource begins, without the `Any` around it.
    value: usize,
    /// A cluster that gets its endpoints by EDS.
    pub is_by_eds: bool,
}

impl Generated {
    fn new(kind: ResourceType, name: Name, message: &impl Message) -> Self {
        Generated::encoded(name, kind.url(), &message.encode_to_vec(), false)
    }

    fn cluster(cluster: &Cluster) -> Self {
        let is_by_eds = cluster.eds_cluster_config.is_some();
        let (url, encoded) = (ResourceType::Cluster.url(), cluster.encode_to_vec());
        Generated::encoded(cluster.name.as_str().into(), url, &encoded, is_by_eds)
    }

    /// A resource whose message is encoded already.
    pub(super) fn encoded(name: Name, type_url: &str, value: &[u8], is_by_eds: bool) -> Self {
        let hash = xxh64(value, 0);
        let any_length =
            field_length(ANY_TYPE_URL, type_url.len()) + field_length(ANY_VALUE, value.len());
        // The fields of an increment's `Resource` before the resource itself.
        let head = Resource {
            version: version_text(hash),
            name: name.to_string(),
            ..Resource::default()
        };
        let length = head.encoded_len() + field_length(RESOURCE, any_length);
        let mut field = Vec::with_capacity(field_length(RESOURCES, length));
        open_field(RESOURCES, length, &mut field);
        head.encode_raw(&mut field);
        let world = field.len();
        // Both fields have the same number.
        open_field(RESOURCE, any_length, &mut field);
        open_field(ANY_TYPE_URL, type_url.len(), &mut field);
        field.extend_from_slice(type_url.as_bytes());
        open_field(ANY_VALUE, value.len(), &mut field);
        let begin = field.len();
        field.extend_from_slice(value);
        Generated {
            name,
            hash,
            field: field.into(),
            world,
            value: begin,
            is_by_eds,
        }
    }

    /// The field of a response with increments.
    pub(super) fn increment(&self) -> Bytes {
        self.field.clone()
    }

    /// The field of a response with the state of the world.
    pub(super) fn state(&self) -> Bytes {
        self.field.slice(self.world..)
    }

    /// The resource.
    #[must_use]
    pub fn any(&self) -> Any {
        // It was encoded here.
        let response = DiscoveryResponse::decode(self.state()).unwrap_or_default();
        response.resources.into_iter().next().unwrap_or_default()
    }

    /// The version on the wire.
    #[must_use]
    pub fn version(&self) -> String {
        version_text(self.hash)
    }
}

/// A hash as a version.
#[must_use]
pub fn version_text(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Proxies of one class are sent the same, except for what is about their own workload.
pub(super) fn class_of(view: &View<'_>, kind: ResourceType) -> u64 {
    let (proxy, push) = (view.proxy, view.push);
    let mut hasher = Xxh64::new(0);
    (&proxy.namespace, &proxy.dns_domain, &proxy.locality).hash(&mut hasher);
    (proxy.kind, proxy.interception, proxy.has_mixer).hash(&mut hasher);
    proxy.families().hash(&mut hasher);
    let sidecar = view.scope.sidecar.as_ref().map(|sidecar| &sidecar.meta);
    let sidecar = sidecar.map(|meta| (&meta.namespace, &meta.name));
    (view.scope.identity, sidecar).hash(&mut hasher);
    for key in METADATA {
        proxy.metadata_text(key).hash(&mut hasher);
    }
    for identity in view.patches.identities() {
        identity.hash(&mut hasher);
    }
    // Labels decide only where some resource asks for them.
    let has_label_rules = push.destination_rules.has_selectors()
        || push.virtual_services.has_source_labels()
        || push.destination_rules.has_failover_labels()
        || push.mesh.has_failover_labels()
        || proxy.is_router();
    if has_label_rules || proxy.is_proxyless() {
        proxy.labels.hash(&mut hasher);
    }
    if kind == ResourceType::Listener {
        // Plugins and telemetry may be for one workload; spans carry its name.
        let is_told = !push.telemetries.is_empty()
            || !push.wasm_plugins.is_empty()
            || push.mesh.tracing.is_some()
            || push.mesh.default_tracing_provider.is_some();
        if is_told {
            proxy.labels.hash(&mut hasher);
            proxy.id.hash(&mut hasher);
        }
        proxy.extensions.hash(&mut hasher);
    }
    if proxy.is_router() && kind != ResourceType::Endpoint {
        (&proxy.node_id, proxy.may_read_secrets).hash(&mut hasher);
    }
    hasher.finish()
}

/// All resources of the types that are not asked for by name; those in `names` of the others.
#[must_use]
pub fn generate<'a>(
    view: &View<'_>,
    kind: ResourceType,
    names: impl Iterator<Item = &'a Name>,
    cache: &Cache,
) -> Vec<Generated> {
    match kind {
        ResourceType::Cluster if view.proxy.is_proxyless() => names
            .filter_map(|name| cluster::api(view, name))
            .map(|cluster| Generated::cluster(&cluster))
            .collect(),
        ResourceType::Cluster => {
            let shared = cache.list(view, kind, || {
                cluster::shared(view)
                    .iter()
                    .map(Generated::cluster)
                    .collect()
            });
            let own = cluster::own(view);
            own.iter()
                .map(Generated::cluster)
                .chain(shared.iter().cloned())
                .collect()
        }
        ResourceType::Listener if view.proxy.is_proxyless() => names
            .filter_map(|name| listener::api(view, name))
            .map(|listener| Generated::new(kind, listener.name.as_str().into(), &listener))
            .collect(),
        ResourceType::Listener => {
            let encode = |listener: &_| {
                let listener: &proto::envoy::config::listener::v3::Listener = listener;
                Generated::new(kind, listener.name.as_str().into(), listener)
            };
            let shared = cache.list(view, kind, || {
                listener::shared(view).iter().map(encode).collect()
            });
            let own = listener::own(view);
            own.iter()
                .map(encode)
                .chain(shared.iter().cloned())
                .collect()
        }
        ResourceType::Route => cache.named(view, kind, names, |name| {
            let known = cache.known_hosts(view, name);
            let mut known = known.lock();
            let encoded = route::encode(view, name, &mut known);
            let made = Generated::encoded(Arc::clone(name), kind.url(), &encoded, false);
            known.keep_in(made.field.slice(made.value..));
            made
        }),
        ResourceType::Endpoint => {
            let build =
                |name: &Name| Generated::new(kind, Arc::clone(name), &endpoint::build(view, name));
            let mut own = None;
            let shared = names.filter(|name| {
                let is_own = ***name == *endpoint::LOCAL_CLUSTER;
                if is_own {
                    own = Some(*name);
                }
                !is_own
            });
            let mut all = cache.named(view, kind, shared, build);
            all.extend(own.map(build));
            all
        }
        ResourceType::Extension => names
            .filter_map(|name| extension::build(view, name))
            .map(|config| Generated::new(kind, config.name.as_str().into(), &config))
            .collect(),
        ResourceType::Secret => names
            .filter_map(|name| Some((name, secret::build(view, name)?)))
            .map(|(name, secret)| Generated::new(kind, Arc::clone(name), &secret))
            .collect(),
        ResourceType::Bootstrap => names
            .filter_map(|name| Some((name, bootstrap::build(view, name)?)))
            .map(|(name, patches)| Generated::new(kind, Arc::clone(name), &patches))
            .collect(),
        ResourceType::NameTable => {
            let table = || vec![Generated::new(kind, "".into(), &name_table::build(view))];
            cache.list(view, kind, table).to_vec()
        }
    }
}
