//! The router filter: sends the request upstream and brings the response back; timeouts, retries, mirrors, outlier reports.
//!
//! It ends every chain. [`forward`] plans once per request, then makes attempts until one is kept. Dropping the future (the
//! client went away, a limit was reached) drops the attempt, which resets it upstream.

mod attempt;
mod connect;
mod failure;
mod hedge;
mod mirror;
mod plan;
mod redirect;
mod upstream_end;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::{StatusCode, Version};
use prost_types::Any;
use proto::envoy::extensions::filters::http::router::v3::Router;
use tokio::time::Instant;

use crate::http::body::RequestSource;
use crate::http::headers::{ResponseHeaders, names, number};
use crate::http::local_reply::LocalReply;
use crate::http::stream::{Deadlines, ResponseBody, StreamCell};
use crate::http::upgrade::{self, OnUpgrade};
use crate::invalid::Invalid;
use crate::router::{Outcome as RetryOutcome, RetryDecision, Timeouts};
use crate::stream_info::{ResponseFlag, UpstreamInfo};

use attempt::Answer;
use failure::Failure;
use plan::Plan;

pub(crate) use upstream_end::UpstreamEnd;

/// The filter's name.
pub(crate) const NAME: &str = "envoy.filters.http.router";
/// The message of its configuration.
pub(crate) const MESSAGE: &str = "envoy.extensions.filters.http.router.v3.Router";

/// The router's configuration.
#[derive(Debug, Default, Clone)]
pub(crate) struct RouterConfig {
    /// No `x-envoy-*` headers are added.
    pub(crate) suppresses_headers: bool,
    /// Each attempt has a span of its own.
    pub(crate) starts_child_spans: bool,
}

/// What came of forwarding.
pub(crate) enum Forwarded {
    /// A reply of our own.
    Reply(Box<LocalReply>),
    /// The upstream's response.
    Response(ResponseHeaders, Box<ResponseBody>),
    /// The upstream sent the request elsewhere, and it is to follow.
    Redirect,
}

/// A limit that ends the whole exchange.
enum Limit {
    Global,
    Stream,
}

impl RouterConfig {
    /// Checks the configuration; absent, it is the default.
    pub(crate) fn try_new(any: Option<&Any>) -> Result<Self, Invalid> {
        let empty = Any::default();
        let config: Router = super::unpack(any.unwrap_or(&empty))?;
        if !config.upstream_log.is_empty() {
            return Err(Invalid::unsupported("an upstream access log").at("upstream_log"));
        }
        if let Some(filter) = config
            .upstream_http_filters
            .iter()
            .find(|f| f.name != "envoy.filters.http.upstream_codec")
        {
            return Err(Invalid::unsupported(&format!(
                "upstream HTTP filter '{}'",
                filter.name
            )));
        }
        Ok(RouterConfig {
            suppresses_headers: config.suppress_envoy_headers,
            #[allow(deprecated, reason = "control planes still send the older field")]
            starts_child_spans: config.start_child_span,
        })
    }
}

/// Forwards the request of a stream whose route forwards.
pub(crate) async fn forward(
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    downstream_upgrade: &mut Option<OnUpgrade>,
) -> Forwarded {
    let mut shared = match cell.with(Plan::new) {
        Ok(plan) => RefCell::new(plan),
        Err(reply) => return Forwarded::Reply(reply),
    };
    let plan = shared.get_mut();
    if let Some(reply) = plan.dropped(cell) {
        return Forwarded::Reply(reply);
    }
    let terminates = plan.terminates_connect();
    if let Some(downstream) = downstream_upgrade.take_if(|_| terminates) {
        return Box::pin(connect::terminate(plan, cell, downstream)).await;
    }
    mirror::start(plan, cell, source);
    let may_redirect = plan
        .action()
        .is_some_and(|action| action.internal_redirect.is_some());
    if plan.retry.is_some() || may_redirect {
        source.keep(plan.buffer_limit);
    }
    let limit = limits(plan.timeouts, cell, source);
    tokio::pin!(limit);
    loop {
        let result = tokio::select! {
            biased;
            result = make(&shared, cell, source) => result,
            limit = &mut limit => return limit_reached(&shared.borrow(), cell, &limit),
        };
        let wait = {
            let mut plan = shared.borrow_mut();
            match result {
                Ok(mut answer) => match after_answer(&mut plan, cell, source, &mut answer) {
                    Some(wait) => wait,
                    None if may_redirect && redirect::follow(&plan, cell, source, &answer) => {
                        plan.charge(answer.head.status);
                        return Forwarded::Redirect;
                    }
                    None => {
                        source.stop_keeping();
                        return finish(&plan, cell, answer, downstream_upgrade.take());
                    }
                },
                Err(failure) => match after_failure(&mut plan, cell, source, &failure) {
                    Some(wait) => wait,
                    None => {
                        let reply = plan.failure_reply(cell, &failure);
                        return counted(&plan, cell, reply);
                    }
                },
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            limit = &mut limit => return limit_reached(&shared.borrow(), cell, &limit),
        }
    }
}

/// An attempt, or several where the route hedges.
async fn make(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
) -> Result<Answer, Failure> {
    let hedges = plan.borrow().hedges;
    if hedges {
        return Box::pin(hedge::run(plan, cell, source)).await;
    }
    attempt::run(plan, cell, source).await
}

fn limit_reached(plan: &Plan, cell: &Rc<StreamCell>, limit: &Limit) -> Forwarded {
    let reply = limit_reply(plan, cell, limit);
    match limit {
        Limit::Global => counted(plan, cell, reply),
        // It is the connection manager's, which knows nothing of attempts.
        Limit::Stream => Forwarded::Reply(reply),
    }
}

/// A reply of our own, with the number of attempts where the virtual host wants it.
fn counted(plan: &Plan, cell: &Rc<StreamCell>, reply: Box<LocalReply>) -> Forwarded {
    if !plan.route.virtual_host().counts_attempts_in_response {
        return Forwarded::Reply(reply);
    }
    let attempts = cell.with(|state| state.stream.info.upstream.attempts);
    let count = number(u64::from(attempts));
    Forwarded::Reply(Box::new(reply.header(&names::X_ENVOY_ATTEMPT_COUNT, count)))
}

/// Resolves when the global timeout (from the request's end) or the stream's duration is used up.
async fn limits(timeouts: Timeouts, cell: &Rc<StreamCell>, source: &Rc<RequestSource>) -> Limit {
    let start = cell.with(|state| state.stream.info.start);
    let (global, stream) = (timeouts.global, timeouts.max_stream_duration);
    let mut timer = cell.timer();
    let global = async {
        let Some(limit) = global else {
            return std::future::pending().await;
        };
        source.ended().await;
        let end = cell
            .with(|state| state.stream.info.request_end)
            .unwrap_or_else(Instant::now);
        timer.until(Some(end + limit)).await;
    };
    let Some(stream) = stream else {
        global.await;
        return Limit::Global;
    };
    tokio::select! {
        () = global => Limit::Global,
        () = tokio::time::sleep_until(start + stream) => Limit::Stream,
    }
}

fn limit_reply(plan: &Plan, cell: &Rc<StreamCell>, limit: &Limit) -> Box<LocalReply> {
    match limit {
        Limit::Global => {
            plan.cluster.stats.upstream_rq_timeout.inc();
            plan.counted
                .count(|counts| counts.upstream_rq_timeout.inc());
            plan.report_timeout(cell);
            plan.charge(StatusCode::GATEWAY_TIMEOUT);
            Box::new(
                LocalReply::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "upstream request timeout",
                    "response_timeout",
                )
                .flag(ResponseFlag::UpstreamRequestTimeout),
            )
        }
        Limit::Stream => {
            let stats = cell.with(|state| state.stream.connection.manager.stats.clone());
            stats.downstream_rq_max_duration_reached.inc();
            // Who is late: the upstream, once the request is whole.
            let status = if cell.with(|state| state.stream.info.request_end.is_some()) {
                StatusCode::GATEWAY_TIMEOUT
            } else {
                StatusCode::REQUEST_TIMEOUT
            };
            Box::new(LocalReply::duration_timeout(status))
        }
    }
}

/// How long to wait before another attempt, if the answer deserves one.
fn after_answer(
    plan: &mut Plan,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    answer: &mut Answer,
) -> Option<Duration> {
    answer.end.free_retry();
    let is_first = |seen: &UpstreamInfo| seen.attempts <= 1;
    let had_retries = plan.retries_made > 0 && !answer.seen.as_deref().is_some_and(is_first);
    let wait = plan.retry(
        cell,
        source,
        RetryOutcome::Headers(answer.head.status, &answer.head.map),
    );
    if wait.is_none() && had_retries && !answer.head.status.is_server_error() {
        plan.cluster.stats.upstream_rq_retry_success.inc();
        let counted = &plan.counted;
        counted.count(|counts| counts.upstream_rq_retry_success.inc());
    }
    wait
}

fn after_failure(
    plan: &mut Plan,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    failure: &Failure,
) -> Option<Duration> {
    plan.retry(cell, source, failure.retry_outcome())
}

/// The response that is kept, on its way downstream.
fn finish(
    plan: &Plan,
    cell: &Rc<StreamCell>,
    answer: Answer,
    downstream_upgrade: Option<OnUpgrade>,
) -> Forwarded {
    let Answer {
        mut head,
        body,
        upgrade,
        mut end,
        ..
    } = answer;
    plan.charge(head.status);
    let deadlines = cell.with(|state| {
        let info = &mut state.stream.info;
        let is_tunnel = plan.is_upgrade || plan.is_connect;
        if !plan.suppresses_headers && !is_tunnel && info.request_end.is_some() {
            let since = cell.last_activity() - info.request_end.unwrap_or(info.start);
            let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            head.map.insert(
                names::X_ENVOY_UPSTREAM_SERVICE_TIME.clone(),
                number(milliseconds),
            );
        }
        if plan.route.virtual_host().counts_attempts_in_response {
            head.map.insert(
                names::X_ENVOY_ATTEMPT_COUNT.clone(),
                number(u64::from(info.upstream.attempts)),
            );
        }
        info.set_details("via_upstream");
        info.response_code = Some(head.status.as_u16());
        plan.route
            .finalize_response(&mut head, Some(&state.request), info);
        if let Some(cookie) = &plan.cookie
            && let Ok(line) = http::HeaderValue::from_str(&cookie.0)
        {
            head.map.append(http::header::SET_COOKIE, line);
        }
        let manager = &state.stream.connection.manager.timeouts;
        let stream = plan.timeouts.max_stream_duration.or(manager.max_stream);
        Deadlines {
            response: info
                .request_end
                .zip(plan.timeouts.global)
                .map(|(end, limit)| end + limit),
            stream: stream.map(|limit| info.start + limit),
            idle: crate::http::stream::idle_timeout(&state.stream),
        }
    });
    if let (Some(downstream), Some(upstream)) = (downstream_upgrade, upgrade) {
        let is_http2 = cell.with(|state| state.stream.info.protocol == Some(Version::HTTP_2));
        if is_http2 {
            // An extended CONNECT is accepted with 200 where HTTP/1 says 101.
            head.status = StatusCode::OK;
        } else if head.status == StatusCode::OK && plan.is_upgrade {
            // And the other way round.
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            let upgrade = cell.with(|state| state.request.upgrade.clone());
            let connection = http::HeaderValue::from_static("upgrade");
            head.map.insert(http::header::CONNECTION, connection);
            head.map
                .extend(upgrade.map(|kind| (http::header::UPGRADE, kind)));
        }
        end.is_tunnel = true;
        upgrade::tunnel(
            cell.clone(),
            downstream,
            upstream,
            deadlines.idle,
            Some(end),
        );
        drop(body);
        return Forwarded::Response(head, ResponseBody::full(cell.clone(), bytes::Bytes::new()));
    }
    let body = ResponseBody::upstream(cell.clone(), body, deadlines, end);
    Forwarded::Response(head, body)
}

impl Plan {
    /// Whether and when to try again; uses up a retry.
    fn retry(
        &mut self,
        cell: &Rc<StreamCell>,
        source: &Rc<RequestSource>,
        outcome: RetryOutcome<'_>,
    ) -> Option<Duration> {
        let stats = self.cluster.stats.clone();
        let retry = self.retry.as_mut()?;
        let (wait, counter) = match retry.decide(outcome) {
            RetryDecision::No => return None,
            RetryDecision::LimitExceeded => {
                stats.upstream_rq_retry_limit_exceeded.inc();
                let counted = &self.counted;
                counted.count(|counts| counts.upstream_rq_retry_limit_exceeded.inc());
                cell.with(|state| {
                    state
                        .stream
                        .info
                        .flags
                        .set(ResponseFlag::UpstreamRetryLimitExceeded);
                });
                return None;
            }
            RetryDecision::After(wait) => (wait, &stats.upstream_rq_retry_backoff_exponential),
            RetryDecision::AsAsked(wait) => (wait, &stats.upstream_rq_retry_backoff_ratelimited),
        };
        if !source.is_replayable() {
            stats.retry_or_shadow_abandoned.inc();
            return None;
        }
        self.retry_guard = None;
        let Some(guard) = self.cluster.breakers.retry(self.priority) else {
            stats.upstream_rq_retry_overflow.inc();
            let counted = &self.counted;
            counted.count(|counts| counts.upstream_rq_retry_overflow.inc());
            cell.with(|state| state.stream.info.flags.set(ResponseFlag::UpstreamOverflow));
            return None;
        };
        self.retry_guard = Some(guard);
        self.retries_made += 1;
        stats.upstream_rq_retry.inc();
        if let RetryOutcome::Headers(status, _) = outcome {
            self.cluster
                .retried_response_codes()
                .record(status.as_u16());
        }
        self.counted.count(|counts| counts.upstream_rq_retry.inc());
        counter.inc();
        Some(wait)
    }
}
