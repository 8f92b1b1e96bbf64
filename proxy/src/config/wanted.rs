//! What is to be asked of xDS servers, by type and source. What has not changed is not looked at again.

use super::{ConfigStore, Kind};
use crate::{bootstrap::RuntimeDiscovery, table::Table, transport::SecretSlot, xds::Source};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// One subscription: a type from a source. A secret over gRPC has a subscription of its own, as Envoy has it, and so have the
/// virtual hosts of a route configuration.
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
#[derive(Clone, Debug)]
pub(crate) enum Names {
    /// Everything.
    All,
    /// These, each wanted so often.
    Some(Table<u32>),
    /// These that requests ask for, each with a number that is another when it is to be asked for once more.
    Demanded(Table<u32>),
}

/// Everything that is asked for.
pub(crate) type Wanted = BTreeMap<Key, Arc<Names>>;

/// What is wanted now, and who hears of it.
pub(super) struct Wants {
    now: Mutex<Wanted>,
    told: watch::Sender<Arc<Wanted>>,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            now: Mutex::default(),
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
    pub(super) fn for_name(kind: Kind, source: Source, name: &Arc<str>) -> Self {
        let is_single = matches!(kind, Kind::Secret | Kind::VirtualHost) && source != Source::Ads;
        Self {
            kind,
            source,
            single: is_single.then(|| name.clone()),
        }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::Some(Table::default())
    }
}

impl PartialEq for Names {
    /// How often a name is wanted is no difference, asking for it once more is one.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::All) => true,
            (Self::Some(these), Self::Some(others)) => these.has_names_of(others),
            (Self::Demanded(these), Self::Demanded(others)) => {
                these.len() == others.len() && these.names_unlike_in(others).next().is_none()
            }
            _ => false,
        }
    }
}

impl Eq for Names {}

impl Names {
    /// Whether `name` is among them.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) | Self::Demanded(names) => names.contains(name),
        }
    }

    /// In the order of the alphabet; none for everything.
    pub(crate) fn sorted(&self) -> Vec<String> {
        match self {
            Self::All => Vec::new(),
            Self::Some(names) | Self::Demanded(names) => sorted(names.names()),
        }
    }

    /// Those that are to be asked for by who has asked for `before`; none for everything.
    pub(crate) fn new_since(&self, before: &Self) -> Vec<String> {
        match (self, before) {
            (Self::Demanded(names), Self::Demanded(before)) => {
                sorted(names.names_unlike_in(before))
            }
            _ => self.missing_in(before),
        }
    }

    /// Those that `other` has not, in the order of the alphabet; none for everything.
    pub(crate) fn missing_in(&self, other: &Self) -> Vec<String> {
        match (self, other) {
            (Self::All, _) => Vec::new(),
            (Self::Some(_) | Self::Demanded(_), Self::All) => self.sorted(),
            (
                Self::Some(names) | Self::Demanded(names),
                Self::Some(others) | Self::Demanded(others),
            ) => sorted(names.names_missing_in(others)),
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
        let mut now = self.wants.now.lock();
        now.insert(Key::of(kind, source), Arc::new(Names::All));
        self.wants.tell(&now);
    }

    /// A layer of the runtime is wanted from now on.
    pub(crate) fn want_runtime(&self, layer: &RuntimeDiscovery) {
        let key = Key::of(Kind::Runtime, layer.source.source.clone());
        let mut now = self.wants.now.lock();
        if let Names::Some(names) = Arc::make_mut(now.entry(key).or_default()) {
            names.insert(layer.resource.clone(), 1);
        }
        self.wants.tell(&now);
    }

    /// Asks for what requests demand, for ever.
    pub(crate) async fn run_demand(self: Arc<Self>) {
        loop {
            // Asked to be woken before looking, so that nothing is missed between the two.
            let changed = self.server.demand.changed();
            self.refresh_demand();
            changed.await;
        }
    }

    /// Looks at what requests demand now.
    fn refresh_demand(&self) {
        let mut now = self.wants.now.lock();
        let mut has_changed = false;
        for (kind, names) in self.server.demand.names() {
            has_changed |= replace(&mut now, kind, names);
        }
        if has_changed {
            self.wants.tell(&now);
        }
    }

    /// Looks at what clusters and listeners refer to now.
    pub(crate) fn refresh_wanted(&self) {
        let mut now = self.wants.now.lock();
        let mut has_changed = false;
        if let Some(names) = self.routes.prune() {
            has_changed |= replace(&mut now, Kind::Route, by_key(Kind::Route, names));
        }
        if let Some(names) = self.extensions.prune() {
            has_changed |= replace(&mut now, Kind::Extension, by_key(Kind::Extension, names));
        }
        self.refresh_virtual_hosts();
        self.secrets.prune();
        let secrets = self.secrets.all().into_iter().filter_map(|slot| {
            let source = source_of(&slot)?;
            Some((source, Arc::from(slot.name.as_str())))
        });
        has_changed |= replace(&mut now, Kind::Secret, by_key(Kind::Secret, secrets));
        has_changed |= self.refresh_endpoints(&mut now);
        if has_changed {
            self.wants.tell(&now);
        }
    }

    /// Whose endpoints are wanted; the others are forgotten.
    fn refresh_endpoints(&self, now: &mut Wanted) -> bool {
        let mut state = self.state.lock();
        let Some(services) = state.clusters.changed_services() else {
            return false;
        };
        let names: BTreeMap<Key, Names> = services
            .into_iter()
            .map(|(source, names)| (Key::of(Kind::Endpoint, source), Names::Some(names)))
            .collect();
        let none = Names::default();
        for (source, known) in &mut state.assignments {
            let key = Key::of(Kind::Endpoint, source.clone());
            let wanted = names.get(&key).unwrap_or(&none);
            for name in now
                .get(&key)
                .map_or_else(Vec::new, |before| before.missing_in(wanted))
            {
                known.remove(name.as_str());
            }
        }
        drop(state);
        replace(now, Kind::Endpoint, names)
    }
}

impl Wants {
    fn tell(&self, now: &Wanted) {
        self.told.send_replace(Arc::new(now.clone()));
    }
}

/// Where a secret comes from, if that is not the bootstrap. A source that cannot be used was refused with what holds it.
pub(super) fn source_of(slot: &SecretSlot) -> Option<Source> {
    Source::try_from(slot.source.as_ref()?).ok()
}

/// Names by subscription.
fn by_key(kind: Kind, named: impl IntoIterator<Item = (Source, Arc<str>)>) -> BTreeMap<Key, Names> {
    let mut all: BTreeMap<Key, Names> = BTreeMap::new();
    for (source, name) in named {
        let key = Key::for_name(kind, source, &name);
        if let Names::Some(names) = all.entry(key).or_default() {
            names.insert(name, 1);
        }
    }
    all
}

/// Puts `names` in the place of all that is wanted of `kind`; whether that is a change. What is the same stays the same object.
fn replace(wanted: &mut Wanted, kind: Kind, names: BTreeMap<Key, Names>) -> bool {
    let before = wanted.len();
    wanted.retain(|key, _| key.kind != kind || names.contains_key(key));
    let mut has_changed = wanted.len() != before;
    for (key, names) in names {
        if wanted.get(&key).is_none_or(|before| **before != names) {
            wanted.insert(key, Arc::new(names));
            has_changed = true;
        }
    }
    has_changed
}

fn sorted<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
    let mut sorted: Vec<String> = names.map(ToString::to_string).collect();
    sorted.sort_unstable();
    sorted
}
