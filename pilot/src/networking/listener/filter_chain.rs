//! Network filters and the chains they stand in.

use prost_types::Duration;
use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::{
    FilterConfig as SniDynamicForwardProxy, filter_config::PortSpecifier,
};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{
        ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
    },
};
use proto::envoy::r#type::v3::{
    HashPolicy,
    hash_policy::{self, PolicySpecifier},
};
use proto::istio::networking::v1alpha3::load_balancer_settings::consistent_hash_lb::HashKey;
use proto::istio::networking::v1alpha3::{Destination, RouteDestination};

use crate::model::name::{BLACK_HOLE, PASSTHROUGH};
use crate::model::{ClusterName, Resolution, Service};
use crate::networking::View;
use crate::networking::access_log::{self, Layer};
use crate::networking::cluster::{TrafficPolicy, outbound::dns_cache};
use crate::networking::wire::network_filter;
use crate::push_context::status::Metric;
use crate::push_context::telemetry::Side;

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
        Side::Client,
        stat_prefix,
        ClusterSpecifier::Cluster(cluster.to_owned()),
        &Connection::default(),
    )
}

/// Passes bytes on to the workload.
pub(super) fn inbound_tcp_proxy(view: &View<'_>, cluster: &str) -> Filter {
    weighted_tcp_proxy(
        view,
        Side::Server,
        cluster,
        ClusterSpecifier::Cluster(cluster.to_owned()),
        &Connection::default(),
    )
}

/// Passes bytes on to one cluster in the way that its destination rule asks for.
pub(super) fn service_filters(
    view: &View<'_>,
    service: &Service,
    port: u32,
    cluster: &str,
) -> Vec<Filter> {
    let proxy = weighted_tcp_proxy(
        view,
        Side::Client,
        cluster,
        ClusterSpecifier::Cluster(cluster.to_owned()),
        &Connection::of(view, service, port, ""),
    );
    name_resolution(view, service, port)
        .into_iter()
        .chain([proxy])
        .collect()
}

/// Resolves the server names that clients of a service ask for whose addresses nobody knows beforehand.
fn name_resolution(view: &View<'_>, service: &Service, port: u32) -> Option<Filter> {
    let is_tls = service
        .port(port)
        .is_some_and(|port| port.protocol.is_tls());
    (is_tls && service.resolution == Resolution::DynamicDns).then(|| {
        let config = SniDynamicForwardProxy {
            dns_cache_config: Some(dns_cache(view)),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SniDynamicForwardProxy::default()
        };
        network_filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
    })
}

/// What a destination rule says of connections as a whole.
#[derive(Clone, Debug, Default)]
struct Connection {
    idle_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    hash: Vec<HashPolicy>,
    tunnel: Option<TunnelingConfig>,
}

impl Connection {
    fn of(view: &View<'_>, service: &Service, port: u32, subset: &str) -> Self {
        let policy = TrafficPolicy::of(view, service, port, subset);
        let tcp = policy.connection_pool.and_then(|pool| pool.tcp.as_ref());
        let by_source = policy
            .consistent_hash()
            .is_some_and(|hash| hash.hash_key == Some(HashKey::UseSourceIp(true)));
        let source = PolicySpecifier::SourceIp(hash_policy::SourceIp {});
        Connection {
            idle_timeout: tcp.and_then(|tcp| tcp.idle_timeout),
            max_duration: tcp.and_then(|tcp| tcp.max_connection_duration),
            hash: by_source
                .then_some(HashPolicy {
                    policy_specifier: Some(source),
                })
                .into_iter()
                .collect(),
            tunnel: policy.tunnel.map(|tunnel| TunnelingConfig {
                hostname: format!("{}:{}", tunnel.target_host, tunnel.target_port),
                use_post: tunnel.protocol.eq_ignore_ascii_case("POST"),
                ..TunnelingConfig::default()
            }),
        }
    }
}

fn weighted_tcp_proxy(
    view: &View<'_>,
    side: Side,
    stat_prefix: &str,
    cluster: ClusterSpecifier,
    connection: &Connection,
) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        access_log: access_log::build(view, side, Layer::Tcp),
        cluster_specifier: Some(cluster),
        idle_timeout: connection.idle_timeout,
        max_downstream_connection_duration: connection.max_duration,
        hash_policy: connection.hash.clone(),
        tunneling_config: connection.tunnel.clone(),
        ..TcpProxy::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// Passes bytes on to the destinations of a TCP or TLS route. A destination that does not exist leads to the black hole.
pub(super) fn routed_filters(
    view: &View<'_>,
    routes: &[RouteDestination],
    port: u32,
) -> Vec<Filter> {
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
    let mut destinations = routes.iter().filter_map(|route| {
        let destination = route.destination.as_ref()?;
        let service = view.service(&destination.host)?;
        let number = destination.port.as_ref().map_or(port, |port| port.number);
        Some((service, number, &destination.subset))
    });
    let connection = destinations.clone().next();
    let connection = connection.map_or_else(Connection::default, |(service, number, subset)| {
        Connection::of(view, service, number, subset)
    });
    let resolution =
        destinations.find_map(|(service, number, _)| name_resolution(view, service, number));
    let (prefix, specifier) = match &clusters[..] {
        [] => return vec![tcp_proxy(view, BLACK_HOLE, BLACK_HOLE)],
        [(cluster, _)] => (cluster.clone(), ClusterSpecifier::Cluster(cluster.clone())),
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
            let weighted = WeightedCluster { clusters };
            (prefix, ClusterSpecifier::WeightedClusters(weighted))
        }
    };
    let proxy = weighted_tcp_proxy(view, Side::Client, &prefix, specifier, &connection);
    resolution.into_iter().chain([proxy]).collect()
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
