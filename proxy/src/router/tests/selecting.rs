//! Which route a request gets, and which cluster.

use std::collections::HashMap;

use serde_json::json;

use crate::stream_info::testing::request;

use super::*;

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
            json!({"prefix": "/", "query_parameters": [{"name": "k", "string_match": {"exact": "a%20b"}}]}),
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
