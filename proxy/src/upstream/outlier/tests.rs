//! Rows of failures, rates, and the way back.

use super::*;
use crate::{
    stats::Store,
    transport::SecretSlots,
    upstream::{ClusterConfig, LoadBalancerContext},
};

fn cluster(outlier: &str, hosts: u16) -> Arc<Cluster> {
    cluster_with(outlier, "", hosts)
}

/// With something else besides.
fn cluster_with(outlier: &str, more: &str, hosts: u16) -> Arc<Cluster> {
    let endpoints: Vec<String> = (1..=hosts)
        .map(|port| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}}}"
            )
        })
        .collect();
    let text = format!(
        "{{name: a, outlier_detection: {outlier}{more}, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{}]}}]}}}}",
        endpoints.join(", ")
    );
    let wire = proto::yaml::from_str(&text).unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    Cluster::new(config, &Arc::new(Store::default()).root()).unwrap()
}

fn host(cluster: &Cluster, index: usize) -> Arc<Host> {
    cluster.hosts().hosts().nth(index).unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_host_that_keeps_failing_is_out_for_a_while() {
    let cluster = cluster(
        "{consecutive_5xx: 3, base_ejection_time: 30s, max_ejection_percent: 50}",
        2,
    );
    let bad = host(&cluster, 0);
    for status in [500, 500, 200, 500, 500] {
        cluster.report(&bad, Outcome::Status(status), 0);
    }
    assert!(bad.is_healthy());
    cluster.report(&bad, Outcome::LocalFailure, 0);
    assert!(!bad.is_healthy());
    for random in 0..20 {
        let context = LoadBalancerContext {
            random,
            ..LoadBalancerContext::default()
        };
        assert_ne!(cluster.choose_host(&context).unwrap().id, bad.id);
    }
    // Half of the hosts is the most that may be out.
    let other = host(&cluster, 1);
    for _ in 0..3 {
        cluster.report(&other, Outcome::Status(503), 0);
    }
    assert!(other.is_healthy());
    let outlier = cluster.outlier().unwrap();
    assert_eq!(outlier.stats.ejections_overflow.value(), 1);
    tokio::time::advance(Duration::from_secs(29)).await;
    outlier.sweep(&cluster);
    assert!(!bad.is_healthy());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(outlier.sweep(&cluster));
    assert!(bad.is_healthy());
    assert_eq!(outlier.stats.ejections_active.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_ejection_lasts_longer() {
    let cluster = cluster(
        "{consecutive_5xx: 1, base_ejection_time: 10s, max_ejection_time: 25s, max_ejection_percent: 100}",
        2,
    );
    let bad = host(&cluster, 0);
    let outlier = cluster.outlier().unwrap();
    for seconds in [10, 20, 25] {
        cluster.report(&bad, Outcome::Status(500), 0);
        tokio::time::advance(Duration::from_secs(seconds - 1)).await;
        outlier.next_sweep.store(0, Relaxed);
        assert!(!outlier.sweep(&cluster), "{seconds}");
        tokio::time::advance(Duration::from_secs(1)).await;
        outlier.next_sweep.store(0, Relaxed);
        assert!(outlier.sweep(&cluster), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_rate_far_below_the_others_ejects() {
    let cluster = cluster(
        "{consecutive_5xx: 0, max_ejection_percent: 50, success_rate_minimum_hosts: 3, success_rate_request_volume: 10, success_rate_stdev_factor: 1000}",
        4,
    );
    for index in 0..4 {
        for round in 0..20 {
            let status = if index == 3 && round % 2 == 0 {
                500
            } else {
                200
            };
            cluster.report(&host(&cluster, index), Outcome::Status(status), 0);
        }
    }
    tokio::time::advance(Duration::from_secs(11)).await;
    let outlier = cluster.outlier().unwrap();
    assert!(outlier.sweep(&cluster));
    assert!(!host(&cluster, 3).is_healthy());
    assert!(host(&cluster, 0).is_healthy());
    assert_eq!(outlier.stats.ejections_enforced_success_rate.value(), 1);
    assert_eq!(host(&cluster, 3).outlier.external.rate(), Some(50.0));
    assert_eq!(host(&cluster, 0).outlier.local.rate(), None);
}

#[tokio::test(start_paused = true)]
async fn the_failure_percentage_ejects_where_it_is_enforced() {
    let settings = "consecutive_5xx: 0, enforcing_success_rate: 0, max_ejection_percent: 50, failure_percentage_minimum_hosts: 2, failure_percentage_request_volume: 10, failure_percentage_threshold: 50";
    for (enforcing, is_healthy) in [(0, true), (100, false)] {
        let cluster = cluster(
            &format!("{{{settings}, enforcing_failure_percentage: {enforcing}}}"),
            2,
        );
        for round in 0..20 {
            cluster.report(&host(&cluster, 0), Outcome::Status(200), 0);
            let status = if round % 2 == 0 { 500 } else { 200 };
            cluster.report(&host(&cluster, 1), Outcome::Status(status), 0);
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        let outlier = cluster.outlier().unwrap();
        outlier.sweep(&cluster);
        assert_eq!(host(&cluster, 1).is_healthy(), is_healthy);
        let detected = outlier.stats.ejections_detected_failure_percentage.value();
        assert_eq!(detected, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn local_failures_are_counted_apart_where_asked_for() {
    let cluster = cluster(
        "{consecutive_5xx: 2, consecutive_local_origin_failure: 3, split_external_local_origin_errors: true, max_ejection_percent: 100}",
        2,
    );
    let bad = host(&cluster, 0);
    cluster.report(&bad, Outcome::Status(500), 0);
    cluster.report(&bad, Outcome::LocalFailure, 0);
    cluster.report(&bad, Outcome::Timeout, 0);
    assert!(bad.is_healthy());
    cluster.report(&bad, Outcome::LocalFailure, 0);
    assert!(!bad.is_healthy());
    let stats = &cluster.outlier().unwrap().stats;
    assert_eq!(
        stats
            .ejections_enforced_consecutive_local_origin_failure
            .value(),
        1
    );
    assert_eq!(stats.ejections_enforced_consecutive_5xx.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn failures_may_be_other_answers_than_those_from_500_on() {
    let status = |code: u16| {
        format!(
            "{{http_response_headers_match: {{headers: [{{name: ':status', string_match: {{exact: '{code}'}}}}]}}}}"
        )
    };
    let options = format!(
        ", typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http_protocol_options: {{}}}}, \
         outlier_detection: {{error_matcher: {{or_match: {{rules: [{}, {}]}}}}}}}}}}",
        status(429),
        status(503)
    );
    let settings = "{consecutive_5xx: 2, max_ejection_percent: 100}";
    let cluster = cluster_with(settings, &options, 2);
    let bad = host(&cluster, 0);
    for status in [500, 500, 429, 500, 503] {
        cluster.report(&bad, Outcome::Status(status), 0);
    }
    assert!(bad.is_healthy());
    cluster.report(&bad, Outcome::Status(429), 0);
    assert!(!bad.is_healthy());
}
