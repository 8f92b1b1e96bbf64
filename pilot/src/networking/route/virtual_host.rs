//! The names under which a service is called, and virtual hosts made of them.

use std::collections::HashSet;

use proto::envoy::config::route::v3::VirtualHost;
use proto_mesh::host;

use crate::model::{Proxy, Service};
use crate::networking::View;
use crate::push_context::status::Metric;

/// Whether a domain needs its port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ports {
    /// With and without.
    Optional,
    /// Only with: several ports share one listener.
    Required,
}

/// The domains under which `proxy` calls `service` on `port`: its name, short forms of it, its addresses.
pub(super) fn service_domains(
    proxy: &Proxy,
    service: &Service,
    port: u32,
    ports: Ports,
) -> Vec<String> {
    let mut names = host_forms(proxy, &service.host);
    if service.is_headless() {
        let pods: Vec<String> = names.iter().map(|name| format!("*.{name}")).collect();
        names.extend(pods);
    }
    names.extend(service.ips_for(proxy).into_iter().map(|ip| {
        if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        }
    }));
    with_ports(&names, port, ports)
}

/// The domains of a host that is no service.
pub(super) fn host_domains(proxy: &Proxy, name: &str, port: u32, ports: Ports) -> Vec<String> {
    with_ports(&host_forms(proxy, name), port, ports)
}

fn with_ports(names: &[String], port: u32, ports: Ports) -> Vec<String> {
    let mut domains = Vec::with_capacity(names.len() * 2);
    for name in names {
        if name == host::ANY {
            domains.push(name.clone());
            continue;
        }
        if ports == Ports::Optional {
            domains.push(name.clone());
        }
        domains.push(format!("{name}:{port}"));
    }
    domains
}

/// A host and the shorter ways that resolvers in the proxy's namespace let an application write it.
fn host_forms(proxy: &Proxy, name: &str) -> Vec<String> {
    let mut forms = vec![name.to_owned()];
    // `default.svc.cluster.local` → `svc.cluster.local`
    let Some((namespace, domain)) = proxy.dns_domain.split_once('.') else {
        return forms;
    };
    let Some(service) = name
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'))
    else {
        return forms;
    };
    if host::is_wildcard(name) {
        return forms;
    }
    if domain.starts_with("svc.") || domain == "svc" {
        forms.push(format!("{service}.svc"));
    }
    forms.push(service.to_owned());
    if let Some(short) = service
        .strip_suffix(namespace)
        .and_then(|rest| rest.strip_suffix('.'))
        && !short.contains('.')
    {
        forms.push(short.to_owned());
    }
    forms
}

/// Envoy refuses a route configuration in which a domain stands twice: the first virtual host keeps it.
pub(super) fn deduplicate(view: &View<'_>, hosts: Vec<VirtualHost>) -> Vec<VirtualHost> {
    let mut domains = HashSet::new();
    let mut kept = Vec::with_capacity(hosts.len());
    for mut host in hosts {
        let before = host.domains.len();
        host.domains
            .retain(|domain| domains.insert(domain.to_ascii_lowercase()));
        if host.domains.len() < before {
            tracing::trace!(target: "model", virtual_host = host.name, "some domains belong to another virtual host");
        }
        if host.domains.is_empty() {
            view.record(
                Metric::DuplicateDomain,
                &host.name,
                "all its domains belong to other virtual hosts",
            );
        } else {
            kept.push(host);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envoy::config::core::v3::Node;

    fn proxy() -> Proxy {
        let node = Node {
            id: "sidecar~10.0.0.1~web.default~default.svc.cluster.local".to_owned(),
            ..Node::default()
        };
        Proxy::try_from(&node).unwrap()
    }

    #[test]
    fn services_of_the_own_namespace_have_the_shortest_names() {
        assert_eq!(
            host_forms(&proxy(), "reviews.default.svc.cluster.local"),
            [
                "reviews.default.svc.cluster.local",
                "reviews.default.svc",
                "reviews.default",
                "reviews"
            ]
        );
        assert_eq!(
            host_forms(&proxy(), "db.prod.svc.cluster.local"),
            ["db.prod.svc.cluster.local", "db.prod.svc", "db.prod"]
        );
        assert_eq!(host_forms(&proxy(), "example.com"), ["example.com"]);
    }
}
