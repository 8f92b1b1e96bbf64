//! Timeouts, retries, hashes, mirrors, TLS.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use crate::http::headers::RequestHeaders;
use crate::stream_info::testing::{info, request};

use super::*;

#[test]
fn timeouts_follow_route_and_headers() {
    let table = routes(json!([
        {"match": {"prefix": "/default"}, "route": {"cluster": "c"}},
        {"match": {"prefix": "/none"}, "route": {"cluster": "c", "timeout": "0s"}},
        {"match": {"prefix": "/try"}, "route": {"cluster": "c", "timeout": "2s",
            "retry_policy": {"retry_on": "5xx", "per_try_timeout": "0.5s"}}},
        {"match": {"prefix": "/grpc"}, "route": {"cluster": "c", "max_stream_duration": {"grpc_timeout_header_max": "3s"}}},
    ]));
    let of = |path: &str, headers: &[(&str, &str)]| {
        let mut headers = request("h", path, headers);
        let route = select(&table, &headers).unwrap();
        let RouteKind::Forward(action) = &route.route().kind else {
            panic!("not a forwarding route");
        };
        let timeouts = action.timeouts.of_request(
            &mut headers,
            route.retry_policy().map(AsRef::as_ref),
            true,
            true,
        );
        let expected = headers
            .map
            .get("x-envoy-expected-rq-timeout-ms")
            .map(|v| v.to_str().unwrap().to_owned());
        let millis = |limit: Option<std::time::Duration>| limit.map(|limit| limit.as_millis());
        (
            millis(timeouts.global),
            millis(timeouts.per_try),
            millis(timeouts.max_stream_duration),
            expected,
        )
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        of("/default", &[]),
        (Some(15_000), None, None, text("15000"))
    );
    assert_eq!(of("/none", &[]), (None, None, None, None));
    assert_eq!(of("/try", &[]), (Some(2000), Some(500), None, text("500")));
    let headers = [("x-envoy-upstream-rq-timeout-ms", "400")];
    assert_eq!(of("/try", &headers), (Some(400), None, None, text("400")));
    let headers = [
        ("content-type", "application/grpc"),
        ("grpc-timeout", "10S"),
    ];
    assert_eq!(of("/grpc", &headers), (None, None, Some(3000), None));
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", "1S")];
    assert_eq!(of("/grpc", &headers).2, Some(1000));
}

#[test]
fn retries_follow_their_conditions() {
    let policy = |value: Value| {
        RetryPolicy::try_from(&proto::json::from_value::<wire::RetryPolicy>(&value).unwrap())
            .unwrap()
    };
    let map = http::HeaderMap::new();
    let mut grpc = http::HeaderMap::new();
    grpc.insert("grpc-status", http::HeaderValue::from_static("14"));
    let status = |code: u16| Outcome::Headers(StatusCode::from_u16(code).unwrap(), &map);
    let cases = [
        ("5xx", status(500), true),
        ("5xx", status(404), false),
        ("5xx", Outcome::ConnectFailure, true),
        ("gateway-error", status(502), true),
        ("gateway-error", status(500), false),
        ("connect-failure", Outcome::ConnectFailure, true),
        (
            "connect-failure",
            Outcome::Reset { request_sent: true },
            false,
        ),
        ("reset", Outcome::Reset { request_sent: true }, true),
        (
            "reset-before-request",
            Outcome::Reset { request_sent: true },
            false,
        ),
        (
            "reset-before-request",
            Outcome::Reset {
                request_sent: false,
            },
            true,
        ),
        ("refused-stream", Outcome::RefusedStream, true),
        ("refused-stream", Outcome::ConnectFailure, false),
        ("retriable-4xx", status(409), true),
        ("retriable-4xx", status(400), false),
        ("retriable-status-codes", status(418), true),
        ("retriable-status-codes", status(419), false),
        ("unavailable", Outcome::Headers(StatusCode::OK, &grpc), true),
        (
            "cancelled,internal",
            Outcome::Headers(StatusCode::OK, &grpc),
            false,
        ),
        ("5xx,reset", Outcome::Overflow, false),
        ("5xx", Outcome::PerTryTimeout, true),
        ("connect-failure", Outcome::PerTryTimeout, false),
    ];
    for (on, outcome, want) in cases {
        let policy = Arc::new(policy(
            json!({"retry_on": on, "retriable_status_codes": [418]}),
        ));
        let mut state = RetryState::new(Some(&policy), &mut request("h", "/", &[]), true).unwrap();
        let decision = state.decide(outcome);
        assert_eq!(decision != RetryDecision::No, want, "{on} {outcome:?}");
        if want {
            assert_eq!(
                state.decide(outcome),
                RetryDecision::LimitExceeded,
                "one retry by default"
            );
        }
    }
    let mut headers = request(
        "h",
        "/",
        &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "2")],
    );
    let mut state = RetryState::new(None, &mut headers, true).unwrap();
    assert!(headers.map.is_empty(), "the headers are for us alone");
    let mut most = std::time::Duration::ZERO;
    for _ in 0..2 {
        let RetryDecision::After(wait) = state.decide(status(503)) else {
            panic!("a retry was due");
        };
        most = most.max(wait);
    }
    assert!(most < std::time::Duration::from_millis(50));
    assert_eq!(state.decide(status(503)), RetryDecision::LimitExceeded);
    assert!(RetryState::new(None, &mut request("h", "/", &[]), true).is_none());
}

#[test]
fn hashes_come_from_their_sources() {
    let table = routes(
        json!([{"match": {"prefix": "/"}, "route": {"cluster": "c", "hash_policy": [
        {"header": {"header_name": "x-user"}, "terminal": true},
        {"cookie": {"name": "session", "ttl": "60s", "path": "/p"}}]}}]),
    );
    let hash = |headers: &RequestHeaders| {
        let route = select(&table, headers).unwrap();
        let RouteKind::Forward(action) = &route.route().kind else {
            panic!("not a forwarding route");
        };
        HashPolicy::hash(&action.hash, headers, "10.0.0.1".parse().unwrap())
    };
    let (by_user, cookie) = hash(&request(
        "h",
        "/",
        &[("x-user", "a"), ("cookie", "session=1")],
    ));
    assert_eq!(by_user, Some(xxhash_rust::xxh64::xxh64(b"a", 0)));
    assert!(cookie.is_none(), "a terminal policy ends the search");
    let (by_cookie, cookie) = hash(&request("h", "/", &[("cookie", "session=\"1\"")]));
    assert_eq!(by_cookie, Some(xxhash_rust::xxh64::xxh64(b"1", 0)));
    assert!(cookie.is_none());
    let (made, cookie) = hash(&request("h", "/", &[]));
    let line = cookie.unwrap().0;
    assert!(
        made.is_some()
            && line.starts_with("session=\"")
            && line.ends_with("; Max-Age=60; Path=/p; HttpOnly"),
        "{line}"
    );
}

#[test]
fn mirrors_mark_the_host() {
    let table = routes(
        json!([{"match": {"prefix": "/"}, "route": {"cluster": "c", "request_mirror_policies": [
        {"cluster": "shadow", "runtime_fraction": {"default_value": {"numerator": 100}}}]}}]),
    );
    let mut headers = request("h:8080", "/", &[]);
    let route = select(&table, &headers).unwrap();
    let policy = &route.mirrors()[0];
    assert_eq!(policy.draw(&headers).as_deref(), Some("shadow"));
    policy.rewrite_host(&mut headers);
    assert_eq!(headers.host(), "h-shadow:8080");
}

#[test]
fn tls_can_be_required() {
    let table = table(
        json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "require_tls": "ALL",
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]}),
    );
    let plain = RouteTable::select(&table, &request("h", "/", &[]), &info());
    assert!(matches!(plain, Selection::NeedsTls));
    assert_eq!(
        cluster(
            &table,
            &request("h", "/", &[("x-forwarded-proto", "https")])
        ),
        "c"
    );
}
