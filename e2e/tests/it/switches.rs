//! Components that are switched off: the rest works, and says what it lacks.

use e2e::mesh::{Mesh, eventually};

use crate::{SETTLED, has_details, send_everybody_to_red_stars, settles};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn without_citadel_and_mixer_the_page_comes_over_plaintext_at_once() {
    let off = "security.enabled=false,mixer.policy.enabled=false,mixer.telemetry.enabled=false";
    let mut mesh = Mesh::up("e2e-no-citadel", &["--set", off]).await.unwrap();
    says(&mesh, "Switched off: security (no certificates").await;
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
    let mut mesh = Mesh::up("e2e-no-galley", &["--set", "galley.enabled=false"])
        .await
        .unwrap();
    says(&mesh, "Switched off: galley (configuration is not checked").await;
    settles(&mesh, "the page", 3, has_details).await;
    send_everybody_to_red_stars(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// Whether anything that Pilot sent to a sidecar is for Mixer.
pub(crate) async fn has_mixer_filters(mesh: &Mesh) -> bool {
    let command = ["proxy-config", "all", "deploy/productpage-v1", "-o", "json"];
    let dump = mesh.ctl_ok(&command).await.unwrap();
    assert!(dump.contains("HttpConnectionManager"), "{dump}");
    dump.contains("istio.mixer.v1.config.client")
}

/// Waits until `local up` has said so.
async fn says(mesh: &Mesh, what: &str) {
    let said = async || mesh.output().contains(what);
    let outcome = eventually(what, SETTLED, said).await;
    assert!(outcome.is_ok(), "{what} is not in\n{}", mesh.output());
}
