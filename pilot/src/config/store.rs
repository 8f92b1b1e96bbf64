//! Every resource that counts, by kind and name. Owned by the discovery task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::istio::networking::v1alpha3::{
    DestinationRule, Gateway, ServiceEntry, Sidecar, VirtualService,
};
use proto::istio::security::v1beta1::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication,
};

use prost::{Message, Name};
use proto_mesh::{Checked, Metadata};

use super::{Object, Synthetic};
use crate::model::Mesh;

/// Kinds of things whose change makes Pilot push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The mesh's own settings.
    MeshConfig,
    /// Services: hosts, ports, who sees them.
    Service,
    /// Endpoints, and nothing else of a service.
    Endpoint,
    /// networking.istio.io.
    VirtualService,
    /// networking.istio.io.
    DestinationRule,
    /// networking.istio.io.
    Gateway,
    /// networking.istio.io.
    Sidecar,
    /// security.istio.io.
    PeerAuthentication,
    /// security.istio.io.
    RequestAuthentication,
    /// security.istio.io.
    AuthorizationPolicy,
}

/// A set of kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindSet(BTreeSet<Kind>);

impl KindSet {
    /// Every kind.
    #[must_use]
    pub fn all() -> Self {
        use Kind::*;
        KindSet(BTreeSet::from([
            MeshConfig,
            Service,
            Endpoint,
            VirtualService,
            DestinationRule,
            Gateway,
            Sidecar,
            PeerAuthentication,
            RequestAuthentication,
            AuthorizationPolicy,
        ]))
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

/// Resources of one kind by `namespace/name`.
pub type Collection<O> = BTreeMap<String, Arc<O>>;

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

/// What a source has to say.
#[derive(Clone, Debug)]
pub enum Update {
    /// VirtualServices.
    VirtualServices(Change<Checked<VirtualService>>),
    /// DestinationRules.
    DestinationRules(Change<Checked<DestinationRule>>),
    /// Gateways.
    Gateways(Change<Checked<Gateway>>),
    /// Sidecars.
    Sidecars(Change<Checked<Sidecar>>),
    /// ServiceEntries written by users.
    ServiceEntries(Change<Checked<ServiceEntry>>),
    /// ServiceEntries made from the platform's services.
    SyntheticServiceEntries(Change<Synthetic<ServiceEntry>>),
    /// PeerAuthentications.
    PeerAuthentications(Change<Checked<PeerAuthentication>>),
    /// RequestAuthentications.
    RequestAuthentications(Change<Checked<RequestAuthentication>>),
    /// AuthorizationPolicies.
    AuthorizationPolicies(Change<Checked<AuthorizationPolicy>>),
    /// The mesh's settings.
    Mesh(Arc<Mesh>),
}

/// Everything that counts.
#[derive(Debug, Default)]
pub struct ConfigStore {
    /// By name.
    pub virtual_services: Collection<Checked<VirtualService>>,
    /// By name.
    pub destination_rules: Collection<Checked<DestinationRule>>,
    /// By name.
    pub gateways: Collection<Checked<Gateway>>,
    /// By name.
    pub sidecars: Collection<Checked<Sidecar>>,
    /// By name.
    pub service_entries: Collection<Checked<ServiceEntry>>,
    /// By name.
    pub synthetic_service_entries: Collection<Synthetic<ServiceEntry>>,
    /// By name.
    pub peer_authentications: Collection<Checked<PeerAuthentication>>,
    /// By name.
    pub request_authentications: Collection<Checked<RequestAuthentication>>,
    /// By name.
    pub authorization_policies: Collection<Checked<AuthorizationPolicy>>,
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
            collection.insert(key.clone(), config);
        }
        seen.insert(key);
    }
    let gone: Vec<String> = if change.is_full {
        collection
            .keys()
            .filter(|key| !seen.contains(*key))
            .cloned()
            .collect()
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

impl ConfigStore {
    /// Every resource by `kind/namespace/name`, for `/debug/configz`.
    #[must_use]
    pub fn summary(&self) -> BTreeMap<String, serde_json::Value> {
        let mut all = BTreeMap::new();
        macro_rules! add {
            ($($field:ident $kind:literal;)*) => { $(
                for (key, config) in &self.$field {
                    all.insert(format!("{}/{key}", $kind), describe($kind, &config.meta, &config.spec));
                }
            )* };
        }
        add! {
            virtual_services "VirtualService";
            destination_rules "DestinationRule";
            gateways "Gateway";
            sidecars "Sidecar";
            service_entries "ServiceEntry";
            synthetic_service_entries "SyntheticServiceEntry";
            peer_authentications "PeerAuthentication";
            request_authentications "RequestAuthentication";
            authorization_policies "AuthorizationPolicy";
        }
        all
    }
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
