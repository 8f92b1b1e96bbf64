//! The platform: the objects, and the one loop that makes the machine look like them.
//!
//! Flow: a change in the [`Store`](super::store) wakes [`run`]: [`workloads`] (deployments → pods) →
//! [`services`] (pods → endpoints → names, addresses, ports) → [`mirror`](super::mirror) (objects →
//! Galley's directory), [`Credentials`] (secrets → gateways). Each step is idempotent; changes that arrive meanwhile are taken together.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::Deref, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use proto_component::drain::Drain;
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    credentials::Credentials,
    identity::Identity,
    mirror::Mirror,
    network::{
        dns::{DOMAIN, Names},
        forward::Forwarder,
        node::{self, Node},
    },
    pod::lifecycle::{self, PodContext},
    programs::Programs,
    services,
    state::StateDir,
    store::{Key, Store},
    workloads,
};

/// How pods are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each has network and mount namespaces of its own.
    Isolated,
    /// They share the machine's network and files: each has a loopback address, and its sidecar is an HTTP proxy.
    Shared,
}

/// Handle to the platform.
#[derive(Clone)]
pub(crate) struct Platform(Arc<Parts>);

/// What the platform consists of.
pub(crate) struct Parts {
    /// Objects.
    pub store: Store,
    /// The node's thread.
    pub node: Node,
    /// How pods are kept apart.
    pub mode: Mode,
    /// Where state lies.
    pub state: StateDir,
    /// Tokens and serving certificates.
    pub identity: Identity,
    /// Images.
    pub programs: Programs,
    /// The mark of this run's processes.
    pub mesh_id: String,
    /// Ports on the host.
    pub forwarder: Forwarder,
    /// Cluster addresses of services, where no firewall translates them.
    pub cluster_ports: Forwarder,
    /// Service names.
    pub names: Names,
    /// Pods that run.
    pub pods: Mutex<BTreeMap<Key, PodHandle>>,
    /// Pods that are being made (in admission), with their owner.
    pub making: Mutex<BTreeMap<Key, Owner>>,
    addresses: Mutex<Addresses>,
}

/// A deployment at one state of its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The deployment.
    pub deployment: Key,
    /// Digest of its template.
    pub hash: String,
}

/// A pod that runs.
pub(crate) struct PodHandle {
    /// The pod.
    pub context: Arc<PodContext>,
    /// Who made it.
    pub owner: Option<Owner>,
    stop: watch::Sender<Option<Duration>>,
    task: JoinHandle<()>,
}

/// Addresses given out; each is used once in a run, so that nobody meets a stranger behind a remembered address.
#[derive(Debug, Default)]
struct Addresses {
    pods: u16,
    services: u16,
}

impl Deref for Platform {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Mode {
    /// Whether pods have namespaces of their own.
    pub(crate) fn is_isolated(self) -> bool {
        matches!(self, Mode::Isolated)
    }
}

impl Platform {
    /// A platform without objects.
    pub(crate) fn new(
        node: Node,
        mode: Mode,
        state: StateDir,
        programs: Programs,
        mesh_id: String,
    ) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts {
            store: Store::default(),
            forwarder: Forwarder::new(node.clone()),
            cluster_ports: Forwarder::new(node.clone()),
            node,
            mode,
            state,
            identity: Identity::generate()?,
            programs,
            mesh_id,
            names: Names::default(),
            pods: Mutex::default(),
            making: Mutex::default(),
            addresses: Mutex::default(),
        })))
    }

    /// The next address for a pod.
    pub(crate) fn pod_address(&self) -> anyhow::Result<Ipv4Addr> {
        let mut addresses = self.addresses.lock();
        let next = addresses.pods.checked_add(1);
        addresses.pods = next.context("no pod address is left")?;
        self.node
            .plan()
            .pod(addresses.pods)
            .context("no pod address is left")
    }

    /// The next cluster address for a service.
    pub(crate) fn service_address(&self) -> anyhow::Result<Ipv4Addr> {
        let mut addresses = self.addresses.lock();
        let next = addresses.services.checked_add(1);
        addresses.services = next.context("no cluster address is left")?;
        self.node
            .plan()
            .service(addresses.services)
            .context("no cluster address is left")
    }

    /// A pod's `/etc/resolv.conf`.
    pub(crate) fn resolv_conf(&self, namespace: &str) -> String {
        format!(
            "nameserver {}\nsearch {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\noptions ndots:5 timeout:2 attempts:3\n",
            node::DNS_ADDRESS
        )
    }

    /// Starts a pod that has been through admission, and keeps its object.
    pub(crate) fn start_pod(
        &self,
        key: &Key,
        object: Value,
        owner: Option<Owner>,
    ) -> anyhow::Result<()> {
        let pod: Pod = serde_json::from_value(object.clone()).context("read the pod")?;
        let address = self.pod_address()?;
        self.store.put(key, object);
        // With the identity that the store gave it.
        let mut pod = pod;
        if let Some(stored) = self.store.get(key) {
            pod.metadata.uid = stored["metadata"]["uid"].as_str().map(str::to_owned);
        }
        let (stop, stopped) = watch::channel(None);
        let context = Arc::new(PodContext::new(
            self.clone(),
            pod,
            key.clone(),
            address,
            stopped,
        ));
        let running = context.clone();
        let platform = self.clone();
        let task = self.node.spawn("pod", async move {
            let key = running.key.clone();
            lifecycle::run(running).await;
            platform.pods.lock().remove(&key);
            platform.store.remove(&key);
        });
        self.pods.lock().insert(
            key.clone(),
            PodHandle {
                context,
                owner,
                stop,
                task,
            },
        );
        self.store.touch();
        Ok(())
    }

    /// Tells a pod to go, within `grace` (or what it asks for itself). True if there is such a pod.
    pub(crate) fn stop_pod(&self, key: &Key, grace: Option<Duration>) -> bool {
        let context = {
            let pods = self.pods.lock();
            let Some(handle) = pods.get(key) else {
                return false;
            };
            let own = handle
                .context
                .pod
                .spec
                .as_ref()
                .and_then(|spec| spec.termination_grace_period_seconds);
            let own = Duration::from_secs(
                own.and_then(|seconds| u64::try_from(seconds).ok())
                    .unwrap_or(30),
            );
            handle.stop.send_if_modified(|current| {
                let first = current.is_none();
                if first {
                    *current = Some(grace.unwrap_or(own));
                }
                first
            });
            handle.context.clone()
        };
        context.update(|status| status.is_terminating = true);
        true
    }

    /// A pod that runs, by name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodContext>> {
        let pods = self.pods.lock();
        pods.get(&Key::platform("Pod", namespace, name))
            .map(|handle| handle.context.clone())
    }

    /// Ends all pods and waits for them.
    pub(crate) async fn stop_all(&self, grace: Duration) {
        let keys: Vec<Key> = self.pods.lock().keys().cloned().collect();
        for key in &keys {
            self.stop_pod(key, Some(grace));
        }
        let handles = std::mem::take(&mut *self.pods.lock());
        let ends = handles.into_values().map(|handle| handle.task);
        let all = futures::future::join_all(ends);
        if tokio::time::timeout(grace + Duration::from_secs(3), all)
            .await
            .is_err()
        {
            tracing::warn!("some pods did not end in time");
        }
    }
}

/// Makes the machine follow the objects until `drain`.
pub(crate) async fn run(platform: Platform, has_galley: bool, drain: Drain) {
    let mut changes = platform.store.watch();
    let mut sync = services::Sync::new();
    let mut mirror = Mirror::new(
        platform
            .state
            .path(if has_galley { "config" } else { "served" }),
        has_galley,
    );
    let mut credentials = Credentials::new(platform.state.path("credentials"));
    loop {
        changes.mark_unchanged();
        workloads::reconcile(&platform);
        if let Err(error) = sync.reconcile(&platform).await {
            tracing::error!(error = format!("{error:#}"), "services cannot be published");
        }
        mirror.write(&platform.store);
        credentials.write(&platform.store);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = drain.signaled() => return,
        }
    }
}
