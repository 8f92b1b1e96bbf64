//! Components die while traffic flows: nobody notices, and they come back by themselves.

use std::time::Duration;

use e2e::load::Load;
use e2e::mesh::{Mesh, eventually};

use crate::policy::CHECKS;
use crate::{SETTLED, has_details, nothing_failed, settles};

const COMPONENTS: &[&str] = &[
    "istio-pilot",
    "istio-galley",
    "istio-citadel",
    "istio-sidecar-injector",
    "istio-policy",
    "istio-telemetry",
];

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn no_request_fails_when_a_component_is_killed() {
    let mut mesh = Mesh::up("e2e-failure", &["--set", CHECKS]).await.unwrap();
    nobody_notices(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// The case itself, wherever `mesh` is.
pub(crate) async fn nobody_notices(mesh: &Mesh) {
    settles(mesh, "the page", 5, has_details).await;
    mesh.apply("networking/destination-rule-all.yaml")
        .await
        .unwrap();
    let mut manifests = [
        "networking/virtual-service-reviews-v3.yaml",
        "networking/virtual-service-all-v1.yaml",
    ]
    .iter()
    .cycle();
    for component in COMPONENTS {
        let load = Load::start(&mesh.url("/productpage"), 2, has_details);
        let before = mesh.health(component).await.unwrap();
        mesh.kill_component(component).await.unwrap();
        eventually(
            &format!("{component} is back"),
            Duration::from_secs(60),
            async || {
                let health = mesh.health(component).await;
                health.is_some_and(|health| health.is_ready() && health.restarts > before.restarts)
            },
        )
        .await
        .unwrap();
        let report = load.stop().await;
        nothing_failed(component, &report, 1);

        // It has caught up: a change goes through the whole control plane again.
        let manifest = manifests.next().unwrap();
        eventually("a change is taken", SETTLED, async || {
            mesh.apply(manifest).await.is_ok()
        })
        .await
        .unwrap();
        let wants_stars = manifest.ends_with("v3.yaml");
        settles(mesh, manifest, 5, |page| {
            page.status == 200 && page.body.contains("stars red") == wants_stars
        })
        .await;
    }
    a_gateway_that_goes_serves_its_clients_to_the_end(mesh).await;
}

/// Scaled up, and down again while requests flow.
async fn a_gateway_that_goes_serves_its_clients_to_the_end(mesh: &Mesh) {
    let gateway = "istio-ingressgateway";
    let deployment = if mesh.is_cluster() {
        format!("deployment/{gateway}")
    } else {
        gateway.to_owned()
    };
    let scale = async |replicas: &str| {
        let command = ["local", "scale", &deployment, "-n", "istio-system"];
        let command = [&command[..], &["--replicas", replicas]].concat();
        mesh.ctl_ok(&command).await.unwrap();
    };
    let is_at = async |ready: &str| {
        let health = mesh.health(gateway).await;
        health.is_some_and(|health| health.ready == ready)
    };
    let load = Load::start(&mesh.url("/productpage"), 4, has_details);
    scale("2").await;
    eventually("two gateways", SETTLED, async || is_at("2/2").await)
        .await
        .unwrap();
    settles(mesh, "the page through both", 10, has_details).await;
    scale("1").await;
    eventually("one gateway", SETTLED, async || is_at("1/1").await)
        .await
        .unwrap();
    let report = load.stop().await;
    nothing_failed("gateways come and go", &report, 1);
}
