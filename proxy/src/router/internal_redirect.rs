//! Internal redirects: a redirect of the upstream's that the proxy follows itself.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use proto::envoy::config::route::v3 as wire;
use proto::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;

use crate::http::headers::{RequestHeaders, Scheme, names};
use crate::invalid::{Invalid, try_all};

use super::header_name;

/// A compiled `InternalRedirectPolicy`.
#[derive(Debug)]
pub(crate) struct InternalRedirectPolicy {
    max: u32,
    codes: Vec<u16>,
    crosses_schemes: bool,
    copies: Vec<HeaderName>,
    predicates: Vec<Predicate>,
}

/// The names of the route that a request is redirected by and of the one that it comes to.
pub(crate) type Way = (Box<str>, Box<str>);

#[derive(Debug)]
enum Predicate {
    /// Not along a way, from route to route, that this request has gone before.
    PreviousRoutes,
    /// Only to these routes.
    AllowListed(Vec<String>),
    /// Not from HTTPS to HTTP.
    SafeCrossScheme,
}

/// Why a redirect is not followed but given to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFollowed {
    /// No location, or one that is no absolute URL.
    BadLocation,
    /// It leads from one scheme to the other.
    UnsafeScheme,
    /// There were enough.
    TooMany,
}

impl TryFrom<&wire::InternalRedirectPolicy> for InternalRedirectPolicy {
    type Error = Invalid;

    fn try_from(policy: &wire::InternalRedirectPolicy) -> Result<Self, Invalid> {
        // QUIRK: codes that are no redirects are left out silently.
        let mut codes: Vec<u16> = policy
            .redirect_response_codes
            .iter()
            .filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308))
            .filter_map(|code| u16::try_from(*code).ok())
            .collect();
        if policy.redirect_response_codes.is_empty() {
            codes.push(302);
        }
        let predicates = try_all("predicates", &policy.predicates, |predicate| {
            let any = predicate.typed_config.clone().unwrap_or_default();
            match proto::type_url::message_name(&any.type_url) {
                "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig" => {
                    Ok(Predicate::PreviousRoutes)
                }
                "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" =>
                {
                    let config: AllowListedRoutesConfig = proto::any::unpack(&any)?;
                    Ok(Predicate::AllowListed(config.allowed_route_names))
                }
                "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig" => {
                    Ok(Predicate::SafeCrossScheme)
                }
                _ => Err(Invalid::unsupported(&format!(
                    "internal redirect predicate '{}'",
                    predicate.name
                ))),
            }
        })?;
        Ok(InternalRedirectPolicy {
            max: policy.max_internal_redirects.unwrap_or(1),
            codes,
            crosses_schemes: policy.allow_cross_scheme_redirect,
            copies: try_all(
                "response_headers_to_copy",
                &policy.response_headers_to_copy,
                |name| header_name(name),
            )?,
            predicates,
        })
    }
}

impl InternalRedirectPolicy {
    /// True when a response is one to follow.
    pub(crate) fn follows(&self, status: StatusCode) -> bool {
        self.codes.contains(&status.as_u16())
    }

    /// The request that follows a redirect.
    pub(crate) fn redirected(
        &self,
        request: &RequestHeaders,
        response: &HeaderMap,
        status: StatusCode,
        is_tls: bool,
        done: u32,
    ) -> Result<RequestHeaders, NotFollowed> {
        let location = response.get(header::LOCATION).map(HeaderValue::as_bytes);
        let target = location.and_then(|location| Uri::try_from(location).ok());
        let target = target.ok_or(NotFollowed::BadLocation)?;
        let (Some(scheme), Some(authority)) = (target.scheme_str(), target.authority()) else {
            return Err(NotFollowed::BadLocation);
        };
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(NotFollowed::BadLocation),
        };
        let from = if request.scheme == Scheme::Https || is_tls {
            Scheme::Https
        } else {
            Scheme::Http
        };
        if from != scheme && !self.crosses_schemes {
            return Err(NotFollowed::UnsafeScheme);
        }
        if done >= self.max {
            return Err(NotFollowed::TooMany);
        }
        let mut next = request.clone();
        for name in &self.copies {
            next.map.remove(name);
            for value in response.get_all(name) {
                next.map.append(name.clone(), value.clone());
            }
        }
        let original = format!(
            "{}://{}{}",
            from.as_str(),
            request.host(),
            request.path.as_str()
        );
        next.scheme = scheme;
        next.authority =
            HeaderValue::from_str(authority.as_str()).map_err(|_| NotFollowed::BadLocation)?;
        next.set_path(target.path_and_query().map_or("/", |path| path.as_str()))
            .ok_or(NotFollowed::BadLocation)?;
        if let Ok(original) = HeaderValue::try_from(original) {
            next.map
                .insert(names::X_ENVOY_ORIGINAL_URL.clone(), original);
        }
        if status == StatusCode::SEE_OTHER
            && next.method != Method::GET
            && next.method != Method::HEAD
        {
            next.method = Method::GET;
            next.map.remove(header::CONTENT_LENGTH);
            next.map.remove(header::TRANSFER_ENCODING);
        }
        Ok(next)
    }

    /// True when the request may go on along `way`, to the route that its new location leads to; `previous` are the ways
    /// that it has gone.
    pub(crate) fn accepts(&self, way: &Way, previous: &[Way], from: Scheme, to: Scheme) -> bool {
        self.predicates.iter().all(|predicate| match predicate {
            Predicate::PreviousRoutes => !previous.contains(way),
            Predicate::AllowListed(names) => names.iter().any(|name| **name == *way.1),
            Predicate::SafeCrossScheme => from == Scheme::Http || to == Scheme::Https,
        })
    }
}
