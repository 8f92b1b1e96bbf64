//! How names are resolved, as configured.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::Resolver;
use crate::{invalid::Invalid, wire::duration_or};
use proto::envoy::{
    config::cluster::v3::{Cluster as Wire, cluster::RefreshRate},
    extensions::clusters::dns::v3::DnsCluster,
};
use std::{net::SocketAddr, time::Duration};

/// DNS settings of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DnsOptions {
    /// Time between resolutions.
    pub(crate) refresh: Duration,
    /// Time after a failure, growing to the second.
    pub(crate) failure_refresh: (Duration, Duration),
    /// Which addresses are wanted.
    pub(crate) family: DnsFamily,
    /// At most so much later, so that not everybody asks at once.
    pub(crate) jitter: Duration,
    /// Whether the cluster waits for the first answer before it serves.
    pub(crate) is_awaited: bool,
    /// Whether answers are asked for anew when they do not hold any longer, if that is known.
    pub(crate) respects_ttl: bool,
    /// Who is asked, if not whom the bootstrap says.
    pub(crate) resolver: Option<Resolver>,
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

impl DnsOptions {
    /// Of the extension, whose numbers of families are one higher.
    pub(crate) fn typed(dns: &DnsCluster, wire: &Wire) -> Result<Self, Invalid> {
        let older = Wire {
            dns_refresh_rate: dns.dns_refresh_rate,
            dns_jitter: dns.dns_jitter,
            dns_lookup_family: (dns.dns_lookup_family - 1).max(0),
            dns_failure_refresh_rate: dns.dns_failure_refresh_rate.as_ref().map(|rate| {
                RefreshRate {
                    base_interval: rate.base_interval,
                    max_interval: rate.max_interval,
                }
            }),
            wait_for_warm_on_init: wire.wait_for_warm_on_init,
            respect_dns_ttl: dns.respect_dns_ttl,
            typed_dns_resolver_config: dns.typed_dns_resolver_config.clone(),
            ..Wire::default()
        };
        Self::of(&older)
    }

    /// Of a cluster's fields.
    pub(crate) fn of(wire: &Wire) -> Result<Self, Invalid> {
        use proto::envoy::config::cluster::v3::cluster::DnsLookupFamily as Family;
        let refresh = duration_or(
            wire.dns_refresh_rate.as_ref(),
            Duration::from_secs(5),
            "dns_refresh_rate",
        )?
        .max(Duration::from_millis(1));
        let failure = failure_refresh(wire.dns_failure_refresh_rate.as_ref(), refresh)?;
        let family = match wire.dns_lookup_family() {
            Family::Auto => DnsFamily::Auto,
            Family::V4Only => DnsFamily::V4Only,
            Family::V6Only => DnsFamily::V6Only,
            Family::V4Preferred => DnsFamily::V4Preferred,
            Family::All => DnsFamily::All,
        };
        Ok(Self {
            refresh,
            failure_refresh: failure,
            family,
            jitter: duration_or(wire.dns_jitter.as_ref(), Duration::ZERO, "dns_jitter")?,
            is_awaited: wire.wait_for_warm_on_init.unwrap_or(true),
            respects_ttl: wire.respect_dns_ttl,
            resolver: Resolver::of(
                wire.typed_dns_resolver_config.as_ref(),
                wire.dns_resolution_config.as_ref(),
                (&wire.dns_resolvers, wire.use_tcp_for_dns_lookups),
            )?,
        })
    }
}

impl DnsFamily {
    /// Which addresses are taken.
    pub(super) fn choose(self, found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let (mut v4, mut v6): (Vec<SocketAddr>, Vec<SocketAddr>) =
            found.partition(SocketAddr::is_ipv4);
        let mut chosen = match self {
            DnsFamily::V4Only => v4,
            DnsFamily::V6Only => v6,
            DnsFamily::Auto if !v6.is_empty() => v6,
            DnsFamily::Auto => v4,
            DnsFamily::V4Preferred if !v4.is_empty() => v4,
            DnsFamily::V4Preferred => v6,
            DnsFamily::All => {
                v4.append(&mut v6);
                v4
            }
        };
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// Times after a failure, the first and the longest, of a rate that may say neither.
pub(crate) fn failure_refresh(
    rate: Option<&RefreshRate>,
    refresh: Duration,
) -> Result<(Duration, Duration), Invalid> {
    let base = duration_or(
        rate.and_then(|rate| rate.base_interval.as_ref()),
        refresh,
        "dns_failure_refresh_rate.base_interval",
    )?;
    let most = duration_or(
        rate.and_then(|rate| rate.max_interval.as_ref()),
        base.saturating_mul(10),
        "dns_failure_refresh_rate.max_interval",
    )?;
    Ok((base, most))
}
