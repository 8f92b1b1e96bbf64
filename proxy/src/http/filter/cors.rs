//! CORS: answers preflight requests and adds the response headers by the route's or virtual host's policy.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use prost_types::Any;
use proto::envoy::config::route::v3 as route_wire;
use proto::envoy::extensions::filters::http::cors::v3 as wire;

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Fraction, StringMatcher};
use crate::runtime::RuntimeFraction;
use crate::stat_group;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

/// The filter's name.
pub(crate) const NAME: &str = "envoy.filters.http.cors";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.cors.v3.Cors",
    name: NAME,
    build,
    routes: &[("envoy.extensions.filters.http.cors.v3.CorsPolicy", route)],
};

/// A checked policy.
#[derive(Debug)]
struct Policy {
    origins: Vec<StringMatcher>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    exposed: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    allows_credentials: Option<bool>,
    allows_private_network: Option<bool>,
    forwards_unmatched_preflight: Option<bool>,
    enabled: RuntimeFraction,
}

/// The policies of all levels of a route, the most specific first: each setting is that of the first which has it.
#[derive(Debug)]
struct Policies(Vec<Arc<Policy>>);

stat_group! {
    /// `http.<prefix>.cors.…`
    struct CorsStats { origin_invalid: Counter, origin_valid: Counter }
}

struct Factory {
    name: Box<str>,
    stats: Arc<CorsStats>,
}

struct Cors {
    name: Box<str>,
    stats: Arc<CorsStats>,
    /// Set when the origin is good: what to tell the client.
    granted: Option<(Policies, HeaderValue)>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let _: wire::Cors = super::unpack(any)?;
    Ok(Arc::new(Factory {
        name: context.name.into(),
        stats: context.scope.scope("cors").group(),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let policy: wire::CorsPolicy = super::unpack(any)?;
    Ok(Arc::new(Arc::new(Policy::try_new(&policy)?)))
}

/// The policy that a route or virtual host carries in its own (older) field.
pub(crate) fn from_route(policy: &route_wire::CorsPolicy) -> Result<RouteValue, Invalid> {
    let enabled = policy
        .enabled_specifier
        .clone()
        .map(|enabled| match enabled {
            route_wire::cors_policy::EnabledSpecifier::FilterEnabled(fraction) => fraction,
        });
    let policy = wire::CorsPolicy {
        allow_origin_string_match: policy.allow_origin_string_match.clone(),
        allow_methods: policy.allow_methods.clone(),
        allow_headers: policy.allow_headers.clone(),
        expose_headers: policy.expose_headers.clone(),
        max_age: policy.max_age.clone(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: enabled,
        shadow_enabled: policy.shadow_enabled.clone(),
        allow_private_network_access: policy.allow_private_network_access,
        forward_not_matching_preflights: policy.forward_not_matching_preflights,
    };
    Ok(Arc::new(Arc::new(Policy::try_new(&policy)?)))
}

impl Policy {
    fn try_new(policy: &wire::CorsPolicy) -> Result<Self, Invalid> {
        Ok(Policy {
            origins: try_all(
                "allow_origin_string_match",
                &policy.allow_origin_string_match,
                StringMatcher::try_from,
            )?,
            methods: value(&policy.allow_methods).at("allow_methods")?,
            headers: value(&policy.allow_headers).at("allow_headers")?,
            exposed: value(&policy.expose_headers).at("expose_headers")?,
            max_age: value(&policy.max_age).at("max_age")?,
            allows_credentials: policy.allow_credentials,
            allows_private_network: policy.allow_private_network_access,
            forwards_unmatched_preflight: policy.forward_not_matching_preflights,
            enabled: RuntimeFraction::or(policy.filter_enabled.as_ref(), Fraction::ALWAYS),
        })
    }
}

impl Policies {
    fn first<T: Clone>(&self, of: impl Fn(&Policy) -> Option<&T>) -> Option<T> {
        self.0.iter().find_map(|policy| of(policy)).cloned()
    }

    fn is(&self, of: impl Fn(&Policy) -> Option<&bool>, default: bool) -> bool {
        self.first(of).unwrap_or(default)
    }

    fn is_enabled(&self) -> bool {
        let policy = self.0.first();
        policy.is_some_and(|policy| policy.enabled.draw())
    }

    fn knows(&self, origin: &HeaderValue) -> bool {
        let policy = self.0.iter().find(|policy| !policy.origins.is_empty());
        let mut origins = policy.into_iter().flat_map(|policy| &policy.origins);
        origins.any(|matcher| matcher.matches(origin.as_bytes()))
    }

    fn preflight(&self, origin: HeaderValue, asks_private_network: bool) -> LocalReply {
        let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response")
            .header(&header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let optional = [
            (
                header::ACCESS_CONTROL_ALLOW_METHODS,
                self.first(|policy| policy.methods.as_ref()),
            ),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                self.first(|policy| policy.headers.as_ref()),
            ),
            (
                header::ACCESS_CONTROL_MAX_AGE,
                self.first(|policy| policy.max_age.as_ref()),
            ),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                reply = reply.header(&name, value);
            }
        }
        let yes = HeaderValue::from_static("true");
        if self.is(|policy| policy.allows_credentials.as_ref(), false) {
            reply = reply.header(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes.clone());
        }
        if asks_private_network && self.is(|policy| policy.allows_private_network.as_ref(), false) {
            let name = HeaderName::from_static("access-control-allow-private-network");
            reply = reply.header(&name, yes);
        }
        reply
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Cors {
            name: self.name.clone(),
            stats: self.stats.clone(),
            granted: None,
        }))
    }
}

impl HttpFilter for Cors {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let policies = stream.configs_of::<Arc<Policy>>(&self.name, NAME);
        let policies = Policies(policies.cloned().collect());
        let Some(origin) = headers
            .map
            .get(header::ORIGIN)
            .filter(|origin| !origin.is_empty())
            .cloned()
        else {
            return FilterStatus::Continue;
        };
        if !policies.is_enabled() {
            return FilterStatus::Continue;
        }
        let is_preflight = headers.method == Method::OPTIONS
            && headers
                .map
                .get(header::ACCESS_CONTROL_REQUEST_METHOD)
                .is_some_and(|method| !method.is_empty());
        if !policies.knows(&origin) {
            self.stats.origin_invalid.inc();
            let forwards = policies.is(|policy| policy.forwards_unmatched_preflight.as_ref(), true);
            if is_preflight && !forwards {
                return FilterStatus::reply(LocalReply::new(StatusCode::OK, "", "cors_response"));
            }
            return FilterStatus::Continue;
        }
        self.stats.origin_valid.inc();
        if is_preflight {
            let asks = headers
                .map
                .get("access-control-request-private-network")
                .is_some_and(|value| value.as_bytes() == b"true");
            let reply = policies.preflight(origin.clone(), asks);
            self.granted = Some((policies, origin));
            return FilterStatus::reply(reply);
        }
        self.granted = Some((policies, origin));
        FilterStatus::Continue
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _stream: &mut Stream) {
        let Some((policies, origin)) = self.granted.take() else {
            return;
        };
        headers
            .map
            .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if policies.is(|policy| policy.allows_credentials.as_ref(), false) {
            headers.map.insert(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
        if let Some(exposed) = policies.first(|policy| policy.exposed.as_ref()) {
            headers
                .map
                .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

fn value(text: &str) -> Result<Option<HeaderValue>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(text)
        .map(Some)
        .map_err(|_| Invalid::new("not a header value"))
}
