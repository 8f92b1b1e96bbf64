//! A cluster as configured: the checked form of `envoy.config.cluster.v3.Cluster`.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::{HttpProtocolOptions, health_check::HealthCheckConfig, outlier::OutlierConfig};
use crate::{
    invalid::{At as _, Invalid, try_all},
    transport::{SecretSlots, UpstreamTransport},
    wire::{AnyAddress, duration_or},
    xds::{Source, fetch_timeout},
};
use prost_types::Struct;
use proto::envoy::config::{
    cluster::v3::{
        CircuitBreakers as WireBreakers, Cluster as Wire,
        cluster::{
            ClusterDiscoveryType, CommonLbConfig, DiscoveryType, LbConfig, LbPolicy as WirePolicy,
            common_lb_config::LocalityConfigSpecifier, lb_subset_config::LbSubsetFallbackPolicy,
        },
    },
    core::v3::TcpKeepalive,
    endpoint::v3::ClusterLoadAssignment,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// A checked cluster.
pub(crate) struct ClusterConfig {
    /// The load assignment given in place, for clusters that need it again (DNS).
    pub(crate) assignment: Option<Arc<ClusterLoadAssignment>>,
    /// Circuit breakers' thresholds.
    pub(crate) circuit_breakers: Option<WireBreakers>,
    /// Its name.
    pub(crate) name: Arc<str>,
    /// The name in statistics.
    pub(crate) stat_name: Arc<str>,
    /// How hosts are found.
    pub(crate) discovery: Discovery,
    /// The algorithm.
    pub(crate) policy: LbPolicy,
    /// Patience for a connection, TLS included.
    pub(crate) connect_timeout: Duration,
    /// Percent of healthy hosts under which all are used.
    pub(crate) panic_threshold: f64,
    /// Whether locality weights apply.
    pub(crate) is_locality_weighted: bool,
    /// What happens when no host matches a route's metadata; none without subsets.
    pub(crate) subset_fallback: Option<SubsetFallback>,
    /// Outlier ejection.
    pub(crate) outlier: Option<OutlierConfig>,
    /// Active health checks.
    pub(crate) health_checks: Vec<HealthCheckConfig>,
    /// HTTP options.
    pub(crate) http: HttpProtocolOptions,
    /// How connections are secured.
    pub(crate) transport: TransportMatches,
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
    /// Wherever the client wanted to go.
    OriginalDst {
        /// Port that replaces the client's.
        port_override: Option<u16>,
        /// Hosts unused for so long are forgotten.
        cleanup: Duration,
    },
}

/// DNS settings of a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DnsOptions {
    /// Time between resolutions.
    pub(crate) refresh: Duration,
    /// Time after a failure, growing to the second.
    pub(crate) failure_refresh: (Duration, Duration),
    /// Which addresses are wanted.
    pub(crate) family: DnsFamily,
}

/// Which addresses are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsFamily {
    /// IPv6, or IPv4 if there are none.
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, or IPv6 if there are none.
    V4Preferred,
    /// All.
    All,
}

/// The algorithm.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LbPolicy {
    /// In turn.
    RoundRobin,
    /// The least busy of some.
    LeastRequest {
        /// How many are compared.
        choices: u32,
    },
    /// Any.
    Random,
    /// Ring hash.
    RingHash(RingOptions),
    /// Maglev.
    Maglev {
        /// A prime.
        size: u64,
    },
    /// The discovery decides (original destination).
    ClusterProvided,
}

/// The ring's shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RingOptions {
    pub(crate) minimum: u64,
    pub(crate) maximum: u64,
    pub(crate) is_murmur: bool,
}

/// What happens when no host matches a route's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubsetFallback {
    /// No host.
    None,
    /// Any host.
    Any,
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
        let common = wire.common_lb_config.clone().unwrap_or_default();
        let discovery = Discovery::of(&wire)?;
        let policy = LbPolicy::of(&wire, &discovery)?;
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
            panic_threshold: common
                .healthy_panic_threshold
                .as_ref()
                .map_or(50.0, |percent| percent.value),
            is_locality_weighted: is_locality_weighted(&common)?,
            subset_fallback: subset_fallback(&wire)?,
            outlier: wire
                .outlier_detection
                .as_ref()
                .map(OutlierConfig::try_from)
                .transpose()
                .at("outlier_detection")?,
            health_checks: try_all(
                "health_checks",
                &wire.health_checks,
                HealthCheckConfig::try_from,
            )?,
            http: HttpProtocolOptions::of(&wire)?,
            transport: TransportMatches::of(&wire, secrets)?,
            keepalive: wire
                .upstream_connection_options
                .as_ref()
                .and_then(|options| options.tcp_keepalive.as_ref())
                .map(Keepalive::from),
            bind,
            name,
            stat_name,
            discovery,
            policy,
            assignment: wire.load_assignment.map(Arc::new),
            circuit_breakers: wire.circuit_breakers,
        })
    }
}

fn refuse(wire: &Wire) -> Result<(), Invalid> {
    if wire.name.is_empty() {
        return Err(Invalid::new("a cluster needs a name").at("name"));
    }
    let unsupported = [
        (
            wire.transport_socket_matcher.is_some(),
            "transport_socket_matcher",
        ),
        (
            wire.load_balancing_policy.is_some(),
            "load_balancing_policy",
        ),
        (wire.upstream_config.is_some(), "upstream_config"),
        (wire.use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups"),
        (!wire.dns_resolvers.is_empty(), "dns_resolvers"),
        (!wire.filters.is_empty(), "filters"),
        (
            wire.connection_pool_per_downstream_connection,
            "connection_pool_per_downstream_connection",
        ),
    ];
    match unsupported.iter().find(|(is_set, _)| *is_set) {
        Some((_, field)) => Err(Invalid::new("not supported").at(field)),
        None => Ok(()),
    }
}

fn is_locality_weighted(common: &CommonLbConfig) -> Result<bool, Invalid> {
    match &common.locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Ok(true),
        // Zone-aware routing needs the proxy's own cluster; without one Envoy does not apply it either.
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) | None => Ok(false),
    }
}

fn subset_fallback(wire: &Wire) -> Result<Option<SubsetFallback>, Invalid> {
    let Some(subset) = &wire.lb_subset_config else {
        return Ok(None);
    };
    match subset.fallback_policy() {
        LbSubsetFallbackPolicy::NoFallback => Ok(Some(SubsetFallback::None)),
        LbSubsetFallbackPolicy::AnyEndpoint => Ok(Some(SubsetFallback::Any)),
        LbSubsetFallbackPolicy::DefaultSubset => {
            Err(Invalid::unsupported("DEFAULT_SUBSET").at("lb_subset_config.fallback_policy"))
        }
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
                return Err(Invalid::unsupported(&custom.name).at("cluster_type"));
            }
        };
        Ok(match kind {
            DiscoveryType::Static => Self::Static,
            DiscoveryType::StrictDns => Self::StrictDns(DnsOptions::of(wire)?),
            DiscoveryType::LogicalDns => Self::LogicalDns(DnsOptions::of(wire)?),
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
                let port = match &wire.lb_config {
                    Some(LbConfig::OriginalDstLbConfig(options)) => {
                        if options.use_http_header || options.metadata_key.is_some() {
                            return Err(Invalid::unsupported("another source of the destination")
                                .at("original_dst_lb_config"));
                        }
                        options.upstream_port_override
                    }
                    _ => None,
                };
                Self::OriginalDst {
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

impl DnsOptions {
    fn of(wire: &Wire) -> Result<Self, Invalid> {
        use proto::envoy::config::cluster::v3::cluster::DnsLookupFamily as Family;
        let refresh = duration_or(
            wire.dns_refresh_rate.as_ref(),
            Duration::from_secs(5),
            "dns_refresh_rate",
        )?
        .max(Duration::from_millis(1));
        let failure = wire.dns_failure_refresh_rate.as_ref();
        let base = duration_or(
            failure.and_then(|rate| rate.base_interval.as_ref()),
            refresh,
            "dns_failure_refresh_rate.base_interval",
        )?;
        let most = duration_or(
            failure.and_then(|rate| rate.max_interval.as_ref()),
            base.saturating_mul(10),
            "dns_failure_refresh_rate.max_interval",
        )?;
        let family = match wire.dns_lookup_family() {
            Family::Auto => DnsFamily::Auto,
            Family::V4Only => DnsFamily::V4Only,
            Family::V6Only => DnsFamily::V6Only,
            Family::V4Preferred => DnsFamily::V4Preferred,
            Family::All => DnsFamily::All,
        };
        Ok(Self {
            refresh,
            failure_refresh: (base, most),
            family,
        })
    }
}

impl LbPolicy {
    fn of(wire: &Wire, discovery: &Discovery) -> Result<Self, Invalid> {
        let policy = WirePolicy::try_from(wire.lb_policy).map_err(|_| {
            Invalid::new(format!("{} is not a policy", wire.lb_policy)).at("lb_policy")
        })?;
        if matches!(discovery, Discovery::OriginalDst { .. })
            != (policy == WirePolicy::ClusterProvided)
        {
            return Err(
                Invalid::new("CLUSTER_PROVIDED goes with ORIGINAL_DST, and only with it")
                    .at("lb_policy"),
            );
        }
        Ok(match (policy, &wire.lb_config) {
            (WirePolicy::RoundRobin, _) => Self::RoundRobin,
            (WirePolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(options))) => {
                Self::LeastRequest {
                    choices: options.choice_count.unwrap_or(2).max(2),
                }
            }
            (WirePolicy::LeastRequest, _) => Self::LeastRequest { choices: 2 },
            (WirePolicy::Random, _) => Self::Random,
            (WirePolicy::RingHash, Some(LbConfig::RingHashLbConfig(options))) => {
                let (minimum, maximum) = (
                    options.minimum_ring_size.unwrap_or(1024),
                    options.maximum_ring_size.unwrap_or(8 << 20),
                );
                if minimum > maximum || maximum > 8 << 20 {
                    return Err(Invalid::new(
                        "minimum_ring_size ≤ maximum_ring_size ≤ 8388608 is needed",
                    )
                    .at("ring_hash_lb_config"));
                }
                Self::RingHash(RingOptions {
                    minimum,
                    maximum,
                    is_murmur: options.hash_function == 1,
                })
            }
            (WirePolicy::RingHash, _) => Self::RingHash(RingOptions {
                minimum: 1024,
                maximum: 8 << 20,
                is_murmur: false,
            }),
            (WirePolicy::Maglev, Some(LbConfig::MaglevLbConfig(options))) => {
                let size = options.table_size.unwrap_or(65_537);
                if !is_prime(size) || size > 5_000_011 {
                    return Err(Invalid::new(format!("{size} is not a prime up to 5000011"))
                        .at("maglev_lb_config.table_size"));
                }
                Self::Maglev { size }
            }
            (WirePolicy::Maglev, _) => Self::Maglev { size: 65_537 },
            (WirePolicy::ClusterProvided, _) => Self::ClusterProvided,
            (WirePolicy::LoadBalancingPolicyConfig, _) => {
                return Err(Invalid::new("not supported").at("load_balancing_policy"));
            }
        })
    }
}

fn is_prime(number: u64) -> bool {
    number > 2
        && (2..)
            .take_while(|factor| factor * factor <= number)
            .all(|factor| !number.is_multiple_of(factor))
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
