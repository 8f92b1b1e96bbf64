//! The change of Citadel's self-signed root, with two roots in between: nobody's request fails, nobody's connection breaks, and
//! the control plane's channels have new certificates, too.

use std::collections::BTreeSet;

use e2e::echo::{Call, MARK, Protocol};
use e2e::load::{Answer, Load};
use e2e::mesh::eventually;
use serde_json::Value;

use super::{CONTROL_PLANE, Stage};
use crate::{SETTLED, nothing_failed};

/// Citadel's roots, as it hands them out at this moment.
pub(super) async fn present(stage: &Stage) -> String {
    let mesh = &stage.scene.mesh;
    if mesh.is_cluster() {
        let get = [
            "local",
            "get",
            "configmap",
            "istio-ca-root-cert",
            "-n",
            CONTROL_PLANE,
            "-o",
        ];
        let text = r"jsonpath={.data.root-cert\.pem}";
        return mesh.ctl_ok(&[&get[..], &[text]].concat()).await.unwrap();
    }
    let path = format!("/run/bireme/local/{}/data/root/root-cert.pem", mesh.name);
    std::fs::read_to_string(path).unwrap()
}

fn count(roots: &str) -> usize {
    roots.matches("BEGIN CERTIFICATE").count()
}

/// The serial numbers of the roots in the client's proxy.
async fn trusted_by_proxy(stage: &Stage) -> BTreeSet<String> {
    let request = ["pilot-agent", "request", "GET", "/certs"];
    let shown = stage.scene.in_proxy("auto", &request).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let all = shown["certificates"].as_array().into_iter().flatten();
    let roots = all.flat_map(|entry| entry["ca_cert"].as_array().into_iter().flatten());
    roots
        .filter_map(|root| root["serial_number"].as_str().map(str::to_owned))
        .collect()
}

/// From the first step of the change to the end of the old root.
pub(super) async fn changes_and_nobody_notices(stage: &Stage) {
    let scene = &stage.scene;
    let line = Call::new(Protocol::Tcp, "app.servers:8004");
    let http = Call::new(Protocol::Http1, "app.servers:8001");
    eventually("the server answers", SETTLED, async || {
        let calls = [line.clone(), http.clone()];
        let outcomes = scene.call("auto", &calls).await;
        let gateway = scene.mesh.get("/").await;
        outcomes.iter().all(e2e::echo::Outcome::is_served)
            && gateway.is_ok_and(|page| is_good(&page))
    })
    .await
    .unwrap();
    let before = present(stage).await;
    let trusted = trusted_by_proxy(stage).await;
    assert_eq!((count(&before), trusted.len()), (1, 1));
    let held = scene.hold("auto", &line).await;
    let load = Load::start(&scene.mesh.url("/"), 2, is_good);
    let rotate = ["istio_ca", "rotate-root", "--data-dir=/var/lib/citadel"];
    scene
        .in_control_plane("deploy/istio-citadel", &rotate)
        .await;
    let mut most = 0;
    eventually("the old root is gone", SETTLED * 2, async || {
        // New connections all the while.
        for outcome in scene.call("auto", &[line.clone(), http.clone()]).await {
            assert!(outcome.is_served(), "{outcome:?}");
        }
        let roots = present(stage).await;
        most = most.max(count(&roots));
        count(&roots) == 1 && roots != before
    })
    .await
    .unwrap();
    assert_eq!(most, 2, "there were two roots for a while");
    eventually("a proxy trusts the new root only", SETTLED, async || {
        let now = trusted_by_proxy(stage).await;
        now.len() == 1 && now != trusted
    })
    .await
    .unwrap();
    for outcome in scene.call("auto", &[line.clone(), http.clone()]).await {
        assert!(outcome.is_served(), "{outcome:?}");
    }
    channels_come_back(stage).await;
    let report = load.stop().await;
    held.was_held().await;
    nothing_failed("the root changes", &report, 100);
}

/// Pilot starts anew with the certificate that it has by now: Galley gives it the configuration, proxies come back to it.
async fn channels_come_back(stage: &Stage) {
    let mesh = &stage.scene.mesh;
    mesh.ctl_ok(&["local", "kill", "istio-pilot"])
        .await
        .unwrap();
    stage
        .scene
        .apply(include_str!("../../security/late.yaml"))
        .await;
    eventually("a change goes through", SETTLED, async || {
        mesh.get("/late").await.is_ok_and(|page| page.status == 418)
    })
    .await
    .unwrap();
}

fn is_good(answer: &Answer) -> bool {
    answer.status == 200 && answer.body.contains(MARK)
}
