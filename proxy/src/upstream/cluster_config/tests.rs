//! What a cluster may say, and what is refused.

use super::*;

fn config(fields: &str) -> Result<ClusterConfig, Invalid> {
    let wire = proto::yaml::from_str(&format!("{{name: a, {fields}}}")).unwrap();
    ClusterConfig::new(wire, &SecretSlots::default())
}

#[test]
fn what_is_not_supported_is_refused_with_its_path() {
    for (fields, path) in [
        ("upstream_config: {name: x}", "upstream_config"),
        ("lrs_server: {self: {}}", "lrs_server"),
        (
            "circuit_breakers: {per_host_thresholds: [{max_requests: 1}]}",
            "circuit_breakers.per_host_thresholds",
        ),
        (
            "preconnect_policy: {predictive_preconnect_ratio: 3.1}",
            "preconnect_policy.predictive_preconnect_ratio",
        ),
        (
            "upstream_bind_config: {freebind: true}",
            "upstream_bind_config",
        ),
        (
            "type: LOGICAL_DNS, load_assignment: {cluster_name: a}",
            "load_assignment",
        ),
        ("type: ORIGINAL_DST, lb_policy: ROUND_ROBIN", "lb_policy"),
        (
            "health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1}]",
            "health_checks[0]",
        ),
        (
            "type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: REST}}}",
            "eds_cluster_config.eds_config.api_config_source.api_type",
        ),
    ] {
        let error = config(fields).err().map(|error| error.to_string());
        let error = error.unwrap_or_default();
        assert!(error.starts_with(path), "{fields}: {error}");
    }
}

#[test]
fn breakers_by_host_say_nothing_of_what_remains() {
    let limit =
        "circuit_breakers: {per_host_thresholds: [{max_connections: 1, track_remaining: true}]}";
    assert!(config(limit).is_ok());
}

#[test]
fn connections_may_be_made_ahead() {
    let policy = "{predictive_preconnect_ratio: 2.5, per_upstream_preconnect_ratio: 1.5}";
    let config = config(&format!("preconnect_policy: {policy}")).unwrap();
    let wanted = Preconnect {
        by_host: 1.5,
        predictive: 2.5,
    };
    assert_eq!(config.preconnect, wanted);
}

#[test]
fn the_dns_extension_is_the_older_types_in_another_form() {
    let dns = |more: &str| {
        config(&format!(
            "cluster_type: {{name: envoy.clusters.dns, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, \
             dns_refresh_rate: 7s, dns_lookup_family: V4_ONLY{more}}}}}, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{}}]}}]}}"
        ))
        .unwrap()
        .discovery
    };
    let older = config(
        "type: STRICT_DNS, dns_refresh_rate: 7s, dns_lookup_family: V4_ONLY, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{}]}]}",
    );
    assert_eq!(dns(""), older.unwrap().discovery);
    assert!(matches!(
        dns(", all_addresses_in_single_endpoint: true"),
        Discovery::LogicalDns(_)
    ));
}
