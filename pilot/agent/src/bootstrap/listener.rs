//! The static listener on 15090: Prometheus statistics, and nothing else of the admin port.

use std::net::IpAddr;

use proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action,
    route_match,
};
use proto::envoy::extensions::filters::http::router::v3::Router;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
    http_connection_manager::{CodecType, RouteSpecifier},
    http_filter,
};

use super::{STATS_CLUSTER, tcp_address};

const PORT: u16 = 15090;
const PATH: &str = "/stats/prometheus";

/// The listener.
pub(super) fn statistics(bind: IpAddr) -> Listener {
    let manager = HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: "stats".to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes())),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(proto::any::pack(
                &Router::default(),
            ))),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(proto::any::pack(&manager))),
    };
    Listener {
        name: "prometheus_stats".to_owned(),
        address: Some(tcp_address(&bind.to_string(), PORT)),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

fn routes() -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(
            STATS_CLUSTER.to_owned(),
        )),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix(PATH.to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "backend".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}
