//! A gateway's route configurations: the virtual services bound to its servers, merged by host.

use std::collections::BTreeMap;

use proto::envoy::config::route::v3::{VirtualHost, virtual_host::TlsRequirementType};
use proto_mesh::host::{self, NamespacedHost};

use super::answering;
use super::route_action::routes;
use crate::networking::View;
use crate::push_context::gateways::GatewayServer;

pub(super) fn build(view: &View<'_>, name: &str) -> Vec<VirtualHost> {
    let servers = view.gateway.servers_of_route(name);
    let port = servers
        .first()
        .map_or_else(|| port_of(name), |server| server.port());
    let mut hosts: BTreeMap<String, VirtualHost> = BTreeMap::new();
    for server in servers {
        let redirects = server
            .server
            .tls
            .as_ref()
            .is_some_and(|tls| tls.https_redirect);
        for service in view.push.virtual_services.bound_to(&server.gateway) {
            if !service.is_visible_to(&view.proxy.namespace) || service.http.is_empty() {
                continue;
            }
            for domain in domains(server, &service.namespace, &service.hosts) {
                let found = routes(view, service, port, &[&server.gateway]);
                let entry = hosts
                    .entry(domain.clone())
                    .or_insert_with(|| virtual_host(view, &domain, port));
                if redirects {
                    entry.require_tls = TlsRequirementType::All as i32;
                }
                // Routes of several virtual services for one host follow each other by age.
                for route in found {
                    if !entry.routes.contains(&route) {
                        entry.routes.push(route);
                    }
                }
            }
        }
        if redirects {
            // Redirects need no routes: hosts without any still answer.
            for domain in server.hosts() {
                let entry = hosts
                    .entry(domain.to_owned())
                    .or_insert_with(|| virtual_host(view, domain, port));
                entry.require_tls = TlsRequirementType::All as i32;
            }
        }
    }
    if hosts.is_empty() {
        return vec![answering(&format!("blackhole:{port}"), "*", 404)];
    }
    hosts.into_values().collect()
}

fn port_of(name: &str) -> u32 {
    name.split('.')
        .nth(1)
        .and_then(|port| port.parse().ok())
        .unwrap_or(0)
}

fn virtual_host(view: &View<'_>, domain: &str, port: u32) -> VirtualHost {
    // A gateway is reached through ports that it does not know of; Envoy has no wildcard at both ends.
    let with_port = match domain {
        host::ANY => None,
        wildcard if host::is_wildcard(wildcard) => Some(format!("{wildcard}:{port}")),
        name => Some(format!("{name}:*")),
    };
    VirtualHost {
        name: format!("{domain}:{port}"),
        domains: std::iter::once(domain.to_owned())
            .chain(with_port)
            .collect(),
        include_request_attempt_count: view.push.mesh.is_attempt_told(),
        ..VirtualHost::default()
    }
}

/// What a server's hosts and a virtual service's hosts have in common: of each pair the narrower one.
fn domains(server: &GatewayServer, namespace: &str, hosts: &[String]) -> Vec<String> {
    let allowed: Vec<NamespacedHost> = server
        .server
        .hosts
        .iter()
        .map(|text| NamespacedHost::parse(text))
        .collect();
    let mut common = Vec::new();
    for name in hosts {
        for entry in allowed
            .iter()
            .filter(|entry| entry.allows_namespace(namespace, &server.namespace))
        {
            let domain = if host::is_subset(name, &entry.host) {
                name
            } else if host::is_subset(&entry.host, name) {
                &entry.host
            } else {
                continue;
            };
            if !common.contains(domain) {
                common.push(domain.clone());
            }
        }
    }
    common
}
