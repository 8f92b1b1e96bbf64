//! Configuration that flaps under load: clusters, endpoints, routes and listeners are replaced a hundred times a second, and no
//! request may fail for it.

use crate::{
    certificates::Authority,
    control_plane::ControlPlane,
    http::echo,
    pressure::transport,
    process::Process,
    running::{PATIENCE, Running, http},
    xds::{assignment, eds_cluster},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;

/// A listener whose routes come over ADS; `via` is what changes, `transport` a field of its filter chain.
fn listener(via: usize, transport: &str) -> String {
    format!(
        "{{name: http, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{{transport} filters: [{{name: hcm, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: churn, via: p{via}, drain_timeout: 0.1s, rds: {{route_config_name: routes, config_source: {{ads: {{}}}}}}, \
         http_filters: [{{name: envoy.filters.http.router, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    )
}

/// Routes to the one cluster; how many unused ones stand before is what changes.
fn routes(unused: usize) -> String {
    let unused: String = (0..unused)
        .map(|index| {
            format!("{{match: {{path: /unused/{index}}}, direct_response: {{status: 500}}}}, ")
        })
        .collect();
    format!(
        "{{name: routes, virtual_hosts: [{{name: all, domains: ['*'], routes: [{unused}{{match: {{prefix: /}}, route: {{cluster: eds, timeout: 60s}}}}]}}]}}"
    )
}

/// What the clients count.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    answered: AtomicU64,
}

/// A client with a connection for each request.
async fn anew(to: SocketAddr, load: Arc<Load>) {
    while !load.is_over.load(Relaxed) {
        let (status, _) = http(to, "GET", "/").await;
        assert_eq!(status, 200);
        load.answered.fetch_add(1, Relaxed);
    }
}

/// How a client connects.
struct Client {
    to: SocketAddr,
    tls: Option<TlsConnector>,
    is_http2: bool,
}

/// What sends a client's requests.
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    fn plain(to: SocketAddr) -> Self {
        Self {
            to,
            tls: None,
            is_http2: false,
        }
    }

    async fn connect(&self) -> Sender {
        let stream = TcpStream::connect(self.to).await.unwrap();
        match &self.tls {
            None => self.over(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = "server.test".try_into().unwrap();
                let stream = tls.connect(name, stream).await.unwrap();
                self.over(TokioIo::new(stream)).await
            }
        }
    }

    async fn over(&self, io: impl Read + Write + Unpin + Send + 'static) -> Sender {
        if self.is_http2 {
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Sender::Http1(sender)
        }
    }
}

impl Sender {
    async fn send(&mut self) -> hyper::Result<Response<Incoming>> {
        let request = Request::get("http://test/").header("host", "test");
        let request = request.body(Empty::new()).unwrap();
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// A client that keeps its connection for as long as the proxy does.
async fn kept(client: Client, load: Arc<Load>) {
    let mut sender = client.connect().await;
    let mut is_new = true;
    while !load.is_over.load(Relaxed) {
        match sender.send().await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                load.answered.fetch_add(1, Relaxed);
                is_new = false;
            }
            // An idle connection may be closed just when it is wanted again; one that is new may not, but in HTTP/2 it may be told
            // to open no stream, and then has opened none.
            Err(error) => {
                let is_told = error.is_canceled() || format!("{error:?}").contains("NO_ERROR");
                assert!(!is_new || client.is_http2 && is_told, "{error:?}");
                sender = client.connect().await;
                is_new = true;
            }
        }
    }
}

/// Changes something `times` times, a hundred a second.
async fn flap(plane: &ControlPlane, hosts: [SocketAddr; 2], times: usize, transport: &str) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for round in 0..times {
        ticks.tick().await;
        match round % 4 {
            0 => plane.set::<ClusterLoadAssignment>(&[assignment("eds", hosts[round / 4 % 2])]),
            1 => plane.set::<RouteConfiguration>(&[routes(round % 7)]),
            2 => {
                let other = format!("connect_timeout: {}s", 20 + round % 3);
                let cluster = eds_cluster("eds").replace("connect_timeout: 30s", &other);
                plane.set::<Cluster>(&[cluster]);
            }
            _ => plane.set::<Listener>(&[listener(round, transport)]),
        }
    }
}

async fn started(transport: &str) -> ([SocketAddr; 2], ControlPlane) {
    let hosts = [echo().await, echo().await];
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", hosts[0])]);
    plane.set::<RouteConfiguration>(&[routes(0)]);
    plane.set::<Listener>(&[listener(0, transport)]);
    (hosts, plane)
}

/// Waits for the end of all clients, which have had answers.
async fn end(mut clients: JoinSet<()>, load: &Load) {
    load.is_over.store(true, Relaxed);
    while let Some(client) = timeout(PATIENCE, clients.join_next()).await.unwrap() {
        client.unwrap();
    }
    assert!(load.answered.load(Relaxed) > 0);
}

async fn churn(times: usize) {
    let (hosts, plane) = started("").await;
    // Whoever has just connected must not be cut for a moment in which the machine hangs.
    let proxy = Running::start_with(&plane.bootstrap(), Duration::from_secs(10)).await;
    let address = proxy.address("http").await;
    let load = Arc::<Load>::default();
    let mut clients = JoinSet::new();
    for _ in 0..2 {
        clients.spawn(anew(address, load.clone()));
        clients.spawn(kept(Client::plain(address), load.clone()));
    }
    flap(&plane, hosts, times, "").await;
    end(clients, &load).await;
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
    // The last word of the control plane is in force, and what went before it is gone.
    plane.set::<Listener>(&[listener(usize::MAX, "")]);
    crate::running::eventually("the last listener", || async {
        let (_, dump) = proxy.get("/config_dump?resource=dynamic_listeners").await;
        (dump.contains(&format!("p{}", usize::MAX)) && !dump.contains("draining_state"))
            .then_some(())
    })
    .await;
    for gauge in [
        "http.churn.downstream_rq_active",
        "cluster.eds.upstream_rq_active",
    ] {
        proxy.stat_is(gauge, 0).await;
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_configuration_flaps() {
    churn(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_flaps_leaves_nothing_behind() {
    let ca = Authority::new("ca");
    let transport = transport(&ca);
    let (hosts, plane) = started(&transport).await;
    let arguments = ["--concurrency", "1", "--drain-time-s", "10"];
    let proxy = Process::start(&plane.bootstrap(), &arguments).await;
    proxy.is_ready().await;
    let tls = TlsConnector::from(Arc::new(ca.client(None)));
    let mut before = None;
    for times in [100, 300] {
        let to = proxy.address("http").await;
        let load = Arc::<Load>::default();
        let mut clients = JoinSet::new();
        for is_http2 in [false, true] {
            let tls = Some(tls.clone());
            clients.spawn(kept(Client { to, tls, is_http2 }, load.clone()));
        }
        flap(&plane, hosts, times, &transport).await;
        end(clients, &load).await;
        for gauge in [
            "listener_manager.total_filter_chains_draining",
            "http.churn.downstream_cx_active",
        ] {
            proxy.stat_is(gauge, 0).await;
        }
        let (files, memory) = before.get_or_insert_with(|| (proxy.descriptors(), proxy.own_mib()));
        proxy.has_closed_all_but(*files + 4).await;
        proxy.has_given_back_all_but(*memory + 6.0).await;
    }
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
}
