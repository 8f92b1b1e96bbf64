//! Shares, panic, degraded hosts, locality weights.

use super::*;
use crate::upstream::{
    HealthFlag,
    host::testing::{host, host_at},
};
use std::collections::HashMap;

fn locality(priority: u32, hosts: Vec<Arc<Host>>) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: Arc::default(),
        priority,
        weight: None,
        hosts,
    }
}

fn balancing(text: &str) -> Balancing {
    let wire = proto::yaml::from_str(&format!("{{name: a{text}}}")).unwrap();
    Balancing::of(&wire, &crate::upstream::Discovery::Static).unwrap()
}

fn build_with(localities: Vec<LocalityEndpoints>, balancing: &Balancing) -> HostSets {
    let options = BuildOptions {
        balancing,
        overprovisioning: 140,
        scale: None,
        local: None,
        runtime: &RuntimeView::default(),
    };
    HostSets::build(localities, options)
}

fn build(localities: Vec<LocalityEndpoints>) -> HostSets {
    build_with(localities, &balancing(""))
}

/// How often each host (by the last number of its address) is chosen of 1,000 times.
fn shares(
    sets: &HostSets,
    balancing: &Balancing,
    context: &LoadBalancerContext<'_>,
) -> HashMap<u8, u32> {
    let stats = ClusterStats::default();
    let mut counts = HashMap::new();
    for seed in 0..1000 {
        if let Some(host) = sets.choose(context, balancing, mix(seed), 0, &stats) {
            let std::net::IpAddr::V4(ip) = host.socket_address().unwrap().ip() else {
                panic!("not IPv4");
            };
            *counts.entry(ip.octets()[3]).or_default() += 1;
        }
    }
    counts
}

#[test]
fn traffic_spills_to_the_next_priority_with_overprovisioning() {
    let first = vec![host(1, true), host(2, false)];
    let sets = build(vec![locality(0, first), locality(1, vec![host(3, true)])]);
    assert_eq!(sets.loads.healthy, vec![70, 30]);
    assert!(!sets.priorities[0].is_panic);
    assert_eq!(sets.priorities[0].healthy, 1);
}

/// The table of Envoy's documentation on priority levels.
#[test]
fn loads_are_those_of_envoys_tables() {
    let census = |percents: &[usize]| -> Vec<Census> {
        percents
            .iter()
            .map(|healthy| Census {
                all: 100,
                healthy: *healthy,
                ..Census::default()
            })
            .collect()
    };
    for (healthy, loads) in [
        (vec![100, 100], vec![100, 0]),
        (vec![72, 72], vec![100, 0]),
        (vec![71, 71], vec![99, 1]),
        (vec![50, 60], vec![70, 30]),
        (vec![25, 100], vec![35, 65]),
        (vec![25, 25], vec![50, 50]),
        (vec![100, 100, 100], vec![100, 0, 0]),
        (vec![25, 40, 40], vec![35, 56, 9]),
        (vec![5, 75, 75], vec![7, 93, 0]),
    ] {
        let (spread, _) = Loads::new(&census(&healthy), 140, 0.0);
        assert_eq!(spread.healthy, loads, "{healthy:?}");
    }
    // Together they are short of 100: each is in panic by itself, and in total panic the number of hosts counts.
    let (spread, panics) = Loads::new(&census(&[25, 25]), 140, 50.0);
    assert_eq!((spread.healthy, panics), (vec![50, 50], vec![true, true]));
    let (spread, panics) = Loads::new(&census(&[0, 0]), 140, 0.0);
    assert_eq!(panics, vec![false, false]);
    assert_eq!(spread.pick(0, &[]), None);
}

#[test]
fn degraded_hosts_take_what_healthy_ones_cannot() {
    let degraded = host(2, true);
    degraded.raise(HealthFlag::DEGRADED_EDS);
    let sets = build(vec![locality(
        0,
        vec![host(1, true), degraded, host(3, false), host(4, false)],
    )]);
    assert_eq!(sets.loads.healthy, vec![50]);
    assert_eq!(sets.loads.degraded, vec![50]);
    let counts = shares(&sets, &balancing(""), &LoadBalancerContext::default());
    assert_eq!(counts.len(), 2);
    assert!((400..600).contains(&counts[&2]), "{counts:?}");
}

#[test]
fn all_hosts_are_used_when_too_few_are_healthy() {
    let hosts = vec![host(1, false), host(2, false), host(3, true)];
    let sets = build(vec![locality(0, hosts.clone())]);
    assert!(sets.priorities[0].is_panic);
    let context = LoadBalancerContext::default();
    assert_eq!(shares(&sets, &balancing(""), &context).len(), 3);
    // Unless nobody is to be used then.
    let fails =
        balancing(", common_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true}}");
    let sets = build_with(vec![locality(0, hosts.clone())], &fails);
    assert!(shares(&sets, &fails, &context).is_empty());
    // Or there is no panic.
    let never = balancing(", common_lb_config: {healthy_panic_threshold: {value: 0}}");
    let sets = build_with(vec![locality(0, hosts)], &never);
    assert_eq!(shares(&sets, &never, &context)[&3], 1000);
}

#[test]
fn no_hosts_means_no_load() {
    assert_eq!(build(vec![]).loads.pick(0, &[]), None);
    assert_eq!(build(vec![locality(0, vec![])]).loads.pick(0, &[]), None);
}

#[test]
fn a_retry_elsewhere_goes_to_a_priority_that_was_not_tried() {
    let sets = build(vec![
        locality(0, vec![host(1, true)]),
        locality(1, vec![host(2, true)]),
    ]);
    assert_eq!(sets.loads.pick(0, &[]), Some((0, false)));
    assert_eq!(sets.loads.pick(0, &[0]), Some((1, false)));
    assert_eq!(sets.loads.pick(0, &[0, 1]), Some((0, false)));
}

#[test]
fn localities_get_their_weight_times_their_health() {
    let weighted = balancing(", common_lb_config: {locality_weighted_lb_config: {}}");
    let zone = |name: &str, weight, hosts: Vec<Arc<Host>>| LocalityEndpoints {
        locality: hosts.first().map_or_else(
            || {
                Arc::new(Locality {
                    zone: name.to_owned(),
                    ..Locality::default()
                })
            },
            |host| host.locality.clone(),
        ),
        priority: 0,
        weight: Some(weight),
        hosts,
    };
    let sets = build_with(
        vec![
            zone("a", 1, vec![host_at("a", 1, true)]),
            zone("b", 3, vec![host_at("b", 2, true)]),
        ],
        &weighted,
    );
    let counts = shares(&sets, &weighted, &LoadBalancerContext::default());
    assert!((200..300).contains(&counts[&1]), "{counts:?}");
    // Half of b is gone: its weight shrinks to 70 %.
    let sets = build_with(
        vec![
            zone("a", 1, vec![host_at("a", 1, true), host_at("a", 3, true)]),
            zone("b", 1, vec![host_at("b", 2, true), host_at("b", 4, false)]),
        ],
        &weighted,
    );
    let counts = shares(&sets, &weighted, &LoadBalancerContext::default());
    assert!((370..450).contains(&counts[&2]), "{counts:?}");
}
