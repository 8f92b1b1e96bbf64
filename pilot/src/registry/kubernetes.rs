//! The services of a Kubernetes cluster, from its API server: Services, EndpointSlices, Pods (labels, service accounts, node),
//! Nodes (region, zone) and Namespaces (which of them the mesh follows).
//!
//! A watcher for each kind → [`Objects`], which knows what depends on what → [`Update`]s with the services and pods that a
//! change touches, in the form in which Galley would have sent them. What was known stays while the API server is away.
//!
//! What the service account needs (there is no other access):
//!
//! | apiGroups | resources | verbs |
//! |---|---|---|
//! | `""` | `services`, `pods`, `nodes`, `namespaces` | `list`, `watch` |
//! | `discovery.k8s.io` | `endpointslices` | `list`, `watch` |
//! | `""` | `secrets`, in the namespaces of gateways ([`secrets`]) | `list`, `watch` |
//! | `networking.istio.io` | `workloadentries`, for machines ([`super::registration::cluster`]) | `list`, `watch`, `create`, `patch`, `delete` |
//! | `networking.istio.io` | `workloadentries/status` | `patch` |
//! | `networking.istio.io` | `workloadgroups` | `get` |
//! | `authentication.k8s.io` | `tokenreviews` | `create` |
//! | `authorization.k8s.io` | `subjectaccessreviews` | `create` |
//!
//! Without `nodes` endpoints have no locality but their slices' zones; without `namespaces`, `discoverySelectors` choose nothing.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use prometheus::IntCounterVec;
use proto_component::drain::Drain;
use proto_component::kubernetes::{self, Change};
use proto_component::task;
use proto_mesh::kubernetes::Settings;
use proto_mesh::kubernetes::object::{EndpointSlice, Namespace, Node, Pod, Service};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

mod objects;
pub mod secrets;

use self::objects::Objects;
use crate::config::Update;
use crate::model::Mesh;

/// Changes on their way.
const CHANGES: usize = 1024;

/// What one of the watchers tells.
#[derive(Debug)]
enum Told {
    Service(Change<Box<Service>>),
    EndpointSlice(Change<Box<EndpointSlice>>),
    Pod(Change<Box<Pod>>),
    Node(Change<Box<Node>>),
    Namespace(Change<Box<Namespace>>),
}

/// What the registry is told at the start.
#[derive(Debug)]
pub struct Options {
    /// Domain of service names.
    pub domain: String,
    /// Only the services of this namespace; empty: of all.
    pub namespace: String,
    /// The mesh's settings, as they change.
    pub mesh: watch::Receiver<Arc<Mesh>>,
    /// Counts what is told, by kind and event.
    pub events: IntCounterVec,
}

/// Follows the cluster until the drain. What is returned resolves once everything has been told to `updates` for the first time.
pub fn start(
    client: &Client,
    options: Options,
    updates: mpsc::Sender<Update>,
    drain: &Drain,
) -> oneshot::Receiver<()> {
    let (told, taken) = mpsc::channel(CHANGES);
    let namespace = options.namespace.as_str();
    follow(scoped(client, namespace), &told, drain, Told::Service);
    follow(scoped(client, namespace), &told, drain, Told::EndpointSlice);
    follow(scoped(client, namespace), &told, drain, Told::Pod);
    follow(Api::all(client.clone()), &told, drain, Told::Node);
    follow(Api::all(client.clone()), &told, drain, Told::Namespace);
    let (synced, first) = oneshot::channel();
    let drain = drain.clone();
    task::spawn("kubernetes", async move {
        tokio::select! {
            () = run(options, taken, &updates, synced) => {}
            () = drain.signaled() => {}
        }
    });
    first
}

fn scoped<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    if namespace.is_empty() {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), namespace)
    }
}

/// Starts the watcher of one kind.
fn follow<K>(
    api: Api<K>,
    told: &mpsc::Sender<Told>,
    drain: &Drain,
    wrap: impl Fn(Change<Box<K>>) -> Told + Send + 'static,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let (told, drain) = (told.clone(), drain.clone());
    task::spawn("kubernetes-watcher", async move {
        let mut changes = std::pin::pin!(kubernetes::watch(api));
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = drain.signaled() => return,
            };
            let Some(change) = change else { return };
            if told.send(wrap(change.map(Box::new))).await.is_err() {
                return;
            }
        }
    });
}

/// Takes changes and tells what they touch, until nobody sends or listens any more.
async fn run(
    mut options: Options,
    mut told: mpsc::Receiver<Told>,
    updates: &mpsc::Sender<Update>,
    synced: oneshot::Sender<()>,
) {
    let mut synced = Some(synced);
    let mesh = options.mesh.borrow_and_update().clone();
    let mut objects = Objects::new(settings(&options.domain, &mesh), &mesh.discovery_selectors);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = told.recv_many(&mut batch, CHANGES) => if count == 0 { return },
            changed = options.mesh.changed() => {
                if changed.is_err() {
                    return;
                }
                let mesh = options.mesh.borrow_and_update().clone();
                objects.configure(settings(&options.domain, &mesh), &mesh.discovery_selectors);
            }
        }
        for told in batch.drain(..) {
            objects.take(told, &options.events);
        }
        for update in objects.updates() {
            if updates.send(update).await.is_err() {
                return;
            }
        }
        if objects.is_known()
            && let Some(synced) = synced.take()
        {
            tracing::info!(target: "kubernetes", services = objects.services(), "services listed");
            // Nobody waits any more when the process already ends.
            let _ = synced.send(());
        }
    }
}

fn settings(domain: &str, mesh: &Mesh) -> Settings {
    Settings {
        domain: domain.to_owned(),
        trust_domain: mesh.trust_domain.clone(),
    }
}
