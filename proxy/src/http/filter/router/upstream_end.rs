//! The end of an attempt: what must be counted and given back once its response is over, however it ends.

use std::sync::Arc;

use http::{HeaderMap, Version};
use tokio::time::Instant;

use crate::http::headers::{names, text_of};
use crate::router::CountedIn;
use crate::stream_info::{ResponseFlag, StreamInfo};
use crate::tracing::{UpstreamSpan, protocol_text};
use crate::upstream::{Cluster, Host, Outcome, RequestGuard, RetryGuard};

/// Held while an attempt runs and its response streams.
pub(crate) struct UpstreamEnd {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    start: Instant,
    is_internal: bool,
    protocol: Version,
    random: u64,
    /// The status that outlier detection is told about when the response is over: gRPC says it in its trailers.
    is_grpc_pending: bool,
    /// The stream became a tunnel.
    pub(super) is_tunnel: bool,
    is_over: bool,
    counted: CountedIn,
    span: Option<UpstreamSpan>,
    _request: RequestGuard,
    retry: Option<RetryGuard>,
}

impl UpstreamEnd {
    /// The retry that this attempt was has its answer: its place is free for the next one.
    pub(super) fn free_retry(&mut self) {
        self.retry = None;
    }

    /// An attempt that begins on a host.
    pub(super) fn new(
        cluster: Arc<Cluster>,
        host: Arc<Host>,
        request: RequestGuard,
        retry: Option<RetryGuard>,
        is_internal: bool,
        protocol: Version,
        random: u64,
    ) -> Self {
        UpstreamEnd {
            cluster,
            host,
            start: Instant::now(),
            is_internal,
            protocol,
            random,
            is_grpc_pending: false,
            is_tunnel: false,
            is_over: false,
            counted: CountedIn::default(),
            span: None,
            _request: request,
            retry,
        }
    }

    /// When it began.
    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// The same with statistics besides the cluster's.
    pub(super) fn counted_in(mut self, counted: CountedIn) -> Self {
        self.counted = counted;
        self
    }

    /// The same with a span of its own.
    pub(super) fn with_span(mut self, span: Option<UpstreamSpan>) -> Self {
        self.span = span;
        self
    }

    /// The response's head came: outlier detection hears of it, now or (gRPC) at the end.
    pub(super) fn answered(&mut self, status: u16, map: &HeaderMap, is_grpc: bool) {
        if let Some(span) = &mut self.span {
            span.answered(status, protocol_text(self.protocol));
        }
        let grpc = is_grpc.then(|| text_of(map, &names::GRPC_STATUS)).flatten();
        match grpc {
            Some(code) => self.report(http_status_of(code)),
            None if is_grpc && status == 200 => self.is_grpc_pending = true,
            None => self.report(status),
        }
    }

    /// The response is over.
    pub(crate) fn finish(&mut self, info: &mut StreamInfo, trailers: Option<&HeaderMap>) {
        if self.is_grpc_pending {
            self.is_grpc_pending = false;
            let code = trailers.and_then(|map| text_of(map, &names::GRPC_STATUS));
            self.report(code.map_or(200, http_status_of));
        }
        if self.is_over {
            return;
        }
        self.is_over = true;
        self.span = None;
        info.upstream.attempts = info.upstream.attempts.max(1);
        if !self.is_tunnel {
            let now = Instant::now();
            info.upstream.response_end = Some(now);
            let time = now.duration_since(self.start).as_millis();
            let time = u64::try_from(time).unwrap_or(u64::MAX);
            self.cluster.stats.upstream_rq_time.record(time);
            self.counted.record_time(time);
            if self.is_internal {
                self.cluster.stats.internal.time.record(time);
            } else {
                self.cluster.stats.external.time.record(time);
            }
        }
    }

    /// The response broke off.
    pub(crate) fn fail(&mut self, _info: &mut StreamInfo, flag: ResponseFlag) {
        self.is_over = true;
        if let Some(span) = &mut self.span {
            span.fail(flag);
        }
        match flag {
            ResponseFlag::UpstreamRequestTimeout => {
                self.cluster.stats.upstream_rq_timeout.inc();
                self.host.stats.rq_timeout.inc();
                self.count_local_reset();
            }
            ResponseFlag::StreamIdleTimeout | ResponseFlag::DurationTimeout => {
                self.count_local_reset();
            }
            flag => {
                if flag == ResponseFlag::UpstreamRemoteReset {
                    self.cluster.stats.upstream_rq_rx_reset.inc();
                }
                self.cluster
                    .report(&self.host, Outcome::LocalFailure, self.random);
            }
        }
    }

    /// The downstream gave up.
    pub(crate) fn cancel(&mut self) {
        if !self.is_over {
            self.is_over = true;
            self.count_local_reset();
        }
    }

    /// Only HTTP/2 has streams to reset.
    fn count_local_reset(&self) {
        if self.protocol == Version::HTTP_2 {
            self.cluster.stats.upstream_rq_tx_reset.inc();
        }
    }

    fn report(&self, status: u16) {
        if status >= 500 {
            self.host.stats.rq_error.inc();
        } else {
            self.host.stats.rq_success.inc();
        }
        self.cluster
            .report(&self.host, Outcome::Status(status), self.random);
    }
}

/// The HTTP status that a gRPC status stands for.
fn http_status_of(grpc: &str) -> u16 {
    match grpc {
        "0" => 200,
        "1" => 499,
        "3" | "9" | "11" => 400,
        "4" => 504,
        "5" => 404,
        "6" | "10" => 409,
        "7" => 403,
        "8" => 429,
        "12" => 501,
        "14" => 503,
        "16" => 401,
        _ => 500,
    }
}
