//! Network filters and the chains they stand in.

use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use proto::istio::networking::v1alpha3::{Destination, RouteDestination};

use crate::model::ClusterName;
use crate::model::name::{BLACK_HOLE, PASSTHROUGH};
use crate::networking::wire::network_filter;
use crate::networking::{View, access_log};
use crate::push_context::status::Metric;

/// A chain without a transport socket.
pub(super) fn chain(
    name: &str,
    matching: Option<FilterChainMatch>,
    filters: Vec<Filter>,
) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: matching,
        filters,
        ..FilterChain::default()
    }
}

/// Passes bytes on to one cluster.
pub(super) fn tcp_proxy(view: &View<'_>, stat_prefix: &str, cluster: &str) -> Filter {
    weighted_tcp_proxy(
        view,
        stat_prefix,
        ClusterSpecifier::Cluster(cluster.to_owned()),
    )
}

fn weighted_tcp_proxy(view: &View<'_>, stat_prefix: &str, cluster: ClusterSpecifier) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        access_log: access_log::build(&view.push.mesh),
        cluster_specifier: Some(cluster),
        ..TcpProxy::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// Passes bytes on to the destinations of a TCP or TLS route. A destination that does not exist leads to the black hole.
pub(super) fn routed_tcp_proxy(view: &View<'_>, routes: &[RouteDestination], port: u32) -> Filter {
    let clusters: Vec<(String, u32)> = routes
        .iter()
        .filter_map(|route| {
            let weight = if routes.len() == 1 {
                100
            } else {
                u32::try_from(route.weight).unwrap_or(0)
            };
            let destination = route.destination.as_ref()?;
            (weight > 0).then(|| (cluster_of(view, destination, port), weight))
        })
        .collect();
    match &clusters[..] {
        [] => tcp_proxy(view, BLACK_HOLE, BLACK_HOLE),
        [(cluster, _)] => tcp_proxy(view, cluster, cluster),
        [(first, _), ..] => {
            let prefix = first.clone();
            let clusters = clusters
                .into_iter()
                .map(|(name, weight)| ClusterWeight {
                    name,
                    weight,
                    ..ClusterWeight::default()
                })
                .collect();
            weighted_tcp_proxy(
                view,
                &prefix,
                ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }),
            )
        }
    }
}

/// The name of the cluster behind a destination. The port is the one given, the service's only one, or the listener's.
pub(in crate::networking) fn cluster_of(
    view: &View<'_>,
    destination: &Destination,
    listener_port: u32,
) -> String {
    let Some(service) = view.service(&destination.host) else {
        view.record(
            Metric::InvalidRoute,
            &destination.host,
            "the destination is not known here",
        );
        return BLACK_HOLE.to_owned();
    };
    let port = match (&destination.port, &service.ports[..]) {
        (Some(port), _) => port.number,
        (None, [only]) => only.number,
        (None, _) => listener_port,
    };
    let has_subset = || {
        view.destination_rule(service)
            .is_some_and(|rule| rule.subset(&destination.subset).is_some())
    };
    if service.port(port).is_none() {
        view.record(
            Metric::InvalidRoute,
            &format!("{}:{port}", destination.host),
            "the destination has no such port",
        );
        return BLACK_HOLE.to_owned();
    }
    if !destination.subset.is_empty() && !has_subset() {
        let what = format!("{}/{}", destination.host, destination.subset);
        view.record(
            Metric::InvalidRoute,
            &what,
            "no destination rule declares this subset",
        );
    }
    ClusterName::outbound(port, &destination.subset, &service.host).to_string()
}

/// Where undeclared destinations go.
pub(super) fn fallthrough_cluster(view: &View<'_>) -> String {
    match &view.scope.egress_proxy {
        Some(destination) => cluster_of(view, destination, 0),
        None if view.scope.is_any_allowed => PASSTHROUGH.to_owned(),
        None => BLACK_HOLE.to_owned(),
    }
}

/// The cluster of an egress proxy.
pub(in crate::networking) fn egress_cluster(view: &View<'_>, destination: &Destination) -> String {
    cluster_of(view, destination, 0)
}
