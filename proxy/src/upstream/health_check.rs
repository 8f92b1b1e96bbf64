//! Active health checks (HTTP, gRPC, TCP, Redis): each host of a cluster is asked at its interval; thresholds decide.
//!
//! As in Envoy the first answer decides at once; afterwards an answer that is clearly bad (a wrong status) does too, and what
//! may be the network's fault counts towards the threshold.

mod config;
mod probe;

pub(crate) use config::HealthCheckConfig;

use super::{Cluster, Host, event_log, host::HealthFlag};
use config::within_bounds;
use probe::{Answer, Session};
use proto_component::task;
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc};

/// Checks the hosts of `cluster` until it is closed.
pub(crate) async fn run_health_checks(cluster: Arc<Cluster>) {
    let Some(config) = cluster.config.health_checks.first().cloned() else {
        return;
    };
    let config = Arc::new(config);
    let mut known: HashSet<u64> = HashSet::new();
    loop {
        // Asked to be woken before looking, so that nothing is missed between the two.
        let changed = cluster.membership.notified();
        let hosts: Vec<Arc<Host>> = cluster.hosts().hosts().cloned().collect();
        for host in &hosts {
            if !host.health_check.is_disabled && known.insert(host.id) {
                let check = Check::new(cluster.clone(), host.clone(), config.clone());
                task::spawn("health-check-host", check.run());
            }
        }
        known.retain(|id| hosts.iter().any(|host| host.id == *id));
        tokio::select! {
            () = changed => {}
            () = cluster.closed.cancelled() => return,
        }
    }
}

/// The checks of one host.
struct Check {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    config: Arc<HealthCheckConfig>,
    good: u32,
    bad: u32,
    is_first: bool,
}

/// What a check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    Unchanged,
    /// More of the same will change it.
    Pending,
    Changed,
}

impl Check {
    fn new(cluster: Arc<Cluster>, host: Arc<Host>, config: Arc<HealthCheckConfig>) -> Self {
        Self {
            cluster,
            host,
            config,
            good: 0,
            bad: 0,
            is_first: true,
        }
    }

    async fn run(mut self) {
        let closed = self.cluster.closed.clone();
        let work = async {
            let jitter = self.config.intervals.initial_jitter;
            tokio::time::sleep(jitter.mul_f64(rand::random())).await;
            let mut session = Session::default();
            while !self.host.is_removed() {
                let answer = self.ask(&mut session).await;
                let transition = self.note(&answer);
                let has_traffic = self.cluster.stats.upstream_cx_total.value() > 0;
                let is_pending = transition == Transition::Pending;
                let pause = self
                    .config
                    .intervals
                    .next(answer.is_good(), is_pending, has_traffic);
                let pause = within_bounds(pause, &self.cluster.shared.runtime);
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = closed.cancelled() => {}
        }
    }

    async fn ask(&self, session: &mut Session) -> Answer {
        self.cluster.health_stats.attempt.inc();
        let asked = session.ask(&self.cluster, &self.host, &self.config);
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(answer) => {
                if !self.config.reuses_connection || !answer.is_good() {
                    session.close();
                }
                answer
            }
            Err(_) => {
                session.close();
                Answer::Timeout
            }
        }
    }

    /// Takes over what an answer means for the host.
    fn note(&mut self, answer: &Answer) -> Transition {
        let stats = self.cluster.health_stats.clone();
        let was_pending = self.host.lower(HealthFlag::PENDING_ACTIVE);
        let transition = match answer {
            Answer::Healthy { is_degraded } => {
                stats.success.inc();
                self.host.lower(HealthFlag::TIMEOUT_ACTIVE);
                let transition = self.healthy();
                let has_changed = if *is_degraded {
                    stats.degraded.inc();
                    self.host.raise(HealthFlag::DEGRADED_ACTIVE)
                } else {
                    self.host.lower(HealthFlag::DEGRADED_ACTIVE)
                };
                if has_changed {
                    Transition::Changed
                } else {
                    transition
                }
            }
            Answer::Unhealthy => {
                stats.failure.inc();
                self.unhealthy(true, "ACTIVE")
            }
            Answer::Retriable => {
                stats.failure.inc();
                self.unhealthy(false, "ACTIVE")
            }
            Answer::Network | Answer::Timeout => {
                stats.failure.inc();
                stats.network_failure.inc();
                let is_timeout = matches!(answer, Answer::Timeout);
                if is_timeout {
                    self.host.raise(HealthFlag::TIMEOUT_ACTIVE);
                }
                let kind = if is_timeout {
                    "NETWORK_TIMEOUT"
                } else {
                    "NETWORK"
                };
                self.unhealthy(false, kind)
            }
        };
        self.is_first = false;
        if transition == Transition::Changed || was_pending {
            self.publish();
        }
        transition
    }

    fn healthy(&mut self) -> Transition {
        (self.good, self.bad) = (self.good.saturating_add(1), 0);
        if self.config.logs_successes {
            self.log(&json!({ "successful_health_check_event": {} }));
        }
        if !self.host.has(HealthFlag::FAILED_ACTIVE) {
            self.good = 0;
            return Transition::Unchanged;
        }
        if !self.is_first && self.good < self.config.healthy_threshold {
            return Transition::Pending;
        }
        self.good = 0;
        self.host.lower(HealthFlag::FAILED_ACTIVE);
        self.host.renew();
        self.cluster.checked_healthy(&self.host);
        self.log(&json!({ "add_healthy_event": { "first_check": self.is_first } }));
        tracing::debug!(target: "hc", cluster = %self.cluster.name(), host = %self.host.address_text, "host is healthy");
        Transition::Changed
    }

    fn unhealthy(&mut self, is_certain: bool, kind: &str) -> Transition {
        self.good = 0;
        if self.is_first || self.config.logs_failures {
            self.log(&json!({ "health_check_failure_event": { "failure_type": kind, "first_check": self.is_first } }));
        }
        if self.host.has(HealthFlag::FAILED_ACTIVE) {
            return Transition::Unchanged;
        }
        self.bad = self.bad.saturating_add(1);
        if !is_certain && self.bad < self.config.unhealthy_threshold {
            return Transition::Pending;
        }
        self.bad = 0;
        self.host.raise(HealthFlag::FAILED_ACTIVE);
        self.log(&json!({ "eject_unhealthy_event": { "failure_type": kind } }));
        tracing::debug!(target: "hc", cluster = %self.cluster.name(), host = %self.host.address_text, kind, "host is unhealthy");
        Transition::Changed
    }

    fn publish(&self) {
        self.cluster.health_changed();
        let healthy = self
            .cluster
            .hosts()
            .hosts()
            .filter(|host| !host.has(HealthFlag::FAILED_ACTIVE))
            .count();
        self.cluster.health_stats.healthy.set(healthy as u64);
    }

    fn log(&self, what: &Value) {
        let Some(log) = &self.config.log else { return };
        let mut event = json!({
            "health_checker_type": self.config.probe.kind(),
            "host": self.host.socket_address().map(|address| json!({
                "socket_address": { "protocol": "TCP", "address": address.ip().to_string(), "port_value": address.port() }
            })),
            "cluster_name": &**self.cluster.name(),
            "timestamp": event_log::now(),
        });
        if let (Value::Object(event), Value::Object(what)) = (&mut event, what) {
            event.extend(what.clone());
        }
        log.write(&event);
    }
}
