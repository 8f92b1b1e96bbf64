//! A sidecar's route configurations: `9080` (all HTTP services on the port), `host:9080` (one service whose protocol had to be
//! found out), `http_proxy` (everything), or the path of a Unix socket.

use std::collections::HashSet;
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
use crate::networking::wire::seconds;
use crate::networking::{View, plugin};
use crate::push_context::sidecar_scope::EgressListener;
use crate::push_context::status::Metric;
use crate::push_context::virtual_services::{MESH, VirtualService};

/// The port on which hosts without a service are served.
const DEFAULT_PORT: u32 = 80;

/// A virtual host that a route configuration is to have.
pub(super) struct Planned<'a> {
    /// Its name, unique in the configuration.
    pub(super) name: String,
    /// The virtual service whose routes it gets.
    pub(super) steering: Option<&'a Arc<VirtualService>>,
    subject: Subject<'a>,
}

/// What a virtual host is for.
enum Subject<'a> {
    Service {
        service: &'a Arc<Service>,
        port: &'a ServicePort,
        domains: Domains,
    },
    /// A host of the virtual service that no service has.
    Host(&'a str),
    /// Hosts that nobody declared.
    Undeclared,
}

/// Under which names a service is found.
#[derive(Clone, Copy)]
enum Domains {
    /// Its own.
    Named(Ports),
    /// All: its listener is for nothing else.
    Any,
}

/// The virtual hosts of the route configuration `name`, sorted, the one for everything else at the end.
pub(super) fn plan<'a>(view: &'a View<'_>, name: &str) -> Vec<Planned<'a>> {
    let egress = &view.scope.egress;
    let mut hosts = if name == HTTP_PROXY {
        let all = egress.iter().filter(|egress| egress.port.is_none());
        all.flat_map(|egress| of_listener(view, egress, None))
            .collect()
    } else if let Ok(port) = name.parse::<u32>() {
        listener_of(view, port)
            .map(|egress| of_listener(view, egress, Some(port)))
            .unwrap_or_default()
    } else if let Some(egress) = egress.iter().find(|egress| egress.bind == name) {
        let port = egress.port.as_ref().map(|port| port.number);
        of_listener(view, egress, port.filter(|port| *port > 0))
    } else if let Some(cluster) = ClusterName::parse(name) {
        // A gRPC client that configures itself asks for the routes of one service.
        return sniffed(view, &cluster.host, cluster.port);
    } else {
        // Whatever is asked for there can only mean the one service.
        return name
            .rsplit_once(':')
            .and_then(|(host, port)| Some(sniffed(view, host, port.parse().ok()?)))
            .unwrap_or_default();
    };
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.dedup_by(|later, earlier| {
        let is_duplicate = later.name == earlier.name;
        if is_duplicate {
            view.record(
                Metric::DuplicateDomain,
                &later.name,
                "two virtual hosts have this name; the first counts",
            );
        }
        is_duplicate
    });
    hosts.push(Planned {
        name: undeclared_name(view).to_owned(),
        steering: None,
        subject: Subject::Undeclared,
    });
    hosts
}

impl Planned<'_> {
    /// Makes it; none, if nothing of it is for this proxy.
    pub(super) fn build(&self, view: &View<'_>) -> Option<VirtualHost> {
        let (domains, routes) = match &self.subject {
            Subject::Undeclared => return Some(undeclared(view, &self.name)),
            Subject::Service {
                service,
                port,
                domains,
            } => {
                let routes = match self.steering {
                    Some(steering) => routes(view, steering, port.number, &[MESH]),
                    None => vec![default_route(view, service, port)],
                };
                let domains = match domains {
                    Domains::Named(ports) => {
                        service_domains(view.proxy, service, port.number, *ports)
                    }
                    Domains::Any => vec!["*".to_owned()],
                };
                (domains, routes)
            }
            Subject::Host(host) => {
                let routes = self
                    .steering
                    .map(|steering| routes(view, steering, DEFAULT_PORT, &[MESH]))
                    .filter(|routes| !routes.is_empty())?;
                let domains = host_domains(view.proxy, host, DEFAULT_PORT, Ports::Optional);
                (domains, routes)
            }
        };
        Some(VirtualHost {
            name: self.name.clone(),
            domains,
            routes,
            include_request_attempt_count: view.push.mesh.is_attempt_told(),
            ..VirtualHost::default()
        })
    }
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

/// One service with an address of its own.
fn sniffed<'a>(view: &'a View<'_>, host: &str, port: u32) -> Vec<Planned<'a>> {
    let Some(egress) = listener_of(view, port) else {
        return Vec::new();
    };
    let Some(service) = egress.services.iter().find(|service| service.host == host) else {
        return Vec::new();
    };
    let planned = service
        .port(port)
        .map(|port| of_service(egress, service, port, Domains::Any));
    planned.into_iter().collect()
}

fn of_listener<'a>(
    view: &View<'_>,
    egress: &'a EgressListener,
    port: Option<u32>,
) -> Vec<Planned<'a>> {
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
                let domains = Domains::Named(ports);
                hosts.push(of_service(egress, service, service_port, domains));
            }
        }
    }
    if port.is_none_or(|port| port == DEFAULT_PORT) {
        hosts.extend(without_service(view, egress, known));
    }
    hosts
}

fn of_service<'a>(
    egress: &'a EgressListener,
    service: &'a Arc<Service>,
    port: &'a ServicePort,
    domains: Domains,
) -> Planned<'a> {
    Planned {
        name: format!("{}:{}", service.host, port.number),
        steering: best(egress.virtual_services_of(&service.host), &service.host),
        subject: Subject::Service {
            service,
            port,
            domains,
        },
    }
}

/// Of the virtual services for a host the one with the most specific host; of those the oldest.
fn best<'a>(
    candidates: impl Iterator<Item = &'a Arc<VirtualService>>,
    name: &str,
) -> Option<&'a Arc<VirtualService>> {
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
        .map(|(_, service)| service)
}

/// Hosts of virtual services that no service has.
fn without_service<'a>(
    view: &View<'_>,
    egress: &'a EgressListener,
    mut known: HashSet<&'a str>,
) -> Vec<Planned<'a>> {
    let mut hosts = Vec::new();
    let steering = egress.virtual_services.iter();
    for steering in steering.filter(|service| !service.http.is_empty()) {
        for host in &steering.hosts {
            if known.contains(host.as_str()) || view.service(host).is_some() {
                continue;
            }
            known.insert(host);
            hosts.push(Planned {
                name: format!("{host}:{DEFAULT_PORT}"),
                steering: Some(steering),
                subject: Subject::Host(host),
            });
        }
    }
    hosts
}

fn undeclared_name(view: &View<'_>) -> &'static str {
    if view.scope.egress_proxy.is_some() || view.scope.is_any_allowed {
        "allow_any"
    } else {
        "block_all"
    }
}

/// What happens to hosts that nobody declared.
#[allow(deprecated, reason = "as for the default route")]
fn undeclared(view: &View<'_>, name: &str) -> VirtualHost {
    let cluster = match &view.scope.egress_proxy {
        Some(destination) => crate::networking::listener::destination_cluster(view, destination),
        None if view.scope.is_any_allowed => PASSTHROUGH.to_owned(),
        None => {
            let mut host = answering(name, "*", 502);
            host.include_request_attempt_count = view.push.mesh.is_attempt_told();
            return host;
        }
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: name.to_owned(),
            r#match: Some(any_path()),
            typed_per_filter_config: plugin::mixer::unknown_route(view, &cluster)
                .into_iter()
                .collect(),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                timeout: Some(seconds(0)),
                max_grpc_timeout: Some(seconds(0)),
                ..RouteAction::default()
            })),
            ..Route::default()
        }],
        include_request_attempt_count: view.push.mesh.is_attempt_told(),
        ..VirtualHost::default()
    }
}
