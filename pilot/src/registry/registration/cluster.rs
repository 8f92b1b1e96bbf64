//! The entries of machines as WorkloadEntries in the cluster: this replica writes down its own machines, and reads what the others
//! have written of theirs.
//!
//! As in Istio an entry names the replica that its machine is connected to, and since when; or since when it is gone. Whoever sees
//! that a machine has been gone for the grace period takes its entry away, whichever replica wrote it; and that of a replica that
//! has ended without a word, once no stream could be so old. How the machine is stands in the entry's status.
//!
//! A stream of changes and this replica's machines → what is to be written, compared with what was written last → calls. What
//! fails is tried again, later and later; what another replica has changed meanwhile is looked at again first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use proto::istio::networking::v1alpha3::WorkloadEntry;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::kubernetes::{self, Change};
use proto_component::task;
use proto_mesh::Metadata;
use proto_mesh::kubernetes::NOT_READY_ENDPOINTS;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{GROUP_ANNOTATION, HEALTH_CHECKED, Machine, entry};
use crate::config::Synthetic;
use crate::xds::Discovery;

/// Annotation: the replica that the machine is, or was last, connected to.
const CONTROLLER: &str = "istio.io/workloadController";
/// Annotation: since when it is connected.
const CONNECTED: &str = "istio.io/connectedAt";
/// Annotation: since when it is not.
const DISCONNECTED: &str = "istio.io/disconnectedAt";
/// Type of the condition that says how the machine is.
const HEALTHY: &str = "Healthy";
const GROUP: &str = "networking.istio.io";
const VERSION: &str = "v1";
/// How long one answer of the API server may take.
const CALL: Duration = Duration::from_secs(10);
/// How long the process waits at its end until it is said that its machines are gone.
const FAREWELL: Duration = Duration::from_secs(3);
/// All entries are looked at once in so many grace periods.
const SWEEP: u32 = 10;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// What holds for the entries.
#[derive(Clone, Debug)]
pub struct Options {
    /// This replica's name.
    pub replica: String,
    /// How long an entry outlives its machine's last stream.
    pub grace: Duration,
    /// How old a stream can get.
    pub max_age: Option<Duration>,
}

/// What is to be in the cluster of one machine.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    /// `namespace/name` of its group.
    group: String,
    metadata: Value,
    spec: Value,
    /// The condition, if the machine has said how it is.
    condition: Option<Value>,
    /// The machine is gone: whoever has written meanwhile knows better.
    is_farewell: bool,
}

/// Keeps the entries until the drain.
pub fn start(client: Client, discovery: Arc<Discovery>, options: Options, drain: Drain) {
    let keeper = Keeper {
        client,
        discovery,
        options,
        seen: BTreeMap::new(),
        listed: None,
        written: BTreeMap::new(),
    };
    task::spawn_drained("machines", keeper.run(drain));
}

struct Keeper {
    client: Client,
    discovery: Arc<Discovery>,
    options: Options,
    /// The machines' entries in the cluster, by `namespace/name`.
    seen: BTreeMap<String, DynamicObject>,
    /// What is being listed anew.
    listed: Option<BTreeSet<String>>,
    /// What was written last of this replica's machines.
    written: BTreeMap<String, Wanted>,
}

impl Keeper {
    async fn run(mut self, drain: Drain) {
        let all = Api::all_with(self.client.clone(), &resource("WorkloadEntry"));
        let mut changes = kubernetes::watch::<DynamicObject>(all).boxed();
        let discovery = Arc::clone(&self.discovery);
        let period = (self.options.grace * SWEEP).max(Duration::from_secs(1));
        let mut sweep = tokio::time::interval(period);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let mut retry: Option<Instant> = None;
        loop {
            let mut is_swept = false;
            tokio::select! {
                Some(change) = changes.next() => self.take(change),
                () = discovery.registrations.to_write.notified() => {}
                _ = sweep.tick() => is_swept = true,
                () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
                () = drain.signaled() => break,
            }
            if retry.is_some_and(|at| at > Instant::now()) {
                continue;
            }
            let outcome = tokio::select! {
                outcome = self.write(is_swept) => outcome,
                () = drain.signaled() => break,
            };
            retry = match outcome {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(error) => {
                    tracing::warn!(target: "kubernetes", %error, "entries of machines cannot be written; trying again");
                    Some(Instant::now() + backoff.next_delay())
                }
            };
        }
        // Their streams end now, and most of them are another replica's a moment later.
        discovery.registrations.disconnect_all();
        if tokio::time::timeout(FAREWELL, self.write(false))
            .await
            .is_err()
        {
            tracing::debug!(target: "kubernetes", "entries of machines are left as they are");
        }
    }

    /// Takes in what the cluster tells.
    fn take(&mut self, change: Change<DynamicObject>) {
        let key = |object: &DynamicObject| {
            let namespace = object.namespace().unwrap_or_default();
            format!("{namespace}/{}", object.name_any())
        };
        match change {
            Change::Listing => self.listed = Some(BTreeSet::new()),
            Change::Object(object) => {
                let key = key(&object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                if object.annotations().contains_key(GROUP_ANNOTATION) {
                    self.seen.insert(key, object);
                } else {
                    self.seen.remove(&key);
                }
            }
            Change::Gone(object) => drop(self.seen.remove(&key(&object))),
            Change::Listed => {
                if let Some(listed) = self.listed.take() {
                    self.seen.retain(|key, _| listed.contains(key));
                }
            }
            Change::Absent => self.seen.clear(),
            Change::Failed(reason) | Change::Denied(reason) => {
                tracing::warn!(target: "kubernetes", reason, "entries of machines cannot be read");
            }
        }
        let others = self.seen.iter();
        let others =
            others.filter_map(|(key, object)| Some((key.clone(), Arc::new(read(object)?))));
        self.discovery.registrations.tell_others(others.collect());
    }

    /// Brings this replica's entries into the wanted state, and takes away those that are over: of the machines that have left it,
    /// or `all`.
    async fn write(&mut self, all: bool) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let mut wanted = self.wanted();
        for (key, last) in &self.written {
            // Forgotten before it could be said that it is gone.
            if !last.is_farewell && !wanted.contains_key(key) {
                wanted.insert(key.clone(), last.clone().into_farewell(now));
            }
        }
        let mut failed = None;
        for (key, wanted) in &wanted {
            if self.written.get(key) == Some(wanted) {
                continue;
            }
            match self.write_one(key, wanted).await {
                Ok(object) => {
                    self.seen.extend(object.map(|object| (key.clone(), object)));
                    self.written.insert(key.clone(), wanted.clone());
                }
                // What is refused of one machine is no reason to leave out the others.
                Err(error @ kube::Error::Api(_)) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        let left = |key: &str| all || self.written.contains_key(key);
        let over = self.seen.iter().filter(|(key, object)| {
            !wanted.contains_key(*key) && left(key) && self.options.is_over(object, now)
        });
        let over: Vec<(String, DynamicObject)> = over
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        for (key, object) in over {
            self.remove(&object).await?;
            self.seen.remove(&key);
            tracing::info!(target: "kubernetes", entry = key, "the machine is gone, and so is its entry");
        }
        self.written.retain(|key, _| wanted.contains_key(key));
        failed.map_or(Ok(()), Err)
    }

    /// What is to be in the cluster of this replica's machines.
    fn wanted(&self) -> BTreeMap<String, Wanted> {
        let machines = self.discovery.registrations.machines.lock().clone();
        let store = self.discovery.store.lock();
        let machines = machines.into_iter().filter_map(|(key, machine)| {
            let group = store.workload_groups.get(&machine.group)?;
            let entry = entry(&key, &machine, group);
            Some((key, self.options.wanted(&machine, entry)))
        });
        machines.collect()
    }

    /// The object as it is afterwards; nothing if another replica knows better.
    async fn write_one(
        &self,
        key: &str,
        wanted: &Wanted,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let api = self.entries(namespace);
        let seen = self.seen.get(key);
        let mut change = json!({"metadata": wanted.metadata, "spec": wanted.spec});
        if let (true, Some(seen)) = (wanted.is_farewell, seen) {
            if seen.annotations().get(CONTROLLER) != Some(&self.options.replica) {
                return Ok(None);
            }
            change["metadata"]["resourceVersion"] = json!(seen.resource_version());
        }
        let params = PatchParams::default();
        let patch = Patch::Merge(&change);
        let object = match in_time(api.patch(name, &params, &patch)).await {
            Err(error) if code(&error) == Some(NOT_FOUND) => {
                if wanted.is_farewell {
                    return Ok(None);
                }
                self.create(key, wanted).await?
            }
            // It may have changed since it was seen: then it is looked at again.
            outcome => outcome?,
        };
        let Some(condition) = &wanted.condition else {
            return Ok(Some(object));
        };
        let conditions = object.data["status"]["conditions"].as_array();
        let others = conditions.into_iter().flatten();
        let others = others.filter(|other| other["type"] != HEALTHY);
        let conditions: Vec<&Value> = others.chain([condition]).collect();
        let patch = json!({"status": {"conditions": conditions}});
        let patch = Patch::Merge(&patch);
        let object = in_time(api.patch_status(name, &params, &patch)).await?;
        Ok(Some(object))
    }

    async fn create(&self, key: &str, wanted: &Wanted) -> Result<DynamicObject, kube::Error> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let mut object = DynamicObject::new(name, &resource("WorkloadEntry")).within(namespace);
        object.metadata.labels = serde_json::from_value(wanted.metadata["labels"].clone()).ok();
        let annotations = wanted.metadata["annotations"].as_object();
        let annotations = annotations.into_iter().flatten();
        let annotations = annotations
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        object.metadata.annotations = Some(annotations.collect());
        let (_, group) = wanted.group.split_once('/').unwrap_or_default();
        let groups: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource("WorkloadGroup"));
        // One from elsewhere than the cluster owns nothing in it.
        if let Some(owner) = in_time(groups.get_opt(group)).await? {
            let owner = owner.controller_owner_ref(&resource("WorkloadGroup"));
            object.metadata.owner_references = owner.map(|owner| vec![owner]);
        }
        object.data = json!({"spec": wanted.spec});
        let (api, params) = (self.entries(namespace), PostParams::default());
        let created = in_time(api.create(&params, &object)).await?;
        tracing::info!(target: "kubernetes", entry = key, "a machine has registered itself");
        Ok(created)
    }

    /// Unless it has changed meanwhile.
    async fn remove(&self, object: &DynamicObject) -> Result<(), kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: object.resource_version(),
            }),
            ..DeleteParams::default()
        };
        let api = self.entries(&object.namespace().unwrap_or_default());
        match in_time(api.delete(&object.name_any(), &params)).await {
            Err(error) if matches!(code(&error), Some(NOT_FOUND | CONFLICT)) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    fn entries(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource("WorkloadEntry"))
    }
}

impl Wanted {
    /// The same of a machine that is gone since then.
    fn into_farewell(mut self, at: Timestamp) -> Self {
        let annotations = &mut self.metadata["annotations"];
        // What is null is taken away.
        annotations[CONNECTED] = Value::Null;
        annotations[DISCONNECTED] = json!(at.to_string());
        self.is_farewell = true;
        self
    }
}

impl Options {
    fn wanted(&self, machine: &Machine, entry: Synthetic<WorkloadEntry>) -> Wanted {
        let mut annotations: BTreeMap<String, Value> = entry
            .meta
            .annotations
            .into_iter()
            .filter(|(name, _)| name != NOT_READY_ENDPOINTS)
            .map(|(name, value)| (name, json!(value)))
            .collect();
        let mut set = |name: &str, value: Value| annotations.insert(name.to_owned(), value);
        set(CONTROLLER, json!(self.replica));
        set(CONNECTED, json!(machine.connected.to_string()));
        set(DISCONNECTED, Value::Null);
        let condition = machine.health.as_ref().map(|health| {
            let at = health.at.to_string();
            json!({
                "type": HEALTHY,
                "status": if health.error.is_none() { "True" } else { "False" },
                "message": health.error.as_deref().unwrap_or_default(),
                "lastProbeTime": at, "lastTransitionTime": at,
            })
        });
        let wanted = Wanted {
            group: machine.group.clone(),
            metadata: json!({"labels": entry.meta.labels, "annotations": annotations}),
            // It was read from JSON, or made here.
            spec: proto::json::to_value(&entry.spec).unwrap_or_default(),
            condition,
            is_farewell: false,
        };
        if machine.open == 0 {
            return wanted.into_farewell(machine.disconnected);
        }
        wanted
    }

    /// True when nobody has been there for too long.
    fn is_over(&self, object: &DynamicObject, now: Timestamp) -> bool {
        let since = |name: &str| {
            let time: Timestamp = object.annotations().get(name)?.parse().ok()?;
            Some(now.duration_since(time))
        };
        let longer = |than: Duration| SignedDuration::try_from(than).unwrap_or(SignedDuration::MAX);
        match (since(CONNECTED), since(DISCONNECTED)) {
            (Some(connected), _) => {
                // A replica that ends in peace says so of its machines; no stream is older than that, give or take.
                let oldest = self.max_age.map(|age| age.saturating_mul(3) / 2);
                oldest.is_some_and(|oldest| connected > longer(oldest))
            }
            (None, Some(disconnected)) => disconnected >= longer(self.grace),
            (None, None) => false,
        }
    }
}

/// A machine's entry, as another replica has written it.
fn read(object: &DynamicObject) -> Option<Synthetic<WorkloadEntry>> {
    let spec: WorkloadEntry = proto::json::from_value(&object.data["spec"]).ok()?;
    let mut annotations = object.annotations().clone();
    let conditions = object.data["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let is_healthy =
        conditions.any(|condition| condition["type"] == HEALTHY && condition["status"] == "True");
    if annotations.contains_key(HEALTH_CHECKED) && !is_healthy {
        annotations.insert(NOT_READY_ENDPOINTS.to_owned(), spec.address.clone());
    }
    let meta = Metadata {
        labels: object.labels().clone(),
        annotations,
        ..Metadata::new(object.namespace().unwrap_or_default(), object.name_any())
    };
    Some(Synthetic { meta, spec })
}

fn resource(kind: &str) -> ApiResource {
    let plural = match kind {
        "WorkloadEntry" => "workloadentries",
        _ => "workloadgroups",
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// An answer that takes too long is none.
async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let outcome = tokio::time::timeout(CALL, call).await;
    outcome.unwrap_or_else(|late| Err(kube::Error::Service(Box::new(late))))
}
