//! The order in which configuration comes into force: clusters with their endpoints, then listeners with their routes and secrets;
//! what is not whole yet does not serve, and what served before goes on.

use crate::{
    certificates::{Authority, exchange},
    control_plane::{Api, ControlPlane},
    process::Process,
    running::{eventually, greeter, http, tcp_listener},
    xds::{assignment, eds_cluster},
};
use proto::envoy::{
    config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
    extensions::transport_sockets::tls::v3::Secret,
};
use std::sync::Arc;

const WARMING: &str = "listener_manager.total_listeners_warming";

/// A listener whose routes come over ADS.
fn listener(routes: &str) -> String {
    format!(
        "{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: web, rds: {{route_config_name: {routes}, config_source: {{ads: {{}}}}}}, \
         http_filters: [{{name: envoy.filters.http.router, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    )
}

/// Routes that answer with this text.
fn routes(name: &str, text: &str) -> String {
    format!(
        "{{name: {name}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]}}]}}"
    )
}

async fn is_open(proxy: &Process) -> bool {
    let (_, text) = proxy.get("/listeners").await;
    text.contains("web::")
}

#[tokio::test]
async fn nothing_serves_before_what_it_needs_has_come() {
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<Listener>(&[listener("one")]);
    let proxy = Process::start(&plane.bootstrap(), &["--concurrency", "1"]).await;
    // Endpoints are missing: the cluster warms, and listeners are not even looked at.
    proxy.stat_is("cluster_manager.warming_clusters", 1).await;
    assert_eq!(proxy.get("/ready").await.0, 503);
    assert!(!is_open(&proxy).await);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", greeter("").await)]);
    // Routes are missing: the listener warms, and its port is closed.
    proxy.stat_is(WARMING, 1).await;
    proxy.stat_is("cluster_manager.warming_clusters", 0).await;
    assert_eq!(proxy.get("/ready").await.0, 503);
    assert!(!is_open(&proxy).await);
    plane.set::<RouteConfiguration>(&[routes("one", "first")]);
    proxy.is_ready().await;
    proxy.stat_is(WARMING, 0).await;
    let address = proxy.address("web").await;
    assert_eq!(http(address, "GET", "/").await, (200, "first".to_owned()));
    // The next version of the listener waits for other routes; the one before serves meanwhile.
    plane.set::<Listener>(&[listener("two")]);
    proxy.stat_is(WARMING, 1).await;
    assert_eq!(http(address, "GET", "/").await, (200, "first".to_owned()));
    plane.set::<RouteConfiguration>(&[routes("one", "first"), routes("two", "second")]);
    eventually("the new routes", || async {
        let (_, text) = http(proxy.address("web").await, "GET", "/").await;
        (text == "second").then_some(())
    })
    .await;
    proxy.stat_is(WARMING, 0).await;
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
}

#[tokio::test]
async fn a_listener_waits_for_its_secret_and_follows_it() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let secret = |authority: &Authority| {
        let server = authority.sign("server.test");
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let (chain, key) = (quoted(&server.pem), quoted(&server.key));
        format!(
            "{{name: own, tls_certificate: {{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}}}"
        )
    };
    let transport = "filter_chains: [{transport_socket: {name: tls, typed_config: {\
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {\
        tls_certificate_sds_secret_configs: [{name: own, sds_config: {ads: {}}}]}}}, ";
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", greeter("").await)]);
    plane.set::<Listener>(&[tcp_listener("web", "eds").replace("filter_chains: [{", transport)]);
    let proxy = Process::start(&plane.bootstrap(), &["--concurrency", "1"]).await;
    proxy.stat_is(WARMING, 1).await;
    assert!(!is_open(&proxy).await);
    plane.set::<Secret>(&[secret(&old)]);
    proxy.is_ready().await;
    proxy.stat_is(WARMING, 0).await;
    let address = proxy.address("web").await;
    let (trusts_old, trusts_new) = (Arc::new(old.client(None)), Arc::new(new.client(None)));
    exchange(&trusts_old, address, "server.test").await.unwrap();
    plane.set::<Secret>(&[secret(&new)]);
    eventually("the new certificate", || async {
        exchange(&trusts_new, address, "server.test").await.ok()
    })
    .await;
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
}

#[tokio::test]
async fn a_cut_stream_comes_back_and_tells_what_is_known() {
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", greeter("").await)]);
    plane.set::<Listener>(&[listener("one")]);
    plane.set::<RouteConfiguration>(&[routes("one", "first")]);
    let bootstrap = plane.bootstrap_over(Api::DeltaAds);
    let proxy = Process::start(&bootstrap, &["--concurrency", "1"]).await;
    proxy.is_ready().await;
    let address = proxy.address("web").await;
    let known = [
        (proto::type_url::CLUSTER, "eds"),
        (proto::type_url::ENDPOINT, "eds"),
        (proto::type_url::LISTENER, "web"),
        (proto::type_url::ROUTE, "one"),
    ];
    // Nobody has told anything on the first stream.
    assert!(known.iter().all(|(url, name)| !plane.was_told(url, name)));
    eventually("what is known", || async {
        // Once more each time: a stream that is busy with an answer does not see a cut.
        plane.cut();
        let mut known = known.iter();
        known
            .all(|(url, name)| plane.was_told(url, name))
            .then_some(())
    })
    .await;
    // What came over the first stream has stayed, and what changes comes over the second.
    assert_eq!(http(address, "GET", "/").await, (200, "first".to_owned()));
    plane.set::<RouteConfiguration>(&[routes("one", "second")]);
    eventually("the new routes", || async {
        let (_, text) = http(address, "GET", "/").await;
        (text == "second").then_some(())
    })
    .await;
    assert_eq!(proxy.stat("listener_manager.listener_modified").await, 0);
}

#[tokio::test]
async fn only_what_is_held_is_told_to_a_new_stream() {
    let plane = ControlPlane::start().await;
    plane.stray("stray");
    plane.set::<Cluster>(&[eds_cluster("stays"), eds_cluster("goes")]);
    let address = greeter("").await;
    plane.set::<ClusterLoadAssignment>(&[
        assignment("stays", address),
        assignment("goes", address),
        assignment("stray", address),
    ]);
    plane.set::<Listener>(&[listener("one")]);
    plane.set::<RouteConfiguration>(&[routes("one", "first")]);
    let bootstrap = plane.bootstrap_over(Api::DeltaAds);
    let proxy = Process::start(&bootstrap, &["--concurrency", "1"]).await;
    proxy.is_ready().await;
    plane.set::<Cluster>(&[eds_cluster("stays")]);
    eventually("the cluster gone", || async {
        (proxy.stat("cluster_manager.cluster_removed").await == 1).then_some(())
    })
    .await;
    let was_told = |name| plane.was_told(proto::type_url::ENDPOINT, name);
    eventually("what is held", || async {
        plane.cut();
        was_told("stays").then_some(())
    })
    .await;
    assert!(!was_told("goes") && !was_told("stray"));
}
