//! What has changed, as far as it decides what has to be made anew for whom.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use tokio::time::Instant;

use super::ResourceType;
use crate::config::store::{Kind, KindSet};
use crate::model::Proxy;
use crate::push_context::PushContext;
use crate::registry::RegistryChange;

/// Changes since the last push.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Kinds that changed, with the namespaces in which they did.
    pub kinds: BTreeMap<Kind, BTreeSet<String>>,
    /// Hosts whose endpoints changed.
    pub hosts: BTreeSet<String>,
    /// Addresses whose endpoints changed.
    pub addresses: HashSet<IpAddr>,
    /// When the first of them came in.
    pub since: Instant,
}

impl PushRequest {
    /// Nothing yet.
    #[must_use]
    pub fn new(since: Instant) -> Self {
        PushRequest {
            kinds: BTreeMap::new(),
            hosts: BTreeSet::new(),
            addresses: HashSet::new(),
            since,
        }
    }

    /// Everything.
    #[must_use]
    pub fn everything(since: Instant) -> Self {
        let mut request = Self::new(since);
        for kind in KindSet::all().iter() {
            request.kinds.entry(kind).or_default();
        }
        request
    }

    /// True when nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Adds resources of `kind` by their `namespace/name`.
    pub fn add_configs(&mut self, kind: Kind, keys: &BTreeSet<String>) {
        if keys.is_empty() {
            return;
        }
        let namespaces = keys.iter().map(|key| {
            key.split_once('/')
                .map_or("", |(namespace, _)| namespace)
                .to_owned()
        });
        self.kinds.entry(kind).or_default().extend(namespaces);
    }

    /// Adds a change of services or endpoints.
    pub fn add_registry(&mut self, change: RegistryChange) {
        if change.is_empty() {
            return;
        }
        let kind = if change.is_full {
            Kind::Service
        } else {
            Kind::Endpoint
        };
        self.kinds
            .entry(kind)
            .or_default()
            .extend(change.endpoints.iter().map(|key| key.namespace.clone()));
        self.hosts
            .extend(change.endpoints.into_iter().map(|key| key.host));
        self.addresses.extend(change.addresses);
    }

    /// Notes that something of `kind` has changed everywhere.
    pub fn note(&mut self, kind: Kind, now: Instant) {
        if self.is_empty() {
            self.since = now;
        }
        self.kinds.entry(kind).or_default();
    }

    /// Adds another request; the older start counts.
    pub fn merge(&mut self, other: &PushRequest) {
        for (kind, namespaces) in &other.kinds {
            self.kinds
                .entry(*kind)
                .or_default()
                .extend(namespaces.iter().cloned());
        }
        self.hosts.extend(other.hosts.iter().cloned());
        self.addresses.extend(other.addresses.iter().copied());
        self.since = self.since.min(other.since);
    }

    /// The kinds alone.
    #[must_use]
    pub fn kind_set(&self) -> KindSet {
        let mut kinds = KindSet::default();
        for kind in self.kinds.keys() {
            kinds.insert(*kind);
        }
        kinds
    }

    /// The types that may be different for `proxy` now.
    #[must_use]
    pub fn affected_types(&self, proxy: &Proxy, push: &PushContext) -> Vec<ResourceType> {
        let mut affected = BTreeSet::new();
        for (kind, namespaces) in &self.kinds {
            affected.extend(self.types_of(*kind, namespaces, proxy, push));
        }
        affected.into_iter().collect()
    }

    fn types_of(
        &self,
        kind: Kind,
        namespaces: &BTreeSet<String>,
        proxy: &Proxy,
        push: &PushContext,
    ) -> &'static [ResourceType] {
        // An empty set means everywhere.
        let is_about_workload = namespaces.is_empty()
            || namespaces.contains(push.policies.root())
            || namespaces.contains(&proxy.namespace);
        let is_for_proxy = match kind {
            Kind::Endpoint if proxy.ips.iter().any(|ip| self.addresses.contains(ip)) => {
                return &ResourceType::ALL;
            }
            Kind::Gateway => proxy.is_router(),
            Kind::Credential => proxy.is_router() && namespaces.contains(&proxy.namespace),
            Kind::EnvoyFilter
            | Kind::RequestAuthentication
            | Kind::AuthorizationPolicy
            | Kind::Telemetry
            | Kind::ServiceRole
            | Kind::ServiceRoleBinding
            | Kind::WasmPlugin => is_about_workload,
            _ => true,
        };
        if is_for_proxy {
            types_for_any(kind, push)
        } else {
            &[]
        }
    }

    /// True when resources of `resource` may be different now that are shared by several proxies.
    #[must_use]
    pub fn touches(&self, resource: ResourceType, push: &PushContext) -> bool {
        let mut kinds = self.kinds.keys();
        kinds.any(|kind| types_for_any(*kind, push).contains(&resource))
    }

    /// The same, not counting changes of `known`.
    #[must_use]
    pub fn touches_besides(&self, resource: ResourceType, known: Kind, push: &PushContext) -> bool {
        let mut kinds = self.kinds.keys().filter(|kind| **kind != known);
        kinds.any(|kind| types_for_any(*kind, push).contains(&resource))
    }

    /// True when only endpoints have changed, so that other services' assignments are as they were.
    #[must_use]
    pub fn is_endpoints_only(&self) -> bool {
        self.kinds.len() == 1 && self.kinds.contains_key(&Kind::Endpoint)
    }
}

/// The types of which a change of `kind` may make resources different for some proxy.
fn types_for_any(kind: Kind, push: &PushContext) -> &'static [ResourceType] {
    use ResourceType::{Cluster, Endpoint, Extension, Listener, Route, Secret};
    match kind {
        Kind::MeshConfig
        | Kind::Service
        | Kind::Sidecar
        | Kind::ServiceEntry
        | Kind::SyntheticServiceEntry
        | Kind::WorkloadEntry
        | Kind::Gateway
        | Kind::EnvoyFilter => &ResourceType::ALL,
        Kind::Endpoint => &[Endpoint],
        // Virtual services bring their destinations into a Sidecar's scope; without one they only steer.
        Kind::VirtualService if push.sidecars.is_empty() => &[Route],
        Kind::VirtualService => &ResourceType::ALL,
        Kind::DestinationRule => &[Cluster, Endpoint, Listener, Route],
        Kind::PeerAuthentication | Kind::AuthenticationPolicy | Kind::MeshPolicy => {
            &[Cluster, Endpoint, Listener]
        }
        Kind::ConnectionRoute
        | Kind::Jwks
        | Kind::RequestAuthentication
        | Kind::AuthorizationPolicy
        | Kind::Telemetry
        | Kind::ServiceRole
        | Kind::ServiceRoleBinding
        | Kind::ClusterRbacConfig => &[Listener],
        Kind::WasmPlugin => &[Listener, Extension],
        Kind::QuotaSpec | Kind::QuotaSpecBinding => &[Listener, Route],
        // Listeners and clusters say who serves them.
        Kind::Credential => &[Cluster, Listener, Secret],
        // Nothing that is generated.
        Kind::Pod | Kind::WorkloadGroup => &[],
    }
}
