//! CDS: one cluster for each port of each visible service, one more for each subset, one for each port of the proxy's own
//! workload, and the special ones.

use prost_types::Duration;
use proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster,
    circuit_breakers::Thresholds,
    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
};
use proto::envoy::config::core::v3::{BindConfig, ExtraSourceAddress, Http2ProtocolOptions};

mod api;
pub(super) mod inbound;
pub(super) mod outbound;
mod protocol_options;
mod traffic_policy;
mod upstream_tls;

pub use api::build as api;
pub use traffic_policy::{Places, TrafficPolicy};

use proto::istio::networking::v1alpha3::envoy_filter::PatchContext;

use super::wire::socket;
use super::{View, envoy_filter};
use crate::model::name::{BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH};
use crate::push_context::status::Metric;

/// Source addresses of connections to the workload's own ports; interception lets them through.
const INBOUND_SOURCE: &str = "127.0.0.6";
const INBOUND_SOURCE_IPV6: &str = "::6";

/// All clusters of a proxy, by name.
#[must_use]
pub fn build(view: &View<'_>) -> Vec<Cluster> {
    let mut clusters = shared(view);
    clusters.extend(own(view));
    deduplicate(view, clusters)
}

/// The clusters that depend on what the proxy can see, and not on the proxy itself.
#[must_use]
pub fn shared(view: &View<'_>) -> Vec<Cluster> {
    let mut clusters = outbound::build(view);
    clusters.push(black_hole(view));
    clusters.push(original_destination(view, PASSTHROUGH, None));
    let context = if view.proxy.is_router() {
        PatchContext::Gateway
    } else {
        PatchContext::SidecarOutbound
    };
    envoy_filter::cluster::apply(view, context, &mut clusters);
    deduplicate(view, clusters)
}

/// The clusters of the proxy's own workload.
#[must_use]
pub fn own(view: &View<'_>) -> Vec<Cluster> {
    if view.proxy.is_router() {
        return Vec::new();
    }
    let mut clusters = inbound::build(view);
    let source = inbound_source(view);
    clusters.push(original_destination(
        view,
        INBOUND_PASSTHROUGH,
        Some(source),
    ));
    envoy_filter::cluster::apply(view, PatchContext::SidecarInbound, &mut clusters);
    deduplicate(view, clusters)
}

/// Where connections to the workload come from that keep their destination.
fn inbound_source(view: &View<'_>) -> BindConfig {
    let (first, second) = match view.proxy.families() {
        (false, true) => (INBOUND_SOURCE_IPV6, None),
        _ if view.proxy.is_dual_stack() => (INBOUND_SOURCE, Some(INBOUND_SOURCE_IPV6)),
        _ => (INBOUND_SOURCE, None),
    };
    let extra = second.map(|second| ExtraSourceAddress {
        address: Some(socket(second, 0)),
        ..ExtraSourceAddress::default()
    });
    BindConfig {
        source_address: Some(socket(first, 0)),
        extra_source_addresses: extra.into_iter().collect(),
        ..BindConfig::default()
    }
}

fn deduplicate(view: &View<'_>, mut clusters: Vec<Cluster>) -> Vec<Cluster> {
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters.dedup_by(|later, earlier| {
        let is_duplicate = later.name == earlier.name;
        if is_duplicate {
            view.record(
                Metric::DuplicateCluster,
                &later.name,
                "two clusters have this name; the first counts",
            );
        }
        is_duplicate
    });
    clusters
}

fn black_hole(view: &View<'_>) -> Cluster {
    Cluster {
        name: BLACK_HOLE.to_owned(),
        connect_timeout: Some(view.push.mesh.connect_timeout),
        lb_policy: LbPolicy::RoundRobin as i32,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        ..Cluster::default()
    }
}

fn original_destination(view: &View<'_>, name: &str, source: Option<BindConfig>) -> Cluster {
    let policy = TrafficPolicy::of_mesh(&view.push.mesh);
    let mut cluster = Cluster {
        name: name.to_owned(),
        lb_policy: LbPolicy::ClusterProvided as i32,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst as i32,
        )),
        upstream_bind_config: source,
        typed_extension_protocol_options: protocol_options::downstream(
            &protocol_options::Common {
                http: policy.common_http_options().http,
                ..protocol_options::Common::default()
            },
            policy.http2_options(),
        ),
        ..Cluster::default()
    };
    policy.apply_connection_pool(&mut cluster, &view.push.mesh);
    cluster
}

/// Envoy's default limits are low; here there are none unless somebody asks for them.
fn unlimited() -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(u32::MAX),
            max_pending_requests: Some(u32::MAX),
            max_requests: Some(u32::MAX),
            max_retries: Some(u32::MAX),
            track_remaining: true,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn http2() -> Http2ProtocolOptions {
    Http2ProtocolOptions {
        max_concurrent_streams: Some(1_073_741_824),
        ..Http2ProtocolOptions::default()
    }
}

/// A duration that is there and not zero.
fn positive(duration: Option<&Duration>) -> Option<Duration> {
    duration
        .copied()
        .filter(|duration| duration.seconds > 0 || duration.nanos > 0)
}
