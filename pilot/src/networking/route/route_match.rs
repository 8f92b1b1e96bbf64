//! Conditions of HTTP routes.

use std::collections::BTreeMap;

use proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use proto::envoy::r#type::matcher::v3::{
    MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    string_matcher::MatchPattern,
    value_matcher,
};
use proto::istio::networking::v1alpha3::{HttpMatchRequest, StringMatch, string_match::MatchType};

use crate::networking::View;
use crate::networking::wire::{pattern, regex};

/// Headers with this prefix stand for claims of a validated token.
const CLAIMS: &str = "@request.auth.claims";

/// True when requests with this condition can come to this proxy at all: port, gateway, and source are known beforehand.
pub(super) fn applies(
    view: &View<'_>,
    condition: &HttpMatchRequest,
    port: u32,
    gateways: &[&str],
) -> bool {
    let is_at_gateway = condition.gateways.is_empty()
        || condition
            .gateways
            .iter()
            .any(|gateway| gateways.contains(&gateway.as_str()));
    let is_from_source = view.proxy.is_selected_by(&condition.source_labels)
        && (condition.source_namespace.is_empty()
            || condition.source_namespace == view.proxy.namespace);
    is_at_gateway && (condition.port == 0 || condition.port == port) && is_from_source
}

/// True when every request has it: routes behind it are never reached.
pub(super) fn is_catch_all(condition: &HttpMatchRequest) -> bool {
    let is_any_path = match condition
        .uri
        .as_ref()
        .and_then(|uri| uri.match_type.as_ref())
    {
        None => true,
        Some(MatchType::Prefix(prefix)) => prefix == "/" || prefix.is_empty(),
        Some(MatchType::Regex(regex)) => regex == ".*" || regex == "/.*",
        Some(MatchType::Exact(_)) => false,
    };
    is_any_path
        && condition.headers.is_empty()
        && condition.without_headers.is_empty()
        && condition.query_params.is_empty()
        && condition.method.is_none()
        && condition.authority.is_none()
        && condition.scheme.is_none()
}

/// The condition on the wire.
pub(super) fn build(condition: &HttpMatchRequest) -> RouteMatch {
    let path_specifier = match condition
        .uri
        .as_ref()
        .and_then(|uri| uri.match_type.clone())
    {
        Some(MatchType::Exact(path)) => PathSpecifier::Path(path),
        Some(MatchType::Prefix(prefix)) => PathSpecifier::Prefix(prefix),
        Some(MatchType::Regex(text)) => PathSpecifier::SafeRegex(regex(&text)),
        None => PathSpecifier::Prefix("/".to_owned()),
    };
    let mut route_match = RouteMatch {
        path_specifier: Some(path_specifier),
        case_sensitive: condition.ignore_uri_case.then_some(false),
        ..RouteMatch::default()
    };
    for (name, value) in &condition.headers {
        if let Some(path) = claim_path(name) {
            route_match
                .dynamic_metadata
                .push(claim_matcher(path, value, false));
        } else {
            route_match.headers.push(header(name, value, false));
        }
    }
    for (name, value) in &condition.without_headers {
        if let Some(path) = claim_path(name) {
            route_match
                .dynamic_metadata
                .push(claim_matcher(path, value, true));
        } else {
            route_match.headers.push(header(name, value, true));
        }
    }
    let pseudo = [
        (":method", &condition.method),
        (":authority", &condition.authority),
        (":scheme", &condition.scheme),
    ];
    for (name, value) in pseudo {
        route_match
            .headers
            .extend(value.as_ref().map(|value| header(name, value, false)));
    }
    route_match.query_parameters = query_parameters(&condition.query_params);
    route_match
}

fn header(name: &str, value: &StringMatch, is_inverted: bool) -> HeaderMatcher {
    let matcher = string_matcher(value);
    HeaderMatcher {
        name: name.to_owned(),
        invert_match: is_inverted,
        // "Without value x" holds when the header is missing.
        treat_missing_header_as_empty: is_inverted && matcher.is_some(),
        header_match_specifier: Some(match matcher {
            Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
            None => HeaderMatchSpecifier::PresentMatch(true),
        }),
    }
}

fn query_parameters(parameters: &BTreeMap<String, StringMatch>) -> Vec<QueryParameterMatcher> {
    parameters
        .iter()
        .map(|(name, value)| QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(match string_matcher(value) {
                Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
                None => QueryParameterMatchSpecifier::PresentMatch(true),
            }),
        })
        .collect()
}

/// A condition on text; none: it only has to be there.
pub(super) fn string_matcher(value: &StringMatch) -> Option<StringMatcher> {
    let found = match value.match_type.as_ref()? {
        MatchType::Exact(text) => MatchPattern::Exact(text.clone()),
        MatchType::Prefix(text) => MatchPattern::Prefix(text.clone()),
        MatchType::Regex(text) if text == "*" || text == ".*" => return None,
        MatchType::Regex(text) => MatchPattern::SafeRegex(regex(text)),
    };
    Some(pattern(found))
}

/// `@request.auth.claims.a.b` or `@request.auth.claims[a][b]` as a path.
fn claim_path(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(CLAIMS)?;
    let parts: Vec<String> = if let Some(rest) = rest.strip_prefix('.') {
        rest.split('.').map(str::to_owned).collect()
    } else {
        rest.strip_prefix('[')?
            .strip_suffix(']')?
            .split("][")
            .map(str::to_owned)
            .collect()
    };
    Some(parts)
}

/// A claim is text, or a list with the text in it.
fn claim_matcher(path: Vec<String>, value: &StringMatch, is_inverted: bool) -> MetadataMatcher {
    use proto::envoy::r#type::matcher::v3::{ListMatcher, list_matcher};
    let text = match string_matcher(value) {
        Some(matcher) => value_matcher::MatchPattern::StringMatch(matcher),
        None => value_matcher::MatchPattern::PresentMatch(true),
    };
    let text = ValueMatcher {
        match_pattern: Some(text),
    };
    let member = list_matcher::MatchPattern::OneOf(Box::new(text.clone()));
    let list = ListMatcher {
        match_pattern: Some(member),
    };
    let list = ValueMatcher {
        match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(list))),
    };
    let either = OrMatcher {
        value_matchers: vec![text, list],
    };
    let path = std::iter::once("payload".to_owned()).chain(path);
    MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: path
            .map(|key| PathSegment {
                segment: Some(Segment::Key(key)),
            })
            .collect(),
        value: Some(ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::OrMatch(either)),
        }),
        invert: is_inverted,
    }
}
