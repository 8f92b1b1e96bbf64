//! One attempt: a host, a connection, the request, the response's head.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, StatusCode, Version};
use tokio::time::Instant;

use crate::http::body::{Body, RequestSource};
use crate::http::headers::{ResponseHeaders, is_grpc, names};
use crate::http::stream::{StreamCell, StreamState};
use crate::http::upgrade::UpstreamTunnel;
use crate::router::virtual_host::strip_port;
use crate::stream_info::UpstreamInfo;
use crate::tracing::{self, UpstreamSpan};
use crate::upstream::{
    Cluster, Host, HttpConnection, LoadBalancerContext, Outcome, PoolRequest, UpstreamBody,
};

use super::failure::{Failure, FailureKind};
use super::plan::{Plan, note_attempt, original_destination};
use super::upstream_end::UpstreamEnd;

/// A response's head, with its body to come.
pub(super) struct Answer {
    pub(super) head: ResponseHeaders,
    pub(super) body: UpstreamBody,
    pub(super) upgrade: Option<UpstreamTunnel>,
    pub(super) end: UpstreamEnd,
    /// Where it came from, if other attempts ran beside it.
    pub(super) seen: Option<Box<UpstreamInfo>>,
}

/// The counts of an attempt that runs; given on with its response, else the attempt was given up.
struct Running(Option<UpstreamEnd>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut end) = self.0.take() {
            end.cancel();
        }
    }
}

/// Makes one attempt, within its own time limits.
pub(super) async fn run(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
) -> Result<Answer, Failure> {
    let per_try = {
        let timeouts = &plan.borrow().timeouts;
        let both = [timeouts.per_try, timeouts.per_try_idle];
        both.into_iter().flatten().min()
    };
    let mut host = None;
    let result = match per_try {
        None => make(plan, cell, source, &mut host).await,
        Some(limit) => {
            // Boxed, as is what follows seldom elsewhere: each request would hold (and move) room for it.
            let attempt = Box::pin(make(plan, cell, source, &mut host));
            match tokio::time::timeout(limit, attempt).await {
                Ok(result) => result,
                Err(_) => {
                    let plan = plan.borrow();
                    plan.cluster.stats.upstream_rq_per_try_timeout.inc();
                    Err(FailureKind::PerTryTimeout.into())
                }
            }
        }
    };
    if let Err(failure) = &result {
        blame(&mut plan.borrow_mut(), cell, failure, host.as_ref());
    }
    result
}

/// Makes one attempt without a limit of its own, beside others.
pub(super) async fn run_unlimited(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
) -> Result<Answer, Failure> {
    let mut host = None;
    let result = make(plan, cell, source, &mut host).await;
    if let Err(failure) = &result {
        blame(&mut plan.borrow_mut(), cell, failure, host.as_ref());
    }
    result
}

async fn make(
    plan: &RefCell<Plan>,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    tried: &mut Option<Arc<Host>>,
) -> Result<Answer, Failure> {
    let host = cell.with(|state| choose(&mut plan.borrow_mut(), state))?;
    plan.borrow_mut().host = Some(host.clone());
    *tried = Some(host.clone());
    let (worker, version, info, shared) = cell.with(|state| {
        let info = &state.stream.info;
        let version = info.protocol.unwrap_or(Version::HTTP_11);
        let (connection, shared) = (info.connection.clone(), info.shared_state());
        (state.stream.worker().clone(), version, connection, shared)
    });
    let random = worker.random();
    let (cluster, priority, is_upgrade) = {
        let plan = plan.borrow();
        (plan.cluster.clone(), plan.priority, plan.is_upgrade)
    };
    let Some(guard) = cluster.breakers.request(priority) else {
        cluster.stats.upstream_rq_active_overflow.inc();
        return Err(FailureKind::Overflow.into());
    };
    let sni = server_name(&cluster, cell);
    let request = PoolRequest {
        priority,
        // Where the upstream may speak either, an upgrade is what HTTP/1 has for it.
        downstream_protocol: if is_upgrade {
            Version::HTTP_11
        } else {
            version
        },
        sni: sni.as_deref(),
        client: Some(info.addresses()),
        source: info.upstream_source,
        shared: Some(&shared),
    };
    let mut connection = worker.pools.http(&cluster, &host, &request).await?;
    let protocol = connection.protocol;
    let (request, has_grpc, mut running, seen) = cell.with(|state| {
        let mut plan = plan.borrow_mut();
        note_connection(state, &connection);
        let span = inject_span(&plan, state, &host);
        adapt(&plan, state, &host);
        let request = connection.request(&state.request, source.is_empty())?;
        state.stream.info.upstream.set_meter(request.meter());
        let retry = plan.retry_guard.take();
        let is_internal = plan.is_internal;
        let end = UpstreamEnd::new(cluster, host, guard, retry, is_internal, protocol, random);
        state.stream.info.upstream.ready = Some(end.start());
        let counted = &plan.counted;
        counted.count(|counts| counts.upstream_rq_total.inc());
        let end = end.counted_in(counted.clone()).with_span(span);
        // Another attempt may be noted before this one answers.
        let seen = plan.hedges.then(|| state.stream.info.upstream.clone());
        let has_grpc = is_grpc(&state.request.map);
        Ok::<_, Failure>((request, has_grpc, Running(Some(end)), seen.map(Box::new)))
    })?;
    let body = if seen.is_some() && source.is_read() {
        Body::replay(source)
    } else {
        Body::attempt(source)
    };
    let (head, mut body) = connection.exchange(request, body).await?;
    cell.touch();
    cell.with(|state| state.stream.info.response_start = Some(cell.last_activity()));
    let is_accepted = accepts(head.status, protocol, is_upgrade, plan.borrow().is_connect);
    let upgrade = if is_accepted {
        body.take_tunnel()
    } else {
        None
    };
    let Some(mut end) = running.0.take() else {
        return Err(FailureKind::LocalReset.into());
    };
    end.answered(head.status.as_u16(), &head.map, has_grpc);
    Ok(Answer {
        head,
        body,
        upgrade,
        end,
        seen,
    })
}

/// Whether a response makes a tunnel of its connection: where HTTP/1 switches, HTTP/2 accepts an extended CONNECT.
fn accepts(status: StatusCode, protocol: Version, is_upgrade: bool, is_connect: bool) -> bool {
    match status {
        StatusCode::SWITCHING_PROTOCOLS => is_upgrade,
        status if protocol == Version::HTTP_2 => status.is_success() && (is_upgrade || is_connect),
        status => status.is_success() && is_connect,
    }
}

/// Tells the upstream of the span that the attempt belongs to: its own, or the stream's.
fn inject_span(plan: &Plan, state: &mut StreamState, host: &Host) -> Option<UpstreamSpan> {
    state.stream.info.span.as_ref()?;
    let connection = state.stream.connection.clone();
    let own = tracing::start_upstream(&connection, state, plan.cluster.name(), host);
    match (&own, &state.stream.info.span) {
        (Some(own), _) => own.inject(&mut state.request.map),
        (None, Some(span)) => span.inject(&mut state.request.map),
        (None, None) => {}
    }
    own
}

/// The server name of the upstream's TLS, where it follows the request.
fn server_name(cluster: &Cluster, cell: &Rc<StreamCell>) -> Option<String> {
    cluster
        .config
        .http
        .auto_sni
        .then(|| cell.with(|state| strip_port(state.request.host()).to_owned()))
}

pub(super) fn choose(plan: &mut Plan, state: &mut StreamState) -> Result<Arc<Host>, Failure> {
    let info = &mut state.stream.info;
    info.upstream.attempts += 1;
    let policy = plan.retry.as_ref().and_then(|retry| retry.policy());
    let tried = &plan.tried;
    // Predicates have a say in retries only.
    let asked = policy.filter(|policy| {
        (policy.avoids_previous_hosts || policy.avoids_canaries) && !tried.is_empty()
    });
    let is_avoided = |host: &Host| {
        asked.is_some_and(|policy| {
            policy.avoids_previous_hosts && tried.contains(&host.id)
                || policy.avoids_canaries && host.is_canary()
        })
    };
    let metadata_match = plan
        .action()
        .and_then(|action| action.metadata_match.as_deref());
    let random = state.stream.worker().random();
    let context = LoadBalancerContext {
        random,
        hash: plan.hash,
        original_destination: original_destination(state),
        headers: Some(&state.request.map),
        authority: state.request.authority.to_str().ok(),
        metadata_match,
        should_select_another: asked.is_some().then_some(&is_avoided),
        select_attempts: policy.map_or(1, |policy| policy.host_selection_attempts.max(1)),
        excluded_priorities: plan.excluded_priorities(),
    };
    let mut chosen = plan.cluster.choose_host(&context);
    let mut was_each_tried = false;
    if chosen.is_err() && !context.excluded_priorities.is_empty() {
        // Every priority was tried: all may be again.
        was_each_tried = true;
        chosen = plan.cluster.choose_host(&LoadBalancerContext {
            excluded_priorities: &[],
            ..context
        });
    }
    let host = chosen?;
    let notes_priority = policy.is_some_and(|policy| policy.avoids_previous_priorities.is_some());
    if was_each_tried {
        plan.tried_priorities.clear();
    }
    if notes_priority {
        plan.tried_priorities
            .extend(plan.cluster.priority_of(&host));
    }
    let upstream = &mut state.stream.info.upstream;
    upstream.set_host(host.clone());
    upstream.began = Some(Instant::now());
    if policy.is_some() {
        plan.tried.push(host.id);
    }
    Ok(host)
}

fn note_connection(state: &mut StreamState, connection: &HttpConnection) {
    let upstream = &mut state.stream.info.upstream;
    upstream.protocol = Some(connection.protocol);
    upstream.connection = Some(connection.facts.clone());
}

/// Makes the request what this attempt sends.
fn adapt(plan: &Plan, state: &mut StreamState, host: &Host) {
    let attempts = state.stream.info.upstream.attempts;
    let request = &mut state.request;
    if let Some(action) = plan
        .action()
        .filter(|action| action.is_auto_host_rewrite() && !host.hostname.is_empty())
    {
        if attempts == 1 {
            action.rewrite_host_to(request, &host.hostname);
        } else {
            let _ = request.set_host(host.hostname.as_ref());
        }
    }
    if plan.route.virtual_host().counts_attempts {
        note_attempt(&mut request.map, attempts);
    }
    if attempts > 1 && plan.route.virtual_host().marks_timeout_retry {
        let value = HeaderValue::from_static(if plan.was_timeout { "true" } else { "false" });
        request
            .map
            .insert(names::X_ENVOY_IS_TIMEOUT_RETRY.clone(), value);
    }
    if attempts > 1
        && let Some(left) = plan.time_left(&state.stream.info)
    {
        request
            .map
            .insert(names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(), left);
    }
}

/// Counts a failed attempt and tells outlier detection whose fault it was.
fn blame(plan: &mut Plan, cell: &Rc<StreamCell>, failure: &Failure, host: Option<&Arc<Host>>) {
    plan.was_timeout = failure.is_timeout();
    if failure.is_remote_reset() {
        plan.cluster.stats.upstream_rq_rx_reset.inc();
    }
    if failure.is_connect() {
        plan.cluster.stats.upstream_rq_pending_failure_eject.inc();
    }
    let Some(host) = host.filter(|_| failure.is_of_host()) else {
        return;
    };
    host.stats.rq_error.inc();
    let outcome = if failure.is_timeout() {
        Outcome::Timeout
    } else {
        Outcome::LocalFailure
    };
    let random = cell.with(|state| state.stream.worker().random());
    plan.cluster.report(host, outcome, random);
}
