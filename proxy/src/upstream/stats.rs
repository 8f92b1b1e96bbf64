//! What a cluster counts, in Envoy's names (`cluster.<name>.…`).

use crate::{
    stat_group,
    stats::{Counter, Histogram, Stat, StatGroup},
};
use std::{ops::Deref, sync::OnceLock};

stat_group! {
    /// The counters that every cluster has.
    pub(crate) struct ClusterStats {
        assignment_stale: Counter, assignment_timeout_received: Counter, bind_errors: Counter,
        init_fetch_timeout: Counter, lb_healthy_panic: Counter, lb_local_cluster_not_ok: Counter,
        lb_recalculate_zone_structures: Counter, lb_subsets_active: Gauge, lb_subsets_created: Counter,
        lb_subsets_fallback: Counter, lb_subsets_fallback_panic: Counter, lb_subsets_removed: Counter,
        lb_subsets_selected: Counter, lb_zone_cluster_too_small: Counter, lb_zone_no_capacity_left: Counter,
        lb_zone_number_differs: Counter, lb_zone_routing_all_directly: Counter, lb_zone_routing_cross_zone: Counter,
        lb_zone_routing_sampled: Counter,
        max_host_weight: Gauge, membership_change: Counter, membership_degraded: Gauge, membership_excluded: Gauge,
        membership_healthy: Gauge, membership_total: Gauge, original_dst_host_invalid: Counter,
        retry_or_shadow_abandoned: Counter, update_attempt: Counter, update_empty: Counter, update_failure: Counter,
        update_no_rebuild: Counter, update_rejected: Counter, update_success: Counter, upstream_cx_active: Gauge,
        upstream_cx_close_notify: Counter, upstream_cx_connect_attempts_exceeded: Counter,
        upstream_cx_connect_fail: Counter, upstream_cx_connect_ms: Histogram, upstream_cx_connect_timeout: Counter,
        upstream_cx_destroy: Counter, upstream_cx_destroy_local: Counter, upstream_cx_destroy_local_with_active_rq: Counter,
        upstream_cx_destroy_remote: Counter, upstream_cx_destroy_remote_with_active_rq: Counter,
        upstream_cx_destroy_with_active_rq: Counter, upstream_cx_http1_total: Counter, upstream_cx_http2_total: Counter,
        upstream_cx_http3_total: Counter, upstream_cx_idle_timeout: Counter, upstream_cx_length_ms: Histogram,
        upstream_cx_max_duration_reached: Counter, upstream_cx_max_requests: Counter,
        upstream_cx_none_healthy: Counter, upstream_cx_overflow: Counter, upstream_cx_pool_overflow: Counter,
        upstream_cx_preconnect_skipped: Counter, upstream_cx_protocol_error: Counter, upstream_cx_rx_bytes_buffered: Gauge, upstream_cx_rx_bytes_total: Counter,
        upstream_cx_total: Counter, upstream_cx_tx_bytes_buffered: Gauge, upstream_cx_tx_bytes_total: Counter,
        upstream_internal_redirect_failed_total: Counter, upstream_internal_redirect_succeeded_total: Counter,
        upstream_rq_active: Gauge, upstream_rq_active_overflow: Counter, upstream_rq_cancelled: Counter, upstream_rq_completed: Counter,
        upstream_rq_maintenance_mode: Counter, upstream_rq_max_duration_reached: Counter,
        upstream_rq_pending_active: Gauge, upstream_rq_pending_failure_eject: Counter,
        upstream_rq_pending_overflow: Counter, upstream_rq_pending_total: Counter, upstream_rq_per_try_timeout: Counter,
        upstream_rq_retry: Counter, upstream_rq_retry_backoff_exponential: Counter,
        upstream_rq_retry_backoff_ratelimited: Counter, upstream_rq_retry_limit_exceeded: Counter,
        upstream_rq_retry_overflow: Counter, upstream_rq_retry_success: Counter, upstream_rq_rx_reset: Counter,
        upstream_rq_time: Histogram, upstream_rq_timeout: Counter, upstream_rq_total: Counter, upstream_rq_tx_reset: Counter,
        version: Gauge,
    }
}

stat_group! {
    /// `cluster.<name>.outlier_detection.…`
    pub(crate) struct OutlierStats {
        ejections_active: Gauge, ejections_consecutive_5xx: Counter, ejections_detected_consecutive_5xx: Counter,
        ejections_detected_consecutive_gateway_failure: Counter,
        ejections_detected_consecutive_local_origin_failure: Counter, ejections_detected_failure_percentage: Counter,
        ejections_detected_local_origin_failure_percentage: Counter,
        ejections_detected_local_origin_success_rate: Counter, ejections_detected_success_rate: Counter,
        ejections_enforced_consecutive_5xx: Counter, ejections_enforced_consecutive_gateway_failure: Counter,
        ejections_enforced_consecutive_local_origin_failure: Counter, ejections_enforced_failure_percentage: Counter,
        ejections_enforced_local_origin_failure_percentage: Counter,
        ejections_enforced_local_origin_success_rate: Counter, ejections_enforced_success_rate: Counter,
        ejections_enforced_total: Counter, ejections_overflow: Counter, ejections_success_rate: Counter,
        ejections_total: Counter,
    }
}

stat_group! {
    /// `cluster.<name>.health_check.…`
    pub(crate) struct HealthCheckStats {
        attempt: Counter, degraded: Counter, failure: Counter, healthy: Gauge, network_failure: Counter,
        passive_failure: Counter, success: Counter, verify_cluster: Counter,
    }
}

stat_group! {
    /// `cluster.<name>.circuit_breakers.<priority>.…`
    pub(crate) struct BreakerStats {
        cx_open: Gauge, cx_pool_open: Gauge, rq_open: Gauge, rq_pending_open: Gauge, rq_retry_open: Gauge,
    }
}

stat_group! {
    /// `cluster.<name>.circuit_breakers.<priority>.remaining_…`, where `track_remaining` is set.
    pub(crate) struct RemainingStats {
        remaining_cx: Gauge, remaining_cx_pools: Gauge, remaining_pending: Gauge, remaining_retries: Gauge, remaining_rq: Gauge,
    }
}

/// What every cluster counts, as one entry of the store: there are thousands of them.
#[derive(Debug, Default)]
pub(crate) struct ClusterGroups {
    counters: ClusterStats,
    /// Responses by status.
    pub(crate) response_codes: ResponseCodes,
    /// Responses by status, of internal requests.
    pub(crate) internal: OriginStats,
    /// Responses by status, of external requests.
    pub(crate) external: OriginStats,
    /// Of the circuit breakers, by priority.
    pub(crate) breakers: [BreakerStats; 2],
}

impl Deref for ClusterGroups {
    type Target = ClusterStats;

    fn deref(&self) -> &ClusterStats {
        &self.counters
    }
}

impl StatGroup for ClusterGroups {
    fn visit(&self, visitor: &mut dyn FnMut(&str, Stat<'_>)) {
        self.counters.visit(visitor);
        self.response_codes.visit(visitor);
        let [usual, high] = &self.breakers;
        let below: [(&str, &dyn StatGroup); 4] = [
            ("internal.", &self.internal),
            ("external.", &self.external),
            ("circuit_breakers.default.", usual),
            ("circuit_breakers.high.", high),
        ];
        let mut full = String::new();
        for (prefix, group) in below {
            group.visit(&mut |name, stat| {
                full.clear();
                full.push_str(prefix);
                full.push_str(name);
                visitor(&full, stat);
            });
        }
    }
}

/// What is counted of internal, external or retried requests (`cluster.<name>.external.…`).
#[derive(Debug, Default)]
pub(crate) struct OriginStats {
    codes: ResponseCodes,
    completed: Counter,
    /// `upstream_rq_time`
    pub(crate) time: Histogram,
}

impl OriginStats {
    /// Counts one response.
    pub(crate) fn record(&self, status: u16) {
        self.codes.record(status);
        self.completed.inc();
    }
}

impl StatGroup for OriginStats {
    fn visit(&self, visitor: &mut dyn FnMut(&str, Stat<'_>)) {
        if self.completed.value() == 0 {
            return;
        }
        self.codes.visit(visitor);
        visitor("upstream_rq_completed", Stat::Counter(&self.completed));
        // What is retried has no time of its own.
        if self.time.summary().is_some() {
            visitor("upstream_rq_time", Stat::Histogram(&self.time));
        }
    }
}

/// Counts of response codes (`upstream_rq_200`, `upstream_rq_2xx`); memory is taken with the first response.
#[derive(Debug, Default)]
pub(crate) struct ResponseCodes(OnceLock<Box<Codes>>);

#[derive(Debug)]
struct Codes {
    classes: [Counter; 5],
    codes: Vec<Counter>,
}

impl ResponseCodes {
    /// Counts one response.
    pub(crate) fn record(&self, status: u16) {
        let codes = self.0.get_or_init(|| {
            Box::new(Codes {
                classes: Default::default(),
                codes: std::iter::repeat_with(Counter::default).take(500).collect(),
            })
        });
        if let Some(index) = status.checked_sub(100)
            && let Some(code) = codes.codes.get(usize::from(index))
        {
            code.inc();
            codes.classes[usize::from(index / 100)].inc();
        }
    }
}

impl StatGroup for ResponseCodes {
    fn visit(&self, visitor: &mut dyn FnMut(&str, Stat<'_>)) {
        let Some(codes) = self.0.get() else { return };
        for (index, class) in codes
            .classes
            .iter()
            .enumerate()
            .filter(|(_, class)| class.value() > 0)
        {
            visitor(
                &format!("upstream_rq_{}xx", index + 1),
                Stat::Counter(class),
            );
        }
        for (index, code) in codes
            .codes
            .iter()
            .enumerate()
            .filter(|(_, code)| code.value() > 0)
        {
            visitor(&format!("upstream_rq_{}", index + 100), Stat::Counter(code));
        }
    }
}
