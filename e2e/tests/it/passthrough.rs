//! Where the mesh says so (`inboundTrafficPolicy: PASSTHROUGH`) a proxy leads what comes to the address that was asked for, and not
//! to the loopback: with our proxy, and with a real Envoy in its place.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::json;

use crate::scene::{self, Scene};
use crate::{SETTLED, proof};

const SETTINGS: &str = "meshConfig.inboundTrafficPolicy.mode=PASSTHROUGH,mixer.enabled=false,\
    gateways.enabled=false";
/// The second's proxy is an Envoy.
const SERVERS: [&str; 2] = ["own", "envoy"];
/// With a sidecar and without.
const CLIENTS: [&str; 2] = ["clients", "outside"];
/// HTTP and lines on the pod's address, and HTTP on the loopback.
const PORTS: [(Protocol, u16, bool); 3] = [
    (Protocol::Http1, 8001, true),
    (Protocol::Tcp, 8004, true),
    (Protocol::Http1, 8002, false),
];

#[tokio::test]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn applications_on_the_address_of_their_pod_are_reached_with_both_data_planes() {
    // Pods have a /tmp of their own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let envoy = proof::envoy(folder.path());
    let mut scene = Scene::up("e2e-passthrough", &["--set", SETTINGS]).await;
    let mut text = scene::namespace("servers", true);
    for (name, proxy) in SERVERS.into_iter().zip([None, Some(&envoy)]) {
        let config = proxy.map(|path| json!({"binaryPath": path}).to_string());
        let annotations = json!({"proxy.istio.io/config": config.unwrap_or_default()});
        text += &include_str!("../passthrough.yaml")
            .replace("{{name}}", name)
            .replace("{{annotations}}", &annotations.to_string());
    }
    for (name, is_injected) in CLIENTS.into_iter().zip([true, false]) {
        text += &scene::namespace(name, is_injected);
        text += &scene::client(name, None);
    }
    scene.apply(&text).await;
    scene.are_ready(SERVERS.len() + CLIENTS.len()).await;
    for client in CLIENTS {
        are_reached(&scene, client).await;
    }
    assert_eq!(scene.mesh.end().await, "");
}

async fn are_reached(scene: &Scene, client: &str) {
    let of = |name: &str| {
        PORTS.map(|(protocol, port, _)| Call::new(protocol, &format!("{name}.servers:{port}")))
    };
    let calls = SERVERS.map(of).concat();
    let wanted = PORTS
        .map(|(_, _, is_reached)| is_reached)
        .repeat(SERVERS.len());
    let mut seen = Vec::new();
    let all = eventually("the pods' addresses are reached", SETTLED, async || {
        seen = scene.call(client, &calls).await;
        seen.iter()
            .map(Outcome::is_served)
            .eq(wanted.iter().copied())
    });
    assert!(all.await.is_ok(), "{client}: {seen:#?}");
}
