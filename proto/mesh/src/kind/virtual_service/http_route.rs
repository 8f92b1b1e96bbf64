//! Routes for HTTP: what is done with a request.

use proto::istio::networking::v1alpha3::http_body::Specifier;
use proto::istio::networking::v1alpha3::http_redirect::RedirectPort;
use proto::istio::networking::v1alpha3::string_match::MatchType;
use proto::istio::networking::v1alpha3::{
    CorsPolicy, HttpDirectResponse, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, Percent,
    StringMatch,
};

use super::{fault, http_match};
use crate::finding::Report;
use crate::kind::{destination, duration, header};
use crate::{port, re2};

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE",
];

/// Conditions for a retry; HTTP status codes are others.
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

const KIB: usize = 1024;

/// Reports what is wrong with a route.
pub(super) fn check(route: &HttpRoute, is_delegate: bool, report: &mut Report) {
    check_what_is_done(route, is_delegate, report);
    report.each("match", &route.r#match, http_match::check);
    header::check_headers(route.headers.as_ref(), report);
    if let Some(policy) = &route.cors_policy {
        report.at("corsPolicy", |report| check_cors(policy, report));
    }
    if let Some(fault) = &route.fault {
        report.at("fault", |report| fault::check(fault, report));
    }
    check_mirrors(route, report);
    if let Some(redirect) = &route.redirect {
        report.at("redirect", |report| check_redirect(redirect, report));
    }
    if let Some(response) = &route.direct_response {
        report.at("directResponse", |report| {
            check_direct_response(response, report);
        });
    }
    if let Some(retries) = &route.retries {
        report.at("retries", |report| check_retries(retries, report));
    }
    if let Some(rewrite) = &route.rewrite {
        report.at("rewrite", |report| check_rewrite(rewrite, report));
    }
    check_authority_is_set_once(route, report);
    check_destinations(route, report);
    if let Some(timeout) = &route.timeout {
        report.require_at("timeout", duration::check(timeout));
    }
}

/// A route does one thing: forward, redirect, answer or delegate.
fn check_what_is_done(route: &HttpRoute, is_delegate: bool, report: &mut Report) {
    if route.delegate.is_some() && !is_delegate {
        for (field, is_given) in [
            ("redirect", route.redirect.is_some()),
            ("route", !route.route.is_empty()),
        ] {
            if is_given {
                report.error_at(
                    field,
                    format!("a route that delegates cannot have {field}: the delegate has it"),
                );
            }
        }
        return;
    }
    if route.delegate.is_some() {
        report.error_at(
            "delegate",
            "a delegate cannot delegate further: write the route here",
        );
    }
    let answer = if route.redirect.is_some() {
        "redirect"
    } else if route.direct_response.is_some() {
        "directResponse"
    } else {
        if route.route.is_empty() {
            report.error("the route does nothing: give route, redirect or directResponse");
        }
        return;
    };
    for (field, is_given) in [
        ("route", !route.route.is_empty()),
        ("fault", route.fault.is_some()),
        ("rewrite", route.rewrite.is_some()),
        (
            "directResponse",
            answer == "redirect" && route.direct_response.is_some(),
        ),
    ] {
        if is_given {
            report.error_at(
                field,
                format!("a route with {answer} cannot have {field}: nothing is forwarded"),
            );
        }
    }
}

fn check_cors(policy: &CorsPolicy, report: &mut Report) {
    report.each(
        "allowOrigins",
        &policy.allow_origins,
        |report, origin: &StringMatch| {
            let text = match &origin.match_type {
                Some(MatchType::Exact(text) | MatchType::Prefix(text) | MatchType::Regex(text)) => {
                    text.as_str()
                }
                None => "",
            };
            if text.is_empty() {
                report.error("the origin is empty: give exact, prefix or regex");
            } else {
                http_match::check_expression(origin, report);
            }
        },
    );
    report.each(
        "allowMethods",
        &policy.allow_methods,
        |report, method: &String| {
            if !METHODS.contains(&method.as_str()) {
                report.error(format!(
                    "{method:?} is no HTTP method: give one of {}",
                    METHODS.join(", ")
                ));
            }
        },
    );
    for (field, names) in [
        ("allowHeaders", &policy.allow_headers),
        ("exposeHeaders", &policy.expose_headers),
    ] {
        report.each(field, names, |report, name| {
            report.require(header::check_cors_name(name));
        });
    }
    if let Some(max_age) = &policy.max_age {
        report.require_at("maxAge", duration::check(max_age));
        if max_age.nanos > 0 {
            report.error_at("maxAge", "the age must be a whole number of seconds");
        }
    }
}

fn check_mirrors(route: &HttpRoute, report: &mut Report) {
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        report.error_at("mirror", "give either mirror or mirrors, not both");
    }
    if let Some(percent) = mirror_percent(route) {
        report.at("mirrorPercent", |report| {
            report.warning("mirrorPercent is the old form: use mirrorPercentage");
            if percent > 100 {
                report.error(format!("the percentage {percent} is not in 0..=100"));
            }
        });
    }
    check_mirror_percentage("mirrorPercentage", route.mirror_percentage.as_ref(), report);
    if let Some(mirror) = &route.mirror {
        report.at("mirror", |report| destination::check(mirror, report));
    }
    report.each("mirrors", &route.mirrors, |report, mirror| {
        match &mirror.destination {
            Some(destination) => report.at("destination", |report| {
                destination::check(destination, report);
            }),
            None => report.error_at("destination", "the destination is missing"),
        }
        check_mirror_percentage("percentage", mirror.percentage.as_ref(), report);
    });
}

#[allow(deprecated, reason = "the old field is still read")]
fn mirror_percent(route: &HttpRoute) -> Option<u32> {
    route.mirror_percent
}

fn check_mirror_percentage(field: &str, percentage: Option<&Percent>, report: &mut Report) {
    if let Some(Percent { value }) = percentage
        && !(0.0..=100.0).contains(value)
    {
        report.error_at(field, format!("the percentage {value} is not in 0..=100"));
    }
}

fn check_redirect(redirect: &HttpRedirect, report: &mut Report) {
    if redirect.uri.is_empty()
        && redirect.authority.is_empty()
        && redirect.scheme.is_empty()
        && redirect.prefix_rewrite.is_empty()
        && redirect.redirect_port.is_none()
    {
        report.error(
            "the redirect leads nowhere: give uri, authority, scheme, port or prefixRewrite",
        );
        return;
    }
    if redirect.redirect_code != 0 && !(300..=399).contains(&redirect.redirect_code) {
        report.error_at(
            "redirectCode",
            format!("the code {} is not in 300..=399", redirect.redirect_code),
        );
    }
    if !["", "http", "https"].contains(&redirect.scheme.as_str()) {
        report.error_at(
            "scheme",
            format!(
                "{:?} is no scheme for a redirect: give http or https",
                redirect.scheme
            ),
        );
    }
    if let Some(RedirectPort::Port(number)) = redirect.redirect_port
        && number > 0
    {
        report.require_at("port", port::check_number(number));
    }
}

fn check_direct_response(response: &HttpDirectResponse, report: &mut Report) {
    let size = match response
        .body
        .as_ref()
        .and_then(|body| body.specifier.as_ref())
    {
        Some(Specifier::String(text)) => text.len(),
        Some(Specifier::Bytes(bytes)) => bytes.len(),
        None => 0,
    };
    if size > KIB * KIB {
        report.error_at(
            "body",
            format!("the body has {size} bytes; at most 1 MiB is allowed"),
        );
    } else if size > 100 * KIB {
        report.warning_at(
            "body",
            format!("the body has {size} bytes; every proxy keeps a copy of it"),
        );
    }
    report.require_at("status", fault::check_status(i64::from(response.status)));
}

fn check_retries(retries: &HttpRetry, report: &mut Report) {
    if retries.attempts < 0 {
        report.error_at(
            "attempts",
            format!("the number of attempts {} is negative", retries.attempts),
        );
    }
    let configured = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some()
        || retries.retry_ignore_previous_hosts.is_some()
        || retries.backoff.is_some();
    if retries.attempts == 0 && configured {
        report.error(
            "attempts is 0, which switches retries off: give attempts, or leave the rest out",
        );
    }
    for (field, value) in [
        ("perTryTimeout", &retries.per_try_timeout),
        ("backoff", &retries.backoff),
    ] {
        if let Some(value) = value {
            report.require_at(field, duration::check(value));
        }
    }
    if retries.retry_on.is_empty() {
        return;
    }
    for condition in retries.retry_on.split(',') {
        if !RETRY_CONDITIONS.contains(&condition) && !is_known_status(condition) {
            report.error_at(
                "retryOn",
                format!("{condition:?} is neither a retry condition nor an HTTP status"),
            );
        }
    }
}

/// True for a status code that HTTP names.
fn is_known_status(text: &str) -> bool {
    let Ok(status) = text.parse::<u16>() else {
        return false;
    };
    matches!(
        status,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508 | 510 | 511
    )
}

fn check_rewrite(rewrite: &HttpRewrite, report: &mut Report) {
    if !rewrite.uri.is_empty() && rewrite.uri_regex_rewrite.is_some() {
        report.error("give either uri or uriRegexRewrite, not both");
        return;
    }
    let Some(expression) = &rewrite.uri_regex_rewrite else {
        if rewrite.uri.is_empty() && rewrite.authority.is_empty() {
            report.error("the rewrite changes nothing: give uri, uriRegexRewrite or authority");
        }
        return;
    };
    report.at("uriRegexRewrite", |report| {
        if expression.r#match.is_empty() || expression.rewrite.is_empty() {
            report.error("give both match and rewrite");
        } else {
            report.require_at("match", re2::check(&expression.r#match));
        }
    });
}

/// The authority can be set by the rewrite or by a header, but only once.
fn check_authority_is_set_once(route: &HttpRoute, report: &mut Report) {
    let rewritten = route
        .rewrite
        .as_ref()
        .is_some_and(|rewrite| !rewrite.authority.is_empty());
    let operations = route
        .headers
        .as_ref()
        .and_then(|headers| headers.request.as_ref());
    let by_header = operations.map_or(0, |request| {
        let set = request.set.iter().chain(&request.add);
        set.filter(|(name, value)| header::is_authority(name) && !value.is_empty())
            .count()
    });
    if usize::from(rewritten) + by_header > 1 {
        report.error(
            "the authority is set more than once: set it in rewrite.authority or in one header",
        );
    }
}

fn check_destinations(route: &HttpRoute, report: &mut Report) {
    report.each("route", &route.route, |report, target| {
        match &target.destination {
            Some(destination) => report.at("destination", |report| {
                destination::check(destination, report);
            }),
            None => report.error_at("destination", "the destination is missing"),
        }
        header::check_headers(target.headers.as_ref(), report);
        report.require_at("weight", destination::check_weight(target.weight));
    });
    destination::check_total_weight(route.route.iter().map(|target| target.weight), report);
}
