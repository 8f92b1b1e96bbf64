//! Proof that nobody gets through who should not: one mesh, whose CA is the test's own, and every way in that we know of,
//! each beside one that is allowed.
//!
//! [`matrix`]: server modes × clients × protocols. [`policies`]: who may ask for what, and forged headers. [`paths`]: one
//! path in many spellings. [`certificates`]: certificates that are not good, and revocation.

pub(crate) mod authority;
mod certificates;
mod matrix;
mod paths;
mod policies;

use std::path::Path;

use e2e::echo::{Call, Outcome};
use e2e::mesh::{Mesh, eventually};
use futures::FutureExt as _;
use serde_json::Value;

use crate::SETTLED;
use authority::{Authority, Tokens};

/// Namespaces with a client that has a sidecar.
const CLIENTS: &[&str] = &["auto", "mtls", "plain", "monitoring", "ops"];
/// Servers, and what they take.
const SERVERS: &[(&str, &str)] = &[
    ("disable", "DISABLE"),
    ("permissive", "PERMISSIVE"),
    ("strict", "STRICT"),
    ("app", "PERMISSIVE"),
];
const SETTINGS: &str = "mixer.policy.enabled=false,mixer.telemetry.enabled=false,\
    gateways.istio-egressgateway.enabled=false,security.selfSigned=false,\
    meshConfig.pathNormalization.normalization=DECODE_AND_MERGE_SLASHES,meshConfig.trustDomainAliases={old.domain}";

/// The mesh and what the test knows of it.
struct Stage {
    mesh: Mesh,
    authority: Authority,
    /// Issuer whose keys stand in the policy.
    inline: Tokens,
    /// Issuer whose keys are fetched.
    fetched: Tokens,
}

impl Stage {
    async fn up(name: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("proof");
        authority.write(folder.path());
        let settings = format!("{SETTINGS},local.cacerts={}", folder.path().display());
        let arguments = [&["--app", "none", "--set", &settings], arguments].concat();
        let mesh = Mesh::up(name, &arguments).await.unwrap();
        let stage = Self {
            mesh,
            authority,
            inline: Tokens::new("https://inline.test"),
            fetched: Tokens::new("https://fetched.test"),
        };
        let text = stage.manifests();
        stage.apply(folder.path(), &text).await;
        eventually("every pod is ready", SETTLED * 3, async || {
            stage
                .are_pods_ready(SERVERS.len() + CLIENTS.len() + 2)
                .await
        })
        .await
        .unwrap();
        stage
    }

    fn manifests(&self) -> String {
        let namespace = |name: &&str| {
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{istio-injection: enabled}}}}\n"
            )
        };
        let injected: Vec<String> = [&["servers"], CLIENTS]
            .concat()
            .iter()
            .map(namespace)
            .collect();
        let keys = format!("'--file=/jwks.json={}'", self.fetched.jwks());
        let mut text = include_str!("../security/workloads.yaml")
            .replace("{{namespaces}}", &injected.join("---\n"))
            .replace("{{keys}}", &keys);
        for (name, mode) in SERVERS {
            text += &include_str!("../security/server.yaml")
                .replace("{{name}}", name)
                .replace(
                    "{{account}}",
                    if *name == "app" { "app" } else { "default" },
                )
                .replace("{{mode}}", mode);
        }
        for namespace in [CLIENTS, &["outside"]].concat() {
            text += &include_str!("../security/client.yaml").replace("{{namespace}}", namespace);
        }
        let policies =
            include_str!("../security/policies.yaml").replace("{{jwks}}", &self.inline.jwks());
        text += "---\n";
        text += include_str!("../security/client-tls.yaml");
        text += "---\n";
        text += &policies;
        text.replace("{{echo}}", &echo())
    }

    async fn apply(&self, folder: &Path, text: &str) {
        let file = folder.join("manifests.yaml");
        std::fs::write(&file, text).unwrap();
        self.mesh
            .ctl_ok(&["local", "apply", "-f", file.to_str().unwrap()])
            .await
            .unwrap();
    }

    async fn pods(&self) -> Vec<Value> {
        let shown = self
            .mesh
            .ctl_ok(&["local", "get", "pods", "-A", "-o", "json"]);
        let list: Value = serde_json::from_str(&shown.await.unwrap()).unwrap();
        let pods = list["items"].as_array().cloned().unwrap();
        let is_ours = |pod: &Value| pod["metadata"]["namespace"] != "istio-system";
        pods.into_iter().filter(is_ours).collect()
    }

    async fn are_pods_ready(&self, wanted: usize) -> bool {
        let pods = self.pods().await;
        let is_ready = |pod: &&Value| {
            let containers = pod["status"]["containerStatuses"].as_array();
            containers.is_some_and(|containers| {
                !containers.is_empty()
                    && containers
                        .iter()
                        .all(|container| container["ready"] == true)
            })
        };
        pods.iter().filter(is_ready).count() == wanted
    }

    /// The address of the pod of a server.
    async fn pod_ip(&self, server: &str) -> String {
        let pods = self.pods().await;
        let is_it = |pod: &&Value| {
            pod["metadata"]["namespace"] == "servers" && pod["metadata"]["labels"]["app"] == server
        };
        let pod = pods.iter().find(is_it).unwrap();
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    }

    /// Makes calls from the client of `namespace`; the outcomes are in their order.
    async fn call(&self, namespace: &str, calls: &[Call]) -> Vec<Outcome> {
        let calls = serde_json::to_string(calls).unwrap();
        let command = [
            "local",
            "exec",
            "-n",
            namespace,
            "deploy/client",
            "--",
            &echo(),
            "call",
            &calls,
        ];
        let shown = self.mesh.ctl_ok(&command).await.unwrap();
        serde_json::from_str(&shown).unwrap()
    }
}

/// The workload's program.
fn echo() -> String {
    let path = e2e::mesh::programs().unwrap().join("echo");
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn nobody_gets_through_who_should_not() {
    let mut stage = Stage::up("e2e-proof", &[]).await;
    let mut failed = Vec::new();
    // Each part stands for itself: one that fails does not hide what the others find.
    for (name, part) in [
        ("matrix", matrix::holds(&stage).boxed_local()),
        ("policies", policies::hold(&stage).boxed_local()),
        ("paths", paths::hold(&stage).boxed_local()),
        ("certificates", certificates::hold(&stage).boxed_local()),
        (
            "revocation",
            certificates::are_revoked_at_once(&stage).boxed_local(),
        ),
    ] {
        if std::panic::AssertUnwindSafe(part)
            .catch_unwind()
            .await
            .is_err()
        {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed, see above: {failed:?}");
    assert_eq!(stage.mesh.end().await, "");
}
