//! One proxy's view of a push context: what several generators need, worked out once a push.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{Endpoint, Proxy, Service, ServicePort};
use crate::push_context::PushContext;
use crate::push_context::destination_rules::DestinationRule;
use crate::push_context::envoy_filters::Patches;
use crate::push_context::gateways::MergedGateway;
use crate::push_context::policies::PeerPolicy;
use crate::push_context::sidecar_scope::SidecarScope;
use crate::push_context::status::Metric;
use crate::push_context::telemetry::Telemetry;

/// A port of a service that the proxy's own workload serves.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: ServicePort,
    /// The workload's endpoint.
    pub endpoint: Arc<Endpoint>,
}

impl Instance {
    /// The workload's port.
    #[must_use]
    pub fn target_port(&self) -> u32 {
        self.endpoint.port_for(&self.port)
    }
}

/// Trouble with a resource, so that it can be noted again as long as what was made of the resource is used.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    metric: Metric,
    what: String,
    message: String,
}

/// What generators look at.
#[derive(Debug)]
pub struct View<'a> {
    /// The proxy.
    pub proxy: &'a Proxy,
    /// The world.
    pub push: &'a PushContext,
    /// What the proxy can see of it.
    pub scope: Arc<SidecarScope>,
    /// What the proxy's workload serves; one for each workload port.
    pub instances: Vec<Instance>,
    /// How connections to the workload are taken.
    pub peer_policy: PeerPolicy,
    /// What a gateway serves; empty for sidecars.
    pub gateway: MergedGateway,
    /// What the generated configuration is patched with.
    pub patches: Patches,
    /// What is told of the traffic.
    pub telemetry: Telemetry,
    /// What is noted, while somebody wants to know.
    recorded: Mutex<Option<Vec<Trouble>>>,
}

impl<'a> View<'a> {
    /// Works it out.
    #[must_use]
    pub fn new(proxy: &'a Proxy, push: &'a PushContext) -> Self {
        let gateway = if proxy.is_router() {
            push.gateways.merge_for(proxy, &push.status)
        } else {
            MergedGateway::default()
        };
        let instances = instances(proxy, push);
        let mut peer_policy = push.policies.peer_policy(proxy);
        if !peer_policy.is_set {
            // The 1.4 line's policies are for services, and hold where no PeerAuthentication does.
            let legacy = push.policies.legacy();
            let modes = instances.iter().filter_map(|instance| {
                let mode = legacy.mode(&instance.service, &instance.port)?;
                Some((instance.target_port(), mode))
            });
            peer_policy.by_port.extend(modes);
        }
        if !proxy.has_certificates() {
            peer_policy = peer_policy.without_certificates();
        }
        View {
            scope: push.scope_of(proxy),
            instances,
            peer_policy,
            patches: push.envoy_filters.select(proxy),
            telemetry: push.telemetries.select(proxy),
            gateway,
            proxy,
            push,
            recorded: Mutex::default(),
        }
    }

    /// The service that `host` means to this proxy.
    #[must_use]
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.scope.service(host)
    }

    /// The destination rule that this proxy follows for `service`.
    #[must_use]
    pub fn destination_rule(&self, service: &Service) -> Option<&Arc<DestinationRule>> {
        self.push.destination_rules.select(
            &self.proxy.namespace,
            &self.proxy.labels,
            &service.host,
            &service.namespace,
        )
    }

    /// `host`, `host.namespace` or `host.namespace.svc` written out.
    #[must_use]
    pub fn full_host(&self, host: &str) -> String {
        let domain = &self.push.domain;
        match host.split('.').count() {
            1 => format!("{host}.{}.svc.{domain}", self.push.mesh.root_namespace),
            2 if self
                .push
                .services
                .lookup(host, &self.proxy.namespace)
                .is_none() =>
            {
                format!("{host}.svc.{domain}")
            }
            _ if host.ends_with(".svc") => format!("{host}.{domain}"),
            _ => host.to_owned(),
        }
    }

    /// `host` as the proxy's own resolver would complete it, if that is a service.
    #[must_use]
    pub fn full_host_of(&self, host: &str) -> String {
        let domain = &self.push.domain;
        let candidates = [
            host.to_owned(),
            format!("{host}.{domain}"),
            format!("{host}.svc.{domain}"),
            format!("{host}.{}.svc.{domain}", self.proxy.namespace),
        ];
        let known = candidates
            .iter()
            .find(|candidate| self.service(candidate).is_some());
        known.cloned().unwrap_or_else(|| host.to_owned())
    }

    /// Notes that a patch cannot be applied to `what`.
    pub fn record_patch(&self, what: &str) {
        self.record(
            Metric::InvalidEnvoyFilter,
            what,
            "the patch does not fit: it was not applied",
        );
    }

    /// Notes trouble with `what`.
    pub fn record(&self, metric: Metric, what: &str, message: &str) {
        self.push
            .status
            .record(metric, what, &self.proxy.id, message);
        if let Some(recorded) = self.recorded.lock().as_mut() {
            recorded.push(Trouble {
                metric,
                what: what.to_owned(),
                message: message.to_owned(),
            });
        }
    }

    /// What `make` makes, and what is noted meanwhile.
    pub(super) fn recording<T>(&self, make: impl FnOnce() -> T) -> (T, Vec<Trouble>) {
        *self.recorded.lock() = Some(Vec::new());
        let made = make();
        let troubles = self.recorded.lock().take();
        (made, troubles.unwrap_or_default())
    }

    /// Notes again what was noted before.
    pub(super) fn record_again(&self, troubles: &[Trouble]) {
        for trouble in troubles {
            self.record(trouble.metric, &trouble.what, &trouble.message);
        }
    }
}

/// What the workload at the proxy's addresses serves; the oldest service has a port that several want.
fn instances(proxy: &Proxy, push: &PushContext) -> Vec<Instance> {
    let mut found: Vec<Instance> = Vec::new();
    for (key, endpoint) in proxy.ips.iter().flat_map(|ip| push.endpoints.at(ip)) {
        if key.namespace != proxy.namespace {
            continue;
        }
        let Some(service) = push
            .services
            .lookup(&key.host, &key.namespace)
            .filter(|service| service.namespace == key.namespace)
        else {
            continue;
        };
        found.extend(service.ports.iter().map(|port| Instance {
            service: Arc::clone(service),
            port: port.clone(),
            endpoint: Arc::clone(endpoint),
        }));
    }
    found.sort_by(|a, b| {
        let order = |instance: &Instance| {
            (
                instance.service.created,
                instance.service.host.clone(),
                instance.port.number,
            )
        };
        order(a).cmp(&order(b))
    });
    let mut by_port: BTreeMap<u32, Instance> = BTreeMap::new();
    for instance in found {
        let port = instance.target_port();
        if let Some(older) = by_port.get(&port) {
            if older.service.host != instance.service.host && !proxy.is_router() {
                let message = format!(
                    "workload port {port} is already served for {}",
                    older.service.host
                );
                push.status.record(
                    Metric::InboundConflict,
                    &instance.service.host,
                    &proxy.id,
                    &message,
                );
            }
        } else {
            by_port.insert(port, instance);
        }
    }
    by_port.into_values().collect()
}
