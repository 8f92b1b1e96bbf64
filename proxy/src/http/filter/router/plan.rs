//! What is decided once per request, before the first attempt: cluster, timeouts, retries, hash, priority.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::http::headers::{RequestHeaders, names, number};
use crate::http::local_reply::LocalReply;
use crate::http::stream::{StreamCell, StreamState};
use crate::router::{
    CountedIn, ForwardAction, HashPolicy, HashedCookie, Outcome as RetryOutcome, RetryState,
    RouteKind, SelectedRoute, Timeouts,
};
use crate::stream_info::{ResponseFlag, StreamInfo};
use crate::upstream::{Cluster, Dropped, Host, Outcome, Priority, RetryGuard};

use super::failure::Failure;

/// The plan of one request.
pub(super) struct Plan {
    pub(super) route: SelectedRoute,
    pub(super) cluster: Arc<Cluster>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<RetryState>,
    pub(super) retries_made: u32,
    pub(super) retry_guard: Option<RetryGuard>,
    pub(super) hash: Option<u64>,
    pub(super) cookie: Option<HashedCookie>,
    pub(super) priority: Priority,
    pub(super) buffer_limit: usize,
    /// Statistics of the route and of the virtual cluster.
    pub(super) counted: CountedIn,
    pub(super) suppresses_headers: bool,
    pub(super) is_internal: bool,
    pub(super) is_upgrade: bool,
    pub(super) is_connect: bool,
    /// The last attempt ran out of time.
    pub(super) was_timeout: bool,
    /// Hosts that were tried.
    pub(super) tried: Vec<u64>,
    /// Their priorities, where those are to be avoided.
    pub(super) tried_priorities: Vec<u32>,
    /// The host of the running attempt.
    pub(super) host: Option<Arc<Host>>,
    /// An attempt that is out of its time goes on beside the next one.
    pub(super) hedges: bool,
}

impl Plan {
    /// Plans a request and finishes its headers.
    pub(super) fn new(state: &mut StreamState) -> Result<Self, Box<LocalReply>> {
        let StreamState {
            stream, request, ..
        } = state;
        let connection = stream.connection.clone();
        let stats = &connection.manager.stats;
        let not_found = |status: StatusCode, details: &'static str| {
            stats.no_cluster.inc();
            Box::new(LocalReply::new(status, "", details).flag(ResponseFlag::NoClusterFound))
        };
        let Some(route) = stream.info.route.clone() else {
            return Err(not_found(StatusCode::NOT_FOUND, "route_not_found"));
        };
        let RouteKind::Forward(action) = &route.route().kind else {
            return Err(not_found(StatusCode::NOT_FOUND, "route_not_found"));
        };
        let cluster = route
            .cluster()
            .and_then(|name| connection.worker.clusters.get(name));
        let Some(cluster) = cluster else {
            let reply = not_found(action.not_found, "cluster_not_found");
            return Err(Box::new(reply.of_route()));
        };
        connection.admit_upstream()?;
        let root = &connection.worker.server.stats;
        let (counted, virtual_cluster) = route.counted_in(root, request);
        stream.info.virtual_cluster = virtual_cluster;
        let suppresses_headers = connection.manager.filters.router.suppresses_headers;
        let expects_continue = request
            .map
            .get(http::header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if expects_continue && !connection.manager.proxies_continue {
            // The codec has answered it.
            request.map.remove(http::header::EXPECT);
        }
        // Almost no request says how it is to be forwarded: one look over the names is cheaper than nine lookups.
        let says_how = request.map.keys().any(says_how);
        let timeouts = action.timeouts.of_request(
            request,
            route.retry_policy().map(AsRef::as_ref),
            says_how,
            !suppresses_headers,
        );
        let hedges = hedges(&route, request, says_how);
        let retry = RetryState::new(route.retry_policy(), request, says_how);
        let (hash, cookie) =
            HashPolicy::hash(&action.hash, request, stream.info.remote_address.ip());
        route.finalize_request(action, request, &stream.info, !suppresses_headers);
        if request.upgrade.is_none() {
            request.map.remove(http::header::UPGRADE);
        }
        let is_high = action.is_high_priority;
        Ok(Plan {
            cluster,
            timeouts,
            retry,
            retries_made: 0,
            retry_guard: None,
            hash,
            cookie,
            priority: if is_high {
                Priority::High
            } else {
                Priority::Default
            },
            buffer_limit: route
                .buffer_limit()
                .unwrap_or(stream.info.connection.buffer_limit as usize),
            counted,
            suppresses_headers,
            is_internal: stream.info.is_internal,
            is_upgrade: request.upgrade.is_some(),
            is_connect: request.method == Method::CONNECT && request.upgrade.is_none(),
            was_timeout: false,
            tried: Vec::new(),
            tried_priorities: Vec::new(),
            host: None,
            hedges,
            route,
        })
    }

    /// The route's action.
    pub(super) fn action(&self) -> Option<&ForwardAction> {
        match &self.route.route().kind {
            RouteKind::Forward(action) => Some(action),
            RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
        }
    }

    /// Whether an outcome is kept from the client while another attempt may bring a better one.
    pub(super) fn is_bad(&self, outcome: RetryOutcome<'_>) -> bool {
        let retry = self.retry.as_ref();
        retry.is_some_and(|retry| retry.is_retriable(outcome))
    }

    /// Priorities that the next attempt avoids.
    pub(super) fn excluded_priorities(&self) -> &[u32] {
        let policy = self.retry.as_ref().and_then(RetryState::policy);
        let frequency = policy.and_then(|policy| policy.avoids_previous_priorities);
        // Looked at anew only after every so many attempts.
        let known = frequency.map_or(0, |frequency| {
            self.tried_priorities.len() / frequency * frequency
        });
        &self.tried_priorities[..known]
    }

    /// A CONNECT that ends here and goes on as TCP.
    pub(super) fn terminates_connect(&self) -> bool {
        let rules = self
            .action()
            .map(|action| action.upgrades.as_slice())
            .unwrap_or_default();
        self.is_connect
            && rules
                .iter()
                .any(|rule| rule.kind.as_ref() == "CONNECT" && rule.terminates_connect)
    }

    /// What is left of the global timeout for another attempt, as the upstream is told.
    pub(super) fn time_left(&self, info: &StreamInfo) -> Option<HeaderValue> {
        if self.suppresses_headers || self.timeouts.per_try.is_some() {
            return None;
        }
        let left = self
            .timeouts
            .global?
            .saturating_sub(info.request_end?.elapsed());
        Some(number(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Counts a response, ours or the upstream's.
    pub(super) fn charge(&self, status: StatusCode) {
        let code = status.as_u16();
        self.cluster.stats.response_codes.record(code);
        self.cluster.stats.upstream_rq_completed.inc();
        self.counted.record(status);
        if self.is_internal {
            self.cluster.stats.internal.record(code);
        } else {
            self.cluster.stats.external.record(code);
        }
    }

    /// The answer to a request that the cluster does not want, as it drops some.
    pub(super) fn dropped(&self, cell: &Rc<StreamCell>) -> Option<Box<LocalReply>> {
        let random = || cell.with(|state| state.stream.worker().random());
        let (text, details, flag, header) = match self.cluster.drops_request(random)? {
            Dropped::Some => (
                "drop overload",
                "drop_overload",
                ResponseFlag::DropOverload,
                &names::X_ENVOY_DROP_OVERLOAD,
            ),
            Dropped::Maintenance => {
                self.cluster.stats.upstream_rq_maintenance_mode.inc();
                (
                    "maintenance mode",
                    "maintenance_mode",
                    ResponseFlag::UpstreamOverflow,
                    &names::X_ENVOY_OVERLOADED,
                )
            }
            Dropped::All => (
                "unconditional drop overload",
                "unconditional_drop_overload",
                ResponseFlag::UnconditionalDropOverload,
                &names::X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD,
            ),
        };
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, text, details).flag(flag);
        self.charge(reply.status);
        Some(Box::new(if self.suppresses_headers {
            reply
        } else {
            reply.header(header, HeaderValue::from_static("true"))
        }))
    }

    /// The host of the running attempt did not answer in time.
    pub(super) fn report_timeout(&self, cell: &Rc<StreamCell>) {
        if let Some(host) = &self.host {
            host.stats.rq_timeout.inc();
            let random = cell.with(|state| state.stream.worker().random());
            self.cluster.report(host, Outcome::Timeout, random);
        }
    }

    /// The reply after a failure that is not retried.
    pub(super) fn failure_reply(
        &mut self,
        cell: &Rc<StreamCell>,
        failure: &Failure,
    ) -> Box<LocalReply> {
        if let Some(refusal) = cell.with(|state| state.stream.refusal.take()) {
            self.charge(refusal.status);
            return refusal;
        }
        let attempts = cell.with(|state| {
            state
                .stream
                .info
                .upstream
                .transport_failure
                .clone_from(&failure.transport);
            state.stream.info.upstream.attempts
        });
        let reply = failure.reply(attempts > 1);
        self.charge(reply.status);
        Box::new(reply)
    }
}

/// Whether the request hedges: by its own word, else by its route's.
fn hedges(route: &SelectedRoute, request: &RequestHeaders, says_how: bool) -> bool {
    let said = says_how.then(|| request.text(&names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT));
    match said.flatten() {
        Some("true") => true,
        Some("false") => false,
        _ => route.hedges(),
    }
}

/// A header by which a client has a say in timeouts and retries.
fn says_how(name: &HeaderName) -> bool {
    let what = name.as_str().strip_prefix("x-envoy-");
    what.is_some_and(|what| {
        ["upstream-rq-", "hedge-", "retr", "max-retries"]
            .iter()
            .any(|prefix| what.starts_with(prefix))
    })
}

/// Where the client wanted to go, for clusters that send it there.
pub(super) fn original_destination(state: &StreamState) -> Option<SocketAddr> {
    state.stream.info.original_destination()
}

/// The count of this attempt, for the upstream.
pub(super) fn note_attempt(map: &mut HeaderMap, attempt: u32) {
    map.insert(
        names::X_ENVOY_ATTEMPT_COUNT.clone(),
        HeaderValue::from(attempt),
    );
}
