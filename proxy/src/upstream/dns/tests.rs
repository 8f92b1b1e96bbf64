//! What answers, no addresses and failures do to strict and to logical clusters. Envoy was asked what it does.

use super::{resolver::has_no_address, *};
use crate::{
    stats::{Counter, Store},
    transport::SecretSlots,
    upstream::ClusterConfig,
};

/// The hosts after each round, of a name that had one address before.
fn hosts_after(kind: &str, rounds: Vec<io::Result<Vec<SocketAddr>>>) -> (Vec<usize>, [u64; 3]) {
    let text = format!(
        "{{name: c, type: {kind}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: x.test, port_value: 80}}}}}}}}]}}]}}}}"
    );
    let wire = proto::yaml::from_str(&text).unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    let cluster = Cluster::new(config, &Arc::new(Store::default()).root()).unwrap();
    let assignment = cluster.config.assignment.clone().unwrap();
    let is_logical = kind == "LOGICAL_DNS";
    let mut answers = Answers::new();
    let mut counts = Vec::new();
    for answer in rounds {
        let mut round = Round::default();
        round.note(&cluster, &mut answers, ("x.test", 80), answer, is_logical);
        assert_ne!(round.has_answers, round.has_failures);
        let localities = endpoints(&cluster, &assignment, &answers, is_logical).unwrap();
        cluster.set_hosts(localities, &assignment);
        counts.push(cluster.hosts().hosts().count());
    }
    let stats = &cluster.stats;
    let stats = [
        &stats.update_success,
        &stats.update_failure,
        &stats.update_empty,
    ];
    (counts, stats.map(Counter::value))
}

fn rounds() -> Vec<io::Result<Vec<SocketAddr>>> {
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    vec![
        Ok(vec![address(1), address(2)]),
        Err(io::Error::other(
            "failed to lookup address information: Temporary failure in name resolution",
        )),
        Ok(Vec::new()),
        Ok(vec![address(3)]),
    ]
}

#[test]
fn a_name_without_addresses_takes_the_hosts_of_a_strict_cluster_along() {
    assert_eq!(
        hosts_after("STRICT_DNS", rounds()),
        (vec![2, 2, 0, 1], [3, 1, 0])
    );
}

#[test]
fn a_logical_cluster_keeps_its_host_whatever_becomes_of_the_name() {
    assert_eq!(
        hosts_after("LOGICAL_DNS", rounds()),
        (vec![1, 1, 1, 1], [2, 2, 0])
    );
}

#[test]
fn what_does_not_exist_is_told_from_what_cannot_be_asked() {
    for (text, is_none) in [
        (
            "failed to lookup address information: Name or service not known",
            true,
        ),
        (
            "failed to lookup address information: No address associated with hostname",
            true,
        ),
        (
            "failed to lookup address information: Temporary failure in name resolution",
            false,
        ),
        ("the resolver does not answer", false),
    ] {
        assert_eq!(has_no_address(&io::Error::other(text)), is_none, "{text}");
    }
}
