//! From a load assignment to hosts: addresses, health, weights, transport sockets.

use super::{
    Cluster, Host, HostAddress, LocalityEndpoints,
    host::{HealthCheckTarget, HealthFlag, HostParts, Locality},
};
use crate::matcher::Fraction;
use crate::{
    invalid::{At as _, Invalid, try_all},
    wire::AnyAddress,
};
use proto::envoy::config::{
    core::v3::HealthStatus,
    endpoint::v3::{
        ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, cluster_load_assignment::Policy,
        endpoint::HealthCheckConfig, lb_endpoint::HostIdentifier,
    },
};
use proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

const MILLION: u32 = 1_000_000;

/// Requests that a cluster does not want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// This one.
    Some,
    /// None at all.
    All,
    /// This one, as the cluster is said to be under repair.
    Maintenance,
}

/// An address that an endpoint has, with others that lead to the same host.
pub(crate) struct Resolved {
    address: HostAddress,
    more: Box<[SocketAddr]>,
}

impl From<HostAddress> for Resolved {
    fn from(address: HostAddress) -> Self {
        Self {
            address,
            more: Box::default(),
        }
    }
}

impl Resolved {
    /// One host of many addresses.
    pub(crate) fn one(addresses: Vec<SocketAddr>) -> Option<Self> {
        let mut addresses = addresses.into_iter();
        Some(Self {
            address: HostAddress::Socket(addresses.next()?),
            more: addresses.collect(),
        })
    }
}

/// The share of requests that is not to be forwarded, in millionths.
pub(super) fn drops(policy: &Policy) -> Result<u32, Invalid> {
    match &policy.drop_overloads[..] {
        [] => Ok(0),
        [one] => {
            let share = one.drop_percentage.unwrap_or_default();
            let unit = match share.denominator() {
                DenominatorType::Hundred => 10_000,
                DenominatorType::TenThousand => 100,
                DenominatorType::Million => 1,
            };
            Ok(share.numerator.saturating_mul(unit).min(MILLION))
        }
        // As in Envoy.
        _ => Err(Invalid::unsupported("more than one category")),
    }
}

impl Cluster {
    /// Whether a request is one of those that are not to be forwarded, and whether all are.
    pub(crate) fn drops_request(&self, random: impl FnOnce() -> u64) -> Option<Dropped> {
        if self.is_in_maintenance() {
            return Some(Dropped::Maintenance);
        }
        match self.drops.load(Relaxed) {
            0 => None,
            MILLION => Some(Dropped::All),
            share => (random() % u64::from(MILLION) < u64::from(share)).then_some(Dropped::Some),
        }
    }

    fn is_in_maintenance(&self) -> bool {
        let runtime = &self.shared.runtime;
        // Asked for each request: the key is made only where there may be one.
        runtime.has("upstream")
            && runtime
                .get(&format!("upstream.maintenance_mode.{}", self.name()))
                .is_some_and(Fraction::draw)
    }

    /// The endpoints of `assignment`; `resolve` tells the addresses of each.
    pub(crate) fn localities(
        &self,
        assignment: &ClusterLoadAssignment,
        resolve: &dyn Fn(&AnyAddress) -> Result<Vec<Resolved>, Invalid>,
    ) -> Result<Vec<LocalityEndpoints>, Invalid> {
        if let Some(policy) = &assignment.policy {
            drops(policy).at("policy.drop_overloads")?;
            if policy.weighted_priority_health {
                return Err(Invalid::unsupported("weighted_priority_health").at("policy"));
            }
        }
        try_all("endpoints", &assignment.endpoints, |wire| {
            self.locality(wire, resolve)
        })
    }

    fn locality(
        &self,
        wire: &LocalityLbEndpoints,
        resolve: &dyn Fn(&AnyAddress) -> Result<Vec<Resolved>, Invalid>,
    ) -> Result<LocalityEndpoints, Invalid> {
        if wire.priority > 128 {
            return Err(Invalid::new(format!("{} is above 128", wire.priority)).at("priority"));
        }
        if wire.lb_config.is_some() {
            return Err(Invalid::new("not supported").at("lb_config"));
        }
        let locality = wire.locality.clone().unwrap_or_default();
        let locality = Arc::new(Locality {
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
        });
        let hosts = try_all("lb_endpoints", &wire.lb_endpoints, |endpoint| {
            self.endpoint(endpoint, &locality, resolve)
        })?;
        Ok(LocalityEndpoints {
            locality,
            priority: wire.priority,
            weight: wire.load_balancing_weight,
            hosts: hosts.into_iter().flatten().collect(),
        })
    }

    fn endpoint(
        &self,
        wire: &LbEndpoint,
        locality: &Arc<Locality>,
        resolve: &dyn Fn(&AnyAddress) -> Result<Vec<Resolved>, Invalid>,
    ) -> Result<Vec<Arc<Host>>, Invalid> {
        let Some(HostIdentifier::Endpoint(endpoint)) = &wire.host_identifier else {
            return Err(Invalid::new("an endpoint is needed").at("endpoint"));
        };
        let address = endpoint
            .address
            .as_ref()
            .ok_or_else(|| Invalid::new("an address is needed").at("endpoint.address"))?;
        let address = AnyAddress::try_from(address).at("endpoint.address")?;
        let hostname = match (&address, endpoint.hostname.as_str()) {
            (AnyAddress::Name(name, _), "") => name.as_str(),
            (_, hostname) => hostname,
        };
        let hostname: Arc<str> = hostname.into();
        let health =
            match HealthStatus::try_from(wire.health_status).unwrap_or(HealthStatus::Unknown) {
                HealthStatus::Unknown | HealthStatus::Healthy => 0,
                HealthStatus::Unhealthy | HealthStatus::Timeout => HealthFlag::FAILED_EDS.0,
                HealthStatus::Draining => HealthFlag::DRAINING_EDS.0,
                HealthStatus::Degraded => HealthFlag::DEGRADED_EDS.0,
            };
        let check = endpoint.health_check_config.as_ref();
        let is_disabled = check.is_some_and(|check| check.disable_active_health_check);
        let health = if self.config.health_checks.is_empty() || is_disabled {
            health
        } else {
            health | HealthFlag::PENDING_ACTIVE.0 | HealthFlag::FAILED_ACTIVE.0
        };
        let more: Vec<SocketAddr> = try_all(
            "endpoint.additional_addresses",
            &endpoint.additional_addresses,
            |one| {
                let address = one
                    .address
                    .as_ref()
                    .ok_or_else(|| Invalid::new("an address is needed"))?;
                AnyAddress::try_from(address)?.socket()
            },
        )?;
        let criteria = wire
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.filter_metadata.get("envoy.transport_socket_match"));
        let transport = self.config.transport.of_endpoint(criteria);
        let addresses = resolve(&address).at("endpoint.address")?;
        Ok(addresses
            .into_iter()
            .map(|one| {
                let checked_at = match (&one.address, check) {
                    (HostAddress::Socket(socket), Some(check)) => target(*socket, check),
                    _ => None,
                };
                Host::new(HostParts {
                    more_addresses: if more.is_empty() {
                        one.more
                    } else {
                        more.clone().into()
                    },
                    address: one.address,
                    hostname: hostname.clone(),
                    health_check: HealthCheckTarget {
                        address: checked_at,
                        hostname: check
                            .filter(|check| !check.hostname.is_empty())
                            .map(|check| check.hostname.as_str().into()),
                        is_disabled,
                    },
                    locality: locality.clone(),
                    metadata: wire.metadata.clone().map(Arc::new),
                    transport: transport.clone(),
                    weight: wire.load_balancing_weight.unwrap_or(1),
                    health,
                })
            })
            .collect())
    }
}

/// Where a host's health is checked, if elsewhere.
fn target(host: SocketAddr, check: &HealthCheckConfig) -> Option<SocketAddr> {
    let own = check
        .address
        .as_ref()
        .and_then(|address| AnyAddress::try_from(address).ok()?.socket().ok());
    let port = u16::try_from(check.port_value)
        .ok()
        .filter(|port| *port > 0);
    match (own, port) {
        (Some(address), _) => Some(address),
        (None, Some(port)) => Some(SocketAddr::new(host.ip(), port)),
        (None, None) => None,
    }
}
