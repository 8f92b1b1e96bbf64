//! What a large configuration costs: 5,000 clusters and virtual hosts over delta ADS, then changes of one. Runs the program named by
//! `PROXY_BINARY` (ours or Envoy) as a process of its own, so that its CPU time and memory can be read from the system.

use crate::{
    control_plane::{Api, ControlPlane},
    process::Process,
    running::{eventually, http},
};
use proto::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// One of many; `patience` is for its endpoints.
fn cluster(index: usize, connect_timeout: u32, patience: &str) -> String {
    format!(
        "{{name: outbound|80||service-{index}.default.svc.cluster.local, type: EDS, connect_timeout: {connect_timeout}s, \
         eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: {patience}}}}}, \
         circuit_breakers: {{thresholds: [{{max_connections: 4294967295, max_requests: 4294967295, max_retries: 4294967295, max_pending_requests: 4294967295}}]}}}}"
    )
}

fn assignment(index: usize) -> String {
    let (high, low) = (index / 250, index % 250 + 1);
    format!(
        "{{cluster_name: outbound|80||service-{index}.default.svc.cluster.local, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.1.{high}.{low}, port_value: 80}}}}}}}}]}}]}}"
    )
}

fn routes(count: usize) -> String {
    let hosts: Vec<String> = (0..count)
        .map(|index| {
            format!(
                "{{name: service-{index}, domains: [service-{index}.default.svc.cluster.local, \"service-{index}.default.svc.cluster.local:80\", service-{index}], \
                 routes: [{{match: {{prefix: /}}, route: {{cluster: outbound|80||service-{index}.default.svc.cluster.local, timeout: 0s}}}}]}}"
            )
        })
        .collect();
    format!("{{name: outbound, virtual_hosts: [{}]}}", hosts.join(", "))
}

const LISTENER: &str = r#"{name: web, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{filters: [{name: envoy.filters.network.http_connection_manager,
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web,
  rds: {route_config_name: outbound, config_source: {ads: {}}}, http_filters: [{name: envoy.filters.http.router,
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}"#;

async fn counter(admin: SocketAddr, name: &str) -> u64 {
    let (_, text) = http(admin, "GET", &format!("/stats?filter={name}")).await;
    let value = text.lines().find_map(|line| line.rsplit_once(": "));
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// How long an idle moment is looked at.
const IDLE: Duration = Duration::from_secs(3);
/// Changes in a round.
const CHANGES: usize = 20;
/// Between two of them, so that each is a change by itself.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: needs PROXY_BINARY"]
async fn a_large_configuration() {
    let count = std::env::var("CLUSTERS").map_or(5000, |text| text.parse().unwrap());
    let plane = ControlPlane::start().await;
    let clusters: Vec<String> = (0..count).map(|index| cluster(index, 5, "15s")).collect();
    plane.set::<Cluster>(&clusters);
    let assignments: Vec<String> = (0..count).map(assignment).collect();
    plane.set::<ClusterLoadAssignment>(&assignments);
    plane.set::<RouteConfiguration>(&[routes(count)]);
    plane.set::<Listener>(&[LISTENER.to_owned()]);
    let bootstrap = plane.bootstrap_over(Api::DeltaAds);
    // Envoy's flushes, each of a million statistics, would hide what a change costs.
    let bootstrap = format!("{bootstrap}\nstats_flush_interval: 299s");
    let process = Process::start(&bootstrap, &["--concurrency", "1"]).await;
    let admin = process.0;
    let wanted = count as u64 + 1;
    eventually("all clusters", || async {
        let active = counter(admin, "cluster_manager.active_clusters").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let is_live = http(admin, "GET", "/ready").await.0 == 200;
        (active == wanted && is_live).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!(
        "load: {:.2} CPU s, {:.1} MiB",
        process.cpu(),
        process.resident_mib()
    );
    // Clusters change one by one; their share is what is more than an idle moment of the same length.
    let mut spent = Vec::new();
    for round in 0..5 {
        let modified = counter(admin, "cluster_manager.cluster_modified").await;
        tokio::time::sleep(IDLE).await;
        let before = process.run_time();
        tokio::time::sleep(IDLE).await;
        let idle = process.run_time() - before;
        let (before, began) = (process.run_time(), Instant::now());
        for change in 0..CHANGES {
            let heard = plane.heard();
            let index = count / CHANGES * change;
            // Envoy waits in vain for endpoints that it has, and takes no other change meanwhile.
            plane.change::<Cluster>(&cluster(index, 6 + round, "0.2s"));
            eventually("the change", || async {
                (plane.heard() > heard).then_some(())
            })
            .await;
            tokio::time::sleep(PAUSE).await;
        }
        let idle = idle.mul_f64(began.elapsed().div_duration_f64(IDLE));
        let busy = process.run_time() - before;
        let now = counter(admin, "cluster_manager.cluster_modified").await;
        assert_eq!(now, modified + CHANGES as u64);
        spent.push(busy.saturating_sub(idle) / CHANGES as u32);
    }
    spent.sort();
    println!(
        "one change: {:.2} CPU ms (median of {} times {CHANGES})",
        spent[spent.len() / 2].as_secs_f64() * 1000.0,
        spent.len()
    );
}
