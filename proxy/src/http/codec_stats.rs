//! What codecs count: `http1.…` and `http2.…` at the root for clients' connections, below its cluster for an upstream's. There
//! are none before a connection speaks the protocol, as in Envoy.

use std::sync::{Arc, OnceLock};

use crate::stat_group;
use crate::stats::Scope;

stat_group! {
    /// `http1.…`; nobody's answers pile up here (`response_flood`), and there is no METADATA.
    pub(crate) struct Http1Stats {
        dropped_headers_with_underscores: Counter, metadata_not_supported_error: Counter,
        requests_rejected_with_underscores_in_headers: Counter, response_flood: Counter,
    }
}

stat_group! {
    /// `http2.…`; what only Envoy's way of buffering and its METADATA would count stays zero.
    pub(crate) struct Http2Stats {
        cookies_total_bytes_too_large: Counter, deferred_stream_close: Gauge, dropped_headers_with_underscores: Counter,
        goaway_sent: Counter, header_list_size_too_large: Counter, header_overflow: Counter, headers_cb_no_stream: Counter,
        inbound_empty_frames_flood: Counter, inbound_priority_frames_flood: Counter,
        inbound_window_update_frames_flood: Counter, keepalive_timeout: Counter, metadata_empty_frames: Counter,
        outbound_control_flood: Counter, outbound_control_frames_active: Gauge, outbound_flood: Counter,
        outbound_frames_active: Gauge, pending_send_bytes: Gauge, requests_rejected_with_underscores_in_headers: Counter,
        rx_messaging_error: Counter, rx_reset: Counter, stream_refused_errors: Counter, streams_active: Gauge,
        trailers: Counter, tx_flush_timeout: Counter, tx_reset: Counter,
    }
}

/// The codecs' statistics of one scope.
#[derive(Debug, Default)]
pub(crate) struct CodecStats {
    http1: OnceLock<Arc<Http1Stats>>,
    http2: OnceLock<Arc<Http2Stats>>,
}

impl CodecStats {
    /// HTTP/1's, below `scope`.
    pub(crate) fn http1(&self, scope: &Scope) -> &Arc<Http1Stats> {
        self.http1.get_or_init(|| scope.scope("http1").group())
    }

    /// Headers were dropped for their names.
    pub(crate) fn count_dropped(&self, scope: &Scope, is_http2: bool, count: u64) {
        let counter = if is_http2 {
            &self.http2(scope).dropped_headers_with_underscores
        } else {
            &self.http1(scope).dropped_headers_with_underscores
        };
        counter.add(count);
    }

    /// HTTP/2's, below `scope`.
    pub(crate) fn http2(&self, scope: &Scope) -> &Arc<Http2Stats> {
        self.http2.get_or_init(|| scope.scope("http2").group())
    }
}
