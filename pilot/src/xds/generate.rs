//! Resources of one type for one proxy, encoded.
//!
//! What does not depend on the proxy itself is made and encoded once for all proxies of a class: those that agree in everything
//! that generators look at.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::{Message, Name as MessageName};
use prost_types::Any;
use proto::envoy::config::cluster::v3::Cluster;
use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::ResourceType;
use super::name::Name;
use crate::networking::{View, cluster, endpoint, extension, listener, name_table, route};

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
    /// The resource as an encoded `Any`.
    pub body: Bytes,
    /// A cluster that gets its endpoints by EDS.
    pub is_by_eds: bool,
}

impl Generated {
    fn new<T: Message + MessageName>(name: &str, message: &T) -> Self {
        Generated::of(name, &proto::any::pack(message), false)
    }

    fn cluster(cluster: &Cluster) -> Self {
        let is_by_eds = cluster.eds_cluster_config.is_some();
        Generated::of(&cluster.name, &proto::any::pack(cluster), is_by_eds)
    }

    pub(super) fn of(name: &str, any: &Any, is_by_eds: bool) -> Self {
        let body = any.encode_to_vec();
        Generated {
            name: name.into(),
            hash: xxh64(&body, 0),
            body: body.into(),
            is_by_eds,
        }
    }

    /// The resource.
    #[must_use]
    pub fn any(&self) -> Any {
        // It was encoded here.
        Any::decode(self.body.clone()).unwrap_or_default()
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

/// A type of resources and a class of proxies.
type ClassKey = (ResourceType, u64);
type List = Arc<OnceLock<Arc<[Generated]>>>;
type Named = Arc<Mutex<HashMap<Name, Generated>>>;

/// Encoded resources of one push context.
#[derive(Debug, Default)]
pub struct Cache {
    lists: Mutex<HashMap<ClassKey, List>>,
    named: Mutex<HashMap<ClassKey, Named>>,
}

impl Cache {
    /// The resources of a class that are asked for as a whole; made by whoever comes first, while the others wait.
    fn list(
        &self,
        view: &View<'_>,
        kind: ResourceType,
        build: impl FnOnce() -> Vec<Generated>,
    ) -> Arc<[Generated]> {
        let key = (kind, class_of(view, kind));
        let cell = Arc::clone(self.lists.lock().entry(key).or_default());
        Arc::clone(cell.get_or_init(|| build().into()))
    }

    /// Resources of a class by name.
    fn named<'a>(
        &self,
        view: &View<'_>,
        kind: ResourceType,
        names: impl Iterator<Item = &'a Name>,
        build: impl Fn(&str) -> Generated,
    ) -> Vec<Generated> {
        let key = (kind, class_of(view, kind));
        let class = Arc::clone(self.named.lock().entry(key).or_default());
        // Held while they are made: others of the class would only make the same.
        let mut class = class.lock();
        let mut found = Vec::new();
        for name in names {
            let known = class.entry(Arc::clone(name));
            let built = known.or_insert_with(|| Generated {
                name: Arc::clone(name),
                ..build(name)
            });
            found.push(built.clone());
        }
        found
    }
}

/// Proxies of one class are sent the same, except for what is about their own workload.
fn class_of(view: &View<'_>, kind: ResourceType) -> u64 {
    let (proxy, push) = (view.proxy, view.push);
    let mut hasher = Xxh64::new(0);
    (&proxy.namespace, &proxy.dns_domain, &proxy.locality).hash(&mut hasher);
    (proxy.kind, proxy.interception, proxy.has_mixer).hash(&mut hasher);
    proxy.families().hash(&mut hasher);
    Arc::as_ptr(&view.scope).addr().hash(&mut hasher);
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
        || (push.mesh.locality_lb.as_ref())
            .is_some_and(|setting| !setting.failover_priority.is_empty())
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
        proxy.node_id.hash(&mut hasher);
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
            .map(|listener| Generated::new(&listener.name, &listener))
            .collect(),
        ResourceType::Listener => {
            let encode = |listener: &_| {
                let listener: &proto::envoy::config::listener::v3::Listener = listener;
                Generated::new(&listener.name, listener)
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
            Generated::new(name, &route::build(view, name))
        }),
        ResourceType::Endpoint => cache.named(view, kind, names, |name| {
            Generated::new(name, &endpoint::build(view, name))
        }),
        ResourceType::Extension => names
            .filter_map(|name| extension::build(view, name))
            .map(|config| Generated::new(&config.name, &config))
            .collect(),
        ResourceType::NameTable => vec![Generated::new("", &name_table::build(view))],
    }
}
