//! Redirects that the proxy follows itself.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use serde_json::{Value, json};

use crate::http::testing::{Proxy, Upstream, on_worker};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn moved(status: &str, location: &str) -> String {
    format!(
        "HTTP/1.1 {status} Found\r\nlocation: {location}\r\nx-copied: yes\r\ncontent-length: 0\r\n\r\n"
    )
}

fn routes(policy: Value) -> Value {
    json!([
        {"match": {"prefix": "/new"}, "name": "new", "route": {"cluster": "n"}},
        {"match": {"prefix": "/"}, "name": "old",
            "route": {"cluster": "c", "internal_redirect_policy": policy}}])
}

#[test]
fn a_redirect_is_followed_with_the_body() {
    on_worker(async {
        let redirect = moved("307", "http://new.example/new?x=1");
        let mut old = Upstream::start(&[&redirect]).await;
        let mut new = Upstream::start(&[OK]).await;
        let policy =
            json!({"redirect_response_codes": [307], "response_headers_to_copy": ["x-copied"]});
        let clusters = [old.cluster("c"), new.cluster("n")];
        let proxy = Proxy::with_routes(routes(policy), &clusters).await;
        let response = proxy
            .send("POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        assert!(old.request().await.ends_with("hello"));
        let request = new.request().await;
        assert!(
            request.starts_with("POST /new?x=1 HTTP/1.1\r\nhost: new.example\r\n"),
            "{request}"
        );
        assert!(
            request.contains("x-envoy-original-url: http://h/a\r\n"),
            "{request}"
        );
        assert!(request.contains("x-copied: yes\r\n"), "{request}");
        assert!(request.ends_with("hello"), "{request}");
        assert_eq!(
            proxy.stat("cluster.c.upstream_internal_redirect_succeeded_total"),
            1
        );
        assert_eq!(proxy.stat("http.test.downstream_rq_total"), 2);
        assert_eq!(proxy.stat("http.test.downstream_rq_active"), 0);
    });
}

#[test]
fn see_other_becomes_a_get() {
    on_worker(async {
        let redirect = moved("303", "http://h/new");
        let old = Upstream::start(&[&redirect]).await;
        let mut new = Upstream::start(&[OK]).await;
        let policy = json!({"redirect_response_codes": [303]});
        let clusters = [old.cluster("c"), new.cluster("n")];
        let proxy = Proxy::with_routes(routes(policy), &clusters).await;
        let response = proxy
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        let request = new.request().await;
        assert!(request.starts_with("GET /new HTTP/1.1\r\n"), "{request}");
        assert!(
            !request.contains("hello") && !request.contains("content-length"),
            "{request}"
        );
    });
}

#[test]
fn what_is_not_to_be_followed_goes_to_the_client() {
    let cases = [
        (json!({}), "http://h/elsewhere", "too_many_redirects", true),
        (json!({}), "https://h/new", "unsafe_scheme", false),
        (json!({}), "/new", "bad_location", false),
        (
            json!({"predicates": [{"name": "p", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig"}}],
                "max_internal_redirects": 5}),
            "http://h/again",
            "predicate",
            true,
        ),
    ];
    for (policy, location, why, is_followed_once) in cases {
        on_worker(async move {
            let redirect = moved("302", location);
            let old = Upstream::start(&[&redirect]).await;
            let clusters = [old.cluster("c"), old.cluster("n")];
            let proxy = Proxy::with_routes(routes(policy), &clusters).await;
            let response = proxy.get("/", "").await;
            assert!(response.starts_with("HTTP/1.1 302 "), "{why} {response}");
            let counter = format!("http.test.passthrough_internal_redirect_{why}");
            assert_eq!(proxy.stat(&counter), 1, "{why}");
            let followed = proxy.stat("cluster.c.upstream_internal_redirect_succeeded_total");
            assert_eq!(followed, u64::from(is_followed_once), "{why}");
        });
    }
}
