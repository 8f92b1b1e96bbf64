//! Configuration that flaps under load: clusters, endpoints, routes and listeners are replaced a hundred times a second, and no
//! request may fail for it.

use crate::{
    control_plane::ControlPlane,
    http::echo,
    running::{PATIENCE, Running, http},
    xds::{assignment, eds_cluster},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
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
use tokio::net::TcpStream;

/// A listener whose routes come over ADS; `via` is what changes.
fn listener(via: usize) -> String {
    format!(
        "{{name: http, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config: {{\
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

async fn connect(to: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// A client that keeps its connection for as long as the proxy does.
async fn kept(to: SocketAddr, load: Arc<Load>) {
    let mut sender = connect(to).await;
    let mut is_new = true;
    while !load.is_over.load(Relaxed) {
        let request = Request::get("/").header("host", "test");
        let request = request.body(Empty::new()).unwrap();
        let sent = match sender.ready().await {
            Ok(()) => sender.send_request(request).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                load.answered.fetch_add(1, Relaxed);
                is_new = false;
            }
            // An idle connection may be closed just when it is wanted again; one that is new may not.
            Err(error) => {
                assert!(!is_new, "{error:?}");
                sender = connect(to).await;
                is_new = true;
            }
        }
    }
}

/// Changes something `times` times, a hundred a second.
async fn flap(plane: &ControlPlane, hosts: [SocketAddr; 2], times: usize) {
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
            _ => plane.set::<Listener>(&[listener(round)]),
        }
    }
}

async fn churn(times: usize) {
    let hosts = [echo().await, echo().await];
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", hosts[0])]);
    plane.set::<RouteConfiguration>(&[routes(0)]);
    plane.set::<Listener>(&[listener(0)]);
    // Whoever has just connected must not be cut for a moment in which the machine hangs.
    let proxy = Running::start_with(&plane.bootstrap(), Duration::from_secs(10)).await;
    let address = proxy.address("http").await;
    let load = Arc::<Load>::default();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..2 {
        clients.spawn(anew(address, load.clone()));
        clients.spawn(kept(address, load.clone()));
    }
    flap(&plane, hosts, times).await;
    load.is_over.store(true, Relaxed);
    while let Some(client) = tokio::time::timeout(PATIENCE, clients.join_next())
        .await
        .unwrap()
    {
        client.unwrap();
    }
    assert!(load.answered.load(Relaxed) > 0);
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
    // The last word of the control plane is in force, and what went before it is gone.
    plane.set::<Listener>(&[listener(usize::MAX)]);
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
