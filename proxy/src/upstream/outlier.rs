//! Outlier detection: a host that keeps failing is taken out for a while.
//!
//! A row of failures ejects at once; rates are looked at in the sweep, which also brings hosts back. As in Envoy the time out is
//! `base × number of ejections`, capped, plus jitter, and a host that behaves for a sweep has one ejection forgiven.

mod config;
mod state;

pub(crate) use config::OutlierConfig;
pub(crate) use state::OutlierState;

use super::{
    Cluster, ClusterManager, Host,
    event_log::{self, EventLog},
    host::{HealthFlag, clock},
    stats::OutlierStats,
};
use crate::stats::Counter;
use rand::RngExt as _;
use serde_json::json;
use state::Rate;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

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

/// Ejection on one cluster.
pub(crate) struct OutlierDetector {
    config: OutlierConfig,
    stats: Arc<OutlierStats>,
    next_sweep: AtomicU64,
    log: Option<EventLog>,
}

/// Why a host is ejected: Envoy's word, how surely it is done, where it is counted.
struct Reason<'a> {
    name: &'static str,
    enforcing: u32,
    detected: &'a Counter,
    enforced: &'a Counter,
}

impl OutlierDetector {
    /// A detector that has seen nothing.
    pub(crate) fn new(
        config: OutlierConfig,
        stats: Arc<OutlierStats>,
        log: Option<EventLog>,
    ) -> Self {
        let next_sweep = AtomicU64::new(clock() + millis(config.interval));
        Self {
            config,
            stats,
            next_sweep,
            log,
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
        let (config, state) = (&*self.config.now(&cluster.shared.runtime), &host.outlier);
        // As Envoy does with a matcher: all failures are alike.
        let outcome = match (outcome, &config.error_statuses) {
            (Outcome::Status(status), Some(failures)) if failures.contains(&status) => {
                Outcome::Status(500)
            }
            (Outcome::Status(_), Some(_)) => Outcome::Status(200),
            (outcome, _) => outcome,
        };
        let is_failure = match outcome {
            Outcome::Status(status) => status >= 500,
            Outcome::LocalFailure | Outcome::Timeout => true,
            Outcome::Connected => false,
        };
        if config.split_local {
            let is_local_failure = matches!(outcome, Outcome::LocalFailure | Outcome::Timeout);
            state.local.record(!is_local_failure);
            let row = state.bump_local(is_local_failure);
            if config.consecutive_local > 0 && row >= config.consecutive_local {
                state.reset_local();
                return self.eject(cluster, host, config, &self.local_row(config), random);
            }
            if is_local_failure || outcome == Outcome::Connected {
                return false;
            }
        }
        let status = match outcome {
            Outcome::Status(status) => status,
            Outcome::LocalFailure => 503,
            Outcome::Timeout => 504,
            Outcome::Connected => 200,
        };
        state.external.record(!is_failure);
        let gateway = state.bump_gateway(matches!(status, 502..=504));
        let failures = state.bump_5xx(is_failure);
        let mut is_ejected = false;
        if config.consecutive_gateway > 0 && gateway >= config.consecutive_gateway {
            state.reset_gateway();
            is_ejected |= self.eject(cluster, host, config, &self.gateway_row(config), random);
        }
        if config.consecutive_5xx > 0 && failures >= config.consecutive_5xx {
            state.reset_5xx();
            self.stats.ejections_consecutive_5xx.inc();
            is_ejected |= self.eject(cluster, host, config, &self.failure_row(config), random);
        }
        is_ejected
    }

    fn failure_row(&self, config: &OutlierConfig) -> Reason<'_> {
        Reason {
            name: "CONSECUTIVE_5XX",
            enforcing: config.enforcing_5xx,
            detected: &self.stats.ejections_detected_consecutive_5xx,
            enforced: &self.stats.ejections_enforced_consecutive_5xx,
        }
    }

    fn gateway_row(&self, config: &OutlierConfig) -> Reason<'_> {
        Reason {
            name: "CONSECUTIVE_GATEWAY_FAILURE",
            enforcing: config.enforcing_gateway,
            detected: &self.stats.ejections_detected_consecutive_gateway_failure,
            enforced: &self.stats.ejections_enforced_consecutive_gateway_failure,
        }
    }

    fn local_row(&self, config: &OutlierConfig) -> Reason<'_> {
        Reason {
            name: "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            enforcing: config.enforcing_local,
            detected: &self
                .stats
                .ejections_detected_consecutive_local_origin_failure,
            enforced: &self
                .stats
                .ejections_enforced_consecutive_local_origin_failure,
        }
    }

    fn success_rate(&self, config: &OutlierConfig, is_local: bool) -> Reason<'_> {
        let stats = &self.stats;
        if is_local {
            Reason {
                name: "SUCCESS_RATE_LOCAL_ORIGIN",
                enforcing: config.enforcing_local_success_rate,
                detected: &stats.ejections_detected_local_origin_success_rate,
                enforced: &stats.ejections_enforced_local_origin_success_rate,
            }
        } else {
            Reason {
                name: "SUCCESS_RATE",
                enforcing: config.enforcing_success_rate,
                detected: &stats.ejections_detected_success_rate,
                enforced: &stats.ejections_enforced_success_rate,
            }
        }
    }

    fn failure_percentage(&self, config: &OutlierConfig, is_local: bool) -> Reason<'_> {
        let stats = &self.stats;
        if is_local {
            Reason {
                name: "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
                enforcing: config.enforcing_local_failure_percentage,
                detected: &stats.ejections_detected_local_origin_failure_percentage,
                enforced: &stats.ejections_enforced_local_origin_failure_percentage,
            }
        } else {
            Reason {
                name: "FAILURE_PERCENTAGE",
                enforcing: config.enforcing_failure_percentage,
                detected: &stats.ejections_detected_failure_percentage,
                enforced: &stats.ejections_enforced_failure_percentage,
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "host counts are small")]
    fn eject(
        &self,
        cluster: &Cluster,
        host: &Host,
        config: &OutlierConfig,
        reason: &Reason<'_>,
        random: u64,
    ) -> bool {
        if host.has(HealthFlag::FAILED_OUTLIER) {
            return false;
        }
        reason.detected.inc();
        let total = cluster.hosts().hosts().count().max(1) as f64;
        let active = self.stats.ejections_active.value();
        // QUIRK: Envoy compares the share before this ejection, so a small cluster may still lose one host.
        let is_allowed = 100.0 * active as f64 / total < f64::from(config.max_percent)
            || (active == 0 && config.always_one);
        if !is_allowed {
            self.stats.ejections_overflow.inc();
            return false;
        }
        // QUIRK: of all reasons this counts two, enforced or not.
        if matches!(reason.name, "CONSECUTIVE_5XX" | "SUCCESS_RATE") {
            self.stats.ejections_total.inc();
        }
        let is_enforced = random % 100 < u64::from(reason.enforcing);
        self.log_event(cluster, host, Some(reason), is_enforced);
        if !is_enforced || !host.raise(HealthFlag::FAILED_OUTLIER) {
            return false;
        }
        reason.enforced.inc();
        self.stats.ejections_enforced_total.inc();
        self.stats.ejections_active.inc();
        let jitter = match millis(config.jitter) {
            0 => 0,
            most => rand::rng().random_range(0..=most),
        };
        host.outlier
            .ejected(clock(), jitter, config.base, config.most);
        tracing::info!(target: "outlier", cluster = %cluster.name(), host = %host.address_text, reason = reason.name, "host ejected");
        true
    }

    /// Brings back the hosts whose time is over and looks at the rates; `true` if anything changed.
    fn sweep(&self, cluster: &Cluster) -> bool {
        let now = clock();
        if now < self.next_sweep.load(Relaxed) {
            return false;
        }
        let config = &*self.config.now(&cluster.shared.runtime);
        self.next_sweep
            .store(now + millis(config.interval), Relaxed);
        let hosts: Vec<Arc<Host>> = cluster.hosts().hosts().cloned().collect();
        let mut has_changed = false;
        for host in &hosts {
            if !host.has(HealthFlag::FAILED_OUTLIER) {
                host.outlier.forgive();
            } else if host.outlier.is_over(now, config.base, config.most) {
                has_changed |= self.bring_back(cluster, host);
            }
        }
        has_changed |= self.judge(cluster, config, &hosts, false);
        if config.split_local {
            has_changed |= self.judge(cluster, config, &hosts, true);
        }
        has_changed
    }

    fn bring_back(&self, cluster: &Cluster, host: &Host) -> bool {
        if !host.lower(HealthFlag::FAILED_OUTLIER) {
            return false;
        }
        host.outlier.returned();
        host.renew();
        self.stats.ejections_active.dec();
        self.log_event(cluster, host, None, true);
        tracing::info!(target: "outlier", cluster = %cluster.name(), host = %host.address_text, "host is back");
        true
    }

    /// A check has found `host` healthy: it need not wait; `true` if it came back.
    pub(crate) fn checked_healthy(&self, cluster: &Cluster, host: &Host) -> bool {
        self.config.checks_bring_back && self.bring_back(cluster, host)
    }

    /// Ejects hosts by their rates of the interval that ends.
    #[expect(clippy::cast_precision_loss, reason = "host counts are small")]
    fn judge(
        &self,
        cluster: &Cluster,
        config: &OutlierConfig,
        hosts: &[Arc<Host>],
        is_local: bool,
    ) -> bool {
        let rate = |host: &Host| -> Rate {
            let window = if is_local {
                &host.outlier.local
            } else {
                &host.outlier.external
            };
            window.close(config.success_volume.min(config.failure_volume).into())
        };
        let rates: Vec<(&Arc<Host>, Rate)> = hosts
            .iter()
            .map(|host| (host, rate(host)))
            .filter(|(host, rate)| rate.volume > 0 && !host.has(HealthFlag::FAILED_OUTLIER))
            .collect();
        let mut has_changed = false;
        let valid: Vec<_> = rates
            .iter()
            .filter(|(_, rate)| rate.volume >= u64::from(config.success_volume))
            .collect();
        if !valid.is_empty() && valid.len() >= config.success_hosts as usize {
            let count = valid.len() as f64;
            let mean = valid.iter().map(|(_, rate)| rate.success).sum::<f64>() / count;
            let variance = valid
                .iter()
                .map(|(_, rate)| (rate.success - mean).powi(2))
                .sum::<f64>()
                / count;
            let threshold = mean - config.deviations * variance.sqrt();
            for (host, _) in valid.iter().filter(|(_, rate)| rate.success < threshold) {
                let reason = self.success_rate(config, is_local);
                has_changed |= self.eject(cluster, host, config, &reason, rand::random());
            }
        }
        let valid: Vec<_> = rates
            .iter()
            .filter(|(_, rate)| rate.volume >= u64::from(config.failure_volume))
            .collect();
        if !valid.is_empty() && valid.len() >= config.failure_hosts as usize {
            let is_bad = |rate: &Rate| 100.0 - rate.success >= f64::from(config.failure_threshold);
            for (host, _) in valid.iter().filter(|(_, rate)| is_bad(rate)) {
                let reason = self.failure_percentage(config, is_local);
                has_changed |= self.eject(cluster, host, config, &reason, rand::random());
            }
        }
        has_changed
    }

    /// A host that leaves the cluster while ejected is no longer counted.
    pub(crate) fn host_left(&self, host: &Host) {
        if host.has(HealthFlag::FAILED_OUTLIER) {
            self.stats.ejections_active.dec();
        }
    }

    /// One line of Envoy's event log: an ejection for a reason, or a return without one.
    fn log_event(
        &self,
        cluster: &Cluster,
        host: &Host,
        reason: Option<&Reason<'_>>,
        is_enforced: bool,
    ) {
        let Some(log) = &self.log else { return };
        let mut event = json!({
            "type": reason.map_or("CONSECUTIVE_5XX", |reason| reason.name),
            "cluster_name": &**cluster.name(),
            "upstream_url": &*host.address_text,
            "action": if reason.is_some() { "EJECT" } else { "UNEJECT" },
            "num_ejections": host.outlier.count(),
            "enforced": is_enforced,
            "timestamp": event_log::now(),
        });
        if reason.is_some_and(|reason| reason.name.starts_with("CONSECUTIVE")) {
            event["eject_consecutive_event"] = json!({});
        }
        log.write(&event);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Sweeps all clusters that eject hosts, for ever; runs on the main runtime.
pub(crate) async fn run_outlier_sweep(clusters: Arc<ClusterManager>) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        for cluster in clusters.ejecting().values() {
            if let Some(outlier) = cluster.outlier()
                && outlier.sweep(cluster)
            {
                cluster.rebuild();
            }
        }
    }
}

#[cfg(test)]
mod tests;
