//! Listeners: limits, overload, balance, chains and their matching.

use crate::running::{Running, eventually, greeter, static_cluster};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

pub(crate) const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";

pub(crate) fn tcp_proxy(cluster: &str, more: &str) -> String {
    format!(
        r#"{{name: tcp, typed_config: {{"@type": {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: {cluster} {more}}}}}"#
    )
}

/// A listener whose single chain has these filters.
pub(crate) fn listener(name: &str, filters: &[String], more: &str) -> String {
    format!(
        "{{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, {more} filter_chains: [{{filters: [{}]}}]}}",
        filters.join(", ")
    )
}

pub(crate) async fn start(listeners: &[String], clusters: &[String], more: &str) -> Running {
    Running::start(&format!(
        "static_resources: {{listeners: [{}], clusters: [{}]}}\n{more}",
        listeners.join(", "),
        clusters.join(", ")
    ))
    .await
}

/// Connects and reads the greeting; `None` when the connection is closed without one.
pub(crate) async fn greeted(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.ok()?;
    assert_eq!(&greeting, b"hi");
    Some(stream)
}

pub(crate) async fn hello() -> String {
    static_cluster("hello", greeter("hi").await)
}

#[tokio::test]
async fn connections_above_a_limit_are_closed_at_once() {
    let filter = |kind: &str, fields: &str| {
        format!(r#"{{name: {kind}, typed_config: {{"@type": {NETWORK}.{fields}}}}}"#)
    };
    let of_filter = filter(
        "limit",
        "connection_limit.v3.ConnectionLimit, stat_prefix: few, max_connections: 1, delay: 0.01s",
    );
    let of_rate = filter(
        "rate",
        "local_ratelimit.v3.LocalRateLimit, stat_prefix: slow, token_bucket: {max_tokens: 1, fill_interval: 3600s}",
    );
    let plain = || tcp_proxy("hello", "");
    let proxy = start(
        &[
            listener("runtime", &[plain()], ""),
            listener("filter", &[of_filter, plain()], ""),
            listener("rate", &[of_rate, plain()], ""),
        ],
        &[hello().await],
        "layered_runtime: {layers: [{name: static, static_layer: {envoy.resource_limits.listener.runtime.connection_limit: 1}}]}",
    )
    .await;
    for (name, statistic) in [
        ("runtime", "listener.runtime.downstream_cx_overflow"),
        ("filter", "connection_limit.few.limited_connections"),
        ("rate", "local_rate_limit.slow.rate_limited"),
    ] {
        let address = proxy.address(name).await;
        let first = greeted(address).await.unwrap();
        assert!(greeted(address).await.is_none(), "{name}");
        proxy.stat_is(statistic, 1).await;
        drop(first);
        if name != "rate" {
            eventually("room", || greeted(address)).await;
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn the_overload_manager_caps_connections_and_stops_accepting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pressure");
    std::fs::write(&file, "0.1").unwrap();
    let monitors = "type.googleapis.com/envoy.extensions.resource_monitors";
    let overload = format!(
        r#"overload_manager: {{refresh_interval: 0.01s, resource_monitors: [
          {{name: envoy.resource_monitors.injected_resource, typed_config: {{"@type": {monitors}.injected_resource.v3.InjectedResourceConfig, filename: {}}}}},
          {{name: envoy.resource_monitors.global_downstream_max_connections, typed_config: {{"@type": {monitors}.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 2}}}}],
          actions: [{{name: envoy.overload_actions.stop_accepting_connections, triggers: [{{name: envoy.resource_monitors.injected_resource, threshold: {{value: 0.9}}}}]}}]}}"#,
        file.display()
    );
    let proxy = start(
        &[
            listener("capped", &[tcp_proxy("hello", "")], ""),
            listener(
                "free",
                &[tcp_proxy("hello", "")],
                "ignore_global_conn_limit: true, bypass_overload_manager: true,",
            ),
        ],
        &[hello().await],
        &overload,
    )
    .await;
    let (capped, free) = (proxy.address("capped").await, proxy.address("free").await);
    let first = greeted(capped).await.unwrap();
    let second = greeted(capped).await.unwrap();
    assert!(greeted(capped).await.is_none());
    assert!(greeted(free).await.is_some());
    proxy
        .stat_is("listener.capped.downstream_global_cx_overflow", 1)
        .await;
    drop((first, second));
    eventually("room", || greeted(capped)).await;
    std::fs::write(&file, "0.95").unwrap();
    let active = "overload.envoy.overload_actions.stop_accepting_connections.active";
    eventually("the action", || async {
        (proxy.stat(active).await == 1).then_some(())
    })
    .await;
    // The connection waits in the queue until the pressure is gone.
    let waiting = tokio::spawn(greeted(capped));
    assert!(greeted(free).await.is_some());
    assert!(!waiting.is_finished());
    std::fs::write(&file, "0.2").unwrap();
    assert!(waiting.await.unwrap().is_some());
    proxy.stop().await;
}

#[tokio::test]
async fn exact_balance_spreads_connections_over_the_workers() {
    let proxy = start(
        &[listener(
            "even",
            &[tcp_proxy("hello", "")],
            "connection_balance_config: {exact_balance: {}},",
        )],
        &[hello().await],
        "",
    )
    .await;
    let address = proxy.address("even").await;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(greeted(address).await.unwrap());
    }
    for worker in 0..2 {
        let name = format!("listener.even.worker_{worker}.downstream_cx_active");
        proxy.stat_is(&name, 5).await;
    }
    drop(open);
    proxy.stop().await;
}

#[tokio::test]
async fn a_small_buffer_limit_slows_nothing_down_but_memory() {
    let echo = static_cluster("echo", greeter("").await);
    let proxy = start(
        &[listener(
            "small",
            &[tcp_proxy("echo", "")],
            "per_connection_buffer_limit_bytes: 1024,",
        )],
        &[echo],
        "",
    )
    .await;
    let mut client = TcpStream::connect(proxy.address("small").await)
        .await
        .unwrap();
    let sent: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
    let (mut read, mut write) = client.split();
    let mut got = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (_, count) = tokio::join!(send, read.read_to_end(&mut got));
    count.unwrap();
    assert_eq!(got, sent);
    proxy.stop().await;
}

#[tokio::test]
async fn unix_and_ipv6_listeners_serve_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let filters = tcp_proxy("hello", "");
    let unix = format!(
        "{{name: unix, address: {{pipe: {{path: {}, mode: 448}}}}, filter_chains: [{{filters: [{filters}]}}]}}",
        path.display()
    );
    let six = format!(
        "{{name: six, address: {{socket_address: {{address: \"::1\", port_value: 0}}}}, filter_chains: [{{filters: [{filters}]}}]}}"
    );
    let proxy = start(&[unix, six], &[hello().await], "").await;
    assert!(greeted(proxy.address("six").await).await.is_some());
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hi");
    proxy.stop().await;
}

#[tokio::test]
async fn chains_are_chosen_by_source_port_and_the_default_takes_the_rest() {
    // The clients' sockets have their ports before the chains are written.
    let client = || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        socket
    };
    let (known, other) = (client(), client());
    let port = known.local_addr().unwrap().port();
    let chain = |matching: &str, text: &str| {
        format!(
            r#"{{{matching} filters: [{{name: say, typed_config: {{"@type": {NETWORK}.direct_response.v3.Config, response: {{inline_string: {text}}}}}}}]}}"#
        )
    };
    let by_port = format!(
        "filter_chain_match: {{source_ports: [{port}], source_type: SAME_IP_OR_LOOPBACK}},"
    );
    let by_far = "filter_chain_match: {source_type: EXTERNAL, source_prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]},";
    let text = format!(
        "{{name: match, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{}, {}], default_filter_chain: {}}}",
        chain(&by_port, "port"),
        chain(by_far, "far"),
        chain("", "rest")
    );
    let proxy = start(&[text], &[], "").await;
    let address = proxy.address("match").await;
    for (socket, expected) in [(known, "port"), (other, "rest")] {
        let mut stream = socket.connect(address).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, expected);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused() {
    for (more, problem) in [
        (
            "connection_balance_config: {extend_balance: {name: x}},",
            "connection_balance_config",
        ),
        (
            "socket_options: [{level: 6, name: 99, int_value: 1, state: STATE_PREBIND}],",
            "socket_options[0]",
        ),
        (
            "per_connection_buffer_high_watermark_timeout: 1s,",
            "per_connection_buffer_high_watermark_timeout",
        ),
    ] {
        let text = format!(
            "static_resources: {{listeners: [{}]}}",
            listener("bad", &[tcp_proxy("none", "")], more)
        );
        let options = proxy::Options::new(proxy::BootstrapSource::Text(text));
        let error = proxy::run(options, proto_component::drain::Drain::never())
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(problem), "{text}");
    }
}

#[tokio::test]
async fn an_overloaded_proxy_ends_keepalive_and_refuses_requests() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pressure");
    std::fs::write(&file, "0.5").unwrap();
    let trigger = |value: &str| {
        format!(
            "triggers: [{{name: envoy.resource_monitors.injected_resource, threshold: {{value: {value}}}}}]"
        )
    };
    let overload = format!(
        r#"overload_manager: {{refresh_interval: 0.01s, resource_monitors: [
          {{name: envoy.resource_monitors.injected_resource, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: {}}}}}],
          actions: [{{name: envoy.overload_actions.disable_http_keepalive, {}}}, {{name: envoy.overload_actions.stop_accepting_requests, {}}}]}}"#,
        file.display(),
        trigger("0.6"),
        trigger("0.9")
    );
    let manager = format!(
        r#"{{name: http, typed_config: {{"@type": {NETWORK}.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h,
          http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}],
          route_config: {{virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: fine}}}}}}]}}]}}}}}}"#
    );
    let proxy = start(&[listener("http", &[manager], "")], &[], &overload).await;
    let address = proxy.address("http").await;
    let ask = || async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let two = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(two).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await.unwrap();
        String::from_utf8(answer[..count].to_vec()).unwrap()
    };
    let calm = ask().await;
    assert!(
        calm.starts_with("HTTP/1.1 200") && !calm.contains("connection: close"),
        "{calm}"
    );
    std::fs::write(&file, "0.7").unwrap();
    eventually("closing", || async {
        ask().await.contains("connection: close").then_some(())
    })
    .await;
    std::fs::write(&file, "0.95").unwrap();
    eventually("refusal", || async {
        let answer = ask().await;
        // Head and body may come one after the other.
        (answer.starts_with("HTTP/1.1 503") && answer.ends_with("envoy overloaded")).then_some(())
    })
    .await;
    proxy
        .stat_reaches("http.h.downstream_rq_overload_close", 1)
        .await;
    proxy
        .stat_reaches("http.h.downstream_cx_overload_disable_keepalive", 1)
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_updated_chain_drains_its_own_connections_and_no_others() {
    use proto::envoy::config::{cluster::v3::Cluster, listener::v3::Listener};
    let plane = crate::control_plane::ControlPlane::start().await;
    let chain = |name: &str, source: &str, text: &str| {
        format!(
            r#"{{name: {name}, metadata: {{filter_metadata: {{note: {{text: {text}}}}}}}, filter_chain_match: {{source_prefix_ranges: [{{address_prefix: {source}, prefix_len: 32}}]}},
              filters: [{{name: envoy.filters.network.echo}}]}}"#
        )
    };
    let listener = |text: &str| {
        format!(
            "{{name: two, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{}, {}]}}",
            chain("changed", "127.0.0.2", text),
            chain("kept", "127.0.0.3", "same")
        )
    };
    plane.set::<Cluster>(&[]);
    plane.set::<Listener>(&[listener("old")]);
    let proxy = Running::start(&plane.bootstrap()).await;
    let address = proxy.address("two").await;
    let connect = |last: u8| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(b"hi").await.unwrap();
        let mut echo = [0; 2];
        stream.read_exact(&mut echo).await.unwrap();
        stream
    };
    let (mut changed, mut kept) = (connect(2).await, connect(3).await);
    plane.set::<Listener>(&[listener("new")]);
    eventually("the update", || async {
        (proxy
            .stat("listener_manager.listener_in_place_updated")
            .await
            == 1)
            .then_some(())
    })
    .await;
    // The drain time of the tests is a second; then the connection of the old chain is cut.
    assert_eq!(changed.read(&mut [0; 1]).await.unwrap_or(0), 0);
    kept.write_all(b"hi").await.unwrap();
    let mut echo = [0; 2];
    kept.read_exact(&mut echo).await.unwrap();
    drop(connect(2).await);
    proxy.stop().await;
}

#[tokio::test]
async fn a_listener_serves_all_its_addresses() {
    let upstream = greeter("hello").await;
    let another = "{socket_address: {address: 127.0.0.2, port_value: 0}}";
    let more = format!("additional_addresses: [{{address: {another}}}],");
    let listener = listener("both", &[tcp_proxy("up", "")], &more);
    let proxy = start(&[listener], &[static_cluster("up", upstream)], "").await;
    let (_, text) = proxy.get("/listeners").await;
    let addresses: Vec<SocketAddr> = text
        .lines()
        .map(|line| line.split_once("::").unwrap().1.parse().unwrap())
        .collect();
    assert_eq!(addresses.len(), 2, "{text}");
    assert_eq!(addresses[1].ip().to_string(), "127.0.0.2");
    for address in addresses {
        let mut text = [0; 5];
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello");
    }
    proxy.stop().await;
}
