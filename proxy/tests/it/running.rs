//! A proxy running in this process, and what a test asks of it.

use proto_component::drain::{self, Trigger};
use proxy::{BootstrapSource, Options};
use serde_json::Value;
use std::{net::SocketAddr, ops::Deref, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

/// Patience with anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy's admin interface.
#[derive(Clone, Copy)]
pub(crate) struct Admin(pub(crate) SocketAddr);

/// A running proxy.
pub(crate) struct Running {
    admin: Admin,
    trigger: Trigger,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Starts a proxy from a bootstrap (without its admin section) and waits until it serves. It drains for a second.
    pub(crate) async fn start(bootstrap: &str) -> Self {
        Self::start_with(bootstrap, Duration::from_secs(1)).await
    }

    /// As [`Self::start`], with another time to drain.
    pub(crate) async fn start_with(bootstrap: &str, drain_time: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("admin");
        let text = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{bootstrap}"
        );
        let (trigger, drain) = drain::channel();
        let options = Options {
            concurrency: Some(2),
            admin_address_path: Some(file.clone()),
            drain_time,
            ..Options::new(BootstrapSource::Text(text))
        };
        let task = tokio::spawn(proxy::run(options, drain));
        let admin = eventually("the admin address", || async {
            let text = std::fs::read_to_string(&file).ok()?;
            text.parse().ok()
        })
        .await;
        let running = Self {
            admin: Admin(admin),
            trigger,
            task,
        };
        running.is_ready().await;
        running
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.trigger.drain(Duration::from_secs(1));
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

impl Deref for Running {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        &self.admin
    }
}

impl Admin {
    /// Waits until it serves.
    pub(crate) async fn is_ready(&self) {
        eventually("readiness", || async {
            let (status, _) = self.get("/ready").await;
            (status == 200).then_some(())
        })
        .await;
    }

    /// GET on the admin interface.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        http(self.0, "GET", path).await
    }

    /// POST on the admin interface.
    pub(crate) async fn post(&self, path: &str) -> (u16, String) {
        http(self.0, "POST", path).await
    }

    /// The value of a statistic.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let (_, text) = self.get("/stats").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Waits until the statistic is `expected`: a peer may see the end of an exchange before the proxy has counted it.
    pub(crate) async fn stat_is(&self, name: &str, expected: u64) {
        eventually(&format!("{name} is {expected}"), || async {
            (self.stat(name).await == expected).then_some(())
        })
        .await;
    }

    /// Waits until the statistic is `least` or more.
    pub(crate) async fn stat_reaches(&self, name: &str, least: u64) {
        eventually(&format!("{name} reaches {least}"), || async {
            (self.stat(name).await >= least).then_some(())
        })
        .await;
    }

    /// Where the listener called `name` listens, once it does.
    pub(crate) async fn address(&self, name: &str) -> SocketAddr {
        eventually(name, || async {
            let (_, text) = self.get("/listeners?format=json").await;
            let value: Value = serde_json::from_str(&text).ok()?;
            let statuses = value["listener_statuses"].as_array()?;
            let status = statuses.iter().find(|status| status["name"] == name)?;
            let socket = &status["local_address"]["socket_address"];
            let ip = socket["address"].as_str()?.parse().ok()?;
            let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
            Some(SocketAddr::new(ip, port))
        })
        .await
    }
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not in time"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One HTTP/1.1 exchange: status and body.
pub(crate) async fn http(to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let is_chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    (
        status,
        if is_chunked {
            without_chunks(body)
        } else {
            body.to_owned()
        },
    )
}

/// An address at which nobody listens, nor anybody else can as long as the socket is there.
pub(crate) fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// An upstream that says `greeting` and then echoes until the client has said all.
pub(crate) async fn greeter(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                // The client may break off.
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// A TCP listener of this name in front of `cluster`, as YAML.
pub(crate) fn tcp_listener(name: &str, cluster: &str) -> String {
    format!(
        r#"{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [
            {{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
              stat_prefix: {name}, cluster: {cluster}}}}}]}}]}}"#
    )
}

/// A static cluster of this name with one host, as YAML.
pub(crate) fn static_cluster(name: &str, host: SocketAddr) -> String {
    let (ip, port) = (host.ip(), host.port());
    format!(
        "{{name: {name}, connect_timeout: 30s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: \
         {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}}}"
    )
}

/// An HTTP listener called `web`; `more` are fields of its connection manager, `routes` a list of them, `transport` a field of its
/// filter chain.
pub(crate) fn web_listener(more: &str, routes: &str, transport: &str) -> String {
    format!(
        r#"{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{{transport} filters: [
            {{name: hcm, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
              stat_prefix: web, {more} route_config: {{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: {routes}}}]}},
              http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    )
}

/// The same cluster, spoken to in HTTP/2 with these options.
pub(crate) fn over_http2(cluster: &str, options: &str) -> String {
    let options = format!(
        r#"{{typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{
            "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
            explicit_http_config: {{http2_protocol_options: {{{options}}}}}}}}}, "#
    );
    cluster.replacen('{', &options, 1)
}

/// The same cluster, spoken to in TLS with these fields of the common context.
pub(crate) fn over_tls(cluster: &str, common: &str) -> String {
    let transport = format!(
        r#"{{transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
            sni: server.test, common_tls_context: {{{common}}}}}}}, "#
    );
    cluster.replacen('{', &transport, 1)
}

fn without_chunks(mut text: &str) -> String {
    let mut body = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        body.push_str(&rest[..length]);
        text = rest[length..].strip_prefix("\r\n").unwrap_or_default();
    }
    body
}
