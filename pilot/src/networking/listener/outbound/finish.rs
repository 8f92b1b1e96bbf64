//! What a draft becomes: the listener with its inspectors, its chains in order, and the chain for everything else.

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{FilterChainMatch, Listener};

use super::super::filter_chain::{chain, fallthrough_cluster, tcp_proxy};
use super::super::http::{Place, RouteSource, connection_manager};
use super::super::{PLAIN_HTTP, http_inspector, owned, tls_inspector};
use super::{ANY_ADDRESS, Draft};
use crate::networking::View;
use crate::networking::wire::{address, cidr};

/// The listener.
pub(super) fn finish(view: &View<'_>, bind: &str, port: u32, draft: Draft) -> Listener {
    let name = format!("{bind}_{port}");
    let mut listener = Listener {
        name: name.clone(),
        address: Some(address(bind, port)),
        bind_to_port: (!draft.is_bound).then_some(false),
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Listener::default()
    };
    let is_mixed = draft.routes.is_some() && !draft.tcp.is_empty();
    let has_server_names = draft.tcp.iter().any(|chain| {
        chain
            .filter_chain_match
            .as_ref()
            .is_some_and(|matching| !matching.server_names.is_empty())
    });
    if let Some(routes) = &draft.routes {
        let manager = connection_manager(
            view,
            Place::Outbound(RouteSource::Rds(routes)),
            &format!("outbound_{name}"),
        );
        let matching = (is_mixed || draft.is_sniffing).then(|| FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: owned(&PLAIN_HTTP),
            ..FilterChainMatch::default()
        });
        listener
            .filter_chains
            .push(chain("", matching, vec![manager]));
    }
    if is_mixed || draft.is_sniffing {
        listener.listener_filters = vec![tls_inspector(), http_inspector()];
        listener.listener_filters_timeout = view.push.mesh.detection_timeout;
        listener.continue_on_listener_filters_timeout = true;
    } else if has_server_names {
        listener.listener_filters = vec![tls_inspector()];
        listener.listener_filters_timeout = view.push.mesh.detection_timeout;
        listener.continue_on_listener_filters_timeout = true;
    }
    // The chain that matches everything is the default one: Envoy does not go back from a transport that it has matched.
    for tcp in draft.tcp {
        if tcp.filter_chain_match.is_none() && !listener.filter_chains.is_empty()
            || (tcp.filter_chain_match.is_none() && has_server_names)
        {
            listener.default_filter_chain = Some(tcp);
        } else {
            listener.filter_chains.push(tcp);
        }
    }
    let needs_fallthrough = listener
        .filter_chains
        .iter()
        .all(|chain| chain.filter_chain_match.is_some());
    if needs_fallthrough && listener.default_filter_chain.is_none() && !draft.is_bound {
        let cluster = fallthrough_cluster(view);
        let filters = vec![tcp_proxy(view, &cluster, &cluster)];
        listener.default_filter_chain = Some(chain("PassthroughFilterChain", None, filters));
    }
    block_own_addresses(view, bind, &mut listener);
    listener
}

/// A TCP listener for all addresses must not send the pod's own address back to the pod.
fn block_own_addresses(view: &View<'_>, bind: &str, listener: &mut Listener) {
    let is_pure_http = listener.filter_chains.len() == 1 && listener.default_filter_chain.is_none();
    if bind != ANY_ADDRESS || is_pure_http {
        return;
    }
    let prefix_ranges = view
        .proxy
        .ips
        .iter()
        .map(|ip| cidr(&ip.to_string(), if ip.is_ipv4() { 32 } else { 128 }))
        .collect();
    let own = FilterChainMatch {
        prefix_ranges,
        ..FilterChainMatch::default()
    };
    let black_hole = crate::model::name::BLACK_HOLE;
    listener.filter_chains.insert(
        0,
        chain(
            "trap-loop",
            Some(own),
            vec![tcp_proxy(view, black_hole, black_hole)],
        ),
    );
}
