//! The processor: one task that owns what is in force, and turns each event into the next snapshot.
//!
//! A bad object never takes down a good one: it is left out and reported, and if a good version of the same object was in
//! force before, that one stays. Of two good objects with one name the first source's, then the first file's, counts
//! ([`claims`]). The work of a change is that of what changed, not of what there is.

use crate::{
    event::{Content, Event, Key, Object, Objects, Origin, ParsedFile, SourceName},
    ingress_status::IngressStatus,
    metrics::RuntimeMetrics,
    schema::PODS,
    snapshot::store::Kept,
    transform::{
        direct, ingress, mesh_config, pods,
        service_entry::{self, Dirty},
    },
    validation::{Kube, Verdict},
};
use arc_swap::ArcSwap;
use claims::{Changes, Claims};
use discovery::Discovery;
use proto::{
    istio::mesh::v1alpha1::MeshConfig,
    kind::{MESH_CONFIG, SYNTHETIC_SERVICE_ENTRIES},
};
use proto_component::{drain::Drain, readiness::Condition, task};
use proto_mcp::{snapshot::Snapshot, source::Source};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::SystemTime,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

mod claims;
mod discovery;

/// What is known at one moment, for the debug pages.
#[derive(Debug, Default)]
pub struct View {
    /// What is served.
    pub kept: Kept,
    /// What is left out.
    pub rejected: Vec<Rejected>,
    /// Why the last good snapshot is served instead of the source's state, if it is.
    pub unreadable: Option<String>,
    /// When the snapshot was published.
    pub published: Option<SystemTime>,
}

/// An object that is left out.
#[derive(Clone, Debug, Serialize)]
pub struct Rejected {
    /// The judgement.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Where the version of it stands that is in force instead, if there is one.
    pub in_force: Option<String>,
}

/// Where the results go.
#[derive(Clone)]
pub struct Outputs {
    /// The MCP source.
    pub source: Source,
    /// The store's queue: the newest snapshot only.
    pub store: watch::Sender<Option<Kept>>,
    /// For the debug pages.
    pub view: Arc<ArcSwap<View>>,
    /// Metrics.
    pub metrics: RuntimeMetrics,
    /// Who writes the status of Ingresses, where they are a cluster's.
    pub ingress_status: Option<IngressStatus>,
    /// Met once something is served.
    pub ready: Condition,
}

/// What is in force.
pub struct Processor {
    domain: String,
    makes_service_entries: bool,
    claims: Claims,
    discovery: Discovery,
    /// Sources that have not said yet what they have.
    awaited: BTreeSet<SourceName>,
    /// What the store had, until the source has spoken.
    stored: Option<Kept>,
    mesh: Option<Box<MeshConfig>>,
    mesh_refusal: Option<Verdict>,
    has_new_mesh: bool,
    unreadable: BTreeMap<SourceName, String>,
    rejected: Vec<Rejected>,
    last: Arc<Snapshot>,
    last_origins: Arc<BTreeMap<Key, Origin>>,
    last_settings: Option<service_entry::Settings>,
    pods: pods::Pods,
    told: HashSet<String>,
    outputs: Outputs,
}

impl Processor {
    /// Nothing in force yet, until every one of `sources` has said what it has. `stored` is the last good snapshot of an
    /// earlier process.
    pub fn new(
        domain: String,
        makes_service_entries: bool,
        sources: impl IntoIterator<Item = SourceName>,
        stored: Option<Kept>,
        outputs: Outputs,
    ) -> Self {
        Self {
            domain,
            makes_service_entries,
            claims: Claims::default(),
            discovery: Discovery::default(),
            awaited: sources.into_iter().collect(),
            stored,
            mesh: None,
            mesh_refusal: None,
            has_new_mesh: false,
            unreadable: BTreeMap::new(),
            rejected: Vec::new(),
            last: Arc::default(),
            last_origins: Arc::default(),
            last_settings: None,
            pods: pods::Pods::default(),
            told: HashSet::new(),
            outputs,
        }
    }

    /// Takes events until the drain.
    pub fn start(mut self, mut events: mpsc::Receiver<Event>, drain: Drain) {
        task::spawn("processor", async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = drain.signaled() => None,
                };
                let Some(event) = event else { return };
                self.handle(event);
            }
        });
    }

    /// Takes one event and publishes what follows from it.
    pub fn handle(&mut self, event: Event) {
        let begun = Instant::now();
        self.outputs.metrics.events.inc();
        let mut changes = Changes::default();
        match event {
            Event::Inventory(source, files, failure) => {
                self.take_readability(source, failure);
                changes = self.take_inventory(source, files);
            }
            Event::Unreadable(source, reason) => self.take_readability(source, Some(reason)),
            Event::Mesh(Ok(config)) => {
                self.mesh = Some(config);
                self.has_new_mesh = true;
                self.mesh_refusal = None;
            }
            Event::Mesh(Err(verdict)) => {
                let problems: Vec<String> =
                    verdict.errors.iter().map(ToString::to_string).collect();
                let problem = problems.join(" | ");
                tracing::warn!(target: "processor", file = verdict.file, problem, "mesh configuration refused; the last good one stays in force");
                self.mesh_refusal = Some(verdict);
                self.mesh
                    .get_or_insert_with(|| Box::new(proto_mesh::mesh_config::defaults()));
            }
        }
        self.publish(&changes);
        let millis = begun.elapsed().as_secs_f64() * 1000.0;
        self.outputs.metrics.event_span.observe(millis);
    }

    /// Notes whether a source can be read, and says so when that changes.
    fn take_readability(&mut self, source: SourceName, failure: Option<String>) {
        match failure {
            None => {
                if let Some(reason) = self.unreadable.remove(&source) {
                    tracing::info!(target: "processor", %source, reason, "the source can be read again");
                }
            }
            Some(reason) => {
                if self.unreadable.get(&source) != Some(&reason) {
                    tracing::warn!(target: "processor", %source, reason, "the source cannot be read; the last good state is served");
                }
                self.unreadable.insert(source, reason);
            }
        }
    }

    /// Takes a source's whole state; what changed because of it.
    fn take_inventory(&mut self, source: SourceName, files: Vec<Arc<ParsedFile>>) -> Changes {
        let was_awaited = self.awaited.remove(&source);
        let mut changes = self.claims.replace(source, files);
        if was_awaited && self.awaited.is_empty() {
            // Now it is known what has gone since the earlier process; before, nothing was served.
            self.claims.adopt(
                self.stored
                    .take()
                    .as_ref()
                    .map(stored_objects)
                    .unwrap_or_default(),
            );
            self.claims.settle_all();
            changes = Changes {
                gone: Objects::new(),
                come: self.claims.objects().clone(),
            };
        }
        let rejected = self.claims.rejected();
        self.report(&rejected);
        self.rejected = rejected;
        changes
    }

    /// Says each rejection once, as long as it lasts.
    fn report(&mut self, rejected: &[Rejected]) {
        let mut told = HashSet::new();
        for Rejected { verdict, in_force } in rejected {
            let problems: Vec<String> = verdict.errors.iter().map(ToString::to_string).collect();
            let (file, line, subject) = (&verdict.file, verdict.line, verdict.subject());
            let problem = problems.join(" | ");
            let text = format!("{file}:{line}: {subject}: {problem}");
            if !self.told.contains(&text) {
                tracing::warn!(target: "processor", object = subject, place = format!("{file}:{line}"), problem, in_force, "object left out");
            }
            told.insert(text);
        }
        self.told = told;
    }

    fn publish(&mut self, changes: &Changes) {
        let _span = tracing::info_span!(target: "processor", "publish").entered();
        self.outputs.metrics.on_change.inc();
        let Some(kept) = self.build(changes) else {
            return;
        };
        let is_new = !same_snapshot(&self.last, &kept.snapshot);
        self.last = kept.snapshot.clone();
        let mut rejected = self.rejected.clone();
        rejected.extend(self.mesh_refusal.clone().map(|verdict| Rejected {
            verdict,
            in_force: None,
        }));
        let metrics = &self.outputs.metrics;
        metrics
            .rejected
            .set(i64::try_from(rejected.len()).unwrap_or(i64::MAX));
        let is_stored = !self.awaited.is_empty();
        metrics.is_from_store.set(i64::from(is_stored));
        for (name, collection) in kept.snapshot.iter() {
            let count = i64::try_from(collection.resources.size()).unwrap_or(i64::MAX);
            metrics.instances.with_label_values(&[name]).set(count);
        }
        let earlier = self.outputs.view.load();
        self.outputs.view.store(Arc::new(View {
            kept: kept.clone(),
            rejected,
            unreadable: self.unreadable_reason(),
            published: if is_new {
                Some(SystemTime::now())
            } else {
                earlier.published
            },
        }));
        if is_new {
            metrics.published.inc();
            self.outputs.source.publish(kept.snapshot.clone());
        }
        if !is_stored {
            self.outputs.store.send_replace(Some(kept));
        }
        self.outputs.ready.set();
    }

    fn unreadable_reason(&self) -> Option<String> {
        let reasons = self.unreadable.iter();
        let texts: Vec<String> = reasons
            .map(|(source, reason)| format!("{source}: {reason}"))
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// The next snapshot; none while neither the sources nor the store have said anything.
    fn build(&mut self, changes: &Changes) -> Option<Kept> {
        let mesh = self.mesh.as_ref()?;
        if !self.awaited.is_empty() {
            // Only a source that cannot be read lets the stored snapshot speak.
            let is_readable = self.unreadable.is_empty();
            return self.stored.clone().filter(|_| !is_readable);
        }
        let (objects, changes) = self.discovery.narrow(
            &mesh.discovery_selectors,
            self.claims.objects(),
            changes,
            self.last_settings.is_none(),
        );
        let changes = &*changes;
        let mut snapshot = Snapshot::new();
        if self.last_settings.is_none() {
            direct::build_collections(objects, &self.last, &mut snapshot);
        } else {
            direct::change_collections(&changes.gone, &changes.come, &self.last, &mut snapshot);
        }
        let is_new = self.has_new_mesh || self.last_settings.is_none();
        if is_new || changes_any(changes, ingress::reads) {
            ingress::add(objects, mesh, &self.domain, &mut snapshot);
        }
        if let Some(status) = &mut self.outputs.ingress_status {
            status.is_due |= is_new || changes_any(changes, |object| status.reads(object, mesh));
            // What cannot be read is not gone.
            if self.unreadable.is_empty() {
                status.look(objects, mesh);
            }
        }
        self.has_new_mesh = false;
        let config = mesh_config::build_collection(mesh);
        let earlier = self
            .last
            .get(MESH_CONFIG)
            .filter(|old| old.version == config.version);
        snapshot.insert(
            MESH_CONFIG,
            earlier.cloned().unwrap_or_else(|| Arc::new(config)),
        );
        let settings = service_entry::Settings {
            domain: self.domain.clone(),
            trust_domain: trust_domain(mesh, &self.domain),
        };
        let entries = self.last.get(SYNTHETIC_SERVICE_ENTRIES);
        let dirty = if self.last_settings.as_ref() == Some(&settings) {
            Dirty::of(&changes.gone, &changes.come, objects)
        } else {
            Dirty::All
        };
        let entries = match entries {
            _ if !self.makes_service_entries => Arc::default(),
            Some(entries) if dirty == Dirty::none() => entries.clone(),
            entries => service_entry::build_collection(objects, &settings, &dirty, entries),
        };
        snapshot.insert(SYNTHETIC_SERVICE_ENTRIES, entries);
        let pods = match self.last.get(PODS) {
            Some(last) if self.last_settings.is_some() && !changes_any(changes, is_pod) => {
                last.clone()
            }
            last => self.pods.build_collection(objects, last),
        };
        snapshot.insert(PODS, pods);
        let moved = if self.last_settings.replace(settings).is_none() {
            Changes {
                gone: Objects::new(),
                come: objects.clone(),
            }
        } else {
            changes.clone()
        };
        self.follow_origins(&moved);
        Some(Kept {
            snapshot: Arc::new(snapshot),
            origins: self.last_origins.clone(),
        })
    }

    /// Keeps the places of resources in step; most changes move nothing.
    fn follow_origins(&mut self, changes: &Changes) {
        let is_mesh = |object: &&Arc<Object>| object.resource().is_some();
        let stays = changes.come.iter().all(|(key, object)| {
            object.resource().is_none() || self.last_origins.get(key) == Some(&object.origin)
        });
        let lost = |(key, object): (&Key, &Arc<Object>)| {
            object.resource().is_some() && !changes.come.contains_key(key)
        };
        if stays && !changes.gone.iter().any(lost) {
            return;
        }
        let origins = Arc::make_mut(&mut self.last_origins);
        for key in changes.gone.keys() {
            origins.remove(key);
        }
        for (key, object) in changes.come.iter().filter(|(_, object)| is_mesh(object)) {
            origins.insert(key.clone(), object.origin.clone());
        }
    }
}

fn is_pod(object: &Object) -> bool {
    matches!(object.content, Content::Kube(Kube::Pod(_)))
}

fn changes_any(changes: &Changes, is_such: impl Fn(&Object) -> bool) -> bool {
    let mut objects = changes.gone.values().chain(changes.come.values());
    objects.any(|object| is_such(object))
}

/// The mesh objects of an earlier process.
fn stored_objects(stored: &Kept) -> Objects {
    stored
        .origins
        .iter()
        .filter_map(|(key, origin)| {
            let collection = stored.snapshot.get(&key.collection)?;
            let resource = collection.resources.get(key.name.as_ref())?;
            let object = Object {
                origin: origin.clone(),
                content: Content::Mesh(resource.clone()),
            };
            Some((key.clone(), Arc::new(object)))
        })
        .collect()
}

fn trust_domain(mesh: &MeshConfig, domain: &str) -> String {
    match mesh.trust_domain.as_str() {
        "" => domain.to_owned(),
        trust_domain => trust_domain.to_owned(),
    }
}

fn same_snapshot(old: &Snapshot, new: &Snapshot) -> bool {
    let versions = |snapshot: &'_ Snapshot| -> BTreeMap<String, String> {
        let of = snapshot.iter();
        of.map(|(name, collection)| (name.to_owned(), collection.version.clone()))
            .collect()
    };
    versions(old) == versions(new)
}
