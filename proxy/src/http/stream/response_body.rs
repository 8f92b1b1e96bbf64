//! The response's body on its way downstream: counted, shown to the filters, limited in time.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::http::body::join;
use crate::http::filter::router::UpstreamEnd;
use crate::http::headers::ResponseHeaders;
use crate::http::timer::Timer;
use crate::overload::TimerType;
use crate::stream_info::ResponseFlag;
use crate::upstream::{UpstreamBody, UpstreamBodyError};

use super::throttle::Throttle;
use super::{StreamCell, StreamState, flush_timeout};

/// The body given to the codec; boxed, as it goes through many hands.
pub(crate) struct ResponseBody {
    kind: Kind,
    cell: Rc<StreamCell>,
    sees_data: bool,
    is_ended: bool,
    /// Trailers that wait behind data made from them.
    trailers: Option<HeaderMap>,
    deadlines: Deadlines,
    timer: Option<Timer>,
    /// When the client must have taken what is left, once it takes its time.
    flush: Option<Instant>,
    /// The codec has the end, but not yet room for it.
    is_held: bool,
    upstream: Option<UpstreamEnd>,
    throttle: Option<Box<Throttle>>,
}

enum Kind {
    Full(Option<Bytes>),
    Upstream(UpstreamBody),
}

/// Limits while the body streams.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deadlines {
    /// The end of the upstream exchange.
    pub(crate) response: Option<Instant>,
    /// The end of the whole stream.
    pub(crate) stream: Option<Instant>,
    /// Without a byte.
    pub(crate) idle: Option<Duration>,
}

/// Why a response's body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseBodyError {
    #[error("upstream response ended early")]
    Upstream(#[source] UpstreamBodyError),
    #[error("response took too long")]
    Timeout,
}

impl ResponseBody {
    /// A body that is all there.
    pub(crate) fn full(cell: Rc<StreamCell>, body: Bytes) -> Box<Self> {
        let (sees_data, deadlines) = cell.with(|state| (state.sees_data, Deadlines::default()));
        let body = (!body.is_empty()).then_some(body);
        Box::new(ResponseBody {
            is_ended: body.is_none() && !sees_data,
            kind: Kind::Full(body),
            cell,
            sees_data,
            trailers: None,
            deadlines,
            timer: None,
            flush: None,
            is_held: false,
            upstream: None,
            throttle: None,
        })
    }

    /// An upstream's body.
    pub(crate) fn upstream(
        cell: Rc<StreamCell>,
        body: UpstreamBody,
        deadlines: Deadlines,
        end: UpstreamEnd,
    ) -> Box<Self> {
        let sees_data = cell.with(|state| {
            if let Some(account) = &state.account
                && let Some(holder) = body.holder()
            {
                account.add(holder);
            }
            state.sees_data
        });
        Box::new(ResponseBody {
            is_ended: body.is_end_stream() && !sees_data,
            kind: Kind::Upstream(body),
            cell,
            sees_data,
            trailers: None,
            deadlines,
            timer: None,
            flush: None,
            is_held: false,
            upstream: Some(end),
            throttle: None,
        })
    }

    /// True when there is nothing but (perhaps) trailers to come.
    pub(super) fn has_no_data(&self) -> bool {
        self.is_inner_end()
    }

    /// The same as the filters want it, now that they have seen the head.
    pub(super) fn for_filters(mut self: Box<Self>) -> Box<Self> {
        let (sees_data, rate) = self
            .cell
            .with(|state| (state.update_sees_data(), state.stream.response_rate));
        self.sees_data = sees_data;
        self.is_ended = self.is_inner_end() && !sees_data;
        self.throttle = rate
            .filter(|_| !self.is_ended)
            .map(|rate| Box::new(Throttle::new(rate)));
        self
    }

    /// Looks at the response's head, and whether the connection ends with it.
    pub(crate) fn with_head<T>(&self, look: impl FnOnce(&ResponseHeaders, bool) -> T) -> T {
        self.cell.with(|state| {
            let closes = state.closes;
            let head = state.response.get_or_insert_with(|| ResponseHeaders {
                status: http::StatusCode::INTERNAL_SERVER_ERROR,
                map: HeaderMap::new(),
            });
            look(head, closes)
        })
    }

    fn poll_inner(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        match &mut self.kind {
            Kind::Full(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Kind::Upstream(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(ResponseBodyError::Upstream))),
        }
    }

    fn is_inner_end(&self) -> bool {
        match &self.kind {
            Kind::Full(body) => body.is_none(),
            Kind::Upstream(body) => body.is_end_stream(),
        }
    }

    /// A limit that is reached now; otherwise the task is woken at the next one.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Option<ResponseFlag> {
        let timer = self.timer.get_or_insert_with(|| self.cell.timer());
        let idle = self.deadlines.idle.map(|limit| {
            self.cell.last_activity() + timer.limit(TimerType::HttpDownstreamStreamIdle, limit)
        });
        let limits = [
            (
                self.deadlines.response,
                ResponseFlag::UpstreamRequestTimeout,
            ),
            (self.deadlines.stream, ResponseFlag::DurationTimeout),
            (idle, ResponseFlag::StreamIdleTimeout),
        ];
        let (next, flag) = limits
            .into_iter()
            .filter_map(|(at, flag)| at.map(|at| (at, flag)))
            .min_by_key(|(at, _)| *at)?;
        timer
            .poll_until(Some(next), context)
            .is_ready()
            .then_some(flag)
    }

    /// Whether the client has had its time to take what is left: it begins with the end, however much is taken meanwhile.
    /// Where no flush has a limit, `otherwise` is one.
    fn poll_flush(
        &mut self,
        otherwise: Option<(TimerType, Duration)>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| self.cell.timer());
        if self.flush.is_none() {
            let limit = self.cell.with(|state| flush_timeout(&state.stream));
            let limit = limit.map(|limit| (TimerType::HttpDownstreamStreamFlush, limit));
            let limit = limit.or(otherwise);
            self.flush = limit.map(|(of, limit)| Instant::now() + timer.limit(of, limit));
        }
        match self.flush {
            Some(at) => timer.poll_until(Some(at), context),
            None => Poll::Pending,
        }
    }

    /// While the client leaves the last of the response unread, on a connection that serves nothing else: ready when it has had
    /// its time, which is the connection's to be idle if flushes have no limit.
    pub(crate) fn poll_unread(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let manager = self
            .cell
            .with(|state| state.stream.connection.manager.clone());
        let idle = manager.timeouts.idle;
        let idle = idle.map(|limit| (TimerType::HttpDownstreamConnectionIdle, limit));
        ready!(self.poll_flush(idle, context));
        manager.stats.downstream_cx_idle_timeout.inc();
        Poll::Ready(())
    }

    /// While the client takes nothing of what it was sent: ready when a limit is reached, with which the stream has failed, or
    /// is over if that was all of it.
    pub(crate) fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_ended {
            let outcome = self.poll_flush(None, context);
            self.is_held = outcome.is_pending();
            return outcome;
        }
        match self.poll_deadline(context) {
            Some(flag) => {
                self.fail(Some(flag), ResponseBodyError::Timeout);
                Poll::Ready(())
            }
            None => Poll::Pending,
        }
    }

    /// There was room for all that the codec had.
    pub(crate) fn taken(&mut self) {
        self.is_held = false;
    }

    fn data(&mut self, mut data: Bytes) -> Bytes {
        self.cell.touch();
        let sees_data = self.sees_data;
        let now = self.upstream.is_some().then(|| self.cell.last_activity());
        self.cell.with(|state| {
            let StreamState {
                stream, filters, ..
            } = state;
            if sees_data {
                for filter in filters.iter_mut().rev().filter(|filter| filter.sees_data()) {
                    data = filter.encode_data(std::mem::take(&mut data), stream);
                }
            }
            let body_start = &mut stream.info.upstream.body_start;
            *body_start = body_start.or(now);
            stream.info.bytes_sent += data.len() as u64;
        });
        data
    }

    /// The end, with or without trailers: filters may turn them into data.
    fn end(&mut self, mut trailers: HeaderMap) -> Option<Frame<Bytes>> {
        self.is_ended = true;
        let sees_data = self.sees_data;
        let extra = self.cell.with(|state| {
            let StreamState {
                stream, filters, ..
            } = &mut *state;
            let mut extra = None;
            if sees_data {
                for filter in filters.iter_mut().rev() {
                    // What filters behind it had left is data like any other.
                    if filter.sees_data() {
                        extra = extra.map(|data| filter.encode_data(data, stream));
                    }
                    if let Some(rest) = filter.encode_end(&mut trailers, stream) {
                        extra = Some(join(extra.unwrap_or_default(), rest));
                    }
                }
            }
            if let Some(extra) = &extra {
                stream.info.bytes_sent += extra.len() as u64;
            }
            state.trailers = (!trailers.is_empty()).then(|| trailers.clone());
            extra
        });
        if let Some(end) = &mut self.upstream {
            self.cell
                .with(|state| end.finish(&mut state.stream.info, Some(&trailers)));
        }
        match extra {
            Some(extra) => {
                self.trailers = (!trailers.is_empty()).then_some(trailers);
                Some(Frame::data(extra))
            }
            None if trailers.is_empty() => None,
            None => Some(Frame::trailers(trailers)),
        }
    }

    fn fail(&mut self, flag: Option<ResponseFlag>, error: ResponseBodyError) -> ResponseBodyError {
        self.is_ended = true;
        let end = self.upstream.take();
        self.cell.with(|state| {
            let info = &mut state.stream.info;
            let (flag, details) = match (flag, &error) {
                (Some(ResponseFlag::UpstreamRequestTimeout), _) => {
                    (ResponseFlag::UpstreamRequestTimeout, "response_timeout")
                }
                (Some(ResponseFlag::StreamIdleTimeout), _) => {
                    (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout")
                }
                (Some(flag), _) => (flag, "max_duration_timeout"),
                (None, ResponseBodyError::Upstream(source)) => upstream_failure(source),
                (None, ResponseBodyError::Timeout) => (ResponseFlag::LocalReset, "local_reset"),
            };
            info.flags.set(flag);
            info.response_code_details = Some(details.into());
            let stats = &state.stream.connection.manager.stats;
            stats.rq_reset_after_downstream_response_started.inc();
            stats.downstream_rq_tx_reset.inc();
            match flag {
                ResponseFlag::StreamIdleTimeout => stats.downstream_rq_idle_timeout.inc(),
                ResponseFlag::DurationTimeout => stats.downstream_rq_max_duration_reached.inc(),
                _ => {}
            }
            if let Some(mut end) = end {
                end.fail(info, flag);
            }
        });
        self.cell.complete();
        error
    }
}

/// Flag and details of an upstream that broke off in the middle of its response.
fn upstream_failure(error: &UpstreamBodyError) -> (ResponseFlag, &'static str) {
    match error {
        UpstreamBodyError::Reset => (
            ResponseFlag::UpstreamRemoteReset,
            "upstream_reset_after_response_started{remote_reset}",
        ),
        UpstreamBodyError::Protocol => (
            ResponseFlag::UpstreamProtocolError,
            "upstream_reset_after_response_started{protocol_error}",
        ),
        UpstreamBodyError::Closed => (
            ResponseFlag::UpstreamConnectionTermination,
            "upstream_reset_after_response_started{connection_termination}",
        ),
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self.get_mut();
        let Some(mut throttle) = this.throttle.take() else {
            return this.poll_unthrottled(context);
        };
        let polled = throttle.poll(context, |context| this.poll_unthrottled(context));
        this.throttle = Some(throttle);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let is_waiting = self
            .throttle
            .as_ref()
            .is_some_and(|throttle| !throttle.is_empty());
        self.is_ended && self.trailers.is_none() && !is_waiting
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            _ if self.sees_data => SizeHint::default(),
            Kind::Full(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
            Kind::Upstream(body) => body.size_hint(),
        }
    }
}

impl ResponseBody {
    fn poll_unthrottled(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self;
        if this.is_ended {
            return Poll::Ready(
                this.trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        match this.poll_inner(context) {
            Poll::Pending => match this.poll_deadline(context) {
                Some(flag) => {
                    Poll::Ready(Some(Err(this.fail(Some(flag), ResponseBodyError::Timeout))))
                }
                None => Poll::Pending,
            },
            Poll::Ready(None) => Poll::Ready(this.end(HeaderMap::new()).map(Ok)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(this.fail(None, error)))),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let data = this.data(data);
                    if !this.sees_data && this.is_inner_end() {
                        this.end(HeaderMap::new());
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Err(frame) => Poll::Ready(
                    frame
                        .into_trailers()
                        .ok()
                        .and_then(|trailers| this.end(trailers))
                        .map(Ok),
                ),
            },
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.is_ended
            && !self.is_held
            && self
                .throttle
                .as_ref()
                .is_none_or(|throttle| throttle.is_empty())
        {
            self.cell.complete();
        }
        if let Some(end) = &mut self.upstream {
            let is_ended = self.is_ended;
            self.cell.with(|state| {
                if is_ended {
                    end.finish(&mut state.stream.info, None);
                } else {
                    end.cancel();
                }
            });
        }
    }
}
