//! A sidecar's route configurations: `9080` (all HTTP services on the port), `host:9080` (one service whose protocol had to be
//! found out), `http_proxy` (everything), or the path of a Unix socket.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proto::envoy::config::route::v3::{
    Route, RouteAction, VirtualHost, route::Action, route_action::ClusterSpecifier,
};
use proto_mesh::host;

use super::route_action::{default_route, routes};
use super::virtual_host::{Ports, host_domains, service_domains};
use super::{answering, any_path};
use crate::model::name::{HTTP_PROXY, PASSTHROUGH};
use crate::model::{ClusterName, Protocol, Service, ServicePort};
use crate::networking::listener::virtual_services_for;
use crate::networking::wire::seconds;
use crate::networking::{View, plugin};
use crate::push_context::sidecar_scope::EgressListener;
use crate::push_context::virtual_services::{MESH, VirtualService};

/// The port on which hosts without a service are served.
const DEFAULT_PORT: u32 = 80;

pub(super) fn build(view: &View<'_>, name: &str) -> Vec<VirtualHost> {
    let mut hosts = if name == HTTP_PROXY {
        let all = view
            .scope
            .egress
            .iter()
            .filter(|egress| egress.port.is_none());
        all.flat_map(|egress| of_listener(view, egress, None))
            .collect()
    } else if let Ok(port) = name.parse::<u32>() {
        listener_of(view, port)
            .map(|egress| of_listener(view, egress, Some(port)))
            .unwrap_or_default()
    } else if let Some(egress) = view.scope.egress.iter().find(|egress| egress.bind == name) {
        of_listener(view, egress, egress.port.as_ref().map(|port| port.number))
    } else if let Some(cluster) = ClusterName::parse(name) {
        // A gRPC client that configures itself asks for the routes of one service.
        return sniffed(view, &format!("{}:{}", cluster.host, cluster.port));
    } else {
        // Whatever is asked for there can only mean the one service.
        return sniffed(view, name);
    };
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.push(fallthrough(view));
    hosts
}

/// The egress listener that has the port: its own, or the one for all.
fn listener_of<'a>(view: &'a View<'_>, port: u32) -> Option<&'a EgressListener> {
    let has_port =
        |egress: &&EgressListener| egress.port.as_ref().is_some_and(|own| own.number == port);
    let egress = &view.scope.egress;
    egress
        .iter()
        .find(has_port)
        .or_else(|| egress.iter().find(|egress| egress.port.is_none()))
}

/// `host:port`: one service with an address of its own.
fn sniffed(view: &View<'_>, name: &str) -> Vec<VirtualHost> {
    let Some((host, port)) = name
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
    else {
        return Vec::new();
    };
    let Some(egress) = listener_of(view, port) else {
        return Vec::new();
    };
    let Some(service) = egress.services.iter().find(|service| service.host == host) else {
        return Vec::new();
    };
    let Some(service_port) = service.port(port) else {
        return Vec::new();
    };
    let mut virtual_host = of_service(view, egress, service, service_port, Ports::Optional);
    virtual_host.domains = vec!["*".to_owned()];
    vec![virtual_host]
}

fn of_listener(view: &View<'_>, egress: &EgressListener, port: Option<u32>) -> Vec<VirtualHost> {
    let mut hosts = Vec::new();
    let mut known: HashSet<&str> = HashSet::new();
    for service in &egress.services {
        for service_port in &service.ports {
            let is_wanted = port.is_none_or(|port| port == service_port.number);
            let has_requests =
                service_port.protocol.is_http() || service_port.protocol == Protocol::Unsupported;
            if is_wanted && has_requests {
                known.insert(&service.host);
                let ports = if port.is_some() || service_port.number == DEFAULT_PORT {
                    Ports::Optional
                } else {
                    Ports::Required
                };
                hosts.push(of_service(view, egress, service, service_port, ports));
            }
        }
    }
    if port.is_none_or(|port| port == DEFAULT_PORT) {
        hosts.extend(without_service(view, egress, &known));
    }
    hosts
}

fn of_service(
    view: &View<'_>,
    egress: &EgressListener,
    service: &Arc<Service>,
    port: &ServicePort,
    ports: Ports,
) -> VirtualHost {
    let steering = best(virtual_services_for(egress, &service.host), &service.host);
    let routes = match steering {
        Some(steering) => routes(view, steering, port.number, &[MESH]),
        None => vec![default_route(view, service, port)],
    };
    VirtualHost {
        name: format!("{}:{}", service.host, port.number),
        domains: service_domains(view.proxy, service, port.number, ports),
        routes,
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// Of the virtual services for a host the one with the most specific host; of those the oldest.
fn best<'a>(
    candidates: impl Iterator<Item = &'a Arc<VirtualService>>,
    name: &str,
) -> Option<&'a VirtualService> {
    let closest = |service: &VirtualService| {
        let patterns = service.hosts.iter().map(String::as_str);
        host::most_specific(name, patterns)
            .map(str::to_owned)
            .unwrap_or_default()
    };
    candidates
        .filter(|service| !service.http.is_empty())
        .map(|service| (closest(service), service))
        .reduce(|best, other| {
            if host::compare_specificity(&other.0, &best.0) == std::cmp::Ordering::Less {
                other
            } else {
                best
            }
        })
        .map(|(_, service)| service.as_ref())
}

/// Hosts of virtual services that no service has.
fn without_service(
    view: &View<'_>,
    egress: &EgressListener,
    known: &HashSet<&str>,
) -> Vec<VirtualHost> {
    let mut hosts: HashMap<&str, VirtualHost> = HashMap::new();
    for steering in egress
        .virtual_services
        .iter()
        .filter(|service| !service.http.is_empty())
    {
        for name in &steering.hosts {
            if known.contains(name.as_str())
                || hosts.contains_key(name.as_str())
                || view.service(name).is_some()
            {
                continue;
            }
            hosts.insert(
                name,
                VirtualHost {
                    name: format!("{name}:{DEFAULT_PORT}"),
                    domains: host_domains(view.proxy, name, DEFAULT_PORT, Ports::Optional),
                    routes: routes(view, steering, DEFAULT_PORT, &[MESH]),
                    include_request_attempt_count: true,
                    ..VirtualHost::default()
                },
            );
        }
    }
    hosts
        .into_values()
        .filter(|host| !host.routes.is_empty())
        .collect()
}

/// What happens to hosts that nobody declared.
fn fallthrough(view: &View<'_>) -> VirtualHost {
    let cluster = match &view.scope.egress_proxy {
        Some(destination) => crate::networking::listener::destination_cluster(view, destination),
        None if view.scope.is_any_allowed => PASSTHROUGH.to_owned(),
        None => {
            let mut host = answering("block_all", "*", 502);
            host.include_request_attempt_count = true;
            return host;
        }
    };
    VirtualHost {
        name: "allow_any".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: "allow_any".to_owned(),
            r#match: Some(any_path()),
            typed_per_filter_config: plugin::mixer::unknown_route(view, &cluster)
                .into_iter()
                .collect(),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                timeout: Some(seconds(0)),
                ..RouteAction::default()
            })),
            ..Route::default()
        }],
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}
