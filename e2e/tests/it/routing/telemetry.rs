//! What proxies tell: spans to collectors, lines in their logs, and numbers beside those of the application.

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;

use super::CLIENTS;
use super::inside::{NAMESPACE, SERVERS, both};
use crate::SETTLED;
use crate::scene::Scene;

/// Everybody tells what a Telemetry asks for, in its words.
pub(super) async fn is_told(scene: &Scene) {
    scene
        .apply(include_str!("../../routing/telemetry.yaml"))
        .await;
    // What fails is not for the clients' logs.
    let failed = Call::new(Protocol::Http1, "app.servers:80")
        .host("exported.test")
        .target("/failed");
    let calls = [
        vec![failed],
        both(8001).map(|call| call.target("/traced")).to_vec(),
    ]
    .concat();
    let seen = [Call::new(Protocol::Http1, "collector.telling:9411").target("/seen")];
    let mut missing = Vec::new();
    let all = eventually("everything is told", SETTLED, async || {
        let mut told = Vec::new();
        for client in CLIENTS {
            scene.call(client, &calls).await;
            let log = log(scene, client, "client").await;
            assert!(!log.contains("told /failed"), "{client}: {log}");
            for server in SERVERS {
                let line = format!("told /traced of {server}.{NAMESPACE}:8001");
                told.push((format!("{client}: {line}"), log.contains(&line)));
            }
        }
        for server in SERVERS {
            let log = log(scene, NAMESPACE, server).await;
            let is_told = |line: &str| {
                line.contains("\"told\":\"/traced\"") && line.contains("\"status\":200")
            };
            told.push((format!("{server}'s log"), log.lines().any(is_told)));
        }
        let spans = scene.call("outside", &seen).await.remove(0).text;
        let tags = ["/api/v2/spans", "by-telemetry", "TraceService/Export"];
        let of_clients = CLIENTS.map(|client| format!("\"serviceName\":\"client.{client}\""));
        let of_servers = SERVERS.map(|server| format!("{server}.{NAMESPACE}"));
        let wanted = tags
            .map(str::to_owned)
            .into_iter()
            .chain(of_clients)
            .chain(of_servers);
        told.extend(wanted.map(|part| (part.clone(), spans.contains(&part))));
        missing = told.into_iter().filter(|(_, is_told)| !is_told).collect();
        missing.is_empty()
    });
    assert!(all.await.is_ok(), "not told: {missing:?}");
}

async fn log(scene: &Scene, namespace: &str, workload: &str) -> String {
    let of = format!("deploy/{workload}");
    let arguments = ["local", "logs", "-n", namespace, &of, "-c", "istio-proxy"];
    scene.mesh.ctl_ok(&arguments).await.unwrap()
}

/// One page has the application's numbers and its proxy's.
pub(super) async fn is_counted(scene: &Scene) {
    let mut pages = Vec::new();
    for server in SERVERS {
        let ip = scene.pod_ip(NAMESPACE, server).await;
        let page = Call::new(Protocol::Http1, &format!("{ip}:15020")).target("/stats/prometheus");
        pages.push(page);
    }
    let outcomes = scene.call("outside", &pages).await;
    for (server, outcome) in SERVERS.iter().zip(outcomes) {
        for number in ["orders_total 7", "envoy_server_live"] {
            assert!(outcome.text.contains(number), "{server}: {outcome:?}");
        }
    }
}
