//! Filters in the chain.

use serde_json::json;

use crate::http::testing::{Upstream, filter, on_worker, proxy_with as proxy};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn rbac_denies_and_counts() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let rules = json!({"action": "DENY", "policies": {"ns[a] policy[b]": {
            "permissions": [{"url_path": {"path": {"prefix": "/secret"}}}], "principals": [{"any": true}]}}});
        let rbac = filter(
            "rbac",
            "rbac.v3.RBAC",
            json!({"rules": rules, "shadow_rules": rules, "shadow_rules_stat_prefix": "dry_"}),
        );
        let proxy = proxy(&[rbac], json!({}), &upstream).await;
        let response = proxy.get("/secret/x", "").await;
        assert!(
            response.starts_with("HTTP/1.1 403 Forbidden\r\n"),
            "{response}"
        );
        assert!(
            response.ends_with("\r\n\r\nRBAC: access denied"),
            "{response}"
        );
        assert!(proxy.get("/open", "").await.ends_with("ok"));
        assert_eq!(proxy.stat("http.test.rbac.denied"), 1);
        assert_eq!(proxy.stat("http.test.rbac.allowed"), 1);
        assert_eq!(proxy.stat("http.test.rbac.dry_shadow_denied"), 1);
    });
}

#[test]
fn a_route_can_switch_a_filter_off_or_configure_it() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let rbac = filter("rbac", "rbac.v3.RBAC", json!({"rules": {}}));
        let off = json!({"typed_per_filter_config": {"envoy.filters.http.rbac": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}});
        assert!(
            proxy(std::slice::from_ref(&rbac), off, &upstream)
                .await
                .get("/", "")
                .await
                .ends_with("ok")
        );
        let open = json!({"typed_per_filter_config": {"envoy.filters.http.rbac": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}}});
        assert!(
            proxy(std::slice::from_ref(&rbac), open, &upstream)
                .await
                .get("/", "")
                .await
                .ends_with("ok")
        );
        assert!(
            proxy(&[rbac], json!({}), &upstream)
                .await
                .get("/", "")
                .await
                .ends_with("RBAC: access denied")
        );
    });
}

#[test]
fn faults_delay_and_abort() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let all = json!({"numerator": 100});
        let fault = filter(
            "fault",
            "fault.v3.HTTPFault",
            json!({
            "abort": {"http_status": 555, "percentage": all}, "delay": {"fixed_delay": "0.05s", "percentage": all},
            "headers": [{"name": "x-fault", "present_match": true}]}),
        );
        let proxy = proxy(&[fault], json!({}), &upstream).await;
        let start = tokio::time::Instant::now();
        let response = proxy.get("/", "x-fault: 1\r\n").await;
        assert!(response.starts_with("HTTP/1.1 555 "), "{response}");
        assert!(
            response.ends_with("\r\n\r\nfault filter abort"),
            "{response}"
        );
        assert!(start.elapsed() >= std::time::Duration::from_millis(50));
        assert!(proxy.get("/", "").await.ends_with("ok"));
        assert_eq!(proxy.stat("http.test.fault.aborts_injected"), 1);
        assert_eq!(proxy.stat("http.test.fault.delays_injected"), 1);
        assert_eq!(proxy.stat("http.test.fault.active_faults"), 0);
    });
}

#[test]
fn cors_answers_preflights_and_marks_responses() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let cors = filter("cors", "cors.v3.Cors", json!({}));
        let policy = json!({"typed_per_filter_config": {"envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"suffix": ".good"}], "allow_methods": "GET,PUT", "max_age": "60",
            "expose_headers": "x-a", "allow_credentials": true}}});
        let proxy = proxy(&[cors], policy, &upstream).await;
        let preflight = "OPTIONS / HTTP/1.1\r\nhost: h\r\norigin: https://a.good\r\naccess-control-request-method: PUT\r\n\r\n";
        let response = proxy.send(preflight).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        for line in [
            "allow-origin: https://a.good",
            "allow-methods: GET,PUT",
            "max-age: 60",
            "allow-credentials: true",
        ] {
            assert!(
                response.contains(&format!("access-control-{line}\r\n")),
                "{line} in {response}"
            );
        }
        let response = proxy.get("/", "origin: https://b.good\r\n").await;
        assert!(
            response.contains("access-control-allow-origin: https://b.good\r\n"),
            "{response}"
        );
        assert!(
            response.contains("access-control-expose-headers: x-a\r\n") && response.ends_with("ok"),
            "{response}"
        );
        let response = proxy.get("/", "origin: https://b.bad\r\n").await;
        assert!(
            !response.contains("access-control") && response.ends_with("ok"),
            "{response}"
        );
    });
}

#[test]
fn health_checks_are_answered_here() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let check = filter(
            "health_check",
            "health_check.v3.HealthCheck",
            json!({"pass_through_mode": false,
            "headers": [{"name": ":path", "string_match": {"exact": "/healthz"}}]}),
        );
        let proxy = proxy(&[check], json!({}), &upstream).await;
        let response = proxy.get("/healthz", "").await;
        assert!(
            response.starts_with("HTTP/1.1 200 OK\r\n")
                && response.contains("x-envoy-upstream-healthchecked-cluster: cluster\r\n"),
            "{response}"
        );
        assert!(proxy.get("/", "").await.ends_with("ok"));
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 1);
    });
}
