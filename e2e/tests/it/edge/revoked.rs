//! The control plane's own ports and those whose certificates are revoked: no new connection, and what they have open is closed.

use std::time::Duration;

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;
use serde_json::Value;

use super::{CONTROL_PLANE, Stage, root, tls};
use crate::SETTLED;
use crate::authority::Leaf;

/// How soon everybody knows of it.
const SECONDS: Duration = Duration::from_secs(30);
const CLIENT: &str = "spiffe://cluster.local/ns/auto/sa/client";

/// A certificate that was stolen is of no use any more; an agent whose identity is revoked loses its configuration; everybody else
/// goes on, also who has lost no more than a certificate.
pub(super) async fn are_refused(stage: &Stage) {
    let stolen = mixers(stage).await;
    reaches(stage, &stolen, 4, "the control plane takes the certificate").await;
    let serial = stolen.serial();
    let told = citadel(stage, &["revoke", "--serial", &serial]).await;
    assert!(told.contains(&serial), "{told}");
    reaches(stage, &stolen, 0, "it is refused everywhere").await;
    eventually("Mixer has another", SETTLED, async || {
        mixers(stage).await.chain != stolen.chain
    })
    .await
    .unwrap();
    reaches(stage, &mixers(stage).await, 4, "that one counts").await;

    let is_connected = async |namespace: &str| {
        let shown = stage.scene.mesh.ctl_ok(&["proxy-status", "-o", "json"]);
        let rows: Value = serde_json::from_str(&shown.await.unwrap()).unwrap();
        let end = format!(".{namespace}");
        let mut names = rows.as_array().unwrap().iter();
        names.any(|row| {
            row["name"]
                .as_str()
                .is_some_and(|name| name.ends_with(&end))
        })
    };
    assert!(is_connected("auto").await && is_connected("servers").await);
    let identity = format!("--identity={CLIENT}");
    citadel(stage, &["revoke", &identity]).await;
    eventually("its stream is closed", SECONDS, async || {
        !is_connected("auto").await
    })
    .await
    .unwrap();
    assert!(is_connected("servers").await);
    citadel(stage, &["restore", &identity]).await;
    eventually("it is served again", SETTLED, async || {
        is_connected("auto").await
    })
    .await
    .unwrap();
}

/// Waits until so many of the four ports take a certificate.
async fn reaches(stage: &Stage, leaf: &Leaf, wanted: usize, what: &str) {
    let mut with = tls("x.test", &root::present(stage).await);
    with.alpn = vec!["h2".to_owned()];
    with.chain.clone_from(&leaf.chain);
    with.key.clone_from(&leaf.key);
    let ports = [
        ("istio-pilot", 15011),
        ("istio-policy", 15004),
        ("istio-telemetry", 15004),
        ("istio-galley", 9901),
    ];
    let calls = ports.map(|(host, port)| {
        let address = format!("{host}.{CONTROL_PLANE}:{port}");
        Call::new(Protocol::Grpc, &address).tls(with.clone())
    });
    let mut outcomes = Vec::new();
    let settled = eventually(what, SECONDS, async || {
        outcomes = stage.scene.call("outside", &calls).await;
        let reached = outcomes.iter().filter(|outcome| outcome.status.is_some());
        reached.count() == wanted
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{what}: {outcomes:?}");
}

/// What Mixer shows to the others.
async fn mixers(stage: &Stage) -> Leaf {
    let read = async |name: &str| {
        let path = format!("/etc/certs/{name}");
        let cat = ["cat", path.as_str()];
        stage
            .scene
            .in_control_plane("deploy/istio-policy", &cat)
            .await
    };
    Leaf {
        chain: read("cert-chain.pem").await,
        key: read("key.pem").await,
        ..Leaf::default()
    }
}

/// An operator's command.
async fn citadel(stage: &Stage, command: &[&str]) -> String {
    let data = "--data-dir=/var/lib/citadel";
    let command = [&["istio_ca"], command, &[data]].concat();
    stage
        .scene
        .in_control_plane("deploy/istio-citadel", &command)
        .await
}
