//! The node that xDS servers see: the bootstrap's, with the flags over it and with what we are.

use crate::{args::Options, network};
use proto::envoy::config::core::v3::{
    BuildVersion, Extension, Locality, Node, node::UserAgentVersionType,
};
use proto::envoy::r#type::v3::SemanticVersion;

/// How we call ourselves.
const USER_AGENT: &str = "bireme";
/// HTTP filters that control planes look for.
const HTTP_FILTERS: &[&str] = &[
    "envoy.filters.http.router",
    "envoy.filters.http.rbac",
    "envoy.filters.http.fault",
    "envoy.filters.http.cors",
    "envoy.filters.http.grpc_web",
    "mixer",
];
const LISTENER_FILTERS: &[&str] = &[
    "envoy.filters.listener.original_dst",
    "envoy.filters.listener.tls_inspector",
    "envoy.filters.listener.http_inspector",
    "envoy.filters.listener.proxy_protocol",
];
const TRANSPORT_SOCKETS: &[&str] = &[
    "envoy.transport_sockets.raw_buffer",
    "envoy.transport_sockets.tls",
];

/// Completes `node`.
pub(super) fn build(mut node: Node, options: &Options) -> Node {
    if let Some(id) = &options.service_node {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &options.service_cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = &options.service_zone {
        node.locality
            .get_or_insert_with(Locality::default)
            .zone
            .clone_from(zone);
    }
    let mut numbers = env!("CARGO_PKG_VERSION")
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    node.user_agent_name = USER_AGENT.to_owned();
    node.user_agent_version_type =
        Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(SemanticVersion {
                major_number: number(),
                minor_number: number(),
                patch: number(),
            }),
            metadata: None,
        }));
    let extension = |category: &str, name: &str| Extension {
        name: name.to_owned(),
        category: category.to_owned(),
        ..Extension::default()
    };
    node.extensions = network::FACTORIES
        .iter()
        .map(|(name, _, _)| extension("envoy.filters.network", name))
        .chain(
            HTTP_FILTERS
                .iter()
                .map(|name| extension("envoy.filters.http", name)),
        )
        .chain(
            LISTENER_FILTERS
                .iter()
                .map(|name| extension("envoy.filters.listener", name)),
        )
        .chain(
            TRANSPORT_SOCKETS
                .iter()
                .map(|name| extension("envoy.transport_sockets.upstream", name)),
        )
        .collect();
    node.client_features = vec![
        "envoy.config.require-any-fields-contain-struct".into(),
        "xds.config.resource-in-sotw".into(),
    ];
    node
}
