//! Every resource that counts, by kind and name. Owned by the discovery task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::{Message, Name};
use proto::istio::networking::v1alpha3::{ServiceEntry, WorkloadEntry};
use proto_mesh::{Checked, Metadata};

use super::by_name::ByName;
use super::kinds::for_each_kind;
use super::{Object, Synthetic};
use crate::model::{Credentials, Mesh};

/// Resources of one kind by `namespace/name`.
pub type Collection<O> = ByName<Arc<O>>;

/// A change to the resources of one kind.
#[derive(Clone, Debug)]
pub struct Change<O> {
    /// True when `set` is everything there is: what is not in it is gone.
    pub is_full: bool,
    /// Added or replaced.
    pub set: Vec<Arc<O>>,
    /// Gone, as `namespace/name`.
    pub removed: Vec<String>,
}

macro_rules! define {
    ($($field:ident $update:ident $kind:ident $wrapper:ident $message:ty, $manifest:literal $collection:literal $need:ident;)*) => {
        /// Kinds of things whose change makes Pilot push.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            /// The mesh's own settings.
            MeshConfig,
            /// Services: hosts, ports, who sees them.
            Service,
            /// Endpoints, and nothing else of a service.
            Endpoint,
            /// TCP and TLS routes of virtual services.
            ConnectionRoute,
            /// Keys that tokens are checked with, fetched anew.
            Jwks,
            /// Pods of a cluster that Pilot follows itself.
            Pod,
            /// Credentials of gateways.
            Credential,
            $(#[doc = concat!("A resource: ", $manifest, ".")] $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[Kind::MeshConfig, Kind::Service, Kind::Endpoint, Kind::ConnectionRoute, Kind::Jwks, Kind::Pod, Kind::Credential, $(Kind::$kind),*];

            /// As in manifests.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    Kind::MeshConfig => "MeshConfig",
                    Kind::Service => "Service",
                    Kind::Endpoint => "Endpoints",
                    Kind::ConnectionRoute => "ConnectionRoute",
                    Kind::Jwks => "Jwks",
                    Kind::Pod => "Pod",
                    Kind::Credential => "Secret",
                    $(Kind::$kind => $manifest,)*
                }
            }
        }

        /// What a source has to say.
        #[derive(Clone, Debug)]
        pub enum Update {
            $(#[doc = concat!("Resources: ", $manifest, ".")] $update(Change<$wrapper<$message>>),)*
            /// Services of a cluster that Pilot follows itself.
            ClusterServices(Change<Synthetic<ServiceEntry>>),
            /// Pods of that cluster.
            Pods(Change<Synthetic<WorkloadEntry>>),
            /// Entries of machines that have registered themselves.
            Registered(Change<Synthetic<WorkloadEntry>>),
            /// Every credential in a namespace of that cluster.
            Credentials(String, Credentials),
            /// The mesh's settings.
            Mesh(Arc<Mesh>),
        }

        /// Everything that counts.
        #[derive(Debug, Default)]
        pub struct ConfigStore {
            $(/// By name.
            pub $field: Collection<$wrapper<$message>>,)*
            /// Services of a cluster that Pilot follows itself.
            pub cluster_services: Collection<Synthetic<ServiceEntry>>,
            /// Pods of that cluster.
            pub pods: Collection<Synthetic<WorkloadEntry>>,
            /// Entries of machines that have registered themselves.
            pub registered: Collection<Synthetic<WorkloadEntry>>,
            /// Credentials by namespace.
            pub credentials: Arc<BTreeMap<String, Credentials>>,
            /// Services that come over MCP count before those of the cluster.
            pub is_mcp_first: bool,
        }

        impl ConfigStore {
            /// Applies a change of resources; their kind, and the keys of what is different now.
            ///
            /// # Errors
            /// Gives an update back that is not about resources.
            pub fn apply(&mut self, update: Update) -> Result<(Kind, BTreeSet<String>), Update> {
                Ok(match update {
                    $(Update::$update(change) => (Kind::$kind, apply(&mut self.$field, change)),)*
                    Update::ClusterServices(change) => {
                        (Kind::SyntheticServiceEntry, apply(&mut self.cluster_services, change))
                    }
                    Update::Registered(change) => {
                        (Kind::WorkloadEntry, apply(&mut self.registered, change))
                    }
                    Update::Pods(change) => (Kind::Pod, apply(&mut self.pods, change)),
                    Update::Credentials(namespace, credentials) => {
                        let is_same = self.credentials.get(&namespace) == Some(&credentials);
                        let touched = (!is_same).then(|| format!("{namespace}/*"));
                        Arc::make_mut(&mut self.credentials).insert(namespace, credentials);
                        (Kind::Credential, touched.into_iter().collect())
                    }
                    other @ Update::Mesh(_) => return Err(other),
                })
            }

            /// The keys of every resource of a kind.
            #[must_use]
            pub fn keys(&self, kind: Kind) -> BTreeSet<String> {
                let mut keys = BTreeSet::new();
                let mut add = |name: &str| {
                    keys.insert(name.to_owned());
                };
                match kind {
                    $(Kind::$kind => self.$field.names().for_each(&mut add),)*
                    Kind::Pod => self.pods.names().for_each(&mut add),
                    Kind::MeshConfig | Kind::Service | Kind::Endpoint | Kind::ConnectionRoute | Kind::Jwks | Kind::Credential => {}
                }
                if kind == Kind::SyntheticServiceEntry {
                    self.cluster_services.names().for_each(&mut add);
                }
                if kind == Kind::WorkloadEntry {
                    self.registered.names().for_each(add);
                }
                keys
            }

            /// Every resource by `kind/namespace/name`, for `/debug/configz`.
            #[must_use]
            pub fn summary(&self) -> BTreeMap<String, serde_json::Value> {
                let mut all = BTreeMap::new();
                $(for (key, config) in self.$field.iter() {
                    all.insert(format!("{}/{key}", $manifest), describe($manifest, &config.meta, &config.spec));
                })*
                for (key, entry) in self.registered.iter() {
                    let described = describe("WorkloadEntry", &entry.meta, &entry.spec);
                    all.entry(format!("WorkloadEntry/{key}")).or_insert(described);
                }
                all
            }

            /// The version of a resource by `kind/namespace/name`, if it is there.
            #[must_use]
            pub fn resource_version(&self, kind: &str, key: &str) -> Option<String> {
                match kind {
                    $($manifest => self.$field.get(key).map(|config| config.meta.resource_version.clone()),)*
                    _ => None,
                }
            }
        }
    };
}
for_each_kind!(define);

impl ConfigStore {
    /// One of the platform's services: of two registries that have it the first counts.
    #[must_use]
    pub fn platform_service(&self, key: &str) -> Option<&Arc<Synthetic<ServiceEntry>>> {
        let of_mcp = self.synthetic_service_entries.get(key);
        let of_cluster = self.cluster_services.get(key);
        if self.is_mcp_first {
            of_mcp.or(of_cluster)
        } else {
            of_cluster.or(of_mcp)
        }
    }
}

/// A set of kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindSet(BTreeSet<Kind>);

impl KindSet {
    /// Every kind.
    #[must_use]
    pub fn all() -> Self {
        KindSet(Kind::ALL.iter().copied().collect())
    }

    /// The set of one.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        KindSet(BTreeSet::from([kind]))
    }

    /// True when `kind` is in it.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.0.contains(&kind)
    }

    /// True when any of `kinds` is in it.
    #[must_use]
    pub fn has_any(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| self.has(*kind))
    }

    /// True when nothing but `kind` is in it.
    #[must_use]
    pub fn is_only(&self, kind: Kind) -> bool {
        self.0.len() == 1 && self.has(kind)
    }

    /// True when nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = Kind> {
        self.0.iter().copied()
    }

    /// Puts `kind` in.
    pub fn insert(&mut self, kind: Kind) {
        self.0.insert(kind);
    }

    /// Puts all of `other` in.
    pub fn extend(&mut self, other: &KindSet) {
        self.0.extend(&other.0);
    }
}

/// `namespace/name`, the key in every collection.
#[must_use]
pub fn key(meta: &Metadata) -> String {
    format!("{}/{}", meta.namespace, meta.name)
}

/// Applies `change` to `collection`; the keys of what is different now.
pub fn apply<O: Object>(collection: &mut Collection<O>, change: Change<O>) -> BTreeSet<String> {
    let mut touched = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for config in change.set {
        let key = key(config.meta());
        let is_same = collection
            .get(&key)
            .is_some_and(|old| Arc::ptr_eq(old, &config) || *old == config);
        if !is_same {
            touched.insert(key.clone());
            collection.insert(&key, config);
        }
        seen.insert(key);
    }
    let gone: Vec<String> = if change.is_full {
        let names = collection.names().filter(|name| !seen.contains(*name));
        names.map(ToOwned::to_owned).collect()
    } else {
        change.removed
    };
    for key in gone {
        if collection.remove(&key).is_some() {
            touched.insert(key);
        }
    }
    touched
}

/// A resource as its owner would write it.
fn describe<T: Message + Name>(kind: &str, meta: &Metadata, spec: &T) -> serde_json::Value {
    let spec = proto::json::to_value(spec)
        .unwrap_or_else(|error| serde_json::Value::String(error.to_string()));
    serde_json::json!({
        "kind": kind,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": meta.labels,
            "annotations": meta.annotations,
            "resourceVersion": meta.resource_version,
        },
        "spec": spec,
    })
}
