//! Limits in the chain: local rate limits, buffered bodies, throttled responses; and filters that leave metadata.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::http::testing::{
    Proxy, Upstream, filter, manager, on_worker, proxy_with as proxy, with_filters,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn local_limit(more: Value) -> Value {
    let always = json!({"default_value": {"numerator": 100}});
    let mut config = json!({"stat_prefix": "lrl", "filter_enabled": always, "filter_enforced": always,
        "token_bucket": {"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "600s"}});
    let more = more.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(more);
    filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        config,
    )
}

#[test]
fn a_bucket_that_is_empty_refuses() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let limit = local_limit(json!({"enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            "response_headers_to_add": [{"header": {"key": "x-why", "value": "%REQ(:PATH)%"}}]}));
        let proxy = proxy(&[limit], json!({}), &upstream).await;
        for left in ["1", "0"] {
            let response = proxy.get("/", "").await;
            assert!(response.ends_with("ok"), "{response}");
            let remaining = format!("x-ratelimit-limit: 2\r\nx-ratelimit-remaining: {left}\r\n");
            assert!(response.contains(&remaining), "{response}");
        }
        let response = proxy.get("/p", "").await;
        assert!(
            response.starts_with("HTTP/1.1 429 Too Many Requests\r\n"),
            "{response}"
        );
        assert!(response.contains("x-why: /p\r\n"), "{response}");
        assert!(
            response.ends_with("\r\n\r\nlocal_rate_limited"),
            "{response}"
        );
        assert_eq!(proxy.stat("lrl.http_local_rate_limit.enforced"), 1);
        assert_eq!(proxy.stat("lrl.http_local_rate_limit.ok"), 2);
    });
}

#[test]
fn descriptors_have_buckets_of_their_own() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let one = json!({"max_tokens": 1, "fill_interval": "600s"});
        let limit = local_limit(json!({
            "token_bucket": {"max_tokens": 100, "fill_interval": "600s"},
            "descriptors": [
                {"entries": [{"key": "who", "value": "a"}], "token_bucket": one},
                {"entries": [{"key": "user", "value": ""}], "token_bucket": one}],
            "rate_limits": [
                {"actions": [{"request_headers": {"header_name": "x-who", "descriptor_key": "who"}}]},
                {"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}]}));
        let proxy = proxy(&[limit], json!({}), &upstream).await;
        let cases = [
            ("x-who: a\r\n", true),
            ("x-who: a\r\n", false),
            ("x-who: b\r\n", true),
            ("x-who: b\r\n", true),
            ("x-user: u1\r\n", true),
            ("x-user: u1\r\n", false),
            ("x-user: u2\r\n", true),
            ("", true),
        ];
        for (headers, passes) in cases {
            let response = proxy.get("/", headers).await;
            assert_eq!(response.ends_with("ok"), passes, "{headers} {response}");
        }
    });
}

#[test]
fn every_connection_has_its_own_bucket() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let limit = local_limit(json!({"local_rate_limit_per_downstream_connection": true}));
        let proxy = proxy(&[limit], json!({}), &upstream).await;
        for _ in 0..2 {
            let mut stream = proxy.connect().await;
            let mut passed = 0;
            for _ in 0..3 {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
                    .await
                    .unwrap();
                passed += usize::from(proxy.receive(&mut stream).await.ends_with("ok"));
            }
            assert_eq!(passed, 2);
        }
    });
}

#[test]
fn a_route_may_limit_more_strictly() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let always = json!({"default_value": {"numerator": 100}});
        let of_route = json!({"typed_per_filter_config": {"envoy.filters.http.local_ratelimit": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "of_route", "status": {"code": "ServiceUnavailable"},
            "filter_enabled": always, "filter_enforced": always,
            "token_bucket": {"max_tokens": 0, "fill_interval": "1s"}}}});
        let proxy = proxy(&[local_limit(json!({}))], of_route, &upstream).await;
        let response = proxy.get("/", "").await;
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert_eq!(proxy.stat("of_route.http_local_rate_limit.enforced"), 1);
    });
}

#[test]
fn a_body_is_waited_for_and_measured() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let buffer = filter(
            "buffer",
            "buffer.v3.Buffer",
            json!({"max_request_bytes": 10}),
        );
        let proxy = proxy(&[buffer], json!({}), &upstream).await;
        let chunked = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        let response = proxy
            .send(&format!("{chunked}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
            .await;
        assert!(response.ends_with("ok"), "{response}");
        let request = upstream.request().await;
        assert!(request.contains("content-length: 5\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\nabcde"), "{request}");
        let response = proxy
            .send(&format!("{chunked}b\r\nabcdefghijk\r\n0\r\n\r\n"))
            .await;
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
        assert!(
            response.ends_with("\r\n\r\nPayload Too Large"),
            "{response}"
        );
        assert_eq!(proxy.stat("http.test.downstream_rq_too_large"), 1);
    });
}

#[test]
fn a_buffered_body_survives_a_retry() {
    on_worker(async {
        let bad = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let mut upstream = Upstream::start(&[bad, OK]).await;
        let buffer = filter(
            "buffer",
            "buffer.v3.Buffer",
            json!({"max_request_bytes": 10}),
        );
        let retry = json!({"route": {"cluster": "c", "retry_policy": {"retry_on": "5xx",
            "retry_back_off": {"base_interval": "0.001s"}}}});
        let proxy = proxy(&[buffer], retry, &upstream).await;
        let response = proxy
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        for _ in 0..2 {
            assert!(upstream.request().await.ends_with("\r\n\r\nhello"));
        }
    });
}

#[test]
fn a_fault_slows_the_response_down() {
    on_worker(async {
        let body = "x".repeat(2048);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2048\r\n\r\n{body}");
        let upstream = Upstream::start(&[&answer]).await;
        let all = json!({"numerator": 100});
        let fault = filter(
            "fault",
            "fault.v3.HTTPFault",
            json!({"response_rate_limit": {"header_limit": {}, "percentage": all}}),
        );
        let proxy = proxy(&[fault], json!({}), &upstream).await;
        let start = Instant::now();
        let response = proxy
            .get("/", "x-envoy-fault-throughput-response: 8\r\n")
            .await;
        assert!(response.ends_with(&body));
        // 2 KiB at 8 KiB a second: five ticks, the first of them at once.
        assert!(start.elapsed() >= Duration::from_millis(190));
        assert_eq!(proxy.stat("http.test.fault.response_rl_injected"), 1);
    });
}

#[test]
fn metadata_is_left_by_headers_and_by_configuration() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let from_header = filter(
            "header_to_metadata",
            "header_to_metadata.v3.Config",
            json!({"request_rules": [
                {"header": "x-version", "remove": true,
                    "on_header_present": {"metadata_namespace": "lb", "key": "version"},
                    "on_header_missing": {"metadata_namespace": "lb", "key": "version", "value": "none"}},
                {"cookie": "user", "on_header_present": {"metadata_namespace": "lb", "key": "user",
                    "regex_value_rewrite": {"pattern": {"regex": "^u(.*)$"}, "substitution": "\\1"}}}]}),
        );
        let fixed = filter(
            "set_metadata",
            "set_metadata.v3.Config",
            json!({"metadata": [{"metadata_namespace": "fixed", "value": {"a": {"b": "c"}}}]}),
        );
        let mutation = filter(
            "header_mutation",
            "header_mutation.v3.HeaderMutation",
            json!({"mutations": {"request_mutations": [
                {"append": {"header": {"key": "x-seen",
                    "value": "%DYNAMIC_METADATA(lb:version)%/%DYNAMIC_METADATA(lb:user)%/%DYNAMIC_METADATA(fixed:a:b)%"}}},
                {"remove": "x-gone"},
                {"remove_on_match": {"key_matcher": {"prefix": "x-secret-"}}}],
                "response_mutations": [{"append": {"header": {"key": "x-done", "value": "yes"}}}]}}),
        );
        let proxy = Proxy::start(
            with_filters(
                manager(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}])),
                &[from_header, fixed, mutation],
            ),
            &[upstream.cluster("c")],
        )
        .await;
        let response = proxy
            .get(
                "/",
                "x-version: v2\r\ncookie: user=u77\r\nx-gone: 1\r\nx-secret-a: 1\r\n",
            )
            .await;
        assert!(response.contains("x-done: yes\r\n"), "{response}");
        let request = upstream.request().await;
        assert!(
            request.contains("x-seen: \"v2\"/\"77\"/\"c\"\r\n")
                || request.contains("x-seen: v2/77/c\r\n"),
            "{request}"
        );
        for gone in ["x-version", "x-gone", "x-secret-a"] {
            assert!(!request.contains(gone), "{request}");
        }
        proxy.get("/", "").await;
        let request = upstream.request().await;
        assert!(request.contains("none"), "{request}");
    });
}
