//! Replies that the proxy makes itself: Envoy's statuses, bodies, flags.

use serde_json::{Value, json};

use crate::http::testing::{Proxy, Upstream, cluster, manager, on_worker};

/// A file access log of flags and details, and the way to read it.
fn logging(mut config: Value) -> (Value, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    config["access_log"] = json!([{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": path,
        "log_format": {"text_format_source": {"inline_string":
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_SENT%\n"}}}}]);
    (config, folder)
}

async fn logged(folder: &tempfile::TempDir) -> String {
    for _ in 0..3000 {
        let text = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        if !text.is_empty() {
            return text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    String::new()
}

/// What a route answers, and what is logged.
async fn reply(route: Value, clusters: &[Value], headers: &str) -> (String, String) {
    let mut with_match = json!({"match": {"prefix": "/a"}});
    with_match
        .as_object_mut()
        .unwrap()
        .extend(route.as_object().unwrap().clone());
    let (config, folder) = logging(manager(json!([with_match])));
    let proxy = Proxy::start(config, clusters).await;
    let response = proxy.get("/a?q", headers).await;
    (response, logged(&folder).await)
}

#[test]
fn without_a_route_404() {
    on_worker(async {
        let (config, folder) = logging(manager(json!([])));
        let proxy = Proxy::start(config, &[]).await;
        let response = proxy.get("/", "").await;
        assert!(
            response.starts_with("HTTP/1.1 404 Not Found\r\n"),
            "{response}"
        );
        assert!(
            response.contains("content-length: 0\r\n") && response.contains("server: envoy\r\n"),
            "{response}"
        );
        assert_eq!(logged(&folder).await, "404 NR route_not_found 0\n");
        assert_eq!(proxy.stat("http.test.no_route"), 1);
    });
}

#[test]
fn without_a_cluster_503() {
    on_worker(async {
        let (response, log) = reply(json!({"route": {"cluster": "nope"}}), &[], "").await;
        assert!(
            response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{response}"
        );
        assert_eq!(log, "503 NC cluster_not_found 0\n");
    });
}

#[test]
fn without_a_host_503() {
    on_worker(async {
        let empty =
            json!({"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c"}});
        let (response, log) = reply(json!({"route": {"cluster": "c"}}), &[empty], "").await;
        assert!(
            response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{response}"
        );
        assert!(
            response.contains("content-type: text/plain\r\n"),
            "{response}"
        );
        assert!(
            response.ends_with("\r\n\r\nno healthy upstream"),
            "{response}"
        );
        assert_eq!(log, "503 UH no_healthy_upstream 19\n");
    });
}

#[test]
fn a_refused_connection_is_told_in_envoys_words() {
    on_worker(async {
        // Bound by us, so by nobody else, but nobody listens.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let (response, log) = reply(
            json!({"route": {"cluster": "c"}}),
            &[cluster("c", address)],
            "",
        )
        .await;
        assert!(
            response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{response}"
        );
        let body = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
        assert!(response.ends_with(body), "{response}");
        assert!(log.starts_with("503 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_"), "{log}");
    });
}

#[test]
fn an_upstream_that_closes_is_a_503() {
    on_worker(async {
        let upstream = Upstream::start(&[""]).await;
        let (response, log) = reply(
            json!({"route": {"cluster": "c"}}),
            &[upstream.cluster("c")],
            "",
        )
        .await;
        assert!(
            response
                .ends_with("disconnect/reset before headers. reset reason: connection termination"),
            "{response}"
        );
        assert_eq!(
            log,
            "503 UC upstream_reset_before_response_started{connection_termination} 95\n"
        );
    });
}

#[test]
fn an_upstream_that_is_silent_is_a_504() {
    on_worker(async {
        let upstream = Upstream::start(&["(silence)"]).await;
        let route = json!({"route": {"cluster": "c", "timeout": "0.05s"}});
        let (response, log) = reply(route, &[upstream.cluster("c")], "").await;
        assert!(
            response.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"),
            "{response}"
        );
        assert!(
            response.ends_with("\r\n\r\nupstream request timeout"),
            "{response}"
        );
        assert_eq!(log, "504 UT response_timeout 24\n");
    });
}

#[test]
fn grpc_requests_get_grpc_statuses() {
    on_worker(async {
        let empty =
            json!({"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c"}});
        let grpc = "content-type: application/grpc\r\n";
        let (response, _) = reply(json!({"route": {"cluster": "c"}}), &[empty], grpc).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        for line in [
            "content-type: application/grpc\r\n",
            "grpc-status: 14\r\n",
            "grpc-message: no healthy upstream\r\n",
        ] {
            assert!(response.contains(line), "{response}");
        }
    });
}

#[test]
fn routes_answer_themselves() {
    on_worker(async {
        let direct = json!({"direct_response": {"status": 418, "body": {"inline_string": "tea"}},
            "response_headers_to_add": [{"header": {"key": "x-pot", "value": "%RESPONSE_CODE%"}}]});
        let (response, log) = reply(direct, &[], "").await;
        assert!(
            response.starts_with("HTTP/1.1 418 Unknown\r\n"),
            "{response}"
        );
        assert!(
            response.contains("x-pot: 0\r\n") && response.ends_with("\r\n\r\ntea"),
            "{response}"
        );
        assert_eq!(log, "418 - direct_response 3\n");
        let (response, _) = reply(json!({"redirect": {"https_redirect": true}}), &[], "").await;
        assert!(
            response.starts_with("HTTP/1.1 301 Moved Permanently\r\n"),
            "{response}"
        );
        assert!(
            response.contains("location: https://test/a?q\r\n"),
            "{response}"
        );
    });
}

#[test]
fn local_replies_can_be_mapped() {
    on_worker(async {
        let mut config = manager(json!([]));
        config["local_reply_config"] = json!({
            "mappers": [{"filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 404, "runtime_key": "x"}}}},
                "status_code": 410, "body": {"inline_string": "gone"},
                "headers_to_add": [{"header": {"key": "x-m", "value": "%REQ(:path)%"}}]}],
            "body_format": {"json_format": {"m": "%LOCAL_REPLY_BODY%", "p": "%REQ(:path)%"}}});
        let proxy = Proxy::start(config, &[]).await;
        let response = proxy.get("/x", "").await;
        assert!(response.starts_with("HTTP/1.1 410 Gone\r\n"), "{response}");
        assert!(
            response.contains("content-type: application/json\r\n")
                && response.contains("x-m: /x\r\n"),
            "{response}"
        );
        assert!(
            response.ends_with("{\"m\":\"gone\",\"p\":\"/x\"}\n"),
            "{response}"
        );
    });
}

#[test]
fn bad_requests_are_refused() {
    on_worker(async {
        let mut config =
            manager(json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]));
        config["normalize_path"] = json!(true);
        config["path_with_escaped_slashes_action"] = json!("REJECT_REQUEST");
        config["common_http_protocol_options"] =
            json!({"headers_with_underscores_action": "REJECT_REQUEST"});
        let proxy = Proxy::start(config, &[]).await;
        for (request, want) in [
            ("GET / HTTP/1.0\r\nhost: h\r\n\r\n", "426"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
            ("GET /a%2fb HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nhost: h\r\na_b: c\r\n\r\n", "400"),
            ("GET /a/../b HTTP/1.1\r\nhost: h\r\n\r\n", "200"),
            ("CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n", "404"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let response = proxy.send(request).await;
            assert!(
                response.split(' ').nth(1) == Some(want),
                "{request:?}: {response}"
            );
        }
    });
}
