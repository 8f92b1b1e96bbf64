//! A pod from its first moment to its last: address and network, volumes, init containers in order, then all containers.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use proto_component::{backoff::Backoff, task};
use tokio::sync::watch;

use super::{
    container::{End, Run},
    environment::Fields,
    status::{ContainerState, ContainerStatus, PodStatus},
    volume::{self, Sources},
};
use crate::local::{
    network::namespace::Namespace,
    platform::Platform,
    store::{Key, now},
};

/// The proxy beside an application.
pub(crate) const PROXY_CONTAINER: &str = "istio-proxy";

/// A pod that runs.
pub(crate) struct PodContext {
    /// The platform it runs on.
    pub platform: Platform,
    /// The pod as it came out of admission.
    pub pod: Pod,
    /// Its object.
    pub key: Key,
    /// Its directory.
    pub directory: PathBuf,
    /// Becomes the time it has left when it is told to go.
    pub stop: watch::Receiver<Option<Duration>>,
    /// What is known of it.
    pub status: Mutex<PodStatus>,
    address: Ipv4Addr,
    namespace: OnceLock<Namespace>,
}

impl PodContext {
    /// A pod about to start.
    pub(crate) fn new(
        platform: Platform,
        pod: Pod,
        key: Key,
        address: Ipv4Addr,
        stop: watch::Receiver<Option<Duration>>,
    ) -> Self {
        let directory = platform
            .state
            .path("pods")
            .join(&key.namespace)
            .join(&key.name);
        let status = |container: &Container| ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            log: directory
                .join("logs")
                .join(format!("{}.log", container.name)),
            ..ContainerStatus::default()
        };
        let spec = pod.spec.as_ref();
        let status = PodStatus {
            second_ip: platform.node.plan().second(address),
            created: now(),
            init_containers: spec
                .iter()
                .flat_map(|spec| spec.init_containers.iter().flatten())
                .map(status)
                .collect(),
            containers: spec
                .iter()
                .flat_map(|spec| &spec.containers)
                .map(status)
                .collect(),
            ..PodStatus::default()
        };
        Self {
            platform,
            pod,
            key,
            directory,
            stop,
            status: Mutex::new(status),
            address,
            namespace: OnceLock::new(),
        }
    }

    /// Its address.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// Its IPv6 address, if it has one.
    pub(crate) fn second_ip(&self) -> Option<Ipv6Addr> {
        self.platform.node.plan().second(self.address)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.key.name
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// Where a container's output goes.
    pub(crate) fn log_path(&self, container: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{container}.log"))
    }

    /// Where its volumes lie. Without mounts of its own a program sees this path, and the path of a socket must be short.
    pub(crate) fn volumes_path(&self) -> PathBuf {
        if self.platform.mode.is_isolated() {
            return self.directory.join("volumes");
        }
        let [_, _, third, fourth] = self.address.octets();
        self.platform
            .state
            .path("v")
            .join(format!("{third}.{fourth}"))
    }

    /// Its network namespace, if it has one of its own.
    pub(crate) fn network(&self) -> Option<&Namespace> {
        self.namespace.get()
    }

    /// Whether a proxy of the mesh runs in it beside something else.
    pub(crate) fn has_sidecar(&self) -> bool {
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.clone().count() > 1
            && containers
                .into_iter()
                .any(|container| container.name == PROXY_CONTAINER)
    }

    /// Path of its network namespace.
    pub(crate) fn network_path(&self) -> Option<PathBuf> {
        self.namespace.get().map(Namespace::path)
    }

    /// What its containers' fields may refer to.
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields {
            pod: &self.pod,
            pod_ip: self.address,
            second_ip: self.second_ip(),
            host_ip: self.platform.node.plan().node(),
        }
    }

    /// Whether containers that end well are started again.
    pub(crate) fn restarts_always(&self) -> bool {
        self.restart_policy()
            .is_none_or(|policy| policy == "Always")
    }

    /// Whether containers are never started again.
    pub(crate) fn restarts_never(&self) -> bool {
        self.restart_policy() == Some("Never")
    }

    fn restart_policy(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.restart_policy.as_deref()
    }

    /// Changes what is known, and tells everybody.
    pub(crate) fn update(&self, change: impl FnOnce(&mut PodStatus)) {
        let value = {
            let mut status = self.status.lock();
            let before = status.clone();
            change(&mut status);
            if *status == before {
                return;
            }
            status.to_value()
        };
        self.platform.store.set_status(&self.key, value);
        // The object may look the same while a process or a log file changed.
        self.platform.store.touch();
    }

    fn with_container(&self, index: usize, change: impl FnOnce(&mut ContainerStatus)) {
        self.update(|status| {
            let inits = status.init_containers.len();
            let container = if index < inits {
                status.init_containers.get_mut(index)
            } else {
                status.containers.get_mut(index - inits)
            };
            if let Some(container) = container {
                change(container);
            }
        });
    }

    /// A container's new state; one that does not run is not ready.
    pub(crate) fn set_state(&self, index: usize, state: ContainerState) {
        self.with_container(index, |container| {
            container.is_ready =
                container.is_ready && matches!(state, ContainerState::Running { .. });
            container.state = state;
        });
    }

    /// What a readiness probe found.
    pub(crate) fn set_ready(&self, index: usize, is_ready: bool) {
        self.with_container(index, |container| {
            container.is_ready =
                is_ready && matches!(container.state, ContainerState::Running { .. });
        });
    }

    /// One more start.
    pub(crate) fn count_restart(&self, index: usize) {
        self.with_container(index, |container| container.restarts += 1);
    }

    /// Runs a command in a container (an exec probe).
    pub(crate) async fn exec_in(&self, index: usize, command: &[String]) -> bool {
        let pid = {
            let status = self.status.lock();
            let container = status
                .init_containers
                .iter()
                .chain(&status.containers)
                .nth(index);
            container.and_then(ContainerStatus::pid)
        };
        let Some(pid) = pid else { return false };
        let status = tokio::process::Command::new(&self.platform.programs.own)
            .args(["pod-enter", &pid.to_string(), "--"])
            .args(command)
            .env(crate::local::state::MARK, &self.platform.mesh_id)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .status()
            .await;
        status.is_ok_and(|status| status.success())
    }
}

/// Runs the pod until it is told to go, or all its containers have ended for good; then clears up after it.
/// Runs on the node's thread.
pub(crate) async fn run(pod: Arc<PodContext>) {
    let mut stop = pod.stop.clone();
    let prepared = tokio::select! {
        volumes = prepare(&pod) => Some(volumes),
        _ = stop.wait_for(Option::is_some) => None,
    };
    if let Some(volumes) = prepared {
        let refresh = Refresh(task::spawn("volumes", refresh_volumes(pod.clone())));
        run_containers(&pod, &volumes).await;
        drop(refresh);
    }
    if pod.stop.borrow().is_none() {
        // Finished by itself: stays for its status and logs until it is deleted.
        let _ = stop.wait_for(Option::is_some).await;
    }
    let directories = [pod.volumes_path(), pod.directory.clone()];
    let remove = move || {
        for directory in directories {
            // What cannot be removed now, or is gone with its parent, goes with the state directory.
            let _ = fs::remove_dir_all(directory);
        }
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}

struct Refresh(tokio::task::JoinHandle<()>);

impl Drop for Refresh {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Network and volumes; tries again until both are there.
async fn prepare(pod: &Arc<PodContext>) -> BTreeMap<String, PathBuf> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Err(error) = prepare_network(pod).await {
        pod.update(|status| status.waiting = Some(format!("network: {error:#}")));
        tokio::time::sleep(backoff.next_delay()).await;
    }
    let mut changes = pod.platform.store.watch_data();
    loop {
        match materialize(pod) {
            Ok(volumes) => {
                pod.update(|status| {
                    status.waiting = None;
                    status.ip = Some(pod.ip());
                });
                return volumes;
            }
            Err(error) => pod.update(|status| {
                status.ip = Some(pod.ip());
                status.waiting = Some(error.to_string());
            }),
        }
        // A path on the host may appear without any object changing.
        let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    }
}

async fn prepare_network(pod: &Arc<PodContext>) -> anyhow::Result<()> {
    fs::create_dir_all(pod.directory.join("logs"))?;
    if pod.platform.mode.is_isolated() && pod.namespace.get().is_none() {
        let octets = pod.address.octets();
        let link = format!("pod{}-{}", octets[2], octets[3]);
        let namespace = pod.platform.node.add_pod(link, pod.address).await?;
        // Nobody else sets it.
        let _ = pod.namespace.set(namespace);
    }
    Ok(())
}

fn materialize(pod: &PodContext) -> Result<BTreeMap<String, PathBuf>, volume::NotReady> {
    let sources = Sources {
        store: &pod.platform.store,
        identity: &pod.platform.identity,
        fields: &pod.fields(),
        directory: &pod.volumes_path(),
    };
    sources.materialize()
}

async fn refresh_volumes(pod: Arc<PodContext>) {
    let mut changes = pod.platform.store.watch_data();
    loop {
        let _ = tokio::time::timeout(volume::REFRESH, changes.changed()).await;
        if let Err(error) = materialize(&pod) {
            tracing::warn!(pod = pod.name(), %error, "a volume cannot be refreshed");
        }
    }
}

async fn run_containers(pod: &Arc<PodContext>, volumes: &BTreeMap<String, PathBuf>) {
    let Some(spec) = &pod.pod.spec else { return };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    for (index, container) in inits.iter().enumerate() {
        let run = Run {
            pod,
            index,
            container,
            volumes,
            is_init: true,
        };
        if run.supervise().await != End::Finished(0) {
            return;
        }
    }
    let runs = spec
        .containers
        .iter()
        .enumerate()
        .map(|(index, container)| async move {
            let run = Run {
                pod,
                index: inits.len() + index,
                container,
                volumes,
                is_init: false,
            };
            run.supervise().await
        });
    join_all(runs).await;
}
