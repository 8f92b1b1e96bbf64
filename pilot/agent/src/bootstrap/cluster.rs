//! The static clusters: the discovery service, the agent's secrets, the proxy's own statistics, Zipkin, the workload's own cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{
        ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, RefreshRate,
    },
};
use proto::envoy::config::core::v3::ApiVersion;
use proto::envoy::config::core::v3::{
    Address, ConfigSource, Http2ProtocolOptions, KeepaliveSettings, Pipe, RoutingPriority,
    TcpKeepalive, TransportSocket, address, config_source::ConfigSourceSpecifier, transport_socket,
};
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext, common_tls_context, subject_alt_name_matcher,
};
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    },
};
use proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::{
    LOCAL_CLUSTER, SDS_CLUSTER, STATS_CLUSTER, XDS_CLUSTER, ads, api_source, duration,
    socket_address, tcp_address,
};
use crate::secret::{DEFAULT, ROOT_CA};
use crate::settings::Settings;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Configuration is never shed.
const MAX_CONNECTIONS: u32 = 100_000;
const KEEPALIVE: u32 = 300;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_RETRY: Duration = Duration::from_millis(250);
const DNS_RETRY_CAP: Duration = Duration::from_secs(5);
const LOCAL_CONNECT: Duration = Duration::from_millis(250);

/// The proxy's own admin port.
pub(super) fn stats(admin: SocketAddr) -> Cluster {
    Cluster {
        connect_timeout: Some(duration(LOCAL_CONNECT)),
        ..fixed(STATS_CLUSTER, DiscoveryType::Static, socket_address(admin))
    }
}

/// The agent's socket.
pub(super) fn secrets(socket: &Path) -> Cluster {
    let pipe = Address {
        address: Some(address::Address::Pipe(Pipe {
            path: socket.to_string_lossy().into_owned(),
            mode: 0,
        })),
    };
    Cluster {
        connect_timeout: Some(duration(Duration::from_secs(1))),
        typed_extension_protocol_options: http2(None),
        ..fixed(SDS_CLUSTER, DiscoveryType::Static, pipe)
    }
}

/// The discovery service.
#[allow(
    deprecated,
    reason = "the typed DNS cluster extension is newer than what proxies of the field know"
)]
pub(super) fn discovery(settings: &Settings) -> Cluster {
    let (host, port) = host_and_port(&settings.discovery_address, 15010);
    let discovery = if host.parse::<IpAddr>().is_ok() {
        DiscoveryType::Static
    } else {
        DiscoveryType::StrictDns
    };
    let thresholds = |priority: RoutingPriority| Thresholds {
        priority: priority.into(),
        max_connections: Some(MAX_CONNECTIONS),
        max_pending_requests: Some(MAX_CONNECTIONS),
        max_requests: Some(MAX_CONNECTIONS),
        ..Thresholds::default()
    };
    let ping = KeepaliveSettings {
        interval: Some(duration(PING_INTERVAL)),
        timeout: Some(duration(PING_TIMEOUT)),
        ..KeepaliveSettings::default()
    };
    let is_dns = discovery == DiscoveryType::StrictDns;
    Cluster {
        connect_timeout: Some(duration(settings.connect_timeout)),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        dns_refresh_rate: is_dns.then(|| duration(settings.dns_refresh_rate)),
        respect_dns_ttl: is_dns,
        dns_failure_refresh_rate: is_dns.then(dns_retry),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![
                thresholds(RoutingPriority::Default),
                thresholds(RoutingPriority::High),
            ],
            ..CircuitBreakers::default()
        }),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_time: Some(KEEPALIVE),
                ..TcpKeepalive::default()
            }),
            ..UpstreamConnectionOptions::default()
        }),
        typed_extension_protocol_options: http2(Some(ping)),
        transport_socket: settings.discovery_identity.as_deref().map(mutual_tls),
        ..fixed(XDS_CLUSTER, discovery, tcp_address(&host, port))
    }
}

/// The trace collector, if there is one.
#[allow(deprecated, reason = "as for the discovery service")]
pub(super) fn zipkin(settings: &Settings) -> Option<Cluster> {
    if settings.zipkin_address.is_empty() {
        return None;
    }
    let (host, port) = host_and_port(&settings.zipkin_address, 9411);
    let discovery = if host.parse::<IpAddr>().is_ok() {
        DiscoveryType::Static
    } else {
        DiscoveryType::StrictDns
    };
    let is_dns = discovery == DiscoveryType::StrictDns;
    Some(Cluster {
        connect_timeout: Some(duration(Duration::from_secs(1))),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        dns_refresh_rate: is_dns.then(|| duration(settings.dns_refresh_rate)),
        respect_dns_ttl: is_dns,
        dns_failure_refresh_rate: is_dns.then(dns_retry),
        ..fixed("zipkin", discovery, tcp_address(&host, port))
    })
}

/// A name that does not resolve (yet) is tried again soon, not after the refresh interval.
fn dns_retry() -> RefreshRate {
    RefreshRate {
        base_interval: Some(duration(DNS_RETRY)),
        max_interval: Some(duration(DNS_RETRY_CAP)),
    }
}

/// The workload's own cluster.
pub(super) fn local() -> Cluster {
    Cluster {
        name: LOCAL_CLUSTER.to_owned(),
        connect_timeout: Some(duration(LOCAL_CONNECT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                // Nobody waits for it longer than usual: not every control plane knows it.
                initial_fetch_timeout: None,
                ..ads()
            }),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    }
}

fn fixed(name: &str, discovery: DiscoveryType, address: Address) -> Cluster {
    let endpoint = Endpoint {
        address: Some(address),
        ..Endpoint::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

fn http2(keepalive: Option<KeepaliveSettings>) -> BTreeMap<String, prost_types::Any> {
    let options = Http2ProtocolOptions {
        connection_keepalive: keepalive,
        ..Http2ProtocolOptions::default()
    };
    let explicit = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(options)),
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    [(HTTP_OPTIONS.to_owned(), proto::any::pack(&options))].into()
}

/// Mutual TLS with the workload's own certificate; the server must be `identity`.
fn mutual_tls(identity: &str) -> TransportSocket {
    let secret = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api_source(
                SDS_CLUSTER,
            ))),
            initial_fetch_timeout: Some(duration(Duration::ZERO)),
            resource_api_version: ApiVersion::V3.into(),
            ..ConfigSource::default()
        }),
    };
    let matcher = SubjectAltNameMatcher {
        san_type: subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(identity.to_owned())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let combined = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![matcher],
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret(ROOT_CA)),
        ..Default::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["h2".to_owned()],
            tls_certificate_sds_secret_configs: vec![secret(DEFAULT)],
            validation_context_type: Some(
                common_tls_context::ValidationContextType::CombinedValidationContext(combined),
            ),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(proto::any::pack(
            &context,
        ))),
    }
}

/// Splits `HOST:PORT`; also `[::1]:1`.
fn host_and_port(text: &str, default: u16) -> (String, u16) {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().unwrap_or(default)),
        None => (text, default),
    };
    (host.trim_matches(['[', ']']).to_owned(), port)
}
