//! The state of a stream: what is counted while it runs, and what happens when the last of its users lets go of it.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Version};
use tokio::time::Instant;

use crate::access_log::{FormatContext, LogType};
use crate::http::body::{RequestSource, join};
use crate::http::filter::StreamEnd;
use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::http::timer::Timer;
use crate::overload::TimerType;
use crate::stream_info::{ByteMeter, ResponseFlag, Rpc, StreamInfo};

use super::{DownstreamConnection, Stream, StreamCell, StreamState, idle_timeout};

impl StreamCell {
    pub(super) fn new(
        connection: &Rc<DownstreamConnection>,
        request: RequestHeaders,
        version: Version,
        meter: Rc<dyn ByteMeter>,
    ) -> Rc<Self> {
        let stats = &connection.manager.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        if version == Version::HTTP_2 {
            stats.downstream_rq_http2_total.inc();
        } else {
            stats.downstream_rq_http1_total.inc();
        }
        connection.active.set(connection.active.get() + 1);
        connection.total.set(connection.total.get() + 1);
        let mut info = StreamInfo::new(connection.info.clone(), Some(version));
        info.metadata = connection.info.metadata.clone();
        info.meter = Some(meter);
        info.rpc = rpc_of(&request);
        let start = info.start;
        Rc::new(StreamCell {
            state: RefCell::new(StreamState {
                stream: Stream {
                    info,
                    connection: connection.clone(),
                    is_route_known: false,
                    response_rate: None,
                    is_response_bodyless: false,
                    refusal: None,
                },
                request,
                response: None,
                trailers: None,
                filters: Vec::new(),
                sees_data: false,
                closes: false,
                is_complete: false,
                account: None,
                logging: None,
            }),
            last_activity: Cell::new(start),
        })
    }

    /// Writes to the access logs every so often, as long as the stream is there.
    pub(super) fn log_periodically(self: &Rc<Self>, interval: Duration) {
        let cell = Rc::downgrade(self);
        let logging = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(cell) = cell.upgrade() else {
                    return;
                };
                cell.with(|state| state.log(LogType::DownstreamPeriodic));
            }
        });
        self.with(|state| state.logging = Some(logging.abort_handle()));
    }

    /// Works on the state; never across an `await`.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut StreamState) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    /// A timer of the worker.
    pub(crate) fn timer(&self) -> Timer {
        self.with(|state| Timer::pooled(&state.stream.connection.worker.timers))
    }

    /// A byte went one way or the other.
    pub(crate) fn touch(&self) {
        self.last_activity.set(Instant::now());
    }

    /// When the last byte went one way or the other.
    pub(crate) fn last_activity(&self) -> Instant {
        self.last_activity.get()
    }

    /// A piece of the request's body came.
    pub(crate) fn received(&self, data: &Bytes) {
        self.touch();
        self.state.borrow_mut().stream.info.bytes_received += data.len() as u64;
    }

    /// Shows a piece of the request's body to some of the filters.
    pub(crate) fn show_request(&self, mut data: Bytes, which: Range<usize>) -> Bytes {
        let mut state = self.state.borrow_mut();
        let StreamState {
            stream, filters, ..
        } = &mut *state;
        let end = which.end.min(filters.len());
        for filter in filters.get_mut(which.start..end).unwrap_or_default() {
            if filter.sees_data() {
                data = filter.decode_data(data, stream);
            }
        }
        data
    }

    /// Shows the end of the request's body to some of the filters: what they have kept back of it.
    pub(crate) fn end_request(&self, which: Range<usize>) -> Bytes {
        let mut state = self.state.borrow_mut();
        let StreamState {
            stream, filters, ..
        } = &mut *state;
        let end = which.end.min(filters.len());
        let mut rest = Bytes::new();
        for filter in filters.get_mut(which.start..end).unwrap_or_default() {
            if filter.sees_data() {
                if !rest.is_empty() {
                    rest = filter.decode_data(rest, stream);
                }
                rest = join(rest, filter.decode_end(stream));
            }
        }
        rest
    }

    /// The request's last byte came.
    pub(crate) fn request_ended(&self) {
        self.touch();
        let now = self.last_activity.get();
        self.state.borrow_mut().stream.info.request_end = Some(now);
    }

    /// Everything was sent, or ended in a way that is known.
    pub(crate) fn complete(&self) {
        let mut state = self.state.borrow_mut();
        state.is_complete = true;
        if let Some(account) = &state.account {
            account.complete();
        }
    }

    /// Resolves with the reply to give when one of the connection manager's limits is reached before the response.
    pub(super) async fn expired(&self, source: &RequestSource) -> LocalReply {
        let (timeouts, start) = self.with(|state| {
            (
                state.stream.connection.manager.timeouts,
                state.stream.info.start,
            )
        });
        let mut timer = self.timer();
        loop {
            // The route may change while filters run.
            let idle_limit = self
                .with(|state| idle_timeout(&state.stream))
                .map(|limit| timer.limit(TimerType::HttpDownstreamStreamIdle, limit));
            let request = timeouts
                .request
                .filter(|_| !source.is_read())
                .map(|limit| start + limit);
            let whole = timeouts.max_stream.map(|limit| start + limit);
            let idle = idle_limit.map(|limit| self.last_activity() + limit);
            let Some(next) = [request, whole, idle].into_iter().flatten().min() else {
                return std::future::pending().await;
            };
            timer.wait(Some(next)).await;
            let now = Instant::now();
            let stats = self.with(|state| state.stream.connection.manager.stats.clone());
            // Who is late: the upstream, once the request is whole.
            let (late, is_whole) = if source.is_read() {
                (StatusCode::GATEWAY_TIMEOUT, true)
            } else {
                (StatusCode::REQUEST_TIMEOUT, false)
            };
            if whole.is_some_and(|at| at <= now) {
                stats.downstream_rq_max_duration_reached.inc();
                return LocalReply::duration_timeout(late);
            }
            if request.is_some_and(|at| at <= now) && !source.is_read() {
                stats.downstream_rq_timeout.inc();
                return LocalReply::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "request timeout",
                    "request_overall_timeout",
                )
                .closing();
            }
            if idle_limit.is_some_and(|limit| self.last_activity() + limit <= now) {
                stats.downstream_rq_idle_timeout.inc();
                let reply = LocalReply::new(late, "stream timeout", "stream_idle_timeout")
                    .flag(ResponseFlag::StreamIdleTimeout);
                return if is_whole { reply } else { reply.closing() };
            }
        }
    }
}

impl Drop for StreamCell {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(logging) = state.logging.take() {
            logging.abort();
        }
        state.finish();
    }
}

impl StreamState {
    /// Whether any filter looks at bodies, now that the request's head went through them.
    pub(super) fn update_sees_data(&mut self) -> bool {
        self.sees_data = self.filters.iter().any(|filter| filter.sees_data());
        self.sees_data
    }

    /// The stream goes on with another request, to where an upstream has sent it; so far it is counted and logged.
    pub(crate) fn redirect_to(
        &mut self,
        request: RequestHeaders,
        body: u64,
        status: StatusCode,
        redirects: Vec<crate::router::Way>,
    ) {
        let connection = self.stream.connection.clone();
        let old = &mut self.stream.info;
        let mut next = StreamInfo::new(connection.info.clone(), old.protocol);
        next.metadata = old.metadata.clone();
        next.remote_address = old.remote_address;
        next.is_internal = old.is_internal;
        next.request_end = old.request_end;
        // QUIRK: what is brought along is counted once more.
        next.bytes_received = old.bytes_received + body;
        next.brought = Some(body);
        next.rpc = rpc_of(&request);
        next.meter = old.meter.clone();
        next.internal_redirects = old.internal_redirects + 1;
        next.redirects = redirects;
        old.response_code = Some(status.as_u16());
        old.response_code_details = Some("internal_redirect".into());
        let was_complete = std::mem::replace(&mut self.is_complete, true);
        self.finish();
        self.is_complete = was_complete;
        let stats = &connection.manager.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        connection.active.set(connection.active.get() + 1);
        self.stream.info = next;
        self.stream.clear_route();
        self.stream.response_rate = None;
        self.request = request;
        self.response = None;
        self.trailers = None;
    }

    /// The end: counts, filters, access log.
    fn finish(&mut self) {
        let info = &mut self.stream.info;
        let connection = self.stream.connection.clone();
        let stats = &connection.manager.stats;
        let now = Instant::now();
        info.end = Some(now);
        let is_shed = self
            .account
            .as_ref()
            .is_some_and(|account| account.is_reset());
        if is_shed || !self.is_complete {
            let is_reset = info.meter.as_ref().is_some_and(|m| m.is_reset_by_peer());
            let (flag, details) = if is_shed {
                (ResponseFlag::OverloadManager, "overload")
            } else if is_reset {
                (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset")
            } else {
                (
                    ResponseFlag::DownstreamConnectionTermination,
                    "downstream_remote_disconnect",
                )
            };
            stats.downstream_rq_rx_reset.inc();
            if connection.info.is_shed.get() {
                // Envoy's word for a connection that it closes with a GOAWAY, and no flag.
                info.set_details("forced_goaway");
            } else {
                info.flags.set(flag);
                info.response_code_details = Some(details.into());
            }
            if self.response.is_none() {
                info.response_code = None;
            }
        }
        stats.downstream_rq_active.dec();
        if !info.is_health_check {
            if let Some(code) = info.response_code {
                connection.manager.count_status(code);
            }
            stats
                .downstream_rq_time
                .record(u64::try_from(info.duration().as_millis()).unwrap_or(u64::MAX));
        }
        connection
            .active
            .set(connection.active.get().saturating_sub(1));
        connection.idle_since.set(now);
        let mut filters = std::mem::take(&mut self.filters);
        let end = StreamEnd {
            stream: &self.stream,
            request: &self.request,
            response: self.response.as_ref(),
            trailers: self.trailers.as_ref(),
        };
        for filter in &mut filters {
            filter.on_log(&end);
        }
        self.log(LogType::DownstreamEnd);
        crate::tracing::finish(self);
    }

    /// Writes what is known by now to the access logs.
    pub(crate) fn log(&self, log_type: LogType) {
        let logs = &self.stream.connection.manager.access_logs;
        if !logs.is_empty() {
            logs.log(&FormatContext {
                info: &self.stream.info,
                request: Some(&self.request),
                response: self.response.as_ref(),
                trailers: self.trailers.as_ref(),
                local_reply_body: "",
                log_type,
            });
        }
    }
}

fn rpc_of(request: &RequestHeaders) -> Rpc {
    if request.is_grpc() {
        Rpc::Grpc
    } else {
        Rpc::None
    }
}
