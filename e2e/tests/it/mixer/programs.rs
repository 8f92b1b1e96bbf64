//! Mixer and proxies as processes on the loopback, and what a test asks of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::load::HttpClient;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::Leaf;

/// Patience with anything.
const PATIENCE: Duration = Duration::from_secs(60);
const CLIENT: &str = "type.googleapis.com/istio.mixer.v1.config.client";

/// A program that is killed with the test.
pub(super) struct Program(Child);

impl Program {
    fn start(name: &str, arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(e2e::mesh::programs().unwrap().join(name));
        command.args(arguments);
        Self::run(command, log)
    }

    /// Starts a command that writes to a file.
    pub(super) fn run(mut command: Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Program {
    /// SIGKILL.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for an answer.
pub(super) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where a Mixer is to be: a socket, so that it comes back in the same place.
pub(super) struct Place {
    folder: TempDir,
}

/// A Mixer.
pub(super) struct Mixer {
    metrics: String,
    _program: Program,
}

impl Place {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("mixer")
    }

    /// Starts a Mixer with the default configuration and `rules`, and waits until it has them.
    pub(super) async fn start(&self, rules: &str) -> Mixer {
        self.start_with(rules, &[]).await
    }

    /// As [`Self::start`], with further flags.
    pub(super) async fn start_with(&self, rules: &str, flags: &[String]) -> Mixer {
        let config = self.folder.path().join("config");
        std::fs::create_dir_all(&config).unwrap();
        for name in ["attributes.yaml", "kubernetesenv.yaml", "prometheus.yaml"] {
            let default = e2e::mesh::project().join("mixer/default").join(name);
            std::fs::copy(default, config.join(name)).unwrap();
        }
        std::fs::write(config.join("rules.yaml"), rules).unwrap();
        let log = self.folder.path().join("log");
        let address = format!("--address=unix://{}", self.socket().display());
        let store = format!("--configStoreURL=fs://{}", config.display());
        let mut arguments = vec!["server", &address, &store, "--log_as_json"];
        arguments.extend(["--monitoringPort=0", "--prometheusPort=0"]);
        arguments.extend(flags.iter().map(String::as_str));
        let program = Program::start("mixs", &arguments, &log);
        let port = eventually("Mixer serves its configuration", async || {
            let log = std::fs::read_to_string(&log).ok()?;
            log.contains("\"configuration in force\"").then_some(())?;
            let (_, rest) = log.split_once("\"prometheus\":\"Some(")?;
            rest.split_once(')')?.0.parse::<u16>().ok()
        })
        .await;
        Mixer {
            metrics: format!("http://127.0.0.1:{port}/metrics"),
            _program: program,
        }
    }

    /// A cluster of proxies with this Mixer for its host.
    pub(super) fn cluster(&self, name: &str) -> Value {
        cluster_of(name, std::slice::from_ref(self))
    }
}

/// A cluster of proxies with these Mixers for its hosts.
pub(super) fn cluster_of(name: &str, places: &[Place]) -> Value {
    let addresses = places.iter();
    let addresses = addresses.map(|place| json!({"pipe": {"path": place.socket()}}));
    over_http2(cluster_at(name, addresses))
}

impl Mixer {
    /// The sum of a metric over the series that have all of `labels` (`name="value"`).
    pub(super) async fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let page = HttpClient::default().get(&self.metrics).await.unwrap();
        let lines = page.body.lines().filter(|line| {
            line.starts_with(&format!("{metric}{{"))
                && labels.iter().all(|label| line.contains(label))
        });
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until the sum is `wanted`.
    pub(super) async fn sum_is(&self, metric: &str, labels: &[&str], wanted: f64) {
        let mut last = 0.0;
        let wait = async || {
            last = self.sum(metric, labels).await;
            (last >= wanted).then_some(())
        };
        eventually(&format!("{metric}{labels:?} is {wanted}"), wait).await;
        assert!(last <= wanted, "{metric}{labels:?}: {last}, not {wanted}");
    }
}

/// A proxy.
pub(super) struct Proxy {
    admin: SocketAddr,
    _folder: TempDir,
    _program: Program,
}

impl Proxy {
    /// Starts a proxy with one worker and waits until it serves.
    pub(super) async fn start(listeners: &[Value], clusters: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, log) = (folder.path().join("bootstrap"), folder.path().join("log"));
        let address = folder.path().join("admin");
        let bootstrap = json!({
            "node": {"id": "sidecar~10.1.0.1~web-1.shop~shop.svc.cluster.local", "cluster": "web"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        });
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let text = |path: &Path| path.display().to_string();
        let program = Program::start(
            "bireme-proxy",
            &[
                "--config-path",
                &text(&file),
                "--admin-address-path",
                &text(&address),
                "--concurrency",
                "1",
            ],
            &log,
        );
        let admin = eventually("the proxy's admin address", async || {
            std::fs::read_to_string(&address).ok()?.parse().ok()
        })
        .await;
        let proxy = Self {
            admin,
            _folder: folder,
            _program: program,
        };
        eventually("the proxy is ready", async || {
            let answer = HttpClient::default().get(&proxy.url("/ready")).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        proxy
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Where a listener listens.
    pub(super) async fn address(&self, name: &str) -> SocketAddr {
        let url = self.url("/listeners?format=json");
        let text = HttpClient::default().get(&url).await.unwrap().body;
        let all: Value = serde_json::from_str(&text).unwrap();
        let mut statuses = all["listener_statuses"].as_array().unwrap().iter();
        let status = statuses.find(|status| status["name"] == name).unwrap();
        let port = &status["local_address"]["socket_address"]["port_value"];
        let port = u16::try_from(port.as_u64().unwrap()).unwrap();
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The value of a statistic.
    pub(super) async fn stat(&self, name: &str) -> u64 {
        let text = HttpClient::default().get(&self.url("/stats")).await;
        let text = text.unwrap().body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Waits until the statistic is `least` or more.
    pub(super) async fn stat_reaches(&self, name: &str, least: u64) {
        eventually(&format!("{name} reaches {least}"), async || {
            (self.stat(name).await >= least).then_some(())
        })
        .await;
    }
}

/// A port that is free at this moment.
pub(super) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// TLS towards a cluster, with a certificate if there is one.
pub(super) fn tls(roots: &str, leaf: Option<&Leaf>) -> Value {
    let context =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let certificates = leaf.map(|leaf| {
        json!({"certificate_chain": {"inline_string": leaf.chain}, "private_key": {"inline_string": leaf.key}})
    });
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": context,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": certificates.into_iter().collect::<Vec<_>>(),
            "validation_context": {"trusted_ca": {"inline_string": roots}},
        },
    }})
}

/// A cluster with one host.
pub(super) fn cluster(name: &str, host: SocketAddr) -> Value {
    let address = json!({"socket_address": {"address": host.ip(), "port_value": host.port()}});
    cluster_at(name, [address])
}

fn cluster_at(name: &str, addresses: impl IntoIterator<Item = Value>) -> Value {
    let endpoints = addresses.into_iter();
    let endpoints = endpoints.map(|address| json!({"endpoint": {"address": address}}));
    json!({
        "name": name, "connect_timeout": "20s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": endpoints.collect::<Value>()}]},
    })
}

/// The same cluster, spoken to by HTTP/2.
pub(super) fn over_http2(mut cluster: Value) -> Value {
    let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({http2: {
        "@type": format!("type.googleapis.com/{http2}"),
        "explicit_http_config": {"http2_protocol_options": {}}}});
    cluster
}

/// The Mixer filter's configuration for HTTP: `change` is laid over what every test wants.
pub(super) fn http_filter(change: Value) -> Value {
    let mut config = json!({
        "@type": format!("{CLIENT}.HttpClientConfig"),
        "transport": {
            "checkCluster": "policy", "reportCluster": "telemetry", "reportBatchMaxEntries": 1,
            "networkFailPolicy": {"policy": "FAIL_CLOSE"},
        },
        "serviceConfigs": {"default": {}},
        "mixerAttributes": attributes(&[("context.reporter.kind", "inbound"), ("destination.namespace", "shop")]),
    });
    overlay(&mut config, change);
    config
}

/// The Mixer filter's configuration for TCP.
pub(super) fn tcp_filter(namespace: &str) -> Value {
    json!({
        "@type": format!("{CLIENT}.TcpClientConfig"),
        "transport": {"checkCluster": "policy", "reportCluster": "telemetry", "reportBatchMaxEntries": 1},
        "reportInterval": "1s",
        "mixerAttributes": attributes(&[("context.reporter.kind", "inbound"), ("destination.namespace", namespace)]),
    })
}

/// What a route says to the Mixer filter.
pub(super) fn of_route(mut config: Value) -> Value {
    config["@type"] = json!(format!("{CLIENT}.ServiceConfig"));
    json!({"mixer": config})
}

/// Attributes with texts, as configuration has them.
pub(super) fn attributes(entries: &[(&str, &str)]) -> Value {
    let entries = entries
        .iter()
        .map(|(name, text)| ((*name).to_owned(), json!({"stringValue": text})));
    json!({"attributes": entries.collect::<serde_json::Map<_, _>>()})
}

fn overlay(config: &mut Value, change: Value) {
    match (config, change) {
        (Value::Object(config), Value::Object(change)) => {
            for (key, value) in change {
                overlay(config.entry(key).or_insert(Value::Null), value);
            }
        }
        (config, change) => *config = change,
    }
}

/// A listener for HTTP with the Mixer filter.
pub(super) fn http_listener(name: &str, mixer: &Value, routes: &[Value]) -> Value {
    let of = |path: &str| format!("type.googleapis.com/envoy.extensions.filters.{path}");
    let manager = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "mixer", "typed_config": mixer},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": of("http.router.v3.Router")}},
        ],
    });
    listener(
        name,
        &[("envoy.filters.network.http_connection_manager", manager)],
    )
}

/// A listener for TCP with the Mixer filter.
pub(super) fn tcp_listener(name: &str, mixer: Value, cluster: &str) -> Value {
    let proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let proxy = json!({"@type": proxy, "stat_prefix": name, "cluster": cluster});
    listener(
        name,
        &[("mixer", mixer), ("envoy.filters.network.tcp_proxy", proxy)],
    )
}

fn listener(name: &str, filters: &[(&str, Value)]) -> Value {
    let filters: Vec<_> = filters
        .iter()
        .map(|(name, config)| json!({"name": name, "typed_config": config}))
        .collect();
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": filters}],
    })
}

/// A route of a prefix to the cluster `app`.
pub(super) fn route(prefix: &str, mixer: Option<Value>) -> Value {
    json!({
        "match": {"prefix": prefix},
        "route": {"cluster": "app"},
        "typed_per_filter_config": mixer.unwrap_or(json!({})),
    })
}

/// One exchange, the answer as it came.
pub(super) async fn get(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

/// An HTTP server that answers with the head of what it was asked.
pub(super) async fn app() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let show = |request: axum::extract::Request| async move {
        let mut head = format!("path: {}\n", request.uri().path());
        for (name, value) in request.headers() {
            head.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
        }
        ([("x-of-app", "yes")], head)
    };
    let router = axum::Router::new().fallback(show);
    proto_component::task::spawn("app", async move {
        axum::serve(listener, router).await.unwrap();
    });
    address
}

/// A TCP server that says back what it hears.
pub(super) async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    proto_component::task::spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            proto_component::task::spawn("echo-connection", async move {
                let (mut read, mut write) = stream.split();
                // The client may break off.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}
