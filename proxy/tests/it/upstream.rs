//! Clusters at work: health checks, original destinations from headers, names resolved on demand, several addresses of a host.

use crate::running::{Running, eventually, http, nobody, static_cluster};
use bytes::Bytes;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// An HTTP/1.1 upstream that answers everything with this status and body.
async fn responder(status: Arc<AtomicU16>, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let status = status.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut buffer = [0; 1024];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let text = format!(
                    "HTTP/1.1 {} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    status.load(Relaxed),
                    body.len()
                );
                // The client may be gone.
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    address
}

fn ok() -> Arc<AtomicU16> {
    Arc::new(AtomicU16::new(200))
}

/// An HTTP listener in front of `cluster`, with these filters before the router.
fn http_listener(name: &str, cluster: &str, filters: &str) -> String {
    format!(
        r#"{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: envoy.filters.network.http_connection_manager,
          typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name},
          route_config: {{name: r, virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}},
          http_filters: [{filters}{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    )
}

async fn start(listeners: &[String], clusters: &[String]) -> Running {
    Running::start(&format!(
        "static_resources: {{listeners: [{}], clusters: [{}]}}",
        listeners.join(", "),
        clusters.join(", ")
    ))
    .await
}

/// A cluster of these hosts with more fields.
fn cluster(name: &str, hosts: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = hosts
        .iter()
        .map(|host| {
            let (ip, port) = (host.ip(), host.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
        })
        .collect();
    format!(
        "{{name: {name}, connect_timeout: 30s{more}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}}}",
        endpoints.join(", ")
    )
}

const SOON: &str = "timeout: 5s, interval: 0.05s, no_traffic_interval: 0.05s, unhealthy_threshold: 2, healthy_threshold: 2";

#[tokio::test]
async fn a_host_that_fails_its_checks_is_left_alone_until_it_passes() {
    let (moody, steady) = (ok(), ok());
    let hosts = [
        responder(moody.clone(), "moody").await,
        responder(steady, "steady").await,
    ];
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events");
    let check = format!(
        ", health_checks: [{{{SOON}, event_log_path: {}, http_health_check: {{path: /health}}}}]",
        log.display()
    );
    let proxy = start(
        &[http_listener("web", "local", "")],
        &[cluster("local", &hosts, &check)],
    )
    .await;
    let address = proxy.address("web").await;
    eventually("both healthy", || async {
        (proxy.stat("cluster.local.membership_healthy").await == 2).then_some(())
    })
    .await;
    moody.store(503, Relaxed);
    eventually("one healthy", || async {
        (proxy.stat("cluster.local.membership_healthy").await == 1).then_some(())
    })
    .await;
    for _ in 0..6 {
        assert_eq!(http(address, "GET", "/").await, (200, "steady".to_owned()));
    }
    let (_, clusters) = proxy.get("/clusters").await;
    assert!(clusters.contains("/failed_active_hc"), "{clusters}");
    moody.store(200, Relaxed);
    eventually("both healthy again", || async {
        (proxy.stat("cluster.local.membership_healthy").await == 2).then_some(())
    })
    .await;
    for event in [
        "add_healthy_event",
        "eject_unhealthy_event",
        "\"cluster_name\":\"local\"",
    ] {
        eventually(event, || async {
            let events = std::fs::read_to_string(&log).unwrap();
            events.contains(event).then_some(())
        })
        .await;
    }
    proxy.stop().await;
}

/// A server that answers what `answer` says to every piece that comes.
async fn talker(
    answer: impl Fn(&[u8]) -> &'static [u8] + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(count) = stream.read(&mut buffer).await {
                    if count == 0 || stream.write_all(answer(&buffer[..count])).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A gRPC health service over HTTP/2 that says this.
async fn grpc_health(serving: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let head = ::http::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut body = respond.send_response(head, false).unwrap();
                    let message = vec![0, 0, 0, 0, 2, 8, serving];
                    body.send_data(Bytes::from(message), false).unwrap();
                    let mut trailers = ::http::HeaderMap::new();
                    trailers.insert("grpc-status", ::http::HeaderValue::from_static("0"));
                    body.send_trailers(trailers).unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn every_kind_of_check_tells_good_from_bad() {
    let redis = |text: &[u8]| -> &'static [u8] {
        if text.starts_with(b"*1\r\n$4\r\nPING") {
            b"+PONG\r\n"
        } else {
            b":1\r\n"
        }
    };
    let redis = talker(redis).await;
    let tcp = talker(|text| if text == b"hi" { b"xyz" } else { b"no" }).await;
    let (serving, not) = (grpc_health(1).await, grpc_health(2).await);
    let custom = |key: &str| {
        format!(
            "custom_health_check: {{name: redis, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.health_checkers.redis.v3.Redis{key}}}}}"
        )
    };
    let cases = [
        ("ping", redis, custom(""), true),
        ("exists", redis, custom(", key: maintenance"), false),
        ("tcp", tcp, "tcp_health_check: {send: {text: \"6869\"}, receive: [{text: \"7879\"}, {text: \"7a\"}]}".to_owned(), true),
        ("grpc", serving, "grpc_health_check: {service_name: x}".to_owned(), true),
        ("grpc-not", not, "grpc_health_check: {}".to_owned(), false),
        ("connect", tcp, "tcp_health_check: {}".to_owned(), true),
        ("wrong-protocol", tcp, "http_health_check: {path: /}".to_owned(), false),
    ];
    let clusters: Vec<String> = cases
        .iter()
        .map(|(name, host, check, _)| {
            cluster(
                name,
                &[*host],
                &format!(", health_checks: [{{{SOON}, {check}}}]"),
            )
        })
        .collect();
    let proxy = start(&[], &clusters).await;
    for (name, _, _, is_good) in cases {
        let counter = if is_good { "success" } else { "failure" };
        eventually(name, || async {
            let count = proxy
                .stat(&format!("cluster.{name}.health_check.{counter}"))
                .await;
            (count > 1).then_some(())
        })
        .await;
        proxy
            .stat_is(
                &format!("cluster.{name}.membership_healthy"),
                u64::from(is_good),
            )
            .await;
    }
    proxy.stop().await;
}

/// A request with a header more, and with this host.
async fn request(to: SocketAddr, host: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let text = format!("GET / HTTP/1.1\r\nhost: {host}\r\n{header}connection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_header_may_say_where_a_request_goes() {
    let upstream = responder(ok(), "there").await;
    let cluster = "{name: anywhere, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {use_http_header: true}}";
    let proxy = start(
        &[http_listener("web", "anywhere", "")],
        &[cluster.to_owned()],
    )
    .await;
    let address = proxy.address("web").await;
    let header = format!("x-envoy-original-dst-host: {upstream}\r\n");
    let answer = request(address, "x", &header).await;
    assert!(answer.ends_with("there"), "{answer}");
    let answer = request(address, "x", "x-envoy-original-dst-host: nonsense\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    proxy
        .stat_is("cluster.anywhere.original_dst_host_invalid", 1)
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn names_are_resolved_when_requests_ask_for_them() {
    let upstream = responder(ok(), "named").await;
    let cache = "dns_cache_config: {name: dns, dns_lookup_family: V4_ONLY}";
    let filter = format!(
        "{{name: envoy.filters.http.dynamic_forward_proxy, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig, {cache}}}}}, "
    );
    let cluster = format!(
        "{{name: names, connect_timeout: 30s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: envoy.clusters.dynamic_forward_proxy, \
         typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}}}}}}}"
    );
    let proxy = start(&[http_listener("web", "names", &filter)], &[cluster]).await;
    let address = proxy.address("web").await;
    for _ in 0..2 {
        let answer = request(address, &format!("localhost:{}", upstream.port()), "").await;
        assert!(answer.ends_with("named"), "{answer}");
    }
    proxy.stat_is("dns_cache.dns.num_hosts", 1).await;
    proxy.stat_is("dns_cache.dns.host_added", 1).await;
    let answer = request(address, "no-such-name.invalid", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("DNS resolution failure"), "{answer}");
    proxy.stop().await;
}

#[tokio::test]
async fn the_next_address_is_tried_when_the_first_does_not_answer() {
    let upstream = responder(ok(), "second").await;
    let (_held, nobody) = nobody();
    let more = format!(
        "{{endpoint: {{additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}], ",
        upstream.port()
    );
    let cluster = static_cluster("two", nobody).replacen("{endpoint: {", &more, 1);
    let proxy = start(&[http_listener("web", "two", "")], &[cluster]).await;
    let address = proxy.address("web").await;
    assert_eq!(http(address, "GET", "/").await, (200, "second".to_owned()));
    proxy.stop().await;
}

#[tokio::test]
async fn the_runtime_can_be_changed_by_hand() {
    let proxy = start(&[], &[]).await;
    assert_eq!(proxy.post("/runtime_modify?a.b=7").await.0, 200);
    let (_, text) = proxy.get("/runtime").await;
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["entries"]["a.b"]["final_value"], "7");
    assert_eq!(value["layers"][0], "admin");
    assert_eq!(proxy.post("/runtime_modify").await.0, 400);
    for path in [
        "/contention",
        "/init_dump",
        "/stats/recentlookups",
        "/stats?format=html",
        "/stats?histogram_buckets=cumulative",
        "/help",
        "/",
    ] {
        assert_eq!(proxy.get(path).await.0, 200, "{path}");
    }
    for path in ["/stats?format=odd", "/stats?type=odd", "/clusters?filter=("] {
        assert_eq!(proxy.get(path).await.0, 400, "{path}");
    }
    assert_eq!(proxy.post("/drain_listeners?skip_exit").await.0, 400);
    proxy.stop().await;
}

#[tokio::test]
async fn a_dump_can_be_masked() {
    let upstream = responder(ok(), "x").await;
    let proxy = start(
        &[],
        &[
            static_cluster("one", upstream),
            static_cluster("two", upstream),
        ],
    )
    .await;
    let (_, text) = proxy
        .get("/config_dump?resource=static_clusters&mask=cluster.name&name_regex=o.*")
        .await;
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let configs = value["configs"].as_array().unwrap();
    assert_eq!(configs.len(), 1, "{text}");
    assert_eq!(configs[0]["cluster"]["name"], "one");
    assert!(configs[0]["cluster"]["connect_timeout"].is_null(), "{text}");
    proxy.stop().await;
}
