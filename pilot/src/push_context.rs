//! The push context: everything that generators may look at, frozen.
//!
//! Each index is shared with the previous context unless something it is made of has changed; when only endpoints have
//! changed, everything but the endpoints is shared. Generators are pure functions of a proxy and a push context.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

mod attachment;
pub mod delegate;
pub mod destination_rules;
pub mod endpoints;
pub mod envoy_filters;
pub mod gateways;
pub mod host_index;
pub mod policies;
pub mod quotas;
pub mod services;
pub mod sidecar_scope;
pub mod status;
pub mod telemetry;
pub mod virtual_services;
pub mod wasm_plugins;

use self::{
    destination_rules::DestinationRuleIndex,
    endpoints::EndpointIndex,
    envoy_filters::EnvoyFilterIndex,
    gateways::GatewayIndex,
    policies::PolicyIndex,
    quotas::QuotaIndex,
    services::ServiceIndex,
    sidecar_scope::{SidecarIndex, SidecarScope},
    status::{Metric, PushStatus},
    telemetry::TelemetryIndex,
    virtual_services::VirtualServiceIndex,
    wasm_plugins::WasmPluginIndex,
};
use crate::config::store::{ConfigStore, Kind, KindSet};
use crate::jwks::KeySets;
use crate::model::{Credentials, Mesh, Proxy};
use crate::registry::ServiceRegistry;

/// Namespace and `Sidecar` that a scope was worked out for.
type ScopeKey = (String, Option<String>);
type Scopes = Arc<Mutex<HashMap<ScopeKey, Arc<SidecarScope>>>>;

/// Kinds of which the index of policies is made.
const POLICY_KINDS: [Kind; 8] = [
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::AuthorizationPolicy,
    Kind::AuthenticationPolicy,
    Kind::MeshPolicy,
    Kind::ClusterRbacConfig,
    Kind::ServiceRole,
    Kind::ServiceRoleBinding,
];

/// Everything, frozen.
#[derive(Debug, Default)]
pub struct PushContext {
    /// Counts up.
    pub version: u64,
    /// `cluster.local`.
    pub domain: String,
    /// The mesh's settings.
    pub mesh: Arc<Mesh>,
    /// Services.
    pub services: Arc<ServiceIndex>,
    /// Endpoints.
    pub endpoints: Arc<EndpointIndex>,
    /// Virtual services.
    pub virtual_services: Arc<VirtualServiceIndex>,
    /// Destination rules.
    pub destination_rules: Arc<DestinationRuleIndex>,
    /// Gateways.
    pub gateways: Arc<GatewayIndex>,
    /// Sidecar resources.
    pub sidecars: Arc<SidecarIndex>,
    /// Security policies.
    pub policies: Arc<PolicyIndex>,
    /// Keys that were fetched.
    pub keys: Arc<KeySets>,
    /// Patches.
    pub envoy_filters: Arc<EnvoyFilterIndex>,
    /// Telemetry resources.
    pub telemetries: Arc<TelemetryIndex>,
    /// Plugins.
    pub wasm_plugins: Arc<WasmPluginIndex>,
    /// Credentials of gateways by namespace.
    pub credentials: Arc<BTreeMap<String, Credentials>>,
    /// Quotas of the 1.4 line.
    pub quotas: Arc<QuotaIndex>,
    /// What went wrong.
    pub status: Arc<PushStatus>,
    scopes: Scopes,
    /// Those of the context before, unless nothing in them can still be right.
    previous_scopes: Scopes,
}

impl PushContext {
    /// The next context: `changed` says what the previous one no longer has right.
    #[must_use]
    #[allow(
        clippy::too_many_lines,
        reason = "one entry an index: the list of what is shared and what is made anew"
    )]
    pub fn next(
        previous: &PushContext,
        domain: &str,
        mesh: &Arc<Mesh>,
        store: &ConfigStore,
        registry: &ServiceRegistry,
        keys: &Arc<KeySets>,
        changed: &KindSet,
    ) -> Self {
        let mesh_changed = changed.has(Kind::MeshConfig);
        let root = mesh.root_namespace.as_str();
        let has = |kind| mesh_changed || changed.has(kind);
        let policies_changed = POLICY_KINDS.into_iter().any(has);
        let quotas_changed = has(Kind::QuotaSpec) || has(Kind::QuotaSpecBinding);
        let status = Arc::new(PushStatus::default());
        let mut next = PushContext {
            version: previous.version + 1,
            domain: domain.to_owned(),
            mesh: Arc::clone(mesh),
            services: share(&previous.services, has(Kind::Service), || {
                ServiceIndex::new(registry.services())
            }),
            endpoints: share(
                &previous.endpoints,
                has(Kind::Service) || has(Kind::Endpoint),
                || EndpointIndex::new(registry.endpoints()),
            ),
            virtual_services: share(
                &previous.virtual_services,
                has(Kind::VirtualService),
                || {
                    VirtualServiceIndex::new(
                        (!mesh_changed).then_some(&previous.virtual_services),
                        store.virtual_services.values(),
                        domain,
                        &mesh.virtual_service_export_to,
                    )
                },
            ),
            destination_rules: share(
                &previous.destination_rules,
                has(Kind::DestinationRule),
                || {
                    DestinationRuleIndex::new(
                        store.destination_rules.values(),
                        root,
                        domain,
                        &mesh.destination_rule_export_to,
                    )
                },
            ),
            gateways: share(&previous.gateways, has(Kind::Gateway), || {
                GatewayIndex::new(store.gateways.values())
            }),
            sidecars: share(&previous.sidecars, has(Kind::Sidecar), || {
                SidecarIndex::new(store.sidecars.values(), root)
            }),
            policies: share(&previous.policies, policies_changed, || {
                PolicyIndex::new(&policies::Sources {
                    store,
                    root,
                    domain,
                })
            }),
            keys: Arc::clone(keys),
            envoy_filters: share(&previous.envoy_filters, has(Kind::EnvoyFilter), || {
                EnvoyFilterIndex::new(store.envoy_filters.values(), root)
            }),
            telemetries: share(&previous.telemetries, has(Kind::Telemetry), || {
                TelemetryIndex::new(store.telemetries.values(), root)
            }),
            wasm_plugins: share(&previous.wasm_plugins, has(Kind::WasmPlugin), || {
                WasmPluginIndex::new(store.wasm_plugins.values(), root)
            }),
            credentials: Arc::clone(&store.credentials),
            quotas: share(&previous.quotas, quotas_changed, || {
                QuotaIndex::new(store, domain)
            }),
            status: Arc::clone(&previous.status),
            scopes: Arc::clone(&previous.scopes),
            previous_scopes: Arc::clone(&previous.previous_scopes),
        };
        if !changed.is_only(Kind::Endpoint) {
            next.previous_scopes = std::mem::take(&mut next.scopes);
            if mesh_changed {
                next.previous_scopes = Arc::default();
            }
            let is_only_steered =
                (changed.iter()).all(|kind| matches!(kind, Kind::VirtualService | Kind::Endpoint));
            if is_only_steered && next.sidecars.is_empty() && next.steers_connections_like(previous)
            {
                status.keep(&previous.status, |metric| !metric.is_of_routes());
            }
            next.report(&status);
            next.status = status;
        }
        next
    }

    /// True when TCP and TLS routes of virtual services are as in `other`.
    #[must_use]
    pub fn steers_connections_like(&self, other: &PushContext) -> bool {
        (self.virtual_services).steers_connections_like(&other.virtual_services)
    }

    /// Notes what was wrong with resources by themselves.
    fn report(&self, status: &PushStatus) {
        for subset in &self.destination_rules.duplicate_subsets {
            let text = "declared twice for one host; the older one counts";
            status.record(Metric::DuplicateSubset, subset, "", text);
        }
        for (what, reason) in &self.envoy_filters.problems {
            status.record(Metric::InvalidEnvoyFilter, what, "", reason);
        }
        for config in self.telemetries.with_metrics() {
            let text = "metrics: only proxies that announce istio.stats follow them";
            let what = config.meta.full_name();
            status.record(Metric::InvalidTelemetry, &what, "", text);
        }
        for (what, reason) in self.wasm_plugins.problems() {
            status.record(Metric::InvalidExtension, &what, "", reason);
        }
    }

    /// What `proxy` can see.
    #[must_use]
    pub fn scope_of(&self, proxy: &Proxy) -> Arc<SidecarScope> {
        let sidecar = self.sidecars.select(proxy);
        let key = (
            proxy.namespace.clone(),
            sidecar.map(|config| format!("{}/{}", config.meta.namespace, config.meta.name)),
        );
        if let Some(scope) = self.scopes.lock().get(&key) {
            return Arc::clone(scope);
        }
        let before = self.previous_scopes.lock().get(&key).cloned();
        let scope = Arc::new(SidecarScope::new(
            &proxy.namespace,
            sidecar.cloned(),
            self,
            before.as_deref(),
        ));
        // Of several that come at once one has made it for all.
        Arc::clone(self.scopes.lock().entry(key).or_insert(scope))
    }
}

fn share<T>(previous: &Arc<T>, is_stale: bool, build: impl FnOnce() -> T) -> Arc<T> {
    if is_stale {
        Arc::new(build())
    } else {
        Arc::clone(previous)
    }
}
