//! What the client counts, under the names of the 1.4 line.

use crate::stat_group;

/// Which filter the client serves: the statistics have their place by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FilterKind {
    /// The HTTP filter.
    Http,
    /// The network filter.
    Tcp,
}

impl FilterKind {
    /// The statistics' scope.
    pub(super) fn scope(self) -> &'static str {
        match self {
            FilterKind::Http => "http_mixer_filter",
            FilterKind::Tcp => "tcp_mixer_filter",
        }
    }
}

stat_group! {
    /// Calls, and how they were answered.
    pub(crate) struct Stats {
        total_check_calls: Counter,
        total_check_cache_hits: Counter,
        total_check_cache_misses: Counter,
        total_check_cache_hit_accepts: Counter,
        total_check_cache_hit_denies: Counter,
        total_remote_check_calls: Counter,
        total_remote_check_accepts: Counter,
        total_remote_check_denies: Counter,
        total_quota_calls: Counter,
        total_quota_cache_hits: Counter,
        total_quota_cache_misses: Counter,
        total_quota_cache_hit_accepts: Counter,
        total_quota_cache_hit_denies: Counter,
        total_remote_quota_calls: Counter,
        total_remote_quota_accepts: Counter,
        total_remote_quota_denies: Counter,
        total_remote_quota_prefetch_calls: Counter,
        total_remote_calls: Counter,
        total_remote_call_successes: Counter,
        total_remote_call_timeouts: Counter,
        total_remote_call_send_errors: Counter,
        total_remote_call_other_errors: Counter,
        total_remote_call_retries: Counter,
        total_remote_call_cancellations: Counter,
        total_report_calls: Counter,
        total_remote_report_calls: Counter,
        total_remote_report_successes: Counter,
        total_remote_report_timeouts: Counter,
        total_remote_report_send_errors: Counter,
        total_remote_report_other_errors: Counter,
        // Ours: entries given up because Mixer does not keep up.
        total_report_dropped: Counter,
        total_remote_report_retries: Counter,
        // Ours: what became of requests that Mixer could not be asked about.
        total_check_fail_open: Counter,
        total_check_fail_close: Counter,
        // Ours: calls that were not made, and how often that began.
        total_remote_call_broken: Counter,
        total_circuit_breaker_opened: Counter,
    }
}
