//! Route matches: path, headers, query parameters, cookies, gRPC, TLS, a share of requests.

use std::borrow::Cow;

use http::{Method, header};
use proto::envoy::config::route::v3 as wire;
use regex::bytes::Regex;
use wire::query_parameter_matcher::QueryParameterMatchSpecifier;
use wire::route_match::PathSpecifier;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{HeaderMatcher, MetadataMatcher, PathTemplate, StringMatcher, full_regex};
use crate::runtime::RuntimeFraction;
use crate::stream_info::StreamInfo;
use crate::wire::percent_decode;

/// A compiled `RouteMatch`.
#[derive(Debug)]
pub(crate) struct RouteMatch {
    /// The condition on the path.
    pub(crate) path: PathMatch,
    ignore_case: bool,
    headers: Vec<HeaderMatcher>,
    query: Vec<QueryMatcher>,
    cookies: Vec<CookieMatcher>,
    metadata: Vec<MetadataMatcher>,
    fraction: Option<RuntimeFraction>,
    is_grpc: bool,
    tls: Option<(Option<bool>, Option<bool>)>,
}

/// A condition on the path without its query.
#[derive(Debug)]
pub(crate) enum PathMatch {
    /// Starts with.
    Prefix(Box<str>),
    /// Equal.
    Exact(Box<str>),
    /// The whole path matches.
    Regex(Regex),
    /// Equal, or followed by a slash.
    SeparatedPrefix(Box<str>),
    /// A CONNECT request.
    Connect,
    /// A URI template.
    Template(PathTemplate),
}

/// A condition on a query parameter.
#[derive(Debug)]
pub(super) struct QueryMatcher {
    name: Box<str>,
    condition: QueryCondition,
}

#[derive(Debug)]
enum QueryCondition {
    Present(bool),
    Text(StringMatcher),
}

#[derive(Debug)]
struct CookieMatcher {
    name: Box<str>,
    value: StringMatcher,
    invert: bool,
}

impl TryFrom<&wire::RouteMatch> for RouteMatch {
    type Error = Invalid;

    fn try_from(route: &wire::RouteMatch) -> Result<Self, Invalid> {
        if !route.filter_state.is_empty() {
            return Err(Invalid::unsupported("matching filter state").at("filter_state"));
        }
        let specifier = route
            .path_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("a path specifier is needed"))?;
        Ok(RouteMatch {
            path: PathMatch::try_from(specifier)?,
            ignore_case: !route.case_sensitive.unwrap_or(true),
            headers: try_all("headers", &route.headers, HeaderMatcher::try_from)?,
            query: try_all(
                "query_parameters",
                &route.query_parameters,
                QueryMatcher::try_from,
            )?,
            cookies: try_all("cookies", &route.cookies, CookieMatcher::try_from)?,
            metadata: try_all(
                "dynamic_metadata",
                &route.dynamic_metadata,
                MetadataMatcher::try_from,
            )?,
            fraction: route.runtime_fraction.as_ref().map(RuntimeFraction::from),
            is_grpc: route.grpc.is_some(),
            tls: route
                .tls_context
                .as_ref()
                .map(|tls| (tls.presented, tls.validated)),
        })
    }
}

impl TryFrom<&PathSpecifier> for PathMatch {
    type Error = Invalid;

    fn try_from(specifier: &PathSpecifier) -> Result<Self, Invalid> {
        Ok(match specifier {
            PathSpecifier::Prefix(prefix) => PathMatch::Prefix(prefix.as_str().into()),
            PathSpecifier::Path(path) => PathMatch::Exact(path.as_str().into()),
            PathSpecifier::SafeRegex(regex) => {
                PathMatch::Regex(full_regex(&regex.regex).at("safe_regex")?)
            }
            PathSpecifier::PathSeparatedPrefix(prefix) => {
                if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#'])
                {
                    return Err(Invalid::new(
                        "path_separated_prefix must begin with '/', not end with it, and have no '?' or '#'",
                    ));
                }
                PathMatch::SeparatedPrefix(prefix.as_str().into())
            }
            PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
            PathSpecifier::PathMatchPolicy(policy) => {
                PathMatch::Template(PathTemplate::try_from(policy).at("path_match_policy")?)
            }
        })
    }
}

impl TryFrom<&wire::QueryParameterMatcher> for QueryMatcher {
    type Error = Invalid;

    fn try_from(matcher: &wire::QueryParameterMatcher) -> Result<Self, Invalid> {
        Ok(QueryMatcher {
            name: matcher.name.as_str().into(),
            condition: match &matcher.query_parameter_match_specifier {
                None => QueryCondition::Present(true),
                Some(QueryParameterMatchSpecifier::PresentMatch(want)) => {
                    QueryCondition::Present(*want)
                }
                Some(QueryParameterMatchSpecifier::StringMatch(text)) => {
                    QueryCondition::Text(StringMatcher::try_from(text).at("string_match")?)
                }
            },
        })
    }
}

impl TryFrom<&wire::CookieMatcher> for CookieMatcher {
    type Error = Invalid;

    fn try_from(matcher: &wire::CookieMatcher) -> Result<Self, Invalid> {
        let value = matcher
            .string_match
            .as_ref()
            .ok_or_else(|| Invalid::new("a cookie matcher needs string_match"))?;
        Ok(CookieMatcher {
            name: matcher.name.as_str().into(),
            value: StringMatcher::try_from(value).at("string_match")?,
            invert: matcher.invert_match,
        })
    }
}

impl RouteMatch {
    /// True when the request fits; `path` is its path without query (and without parameters, if so configured).
    pub(crate) fn matches(&self, path: &str, headers: &RequestHeaders, info: &StreamInfo) -> bool {
        self.matches_path(path, headers)
            && (!self.is_grpc || headers.is_grpc())
            && HeaderMatcher::all(&self.headers, headers)
            && (self.query.is_empty() || self.matches_query(headers))
            && self.cookies.iter().all(|cookie| cookie.matches(headers))
            && self
                .metadata
                .iter()
                .all(|matcher| matcher.matches(info.metadata.get(matcher.filter())))
            && self.matches_tls(info)
            && self.fraction.as_ref().is_none_or(RuntimeFraction::draw)
    }

    /// True when it looks at dynamic metadata.
    pub(crate) fn matches_metadata(&self) -> bool {
        !self.metadata.is_empty()
    }

    fn matches_path(&self, path: &str, headers: &RequestHeaders) -> bool {
        if headers.method == Method::CONNECT && headers.upgrade.is_none() {
            return matches!(self.path, PathMatch::Connect);
        }
        match &self.path {
            PathMatch::Prefix(prefix) => starts_with(path, prefix, self.ignore_case),
            PathMatch::Exact(want) if self.ignore_case => path.eq_ignore_ascii_case(want),
            PathMatch::Exact(want) => path == want.as_ref(),
            PathMatch::Regex(regex) => regex.is_match(path.as_bytes()),
            PathMatch::SeparatedPrefix(prefix) => {
                starts_with(path, prefix, self.ignore_case)
                    && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Connect => headers.method == Method::CONNECT,
            PathMatch::Template(template) => template.matches(path),
        }
    }

    fn matches_query(&self, headers: &RequestHeaders) -> bool {
        let query = headers.path.query();
        self.query
            .iter()
            .all(|matcher| matcher.matches(raw_query_value(query, &matcher.name)))
    }

    fn matches_tls(&self, info: &StreamInfo) -> bool {
        let Some((presented, validated)) = self.tls else {
            return true;
        };
        let peer = info
            .connection
            .tls
            .as_ref()
            .and_then(|tls| tls.peer.as_ref());
        // A peer certificate that does not validate never gets here: the handshake fails.
        presented.is_none_or(|want| peer.is_some() == want)
            && validated.is_none_or(|want| peer.is_some() == want)
    }
}

impl QueryMatcher {
    /// True when the parameter in the query fits, decoded.
    pub(super) fn matches_decoded(&self, query: Option<&str>) -> bool {
        self.matches(query_value(query, &self.name).as_deref())
    }

    /// True when the parameter's value fits.
    fn matches(&self, value: Option<&[u8]>) -> bool {
        match &self.condition {
            QueryCondition::Present(want) => value.is_some() == *want,
            QueryCondition::Text(text) => value.is_some_and(|value| text.matches(value)),
        }
    }
}

impl CookieMatcher {
    fn matches(&self, headers: &RequestHeaders) -> bool {
        let fits = cookie(headers, &self.name).is_some_and(|value| self.value.matches(value));
        fits != self.invert
    }
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a RequestHeaders, name: &str) -> Option<&'a str> {
    headers.map.get_all(header::COOKIE).iter().find_map(|line| {
        std::str::from_utf8(line.as_bytes())
            .ok()?
            .split(';')
            .find_map(|pair| {
                let (key, value) = pair.trim().split_once('=')?;
                (key == name).then(|| value.trim_matches('"'))
            })
    })
}

/// The value of a query parameter as it is written: so routes compare it, as Envoy does.
pub(super) fn raw_query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a [u8]> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value.as_bytes())
    })
}

/// The decoded value of a query parameter.
pub(crate) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, [u8]>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key.as_bytes()).as_ref() == name.as_bytes())
            .then(|| percent_decode(value.as_bytes()))
    })
}

fn starts_with(path: &str, prefix: &str, ignore_case: bool) -> bool {
    if ignore_case {
        path.as_bytes()
            .get(..prefix.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    } else {
        path.starts_with(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_cookies_and_queries() {
        crate::fuzz::fuzz("cookies_and_queries", |bytes| {
            let mut headers = crate::stream_info::testing::request("h", "/", &[]);
            if let Ok(value) = http::HeaderValue::from_bytes(bytes) {
                headers.map.insert(header::COOKIE, value);
                cookie(&headers, "a");
            }
            let text = String::from_utf8_lossy(bytes);
            query_value(Some(&text), "a");
            // Each escape is one byte instead of three, and a sign is no digit.
            let escape = regex::Regex::new("%[0-9a-fA-F]{2}").unwrap();
            let escapes = escape.find_iter(&text).count();
            assert_eq!(
                percent_decode(text.as_bytes()).len(),
                text.len() - 2 * escapes,
                "{text}"
            );
        });
    }
}
