//! HTTP through real listeners: big bodies, and programs that are not ours.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::running::{Running, static_cluster};

/// An upstream that sends bodies back, over HTTP/1 and HTTP/2.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let host = request.headers().get("host").cloned();
                let mut response = Response::new(request.into_body());
                if let Some(host) = host {
                    response.headers_mut().insert("x-host", host);
                }
                Ok::<_, Infallible>(response)
            });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// A proxy with one HTTP listener: `/hello` answers itself, the rest goes to `upstream`.
async fn proxy(upstream: SocketAddr) -> (Running, SocketAddr) {
    let routes = "[{match: {path: /hello}, direct_response: {status: 200, body: {inline_string: hello}}}, \
        {match: {prefix: /}, route: {cluster: echo, timeout: 60s}}]";
    let listener = format!(
        "{{name: http, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{\
         name: hcm, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: test, route_config: {{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: {routes}}}]}}, \
         http_filters: [{{name: envoy.filters.http.router, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    );
    let cluster = static_cluster("echo", upstream);
    let running = Running::start(&format!(
        "static_resources: {{listeners: [{listener}], clusters: [{cluster}]}}"
    ))
    .await;
    let address = running.address("http").await;
    (running, address)
}

#[tokio::test]
async fn big_bodies_stream_through_whole() {
    let (proxy, address) = proxy(echo().await).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let body: Bytes = (0..8_u32 << 20)
        .map(|n| (n % 251) as u8)
        .collect::<Vec<u8>>()
        .into();
    let exchanges = (0..3).map(|_| {
        let request = Request::post("http://big.example/").body(Full::new(body.clone()));
        sender.send_request(request.unwrap())
    });
    for response in futures::future::join_all(exchanges).await {
        let response = response.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-host"], "big.example");
        assert!(response.into_body().collect().await.unwrap().to_bytes() == body);
    }
    proxy.stat_is("http.test.downstream_rq_2xx", 3).await;
    proxy.stat_is("http.test.downstream_rq_active", 0).await;
    proxy.stop().await;
}

/// What a program prints.
async fn run(program: &'static str, arguments: Vec<String>) -> String {
    let output =
        tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output());
    let output = output.await.unwrap().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
#[ignore = "needs curl"]
async fn curl_is_served_over_both_versions() {
    let (proxy, address) = proxy(echo().await).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let arguments = [
            "-s",
            "-i",
            version,
            "-d",
            "payload",
            &format!("http://{address}/x"),
        ];
        let text = run("curl", arguments.map(ToOwned::to_owned).to_vec()).await;
        assert!(
            text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/2 200"),
            "{text}"
        );
        assert!(
            text.contains("server: envoy\r\n") && text.ends_with("\r\n\r\npayload"),
            "{text}"
        );
    }
    proxy.stop().await;
}

#[tokio::test]
#[ignore = "needs h2load"]
async fn h2load_sees_no_failure() {
    let (proxy, address) = proxy(echo().await).await;
    for (protocol, path) in [
        ("--h1", "/x"),
        ("--h1", "/hello"),
        ("-ph2c", "/x"),
        ("-ph2c", "/hello"),
    ] {
        let arguments = [
            "-n2000",
            "-c8",
            "-m8",
            protocol,
            &format!("http://{address}{path}"),
        ];
        let text = run("h2load", arguments.map(ToOwned::to_owned).to_vec()).await;
        assert!(
            text.contains("2000 succeeded, 0 failed, 0 errored"),
            "{text}"
        );
        assert!(text.contains("status codes: 2000 2xx"), "{text}");
    }
    proxy.stat_is("http.test.downstream_rq_2xx", 8000).await;
    proxy.stop().await;
}
