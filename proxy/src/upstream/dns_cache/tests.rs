//! Waits for names, and how long answers count.

use super::*;
use crate::{stats::Store, transport::SecretSlots, upstream::ClusterConfig};

#[tokio::test]
async fn a_wait_that_is_given_up_is_no_longer_pending() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = format!(
        "{{name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: d, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {{name: d, \
         dns_resolution_config: {{resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}]}}}}}}}}}}"
    );
    let wire = proto::yaml::from_str(&text).unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    let cluster = Cluster::new(config, &Arc::new(Store::default()).root()).unwrap();
    let pending = || {
        let cache = cluster.dns_cache.as_ref().unwrap();
        cache.pending.load(Relaxed)
    };
    let mut wait = Box::pin(cluster.clone().resolve("x.test"));
    assert!(futures::poll!(&mut wait).is_pending());
    assert_eq!(pending(), 1);
    drop(wait);
    assert_eq!(pending(), 0);
}

#[test]
fn an_answer_counts_no_longer_than_a_name_that_nobody_uses() {
    let wire: Wire = proto::yaml::from_str("{name: d, host_ttl: 60s}").unwrap();
    let config = DnsCacheConfig::try_from(&wire).unwrap();
    let pause = |ttl| config.pause(Duration::from_secs(ttl)).as_secs();
    assert_eq!([0, 30, u64::MAX].map(pause), [5, 30, 60]);
}
