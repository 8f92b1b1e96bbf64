//! Static resources: what the bootstrap alone brings.

use crate::running::{Running, greeter, nobody, static_cluster, tcp_listener};
use proto_component::drain::Drain;
use proxy::{BootstrapSource, Options};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn bootstrap(listeners: &[String], clusters: &[String]) -> String {
    let (listeners, clusters) = (listeners.join(", "), clusters.join(", "));
    format!("static_resources: {{listeners: [{listeners}], clusters: [{clusters}]}}")
}

#[tokio::test]
async fn tcp_goes_both_ways_and_half_close_is_passed_on() {
    let upstream = greeter("hello ").await;
    let bootstrap = bootstrap(
        &[tcp_listener("tcp", "local")],
        &[static_cluster("local", upstream)],
    );
    let proxy = Running::start(&bootstrap).await;
    let mut client = TcpStream::connect(proxy.address("tcp").await)
        .await
        .unwrap();
    let big = vec![b'x'; 1 << 20];
    let (mut read, mut write) = client.split();
    let mut answer = Vec::new();
    let send = async {
        write.write_all(&big).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (_, count) = tokio::join!(send, read.read_to_end(&mut answer));
    assert_eq!(count.unwrap(), big.len() + 6);
    assert!(answer.starts_with(b"hello xxx"));
    crate::running::eventually("the connection's end", || async {
        (proxy.stat("cluster.local.upstream_cx_destroy").await == 1).then_some(())
    })
    .await;
    proxy.stat_is("cluster.local.upstream_cx_total", 1).await;
    proxy
        .stat_is("tcp.tcp.downstream_cx_rx_bytes_total", 1 << 20)
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn large_flows_and_small_exchanges_alternate_on_a_connection() {
    let upstream = greeter("").await;
    let bootstrap = bootstrap(
        &[tcp_listener("tcp", "local")],
        &[static_cluster("local", upstream)],
    );
    let proxy = Running::start(&bootstrap).await;
    let client = TcpStream::connect(proxy.address("tcp").await);
    let mut client = client.await.unwrap();
    let bytes: Vec<u8> = (0..5_000_000_u32)
        .map(|index| (index % 251) as u8)
        .collect();
    let mut total = 0;
    for size in [1, 5_000_000, 3, 32 << 10, 100, 1_000_000, 1] {
        let sent = &bytes[..size];
        let mut got = vec![0; size];
        let (mut read, mut write) = client.split();
        let (sending, receiving) = tokio::join!(write.write_all(sent), read.read_exact(&mut got));
        sending.unwrap();
        receiving.unwrap();
        assert!(got == sent, "{size} bytes came back changed");
        total += size as u64;
    }
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    for name in [
        "tcp.tcp.downstream_cx_rx_bytes_total",
        "tcp.tcp.downstream_cx_tx_bytes_total",
        "cluster.local.upstream_cx_rx_bytes_total",
        "cluster.local.upstream_cx_tx_bytes_total",
    ] {
        proxy.stat_is(name, total).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_unreachable_host_closes_the_connection_and_is_counted() {
    let (_held, nobody) = nobody();
    let bootstrap = bootstrap(
        &[tcp_listener("tcp", "local")],
        &[static_cluster("local", nobody)],
    );
    let proxy = Running::start(&bootstrap).await;
    let mut client = TcpStream::connect(proxy.address("tcp").await)
        .await
        .unwrap();
    // Closed without a word; some systems say "reset".
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0);
    proxy
        .stat_is("cluster.local.upstream_cx_connect_fail", 1)
        .await;
    let (_, clusters) = proxy.get("/clusters").await;
    assert!(
        clusters.contains(&format!("local::{nobody}::cx_connect_fail::1")),
        "{clusters}"
    );
    proxy.stop().await;
}

#[tokio::test]
async fn admin_speaks_envoys_forms() {
    let upstream = greeter("").await;
    let bootstrap = bootstrap(
        &[tcp_listener("tcp", "local")],
        &[static_cluster("local", upstream)],
    );
    let proxy = Running::start(&bootstrap).await;
    let (status, text) = proxy.get("/server_info").await;
    assert_eq!(status, 200);
    assert!(text.contains(r#""state": "LIVE""#), "{text}");
    let (_, dump) = proxy.get("/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let types: Vec<&str> = dump["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|config| {
            config["@type"]
                .as_str()
                .unwrap()
                .rsplit('.')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(
        types,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "ListenersConfigDump",
            "ScopedRoutesConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let (_, one) = proxy
        .get("/config_dump?resource=static_listeners&name_regex=t.*")
        .await;
    assert!(
        one.contains("envoy.admin.v3.ListenersConfigDump.StaticListener"),
        "{one}"
    );
    let (_, metrics) = proxy.get("/stats/prometheus").await;
    assert!(
        metrics.contains("envoy_cluster_membership_total{envoy_cluster_name=\"local\"} 1\n"),
        "{metrics}"
    );
    assert_eq!(proxy.get("/nothing").await.0, 404);
    assert_eq!(proxy.get("/quitquitquit").await.0, 405);
    assert_eq!(proxy.post("/healthcheck/fail").await.0, 200);
    assert_eq!(proxy.get("/ready").await.0, 503);
    assert_eq!(proxy.post("/healthcheck/ok").await.0, 200);
    assert_eq!(proxy.get("/ready").await.0, 200);
    proxy.stop().await;
}

#[tokio::test]
async fn drain_listeners_stops_accepting_and_lets_connections_end() {
    let upstream = greeter("hi").await;
    let bootstrap = bootstrap(
        &[tcp_listener("tcp", "local")],
        &[static_cluster("local", upstream)],
    );
    let proxy = Running::start_with(&bootstrap, Duration::from_secs(10)).await;
    let address = proxy.address("tcp").await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut hi = [0; 2];
    client.read_exact(&mut hi).await.unwrap();
    assert_eq!(proxy.post("/drain_listeners").await.0, 200);
    crate::running::eventually("refusal", || async {
        TcpStream::connect(address).await.err()
    })
    .await;
    client.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    client.read_exact(&mut still).await.unwrap();
    // When the time to drain is over, the connection is cut.
    assert_eq!(client.read(&mut still).await.unwrap_or(0), 0);
    proxy.stop().await;
}

#[tokio::test]
async fn what_is_not_supported_is_refused_with_its_path() {
    let run = |text: &str| {
        let options = Options::new(BootstrapSource::Text(text.to_owned()));
        proxy::run(options, Drain::never())
    };
    let error = run("static_resources: {clusters: [{name: a, upstream_config: {name: x}}]}")
        .await
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("static_resources.clusters[0].upstream_config: not supported"),
        "{text}"
    );
    let error = run("static_resources:\n  clusters:\n  - name: a\n    connect_timeuot: 1s\n")
        .await
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("line 4") && text.contains("connect_timeuot"),
        "{text}"
    );
}

/// As Istio's agent starts a proxy, with a bootstrap that knows fields from tomorrow.
#[tokio::test]
async fn unknown_fields_of_the_bootstrap_count_for_nothing_where_that_is_allowed() {
    let text = "{node: {id: one, cluster: some}, field_from_tomorrow: 1, static_resources: {clusters: [\
        {name: c, connect_timeout: 1s, another: {deep: 2}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
        {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
        explicit_http_config: {http2_protocol_options: {third: 3}}}}}]}}";
    let validate = async |arguments: &[&str]| {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_bireme-proxy"))
            .args(["--mode", "validate", "--config-yaml", text])
            .args(arguments)
            .output()
            .await
            .unwrap()
    };
    let refused = validate(&[]).await;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("field_from_tomorrow"), "{said}");
    let arguments = [
        "--allow-unknown-static-fields",
        "--drain-strategy",
        "immediate",
        "--log-format",
        "%v",
        "--skip-deprecated-logs",
        "--ignore-unknown-dynamic-fields",
    ];
    let taken = validate(&arguments).await;
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(taken.status.success(), "{said}");
}
