//! Tables of routes and requests: matching, choosing, rewriting, redirecting, retrying.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "json! literals and tables read best in place"
)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::stream_info::testing::{info, request};

use super::*;

fn table(config: Value) -> WorkerTable {
    Rc::new(Arc::new(try_table(config).unwrap()))
}

fn try_table(config: Value) -> Result<RouteTable, Invalid> {
    RouteTable::try_from(proto::json::from_value::<wire::RouteConfiguration>(&config).unwrap())
}

/// A table of one virtual host for every domain.
fn routes(routes: Value) -> WorkerTable {
    table(
        json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}),
    )
}

fn select(table: &WorkerTable, headers: &RequestHeaders) -> Option<SelectedRoute> {
    match RouteTable::select(table, headers, &info()) {
        Selection::Route(route) => Some(route),
        Selection::NeedsTls | Selection::None => None,
    }
}

/// The cluster a request goes to, or `-`.
fn cluster(table: &WorkerTable, headers: &RequestHeaders) -> String {
    select(table, headers)
        .and_then(|route| route.cluster().map(ToString::to_string))
        .unwrap_or_else(|| "-".to_owned())
}

fn finalized(table: &WorkerTable, mut headers: RequestHeaders) -> RequestHeaders {
    let route = select(table, &headers).unwrap();
    let RouteKind::Forward(action) = &route.route().kind else {
        panic!("not a forwarding route");
    };
    let mut info = info();
    info.route = Some(route.clone());
    route.finalize_request(action, &mut headers, &info, true);
    headers
}

#[test]
fn domains_match_by_precedence() {
    let host = |name: &str, domains: &[&str]| json!({"name": name, "domains": domains, "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]});
    let table = table(json!({"name": "r", "virtual_hosts": [
        host("any", &["*"]),
        host("exact", &["www.example.com", "www.example.com:8080"]),
        host("suffix", &["*.example.com"]),
        host("long-suffix", &["*.foo.example.com", "*-bar.example.com"]),
        host("prefix", &["www.*"]),
        host("long-prefix", &["www.example.*"]),
    ]}));
    for (host, want) in [
        ("www.example.com", "exact"),
        ("WWW.Example.COM", "exact"),
        ("www.example.com:8080", "exact"),
        ("www.example.com:9090", "long-prefix"),
        ("a.example.com", "suffix"),
        ("a.foo.example.com", "long-suffix"),
        ("x-bar.example.com", "long-suffix"),
        ("-bar.example.com", "suffix"),
        (".example.com", "any"),
        ("www.other.org", "prefix"),
        ("www.example.org", "long-prefix"),
        ("www.", "any"),
        ("elsewhere", "any"),
        ("", "any"),
    ] {
        assert_eq!(cluster(&table, &request(host, "/", &[])), want, "{host}");
    }
}

#[test]
fn ports_are_ignored_when_asked() {
    let config = json!({"name": "r", "ignore_port_in_host_matching": true, "virtual_hosts": [
        {"name": "a", "domains": ["a", "[::1]"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]});
    let table = table(config);
    for host in ["a:80", "a", "[::1]:80", "[::1]"] {
        assert_eq!(cluster(&table, &request(host, "/", &[])), "c", "{host}");
    }
    assert_eq!(cluster(&table, &request("a:x", "/", &[])), "-");
}

#[test]
fn paths_match_as_configured() {
    let cases = [
        (json!({"prefix": "/a"}), "/ab?x", true),
        (json!({"prefix": "/a"}), "/b", false),
        (
            json!({"prefix": "/A", "case_sensitive": false}),
            "/ab",
            true,
        ),
        (json!({"path": "/a"}), "/a?x=1", true),
        (json!({"path": "/a"}), "/a/", false),
        (json!({"path": "/A", "case_sensitive": false}), "/a", true),
        (json!({"safe_regex": {"regex": "/b[io]t"}}), "/bit?x", true),
        (json!({"safe_regex": {"regex": "/b[io]t"}}), "/bite", false),
        (json!({"path_separated_prefix": "/api"}), "/api", true),
        (json!({"path_separated_prefix": "/api"}), "/api/v1", true),
        (json!({"path_separated_prefix": "/api"}), "/apiary", false),
        (json!({"connect_matcher": {}}), "/", false),
        (
            json!({"prefix": "/", "query_parameters": [{"name": "k", "string_match": {"exact": "a b"}}]}),
            "/?k=a%20b",
            true,
        ),
        (
            json!({"prefix": "/", "query_parameters": [{"name": "k"}]}),
            "/?x&k",
            true,
        ),
        (
            json!({"prefix": "/", "query_parameters": [{"name": "k", "present_match": false}]}),
            "/?k=1",
            false,
        ),
        (json!({"prefix": "/", "grpc": {}}), "/", false),
        (
            json!({"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 0}}}),
            "/",
            false,
        ),
    ];
    for (route_match, path, want) in cases {
        let table = routes(json!([{"match": route_match, "route": {"cluster": "c"}}]));
        assert_eq!(
            cluster(&table, &request("h", path, &[])) == "c",
            want,
            "{route_match} {path}"
        );
    }
}

#[test]
fn headers_and_cookies_select_routes() {
    let table = routes(json!([
        {"match": {"prefix": "/", "headers": [{"name": "end-user", "string_match": {"exact": "jason"}}]},
         "route": {"cluster": "v2"}},
        {"match": {"prefix": "/", "cookies": [{"name": "user", "string_match": {"prefix": "j"}}]},
         "route": {"cluster": "cookie"}},
        {"match": {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
         "route": {"cluster": "post"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "v1"}},
    ]));
    assert_eq!(
        cluster(&table, &request("h", "/", &[("end-user", "jason")])),
        "v2"
    );
    assert_eq!(
        cluster(&table, &request("h", "/", &[("cookie", "a=b; user=joe")])),
        "cookie"
    );
    let mut post = request("h", "/", &[]);
    post.method = http::Method::POST;
    assert_eq!(cluster(&table, &post), "post");
    assert_eq!(cluster(&table, &request("h", "/", &[])), "v1");
}

#[test]
fn weighted_route_splits_by_cluster_weight() {
    let table = routes(
        json!([{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [
        {"name": "a", "weight": 75}, {"name": "b", "weight": 25}, {"name": "never", "weight": 0}]}}}]),
    );
    let mut counts = HashMap::<String, u32>::new();
    for _ in 0..4000 {
        *counts
            .entry(cluster(&table, &request("h", "/", &[])))
            .or_default() += 1;
    }
    assert!((2800..3200).contains(&counts["a"]), "{counts:?}");
    assert_eq!(counts["a"] + counts["b"], 4000);
}

#[test]
fn cluster_header_names_the_cluster() {
    let table = routes(json!([{"match": {"prefix": "/"}, "route": {"cluster_header": "x-to"}}]));
    assert_eq!(cluster(&table, &request("h", "/", &[("x-to", "c9")])), "c9");
    assert_eq!(cluster(&table, &request("h", "/", &[])), "-");
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let cases = [
        (
            json!({"prefix": "/api"}),
            json!({"prefix_rewrite": "/v1"}),
            "/api/x?y=1",
            "/v1/x?y=1",
        ),
        (
            json!({"prefix": "/api/"}),
            json!({"prefix_rewrite": "/"}),
            "/api/x",
            "/x",
        ),
        (
            json!({"path": "/a"}),
            json!({"prefix_rewrite": "/b"}),
            "/a?q",
            "/b?q",
        ),
        (
            json!({"path_separated_prefix": "/api"}),
            json!({"prefix_rewrite": "/v1"}),
            "/api",
            "/v1",
        ),
        (
            json!({"prefix": "/"}),
            json!({"regex_rewrite": {"pattern": {"regex": "^/service/([^/]+)(/.*)$"}, "substitution": "\\2/instance/\\1"}}),
            "/service/foo/v1/api?a=b",
            "/v1/api/instance/foo?a=b",
        ),
    ];
    for (route_match, rewrite, path, want) in cases {
        let mut action = json!({"cluster": "c"});
        action
            .as_object_mut()
            .unwrap()
            .extend(rewrite.as_object().unwrap().clone());
        let table = routes(json!([{"match": route_match, "route": action}]));
        let headers = finalized(&table, request("h", path, &[]));
        assert_eq!(headers.path.as_str(), want);
        assert_eq!(headers.map["x-envoy-original-path"], path);
    }
    let table = routes(json!([{"match": {"prefix": "/"}, "route": {
        "cluster": "c", "host_rewrite_literal": "other", "append_x_forwarded_host": true}}]));
    let headers = finalized(&table, request("h:80", "/", &[]));
    assert_eq!(headers.host(), "other");
    assert_eq!(headers.map["x-forwarded-host"], "h:80");
}

#[test]
fn header_changes_apply_from_the_most_specific_level_outwards() {
    let add = |value: &str, action: &str| json!([{"header": {"key": "x-level", "value": value}, "append_action": action}]);
    let config = |reversed: bool| {
        json!({"name": "r", "most_specific_header_mutations_wins": reversed,
            "request_headers_to_add": add("table", "OVERWRITE_IF_EXISTS_OR_ADD"),
            "virtual_hosts": [{"name": "all", "domains": ["*"],
                "request_headers_to_add": [
                    {"header": {"key": "x-path", "value": "%REQ(:PATH)% %PROTOCOL%"}},
                    {"header": {"key": "x-none", "value": "%REQ(none)%"}},
                    {"header": {"key": "x-kept", "value": ""}, "keep_empty_value": true}],
                "request_headers_to_remove": ["x-gone"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c", "prefix_rewrite": "/z"},
                    "request_headers_to_add": add("route", "OVERWRITE_IF_EXISTS_OR_ADD"),
                    "response_headers_to_add": add("route", "ADD_IF_ABSENT")}]}]})
    };
    let headers = finalized(
        &table(config(false)),
        request("h", "/a", &[("x-gone", "1")]),
    );
    assert_eq!(headers.map["x-level"], "table");
    assert_eq!(headers.map["x-path"], "/a HTTP/1.1");
    assert!(!headers.map.contains_key("x-none") && !headers.map.contains_key("x-gone"));
    assert_eq!(headers.map["x-kept"], "");
    let headers = finalized(&table(config(true)), request("h", "/a", &[]));
    assert_eq!(headers.map["x-level"], "route");

    let table = table(config(false));
    let route = select(&table, &request("h", "/", &[])).unwrap();
    let mut response = ResponseHeaders {
        status: StatusCode::OK,
        map: http::HeaderMap::new(),
    };
    route.finalize_response(&mut response, None, &info());
    assert_eq!(response.map["x-level"], "route");
}

#[test]
fn redirects_build_the_location() {
    let cases = [
        (
            json!({"prefix": "/"}),
            json!({"https_redirect": true}),
            "h:80",
            "/a?b",
            "https://h/a?b",
            301,
        ),
        (
            json!({"prefix": "/"}),
            json!({"https_redirect": true}),
            "h:8080",
            "/",
            "https://h:8080/",
            301,
        ),
        (
            json!({"prefix": "/"}),
            json!({"host_redirect": "x", "response_code": "FOUND"}),
            "h",
            "/a?b",
            "http://x/a?b",
            302,
        ),
        (
            json!({"prefix": "/"}),
            json!({"path_redirect": "/n", "response_code": "SEE_OTHER"}),
            "h",
            "/a?b",
            "http://h/n?b",
            303,
        ),
        (
            json!({"prefix": "/"}),
            json!({"path_redirect": "/n?c"}),
            "h",
            "/a?b",
            "http://h/n?c",
            301,
        ),
        (
            json!({"prefix": "/"}),
            json!({"path_redirect": "/n", "strip_query": true}),
            "h",
            "/a?b",
            "http://h/n",
            301,
        ),
        (
            json!({"prefix": "/a"}),
            json!({"prefix_rewrite": "/b", "response_code": "PERMANENT_REDIRECT"}),
            "h",
            "/a/c?d",
            "http://h/b/c?d",
            308,
        ),
        (
            json!({"prefix": "/"}),
            json!({"port_redirect": 8443, "scheme_redirect": "https"}),
            "h:80",
            "/",
            "https://h:8443/",
            301,
        ),
        (
            json!({"prefix": "/"}),
            json!({"strip_query": true, "response_code": "TEMPORARY_REDIRECT"}),
            "h",
            "/a?b",
            "http://h/a",
            307,
        ),
    ];
    for (route_match, redirect, host, path, want, status) in cases {
        let table = routes(json!([{"match": route_match, "redirect": redirect}]));
        let headers = request(host, path, &[]);
        let route = select(&table, &headers).unwrap();
        let RouteKind::Redirect(redirect) = &route.route().kind else {
            panic!("not a redirect");
        };
        assert_eq!(redirect.location(route.route_match(), &headers), want);
        assert_eq!(redirect.status.as_u16(), status);
    }
}

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
        let timeouts = action
            .timeouts
            .of_request(&mut headers, route.retry_policy(), true);
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
    assert_eq!(
        of("/grpc", &headers),
        (Some(15_000), None, Some(3000), text("15000"))
    );
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
        let policy = policy(json!({"retry_on": on, "retriable_status_codes": [418]}));
        let mut state = RetryState::new(Some(&policy), &mut request("h", "/", &[])).unwrap();
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
    let mut state = RetryState::new(None, &mut headers).unwrap();
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
    assert!(RetryState::new(None, &mut request("h", "/", &[])).is_none());
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

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let one = |route: Value| json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]});
    let cases = [
        (
            one(json!({"match": {}, "route": {"cluster": "c"}})),
            "virtual_hosts[0].routes[0].match: a path specifier is needed",
        ),
        (
            one(json!({"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}})),
            "virtual_hosts[0].routes[0].match.safe_regex: invalid regex",
        ),
        (
            one(json!({"match": {"prefix": "/"}})),
            "virtual_hosts[0].routes[0]: an action is needed",
        ),
        (
            one(
                json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}}),
            ),
            "virtual_hosts[0].routes[0].route.weighted_clusters: the sum of the weights",
        ),
        (
            one(json!({"match": {"prefix": "/"}, "filter_action": {}})),
            "virtual_hosts[0].routes[0]: filter_action is not supported",
        ),
        (
            one(
                json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [{"header": {"key": ":path", "value": "x"}}]}),
            ),
            "virtual_hosts[0].routes[0].request_headers.add[0].header.key: :-prefixed",
        ),
        (
            one(json!({"match": {"prefix": "/"}, "direct_response": {"status": 20}})),
            "virtual_hosts[0].routes[0].direct_response.status: status 20",
        ),
        (
            json!({"name": "r", "virtual_hosts": [
            {"name": "a", "domains": ["x"], "routes": []}, {"name": "b", "domains": ["X"], "routes": []}]}),
            "virtual_hosts[1].domains[0]: only unique values for domains are permitted; duplicate entry of domain x in route r",
        ),
        (
            json!({"name": "r", "virtual_hosts": [
            {"name": "a", "domains": ["*"], "routes": []}, {"name": "b", "domains": ["*"], "routes": []}]}),
            "virtual_hosts[1].domains[0]: only a single wildcard domain is permitted",
        ),
        (
            json!({"name": "r", "vhds": {}}),
            "vhds: VHDS is not supported",
        ),
    ];
    for (config, want) in cases {
        let error = try_table(config).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}\n  wanted {want}");
    }
}

proptest! {
    #[test]
    fn selecting_never_panics(host in "\\PC{0,20}", path in "/[!-~]{0,30}") {
        let table = table(json!({"name": "r", "ignore_port_in_host_matching": true, "virtual_hosts": [
            {"name": "a", "domains": ["*.x", "x.*", "x"], "routes": [
                {"match": {"path_separated_prefix": "/a", "query_parameters": [{"name": "q"}]}, "route": {"cluster": "c", "prefix_rewrite": "/b"}},
                {"match": {"prefix": "/", "case_sensitive": false}, "redirect": {"path_redirect": "/c"}}]},
            {"name": "b", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]}));
        if let (Ok(authority), Ok(path)) = (http::HeaderValue::from_str(&host), path.parse()) {
            let mut headers = request("h", "/", &[]);
            headers.authority = authority;
            headers.path = path;
            let route = select(&table, &headers);
            if let Some(route) = route && let RouteKind::Redirect(redirect) = &route.route().kind {
                redirect.location(route.route_match(), &headers);
            }
        }
    }
}
