//! The merge rule, as a table.

use super::*;
use proto::istio::networking::v1alpha3::{
    PortSelector, connection_pool_settings::TcpSettings, traffic_policy::PortTrafficPolicy,
};

fn balancer(simple: SimpleLb) -> Option<LoadBalancerSettings> {
    Some(LoadBalancerSettings {
        lb_policy: Some(WirePolicy::Simple(simple as i32)),
        ..LoadBalancerSettings::default()
    })
}

fn pool(max_connections: i32) -> Option<ConnectionPoolSettings> {
    let tcp = Some(TcpSettings {
        max_connections,
        ..TcpSettings::default()
    });
    Some(ConnectionPoolSettings {
        tcp,
        ..ConnectionPoolSettings::default()
    })
}

fn max_connections(policy: &TrafficPolicy<'_>) -> Option<i32> {
    policy
        .connection_pool
        .and_then(|pool| pool.tcp.as_ref())
        .map(|tcp| tcp.max_connections)
}

#[test]
fn subset_overrides_group_by_group() {
    let top = wire::TrafficPolicy {
        load_balancer: balancer(SimpleLb::Random),
        connection_pool: pool(1),
        ..Default::default()
    };
    let subset = wire::TrafficPolicy {
        connection_pool: pool(2),
        ..Default::default()
    };
    let merged = TrafficPolicy::default()
        .merge(Some(&top), 80)
        .merge(Some(&subset), 80);
    assert_eq!(max_connections(&merged), Some(2));
    assert!(merged.load_balancer.is_some());
}

#[test]
fn port_entry_replaces_all_groups_even_those_it_leaves_out() {
    let entry = PortTrafficPolicy {
        port: Some(PortSelector { number: 80 }),
        load_balancer: balancer(SimpleLb::RoundRobin),
        ..Default::default()
    };
    let top = wire::TrafficPolicy {
        connection_pool: pool(1),
        port_level_settings: vec![entry],
        ..Default::default()
    };
    assert_eq!(
        max_connections(&TrafficPolicy::default().merge(Some(&top), 80)),
        None
    );
    assert_eq!(
        max_connections(&TrafficPolicy::default().merge(Some(&top), 81)),
        Some(1)
    );
}

#[test]
fn subset_without_an_entry_for_the_port_keeps_the_hosts_entry() {
    let entry = PortTrafficPolicy {
        port: Some(PortSelector { number: 80 }),
        connection_pool: pool(7),
        ..Default::default()
    };
    let top = wire::TrafficPolicy {
        port_level_settings: vec![entry],
        ..Default::default()
    };
    let subset = wire::TrafficPolicy {
        load_balancer: balancer(SimpleLb::Random),
        ..Default::default()
    };
    let merged = TrafficPolicy::default()
        .merge(Some(&top), 80)
        .merge(Some(&subset), 80);
    assert_eq!(max_connections(&merged), Some(7));
    assert!(merged.load_balancer.is_some());
}

#[test]
fn old_consecutive_errors_count_gateway_errors_only() {
    #[allow(deprecated, reason = "it is the old field that is tested")]
    let settings = wire::OutlierDetection {
        consecutive_errors: 3,
        ..Default::default()
    };
    let policy = TrafficPolicy {
        outlier_detection: Some(&settings),
        ..TrafficPolicy::default()
    };
    let mut cluster = Cluster::default();
    policy.apply_outlier_detection(&mut cluster);
    let detection = cluster.outlier_detection.unwrap();
    assert_eq!(detection.consecutive_gateway_failure, Some(3));
    assert_eq!(detection.enforcing_consecutive_5xx, Some(0));
    assert_eq!(
        cluster
            .common_lb_config
            .unwrap()
            .healthy_panic_threshold
            .unwrap()
            .value,
        0.0
    );
}
