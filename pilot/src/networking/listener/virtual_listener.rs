//! `virtualOutbound`, which takes every captured connection and hands it to the listener of its original destination, and the
//! explicit HTTP proxy.

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{FilterChainMatch, Listener};

use super::filter_chain::{chain, fallthrough_cluster, tcp_proxy};
use super::http::{Place, RouteSource, connection_manager};
use crate::model::InterceptionMode;
use crate::model::name::{BLACK_HOLE, HTTP_PROXY, VIRTUAL_OUTBOUND};
use crate::networking::wire::{address, cidr};
use crate::networking::{View, access_log, plugin};
use crate::push_context::telemetry::Side;

/// Port of the HTTP proxy where nothing is intercepted.
const HTTP_PROXY_PORT: u32 = 15002;

/// Both, as far as the proxy needs them.
pub(super) fn build(view: &View<'_>) -> Vec<Listener> {
    let mesh = &view.push.mesh;
    let is_captured = view.proxy.interception != InterceptionMode::None;
    let mut listeners = Vec::new();
    if is_captured {
        listeners.push(virtual_outbound(view));
    }
    let port = match mesh.http_proxy_port {
        0 if !is_captured => Some(HTTP_PROXY_PORT),
        0 => None,
        port => Some(port),
    };
    listeners.extend(port.map(|port| http_proxy(view, port)));
    listeners
}

fn virtual_outbound(view: &View<'_>) -> Listener {
    let mesh = &view.push.mesh;
    let black_hole = || vec![tcp_proxy(view, BLACK_HOLE, BLACK_HOLE)];
    let itself = FilterChainMatch {
        destination_port: Some(mesh.outbound_port),
        ..FilterChainMatch::default()
    };
    let prefix_ranges = view
        .proxy
        .ips
        .iter()
        .map(|ip| cidr(&ip.to_string(), if ip.is_ipv4() { 32 } else { 128 }))
        .collect();
    let own_addresses = FilterChainMatch {
        prefix_ranges,
        ..FilterChainMatch::default()
    };
    let cluster = fallthrough_cluster(view);
    let mut filters: Vec<_> = plugin::mixer::tcp_outbound(view, None, &cluster)
        .into_iter()
        .collect();
    filters.push(tcp_proxy(view, &cluster, &cluster));
    Listener {
        name: VIRTUAL_OUTBOUND.to_owned(),
        address: Some(address("0.0.0.0", mesh.outbound_port)),
        use_original_dst: Some(true),
        transparent: (view.proxy.interception == InterceptionMode::Tproxy).then_some(true),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![
            // A connection to the listener itself, or to the pod itself, would come back for ever.
            chain("virtualOutbound-blackhole", Some(itself), black_hole()),
            chain(
                "virtualOutbound-trap-loop",
                Some(own_addresses),
                black_hole(),
            ),
            chain("virtualOutbound-catchall-tcp", None, filters),
        ],
        access_log: access_log::build_for_listener(view, Side::Client),
        ..Listener::default()
    }
}

fn http_proxy(view: &View<'_>, port: u32) -> Listener {
    // Where pods share one network, each has a loopback address of its own.
    let ip = view.proxy.ip();
    let bind = if ip.is_loopback() {
        ip.to_string()
    } else {
        view.proxy.loopback().to_owned()
    };
    let place = Place::HttpProxy(RouteSource::Rds(HTTP_PROXY));
    let manager = connection_manager(view, place, HTTP_PROXY);
    Listener {
        name: format!("{bind}_{port}"),
        address: Some(address(&bind, port)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![chain("", None, vec![manager])],
        ..Listener::default()
    }
}
