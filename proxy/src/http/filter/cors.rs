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
    allows_credentials: bool,
    allows_private_network: bool,
    forwards_unmatched_preflight: bool,
    enabled: Fraction,
}

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
    granted: Option<(Arc<Policy>, HeaderValue)>,
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
            allows_credentials: policy.allow_credentials.unwrap_or(false),
            allows_private_network: policy.allow_private_network_access.unwrap_or(false),
            forwards_unmatched_preflight: policy.forward_not_matching_preflights.unwrap_or(true),
            enabled: policy
                .filter_enabled
                .as_ref()
                .map_or(Fraction::ALWAYS, Fraction::from),
        })
    }

    fn preflight(&self, origin: HeaderValue, asks_private_network: bool) -> LocalReply {
        let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response")
            .header(&header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let optional = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
            (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                reply = reply.header(&name, value.clone());
            }
        }
        if self.allows_credentials {
            reply = reply.header(
                &header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
        if asks_private_network && self.allows_private_network {
            let name = HeaderName::from_static("access-control-allow-private-network");
            reply = reply.header(&name, HeaderValue::from_static("true"));
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
        let policy = stream
            .route_config::<Arc<Policy>>(&self.name)
            .or_else(|| stream.route_config(NAME));
        let Some(policy) = policy.cloned() else {
            return FilterStatus::Continue;
        };
        let Some(origin) = headers
            .map
            .get(header::ORIGIN)
            .filter(|origin| !origin.is_empty())
            .cloned()
        else {
            return FilterStatus::Continue;
        };
        if !policy.enabled.draw() {
            return FilterStatus::Continue;
        }
        let is_preflight = headers.method == Method::OPTIONS
            && headers
                .map
                .get(header::ACCESS_CONTROL_REQUEST_METHOD)
                .is_some_and(|method| !method.is_empty());
        if !policy
            .origins
            .iter()
            .any(|matcher| matcher.matches(origin.as_bytes()))
        {
            self.stats.origin_invalid.inc();
            if is_preflight && !policy.forwards_unmatched_preflight {
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
            let reply = policy.preflight(origin.clone(), asks);
            self.granted = Some((policy, origin));
            return FilterStatus::reply(reply);
        }
        self.granted = Some((policy, origin));
        FilterStatus::Continue
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, _stream: &mut Stream) {
        let Some((policy, origin)) = self.granted.take() else {
            return;
        };
        headers
            .map
            .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if policy.allows_credentials {
            headers.map.insert(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
        if let Some(exposed) = &policy.exposed {
            headers
                .map
                .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
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
