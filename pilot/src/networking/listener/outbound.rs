//! Connections of the workload to services: a listener for each HTTP port (routes by host), and one for each address and port
//! of TCP services.
//!
//! On addresses that several services share (`0.0.0.0`), HTTP and TCP live side by side: the first bytes decide. Of two services
//! that cannot be told apart the older has the listener.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use proto::istio::networking::v1alpha3::{CaptureMode, L4MatchAttributes, TlsMatchAttributes};

use super::filter_chain::{chain, routed_filters, service_filters};
use crate::model::proxy::ANY_IPV4;
use crate::model::service::single_ip;
use crate::model::{ClusterName, InterceptionMode, Protocol, Service, ServicePort};
use crate::networking::wire::parse_cidr;
use crate::networking::{View, plugin};
use crate::push_context::sidecar_scope::EgressListener;
use crate::push_context::status::Metric;
use crate::push_context::virtual_services::MESH;

mod finish;

use finish::finish;

/// The address that stands for all; in the end it is that of the workload's family.
const ANY_ADDRESS: &str = ANY_IPV4;

/// What one listener has to carry.
#[derive(Default)]
struct Draft {
    /// Name of the route configuration, if HTTP is spoken.
    routes: Option<String>,
    /// Chains for everything else.
    tcp: Vec<FilterChain>,
    /// The services behind the chains that match everything.
    catch_all: Option<String>,
    /// Bytes have to be looked at.
    is_sniffing: bool,
    is_bound: bool,
}

type Drafts = BTreeMap<(String, u32), Draft>;

/// Which of the outbound listeners are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Those that are the same for every proxy that sees the same.
    Shared,
    /// Those that hold something of the proxy: its addresses, its name.
    Own,
}

impl Part {
    /// Whether a listener belongs to the part.
    fn has(self, view: &View<'_>, bind: &str, is_pure_http: bool) -> bool {
        // Where Mixer is told of connections, it is told who the client is.
        let names_proxy =
            plugin::mixer::is_enabled(view) || view.proxy.interception == InterceptionMode::None;
        let is_shared = !names_proxy && (bind != ANY_ADDRESS || is_pure_http);
        is_shared == (self == Part::Shared)
    }
}

/// The outbound listeners of a sidecar.
pub(super) fn build(view: &View<'_>, part: Part) -> Vec<Listener> {
    let mut drafts = Drafts::new();
    let locked: HashSet<u32> = view
        .scope
        .egress
        .iter()
        .filter_map(|egress| egress.port.as_ref())
        .map(|port| port.number)
        .collect();
    let is_captured = view.proxy.interception != InterceptionMode::None;
    for egress in &view.scope.egress {
        match &egress.port {
            Some(port) => add_port(
                view,
                egress,
                port.number,
                Protocol::parse(&port.protocol),
                &mut drafts,
            ),
            None if is_captured && egress.capture_mode != CaptureMode::None => {
                for service in &egress.services {
                    for port in service
                        .ports
                        .iter()
                        .filter(|port| !locked.contains(&port.number))
                    {
                        add_service(view, egress, service, port, &mut drafts);
                    }
                }
            }
            // Without interception undeclared ports are reached through the HTTP proxy.
            None => {}
        }
    }
    drafts
        .into_iter()
        .filter(|((bind, _), draft)| {
            let is_pure_http = draft.routes.is_some() && draft.tcp.is_empty() && !draft.is_sniffing;
            part.has(view, bind, is_pure_http)
        })
        .map(|((bind, port), draft)| finish(view, &bind, port, draft))
        .collect()
}

/// A Sidecar's egress listener with a port of its own.
fn add_port(
    view: &View<'_>,
    egress: &EgressListener,
    port: u32,
    protocol: Protocol,
    drafts: &mut Drafts,
) {
    let is_socket = egress.bind.starts_with("unix://");
    let is_bound = is_socket
        || egress.capture_mode == CaptureMode::None
        || view.proxy.interception == InterceptionMode::None;
    let bind = match (egress.bind.as_str(), is_bound) {
        ("", true) if view.proxy.ip().is_loopback() => view.proxy.ip().to_string(),
        ("", true) => view.proxy.loopback().to_owned(),
        ("", false) => ANY_ADDRESS.to_owned(),
        (bind, _) => bind.to_owned(),
    };
    if protocol.is_http() {
        let name = if bind.starts_with("unix://") || bind.starts_with('/') {
            bind.clone()
        } else {
            port.to_string()
        };
        let draft = drafts.entry((bind, port)).or_default();
        draft.is_bound = is_bound;
        draft.routes.get_or_insert(name);
        return;
    }
    for service in &egress.services {
        let Some(service_port) = service.port(port) else {
            continue;
        };
        let chains = tcp_chains(view, egress, service, service_port, None);
        add_chains(view, drafts, (bind.clone(), port), service, chains);
    }
    if let Some(draft) = drafts.get_mut(&(bind, port)) {
        draft.is_bound = is_bound;
    }
}

fn add_service(
    view: &View<'_>,
    egress: &EgressListener,
    service: &Arc<Service>,
    port: &ServicePort,
    drafts: &mut Drafts,
) {
    if port.protocol.is_http() {
        if port.number == 443 {
            view.record(
                Metric::HttpOverHttps,
                &service.host,
                "plain HTTP on port 443 is not captured",
            );
            return;
        }
        drafts
            .entry((ANY_ADDRESS.to_owned(), port.number))
            .or_default()
            .routes = Some(port.number.to_string());
        return;
    }
    let is_unknown = port.protocol == Protocol::Unsupported;
    let addresses = service.addresses_for(view.proxy);
    let ips = service.ips_for(view.proxy);
    for ip in &ips {
        let key = ((*ip).to_owned(), port.number);
        if is_unknown {
            let draft = drafts.entry(key.clone()).or_default();
            draft
                .routes
                .get_or_insert_with(|| format!("{}:{}", service.host, port.number));
            draft.is_sniffing = true;
        }
        add_chains(
            view,
            drafts,
            key,
            service,
            tcp_chains(view, egress, service, port, None),
        );
    }
    if !ips.is_empty() {
        return;
    }
    if service.is_headless() && !is_unknown {
        for endpoint in view.push.endpoints.of(&service.key()) {
            let Some(ip) = single_ip(&endpoint.address) else {
                continue;
            };
            let is_own = view.proxy.ips.iter().any(|own| own.to_string() == ip);
            if !is_own {
                let chains = tcp_chains(view, egress, service, port, None);
                add_chains(view, drafts, (ip.to_owned(), port.number), service, chains);
            }
        }
        return;
    }
    let key = (ANY_ADDRESS.to_owned(), port.number);
    if is_unknown {
        let draft = drafts.entry(key.clone()).or_default();
        draft.routes = Some(port.number.to_string());
        draft.is_sniffing = true;
    }
    // Without an address of its own a service is told apart by its ranges, else by its server name.
    if addresses.is_empty() {
        let sni = port.protocol.is_tls().then_some(service.host.as_str());
        add_chains(
            view,
            drafts,
            key,
            service,
            tcp_chains(view, egress, service, port, sni),
        );
    } else {
        let mut chains = tcp_chains(view, egress, service, port, None);
        let ranges: Vec<_> = addresses
            .iter()
            .filter_map(|address| parse_cidr(address))
            .collect();
        for chain in &mut chains {
            let matching = chain.filter_chain_match.get_or_insert_default();
            if matching.prefix_ranges.is_empty() {
                matching.prefix_ranges.clone_from(&ranges);
            }
        }
        add_chains(view, drafts, key, service, chains);
    }
}

fn add_chains(
    view: &View<'_>,
    drafts: &mut Drafts,
    key: (String, u32),
    service: &Service,
    chains: Vec<FilterChain>,
) {
    let draft = drafts.entry(key).or_default();
    for chain in chains {
        if chain.filter_chain_match.is_none() {
            if let Some(older) = &draft.catch_all {
                let metric = if draft.routes.is_some() {
                    Metric::TcpOverHttp
                } else {
                    Metric::TcpOverTcp
                };
                view.record(
                    metric,
                    &service.host,
                    &format!("the listener belongs to {older}"),
                );
                continue;
            }
            draft.catch_all = Some(service.host.clone());
        } else if let Some(same) = draft
            .tcp
            .iter()
            .find(|other| other.filter_chain_match == chain.filter_chain_match)
        {
            view.record(
                Metric::TcpOverTcp,
                &service.host,
                &format!("{} has the same filter chain match", same.name),
            );
            continue;
        }
        draft.tcp.push(chain);
    }
}

/// The chains of one port of one service: those of TCP routes, or of TLS routes at a port for TLS, and the service itself. As in
/// Istio TLS routes leave nothing for other server names.
fn tcp_chains(
    view: &View<'_>,
    egress: &EgressListener,
    service: &Service,
    port: &ServicePort,
    sni: Option<&str>,
) -> Vec<FilterChain> {
    let is_tls = port.protocol.is_tls();
    let mut chains = if is_tls {
        tls_chains(view, egress, service, port)
    } else {
        Vec::new()
    };
    if !chains.is_empty() {
        return chains;
    }
    let steerings = egress.virtual_services_of(&service.host);
    for steering in steerings.filter(|_| !is_tls) {
        for route in &steering.tcp {
            if route.r#match.is_empty() {
                let matching = sni.map(server_name);
                chains.push(routed_chain(view, service, port, matching, &route.route));
                return chains;
            }
            for condition in route
                .r#match
                .iter()
                .filter(|condition| tcp_applies(view, condition, port.number))
            {
                let mut matching = sni.map(server_name).unwrap_or_default();
                matching.prefix_ranges = condition
                    .destination_subnets
                    .iter()
                    .filter_map(|net| parse_cidr(net))
                    .collect();
                let is_catch_all = matching == FilterChainMatch::default();
                chains.push(routed_chain(
                    view,
                    service,
                    port,
                    (!is_catch_all).then_some(matching),
                    &route.route,
                ));
                if is_catch_all {
                    return chains;
                }
            }
        }
    }
    let cluster = ClusterName::outbound(port.number, "", &service.host).to_string();
    let mut filters: Vec<_> = plugin::mixer::tcp_outbound(view, Some(service), &cluster)
        .into_iter()
        .collect();
    filters.extend(service_filters(view, service, port.number, &cluster));
    chains.push(chain(&cluster, sni.map(server_name), filters));
    chains
}

/// Those of the TLS routes.
fn tls_chains(
    view: &View<'_>,
    egress: &EgressListener,
    service: &Service,
    port: &ServicePort,
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for steering in egress.virtual_services_of(&service.host) {
        for route in &steering.tls {
            let conditions = route.r#match.iter();
            for condition in
                conditions.filter(|condition| tls_applies(view, condition, port.number))
            {
                let ranges = condition.destination_subnets.iter();
                let matching = FilterChainMatch {
                    server_names: condition.sni_hosts.clone(),
                    prefix_ranges: ranges.filter_map(|net| parse_cidr(net)).collect(),
                    ..FilterChainMatch::default()
                };
                let matching = Some(matching);
                chains.push(routed_chain(view, service, port, matching, &route.route));
            }
        }
    }
    chains
}

fn server_name(name: &str) -> FilterChainMatch {
    FilterChainMatch {
        server_names: vec![name.to_owned()],
        ..FilterChainMatch::default()
    }
}

fn routed_chain(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    matching: Option<FilterChainMatch>,
    routes: &[proto::istio::networking::v1alpha3::RouteDestination],
) -> FilterChain {
    let cluster = ClusterName::outbound(port.number, "", &service.host).to_string();
    let mut filters: Vec<_> = plugin::mixer::tcp_outbound(view, Some(service), &cluster)
        .into_iter()
        .collect();
    filters.extend(routed_filters(view, routes, port.number));
    chain(&cluster, matching, filters)
}

fn tls_applies(view: &View<'_>, condition: &TlsMatchAttributes, port: u32) -> bool {
    (condition.port == 0 || condition.port == port)
        && source_applies(
            view,
            &condition.gateways,
            &condition.source_labels,
            &condition.source_namespace,
        )
}

fn tcp_applies(view: &View<'_>, condition: &L4MatchAttributes, port: u32) -> bool {
    (condition.port == 0 || condition.port == port)
        && source_applies(
            view,
            &condition.gateways,
            &condition.source_labels,
            &condition.source_namespace,
        )
}

/// True when a route with these conditions is meant for this sidecar.
fn source_applies(
    view: &View<'_>,
    gateways: &[String],
    labels: &BTreeMap<String, String>,
    namespace: &str,
) -> bool {
    (gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH))
        && view.proxy.is_selected_by(labels)
        && (namespace.is_empty() || namespace == view.proxy.namespace)
}
