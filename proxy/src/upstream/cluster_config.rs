//! A cluster as configured: the checked form of `envoy.config.cluster.v3.Cluster`.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

#[cfg(test)]
mod tests;

use super::{
    HttpProtocolOptions, circuit_breaker::bounds_connections_only, dns::DnsOptions,
    dns_cache::DnsCacheConfig, families::Families, health_check::HealthCheckConfig,
    load_balancer::policy::Balancing, outlier::OutlierConfig,
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    transport::{SecretSlots, UpstreamTransport},
    wire::{AnyAddress, duration_or},
    xds::{Source, fetch_timeout},
};
use http::HeaderName;
use prost_types::Struct;
use proto::envoy::config::{
    cluster::v3::{
        CircuitBreakers as WireBreakers, Cluster as Wire,
        cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig},
    },
    core::v3::{Metadata, TcpKeepalive},
    endpoint::v3::ClusterLoadAssignment,
};
use proto::envoy::extensions::clusters::{
    dns::v3::DnsCluster, dynamic_forward_proxy::v3::ClusterConfig as DynamicForwardProxy,
};
use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

/// A checked cluster.
pub(crate) struct ClusterConfig {
    /// The load assignment given in place, for clusters that need it again (DNS).
    pub(crate) assignment: Option<Arc<ClusterLoadAssignment>>,
    /// Circuit breakers' thresholds, until the breakers are made.
    pub(crate) circuit_breakers: Option<Box<WireBreakers>>,
    /// Its name.
    pub(crate) name: Arc<str>,
    /// What logs may read of it.
    pub(crate) metadata: Option<Box<Metadata>>,
    /// The name in statistics.
    pub(crate) stat_name: Arc<str>,
    /// How hosts are found.
    pub(crate) discovery: Discovery,
    /// How hosts are chosen.
    pub(crate) balancing: Balancing,
    /// Patience for a connection, TLS included.
    pub(crate) connect_timeout: Duration,
    /// Hosts that discovery takes away go at once, whatever their health checks say.
    pub(crate) drops_removed_hosts: bool,
    /// Outlier ejection, until its detector is made.
    pub(crate) outlier: Option<Box<OutlierConfig>>,
    /// Active health checks.
    pub(crate) health_checks: Vec<HealthCheckConfig>,
    /// HTTP options.
    pub(crate) http: Arc<HttpProtocolOptions>,
    /// How connections are secured.
    pub(crate) transport: TransportMatches,
    /// Connections that are made before they are needed.
    pub(crate) preconnect: Preconnect,
    /// Which of a host's addresses are tried first.
    pub(crate) families: Families,
    /// Source address of connections.
    pub(crate) bind: Option<SocketAddr>,
    /// TCP keepalive.
    pub(crate) keepalive: Option<Keepalive>,
}

/// How hosts are found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Discovery {
    /// The load assignment holds addresses.
    Static,
    /// The load assignment holds names; every address is a host.
    StrictDns(DnsOptions),
    /// As before, but one host: the first address of the moment.
    LogicalDns(DnsOptions),
    /// EDS, under this service name.
    Eds {
        /// The resource's name.
        service_name: Arc<str>,
        /// Where it comes from.
        source: Source,
        /// How long the first assignment is waited for.
        fetch_timeout: Duration,
    },
    /// Whatever name a request asks for.
    DynamicForwardProxy(Arc<DnsCacheConfig>),
    /// Wherever the client wanted to go.
    OriginalDst {
        /// Port that replaces the client's.
        port_override: Option<u16>,
        /// A request's header that says where it goes, before the connection does.
        header: Option<HeaderName>,
        /// Hosts unused for so long are forgotten.
        cleanup: Duration,
    },
}

/// How much room for streams connections have, at least, for each one that is needed; 1 for that one only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Preconnect {
    /// Those to one host.
    pub(crate) by_host: f64,
    /// All together: connections go to the hosts that will be next.
    pub(crate) predictive: f64,
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) probes: Option<u32>,
    pub(crate) time: Option<Duration>,
    pub(crate) interval: Option<Duration>,
}

/// Transport sockets by endpoint metadata.
pub(crate) struct TransportMatches {
    default: Arc<UpstreamTransport>,
    matches: Vec<(Struct, Arc<UpstreamTransport>)>,
}

impl ClusterConfig {
    /// Checks `wire`.
    pub(crate) fn new(wire: Wire, secrets: &SecretSlots) -> Result<Self, Invalid> {
        refuse(&wire)?;
        let name: Arc<str> = wire.name.as_str().into();
        let stat_name = if wire.alt_stat_name.is_empty() {
            name.clone()
        } else {
            wire.alt_stat_name.as_str().into()
        };
        let discovery = Discovery::of(&wire)?;
        let balancing = Balancing::of(&wire, &discovery)?;
        let bind = wire
            .upstream_bind_config
            .as_ref()
            .and_then(|bind| bind.source_address.as_ref())
            .map(|address| AnyAddress::try_from(address).and_then(AnyAddress::socket))
            .transpose()
            .at("upstream_bind_config.source_address")?;
        Ok(Self {
            connect_timeout: duration_or(
                wire.connect_timeout.as_ref(),
                Duration::from_secs(5),
                "connect_timeout",
            )?,
            drops_removed_hosts: wire.ignore_health_on_host_removal,
            outlier: wire
                .outlier_detection
                .as_ref()
                .map(OutlierConfig::try_from)
                .transpose()
                .at("outlier_detection")?
                .map(Box::new),
            health_checks: try_all(
                "health_checks",
                &wire.health_checks,
                HealthCheckConfig::try_from,
            )?,
            http: http_options(&wire, &discovery)?,
            transport: TransportMatches::of(&wire, secrets)?,
            families: Families::of(&wire).at("upstream_connection_options")?,
            preconnect: Preconnect::of(&wire).at("preconnect_policy")?,
            keepalive: wire
                .upstream_connection_options
                .as_ref()
                .and_then(|options| options.tcp_keepalive.as_ref())
                .map(Keepalive::from),
            bind,
            name,
            stat_name,
            metadata: wire.metadata.map(Box::new),
            discovery,
            balancing,
            assignment: wire.load_assignment.map(Arc::new),
            circuit_breakers: wire.circuit_breakers.map(Box::new),
        })
    }
}

static USUAL_OPTIONS: LazyLock<Arc<HttpProtocolOptions>> = LazyLock::new(Arc::default);

fn http_options(wire: &Wire, discovery: &Discovery) -> Result<Arc<HttpProtocolOptions>, Invalid> {
    let mut options = HttpProtocolOptions::of(wire)?;
    let is_default = wire.typed_extension_protocol_options.is_empty();
    if is_default && matches!(discovery, Discovery::DynamicForwardProxy(_)) {
        // Whoever takes any name must check that it is the one.
        (options.auto_sni, options.auto_san_validation) = (true, true);
    }
    // Most clusters have the usual ones.
    let usual = &*USUAL_OPTIONS;
    Ok(if options == **usual {
        usual.clone()
    } else {
        Arc::new(options)
    })
}

impl Preconnect {
    fn of(wire: &Wire) -> Result<Self, Invalid> {
        let policy = wire.preconnect_policy.as_ref();
        if policy.is_some_and(|policy| policy.preconnect_enabled_metadata.is_some()) {
            return Err(Invalid::unsupported("it").at("preconnect_enabled_metadata"));
        }
        let ratio = |given: Option<f64>, name: &str| {
            let ratio = given.unwrap_or(1.0);
            if (1.0..=3.0).contains(&ratio) {
                return Ok(ratio);
            }
            Err(Invalid::new("it must be between 1 and 3").at(name))
        };
        Ok(Self {
            by_host: ratio(
                policy.and_then(|policy| policy.per_upstream_preconnect_ratio),
                "per_upstream_preconnect_ratio",
            )?,
            predictive: ratio(
                policy.and_then(|policy| policy.predictive_preconnect_ratio),
                "predictive_preconnect_ratio",
            )?,
        })
    }
}

fn refuse(wire: &Wire) -> Result<(), Invalid> {
    if wire.name.is_empty() {
        return Err(Invalid::new("a cluster needs a name").at("name"));
    }
    let connect_timeout = wire.connect_timeout.as_ref();
    if connect_timeout.is_some_and(|limit| limit.seconds == 0 && limit.nanos == 0) {
        return Err(Invalid::new("it must be greater than 0s").at("connect_timeout"));
    }
    let breakers = wire.circuit_breakers.as_ref();
    let bind = wire.upstream_bind_config.as_ref();
    let unsupported = [
        (
            wire.transport_socket_matcher.is_some(),
            "transport_socket_matcher",
        ),
        (wire.upstream_config.is_some(), "upstream_config"),
        (!wire.filters.is_empty(), "filters"),
        (wire.lrs_server.is_some(), "lrs_server"),
        (
            wire.common_lb_config
                .as_ref()
                .is_some_and(|common| common.close_connections_on_host_set_change),
            "common_lb_config.close_connections_on_host_set_change",
        ),
        (
            wire.track_cluster_stats.is_some() || wire.track_timeout_budgets,
            "track_cluster_stats",
        ),
        (
            wire.connection_pool_per_downstream_connection,
            "connection_pool_per_downstream_connection",
        ),
        (
            breakers.is_some_and(|breakers| {
                let mut by_host = breakers.per_host_thresholds.iter();
                by_host.any(|thresholds| !bounds_connections_only(thresholds))
            }),
            "circuit_breakers.per_host_thresholds but max_connections",
        ),
        (
            bind.is_some_and(|bind| {
                !bind.socket_options.is_empty()
                    || bind.freebind == Some(true)
                    || !bind.extra_source_addresses.is_empty()
                    || !bind.additional_source_addresses.is_empty()
                    || bind.local_address_selector.is_some()
            }),
            "upstream_bind_config",
        ),
    ];
    match unsupported.iter().find(|(is_set, _)| *is_set) {
        Some((_, field)) => Err(Invalid::new("not supported").at(field)),
        None => Ok(()),
    }
}

impl Discovery {
    fn of(wire: &Wire) -> Result<Self, Invalid> {
        let kind = match &wire.cluster_discovery_type {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(number)) => {
                DiscoveryType::try_from(*number).map_err(|_| {
                    Invalid::new(format!("{number} is not a discovery type")).at("type")
                })?
            }
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                let any = custom.typed_config.as_ref();
                return Self::custom(wire, &custom.name, any).at("cluster_type");
            }
        };
        Ok(match kind {
            DiscoveryType::Static => Self::Static,
            DiscoveryType::StrictDns => Self::StrictDns(DnsOptions::of(wire)?),
            DiscoveryType::LogicalDns => {
                logical(wire)?;
                Self::LogicalDns(DnsOptions::of(wire)?)
            }
            DiscoveryType::Eds => {
                let eds = wire.eds_cluster_config.clone().ok_or_else(|| {
                    Invalid::new("an EDS cluster needs it").at("eds_cluster_config")
                })?;
                let service_name = if eds.service_name.is_empty() {
                    wire.name.as_str().into()
                } else {
                    eds.service_name.as_str().into()
                };
                let config = eds.eds_config.ok_or_else(|| {
                    Invalid::new("an EDS cluster needs it").at("eds_cluster_config.eds_config")
                })?;
                Self::Eds {
                    service_name,
                    source: Source::try_from(&config).at("eds_cluster_config.eds_config")?,
                    fetch_timeout: fetch_timeout(&config),
                }
            }
            DiscoveryType::OriginalDst => {
                if wire.load_assignment.is_some() {
                    return Err(Invalid::new(
                        "ORIGINAL_DST clusters must have no load assignment configured",
                    )
                    .at("load_assignment"));
                }
                let (port, header) = match &wire.lb_config {
                    Some(LbConfig::OriginalDstLbConfig(options)) => {
                        if options.metadata_key.is_some() {
                            return Err(
                                Invalid::unsupported("metadata_key").at("original_dst_lb_config")
                            );
                        }
                        let name = if options.http_header_name.is_empty() {
                            "x-envoy-original-dst-host"
                        } else {
                            options.http_header_name.as_str()
                        };
                        let header = options
                            .use_http_header
                            .then(|| HeaderName::from_bytes(name.as_bytes()))
                            .transpose()
                            .map_err(|error| {
                                Invalid::new(error.to_string())
                                    .at("original_dst_lb_config.http_header_name")
                            })?;
                        (options.upstream_port_override, header)
                    }
                    _ => (None, None),
                };
                Self::OriginalDst {
                    header,
                    port_override: port.and_then(|port| u16::try_from(port).ok()),
                    cleanup: duration_or(
                        wire.cleanup_interval.as_ref(),
                        Duration::from_secs(5),
                        "cleanup_interval",
                    )?,
                }
            }
        })
    }
}

impl Discovery {
    /// A discovery type that is an extension.
    fn custom(wire: &Wire, name: &str, any: Option<&prost_types::Any>) -> Result<Self, Invalid> {
        if let Some(any) = any.filter(|any| proto::any::is::<DnsCluster>(any)) {
            let dns: DnsCluster = proto::any::unpack(any)?;
            let options = DnsOptions::typed(&dns, wire).at("typed_config")?;
            return Ok(if dns.all_addresses_in_single_endpoint {
                logical(wire)?;
                Self::LogicalDns(options)
            } else {
                Self::StrictDns(options)
            });
        }
        let Some(any) = any.filter(|any| proto::any::is::<DynamicForwardProxy>(any)) else {
            return Err(Invalid::unsupported(name));
        };
        let (cache, is_insecure_allowed) = DnsCacheConfig::of_cluster(any).at("typed_config")?;
        let http = HttpProtocolOptions::of(wire)?;
        let is_set = !wire.typed_extension_protocol_options.is_empty();
        if is_set && !is_insecure_allowed && !(http.auto_sni && http.auto_san_validation) {
            return Err(Invalid::new(
                "dynamic_forward_proxy cluster must have auto_sni and auto_san_validation true unless allow_insecure_cluster_options is set.",
            ));
        }
        Ok(Self::DynamicForwardProxy(Arc::new(cache)))
    }
}

/// A logical name is one.
fn logical(wire: &Wire) -> Result<(), Invalid> {
    let is_single = wire.load_assignment.as_ref().is_some_and(
        |assignment| matches!(assignment.endpoints.as_slice(), [one] if one.lb_endpoints.len() == 1),
    );
    if is_single {
        return Ok(());
    }
    Err(Invalid::new(
        "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
    )
    .at("load_assignment"))
}

impl From<&TcpKeepalive> for Keepalive {
    fn from(wire: &TcpKeepalive) -> Self {
        let seconds = |value: Option<u32>| value.map(|seconds| Duration::from_secs(seconds.into()));
        Self {
            probes: wire.keepalive_probes,
            time: seconds(wire.keepalive_time),
            interval: seconds(wire.keepalive_interval),
        }
    }
}

impl TransportMatches {
    fn of(wire: &Wire, secrets: &SecretSlots) -> Result<Self, Invalid> {
        let default = UpstreamTransport::build(wire.transport_socket.as_ref(), secrets)
            .at("transport_socket")?;
        let matches = try_all(
            "transport_socket_matches",
            &wire.transport_socket_matches,
            |one| {
                let transport = UpstreamTransport::build(one.transport_socket.as_ref(), secrets)
                    .at("transport_socket")?;
                Ok((one.r#match.clone().unwrap_or_default(), Arc::new(transport)))
            },
        )?;
        Ok(Self {
            default: Arc::new(default),
            matches,
        })
    }

    /// The transport of an endpoint: the first whose criteria its metadata has.
    pub(crate) fn of_endpoint(&self, metadata: Option<&Struct>) -> Arc<UpstreamTransport> {
        self.matches
            .iter()
            .find(|(criteria, _)| has_all(metadata, criteria))
            .map_or_else(|| self.default.clone(), |(_, transport)| transport.clone())
    }

    /// Whether connections are secured, unless an endpoint says otherwise.
    pub(crate) fn is_secure(&self) -> bool {
        self.default.is_tls()
    }

    /// Every transport.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<UpstreamTransport>> {
        std::iter::once(&self.default).chain(self.matches.iter().map(|(_, transport)| transport))
    }
}

/// Whether `fields` has every field of `criteria` with the same value.
pub(crate) fn has_all(fields: Option<&Struct>, criteria: &Struct) -> bool {
    criteria
        .fields
        .iter()
        .all(|(name, value)| fields.is_some_and(|fields| fields.fields.get(name) == Some(value)))
}
