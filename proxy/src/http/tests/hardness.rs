//! What must hold when the other side does not behave: broken upstreams, slow and lying clients.

use std::rc::Rc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::http::testing::{Proxy, Upstream, cluster, manager, on_worker, read_message};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

fn routes() -> serde_json::Value {
    json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}])
}

/// An upstream that breaks off after so many bytes of its response, one more for each connection.
async fn dying_upstream(response: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        for length in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = read_message(&mut stream, false).await;
            let bytes = &response.as_bytes()[..response.len().min(length)];
            stream.write_all(bytes).await.unwrap();
        }
    });
    address
}

#[test]
fn an_upstream_that_dies_at_any_byte_leaves_no_request_without_an_end() {
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
    on_worker(async {
        for response in [OK, CHUNKED] {
            let proxy =
                Proxy::with_routes(routes(), &[cluster("c", dying_upstream(response).await)]).await;
            let head = response.find("\r\n\r\n").unwrap() + 4;
            for length in 0..=response.len() {
                let mut client = proxy.connect().await;
                let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                client.write_all(request).await.unwrap();
                let mut bytes = Vec::new();
                client.read_to_end(&mut bytes).await.unwrap();
                let text = String::from_utf8(bytes).unwrap();
                let wanted = match length {
                    0 => "HTTP/1.1 503 ",
                    short if short < head => "HTTP/1.1 502 ",
                    _ => "HTTP/1.1 200 ",
                };
                assert!(text.starts_with(wanted), "{length}: {text}");
                let is_whole = text.ends_with("\r\n\r\nhi") || text.ends_with("0\r\n\r\n");
                assert_eq!(is_whole, length == response.len(), "{length}: {text}");
            }
            assert_eq!(proxy.stat("http.test.downstream_rq_active"), 0);
            assert_eq!(proxy.stat("cluster.c.upstream_rq_active"), 0);
        }
    });
}

#[test]
fn what_could_be_read_in_two_ways_does_not_reach_the_upstream() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let proxy = Proxy::with_routes(routes(), &[upstream.cluster("c")]).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        for (head, status) in [
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
                501,
            ),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 40\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z: w\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nx\r: y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        ] {
            let mut client = proxy.connect().await;
            let bytes = format!("{head}{smuggled}");
            client.write_all(bytes.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{head:?}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head:?}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
        }
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 0);
        assert_eq!(proxy.stat("http.test.downstream_cx_protocol_error"), 8);
    });
}

#[test]
fn what_is_too_large_is_refused_and_an_absolute_target_has_the_last_word() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let proxy = Proxy::with_routes(routes(), &[upstream.cluster("c")]).await;
        let large = "y".repeat(61 << 10);
        let many: String = (0..101).map(|index| format!("h{index}: v\r\n")).collect();
        for head in [
            format!("GET / HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n"),
            format!("GET /{large} HTTP/1.1\r\nhost: a\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
        ] {
            let answer = proxy.send(&head).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 0);
        let absolute = "GET http://b:81/x HTTP/1.1\r\nhost: a\r\n\r\n";
        let answer = proxy.send(absolute).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = upstream.request().await.to_ascii_lowercase();
        assert!(seen.starts_with("get /x http/1.1\r\n"), "{seen}");
        assert_eq!(seen.matches("\r\nhost: ").count(), 1, "{seen}");
        assert!(seen.contains("\r\nhost: b:81\r\n"), "{seen}");
    });
}

#[test]
fn a_body_behind_a_wish_for_an_upgrade_stays_a_body() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let mut config = manager(routes());
        config["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
        let proxy = Proxy::start(config, &[upstream.cluster("c")]).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let wish =
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n";
        let chunked = format!(
            "{wish}transfer-encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n",
            smuggled.len()
        );
        let counted = format!("{wish}content-length: {}\r\n\r\n{smuggled}", smuggled.len());
        for (request, framing) in [
            (chunked, "transfer-encoding: chunked"),
            (counted, "content-length:"),
        ] {
            let answer = proxy.send(&request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let seen = upstream.request().await;
            assert!(
                seen.starts_with("POST / ") && seen.contains(framing),
                "{seen}"
            );
        }
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 2);
    });
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let proxy = Proxy::with_routes(routes(), &[upstream.cluster("c")]).await;
        let mut client = proxy.connect().await;
        let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n");
        let all = [
            one("/1", ""),
            one("/2", ""),
            one("/3", "connection: close\r\n"),
        ]
        .concat();
        client.write_all(all.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
        for path in ["/1", "/2", "/3"] {
            assert!(
                upstream
                    .request()
                    .await
                    .starts_with(&format!("GET {path} "))
            );
        }
        assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 1);
    });
}

#[test]
fn a_client_that_dawdles_over_its_head_is_told_so() {
    on_worker(async {
        let mut config = manager(routes());
        config["request_headers_timeout"] = json!("0.05s");
        let proxy = Proxy::start(config, &[]).await;
        let mut client = proxy.connect().await;
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-")
            .await
            .unwrap();
        let answer = proxy.receive(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.ends_with("request header timeout"), "{answer}");
        assert_eq!(proxy.stat("http.test.downstream_rq_header_timeout"), 1);
    });
}

#[test]
fn a_body_goes_on_while_it_comes_and_a_response_may_overtake_it() {
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Rc::new(Proxy::with_routes(routes(), &[cluster("c", address)]).await);
        let mut client = proxy.connect().await;
        let head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut interim = [0; 25];
        client.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        let (mut upstream, _) = listener.accept().await.unwrap();
        client.write_all(b"5\r\nhello\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"5\r\nhello\r\n") {
            assert!(upstream.read_buf(&mut seen).await.unwrap() > 0);
        }
        assert!(!String::from_utf8_lossy(&seen).contains("\r\nexpect:"));
        upstream.write_all(OK.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64];
        let count = client.read(&mut answer).await.unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 200 OK"));
    });
}
