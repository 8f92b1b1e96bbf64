//! Pilot and its agents in one mesh, under mutual TLS: a machine registers itself, a proxy starts with a patched bootstrap, proxies
//! that know of each other prefer their zone, and a replica of Pilot that ends hands its proxies over to another one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::echo::{Call, Protocol};
use e2e::load::Load;
use e2e::mesh::{Mesh, eventually};
use serde_json::Value;

use crate::scene::{self, Scene};
use crate::{SETTLED, has_details, nothing_failed, proof, send_everybody_to_red_stars, settles};

/// How long a machine is remembered once it has gone.
const GRACE: Duration = Duration::from_secs(3);
const SETTINGS: &str = "global.controlPlaneSecurityEnabled=true,pilot.env.PILOT_WORKLOAD_ENTRY_GRACE_PERIOD=3s,\
    mixer.policy.enabled=false,mixer.telemetry.enabled=false";
/// The machine's sign of health.
const SIGN: &str = "/etc/istio/proxy/healthy";

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn machines_patches_and_replicas_of_pilot() {
    hold("e2e-discovery", &["--set", SETTINGS]).await;
}

#[tokio::test]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn machines_patches_and_replicas_of_pilot_with_envoys() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let replace = format!("proxy={}", proof::envoy(folder.path()));
    hold(
        "e2e-discovery-envoy",
        &["--set", SETTINGS, "--replace", &replace],
    )
    .await;
}

async fn hold(name: &str, flags: &[&str]) {
    let mut scene = Scene {
        mesh: Mesh::up(name, flags).await.unwrap(),
    };
    let manifests = [
        scene::namespace("shop", true),
        scene::client("shop", None),
        "---\n".to_owned(),
        include_str!("../discovery.yaml").to_owned(),
    ];
    scene.apply(&manifests.concat()).await;
    a_machine_serves_while_it_is_healthy_and_there(&scene).await;
    a_proxy_that_waits_for_patches_has_them(&scene).await;
    a_refusal_is_shown_with_its_reason(&scene).await;
    requests_stay_in_their_zone_as_far_as_that_is_fair(&scene).await;
    a_replica_that_ends_hands_its_proxies_over(&scene.mesh).await;
    assert_eq!(scene.mesh.end().await, "");
}

/// The machine's endpoints, as the client's proxy knows them.
async fn endpoints(scene: &Scene) -> Vec<Value> {
    let cluster = "outbound|80||legacy.test";
    let command = [
        "proxy-config",
        "endpoint",
        "deploy/client",
        "-n",
        "shop",
        "--cluster",
        cluster,
        "-o",
        "json",
    ];
    let shown = scene.mesh.ctl_ok(&command).await.unwrap();
    let rows: Value = serde_json::from_str(&shown).unwrap();
    rows.as_array().cloned().unwrap()
}

/// Waits until calls can be made from the client of a namespace.
async fn client_runs(scene: &Scene, namespace: &str) {
    let at = ["local", "exec", "-n", namespace, "deploy/client", "--"];
    let command = [&at[..], &["true"]].concat();
    let runs = async || scene.mesh.ctl_ok(&command).await.is_ok();
    eventually("the client runs", SETTLED, runs).await.unwrap();
}

async fn in_machine(scene: &Scene, command: &[&str]) {
    let at = [
        "local",
        "exec",
        "-n",
        "shop",
        "deploy/machine",
        "-c",
        "istio-proxy",
        "--",
    ];
    let command = [&at[..], command].concat();
    let done = async || scene.mesh.ctl_ok(&command).await.is_ok();
    eventually("the machine runs", SETTLED, done).await.unwrap();
}

async fn a_machine_serves_while_it_is_healthy_and_there(scene: &Scene) {
    let call = Call {
        host: "legacy.test".to_owned(),
        ..Call::new(Protocol::Http1, "240.240.7.7:80")
    };
    let is_served = async || {
        let outcomes = scene.call("shop", std::slice::from_ref(&call)).await;
        (outcomes[0].is_served(), outcomes[0].status)
    };
    let settles_at = async |what: &str, wanted: bool| {
        let is_so =
            async || is_served().await.0 == wanted && endpoints(scene).await.is_empty() != wanted;
        let settled = eventually(what, SETTLED, is_so).await;
        if settled.is_err() {
            let (seen, known) = (is_served().await, endpoints(scene).await);
            panic!("{what}: {seen:?}, {known:?}");
        }
    };
    client_runs(scene, "shop").await;
    eventually("the service is known", SETTLED, async || {
        is_served().await.1 == Some(503)
    })
    .await
    .unwrap();
    in_machine(scene, &["true"]).await;
    settles_at("a machine that nobody calls healthy is not asked", false).await;
    in_machine(scene, &["touch", SIGN]).await;
    settles_at("a healthy machine serves", true).await;
    in_machine(scene, &["rm", SIGN]).await;
    settles_at("one that is not healthy any more is left out", false).await;
    in_machine(scene, &["touch", SIGN]).await;
    settles_at("one that has recovered serves again", true).await;

    let begun = Instant::now();
    let scale = ["local", "scale", "machine", "-n", "shop", "--replicas", "0"];
    scene.mesh.ctl_ok(&scale).await.unwrap();
    eventually(
        "a machine that has gone is forgotten",
        SETTLED,
        async || endpoints(scene).await.is_empty(),
    )
    .await
    .unwrap();
    assert!(begun.elapsed() >= GRACE, "but not at once");
}

async fn a_proxy_that_waits_for_patches_has_them(scene: &Scene) {
    scene.apply(include_str!("../patched.yaml")).await;
    let curl = [
        "local",
        "exec",
        "-n",
        "shop",
        "deploy/patched",
        "--",
        "curl",
        "-s",
        "http://127.0.0.1:15099/",
    ];
    let says_so = async || {
        let output = scene.mesh.ctl(&curl).await;
        output.is_ok_and(|output| output.stdout == "patched")
    };
    eventually("the patched listener answers", SETTLED, says_so)
        .await
        .unwrap();
}

/// No proxy answers with such a status.
async fn a_refusal_is_shown_with_its_reason(scene: &Scene) {
    const FILTER: &str = "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: wrong, namespace: shop}\nspec:\n  \
        workloadSelector: {labels: {app: client}}\n  configPatches:\n  - applyTo: HTTP_FILTER\n    match: {context: SIDECAR_OUTBOUND}\n    \
        patch: {operation: INSERT_FIRST, value: {name: envoy.fault, typed_config: \
        {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 99, percentage: {}}}}}\n";
    scene.apply(FILTER).await;
    let listeners = async || {
        let shown = scene.mesh.ctl_ok(&["proxy-status", "-o", "json"]).await;
        let rows: Value = serde_json::from_str(&shown.unwrap()).unwrap();
        let mut rows = rows.as_array().unwrap().iter();
        let row = rows.find(|row| row["name"].as_str().unwrap().starts_with("client-"));
        row.map(|row| row["lds"].as_str().unwrap().to_owned())
    };
    eventually("the refusal is shown", SETTLED, async || {
        let shown = listeners().await;
        shown.is_some_and(|shown| {
            shown.starts_with("ERROR (") && shown.to_lowercase().contains("status")
        })
    })
    .await
    .unwrap();
    let delete = ["local", "delete", "envoyfilter/wrong", "-n", "shop"];
    scene.mesh.ctl_ok(&delete).await.unwrap();
    eventually("and gone once it is mended", SETTLED, async || {
        listeners().await.as_deref() == Some("SYNCED")
    })
    .await
    .unwrap();
}

async fn requests_stay_in_their_zone_as_far_as_that_is_fair(scene: &Scene) {
    const CALLS: usize = 30;
    let manifests = include_str!("../zones.yaml");
    scene
        .apply(&[&scene::namespace("zones", true), "---\n", manifests].concat())
        .await;
    let call = Call::new(Protocol::Http1, "zoned.zones.svc.cluster.local:8080");
    let calls = vec![call; CALLS];
    let mut seen = Vec::new();
    let mut becomes = async |what: &str, wanted: &dyn Fn(usize, usize) -> bool| {
        let is_so = eventually(what, SETTLED * 2, async || {
            seen = scene.call("zones", &calls).await;
            let count = |place: &str| {
                seen.iter()
                    .filter(|outcome| outcome.text.starts_with(place))
                    .count()
            };
            let (near, far) = (count("near"), count("far"));
            near + far == CALLS && wanted(near, far)
        });
        assert!(is_so.await.is_ok(), "{what}: {seen:?}");
    };
    client_runs(scene, "zones").await;
    // All clients are in the zone in which half of the servers are.
    let both = |near, far| near > 0 && far > 0;
    becomes("the near servers alone have too much to do", &both).await;
    let scale = [
        "local",
        "scale",
        "client-far",
        "-n",
        "zones",
        "--replicas",
        "1",
    ];
    scene.mesh.ctl_ok(&scale).await.unwrap();
    becomes("each zone has its own", &|near, _| near == CALLS).await;
    let off = manifests.replace("{minClusterSize: 1}", "{enabled: false}");
    scene
        .apply(&off.replace("replicas: 0", "replicas: 1"))
        .await;
    becomes("zones do not count any more", &both).await;
}

/// Which replica each proxy is connected to, and whether it has accepted everything.
async fn served_by(mesh: &Mesh) -> Vec<(String, String, bool)> {
    let Ok(shown) = mesh.ctl_ok(&["proxy-status", "-o", "json"]).await else {
        return Vec::new();
    };
    let rows: Value = serde_json::from_str(&shown).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().into_iter().flatten();
    rows.map(|row| {
        // A gateway without routes is sent none.
        let is_so =
            |kind: &str| row[kind] == "SYNCED" || (kind == "rds" && row[kind] == "NOT SENT");
        let is_synced = ["cds", "lds", "eds", "rds"].into_iter().all(is_so);
        (text(row, "name"), text(row, "pilot"), is_synced)
    })
    .collect()
}

async fn a_replica_that_ends_hands_its_proxies_over(mesh: &Mesh) {
    settles(mesh, "the page", 5, has_details).await;
    let scale = [
        "local",
        "scale",
        "istio-pilot",
        "-n",
        "istio-system",
        "--replicas",
        "2",
    ];
    mesh.ctl_ok(&scale).await.unwrap();
    eventually("two replicas", SETTLED, async || {
        let status = mesh.ctl_ok(&["local", "status", "-o", "json"]).await;
        let rows: Value = serde_json::from_str(&status.unwrap()).unwrap();
        let mut rows = rows.as_array().unwrap().iter();
        rows.any(|row| row["name"] == "istio-pilot" && row["ready"] == "2/2")
    })
    .await
    .unwrap();
    let before = served_by(mesh).await;
    let proxies: BTreeSet<&String> = before.iter().map(|(proxy, ..)| proxy).collect();
    // The second came later than every proxy.
    let first = before[0].1.clone();
    assert!(
        before.iter().all(|(_, replica, _)| *replica == first),
        "{before:?}"
    );

    let load = Load::start(&mesh.url("/productpage"), 4, has_details);
    // SIGTERM, as from anybody who takes a pod away.
    let restart = ["local", "restart", &first, "-n", "istio-system"];
    mesh.ctl_ok(&restart).await.unwrap();
    let mut after = Vec::new();
    let moved = eventually("every proxy is with another replica", SETTLED, async || {
        after = served_by(mesh).await;
        let now: BTreeSet<&String> = after.iter().map(|(proxy, ..)| proxy).collect();
        let has_moved =
            |(_, replica, is_synced): &(String, String, bool)| *replica != first && *is_synced;
        now == proxies && after.iter().all(has_moved)
    });
    let moved = moved.await;
    assert!(moved.is_ok(), "{first} ended: {after:?}");
    // They take a change from there.
    send_everybody_to_red_stars(mesh).await;
    let report = load.stop().await;
    nothing_failed("a replica ends", &report, 10);
}
