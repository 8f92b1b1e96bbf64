//! Resources of one type for one proxy, encoded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use prost_types::Any;
use xxhash_rust::xxh64::xxh64;

use super::ResourceType;
use crate::networking::{View, cluster, endpoint, listener, route};

/// One encoded resource.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its name.
    pub name: String,
    /// Hash of its bytes: its version.
    pub hash: u64,
    /// The resource.
    pub any: Arc<Any>,
}

impl Generated {
    fn new(name: String, any: Any) -> Self {
        Generated {
            name,
            hash: xxh64(&any.value, 0),
            any: Arc::new(any),
        }
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

/// What decides a cluster's endpoints beside the push context: proxies that agree in it share the encoded resource.
type EndpointKey = (String, String, String, bool, String);

/// Encoded endpoints of one push context.
#[derive(Debug, Default)]
pub struct EndpointCache {
    entries: Mutex<HashMap<EndpointKey, Generated>>,
}

/// All resources of the types that are not asked for by name; those in `names` of the others.
#[must_use]
pub fn generate(
    view: &View<'_>,
    kind: ResourceType,
    names: &BTreeSet<String>,
    cache: &EndpointCache,
) -> Vec<Generated> {
    match kind {
        ResourceType::Cluster => cluster::build(view)
            .iter()
            .map(|cluster| Generated::new(cluster.name.clone(), proto::any::pack(cluster)))
            .collect(),
        ResourceType::Listener => listener::build(view)
            .iter()
            .map(|listener| Generated::new(listener.name.clone(), proto::any::pack(listener)))
            .collect(),
        ResourceType::Route => names
            .iter()
            .map(|name| Generated::new(name.clone(), proto::any::pack(&route::build(view, name))))
            .collect(),
        ResourceType::Endpoint => names.iter().map(|name| cache.get(view, name)).collect(),
    }
}

impl EndpointCache {
    fn get(&self, view: &View<'_>, name: &str) -> Generated {
        let build = || {
            Generated::new(
                name.to_owned(),
                proto::any::pack(&endpoint::build(view, name)),
            )
        };
        if view.push.destination_rules.has_selectors() {
            // Which rule holds depends on the workload's labels.
            return build();
        }
        let sidecar = view
            .scope
            .sidecar
            .as_ref()
            .map(|sidecar| sidecar.meta.name.clone())
            .unwrap_or_default();
        let key = (
            name.to_owned(),
            view.scope.namespace.clone(),
            sidecar,
            view.proxy.is_router(),
            view.proxy.locality.clone(),
        );
        if let Some(found) = self.entries.lock().get(&key) {
            return found.clone();
        }
        let built = build();
        self.entries.lock().insert(key, built.clone());
        built
    }
}
