//! Workloads of the tests of who gets through: the program `echo` in pods of a mesh, applied from manifests and called from
//! inside.

use std::collections::BTreeMap;

use e2e::echo::{Call, Outcome};
use e2e::mesh::{Mesh, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::SETTLED;

/// Who calls.
const CLIENT: &str = "deploy/client";

/// A mesh with such workloads.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
}

impl Scene {
    /// A mesh without an application.
    pub(crate) async fn up(name: &str, arguments: &[&str]) -> Self {
        let arguments = [&["--app", "none"], arguments].concat();
        let mesh = Mesh::up(name, &arguments).await.unwrap();
        Self { mesh }
    }

    /// Applies manifests, in which `{{echo}}` is the workloads' program.
    pub(crate) async fn apply(&self, text: &str) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("manifests.yaml");
        std::fs::write(&file, text.replace("{{echo}}", &self.echo())).unwrap();
        self.mesh
            .ctl_ok(&["local", "apply", "-f", file.to_str().unwrap()])
            .await
            .unwrap();
    }

    /// Waits until there are `wanted` pods and all of them are ready.
    pub(crate) async fn are_ready(&self, wanted: usize) {
        let all = async || {
            let pods = self.pods().await;
            pods.iter().filter(|pod| is_ready(pod)).count() == wanted
        };
        if eventually("every pod is ready", SETTLED * 3, all)
            .await
            .is_err()
        {
            let pods = self.pods().await;
            let waiting = pods.iter().filter(|pod| !is_ready(pod));
            let waiting: Vec<String> = waiting
                .map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"]))
                .collect();
            panic!("{} pods, not ready:\n{}", pods.len(), waiting.join("\n"));
        }
    }

    async fn pods(&self) -> Vec<Value> {
        let shown = self
            .mesh
            .ctl_ok(&["local", "get", "pods", "-A", "-o", "json"]);
        let list: Value = serde_json::from_str(&shown.await.unwrap()).unwrap();
        let pods = list["items"].as_array().cloned().unwrap();
        let others = ["istio-system", "default"];
        let is_ours =
            |pod: &Value| !others.contains(&pod["metadata"]["namespace"].as_str().unwrap());
        pods.into_iter().filter(is_ours).collect()
    }

    /// The address of the pod of a workload.
    pub(crate) async fn pod_ip(&self, namespace: &str, app: &str) -> String {
        self.pod_ip_of(namespace, "app", app).await
    }

    /// The address of the pod with a label.
    pub(crate) async fn pod_ip_of(&self, namespace: &str, label: &str, value: &str) -> String {
        let pods = self.pods().await;
        let is_it = |pod: &&Value| {
            pod["metadata"]["namespace"] == namespace && pod["metadata"]["labels"][label] == value
        };
        let pod = pods.iter().find(is_it).unwrap();
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    }

    /// Makes calls from the client of `namespace`; the outcomes are in their order.
    pub(crate) async fn call(&self, namespace: &str, calls: &[Call]) -> Vec<Outcome> {
        self.try_call(namespace, CLIENT, calls).await.unwrap()
    }

    /// Makes calls from `workload`, which may not be there yet.
    pub(crate) async fn try_call(
        &self,
        namespace: &str,
        workload: &str,
        calls: &[Call],
    ) -> anyhow::Result<Vec<Outcome>> {
        let calls = serde_json::to_string(calls).unwrap();
        let echo = self.echo();
        let command = [&at(namespace, workload)[..], &[&echo, "call", &calls]].concat();
        let shown = self.mesh.ctl_ok(&command).await?;
        Ok(serde_json::from_str(&shown)?)
    }

    /// Opens a connection from the client of `namespace` and keeps it busy; it is open when this returns.
    pub(crate) async fn hold(&self, namespace: &str, line: &Call) -> Line {
        let line = serde_json::to_string(line).unwrap();
        let echo = self.echo();
        let hold = [echo.as_str(), "hold", &line];
        let command = [&at(namespace, CLIENT)[..], &hold[..]].concat();
        let mut child = self.mesh.spawn(&command).unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = tokio::time::timeout(SETTLED, output.next_line()).await;
        let opened = opened.expect("the line is open in time").unwrap();
        assert_eq!(opened.as_deref(), Some("open"));
        Line { child, output }
    }

    /// The workloads' program, where pods have it: those of a local mesh see this machine's files.
    fn echo(&self) -> String {
        if self.mesh.is_cluster() {
            return "/usr/local/bin/echo".to_owned();
        }
        let path = e2e::mesh::programs().unwrap().join("echo");
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command beside the proxy of the client of `namespace`.
    pub(crate) async fn in_proxy(&self, namespace: &str, command: &[&str]) -> String {
        let at = ["local", "exec", "-n", namespace, "deploy/client", "-c"];
        let command = [&at[..], &["istio-proxy", "--"], command].concat();
        self.mesh.ctl_ok(&command).await.unwrap()
    }

    /// Runs a command in a container of the control plane.
    pub(crate) async fn in_control_plane(&self, deployment: &str, command: &[&str]) -> String {
        let at = ["local", "exec", "-n", "istio-system", deployment, "--"];
        self.mesh
            .ctl_ok(&[&at[..], command].concat())
            .await
            .unwrap()
    }
}

/// A connection that is kept busy.
pub(crate) struct Line {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Line {
    /// Waits until the other side has ended it.
    pub(crate) async fn is_cut(&mut self) {
        let end = tokio::time::timeout(SETTLED, self.output.next_line()).await;
        let end = end.expect("the line is cut in time").unwrap();
        assert_eq!(end.as_deref(), Some("cut"));
    }

    /// Lets it go, after it has been open all the while.
    pub(crate) async fn was_held(mut self) {
        drop(self.child.stdin.take());
        let end = tokio::time::timeout(SETTLED, self.output.next_line()).await;
        let end = end.expect("the line ends in time").unwrap();
        assert_eq!(end.as_deref(), Some("held"), "what was open stays open");
    }
}

fn at<'a>(namespace: &'a str, workload: &'a str) -> [&'a str; 6] {
    ["local", "exec", "-n", namespace, workload, "--"]
}

fn is_ready(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.is_some_and(|containers| {
        !containers.is_empty()
            && containers
                .iter()
                .all(|container| container["ready"] == true)
    })
}

/// A namespace whose pods are in the mesh, or not.
pub(crate) fn namespace(name: &str, is_injected: bool) -> String {
    let labels = if is_injected {
        json!({"istio-injection": "enabled"})
    } else {
        json!({})
    };
    document(&json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
    }))
}

/// The client of a namespace; its sidecar's proxy is the program `proxy` if there is one.
pub(crate) fn client(namespace: &str, proxy: Option<&str>) -> String {
    client_with(namespace, proxy, &[])
}

/// As [`client`], with further annotations.
pub(crate) fn client_with(
    namespace: &str,
    proxy: Option<&str>,
    further: &[(&str, String)],
) -> String {
    include_str!("../security/client.yaml")
        .replace("{{namespace}}", namespace)
        .replace("{{annotations}}", &annotations(proxy, further))
}

/// A server in namespace `servers`, what it takes, and its proxy if it is another program.
pub(crate) fn server(name: &str, account: &str, mode: &str, proxy: Option<&str>) -> String {
    include_str!("../security/server.yaml")
        .replace("{{name}}", name)
        .replace("{{account}}", account)
        .replace("{{mode}}", mode)
        .replace("{{annotations}}", &annotations(proxy, &[]))
}

fn annotations(proxy: Option<&str>, further: &[(&str, String)]) -> String {
    let config = proxy.map(|path| json!({"binaryPath": path}).to_string());
    let config = config.map(|config| ("proxy.istio.io/config", config));
    let all: BTreeMap<&str, String> = further.iter().cloned().chain(config).collect();
    json!(all).to_string()
}

/// A Secret.
pub(crate) fn secret(namespace: &str, name: &str, data: &[(&str, &str)]) -> String {
    let data: serde_json::Map<String, Value> = data
        .iter()
        .map(|(name, text)| ((*name).to_owned(), json!(text)))
        .collect();
    document(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    }))
}

fn document(object: &Value) -> String {
    format!("---\n{object}\n")
}
