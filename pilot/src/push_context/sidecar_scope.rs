//! What one group of proxies can see: the egress listeners of its `Sidecar` resource, or the default of everything.
//!
//! A scope is the same for all proxies that follow the same `Sidecar` (or none) in the same namespace, so it is worked out once
//! for each push context and shared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proto::istio::networking::v1alpha3::{
    self as wire, CaptureMode, outbound_traffic_policy::Mode,
};
use proto_mesh::host;

use super::host_index::HostIndex;
use super::virtual_services::{MESH, VirtualService, VirtualServiceIndex, is_same_list};
use super::{PushContext, services::ServiceIndex};
use crate::config::{Config, by_namespace};
use crate::model::{Proxy, Service, mesh::provider_hosts as hosts};

/// All `Sidecar` resources by namespace, oldest first.
#[derive(Debug, Default)]
pub struct SidecarIndex {
    by_namespace: HashMap<String, Vec<Config<wire::Sidecar>>>,
    root: String,
}

/// One egress listener's world.
#[derive(Debug)]
pub struct EgressListener {
    /// Its port, or `None` for the one that takes all ports.
    pub port: Option<wire::SidecarPort>,
    /// Address to bind; empty: by the rules.
    pub bind: String,
    /// How it gets its connections.
    pub capture_mode: CaptureMode,
    /// What can be reached through it, oldest first.
    pub services: Vec<Arc<Service>>,
    /// What steers it, oldest first.
    pub virtual_services: Vec<Arc<VirtualService>>,
    by_host: HostIndex,
}

/// What a proxy sees.
#[derive(Debug)]
pub struct SidecarScope {
    /// The proxies' namespace.
    pub namespace: String,
    /// The same in the scopes of following push contexts as long as the same services are seen through the same resource;
    /// what steers the traffic to them may be another.
    pub identity: u64,
    /// The resource behind it.
    pub sidecar: Option<Config<wire::Sidecar>>,
    /// At least one.
    pub egress: Vec<EgressListener>,
    /// Everything in any listener, oldest first.
    pub services: Vec<Arc<Service>>,
    /// Whether destinations that nobody declared may be reached.
    pub is_any_allowed: bool,
    /// Where undeclared destinations go instead of their own address.
    pub egress_proxy: Option<wire::Destination>,
    by_host: HashMap<String, Arc<Service>>,
}

impl SidecarIndex {
    /// Builds the index.
    pub fn new<'a>(configs: impl Iterator<Item = &'a Config<wire::Sidecar>>, root: &str) -> Self {
        SidecarIndex {
            by_namespace: by_namespace(configs),
            root: root.to_owned(),
        }
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// The resource that `proxy` follows: one that selects it, its namespace's, the root namespace's.
    #[must_use]
    pub fn select(&self, proxy: &Proxy) -> Option<&Config<wire::Sidecar>> {
        if proxy.is_router() {
            return None;
        }
        let own = self
            .by_namespace
            .get(&proxy.namespace)
            .map_or(&[][..], Vec::as_slice);
        let selecting = own.iter().find(|config| {
            let selector = config.spec.workload_selector.as_ref();
            selector.is_some_and(|selector| {
                !selector.labels.is_empty() && proxy.is_selected_by(&selector.labels)
            })
        });
        selecting.or_else(|| default_of(own)).or_else(|| {
            self.by_namespace
                .get(&self.root)
                .and_then(|list| default_of(list))
        })
    }
}

fn default_of(configs: &[Config<wire::Sidecar>]) -> Option<&Config<wire::Sidecar>> {
    configs.iter().find(|config| {
        config
            .spec
            .workload_selector
            .as_ref()
            .is_none_or(|selector| selector.labels.is_empty())
    })
}

impl EgressListener {
    /// The virtual services that steer `host`, oldest first.
    pub fn virtual_services_of(&self, host: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        let positions = self.by_host.of(host).into_iter();
        positions.map(|position| &self.virtual_services[position])
    }

    /// Finds the virtual services by the hosts that they are for.
    fn indexed(mut self) -> Self {
        for (position, service) in self.virtual_services.iter().enumerate() {
            for host in &service.hosts {
                self.by_host.add(host, position);
            }
        }
        self
    }
}

impl SidecarScope {
    /// Works the scope out; `previous` is the one of the same group of proxies before.
    #[must_use]
    pub fn new(
        namespace: &str,
        sidecar: Option<Config<wire::Sidecar>>,
        push: &PushContext,
        previous: Option<&SidecarScope>,
    ) -> Self {
        let visible = push.services.visible_to(namespace);
        let egress: Vec<EgressListener> = match &sidecar {
            Some(config) if !config.spec.egress.is_empty() => config
                .spec
                .egress
                .iter()
                .map(|listener| {
                    egress_listener(
                        listener,
                        namespace,
                        &visible,
                        &push.virtual_services,
                        &push.services,
                    )
                })
                .collect(),
            _ => vec![EgressListener {
                port: None,
                bind: String::new(),
                capture_mode: CaptureMode::Default,
                virtual_services: mesh_virtual_services(&push.virtual_services, namespace)
                    .cloned()
                    .collect(),
                services: visible.clone(),
                by_host: HostIndex::default(),
            }],
        };
        let egress: Vec<_> = egress.into_iter().map(EgressListener::indexed).collect();
        let wanted: HashSet<&str> = egress
            .iter()
            .flat_map(|listener| &listener.services)
            .map(|service| service.host.as_str())
            .collect();
        // Whoever policies call by name must be reachable, whatever the resource lets the application see.
        let providers: HashSet<&str> = hosts(&push.mesh.extension_providers).collect();
        let services: Vec<_> = visible
            .into_iter()
            .filter(|service| {
                let host = service.host.as_str();
                wanted.contains(host) || providers.contains(host)
            })
            .collect();
        let by_host = services
            .iter()
            .map(|service| (service.host.clone(), Arc::clone(service)))
            .collect();
        let policy = sidecar
            .as_ref()
            .and_then(|config| config.spec.outbound_traffic_policy.as_ref());
        let mut scope = SidecarScope {
            namespace: namespace.to_owned(),
            identity: push.version,
            egress,
            services,
            by_host,
            is_any_allowed: policy.map_or(push.mesh.is_any_outbound_allowed, |policy| {
                policy.mode() != Mode::RegistryOnly
            }),
            egress_proxy: policy.and_then(|policy| policy.egress_proxy.clone()),
            sidecar,
        };
        if let Some(previous) = previous.filter(|previous| scope.sees_the_same(previous)) {
            scope.identity = previous.identity;
        }
        scope
    }

    fn sees_the_same(&self, other: &SidecarScope) -> bool {
        let is_same_sidecar = match (&self.sidecar, &other.sidecar) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        // Of the same resource the listeners are the same.
        let mut listeners = self.egress.iter().zip(&other.egress);
        is_same_sidecar
            && is_same_list(&self.services, &other.services)
            && listeners.all(|(one, other)| is_same_list(&one.services, &other.services))
    }

    /// The service that is meant by `host` here.
    #[must_use]
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.by_host.get(host)
    }
}

fn mesh_virtual_services<'a>(
    index: &'a VirtualServiceIndex,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Arc<VirtualService>> {
    index
        .bound_to(MESH)
        .iter()
        .filter(move |service| service.is_visible_to(namespace))
}

fn egress_listener(
    listener: &wire::IstioEgressListener,
    namespace: &str,
    visible: &[Arc<Service>],
    virtual_services: &VirtualServiceIndex,
    all: &ServiceIndex,
) -> EgressListener {
    let hosts = EgressHosts::parse(&listener.hosts, namespace);
    let virtual_services: Vec<_> = mesh_virtual_services(virtual_services, namespace)
        .filter(|service| {
            service
                .hosts
                .iter()
                .any(|name| hosts.import(&service.namespace, name))
        })
        .cloned()
        .collect();
    // On a Unix socket the port is 0, and services of all ports are reached.
    let port = listener.port.as_ref().filter(|port| port.number > 0);
    let has_port = |service: &Service| port.is_none_or(|port| service.port(port.number).is_some());
    let mut services: Vec<_> = visible
        .iter()
        .filter(|service| hosts.import(&service.namespace, &service.host) && has_port(service))
        .cloned()
        .collect();
    // A virtual service brings its destinations along, wherever they are.
    let mut known: HashSet<String> = services
        .iter()
        .map(|service| service.host.clone())
        .collect();
    for name in virtual_services
        .iter()
        .flat_map(|service| destination_hosts(service))
    {
        if let Some(service) = all.lookup(name, namespace)
            && known.insert(service.host.clone())
        {
            services.push(Arc::clone(service));
        }
    }
    services.sort_by(|a, b| (a.created, &a.host).cmp(&(b.created, &b.host)));
    EgressListener {
        port: listener.port.clone(),
        bind: listener.bind.clone(),
        capture_mode: listener.capture_mode(),
        services,
        virtual_services,
        by_host: HostIndex::default(),
    }
}

fn destination_hosts(service: &VirtualService) -> impl Iterator<Item = &str> {
    let http = service.http.iter().flat_map(|route| {
        let routes = route
            .route
            .iter()
            .filter_map(|weighted| weighted.destination.as_ref());
        let mirrors = route
            .mirrors
            .iter()
            .filter_map(|mirror| mirror.destination.as_ref());
        routes.chain(mirrors).chain(route.mirror.as_ref())
    });
    let tcp = service.tcp.iter().flat_map(|route| &route.route);
    let tls = service.tls.iter().flat_map(|route| &route.route);
    http.chain(
        tcp.chain(tls)
            .filter_map(|weighted| weighted.destination.as_ref()),
    )
    .map(|destination| destination.host.as_str())
}

/// `namespace/host` patterns.
struct EgressHosts<'a> {
    wanted: Vec<(&'a str, &'a str)>,
    excluded: Vec<&'a str>,
}

impl<'a> EgressHosts<'a> {
    fn parse(hosts: &'a [String], namespace: &'a str) -> Self {
        let mut parsed = EgressHosts {
            wanted: Vec::new(),
            excluded: Vec::new(),
        };
        for entry in hosts {
            let Some((place, name)) = entry.split_once('/') else {
                continue;
            };
            match place {
                "~" => {}
                "." => parsed.wanted.push((namespace, name)),
                _ => match place.strip_prefix('~') {
                    Some(excluded) => parsed.excluded.push(excluded),
                    None => parsed.wanted.push((place, name)),
                },
            }
        }
        parsed
    }

    fn import(&self, namespace: &str, name: &str) -> bool {
        !self.excluded.contains(&namespace)
            && self.wanted.iter().any(|(place, pattern)| {
                (*place == "*" || *place == namespace) && host::matches(pattern, name)
            })
    }
}
