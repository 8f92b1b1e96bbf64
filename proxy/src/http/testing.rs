//! A connection manager on a real socket for tests: static clusters, upstreams that follow a script, raw clients.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals and tables read best in place"
)]

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::envoy::config::cluster::v3::Cluster as WireCluster;
use proto::envoy::config::core::v3::Node;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use proto_component::drain::{Drain, Trigger};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::config::RouteSlots;
use crate::listener::{ConnectionInfo, Direction};
use crate::network::FactoryContext;
use crate::server::{ServerContext, ServerParts};
use crate::stream_info::testing::connection;
use crate::transport::{DownstreamStream, RawStream, SecretSlots};
use crate::upstream::{Cluster, ClusterConfig};
use crate::worker::Worker;

use super::codec;
use super::config::ConnectionManager;
use super::stream::DownstreamConnection;

/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection manager that serves.
pub(crate) struct Proxy {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// The process's shared parts.
    pub(crate) server: Arc<ServerContext>,
    /// Starts the drain.
    pub(crate) trigger: Trigger,
}

/// An upstream: every request it gets (its head and what body came with it) is told, every answer is scripted.
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    requests: mpsc::UnboundedReceiver<String>,
}

impl Upstream {
    /// Answers each request with the next of `answers` (the last one again and again). An empty answer closes.
    pub(crate) async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let answers: Rc<[String]> = answers.iter().map(ToString::to_string).collect();
        let turn = Rc::new(std::cell::Cell::new(0));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(answer(
                    stream,
                    answers.clone(),
                    turn.clone(),
                    sender.clone(),
                ));
            }
        });
        Upstream { address, requests }
    }

    /// The next request, as its bytes came.
    pub(crate) async fn request(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.requests.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// A static cluster of this upstream alone.
    pub(crate) fn cluster(&self, name: &str) -> Value {
        cluster(name, self.address)
    }
}

/// A static cluster of one address.
pub(crate) fn cluster(name: &str, address: SocketAddr) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "30s", "load_assignment": {"cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {
            "address": address.ip().to_string(), "port_value": address.port()}}}}]}]}})
}

/// A static cluster of one address that speaks HTTP/2.
pub(crate) fn grpc_cluster(name: &str, address: SocketAddr) -> Value {
    let mut cluster = cluster(name, address);
    cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}});
    cluster
}

/// A gRPC server: every message it gets is told with its method; calls are answered with scripted messages (the last one
/// again and again, an empty one without any).
pub(crate) struct GrpcServer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    requests: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
}

impl GrpcServer {
    /// Answers each call with the next of `answers`.
    pub(crate) async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let answers: Rc<[Vec<u8>]> = answers.into();
        let turn = Rc::new(std::cell::Cell::new(0));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, turn, sender) = (answers.clone(), turn.clone(), sender.clone());
                tokio::task::spawn_local(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let index = turn.replace(turn.get() + 1).min(answers.len().max(1) - 1);
                        let answer = answers.get(index).cloned().unwrap_or_default();
                        let sender = sender.clone();
                        tokio::task::spawn_local(call(request, respond, answer, sender));
                    }
                });
            }
        });
        GrpcServer { address, requests }
    }

    /// The next message, with its method.
    pub(crate) async fn request(&mut self) -> (String, Vec<u8>) {
        tokio::time::timeout(PATIENCE, self.requests.recv())
            .await
            .unwrap()
            .unwrap()
    }
}

async fn call(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    answer: Vec<u8>,
    sender: mpsc::UnboundedSender<(String, Vec<u8>)>,
) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
        while bytes.len() >= 5 {
            let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
            if bytes.len() < 5 + length {
                break;
            }
            let _ = sender.send((path.clone(), bytes[5..5 + length].to_vec()));
            bytes.drain(..5 + length);
        }
    }
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut stream) = respond.send_response(head.body(()).unwrap(), false) else {
        return;
    };
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(answer.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(&answer);
    let _ = stream.send_data(framed.into(), false);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = stream.send_trailers(trailers);
}

async fn answer(
    mut stream: TcpStream,
    answers: Rc<[String]>,
    turn: Rc<std::cell::Cell<usize>>,
    requests: mpsc::UnboundedSender<String>,
) {
    while let Some(request) = read_message(&mut stream, false).await {
        let _ = requests.send(request);
        let index = turn.replace(turn.get() + 1).min(answers.len() - 1);
        if answers[index] == "(silence)" {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            return;
        }
        if answers[index].is_empty() || stream.write_all(answers[index].as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads one HTTP/1 message: its head, and its body by length, by chunks or (responses) to the end.
pub(crate) async fn read_message(stream: &mut TcpStream, is_response: bool) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            if head.starts_with("http/1.1 100") {
                bytes.drain(..end + 4);
                continue;
            }
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|text| text.parse::<usize>().ok());
            let is_chunked = head.contains("transfer-encoding: chunked");
            let is_over = match length {
                Some(length) => bytes.len() >= end + 4 + length,
                None if is_chunked => bytes.ends_with(b"0\r\n\r\n"),
                None => {
                    !is_response
                        || head.contains(" 101 ")
                        || head.contains(" 204 ")
                        || head.contains(" 304 ")
                }
            };
            if is_over {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

impl Proxy {
    /// Serves `routes` (the routes of one virtual host for all domains) with only the router filter.
    pub(crate) async fn with_routes(routes: Value, clusters: &[Value]) -> Self {
        Proxy::start(manager(routes), clusters).await
    }

    /// Serves a connection manager's configuration.
    pub(crate) async fn start(config: Value, clusters: &[Value]) -> Self {
        Proxy::start_towards(Direction::Unspecified, config, clusters).await
    }

    /// The same on a listener whose connections go one way.
    pub(crate) async fn start_towards(
        direction: Direction,
        config: Value,
        clusters: &[Value],
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, drain) = proto_component::drain::channel();
        let server = server(clusters, &trigger, &drain);
        let config: HttpConnectionManager = proto::json::from_value(&config).unwrap();
        let routes = Arc::<RouteSlots>::default();
        let (extensions, used) = Default::default();
        let context = FactoryContext {
            server: &server,
            routes: &routes,
            stats: &server.stats,
            listener: &server.stats.scope("listener"),
            extensions: &extensions,
            used: &used,
            direction,
        };
        let manager = Arc::new(ConnectionManager::try_new(&config, &context).unwrap());
        let worker = Rc::new(Worker::new(0, server.clone()));
        super::export::enter_worker(&worker);
        tokio::task::spawn_local(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                let raw = RawStream::tcp(stream, Bytes::new());
                let stream = DownstreamStream::raw(raw);
                let info = ConnectionInfo {
                    remote_address: remote,
                    direct_remote_address: remote,
                    local_address: address,
                    ..connection()
                };
                let downstream =
                    DownstreamConnection::new(manager.clone(), Rc::new(info), worker.clone());
                tokio::task::spawn_local(codec::serve(stream, downstream, drain.clone()));
            }
        });
        Proxy {
            address,
            server,
            trigger,
        }
    }

    /// Sends raw bytes and reads one response.
    pub(crate) async fn send(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        self.receive(&mut stream).await
    }

    /// Reads one response.
    pub(crate) async fn receive(&self, stream: &mut TcpStream) -> String {
        tokio::time::timeout(PATIENCE, read_message(stream, true))
            .await
            .unwrap()
            .unwrap_or_default()
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// GET of a path, with more header lines.
    pub(crate) async fn get(&self, path: &str, headers: &str) -> String {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n"
        ))
        .await
    }

    /// A counter's or gauge's value; 0 when there is none.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let reading = self.server.store.read(|full, _| full == name).pop();
        match reading.map(|reading| reading.value) {
            Some(crate::stats::Value::Counter(value) | crate::stats::Value::Gauge(value)) => value,
            _ => 0,
        }
    }
}

/// A connection manager with routes for all domains and only the router filter.
pub(crate) fn manager(routes: Value) -> Value {
    json!({"stat_prefix": "test", "codec_type": "AUTO",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [router()]})
}

/// The router filter.
pub(crate) fn router() -> Value {
    json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}})
}

/// Puts filters before the router.
pub(crate) fn with_filters(mut config: Value, filters: &[Value]) -> Value {
    let mut all = filters.to_vec();
    all.push(router());
    config["http_filters"] = Value::Array(all);
    config
}

/// A filter by the end of its name and of its message.
pub(crate) fn filter(name: &str, message: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!(
        "type.googleapis.com/envoy.extensions.filters.http.{message}"
    ));
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
}

/// A proxy with filters and one route, which is extended.
pub(crate) async fn proxy_with(
    filters: &[Value],
    route_extra: Value,
    upstream: &Upstream,
) -> Proxy {
    let mut route = json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}});
    route
        .as_object_mut()
        .unwrap()
        .extend(route_extra.as_object().unwrap().clone());
    Proxy::start(
        with_filters(manager(json!([route])), filters),
        &[upstream.cluster("c")],
    )
    .await
}

pub(crate) fn server(clusters: &[Value], trigger: &Trigger, drain: &Drain) -> Arc<ServerContext> {
    let server = ServerContext::new(ServerParts {
        node: Node {
            id: "node".into(),
            cluster: "cluster".into(),
            ..Node::default()
        },
        drain_time: PATIENCE,
        log_flush_interval: std::time::Duration::from_millis(250),
        drain: drain.clone(),
        quit: trigger.clone(),
        concurrency: 1,
        overload: crate::overload::OverloadConfig::default(),
    });
    let secrets = SecretSlots::default();
    let built = clusters.iter().map(|wire| {
        let wire: WireCluster = proto::json::from_value(wire).unwrap();
        Cluster::new(ClusterConfig::new(wire, &secrets).unwrap(), &server.stats).unwrap()
    });
    let built: Vec<_> = built.collect();
    server.clusters.update(built, &[]);
    server
}

/// Runs a test on a worker's kind of runtime.
pub(crate) fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}
