//! What a connection manager counts, under `http.<stat prefix>.`.

use crate::{stat_group, stats::Counter, transport::ByteTotals};

stat_group! {
    /// The counters of one connection manager.
    pub(crate) struct HttpStats {
        downstream_cx_active: Gauge, downstream_cx_delayed_close_timeout: Counter, downstream_cx_destroy: Counter,
        downstream_cx_destroy_active_rq: Counter,
        downstream_cx_destroy_local: Counter, downstream_cx_destroy_remote: Counter, downstream_cx_drain_close: Counter,
        downstream_cx_http1_active: Gauge, downstream_cx_http1_total: Counter, downstream_cx_http2_active: Gauge,
        downstream_cx_http2_total: Counter, downstream_cx_idle_timeout: Counter, downstream_cx_length_ms: Histogram,
        downstream_cx_max_duration_reached: Counter, downstream_cx_max_requests_reached: Counter,
        downstream_cx_overload_disable_keepalive: Counter, downstream_cx_protocol_error: Counter,
        downstream_cx_rx_bytes_total: Counter, downstream_cx_ssl_active: Gauge, downstream_cx_ssl_total: Counter,
        downstream_cx_total: Counter, downstream_cx_tx_bytes_total: Counter,
        downstream_cx_upgrades_active: Gauge, downstream_cx_upgrades_total: Counter,
        downstream_rq_active: Gauge, downstream_rq_failed_path_normalization: Counter, downstream_rq_header_timeout: Counter,
        downstream_rq_http1_total: Counter, downstream_rq_http2_total: Counter, downstream_rq_idle_timeout: Counter,
        downstream_rq_max_duration_reached: Counter, downstream_rq_non_relative_path: Counter,
        downstream_rq_overload_close: Counter, downstream_rq_redirected_with_normalized_path: Counter,
        downstream_rq_rejected_via_ip_detection: Counter, downstream_rq_response_before_rq_complete: Counter,
        downstream_rq_rx_reset: Counter, downstream_rq_time: Histogram, downstream_rq_timeout: Counter,
        downstream_rq_too_large: Counter, downstream_rq_too_many_premature_resets: Counter,
        downstream_rq_total: Counter, downstream_rq_tx_reset: Counter, downstream_rq_ws_on_non_ws_route: Counter,
        no_cluster: Counter, no_route: Counter, passthrough_internal_redirect_bad_location: Counter,
        passthrough_internal_redirect_no_route: Counter, passthrough_internal_redirect_predicate: Counter,
        passthrough_internal_redirect_too_many_redirects: Counter, passthrough_internal_redirect_unsafe_scheme: Counter,
        rq_direct_response: Counter, rq_overload_local_reply: Counter, rq_redirect: Counter,
        rq_reset_after_downstream_response_started: Counter, rq_retry_skipped_request_not_complete: Counter,
        rq_total: Counter, rs_too_large: Counter,
    }
}

impl ByteTotals for HttpStats {
    fn counters(&self) -> (&Counter, &Counter) {
        (
            &self.downstream_cx_rx_bytes_total,
            &self.downstream_cx_tx_bytes_total,
        )
    }
}

stat_group! {
    /// Responses by class: those of a connection manager, and those of a listener by it.
    pub(crate) struct StatusCounts {
        downstream_rq_1xx: Counter, downstream_rq_2xx: Counter, downstream_rq_3xx: Counter, downstream_rq_4xx: Counter,
        downstream_rq_5xx: Counter, downstream_rq_completed: Counter,
    }
}

impl StatusCounts {
    /// Counts a finished response.
    pub(crate) fn record(&self, status: u16) {
        self.downstream_rq_completed.inc();
        match status / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            5 => self.downstream_rq_5xx.inc(),
            _ => {}
        }
    }
}
