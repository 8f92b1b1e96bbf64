//! HTTP/2 downstream: prior knowledge on the same port, trailers, many streams.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::http::testing::{Proxy, Upstream, on_worker};

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

async fn client(proxy: &Proxy) -> http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(proxy.connect().await);
    let (sender, connection) = http2::handshake(Local, io).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    sender
}

#[test]
fn streams_are_forwarded_to_http1() {
    on_worker(async {
        let mut upstream = Upstream::start(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi",
        ])
        .await;
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let proxy = Proxy::with_routes(routes, &[upstream.cluster("c")]).await;
        let mut sender = client(&proxy).await;
        let request = || {
            let request = Request::post("http://example/p?q")
                .header("cookie", "a=1")
                .header("cookie", "b=2");
            request
                .body(Full::new(Bytes::from_static(b"hello")))
                .unwrap()
        };
        let (one, two) = tokio::join!(
            sender.send_request(request()),
            sender.clone().send_request(request())
        );
        for response in [one.unwrap(), two.unwrap()] {
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("connection"));
            assert_eq!(
                response.into_body().collect().await.unwrap().to_bytes(),
                "hi"
            );
        }
        for _ in 0..2 {
            let request = upstream.request().await;
            assert!(
                request.starts_with("POST /p?q HTTP/1.1\r\nhost: example\r\n"),
                "{request}"
            );
            assert!(request.contains("cookie: a=1; b=2\r\n"), "{request}");
        }
        assert_eq!(proxy.stat("http.test.downstream_rq_http2_total"), 2);
        assert_eq!(proxy.stat("http.test.downstream_rq_active"), 0);
    });
}

#[test]
fn local_grpc_replies_are_trailers_only() {
    on_worker(async {
        let proxy = Proxy::with_routes(json!([]), &[]).await;
        let mut sender = client(&proxy).await;
        let request =
            Request::post("http://example/pkg.S/M").header("content-type", "application/grpc");
        let response = sender
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "12");
    });
}
