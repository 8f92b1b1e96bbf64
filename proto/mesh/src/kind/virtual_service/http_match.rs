//! Conditions of HTTP routes.

use proto::istio::networking::v1alpha3::{
    HttpMatchRequest, HttpRoute, StringMatch, string_match::MatchType,
};

use super::{check_gateway_names, check_match_port};
use crate::finding::Report;
use crate::kind::{header, selector};
use crate::labels::is_dns_label;
use crate::re2;

/// Claims of a JWT as if they were headers.
const CLAIMS: &str = "@request.auth.claims";

/// Reports what is wrong with one condition.
pub(super) fn check(report: &mut Report, request: &HttpMatchRequest) {
    report.entries("headers", &request.headers, |report, name, value| {
        check_header_name(name, report);
        check_string(value, report);
    });
    report.entries(
        "withoutHeaders",
        &request.without_headers,
        |report, name, value| {
            check_header_name(name, report);
            // QUIRK: `*` is no expression, but is taken for "present".
            if value.match_type != Some(MatchType::Regex("*".into())) {
                check_string(value, report);
            }
        },
    );
    report.entries("queryParams", &request.query_params, |report, _, value| {
        check_string(value, report);
    });
    for (field, value) in [
        ("scheme", &request.scheme),
        ("method", &request.method),
        ("authority", &request.authority),
    ] {
        if let Some(value) = value {
            report.at(field, |report| check_string(value, report));
        }
    }
    if let Some(uri) = &request.uri {
        report.at("uri", |report| check_expression(uri, report));
    }
    check_match_port(request.port, report);
    selector::check_assigned("sourceLabels", &request.source_labels, report);
    check_gateway_names(&request.gateways, report);
    if !request.source_namespace.is_empty() && !is_dns_label(&request.source_namespace) {
        report.error_at(
            "sourceNamespace",
            format!("{:?} is no namespace", request.source_namespace),
        );
    }
    if !request.stat_prefix.is_empty() && request.stat_prefix.chars().any(char::is_control) {
        report.error_at("statPrefix", "the prefix has control characters");
    }
}

/// Refuses claims of a JWT as conditions: sidecars cannot route by them.
pub(super) fn refuse_claims(route: &HttpRoute, report: &mut Report) {
    report.each("match", &route.r#match, |report, request| {
        for (field, map) in [("headers", &request.headers), ("withoutHeaders", &request.without_headers)] {
            report.entries(field, map, |report, name, _| {
                if is_claim(name) {
                    report.error("routing by the claims of a JWT works on gateways only: name a gateway in gateways, without mesh");
                }
            });
        }
    });
}

fn check_header_name(name: &str, report: &mut Report) {
    if is_claim(name) {
        return;
    }
    report.require(header::check_matched_name(name));
}

/// True for `@request.auth.claims.name` and `@request.auth.claims[name][nested]`.
fn is_claim(name: &str) -> bool {
    let Some(rest) = name
        .get(..CLAIMS.len())
        .filter(|start| start.eq_ignore_ascii_case(CLAIMS))
        .map(|_| &name[CLAIMS.len()..])
    else {
        return false;
    };
    match rest.as_bytes() {
        [b'.', ..] => rest.len() > 1,
        [b'[', .., b']'] => rest[1..rest.len() - 1]
            .split("][")
            .all(|part| !part.is_empty()),
        _ => false,
    }
}

/// A condition whose prefix must not be empty.
pub(super) fn check_string(condition: &StringMatch, report: &mut Report) {
    if condition.match_type == Some(MatchType::Prefix(String::new())) {
        report.error_at(
            "prefix",
            "the prefix is empty: leave the condition's value out to ask for presence only",
        );
    }
    check_expression(condition, report);
}

/// A condition whose expression must be one.
pub(super) fn check_expression(condition: &StringMatch, report: &mut Report) {
    if let Some(MatchType::Regex(expression)) = &condition.match_type {
        report.require_at("regex", re2::check(expression));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_have_a_name() {
        for name in [
            "@request.auth.claims.foo",
            "@request.auth.claims[foo]",
            "@request.auth.claims[a][b]",
        ] {
            assert!(is_claim(name), "{name}");
        }
        for name in [
            "",
            "foo",
            "@request.auth.claims",
            "@request.auth.claims.",
            "@request.auth.claims[]",
            "@request.auth.claimsfoo",
        ] {
            assert!(!is_claim(name), "{name}");
        }
    }
}
