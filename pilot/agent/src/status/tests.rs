//! The status server over real HTTP, with a pretended proxy and a pretended application.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::Uri;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[derive(Default)]
struct Proxy {
    is_configured: AtomicBool,
    is_live: AtomicBool,
}

async fn serve(router: Router) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    task::spawn(
        "pretended",
        async move { axum::serve(listener, router).await },
    );
    port
}

async fn proxy(state: Arc<Proxy>) -> u16 {
    let (stats, live) = (state.clone(), state);
    let stats = get(move || async move {
        let updates = u8::from(stats.is_configured.load(Ordering::Relaxed));
        format!(
            "cluster_manager.cds.update_success: {updates}\nlistener_manager.lds.update_success: {updates}\n"
        )
    });
    let ready = get(move || async move {
        if live.is_live.load(Ordering::Relaxed) {
            (StatusCode::OK, "LIVE\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "DRAINING\n")
        }
    });
    let prometheus = get(|| async { "envoy_server_live{} 1" });
    serve(
        Router::new()
            .route("/stats", stats)
            .route("/ready", ready)
            .route("/stats/prometheus", prometheus),
    )
    .await
}

async fn status(admin_port: u16, probers: &str) -> (u16, Process) {
    status_with(admin_port, probers, "").await
}

async fn status_with(admin_port: u16, probers: &str, annotations: &str) -> (u16, Process) {
    let process = Process::detached("pilot-agent");
    let counter = prometheus::IntCounter::new("total_pushes", "pushes").unwrap();
    process.registry.register(Box::new(counter)).unwrap();
    let status = Status {
        admin: AdminClient::new((std::net::Ipv4Addr::LOCALHOST, admin_port).into()),
        readiness: Readiness::default(),
        probers: AppProbers::parse(probers).unwrap(),
        metrics: AppMetrics::new(annotations, Ipv4Addr::LOCALHOST.into(), &process.registry)
            .unwrap(),
        registry: process.registry.clone(),
        trigger: process.trigger.clone(),
    };
    let port = status.start(0, &process).await.unwrap();
    (port, process)
}

async fn ask(method: Method, port: u16, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    task::spawn("client", connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "x")
        .header("x-probe", "kubelet")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn ready_after_the_first_configuration_and_while_the_proxy_is_live() {
    let state = Arc::new(Proxy::default());
    let admin = proxy(state.clone()).await;
    let (port, _process) = status(admin, "").await;
    // The proxy is given a second, which a busy machine may need for itself: then it is asked again.
    let becomes = async |wanted: StatusCode, said: &str| {
        let answer = async {
            loop {
                let (code, text) = ask(Method::GET, port, "/healthz/ready").await;
                if code == wanted && text.contains(said) {
                    return;
                }
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), answer).await;
        outcome.unwrap_or_else(|_| panic!("never {wanted} {said}"));
    };
    let unready = StatusCode::SERVICE_UNAVAILABLE;
    becomes(unready, "0 cluster updates").await;
    state.is_configured.store(true, Ordering::Relaxed);
    becomes(unready, "not live").await;
    state.is_live.store(true, Ordering::Relaxed);
    becomes(StatusCode::OK, "").await;
    // The configuration's part is latched, the liveness is not.
    state.is_configured.store(false, Ordering::Relaxed);
    becomes(StatusCode::OK, "").await;
    state.is_live.store(false, Ordering::Relaxed);
    becomes(unready, "not live").await;
}

#[tokio::test]
async fn the_applications_metrics_are_on_the_same_page() {
    let admin = proxy(Arc::default()).await;
    let page = get(|| async { "orders_total 7\n# EOF" });
    let application = serve(Router::new().route("/numbers", page)).await;
    let annotations =
        |port: u16| format!(r#"{{"scrape":"true","port":"{port}","path":"numbers"}}"#);
    let (port, _process) = status_with(admin, "", &annotations(application)).await;
    let (code, text) = ask(Method::GET, port, "/stats/prometheus").await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.contains("envoy_server_live{} 1\n"), "{text}");
    assert!(text.ends_with("\norders_total 7\n"), "{text}");
    // Without the application the rest is there, and one can see that something failed.
    let (port, _process) = status_with(admin, "", &annotations(1)).await;
    let (code, text) = ask(Method::GET, port, "/stats/prometheus").await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.contains("envoy_server_live{} 1\n"), "{text}");
    assert!(
        text.contains(r#"istio_agent_scrape_failures_total{type="application"} 1"#),
        "{text}"
    );
}

#[tokio::test]
async fn statistics_of_proxy_and_agent_are_one_page_even_without_the_proxy() {
    let admin = proxy(Arc::default()).await;
    let (port, _process) = status(admin, "").await;
    let (code, text) = ask(Method::GET, port, "/stats/prometheus").await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.starts_with("envoy_server_live{} 1\n"), "{text}");
    assert!(text.contains("total_pushes 0"), "{text}");
    let (port, _process) = status(1, "").await;
    let (code, text) = ask(Method::GET, port, "/stats/prometheus").await;
    assert_eq!(
        (code, text.contains("total_pushes")),
        (StatusCode::OK, true)
    );
}

#[tokio::test]
async fn quitting_needs_post_and_begins_the_drain() {
    let (port, process) = status(1, "").await;
    let (code, _) = ask(Method::GET, port, "/quitquitquit").await;
    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!process.drain.is_draining());
    let (code, _) = ask(Method::POST, port, "/quitquitquit").await;
    assert_eq!(code, StatusCode::OK);
    process.drain.signaled().await;
}

/// gRPC's health service, by hand: the service `good` is well, no other is.
async fn health_server() -> u16 {
    let answer = |request: http::Request<hyper::body::Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let status = if asked.ends_with(b"good") { 1 } else { 2 };
        let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
        let response = http::Response::builder().header("content-type", "application/grpc");
        Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    task::spawn("pretended", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(stream), service);
            task::spawn("pretended", async move { drop(connection.await) });
        }
    });
    port
}

#[tokio::test]
async fn application_probes_are_made_from_here_and_only_the_code_comes_back() {
    let page = |uri: Uri, headers: HeaderMap| async move {
        let is_right = uri.path() == "/live"
            && headers.get("x-probe").is_some_and(|v| v == "kubelet")
            && headers.get("x-own").is_some_and(|v| v == "1");
        let code = if is_right {
            StatusCode::ACCEPTED
        } else {
            StatusCode::NOT_FOUND
        };
        (code, "secret text")
    };
    let app = serve(Router::new().fallback(page)).await;
    let grpc = health_server().await;
    let probers = format!(
        r#"{{"/app-health/grpc/livez": {{"grpc": {{"port": {grpc}, "service": "good"}}, "timeoutSeconds": 20}},
            "/app-health/grpc/readyz": {{"grpc": {{"port": {grpc}}}, "timeoutSeconds": 20}},
            "/app-health/gone/readyz": {{"grpc": {{"port": 1}}}},
            "/app-health/web/livez": {{"path": "/live", "port": {app}, "httpHeaders": [{{"name": "x-own", "value": "1"}}]}},
            "/app-health/web/readyz": {{"httpGet": {{"path": "missing", "port": "{app}"}}, "timeoutSeconds": 20}},
            "/app-health/tcp/readyz": {{"tcpSocket": {{"port": {app}}}}},
            "/app-health/gone/livez": {{"path": "/", "port": 1}}}}"#
    );
    let (port, _process) = status(1, &probers).await;
    for (path, want) in [
        ("/app-health/web/livez", StatusCode::ACCEPTED),
        ("/app-health/web/readyz", StatusCode::NOT_FOUND),
        ("/app-health/tcp/readyz", StatusCode::OK),
        ("/app-health/grpc/livez", StatusCode::OK),
        ("/app-health/grpc/readyz", StatusCode::INTERNAL_SERVER_ERROR),
        ("/app-health/gone/readyz", StatusCode::INTERNAL_SERVER_ERROR),
        ("/app-health/gone/livez", StatusCode::INTERNAL_SERVER_ERROR),
        ("/app-health/unknown/livez", StatusCode::BAD_REQUEST),
    ] {
        let (code, body) = ask(Method::GET, port, path).await;
        assert_eq!(code, want, "{path}");
        assert!(body.is_empty(), "{path}: {body}");
    }
    assert!(AppProbers::parse("{").is_err());
    assert!(AppProbers::parse(r#"{"/x": {"port": 99999}}"#).is_err());
}
