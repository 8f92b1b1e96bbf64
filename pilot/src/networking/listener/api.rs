//! Listeners for gRPC clients and servers that configure themselves ("proxyless"): they ask for each by name.
//!
//! `host:port` is what a client dials as `xds:///host:port`; `xds.istio.io/grpc/lds/inbound/address:port` is what a server
//! listens on.

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{ApiListener, FilterChain, FilterChainMatch, Listener};
use proto::envoy::config::route::v3::{
    NonForwardingAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_match::PathSpecifier,
};
use proto::envoy::extensions::filters::http::{fault::v3::HttpFault, router::v3::Router};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
};

use crate::model::ClusterName;
use crate::networking::wire::{address, ads, any, http_filter, network_filter};
use crate::networking::{View, plugin, tls};
use crate::push_context::policies::MtlsMode;

/// What the names of servers' listeners begin with.
const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/";

/// The listener called `name`, if there is such a thing.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> Option<Listener> {
    match name.strip_prefix(INBOUND) {
        Some(place) => server(view, name, place),
        None => client(view, name),
    }
}

fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", &Router::default())
}

fn client(view: &View<'_>, name: &str) -> Option<Listener> {
    let (host, port) = name.rsplit_once(':')?;
    let port: u32 = port.parse().ok()?;
    let service = view.service(&view.full_host_of(host))?;
    let service_port = service.port(port)?;
    let routes = ClusterName::outbound(service_port.number, "", &service.host).to_string();
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: routes,
        })),
        http_filters: vec![
            http_filter("envoy.filters.http.fault", &HttpFault::default()),
            router(),
        ],
        ..HttpConnectionManager::default()
    };
    Some(Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..Listener::default()
    })
}

fn server(view: &View<'_>, name: &str, place: &str) -> Option<Listener> {
    let (bind, port) = place.rsplit_once(':')?;
    let port: u32 = port.parse().ok()?;
    let mut http_filters = plugin::authz::http_filters(view);
    http_filters.push(router());
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::NonForwardingAction(NonForwardingAction {})),
        ..Route::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "inbound".to_owned(),
            virtual_hosts: vec![VirtualHost {
                name: "inbound".to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![route],
                ..VirtualHost::default()
            }],
            ..RouteConfiguration::default()
        })),
        http_filters,
        ..HttpConnectionManager::default()
    };
    let manager = network_filter("envoy.filters.network.http_connection_manager", &manager);
    let plain = FilterChain {
        name: "inbound-plaintext".to_owned(),
        filters: vec![manager],
        ..FilterChain::default()
    };
    // gRPC chooses no chain by what the client's first bytes are: permissive servers speak plaintext.
    let chain = if view.peer_policy.mode_of(port) == MtlsMode::Strict {
        FilterChain {
            name: "inbound-mtls".to_owned(),
            filter_chain_match: Some(FilterChainMatch::default()),
            transport_socket: Some(tls::grpc_server()),
            ..plain
        }
    } else {
        plain
    };
    Some(Listener {
        name: name.to_owned(),
        address: Some(address(bind.trim_matches(['[', ']']), port)),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains: vec![chain],
        ..Listener::default()
    })
}
