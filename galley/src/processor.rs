//! The processor: one task that owns what is in force, and turns each event into the next snapshot.
//!
//! A bad object never takes down a good one: it is left out and reported, and if a good version of the same object was in
//! force before, that one stays. Of two good objects with one name the first file's counts.

use crate::{
    event::{Content, Event, Key, Object, Objects, Origin, ParsedFile},
    metrics::RuntimeMetrics,
    schema::PODS,
    snapshot::store::Kept,
    transform::{
        direct, mesh_config, pods,
        service_entry::{self, Dirty},
    },
    validation::{Problem, Verdict},
};
use arc_swap::ArcSwap;
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
    /// Met once something is served.
    pub ready: Condition,
}

/// What is in force.
pub struct Processor {
    domain: String,
    makes_service_entries: bool,
    objects: Objects,
    /// What the store had, until the source has spoken.
    stored: Option<Kept>,
    mesh: Option<Box<MeshConfig>>,
    mesh_refusal: Option<Verdict>,
    has_inventory: bool,
    unreadable: Option<String>,
    rejected: Vec<Rejected>,
    last: Arc<Snapshot>,
    last_settings: Option<service_entry::Settings>,
    pods: pods::Pods,
    told: HashSet<String>,
    outputs: Outputs,
}

impl Processor {
    /// Nothing in force yet. `stored` is the last good snapshot of an earlier process.
    pub fn new(
        domain: String,
        makes_service_entries: bool,
        stored: Option<Kept>,
        outputs: Outputs,
    ) -> Self {
        Self {
            domain,
            makes_service_entries,
            objects: Objects::new(),
            stored,
            mesh: None,
            mesh_refusal: None,
            has_inventory: false,
            unreadable: None,
            rejected: Vec::new(),
            last: Arc::default(),
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
        let mut dirty = Dirty::none();
        match event {
            Event::Inventory(files) => {
                dirty = self.take_inventory(&files);
                if let Some(reason) = self.unreadable.take() {
                    tracing::info!(target: "processor", reason, "the source can be read again");
                }
                self.has_inventory = true;
            }
            Event::Unreadable(reason) => {
                if self.unreadable.as_ref() != Some(&reason) {
                    tracing::warn!(target: "processor", reason, "the source cannot be read; the last good state is served");
                }
                self.unreadable = Some(reason);
            }
            Event::Mesh(Ok(config)) => {
                self.mesh = Some(config);
                self.mesh_refusal = None;
            }
            Event::Mesh(Err(verdict)) => {
                self.mesh_refusal = Some(verdict);
                self.mesh
                    .get_or_insert_with(|| Box::new(proto_mesh::mesh_config::defaults()));
            }
        }
        self.publish(&dirty);
        let millis = begun.elapsed().as_secs_f64() * 1000.0;
        self.outputs.metrics.event_span.observe(millis);
    }

    /// Takes the source's whole state; the services that it touches.
    fn take_inventory(&mut self, files: &[Arc<ParsedFile>]) -> Dirty {
        let mut next = Objects::new();
        let mut rejected = Vec::new();
        let mut refused: Vec<(Key, usize)> = Vec::new();
        let mut broken_files = BTreeSet::new();
        for document in files.iter().flat_map(|file| &file.documents) {
            let verdict = &document.verdict;
            if let (Some(key), Some(object)) = (&document.key, &document.object) {
                if let Some(first) = next.get(key) {
                    rejected.push(duplicate(verdict, &first.origin));
                } else {
                    next.insert(key.clone(), object.clone());
                }
            } else if !verdict.valid {
                match &document.key {
                    Some(key) => refused.push((key.clone(), rejected.len())),
                    None => {
                        broken_files.insert(verdict.file.as_str());
                    }
                }
                rejected.push(Rejected {
                    verdict: verdict.clone(),
                    in_force: None,
                });
            }
        }
        // Most of the time nothing is refused, and what was in force before does not matter.
        let before = if rejected.is_empty() {
            Objects::new()
        } else {
            self.before()
        };
        for (key, index) in refused {
            if let Some(old) = before.get(&key)
                && !next.contains_key(&key)
            {
                next.insert(key.clone(), old.clone());
            }
            rejected[index].in_force = next.get(&key).map(|object| object.origin.to_string());
        }
        // A document that cannot be read at all may be any object that its file had.
        for (key, old) in before {
            if broken_files.contains(old.origin.file.as_ref()) && !next.contains_key(&key) {
                next.insert(key, old);
            }
        }
        self.stored = None;
        self.report(&rejected);
        self.rejected = rejected;
        let dirty = Dirty::between(&self.objects, &next);
        self.objects = next;
        dirty
    }

    /// What was in force before: of this process, or (mesh objects only) of the one before it.
    fn before(&self) -> Objects {
        let Some(stored) = self.stored.as_ref().filter(|_| !self.has_inventory) else {
            return self.objects.clone();
        };
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

    fn publish(&mut self, dirty: &Dirty) {
        let _span = tracing::info_span!(target: "processor", "publish").entered();
        self.outputs.metrics.on_change.inc();
        let Some(kept) = self.build(dirty) else {
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
        let is_stored = !self.has_inventory;
        metrics.is_from_store.set(i64::from(is_stored));
        for (name, collection) in kept.snapshot.iter() {
            let count = i64::try_from(collection.resources.len()).unwrap_or(i64::MAX);
            metrics.instances.with_label_values(&[name]).set(count);
        }
        let earlier = self.outputs.view.load();
        self.outputs.view.store(Arc::new(View {
            kept: kept.clone(),
            rejected,
            unreadable: self.unreadable.clone(),
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

    /// The next snapshot; none while neither source nor store has said anything.
    fn build(&mut self, dirty: &Dirty) -> Option<Kept> {
        let mesh = self.mesh.as_ref()?;
        if !self.has_inventory {
            // Only a source that cannot be read lets the stored snapshot speak.
            self.unreadable.as_ref()?;
            let stored = self.stored.clone()?;
            return Some(stored);
        }
        let mut snapshot = Snapshot::new();
        direct::build_collections(&self.objects, &self.last, &mut snapshot);
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
        let has_same_settings = self.last_settings.as_ref() == Some(&settings);
        let entries = match entries {
            _ if !self.makes_service_entries => Arc::default(),
            Some(entries) if has_same_settings && *dirty == Dirty::none() => entries.clone(),
            entries => {
                let dirty = if has_same_settings {
                    dirty
                } else {
                    &Dirty::All
                };
                service_entry::build_collection(&self.objects, &settings, dirty, entries)
            }
        };
        self.last_settings = Some(settings);
        snapshot.insert(SYNTHETIC_SERVICE_ENTRIES, entries);
        let pods = self
            .pods
            .build_collection(&self.objects, self.last.get(PODS));
        snapshot.insert(PODS, pods);
        let origins: BTreeMap<_, _> = self
            .objects
            .iter()
            .filter(|(_, object)| object.resource().is_some())
            .map(|(key, object)| (key.clone(), object.origin.clone()))
            .collect();
        Some(Kept {
            snapshot: Arc::new(snapshot),
            origins: Arc::new(origins),
        })
    }
}

fn trust_domain(mesh: &MeshConfig, domain: &str) -> String {
    match mesh.trust_domain.as_str() {
        "" => domain.to_owned(),
        trust_domain => trust_domain.to_owned(),
    }
}

fn duplicate(verdict: &Verdict, first: &Origin) -> Rejected {
    let mut verdict = verdict.clone();
    verdict.valid = false;
    verdict.errors.push(Problem {
        path: "metadata.name".to_owned(),
        message: format!("{} is defined at {first} already", verdict.subject()),
        line: verdict.line,
        hint: Some("that one counts; remove one of the two".to_owned()),
    });
    Rejected {
        in_force: Some(first.to_string()),
        verdict,
    }
}

fn same_snapshot(old: &Snapshot, new: &Snapshot) -> bool {
    let versions = |snapshot: &Snapshot| -> Vec<(String, String)> {
        let of = snapshot.iter();
        of.map(|(name, collection)| (name.to_owned(), collection.version.clone()))
            .collect()
    };
    versions(old) == versions(new)
}
