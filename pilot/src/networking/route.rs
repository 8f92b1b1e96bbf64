//! RDS: virtual hosts of services and virtual services for sidecars, of gateway servers for gateways; and the inline routes of
//! inbound listeners.

use std::collections::BTreeMap;

use proto::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    route::Action,
    route_action::{ClusterSpecifier, MaxStreamDuration},
    route_match::PathSpecifier,
};

mod gateway;
mod known;
mod route_action;
mod route_match;
mod sidecar;
mod virtual_host;

pub use known::{KnownHosts, encode};
use proto::istio::networking::v1alpha3::envoy_filter::PatchContext;

use super::listener::inbound::Target;
use super::plugin;
use super::wire::seconds;
use super::{View, envoy_filter};

/// The route configuration `name`, as RDS serves it. Names that mean nothing get one without hosts: 404 for all.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> RouteConfiguration {
    let virtual_hosts = if view.proxy.is_router() {
        gateway::build(view, name)
    } else {
        let planned = sidecar::plan(view, name);
        planned.iter().filter_map(|host| host.build(view)).collect()
    };
    let (head, tail) = without_hosts(name);
    let mut routes = RouteConfiguration {
        name: head.name,
        virtual_hosts: virtual_host::deduplicate(view, virtual_hosts),
        ..tail
    };
    let context = if view.proxy.is_router() {
        PatchContext::Gateway
    } else {
        PatchContext::SidecarOutbound
    };
    envoy_filter::route::apply(view, context, &mut routes);
    routes
}

/// What stands before and behind the virtual hosts of a route configuration.
fn without_hosts(name: &str) -> (RouteConfiguration, RouteConfiguration) {
    let head = RouteConfiguration {
        name: name.to_owned(),
        ..RouteConfiguration::default()
    };
    let tail = RouteConfiguration {
        // A cluster may come and go: its routes answer 503 meanwhile.
        validate_clusters: Some(false),
        ..RouteConfiguration::default()
    };
    (head, tail)
}

/// The route of one port of the proxy's own workload.
#[must_use]
pub fn inbound(view: &View<'_>, target: &Target) -> RouteConfiguration {
    let cluster = target.cluster.to_string();
    let service = target
        .instance
        .as_ref()
        .map(|instance| instance.service.as_ref());
    let route = Route {
        name: "default".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.clone())),
            timeout: Some(seconds(0)),
            // A deadline that the caller sets (`grpc-timeout`) holds.
            max_stream_duration: Some(MaxStreamDuration {
                max_stream_duration: Some(seconds(0)),
                grpc_timeout_header_max: Some(seconds(0)),
                ..MaxStreamDuration::default()
            }),
            ..RouteAction::default()
        })),
        typed_per_filter_config: plugin::mixer::inbound_route(view, service)
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        ..Route::default()
    };
    let mut routes = RouteConfiguration {
        name: cluster,
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{}", target.service_port),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        validate_clusters: Some(false),
        ..RouteConfiguration::default()
    };
    envoy_filter::route::apply(view, PatchContext::SidecarInbound, &mut routes);
    routes
}

/// Matches every path.
fn any_path() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..RouteMatch::default()
    }
}

/// A virtual host that answers everything with a status.
fn answering(name: &str, domain: &str, status: u32) -> VirtualHost {
    VirtualHost {
        name: name.to_owned(),
        domains: vec![domain.to_owned()],
        routes: vec![Route {
            name: name.to_owned(),
            r#match: Some(any_path()),
            action: Some(Action::DirectResponse(DirectResponseAction {
                status,
                ..DirectResponseAction::default()
            })),
            ..Route::default()
        }],
        ..VirtualHost::default()
    }
}
