//! A gateway's listeners: one for each port of the servers of all Gateway resources that select it.

use std::collections::BTreeMap;

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use proto::envoy::extensions::filters::network::sni_cluster::v3::SniCluster;
use proto::istio::networking::v1alpha3::{RouteDestination, server_tls_settings::TlSmode};
use proto_mesh::host;

use super::filter_chain::{chain, routed_filters, tcp_proxy};
use super::http::{Place, RouteSource, connection_manager};
use super::{gateway_tls, proxy_protocol, tls_inspector};
use crate::model::name::BLACK_HOLE;
use crate::networking::wire::{address, network_filter, parse_cidr, seconds};
use crate::networking::{Instance, View, plugin, tls};
use crate::push_context::gateways::{GatewayPort, GatewayServer};
use crate::push_context::status::Metric;
use crate::push_context::virtual_services::VirtualService;

/// All listeners of a gateway.
pub(super) fn build(view: &View<'_>) -> Vec<Listener> {
    view.gateway
        .ports
        .iter()
        .filter_map(|(number, port)| listener(view, *number, port))
        .collect()
}

fn listener(view: &View<'_>, number: u32, port: &GatewayPort) -> Option<Listener> {
    let any = view.proxy.any_address();
    let bind = if port.bind.is_empty() {
        &any
    } else {
        &port.bind
    };
    let name = format!("{bind}_{number}");
    let mut filter_chains = Vec::new();
    if !port.http.is_empty() {
        let routes = format!("http.{number}");
        let manager = connection_manager(
            view,
            Place::Gateway(RouteSource::Rds(&routes)),
            &format!("outbound_{name}"),
        );
        filter_chains.push(chain(&name, None, vec![manager]));
    }
    for server in &port.https {
        let routes = server.route_name();
        let manager = connection_manager(
            view,
            Place::Gateway(RouteSource::Rds(&routes)),
            &format!("outbound_{name}"),
        );
        filter_chains.extend(terminating_chain(
            view,
            server,
            vec![manager],
            &["h2", "http/1.1"],
        ));
    }
    for server in &port.tcp {
        filter_chains.extend(tcp_chains(view, server, number));
    }
    if filter_chains.is_empty() {
        view.record(
            Metric::InvalidListener,
            &name,
            "no server of this port can be served",
        );
        return None;
    }
    // Of TLS that is passed on nobody else reads the server name.
    let needs_tls = port.tcp.iter().any(|server| {
        let mode = server.tls_mode();
        matches!(mode, Some(TlSmode::AutoPassthrough | TlSmode::Passthrough))
    }) || filter_chains.iter().any(|chain| {
        let matching = chain.filter_chain_match.as_ref();
        matching.is_some_and(|matching| {
            !matching.server_names.is_empty() || !matching.transport_protocol.is_empty()
        })
    });
    let mut listener_filters = Vec::new();
    if view.push.mesh.is_gateway_proxy_protocol {
        listener_filters.push(proxy_protocol());
    }
    if needs_tls {
        listener_filters.push(tls_inspector());
    }
    Some(Listener {
        name,
        address: Some(address(bind, bound_port(view, number))),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains,
        listener_filters,
        listener_filters_timeout: needs_tls.then(|| seconds(15)),
        ..Listener::default()
    })
}

/// A server's port is what clients of the gateway's service use; the gateway may serve it on another one.
fn bound_port(view: &View<'_>, number: u32) -> u32 {
    view.instances
        .iter()
        .find(|instance| instance.port.number == number)
        .map_or(number, Instance::target_port)
}

fn server_names(server: &GatewayServer) -> Vec<String> {
    if server.hosts().any(|name| name == host::ANY) {
        return Vec::new();
    }
    let mut names: Vec<String> = server.hosts().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn terminating_chain(
    view: &View<'_>,
    server: &GatewayServer,
    filters: Vec<Filter>,
    alpn: &[&str],
) -> Option<FilterChain> {
    let settings = server.server.tls.as_ref()?;
    let context = match gateway_tls::context(view, settings, alpn) {
        Ok(context) => context,
        Err(reason) => {
            view.record(Metric::RejectedGateway, &server.gateway, &reason);
            return None;
        }
    };
    let names = server_names(server);
    let matching = (!names.is_empty()).then(|| FilterChainMatch {
        server_names: names,
        ..FilterChainMatch::default()
    });
    let mut terminating = chain(&server.route_name(), matching, filters);
    terminating.transport_socket = Some(tls::server(&context));
    Some(terminating)
}

/// The chains of a server that carries something else than HTTP.
fn tcp_chains(view: &View<'_>, server: &GatewayServer, port: u32) -> Vec<FilterChain> {
    match server.tls_mode() {
        Some(TlSmode::AutoPassthrough) => {
            let filters = vec![
                network_filter("envoy.filters.network.sni_cluster", &SniCluster {}),
                tcp_proxy(view, BLACK_HOLE, BLACK_HOLE),
            ];
            let names = server_names(server);
            let matching = (!names.is_empty()).then(|| FilterChainMatch {
                server_names: names,
                ..FilterChainMatch::default()
            });
            vec![chain(&server.gateway, matching, filters)]
        }
        Some(TlSmode::Passthrough) => passthrough_chains(view, server, port),
        Some(_) => {
            let Some(routes) = tcp_routes(view, server, port)
                .into_iter()
                .next()
                .map(|(_, routes)| routes)
            else {
                return Vec::new();
            };
            let filters = tcp_filters(view, &routes, port);
            terminating_chain(view, server, filters, &[])
                .into_iter()
                .collect()
        }
        None => tcp_routes(view, server, port)
            .into_iter()
            .map(|(matching, routes)| {
                chain(&server.gateway, matching, tcp_filters(view, &routes, port))
            })
            .collect(),
    }
}

fn tcp_filters(view: &View<'_>, routes: &[RouteDestination], port: u32) -> Vec<Filter> {
    let mut filters = plugin::authz::tcp_filters(view);
    filters.extend(plugin::mixer::tcp_outbound(view, None, "gateway"));
    filters.extend(routed_filters(view, routes, port));
    filters
}

fn bound_services<'a>(
    view: &'a View<'_>,
    server: &'a GatewayServer,
) -> impl Iterator<Item = &'a VirtualService> {
    let services = view.push.virtual_services.bound_to(&server.gateway).iter();
    services
        .filter(|service| service.is_visible_to(&view.proxy.namespace))
        .filter(|service| {
            service
                .hosts
                .iter()
                .any(|name| server.hosts().any(|allowed| host::matches(allowed, name)))
        })
        .map(AsRef::as_ref)
}

fn is_for(server: &GatewayServer, port: u32, condition_port: u32, gateways: &[String]) -> bool {
    (condition_port == 0 || condition_port == port)
        && (gateways.is_empty() || gateways.contains(&server.gateway))
}

/// TLS that is passed on by server name.
fn passthrough_chains(view: &View<'_>, server: &GatewayServer, port: u32) -> Vec<FilterChain> {
    let mut by_name: BTreeMap<Vec<String>, FilterChain> = BTreeMap::new();
    for service in bound_services(view, server) {
        for route in &service.tls {
            let conditions = route.r#match.iter();
            for condition in conditions
                .filter(|condition| is_for(server, port, condition.port, &condition.gateways))
            {
                let names: Vec<String> = condition
                    .sni_hosts
                    .iter()
                    .filter(|name| server.hosts().any(|allowed| host::matches(allowed, name)))
                    .cloned()
                    .collect();
                if names.is_empty() {
                    continue;
                }
                let matching = FilterChainMatch {
                    server_names: names.clone(),
                    prefix_ranges: condition
                        .destination_subnets
                        .iter()
                        .filter_map(|net| parse_cidr(net))
                        .collect(),
                    ..FilterChainMatch::default()
                };
                let filters = tcp_filters(view, &route.route, port);
                by_name
                    .entry(names)
                    .or_insert_with(|| chain(&server.gateway, Some(matching), filters));
            }
        }
        for (matching, routes) in routes_of(service, server, port) {
            let names = server_names(server);
            let mut matching = matching.unwrap_or_default();
            matching.server_names.clone_from(&names);
            let matching = (matching != FilterChainMatch::default()).then_some(matching);
            by_name.entry(names).or_insert_with(|| {
                chain(&server.gateway, matching, tcp_filters(view, &routes, port))
            });
        }
    }
    by_name.into_values().collect()
}

/// TCP routes of the virtual services bound to a server, up to the first that takes everything.
fn tcp_routes(
    view: &View<'_>,
    server: &GatewayServer,
    port: u32,
) -> Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> {
    let mut found: Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> = Vec::new();
    for (matching, routes) in
        bound_services(view, server).flat_map(|service| routes_of(service, server, port))
    {
        if found.iter().all(|(other, _)| *other != matching) {
            found.push((matching, routes));
        }
    }
    found
}

fn routes_of(
    service: &VirtualService,
    server: &GatewayServer,
    port: u32,
) -> Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> {
    let mut found = Vec::new();
    for route in &service.tcp {
        if route.r#match.is_empty() {
            found.push((None, route.route.clone()));
            break;
        }
        let conditions = route.r#match.iter();
        for condition in
            conditions.filter(|condition| is_for(server, port, condition.port, &condition.gateways))
        {
            let prefix_ranges: Vec<_> = condition
                .destination_subnets
                .iter()
                .filter_map(|net| parse_cidr(net))
                .collect();
            let matching = (!prefix_ranges.is_empty()).then(|| FilterChainMatch {
                prefix_ranges,
                ..FilterChainMatch::default()
            });
            found.push((matching, route.route.clone()));
        }
    }
    found
}
