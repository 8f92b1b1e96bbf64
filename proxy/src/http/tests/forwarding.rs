//! Requests that reach the upstream: headers both ways, bodies, connections.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::testing::{Proxy, Upstream, manager, on_worker};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-up: 1\r\nserver: app\r\n\r\nhi";

#[test]
fn a_request_is_forwarded_with_envoys_headers() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy
            .get(
                "/a?b=c",
                "x-client: 1\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n",
            )
            .await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        for line in [
            "x-up: 1\r\n",
            "server: envoy\r\n",
            "x-envoy-upstream-service-time: ",
            "content-length: 2\r\n",
            "date: ",
        ] {
            assert!(response.contains(line), "{line} in {response}");
        }
        assert!(response.ends_with("\r\n\r\nhi"));
        let request = upstream.request().await;
        assert!(
            request.starts_with("GET /a?b=c HTTP/1.1\r\nhost: test\r\n"),
            "{request}"
        );
        for line in [
            "x-client: 1\r\n",
            "x-forwarded-proto: http\r\n",
            "x-request-id: ",
            "x-envoy-expected-rq-timeout-ms: 15000\r\n",
        ] {
            assert!(request.contains(line), "{line} in {request}");
        }
        for name in [
            "x-hop",
            "keep-alive",
            "connection",
            "x-forwarded-for",
            "transfer-encoding",
        ] {
            assert!(!request.contains(name), "{name} in {request}");
        }
        assert_eq!(proxy.stat("http.test.downstream_rq_2xx"), 1);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_200"), 1);
        assert_eq!(proxy.stat("cluster.c.external.upstream_rq_2xx"), 1);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 1);
    });
}

#[test]
fn use_remote_address_makes_an_edge_proxy() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let mut config = manager(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]));
        config["use_remote_address"] = json!(true);
        config["via"] = json!("bireme");
        let proxy = Proxy::start(config, &[upstream.cluster("c")]).await;
        let spoofed = "x-forwarded-for: 1.2.3.4\r\nx-request-id: mine\r\nx-envoy-internal: true\r\n\
            x-envoy-max-retries: 9\r\nx-forwarded-proto: https\r\nx-forwarded-client-cert: By=me\r\n";
        let response = proxy.get("/", spoofed).await;
        assert!(response.contains("via: bireme\r\n"), "{response}");
        let request = upstream.request().await;
        assert!(request.contains("x-forwarded-for: 1.2.3.4,"), "{request}");
        assert!(request.contains("x-forwarded-proto: http\r\n"), "{request}");
        assert!(request.contains("via: bireme\r\n"), "{request}");
        for text in [
            "x-request-id: mine",
            "x-envoy-internal",
            "x-envoy-max-retries",
            "x-forwarded-client-cert",
        ] {
            assert!(!request.contains(text), "{text} in {request}");
        }
    });
}

#[test]
fn bodies_stream_both_ways() {
    on_worker(async {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let mut upstream = Upstream::start(&[chunked]).await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let response = proxy
            .send("POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .await;
        assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
        let request = upstream.request().await;
        assert!(
            request.contains("transfer-encoding: chunked\r\n"),
            "{request}"
        );
        assert!(
            request.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{request}"
        );
        assert!(!request.contains("\r\nexpect:"), "{request}");

        let response = proxy
            .send("POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
            .await;
        assert!(
            response.contains("transfer-encoding: chunked\r\n"),
            "{response}"
        );
        let request = upstream.request().await;
        assert!(
            request.contains("content-length: 5\r\n") && request.ends_with("hello"),
            "{request}"
        );
    });
}

#[test]
fn connections_are_kept_on_both_sides() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let mut stream = proxy.connect().await;
        for _ in 0..3 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
                .await
                .unwrap();
            let response = proxy.receive(&mut stream).await;
            assert!(response.ends_with("hi"), "{response}");
            upstream.request().await;
        }
        assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 1);
        proxy.trigger.drain(std::time::Duration::from_secs(5));
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "an idle connection is closed by the drain");
    });
}

#[test]
fn a_busy_client_is_told_of_the_drain_by_its_next_response() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let mut stream = proxy.connect().await;
        for is_last in [false, true] {
            if is_last {
                proxy.trigger.drain(std::time::Duration::from_secs(5));
                // The connection's task has seen it by then.
                tokio::task::yield_now().await;
            }
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
                .await
                .unwrap();
            let response = proxy.receive(&mut stream).await;
            assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
            assert_eq!(response.contains("connection: close\r\n"), is_last);
        }
    });
}

#[test]
fn websockets_become_tunnels_where_allowed() {
    on_worker(async {
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let mut upstream = Upstream::start(&[switch, "pong"]).await;
        let mut config = manager(json!([
            {"match": {"prefix": "/no"}, "route": {"cluster": "c", "upgrade_configs": [{"upgrade_type": "websocket", "enabled": false}]}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c"}}]));
        config["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
        let proxy = Proxy::start(config, &[upstream.cluster("c")]).await;
        let mut stream = proxy.connect().await;
        let upgrade =
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let response = proxy.receive(&mut stream).await;
        assert!(
            response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
            "{response}"
        );
        assert!(response.contains("upgrade: websocket\r\n"), "{response}");
        let request = upstream.request().await;
        assert!(
            request.contains("connection: upgrade\r\n")
                && request.contains("upgrade: websocket\r\n"),
            "{request}"
        );
        stream.write_all(b"ping\r\n\r\n").await.unwrap();
        assert_eq!(upstream.request().await, "ping\r\n\r\n");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"pong");

        let response = proxy
            .get("/no", "connection: upgrade\r\nupgrade: websocket\r\n")
            .await;
        assert!(
            response.starts_with("HTTP/1.1 403 Forbidden\r\n"),
            "{response}"
        );
    });
}

#[test]
fn connect_can_end_here_and_go_on_as_tcp() {
    on_worker(async {
        let mut upstream = Upstream::start(&["pong"]).await;
        let mut config = manager(
            json!([{"match": {"connect_matcher": {}}, "route": {"cluster": "c",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}]),
        );
        config["upgrade_configs"] = json!([{"upgrade_type": "CONNECT"}]);
        let proxy = Proxy::start(config, &[upstream.cluster("c")]).await;
        let mut stream = proxy.connect().await;
        stream
            .write_all(b"CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n")
            .await
            .unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        while !head.ends_with(b"\r\n\r\n") {
            head.rotate_left(1);
            stream.read_exact(&mut head[14..]).await.unwrap();
        }
        stream.write_all(b"ping\r\n\r\n").await.unwrap();
        assert_eq!(upstream.request().await, "ping\r\n\r\n");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"pong");
    });
}
