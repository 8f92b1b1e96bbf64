//! Network and listener filters whose configuration comes by itself (ECDS): waited for, replaced, refused and taken away. What is
//! wanted of us is what a real Envoy does (`PROXY_BINARY`).

use crate::{
    control_plane::{Api, ControlPlane},
    listeners::{NETWORK, hello},
    process::Process,
    running::{eventually, http},
};
use proto::envoy::config::{
    cluster::v3::Cluster, core::v3::TypedExtensionConfig, listener::v3::Listener,
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const PROXY_PROTOCOL: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

/// A filter that waits for its configuration for ever.
fn discovered(name: &str, kind: &str) -> String {
    format!(
        "{{name: {name}, config_discovery: {{config_source: {{ads: {{}}, initial_fetch_timeout: 0s}}, type_urls: [{kind}]}}}}"
    )
}

fn extension(name: &str, kind: &str, fields: &str) -> String {
    format!("{{name: {name}, typed_config: {{'@type': {kind}, {fields}}}}}")
}

fn listener() -> String {
    format!(
        "{{name: near, stat_prefix: near, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         listener_filters: [{}], filter_chains: [{{filters: [{}, {}]}}]}}",
        discovered("address", PROXY_PROTOCOL),
        discovered("gate", &rate_limit()),
        discovered("last", &tcp_proxy()),
    )
}

fn rate_limit() -> String {
    format!("{NETWORK}.local_ratelimit.v3.LocalRateLimit")
}

fn tcp_proxy() -> String {
    format!("{NETWORK}.tcp_proxy.v3.TcpProxy")
}

fn address() -> String {
    extension(
        "address",
        PROXY_PROTOCOL,
        "allow_requests_without_proxy_protocol: false",
    )
}

/// Lets so many connections pass in an hour.
fn gate(connections: u32) -> String {
    let bucket = format!(
        "stat_prefix: gate, token_bucket: {{max_tokens: {connections}, fill_interval: 3600s}}"
    );
    extension("gate", &rate_limit(), &bucket)
}

fn last() -> String {
    extension("last", &tcp_proxy(), "stat_prefix: tcp, cluster: hello")
}

/// Connects as a load balancer would; `None` when the connection is closed without a greeting.
async fn greeted(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\n";
    stream.write_all(header).await.ok()?;
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.ok()?;
    assert_eq!(&greeting, b"hi");
    Some(stream)
}

async fn closes(what: &str, address: SocketAddr) {
    eventually(what, || async {
        greeted(address).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn network_and_listener_filters_follow_configurations_of_their_own() {
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[hello().await]);
    plane.set::<Listener>(&[listener()]);
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000)]);
    let bootstrap = plane.bootstrap_over(Api::DeltaAds);
    let proxy = Process::start(&bootstrap, &["--concurrency", "1"]).await;
    // The listener waits for all of them.
    eventually("the question", || async {
        plane.was_asked(EXTENSION, "last").then_some(())
    })
    .await;
    assert_ne!(http(proxy.0, "GET", "/ready").await.0, 200);
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000), last()]);
    proxy.is_ready().await;
    let near = proxy.address("near").await;
    let open = greeted(near).await.expect("all are there");

    // A new configuration is for new connections.
    plane.set::<TypedExtensionConfig>(&[address(), gate(1), last()]);
    closes("the gate", near).await;
    let mut nothing = [0];
    let kind = open.try_read(&mut nothing).map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::WouldBlock));
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000), last()]);
    eventually("the gate open", || greeted(near)).await;

    // What is refused leaves the one before in force: a type that was not named is.
    let other = extension("last", &format!("{NETWORK}.echo.v3.Echo"), "");
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000), other]);
    eventually("a refusal", || async {
        (!plane.nacks().is_empty()).then_some(())
    })
    .await;
    assert!(greeted(near).await.is_some());

    // Without a configuration there is nobody to serve.
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000)]);
    closes("no terminal filter", near).await;
    proxy
        .stat_reaches("listener.near.network_extension_config_missing", 1)
        .await;
    plane.set::<TypedExtensionConfig>(&[gate(1000)]);
    eventually("no listener filter", || async {
        greeted(near).await.is_none().then_some(())?;
        let missing = proxy.stat("listener.near.extension_config_missing").await;
        (missing > 0).then_some(())
    })
    .await;
    plane.set::<TypedExtensionConfig>(&[address(), gate(1000), last()]);
    eventually("everything again", || greeted(near)).await;
}
