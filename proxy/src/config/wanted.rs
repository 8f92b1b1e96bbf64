//! What is to be asked of xDS servers, by type and source.

use super::{ConfigStore, Kind};
use crate::{bootstrap::RuntimeDiscovery, upstream::Discovery, xds::Source};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::watch;

/// One subscription: a type from a source. A secret over gRPC has a subscription of its own, as Envoy has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// The type.
    pub(crate) kind: Kind,
    /// Where it comes from.
    pub(crate) source: Source,
    /// The one resource, if it is for one only.
    pub(crate) single: Option<Arc<str>>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Everything.
    All,
    /// These.
    Some(BTreeSet<Arc<str>>),
}

/// Everything that is asked for.
pub(crate) type Wanted = BTreeMap<Key, Arc<Names>>;

/// What is wanted, as parts that change at different times.
pub(super) struct Wants {
    /// Asked for by the bootstrap.
    roots: parking_lot::Mutex<Wanted>,
    told: watch::Sender<Arc<Wanted>>,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            roots: parking_lot::Mutex::default(),
            told: watch::channel(Arc::default()).0,
        }
    }
}

impl Key {
    /// All names of `kind` from `source` together.
    pub(crate) fn of(kind: Kind, source: Source) -> Self {
        Self {
            kind,
            source,
            single: None,
        }
    }

    /// The subscription that has `name`.
    fn for_name(kind: Kind, source: &Source, name: &Arc<str>) -> Self {
        let is_single = kind == Kind::Secret && *source != Source::Ads;
        Self {
            kind,
            source: source.clone(),
            single: is_single.then(|| name.clone()),
        }
    }
}

impl ConfigStore {
    /// What is to be asked for, told whenever it changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.wants.told.subscribe()
    }

    /// Everything of `kind` is wanted of `source` from now on.
    pub(crate) fn want_all(&self, kind: Kind, source: Source) {
        let names = Arc::new(Names::All);
        self.wants.roots.lock().insert(Key::of(kind, source), names);
        self.refresh_wanted();
    }

    /// A layer of the runtime is wanted from now on.
    pub(crate) fn want_runtime(&self, layer: &RuntimeDiscovery) {
        let key = Key::of(Kind::Runtime, layer.source.source.clone());
        {
            let mut roots = self.wants.roots.lock();
            let mut names = match roots.get(&key).map(|names| (**names).clone()) {
                Some(Names::Some(names)) => names,
                _ => BTreeSet::new(),
            };
            names.insert(layer.resource.clone());
            roots.insert(key, Arc::new(Names::Some(names)));
        }
        self.refresh_wanted();
    }

    /// Looks at what the configuration refers to now.
    pub(crate) fn refresh_wanted(&self) {
        let mut named: BTreeMap<Key, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (source, name) in self.routes.prune() {
            let key = Key::for_name(Kind::Route, &source, &name);
            named.entry(key).or_default().insert(name);
        }
        for (source, name) in self.extensions.prune() {
            let key = Key::for_name(Kind::Extension, &source, &name);
            named.entry(key).or_default().insert(name);
        }
        for (source, names) in self.endpoints_wanted() {
            named.insert(Key::of(Kind::Endpoint, source), names);
        }
        self.secrets.prune();
        for slot in self.secrets.all() {
            // A source that cannot be used was refused with what holds it.
            let Some(Ok(source)) = slot.source.as_ref().map(Source::try_from) else {
                continue;
            };
            let name: Arc<str> = slot.name.as_str().into();
            let key = Key::for_name(Kind::Secret, &source, &name);
            named.entry(key).or_default().insert(name);
        }
        let mut wanted = self.wants.roots.lock().clone();
        for (key, names) in named {
            wanted.insert(key, Arc::new(Names::Some(names)));
        }
        self.wants.told.send_if_modified(|current| {
            let is_changed = **current != wanted;
            if is_changed {
                *current = Arc::new(wanted);
            }
            is_changed
        });
    }

    fn endpoints_wanted(&self) -> BTreeMap<Source, BTreeSet<Arc<str>>> {
        let mut names: BTreeMap<Source, Vec<Arc<str>>> = BTreeMap::new();
        self.with_state(|state| {
            for entry in state.clusters.values() {
                for cluster in entry.active.iter().chain(&entry.warming) {
                    if let Discovery::Eds {
                        service_name,
                        source,
                        ..
                    } = &cluster.config.discovery
                    {
                        match names.get_mut(source) {
                            Some(names) => names.push(service_name.clone()),
                            None => {
                                names.insert(source.clone(), vec![service_name.clone()]);
                            }
                        }
                    }
                }
            }
        });
        // Mostly sorted already: building a set from that is cheap.
        names
            .into_iter()
            .map(|(source, names)| (source, names.into_iter().collect()))
            .collect()
    }
}
