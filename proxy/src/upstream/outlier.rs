//! Outlier detection: a host that keeps failing is taken out for a while.
//!
//! Ejection follows at once from the failure that fills the count; hosts come back in the sweep. As in Envoy the time out is
//! `base × number of ejections`, capped, and a host that behaves for a sweep has one ejection forgiven.

use super::{Cluster, ClusterManager, Host, host::HealthFlag, stats::OutlierStats};
use crate::{invalid::Invalid, stats::Counter, wire::duration_or};
use proto::envoy::config::cluster::v3::OutlierDetection as Wire;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How a request or connection to a host went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The host answered with this status.
    Status(u16),
    /// It could not be reached, or broke off.
    LocalFailure,
    /// It took too long.
    Timeout,
    /// A TCP connection was made.
    Connected,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutlierConfig {
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    enforcing_5xx: u32,
    enforcing_gateway: u32,
    enforcing_local: u32,
    split_local: bool,
    interval: Duration,
    base: Duration,
    most: Duration,
    max_percent: u32,
    always_one: bool,
}

/// Ejection on one cluster.
pub(crate) struct OutlierDetector {
    config: OutlierConfig,
    stats: Arc<OutlierStats>,
    began: Instant,
    next_sweep: AtomicU64,
}

impl TryFrom<&Wire> for OutlierConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        if !wire.monitors.is_empty() {
            return Err(Invalid::new("not supported").at("monitors"));
        }
        let percent = |value: Option<u32>, default: u32, field: &str| match value.unwrap_or(default)
        {
            value @ 0..=100 => Ok(value),
            value => Err(Invalid::new(format!("{value} is not a percentage")).at(field)),
        };
        let base = duration_or(
            wire.base_ejection_time.as_ref(),
            Duration::from_secs(30),
            "base_ejection_time",
        )?;
        Ok(Self {
            consecutive_5xx: wire.consecutive_5xx.unwrap_or(5),
            consecutive_gateway: wire.consecutive_gateway_failure.unwrap_or(5),
            consecutive_local: wire.consecutive_local_origin_failure.unwrap_or(5),
            enforcing_5xx: percent(
                wire.enforcing_consecutive_5xx,
                100,
                "enforcing_consecutive_5xx",
            )?,
            enforcing_gateway: percent(
                wire.enforcing_consecutive_gateway_failure,
                0,
                "enforcing_consecutive_gateway_failure",
            )?,
            enforcing_local: percent(
                wire.enforcing_consecutive_local_origin_failure,
                100,
                "enforcing_consecutive_local_origin_failure",
            )?,
            split_local: wire.split_external_local_origin_errors,
            interval: duration_or(wire.interval.as_ref(), Duration::from_secs(10), "interval")?
                .max(Duration::from_millis(10)),
            base,
            most: duration_or(
                wire.max_ejection_time.as_ref(),
                Duration::from_secs(300).max(base),
                "max_ejection_time",
            )?,
            max_percent: percent(wire.max_ejection_percent, 10, "max_ejection_percent")?,
            always_one: wire.always_eject_one_host.unwrap_or(false),
        })
    }
}

impl OutlierDetector {
    /// A detector that has seen nothing.
    pub(crate) fn new(config: OutlierConfig, stats: Arc<OutlierStats>) -> Self {
        let next_sweep = AtomicU64::new(millis(config.interval));
        Self {
            config,
            stats,
            began: Instant::now(),
            next_sweep,
        }
    }

    /// Takes note of `outcome`; `true` if `host` was ejected, so that the host sets must be built anew.
    pub(crate) fn report(
        &self,
        cluster: &Cluster,
        host: &Host,
        outcome: Outcome,
        random: u64,
    ) -> bool {
        let (config, state) = (&self.config, &host.outlier);
        let (status, is_local) = match outcome {
            Outcome::Status(status) => (status, false),
            Outcome::LocalFailure => (503, true),
            Outcome::Timeout => (504, true),
            Outcome::Connected => (200, true),
        };
        if config.split_local && is_local {
            let count = bump(&state.consecutive_local, status >= 500);
            return count >= config.consecutive_local && config.consecutive_local > 0 && {
                state.consecutive_local.store(0, Relaxed);
                let counters = (
                    &self
                        .stats
                        .ejections_detected_consecutive_local_origin_failure,
                    &self
                        .stats
                        .ejections_enforced_consecutive_local_origin_failure,
                );
                self.eject(cluster, host, config.enforcing_local, counters, random)
            };
        }
        if outcome == Outcome::Connected {
            // A connection alone says nothing about the answers.
            return false;
        }
        let gateway = bump(&state.consecutive_gateway, matches!(status, 502..=504));
        let failures = bump(&state.consecutive_5xx, status >= 500);
        let mut is_ejected = false;
        if config.consecutive_gateway > 0 && gateway >= config.consecutive_gateway {
            state.consecutive_gateway.store(0, Relaxed);
            let counters = (
                &self.stats.ejections_detected_consecutive_gateway_failure,
                &self.stats.ejections_enforced_consecutive_gateway_failure,
            );
            is_ejected |= self.eject(cluster, host, config.enforcing_gateway, counters, random);
        }
        if config.consecutive_5xx > 0 && failures >= config.consecutive_5xx {
            state.consecutive_5xx.store(0, Relaxed);
            self.stats.ejections_consecutive_5xx.inc();
            let counters = (
                &self.stats.ejections_detected_consecutive_5xx,
                &self.stats.ejections_enforced_consecutive_5xx,
            );
            is_ejected |= self.eject(cluster, host, config.enforcing_5xx, counters, random);
        }
        is_ejected
    }

    fn eject(
        &self,
        cluster: &Cluster,
        host: &Host,
        enforcing: u32,
        counters: (&Counter, &Counter),
        random: u64,
    ) -> bool {
        let (detected, enforced) = counters;
        detected.inc();
        if host.has(HealthFlag::FAILED_OUTLIER) || random % 100 >= u64::from(enforcing) {
            return false;
        }
        let sets = cluster.hosts();
        let total = sets.hosts().count() as u64;
        let ejected = sets
            .hosts()
            .filter(|host| host.has(HealthFlag::FAILED_OUTLIER))
            .count() as u64;
        let is_first_allowed = ejected == 0 && self.config.always_one;
        // QUIRK: Envoy compares the share before this ejection, so a small cluster may still lose one host.
        if !is_first_allowed
            && (total == 0
                || ejected * 100 / total >= u64::from(self.config.max_percent)
                || self.config.max_percent == 0)
        {
            self.stats.ejections_overflow.inc();
            return false;
        }
        if !host.raise(HealthFlag::FAILED_OUTLIER) {
            return false;
        }
        enforced.inc();
        self.stats.ejections_enforced_total.inc();
        self.stats.ejections_total.inc();
        self.stats.ejections_active.inc();
        host.outlier.ejections.fetch_add(1, Relaxed);
        host.outlier.ejected_at.store(self.now().max(1), Relaxed);
        tracing::info!(target: "outlier", cluster = %cluster.name(), host = %host.address_text, "host ejected");
        true
    }

    /// Brings back the hosts whose time is over; `true` if there were any.
    fn sweep(&self, cluster: &Cluster) -> bool {
        let now = self.now();
        if now < self.next_sweep.load(Relaxed) {
            return false;
        }
        self.next_sweep
            .store(now + millis(self.config.interval), Relaxed);
        let mut changed = false;
        for host in cluster.hosts().hosts() {
            let state = &host.outlier;
            let ejections = state.ejections.load(Relaxed);
            if !host.has(HealthFlag::FAILED_OUTLIER) {
                if ejections > 0 {
                    state.ejections.store(ejections - 1, Relaxed);
                }
                continue;
            }
            let time = self
                .config
                .base
                .saturating_mul(ejections.max(1))
                .min(self.config.most.max(self.config.base));
            if now.saturating_sub(state.ejected_at.load(Relaxed)) >= millis(time)
                && host.lower(HealthFlag::FAILED_OUTLIER)
            {
                state.ejected_at.store(0, Relaxed);
                self.stats.ejections_active.dec();
                changed = true;
                tracing::info!(target: "outlier", cluster = %cluster.name(), host = %host.address_text, "host is back");
            }
        }
        changed
    }

    /// A host that leaves the cluster while ejected is no longer counted.
    pub(crate) fn host_left(&self, host: &Host) {
        if host.has(HealthFlag::FAILED_OUTLIER) {
            self.stats.ejections_active.dec();
        }
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn bump(count: &std::sync::atomic::AtomicU32, is_failure: bool) -> u32 {
    if is_failure {
        return count.fetch_add(1, Relaxed) + 1;
    }
    // Most responses are good and the count is zero already: do not write then.
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
    0
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Sweeps all clusters for ever; runs on the main runtime.
pub(crate) async fn run_outlier_sweep(clusters: Arc<ClusterManager>) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        for cluster in clusters.snapshot().values() {
            if let Some(outlier) = cluster.outlier()
                && outlier.sweep(cluster)
            {
                cluster.rebuild();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        stats::Store,
        transport::SecretSlots,
        upstream::{ClusterConfig, LoadBalancerContext},
    };

    fn cluster(outlier: &str) -> Arc<Cluster> {
        let host = |port| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}}}"
            )
        };
        let text = format!(
            "{{name: a, outlier_detection: {outlier}, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{}, {}]}}]}}}}",
            host(1),
            host(2)
        );
        let config = ClusterConfig::new(
            proto::yaml::from_str(&text).unwrap(),
            &SecretSlots::default(),
        )
        .unwrap();
        Cluster::new(config, &Arc::new(Store::default()).root()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_keeps_failing_is_out_for_a_while() {
        let cluster =
            cluster("{consecutive_5xx: 3, base_ejection_time: 30s, max_ejection_percent: 50}");
        let bad = cluster.hosts().hosts().next().unwrap().clone();
        for status in [500, 500, 200, 500, 500] {
            cluster.report(&bad, Outcome::Status(status), 0);
        }
        assert!(bad.is_healthy());
        cluster.report(&bad, Outcome::LocalFailure, 0);
        assert!(!bad.is_healthy());
        for random in 0..20 {
            let context = LoadBalancerContext {
                random,
                ..LoadBalancerContext::default()
            };
            assert_ne!(cluster.choose_host(&context).unwrap().id, bad.id);
        }
        // Half of the hosts is the most that may be out.
        let other = cluster.hosts().hosts().nth(1).unwrap().clone();
        for _ in 0..3 {
            cluster.report(&other, Outcome::Status(503), 0);
        }
        assert!(other.is_healthy());
        let outlier = cluster.outlier().unwrap();
        assert_eq!(outlier.stats.ejections_overflow.value(), 1);
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(!outlier.sweep(&cluster));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(outlier.sweep(&cluster));
        assert!(bad.is_healthy());
        assert_eq!(outlier.stats.ejections_active.value(), 0);
    }
}
