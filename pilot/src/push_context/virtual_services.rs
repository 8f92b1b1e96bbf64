//! Virtual services, ready for the generators: short names resolved, delegates merged in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::networking::v1alpha3 as wire;
use proto_mesh::host;
use proto_mesh::visibility::Visibility;

use super::delegate;
use crate::config::{Config, by_age};

/// The gateway name that means "all sidecars".
pub const MESH: &str = "mesh";

/// One virtual service.
#[derive(Clone, Debug)]
pub struct VirtualService {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Fully qualified hosts, or wildcards.
    pub hosts: Vec<String>,
    /// `mesh`, or `namespace/name`.
    pub gateways: Vec<String>,
    /// HTTP routes, delegates resolved.
    pub http: Vec<wire::HttpRoute>,
    /// TCP routes.
    pub tcp: Vec<wire::TcpRoute>,
    /// TLS routes.
    pub tls: Vec<wire::TlsRoute>,
    visibility: Visibility,
}

impl VirtualService {
    /// True when it is for sidecars.
    #[must_use]
    pub fn is_for_mesh(&self) -> bool {
        self.gateways.iter().any(|gateway| gateway == MESH)
    }

    /// True when clients in `namespace` follow it.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility.is_visible_to(namespace)
    }
}

/// All virtual services that have hosts, oldest first.
#[derive(Debug, Default)]
pub struct VirtualServiceIndex {
    all: Vec<Arc<VirtualService>>,
    by_gateway: HashMap<String, Vec<Arc<VirtualService>>>,
    has_source_labels: bool,
}

impl VirtualServiceIndex {
    /// Builds the index.
    pub fn new<'a>(
        configs: impl Iterator<Item = &'a Config<wire::VirtualService>>,
        domain: &str,
        default: &[String],
    ) -> Self {
        let resolved: Vec<VirtualService> = by_age(configs)
            .into_iter()
            .map(|config| resolve(config, domain, default))
            .collect();
        let (roots, delegates): (Vec<_>, Vec<_>) = resolved
            .into_iter()
            .partition(|service| !service.hosts.is_empty());
        let delegates: BTreeMap<(String, String), VirtualService> = delegates
            .into_iter()
            .map(|service| ((service.namespace.clone(), service.name.clone()), service))
            .collect();
        let mut index = VirtualServiceIndex::default();
        for mut service in roots {
            service.http = delegate::merge(&service, &delegates);
            index.has_source_labels |= has_source_labels(&service);
            let service = Arc::new(service);
            for gateway in &service.gateways {
                index
                    .by_gateway
                    .entry(gateway.clone())
                    .or_default()
                    .push(Arc::clone(&service));
            }
            index.all.push(service);
        }
        index
    }

    /// Every virtual service, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Arc<VirtualService>] {
        &self.all
    }

    /// True when some route is only for certain workloads.
    #[must_use]
    pub fn has_source_labels(&self) -> bool {
        self.has_source_labels
    }

    /// Those bound to this gateway (`namespace/name` or `mesh`), oldest first.
    #[must_use]
    pub fn bound_to(&self, gateway: &str) -> &[Arc<VirtualService>] {
        self.by_gateway.get(gateway).map_or(&[], Vec::as_slice)
    }
}

fn has_source_labels(service: &VirtualService) -> bool {
    let http = service.http.iter().flat_map(|route| &route.r#match);
    let tcp = service.tcp.iter().flat_map(|route| &route.r#match);
    let tls = service.tls.iter().flat_map(|route| &route.r#match);
    http.map(|condition| &condition.source_labels)
        .chain(tcp.map(|condition| &condition.source_labels))
        .chain(tls.map(|condition| &condition.source_labels))
        .any(|labels| !labels.is_empty())
}

fn resolve(
    config: &Config<wire::VirtualService>,
    domain: &str,
    default: &[String],
) -> VirtualService {
    let (meta, mut spec) = (&config.meta, config.spec.clone());
    let namespace = &meta.namespace;
    for destination in destinations(&mut spec) {
        destination.host = host::resolve(&destination.host, namespace, domain);
    }
    for route in &mut spec.http {
        for gateway in route
            .r#match
            .iter_mut()
            .flat_map(|condition| &mut condition.gateways)
        {
            *gateway = resolve_gateway(gateway, namespace);
        }
        if let Some(delegate) = route
            .delegate
            .as_mut()
            .filter(|delegate| delegate.namespace.is_empty())
        {
            delegate.namespace.clone_from(namespace);
        }
    }
    let tcp = spec
        .tcp
        .iter_mut()
        .flat_map(|route| &mut route.r#match)
        .map(|condition| &mut condition.gateways);
    let tls = spec
        .tls
        .iter_mut()
        .flat_map(|route| &mut route.r#match)
        .map(|condition| &mut condition.gateways);
    for gateway in tcp.chain(tls).flatten() {
        *gateway = resolve_gateway(gateway, namespace);
    }
    let gateways = if spec.gateways.is_empty() {
        vec![MESH.to_owned()]
    } else {
        spec.gateways
            .iter()
            .map(|gateway| resolve_gateway(gateway, namespace))
            .collect()
    };
    VirtualService {
        name: meta.name.clone(),
        namespace: namespace.clone(),
        hosts: spec
            .hosts
            .iter()
            .map(|name| host::resolve(name, namespace, domain))
            .collect(),
        gateways,
        visibility: Visibility::new(&spec.export_to, default, namespace),
        http: spec.http,
        tcp: spec.tcp,
        tls: spec.tls,
    }
}

/// `mesh` stays, `name` gets the namespace; the old fully qualified form is taken apart.
fn resolve_gateway(gateway: &str, namespace: &str) -> String {
    if gateway == MESH || gateway.contains('/') {
        return gateway.to_owned();
    }
    let mut parts = gateway.splitn(3, '.');
    match (parts.next(), parts.next()) {
        (Some(name), Some(namespace)) => format!("{namespace}/{name}"),
        _ => format!("{namespace}/{gateway}"),
    }
}

fn destinations(spec: &mut wire::VirtualService) -> impl Iterator<Item = &mut wire::Destination> {
    let http = spec.http.iter_mut().flat_map(|route| {
        let routes = route
            .route
            .iter_mut()
            .filter_map(|weighted| weighted.destination.as_mut());
        let mirrors = route
            .mirrors
            .iter_mut()
            .filter_map(|mirror| mirror.destination.as_mut());
        routes.chain(mirrors).chain(route.mirror.as_mut())
    });
    let tcp = spec.tcp.iter_mut().flat_map(|route| &mut route.route);
    let tls = spec.tls.iter_mut().flat_map(|route| &mut route.route);
    http.chain(
        tcp.chain(tls)
            .filter_map(|weighted| weighted.destination.as_mut()),
    )
}
