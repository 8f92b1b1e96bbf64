//! What routes change: paths, hosts, headers, locations.

use http::StatusCode;
use serde_json::json;

use crate::http::headers::ResponseHeaders;
use crate::stream_info::testing::{info, request};

use super::*;

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
fn paths_are_rewritten_by_templates_and_formats() {
    let template = |kind: &str, field: &str, text: &str| {
        json!({"name": "t", "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.path.{kind}"), field: text}})
    };
    let matches = template(
        "match.uri_template.v3.UriTemplateMatchConfig",
        "path_template",
        "/user/{id}/{rest=**}",
    );
    let rewrite = |text: &str| {
        template(
            "rewrite.uri_template.v3.UriTemplateRewriteConfig",
            "path_template_rewrite",
            text,
        )
    };
    let table = routes(json!([
        {"match": {"path_match_policy": matches},
            "route": {"cluster": "c", "path_rewrite_policy": rewrite("/{rest}/by/{id}")}},
        {"match": {"prefix": "/"}, "route": {"cluster": "c", "path_rewrite": "/%REQ(x-to)%"}}]));
    let headers = finalized(&table, request("h", "/user/7/a/b?q=1", &[]));
    assert_eq!(headers.path, "/a/b/by/7?q=1");
    let headers = finalized(&table, request("h", "/else?q=1", &[("x-to", "there")]));
    assert_eq!(headers.path, "/there?q=1");
    let wrong = json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"path_match_policy": matches},
            "route": {"cluster": "c", "path_rewrite_policy": rewrite("/{nobody}")}}]}]});
    let error = try_table(wrong).unwrap_err().to_string();
    assert!(error.contains("no variable 'nobody'"), "{error}");
}
