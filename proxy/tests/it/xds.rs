//! Configuration over ADS: updates, refusals, removals, drains.

use crate::{
    control_plane::{Api, ControlPlane},
    running::{Running, eventually, greeter, static_cluster, tcp_listener},
};
use proto::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn greeting(from: SocketAddr, length: usize) -> Option<String> {
    let mut stream = TcpStream::connect(from).await.ok()?;
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.ok()?;
    String::from_utf8(text).ok()
}

pub(crate) fn eds_cluster(name: &str) -> String {
    format!(
        "{{name: {name}, type: EDS, connect_timeout: 30s, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}"
    )
}

pub(crate) fn assignment(name: &str, host: SocketAddr) -> String {
    let (ip, port) = (host.ip(), host.port());
    format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}"
    )
}

#[tokio::test]
async fn listeners_wait_for_their_clusters_endpoints_and_follow_them() {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[eds_cluster("eds")]);
    plane.set::<Listener>(&[tcp_listener("tcp", "eds")]);
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", one)]);
    let proxy = Running::start(&plane.bootstrap()).await;
    let address = proxy.address("tcp").await;
    assert_eq!(greeting(address, 3).await.as_deref(), Some("one"));
    plane.set::<ClusterLoadAssignment>(&[assignment("eds", two)]);
    eventually("the new endpoint", || async {
        greeting(address, 3).await.filter(|text| text == "two")
    })
    .await;
    let node = plane.node().unwrap();
    assert_eq!(
        (node.id.as_str(), node.user_agent_name.as_str()),
        ("test", "bireme")
    );
    assert!(
        node.extensions
            .iter()
            .any(|extension| extension.name == "mixer")
    );
    assert!(plane.nacks().is_empty(), "{:?}", plane.nacks());
    proxy.stop().await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_while_good_ones_apply() {
    let one = greeter("one").await;
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[static_cluster("a", one)]);
    plane.set::<Listener>(&[tcp_listener("tcp", "a")]);
    let proxy = Running::start(&plane.bootstrap()).await;
    let address = proxy.address("tcp").await;
    let bad = format!(
        "{{name: a, lb_policy: MAGLEV, maglev_lb_config: {{table_size: 4}}, {}",
        &static_cluster("a", one)[9..]
    );
    plane.set::<Cluster>(&[bad, static_cluster("b", one)]);
    let nacks = eventually("the NACK", || async {
        let nacks = plane.nacks();
        (!nacks.is_empty()).then_some(nacks)
    })
    .await;
    assert!(
        nacks[0].contains("a: maglev_lb_config.table_size: 4 is not a prime"),
        "{nacks:?}"
    );
    // The last good version of the bad one serves on, and the good one has come.
    assert_eq!(greeting(address, 3).await.as_deref(), Some("one"));
    let (_, clusters) = proxy.get("/clusters").await;
    assert!(clusters.contains("b::added_via_api::true"), "{clusters}");
    proxy
        .stat_is("cluster_manager.cds.update_rejected", 1)
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_update_drains_only_the_chains_it_touches() {
    let one = greeter("one").await;
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[static_cluster("a", one), static_cluster("b", one)]);
    plane.set::<Listener>(&[tcp_listener("stays", "a"), tcp_listener("goes", "a")]);
    let proxy = Running::start(&plane.bootstrap()).await;
    let mut stays = TcpStream::connect(proxy.address("stays").await)
        .await
        .unwrap();
    let mut goes = TcpStream::connect(proxy.address("goes").await)
        .await
        .unwrap();
    let mut text = [0; 3];
    stays.read_exact(&mut text).await.unwrap();
    goes.read_exact(&mut text).await.unwrap();
    plane.set::<Listener>(&[tcp_listener("stays", "a"), tcp_listener("goes", "b")]);
    // The drain time of the test is one second.
    assert_eq!(goes.read(&mut text).await.unwrap_or(0), 0);
    stays.write_all(b"yes").await.unwrap();
    stays.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"yes");
    proxy
        .stat_is("listener_manager.listener_in_place_updated", 1)
        .await;
    plane.set::<Listener>(&[tcp_listener("goes", "b")]);
    assert_eq!(stays.read(&mut text).await.unwrap_or(0), 0);
    proxy.stat_is("listener_manager.listener_removed", 1).await;
    proxy.stop().await;
}

#[tokio::test]
async fn what_drains_is_counted_for_as_long() {
    let one = greeter("one").await;
    let plane = ControlPlane::start().await;
    plane.set::<Cluster>(&[static_cluster("a", one), static_cluster("b", one)]);
    plane.set::<Listener>(&[tcp_listener("changes", "a"), tcp_listener("goes", "a")]);
    let proxy = Running::start_with(&plane.bootstrap(), Duration::from_secs(5)).await;
    plane.set::<Listener>(&[tcp_listener("changes", "b")]);
    let gauges = ["total_listeners_draining", "total_filter_chains_draining"];
    for count in [1, 0] {
        for gauge in gauges {
            proxy
                .stat_is(&format!("listener_manager.{gauge}"), count)
                .await;
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn every_way_of_asking_leads_to_the_same_configuration() {
    for api in [Api::DeltaAds, Api::PerType, Api::DeltaPerType] {
        let (one, two) = (greeter("one").await, greeter("two").await);
        let plane = ControlPlane::start().await;
        let cluster = eds_cluster("eds").replace("{ads: {}}", &api.source());
        plane.set::<Cluster>(&[cluster]);
        plane.set::<Listener>(&[tcp_listener("tcp", "eds")]);
        plane.set::<ClusterLoadAssignment>(&[assignment("eds", one)]);
        let proxy = Running::start(&plane.bootstrap_over(api)).await;
        let address = proxy.address("tcp").await;
        assert_eq!(
            greeting(address, 3).await.as_deref(),
            Some("one"),
            "{api:?}"
        );
        plane.set::<ClusterLoadAssignment>(&[assignment("eds", two)]);
        eventually("the new endpoint", || async {
            greeting(address, 3).await.filter(|text| text == "two")
        })
        .await;
        plane.set::<Listener>(&[]);
        eventually("refusal", || async {
            TcpStream::connect(address).await.err()
        })
        .await;
        plane.set::<Cluster>(&[
            "{name: bad, lb_policy: MAGLEV, maglev_lb_config: {table_size: 4}}".to_owned(),
        ]);
        eventually("a NACK", || async {
            plane
                .nacks()
                .iter()
                .any(|nack| nack.contains("maglev_lb_config.table_size"))
                .then_some(())
        })
        .await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_resource_that_is_not_renewed_runs_out() {
    let upstream = greeter("one").await;
    let plane = ControlPlane::start().await;
    plane.set_ttl(Duration::from_millis(300));
    plane.set::<Cluster>(&[static_cluster("short", upstream)]);
    let proxy = Running::start(&plane.bootstrap_over(Api::DeltaAds)).await;
    eventually("the end of the cluster", || async {
        (proxy.stat("cluster_manager.cluster_removed").await == 1).then_some(())
    })
    .await;
    let (_, clusters) = proxy.get("/clusters").await;
    assert!(!clusters.contains("short::"), "{clusters}");
    proxy.stop().await;
}

#[tokio::test]
async fn files_are_watched() {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, kind: &str, resource: &str| {
        let body = resource.replacen(
            '{',
            &format!("{{\"@type\": type.googleapis.com/{kind}, "),
            1,
        );
        // Written beside and moved, as Envoy wants it.
        std::fs::write(
            path("new"),
            format!("{{version_info: \"1\", resources: [{body}]}}"),
        )
        .unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    let eds = format!("{{path_config_source: {{path: {}}}}}", path("eds.yaml"));
    let cluster = eds_cluster("eds").replace("{ads: {}}", &eds);
    write("cds.yaml", "envoy.config.cluster.v3.Cluster", &cluster);
    write(
        "lds.yaml",
        "envoy.config.listener.v3.Listener",
        &tcp_listener("tcp", "eds"),
    );
    write(
        "eds.yaml",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        &assignment("eds", one),
    );
    let proxy = Running::start(&format!(
        "node: {{id: test, cluster: test}}\ndynamic_resources: {{cds_config: {{path_config_source: {{path: {}}}}}, lds_config: {{path_config_source: {{path: {}}}}}}}",
        path("cds.yaml"),
        path("lds.yaml")
    ))
    .await;
    let address = proxy.address("tcp").await;
    assert_eq!(greeting(address, 3).await.as_deref(), Some("one"));
    // A file that is not good leaves everything as it is.
    std::fs::write(path("eds.yaml"), "{resources: [").unwrap();
    eventually("the refusal", || async {
        (proxy.stat("cluster_manager.eds.update_rejected").await > 0).then_some(())
    })
    .await;
    assert_eq!(greeting(address, 3).await.as_deref(), Some("one"));
    write(
        "eds.yaml",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        &assignment("eds", two),
    );
    eventually("the new endpoint", || async {
        greeting(address, 3).await.filter(|text| text == "two")
    })
    .await;
    proxy.stop().await;
}
