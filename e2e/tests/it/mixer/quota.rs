//! How exact a quota is that proxies fetch ahead.

use std::net::SocketAddr;
use std::time::Duration;

use proto_component::task;
use serde_json::json;
use tokio::time::Instant;

use super::programs::{Place, get, http_filter, http_listener, of_route, route};
use super::proxy_of;

const QUOTA: &str = r"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: quota, namespace: istio-system}
spec:
  compiledAdapter: memquota
  params: {quotas: [{name: requestcount.instance.istio-system, maxAmount: {{limit}}, validDuration: 600s}]}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: requestcount, namespace: istio-system}
spec: {compiledTemplate: quota, params: {dimensions: {}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: quota, namespace: istio-system}
spec: {actions: [{handler: quota, instances: [requestcount]}]}
";

/// Four clients of each of three proxies use up one quota. The bound: a worker passes no more than was granted, but for what it
/// asked for and has not heard of: what the last second needed, or ten. A slow machine may have two such questions on the way.
#[tokio::test]
async fn a_quota_is_exact_within_what_workers_have_in_flight() {
    const LIMIT: usize = 400;
    const CLIENTS: usize = 4;
    let place = Place::new();
    let rules = QUOTA.replace("{{limit}}", &LIMIT.to_string());
    let _mixer = place.start(&rules).await;
    let quota =
        json!({"quotaSpec": [{"rules": [{"quotas": [{"quota": "requestcount", "charge": 1}]}]}]});
    let routes = [route("/", Some(of_route(quota)))];
    let listeners = [http_listener("inbound", &http_filter(json!({})), &routes)];
    let mut proxies = Vec::new();
    for _ in 0..3 {
        let proxy = proxy_of(&place, &listeners).await;
        let to = proxy.address("inbound").await;
        proxies.push((proxy, to));
    }
    let clients: Vec<Vec<_>> = proxies
        .iter()
        .map(|(_, to)| {
            let client = |_| task::spawn("client", use_up(*to));
            (0..CLIENTS).map(client).collect()
        })
        .collect();
    let (mut passed, mut in_flight) = (0, 0);
    for of_proxy in clients {
        let mut times = Vec::new();
        for client in of_proxy {
            times.extend(client.await.unwrap());
        }
        passed += times.len();
        in_flight += 2 * most_in_a_second(&times).max(10);
    }
    assert!(
        (LIMIT..=LIMIT + in_flight).contains(&passed),
        "{passed} passed of {LIMIT}, with {in_flight} in flight"
    );
    // Most were never asked about.
    for (proxy, _) in &proxies {
        let asked = proxy.stat("http_mixer_filter.total_remote_calls").await;
        assert!(asked < 100, "{asked} calls");
    }
}

/// Asks ten times a second until nothing passes any more; when what passed did.
async fn use_up(to: SocketAddr) -> Vec<Instant> {
    // Two seconds' worth; the time itself may go by while the machine hangs.
    const ENOUGH: usize = 20;
    let mut passed = vec![];
    let mut refused = 0;
    while refused < ENOUGH {
        let answer = get(to, "/", &[]).await;
        if answer.starts_with("HTTP/1.1 200 ") {
            passed.push(Instant::now());
            refused = 0;
        } else {
            refused += 1;
            let why = "Quota is exhausted for: requestcount";
            assert!(answer.contains(why), "{answer}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    passed
}

/// The most that passed in any second.
fn most_in_a_second(passed: &[Instant]) -> usize {
    let in_second_from = |first: &Instant| {
        let second = *first..*first + Duration::from_secs(1);
        passed.iter().filter(|time| second.contains(time)).count()
    };
    passed.iter().map(in_second_from).max().unwrap_or(0)
}
