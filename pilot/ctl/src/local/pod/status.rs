//! What is known of a running pod, in the platform's own form and as Kubernetes shows it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde_json::{Value, json};

/// A container's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Not started, or between two starts; `reason` as kubectl shows it.
    #[default]
    Created,
    /// Something is missing, or it failed and will be tried again.
    Waiting {
        /// `CrashLoopBackOff`, …
        reason: &'static str,
        /// More, for people.
        message: String,
    },
    /// It runs.
    Running {
        /// Its process.
        pid: i32,
        /// Since when.
        started: String,
    },
    /// It ended and stays so.
    Terminated {
        /// Exit code.
        code: i32,
    },
}

/// One container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerStatus {
    /// Name.
    pub name: String,
    /// Image.
    pub image: String,
    /// State.
    pub state: ContainerState,
    /// Whether it runs and its readiness probe, if any, succeeds.
    pub is_ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodStatus {
    /// Its address, once it has one.
    pub ip: Option<Ipv4Addr>,
    /// The IPv6 address that it has then besides.
    pub second_ip: Option<Ipv6Addr>,
    /// What the pod as a whole waits for.
    pub waiting: Option<String>,
    /// Whether it has been told to go.
    pub is_terminating: bool,
    /// Init containers, in order.
    pub init_containers: Vec<ContainerStatus>,
    /// Containers.
    pub containers: Vec<ContainerStatus>,
    /// When it was made.
    pub created: String,
}

impl PodStatus {
    /// Whether it takes traffic.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_terminating
            && !self.containers.is_empty()
            && self.containers.iter().all(|container| container.is_ready)
    }

    /// How often its containers were started again.
    pub(crate) fn restarts(&self) -> u32 {
        self.containers
            .iter()
            .chain(&self.init_containers)
            .map(|container| container.restarts)
            .sum()
    }

    /// The STATUS column of `kubectl get pods`.
    pub(crate) fn summary(&self) -> String {
        if self.is_terminating {
            return "Terminating".into();
        }
        let done = |container: &ContainerStatus| {
            matches!(container.state, ContainerState::Terminated { code: 0 })
        };
        if let Some(index) = self
            .init_containers
            .iter()
            .position(|container| !done(container))
        {
            if let ContainerState::Waiting { reason, .. } = &self.init_containers[index].state {
                return format!("Init:{reason}");
            }
            if self.waiting.is_none() {
                return format!("Init:{index}/{}", self.init_containers.len());
            }
        }
        for container in &self.containers {
            match &container.state {
                ContainerState::Waiting { reason, .. } => return (*reason).into(),
                ContainerState::Terminated { code: 0 } => return "Completed".into(),
                ContainerState::Terminated { .. } => return "Error".into(),
                ContainerState::Created | ContainerState::Running { .. } => {}
            }
        }
        let all_run = self
            .containers
            .iter()
            .all(|container| matches!(container.state, ContainerState::Running { .. }));
        match (&self.waiting, all_run && !self.containers.is_empty()) {
            (_, true) => "Running".into(),
            (Some(_), false) => "Pending".into(),
            (None, false) => "PodInitializing".into(),
        }
    }

    /// Why it is not ready, for people; empty if there is nothing to say.
    pub(crate) fn message(&self) -> String {
        if let Some(waiting) = &self.waiting {
            return waiting.clone();
        }
        let waiting = self
            .init_containers
            .iter()
            .chain(&self.containers)
            .find_map(|container| match &container.state {
                ContainerState::Waiting { message, .. } => {
                    Some(format!("{}: {message}", container.name))
                }
                _ => None,
            });
        waiting.unwrap_or_default()
    }

    /// `.status` of the Pod object.
    pub(crate) fn to_value(&self) -> Value {
        let phase = match self.summary().as_str() {
            "Running" | "CrashLoopBackOff" | "Terminating" => "Running",
            "Completed" => "Succeeded",
            "Error" => "Failed",
            _ => "Pending",
        };
        let condition = |kind: &str, is_true: bool| json!({"type": kind, "status": if is_true { "True" } else { "False" }});
        let is_ready = self.is_ready();
        let mut status = json!({
            "phase": phase,
            "conditions": [condition("Initialized", phase != "Pending"), condition("Ready", is_ready),
                condition("ContainersReady", is_ready), condition("PodScheduled", true)],
            "startTime": self.created,
            "initContainerStatuses": self.init_containers.iter().map(ContainerStatus::to_value).collect::<Vec<_>>(),
            "containerStatuses": self.containers.iter().map(ContainerStatus::to_value).collect::<Vec<_>>(),
        });
        if let Some(ip) = self.ip {
            status["podIP"] = json!(ip.to_string());
            let all = [Some(ip.into()), self.second_ip.map(IpAddr::V6)];
            let all = all.into_iter().flatten();
            status["podIPs"] = all.map(|ip| json!({"ip": ip.to_string()})).collect();
            status["hostIP"] = json!(crate::local::network::node::ADDRESS.to_string());
        }
        let message = self.message();
        if !message.is_empty() {
            status["message"] = json!(message);
        }
        status
    }
}

impl ContainerStatus {
    /// Its process, while it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        let state = match &self.state {
            ContainerState::Created => json!({"waiting": {"reason": "ContainerCreating"}}),
            ContainerState::Waiting { reason, message } => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            ContainerState::Running { started, .. } => json!({"running": {"startedAt": started}}),
            ContainerState::Terminated { code } => json!({"terminated": {"exitCode": code}}),
        };
        json!({"name": self.name, "image": self.image, "ready": self.is_ready, "restartCount": self.restarts, "state": state})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: ContainerState, is_ready: bool) -> ContainerStatus {
        ContainerStatus {
            name: "c".into(),
            state,
            is_ready,
            ..ContainerStatus::default()
        }
    }

    #[test]
    fn the_status_column_says_what_kubectl_would() {
        let running = || ContainerState::Running {
            pid: 1,
            started: String::new(),
        };
        let mut pod = PodStatus {
            init_containers: vec![container(ContainerState::Created, false)],
            containers: vec![container(ContainerState::Created, false)],
            ..PodStatus::default()
        };
        assert_eq!(pod.summary(), "Init:0/1");
        pod.init_containers[0].state = ContainerState::Terminated { code: 0 };
        assert_eq!(pod.summary(), "PodInitializing");
        pod.containers[0] = container(running(), false);
        assert_eq!((pod.summary().as_str(), pod.is_ready()), ("Running", false));
        pod.containers[0].is_ready = true;
        assert!(pod.is_ready());
        assert_eq!(pod.to_value()["conditions"][1]["status"], "True");
        pod.containers[0].state = ContainerState::Waiting {
            reason: "CrashLoopBackOff",
            message: "exit code 1".into(),
        };
        assert_eq!(
            (pod.summary().as_str(), pod.message().as_str()),
            ("CrashLoopBackOff", "c: exit code 1")
        );
    }
}
