//! A mesh in the cluster of `$KUBECONFIG`: what `biremectl local` does with a local mesh, kubectl does with this one, by the same
//! arguments. And, of both, how a component is and what becomes of it.

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::process::Command;

use super::{Mesh, project};
use crate::load::HttpClient;

/// The control plane's namespace.
const NAMESPACE: &str = "istio-system";

/// How the pods of a component, or of a gateway, are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How often they were restarted.
    pub restarts: u64,
    /// How many of how many are ready, `1/1`.
    pub ready: String,
}

impl Health {
    /// Whether there are some and each is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let parts = self.ready.split_once('/');
        parts.is_some_and(|(ready, all)| ready == all && all != "0")
    }
}

/// kubectl, with the arguments of `biremectl local …`.
pub(super) fn command(arguments: &[&str]) -> anyhow::Result<Command> {
    let Some((&"local", [verb, rest @ ..])) = arguments.split_first() else {
        bail!("{arguments:?} is not for a cluster");
    };
    let mut command = Command::new("kubectl");
    command.arg(verb).current_dir(project()).kill_on_drop(true);
    if *verb == "exec" {
        command.arg("--stdin");
    }
    command.args(rest);
    Ok(command)
}

impl Mesh {
    /// The mesh that is in the cluster, whose gateway and Mixer answer at these addresses.
    #[must_use]
    pub fn in_cluster(gateway: String, metrics: String) -> Self {
        Self {
            name: "cluster".to_owned(),
            gateway,
            metrics,
            is_cluster: true,
            output: std::sync::Arc::default(),
            client: HttpClient::default(),
            child: None,
            person: None,
        }
    }

    /// How a component is; none if there is none.
    pub async fn health(&self, component: &str) -> Option<Health> {
        if self.is_cluster {
            return self.health_of_pods(component).await;
        }
        let status = self.ctl_ok(&["local", "status", "-o", "json"]).await.ok()?;
        let rows: Value = serde_json::from_str(&status).ok()?;
        let mut rows = rows.as_array()?.iter();
        let row = rows.find(|row| {
            let name = row["name"].as_str();
            name.is_some_and(|name| name.starts_with(component))
        })?;
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        Some(Health {
            restarts: number(&row["restarts"]).unwrap_or_default(),
            ready: row["ready"].as_str()?.to_owned(),
        })
    }

    /// Kills the processes of a component, which are then started anew in their pods.
    ///
    /// # Errors
    /// When they cannot be killed.
    pub async fn kill_component(&self, component: &str) -> anyhow::Result<()> {
        if !self.is_cluster {
            return self.ctl_ok(&["local", "kill", component]).await.map(drop);
        }
        for pod in self.pods(component).await? {
            let container = &pod["status"]["containerStatuses"][0]["containerID"];
            let id = container.as_str().and_then(|id| id.split_once("://"));
            let (_, id) = id.with_context(|| format!("{component} does not run"))?;
            let socket =
                std::env::var_os("CONTAINERD").context("$CONTAINERD, containerd's socket")?;
            let mut command = Command::new("ctr");
            command.arg("--address").arg(socket);
            let kill = [
                "--namespace",
                "k8s.io",
                "tasks",
                "kill",
                "--signal",
                "SIGKILL",
            ];
            let output = command.args(kill).arg(id).output().await?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "kill {component}: {complaint}");
        }
        Ok(())
    }

    async fn pods(&self, component: &str) -> anyhow::Result<Vec<Value>> {
        let shown = self.ctl_ok(&["local", "get", "pods", "-n", NAMESPACE, "-o", "json"]);
        let list: Value = serde_json::from_str(&shown.await?)?;
        let prefix = format!("{component}-");
        let pods = list["items"].as_array().into_iter().flatten();
        let ours = pods.filter(|pod| {
            let name = pod["metadata"]["name"].as_str();
            name.is_some_and(|name| name.starts_with(&prefix))
        });
        Ok(ours.cloned().collect())
    }

    async fn health_of_pods(&self, component: &str) -> Option<Health> {
        let pods = self.pods(component).await.ok()?;
        let containers = |pod: &Value| -> Vec<Value> {
            let statuses = pod["status"]["containerStatuses"].as_array();
            statuses.cloned().unwrap_or_default()
        };
        let is_ready = |pod: &&Value| {
            let containers = containers(pod);
            !containers.is_empty() && containers.iter().all(|each| each["ready"] == true)
        };
        let restarts = |pod: &Value| -> u64 {
            let counts = containers(pod).into_iter();
            counts
                .filter_map(|each| each["restartCount"].as_u64())
                .sum()
        };
        Some(Health {
            restarts: pods.iter().map(restarts).sum(),
            ready: format!("{}/{}", pods.iter().filter(is_ready).count(), pods.len()),
        })
    }
}
