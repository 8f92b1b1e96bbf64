//! The Kubernetes API server: every kind of the mesh in whatever version it is served, and the kinds that services and
//! ingresses are made of.
//!
//! A watcher for each kind (paginated list, then a watch that goes on from where it was, by bookmarks too) → [`Inventory`],
//! which tells the processor the whole state once every kind has been listed, and again after each change. What was known
//! stays while the API server is away.

use crate::{
    event::{Event, ParsedFile},
    schema,
    source::file::parsed,
    validation::document::read_value,
};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use proto_component::{
    backoff::Backoff,
    drain::Drain,
    kubernetes::{self, Change},
    task,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::mpsc;

mod inventory;

use inventory::Inventory;

/// Changes on their way to the inventory.
const CHANGES: usize = 1024;
/// How long a kind that is not installed is left alone.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(15);

/// A kind to watch; its versions, the preferred one first.
#[derive(Clone, Debug)]
struct Watched {
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
}

/// What the inventory is told of a kind.
type Told = Change<Arc<ParsedFile>>;

/// What is read beside configuration.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What service entries are made of.
    pub service_entries: bool,
    /// Pods.
    pub pods: bool,
}

/// The kinds that Galley reads.
fn kinds(wanted: Wanted) -> Vec<Watched> {
    let mesh = schema::served().iter().map(|served| Watched {
        group: served.group,
        versions: served.versions,
        kind: served.kind,
        plural: served.plural,
    });
    let platform = |group, kind, plural| Watched {
        group,
        versions: &["v1"],
        kind,
        plural,
    };
    let mut all: Vec<Watched> = mesh.collect();
    all.push(platform("networking.k8s.io", "Ingress", "ingresses"));
    all.push(platform("", "Service", "services"));
    if wanted.pods || wanted.service_entries {
        all.push(platform("", "Pod", "pods"));
    }
    if wanted.service_entries {
        all.push(platform("", "Namespace", "namespaces"));
        all.push(platform("", "Node", "nodes"));
        all.push(platform(
            "discovery.k8s.io",
            "EndpointSlice",
            "endpointslices",
        ));
    }
    all
}

/// Follows the API server until the drain.
pub fn watch(client: &Client, wanted: Wanted, events: mpsc::Sender<Event>, drain: Drain) {
    let kinds = kinds(wanted);
    let (changes, taken) = mpsc::channel(CHANGES);
    let inventory = Inventory::new(kinds.len());
    for (index, kind) in kinds.into_iter().enumerate() {
        let (client, changes, drain) = (client.clone(), changes.clone(), drain.clone());
        task::spawn("kube-watcher", async move {
            let all = follow(&client, &kind, index, &changes);
            tokio::select! {
                () = all => {}
                () = drain.signaled() => {}
            }
        });
    }
    task::spawn("kube-source", async move {
        let running = inventory.run(taken, &events);
        tokio::select! {
            () = running => {}
            () = drain.signaled() => {}
        }
    });
}

type Changes = mpsc::Sender<(usize, Told)>;

/// Watches a kind for ever; ends when nobody listens any more.
async fn follow(client: &Client, kind: &Watched, index: usize, changes: &Changes) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let change = match served_version(client, kind).await {
            Ok(Some(resource)) => {
                if !watch_kind(client, &resource, index, changes).await {
                    return;
                }
                backoff.reset();
                continue;
            }
            Ok(None) => Change::Absent,
            Err(error) => Change::Failed(format!("find {}: {error}", kind.plural)),
        };
        if changes.send((index, change)).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// The kind in the first version that the API server serves; none if it serves no such kind.
async fn served_version(
    client: &Client,
    kind: &Watched,
) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions {
        let list = match kind.group {
            "" => client.list_core_api_resources(version).await,
            group => {
                let api_version = format!("{group}/{version}");
                client.list_api_group_resources(&api_version).await
            }
        };
        match list {
            Ok(list) if list.resources.iter().any(|found| found.name == kind.plural) => {
                let of = GroupVersionKind::gvk(kind.group, version, kind.kind);
                return Ok(Some(ApiResource::from_gvk_with_plural(&of, kind.plural)));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Watches a kind until it is no longer served (true), or nobody listens any more (false).
async fn watch_kind(
    client: &Client,
    resource: &ApiResource,
    index: usize,
    changes: &Changes,
) -> bool {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let stream = kubernetes::watch(api);
    let mut stream = std::pin::pin!(stream);
    while let Some(change) = stream.next().await {
        let told = match change {
            Change::Listing => Change::Listing,
            Change::Object(object) => Change::Object(Arc::new(file_of(&object, resource))),
            Change::Gone(object) => Change::Gone(Arc::new(ParsedFile {
                path: path_of(&object, resource),
                documents: Vec::new(),
            })),
            Change::Listed => Change::Listed,
            Change::Absent => return true,
            Change::Failed(error) => Change::Failed(format!("watch {}: {error}", resource.plural)),
            Change::Denied(error) => Change::Denied(format!("watch {}: {error}", resource.plural)),
        };
        if changes.send((index, told)).await.is_err() {
            return false;
        }
    }
    true
}

/// What an object of the cluster is called where files have a path.
fn path_of(object: &DynamicObject, resource: &ApiResource) -> PathBuf {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let group = match resource.group.as_str() {
        "" => "core",
        group => group,
    };
    let parts = ["kubernetes:", group, &resource.plural, namespace, name];
    parts.iter().filter(|part| !part.is_empty()).collect()
}

fn file_of(object: &DynamicObject, resource: &ApiResource) -> ParsedFile {
    let path = path_of(object, resource);
    let name = path.display().to_string();
    // Lists do not repeat the kind on their items; who manages which field is of interest where status is written.
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = resource.api_version.clone().into();
    value["kind"] = resource.kind.clone().into();
    if resource.kind != "Ingress"
        && let Some(metadata) = value["metadata"].as_object_mut()
    {
        metadata.remove("managedFields");
    }
    ParsedFile {
        path,
        documents: vec![parsed(read_value(&value, &name))],
    }
}
