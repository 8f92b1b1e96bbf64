//! The discovery task: applies what the sources say, waits until they are quiet, makes the next push context and asks every
//! connection to push. And the state that streams and debug pages share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto_component::drain::Drain;
use proto_component::task;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::admission::Admission;
use super::name::Names;
use super::push::PushRequest;
use super::{Cache, Connection};
use crate::config::store::{Change, ConfigStore, Kind, Update};
use crate::features::Features;
use crate::jwks::{self, KeySets};
use crate::metrics::Metrics;
use crate::model::{Mesh, Proxy};
use crate::push_context::PushContext;
use crate::registry::registration::Registrations;
use crate::registry::{ServiceRegistry, service_entry::Settings};

/// Updates that may wait for the discovery task.
pub const UPDATES: usize = 64;
/// The fast path: endpoints are made and sent for little, and clients should know soon where not to go any more.
const ENDPOINTS_QUIET: Duration = Duration::from_millis(10);
const ENDPOINTS_CAP: Duration = Duration::from_millis(100);
/// Kinds whose resources stand for services and endpoints.
const REGISTRY_KINDS: [Kind; 4] = [
    Kind::Pod,
    Kind::SyntheticServiceEntry,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
];

/// A push context and what has been made of it.
#[derive(Debug, Default)]
pub struct Current {
    /// The context.
    pub push: PushContext,
    /// Encoded resources.
    pub cache: Cache,
}

/// What streams and debug pages share.
#[derive(Debug)]
pub struct Discovery {
    current: ArcSwap<Current>,
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next_connection: AtomicU64,
    /// Pushes at once.
    pub throttle: Arc<Semaphore>,
    /// Machines that have registered themselves.
    pub registrations: Registrations,
    /// How fast streams may begin.
    pub admission: Admission,
    /// Names of resources.
    pub names: Names,
    /// Metrics.
    pub metrics: Metrics,
    /// Settings.
    pub features: Features,
    ready: watch::Sender<bool>,
    /// Namespaces in which there are gateways that may read Secrets.
    pub gateway_namespaces: watch::Sender<BTreeSet<String>>,
    /// Everything that counts; written by the discovery task, read by debug pages.
    pub store: Mutex<ConfigStore>,
}

impl Discovery {
    /// Nothing known yet.
    #[must_use]
    pub fn new(features: Features, metrics: Metrics) -> Arc<Self> {
        Arc::new(Discovery {
            current: ArcSwap::default(),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(1),
            throttle: Arc::new(Semaphore::new(features.push_throttle.max(1))),
            registrations: Registrations::default(),
            admission: Admission::new(features.max_requests_per_second),
            names: Names::default(),
            metrics,
            features,
            ready: watch::channel(false).0,
            gateway_namespaces: watch::channel(BTreeSet::new()).0,
            store: Mutex::default(),
        })
    }

    /// The newest push context.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Resolves once there is configuration to serve.
    pub async fn ready(&self) {
        // The sender lives as long as we do.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// All connections.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.connections.lock().values().cloned().collect()
    }

    /// Asks every connection to push everything.
    pub fn push_all(&self) {
        let request = PushRequest::everything(Instant::now());
        for connection in self.connections() {
            connection.enqueue(&request);
        }
    }

    /// Where the pod of a proxy is whose node does not say it; empty if nobody knows.
    fn locality_of(&self, proxy: &Proxy) -> String {
        let Some((pod, namespace)) = proxy.id.rsplit_once('.') else {
            return String::new();
        };
        let store = self.store.lock();
        let pod = store.pods.get(&format!("{namespace}/{pod}"));
        pod.map(|pod| pod.spec.locality.clone()).unwrap_or_default()
    }

    /// Takes a connection in until the guard is dropped.
    pub fn register(
        self: &Arc<Self>,
        mut proxy: Proxy,
        is_delta: bool,
        drain: Drain,
    ) -> Registered {
        if proxy.locality.is_empty() {
            proxy.locality = self.locality_of(&proxy);
        }
        if proxy.may_read_secrets {
            self.gateway_namespaces
                .send_if_modified(|known| known.insert(proxy.namespace.clone()));
        }
        let machine = match self.registrations.enter(&proxy) {
            Ok(machine) => machine,
            Err(refused) => {
                tracing::warn!(target: "ads", node = proxy.node_id, reason = %refused, "the machine is not registered");
                None
            }
        };
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(format!("{}-{number}", proxy.node_id), proxy, is_delta);
        self.connections
            .lock()
            .insert(number, Arc::clone(&connection));
        self.metrics.xds.inc();
        Registered {
            connection,
            number,
            machine,
            discovery: Arc::clone(self),
            drain,
        }
    }
}

/// A connection that is listed; dropping it takes it off the list.
#[derive(Debug)]
pub struct Registered {
    /// The connection.
    pub connection: Arc<Connection>,
    number: u64,
    /// Its entry, if it is a machine that has registered itself.
    machine: Option<String>,
    discovery: Arc<Discovery>,
    drain: Drain,
}

impl Registered {
    /// Takes in what the proxy's agent says of its workload's health.
    pub(super) fn report(&self, error: Option<String>) {
        if let Some(machine) = &self.machine {
            self.discovery.registrations.report(machine, error);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.discovery.connections.lock().remove(&self.number);
        self.discovery.metrics.xds.dec();
        if let Some(machine) = self.machine.take() {
            let discovery = Arc::clone(&self.discovery);
            discovery.registrations.disconnect(&machine);
            let grace = discovery.features.workload_entry_grace_period;
            let drain = self.drain.clone();
            task::spawn("machine-left", async move {
                tokio::select! {
                    () = tokio::time::sleep(grace) => discovery.registrations.leave(&machine),
                    // It ends with the process, which must not wait for it.
                    () = drain.signaled() => {}
                }
            });
        }
        for reject in &self.discovery.metrics.rejects {
            for code in 0..=16 {
                // Only there if this proxy has refused something.
                let _ = reject.remove_label_values(&[&self.connection.proxy.id, &code.to_string()]);
            }
        }
    }
}

/// The task's own state.
struct Task {
    discovery: Arc<Discovery>,
    domain: String,
    cluster: Arc<str>,
    mesh: Arc<Mesh>,
    registry: ServiceRegistry,
    keys: Arc<KeySets>,
    /// What the fetcher is to fetch.
    wanted_keys: watch::Sender<jwks::Wanted>,
    pending: PushRequest,
    has_pushed: bool,
}

/// Runs the task until the process drains. Nothing is served before `synced` has resolved.
pub async fn run(
    discovery: Arc<Discovery>,
    domain: String,
    mesh: Arc<Mesh>,
    mut updates: mpsc::Receiver<Update>,
    synced: impl Future<Output = ()>,
    drain: Drain,
) {
    let (quiet, cap) = (
        discovery.features.debounce_after,
        discovery.features.debounce_max,
    );
    let (wanted_keys, mut fetched_keys) = jwks::start(
        discovery.features.jwt_pub_key_refresh_interval,
        discovery.metrics.jwks.clone(),
        drain.clone(),
    );
    let machines = Arc::clone(&discovery);
    let mut task = Task {
        cluster: discovery.features.cluster_id.as_str().into(),
        discovery,
        domain,
        mesh,
        registry: ServiceRegistry::default(),
        keys: Arc::default(),
        wanted_keys,
        pending: PushRequest::everything(Instant::now()),
        has_pushed: false,
    };
    tokio::pin!(synced);
    let mut is_synced = false;
    let mut last_event = Instant::now();
    loop {
        let due = (is_synced && !task.pending.is_empty())
            .then(|| deadline(&task.pending, last_event, quiet, cap));
        tokio::select! {
            // Updates go first: what has come in before the sources were synced belongs into the first push.
            biased;
            () = drain.signaled() => return,
            update = updates.recv() => {
                let Some(update) = update else { return };
                let was_empty = task.pending.is_empty();
                task.apply(update);
                last_event = Instant::now();
                if was_empty {
                    task.pending.since = last_event;
                }
            }
            Some(fetched) = fetched_keys.recv() => {
                if Arc::make_mut(&mut task.keys).insert(fetched) {
                    last_event = Instant::now();
                    task.pending.note(Kind::Jwks, last_event);
                }
            }
            () = &mut synced, if !is_synced => is_synced = true,
            () = wait_until(due), if due.is_some() => task.push(),
            // After what is due: in a rush of machines there is always another one.
            () = machines.registrations.changed() => {
                let was_empty = task.pending.is_empty();
                task.apply_registrations();
                last_event = Instant::now();
                if was_empty {
                    task.pending.since = last_event;
                }
            }
        }
    }
}

fn deadline(pending: &PushRequest, last_event: Instant, quiet: Duration, cap: Duration) -> Instant {
    let (quiet, cap) = if pending.is_endpoints_only() {
        (quiet.min(ENDPOINTS_QUIET), cap.min(ENDPOINTS_CAP))
    } else {
        (quiet, cap)
    };
    (last_event + quiet).min(pending.since + cap)
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

impl Task {
    fn apply(&mut self, update: Update) {
        let metrics = self.discovery.metrics.clone();
        let counter = match &update {
            Update::SyntheticServiceEntries(_)
            | Update::ClusterServices(_)
            | Update::Pods(_)
            | Update::ServiceEntries(_)
            | Update::Registered(_)
            | Update::WorkloadEntries(_) => "svc",
            _ => "config",
        };
        metrics.inbound_updates.with_label_values(&[counter]).inc();
        let applied = self.discovery.store.lock().apply(update);
        match applied {
            Ok((kind, touched)) if REGISTRY_KINDS.contains(&kind) => {
                self.apply_services(kind, &touched);
            }
            Ok((kind, touched)) => {
                self.pending.add_configs(kind, &touched);
                if kind == Kind::WorkloadGroup && !touched.is_empty() {
                    self.discovery.registrations.groups_changed();
                    self.apply_registrations();
                }
            }
            Err(Update::Mesh(mesh)) => self.apply_mesh(mesh),
            Err(_) => {}
        }
    }

    /// Makes the entries of registered machines anew.
    fn apply_registrations(&mut self) {
        let registrations = &self.discovery.registrations;
        let set = registrations.entries(&self.discovery.store.lock().workload_groups);
        self.apply(Update::Registered(Change {
            is_full: true,
            set,
            removed: Vec::new(),
        }));
    }

    fn apply_mesh(&mut self, mesh: Arc<Mesh>) {
        if self.mesh == mesh {
            return;
        }
        self.mesh = mesh;
        self.pending
            .kinds
            .entry(Kind::MeshConfig)
            .or_default()
            .clear();
        // Identities and visibility of services depend on the mesh's settings.
        for kind in REGISTRY_KINDS {
            let keys = self.discovery.store.lock().keys(kind);
            self.apply_services(kind, &keys);
        }
    }

    fn apply_services(&mut self, kind: Kind, keys: &BTreeSet<String>) {
        let store = self.discovery.store.lock();
        let settings = Settings {
            trust_domain: &self.mesh.trust_domain,
            export_to: &self.mesh.service_export_to,
            cluster: &self.cluster,
        };
        let change = self.registry.refresh(&store, kind, keys, &settings);
        for (entry, ports) in &change.udp {
            tracing::info!(target: "model", entry, ?ports, "ports for UDP are left out: proxies do not carry it");
        }
        self.pending.add_registry(change);
    }

    fn push(&mut self) {
        let _span = tracing::info_span!(target: "ads", "push").entered();
        let mut request = std::mem::replace(&mut self.pending, PushRequest::new(Instant::now()));
        let metrics = &self.discovery.metrics;
        let timer = metrics.push_context_time.start_timer();
        let previous = self.discovery.current();
        let push = PushContext::next(
            &previous.push,
            &self.domain,
            &self.mesh,
            &self.discovery.store.lock(),
            &self.registry,
            &self.keys,
            &request.kind_set(),
        );
        let wanted = push.policies.wanted_keys(&push);
        Arc::make_mut(&mut self.keys).retain(&wanted);
        self.wanted_keys.send_if_modified(|current| {
            let is_new = *current != wanted;
            *current = wanted;
            is_new
        });
        timer.observe_duration();
        metrics
            .services
            .set(i64::try_from(push.services.all().len()).unwrap_or(i64::MAX));
        metrics
            .virtual_services
            .set(i64::try_from(push.virtual_services.all().len()).unwrap_or(i64::MAX));
        if !push.steers_connections_like(&previous.push) {
            request.note(Kind::ConnectionRoute, request.since);
        }
        let version = push.version;
        let connections = self.discovery.connections();
        let cache = previous.cache.next(&request, &push, connections.len());
        let current = Arc::new(Current { push, cache });
        self.discovery.current.store(current);
        tracing::debug!(target: "ads", version, kinds = ?request.kinds.keys().collect::<Vec<_>>(), connections = connections.len(), waited = ?request.since.elapsed(), "push");
        for connection in connections {
            connection.enqueue(&request);
        }
        if !self.has_pushed {
            self.has_pushed = true;
            tracing::info!(target: "ads", version, services = self.discovery.current().push.services.all().len(), "ready to serve");
            self.discovery.ready.send_replace(true);
        }
    }
}
