//! The proxy's bootstrap (Envoy v3), a pure function of the settings: node, admin, ADS through the static cluster `xds-grpc`,
//! secrets through `sds-grpc`, and the listener that serves `/stats/prometheus` on 15090. Into it goes what EnvoyFilters say about
//! it, for proxies that wait for that ([`discovery`]).
//!
//! The same file starts a real Envoy. Unlike Istio 1.4, all statistics are kept unless the configuration limits them.

mod cluster;
pub(crate) mod discovery;
mod listener;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use proto::envoy::config::bootstrap::v3::{
    Admin, Bootstrap, ClusterManager, LayeredRuntime, RuntimeLayer,
    bootstrap::{DynamicResources, StaticResources},
    runtime_layer::LayerSpecifier,
};
use proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService,
    Locality, Node as WireNode, SocketAddress, address, api_config_source::ApiType,
    config_source::ConfigSourceSpecifier, grpc_service, socket_address::PortSpecifier,
};
use proto::envoy::config::metrics::v3::{StatsConfig, StatsMatcher, stats_matcher};
use proto::envoy::r#type::matcher::v3::{
    ListStringMatcher, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use crate::node::Node;
use crate::settings::{Settings, StatsInclusion};

/// Cluster of the discovery service.
pub(crate) const XDS_CLUSTER: &str = "xds-grpc";
/// Cluster of the agent's secrets.
pub(crate) const SDS_CLUSTER: &str = "sds-grpc";
/// Cluster of the proxy's own admin port, for the statistics listener.
pub(crate) const STATS_CLUSTER: &str = "prometheus_stats";
/// The workload's own cluster, of which Pilot tells who else is in it and where: zone-aware balancing sets its share of each zone
/// against the share of others' endpoints there.
pub(crate) const LOCAL_CLUSTER: &str = "local_cluster";
/// Node metadata: the proxy is to know its own cluster.
const SELF_DISCOVERY: &str = "ENABLE_SELF_DISCOVERY";
/// What Istio always keeps when statistics are limited.
const ALWAYS_KEPT: &[&str] = &[
    "reporter=",
    "component",
    "cluster_manager",
    "listener_manager",
    "http_mixer_filter",
    "tcp_mixer_filter",
    "server",
    "cluster.xds-grpc",
];

/// The bootstrap for these settings; `sds_socket` is where the agent serves secrets.
pub fn build(settings: &Settings, sds_socket: &Path) -> Bootstrap {
    let mut clusters = vec![
        cluster::stats(settings.admin_address()),
        cluster::secrets(sds_socket),
        cluster::discovery(settings),
    ];
    clusters.extend(cluster::zipkin(settings));
    let knows_own_cluster = settings.node.metadata.get(SELF_DISCOVERY) == Some("true");
    clusters.extend(knows_own_cluster.then(cluster::local));
    Bootstrap {
        node: Some(node(&settings.node)),
        admin: Some(Admin {
            address: Some(socket_address(settings.admin_address())),
            ..Admin::default()
        }),
        cluster_manager: knows_own_cluster.then(|| ClusterManager {
            local_cluster_name: LOCAL_CLUSTER.to_owned(),
            ..ClusterManager::default()
        }),
        dynamic_resources: Some(DynamicResources {
            lds_config: Some(ads()),
            cds_config: Some(ads()),
            ads_config: Some(api_source(XDS_CLUSTER)),
            ..DynamicResources::default()
        }),
        static_resources: Some(StaticResources {
            listeners: vec![listener::statistics(settings.any_address())],
            clusters,
            ..StaticResources::default()
        }),
        stats_config: stats_config(&settings.stats_inclusion),
        layered_runtime: runtime(&settings.runtime_values),
        ..Bootstrap::default()
    }
}

/// The file's text: proto3 JSON, indented, keys as Envoy's documentation writes them.
pub fn to_json(bootstrap: &Bootstrap) -> anyhow::Result<String> {
    let mut value = proto::json::to_value_with(bootstrap, proto::json::FieldNames::Proto)
        .context("encode the bootstrap")?;
    // Maps come in no order; the same settings must give the same file.
    if let Some(metadata) = value.pointer_mut("/node/metadata") {
        metadata.sort_all_objects();
    }
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// The node as it introduces itself.
pub(crate) fn node(node: &Node) -> WireNode {
    let [region, zone, sub_zone] = node.locality.clone();
    let is_local = node.locality.iter().any(|part| !part.is_empty());
    WireNode {
        id: node.id.to_string(),
        cluster: node.cluster.clone(),
        metadata: Some(node.metadata.to_struct()),
        locality: is_local.then_some(Locality {
            region,
            zone,
            sub_zone,
        }),
        ..WireNode::default()
    }
}

fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        // The proxy waits for its configuration as long as it takes: a half-configured proxy is worse than none.
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: ApiVersion::V3.into(),
        ..ConfigSource::default()
    }
}

/// gRPC through one of the static clusters.
pub(crate) fn api_source(cluster: &str) -> ApiConfigSource {
    let envoy = grpc_service::EnvoyGrpc {
        cluster_name: cluster.to_owned(),
        ..grpc_service::EnvoyGrpc::default()
    };
    ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(envoy)),
            ..GrpcService::default()
        }],
        set_node_on_first_message_only: true,
        ..ApiConfigSource::default()
    }
}

fn stats_config(inclusion: &StatsInclusion) -> Option<StatsConfig> {
    if *inclusion == StatsInclusion::default() {
        return None;
    }
    let always = ALWAYS_KEPT.iter().map(|prefix| (*prefix).to_owned());
    let prefixes = always.chain(inclusion.prefixes.iter().cloned());
    let prefixes = prefixes.map(MatchPattern::Prefix);
    let suffixes = std::iter::once("ssl_context_update_by_sds".to_owned());
    let suffixes = suffixes.chain(inclusion.suffixes.iter().cloned());
    let suffixes = suffixes.map(MatchPattern::Suffix);
    let regexps = inclusion.regexps.iter().map(|regex| {
        MatchPattern::SafeRegex(RegexMatcher {
            regex: regex.clone(),
            ..RegexMatcher::default()
        })
    });
    let patterns = prefixes.chain(suffixes).chain(regexps);
    let patterns = patterns.map(|pattern| StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    });
    Some(StatsConfig {
        stats_matcher: Some(StatsMatcher {
            stats_matcher: Some(stats_matcher::StatsMatcher::InclusionList(
                ListStringMatcher {
                    patterns: patterns.collect(),
                },
            )),
        }),
        ..StatsConfig::default()
    })
}

fn runtime(values: &[(String, String)]) -> Option<LayeredRuntime> {
    if values.is_empty() {
        return None;
    }
    let fields = values.iter().map(|(name, value)| {
        let kind = prost_types::value::Kind::StringValue(value.clone());
        (name.clone(), prost_types::Value { kind: Some(kind) })
    });
    let layer = LayerSpecifier::StaticLayer(prost_types::Struct {
        fields: fields.collect(),
    });
    Some(LayeredRuntime {
        layers: vec![RuntimeLayer {
            name: "global config".to_owned(),
            layer_specifier: Some(layer),
        }],
    })
}

/// The same for an address.
fn socket_address(address: SocketAddr) -> Address {
    tcp_address(&address.ip().to_string(), address.port())
}

/// `host:port` over TCP.
pub(crate) fn tcp_address(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    }
}

pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    // Durations here are seconds to hours.
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
