//! Workloads that ask Citadel for nothing: their certificate is in a mounted Secret, as Citadel's controller writes it, and they
//! follow it; with our proxy and a real Envoy.

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;
use serde_json::json;

use super::certificates::in_use;
use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::Leaf;
use crate::scene;

/// Namespace of a client; that of the other one has Envoy's suffix.
const NAME: &str = "mounted";

pub(super) fn manifests(stage: &Stage, envoy: &str) -> String {
    let clients = ["", ENVOY].map(|of| {
        let namespace = format!("{NAME}{of}");
        let mut config = json!({"proxyMetadata": {"FILE_MOUNTED_CERTS": "true"}});
        if !of.is_empty() {
            config["binaryPath"] = envoy.into();
        }
        let volume = json!({"certs": {"secret": {"secretName": "istio.client"}}});
        let mount = json!({"certs": {"mountPath": "/etc/certs", "readOnly": true}});
        let annotations = json!({
            "proxy.istio.io/config": config.to_string(),
            "sidecar.istio.io/userVolume": volume.to_string(),
            "sidecar.istio.io/userVolumeMount": mount.to_string(),
        });
        let client = include_str!("../../security/client.yaml")
            .replace("{{namespace}}", &namespace)
            .replace("{{annotations}}", &annotations.to_string());
        let leaf = stage.authority.leaf(&identity(&namespace));
        scene::namespace(&namespace, true) + &secret(stage, &namespace, &leaf) + &client
    });
    clients.concat()
}

fn identity(namespace: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/client")
}

fn secret(stage: &Stage, namespace: &str, leaf: &Leaf) -> String {
    let files = [
        ("cert-chain.pem", leaf.chain.as_str()),
        ("key.pem", &leaf.key),
        ("root-cert.pem", &stage.authority.root()),
        ("ca-crl.pem", ""),
    ];
    scene::secret(namespace, "istio.client", &files)
}

/// Under mutual TLS with that certificate, and with the next one.
pub(super) async fn lives_from_files(stage: &Stage) {
    for of in ["", ENVOY] {
        let namespace = &format!("{NAME}{of}");
        is_known(stage, namespace).await;
        let next = stage.authority.leaf(&identity(namespace));
        stage.apply(&secret(stage, namespace, &next)).await;
        eventually("the next certificate is in use", SETTLED, async || {
            in_use(stage, namespace).await == next.serial()
        })
        .await
        .unwrap();
        is_known(stage, namespace).await;
    }
}

/// The server, which takes nobody without a certificate, sees who it is.
async fn is_known(stage: &Stage, namespace: &str) {
    let call = [Call::new(Protocol::Http1, "strict.servers:8001")];
    let by = format!("URI={}", identity(namespace));
    eventually(&by, SETTLED, async || {
        let outcome = &stage.call(namespace, &call).await[0];
        outcome.is_served() && outcome.text.contains(&by)
    })
    .await
    .unwrap();
}
