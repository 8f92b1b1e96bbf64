//! Retries and mirrors.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use serde_json::{Value, json};

use crate::http::testing::{Proxy, Upstream, on_worker};

const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn route(retry: Value) -> Value {
    json!([{"match": {"prefix": "/"}, "route": {"cluster": "c", "retry_policy": retry}}])
}

#[test]
fn a_bad_answer_is_retried_with_the_body() {
    on_worker(async {
        let mut upstream = Upstream::start(&[BAD, "", OK]).await;
        let routes = route(
            json!({"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}),
        );
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("\r\n\r\nok"), "{response}");
        for _ in 0..3 {
            let request = upstream.request().await;
            assert!(request.ends_with("\r\n\r\nhello"), "{request}");
        }
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 2);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_success"), 1);
    });
}

#[test]
fn a_body_too_long_to_keep_is_not_sent_again() {
    on_worker(async {
        let upstream = Upstream::start(&[BAD, OK]).await;
        let mut routes = route(
            json!({"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}}),
        );
        routes[0]["per_request_buffer_limit_bytes"] = json!(4);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(
            response.starts_with("HTTP/1.1 503") && response.ends_with("bad"),
            "{response}"
        );
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 1);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 0);
        assert_eq!(proxy.stat("cluster.c.retry_or_shadow_abandoned"), 1);
    });
}

#[test]
fn the_last_answer_is_kept_when_retries_are_used_up() {
    on_worker(async {
        let upstream = Upstream::start(&[BAD]).await;
        let routes = route(
            json!({"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}}),
        );
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy.get("/", "").await;
        assert!(
            response.starts_with("HTTP/1.1 503") && response.ends_with("bad"),
            "{response}"
        );
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 1);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_limit_exceeded"), 1);
    });
}

#[test]
fn a_silent_attempt_is_given_up_and_retried() {
    on_worker(async {
        let upstream = Upstream::start(&["(silence)", OK]).await;
        let routes = route(
            json!({"retry_on": "5xx", "per_try_timeout": "2s", "retry_back_off": {"base_interval": "0.001s"}}),
        );
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy.get("/", "").await;
        assert!(response.ends_with("ok"), "{response}");
        assert_eq!(proxy.stat("cluster.c.upstream_rq_per_try_timeout"), 1);
    });
}

#[test]
fn a_late_attempt_goes_on_beside_the_next() {
    on_worker(async {
        let mut upstream = Upstream::start(&["(silence)", OK]).await;
        let mut routes = route(
            json!({"retry_on": "connect-failure", "per_try_timeout": "2s", "retry_back_off": {"base_interval": "0.001s"}}),
        );
        routes[0]["route"]["hedge_policy"] = json!({"hedge_on_per_try_timeout": true});
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        for _ in 0..2 {
            let request = upstream.request().await;
            assert!(request.ends_with("\r\n\r\nhello"), "{request}");
        }
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 1);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_active"), 0);
    });
}

#[test]
fn requests_are_mirrored_with_their_bodies() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let mut mirror = Upstream::start(&[BAD]).await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c", "request_mirror_policies": [{"cluster": "m"}]}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c"), mirror.cluster("m")]).await;
        let response = proxy
            .send("POST /m HTTP/1.1\r\nhost: h:80\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        let request = mirror.request().await;
        assert!(
            request.starts_with("POST /m HTTP/1.1\r\nhost: h-shadow:80\r\n"),
            "{request}"
        );
        assert!(request.ends_with("hello"), "{request}");
    });
}
