//! Servers in the mesh, one with each data plane: what leads to them, and what policies of the 1.4 line let in.

use std::path::Path;

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::json;

use super::CLIENTS;
use super::row::{Row, is_by};
use crate::SETTLED;
use crate::scene::{self, Scene};

/// The second's proxy is an Envoy.
pub(super) const SERVERS: [&str; 2] = ["inside", "inside-envoy"];
pub(super) const NAMESPACE: &str = "inside";

/// The servers; their sockets are in `folder`.
pub(super) fn manifests(envoy: &str, folder: &Path) -> String {
    let folder = folder.to_str().unwrap();
    let server = |(name, proxy): (&str, Option<&str>)| {
        let mut annotations = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8001"});
        if let Some(path) = proxy {
            let config = json!({"binaryPath": path}).to_string();
            annotations["proxy.istio.io/config"] = json!(config);
        }
        include_str!("../../routing/inside.yaml")
            .replace("{{name}}", name)
            .replace("{{folder}}", folder)
            .replace("{{annotations}}", &annotations.to_string())
    };
    let servers = SERVERS.into_iter().zip([None, Some(envoy)]).map(server);
    scene::namespace(NAMESPACE, true) + &servers.collect::<String>()
}

/// A call of each server.
pub(super) fn both(port: u16) -> [Call; 2] {
    SERVERS.map(|name| Call::new(Protocol::Http1, &format!("{name}.{NAMESPACE}:{port}")))
}

pub(super) fn rows() -> Vec<Row> {
    let row = |name, port, server: &'static str| {
        Row::about(name, both(port).to_vec(), move |seen| {
            seen.iter().all(|outcome| is_by(server, outcome))
        })
    };
    vec![
        row("a port that leads to another", 9080, "four"),
        row("a port that leads to a socket", 9081, "four"),
        row("a port that leads to IPv6", 9082, "six"),
    ]
}

/// What is said of the mesh, of a workload, and of roles, counts; each step after the one before.
pub(super) async fn is_guarded(scene: &Scene) {
    let [mesh, workload, roles] = [
        include_str!("../../routing/former-mesh.yaml"),
        include_str!("../../routing/former-workload.yaml"),
        include_str!("../../routing/former-roles.yaml"),
    ];
    let read = || both(8001).map(|call| call.target("/read/x"));
    let stranger = async |what: &str, wanted: fn(&Outcome) -> bool| {
        becomes(scene, what, "outside", &read(), |seen| {
            seen.iter().all(wanted)
        })
        .await;
    };
    stranger("everybody may come", Outcome::is_served).await;
    scene.apply(mesh).await;
    stranger("nobody without a certificate", |outcome| {
        outcome.status.is_none() && !outcome.is_served()
    })
    .await;
    scene.apply(workload).await;
    stranger("everybody may come to these", Outcome::is_served).await;
    scene.apply(roles).await;
    stranger("who has no role may not", |outcome| {
        outcome.status == Some(403)
    })
    .await;
    let written = both(8001).map(|call| call.target("/write"));
    let posted = read().map(|call| call.method("POST"));
    let calls = [read(), written, posted].concat();
    for client in CLIENTS {
        becomes(scene, "readers read", client, &calls, |seen| {
            let (reads, others) = seen.split_at(SERVERS.len());
            reads.iter().all(Outcome::is_served)
                && others.iter().all(|outcome| outcome.status == Some(403))
        })
        .await;
    }
}

/// Calls until it is as wanted.
async fn becomes(
    scene: &Scene,
    what: &str,
    client: &str,
    calls: &[Call],
    is_wanted: impl Fn(&[Outcome]) -> bool,
) {
    let mut seen = Vec::new();
    let all = eventually(what, SETTLED, async || {
        seen = scene.call(client, calls).await;
        is_wanted(&seen)
    });
    assert!(all.await.is_ok(), "{client}: {what}: {seen:#?}");
}
