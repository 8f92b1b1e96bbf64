//! The local rate limit filter: token buckets of the proxy itself, one for everything and one for each configured descriptor;
//! shared by all workers, or made anew for each connection.

mod bucket;

use std::any::Any as StdAny;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, StatusCode};
use prost_types::Any;
use proto::envoy::extensions::common::ratelimit::v3 as common;
use proto::envoy::extensions::filters::http::local_ratelimit::v3 as wire;

use crate::http::headers::{RequestHeaders, ResponseHeaders, number};
use crate::http::local_reply::{LocalReply, status_code};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::Fraction;
use crate::router::{Descriptor, HeaderMutations, Moment, RateLimits, RouteKind};
use crate::runtime::RuntimeFraction;
use crate::stat_group;
use crate::stats::Scope;
use crate::stream_info::ResponseFlag;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

use bucket::{Bucket, BucketRules};

const NAME: &str = "envoy.filters.http.local_ratelimit";
const MESSAGE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

static LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
static RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: MESSAGE,
    name: NAME,
    build,
    routes: &[(MESSAGE, route)],
};

stat_group! {
    /// `<stat prefix>.http_local_rate_limit.…`
    struct LocalStats { enabled: Counter, enforced: Counter, ok: Counter, rate_limited: Counter }
}

/// A checked configuration, of the filter or of a route.
struct Config {
    stat_prefix: Box<str>,
    stats: OnceLock<Arc<LocalStats>>,
    status: StatusCode,
    limiter: Limiter,
    per_connection: bool,
    enabled: RuntimeFraction,
    enforced: RuntimeFraction,
    when_not_enforced: HeaderMutations,
    response_headers: HeaderMutations,
    stage: u32,
    own_limits: RateLimits,
    vh_limits: common::VhRateLimitsOptions,
    tells_limits: bool,
    tells_retry_after: bool,
    grpc_status: Option<u32>,
}

/// Buckets.
struct Limiter {
    default: Option<Arc<Bucket>>,
    always_consumes_default: bool,
    descriptors: Vec<DescriptorBucket>,
}

struct DescriptorBucket {
    /// An empty value stands for any: each gets a bucket of its own.
    entries: Vec<(String, String)>,
    rules: BucketRules,
    bucket: Arc<Bucket>,
    is_shadow: bool,
    dynamic: bucket::DynamicBuckets,
}

struct Factory {
    name: Arc<str>,
    config: Arc<Config>,
}

struct LocalRateLimit {
    name: Arc<str>,
    config: Arc<Config>,
    bucket: Option<Arc<Bucket>>,
    is_limited: bool,
}

/// The buckets of one connection.
struct OfConnection(Arc<Config>, Limiter);

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config = Config::try_new(any, false)?;
    config.stats(&context.server.stats);
    Ok(Arc::new(Factory {
        name: context.name.into(),
        config: Arc::new(config),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    Ok(Arc::new(Arc::new(Config::try_new(any, true)?)))
}

impl Config {
    fn try_new(any: &Any, is_per_route: bool) -> Result<Self, Invalid> {
        let config: wire::LocalRateLimit = super::unpack(any)?;
        if config.stat_prefix.is_empty() {
            return Err(Invalid::new("a stat_prefix is needed").at("stat_prefix"));
        }
        if config.local_cluster_rate_limit.is_some() {
            return Err(Invalid::unsupported("local_cluster_rate_limit"));
        }
        if is_per_route && config.token_bucket.is_none() {
            return Err(Invalid::new(
                "local rate limit token bucket must be set for per filter configs",
            ));
        }
        let fraction = |wire: &Option<_>| RuntimeFraction::or(wire.as_ref(), Fraction::NEVER);
        let code = config.status.as_ref().map_or(0, |status| status.code);
        Ok(Config {
            stat_prefix: config.stat_prefix.as_str().into(),
            stats: OnceLock::new(),
            // QUIRK: a status that is no error becomes 429.
            status: u32::try_from(code)
                .ok()
                .filter(|code| *code >= 400)
                .and_then(|code| status_code(code).ok())
                .unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            limiter: Limiter::try_new(&config)?,
            per_connection: config.local_rate_limit_per_downstream_connection,
            enabled: fraction(&config.filter_enabled),
            enforced: fraction(&config.filter_enforced),
            when_not_enforced: HeaderMutations::try_new(
                &config.request_headers_to_add_when_not_enforced,
                &[],
            )
            .at("request_headers_to_add_when_not_enforced")?,
            response_headers: HeaderMutations::try_new(&config.response_headers_to_add, &[])
                .at("response_headers_to_add")?,
            stage: config.stage,
            own_limits: RateLimits::try_new(&config.rate_limits)?,
            vh_limits: config.vh_rate_limits(),
            tells_limits: config.enable_x_ratelimit_headers()
                == common::XRateLimitHeadersRfcVersion::DraftVersion03,
            tells_retry_after: config.enable_retry_after_header,
            grpc_status: config.rate_limited_as_resource_exhausted.then_some(8),
        })
    }

    fn stats(&self, root: &Scope) -> &LocalStats {
        self.stats.get_or_init(|| {
            root.scope(&self.stat_prefix)
                .scope("http_local_rate_limit")
                .group()
        })
    }

    fn describe(&self, headers: &RequestHeaders, stream: &Stream) -> Vec<Descriptor> {
        let mut found = Vec::new();
        if self.limiter.descriptors.is_empty() {
            return found;
        }
        let info = &stream.info;
        let cluster = stream.worker().server.node.cluster.as_str();
        // QUIRK: of a route's limits, those for the end count at once; of the filter's own, not at all.
        let mut add = |limits: &RateLimits, stage: u32, moment: Option<Moment>| {
            limits.describe((stage, moment), headers, info, cluster, &mut found);
        };
        if !self.own_limits.is_empty() {
            add(&self.own_limits, 0, Some(Moment::Request));
            return found;
        }
        let Some(route) = stream.route() else {
            return found;
        };
        let RouteKind::Forward(action) = &route.route().kind else {
            return found;
        };
        add(&action.rate_limits, self.stage, None);
        let of_host = &route.virtual_host().rate_limits;
        let includes = match self.vh_limits {
            _ if action.includes_vh_rate_limits => true,
            common::VhRateLimitsOptions::Include => true,
            common::VhRateLimitsOptions::Ignore => false,
            common::VhRateLimitsOptions::Override => action.rate_limits.is_empty(),
        };
        if includes {
            add(of_host, self.stage, None);
        }
        found
    }
}

impl Limiter {
    fn try_new(config: &wire::LocalRateLimit) -> Result<Self, Invalid> {
        let default = config
            .token_bucket
            .as_ref()
            .map(BucketRules::try_from)
            .transpose()
            .at("token_bucket")?;
        let max_dynamic = config.max_dynamic_descriptors.unwrap_or(20) as usize;
        let descriptors = try_all("descriptors", &config.descriptors, |descriptor| {
            let rules = descriptor
                .token_bucket
                .as_ref()
                .ok_or_else(|| Invalid::new("a token_bucket is needed"))?;
            let rules = BucketRules::try_from(rules).at("token_bucket")?;
            Ok(DescriptorBucket {
                entries: descriptor
                    .entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.clone()))
                    .collect(),
                rules,
                bucket: Arc::new(Bucket::new(rules)),
                is_shadow: descriptor.shadow_mode,
                dynamic: bucket::DynamicBuckets::new(max_dynamic),
            })
        })?;
        Ok(Limiter {
            default: default.map(|rules| Arc::new(Bucket::new(rules))),
            always_consumes_default: config.always_consume_default_token_bucket.unwrap_or(true),
            descriptors,
        })
    }

    /// The same rules with full buckets of their own.
    fn fresh(&self) -> Self {
        Limiter {
            default: self.default.as_ref().map(|bucket| Arc::new(bucket.fresh())),
            always_consumes_default: self.always_consumes_default,
            descriptors: self
                .descriptors
                .iter()
                .map(|descriptor| DescriptorBucket {
                    entries: descriptor.entries.clone(),
                    rules: descriptor.rules,
                    bucket: Arc::new(Bucket::new(descriptor.rules)),
                    is_shadow: descriptor.is_shadow,
                    dynamic: descriptor.dynamic.fresh(),
                })
                .collect(),
        }
    }

    /// Takes tokens for a request: whether it may pass, and the bucket that decided.
    fn take(&self, descriptors: &[Descriptor]) -> (bool, Option<Arc<Bucket>>) {
        let mut matches: Vec<(Arc<Bucket>, u64, bool)> = descriptors
            .iter()
            .filter_map(|descriptor| {
                let found = self
                    .descriptors
                    .iter()
                    .find_map(|own| own.bucket_for(descriptor).map(|b| (b, own.is_shadow)))?;
                Some((found.0, descriptor.hits.unwrap_or(1), found.1))
            })
            .collect();
        // The tightest bucket is asked first, as it is the one to tell the client about.
        matches.sort_by(|a, b| a.0.rate().total_cmp(&b.0.rate()));
        for (bucket, hits, is_shadow) in &matches {
            if !bucket.take(*hits) && !is_shadow {
                return (false, Some(bucket.clone()));
            }
        }
        let deciding = matches.into_iter().next().map(|(bucket, ..)| bucket);
        if let Some(default) = &self.default
            && (deciding.is_none() || self.always_consumes_default)
            && !default.take(1)
        {
            return (false, Some(default.clone()));
        }
        (true, deciding.or_else(|| self.default.clone()))
    }
}

impl DescriptorBucket {
    /// The bucket that counts a request's descriptor, if it is this one's.
    fn bucket_for(&self, descriptor: &Descriptor) -> Option<Arc<Bucket>> {
        if self.entries.len() != descriptor.entries.len() {
            return None;
        }
        let mut is_dynamic = false;
        for ((key, value), (found_key, found)) in self.entries.iter().zip(&descriptor.entries) {
            if key != found_key || !value.is_empty() && value != found {
                return None;
            }
            is_dynamic |= value.is_empty();
        }
        if is_dynamic {
            Some(self.dynamic.get(&descriptor.entries, self.rules))
        } else {
            Some(self.bucket.clone())
        }
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(LocalRateLimit {
            name: self.name.clone(),
            config: self.config.clone(),
            bucket: None,
            is_limited: false,
        }))
    }
}

impl LocalRateLimit {
    fn take(&self, descriptors: &[Descriptor], stream: &Stream) -> (bool, Option<Arc<Bucket>>) {
        if !self.config.per_connection {
            return self.config.limiter.take(descriptors);
        }
        let is_mine = |state: &Rc<dyn StdAny>| {
            state
                .clone()
                .downcast::<OfConnection>()
                .ok()
                .filter(|state| Arc::ptr_eq(&state.0, &self.config))
        };
        let mut states = stream.connection.filter_state.borrow_mut();
        let known = states.iter().find_map(is_mine);
        let state = known.unwrap_or_else(|| {
            let fresh = self.config.limiter.fresh();
            let state = Rc::new(OfConnection(self.config.clone(), fresh));
            states.push(state.clone());
            state
        });
        state.1.take(descriptors)
    }
}

impl HttpFilter for LocalRateLimit {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if let Some(config) = stream.config_of::<Arc<Config>>(&self.name, NAME) {
            self.config = config.clone();
        }
        let config = self.config.clone();
        if !config.enabled.draw() {
            return FilterStatus::Continue;
        }
        let stats = config.stats(&stream.worker().server.stats);
        stats.enabled.inc();
        let descriptors = config.describe(headers, stream);
        let (is_allowed, bucket) = self.take(&descriptors, stream);
        self.bucket = bucket;
        if is_allowed {
            stats.ok.inc();
            return FilterStatus::Continue;
        }
        stats.rate_limited.inc();
        if !config.enforced.draw() {
            config
                .when_not_enforced
                .apply_to_request(headers, &stream.info);
            return FilterStatus::Continue;
        }
        stats.enforced.inc();
        self.is_limited = true;
        let mut reply = LocalReply::new(config.status, "local_rate_limited", "local_rate_limited")
            .flag(ResponseFlag::RateLimited);
        reply.grpc_status = config.grpc_status;
        let mut head = ResponseHeaders {
            status: config.status,
            map: HeaderMap::new(),
        };
        config
            .response_headers
            .apply_to_response(&mut head, Some(headers), &stream.info);
        reply.append_headers(&head.map);
        FilterStatus::reply(reply)
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _: &mut Stream) {
        let Some(bucket) = &self.bucket else {
            return;
        };
        if self.config.tells_limits {
            let map = &mut headers.map;
            map.append(LIMIT.clone(), number(bucket.max()));
            map.append(REMAINING.clone(), number(bucket.remaining()));
            map.append(RESET.clone(), number(bucket.reset_seconds()));
        }
        if self.config.tells_retry_after && self.is_limited {
            headers
                .map
                .insert(RETRY_AFTER.clone(), number(bucket.reset_seconds().max(1)));
        }
    }
}
