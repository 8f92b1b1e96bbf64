//! Components die while traffic flows: nobody notices, and they come back by themselves.

use std::time::Duration;

use e2e::load::Load;
use e2e::mesh::{Mesh, eventually};
use serde_json::Value;

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
    let switches = "global.disablePolicyChecks=false,global.policyCheckFailOpen=true";
    let mut mesh = Mesh::up("e2e-failure", &["--set", switches]).await.unwrap();
    settles(&mesh, "the page", 5, has_details).await;
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
        let before = restarts(&mesh, component).await.unwrap();
        mesh.ctl_ok(&["local", "kill", component]).await.unwrap();
        eventually(
            &format!("{component} is back"),
            Duration::from_secs(60),
            async || {
                restarts(&mesh, component)
                    .await
                    .is_some_and(|(count, is_ready)| is_ready && count > before.0)
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
        settles(&mesh, manifest, 5, |page| {
            page.status == 200 && page.body.contains("stars red") == wants_stars
        })
        .await;
    }
    a_gateway_that_goes_serves_its_clients_to_the_end(&mesh).await;
    assert_eq!(mesh.end().await, "");
}

/// Scaled up, and down again while requests flow.
async fn a_gateway_that_goes_serves_its_clients_to_the_end(mesh: &Mesh) {
    let scale = async |replicas: &str| {
        let command = [
            "local",
            "scale",
            "istio-ingressgateway",
            "-n",
            "istio-system",
            "--replicas",
            replicas,
        ];
        mesh.ctl_ok(&command).await.unwrap();
    };
    let is_at = async |ready: &str| {
        let status = mesh.ctl_ok(&["local", "status", "-o", "json"]).await;
        let rows: Value = serde_json::from_str(&status.unwrap()).unwrap();
        rows.as_array().unwrap().iter().any(|row| {
            let name = row["name"].as_str().unwrap_or_default();
            name.starts_with("istio-ingressgateway") && row["ready"] == ready
        })
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

/// How often a component's pod was restarted, and whether it is ready now.
async fn restarts(mesh: &Mesh, component: &str) -> Option<(u64, bool)> {
    let status = mesh.ctl_ok(&["local", "status", "-o", "json"]).await.ok()?;
    let rows: Value = serde_json::from_str(&status).ok()?;
    let row = rows.as_array()?.iter().find(|row| {
        row["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(component))
    })?;
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    Some((number(&row["restarts"]).unwrap_or_default(), is_ready(row)))
}

fn is_ready(row: &Value) -> bool {
    let ready = row["ready"].as_bool().or_else(|| {
        let (ready, all) = row["ready"].as_str()?.split_once('/')?;
        Some(ready == all && all != "0")
    });
    ready.unwrap_or_default()
}
