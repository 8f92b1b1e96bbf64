//! Virtual services, ready for the generators: short names resolved, delegates merged in.
//!
//! What is as it was in the previous index is the same value here, so that whoever has made something of it can tell.

use std::collections::HashMap;
use std::sync::Arc;

use proto::istio::networking::v1alpha3 as wire;
use proto_mesh::host;
use proto_mesh::visibility::Visibility;

use super::delegate;
use crate::config::{Config, by_age};

/// The gateway name that means "all sidecars".
pub const MESH: &str = "mesh";

/// One virtual service.
#[derive(Clone, Debug, PartialEq)]
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
    /// True when clients in `namespace` follow it.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility.is_visible_to(namespace)
    }
}

/// A resource, and what it means by itself: short names resolved, delegates not yet merged.
#[derive(Clone, Debug)]
struct Resolved {
    config: Config<wire::VirtualService>,
    service: Arc<VirtualService>,
}

/// All virtual services that have hosts, oldest first.
#[derive(Debug, Default)]
pub struct VirtualServiceIndex {
    all: Vec<Arc<VirtualService>>,
    by_gateway: HashMap<String, Vec<Arc<VirtualService>>>,
    has_source_labels: bool,
    /// Every resource by namespace and name, delegates too.
    resolved: HashMap<(String, String), Resolved>,
    /// Those that steer connections.
    of_connections: Vec<Arc<VirtualService>>,
}

impl VirtualServiceIndex {
    /// Builds the index. `previous` must have been built with the same domain and default.
    pub fn new<'a>(
        previous: Option<&Self>,
        configs: impl Iterator<Item = &'a Config<wire::VirtualService>>,
        domain: &str,
        default: &[String],
    ) -> Self {
        let mut index = VirtualServiceIndex::default();
        let mut order = Vec::new();
        for config in by_age(configs) {
            let key = (config.meta.namespace.clone(), config.meta.name.clone());
            let known = previous
                .and_then(|previous| previous.resolved.get(&key))
                .filter(|known| Arc::ptr_eq(&known.config, config));
            let resolved = known.cloned().unwrap_or_else(|| Resolved {
                config: Arc::clone(config),
                service: Arc::new(resolve(config, domain, default)),
            });
            order.push(Arc::clone(&resolved.service));
            index.resolved.insert(key, resolved);
        }
        let known: HashMap<(&str, &str), &Arc<VirtualService>> = previous
            .iter()
            .flat_map(|previous| &previous.all)
            .map(|service| ((service.namespace.as_str(), service.name.as_str()), service))
            .collect();
        for root in order.into_iter().filter(|root| !root.hosts.is_empty()) {
            let same = known
                .get(&(root.namespace.as_str(), root.name.as_str()))
                .copied();
            let service = index.with_delegates(root, same);
            index.add(service);
        }
        index
    }

    /// `root` with the routes of its delegates in place; `same`, if that is what it was before.
    fn with_delegates(
        &self,
        root: Arc<VirtualService>,
        same: Option<&Arc<VirtualService>>,
    ) -> Arc<VirtualService> {
        if root.http.iter().all(|route| route.delegate.is_none()) {
            return root;
        }
        let mut merged = (*root).clone();
        merged.http = delegate::merge(&root, |namespace, name| {
            let key = (namespace.to_owned(), name.to_owned());
            let found = self.resolved.get(&key).map(|found| &*found.service);
            found.filter(|found| found.hosts.is_empty())
        });
        match same {
            Some(same) if **same == merged => Arc::clone(same),
            _ => Arc::new(merged),
        }
    }

    fn add(&mut self, service: Arc<VirtualService>) {
        self.has_source_labels |= has_source_labels(&service);
        for gateway in &service.gateways {
            self.by_gateway
                .entry(gateway.clone())
                .or_default()
                .push(Arc::clone(&service));
        }
        if !service.tcp.is_empty() || !service.tls.is_empty() {
            self.of_connections.push(Arc::clone(&service));
        }
        self.all.push(service);
    }

    /// True when TCP and TLS routes are as in `other`.
    #[must_use]
    pub fn steers_connections_like(&self, other: &Self) -> bool {
        is_same_list(&self.of_connections, &other.of_connections)
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

/// True when both hold the same values, and not only equal ones.
pub(super) fn is_same_list<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| Arc::ptr_eq(one, other))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto_mesh::{Checked, Metadata};

    use super::*;

    fn config(name: &str, spec: &str) -> Config<wire::VirtualService> {
        let meta = Metadata {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ..Metadata::default()
        };
        let spec = proto::yaml::from_str(spec).unwrap();
        Arc::new(Checked::new(meta, spec).unwrap().0)
    }

    fn route(host: &str) -> String {
        format!("{{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}")
    }

    #[test]
    fn what_has_not_changed_is_the_same_value() {
        let root = "{hosts: [root], http: [{delegate: {name: child}}]}";
        let child =
            |host: &str| format!("{{http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}");
        let tcp = "{hosts: [tcp], tcp: [{route: [{destination: {host: tcp}}]}]}";
        let mut configs = BTreeMap::from([
            ("a", config("a", &route("a"))),
            ("b", config("b", &route("b"))),
            ("root", config("root", root)),
            ("child", config("child", &child("a"))),
            ("tcp", config("tcp", tcp)),
        ]);
        let build = |previous: Option<&VirtualServiceIndex>, configs: &BTreeMap<_, _>| {
            VirtualServiceIndex::new(previous, configs.values(), "cluster.local", &[])
        };
        let named = |index: &VirtualServiceIndex, name: &str| {
            let found = index.all().iter().find(|service| service.name == name);
            Arc::clone(found.unwrap())
        };
        let is_same = |one: &VirtualServiceIndex, other: &VirtualServiceIndex, name: &str| {
            Arc::ptr_eq(&named(one, name), &named(other, name))
        };
        let first = build(None, &configs);
        configs.insert("a", config("a", &route("other")));
        let second = build(Some(&first), &configs);
        assert!(!is_same(&first, &second, "a") && is_same(&first, &second, "b"));
        assert!(is_same(&first, &second, "root") && second.steers_connections_like(&first));
        // A root changes with its delegate, which has no hosts of its own.
        configs.insert("child", config("child", &child("b")));
        let third = build(Some(&second), &configs);
        assert!(!is_same(&second, &third, "root") && is_same(&second, &third, "a"));
        assert_eq!(third.all().len(), 4);
        configs.remove("tcp");
        assert!(!build(Some(&third), &configs).steers_connections_like(&third));
    }
}
