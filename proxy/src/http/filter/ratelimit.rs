//! The global rate limit filter: describes a request by the rate limits of its route and virtual host, and asks a service.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::extensions::common::ratelimit::v3 as common;
use proto::envoy::extensions::filters::http::ratelimit::v3 as wire;
use proto::envoy::service::ratelimit::v3 as rls;
use rls::rate_limit_response::Code;
use wire::rate_limit_per_route::{OverrideOptions, VhRateLimitsOptions};

use crate::http::client::{CallError, GrpcService};
use crate::http::headers::{RequestHeaders, ResponseHeaders, names, number};
use crate::http::local_reply::{LocalReply, status_code};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::matcher::Fraction;
use crate::router::timeout::duration;
use crate::router::{Descriptor, HeaderMutations, Moment, RateLimits, RouteKind};
use crate::runtime::RuntimeFraction;
use crate::stat_group;
use crate::stream_info::ResponseFlag;

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteValue,
    StreamEnd,
};

mod headers;

use headers::{header_map, tell_limits};

const NAME: &str = "envoy.filters.http.ratelimit";
const SHOULD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Envoy's patience.
const TIMEOUT: Duration = Duration::from_millis(20);

static RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
    name: NAME,
    build,
    routes: &[(
        "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
        route,
    )],
};

stat_group! {
    /// `cluster.<name>.ratelimit.…`
    struct RateLimitStats { error: Counter, failure_mode_allowed: Counter, ok: Counter, over_limit: Counter }
}

struct Config {
    name: Box<str>,
    domain: String,
    stage: u32,
    /// `Some(true)`: only internal requests, `Some(false)`: only others.
    internal: Option<bool>,
    service: GrpcService,
    timeout: Duration,
    denies_on_failure: bool,
    denied_on_failure: RuntimeFraction,
    grpc_status: Option<u32>,
    tells_limits: bool,
    tells_retry_after: bool,
    marks_limited: bool,
    status: StatusCode,
    status_on_error: StatusCode,
    response_headers: HeaderMutations,
    enabled: RuntimeFraction,
    enforced: RuntimeFraction,
    own_limits: RateLimits,
    metadata_namespace: String,
    stat_prefix: String,
    of_clusters: Mutex<HashMap<Arc<str>, Arc<RateLimitStats>>>,
}

/// A route's say.
struct PerRoute {
    policy: OverrideOptions,
    limits: RateLimits,
    domain: String,
}

struct Factory(Arc<Config>);

struct RateLimit {
    config: Arc<Config>,
    call: Rc<Call>,
}

/// What has become of the stream's question.
#[derive(Default)]
struct Call {
    /// What the answer adds to the response.
    response: RefCell<HeaderMap>,
    state: Cell<CallState>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum CallState {
    /// The filter has not seen the request, or is off for it.
    #[default]
    Off,
    Asking,
    /// Answered, or there was nothing to ask.
    Done,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::RateLimit = super::unpack(any)?;
    if config.domain.is_empty() {
        return Err(Invalid::new("a domain is needed").at("domain"));
    }
    let service = config
        .rate_limit_service
        .as_ref()
        .and_then(|service| service.grpc_service.as_ref())
        .ok_or_else(|| Invalid::new("a grpc_service is needed").at("rate_limit_service"))?;
    let share = |wire: &Option<_>| RuntimeFraction::or(wire.as_ref(), Fraction::ALWAYS);
    let keyed = |wire: &Option<_>, key| {
        let absent = || RuntimeFraction::new(key, Fraction::ALWAYS);
        wire.as_ref().map_or_else(absent, RuntimeFraction::from)
    };
    let status = |wire: &Option<proto::envoy::r#type::v3::HttpStatus>, default: StatusCode| {
        let code = wire.as_ref().map_or(0, |status| status.code);
        u32::try_from(code)
            .ok()
            .filter(|code| *code >= 400)
            .and_then(|code| status_code(code).ok())
            .unwrap_or(default)
    };
    Ok(Arc::new(Factory(Arc::new(Config {
        name: context.name.into(),
        stage: config.stage,
        internal: match config.request_type.as_str() {
            "internal" => Some(true),
            "external" => Some(false),
            "both" | "" => None,
            other => return Err(Invalid::new(format!("unknown request_type '{other}'"))),
        },
        service: GrpcService::try_from(service).at("rate_limit_service.grpc_service")?,
        timeout: duration(config.timeout.as_ref())
            .at("timeout")?
            .unwrap_or(TIMEOUT),
        denies_on_failure: config.failure_mode_deny,
        denied_on_failure: share(&config.failure_mode_deny_percent),
        grpc_status: config.rate_limited_as_resource_exhausted.then_some(8),
        tells_limits: config.enable_x_ratelimit_headers()
            == wire::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03,
        tells_retry_after: config.enable_retry_after_header,
        marks_limited: !config.disable_x_envoy_ratelimited_header,
        status: status(&config.rate_limited_status, StatusCode::TOO_MANY_REQUESTS),
        status_on_error: status(&config.status_on_error, StatusCode::INTERNAL_SERVER_ERROR),
        response_headers: HeaderMutations::try_new(&config.response_headers_to_add, &[])
            .at("response_headers_to_add")?,
        enabled: keyed(&config.filter_enabled, "ratelimit.http_filter_enabled"),
        enforced: keyed(&config.filter_enforced, "ratelimit.http_filter_enforcing"),
        own_limits: RateLimits::try_new(&config.rate_limits)?,
        metadata_namespace: match config.metadata_namespace.as_str() {
            "" => NAME.to_owned(),
            namespace => namespace.to_owned(),
        },
        stat_prefix: config.stat_prefix,
        domain: config.domain,
        of_clusters: Mutex::default(),
    }))))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::RateLimitPerRoute = super::unpack(any)?;
    // The older field counts where the newer one says nothing.
    let policy = match (config.override_option(), config.vh_rate_limits()) {
        (OverrideOptions::Default, VhRateLimitsOptions::Include) => OverrideOptions::IncludePolicy,
        (OverrideOptions::Default, VhRateLimitsOptions::Ignore) => OverrideOptions::IgnorePolicy,
        (OverrideOptions::Default, VhRateLimitsOptions::Override) => {
            OverrideOptions::OverridePolicy
        }
        (policy, _) => policy,
    };
    Ok(Arc::new(PerRoute {
        policy,
        limits: RateLimits::try_new(&config.rate_limits)?,
        domain: config.domain,
    }))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(RateLimit {
            config: self.0.clone(),
            call: Rc::default(),
        }))
    }
}

impl Config {
    fn describe(
        &self,
        moment: Moment,
        of_route: Option<&PerRoute>,
        headers: &RequestHeaders,
        stream: &Stream,
    ) -> Vec<Descriptor> {
        let mut found = Vec::new();
        let cluster = stream.worker().server.node.cluster.as_str();
        let mut add = |limits: &RateLimits, stage: u32| {
            let when = (stage, Some(moment));
            limits.describe(when, headers, &stream.info, cluster, &mut found);
        };
        if let Some(of_route) = of_route.filter(|route| !route.limits.is_empty()) {
            add(&of_route.limits, 0);
            return found;
        }
        if !self.own_limits.is_empty() {
            add(&self.own_limits, 0);
            return found;
        }
        let Some(route) = stream.route() else {
            return found;
        };
        let RouteKind::Forward(action) = &route.route().kind else {
            return found;
        };
        add(&action.rate_limits, self.stage);
        let policy = of_route.map_or(OverrideOptions::OverridePolicy, |route| route.policy);
        let includes = match policy {
            _ if action.includes_vh_rate_limits => true,
            OverrideOptions::IncludePolicy => true,
            OverrideOptions::IgnorePolicy => false,
            OverrideOptions::Default | OverrideOptions::OverridePolicy => {
                action.rate_limits.is_empty()
            }
        };
        if includes {
            add(&route.virtual_host().rate_limits, self.stage);
        }
        found
    }

    /// The question about a stream, if there is one.
    fn question(
        &self,
        moment: Moment,
        headers: &RequestHeaders,
        stream: &Stream,
    ) -> Option<rls::RateLimitRequest> {
        let of_route = stream.config_of::<PerRoute>(&self.name, NAME);
        let descriptors = self.describe(moment, of_route, headers, stream);
        if descriptors.is_empty() {
            return None;
        }
        let domain = of_route
            .map(|route| &route.domain)
            .filter(|domain| !domain.is_empty())
            .unwrap_or(&self.domain);
        Some(rls::RateLimitRequest {
            domain: domain.clone(),
            descriptors: descriptors.into_iter().map(wire_descriptor).collect(),
            hits_addend: 0,
        })
    }

    fn stats(&self, stream: &Stream) -> Option<Arc<RateLimitStats>> {
        let name = stream.route()?.cluster()?;
        let mut known = self.of_clusters.lock();
        if let Some(stats) = known.get(name) {
            return Some(stats.clone());
        }
        let clusters = &stream.worker().clusters;
        let scope = clusters.get(name)?.scope.scope("ratelimit");
        let stats: Arc<RateLimitStats> = match self.stat_prefix.as_str() {
            "" => scope.group(),
            prefix => scope.scope(prefix).group(),
        };
        // Clusters that are gone would only take up room.
        known.retain(|name, _| clusters.get(name).is_some());
        known.insert(name.clone(), stats.clone());
        Some(stats)
    }

    fn settle(
        &self,
        answer: Result<rls::RateLimitResponse, CallError>,
        stats: Option<&RateLimitStats>,
        response: &RefCell<HeaderMap>,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let answer = match answer {
            Ok(answer) if answer.overall_code() != Code::Unknown => answer,
            failed => {
                if let Err(error) = failed {
                    tracing::debug!(target: "ratelimit", %error, "no answer");
                }
                return self.fail(stats);
            }
        };
        let is_over = answer.overall_code() == Code::OverLimit;
        if let Some(stats) = stats {
            if is_over {
                stats.over_limit.inc();
            } else {
                stats.ok.inc();
            }
        }
        if let Some(metadata) = answer.dynamic_metadata {
            let namespace = self.metadata_namespace.clone();
            stream.info.metadata.merge(namespace, metadata);
        }
        let mut more = header_map(&answer.response_headers_to_add);
        if is_over && self.marks_limited {
            more.insert(
                names::X_ENVOY_RATELIMITED.clone(),
                HeaderValue::from_static("true"),
            );
        }
        if self.tells_limits {
            tell_limits(&answer.statuses, &mut more);
        }
        if is_over && self.tells_retry_after {
            let resets = answer.statuses.iter();
            let wait = resets
                .filter(|status| status.code() == Code::OverLimit)
                .filter_map(|status| status.duration_until_reset)
                .filter_map(|wait| u64::try_from(wait.seconds).ok())
                .max();
            more.insert(RETRY_AFTER.clone(), number(wait.unwrap_or(1).max(1)));
        }
        if !is_over || !self.enforced.draw() {
            for (name, value) in &header_map(&answer.request_headers_to_add) {
                headers.map.append(name.clone(), value.clone());
            }
            *response.borrow_mut() = more;
            return FilterStatus::Continue;
        }
        let mut head = ResponseHeaders {
            status: self.status,
            map: more,
        };
        self.response_headers
            .apply_to_response(&mut head, Some(headers), &stream.info);
        let body = Bytes::from(answer.raw_body);
        let mut reply = LocalReply::new(self.status, body, "request_rate_limited")
            .flag(ResponseFlag::RateLimited);
        reply.grpc_status = self.grpc_status;
        reply.append_headers(&head.map);
        FilterStatus::reply(reply)
    }

    fn fail(&self, stats: Option<&RateLimitStats>) -> FilterStatus {
        if let Some(stats) = stats {
            stats.error.inc();
        }
        if self.denies_on_failure && self.denied_on_failure.draw() {
            return FilterStatus::reply(
                LocalReply::new(self.status_on_error, "", "rate_limiter_error")
                    .flag(ResponseFlag::RateLimitServiceError),
            );
        }
        if let Some(stats) = stats {
            stats.failure_mode_allowed.inc();
        }
        FilterStatus::Continue
    }
}

impl HttpFilter for RateLimit {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let config = self.config.clone();
        let is_meant = config
            .internal
            .is_none_or(|internal| internal == stream.info.is_internal);
        if !is_meant || !config.enabled.draw() {
            return FilterStatus::Continue;
        }
        self.call.state.set(CallState::Done);
        let Some(request) = config.question(Moment::Request, headers, stream) else {
            return FilterStatus::Continue;
        };
        self.call.state.set(CallState::Asking);
        let stats = config.stats(stream);
        let worker = stream.worker().clone();
        let own = self.call.clone();
        FilterStatus::Wait(Box::pin(async move {
            let call = config
                .service
                .unary(&worker, SHOULD, &request, config.timeout);
            let answer = call.await;
            Resume::Then(Box::new(move |headers, stream| {
                own.state.set(CallState::Done);
                config.settle(answer, stats.as_deref(), &own.response, headers, stream)
            }))
        }))
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _: &mut Stream) {
        for (name, value) in self.call.response.borrow().iter() {
            headers.map.append(name.clone(), value.clone());
        }
    }

    fn on_log(&mut self, end: &StreamEnd<'_>) {
        if self.call.state.get() != CallState::Done {
            return;
        }
        let config = self.config.clone();
        let Some(request) = config.question(Moment::End, end.request, end.stream) else {
            return;
        };
        let worker = end.stream.worker().clone();
        tokio::task::spawn_local(async move {
            let told: Result<rls::RateLimitResponse, CallError> = config
                .service
                .unary(&worker, SHOULD, &request, config.timeout)
                .await;
            if let Err(error) = told {
                tracing::debug!(target: "ratelimit", %error, "the end was not told");
            }
        });
    }
}

fn wire_descriptor(descriptor: Descriptor) -> common::RateLimitDescriptor {
    use common::rate_limit_descriptor::{Entry, RateLimitOverride};
    common::RateLimitDescriptor {
        entries: descriptor
            .entries
            .into_iter()
            .map(|(key, value)| Entry { key, value })
            .collect(),
        limit: descriptor
            .limit
            .map(|(requests_per_unit, unit)| RateLimitOverride {
                requests_per_unit,
                unit,
            }),
        hits_addend: descriptor.hits,
        ..common::RateLimitDescriptor::default()
    }
}
