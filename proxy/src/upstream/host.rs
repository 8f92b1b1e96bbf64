//! One endpoint of a cluster: its address, weight, locality, health and counters.

use super::outlier::OutlierState;
use crate::{
    stats::{Counter, Gauge},
    transport::UpstreamTransport,
};
use proto::envoy::config::core::v3::Metadata;
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU16, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};
use tokio::time::Instant;

/// Where a host is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HostAddress {
    /// TCP.
    Socket(SocketAddr),
    /// A Unix socket.
    Pipe(Arc<PathBuf>),
}

/// Region, zone, sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Locality {
    /// Region.
    pub(crate) region: String,
    /// Zone in the region.
    pub(crate) zone: String,
    /// Sub-zone in the zone.
    pub(crate) sub_zone: String,
}

/// Why a host gets no traffic, or less; bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HealthFlag(pub(crate) u16);

impl HealthFlag {
    /// An active health check failed.
    pub(crate) const FAILED_ACTIVE: Self = Self(1);
    /// Ejected as an outlier.
    pub(crate) const FAILED_OUTLIER: Self = Self(2);
    /// The control plane says so.
    pub(crate) const FAILED_EDS: Self = Self(4);
    /// The control plane says that it is draining.
    pub(crate) const DRAINING_EDS: Self = Self(8);
    /// No active check has answered yet.
    pub(crate) const PENDING_ACTIVE: Self = Self(16);
    /// Degraded, says the control plane.
    pub(crate) const DEGRADED_EDS: Self = Self(32);
    /// Degraded, says the host itself to an active check.
    pub(crate) const DEGRADED_ACTIVE: Self = Self(64);
    /// No longer a member, but healthy still: it goes when a check fails.
    pub(crate) const PENDING_REMOVAL: Self = Self(128);
    /// The last active check had no answer in time.
    pub(crate) const TIMEOUT_ACTIVE: Self = Self(256);
    const UNHEALTHY: u16 = 1 | 2 | 4 | 8;
    const DEGRADED: u16 = 32 | 64;
    const EDS: u16 = 4 | 8 | 32;
    /// Envoy's names, for `/clusters`, in its order.
    pub(crate) const NAMES: [(Self, &'static str); 9] = [
        (Self::FAILED_ACTIVE, "/failed_active_hc"),
        (Self::FAILED_OUTLIER, "/failed_outlier_check"),
        (Self::FAILED_EDS, "/failed_eds_health"),
        (Self::DEGRADED_ACTIVE, "/degraded_active_hc"),
        (Self::DEGRADED_EDS, "/degraded_eds_health"),
        (Self::PENDING_REMOVAL, "/pending_dynamic_removal"),
        (Self::PENDING_ACTIVE, "/pending_active_hc"),
        (Self::TIMEOUT_ACTIVE, "/active_hc_timeout"),
        (Self::DRAINING_EDS, "/eds_status_draining"),
    ];
}

/// What a host counts.
#[derive(Debug, Default)]
pub(crate) struct HostStats {
    /// Connections made.
    pub(crate) cx_total: Counter,
    /// Connections open.
    pub(crate) cx_active: Gauge,
    /// Connections that failed.
    pub(crate) cx_connect_fail: Counter,
    /// Requests sent.
    pub(crate) rq_total: Counter,
    /// Requests under way.
    pub(crate) rq_active: Gauge,
    /// Requests that wait for a connection.
    pub(crate) rq_pending_active: Gauge,
    /// Good responses.
    pub(crate) rq_success: Counter,
    /// Bad ones.
    pub(crate) rq_error: Counter,
    /// Requests that took too long.
    pub(crate) rq_timeout: Counter,
}

/// One endpoint; passed as `Arc<Host>`.
pub(crate) struct Host {
    /// Unique in the process; the pools' key.
    pub(crate) id: u64,
    /// Where it is reached.
    pub(crate) address: HostAddress,
    /// The address as text (`10.0.0.1:80`).
    pub(crate) address_text: Arc<str>,
    /// The name the address was resolved from, or the endpoint's own.
    pub(crate) hostname: Arc<str>,
    /// Where it is reached, too, when it is not reached there.
    pub(crate) more_addresses: Box<[SocketAddr]>,
    /// How its health is checked, if otherwise than the others'.
    pub(crate) health_check: HealthCheckTarget,
    /// Where it stands.
    pub(crate) locality: Arc<Locality>,
    /// The endpoint's metadata.
    pub(crate) metadata: Option<Arc<Metadata>>,
    /// How connections to it are secured.
    pub(crate) transport: Arc<UpstreamTransport>,
    /// What it counts.
    pub(crate) stats: HostStats,
    /// Outlier detection's memory.
    pub(crate) outlier: OutlierState,
    weight: AtomicU32,
    health: AtomicU16,
    is_removed: AtomicBool,
    /// When it came or got healthy, milliseconds since the process began.
    since: AtomicU64,
}

/// How the health of an endpoint is checked, if otherwise than that of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthCheckTarget {
    /// Another address.
    pub(crate) address: Option<SocketAddr>,
    /// The name in the `host` header.
    pub(crate) hostname: Option<Arc<str>>,
    /// It is not checked and counts as healthy.
    pub(crate) is_disabled: bool,
}

/// What a new host is made of.
#[derive(Clone)]
pub(crate) struct HostParts {
    pub(crate) address: HostAddress,
    pub(crate) hostname: Arc<str>,
    pub(crate) more_addresses: Box<[SocketAddr]>,
    pub(crate) health_check: HealthCheckTarget,
    pub(crate) locality: Arc<Locality>,
    pub(crate) metadata: Option<Arc<Metadata>>,
    pub(crate) transport: Arc<UpstreamTransport>,
    pub(crate) weight: u32,
    pub(crate) health: u16,
}

impl std::fmt::Display for HostAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path) => path.display().fmt(f),
        }
    }
}

impl Host {
    /// A new host.
    pub(crate) fn new(parts: HostParts) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            address_text: parts.address.to_string().into(),
            address: parts.address,
            hostname: parts.hostname,
            more_addresses: parts.more_addresses,
            health_check: parts.health_check,
            locality: parts.locality,
            metadata: parts.metadata,
            transport: parts.transport,
            stats: HostStats::default(),
            outlier: OutlierState::default(),
            weight: AtomicU32::new(parts.weight),
            health: AtomicU16::new(parts.health),
            is_removed: AtomicBool::new(false),
            since: AtomicU64::new(clock()),
        })
    }

    /// Its TCP address.
    pub(crate) fn socket_address(&self) -> Option<SocketAddr> {
        match self.address {
            HostAddress::Socket(address) => Some(address),
            HostAddress::Pipe(_) => None,
        }
    }

    /// Load-balancing weight, at least 1.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Relaxed).max(1)
    }

    /// A new weight from the control plane.
    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    /// Whether it may get traffic like any other.
    pub(crate) fn is_healthy(&self) -> bool {
        self.health.load(Acquire) & (HealthFlag::UNHEALTHY | HealthFlag::DEGRADED) == 0
    }

    /// Whether it may get traffic when the others are not enough.
    pub(crate) fn is_degraded(&self) -> bool {
        let health = self.health.load(Acquire);
        health & HealthFlag::UNHEALTHY == 0 && health & HealthFlag::DEGRADED != 0
    }

    /// Whether it does not count yet, because no check has answered for it.
    pub(crate) fn is_excluded(&self, ignores_new: bool) -> bool {
        ignores_new && self.has(HealthFlag::PENDING_ACTIVE)
    }

    /// How long it has been there, or healthy.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_millis(clock().saturating_sub(self.since.load(Relaxed)))
    }

    /// It is as good as new: slow start begins again.
    pub(crate) fn renew(&self) {
        self.since.store(clock(), Relaxed);
    }

    /// Whether its metadata says that it is a canary.
    pub(crate) fn is_canary(&self) -> bool {
        let value = self
            .metadata_of("envoy.lb")
            .and_then(|fields| fields.fields.get("canary"));
        matches!(
            value.and_then(|value| value.kind.as_ref()),
            Some(prost_types::value::Kind::BoolValue(true))
        )
    }

    /// Whether a flag is up.
    pub(crate) fn has(&self, flag: HealthFlag) -> bool {
        self.health.load(Acquire) & flag.0 != 0
    }

    /// Raises a flag; `true` if it was down.
    pub(crate) fn raise(&self, flag: HealthFlag) -> bool {
        self.health.fetch_or(flag.0, AcqRel) & flag.0 == 0
    }

    /// Lowers a flag; `true` if it was up.
    pub(crate) fn lower(&self, flag: HealthFlag) -> bool {
        self.health.fetch_and(!flag.0, AcqRel) & flag.0 != 0
    }

    /// Takes over what the control plane says about its health; `true` if that is something else.
    pub(crate) fn set_eds_health(&self, from: &Host) -> bool {
        // Nobody else touches these bits.
        let health = from.health.load(Acquire) & HealthFlag::EDS;
        let before = self.health.load(Acquire) & HealthFlag::EDS;
        if health == before {
            return false;
        }
        self.health.fetch_and(!HealthFlag::EDS, AcqRel);
        self.health.fetch_or(health, AcqRel);
        true
    }

    /// Takes over what was learnt about the host that this one replaces.
    pub(crate) fn inherit(&self, old: &Host) {
        let kept = HealthFlag::FAILED_ACTIVE.0
            | HealthFlag::DEGRADED_ACTIVE.0
            | HealthFlag::FAILED_OUTLIER.0
            | HealthFlag::PENDING_ACTIVE.0;
        // A new host waits for its first check; this one has had it.
        self.health.fetch_and(
            !(HealthFlag::PENDING_ACTIVE.0 | HealthFlag::FAILED_ACTIVE.0),
            AcqRel,
        );
        self.health
            .fetch_or(old.health.load(Acquire) & kept, AcqRel);
        self.since.store(old.since.load(Relaxed), Relaxed);
        self.outlier.inherit(&old.outlier);
    }

    /// It is no longer a member: pools let its idle connections go.
    pub(crate) fn set_removed(&self, is_removed: bool) {
        self.is_removed.store(is_removed, Relaxed);
    }

    /// Whether it is no longer a member.
    pub(crate) fn is_removed(&self) -> bool {
        self.is_removed.load(Relaxed)
    }

    /// Envoy's word for its health in `/clusters`: `healthy`, or the flags.
    pub(crate) fn health_text(&self) -> String {
        let health = self.health.load(Relaxed);
        if health == 0 {
            return "healthy".to_owned();
        }
        HealthFlag::NAMES
            .iter()
            .filter(|(flag, _)| health & flag.0 != 0)
            .map(|(_, name)| *name)
            .collect()
    }

    /// The fields of the metadata under `filter` (`envoy.lb`, `envoy.transport_socket_match`).
    pub(crate) fn metadata_of(&self, filter: &str) -> Option<&prost_types::Struct> {
        self.metadata.as_ref()?.filter_metadata.get(filter)
    }
}

/// Milliseconds since the process began to ask.
pub(super) fn clock() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = BEGAN.get_or_init(Instant::now);
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A host on 10.0.0.`last`:80.
    pub(crate) fn host(last: u8, is_healthy: bool) -> Arc<Host> {
        host_at("", last, is_healthy)
    }

    /// As [`host`], in a zone.
    pub(crate) fn host_at(zone: &str, last: u8, is_healthy: bool) -> Arc<Host> {
        Host::new(HostParts {
            address: HostAddress::Socket(SocketAddr::from(([10, 0, 0, last], 80))),
            hostname: "".into(),
            more_addresses: Box::default(),
            health_check: HealthCheckTarget::default(),
            locality: Arc::new(Locality {
                zone: zone.to_owned(),
                ..Locality::default()
            }),
            metadata: None,
            transport: Arc::new(UpstreamTransport::Raw),
            weight: 1,
            health: if is_healthy {
                0
            } else {
                HealthFlag::FAILED_EDS.0
            },
        })
    }
}
