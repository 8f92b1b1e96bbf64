//! Components that are switched off: the rest works, and says what it lacks.

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, send_everybody_to_red_stars, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn without_citadel_and_mixer_the_page_comes_over_plaintext_at_once() {
    let off = "security.enabled=false,mixer.enabled=false";
    let mut mesh = Mesh::up("e2e-no-citadel", &["--set", off]).await.unwrap();
    for what in [
        "security (no certificates",
        "mixer.policy (no checks",
        "mixer.telemetry (no mesh metrics",
    ] {
        says(&mesh, &format!("Switched off: {what}")).await;
    }
    settles(&mesh, "the page", 3, has_details).await;
    let log = mesh
        .ctl_ok(&["local", "logs", "deploy/details-v1", "-c", "istio-proxy"])
        .await
        .unwrap();
    assert_eq!(log.matches("no certificate of its own").count(), 1, "{log}");
    assert!(!has_mixer_filters(&mesh).await);
    assert_eq!(mesh.end().await, "");
}

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn without_galley_its_readers_read_files() {
    let off = "galley.enabled=false,mixer.policy.enabled=false";
    let mut mesh = Mesh::up("e2e-no-galley", &["--set", off]).await.unwrap();
    says(&mesh, "Switched off: galley (configuration is not checked").await;
    settles(&mesh, "the page", 3, has_details).await;
    send_everybody_to_red_stars(&mesh).await;
    // The half that is there is told, the other one is not asked.
    for target in WITH_FILTERS {
        let dump = filters(&mesh, target).await;
        assert!(dump.contains(MIXER_FILTER) && dump.contains("istio-telemetry"));
        assert!(!dump.contains("istio-policy"), "{target}: {dump}");
    }
    assert_eq!(mesh.end().await, "");
}

const MIXER_FILTER: &str = "istio.mixer.v1.config.client";
/// A sidecar and a gateway.
const WITH_FILTERS: [&str; 2] = [
    "deploy/productpage-v1",
    "deploy/istio-ingressgateway.istio-system",
];

/// What Pilot sent to a proxy.
async fn filters(mesh: &Mesh, target: &str) -> String {
    let command = ["proxy-config", "all", target, "-o", "json"];
    let dump = mesh.ctl_ok(&command).await.unwrap();
    assert!(dump.contains("HttpConnectionManager"), "{dump}");
    dump
}

/// Whether anything that Pilot sent to a sidecar or a gateway is for Mixer.
pub(crate) async fn has_mixer_filters(mesh: &Mesh) -> bool {
    let mut has = false;
    for target in WITH_FILTERS {
        has |= filters(mesh, target).await.contains(MIXER_FILTER);
    }
    has
}

/// Waits until `local up` has said so.
async fn says(mesh: &Mesh, what: &str) {
    let said = async || mesh.output().contains(what);
    let outcome = eventually(what, SETTLED, said).await;
    assert!(outcome.is_ok(), "{what} is not in\n{}", mesh.output());
}
